"""padding: does padding change anything that it must not?

Rows of unequal length are padded on each side that the family supports and judged, row by row, against the fp64
reference of the row alone, with the unpadded eager error as yardstick; so are one padded row by itself, batches of
drawn shapes, left padding without position ids (families that see distances only), rows packed into one without a
mask and with masks of our own (families that declare it), a row with masked tokens in its middle, a row back to front
whose tokens keep their positions (encoders that learn them), and padded decoders. Exact tests beside it: other token
ids under the pads and where a decoder's mask has holes, one more row that is masked everywhere, and a mask of another
dtype must leave every valid position bit for bit as it was.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from compat.worker import classifier, stack_api
from compat.worker.checks.agreement import by_path, record
from compat.worker.group import Group, Loaded
from compat.worker.inputs import Padded, Rows, padded, padding_sides
from compat.worker.metrics import Agreement, Yardstick
from compat.worker.report import Report

LENGTHS = (49, 46, 40, 34)
"""Pads of 0, 3, 9 and 15: the longest row fills the batch, every row is longer than the probes' windows."""

SEARCHED = 40
"""Batches of drawn shapes at depth deep; one at standard."""

NOTED = 7.0
"""The ratio by token from which a drawn batch is made smaller (the fp32 bound of criteria/padding.toml)."""

DECODER_LENGTHS = (17, 12, 7, 15)

PACKED = ((2, LENGTHS[2]), (3, LENGTHS[3]), (1, 12))
PACKED_BESIDE = (((0, LENGTHS[0]),), ((1, 20), (2, 17), (3, LENGTHS[0] - 37)))
OWN_MASKS = (((2, LENGTHS[2]), (3, LENGTHS[3])), ((3, LENGTHS[3]), (2, LENGTHS[2])))
"""Texts that share rows: (which of the rows, how much of it)."""

HOLES = (9, 10, 23)
DECODER_HOLES = (2, 5, 6)
ROTARY = frozenset({"rope", "partial-rope"})
BY_PLACE = frozenset({"bidirectional", "learned-positions"})
BY_SLOT = frozenset({"window", "state-space", "linear-attention"})
"""Features for which a masked token counts all the same: as a place of the window, as a step of a recurrence."""

DISTANCES_ONLY = frozenset({"rope", "partial-rope", "alibi"})
"""Features of families whose answer does not change when every position moves by the same amount."""


def run(group: Group, attention: dict[str, Any]) -> Report:
    """See the module's docstring. Raises StackError, Unavailable, NoYardstick."""
    report = Report(seed=group.spec.seed)
    loaded = group.loaded(attention)
    rows = group.source.rows(500 + 1000 * group.spec.seed, list(LENGTHS))
    yardstick = group.yardstick(rows)
    sides = padding_sides(group.row, group.task)
    figures: dict[str, Agreement] = {}
    for side in sides:
        batch = _batch(group, loaded, rows, side)
        o = valid_outputs(loaded, batch)
        figures[side] = yardstick.compare(o)
        if side == sides[0]:
            other = valid_outputs(loaded, _batch(group, loaded, rows, side, pad=_other_pad(group)))
            report.measure("pad_content_changes", int((other != o).sum()), unit="elements")
            more = valid_outputs(loaded, _batch(group, loaded, rows, side, all_pad_row=True))
            report.measure("neighbour_changes", int((more != o).sum()), unit="elements")
            # equal bits give equal figures: compare again only what has changed
            apart = [figures[side] if torch.equal(x, o) else yardstick.compare(x) for x in (other, more)]
            report.measure("neighbour_ratio_token", [f.ratio_token for f in apart])
            if group.spec.at_least("standard"):
                as_bool = batch.arguments | {"attention_mask": batch.arguments["attention_mask"].bool()}
                changed = valid_outputs(loaded, Padded(as_bool, batch.valid)) != o
                report.measure("mask_dtype_changes", int(changed.sum()), unit="elements")
    figures |= dict(_more_paths(group, loaded, rows, sides, report))
    found = list(figures.values())
    record(report, found, own_yardstick=False)
    report.measure("compared_elements", [f.elements for f in found], unit="elements", better="higher", method="sum")
    if loaded.own_yardstick and classifier.asked(group):
        report.measure("class_error", classifier.padded_error(group), unit="rms of the answers")
    report.facts["sides"] = list(sides)
    report.facts["ratio_token_by_path"] = by_path(figures)
    return report


def _more_paths(
    group: Group, loaded: Loaded, rows: Rows, sides: list[str], report: Report
) -> Iterator[tuple[str, Agreement]]:
    """(path, figures) of everything beside the padded batch."""
    alone = _part(rows, (len(rows.tokens) - 1,))
    single = padded(alone, sides[0], loaded.model, group.device, group.source.pad, width=LENGTHS[0])
    yield "one row", group.yardstick(alone).compare(valid_outputs(loaded, single))
    features = set(group.row.get("features", ()))
    yield from _shared_rows(group, loaded, rows, features, report)
    if not group.spec.at_least("standard"):
        return
    batch = _batch(group, loaded, rows, "left") if "left" in sides else None
    if batch is not None and features & DISTANCES_ONLY and "position_ids" in batch.arguments:
        without = {k: v for k, v in batch.arguments.items() if k != "position_ids"}
        yield (
            "left, no position ids",
            group.yardstick(rows).compare(valid_outputs(loaded, Padded(without, batch.valid))),
        )
    if rows.decoder:
        yield "decoder", _padded_decoders(group, loaded, rows, sides[0])
        changed = _hidden_decoder_tokens(group, loaded, rows, sides[0])
        report.measure("decoder_mask_changes", changed, unit="elements")
    plain = loaded.attention["implementation"] in ("eager", "sdpa")  # FlashAttention reads falling positions as packing
    if plain and features >= BY_PLACE and stack_api.positions_from_zero(loaded.model):
        yield "positions turned round", _turned_round(group, loaded, rows)
    if group.spec.at_least("deep"):
        worst, smallest = _searched(group, loaded, rows, sides)
        yield f"drawn, worst of {SEARCHED}", worst
        if smallest is not None:
            report.facts["smallest_bad_batch"] = smallest
    else:
        yield "drawn", _judged(group, loaded, rows, _drawn(group, rows, sides))


def _shared_rows(
    group: Group, loaded: Loaded, rows: Rows, features: set[str], report: Report
) -> Iterator[tuple[str, Agreement]]:
    """Texts that share a row, and a row with masked tokens in its middle; a fact for what a version has not."""
    asked = set(features)
    if "mask-4d" in asked and not stack_api.takes_own_mask(loaded.model):
        report.facts["own_mask"] = "not asked: the family takes no mask of four dimensions in this version"
        asked.discard("mask-4d")
    if "packed" in asked and not stack_api.takes_packed_rows(loaded.model):
        report.facts["packed"] = "not asked: position ids that restart mean nothing in this version"
        asked.discard("packed")
    yield from _packed(group, loaded, rows, asked)
    counted = asked & ROTARY and not asked & BY_SLOT and group.mode.kind != "how"
    if counted and stack_api.accepts(loaded.model, "position_ids"):
        yield "holes", _holed(group, loaded, rows)


def _part(rows: Rows, chosen: tuple[int, ...]) -> Rows:
    """Some of the rows."""
    return Rows(
        tokens=tuple(rows.tokens[i] for i in chosen),
        decoder=tuple(rows.decoder[i] for i in chosen) if rows.decoder else (),
    )


def _packed(group: Group, loaded: Loaded, rows: Rows, features: set[str]) -> Iterator[tuple[str, Agreement]]:
    """Texts in one row, position ids restarting: three without a mask, alone and beside a row that is one text; two
    under block-diagonal masks of our own, another for each row."""
    plain = loaded.attention["implementation"] in ("eager", "sdpa")

    def joined(*each: tuple[tuple[int, int], ...]) -> tuple[dict[str, Any], Yardstick]:
        """Inputs of one row for each of `each`: (row, length) of the texts in it. And what to judge them by."""
        ids = [[t for i, n in texts for t in rows.tokens[i][:n]] for texts in each]
        positions = [[p for _, n in texts for p in range(n)] for texts in each]
        inputs = {"input_ids": torch.tensor(ids, device=group.device), "use_cache": False}
        inputs["position_ids"] = torch.tensor(positions, device=group.device)
        every = [text for texts in each for text in texts]
        return inputs, _prefixes(group, rows, tuple(i for i, _ in every), tuple(n for _, n in every))

    if "packed" in features:
        inputs, yardstick = joined(PACKED)
        yield "packed", yardstick.compare(loaded(**inputs)[0])
        if plain and group.mode.kind != "how":  # flash kernels take a packed row by itself only
            inputs, yardstick = joined(*PACKED_BESIDE)
            yield "packed beside one text", yardstick.compare(loaded(**inputs).flatten(0, 1))
    if "mask-4d" in features and plain:
        inputs, yardstick = joined(*OWN_MASKS)
        blocks = [torch.block_diag(*(torch.ones(n, n) for _, n in texts)).tril().bool() for texts in OWN_MASKS]
        lowest = torch.finfo(group.dtype).min
        additive = torch.zeros(len(blocks), *blocks[0].shape, dtype=group.dtype)
        additive = additive.masked_fill(~torch.stack(blocks), lowest)
        if not stack_api.accepts(loaded.model, "position_ids"):
            inputs.pop("position_ids")
        o = loaded(**inputs, attention_mask=additive[:, None].to(group.device))
        yield "own mask", yardstick.compare(o.flatten(0, 1))


def _holed(group: Group, loaded: Loaded, rows: Rows) -> Agreement:
    """A row with masked tokens in its middle, positions counted over the others, against the row without them."""
    own = rows.tokens[0]
    kept = [i for i in range(len(own)) if i not in HOLES]
    ids = [token if i in kept else _other_pad(group) for i, token in enumerate(own)]
    mask = torch.tensor([[int(i in kept) for i in range(len(own))]], device=group.device)
    o = loaded(
        input_ids=torch.tensor([ids], device=group.device),
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp_min(0),
    )
    return group.yardstick(Rows(tokens=(tuple(own[i] for i in kept),))).compare(o[0][kept])


def _padded_decoders(group: Group, loaded: Loaded, rows: Rows, side: str) -> Agreement:
    """Decoder inputs of unequal length, padded on the right and masked, beside the padded encoder."""
    batch = _batch(group, loaded, rows, side)
    ids = batch.arguments["decoder_input_ids"].clone()
    mask = torch.ones_like(ids)
    for i, length in enumerate(DECODER_LENGTHS):
        ids[i, length:], mask[i, length:] = _other_pad(group), 0
    arguments = batch.arguments | {"decoder_input_ids": ids, "decoder_attention_mask": mask}
    o = valid_outputs(loaded, Padded(arguments, tuple(slice(0, n) for n in DECODER_LENGTHS)))
    return _prefixes(group, rows, tuple(range(len(rows.tokens))), DECODER_LENGTHS).compare(o)


def _hidden_decoder_tokens(group: Group, loaded: Loaded, rows: Rows, side: str) -> int:
    """Elements at the visible positions of decoders that change with the tokens under a mask with holes: causality
    hides what stands behind a row, and nothing but the mask what stands in it."""
    batch = _batch(group, loaded, rows, side)
    ids = batch.arguments["decoder_input_ids"]
    visible = [i for i in range(ids.shape[1]) if i not in DECODER_HOLES]
    mask = torch.ones_like(ids)
    mask[:, list(DECODER_HOLES)] = 0
    others = ids.clone()
    others[:, list(DECODER_HOLES)] = _other_pad(group)
    first, second = (
        loaded(**batch.arguments | {"decoder_input_ids": each, "decoder_attention_mask": mask})[:, visible]
        for each in (ids, others)
    )
    return int((first != second).sum())


def _turned_round(group: Group, loaded: Loaded, rows: Rows) -> Agreement:
    """A row back to front, whose tokens keep the positions that they had: an encoder that takes places from position
    ids alone gives each token what it gave it before."""
    own = rows.tokens[0]
    ids = torch.tensor([own[::-1]], device=group.device)
    positions = torch.arange(len(own) - 1, -1, -1, device=group.device)[None]
    o = loaded(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions)
    return group.yardstick(_part(rows, (0,))).compare(o[0].flip(0))


def _prefixes(group: Group, rows: Rows, chosen: tuple[int, ...], lengths: tuple[int, ...]) -> Yardstick:
    """The yardstick of the first positions of some rows: a causal model gives them whatever follows."""
    r, e = group.reference_outputs(rows), group.eager_outputs(rows)
    taken = list(zip(chosen, lengths, strict=True))
    return Yardstick(
        torch.cat([r[i][:n] for i, n in taken]), torch.cat([e[i][:n] for i, n in taken]), group.dtype, logits=True
    )


@dataclass(frozen=True)
class Shape:
    """A batch: which row stands where and how much of it, the side of the pads, columns that are pads in every row."""

    chosen: tuple[int, ...]
    lengths: tuple[int, ...]
    side: str
    spare: int


def _drawn(group: Group, rows: Rows, sides: list[str]) -> Shape:
    """One to five rows; the first whole, so that the yardstick rests on enough tokens."""
    generator = random.Random(group.spec.seed)
    chosen = tuple(generator.randrange(len(rows.tokens)) for _ in range(generator.randint(1, 5)))
    lengths = tuple(generator.randint(1, len(rows.tokens[i])) for i in chosen[1:])
    return Shape(chosen, (len(rows.tokens[chosen[0]]), *lengths), generator.choice(sides), generator.randint(0, 9))


def _judged(group: Group, loaded: Loaded, rows: Rows, shape: Shape) -> Agreement:
    cut = Rows(
        tokens=tuple(rows.tokens[i][:n] for i, n in zip(shape.chosen, shape.lengths, strict=True)),
        decoder=tuple(rows.decoder[i] for i in shape.chosen) if rows.decoder else (),
    )
    width = max(shape.lengths) + shape.spare
    batch = padded(cut, shape.side, loaded.model, group.device, group.source.pad, width=width)
    causal = group.task == "causal-lm"
    yardstick = _prefixes(group, rows, shape.chosen, shape.lengths) if causal else group.yardstick(cut)
    return yardstick.compare(valid_outputs(loaded, batch))


def _searched(group: Group, loaded: Loaded, rows: Rows, sides: list[str]) -> tuple[Agreement, dict[str, Any] | None]:
    """The worst of SEARCHED batches that hypothesis draws; and, where one is beyond NOTED, the smallest such batch that
    its shrinking finds."""
    import hypothesis
    from hypothesis import strategies as st

    row = st.integers(0, len(rows.tokens) - 1).flatmap(
        lambda i: st.tuples(st.just(i), st.integers(1, len(rows.tokens[i])))
    )
    seen: list[Agreement] = []
    bad: list[Shape] = []

    @hypothesis.seed(group.spec.seed)
    @hypothesis.settings(max_examples=SEARCHED, deadline=None, database=None, print_blob=False)
    @hypothesis.given(
        st.integers(0, len(rows.tokens) - 1), st.lists(row, max_size=4), st.sampled_from(sides), st.integers(0, 9)
    )
    def one(first: int, more: list[tuple[int, int]], side: str, spare: int) -> None:
        chosen, lengths = (first, *(i for i, _ in more)), (len(rows.tokens[first]), *(n for _, n in more))
        shape = Shape(chosen, lengths, side, spare)
        seen.append(_judged(group, loaded, rows, shape))
        ratio = seen[-1].ratio_token
        if ratio is None or ratio > NOTED:
            bad.append(shape)
            raise _BadBatch

    with contextlib.suppress(_BadBatch):
        one()
    worst = max(seen, key=lambda f: math.inf if f.ratio_token is None else f.ratio_token)
    return worst, None if not bad else {"lengths": bad[-1].lengths, "side": bad[-1].side, "spare": bad[-1].spare}


class _BadBatch(Exception):
    """A drawn batch whose figure is worth making the batch smaller for."""


def _batch(
    group: Group, loaded: Loaded, rows: Rows, side: str, pad: int | None = None, all_pad_row: bool = False
) -> Padded:
    pad = group.source.pad if pad is None else pad
    return padded(rows, side, loaded.model, group.device, pad, all_pad_row)


def _other_pad(group: Group) -> int:
    """A token id that is not the pad token's."""
    return group.source.vocab - 2


def valid_outputs(loaded: Loaded, batch: Padded) -> torch.Tensor:
    """Outputs at the valid positions of every real row, as one (tokens, features)."""
    output = loaded(**batch.arguments)
    return torch.cat([output[i, where] for i, where in enumerate(batch.valid)])
