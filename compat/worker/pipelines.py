"""The pipelines of each task against generate, forward and the documented post-processing.

In: a load group, a backend, texts, and what the trials of the `generation` check made of the same texts. Out: counts
in the report. Text generation, and pictures and sounds, have modules of their own. Tasks that do not generate: answers
one by one against a forward, and a batch of mixed lengths against the reference of each row alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from compat.worker import stack_api, text_classification
from compat.worker.answers import Differences, compare_ids, token_ids
from compat.worker.group import Group, Loaded
from compat.worker.inputs import Rows
from compat.worker.media_pipelines import audio_classification, image_classification
from compat.worker.pipeline_calls import SHORT_TOKENS, Made, batched, call, make
from compat.worker.report import Report
from compat.worker.scored_answers import Answers, ranked
from compat.worker.text_pipeline import text_generation

CUT_TOKENS = 7
"""Length to which a text is cut: shorter than every prompt."""


def run(group: Group, loaded: Loaded, report: Report, texts: list[str], made: Made) -> None:
    """Judge the pipeline of the group's task. Raises StackError."""
    _PIPELINES[group.task](group, loaded, report, texts, made)


def _no_pipeline(group: Group, loaded: Loaded, report: Report, texts: list[str], made: Made) -> None:
    """Encoder-decoder: transformers 5 has no text2text pipeline; what generate did is judged by the trials."""
    if "text2text-generation" not in stack_api.pipeline_tasks():
        report.facts["pipeline"] = "text2text-generation is not a pipeline of this stack"
        return
    alone = made["alone"]
    assert alone is not None
    settings = {"max_new_tokens": SHORT_TOKENS, "min_new_tokens": SHORT_TOKENS, "do_sample": False}
    pipe = make(loaded, "text2text-generation", tokenizer=copy.deepcopy(group.tokenizer))
    answer = call(loaded, pipe, texts[:1], return_tensors=True, **settings)
    theirs = [ids[1 : SHORT_TOKENS + 1] for ids in token_ids(answer)]
    found = Differences()
    free = SHORT_TOKENS - (alone.settings.forced_eos_token_id is not None)
    compare_ids("one", [alone.new(0)[:free]], [t[:free] for t in theirs], found)
    report.facts["pipeline"] = "text2text-generation"
    report.measure("pipeline_differences", found.tokens, unit="tokens")
    report.measure("pipeline_compared", found.compared, unit="tokens", better="higher")


def _fill_mask(group: Group, loaded: Loaded, report: Report, texts: list[str], made: Made) -> None:
    """fill-mask: softmax over the vocabulary at each mask, best five, or best of the words that are asked for; row by
    row, and as one padded batch. Then, once a group, the class of a text under a new head."""
    pipe = make(loaded, "fill-mask", tokenizer=copy.deepcopy(group.tokenizer))
    found = Answers()
    texts = [_masked(group, t, (4,)) for t in texts]
    single = found.each(call(loaded, pipe, texts, top_k=5), len(texts))
    batch = found.each(batched(loaded, pipe, texts, top_k=5), len(texts))
    for text, alone, together in zip(texts, single, batch, strict=True):
        _masks_judged(group, loaded, found, text, [alone, together])
    twice = _masked(group, texts[-1], (1,))
    _masks_judged(group, loaded, found, twice, [call(loaded, pipe, twice, top_k=5)])
    among = tuple(sorted({int(i) for i in group.tokenizer(texts[0], add_special_tokens=False)["input_ids"]})[-3:])
    targets = group.tokenizer.convert_ids_to_tokens(list(among))
    _masks_judged(group, loaded, found, texts[-1], [call(loaded, pipe, texts[-1], targets=targets)], among)
    found.record(report, "fill-mask")
    if text_classification.asked(group):
        text_classification.judge(group, report, texts)


def _masked(group: Group, text: str, places: tuple[int, ...]) -> str:
    """`text` with a mask before each of the words that stand at `places`."""
    words = text.split()
    for place in reversed(places):
        words.insert(place, group.tokenizer.mask_token)
    return " ".join(words)


def _masks_judged(
    group: Group, loaded: Loaded, found: Answers, text: str, answers: list[Any], among: tuple[int, ...] = ()
) -> None:
    """The first of `answers` to a text against our own forward, all of them against the reference: a list of records
    for one mask, a list of such lists for more."""
    encoded = group.tokenizer(text, return_tensors="pt").to(group.device)
    inputs = {k: encoded[k] for k in ("input_ids", "attention_mask")}
    places = (encoded["input_ids"][0] == group.tokenizer.mask_token_id).nonzero()[:, 0].tolist()
    own = loaded.forward(**inputs).logits[0]
    rows = Rows(tokens=(tuple(encoded["input_ids"][0].tolist()),))
    r, e = group.reference_outputs(rows)[0], group.eager_outputs(rows)[0]
    for number, answer in enumerate(answers):
        parts = found.each([answer] if len(places) == 1 else answer, len(places))
        for at, part in zip(places, parts, strict=True):
            best = ranked(part, lambda record: record.get("token"))
            if number == 0:
                found.add(own[at].softmax(-1), best, among=among)
            found.judge(r[at], e[at], best, among)


def _feature_extraction(group: Group, loaded: Loaded, report: Report, texts: list[str], made: Made) -> None:
    """feature-extraction: the first output tensor; row by row, cut to a length, and as one padded batch at the valid
    positions."""
    pipe = make(loaded, "feature-extraction", tokenizer=copy.deepcopy(group.tokenizer))
    found = Answers()
    batch = found.each(batched(loaded, pipe, texts, return_tensors=True), len(texts))
    for text, together in zip(texts, batch, strict=True):
        encoded = group.tokenizer(text, return_tensors="pt").to(group.device)
        _features(loaded, found, encoded, call(loaded, pipe, text, return_tensors=True))
        rows = Rows(tokens=(tuple(encoded["input_ids"][0].tolist()),))
        r, e = (x[0].double().cpu() for x in (group.reference_outputs(rows), group.eager_outputs(rows)))
        o = _positions(together)
        if o.dim() != 2 or len(o) < len(r) or o.shape[1] != r.shape[1]:
            found.differing += 1
            continue
        # pads stand on one side, whichever: the row is found where it fits
        fits = min(float((part - r).abs().max()) for part in (o[: len(r)], o[len(o) - len(r) :]))
        found.margin = max(found.margin, fits / (4 * float((e - r).abs().max()) + 1e-5))
    tokenizer = copy.deepcopy(group.tokenizer)
    tokenizer.model_max_length = CUT_TOKENS
    pipe = make(loaded, "feature-extraction", tokenizer=copy.deepcopy(tokenizer))
    encoded = tokenizer(texts[0], return_tensors="pt", truncation=True).to(group.device)
    _features(loaded, found, encoded, call(loaded, pipe, texts[0], return_tensors=True, truncation=True))
    found.record(report, "feature-extraction")


def _features(loaded: Loaded, found: Answers, encoded: Any, answer: Any) -> None:
    """An answer of (1, positions, features) against our own forward of the ids `encoded`."""
    own = loaded.forward(**dict(encoded)).last_hidden_state[0].double().cpu()
    theirs = _positions(answer)
    found.compared += own.numel()
    if theirs.shape != own.shape:
        found.differing += own.numel()
    else:
        found.apart = max(found.apart, float((theirs - own).abs().max()))


def _positions(answer: Any) -> torch.Tensor:
    """(positions, features) of an answer of one text; empty where it is none."""
    if isinstance(answer, torch.Tensor) and answer.dim() == 3 and len(answer) == 1:
        return answer[0].double().cpu()
    return torch.empty(0, dtype=torch.float64)


_PIPELINES: dict[str, Callable[[Group, Loaded, Report, list[str], Made], None]] = {
    "causal-lm": text_generation,
    "seq2seq-lm": _no_pipeline,
    "masked-lm": _fill_mask,
    "feature-extraction": _feature_extraction,
    "image-classification": image_classification,
    "audio-classification": audio_classification,
}
