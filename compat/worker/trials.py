"""Generations of one cell, each gone through again by our own rules and judged by the reference.

In: a load group and one of its attention backends. Out: a `Trials` with a replay a generation (scores, tokens,
lengths) and the figures of the recorded logits against the fp64 reference of each row alone, unpadded and without a
cache. Every trial walks another path: a padded batch, a row alone, rows that end early, processors, sampling, beams, no
cache, a mask left to be inferred, settings from three places.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import transformers

from compat.worker import stack_api
from compat.worker.calls import StackError, under_test
from compat.worker.group import Group, Loaded
from compat.worker.margins import Margins
from compat.worker.metrics import Agreement
from compat.worker.oracles import Settings, processed, resolved
from compat.worker.replay import BeamReplay, Prompts, Replay, replay, replay_beams
from compat.worker.teacher import Teacher

RECORDED = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}


class Adder(transformers.LogitsProcessor):
    """A user's processor: adds `values` (vocabulary,) to the scores."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + self.values


@dataclass(frozen=True)
class Batch:
    """Prompts as `generate` takes them: `arguments` (input_ids, attention_mask), each (rows, width); `rows`: their real
    tokens."""

    rows: tuple[tuple[int, ...], ...]
    arguments: dict[str, torch.Tensor]
    spoken: tuple[int, ...] = ()
    """What the decoder of an encoder-decoder model is told to have written already, after its start token."""

    @property
    def width(self) -> int:
        return int(self.arguments["input_ids"].shape[1])


@dataclass
class Generated:
    """One trial: what `generate` returned, under which settings, and its replay."""

    settings: Settings
    batch: Batch
    output: Any
    replayed: Replay
    processors: Any = None
    """Processors of ours that took part."""

    def new(self, row: int) -> list[int]:
        """The tokens of a greedy or sampled row up to its end."""
        width = self.output.sequences.shape[1] - len(self.output.logits)
        tokens: list[int] = self.output.sequences[row, width:].tolist()
        return tokens[: self.replayed.lived[row]]


def malformed(output: Any, prompts: int, settings: Settings, width: int) -> str:
    """What makes the answer of `generate` to so many `prompts` of `width` tokens one that cannot be gone through; ""
    where it has its rows, at least one step, and logits and scores of each."""
    rows = prompts * settings.num_return_sequences
    sequences, steps = output.sequences, (output.logits, output.scores)
    if sequences.dim() != 2 or sequences.shape[0] != rows:
        return f"returned sequences of shape {tuple(sequences.shape)} for {rows} rows"
    if sequences.shape[1] <= width:
        return f"returned {sequences.shape[1]} tokens a row, no more than the {width} of the prompt"
    if any(not given for given in steps) or len(output.logits) != len(output.scores):
        return f"returned {len(output.logits or ())} steps of logits and {len(output.scores or ())} of scores"
    beams = prompts * settings.num_beams if settings.num_beams > 1 else rows
    shapes = {tuple(step.shape) for given in steps for step in given}
    if len(shapes) != 1 or next(iter(shapes))[0] != beams:
        return f"returned logits and scores of shapes {sorted(shapes)} for {beams} rows"
    return ""


@dataclass
class Trials:
    """Runs trials and keeps what they found, by name."""

    group: Group
    loaded: Loaded
    replays: dict[str, Replay] = field(default_factory=dict)
    figures: dict[str, Agreement] = field(default_factory=dict)
    margins: Margins = field(default_factory=Margins)
    transition_error: float | None = None
    """Largest relative difference of a beam's score from the sum of its tokens' scores."""
    drawn_wrong: int | None = None
    """Of beams that are drawn: whether one seed gave two answers, and whether two seeds gave one; None: not asked."""
    changed: list[str] = field(default_factory=list)
    """What generate changed of what it was given: `trial: input_ids`, `trial: generation_config`."""

    @cached_property
    def teacher(self) -> Teacher:
        return Teacher(self.group)

    @cached_property
    def own_config(self) -> Any:
        """The model's generation config as it was before the first trial."""
        return copy.deepcopy(self.loaded.model.generation_config)

    @property
    def decoder_start(self) -> int | None:
        """What an encoder-decoder model starts to write from; None for a decoder-only model."""
        if self.group.task != "seq2seq-lm":
            return None
        return int(self.group.source.start if self.group.source.start is not None else self.pad)

    @cached_property
    def varied(self) -> dict[str, Any]:
        """Settings for probes that share input and output embeddings: they would write one token for ever."""
        model = self.loaded.model
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        return {"no_repeat_ngram_size": 1} if tied and self.group.row["source"] == "probe" else {}

    @property
    def pad(self) -> int:
        return int(self.group.tokenizer.pad_token_id)

    def batch(self, rows: Sequence[Sequence[int]]) -> Batch:
        """Rows padded as the task's tokenizers do: decoder-only models on the left, encoders on the right."""
        width = max(len(r) for r in rows)
        ids, mask = [], []
        for row in rows:
            pads, ones, zeros = [self.pad] * (width - len(row)), [1] * len(row), [0] * (width - len(row))
            left = self.group.task == "causal-lm"
            ids.append([*pads, *row] if left else [*row, *pads])
            mask.append([*zeros, *ones] if left else [*ones, *zeros])
        device = self.group.device
        arguments = {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}
        return Batch(tuple(tuple(r) for r in rows), arguments)

    def unequal(self) -> torch.Tensor:
        """Small random numbers, one a token, fp32: added to scores they leave no two equal, as 16-bit logits often are,
        so that no order of beams is the sort's choice."""
        vocabulary = self.loaded.model.get_output_embeddings().weight.shape[0]
        generator = torch.Generator().manual_seed(1)
        return (0.02 * torch.rand(vocabulary, generator=generator)).to(self.group.device)

    def prompts(self, batch: Batch) -> Prompts:
        """What a replay starts from."""
        if self.decoder_start is None:
            return Prompts(batch.rows, batch.width)
        begun = (self.decoder_start, *batch.spoken)
        return Prompts((begun,) * len(batch.rows), len(begun), batch.rows)

    def generate(
        self,
        name: str,
        batch: Batch,
        settings: Mapping[str, Any],
        config: Any = None,
        seed: int | None = None,
        mask: bool = True,
        added: torch.Tensor | None = None,
        own: Any = None,
        embedded: bool = False,
        padless: bool = False,
    ) -> Generated:
        """Generate and replay. `settings` are passed as arguments over a generation `config`, over the model's `own`
        (by default as it was first); without `mask` the mask is left to `generate`; `added` is what a processor of ours
        adds to the scores; `embedded` prompts go in as embeddings, and do not come back; `padless`: nothing says which
        token pads, so that the first end of sequence does. Raises StackError."""
        given = {"pad_token_id": self.pad, **self.varied, **settings}
        arguments: dict[str, Any] = {k: v.clone() for k, v in batch.arguments.items() if mask or k == "input_ids"}
        if embedded:
            with torch.no_grad():
                embed = self.loaded.model.get_input_embeddings()
                arguments["inputs_embeds"] = embed(arguments.pop("input_ids"))
        if config is not None:
            arguments["generation_config"] = copy.deepcopy(config)
        own = self.own_config if own is None else own
        places: tuple[Any, ...] = (own,)
        if config is not None:
            inherits = stack_api.passed_config_inherits()
            places = (stack_api.stated_settings(config), own) if inherits else (config,)
        holds = resolved({**given, "added": added}, *places)
        if padless:
            holds = dataclasses.replace(holds, pad_token_id=holds.eos[0])
            given.pop("pad_token_id")
        if batch.spoken:
            begun = [[self.decoder_start, *batch.spoken]] * len(batch.rows)
            arguments["decoder_input_ids"] = torch.tensor(begun, device=self.group.device)
        if added is not None:
            arguments["logits_processor"] = transformers.LogitsProcessorList([Adder(added)])
        if seed is not None:
            transformers.set_seed(seed)
        with self._no_pad() if padless else contextlib.nullcontext():
            output = self.loaded.generate(**arguments, **RECORDED, **given)
        self._note_changes(name, batch, arguments, config)
        prompts = self.prompts(batch)
        if embedded:
            prompts = dataclasses.replace(prompts, width=0)
        wrong = malformed(output, len(batch.rows), holds, prompts.width)
        if wrong:
            raise StackError("generate", ValueError(f"{name}: {wrong}"))
        if holds.num_beams > 1:
            found: Replay = replay_beams(holds, prompts, output)
            self._transitions(holds, output)
        else:
            found = replay(holds, prompts.expanded(holds.num_return_sequences), output, seed)
        if not embedded:
            found.token_differences += self._prompt_changes(batch, output.sequences, holds.num_return_sequences)
        self.replays[name] = found
        return Generated(holds, batch, output, found, arguments.get("logits_processor"))

    @contextlib.contextmanager
    def _no_pad(self) -> Iterator[None]:
        """While the block runs, the model's own generation config names no token that pads."""
        own = self.loaded.model.generation_config
        kept, own.pad_token_id = own.pad_token_id, None
        try:
            yield
        finally:
            own.pad_token_id = kept

    def sample_beams(self, batch: Batch, settings: Mapping[str, Any]) -> None:
        """Beam search that draws its beams, under three seeds of which two are one."""
        seed, said = self.group.spec.seed, []
        for number in (seed, seed, seed + 1):
            transformers.set_seed(number)
            arguments = {k: v.clone() for k, v in batch.arguments.items()}
            given = {"pad_token_id": self.pad, **self.varied, **settings}
            said.append(self.loaded.generate(**arguments, **given).tolist())
        self.drawn_wrong = (said[0] != said[1]) + (said[1] == said[2])

    def _note_changes(self, name: str, batch: Batch, given: Mapping[str, Any], config: Any) -> None:
        for key, value in batch.arguments.items():
            if key in given and not torch.equal(given[key], value):
                self.changed.append(f"{name}: {key}")
        if config is not None and given["generation_config"].to_dict() != config.to_dict():
            self.changed.append(f"{name}: generation_config")

    def _transitions(self, settings: Settings, output: Any) -> None:
        """Scores of the tokens of each returned beam, as the library adds them up, against the beam's own score times
        its length to the power of the length penalty."""
        with under_test("transition scores"):
            each = self.loaded.model.compute_transition_scores(
                output.sequences, output.scores, output.beam_indices, normalize_logits=False
            ).double()
        lengths = (output.beam_indices >= 0).sum(-1).clamp_min(1).double()
        wanted = output.sequences_scores.double() * lengths**settings.length_penalty
        off = (each.sum(-1) - wanted).abs() / wanted.abs().clamp_min(1.0)
        self.transition_error = max(self.transition_error or 0.0, float(off.max()))

    def _prompt_changes(self, batch: Batch, sequences: torch.Tensor, times: int) -> int:
        """Tokens of the returned sequences that are not those they had to start with."""
        if self.decoder_start is not None:
            begun = torch.tensor([self.decoder_start, *batch.spoken], device=sequences.device)
            return int((sequences[:, : len(begun)] != begun).sum())
        given = batch.arguments["input_ids"].repeat_interleave(times, 0)
        return int((sequences[:, : batch.width] != given).sum())

    def judge(self, name: str, made: Generated, steps: int | None = None, margins: bool = False) -> None:
        """Compare the logits of a greedy or sampled trial (its first `steps`) with the reference's."""
        times = made.settings.num_return_sequences
        taught, logits = [], []
        for row in range(len(made.replayed.lived)):
            new = made.new(row)[:steps]
            prompt = made.batch.rows[row // times]
            r, e = (
                x[len(made.batch.spoken) :]
                for x in self.teacher.logits(prompt, self.decoder_start, (*made.batch.spoken, *new))
            )
            taught.append((r, e))
            logits.append(torch.stack([made.output.logits[t][row] for t in range(len(new))]))
            if margins:
                self._margins(made, row // times, new, r, e)
        self.figures[name] = self.teacher.judge(taught, logits)

    def _margins(self, made: Generated, row: int, new: list[int], r: torch.Tensor, e: torch.Tensor) -> None:
        """Judge each token by the reference under the same settings (docs/criteria.md)."""
        prompts = self.prompts(made.batch)
        allowed = 4 * (e - r).abs().amax(-1)  # (new tokens,)
        for step, token in enumerate(new):
            scores, _ = processed(made.settings, r[step], prompts.place(row, new[:step]))
            if not bool(torch.isfinite(scores).sum() > 1):
                continue  # a forced token is nobody's choice
            self.margins.add(scores, token, float(allowed[step]))

    def judge_beams(self, name: str, made: Generated) -> None:
        """Compare the logits along the way of one returned hypothesis of each prompt with the reference's: of the one
        that changed places most often."""
        found = made.replayed
        assert isinstance(found, BeamReplay)
        taught, logits = [], []
        each = made.settings.num_return_sequences
        for number, prompt in enumerate(made.batch.rows):
            own = found.beams[number * each : (number + 1) * each]
            if not own:
                continue
            beam = max(own, key=lambda b: sum(x != y for x, y in zip(b.path, b.path[1:], strict=False)))
            taught.append(self.teacher.logits(prompt, self.decoder_start, beam.new))
            logits.append(torch.stack([made.output.logits[t][row] for t, row in enumerate(beam.path)]))
        if taught:
            self.figures[name] = self.teacher.judge(taught, logits)
