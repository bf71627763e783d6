"""generation: does generate follow the model and its settings, and the pipeline follow generate?

Causal and encoder-decoder models: every generation is recorded with its logits and scores, and gone through again
(compat.worker.replay): scores must be what our own arithmetic makes of the logits, tokens what greedy choice, the seed
or a beam search of our own takes from the scores, rows must end where they have to. The logits are judged by the fp64
reference of each row alone, unpadded and without a cache, with eager's error as yardstick; so are the tokens of the
greedy batch: one other than the reference's best is excused when the margin is within 4 max|e - r| (docs/criteria.md).
Then the task's pipeline, on the same prompts and settings, must give the same (compat.worker.pipelines).
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
import transformers

from compat.checks import COMPOSITE_TASKS
from compat.worker import composite_generation, endings, pipeline_calls, pipelines, stack_api
from compat.worker.checks.agreement import by_path
from compat.worker.group import Group
from compat.worker.inputs import CLASSIFYING, FIRST_TOKEN, english_text
from compat.worker.margins import record_logits
from compat.worker.report import Report
from compat.worker.trials import Batch, Generated, Trials

NEW_TOKENS = {"quick": 16, "standard": 32, "deep": 64}
REAL_TOKENS = {"quick": 8, "standard": 24, "deep": 48}
"""For real checkpoints, whose every token costs a hundred times as much."""

ALONE_TOKENS = 12
PROMPT_WORDS = (24, 21, 15, 9)
"""With NEW_TOKENS longer than the probes' windows of 32; the shortest gets 15 pads."""

NUCLEUS = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 50}


def run(group: Group, attention: dict[str, Any]) -> Report:
    """See the module's docstring. Raises StackError, Unavailable, NoYardstick."""
    report = Report(seed=group.spec.seed)
    loaded = group.loaded(attention)
    loaded.activate()
    before, config = pipeline_calls.state(loaded.model), copy.deepcopy(getattr(loaded.model, "generation_config", None))
    changed: list[str] = []
    made: pipeline_calls.Made = {}
    if group.task in ("causal-lm", "seq2seq-lm"):
        trials = Trials(group, loaded)
        made = _trials(trials)
        changed = trials.changed
        _report(trials, report)
        if group.row["source"] == "probe" and group.mode.kind == "plain":
            greedy = made["batch"]
            assert greedy is not None
            stopped = endings.stop_string_differences(trials, greedy)
            if stopped is not None:
                report.measure("stop_string_differences", stopped, unit="tokens")
            alone = made["alone"]
            assert alone is not None
            report.measure("stream_differences", endings.stream_differences(trials, alone), unit="tokens")
    if group.task in COMPOSITE_TASKS:
        changed = composite_generation.run(group, loaded, report)
        report.facts["pipeline"] = "not asked: of models with pictures or sounds, generate alone is"
    elif group.mode.kind == "plain":
        pipelines.run(group, loaded, report, prompts(group), made)
    else:
        report.facts["pipeline"] = "not asked: pipelines are made of plain models"
    loaded.activate()  # the yardstick may have run meanwhile
    after = pipeline_calls.state(loaded.model)
    changed += [f"{k}: {before[k]} -> {after[k]}"[:400] for k in before if before[k] != after[k]]
    if before["generation_config"] != after["generation_config"]:
        loaded.model.generation_config = config  # other backends share the model, and have to see the change as well
    report.measure("side_effects", len(changed), unit="changes")
    if changed:
        report.facts["side_effects"] = changed
    return report


def prompts(group: Group) -> list[str]:
    """Texts of unequal length: words of the probe's vocabulary, or the start of English paragraphs."""
    if group.task in CLASSIFYING:
        return []
    if group.row["source"] == "probe":
        generator = torch.Generator().manual_seed(group.spec.seed + 77)
        drawn = [torch.randint(FIRST_TOKEN, group.source.vocab, (n,), generator=generator) for n in PROMPT_WORDS]
        return [" ".join(f"w{int(i)}" for i in ids) for ids in drawn]
    paragraphs = [p for p in english_text().split("\n\n") if p.strip()]
    return [" ".join(p.split()[:n]) for p, n in zip(paragraphs, PROMPT_WORDS, strict=False)]


def _encoded(trials: Trials) -> Batch:
    """The prompts, tokenized and padded by the tokenizer."""
    group = trials.group
    side = "left" if group.task == "causal-lm" else "right"
    encoded = group.tokenizer(prompts(group), return_tensors="pt", padding=True, padding_side=side).to(group.device)
    arguments = {k: encoded[k] for k in ("input_ids", "attention_mask")}
    kept = zip(arguments["input_ids"], arguments["attention_mask"].bool(), strict=True)
    return Batch(tuple(tuple(ids[mask].tolist()) for ids, mask in kept), arguments)


def _fixed(new_tokens: int, **more: Any) -> dict[str, Any]:
    """Settings under which no row ends early."""
    return {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, **more}


def _trials(trials: Trials) -> dict[str, Generated | None]:
    """Every trial of the group's depth, by name."""
    spec, real = trials.group.spec, trials.group.row["source"] != "probe"
    batch = _encoded(trials)
    tokens = (REAL_TOKENS if real else NEW_TOKENS)[spec.depth]
    greedy = trials.generate("batch", batch, _fixed(tokens))
    trials.judge("batch", greedy, margins=True)
    made: dict[str, Generated | None] = {"batch": greedy}
    _processors(trials, batch)
    made["nucleus"] = trials.generate("nucleus", trials.batch(batch.rows[-1:]), _fixed(4) | NUCLEUS, seed=spec.seed)
    made["ended"] = _ended(trials, greedy)
    alone = trials.generate("alone", trials.batch(batch.rows[:1]), _fixed(min(ALONE_TOKENS, tokens // 2)))
    trials.judge("alone", alone, margins=True)
    made["alone"] = alone
    if not spec.at_least("standard"):
        return made
    beams = _beams(trials, "beams", greedy, length_penalty=0.6)
    trials.judge_beams("beams", beams)
    made["beams"] = beams
    if not real:
        _cheap_tokens(trials, greedy)
    if spec.at_least("deep"):
        _deep(trials, greedy)
    return made


def _cheap_tokens(trials: Trials, greedy: Generated) -> None:
    """What probes are asked beside, whose tokens cost little."""
    batch = greedy.batch
    many = {"eos_token_id": list(range(FIRST_TOKEN, trials.group.source.vocab, 3)), "num_beams": 2}
    many |= {"max_new_tokens": 10, "rows": (batch.rows[-1],)}  # one prompt: the search ends when it does
    _beams(trials, "beams that take the first", greedy, early_stopping=True, length_penalty=2.0, **many)
    _beams(trials, "beams that give up", greedy, early_stopping=False, length_penalty=-1.5, **many)
    _beams(trials, "beams that never stop", greedy, early_stopping="never", length_penalty=0.6, **many)
    drawn = {"do_sample": True, "temperature": 2.0, "top_k": 0, "num_beams": 3}
    trials.sample_beams(trials.batch(batch.rows[-1:]), _fixed(6) | drawn)
    if trials.decoder_start is not None:
        begun = dataclasses.replace(trials.batch(batch.rows[-2:]), spoken=tuple(greedy.new(0)[2:4]))
        trials.judge("begun", trials.generate("begun", begun, _fixed(3)))
    _expanded(trials, batch)
    _settings_from_three_places(trials, batch)
    _other_paths(trials, batch, 3)


def _processors(trials: Trials, batch: Batch) -> None:
    """Every processor of greedy search at once, counted in total length, on prompts whose last word stands in them
    before: each has something to forbid or to change at the first step."""
    seq2seq = trials.decoder_start is not None
    shortest = min(len(row) for row in batch.rows)  # pads of an encoder would count for its penalty in transformers 5
    rows = [row[:shortest] if seq2seq else (*row[:-1], row[len(row) // 2]) for row in batch.rows]
    last = trials.decoder_start if trials.decoder_start is not None else rows[0][-1]
    some = [t for t in sorted({t for row in rows for t in row}) if t != last][:10]
    width = 1 if seq2seq else batch.width
    settings = {
        "max_length": width + 6,
        "min_new_tokens": 3,
        "eos_token_id": [2, some[0]],
        "do_sample": False,
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[some[1]], [last, some[2]], [some[5], last, some[4]]],
        # a pad must not be written: it would make n-grams with those before the prompt, which transformers 5 counts
        "sequence_bias": {(some[3],): 4.0, (last, some[4]): -6.0, (trials.pad,): -20.0},
        "suppress_tokens": [some[5], some[8]],
        "begin_suppress_tokens": [some[6], some[9]],
        "exponential_decay_length_penalty": (2, 1.2),
        "forced_eos_token_id": some[0],
    }
    if seq2seq:
        settings |= {"encoder_repetition_penalty": 1.2}
        trials.generate("forced start", trials.batch(rows[-1:]), _fixed(2, forced_bos_token_id=some[7]))
    trials.generate("processors", trials.batch(rows), settings)
    if not seq2seq:
        twice = [_ends_twice(row) for row in batch.rows]
        settings = {"max_new_tokens": 3, "min_new_tokens": None, "min_length": width + 2, "do_sample": False}
        settings |= {"eos_token_id": some[0], "no_repeat_ngram_size": 3}
        trials.generate("three in a row", trials.batch(twice), settings)


def _ends_twice(row: tuple[int, ...]) -> tuple[int, ...]:
    """`row` with a last pair of tokens that stands in its middle too, and whose second token alone stands elsewhere."""
    middle = len(row) // 2
    pair = row[middle : middle + 2]
    return (row[0], pair[1], *row[2:-2], *pair)


def _ended(trials: Trials, greedy: Generated) -> Generated | None:
    """Rows that end early: at a token that the greedy batch is known to write, while others go on. A second end of
    sequence stands in a prompt, where it ends nothing."""
    steps = 8
    new = [greedy.new(row)[:steps] for row in range(len(greedy.batch.rows))]
    chosen = next((t for tokens in reversed(new) for t in tokens[1:4] if _some_end(new, t)), None)
    if chosen is None:
        return None
    written = {t for tokens in new for t in tokens}
    spare = next((t for t in greedy.batch.rows[0] if t not in written), chosen)
    width = 1 if trials.decoder_start is not None else greedy.batch.width
    ends = {"eos_token_id": [chosen, spare], "min_new_tokens": None, "do_sample": False}
    made = trials.generate("ended", greedy.batch, {"max_length": width + steps, **ends})
    trials.judge("ended", made)
    if trials.decoder_start is None:
        trials.generate("no pad token", greedy.batch, {"max_length": width + 4, **ends}, padless=True)
    return made


def _some_end(new: list[list[int]], token: int) -> bool:
    """Whether rows that end at `token` end at different times, the first within 4 tokens."""
    ends = [tokens.index(token) if token in tokens else len(tokens) for tokens in new]
    return min(ends) < 4 and max(ends) > min(ends) + 1


def _beams(trials: Trials, name: str, greedy: Generated, **settings: Any) -> Generated:
    """Beam search on the longest and the shortest prompt, with an end of sequence that the best beam is likely to
    meet; or on `rows`."""
    rows = settings.pop("rows", (greedy.batch.rows[0], greedy.batch.rows[-1]))
    given = {
        "num_beams": 3,
        "num_return_sequences": 2,
        "max_new_tokens": 6,
        "min_new_tokens": None,
        "do_sample": False,
        "early_stopping": False,
        "eos_token_id": [greedy.new(len(greedy.batch.rows) - 1)[2]],
        "repetition_penalty": 1.1,
        **settings,
    }
    return trials.generate(name, trials.batch(rows), given, added=trials.unequal())


def _expanded(trials: Trials, batch: Batch) -> None:
    """Two samples of each of two prompts: only the first step's logits have a reference already."""
    two = trials.batch((batch.rows[0], batch.rows[-1]))
    settings = _fixed(4) | {"do_sample": True, "temperature": 1.3, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
    settings |= {"typical_p": 0.9, "num_return_sequences": 2, "repetition_penalty": 1.2}
    made = trials.generate("expanded", two, settings, seed=trials.group.spec.seed)
    trials.judge("expanded", made, steps=1)


def _settings_from_three_places(trials: Trials, batch: Batch) -> None:
    """Arguments over a config that is passed, over the model's own."""
    own = trials.loaded.model.generation_config
    kept = {name: getattr(own, name, None) for name in ("repetition_penalty", "temperature", "top_k")}
    own.repetition_penalty, own.temperature, own.top_k = 1.4, 0.3, 7
    passed = transformers.GenerationConfig(do_sample=True, temperature=0.8, top_p=0.5, max_new_tokens=5)
    arguments = {"max_new_tokens": 2, "min_new_tokens": 2, "top_p": 0.8, "eos_token_id": own.eos_token_id}
    try:
        one = trials.batch(batch.rows[-1:])
        seed = trials.group.spec.seed
        trials.generate("three places", one, arguments, config=passed, seed=seed, own=copy.deepcopy(own))
    finally:
        for name, value in kept.items():
            setattr(own, name, value)


def _other_paths(trials: Trials, batch: Batch, steps: int) -> None:
    """Without a cache; from embeddings; and with the mask left to generate, which infers it from the pads."""
    made = trials.generate("no cache", batch, _fixed(steps, use_cache=False))
    trials.judge("no cache", made)
    if trials.decoder_start is None and stack_api.generates_from_embeddings(trials.loaded.model):
        trials.judge("embeddings", trials.generate("embeddings", batch, _fixed(steps), embedded=True))
    own = trials.own_config.eos_token_id
    if trials.decoder_start is None and trials.pad not in (
        own if isinstance(own, list) else [own]
    ):  # else pads are taken for ends of sequence
        trials.judge("mask inferred", trials.generate("mask inferred", batch, _fixed(steps), mask=False))


def _deep(trials: Trials, greedy: Generated) -> None:
    """What costs more than it is likely to show."""
    for stopping in (True, False, "never"):
        for penalty in (-1.0, 0.0, 2.0):
            name = f"beams {stopping} {penalty}"
            _beams(trials, name, greedy, early_stopping=stopping, length_penalty=penalty, num_beams=4, max_new_tokens=9)
    one = trials.batch(greedy.batch.rows[-1:])
    sampling: dict[str, dict[str, Any]] = {
        "epsilon": {"epsilon_cutoff": 0.01},
        "eta": {"eta_cutoff": 0.02},
        "typical": {"typical_p": 0.5},
        "top-p": {"top_p": 0.3},
        "top-k": {"top_k": 3},
        "min-p": {"min_p": 0.3, "top_k": 0},
        "renormalized": {"renormalize_logits": True},
        "hot": {"temperature": 2.5, "top_k": 0},
    }
    for name, settings in sampling.items():
        trials.generate(name, one, _fixed(4) | {"do_sample": True} | settings, seed=trials.group.spec.seed)
    first = greedy.new(0)[1]
    everyone = {t for row in range(len(greedy.batch.rows)) for t in greedy.new(row)[:4]}
    ends = {"max_new_tokens": 12, "min_length": None, "do_sample": False}
    trials.generate("all end", greedy.batch, {**ends, "min_new_tokens": None, "eos_token_id": sorted(everyone)})
    width = 1 if trials.decoder_start is not None else greedy.batch.width
    settings = {**ends, "min_new_tokens": None, "min_length": width + 5, "eos_token_id": first}
    trials.generate("shortest length", greedy.batch, settings)
    _other_paths(trials, greedy.batch, 8)


def _report(trials: Trials, report: Report) -> None:
    """Put what the trials found into `report`."""
    replays = list(trials.replays.values())
    trials.margins.record(report)
    record_logits(report, trials.figures, "batch")
    for name, unit, values in (
        ("score_differences", "entries", [r.score_differences for r in replays]),
        ("token_differences", "tokens", [r.token_differences for r in replays]),
        ("length_differences", "tokens", [r.length_differences for r in replays]),
    ):
        report.measure(name, values, unit=unit, method="sum")
    report.measure("compared_scores", [r.scores for r in replays], unit="entries", better="higher", method="min")
    if trials.transition_error is not None:
        report.measure("transition_score_error", trials.transition_error, unit="of the score")
    if trials.drawn_wrong is not None:
        report.measure("drawn_beams_wrong", trials.drawn_wrong, unit="comparisons")
    errors = [e for r in replays if (e := getattr(r, "score_error", None)) is not None]
    if errors:
        report.measure("beam_score_error", errors, unit="of the score")
    report.facts["trials"] = {name: r.note() for name, r in trials.replays.items()}
    report.facts["ratio_token_by_path"] = by_path(trials.figures)
    filled = {i for r in replays for i in getattr(r, "filled", ())} - {trials.pad}
    if filled:
        report.facts["filled_behind_beams"] = f"ids {sorted(filled)} in place of the pad token's {trials.pad}"
    if "ended" not in trials.replays:
        report.facts["ended"] = "no token of the greedy batch ends some rows and not others"
