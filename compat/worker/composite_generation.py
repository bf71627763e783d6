"""Greedy generation of models that read a picture or a sound beside their tokens.

In: a load group of such a task and one of its backends. Out: counts and figures in the report under the names that text
has. Two prompts of unequal length, padded on the left, with a picture each; or two sounds, from the decoder's start
token and again after a prompt. Every generation is recorded: tokens must be the best of the recorded logits, rows end
where they must, and the logits are judged by the fp64 reference of each row alone with its own picture or sound.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from compat.worker import stack_api
from compat.worker.answers import apart, plain
from compat.worker.checks.agreement import by_path
from compat.worker.endings import STEPS, parting_token
from compat.worker.group import Group, Loaded
from compat.worker.inputs import FIRST_TOKEN, Rows
from compat.worker.margins import Margins, record_logits
from compat.worker.metrics import Agreement, Yardstick
from compat.worker.report import Report

NEW_TOKENS = {"quick": 24, "standard": 40, "deep": 64}
LENGTHS = (13, 6)
"""Tokens of the two prompts, those that stand for a picture left out."""

PROMPTED_TOKENS = 6
PROMPT_TOKENS = 3
RECORDED = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}


@dataclass
class Found:
    """Counts over all generations of a cell, and the figures of each."""

    margins: Margins = field(default_factory=Margins)
    scores: list[int] = field(default_factory=list)
    score_differences: int = 0
    token_differences: int = 0
    length_differences: int = 0
    figures: dict[str, Agreement] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    """What generate changed of what it was given."""


@dataclass(frozen=True)
class Asked:
    """One generation: `arguments` of generate, and for each row what comes before its first new token."""

    arguments: dict[str, torch.Tensor]
    images: torch.Tensor
    """(rows, 3, height, width), or (rows, bins, frames) of sound."""
    prompts: tuple[tuple[int, ...], ...]
    decoded: bool
    """Whether the prompts are the decoder's."""
    begin: torch.Tensor
    """(rows, width): what the returned sequences start with, up to the first new token."""

    def rows(self, row: int, new: Sequence[int]) -> Rows:
        """A row alone and unpadded, after the tokens `new`."""
        tokens = ((*self.prompts[row], *new),)
        images = self.images[row : row + 1]
        return Rows(images=images, decoder=tokens) if self.decoded else Rows(tokens=tokens, images=images)


def run(group: Group, loaded: Loaded, report: Report) -> list[str]:
    """Put the figures into `report`; what generate changed of its inputs. Raises StackError, NoYardstick."""
    found = Found()
    steps = NEW_TOKENS[group.spec.depth]
    seed = 1000 * group.spec.seed + 640
    asked = _sounds(group, seed) if group.task == "speech-seq2seq" else _pictures(group, seed)
    new = _generate(group, loaded, "batch", asked, steps, found)
    _generate_ended(group, loaded, asked, new, found)
    if "prompt_ids" in inspect.signature(loaded.model.generate).parameters:
        _generate(group, loaded, "prompted", _prompted(group, asked), PROMPTED_TOKENS, found)
    _report(found, report)
    return found.changed


def _pictures(group: Group, seed: int) -> Asked:
    """Two prompts that begin with a picture, padded on the left."""
    rows = group.source.rows(seed, list(LENGTHS))
    assert rows.images is not None
    width, pad = max(len(r) for r in rows.tokens), int(group.tokenizer.pad_token_id)
    ids = torch.tensor([[pad] * (width - len(r)) + list(r) for r in rows.tokens], device=group.device)
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows.tokens], device=group.device)
    pixels = rows.images.to(group.device, group.dtype)
    given = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
    return Asked(given, rows.images, rows.tokens, False, ids)


def _sounds(group: Group, seed: int) -> Asked:
    """Two sounds, from the decoder's start token."""
    rows = group.source.rows(seed, [1, 1])
    assert rows.images is not None
    begin = torch.tensor(rows.decoder, device=group.device)
    return Asked({"input_features": rows.images.to(group.device, group.dtype)}, rows.images, rows.decoder, True, begin)


def _prompted(group: Group, asked: Asked) -> Asked:
    """The same sounds after words that were said before."""
    generator = torch.Generator().manual_seed(group.spec.seed + 13)
    prompt = torch.randint(FIRST_TOKEN, group.source.vocab, (PROMPT_TOKENS,), generator=generator)
    arguments = {**asked.arguments, "prompt_ids": prompt.to(group.device)}
    prompts = tuple((*(int(t) for t in prompt), *row) for row in asked.prompts)
    return Asked(arguments, asked.images, prompts, True, torch.tensor(prompts, device=group.device))


def _generate(
    group: Group, loaded: Loaded, name: str, asked: Asked, steps: int, found: Found, end: int | None = None
) -> list[list[int]]:
    """Generate `steps` tokens a row, or until it writes `end`; the new tokens of each row up to its end, none where the
    answer has another shape."""
    pad = int(group.tokenizer.pad_token_id)
    settings: dict[str, Any] = {"max_new_tokens": steps, "do_sample": False, "pad_token_id": pad}
    settings |= {"min_new_tokens": steps} if end is None else {"min_new_tokens": None, "eos_token_id": end}
    eos, hidden = ({end}, []) if end is not None else (set(), stack_api.end_tokens(loaded.model))
    given = {k: v.clone() for k, v in asked.arguments.items()}
    output = loaded.generate(**given, **RECORDED, **settings)
    found.changed += [f"{name}: {k}" for k, v in asked.arguments.items() if not torch.equal(given[k], v)]
    count = len(asked.prompts)
    read = _read(output, count, int(loaded.model.get_output_embeddings().weight.shape[0]))
    if read is None:
        found.token_differences += count * steps
        return []
    logits, scores, sequences = read
    start = len(sequences[0]) - len(logits)
    begin = [row[len(row) - start :] for row in asked.begin.tolist()]  # a prompt of a sound may be left out
    found.token_differences += apart(begin, [row[:start] for row in sequences])
    new = [_chosen(row[start:], number, scores, eos, pad, found) for number, row in enumerate(sequences)]
    ended = all(row[-1:] == [end] for row in new)
    found.length_differences += abs(len(logits) - (max(map(len, new)) if ended else steps))
    found.scores.append(0)
    for row, tokens in enumerate(new):
        own = torch.stack([x[row] for x in logits[: len(tokens)]]).float()
        own[:, hidden] = -math.inf
        found.scores[-1] += own.numel()
        found.score_differences += int((own != torch.stack([x[row] for x in scores[: len(tokens)]])).sum())
    _judge(group, name, asked, new, logits, hidden, found)
    return new


def _read(output: Any, count: int, vocabulary: int) -> tuple[list[torch.Tensor], list[torch.Tensor], list[Any]] | None:
    """(logits, scores, sequences) of an answer: tensors of (count, vocabulary) a step, and `count` lists of tokens that
    are no fewer; None where it has another shape."""
    steps = [list(getattr(output, name, None) or ()) for name in ("logits", "scores")]
    sequences = plain(getattr(output, "sequences", None))
    right = all(getattr(x, "shape", None) == (count, vocabulary) for x in (*steps[0], *steps[1]))
    same = bool(steps[0]) and len(steps[0]) == len(steps[1])
    rows = isinstance(sequences, list) and len(sequences) == count and all(isinstance(x, list) for x in sequences)
    if not (right and same and rows and len(sequences[0]) >= len(steps[0])):
        return None
    return steps[0], steps[1], sequences


def _chosen(
    row: Sequence[int], number: int, scores: Sequence[torch.Tensor], eos: set[int], pad: int, found: Found
) -> list[int]:
    """The new tokens of one row up to its end; those that are not the best of the recorded scores count, and what
    stands behind the end and is no pad."""
    own: list[int] = []
    for step, token in enumerate(row):
        if own and own[-1] in eos:
            found.token_differences += token != pad
            continue
        given = scores[step][number]
        found.token_differences += not bool(given[token] == given.max())
        own.append(token)
    return own


def _generate_ended(group: Group, loaded: Loaded, asked: Asked, new: list[list[int]], found: Found) -> None:
    """The same rows with an end of sequence that one of them writes early and another late or never."""
    token = parting_token([tokens[:STEPS] for tokens in new])
    if token is not None:
        _generate(group, loaded, "ended", asked, STEPS, found, token)


def _judge(
    group: Group,
    name: str,
    asked: Asked,
    new: list[list[int]],
    logits: Sequence[torch.Tensor],
    hidden: Sequence[int],
    found: Found,
) -> None:
    """The recorded logits and tokens against the reference of each row alone, its picture or sound with it."""
    r, e, o = [], [], []
    for row, tokens in enumerate(new):
        rows = asked.rows(row, tokens[:-1])
        own_r, own_e = (
            x[0][-len(tokens) :].double().cpu() for x in (group.reference_outputs(rows), group.eager_outputs(rows))
        )
        r.append(own_r)
        e.append(own_e)
        o.append(torch.stack([logits[step][row] for step in range(len(tokens))]).double().cpu())
        _margins(own_r, own_e, tokens, hidden, found)
    found.figures[name] = Yardstick(torch.cat(r), torch.cat(e), group.dtype, logits=True).compare(torch.cat(o))


def _margins(r: torch.Tensor, e: torch.Tensor, tokens: Sequence[int], hidden: Sequence[int], found: Found) -> None:
    """Judge each token by the reference (docs/criteria.md): one that is not its best is excused within 4 max|e - r|."""
    allowed = 4 * (e - r).abs().amax(-1)
    scores = r.clone()
    scores[:, hidden] = -math.inf
    for step, token in enumerate(tokens):
        found.margins.add(scores[step], token, float(allowed[step]))


def _report(found: Found, report: Report) -> None:
    """The figures under the names that text has."""
    found.margins.record(report)
    if found.figures:
        record_logits(report, found.figures, next(iter(found.figures)))
        report.facts["ratio_token_by_path"] = by_path(found.figures)
    report.measure("score_differences", found.score_differences, unit="entries")
    report.measure("token_differences", found.token_differences, unit="tokens")
    report.measure("length_differences", found.length_differences, unit="tokens")
    report.measure("compared_scores", found.scores or [0], unit="entries", better="higher", method="min")
