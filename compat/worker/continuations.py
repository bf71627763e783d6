"""`generate` on the paths where it handles the cache itself: a second turn, prefill in chunks, drafts, a static cache.

In: a group and a loaded model. Out: for each path the figures of the logits that `generate` chose from, against the
fp64 reference of each row alone; and how many tokens it chose that the reference would not have.

A draft is a guess at the next tokens, from the prompt itself (prompt lookup) or from a smaller model (an assistant).
The model checks it in one forward, and what it rejects has to leave the cache again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from compat.worker import caches, stack_api
from compat.worker.caches import Piece, no_static_cache
from compat.worker.calls import StackError
from compat.worker.group import Group, Loaded
from compat.worker.inputs import Rows
from compat.worker.metrics import Agreement

SEED = 850
NEW_TOKENS = 8
USER_TOKENS = 5
"""Tokens of the user's second turn."""

SECOND_TOKENS = 4
REPEATED = 14
"""Tokens that stand twice in the first prompt, so that prompt lookup finds something."""

MIDDLE = 8
"""Tokens between them: the prompt is longer than the probes' windows of 32."""

OTHER_PROMPT = 27
CHUNK = 13
LOOKUP_PADS = 3
DRAFT = 3
"""Tokens that an assistant guesses at a time."""


@dataclass(frozen=True)
class Spoken:
    """One row that was continued: its tokens but the last (encoder's side, decoder's side), and what was chosen.

    `first` is the position whose logits chose `tokens[0]`; `logits` (tokens, vocabulary) are those chosen from.
    """

    row: tuple[int, ...]
    decoder: tuple[int, ...]
    first: int
    tokens: tuple[int, ...]
    logits: torch.Tensor


@dataclass
class Judged:
    """What the paths found together."""

    figures: dict[str, Agreement] = field(default_factory=dict)
    unexcused: int = 0
    """Tokens that the reference would not have chosen, and that eager's error does not excuse."""
    tokens: int = 0
    raised: dict[str, str] = field(default_factory=dict)
    """Path -> what it raised."""
    rejected: int | None = None
    """Drafted tokens that were rejected; None where nothing drafts."""
    accepted: int = 0
    changed: int = 0
    """Generation settings of the assistant that are others once it has drafted."""
    fed_again: int | None = None
    """Tokens a row that a second turn fed although the cache held them, or that it did not feed although the cache held
    them not; None where there is no second turn."""
    facts: dict[str, str] = field(default_factory=dict)
    """What this model has no path for, and why."""


def run(group: Group, loaded: Loaded, more: bool) -> Judged:
    """Walk the paths, `more` of them or few. Raises NoYardstick."""
    talk, judged = _Talk(group, loaded), Judged()
    paths = _paths(talk, more, judged.facts)
    for name, path in paths.items():
        try:
            spoken = path()
        except StackError as error:
            if isinstance(error.original, MemoryError):
                raise
            judged.raised[name] = str(error)[:300]
            continue
        talk.judge(name, spoken, judged)
    judged.fed_again = talk.fed_again
    if talk.drafts:
        judged.rejected, judged.accepted = talk.rejected, talk.drafts - talk.rejected
        judged.changed = talk.changed
    return judged


def _paths(talk: _Talk, more: bool, facts: dict[str, str]) -> dict[str, Callable[[], list[Spoken]]]:
    """Path -> what walks it; `facts` says which are left out because the model has no such thing."""
    group, model = talk.group, talk.loaded.model
    rolls_back, causal = stack_api.rolls_back(model), group.task == "causal-lm"
    goes_on = causal and stack_api.cache_argument(model) == "past_key_values"
    paths: dict[str, Callable[[], list[Spoken]]] = {}
    if rolls_back and causal:
        paths["lookup"] = talk.looked_up
    if causal and not goes_on:
        facts["turns"] = "generate does not hand back caches of this kind"
    if group.spec.at_least("standard") or not goes_on:
        paths |= {"turns": talk.turns} if goes_on else {"plain": talk.plain}
    if not rolls_back:
        facts["drafts"] = "the cache of recurrent layers does not roll back"
    elif more:
        paths |= {"assisted": talk.assisted, "assisted, sampled": talk.assisted_sampling}
        if not no_static_cache(talk.loaded):
            paths["static generate"] = talk.static
    return paths


def prompts(group: Group) -> list[tuple[int, ...]]:
    """Two prompts of unequal length; the first says its beginning twice."""
    drawn = group.source.rows(SEED + 1000 * group.spec.seed, [REPEATED, MIDDLE, OTHER_PROMPT]).tokens
    return [(*drawn[0], *drawn[1], *drawn[0]), drawn[2]]


def assistant(group: Group, greedy: tuple[int, ...]) -> Any:
    """A copy of the model whose drafts are partly wrong: of the `greedy` tokens it knows the first, third, ... only."""
    if "assistant" not in group.kept:
        model = copy.deepcopy(group.master).to(device=group.device, dtype=group.dtype)
        settings = model.generation_config
        settings.num_assistant_tokens, settings.num_assistant_tokens_schedule = DRAFT, "constant"
        settings.assistant_confidence_threshold = 0.0
        group.kept["assistant"] = model.eval(), model.get_output_embeddings().weight.detach().clone()
    model, weight = group.kept["assistant"]
    ends = stack_api.end_tokens(group.master)
    distinct = [t for t in dict.fromkeys(greedy) if t not in ends]
    weight = weight.clone()
    weight[distinct[1::2] or distinct] = 0
    model.get_output_embeddings().weight = torch.nn.Parameter(weight, requires_grad=False)
    return model


def _spoken(said: tuple[int, ...], start: int, logits: Any, row: int) -> Spoken:
    """What was chosen from `logits` (one (rows, vocabulary) a step) from position `start` of `said` on."""
    chosen = torch.stack([step[row] for step in logits])
    return Spoken(said[:-1], (), start - 1, said[start : start + len(chosen)], chosen)


class _Talk:
    """The paths of one backend."""

    def __init__(self, group: Group, loaded: Loaded) -> None:
        self.group = group
        self.loaded = loaded
        self.prompts = prompts(group)
        self.drafts = self.rejected = self.changed = 0
        self.fed_again: int | None = None
        self._rows: list[Rows] = []
        self._spoken: tuple[int, ...] = ()

    # -- paths ---------------------------------------------------------------------------------------------------

    def plain(self) -> list[Spoken]:
        """One row, padded on the left, with the cache that `generate` makes by itself."""
        return self._single(LOOKUP_PADS if self.group.task == "causal-lm" else 0)

    def turns(self) -> list[Spoken]:
        """A chat in a left-padded batch: the first turn prefilled in chunks, the second goes on from its cache."""
        ids, mask = self._padded()
        first = self._generate(ids, NEW_TOKENS, attention_mask=mask, prefill_chunk_size=CHUNK)
        drawn = self.group.source.rows(SEED + 1 + 1000 * self.group.spec.seed, [USER_TOKENS] * 2).tokens
        asked = torch.cat([first.sequences, torch.tensor(drawn, device=self.group.device)], 1)
        more = torch.cat([mask, mask.new_ones(2, asked.shape[1] - mask.shape[1])], 1)
        with self._widths() as widths:
            second = self._generate(asked, SECOND_TOKENS, attention_mask=more, past_key_values=first.past_key_values)
        # no cache holds what was said last; fewer than that is no saving, and none at all is no measurement
        self.fed_again = abs(sum(widths) - (USER_TOKENS + 1) - (SECOND_TOKENS - 1))
        self._spoken = tuple(first.sequences[0, -NEW_TOKENS:].tolist())
        said = [self._unpadded(second.sequences, i) for i in range(2)]
        return [
            *(_spoken(said[i], len(p), first.logits, i) for i, p in enumerate(self.prompts)),
            *(_spoken(said[i], len(said[i]) - SECOND_TOKENS, second.logits, i) for i in range(2)),
        ]

    def assisted(self) -> list[Spoken]:
        """One row with the drafts of a smaller model."""
        return self.drafted({"assistant_model": assistant(self.group, self._spoken)})

    def assisted_sampling(self) -> list[Spoken]:
        """The same by the rule for drafts that are drawn, which has to choose the best token where it is the only one
        left."""
        torch.manual_seed(SEED)
        drawn = {"do_sample": True, "top_k": 1, "temperature": 1.0, "top_p": 1.0}
        return self.drafted({"assistant_model": assistant(self.group, self._spoken), **drawn})

    def looked_up(self) -> list[Spoken]:
        """One row, padded on the left, with drafts from its own beginning."""
        return self.drafted({"prompt_lookup_num_tokens": DRAFT, "max_matching_ngram_size": 2}, LOOKUP_PADS)

    def drafted(self, draft: dict[str, Any], pads: int = 0) -> list[Spoken]:
        """One row with drafts; counts how many were rejected."""
        assistant = draft.get("assistant_model")
        before = {} if assistant is None else assistant.generation_config.to_dict()
        with self._widths() as widths:
            spoken = self._single(pads, **draft)
        if assistant is not None:
            after = assistant.generation_config.to_dict()
            self.changed += sum(after.get(k) != before.get(k) for k in after | before)
        proposed = sum(widths[1:]) - len(widths[1:]) + max(0, widths[0] - pads - self._fed_at_first())
        accepted = NEW_TOKENS - len(widths)
        self.drafts += proposed
        self.rejected += max(0, proposed - accepted)
        return spoken

    def static(self) -> list[Spoken]:
        """The left-padded batch in a static cache that `generate` makes; nothing is compiled."""
        how: dict[str, Any] = {"cache_implementation": "static", "prefill_chunk_size": CHUNK}
        if self.group.device.type != "cpu":
            how["disable_compile"] = True
        if self.group.task != "causal-lm":
            return self._single(**how)
        ids, mask = self._padded()
        output = self._generate(ids, NEW_TOKENS, attention_mask=mask, **how)
        said = [self._unpadded(output.sequences, i) for i in range(2)]
        return [_spoken(said[i], len(p), output.logits, i) for i, p in enumerate(self.prompts)]

    # -- steps of a path -----------------------------------------------------------------------------------------

    def _padded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask of both prompts, padded on the left."""
        longest, pad = max(len(p) for p in self.prompts), self.group.source.pad
        ids = [[pad] * (longest - len(p)) + list(p) for p in self.prompts]
        mask = [[0] * (longest - len(p)) + [1] * len(p) for p in self.prompts]
        return torch.tensor(ids, device=self.group.device), torch.tensor(mask, device=self.group.device)

    def _unpadded(self, sequences: torch.Tensor, i: int) -> tuple[int, ...]:
        """Row `i` of padded `sequences` without its pads."""
        return tuple(sequences[i, max(len(p) for p in self.prompts) - len(self.prompts[i]) :].tolist())

    def _single(self, pads: int = 0, **how: Any) -> list[Spoken]:
        prompt = self.prompts[0]
        padded = [self.group.source.pad] * pads + list(prompt)
        ids = torch.tensor([padded], device=self.group.device)
        mask = torch.tensor([[0] * pads + [1] * len(prompt)], device=self.group.device)
        output = self._generate(ids, NEW_TOKENS, attention_mask=mask, **how)
        said = tuple(output.sequences[0, pads if self.group.task == "causal-lm" else 0 :].tolist())
        self._spoken = said[-NEW_TOKENS:]
        if self.group.task == "causal-lm":
            return [_spoken(said, len(prompt), output.logits, 0)]
        logits = torch.stack([step[0] for step in output.logits])
        return [Spoken(prompt, said[:-1], 0, said[1:], logits)]

    def _generate(self, ids: torch.Tensor, tokens: int, **how: Any) -> Any:
        return self.loaded.generate(
            input_ids=ids,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            use_cache=True,
            pad_token_id=self.group.source.pad,
            return_dict_in_generate=True,
            output_logits=True,
            **{"do_sample": False, **how},
        )

    def _fed_at_first(self) -> int:
        """Tokens that the first forward has to see without any draft."""
        return len(self.prompts[0]) if self.group.task == "causal-lm" else 1

    @contextmanager
    def _widths(self) -> Iterator[list[int]]:
        """Tokens in each forward of the model inside the block."""
        seen: list[int] = []
        name = "input_ids" if self.group.task == "causal-lm" else "decoder_input_ids"

        def note(_: Any, __: Any, arguments: dict[str, Any]) -> None:
            if arguments.get(name) is not None:
                seen.append(arguments[name].shape[1])

        handle = self.loaded.model.register_forward_pre_hook(note, with_kwargs=True)
        try:
            yield seen
        finally:
            handle.remove()

    # -- judgement -----------------------------------------------------------------------------------------------

    def judge(self, name: str, spoken: list[Spoken], judged: Judged) -> None:
        """Add the figures of a path and the tokens that the reference would not have chosen."""
        rows, numbers = self._rows_of(spoken)
        pieces = [Piece(n, s.first, s.logits) for n, s in zip(numbers, spoken, strict=True)]
        judged.figures[name] = caches.compare(self.group, rows, pieces)
        r, e = self.group.reference_outputs(rows), self.group.eager_outputs(rows, cached=False)
        forbidden = stack_api.end_tokens(self.loaded.model)
        for number, one in zip(numbers, spoken, strict=True):
            part = slice(one.first, one.first + len(one.tokens))
            judged.unexcused += unexcused(r[number][part], e[number][part], one.tokens, forbidden)
            judged.tokens += len(one.tokens)

    def _rows_of(self, spoken: list[Spoken]) -> tuple[Rows, list[int]]:
        """Rows that hold what was said, and which of them each continuation stands in. Rows of an earlier path that
        begin alike serve again: what a causal model gives for a prefix does not depend on what follows."""
        for rows in self._rows:
            numbers = [_standing(rows, one) for one in spoken]
            if all(n is not None for n in numbers):
                return rows, [n for n in numbers if n is not None]
        found = list(dict.fromkeys((one.row, one.decoder) for one in spoken))
        decoder = tuple(d for _, d in found if d)
        rows = Rows(tokens=tuple(r for r, _ in found), decoder=decoder)
        self._rows.append(rows)
        return rows, [found.index((one.row, one.decoder)) for one in spoken]


def _standing(rows: Rows, one: Spoken) -> int | None:
    """Index of a row that begins with all that `one` says."""
    for i, row in enumerate(rows.tokens):
        if one.decoder:
            if row == one.row and rows.decoder[i][: len(one.decoder)] == one.decoder:
                return i
        elif row[: len(one.row)] == one.row:
            return i
    return None


def unexcused(r: torch.Tensor, e: torch.Tensor, tokens: tuple[int, ...], forbidden: list[int]) -> int:
    """How many of `tokens` were not the reference's best by more than eager's error could explain, 4 max|e - r|
    (docs/criteria.md). `r` and `e` (tokens, vocabulary); `forbidden` tokens could not be chosen."""
    allowed = 4 * (e.double() - r).abs().amax(-1)
    r = r.double().clone()
    r[:, forbidden] = -torch.inf
    picked = r.gather(1, torch.tensor(tokens, device=r.device)[:, None])[:, 0]
    judged = torch.isfinite(picked)  # a forbidden token was nobody's choice
    return int(((r.amax(-1) - picked > allowed) & judged).sum())
