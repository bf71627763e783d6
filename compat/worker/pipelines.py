"""The pipelines of each task against generate, forward and the tokenizer.

In: a load group, a backend, texts, and what the trials of the `generation` check made of the same texts. Out: counts
in the report. Three ways of looking, from cheap to dear:
- a stand-in takes the place of `generate` and sees what the pipeline hands over: ids, mask, settings. These must be our
  own padding of the tokenizer's ids, and what precedence says: the call's arguments, over the config that it passes,
  over the model's own config, over the pipeline's defaults. No model runs.
- the stand-in returns known ids, and the text that comes back must be our own decoding of them;
- the real thing: one prompt, a padded batch, beams, nucleus sampling under a seed must give the ids of the trials,
  through a pipeline around the loaded model and through one that loads the checkpoint itself.
Tasks that do not generate: a batch of mixed lengths against single rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import transformers

from compat.worker import stack_api
from compat.worker.calls import under_test
from compat.worker.dispatch import forced_sdpa_kernel
from compat.worker.group import Group, Loaded
from compat.worker.inputs import Rows
from compat.worker.report import Report

if TYPE_CHECKING:
    from compat.worker.trials import Generated

SHORT_TOKENS = 4

Made = Mapping[str, "Generated | None"]

CHAT = (
    "{% for m in messages %}{{ '<s> ' + m['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}<s>{% endif %}"
)
"""A chat template for probes that writes the special tokens itself."""


def run(group: Group, loaded: Loaded, report: Report, texts: list[str], made: Made) -> None:
    """Judge the pipeline of the group's task. Raises StackError."""
    _PIPELINES[group.task](group, loaded, report, texts, made)


def state(model: Any) -> dict[str, Any]:
    """What generating and pipelines have to leave alone."""
    config = getattr(model, "generation_config", None)
    parameter = next(p for p in model.parameters() if p.dtype.is_floating_point)
    return {
        "generation_config": None if config is None else config.to_dict(),
        "attention": stack_api.effective_attention(model),
        "dtypes": sorted({str(p.dtype) for p in model.parameters()}),
        "device": str(parameter.device),
        "training": model.training,
        "gradients": sorted({p.requires_grad for p in model.parameters()}),
        "pad_token_id": getattr(model.config, "pad_token_id", None),
    }


def _pipeline(loaded: Loaded, task: str, **parts: Any) -> Any:
    loaded.activate()
    with under_test("pipeline"):
        return transformers.pipeline(task, model=loaded.model, device=None, **parts)


def _call(loaded: Loaded, pipe: Any, *arguments: Any, **settings: Any) -> Any:
    loaded.activate()
    kernel = loaded.attention["sdpa_kernel"]
    with under_test("pipeline"), forced_sdpa_kernel(kernel), torch.no_grad():
        return pipe(*arguments, **settings)


# -- text generation ----------------------------------------------------------------------------------------------


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


def _set_values(config: Any) -> dict[str, Any]:
    """The values that a GenerationConfig really sets."""
    return {
        k: v
        for k, v in config.to_diff_dict().items()
        if v is not None and not k.startswith("_") and k != "transformers_version"
    }


def _text_generation(group: Group, loaded: Loaded, report: Report, texts: list[str], made: Made) -> None:
    found = Differences()
    tokenizer = copy.deepcopy(group.tokenizer)
    tokenizer.padding_side = "right"  # the tokenizers' default; the pipeline has to pad on the left all the same
    pipe = _pipeline(loaded, "text-generation", tokenizer=tokenizer)
    report.facts["pipeline"] = "text-generation"
    first = StandIn()
    with first.instead(loaded.model):
        _call(loaded, pipe, texts[0], return_tensors=True)
    report.facts["defaults_differ"] = _defaults_differ(loaded.model, first.settings())
    found.settings += _precedence(loaded, pipe, texts[-1], found)
    found.inputs += _handed_over(group, loaded, pipe, texts, found)
    found.texts += _decoded(group, loaded, pipe, texts[-1], found)
    if group.row["source"] == "probe":
        found.inputs += _special_tokens(group, loaded, texts[-1], found)
    _real_calls(group, loaded, pipe, texts, made, found)
    again = StandIn()
    with again.instead(loaded.model):
        _call(loaded, pipe, texts[0], return_tensors=True)
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
                _call(loaded, pipe, text, return_tensors=True, **arguments, **more)
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
            answers = _call(loaded, pipe, given, return_tensors=True, **sized)
        one, listed = [[rows[-1]]], [[r] for r in rows[:2]]
        batches = {"one": one, "batch": [rows[:size], rows[size:]], "list": listed}[what]
        expected = [r for own in batches for r in _padded_ids(group, own)[0]]
        got = [a["generated_token_ids"] if isinstance(a, dict) else a[0]["generated_token_ids"] for a in answers]
        wrong += found.note(f"order: {what}", [list(g) for g in got] != expected, expected, got)
        if len(seen.calls) != len(batches):
            wrong += found.note(f"calls: {what}", abs(len(seen.calls) - len(batches)), len(batches), len(seen.calls))
            continue
        for call, own in zip(seen.calls, batches, strict=True):
            ids, mask = _padded_ids(group, own)
            wrong += found.note(f"inputs: {what}", _unlike(call, ids, mask), call["input_ids"].tolist(), ids)
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
            answer = _call(loaded, pipe, text, **({} if full is None else {"return_full_text": full}))
        theirs = answer[0]["generated_text"]
        expected = words if full is False else text + words
        wrong += found.note(
            f"text: full {full}", "".join(theirs.split()) != "".join(expected.split()), expected, theirs
        )
        if full is not False:
            wrong += found.note("text: prompt", not theirs.startswith(text), text, theirs)
    short = " ".join(text.split()[:3])
    with StandIn(new).instead(loaded.model):
        answers = _call(loaded, pipe, [text, short], batch_size=2, return_full_text=False)
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
    pipe = _pipeline(loaded, "text-generation", tokenizer=tokenizer)
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
            _call(loaded, pipe, given, return_tensors=True, **settings)
        ids, mask = _padded_ids(group, rows)
        wrong += found.note(f"special tokens: {what}", _unlike(seen.calls[0], ids, mask), seen.calls[0]["input_ids"])
    return wrong


def _real_calls(group: Group, loaded: Loaded, pipe: Any, texts: list[str], made: Made, found: Differences) -> None:
    """The same ids as generate's, from the real model."""
    short = {"max_new_tokens": SHORT_TOKENS, "min_new_tokens": SHORT_TOKENS, "do_sample": False}
    short |= {"pad_token_id": group.tokenizer.pad_token_id}
    batch, nucleus, beams, alone = (made.get(n) for n in ("batch", "nucleus", "beams", "alone"))
    if batch is not None:
        answer = _call(loaded, pipe, texts, return_tensors=True, batch_size=len(texts), **short)
        own = [batch.new(row)[:SHORT_TOKENS] for row in range(len(texts))]
        _compare_ids("batch", own, [a[0]["generated_token_ids"][-SHORT_TOKENS:] for a in answer], found)
    if nucleus is not None:
        sampling = {k: getattr(nucleus.settings, k) for k in ("do_sample", "temperature", "top_p", "top_k")}
        transformers.set_seed(group.spec.seed)
        # one prompt goes in as text: for a list the pipeline makes a DataLoader, which draws from torch's generator
        answer = _call(loaded, pipe, texts[-1], return_tensors=True, **short | sampling)
        _compare_ids("nucleus", [nucleus.new(0)], [answer[0]["generated_token_ids"][-SHORT_TOKENS:]], found)
    if beams is not None:
        _compare_beams(group, loaded, pipe, texts, beams, found)
    if alone is not None and group.spec.at_least("standard") and _loads_alone(group):
        _compare_ids(
            "loaded by the pipeline",
            [alone.new(0)[:SHORT_TOKENS]],
            _by_itself(group, loaded, texts[0], short, found),
            found,
        )


def _compare_ids(what: str, own: Sequence[Sequence[int]], theirs: Sequence[Any], found: Differences) -> None:
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
    answer = _call(loaded, pipe, [texts[0], texts[-1]], return_tensors=True, batch_size=2, **settings)
    theirs = [list(a["generated_token_ids"]) for row in answer for a in row]
    _compare_ids("beams", beams.output.sequences.tolist(), theirs, found)


def _loads_alone(group: Group) -> bool:
    """Whether a pipeline that loads the checkpoint itself costs little: probes; quantized ones at depth deep."""
    return group.row["source"] == "probe" and (not group.spec.quantization["library"] or group.spec.at_least("deep"))


def _by_itself(
    group: Group, loaded: Loaded, text: str, settings: dict[str, Any], found: Differences
) -> list[list[int]]:
    """New ids from a pipeline that is given the checkpoint's place, a dtype and an attention implementation. What it
    loads must be what `from_pretrained` loads."""
    wanted = {"attn_implementation": loaded.attention["implementation"]}
    if group.spec.quantization["library"]:
        arguments = group.spec.quantization["arguments"]
        wanted["quantization_config"] = stack_api.bitsandbytes_config(arguments, group.dtype)
    with under_test("pipeline"):
        pipe = transformers.pipeline(
            "text-generation",
            model=group.checkpoint.location,
            tokenizer=copy.deepcopy(group.tokenizer),
            device=None if group.spec.quantization["library"] else group.device,
            model_kwargs=wanted,
            **stack_api.dtype_argument(group.dtype),
        )
    own, theirs = state(loaded.model), state(pipe.model)
    off = {k: [own[k], theirs[k]] for k in own if own[k] != theirs[k]}
    found.settings += found.note("loaded by the pipeline", len(off), off)
    weights = dict(loaded.model.named_parameters())
    differing = [n for n, p in pipe.model.named_parameters() if n not in weights or not torch.equal(p, weights[n])]
    found.settings += found.note("weights loaded by the pipeline", len(differing), differing)
    kernel = loaded.attention["sdpa_kernel"]
    with under_test("pipeline"), forced_sdpa_kernel(kernel), torch.no_grad():
        answer = pipe(text, return_tensors=True, **settings)
    return [list(answer[0]["generated_token_ids"])[-SHORT_TOKENS:]]


# -- other tasks --------------------------------------------------------------------------------------------------


def _no_pipeline(group: Group, loaded: Loaded, report: Report, texts: list[str], made: Made) -> None:
    """Encoder-decoder: transformers 5 has no text2text pipeline; what generate did is judged by the trials."""
    if "text2text-generation" not in stack_api.pipeline_tasks():
        report.facts["pipeline"] = "text2text-generation is not a pipeline of this stack"
        return
    alone = made["alone"]
    assert alone is not None
    settings = {"max_new_tokens": SHORT_TOKENS, "min_new_tokens": SHORT_TOKENS, "do_sample": False}
    pipe = _pipeline(loaded, "text2text-generation", tokenizer=copy.deepcopy(group.tokenizer))
    answer = _call(loaded, pipe, texts[:1], return_tensors=True, **settings)
    theirs = [int(t) for t in answer[0]["generated_token_ids"]][1 : SHORT_TOKENS + 1]
    found = Differences()
    free = SHORT_TOKENS - (alone.settings.forced_eos_token_id is not None)
    _compare_ids("one", [alone.new(0)[:free]], [theirs[:free]], found)
    report.facts["pipeline"] = "text2text-generation"
    report.measure("pipeline_differences", found.tokens, unit="tokens")
    report.measure("pipeline_compared", found.compared, unit="tokens", better="higher")


@dataclass
class Answers:
    """Probabilities of a pipeline against those of the reference, and of our own forward."""

    differing: int = 0
    compared: int = 0
    apart: float = 0.0
    margin: float = 0.0

    def add(self, own: torch.Tensor, answer: list[tuple[int, float]]) -> None:
        """`own`: probabilities by class from forward; `answer`: (class, probability) as the pipeline ranks them.
        Classes of exactly equal probability may stand in either order."""
        best = own.topk(len(answer)).values
        self.differing += sum(float(own[i]) != float(p) for (i, _), p in zip(answer, best, strict=True))
        self.apart = max([self.apart, *(abs(score - float(p)) for (_, score), p in zip(answer, best, strict=True))])
        self.compared += len(answer)

    def judge(self, r: torch.Tensor, e: torch.Tensor, answer: list[tuple[int, float]]) -> None:
        """`r`, `e`: logits of the reference and of eager attention on the row alone. The log-probability of each answer
        may be off by 4 max|e - r| (docs/criteria.md), or by what fp32 rounds."""
        logs = r.double().log_softmax(-1)
        excuse = 4 * float((e.double() - r.double()).abs().max()) + 1e-5
        for token, score in answer:
            off = abs(float(torch.tensor(score).double().clamp_min(1e-300).log() - logs[token]))
            self.margin = max(self.margin, off / (excuse + score_rounding(score)))
        ranked = sorted((logs[token].item() for token, _ in answer), reverse=True)
        missed = logs.topk(len(answer)).values.tolist()
        self.margin = max([self.margin, *((m - o) / (2 * excuse) for m, o in zip(missed, ranked, strict=True))])

    def record(self, report: Report, task: str) -> None:
        report.facts["pipeline"] = task
        report.measure("pipeline_differences", self.differing, unit="answers")
        report.measure("pipeline_compared", self.compared, unit="answers", better="higher")
        report.measure("pipeline_score_difference", self.apart, unit="probability")
        report.measure("pipeline_batch_margin", self.margin, unit="of allowed")


def score_rounding(score: float) -> float:
    """How far a log-probability moves when its probability is rounded to bf16 (8 bits)."""
    return 2.0**-8 if score else 0.0


def _batched(loaded: Loaded, pipe: Any, items: list[Any], **settings: Any) -> list[Any]:
    """Answers to all `items` in one padded batch."""
    answers: list[Any] = _call(loaded, pipe, items, batch_size=len(items), **settings)
    return answers


def _fill_mask(group: Group, loaded: Loaded, report: Report, texts: list[str], made: Made) -> None:
    """fill-mask: softmax over the vocabulary at the mask, best five; row by row, and as one padded batch."""
    mask = group.tokenizer.mask_token
    texts = [" ".join([*t.split()[:4], mask, *t.split()[4:]]) for t in texts]
    pipe = _pipeline(loaded, "fill-mask", tokenizer=copy.deepcopy(group.tokenizer))
    found = Answers()
    single, batch = _call(loaded, pipe, texts, top_k=5), _batched(loaded, pipe, texts, top_k=5)
    for text, alone, together in zip(texts, single, batch, strict=True):
        encoded = group.tokenizer(text, return_tensors="pt").to(group.device)
        inputs = {k: encoded[k] for k in ("input_ids", "attention_mask")}
        at = int((encoded["input_ids"][0] == group.tokenizer.mask_token_id).nonzero()[0])
        found.add(loaded.forward(**inputs).logits[0][at].softmax(-1), [(a["token"], a["score"]) for a in alone])
        rows = Rows(tokens=(tuple(encoded["input_ids"][0].tolist()),))
        r, e = group.reference_outputs(rows)[0][at], group.eager_outputs(rows)[0][at]
        for answer in (alone, together):
            found.judge(r, e, [(a["token"], a["score"]) for a in answer])
    found.record(report, "fill-mask")


def _feature_extraction(group: Group, loaded: Loaded, report: Report, texts: list[str], made: Made) -> None:
    """feature-extraction: the first output tensor; row by row, and as one padded batch at the valid positions."""
    pipe = _pipeline(loaded, "feature-extraction", tokenizer=copy.deepcopy(group.tokenizer))
    found = Answers()
    batch = _batched(loaded, pipe, texts, return_tensors=True)
    for text, together in zip(texts, batch, strict=True):
        alone = torch.as_tensor(_call(loaded, pipe, text, return_tensors=True))[0]
        encoded = group.tokenizer(text, return_tensors="pt").to(group.device)
        own = loaded.forward(**dict(encoded)).last_hidden_state[0].cpu()
        found.compared += own.numel()
        found.apart = max(found.apart, float((alone.cpu().double() - own.double()).abs().max()))
        rows = Rows(tokens=(tuple(encoded["input_ids"][0].tolist()),))
        r, e = (x[0].double().cpu() for x in (group.reference_outputs(rows), group.eager_outputs(rows)))
        # pads stand on one side, whichever: the row is found where it fits
        o = torch.as_tensor(together)[0].double().cpu()
        fits = min(float((part - r).abs().max()) for part in (o[: len(r)], o[len(o) - len(r) :]))
        found.margin = max(found.margin, fits / (4 * float((e - r).abs().max()) + 1e-5))
    found.record(report, "feature-extraction")


def _image_classification(group: Group, loaded: Loaded, report: Report, texts: list[str], made: Made) -> None:
    """image-classification: softmax over the labels, best five, from PIL images through the image processor; one by
    one, and as one batch."""
    from PIL import Image

    generator = torch.Generator().manual_seed(group.spec.seed)
    size = group.source.image_size
    drawn = torch.randint(0, 256, (4, size, size, 3), generator=generator, dtype=torch.uint8)
    images = [Image.fromarray(x.numpy()) for x in drawn]
    with under_test("pipeline"):
        processor = transformers.AutoImageProcessor.from_pretrained(group.checkpoint.location)
    pipe = _pipeline(loaded, "image-classification", image_processor=processor)
    found = Answers()
    ids = {label: i for i, label in loaded.model.config.id2label.items()}
    single, batch = _call(loaded, pipe, images, top_k=5), _batched(loaded, pipe, images, top_k=5)
    for pixels, alone, together in zip(drawn, single, batch, strict=True):
        values = _normalized(pixels, processor)
        own = loaded.forward(pixel_values=values.to(group.device, group.dtype)).logits[0].float().softmax(-1)
        found.add(own, [(ids[a["label"]], a["score"]) for a in alone])
        rows = Rows(images=values.float())
        r, e = group.reference_outputs(rows)[0][0], group.eager_outputs(rows)[0][0]
        for answer in (alone, together):
            found.judge(r, e, [(ids[a["label"]], a["score"]) for a in answer])
    found.record(report, "image-classification")


def _normalized(pixels: torch.Tensor, processor: Any) -> torch.Tensor:
    """(1, 3, height, width) from (height, width, 3) bytes of the model's own size: (x / 255 - mean) / std."""
    x = pixels.permute(2, 0, 1)[None].double() * float(processor.rescale_factor)
    mean, std = (
        torch.tensor(v, dtype=torch.float64)[None, :, None, None] for v in (processor.image_mean, processor.image_std)
    )
    return ((x - mean) / std).float()


_PIPELINES: dict[str, Callable[[Group, Loaded, Report, list[str], Made], None]] = {
    "causal-lm": _text_generation,
    "seq2seq-lm": _no_pipeline,
    "masked-lm": _fill_mask,
    "feature-extraction": _feature_extraction,
    "image-classification": _image_classification,
}
