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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import transformers

from compat.worker import dequantize, stack_api
from compat.worker.calls import under_test
from compat.worker.dispatch import forced_sdpa_kernel
from compat.worker.group import Group, Loaded
from compat.worker.load import quantized_modules
from compat.worker.pipeline_calls import SHORT_TOKENS, Made, call, make, make_alone, state
from compat.worker.report import Report

if TYPE_CHECKING:
    from compat.worker.trials import Generated

CHAT = (
    "{% for m in messages %}{{ '<s> ' + m['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}<s>{% endif %}"
)
"""A chat template for probes that writes the special tokens itself."""


@dataclass
class Differences:
    """Counts of one text-generation pipeline, with what was seen of each kind that is not zero."""

    inputs: int = 0
    settings: int = 0
    texts: int = 0
    tokens: int = 0
    compared: int = 0
    notes: dict[str, Any] = field(default_factory=dict)

    def note(self, what: str, count: int, *seen: Any) -> int:
        """`count`, after keeping what was seen where it is not zero."""
        if count:
            self.notes[what] = [str(s)[:300] for s in seen]
        return count


class StandIn:
    """Takes the place of `model.generate`: keeps its keywords, returns the prompt and `new` behind it."""

    def __init__(self, new: Sequence[int] = ()) -> None:
        self.new = list(new)
        self.calls: list[dict[str, Any]] = []

    def __call__(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        if arguments:
            keywords["input_ids"] = arguments[0]
        self.calls.append(keywords)
        ids: torch.Tensor = keywords["input_ids"]
        return torch.cat([ids, ids.new_tensor(self.new).expand(ids.shape[0], -1).long()], -1)

    @contextmanager
    def instead(self, model: Any) -> Iterator[StandIn]:
        """While the block runs, `model.generate` is this."""
        model.generate = self
        try:
            yield self
        finally:
            del model.generate

    def settings(self, number: int = 0) -> dict[str, Any]:
        """What the call sets, by name: a passed config's values, and keywords over them."""
        given = {k: v for k, v in self.calls[number].items() if not isinstance(v, torch.Tensor) and v is not None}
        config = given.pop("generation_config", None)
        return (_set_values(config) if config is not None else {}) | given


class Recorder:
    """Takes the place of `model.generate` and calls it: keeps the logits of each step, which must be those of the
    trial, so that a pipeline that computes in another precision is seen before a token changes."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.logits: list[torch.Tensor] = []

    def __call__(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        recorded = {"return_dict_in_generate": True, "output_logits": True}
        output = type(self.model).generate(self.model, *arguments, **{**keywords, **recorded})
        self.logits += output.logits
        sequences: torch.Tensor = output.sequences
        return sequences

    @contextmanager
    def instead(self) -> Iterator[Recorder]:
        """While the block runs, `model.generate` is this."""
        self.model.generate = self
        try:
            yield self
        finally:
            del self.model.generate

    def unlike(self, logits: Sequence[torch.Tensor], dtype: torch.dtype) -> int:
        """Steps whose logits are farther from those of the trial than a few roundings in `dtype`."""
        steps = list(zip(self.logits, logits, strict=False))
        allowed = 16 * torch.finfo(dtype).eps
        off = sum(not float((a - b).abs().max()) <= allowed * float(b.abs().max()) for a, b in steps)
        return off + (not steps)


def _set_values(config: Any) -> dict[str, Any]:
    """The values that a GenerationConfig really sets."""
    return {
        k: v
        for k, v in config.to_diff_dict().items()
        if v is not None and not k.startswith("_") and k != "transformers_version"
    }


def text_generation(group: Group, loaded: Loaded, report: Report, texts: list[str], made: Made) -> None:
    """See the module's docstring; puts counts into `report`. Raises StackError."""
    found = Differences()
    tokenizer = copy.deepcopy(group.tokenizer)
    tokenizer.padding_side = "right"  # the tokenizers' default; the pipeline has to pad on the left all the same
    pipe = make(loaded, "text-generation", tokenizer=tokenizer)
    report.facts["pipeline"] = "text-generation"
    first = StandIn()
    with first.instead(loaded.model):
        call(loaded, pipe, texts[0], return_tensors=True)
    report.facts["defaults_differ"] = _defaults_differ(loaded.model, first.settings())
    found.settings += _precedence(loaded, pipe, texts[-1], found)
    found.inputs += _handed_over(group, loaded, pipe, texts, found)
    found.texts += _decoded(group, loaded, pipe, texts[-1], found)
    if group.row["source"] == "probe":
        found.inputs += _special_tokens(group, loaded, texts[-1], found)
    _real_calls(group, loaded, pipe, texts, made, found)
    again = StandIn()
    with again.instead(loaded.model):
        call(loaded, pipe, texts[0], return_tensors=True)
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
    base, named = _set_values(own), {"max_new_tokens": 5, "do_sample": True, "temperature": 0.3, "min_p": 0.1}
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
            expected = below | (_set_values(passed) if passed is not None else {}) | arguments
            holds = below | seen.settings()
            off = {k: [v, holds.get(k)] for k, v in expected.items() if holds.get(k) != v}
            wrong += found.note(f"precedence: {what}", len(off), off)
    finally:
        for name, value in kept.items():
            setattr(own, name, value)
    return wrong


def _padded_ids(group: Group, rows: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """(ids, mask), padded on the left."""
    width, pad = max(len(r) for r in rows), int(group.tokenizer.pad_token_id)
    ids = [[pad] * (width - len(r)) + list(r) for r in rows]
    return ids, [[0] * (width - len(r)) + [1] * len(r) for r in rows]


def _unlike(seen: Mapping[str, Any], ids: list[list[int]], mask: list[list[int]]) -> int:
    """Entries of what was handed over that are not `ids` and `mask`. No mask stands for ones."""
    theirs = seen["input_ids"].tolist()
    given = seen.get("attention_mask")
    masks = [[1] * len(r) for r in theirs] if given is None else given.tolist()
    return sum(
        abs(len(a) - len(b)) + sum(x != y for x, y in zip(a, b, strict=False))
        for own, other in ((ids, theirs), (mask, masks))
        for a, b in zip(own, other, strict=True)
    )


def _tokenized(group: Group, text: str) -> list[int]:
    """The ids of a text: by the names of a probe's words, else by the tokenizer."""
    if group.row["source"] == "probe":
        return [int(word[1:]) for word in text.split()]
    return [int(i) for i in group.tokenizer(text)["input_ids"]]


def _handed_over(group: Group, loaded: Loaded, pipe: Any, texts: list[str], found: Differences) -> int:
    """Ids and mask of one prompt, of batches of which the last is not full, and of a list that is taken one by one; and
    the order of the answers."""
    rows = [_tokenized(group, t) for t in texts]
    wrong = 0
    for what, given, size in (("one", texts[-1], None), ("batch", texts, len(texts) - 1), ("list", texts[:2], None)):
        seen = StandIn()
        with seen.instead(loaded.model):
            sized = {} if size is None else {"batch_size": size}
            answers = call(loaded, pipe, given, return_tensors=True, **sized)
        one, listed = [[rows[-1]]], [[r] for r in rows[:2]]
        batches = {"one": one, "batch": [rows[:size], rows[size:]], "list": listed}[what]
        expected = [r for own in batches for r in _padded_ids(group, own)[0]]
        got = [a["generated_token_ids"] if isinstance(a, dict) else a[0]["generated_token_ids"] for a in answers]
        wrong += found.note(f"order: {what}", [list(g) for g in got] != expected, expected, got)
        if len(seen.calls) != len(batches):
            wrong += found.note(f"calls: {what}", abs(len(seen.calls) - len(batches)), len(batches), len(seen.calls))
            continue
        for handed, own in zip(seen.calls, batches, strict=True):
            ids, mask = _padded_ids(group, own)
            wrong += found.note(f"inputs: {what}", _unlike(handed, ids, mask), handed["input_ids"].tolist(), ids)
    return wrong


def _decoded(group: Group, loaded: Loaded, pipe: Any, text: str, found: Differences) -> int:
    """Texts that are not the prompt followed by our own decoding of the new ids, an end of sequence left out."""
    new = [*_tokenized(group, text)[:3], int(group.tokenizer.eos_token_id or group.tokenizer.pad_token_id)]
    if group.row["source"] == "probe":
        words = " ".join(f"w{i}" for i in new[:3])
    else:
        words = group.tokenizer.decode(new, skip_special_tokens=True)
    wrong = 0
    for full in (True, False, None):
        with StandIn(new).instead(loaded.model):
            answer = call(loaded, pipe, text, **({} if full is None else {"return_full_text": full}))
        theirs = answer[0]["generated_text"]
        expected = words if full is False else text + words
        wrong += found.note(
            f"text: full {full}", "".join(theirs.split()) != "".join(expected.split()), expected, theirs
        )
        if full is not False:
            wrong += found.note("text: prompt", not theirs.startswith(text), text, theirs)
    short = " ".join(text.split()[:3])
    with StandIn(new).instead(loaded.model):
        answers = call(loaded, pipe, [text, short], batch_size=2, return_full_text=False)
    theirs = ["".join(a[0]["generated_text"].split()) for a in answers]
    return wrong + found.note("text: batch", theirs != ["".join(words.split())] * 2, words, theirs)


def _special_tokens(group: Group, loaded: Loaded, text: str, found: Differences) -> int:
    """A tokenizer that writes <s> before each text: once, on one text and in a batch; and not again in a chat, whose
    template has written it."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(group.tokenizer)
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    pieces = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    tokenizer.backend_tokenizer.post_processor = pieces
    tokenizer.chat_template = CHAT
    pipe = make(loaded, "text-generation", tokenizer=tokenizer)
    row = _tokenized(group, text)
    long, short = [start, *row], [start, *row[:4]]
    few = " ".join(text.split()[:4])
    chat = [{"role": "user", "content": few}]
    wrong = 0
    for what, given, rows, settings in (
        ("text", text, [long], {}),
        ("batch", [text, few], [long, short], {"batch_size": 2}),
        ("left to the caller", text, [row], {"add_special_tokens": False}),
        ("chat", chat, [[start, *row[:4], end, start]], {}),
    ):
        seen = StandIn()
        with seen.instead(loaded.model):
            call(loaded, pipe, given, return_tensors=True, **settings)
        ids, mask = _padded_ids(group, rows)
        wrong += found.note(f"special tokens: {what}", _unlike(seen.calls[0], ids, mask), seen.calls[0]["input_ids"])
    return wrong


def _real_calls(group: Group, loaded: Loaded, pipe: Any, texts: list[str], made: Made, found: Differences) -> None:
    """The same ids as generate's, from the real model."""
    short = {"max_new_tokens": SHORT_TOKENS, "min_new_tokens": SHORT_TOKENS, "do_sample": False}
    short |= {"pad_token_id": group.tokenizer.pad_token_id}
    batch, nucleus, beams, alone = (made.get(n) for n in ("batch", "nucleus", "beams", "alone"))
    if batch is not None:
        with Recorder(loaded.model).instead() as seen:
            answer = call(loaded, pipe, texts, return_tensors=True, batch_size=len(texts), **short)
        off = seen.unlike(batch.output.logits, group.dtype)
        found.tokens += found.note("logits: batch", off, "steps whose logits differ:", off)
        own = [batch.new(row)[:SHORT_TOKENS] for row in range(len(texts))]
        compare_ids("batch", own, [a[0]["generated_token_ids"][-SHORT_TOKENS:] for a in answer], found)
    if nucleus is not None:
        sampling = {k: getattr(nucleus.settings, k) for k in ("do_sample", "temperature", "top_p", "top_k")}
        transformers.set_seed(group.spec.seed)
        # one prompt goes in as text: for a list the pipeline makes a DataLoader, which draws from torch's generator
        answer = call(loaded, pipe, texts[-1], return_tensors=True, **short | sampling)
        compare_ids("nucleus", [nucleus.new(0)], [answer[0]["generated_token_ids"][-SHORT_TOKENS:]], found)
    if beams is not None:
        _compare_beams(group, loaded, pipe, texts, beams, found)
    if alone is not None and group.spec.at_least("standard") and _loads_alone(group):
        compare_ids(
            "loaded by the pipeline",
            [alone.new(0)[:SHORT_TOKENS]],
            _by_itself(group, loaded, texts[0], short, alone, found),
            found,
        )


def compare_ids(what: str, own: Sequence[Sequence[int]], theirs: Sequence[Any], found: Differences) -> None:
    """Count the tokens of each row that differ, and those compared."""
    differing = sum(
        abs(len(o) - len(t)) + sum(a != b for a, b in zip(o, list(t), strict=False))
        for o, t in zip(own, theirs, strict=True)
    )
    found.compared += sum(len(o) for o in own)
    found.tokens += found.note(f"ids: {what}", differing, own, theirs)


def _compare_beams(
    group: Group, loaded: Loaded, pipe: Any, texts: list[str], beams: Generated, found: Differences
) -> None:
    """Beam search on the longest and the shortest prompt: the sequences of the trial, in its order."""
    names = ("num_beams", "num_return_sequences", "max_new_tokens", "early_stopping", "length_penalty")
    settings = {k: getattr(beams.settings, k) for k in (*names, "eos_token_id", "repetition_penalty", "do_sample")}
    settings["pad_token_id"] = group.tokenizer.pad_token_id
    settings["logits_processor"] = beams.processors
    answer = call(loaded, pipe, [texts[0], texts[-1]], return_tensors=True, batch_size=2, **settings)
    theirs = [list(a["generated_token_ids"]) for row in answer for a in row]
    compare_ids("beams", beams.output.sequences.tolist(), theirs, found)


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
    return [list(answer[0]["generated_token_ids"])[-SHORT_TOKENS:]]


def other_weights(group: Group, loaded: Loaded, model: Any) -> list[str]:
    """Parameters of `model` that are not those of the loaded model. Quantized ones, whose codes forwards have repacked
    since, are compared by their values as loaded."""
    with under_test("quantized state"):
        held = {p: dequantize.dequantize(dequantize.stored(m)).cpu() for p, m in quantized_modules(model).items()}
    own = dict(loaded.model.named_parameters()) | {f"{p}.weight": group.dequantized(p) for p in held}
    found = dict(model.named_parameters()) | {f"{p}.weight": weight for p, weight in held.items()}
    unquantized = [n for n in group.quantized if n.removesuffix(".weight") not in held]
    return unquantized + [n for n, weight in found.items() if n not in own or not torch.equal(weight, own[n])]
