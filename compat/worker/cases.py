"""Inputs small enough to be shown: one case is one way of calling the model, as plain JSON, and its figures.

In: a case and a loaded model. Out: the figures of docs/criteria.md for exactly this call, judged against the fp64
reference of each row alone and unpadded. `compat.worker.explain` makes cases smaller while they still show the defect;
`compat.reproduce` writes them into a script.

    {"kind": "forward", "rows": [[ids]], "decoder": [[ids]]}          one forward, no mask
    {"kind": "forward", ..., "outliers": {every, value}}              embeddings with two large values in some tokens
    {"kind": "forward", "images": {seed, of, which}}                  pixel values drawn from a seed
    {"kind": "padded", "rows", "decoder", "side", "length", "pad", "masked_row"}   one forward of a padded batch
    {"kind": "padded", ..., "positions": false}                       without position ids
    {"kind": "packed", "rows"}                                        rows in one, position ids restarting, no mask
    {"kind": "decode", "rows", "decoder", "length", "pad", "steps", "cache"}       in pieces, through a cache
    {"kind": "decode", ..., "positions": false}                       without position ids
    {"kind": "decode", ..., "cache": "static", "room", "wide": true}  a mask over all slots of a static cache
    {"kind": "generate", "rows", "side", "length", "pad", "new"}      greedy generation, judged token by token
    {"kind": "replay", ..., "new", "settings"}                        generation, against our own rules on its logits
    {"kind": "repeat", "rows"}                                        the same forward again
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from compat.worker import oracles, replay, stack_api
from compat.worker.calls import under_test
from compat.worker.divergence import FEW, Window
from compat.worker.feeding import Feeding
from compat.worker.group import Group, Loaded
from compat.worker.inputs import Padded, Rows, padded, unpadded
from compat.worker.metrics import Agreement

Case = dict[str, Any]
Figures = dict[str, float | None]
"""By the names of the measurements; None where the candidate is not finite. Empty: nothing was compared."""

UNTRACED = ("replay", "repeat")
"""Kinds of call in which no module is wrong."""


def rows_of(group: Group, case: Case) -> Rows:
    """The rows of a case, unpadded."""
    if "images" in case:
        drawn = group.source.rows(case["images"]["seed"], [0] * case["images"]["of"]).images
        assert drawn is not None
        return Rows(images=drawn[case["images"]["which"]])
    rows = Rows(
        tokens=tuple(tuple(r) for r in case["rows"]),
        decoder=tuple(tuple(d) for d in case.get("decoder", ())),
    )
    if "outliers" not in case:
        return rows
    with torch.no_grad():
        embeddings = group.master.get_input_embeddings()(torch.tensor(rows.tokens)).clone()
    width, every, value = embeddings.shape[-1], case["outliers"]["every"], case["outliers"]["value"]
    embeddings[:, ::every, width // 3] = value
    embeddings[:, ::every, width // 2] = -value
    return Rows(tokens=rows.tokens, decoder=rows.decoder, embeddings=embeddings)


def batch_of(group: Group, loaded: Loaded, case: Case) -> Padded:
    """The padded batch of a case: `length` positions, of which the pads are masked."""
    masked = case.get("masked_row", False)
    rows = rows_of(group, case)
    made = padded(rows, case["side"], loaded.model, group.device, case["pad"], masked, width=case["length"])
    if case.get("positions", True):
        return made
    return Padded({k: v for k, v in made.arguments.items() if k != "position_ids"}, made.valid)


def figures(group: Group, loaded: Loaded, case: Case) -> Figures:
    """What the figures of `case` are. Raises StackError, NoYardstick."""
    return _KINDS[case["kind"]](group, loaded, case)


def _forward(group: Group, loaded: Loaded, case: Case) -> Figures:
    rows = rows_of(group, case)
    return _compared(group, rows, list(loaded(**unpadded(rows, group.device, group.dtype))))


def _padded(group: Group, loaded: Loaded, case: Case) -> Figures:
    batch = batch_of(group, loaded, case)
    output = loaded(**batch.arguments)
    return _compared(group, rows_of(group, case), [output[i, where] for i, where in enumerate(batch.valid)])


def packed(group: Group, case: Case) -> dict[str, torch.Tensor]:
    """Arguments of all rows in one, position ids restarting, without a mask."""
    ids: list[int] = []
    positions: list[int] = []
    for row in case["rows"]:
        ids += row
        positions += range(len(row))
    return {
        "input_ids": torch.tensor([ids], device=group.device),
        "position_ids": torch.tensor([positions], device=group.device),
    }


def _packed(group: Group, loaded: Loaded, case: Case) -> Figures:
    return _compared(group, rows_of(group, case), [loaded(**packed(group, case), use_cache=False)[0]])


def _compared(group: Group, rows: Rows, outputs: Sequence[torch.Tensor]) -> Figures:
    return _named(group.yardstick(rows).compare(torch.cat(list(outputs))))


def _few(found: Agreement) -> Figures:
    """The figures of some positions of the rows. The yardstick is of all of them, so that of fewer than FEW the mean
    may be off as a single one may, which `ratio_token` judges."""
    return {n: value for n, value in _named(found).items() if n != "ratio_rms" or found.tokens >= FEW}


def _named(found: Agreement) -> Figures:
    excess = None if found.kl is None else found.kl - 4 * found.kl_yardstick
    return {
        "nonfinite_elements": float(found.nonfinite),
        "yardstick_error": found.yardstick_eps,
        "yardstick_token": found.yardstick_token_eps,
        "candidate_error": found.candidate_eps,
        "ratio_rms": found.ratio_rms,
        "ratio_token": found.ratio_token,
        "ratio_max": found.ratio_max,
        **({} if excess is None and not found.nonfinite else {"kl_excess": excess}),
    }


@dataclass(frozen=True)
class Piece:
    """Logits (positions, features) for positions `first`, ... of row `row`."""

    row: int
    first: int
    logits: torch.Tensor


def pieces(group: Group, loaded: Loaded, case: Case) -> list[Piece]:
    """Run a `decode` case: what came back, valid positions only. Each call sees the cache that the last one left.

    `steps`: a number feeds so many columns of every slot; a list does something to the cache (compat.worker.feeding).
    Rows stand on the right of `length` columns. Encoder-decoder models decode `decoder` over encoder rows of one
    length. `cache`: `dynamic` is made by the model, `plain` by the user, who tells it nothing of the config, `static`
    has `room` slots.
    """
    fed = case.get("decoder") or case["rows"]
    width = case["length"]
    way = Feeding(list(range(len(fed))))
    with under_test("cache"):
        if case["cache"] == "static":
            room = int(case.get("room") or width)
            way.cache = stack_api.static_cache(loaded.model, len(fed), room, max(len(r) for r in case["rows"]))
        elif case["cache"] == "plain":
            way.cache = stack_api.dynamic_cache(loaded.model.config, plain=True)
    found: list[Piece] = []
    for step in case["steps"]:
        if not isinstance(step, int):
            with under_test("cache"):
                way.act(step, group.device)
            continue
        own = [[group.source.pad] * (width - len(fed[i])) + list(fed[i]) for i in way.slots]
        arguments = _fed(group, loaded, case, own, [width - len(fed[i]) for i in way.slots], way.at, step)
        output = loaded.forward(**arguments, use_cache=True, past_key_values=way.cache)
        way.cache = output.past_key_values
        for slot, row in enumerate(way.slots):
            first = max(way.at, width - len(fed[row]))
            if first < way.at + step:
                found.append(Piece(row, first - (width - len(fed[row])), output.logits[slot, first - way.at :]))
        way.at += step
    return found


def _fed(
    group: Group, loaded: Loaded, case: Case, own: list[list[int]], gaps: list[int], at: int, step: int
) -> dict[str, torch.Tensor]:
    ids = torch.tensor([row[at : at + step] for row in own], device=group.device)
    if case.get("decoder"):
        return {"input_ids": torch.tensor(case["rows"], device=group.device), "decoder_input_ids": ids}
    arguments = {"input_ids": ids}
    columns = torch.arange(at + step, device=group.device)[None]
    pads_before = torch.tensor(gaps, device=group.device)[:, None]
    if any(gaps) or case.get("wide"):
        unused = max(0, int(case.get("room", 0)) - at - step) if case.get("wide") else 0
        arguments["attention_mask"] = torch.nn.functional.pad((columns >= pads_before).long(), (0, unused))
    if case.get("positions", True) and stack_api.accepts(loaded.model, "position_ids"):
        arguments["position_ids"] = (columns - pads_before).clamp_min(0)[:, -step:]
    return arguments


def _decode(group: Group, loaded: Loaded, case: Case) -> Figures:
    rows = rows_of(group, case)
    starts = [0]
    for fed in rows.decoder or rows.tokens:
        starts.append(starts[-1] + len(fed))
    found = pieces(group, loaded, case)
    at = torch.cat([torch.arange(len(p.logits)) + starts[p.row] + p.first for p in found]).to(group.device)
    return _few(group.yardstick(rows).compare(torch.cat([p.logits for p in found]), at))


def _repeat(group: Group, loaded: Loaded, case: Case) -> Figures:
    """Elements that differ when the same forward is asked again, and whether it drew random numbers."""
    inputs = unpadded(rows_of(group, case), group.device, group.dtype)
    longer = {k: v.repeat(1, 4) if k == "input_ids" else v for k, v in inputs.items()}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = loaded(**inputs)
    drawn = not torch.equal(state, torch.get_rng_state())
    torch.manual_seed(1)
    again = loaded(**inputs)
    loaded(**longer)
    after = loaded(**inputs)
    return {
        "random_numbers_drawn": float(drawn),
        "repeated_difference": float((first != again).sum()),
        "after_other_calls_difference": float((first != after).sum()),
    }


def _replayed(group: Group, loaded: Loaded, case: Case) -> Figures:
    """What `generate` made of its own logits, against our own rules for the same settings."""
    batch = batch_of(group, loaded, case).arguments
    settings = {"max_new_tokens": case["new"], "do_sample": False, "pad_token_id": case["pad"], **case["settings"]}
    recorded = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    given = {k: batch[k] for k in ("input_ids", "attention_mask")}
    output = loaded.generate(**given, **settings, **recorded)
    prompts = replay.Prompts(tuple(tuple(r) for r in case["rows"]), case["length"])
    if group.task == "seq2seq-lm":
        starts = tuple((int(t),) for t in output.sequences[:, 0])
        prompts = replay.Prompts(starts, 1, tuple(tuple(r) for r in case["rows"]))
    found = replay.replay(oracles.resolved(settings, loaded.model.generation_config), prompts, output)
    return {
        "score_differences": float(found.score_differences),
        "token_differences": float(found.token_differences),
        "length_differences": float(found.length_differences),
    }


def generated(group: Group, loaded: Loaded, case: Case) -> Any:
    """What `generate` makes of a case: `sequences` (rows, prompt or start and new tokens), and `logits` as the model
    gave them, one (rows, vocabulary) a new token."""
    batch, new = batch_of(group, loaded, case).arguments, case["new"]
    settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": case["pad"]}
    settings |= {"return_dict_in_generate": True, "output_logits": True, **case.get("settings", {})}
    stack_api.forget_generations(loaded.model)
    return loaded.generate(**{k: batch[k] for k in ("input_ids", "attention_mask")}, **settings)


def alone(group: Group, case: Case, row: int, produced: torch.Tensor | None = None) -> Rows:
    """One row of a case, unpadded; with the tokens that were generated after it, but for the last."""
    own = rows_of(group, only(case, [row]))
    if produced is None:
        return own
    new = produced[row, -case["new"] : -1].tolist()
    if group.task == "causal-lm":
        return Rows(tokens=((*own.tokens[0], *new),))
    return Rows(tokens=own.tokens, decoder=((int(produced[row, 0]), *new),))


def _generate(group: Group, loaded: Loaded, case: Case) -> Figures:
    """`worst_margin`: how far the reference's score of a picked token lies below its best, over what is excused; and
    the figures of the logits that were picked from."""
    new, output = case["new"], generated(group, loaded, case)
    out, logits = output.sequences, torch.stack(list(output.logits)[:new], 1)
    eos = loaded.model.generation_config.eos_token_id
    forbidden = [] if eos is None else [int(t) for t in (eos if isinstance(eos, list) else [eos])]
    worst, first, seen = 0.0, new, []
    for i in range(len(case["rows"])):
        picked = out[i, -new:].tolist()
        rows = alone(group, case, i, out)
        whole, eager = group.reference_outputs(rows)[0], group.eager_outputs(rows)[0]
        at = torch.arange(len(whole) - new, len(whole), device=whole.device)
        seen.append(_few(group.yardstick(rows).compare(logits[i], at)))
        r = whole[-new:].double().clone()
        allowed = 4 * (eager[-new:].double() - r).abs().amax(-1)
        r[:, forbidden] = -torch.inf
        chosen = r.gather(1, torch.tensor(picked, device=r.device)[:, None])[:, 0]
        gap = torch.where(torch.isfinite(chosen), r.amax(-1) - chosen, 0.0) / allowed.clamp_min(1e-300)
        worst = max(worst, float(gap.max()))
        wrong = (gap > 1).nonzero()
        first = min(first, int(wrong[0]) if len(wrong) else new)
    own = {"worst_margin": worst, "first_wrong_step": float(first), "unexcused_tokens": float(worst > 1)}
    return own | {name: _worst([figures.get(name) for figures in seen]) for name in seen[0] if name != "kl_excess"}


def _worst(values: Sequence[float | None]) -> float | None:
    return None if any(v is None for v in values) else max(v for v in values if v is not None)


def call(group: Group, loaded: Loaded, case: Case) -> torch.Tensor | None:
    """The candidate's part of a case alone; what it generated, where it generates. Raises StackError."""
    if case["kind"] == "generate":
        return torch.as_tensor(generated(group, loaded, case).sequences)
    if case["kind"] in UNTRACED:
        figures(group, loaded, case)
    elif case["kind"] == "decode":
        pieces(group, loaded, case)
    elif case["kind"] == "padded":
        loaded(**batch_of(group, loaded, case).arguments)
    elif case["kind"] == "packed":
        loaded(**packed(group, case), use_cache=False)
    else:
        loaded(**unpadded(rows_of(group, case), group.device, group.dtype))
    return None


_KINDS: dict[str, Callable[[Group, Loaded, Case], Figures]] = {
    "forward": _forward,
    "padded": _padded,
    "packed": _packed,
    "decode": _decode,
    "generate": _generate,
    "repeat": _repeat,
    "replay": _replayed,
}


# -- smaller cases -----------------------------------------------------------------------------------------------


def size(case: Case) -> int:
    """In how many ways `case` could be a smaller batch."""
    return len(case["images"]["which"]) if "images" in case else len(case["rows"])


def only(case: Case, which: Sequence[int]) -> Case:
    """The same call with some of the rows; the padded length stays."""
    if "images" in case:
        return case | {"images": case["images"] | {"which": [case["images"]["which"][i] for i in which]}}
    decoder = {"decoder": [case["decoder"][i] for i in which]} if "decoder" in case else {}
    return case | {"rows": [case["rows"][i] for i in which]} | decoder


def pads(case: Case) -> int:
    """Padding positions of the longest row."""
    return int(case["length"] - max(len(r) for r in case["rows"])) if "length" in case else 0


def with_pads(case: Case, count: int) -> Case:
    """The longest row with `count` pads."""
    return case | {"length": max(len(r) for r in case["rows"]) + count}


def cut(case: Case, length: int, end: str) -> Case:
    """Every row that is longer cut to `length` at its `head` or `tail`; the pads of the longest row stay."""
    own = [r[:length] if end == "tail" else r[-length:] for r in case["rows"]]
    return with_pads(case | {"rows": own}, pads(case)) if "length" in case else case | {"rows": own}


def windows(group: Group, case: Case) -> list[list[Window]]:
    """For each row, where it stands in each forward of the case."""
    kind, lengths = case["kind"], [len(r) for r in case["rows"]] if "rows" in case else [0] * size(case)
    if kind == "packed":
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        return [[Window(0, sum(lengths), at, 0, n)] for at, n in zip(starts, lengths, strict=True)]
    if kind == "decode":
        return _decode_windows(case)
    width = case.get("length", lengths[0])
    left = case.get("side") == "left"
    found = [[Window(i, width, width - n if left else 0, 0, n)] for i, n in enumerate(lengths)]
    if kind == "generate":  # an encoder runs in a forward of its own, before the decoder's first token
        decoder = group.task == "seq2seq-lm"
        for i, n in enumerate(lengths):
            first = 0 if decoder else n
            steps = case["new"] - (0 if decoder else 1)
            found[i] += [Window(i, 1, 0, first + step, 1) for step in range(steps)]
    return found


def _decode_windows(case: Case) -> list[list[Window]]:
    fed, width = case.get("decoder") or case["rows"], case["length"]
    way = Feeding(list(range(len(fed))))
    found: list[list[Window]] = [[] for _ in fed]
    for step in case["steps"]:
        if not isinstance(step, int):
            way.act(step)
            continue
        for row in range(len(fed)):
            pad = width - len(fed[row])
            slot = way.slots.index(row) if row in way.slots else 0
            first = max(way.at, pad)
            # a row that no slot follows has no positions in this forward
            count = max(0, way.at + step - first) if row in way.slots else 0
            found[row].append(Window(slot, step, first - way.at if count else 0, first - pad if count else 0, count))
        way.at += step
    return found
