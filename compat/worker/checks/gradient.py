"""gradient: does a training step give the gradients that the reference gives?

The loss, the gradient at the output of the token embedding for every position, and the gradients of the parameters are
judged against fp64, with eager attention on the same rows alone and unpadded as yardstick (docs/criteria.md). Cases: a
batch padded on the right in train mode, padded on the left in eval mode, packed rows, layers that are recomputed in the
backward pass; in the eager cell also two micro batches with a common divisor, and a LoRA adapter (on quantized weights
in every cell). What training relies on beside its gradients (dropout, memory, the loss's precision) is asked of probes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from compat.worker import adapters, practice, stack_api
from compat.worker.calls import StackError
from compat.worker.checks.agreement import record
from compat.worker.group import EAGER, Group, Loaded, NoYardstick
from compat.worker.inputs import CLASSIFYING, Rows, padded, unpadded
from compat.worker.metrics import Agreement, Yardstick, rms
from compat.worker.report import Report
from compat.worker.training import IGNORED, Batch, Lesson, Step, lesson, named, reference_step, step, trainable

LENGTHS = (41, 34)
"""Longer than the probes' windows of 32; seven pads."""

DEEP_LENGTHS = ((41, 34, 65, 12), (33, 129), (31, 1 + 31, 2 + 31))

IMAGES = 3

SHARE = 1e-2
"""A parameter whose gradient is smaller than this share of the whole gradient's rms is judged as if it were of that
size."""

NOTHING = 1e-8
"""Below this share a parameter has no gradient but rounding errors: a key's bias moves all scores of a query alike."""

NOISE = 4.0
"""Rounding errors of a parameter without a gradient, in eps of the whole gradient's rms: up to 2.5 on CPU."""


@dataclass(frozen=True)
class Parameter:
    """A parameter's gradient in the reference, and the error that is normal for it."""

    r: torch.Tensor
    error: float
    """rms of eager's error, or the floor."""


@dataclass(frozen=True)
class Standard:
    """What the steps of a group are judged against."""

    r: Step
    scale: float
    """rms of the reference's token gradients: they are judged as multiples of it."""
    tokens: Yardstick
    loss: float
    """Eager's error of the loss in eps |loss|."""
    parameters: dict[str, Parameter]
    parameter_eps: dict[str, float]
    """Name -> eager's error in eps rms(r), or in units of the floor where that is larger."""

    @property
    def names(self) -> list[str]:
        """Of the parameters that are compared."""
        return list(self.parameters)


def run(group: Group, attention: dict[str, Any]) -> Report:
    """See the module's docstring. Raises StackError, Unavailable, NoYardstick."""
    report = Report(seed=group.spec.seed)
    loaded = trained(group, attention)
    seen = Seen(group, report)
    taught = _lessons(group)
    for one in taught:
        standard = _cases(group, loaded, one, seen)
    seen.tell(standard)
    if _thorough(group):
        practice.measure(group, loaded, batch_of(group, loaded, taught[0], "right"), report)
    quantized = bool(group.spec.quantization["library"])
    if _thorough(group) and (quantized or attention["name"] == "eager"):
        right = batch_of(group, loaded, taught[0], "right")
        adapters.measure(group, loaded, taught[0], right, report)
        if quantized and attention["name"] == "eager" and group.spec.at_least("deep"):
            _after_inference(group, loaded, taught[0], right, report)
    return report


def _thorough(group: Group) -> bool:
    """Whether to look beyond the first case: from depth standard on; real checkpoints, which take a hundred times as
    long, at depth deep."""
    return group.spec.at_least("standard" if group.row["source"] == "probe" else "deep")


def _lessons(group: Group) -> list[Lesson]:
    first = 900 + 1000 * group.spec.seed
    if group.task in CLASSIFYING:
        return [lesson(group, first, [0] * IMAGES)]
    found = [lesson(group, first, list(LENGTHS))]
    if group.spec.at_least("deep") and group.row["source"] == "probe":
        found += [lesson(group, first + 1 + i, list(lengths)) for i, lengths in enumerate(DEEP_LENGTHS)]
    return found


def _cases(group: Group, loaded: Loaded, taught: Lesson, seen: Seen) -> Standard:
    right = batch_of(group, loaded, taught, "right")
    standard = _standard(group, taught, train=True)
    with trainable(loaded.model):
        seen.add("right", standard, step(loaded, [right], taught.count, standard.names))
        if not _thorough(group):
            return standard
        if group.task in stack_api.CAUSAL_TASKS:
            if "packed" in group.row.get("features", ()) and stack_api.takes_packed_rows(loaded.model):
                seen.add("packed", standard, step(loaded, [_packed(group, taught)], taught.count))
            else:
                seen.report.facts["packed"] = "this family makes no masks from position ids"
        _checkpointed(group, loaded, taught, seen, standard)
        if loaded.attention["name"] == "eager":
            _accumulated(group, loaded, taught, seen, standard)
    left = batch_of(group, loaded, taught, "left") if "left" in _sides(group) else right
    evaluated = _standard(group, taught, train=False)
    with trainable(loaded.model, train=False):
        seen.add("left" if left is not right else "eval", evaluated, step(loaded, [left], taught.count))
    return standard


def _sides(group: Group) -> list[str]:
    return group.row.get("padding_sides") or (["left", "right"] if group.task in stack_api.CAUSAL_TASKS else ["right"])


# -- batches -----------------------------------------------------------------------------------------------------


def alone(group: Group, one: Lesson) -> Batch:
    """A single row, unpadded, without labels: its loss is computed by us."""
    arguments = unpadded(one.rows, group.device, group.dtype)
    calls = 2 if one.rows.decoder or (one.rows.tokens and one.rows.images is not None) else 1
    places = tuple((call, 0, slice(None)) for call in range(calls))
    return Batch(arguments, places, one.labels, (slice(None),))


def batch_of(group: Group, loaded: Loaded, taught: Lesson, side: str) -> Batch:
    """All rows in one batch with labels, as a user's collator makes it; positions are given with pads on the left,
    where the model would count them."""
    rows, device = taught.rows, group.device
    everywhere = (slice(None),) * len(taught.labels)
    arguments = unpadded(Rows(images=rows.images), device, group.dtype)
    if group.task in CLASSIFYING:
        arguments["labels"] = torch.tensor(taught.labels, device=device)[:, 0]
        return Batch(arguments, tuple((0, i, where) for i, where in enumerate(everywhere)))
    valid = everywhere
    if rows.tokens:
        batch = padded(Rows(tokens=rows.tokens), side, loaded.model, device, group.source.pad)
        arguments, valid = arguments | batch.arguments, batch.valid
    if side == "right":
        arguments.pop("position_ids", None)
    places = [[(0, i, where)] for i, where in enumerate(valid)]
    if rows.tokens and rows.images is not None:  # the image's patches, after the tokens
        places = [[*row, (1, i, slice(None))] for i, row in enumerate(places)]
    if group.task != "feature-extraction":
        width = max(len(x) for x in taught.labels)
        fill = [[IGNORED] * (width - len(x)) for x in taught.labels]
        sided = [[*f, *x] if side == "left" and not rows.decoder else [*x, *f]
                 for f, x in zip(fill, taught.labels, strict=True)]  # fmt: skip
        arguments["labels"] = torch.tensor(sided, device=device)
    for i, ids in enumerate(rows.decoder):
        places[i].append((1, i, slice(0, len(ids))))
    return Batch(arguments, tuple(x for row in places for x in row), taught.labels, valid)


def _packed(group: Group, taught: Lesson) -> Batch:
    """All rows in one, positions restarting, no mask; the first label of each row is nobody's."""
    rows = taught.rows.tokens
    ends = [sum(len(r) for r in rows[: i + 1]) for i in range(len(rows))]
    labels = [t for row in taught.labels for t in (IGNORED, *row[1:])]
    arguments = {
        "input_ids": torch.tensor([[t for r in rows for t in r]], device=group.device),
        "position_ids": torch.tensor([[i for r in rows for i in range(len(r))]], device=group.device),
        "labels": torch.tensor([labels], device=group.device),
        "use_cache": False,  # with a cache the library does not look for packed rows
    }
    return Batch(arguments, tuple((0, 0, slice(end - len(r), end)) for r, end in zip(rows, ends, strict=True)))


# -- cases of the eager cell -------------------------------------------------------------------------------------


def _checkpointed(group: Group, loaded: Loaded, taught: Lesson, seen: Seen, standard: Standard) -> None:
    """Layers recomputed in the backward pass, with the mask and the positions that padding needs."""
    model = loaded.model
    try:
        stack_api.checkpoint_activations(model, True)
    except ValueError as refused:
        seen.report.facts["checkpointing"] = f"refused: {refused}"[:160]
        if getattr(type(model), "supports_gradient_checkpointing", False):
            seen.report.measure("checkpointing_refused", 1, unit="refusals")
        return
    side = "left" if "left" in _sides(group) else "right"
    try:
        found = step(loaded, [batch_of(group, loaded, taught, side)], taught.count, standard.names, watch=True)
    finally:
        stack_api.checkpoint_activations(model, False)
    seen.add("checkpointed", standard, found)
    seen.report.measure("recomputed_modules", found.recomputed, unit="calls", better="higher")


def _accumulated(group: Group, loaded: Loaded, taught: Lesson, seen: Seen, standard: Standard) -> None:
    """Each row a micro batch of its own, divided by the labels of all: the sum is the gradient of the whole batch."""
    if group.task == "feature-extraction":
        return
    if not stack_api.divides_by_items(loaded.model):
        seen.report.facts["num_items_in_batch"] = "this class does not hand it on to its loss"
        return
    count = torch.tensor(taught.count, device=group.device)
    batches = []
    for one in taught.singles():
        batch = batch_of(group, loaded, one, "right")
        batches.append(Batch(batch.arguments | {"num_items_in_batch": count}, batch.places))
    seen.add("accumulated", standard, step(loaded, batches, taught.count, standard.names))


def _after_inference(group: Group, loaded: Loaded, taught: Lesson, batch: Batch, report: Report) -> None:
    """The same step once the model has answered without gradients: how many parameters it gives none, or one that is
    off by more than half. The model is then no longer what it was."""
    expected = _standard(group, taught, train=True).parameters
    group.kept.pop("gradient model", None)
    loaded.forward(**batch.arguments)
    try:
        with trainable(loaded.model):
            found = step(loaded, [batch], taught.count, list(expected)).parameters
    except StackError as error:
        report.facts["after_inference"] = f"raised {type(error.original).__name__}: {error.original}"[:160]
        found = {}
    lost = [
        n for n, own in expected.items() if n not in found or rms(found[n] - own.r) > max(0.5 * rms(own.r), own.error)
    ]
    report.measure("lost_after_inference", len(lost), unit="tensors")


# -- figures -----------------------------------------------------------------------------------------------------


def _standard(group: Group, taught: Lesson, train: bool) -> Standard:
    """Reference and yardstick of a lesson; kept. LLM.int8() computes otherwise in eval mode, so that has its own."""
    train = train or not group.spec.quantization["library"]
    key = f"gradient {taught.rows.key()} {train}"
    if key not in group.kept:
        group.kept[key] = _measure_standard(group, taught, train)
    standard: Standard = group.kept[key]
    return standard


def trained(group: Group, attention: dict[str, Any]) -> Loaded:
    """The model that is trained: the group's own, or one that no inference has touched where weights are quantized,
    since bitsandbytes repacks 4-bit weights for inference on a CPU. Raises StackError, Unavailable."""
    loaded = group.loaded(attention)
    if not group.spec.quantization["library"]:
        return loaded
    if loaded.alone:
        return group.fresh(attention)
    if "gradient model" not in group.kept:
        group.kept["gradient model"] = group.fresh(EAGER).model
    return Loaded(group, attention, group.kept["gradient model"], "switched")


def _measure_standard(group: Group, taught: Lesson, train: bool) -> Standard:
    _ = group.eager  # says why where it does not load
    eager = trained(group, EAGER)
    names = [n for n in named(group.reference.model) if n not in group.quantized]
    try:
        with trainable(eager.model, train):
            e = step(eager, [alone(group, one) for one in taught.singles()], taught.count, names)
    except StackError as error:
        raise NoYardstick(f"eager attention did not train: {error}") from error
    r = reference_step(group, taught, names)
    if not r.tokens:
        raise NoYardstick("the reference gave no embedding a gradient: none that is known was run")
    if len(e.tokens) != len(r.tokens):
        raise NoYardstick("eager attention gave the token embedding no gradient")
    eps, tokens = torch.finfo(group.dtype).eps, torch.cat(r.tokens)
    scale, whole = rms(tokens), rms(torch.cat([g.flatten() for g in r.parameters.values()]))
    parameters, errors = {}, {}
    for name, own in r.parameters.items():
        size = rms(own)
        least = eps * (NOISE * whole if size < NOTHING * whole else max(size, SHARE * whole))
        normal = rms(e.parameters[name] - own) if name in e.parameters else 0.0
        parameters[name], errors[name] = Parameter(own, max(normal, least)), normal / least
    yardstick = Yardstick(tokens / scale, torch.cat(e.tokens) / scale, group.dtype, logits=False)
    return Standard(r, scale, yardstick, abs(e.loss - r.loss) / (eps * abs(r.loss)), parameters, errors)


class Seen:
    """The figures of the cases, on their way into the report."""

    def __init__(self, group: Group, report: Report) -> None:
        self.report = report
        self.eps = torch.finfo(group.dtype).eps
        self.cases: list[str] = []
        self.figures: list[Agreement] = []
        self.loss: list[float] = []
        self.pads: list[float] = []
        self.parameters: list[float] = []
        self.compared = 0
        self.missing: set[str] = set()
        self.worst = ""

    def add(self, case: str, standard: Standard, found: Step) -> None:
        """Compare one step."""
        self.cases.append(case)
        self.loss.append(abs(found.loss - standard.r.loss) / (self.eps * abs(standard.r.loss)))
        self.pads.append(found.at_pads / standard.scale)
        expected = sum(len(t) for t in standard.r.tokens)
        if found.tokens and sum(len(t) for t in found.tokens) == expected:
            self.figures.append(standard.tokens.compare(torch.cat(found.tokens) / standard.scale))
        else:
            self.missing.add(f"{case}: the embedding's output")
        if not found.wanted:
            return
        ratios = {}
        for name, own in standard.parameters.items():
            gradient = found.parameters.get(name)
            if gradient is None:
                self.missing.add(f"{case}: {name}")
                continue
            ratios[name] = rms(gradient - own.r) / own.error
        self.compared += len(ratios)
        if ratios:
            worst = max(ratios, key=lambda n: ratios[n] if ratios[n] == ratios[n] else math.inf)
            if not self.parameters or not ratios[worst] <= max(self.parameters):
                self.worst = f"{case}: {worst}"
            self.parameters.append(ratios[worst])

    def tell(self, standard: Standard) -> None:
        """Put all of it into the report."""
        report = self.report
        record(report, self.figures, own_yardstick=False)
        report.measure("loss_error", self.loss, unit="eps |loss|")
        report.measure("yardstick_loss", standard.loss, unit="eps |loss|")
        report.measure("pad_gradient", self.pads, unit="of rms(r)")
        report.measure("parameter_ratio", self.parameters)
        report.measure("yardstick_parameter", max(standard.parameter_eps.values(), default=None), unit="eps rms(r)")
        report.measure("missing_gradients", len(self.missing), unit="tensors")
        count = [f.elements for f in self.figures]
        report.measure("compared_elements", count or [0], unit="elements", better="higher", method="sum")
        report.measure("compared_parameters", self.compared, unit="tensors", better="higher")
        report.facts["cases"] = self.cases
        if self.worst:
            report.facts["worst_parameter"] = self.worst
        if self.missing:
            report.facts["missing"] = sorted(self.missing)[:6]
