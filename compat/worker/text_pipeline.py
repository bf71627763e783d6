"""The text-generation pipeline against generate and the tokenizer.

In: a load group, a backend, texts, and what the trials of the `generation` check made of the same texts. Out: counts
in the report. Three ways of looking, from cheap to dear:
- a stand-in takes the place of `generate` and sees what the pipeline hands over: ids, mask, settings. These must be our
  own padding of the tokenizer's ids, and what precedence says: the call's arguments, over the config that it passes,
  over the model's own config, over the pipeline's defaults. No model runs.
- the stand-in returns known ids, and the text that comes back must be our own decoding of them;
- the real thing: one prompt, a padded batch, beams, nucleus sampling under a seed must give the ids of the trials,
  through a pipeline around the loaded model and through one that loads the checkpoint itself.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import transformers

from compat.worker import dequantize, stack_api
from compat.worker.answers import Differences, apart, compare_ids, depth, records, texts, token_ids, words
from compat.worker.calls import under_test
from compat.worker.chat_pipeline import special_tokens
from compat.worker.dispatch import forced_sdpa_kernel
from compat.worker.group import Group, Loaded
from compat.worker.handed_over import padded_ids, tokenized, unlike
from compat.worker.load import quantized_modules
from compat.worker.pipeline_calls import SHORT_TOKENS, Made, call, make, make_alone, state
from compat.worker.report import Report
from compat.worker.stand_in import Recorder, StandIn, set_values

if TYPE_CHECKING:
    from compat.worker.trials import Generated


def text_generation(group: Group, loaded: Loaded, report: Report, prompts: list[str], made: Made) -> None:
    """See the module's docstring; puts counts into `report`. Raises StackError."""
    found = Differences()
    tokenizer = copy.deepcopy(group.tokenizer)
    tokenizer.padding_side = "right"  # the tokenizers' default; the pipeline has to pad on the left all the same
    pipe = make(loaded, "text-generation", tokenizer=tokenizer)
    report.facts["pipeline"] = "text-generation"
    first = StandIn()
    with first.instead(loaded.model):
        call(loaded, pipe, prompts[0], return_tensors=True)
    report.facts["defaults_differ"] = _defaults_differ(loaded.model, first.settings())
    found.settings += _precedence(loaded, pipe, prompts[-1], found)
    found.inputs += _handed_over(group, loaded, pipe, prompts, found)
    found.texts += _decoded(group, loaded, pipe, prompts[-1], found)
    if group.row["source"] == "probe":
        special_tokens(group, loaded, prompts[-1], found)
    _real_calls(group, loaded, pipe, prompts, made, found)
    again = StandIn()
    with again.instead(loaded.model):
        call(loaded, pipe, prompts[0], return_tensors=True)
    found.settings += found.note(
        "second call", again.settings() != first.settings(), first.settings(), again.settings()
    )
    report.measure("pipeline_differences", found.tokens, unit="tokens")
    report.measure("pipeline_compared", found.compared, unit="tokens", better="higher")
    report.measure("pipeline_input_differences", found.inputs, unit="ids")
    report.measure("pipeline_setting_differences", found.settings, unit="settings")
    report.measure("pipeline_text_differences", found.texts, unit="texts")
    if found.notes:
        report.facts["pipeline_notes"] = found.notes


def _defaults_differ(model: Any, handed: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Generation settings that the pipeline hands to `generate` when its user gives none, where they differ from the
    model's own: name -> [model's, pipeline's]."""
    own = model.generation_config.to_dict()
    return {
        k: [own.get(k), v]
        for k, v in sorted(handed.items())
        if own.get(k) != v and isinstance(v, (bool, int, float, str, list))
    }


def _precedence(loaded: Loaded, pipe: Any, text: str, found: Differences) -> int:
    """Settings in force that are not those of the highest place that sets them. The model's own config sets three for
    a while; the call sets some by name and some in a config that it passes."""
    own = loaded.model.generation_config
    kept = {name: getattr(own, name, None) for name in ("top_k", "repetition_penalty", "max_new_tokens")}
    own.top_k, own.repetition_penalty, own.max_new_tokens = 11, 1.25, 9
    base, named = set_values(own), {"max_new_tokens": 5, "do_sample": True, "temperature": 0.3, "min_p": 0.1}
    config = transformers.GenerationConfig(do_sample=True, temperature=0.4, top_p=0.8, max_new_tokens=6)
    wrong = 0
    try:
        for what, passed, arguments in (
            ("arguments", None, named),
            ("greedy", None, {"do_sample": False}),
            ("config", config, {}),
            ("config and arguments", config, {"top_p": 0.6, "max_new_tokens": 3}),
        ):
            seen = StandIn()
            more = {} if passed is None else {"generation_config": copy.deepcopy(passed)}
            with seen.instead(loaded.model):
                call(loaded, pipe, text, return_tensors=True, **arguments, **more)
            inherits = passed is None or stack_api.passed_config_inherits()
            below = base if inherits else {}
            expected = below | (set_values(passed) if passed is not None else {}) | arguments
            holds = below | seen.settings()
            off = {k: [v, holds.get(k)] for k, v in expected.items() if holds.get(k) != v}
            wrong += found.note(f"precedence: {what}", len(off), off)
    finally:
        for name, value in kept.items():
            setattr(own, name, value)
    return wrong


def _handed_over(group: Group, loaded: Loaded, pipe: Any, prompts: list[str], found: Differences) -> int:
    """Ids and mask of one prompt, of batches of which the last is not full, and of a list that is taken one by one; and
    the order of the answers."""
    rows = [tokenized(group, t) for t in prompts]
    wrong = 0
    for what, given, size in (
        ("one", prompts[-1], None),
        ("batch", prompts, len(prompts) - 1),
        ("list", prompts[:2], None),
    ):
        seen = StandIn()
        with seen.instead(loaded.model):
            sized = {} if size is None else {"batch_size": size}
            answers = call(loaded, pipe, given, return_tensors=True, **sized)
        one, listed = [[rows[-1]]], [[r] for r in rows[:2]]
        batches = {"one": one, "batch": [rows[:size], rows[size:]], "list": listed}[what]
        expected = [r for own in batches for r in padded_ids(group, own)[0]]
        got = token_ids(answers)
        wrong += found.note(f"order: {what}", apart(expected, got), expected, got)
        lists = 1 if isinstance(given, str) else 2
        wrong += found.note(f"lists: {what}", depth(answers) != lists, lists, answers)
        if len(seen.calls) != len(batches):
            wrong += found.note(f"calls: {what}", abs(len(seen.calls) - len(batches)), len(batches), len(seen.calls))
            continue
        for handed, own in zip(seen.calls, batches, strict=True):
            ids, mask = padded_ids(group, own)
            wrong += found.note(f"inputs: {what}", unlike(handed, ids, mask), handed.get("input_ids"), ids)
    return wrong


def _decoded(group: Group, loaded: Loaded, pipe: Any, text: str, found: Differences) -> int:
    """Texts that are not the prompt followed by our own decoding of the new ids, an end of sequence left out."""
    row, end = tokenized(group, text), int(group.tokenizer.eos_token_id or group.tokenizer.pad_token_id)
    new, other = [*row[:3], end], [*row[1:4], end]
    said, said_too = (_words(group, ids) for ids in (new, other))
    wrong = 0
    for full in (True, False, None):
        with StandIn(new).instead(loaded.model):
            answer = call(loaded, pipe, text, **({} if full is None else {"return_full_text": full}))
        expected = said if full is False else text + said
        wrong += found.note(f"text: full {full}", texts(answer) != [words(expected)], expected, answer)
        if full is not False:
            begins = [str(r.get("generated_text")).startswith(text) for r in records(answer)]
            wrong += found.note("text: prompt", not all(begins), text, answer)
    short = " ".join(text.split()[:3])
    with StandIn(new).instead(loaded.model):
        answers = call(loaded, pipe, [text, short], batch_size=2, return_full_text=False)
    wrong += found.note("text: batch", texts(answers) != [words(said)] * 2, said, answers)
    several = {"num_return_sequences": 2, "do_sample": True}
    for what, given, sized in (("one", text, {}), ("batch", [text, short], {"batch_size": 2})):
        asked = [given] if isinstance(given, str) else given
        for full in (True, False):
            with StandIn(new, [other]).instead(loaded.model):
                answers = call(loaded, pipe, given, return_full_text=full, **several, **sized)
            both = [words((prompt if full else "") + new_text) for prompt in asked for new_text in (said, said_too)]
            wrong += found.note(f"text: two sequences of {what}", apart(both, texts(answers)), both, answers)
    return wrong


def _words(group: Group, ids: list[int]) -> str:
    """The text of new ids, of which the last ends the sequence."""
    if group.row["source"] == "probe":
        return " ".join(f"w{i}" for i in ids[:-1])
    return str(group.tokenizer.decode(ids, skip_special_tokens=True))


def _real_calls(group: Group, loaded: Loaded, pipe: Any, prompts: list[str], made: Made, found: Differences) -> None:
    """The same ids as generate's, from the real model."""
    short = {"max_new_tokens": SHORT_TOKENS, "min_new_tokens": SHORT_TOKENS, "do_sample": False}
    short |= {"pad_token_id": group.tokenizer.pad_token_id}
    batch, nucleus, beams, alone = (made.get(n) for n in ("batch", "nucleus", "beams", "alone"))
    if batch is not None:
        with Recorder(loaded.model).instead() as seen:
            answer = call(loaded, pipe, prompts, return_tensors=True, batch_size=len(prompts), **short)
        off = seen.unlike(batch.output.logits, group.dtype)
        found.tokens += found.note("logits: batch", off, "steps whose logits differ:", off)
        own = [batch.new(row)[:SHORT_TOKENS] for row in range(len(prompts))]
        compare_ids("batch", own, [ids[-SHORT_TOKENS:] for ids in token_ids(answer)], found)
    if nucleus is not None:
        sampling = {k: getattr(nucleus.settings, k) for k in ("do_sample", "temperature", "top_p", "top_k")}
        transformers.set_seed(group.spec.seed)
        # one prompt goes in as text: for a list the pipeline makes a DataLoader, which draws from torch's generator
        answer = call(loaded, pipe, prompts[-1], return_tensors=True, **short | sampling)
        compare_ids("nucleus", [nucleus.new(0)], [ids[-SHORT_TOKENS:] for ids in token_ids(answer)], found)
    if beams is not None:
        _compare_beams(group, loaded, pipe, prompts, beams, found)
    if alone is not None and group.spec.at_least("standard") and _loads_alone(group):
        compare_ids(
            "loaded by the pipeline",
            [alone.new(0)[:SHORT_TOKENS]],
            _by_itself(group, loaded, prompts[0], short, alone, found),
            found,
        )


def _compare_beams(
    group: Group, loaded: Loaded, pipe: Any, prompts: list[str], beams: Generated, found: Differences
) -> None:
    """Beam search on the longest and the shortest prompt: the sequences of the trial, in its order."""
    names = ("num_beams", "num_return_sequences", "max_new_tokens", "early_stopping", "length_penalty")
    settings = {k: getattr(beams.settings, k) for k in (*names, "eos_token_id", "repetition_penalty", "do_sample")}
    settings["pad_token_id"] = group.tokenizer.pad_token_id
    settings["logits_processor"] = beams.processors
    answer = call(loaded, pipe, [prompts[0], prompts[-1]], return_tensors=True, batch_size=2, **settings)
    compare_ids("beams", beams.output.sequences.tolist(), token_ids(answer), found)


def _loads_alone(group: Group) -> bool:
    """Whether a pipeline that loads the checkpoint itself costs little, and gives the model that is asked about:
    probes in no mode; quantized ones at depth deep."""
    plain = group.row["source"] == "probe" and group.mode.kind == "plain"
    return plain and (not group.spec.quantization["library"] or group.spec.at_least("deep"))


def _by_itself(
    group: Group, loaded: Loaded, text: str, settings: dict[str, Any], alone: Generated, found: Differences
) -> list[list[int]]:
    """New ids from a pipeline that is given the checkpoint's place, a dtype and an attention implementation. What it
    loads must be what `from_pretrained` loads."""
    with under_test("pipeline"):
        pipe, model = make_alone(group, loaded)
    own, theirs = state(loaded.model), state(model)
    off = {k: [own[k], theirs[k]] for k in own if own[k] != theirs[k]}
    found.settings += found.note("loaded by the pipeline", len(off), off)
    weights = other_weights(group, loaded, model)
    found.settings += found.note("weights loaded by the pipeline", len(weights), weights)
    kernel = loaded.attention["sdpa_kernel"]
    with under_test("pipeline"), forced_sdpa_kernel(kernel), torch.no_grad(), Recorder(model).instead() as seen:
        answer = pipe(text, return_tensors=True, **settings)
    steps = seen.unlike(alone.output.logits, group.dtype)
    found.tokens += found.note("logits: loaded by the pipeline", steps, "steps whose logits differ:", steps)
    return [ids[-SHORT_TOKENS:] for ids in token_ids(answer)]


def other_weights(group: Group, loaded: Loaded, model: Any) -> list[str]:
    """Parameters of `model` that are not those of the loaded model. Quantized ones, whose codes forwards have repacked
    since, are compared by their values as loaded."""
    with under_test("quantized state"):
        held = {p: dequantize.dequantize(dequantize.stored(m)).cpu() for p, m in quantized_modules(model).items()}
    own = dict(loaded.model.named_parameters()) | {f"{p}.weight": group.dequantized(p) for p in held}
    found = dict(model.named_parameters()) | {f"{p}.weight": weight for p, weight in held.items()}
    unquantized = [n for n in group.quantized if n.removesuffix(".weight") not in held]
    return unquantized + [n for n, weight in found.items() if n not in own or not _same(weight, own[n])]


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
