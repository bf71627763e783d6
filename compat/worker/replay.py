"""A generation gone through once more by our own rules, from the raw logits that `generate` recorded.

In: what `generate` returned (sequences, logits, scores), the prompts, the resolved settings. Out: how much differs:
scores that are not what the settings make of the logits, tokens that are not the ones to be chosen from the scores,
rows that end too early or too late. Whether the logits themselves are right is another question, and the reference's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from compat.worker.oracles import Place, Settings, processed

SCORE_TOLERANCE = 1e-4
"""Largest relative difference of a score: processors compute in fp32, our oracles in fp64 on the same logits. A bound
for counting entries; criteria/generation.toml says how many may differ."""


@dataclass(frozen=True)
class Prompts:
    """What a generation starts from. `width`: length of the padded prompt; `rows`: real tokens of each row as the
    decoder sees them; `encoder`: real tokens of the encoder's input, for encoder-decoder models."""

    rows: tuple[tuple[int, ...], ...]
    width: int
    encoder: tuple[tuple[int, ...], ...] = ()

    def expanded(self, times: int) -> Prompts:
        """Each row `times` times in succession."""
        return dataclasses.replace(
            self,
            rows=tuple(r for r in self.rows for _ in range(times)),
            encoder=tuple(r for r in self.encoder for _ in range(times)),
        )

    def place(self, row: int, new: Sequence[int]) -> Place:
        """Where `row` stands after the tokens `new`."""
        encoder = self.encoder[row] if self.encoder else ()
        return Place((*self.rows[row], *new), self.width, len(new), encoder)


@dataclass
class Replay:
    """Counts over one generation."""

    scores: int = 0
    """Entries compared."""
    score_differences: int = 0
    tokens: int = 0
    token_differences: int = 0
    length_differences: int = 0
    lived: list[int] = field(default_factory=list)
    """New tokens of each row before it ended, the ending token included."""

    def note(self) -> dict[str, int]:
        """The counts that are not zero, by name."""
        names = ("scores", "tokens", "score_differences", "token_differences", "length_differences")
        return {k: v for k in names if (v := getattr(self, k))}


def compare_scores(settings: Settings, logits: torch.Tensor, given: torch.Tensor, place: Place) -> tuple[int, int]:
    """(entries compared, entries that differ) of one row's scores, each (vocabulary,)."""
    own, unsure = processed(settings, logits, place)
    theirs = given.double()
    near = (own - theirs).abs() <= SCORE_TOLERANCE * own.abs().clamp_min(1.0)
    same = (own == theirs) | (near & torch.isfinite(own))
    return own.numel(), int((~same & ~unsure).sum())


def replay(settings: Settings, prompts: Prompts, output: Any, seed: int | None = None) -> Replay:
    """Go through a greedy or sampled generation. With `do_sample` and a `seed`, the tokens must be those that
    torch.multinomial draws from softmax(scores) after torch.manual_seed(seed), all rows at once, step by step."""
    found = Replay()
    rows = len(prompts.rows)
    new = output.sequences[:, prompts.width :]
    live, history = [True] * rows, [[] for _ in range(rows)]  # type: list[bool], list[list[int]]
    if seed is not None:
        torch.manual_seed(seed)
    for step, (logits, given) in enumerate(zip(output.logits, output.scores, strict=True)):
        if step >= new.shape[1]:
            break
        drawn = torch.multinomial(given.softmax(-1), 1)[:, 0].tolist() if settings.do_sample else []
        best = given.max(-1).values
        picked = new[:, step].tolist()
        for row in range(rows):
            found.tokens += 1
            if not live[row]:
                found.token_differences += picked[row] != settings.pad_token_id
                continue
            compared, differing = compare_scores(settings, logits[row], given[row], prompts.place(row, history[row]))
            found.scores += compared
            found.score_differences += differing
            right = picked[row] == drawn[row] if drawn else bool(given[row, picked[row]] == best[row])
            found.token_differences += not right
            history[row].append(picked[row])
            live[row] = picked[row] not in settings.eos
    found.lived = [len(h) for h in history]
    steps = min(settings.most(prompts.width), max(found.lived)) if not any(live) else settings.most(prompts.width)
    found.length_differences = abs(new.shape[1] - steps) + abs(len(output.logits) - steps)
    return found


# -- beam search --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Beam:
    """One hypothesis. `total`: sum of its log-probabilities; `path`: for each new token, the row of the recorded scores
    that it was chosen from."""

    new: tuple[int, ...]
    total: float
    path: tuple[int, ...]

    def score(self, length_penalty: float) -> float:
        """total / length^penalty; the prompt does not count."""
        return float(self.total / len(self.new) ** length_penalty)


@dataclass
class _Search:
    """The state of one prompt's search."""

    running: list[Beam]
    finished: list[Beam] = field(default_factory=list)
    open: bool = True
    """Whether a better hypothesis may still come."""


@dataclass(frozen=True)
class Searched:
    """Result of a beam search: for each prompt its best hypotheses, best first; for each step the new tokens of every
    running beam before it, in the order of the rows of the recorded scores."""

    hypotheses: list[list[Beam]]
    histories: list[list[tuple[int, ...]]]
    cut: bool = False
    """Whether the recorded scores end although the search goes on."""


def beam_search(settings: Settings, scores: Sequence[torch.Tensor], prompts: int, width: int) -> Searched:
    """Beam search over recorded scores.

    `scores`: one (prompts * num_beams, vocabulary) fp32 tensor a step: processed log-probabilities of the running
    beams, best first. As documented for GenerationConfig: with `early_stopping` a prompt is done as soon as it has
    num_beams hypotheses; without, when the best running beam, at its present length, is no better than the worst
    hypothesis; with "never", when it could not be at its greatest length either (length_penalty > 0).
    """
    beams, most = settings.num_beams, settings.most(width)
    searches = [_Search([Beam((), 0.0 if b == 0 else -1e9, ()) for b in range(beams)]) for _ in range(prompts)]
    histories: list[list[tuple[int, ...]]] = []
    ended = False
    for step, given in enumerate(scores):
        histories.append([beam.new for search in searches for beam in search.running])
        for number, search in enumerate(searches):
            candidates = _candidates(settings, search.running, given[number * beams : (number + 1) * beams])
            path = [dataclasses.replace(c, path=(*c.path[:-1], number * beams + c.path[-1])) for c in candidates]
            _advance(settings, search, path, last=step + 1 == most)
            _look_ahead(settings, search, most)
        done = all(len(s.finished) == beams for s in searches) and settings.early_stopping is True
        ended = done or not any(s.open for s in searches)
        if ended:
            break
    cut = not ended and len(histories) < most
    return Searched([s.finished[: settings.num_return_sequences] for s in searches], histories, cut)


def _candidates(settings: Settings, running: list[Beam], scores: torch.Tensor) -> list[Beam]:
    """The best continuations of `running`, best first: enough of them that num_beams go on if all others end.
    Totals are kept in fp32, as recorded scores are, so that ties fall alike."""
    totals = torch.tensor([b.total for b in running], device=scores.device, dtype=torch.float32)
    own = (scores + totals[:, None]).reshape(-1)
    best = own.topk(min(max(2, 1 + len(settings.eos)) * settings.num_beams, own.numel()))
    found = []
    for total, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        beam, token = divmod(index, scores.shape[-1])
        found.append(Beam((*running[beam].new, token), total, (*running[beam].path, beam)))
    return found


def _advance(settings: Settings, search: _Search, candidates: list[Beam], last: bool) -> None:
    """One step of one prompt: `candidates` best first."""
    beams = settings.num_beams
    ended = [last or c.new[-1] in settings.eos for c in candidates]
    full = settings.early_stopping is True and len(search.finished) == beams
    if search.open and not full:
        search.finished += [c for c, end in zip(candidates[:beams], ended[:beams], strict=True) if end]
        search.finished.sort(key=lambda b: -b.score(settings.length_penalty))
        del search.finished[beams:]
    search.running = [c for c, end in zip(candidates, ended, strict=True) if not end][:beams]


def _look_ahead(settings: Settings, search: _Search, most: int) -> None:
    if not search.running:
        search.open = False
    elif len(search.finished) == settings.num_beams:
        best = search.running[0]
        length = most if settings.early_stopping == "never" and settings.length_penalty > 0 else len(best.new)
        worst = search.finished[-1].score(settings.length_penalty)
        search.open = search.open and best.total / length**settings.length_penalty > worst


@dataclass
class BeamReplay(Replay):
    """Counts over one beam search."""

    score_error: float = 0.0
    """Largest relative difference of a returned sequence's score."""
    beams: list[Beam] = field(default_factory=list)
    """What the search should have returned, in order."""
    filled: set[int] = field(default_factory=set)
    """Ids that stand behind the end of a returned sequence."""


def replay_beams(settings: Settings, prompts: Prompts, output: Any) -> BeamReplay:
    """Go through a beam search. `prompts` are not expanded. What is filled in behind an end is not judged."""
    found = BeamReplay()
    rows = prompts.expanded(settings.num_beams)
    own = beam_search(settings, output.scores, len(prompts.rows), prompts.width)
    for logits, given, history in zip(output.logits, output.scores, own.histories, strict=False):
        logs = logits.double().log_softmax(-1)
        for row, new in enumerate(history):
            compared, differing = compare_scores(settings, logs[row], given[row], rows.place(row, new))
            found.scores += compared
            found.score_differences += differing
    found.beams = [beam for beams in own.hypotheses for beam in beams]
    returned = output.sequences[:, prompts.width :].tolist()
    found.token_differences += abs(len(returned) - len(found.beams))
    for beam, tokens, score in zip(found.beams, returned, output.sequences_scores.tolist(), strict=False):
        expected = beam.score(settings.length_penalty)
        found.tokens += len(beam.new)
        found.token_differences += sum(a != b for a, b in zip(beam.new, tokens, strict=False))
        found.token_differences += max(0, len(beam.new) - len(tokens))
        found.filled |= set(tokens[len(beam.new) :])
        found.score_error = max(found.score_error, abs(expected - score) / max(1.0, abs(expected)))
    longest = max((len(b.new) for b in found.beams), default=0)
    found.length_differences = abs(len(output.scores) - len(own.histories)) + own.cut
    found.length_differences += abs(len(returned[0]) - longest) if returned else 0
    return found
