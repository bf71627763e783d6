"""work: does it do more than its arithmetic asks for? Cost that is silently paid, seen without a clock.

Every path of compat.worker.paths is traced operator by operator. Multiply-adds of each weight and each attention layer
are judged against our own arithmetic (compat.worker.arithmetic), and so are copies of weights, forwards that
`generate` makes, logits that it computes, memory that outlives a call, and autograd left on. What has no arithmetic
(operators, copies, bytes written, synchronisations, the largest tensor) is counted for a prefill, a decode step and a
short `generate`, to be judged against what clean runs of the same cell counted. What happens inside a linear layer or
between the inputs of an attention kernel and its output is left out of those counts, where another order of summation,
fp32 inside or repeated keys are as good.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from compat.worker.arithmetic import Arithmetic, name_of
from compat.worker.group import Group
from compat.worker.paths import NO_CACHE, Walk, walked
from compat.worker.report import Report
from compat.worker.trace import LAYER_PRODUCTS, OUTSIDE, Operator

OWN_ARITHMETIC = (
    "plain",
    "padded",
    "attentions",
    "prefill",
    "decode",
    "chunk",
    "padded_prefill",
    "padded_decode",
    "generate",
    "beam_generate",
)
"""Paths whose every product is known."""

PHASES = {"prefill": ("prefill", "plain"), "decode": ("decode",), "generate": ("generate",)}
"""Prefix of the counts -> the paths that it may stand for."""

MASKED = ("padded_prefill", "padded")


def run(group: Group, attention: dict[str, Any]) -> Report:
    """See the module's docstring. Raises StackError, Unavailable."""
    report = Report(seed=group.spec.seed)
    walks = walked(group, attention)
    model = group.loaded(attention).model
    report.facts["paths"] = dict.fromkeys(walks.walks, "walked") | walks.absent
    report.measure("compared_paths", len(walks.walks), unit="paths", better="higher")
    report.measure("cacheless_prefills", sum(why == NO_CACHE for why in walks.absent.values()), unit="paths")
    if any(w.trace.kernels for w in walks.walks.values()):
        report.facts["operators"] = "not seen: this attention compiles itself, and a dispatch mode would stop it"
    ledgers = {name: Ledger(walk, Arithmetic(model, group.task)) for name, walk in walks.walks.items()}
    _products(report, ledgers)
    _memory(report, walks.walks)
    if "generate" in walks.walks:
        _generate(report, walks.walks["generate"], group.source.vocab)
    trained = ledgers["train"].trained() if "train" in ledgers else None
    if trained is not None:
        report.measure("train_work", trained)
    for phase, names in PHASES.items():
        ledger = next((ledgers[n] for n in names if n in ledgers), None)
        if ledger is not None and ledger.walk.trace.operators:
            _counts(report, phase, ledger, group.dtype.itemsize)
            if phase == "prefill" and group.source.vocab:
                report.measure("logits_cast", ledger.logits_cast(group.source.vocab), unit="of all logits")
    for name in MASKED:
        if name in ledgers and ledgers[name].walk.trace.operators:
            report.measure("padded_mask_elements", ledgers[name].squares(scores=False), unit="of rows x q x k")
    return report


class Ledger:
    """One walk, set against the arithmetic of its model."""

    def __init__(self, walk: Walk, arithmetic: Arithmetic) -> None:
        self.walk = walk
        self.arithmetic = arithmetic
        self.operators = walk.trace.operators
        self.attention_layers = {o.where for o in self.operators if o.kind == "attention" and o.where != OUTSIDE}

    def products(self) -> dict[str, float]:
        """Weight -> multiply-adds over those that the arithmetic asks for; one that is not to run at all is compared
        with a single position. "all of them" is their sum, with products of no known weight."""
        done: Counter[str] = Counter()
        for o in self.operators:
            if o.macs and not self._in_attention(o):
                done[name_of(o.weight)] += o.macs
        wanted = self.arithmetic.products(self.walk)
        found = {name: done[name] / (total or one) for name, (total, one) in wanted.items() if total or done[name]}
        strange = sum(o.macs for o in self.operators if o.name in LAYER_PRODUCTS and name_of(o.weight) not in wanted)
        if wanted and not self.arithmetic.left_out:
            everything = sum(total for total, _ in wanted.values())
            found["all of them"] = (sum(done[n] for n in wanted) + strange) / everything if everything else 1.0
        return found

    def attention(self) -> dict[str, float]:
        """Attention layer -> multiply-adds over those that the arithmetic asks for."""
        done: Counter[str] = Counter()
        for o in self.operators:
            if o.macs and self._in_attention(o):
                done[o.where] += o.macs
        wanted = {layer: self.arithmetic.attention(layer, self.walk) for layer in sorted(self.attention_layers)}
        return {layer: done[layer] / total for layer, total in wanted.items() if total}

    def kernels_a_layer(self) -> float:
        """The most attention kernels that one layer ran, over the forwards of this path."""
        runs = Counter(o.where for o in self.operators if o.kind == "attention" and o.where != OUTSIDE)
        return max(runs.values(), default=0) / len(self.walk.steps)

    def trained(self) -> float | None:
        """Multiply-adds of all products but attention's, over three times those of the forward: the gradients of the
        input and of the weight each take as many."""
        if self.arithmetic.left_out:
            return None
        pairs = self.arithmetic.products(self.walk)
        wanted = 3 * sum(total for total, _ in pairs.values())
        done = sum(o.macs for o in self.operators if o.name in LAYER_PRODUCTS and not self._in_attention(o))
        return done / wanted if wanted else None

    def weights_copied(self) -> float:
        """Elements of weights that were copied, cast or dequantized, over all of them: a linear reads them in place."""
        known = {name: w for name, w in self.arithmetic.weights.items() if not w.router}
        total = sum(w.size for w in known.values()) or 1
        moved = sum(_elements(o) for o in self.operators if o.kind in ("copy", "cast") and name_of(o.weight) in known)
        return moved / total

    def logits_cast(self, vocabulary: int) -> float:
        """Elements that the model itself, outside its layers, cast in tensors as wide as the vocabulary, over all
        logits."""
        cast = sum(
            _elements(o)
            for o in self.operators
            if o.where == "" and o.kind == "cast" and any(s and s[-1] == vocabulary for s in o.shapes)
        )
        return cast / (self.walk.rows * sum(new for new, _ in self.walk.steps) * vocabulary)

    def copied(self, attention: bool) -> int:
        """Bytes copied inside or outside attention layers. Inside, casts and repeated heads do not count."""
        kinds = ("copy",) if attention else ("copy", "cast", "spread")
        return sum(o.written for o in self._loose() if o.kind in kinds and self._at_attention(o) == attention)

    def attention_copies(self, itemsize: int) -> float | None:
        """Bytes copied inside attention layers, in units of what goes in and out of them; None where the arithmetic
        does not know one of them."""
        wanted = [self.arithmetic.traffic(layer, self.walk) for layer in self.attention_layers]
        known = [n for n in wanted if n]
        if not known or len(known) < len(wanted):
            return None
        return self.copied(attention=True) / (sum(known) * itemsize)

    def produced(self) -> int:
        """Bytes that the linear layers write on this path: the natural unit of copying."""
        return sum(o.written for o in self.operators if o.weight and o.macs) or 1

    def squares(self, scores: bool) -> float:
        """Elements written in tensors of queries x keys, in units of rows x queries x keys: with a head dimension
        (`scores`) or without one (masks)."""
        sizes = {(new, new + past) for new, past in self.walk.steps if new > 1}
        if self.walk.source:
            sizes |= {(self.walk.source, self.walk.source), (self.walk.steps[0][0], self.walk.source)}
        total = 0.0
        for o in self.counted():
            for shape in o.shapes:
                if len(shape) >= 2 and shape[-2:] in sizes:
                    heads = math.prod(shape[:-2]) / self.walk.rows
                    total += heads if (heads > 1) == scores else 0.0
        return total

    def counted(self) -> Iterable[Operator]:
        """Operators outside linear layers and outside attention's own computation."""
        return (o for o in self._loose() if not (self._at_attention(o) and o.kind in ("cast", "spread")))

    def _loose(self) -> Iterable[Operator]:
        return (o for o in self.operators if not o.macs and f"{o.where}.weight" not in self.arithmetic.weights)

    def _at_attention(self, o: Operator) -> bool:
        return o.where in self.attention_layers

    def _in_attention(self, o: Operator) -> bool:
        """Whether a product is attention's own: in its layer, and of no weight."""
        return o.kind == "attention" or (self._at_attention(o) and not o.weight)


def _elements(o: Operator) -> int:
    return sum(math.prod(shape) for shape in o.shapes)


def _products(report: Report, ledgers: dict[str, Ledger]) -> None:
    linear: dict[str, dict[str, float]] = {}
    attention: dict[str, dict[str, float]] = {}
    copies: dict[str, float] = {}
    for name in OWN_ARITHMETIC:
        if name in ledgers and ledgers[name].operators:
            linear[name], attention[name] = ledgers[name].products(), ledgers[name].attention()
            copies[name] = ledgers[name].weights_copied()
    if not linear:
        return
    _worst(report, "linear_work", linear)
    _worst(report, "attention_work", attention)
    report.measure("kernels_a_layer", [ledgers[n].kernels_a_layer() for n in linear], unit="a forward")
    report.measure("weights_copied", list(copies.values()), unit="of all weights")
    weights = sum(len(found) for found in linear.values())
    if any(ledgers[n].arithmetic.weights for n in linear):
        report.measure("compared_products", weights, unit="weights", better="higher")
    report.measure(
        "compared_operators", sum(len(w.operators) for w in ledgers.values()), unit="operators", better="higher"
    )
    left_out = next(iter(ledgers.values())).arithmetic.left_out
    if left_out:
        report.facts["arithmetic_left_out"] = [*left_out[:3], f"{len(left_out)} in all"]


def _worst(report: Report, name: str, found: dict[str, dict[str, float]]) -> None:
    """The largest ratio of each path, and where it stands when it is no rounding."""
    per_path = {path: max(ratios.values()) for path, ratios in found.items() if ratios}
    if not per_path:
        return
    report.measure(name, list(per_path.values()))
    path = max(per_path, key=lambda p: per_path[p])
    if per_path[path] > 1.001:
        place = max(found[path], key=lambda n: found[path][n])
        report.facts[f"{name}_in"] = {p: round(v, 3) for p, v in per_path.items() if v > 1.001} | {"worst": place}


def _memory(report: Report, walks: dict[str, Walk]) -> None:
    outliving = {name: walk.outliving for name, walk in walks.items() if walk.outliving}
    report.measure("outliving_bytes", sum(n for w in outliving.values() for n in w.values()), unit="bytes")
    if outliving:
        report.facts["outliving"] = outliving
    report.measure("transfers", sum(w.trace.transfers for w in walks.values()), unit="copies between devices")


def _generate(report: Report, walk: Walk, vocabulary: int) -> None:
    """Forwards, autograd, and what `generate` itself copies: the logits of each step to fp32, and little else."""
    forwards = sum(c.where == "" for c in walk.trace.calls)
    report.measure("generate_forwards", forwards / len(walk.steps), unit="of new tokens")
    report.measure("generate_recording", sum(c.recording for c in walk.trace.calls), unit="modules under autograd")
    own = sum(o.written for o in walk.trace.operators if o.where == OUTSIDE and o.kind in ("copy", "cast", "spread"))
    logits = walk.rows * len(walk.steps) * vocabulary * 4
    if walk.trace.operators and vocabulary:
        report.measure("generate_own_copies", own / logits, unit="of all logits in fp32")


def _counts(report: Report, phase: str, ledger: Ledger, itemsize: int) -> None:
    counted = list(ledger.counted())
    largest = max((o.written for o in counted), default=0)
    report.measure(f"{phase}_operators", len(counted), unit="operators")
    report.measure(f"{phase}_copied_bytes", ledger.copied(attention=False), unit="bytes")
    copies = ledger.attention_copies(itemsize)
    if copies is not None:
        report.measure(f"{phase}_attention_copies", copies, unit="of queries, keys, values and outputs")
    report.measure(f"{phase}_copied_share", ledger.copied(attention=False) / ledger.produced(), unit="of linear output")
    report.measure(f"{phase}_written_bytes", sum(o.written for o in counted), unit="bytes")
    report.measure(f"{phase}_largest_tensor_bytes", largest, unit="bytes")
    report.measure(f"{phase}_synchronisations", ledger.walk.trace.synchronisations(), unit="waits")
    if phase == "prefill":
        report.measure("prefill_score_elements", ledger.squares(scores=True), unit="of rows x q x k")
