"""determinism: does the same input give the same answer, whatever ran before it or beside it?

One input, asked again and again: at once; under another seed of torch's generator, which an eval forward must not even
draw from; after calls that leave traces where something keeps state (a longer input, a padded batch, a generation, one
with attention weights asked for); as a row of a batch, alone, and in another order. On a CPU all but the last are
exact; elsewhere they are judged by the ratio of docs/criteria.md. The model, its inputs and torch's settings must be
afterwards what they were.
"""

from __future__ import annotations

from typing import Any

import torch

from compat.worker.calls import StackError
from compat.worker.group import Group, Loaded
from compat.worker.inputs import CLASSIFYING, Rows, padded, unpadded
from compat.worker.metrics import Yardstick
from compat.worker.process_settings import process_settings
from compat.worker.report import Report

LENGTH = 47
BATCH = 3
LONGER = 180
"""Longer than the other inputs: rotary tables, masks and caches grow for it, and must not stay so."""


def run(group: Group, attention: dict[str, Any]) -> Report:
    """See the module's docstring. Raises StackError, Unavailable, NoYardstick."""
    report = Report(seed=group.spec.seed)
    loaded = group.loaded(attention)
    rows = group.source.rows(1000 * group.spec.seed + 300, [LENGTH] * BATCH)
    yardstick = group.yardstick(rows)
    inputs = unpadded(rows, group.device, group.dtype)
    given = {k: v.clone() for k, v in inputs.items()}
    settings, versions = process_settings(), _versions(group, loaded)

    torch.manual_seed(group.spec.seed)
    drawn = _random_state(group.device)
    first = loaded(**inputs)
    report.measure("random_numbers_drawn", int(not torch.equal(drawn, _random_state(group.device))), unit="forwards")
    torch.manual_seed(group.spec.seed + 1)
    answers = {"repeated": loaded(**inputs)}
    history = _history(group, loaded, rows)
    answers["after other calls"] = loaded(**inputs)
    for name, answer in answers.items():
        report.measure(f"{name.replace(' ', '_')}_difference", _differing(answer, first), unit="elements")
    orders = _orders(loaded, inputs) if group.spec.at_least("standard") else {}
    report.measure("ratio_token", [_ratio(yardstick, x) for x in (first, *answers.values(), *orders.values())])
    report.measure("inputs_changed", sum(_differing(inputs[k], v) for k, v in given.items()), unit="elements")
    report.measure("parameters_written", _written(versions, _versions(group, loaded)), unit="parameters")
    now = process_settings()
    changed = {k: [v, now[k]] for k, v in settings.items() if now[k] != v}
    report.measure("settings_changed", len(changed), unit="settings")
    report.measure("left_in_training", int(loaded.model.training), unit="models")
    report.measure("compared_elements", first.numel(), unit="elements", better="higher")
    report.facts["history"] = history
    if changed:
        report.facts["settings_changed"] = changed
    return report


def _history(group: Group, loaded: Loaded, rows: Rows) -> list[str]:
    """Calls of other shapes and kinds, whose answers are judged by other checks; those that ran."""
    calls: dict[str, Any] = {}
    if group.task in CLASSIFYING:
        more = group.source.rows(1000 * group.spec.seed + 301, [0] * (BATCH + 2))
        calls["a larger batch"] = lambda: loaded.forward(**unpadded(more, group.device, group.dtype))
    else:
        long = group.source.rows(1000 * group.spec.seed + 302, [LONGER if group.row["source"] == "probe" else 70])
        uneven = Rows(tokens=tuple(t[: len(t) - 9 * i] for i, t in enumerate(rows.tokens)), decoder=rows.decoder)
        side = "left" if group.task == "causal-lm" else "right"
        batch = padded(uneven, side, loaded.model, group.device, group.source.pad)
        calls["a longer input"] = lambda: loaded.forward(**unpadded(long, group.device, group.dtype))
        calls["a padded batch"] = lambda: loaded.forward(**batch.arguments)
        if group.task in ("causal-lm", "seq2seq-lm") and group.spec.at_least("standard"):
            asked = {k: v for k, v in batch.arguments.items() if k in ("input_ids", "attention_mask")}
            calls["a generation"] = lambda: loaded.generate(
                **asked, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=group.source.pad
            )
    calls["attention weights"] = lambda: loaded.forward(
        **unpadded(rows, group.device, group.dtype), output_attentions=True
    )
    ran = []
    for name, call in calls.items():
        try:
            call()
        except StackError:  # not every family or backend has every one; the checks of these paths say so
            continue
        ran.append(name)
    return ran


def _orders(loaded: Loaded, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch in reverse, put back in order; and each row alone."""
    back = loaded(**{k: v.flip(0) for k, v in inputs.items()}).flip(0)
    alone = torch.cat([loaded(**{k: v[i : i + 1] for k, v in inputs.items()}) for i in range(BATCH)])
    return {"reversed": back, "alone": alone}


def _ratio(yardstick: Yardstick, output: torch.Tensor) -> float | None:
    return yardstick.compare(output.flatten(0, 1)).ratio_token


def _differing(a: torch.Tensor, b: torch.Tensor) -> int:
    """Elements that are not the same; NaN is the same as NaN."""
    return int(((a != b) & ~(torch.isnan(a) & torch.isnan(b))).sum()) if a.is_floating_point() else int((a != b).sum())


def _random_state(device: torch.device) -> torch.Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _versions(group: Group, loaded: Loaded) -> dict[str, int]:
    """Parameter -> how often it was written in place. Quantized weights are repacked by their library."""
    if group.spec.quantization["library"]:
        return {}
    return {name: p._version for name, p in loaded.model.named_parameters()}


def _written(before: dict[str, int], after: dict[str, int]) -> int:
    return sum(after.get(name) != version for name, version in before.items())
