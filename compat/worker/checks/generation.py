"""generation: does generate follow the model, and does the pipeline follow generate?

Causal and encoder-decoder models: a padded batch is generated greedily, and every token is judged by the fp64
reference on the same prefix, unpadded: a token other than the reference's best is excused when the margin is within
4 max|e - r| (docs/criteria.md). Then pipeline and generate get the same prompts and the same explicit settings (greedy
on one prompt and on a padded batch, nucleus sampling under one seed) and must give the same ids. Where the two resolve
different defaults, the differences are recorded.
Other tasks: the pipeline against forward plus the documented post-processing.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers

from compat.worker import stack_api
from compat.worker.calls import under_test
from compat.worker.dispatch import forced_sdpa_kernel
from compat.worker.group import Group, Loaded
from compat.worker.inputs import FIRST_TOKEN, Rows, english_text
from compat.worker.report import Report

NEW_TOKENS = 32
SHORT_TOKENS = 4
PROMPT_WORDS = (24, 21, 15, 9)
NUCLEUS = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 50}


def run(group: Group, attention: dict[str, Any]) -> Report:
    """See the module's docstring. Raises StackError, Unavailable, NoYardstick."""
    report = Report(seed=group.spec.seed)
    loaded = group.loaded(attention)
    if group.task in ("causal-lm", "seq2seq-lm"):
        _teacher_forced(group, loaded, report)
    _PIPELINES[group.task](group, loaded, report)
    return report


def prompts(group: Group) -> list[str]:
    """Texts of unequal length: words of the probe's vocabulary, or the start of English paragraphs."""
    if group.row["source"] == "probe":
        generator = torch.Generator().manual_seed(group.spec.seed + 77)
        drawn = [torch.randint(FIRST_TOKEN, group.source.vocab, (n,), generator=generator) for n in PROMPT_WORDS]
        return [" ".join(f"w{int(i)}" for i in ids) for ids in drawn]
    paragraphs = [p for p in english_text().split("\n\n") if p.strip()]
    return [" ".join(p.split()[:n]) for p, n in zip(paragraphs, PROMPT_WORDS, strict=False)]


def _encoded(group: Group, texts: list[str]) -> Any:
    side = "left" if group.task == "causal-lm" else "right"
    return group.tokenizer(texts, return_tensors="pt", padding=True, padding_side=side).to(group.device)


def _settings(group: Group, new_tokens: int, **more: Any) -> dict[str, Any]:
    """Explicit settings: fixed length, so that no row ends early."""
    return {
        "max_new_tokens": new_tokens,
        "min_new_tokens": new_tokens,
        "do_sample": False,
        "pad_token_id": group.tokenizer.pad_token_id,
        **more,
    }


def _arguments(encoded: Any) -> dict[str, torch.Tensor]:
    return {k: encoded[k] for k in ("input_ids", "attention_mask")}


def _teacher_forced(group: Group, loaded: Loaded, report: Report) -> None:
    """Judge each greedily generated token by the reference on its own prefix."""
    encoded = _encoded(group, prompts(group))
    out = loaded.generate(**_arguments(encoded), **_settings(group, NEW_TOKENS))
    eos = _token_ids(loaded.model.generation_config.eos_token_id)
    unexcused = decisive = flipped = 0
    worst = 0.0
    for i in range(out.shape[0]):
        prompt = encoded["input_ids"][i][encoded["attention_mask"][i].bool()].tolist()
        new = (out[i, encoded["input_ids"].shape[1] :] if group.task == "causal-lm" else out[i, 1:]).tolist()
        if group.task == "causal-lm":
            rows = Rows(tokens=(tuple(prompt + new[:-1]),))
        else:
            rows = Rows(tokens=(tuple(prompt),), decoder=((int(out[i, 0]), *new[:-1]),))
        r = group.reference_outputs(rows)[0][-len(new) :].double()
        e = group.eager_outputs(rows)[0][-len(new) :].double()
        allowed = 4 * (e - r).abs().amax(-1)  # (new tokens,)
        if eos:
            r = r.clone()
            r[:, eos] = -torch.inf  # min_new_tokens forbids them
        best = r.topk(2, dim=-1)
        picked = r.gather(1, torch.tensor(new, device=r.device)[:, None])[:, 0]
        judged = torch.isfinite(picked)  # a forced end of sequence is nobody's choice
        gap = torch.where(judged, best.values[:, 0] - picked, 0.0)
        decisive += int((best.values[:, 0] - best.values[:, 1] > allowed).sum())
        flipped += int((gap > 0).sum())
        unexcused += int((gap > allowed).sum())
        worst = max(worst, float((gap / allowed.clamp_min(torch.finfo(r.dtype).tiny)).max()))
    report.measure("unexcused_tokens", unexcused, unit="tokens")
    report.measure("decisive_tokens", decisive, unit="tokens", better="higher")
    report.measure("flipped_tokens", flipped, unit="tokens", better="none")
    report.measure("worst_margin", worst, unit="of allowed")


def _token_ids(value: Any) -> list[int]:
    return [] if value is None else [int(v) for v in (value if isinstance(value, list) else [value])]


def _pipeline(group: Group, loaded: Loaded, task: str, **parts: Any) -> Any:
    loaded.activate()
    with under_test("pipeline"):
        return transformers.pipeline(task, model=loaded.model, device=None, **parts)


def _call(loaded: Loaded, pipe: Any, *arguments: Any, **settings: Any) -> Any:
    loaded.activate()
    kernel = loaded.attention["sdpa_kernel"]
    with under_test("pipeline"), forced_sdpa_kernel(kernel), torch.no_grad():
        return pipe(*arguments, **settings)


def _text_generation(group: Group, loaded: Loaded, report: Report) -> None:
    texts = prompts(group)
    pipe = _pipeline(group, loaded, "text-generation", tokenizer=group.tokenizer)
    report.facts["pipeline"] = "text-generation"
    report.facts["defaults_differ"] = _defaults_differ(loaded, pipe, texts[0])
    differing = compared = 0
    greedy = _settings(group, SHORT_TOKENS)
    # a single prompt goes in as text: for a list the pipeline makes a DataLoader, which draws from torch's generator
    trials: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
        (texts[0], greedy, {}),
        (texts, greedy, {"batch_size": len(texts)}),
        (texts[-1], greedy | NUCLEUS, {}),
    ]
    for given, settings, call in trials:
        encoded = _encoded(group, [given] if isinstance(given, str) else given)
        transformers.set_seed(group.spec.seed)
        own = loaded.generate(**_arguments(encoded), **settings)[:, encoded["input_ids"].shape[1] :].tolist()
        transformers.set_seed(group.spec.seed)
        answer = _call(loaded, pipe, given, return_tensors=True, **settings, **call)
        answers = [answer] if isinstance(given, str) else answer
        theirs = [a[0]["generated_token_ids"][-SHORT_TOKENS:] for a in answers]
        compared += sum(len(o) for o in own)
        differing += sum(a != b for o, t in zip(own, theirs, strict=True) for a, b in zip(o, list(t), strict=True))
    report.measure("pipeline_differences", differing, unit="tokens")
    report.measure("pipeline_compared", compared, unit="tokens", better="higher")


def _defaults_differ(loaded: Loaded, pipe: Any, text: str) -> dict[str, list[Any]]:
    """Generation settings that the pipeline hands to `generate` when its user gives none, where they differ from the
    model's own: name -> [model's, pipeline's]. Seen by standing in for `generate` during one call."""
    model, seen = loaded.model, {}

    def stand_in(*arguments: Any, **keywords: Any) -> torch.Tensor:
        seen.update(keywords)
        ids: torch.Tensor = keywords["input_ids"] if keywords.get("input_ids") is not None else arguments[0]
        return ids

    model.generate = stand_in
    try:
        _call(loaded, pipe, text, return_tensors=True)
    finally:
        del model.generate
    given = {k: v for k, v in seen.items() if not isinstance(v, torch.Tensor)}
    config = given.pop("generation_config", None)
    theirs = (config.to_diff_dict() if config is not None else {}) | given
    own = model.generation_config.to_dict()
    return {
        k: [own.get(k), v]
        for k, v in sorted(theirs.items())
        if own.get(k) != v and isinstance(v, (bool, int, float, str, list)) and k != "transformers_version"
    }


def _no_pipeline(group: Group, loaded: Loaded, report: Report) -> None:
    """Encoder-decoder: transformers 5 has no text2text pipeline; what generate did is judged above."""
    if "text2text-generation" not in stack_api.pipeline_tasks():
        report.facts["pipeline"] = "text2text-generation is not a pipeline of this stack"
        return
    texts = prompts(group)[:1]
    pipe = _pipeline(group, loaded, "text2text-generation", tokenizer=group.tokenizer)
    settings = _settings(group, SHORT_TOKENS)
    own = loaded.generate(**_arguments(_encoded(group, texts)), **settings)[0].tolist()
    answer = _call(loaded, pipe, texts, return_tensors=True, **settings)
    theirs = [int(t) for t in answer[0]["generated_token_ids"]]
    report.facts["pipeline"] = "text2text-generation"
    report.measure("pipeline_differences", sum(a != b for a, b in zip(own, theirs, strict=False)), unit="tokens")
    report.measure("pipeline_compared", min(len(own), len(theirs)), unit="tokens", better="higher")


def _fill_mask(group: Group, loaded: Loaded, report: Report) -> None:
    """fill-mask: softmax over the vocabulary at the mask, best five."""
    mask = group.tokenizer.mask_token
    texts = [" ".join([*t.split()[:4], mask, *t.split()[4:]]) for t in prompts(group)]
    pipe = _pipeline(group, loaded, "fill-mask", tokenizer=group.tokenizer)
    differing = 0
    apart = 0.0
    for text, answer in zip(texts, _call(loaded, pipe, texts, top_k=5), strict=True):
        encoded = group.tokenizer(text, return_tensors="pt").to(group.device)
        logits = loaded.forward(**_arguments(encoded)).logits[0]
        at = int((encoded["input_ids"][0] == group.tokenizer.mask_token_id).nonzero()[0])
        own = logits[at].softmax(-1)
        wrong, distance = _ranked(own, [(a["token"], a["score"]) for a in answer])
        differing, apart = differing + wrong, max(apart, distance)
    _record(report, "fill-mask", differing, 5 * len(texts), apart)


def _feature_extraction(group: Group, loaded: Loaded, report: Report) -> None:
    """feature-extraction: the first output tensor, row by row."""
    texts = prompts(group)
    pipe = _pipeline(group, loaded, "feature-extraction", tokenizer=group.tokenizer)
    apart = 0.0
    compared = 0
    for text in texts:
        theirs = torch.as_tensor(_call(loaded, pipe, text, return_tensors=True))[0]
        encoded = group.tokenizer(text, return_tensors="pt").to(group.device)
        own = loaded.forward(**dict(encoded)).last_hidden_state[0].cpu()
        compared += own.numel()
        apart = max(apart, float((theirs.cpu().double() - own.double()).abs().max()))
    _record(report, "feature-extraction", 0, compared, apart)


def _image_classification(group: Group, loaded: Loaded, report: Report) -> None:
    """image-classification: softmax over the labels, best five, from PIL images through the image processor."""
    from PIL import Image

    generator = torch.Generator().manual_seed(group.spec.seed)
    size = group.source.image_size
    drawn = torch.randint(0, 256, (4, size, size, 3), generator=generator, dtype=torch.uint8)
    images = [Image.fromarray(x.numpy()) for x in drawn]
    with under_test("pipeline"):
        processor = transformers.AutoImageProcessor.from_pretrained(group.checkpoint.location)
    pipe = _pipeline(group, loaded, "image-classification", image_processor=processor)
    differing = 0
    apart = 0.0
    for image, answer in zip(images, _call(loaded, pipe, images, top_k=5), strict=True):
        pixels = processor(images=image, return_tensors="pt")["pixel_values"].to(group.device, group.dtype)
        own = loaded.forward(pixel_values=pixels).logits[0].float().softmax(-1)
        ids = {label: i for i, label in loaded.model.config.id2label.items()}
        wrong, distance = _ranked(own, [(ids[a["label"]], a["score"]) for a in answer])
        differing, apart = differing + wrong, max(apart, distance)
    _record(report, "image-classification", differing, 5 * len(images), apart)


def _ranked(own: torch.Tensor, answer: list[tuple[int, float]]) -> tuple[int, float]:
    """(ranks at which the pipeline names another class than `own` probabilities do, largest difference of a score).
    Classes of exactly equal probability may stand in either order."""
    best = own.topk(len(answer))
    wrong = sum(float(own[i]) != float(p) for (i, _), p in zip(answer, best.values, strict=True))
    return wrong, max(abs(score - float(p)) for (_, score), p in zip(answer, best.values, strict=True))


def _record(report: Report, task: str, differing: int, compared: int, apart: float) -> None:
    report.facts["pipeline"] = task
    report.measure("pipeline_differences", differing, unit="answers")
    report.measure("pipeline_compared", compared, unit="answers", better="higher")
    report.measure("pipeline_score_difference", apart, unit="probability")


_PIPELINES = {
    "causal-lm": _text_generation,
    "seq2seq-lm": _no_pipeline,
    "masked-lm": _fill_mask,
    "feature-extraction": _feature_extraction,
    "image-classification": _image_classification,
}
