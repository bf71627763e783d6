"""The pipelines of each task against generate, forward and the documented post-processing.

In: a load group, a backend, texts, and what the trials of the `generation` check made of the same texts. Out: counts
in the report. Text generation has a module of its own. Tasks that do not generate: answers one by one against a
forward, and a batch of mixed lengths against the reference of each row alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from compat.worker import stack_api
from compat.worker.calls import under_test
from compat.worker.group import Group, Loaded
from compat.worker.inputs import Rows
from compat.worker.pipeline_calls import SHORT_TOKENS, Made, call, make
from compat.worker.report import Report
from compat.worker.text_pipeline import Differences, compare_ids, text_generation


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
    theirs = [int(t) for t in answer[0]["generated_token_ids"]][1 : SHORT_TOKENS + 1]
    found = Differences()
    free = SHORT_TOKENS - (alone.settings.forced_eos_token_id is not None)
    compare_ids("one", [alone.new(0)[:free]], [theirs[:free]], found)
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
    answers: list[Any] = call(loaded, pipe, items, batch_size=len(items), **settings)
    return answers


def _fill_mask(group: Group, loaded: Loaded, report: Report, texts: list[str], made: Made) -> None:
    """fill-mask: softmax over the vocabulary at the mask, best five; row by row, and as one padded batch."""
    mask = group.tokenizer.mask_token
    texts = [" ".join([*t.split()[:4], mask, *t.split()[4:]]) for t in texts]
    pipe = make(loaded, "fill-mask", tokenizer=copy.deepcopy(group.tokenizer))
    found = Answers()
    single, batch = call(loaded, pipe, texts, top_k=5), _batched(loaded, pipe, texts, top_k=5)
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
    pipe = make(loaded, "feature-extraction", tokenizer=copy.deepcopy(group.tokenizer))
    found = Answers()
    batch = _batched(loaded, pipe, texts, return_tensors=True)
    for text, together in zip(texts, batch, strict=True):
        alone = torch.as_tensor(call(loaded, pipe, text, return_tensors=True))[0]
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
    pipe = make(loaded, "image-classification", image_processor=processor)
    found = Answers()
    ids = {label: i for i, label in loaded.model.config.id2label.items()}
    single, batch = call(loaded, pipe, images, top_k=5), _batched(loaded, pipe, images, top_k=5)
    for pixels, alone, together in zip(drawn, single, batch, strict=True):
        values = _normalized(pixels, processor)
        own = loaded.forward(pixel_values=values.to(group.device, group.dtype)).logits[0].float().softmax(-1)
        found.add(own, [(ids[a["label"]], a["score"]) for a in alone])
        rows = Rows(images=values.float())
        r, e = group.reference_outputs(rows)[0][0], group.eager_outputs(rows)[0][0]
        for answer in (alone, together):
            found.judge(r, e, [(ids[a["label"]], a["score"]) for a in answer])
    found.record(report, "image-classification")


def _audio_classification(group: Group, loaded: Loaded, report: Report, texts: list[str], made: Made) -> None:
    """audio-classification: softmax over the labels, best five, from raw samples through the feature extractor; one by
    one, and as one batch."""
    rows = group.source.rows(group.spec.seed, [0] * 4).images
    assert rows is not None
    sounds = [(3.0 + 2.0 * x).numpy() for x in rows]  # of another level and mean than the model wants
    with under_test("pipeline"):
        extractor = transformers.AutoFeatureExtractor.from_pretrained(group.checkpoint.location)
    pipe = make(loaded, "audio-classification", feature_extractor=extractor)
    found = Answers()
    ids = {label: i for i, label in loaded.model.config.id2label.items()}
    single, batch = call(loaded, pipe, sounds, top_k=5), _batched(loaded, pipe, sounds, top_k=5)
    for sound, alone, together in zip(sounds, single, batch, strict=True):
        values = _levelled(torch.from_numpy(sound), extractor)
        own = loaded.forward(input_values=values.to(group.device, group.dtype)).logits[0].float().softmax(-1)
        found.add(own, [(ids[a["label"]], a["score"]) for a in alone])
        r, e = (
            x[0][0] for x in (group.reference_outputs(Rows(images=values)), group.eager_outputs(Rows(images=values)))
        )
        for answer in (alone, together):
            found.judge(r, e, [(ids[a["label"]], a["score"]) for a in answer])
    found.record(report, "audio-classification")


def _levelled(sound: torch.Tensor, extractor: Any) -> torch.Tensor:
    """(1, samples) fp32 from (samples,): mean 0 and variance 1 where the extractor says so, in its own order of
    roundings."""
    import numpy

    x = sound.numpy()
    if extractor.do_normalize:
        x = (x - x.mean()) / numpy.sqrt(x.var() + 1e-7)
    return torch.from_numpy(x)[None]


def _normalized(pixels: torch.Tensor, processor: Any) -> torch.Tensor:
    """(1, 3, height, width) from (height, width, 3) bytes of the model's own size: (x / 255 - mean) / std."""
    x = pixels.permute(2, 0, 1)[None].double() * float(processor.rescale_factor)
    mean, std = (
        torch.tensor(v, dtype=torch.float64)[None, :, None, None] for v in (processor.image_mean, processor.image_std)
    )
    return ((x - mean) / std).float()


_PIPELINES: dict[str, Callable[[Group, Loaded, Report, list[str], Made], None]] = {
    "causal-lm": text_generation,
    "seq2seq-lm": _no_pipeline,
    "masked-lm": _fill_mask,
    "feature-extraction": _feature_extraction,
    "image-classification": _image_classification,
    "audio-classification": _audio_classification,
}
