"""One training step: examples with labels, the loss by our own arithmetic, gradients of a model and of the reference.

In: a load group's source of rows. Out: `Lesson`s (rows with labels), and `Step`s: the loss, the gradient at the output
of the token embedding for every valid position, and the gradients of the parameters. The reference computes row by row,
unpadded, in fp64; a candidate gets batches as users make them. A model is left as it was: eval mode, its own dropout,
no gradients, no hooks.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from compat.worker import stack_api
from compat.worker.calls import under_test
from compat.worker.dispatch import forced_sdpa_kernel, synchronize
from compat.worker.group import Group, Loaded
from compat.worker.inputs import CLASSIFYING, FIRST_TOKEN, Rows, output_of, single_rows, unpadded

IGNORED = -100
"""The label of a position that takes no part in the loss (torch.nn.functional.cross_entropy's ignore_index)."""

LOSS_SCALE = {torch.float16: 1024.0}
"""What the loss is multiplied by before the backward pass, as users of fp16 do, so that gradients do not underflow."""


@dataclass(frozen=True)
class Lesson:
    """Unpadded rows and what they are to be taught."""

    rows: Rows
    labels: tuple[tuple[int, ...], ...]
    """A row each: a label for every output position, IGNORED where there is none."""
    task: str

    @property
    def count(self) -> int:
        """How many labels the mean loss is taken over."""
        return sum(sum(t != IGNORED for t in _targets(row, self.task)) for row in self.labels)

    def singles(self) -> list[Lesson]:
        """Each row as a lesson of its own."""
        rows, images = self.rows, self.rows.images
        if images is not None:
            parts = [(rows.tokens[i : i + 1], images[i : i + 1], rows.decoder[i : i + 1]) for i in range(len(images))]
            singles = [Rows(*part) for part in parts]
        else:
            singles = single_rows(rows)
        return [Lesson(one, (labels,), self.task) for one, labels in zip(singles, self.labels, strict=True)]


def _targets(labels: tuple[int, ...], task: str) -> tuple[int, ...]:
    """The labels that are predicted: a causal model predicts none at the first position."""
    return labels[1:] if task in stack_api.CAUSAL_TASKS else labels


@dataclass
class Step:
    """What one training step gave; gradients in fp64, divided by the loss scale."""

    loss: float
    tokens: list[torch.Tensor] = field(default_factory=list)
    """Gradient at the embedding's output, (positions, hidden), row after row (encoder's and then decoder's)."""
    parameters: dict[str, torch.Tensor] = field(default_factory=dict)
    wanted: bool = False
    """Whether gradients of parameters were asked for."""
    at_pads: float = 0.0
    """Largest absolute gradient at the embedding's output where a pad stands."""
    recomputed: int = 0
    """Calls of modules during the backward pass."""


def lesson(group: Group, seed: int, lengths: list[int]) -> Lesson:
    """Rows of these lengths with labels drawn from `seed`; a third of the positions of every row has none.

    Causal models: the tokens themselves; the first third (a prompt) and some others are ignored. Masked models: a third
    of the positions has a label. Encoder-decoder models: the decoder reads the labels shifted by one, as the library's
    own shift makes them. Images: a class each. Feature extraction: no labels, a fixed projection is the loss.
    """
    generator = torch.Generator().manual_seed(seed + 17)
    rows = group.source.rows(seed, lengths)
    if group.task in CLASSIFYING:
        classes = torch.randint(0, int(group.master.config.num_labels), (len(lengths),), generator=generator)
        return Lesson(rows, tuple((int(c),) for c in classes), group.task)
    if rows.decoder:
        decoder, labels = [], []
        for i, ids in enumerate(rows.decoder):
            new = int(torch.randint(FIRST_TOKEN, group.source.vocab, (1,), generator=generator))
            own = ids[: len(ids) - 3 * i]  # of unequal length, so that the labels are padded too
            decoder.append(own)
            labels.append((*own[1:], new))
        return Lesson(Rows(rows.tokens, rows.images, tuple(decoder)), tuple(labels), group.task)
    chosen = []
    for ids in rows.tokens:
        keep = torch.rand(len(ids), generator=generator) < (0.4 if group.task == "masked-lm" else 0.8)
        if group.task in stack_api.CAUSAL_TASKS:
            keep[: max(len(ids) // 4, len(group.source.image_tokens) + 1)] = False
        keep[-1] = True
        drawn = torch.randint(FIRST_TOKEN, group.source.vocab, (len(ids),), generator=generator).tolist()
        source = drawn if group.task == "masked-lm" else list(ids)
        chosen.append(tuple(t if k else IGNORED for t, k in zip(source, keep.tolist(), strict=True)))
    return Lesson(rows, tuple(chosen), group.task)


def loss_sum(output: torch.Tensor, labels: tuple[int, ...], task: str) -> torch.Tensor:
    """Sum of the losses of one row: cross entropy in nats, or a fixed projection where the task has no labels.

    `output` (positions, features), at least fp32; causal models predict the next position's label.
    """
    if task == "feature-extraction":
        generator = torch.Generator().manual_seed(5)
        weights = torch.randn(output.shape[-1], generator=generator, dtype=torch.float64)
        return (output * weights.to(output)).sum()
    targets = torch.tensor(_targets(labels, task), device=output.device)
    predicted = output[:-1] if task in stack_api.CAUSAL_TASKS else output
    return cross_entropy_sum(predicted, targets)


def cross_entropy_sum(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum over the targets that are not IGNORED, in nats; `logits` (..., vocabulary) at least fp32, `targets` (...)."""
    chosen = targets != IGNORED
    log_p = logits[chosen] - logits[chosen].logsumexp(-1, keepdim=True)
    return -log_p.gather(1, targets[chosen][:, None]).sum()


# -- the model as it is trained ----------------------------------------------------------------------------------


@contextmanager
def trainable(model: Any, train: bool = True) -> Iterator[None]:
    """`model` in train or eval mode, without dropout and without gradients; all put back afterwards."""
    changed: list[tuple[Any, str, float]] = []
    was_training = model.training
    holders: dict[int, Any] = {}
    for module in model.modules():
        holders[id(module)] = module
        config = getattr(module, "config", None)
        if config is not None:
            holders[id(config)] = config
    for holder in holders.values():
        for name, value in list(vars(holder).items()):
            dropping = "drop" in name or (name == "p" and "Dropout" in type(holder).__name__)
            if dropping and isinstance(value, float) and value:
                changed.append((holder, name, value))
                setattr(holder, name, 0.0)
    model.train(train)
    model.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        for holder, name, value in changed:
            setattr(holder, name, value)
        model.train(was_training)
        model.zero_grad(set_to_none=True)


def embeddings(model: Any) -> list[torch.nn.Module]:
    """The modules whose output is the first hidden state: the token embeddings of the model and of its encoder and
    decoder, or what stands in their place in a model of images; in a model of sound its first linear layer, which
    comes after the convolutions."""
    found: dict[int, torch.nn.Module] = {}
    for module in model.modules():
        if hasattr(module, "get_input_embeddings"):
            with contextlib.suppress(NotImplementedError, AttributeError):
                own = module.get_input_embeddings()
                found[id(own)] = own
    if not found:
        found = {0: next(m for m in model.modules() if isinstance(m, torch.nn.Linear))}
    return list(found.values())


@dataclass(frozen=True)
class _Hidden:
    """The output of one call of an embedding: (rows, positions, hidden), or (rows, hidden, ...) of a convolution."""

    output: torch.Tensor
    convolved: bool

    def of_row(self, gradient: torch.Tensor, row: int) -> torch.Tensor:
        """(positions, hidden) fp64 of one row's gradient."""
        one = gradient[row].double()
        return one.flatten(1).t() if self.convolved else one


@contextmanager
def _first_hidden(model: Any) -> Iterator[list[_Hidden]]:
    """Collects the outputs of `embeddings`, in the order of the calls, their gradients kept."""
    seen: list[_Hidden] = []

    def note(module: Any, arguments: Any, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output  # Swin's patches come with their grid
        if isinstance(output, torch.Tensor) and output.requires_grad:
            output.retain_grad()
            seen.append(_Hidden(output, isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d))))

    handles = [m.register_forward_hook(note) for m in embeddings(model)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def named(model: Any) -> list[str]:
    """Names of the parameters that are compared: those outside the layers, and of the first and the last layer."""
    numbers = {n: int(m.group(1)) for n, _ in model.named_parameters() if (m := re.search(r"\.(\d+)\.", n))}
    ends = {min(numbers.values(), default=0), max(numbers.values(), default=0)}
    return [n for n, p in model.named_parameters() if numbers.get(n, 0) in ends and p.dtype.is_floating_point]


# -- steps -------------------------------------------------------------------------------------------------------


def reference_step(group: Group, taught: Lesson, names: list[str] | None = None) -> Step:
    """Loss and gradients (of `names`, or of `named` parameters) in fp64, each row alone and unpadded.

    Raises StackError(phase="reference").
    """
    reference = group.reference
    model, total = reference.model, Step(0.0)
    parameters = dict(model.named_parameters())
    names = named(model) if names is None else names
    for one in taught.singles():
        arguments = unpadded(one.rows, group.device, group.dtype if one.rows.images is not None else reference.dtype)
        lifted = {k: v.to(reference.dtype) if v.dtype.is_floating_point else v for k, v in arguments.items()}
        with under_test("reference"), _first_hidden(model) as hidden, reference.computing(), torch.enable_grad():
            output = output_of(model(**lifted), group.task)[0]
            loss = loss_sum(output, one.labels[0], group.task) / taught.count
            wanted = [*(h.output for h in hidden), *(parameters[n] for n in names)]
            found = torch.autograd.grad(loss, wanted, allow_unused=True)
        total.loss += float(loss.detach())
        total.tokens += [h.of_row(g, 0) for h, g in zip(hidden, found, strict=False) if g is not None]
        for name, gradient in zip(names, found[len(hidden) :], strict=True):
            if gradient is not None:
                own = total.parameters.get(name)
                total.parameters[name] = gradient if own is None else own + gradient
    return total


@dataclass(frozen=True)
class Batch:
    """What the model is called with, and where each row's own positions are: (row, positions) in the order of a
    reference's `tokens`."""

    arguments: dict[str, Any]
    places: tuple[tuple[int, int, slice], ...]
    """(embedding call, row, positions)."""
    labels: tuple[tuple[int, ...], ...] = ()
    """For models whose loss is computed here and not by the library."""
    valid: tuple[slice, ...] = ()


def step(loaded: Loaded, batches: list[Batch], count: int, names: list[str] | None = None, watch: bool = False) -> Step:
    """Forward and backward of every batch, gradients accumulated as `.grad` does. The model is to be `trainable`.

    The loss is the library's; for batches without labels it is computed here from the output, over `count` labels in
    all. `names`: of the parameters whose gradients are kept (None: none). `watch` counts what runs in the backward
    pass. Raises StackError(phase="train").
    """
    group, model = loaded.group, loaded.model
    scale = LOSS_SCALE.get(group.dtype, 1.0)
    result = Step(0.0)
    loaded.activate()
    model.zero_grad(set_to_none=True)
    for batch in batches:
        with (
            under_test("train"),
            forced_sdpa_kernel(loaded.attention["sdpa_kernel"]),
            _first_hidden(model) as hidden,
            torch.enable_grad(),
        ):
            output = model(**batch.arguments)
            if "labels" not in batch.arguments:
                tensor = output_of(output, group.task)
                rows = [tensor[i, where].float() for i, where in enumerate(batch.valid)]
                sums = [loss_sum(r, t, group.task) for r, t in zip(rows, batch.labels, strict=True)]
                loss = torch.stack(sums).sum() / count
            else:
                loss = output.loss
            with _calls(model, watch) as calls:
                (loss * scale).backward()
            synchronize(group.device)
        result.recomputed += len(calls)
        result.loss += float(loss.detach())
        _read_tokens(result, batch, hidden, scale)
    if names is not None:
        result.wanted, kept = True, set(names)
        result.parameters = {
            n: p.grad.double() / scale for n, p in model.named_parameters() if n in kept and p.grad is not None
        }
    model.zero_grad(set_to_none=True)
    return result


@contextmanager
def _calls(model: Any, watch: bool) -> Iterator[list[str]]:
    """Names the modules without children that are called inside."""
    seen: list[str] = []
    leaves = [m for m in model.modules() if watch and not any(True for _ in m.children())]
    handles = [m.register_forward_pre_hook(lambda module, _: seen.append(type(module).__name__)) for m in leaves]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _read_tokens(result: Step, batch: Batch, hidden: list[_Hidden], scale: float) -> None:
    """Add the gradients at each row's own positions to `result`, and the largest one elsewhere."""
    found = [(h, h.output.grad / scale) for h in hidden if h.output.grad is not None]
    if len(found) != len(hidden):
        return
    for call, row, where in batch.places:
        if call < len(found):
            own, gradient = found[call]
            result.tokens.append(own.of_row(gradient, row)[where])
    for call, (own, gradient) in enumerate(found):
        if own.convolved:
            continue
        pads = torch.ones(gradient.shape[:2], dtype=torch.bool, device=gradient.device)
        for place, row, where in batch.places:
            if place == call:
                pads[row, where] = False
        if bool(pads.any()):
            largest = float(gradient[pads].abs().double().amax())
            result.at_pads = largest if largest != largest else max(result.at_pads, largest)
