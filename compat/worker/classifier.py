"""A decoder with a new head that classifies texts, as people fine-tune it: what its head is, and which token it reads.

In: a group of a decoder in fp32. Out: names of what is not as it has to be, and how far a padded text's answer is from
that of the text alone. The head reads the last token that is no pad.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from compat.worker import stack_api
from compat.worker.calls import under_test
from compat.worker.group import Group

LABELS = 3
LENGTHS = (13, 13, 8, 5)

HEAD_STD = 10.0
"""Times `initializer_range` that a new head's values may scatter; a head of memory that nobody wrote is anywhere."""


class Classifier(NamedTuple):
    """The model, and the names of its parameters that the checkpoint does not hold."""

    model: Any
    missing: frozenset[str]


def small(group: Group) -> bool:
    """Whether heads are asked about: they cost loads, and are the same in every dtype."""
    own = group.row["source"] == "probe" and group.mode.kind == "plain" and not group.spec.quantization["library"]
    return own and group.dtype == torch.float32


def asked(group: Group) -> bool:
    """Whether a classifier says something here: of a decoder that has such a class."""
    decoder = group.task == "causal-lm" and stack_api.classifier_class(group.master.config) is not None
    return small(group) and decoder


def classifier(group: Group) -> Classifier:
    """The decoder of the group's checkpoint under a new head; loaded once. Raises StackError(phase="load")."""

    def make() -> Classifier:
        with under_test("load"), torch.random.fork_rng(devices=[]):
            model, account = stack_api.classifier_class(group.master.config).from_pretrained(
                group.checkpoint.location,
                **stack_api.dtype_argument(torch.float32),
                attn_implementation="eager",
                num_labels=LABELS,
                output_loading_info=True,
            )
        model.config.pad_token_id = group.source.pad
        return Classifier(model.to(group.device).eval(), frozenset(account["missing_keys"]))

    found: Classifier = group.once("classifier", make)
    return found


def head_wrong(group: Group) -> list[str]:
    """Parameters that the checkpoint holds and the classifier has otherwise, and new ones that no initialisation gives.
    Raises StackError."""
    model, missing = classifier(group)
    known = dict(group.master.named_parameters())
    limit = HEAD_STD * float(getattr(model.config.get_text_config(), "initializer_range", 0.02))
    found = []
    for name, parameter in model.named_parameters():
        if name in known and name not in missing:
            if not torch.equal(parameter.cpu(), known[name]):
                found.append(f"{name}: not the checkpoint's")
        elif not bool(parameter.isfinite().all()) or float(parameter.abs().mean()) > limit:
            found.append(f"{name}: new, and its values are {float(parameter.abs().mean()):.3g} on average")
    return found


def padded_error(group: Group) -> float:
    """Largest distance of an answer in a batch padded on the right from the answer to the text alone, over the rms of
    the answers. Raises StackError."""
    model, _ = classifier(group)
    rows = group.source.rows(1000 * group.spec.seed + 970, list(LENGTHS)).tokens
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[group.source.pad] * (width - len(row))] for row in rows], device=group.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=group.device)
    with under_test("forward"), torch.no_grad():
        together = model(input_ids=ids, attention_mask=mask).logits.double()
        alone = torch.cat([model(input_ids=ids[i : i + 1, : len(row)]).logits for i, row in enumerate(rows)]).double()
    return float((together - alone).abs().max() / alone.square().mean().sqrt())
