"""paged: does continuous batching over a paged cache write the tokens that the model chooses?

`generate_batch` takes all prompts at once, keeps their keys and values in blocks of a common pool and lets requests
join and leave. Prompts of unequal length go through it greedily. Every request has to come back, finished, with the
number of tokens that was asked for; each token is judged along the way that it took by the fp64 reference of its row
alone: one other than the reference's best is excused within 4 max|e - r| (docs/criteria.md), e being eager's error.
"""

from __future__ import annotations

from typing import Any

import torch

from compat.worker import stack_api
from compat.worker.calls import Unavailable, under_test
from compat.worker.dispatch import forced_sdpa_kernel, synchronize
from compat.worker.group import Group
from compat.worker.report import Report
from compat.worker.teacher import Teacher

LENGTHS = (24, 21, 15, 9)
"""Of the prompts: with NEW_TOKENS beyond the probes' windows of 32."""

NEW_TOKENS = 16
MAX_BATCH_TOKENS = 64
"""Room of a step: less than all prompts together, so that one of them is prefilled in two parts."""


def run(group: Group, attention: dict[str, Any]) -> Report:
    """See the module's docstring. Raises StackError, Unavailable, NoYardstick."""
    report = Report(seed=group.spec.seed)
    loaded = group.loaded(attention)
    if not stack_api.batches_continuously(loaded.model):
        raise Unavailable("this version of transformers has no generate_batch: it came with 4.53")
    prompts = [list(row) for row in group.source.rows(1000 * group.spec.seed + 950, list(LENGTHS)).tokens]
    loaded.activate()
    before = stack_api.effective_attention(loaded.model)
    with under_test("generate_batch"), forced_sdpa_kernel(attention["sdpa_kernel"]), torch.no_grad():
        answers = stack_api.generate_batch(loaded.model, prompts, NEW_TOKENS, MAX_BATCH_TOKENS)
        synchronize(group.device)
    after = stack_api.effective_attention(loaded.model)
    report.measure("settings_changed", int(after != before), unit="settings")
    if after != before:
        report.facts["settings_changed"] = f"attention: {before} -> {after}"
        with under_test("switch"):
            stack_api.switch_attention(loaded.model, before)
    _record(group, prompts, answers, report)
    loaded.activate()  # the yardstick may have run meanwhile
    return report


def _record(group: Group, prompts: list[list[int]], answers: list[stack_api.Answer], report: Report) -> None:
    """Requests, lengths and tokens, into `report`."""
    unfinished = [f"prompt of {len(p)} tokens: no answer" for p in prompts if not any(a.prompt == p for a in answers)]
    unfinished += [f"{a.status}: {a.error}"[:200] for a in answers if a.error or not a.finished]
    report.measure("requests_unfinished", len(unfinished), unit="requests")
    if unfinished:
        report.facts["unfinished"] = unfinished[:4]
    judged = [a for a in answers if a.prompt in prompts]
    report.measure("foreign_requests", len(answers) - len(judged), unit="requests")
    lengths = [abs(len(a.tokens) - NEW_TOKENS) for a in judged]
    report.measure("length_differences", sum(lengths) + NEW_TOKENS * max(0, len(prompts) - len(judged)), unit="tokens")
    teacher = Teacher(group)
    unexcused = decisive = flipped = compared = 0
    worst = 0.0
    for answer in judged:
        if not answer.tokens:
            continue
        r, e = teacher.logits(answer.prompt, None, answer.tokens)
        allowed = 4 * (e - r).abs().amax(-1)
        best = r.topk(2, -1).values
        chosen = torch.tensor(answer.tokens, device=r.device)[:, None]
        gap = best[:, 0] - r.gather(1, chosen)[:, 0]
        compared += len(answer.tokens)
        decisive += int((best[:, 0] - best[:, 1] > allowed).sum())
        flipped += int((gap > 0).sum())
        unexcused += int((~(gap <= allowed)).sum())
        worst = max(worst, float((gap / allowed.clamp_min(torch.finfo(r.dtype).tiny)).max()))
    report.measure("compared_tokens", compared, unit="tokens", better="higher")
    report.measure("unexcused_tokens", unexcused, unit="tokens")
    report.measure("decisive_tokens", decisive, unit="tokens", better="higher")
    report.measure("flipped_tokens", flipped, unit="tokens", better="none")
    report.measure("worst_margin", worst if compared else None, unit="of allowed")
