"""What training relies on beside the gradients of a step without dropout.

In: a backend of a group, and a batch with labels. Out: measurements in the report.
- the loss against cross entropy in fp64 of the very logits that came with it, where the library computes it in fp32;
- dropout of every kind: layers that are recomputed in the backward pass draw what the forward drew;
- dropout of attention alone: drawn wherever eager attention draws it, and the same under one seed;
- memory: nothing of a step, or of a loss that is thrown away, is held afterwards;
- `enable_input_require_grads` on a frozen model, and labels that the caller has shifted.
The model is left as it was: modes, dropout, gradients, hooks.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from compat.worker import stack_api
from compat.worker.allocations import Allocations
from compat.worker.calls import StackError, under_test
from compat.worker.dispatch import forced_sdpa_kernel, synchronize
from compat.worker.group import Group, Loaded
from compat.worker.inputs import output_of
from compat.worker.load import held_tensors
from compat.worker.metrics import rms
from compat.worker.report import Report
from compat.worker.training import IGNORED, Batch, cross_entropy_sum, named, step, trainable

SEED = 4000

DROPPED = 0.25
"""Probability of every dropout under which layers are recomputed."""

ATTENTION_DROPPED = 0.5

BACKENDS = ("eager", "sdpa")
"""Others compute dropout in kernels of their own, or have none."""

ATTENTION_NAMES = frozenset(
    ("dropout", "attention_dropout", "attn_dropout", "dropout_p", "dropout_prob", "dropout_rate", "attn_pdrop")
)
"""What modules of attention call the dropout of their probabilities; that of their output has another name."""

Place = tuple[Any, str]
"""A module, and the attribute that holds a probability."""


def measure(group: Group, loaded: Loaded, batch: Batch, report: Report) -> None:
    """See the module's docstring. Raises StackError, NoYardstick."""
    plain = group.row["source"] == "probe" and group.mode.kind == "plain" and not group.spec.quantization["library"]
    if not plain or loaded.attention["name"] not in BACKENDS:
        return
    with trainable(loaded.model):
        _loss(group, loaded, batch, report)
        if group.dtype != torch.float32:
            return
        _shifted(group, loaded, batch, report)
        _recomputed(group, loaded, batch, report)
        _attention_dropout(group, loaded, batch, report)
        _left(loaded, batch, report)
        _inputs(loaded, batch, report)


def _forward(loaded: Loaded, arguments: dict[str, Any]) -> Any:
    """The model's output with autograd recording. Raises StackError(phase="train")."""
    loaded.activate()
    with under_test("train"), forced_sdpa_kernel(loaded.attention["sdpa_kernel"]), torch.enable_grad():
        output = loaded.model(**arguments)
        synchronize(loaded.group.device)
    return output


# -- the loss ----------------------------------------------------------------------------------------------------


def _loss(group: Group, loaded: Loaded, batch: Batch, report: Report) -> None:
    if "labels" not in batch.arguments or not stack_api.upcasts_loss(loaded.model):
        return
    output = _forward(loaded, batch.arguments)
    labels, shifts = batch.arguments["labels"], group.task in stack_api.CAUSAL_TASKS
    own = cross_entropy(output.logits.detach(), shifted(labels) if shifts else labels)
    off = abs(float(output.loss.detach()) - own) / (torch.finfo(torch.float32).eps * abs(own))
    report.measure("loss_beside_logits", off, unit="fp32 eps |loss|")


def shifted(labels: torch.Tensor) -> torch.Tensor:
    """`labels` (rows, positions), each where it is predicted: one position earlier, none at the last."""
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Mean over the targets that are not IGNORED, in nats, fp64; `logits` (rows, positions, vocabulary)."""
    return float(cross_entropy_sum(logits.double(), targets)) / int((targets != IGNORED).sum())


def _shifted(group: Group, loaded: Loaded, batch: Batch, report: Report) -> None:
    """Labels that the caller has shifted, as sequence parallelism needs them, give the loss of those that it has
    not."""
    model = loaded.model
    if group.task not in stack_api.CAUSAL_TASKS or not stack_api.divides_by_items(model):
        return
    if "shift_labels" not in inspect.signature(model.loss_function).parameters:
        return
    usual = float(_forward(loaded, batch.arguments).loss.detach())
    given = batch.arguments | {"shift_labels": shifted(batch.arguments["labels"])}
    off = abs(float(_forward(loaded, given).loss.detach()) - usual) / (torch.finfo(torch.float32).eps * abs(usual))
    report.measure("shift_labels_error", off, unit="fp32 eps |loss|")


# -- dropout -----------------------------------------------------------------------------------------------------


def every_dropout(model: Any) -> list[Place]:
    """All places of a dropout probability but those that leave out whole layers."""
    places: list[Place] = []
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            places.append((module, "p"))
            continue
        names = (n for n, value in vars(module).items() if "drop" in n and isinstance(value, float))
        places += [(module, n) for n in names if "layer" not in n and "path" not in n]
    return places


def attention_dropout(model: Any) -> list[Place]:
    """The places where modules of attention keep the dropout of their probabilities."""
    places: list[Place] = []
    for module in model.modules():
        if "attention" not in type(module).__name__.lower():
            continue
        places += [(module, n) for n, v in vars(module).items() if n in ATTENTION_NAMES and isinstance(v, float)]
        children = (c for n, c in module.named_children() if n in ATTENTION_NAMES)
        places += [(c, "p") for c in children if isinstance(c, torch.nn.Dropout)]
    return places


@contextmanager
def dropping(places: list[Place], probability: float) -> Iterator[None]:
    """Inside, each of `places` holds `probability`."""
    before = [getattr(holder, name) for holder, name in places]
    for holder, name in places:
        setattr(holder, name, probability)
    try:
        yield
    finally:
        for (holder, name), value in zip(places, before, strict=True):
            setattr(holder, name, value)


@contextmanager
def _drawn_from(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch draws from `seed`; outside, nobody notices."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _recomputed(group: Group, loaded: Loaded, batch: Batch, report: Report) -> None:
    """Gradients with layers recomputed, against those with every activation kept, under one seed."""
    model, places = loaded.model, every_dropout(loaded.model)
    names = named(group.master)

    def gradients() -> dict[str, torch.Tensor]:
        with _drawn_from(SEED, group.device):
            return step(loaded, [batch], 1, names).parameters

    with dropping(places, DROPPED):
        kept = gradients()
        try:
            stack_api.checkpoint_activations(model, True)
        except ValueError:
            return
        try:
            again = gradients()
        finally:
            stack_api.checkpoint_activations(model, False)
    report.measure("recomputed_dropout_error", apart(again, kept), unit="of the gradient")
    report.facts["dropouts"] = len(places)


def apart(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """rms of the differences over rms of what is expected, all tensors together; one that is missing counts as
    zeros."""
    off = [found.get(n, torch.zeros_like(own)) - own for n, own in expected.items()]
    whole = rms(torch.cat([own.flatten() for own in expected.values()]))
    return rms(torch.cat([d.flatten() for d in off])) / whole


def _attention_dropout(group: Group, loaded: Loaded, batch: Batch, report: Report) -> None:
    differs, _ = group.once("attention dropout of eager", lambda: _draws(group.eager, batch))
    if not differs:
        report.facts["attention_dropout"] = "not asked: eager attention draws none"
        return
    draws, repeats = _draws(loaded, batch)
    report.measure("attention_dropout_lost", int(not draws), unit="backends")
    report.measure("attention_dropout_unrepeated", int(not repeats), unit="backends")


def _draws(loaded: Loaded, batch: Batch) -> tuple[bool, bool]:
    """Whether two seeds give two outputs, and one seed gives one, with dropout of attention and no other."""

    def drawn(seed: int) -> torch.Tensor:
        with _drawn_from(seed, loaded.group.device):
            return output_of(_forward(loaded, batch.arguments), loaded.group.task).detach()

    with trainable(loaded.model), dropping(attention_dropout(loaded.model), ATTENTION_DROPPED):
        first, again, other = drawn(SEED), drawn(SEED), drawn(SEED + 1)
    return not torch.equal(first, other), torch.equal(first, again)


# -- memory and inputs -------------------------------------------------------------------------------------------


def _left(loaded: Loaded, batch: Batch, report: Report) -> None:
    """Bytes of a step, and of a loss that nobody asked the gradients of, that are held once both have been let go."""
    step(loaded, [batch], 1)  # what is kept from one step to the next is there by now
    account = Allocations()
    with account:
        step(loaded, [batch], 1)
        _forward(loaded, batch.arguments)
    known = {tensor.untyped_storage()._cdata for tensor in held_tensors(loaded.model)}
    report.measure("step_left_bytes", account.left(known), unit="bytes")


def _inputs(loaded: Loaded, batch: Batch, report: Report) -> None:
    """On a frozen model, as below an adapter whose layers are recomputed, the embedding's output learns all the
    same."""
    model = loaded.model
    learning = [p for p in model.parameters() if p.requires_grad]
    model.requires_grad_(False)
    stack_api.drop_input_hooks(model)
    try:
        model.enable_input_require_grads()
        output = output_of(_forward(loaded, batch.arguments), loaded.group.task)
        report.measure("inputs_without_gradient", int(not output.requires_grad), unit="models")
    except (NotImplementedError, AttributeError, StackError) as refused:
        report.facts["input_gradients"] = f"raised {type(refused).__name__}: {refused}"[:160]
    finally:
        stack_api.drop_input_hooks(model)
        for parameter in learning:
            parameter.requires_grad_(True)
