"""The text-classification pipeline around a probe of an encoder with a new head.

In: a load group of a masked language model, texts. Out: answers whose class or score is not what softmax, sigmoid or
nothing makes of our own forward over ids of our own: of one text, of a padded batch, of pairs of texts (with a
tokenizer that says which of two a token is of), for each problem type and each function that a caller asks for.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import transformers

from compat.worker import stack_api
from compat.worker.answers import records
from compat.worker.calls import under_test
from compat.worker.classifier import LABELS, classifier, small
from compat.worker.group import Group
from compat.worker.report import Report

TOLERANCE = 1e-4
"""Of a score: a padded batch of fp32 is off by 1e-6 or so, another function or another text by 0.01 and more."""

FUNCTIONS = {"softmax": lambda x: x.softmax(-1), "sigmoid": torch.sigmoid, "none": lambda x: x}
BY_PROBLEM = (
    (None, "softmax"),
    ("single_label_classification", "softmax"),
    ("multi_label_classification", "sigmoid"),
    ("regression", "none"),
)

Text = str | dict[str, str]
Question = tuple[str, list[Text], str | None, str, dict[str, Any]]
"""What it is called, the texts, the problem type, our function, the settings of the call."""


class Found(NamedTuple):
    """Answers that differ, those compared, and what was seen of those that differ, by question."""

    differing: int
    compared: int
    notes: dict[str, list[str]]


def asked(group: Group) -> bool:
    """Whether a head costs little and says something: probes in fp32, in no mode, whose family has such a class."""
    return small(group) and stack_api.classifier_class(group.master.config) is not None


def judge(group: Group, report: Report, texts: list[str]) -> None:
    """Put the counts into `report`; worked out once a group, with eager attention. Raises StackError."""
    found: Found = group.once("text classification", lambda: _judged(group, texts))
    report.measure("classification_differences", found.differing, unit="answers")
    report.measure("classification_compared", found.compared, unit="answers", better="higher")
    if found.notes:
        report.facts["classification_notes"] = found.notes


def _judged(group: Group, texts: list[str]) -> Found:
    model = _with_head(group)
    tokenizer = _pairing(group, model)
    with under_test("pipeline"):
        pipe = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device=None)
    short, long = texts[-1], texts[0]
    pair: Text = {"text": short, "text_pair": " ".join(long.split()[:6])}
    one: list[Text] = [short]
    questions: list[Question] = [(f"problem {p}", one, p, function, {}) for p, function in BY_PROBLEM]
    questions += [(f"function {name}", one, None, name, {"function_to_apply": name}) for name in FUNCTIONS]
    questions += [
        ("batch", list(texts), None, "softmax", {"batch_size": len(texts)}),
        ("pair", [pair], None, "softmax", {}),
        ("pairs", [pair, {"text": short, "text_pair": long}], None, "softmax", {"batch_size": 2}),
    ]
    differing = compared = 0
    notes = {}
    for what, given, problem, function, settings in questions:
        with _problem(model, problem), under_test("pipeline"), torch.no_grad():
            answers = pipe(given, top_k=None, **settings)
        own = [FUNCTIONS[function](_logits(group, model, text)) for text in given]
        names = [model.config.id2label[i] for i in range(LABELS)]
        off = differences(own, names, answers)
        compared += LABELS * len(given)
        differing += off
        if off:
            notes[what] = [str([x.tolist() for x in own])[:300], str(answers)[:300]]
    return Found(differing, compared, notes)


def differences(own: list[torch.Tensor], names: list[str], answers: Any) -> int:
    """Scores that are not those of `own`, (labels,) a text, by name and order, best first; missing ones count."""
    given = list(answers) if isinstance(answers, (list, tuple)) else []
    wrong = abs(len(given) - len(own)) * len(names)
    for scores, answer in zip(own, given, strict=False):
        said = [(r.get("label"), r.get("score")) for r in records(answer)]
        expected = [(names[i], float(scores[i])) for i in scores.argsort(descending=True).tolist()]
        wrong += abs(len(said) - len(expected))
        for (label, score), (name, value) in zip(said, expected, strict=False):
            near = isinstance(score, (int, float)) and abs(score - value) <= TOLERANCE * max(1.0, abs(value))
            wrong += label != name or not near
    return wrong


@contextlib.contextmanager
def _problem(model: Any, problem: str | None) -> Iterator[None]:
    """While the block runs, the model's config names this type of problem."""
    kept, model.config.problem_type = model.config.problem_type, problem
    try:
        yield
    finally:
        model.config.problem_type = kept


def _with_head(group: Group) -> Any:
    """The encoder under a new head, whose weights are drawn so that labels differ. Raises StackError."""
    model, missing = classifier(group)
    generator = torch.Generator().manual_seed(group.spec.seed + 41)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in missing:
                noise = torch.randn(parameter.shape, generator=generator)
                scale = 0.1 if parameter.ndim < 2 else 1 / math.sqrt(parameter.shape[-1])
                parameter.copy_(scale * noise)
    return model


def _pairing(group: Group, model: Any) -> Any:
    """The probe's tokenizer, which ends each of two texts and tells a model that reads it of which one a token is."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(group.tokenizer)
    if stack_api.accepts(model, "token_type_ids"):
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B:1 {end}:1", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    return tokenizer


def _logits(group: Group, model: Any, text: Text) -> torch.Tensor:
    """(labels,) fp32 of our own ids of a text, or of a pair."""
    parts = [text] if isinstance(text, str) else [text["text"], text["text_pair"]]
    ids: list[int] = []
    kinds: list[int] = []
    for kind, part in enumerate(parts):
        row = [group.tokenizer.convert_tokens_to_ids(word) for word in part.split()]
        ids += [*row, group.tokenizer.eos_token_id]
        kinds += [kind] * (len(row) + 1)
    arguments = {"input_ids": torch.tensor([ids], device=group.device)}
    if stack_api.accepts(model, "token_type_ids"):
        arguments["token_type_ids"] = torch.tensor([kinds], device=group.device)
    with under_test("forward"), torch.no_grad():
        logits: torch.Tensor = model(**arguments).logits[0].float().cpu()
    return logits
