"""Where the search for the smallest failing call begins: calls of the kind that a check makes, by check.

In: a group and a check's name. Out: cases (compat.worker.cases), the plainest first. They are drawn as the check draws
its own, from the same seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compat.worker import stack_api
from compat.worker.cases import Case, only
from compat.worker.checks import agreement
from compat.worker.group import Group
from compat.worker.inputs import CLASSIFYING, Rows, padding_sides

LOADING = ("load", "fetch", "convert", "build", "tokenizer", "quantized state")
"""Phases before a model is there."""

SAVING = ("save", "reload")
TRAINING = ("train", "backward", "adapter")

PLAIN_LENGTH = 33
"""Tokens of the rows that are tried first where something was raised."""


def starts(group: Group, check: str) -> list[Case]:
    """Cases of the kind that `check` asks, in the order in which they are tried."""
    return _STARTS[check](group) if check in _STARTS else []


def raising(group: Group, check: str, phase: str) -> list[Case]:
    """Calls that may raise what `check` raised in `phase`, in the order in which they are tried: a plain forward before
    all others, since most of what a check raises any forward raises."""
    if phase in LOADING:
        return [{"kind": "load"}]
    if phase == "switch":
        return [{"kind": "switch"}, {"kind": "load"}]
    if phase in SAVING:
        return [{"kind": "save"}]
    seed = 1000 * group.spec.seed
    if group.task in CLASSIFYING:
        return [{"kind": "forward", "images": {"seed": seed, "of": 2, "which": [0, 1]}}]
    plain = group.source.rows(seed, [PLAIN_LENGTH] * 2)
    own = [c for c in starts(group, check) if c["kind"] not in ("repeat", "replay") and "outliers" not in c]
    found = [_plain("forward", plain), *own]
    if group.task in ("causal-lm", "seq2seq-lm"):
        side = "left" if group.task == "causal-lm" else "right"
        layout = {"side": side, "length": PLAIN_LENGTH, "pad": group.source.pad, "new": 4}
        rows = Rows(tokens=(plain.tokens[0], plain.tokens[1][: PLAIN_LENGTH - 6]))
        found += [_plain("generate", rows, settings=settings, **layout) for settings in _ways(group, check)]
    if phase in TRAINING or check == "gradient":
        found.append(_plain("train", plain))
    return found


def _ways(group: Group, check: str) -> list[dict[str, Any]]:
    """Settings of `generate` that a check asks for and that change how it runs."""
    static = stack_api.static_generation()
    found: list[dict[str, Any]] = [{}]
    if check == "cache":
        found += [
            {"prefill_chunk_size": CHUNK},
            static,
            static | {"prefill_chunk_size": CHUNK},
        ]
    return [*found, {"num_beams": 3}, {"do_sample": True, "top_k": 20}, {"output_attentions": True}]


def _agreement(group: Group) -> list[Case]:
    first = 1000 * group.spec.seed
    if group.task in CLASSIFYING:
        which = list(range(agreement.IMAGES))
        drawn = range(len(agreement.cases(group)))
        return [{"kind": "forward", "images": {"seed": first + i, "of": len(which), "which": which}} for i in drawn]
    found = [_plain("forward", rows) for rows in agreement.cases(group)]
    large = agreement.outliers(group)
    if large is not None:
        outliers = {"every": agreement.OUTLIER_EVERY, "value": agreement.OUTLIER_VALUE}
        found.append(_plain("forward", large) | {"outliers": outliers})
    return found


def _plain(kind: str, rows: Rows, **more: Any) -> Case:
    decoder = {"decoder": [list(d) for d in rows.decoder]} if rows.decoder else {}
    return {"kind": kind, "rows": [list(r) for r in rows.tokens], **decoder, **more}


ROOM = 5
"""Slots of a static cache beyond the tokens: one that is filled too far must not end as an error of the index."""

CHUNK = 13
"""Columns of a prefill in chunks."""

PADDED_LENGTHS = (49, 46, 40, 34)
"""As the padding check's: pads of 0, 3, 9 and 15."""


def _padding(group: Group) -> list[Case]:
    rows = group.source.rows(500 + 1000 * group.spec.seed, list(PADDED_LENGTHS))
    sides = padding_sides(group.row, group.task)
    layout = {"length": max(PADDED_LENGTHS), "pad": group.source.pad}
    found = [_plain("padded", rows, side=side, **layout) for side in sides]
    for i in range(1, len(rows.tokens)):  # a padded row alone: what a batch of one leaves out
        found += [only(case, [i]) for case in found[: len(sides)]]
    other = {**layout, "pad": group.source.vocab - 2}
    found += [_plain("padded", rows, side=side, **other) for side in sides]
    found.append(_plain("padded", rows, side=sides[0], masked_row=True, **layout))
    if "left" in sides and group.task == "causal-lm":
        found.append(_plain("padded", rows, side="left", positions=False, **layout))
    if "packed" in group.row.get("features", ()):
        found.append(_plain("packed", Rows(tokens=rows.tokens[2:])))
    return found


def _cache(group: Group) -> list[Case]:
    if group.task == "seq2seq-lm":
        rows = group.source.rows(700 + 1000 * group.spec.seed, [21, 21])
        whole = _plain("decode", rows, side="right", pad=group.source.pad, cache="dynamic", length=len(rows.decoder[0]))
        steps = [4, 1, 1, 3, *[1] * (whole["length"] - 9)]
        alone = only(whole | {"steps": steps}, [0])
        static = alone | {"cache": "static", "room": whole["length"] + ROOM}
        return [alone, static, whole | {"steps": [*steps[:4], ["reorder", [1, 1]], *steps[4:]]}]
    if group.task != "causal-lm":
        return []
    length = max(PADDED_LENGTHS)
    rows = group.source.rows(700 + 1000 * group.spec.seed, list(PADDED_LENGTHS))
    layout = {"side": "left", "length": length, "pad": group.source.pad, "cache": "dynamic"}
    batch = _plain("decode", rows, steps=[length - 12, *[1] * 12], **layout)
    alone = only(batch, [0])
    found = [alone, alone | {"steps": [length - 24, 13, 11]}, batch, alone | {"steps": [20, 15, 1, 13]}]
    if stack_api.accepts(group.master, "position_ids"):
        found.insert(1, alone | {"positions": False})
    if stack_api.rolls_back(group.master):
        found += [
            alone | {"steps": [length - 4, 1, 1, ["crop", 3], 2, 1, 2]},
            batch | {"steps": [length - 4, 1, ["reorder", [2, 0, 0, 1]], 1, 2]},
        ]
        found += [
            batch | {"steps": [length - 4, 1, ["select", [0, 2]], ["repeat", 2], 1, 2]},
            alone | {"cache": "plain", "steps": [20, length - 25, ["crop", 6], ["copy"], 1, 3, ["back"], 1, 2, 8]},
        ]
    ways: list[dict[str, Any]] = [{}, {"prefill_chunk_size": CHUNK}]
    if stack_api.takes_static_cache(group.master):
        once = alone | {"cache": "static", "room": length + ROOM}
        found += [once, once | {"steps": [9, 1, 1, ["reset"], *alone["steps"]]}]
        two = only(batch, [0, 1]) | {"cache": "static", "room": length + ROOM}
        found += [two, two | {"wide": True}]
        ways.append(stack_api.static_generation() | {"prefill_chunk_size": CHUNK})
    spoken = {"side": "left", "length": length, "pad": group.source.pad, "new": 8}
    found += [_plain("generate", rows, settings=settings, **spoken) for settings in ways]
    if stack_api.returns_logits_of_drafts():
        repetitive = [t for _ in range(3) for t in rows.tokens[0][:8]]
        lookup = {"kind": "generate", "rows": [repetitive], "new": 16, "settings": {"prompt_lookup_num_tokens": 3}}
        found.append(lookup | {"side": "left", "length": len(repetitive), "pad": group.source.pad})
    return found


def _generation(group: Group) -> list[Case]:
    if group.task not in ("causal-lm", "seq2seq-lm"):
        return []
    lengths = [24, 21, 15, 9]
    rows = Rows(tokens=group.source.rows(77 + 1000 * group.spec.seed, lengths).tokens)
    rows = Rows(tokens=tuple((*r[:-1], r[len(r) // 2]) for r in rows.tokens))  # the last word stood there before
    side = "left" if group.task == "causal-lm" else "right"
    layout = {"side": side, "length": max(lengths), "pad": group.source.pad}
    batch = _plain("generate", rows, new=32, **layout)
    last, some = rows.tokens[0][-1], sorted({t for r in rows.tokens for t in r} - {rows.tokens[0][-1]})
    settings: list[dict[str, Any]] = [
        {},
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"bad_words_ids": [[some[1]], [last, some[2]]]},
        {"sequence_bias": [[[some[3]], 4.0], [[last, some[4]], -6.0]]},
        {"suppress_tokens": [some[5]], "begin_suppress_tokens": [some[6]]},
        {"min_new_tokens": 3, "eos_token_id": [2, some[0]]},
        {"exponential_decay_length_penalty": [2, 1.2], "eos_token_id": some[0]},
        {"forced_eos_token_id": some[0], "eos_token_id": some[0]},
    ]
    batches = [batch, batch | {"new": 3, "settings": {"use_cache": False}}]
    replays = [_plain("replay", rows, new=6, settings=s, **layout) for s in settings]
    return [*([only(batch, [0])] if group.task == "causal-lm" else []), *batches, *replays]


def _determinism(group: Group) -> list[Case]:
    if group.task in CLASSIFYING:
        return []
    return [_plain("repeat", group.source.rows(1000 * group.spec.seed + 300, [47] * 2))]


_STARTS: dict[str, Callable[[Group], list[Case]]] = {
    "agreement": _agreement,
    "padding": _padding,
    "cache": _cache,
    "generation": _generation,
    "determinism": _determinism,
}
