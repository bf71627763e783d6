"""From the raw seconds of a `speed` check to rates, ratios and intervals. Pure: plain values in, measurements out.

In: the facts that the worker sent (compat/worker/checks/speed.py). Out: measurements, each with the point of the grid
that it was made at. A ratio is the median of paired ratios with its 95% interval (compat.speed.stats).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compat.records import Measurement
from compat.speed import stats

PAIRED = "median of paired ratios, bootstrap and order statistics"
MEDIAN = "median"


def figures(facts: Mapping[str, Any]) -> tuple[Measurement, ...]:
    """Everything that follows from `facts`; nothing for what was not timed."""
    found: list[Measurement] = []
    for point in facts.get("points", ()):
        found += _of_point(point, facts.get("ceilings", {}))
    pipeline = facts.get("pipeline")
    if isinstance(pipeline, Mapping):
        found += _ratio("pipeline_over_generate", pipeline["generate_seconds"], pipeline["seconds"], {}, better="lower")
    first = next((p["first_seconds"] for p in facts.get("points", ()) if "first_seconds" in p), None)
    if first is not None:
        found.append(_one("first_call_seconds", first, "s", {}))
    return tuple(found)


def _of_point(point: Mapping[str, Any], ceilings: Mapping[str, float]) -> Iterator[Measurement]:
    phase, seconds = point["phase"], point["seconds"]
    at = {k: point[k] for k in ("length", "batch", "padding")}
    yield _many(f"{phase}_rate", [point["tokens"] / s for s in seconds], f"{point['unit']}/s", at, "higher")
    base = point.get("baseline_seconds")
    if base:
        yield from _ratio(f"{phase}_speedup", seconds, base, at)
        yield _one(f"{phase}_noise", max(stats.self_noise(seconds), stats.self_noise(base)), "ratio", at)
    else:
        low, high = stats.median_interval(seconds)
        yield _one(f"{phase}_interval", stats.relative_width(low, high), "of the median", at, "lower")
        yield _one(f"{phase}_noise", stats.self_noise(seconds), "ratio", at)
    if "steps" in point:
        yield _many("time_per_output_token", [s / point["steps"] for s in seconds], "s", at, "lower")
    if "first_token_seconds" in point:
        yield _many("time_to_first_token", point["first_token_seconds"], "s", at, "lower")
    for name, unit in (("contention", "of the time"), ("host_share", "of the time"), ("overhead", "of the time")):
        if point.get(name) is not None:
            yield _one(f"{phase}_{name}", point[name], unit, at, "lower")
    if point.get("rates"):
        yield _one(f"{phase}_device_rate", min(point["rates"]), "of the best", at, "higher")
    if "peak_bytes" in point:
        yield _one(f"{phase}_peak_bytes", point["peak_bytes"], "bytes", at)
    if "joules" in point:
        yield _one(f"{phase}_energy", point["joules"] / point["tokens"], f"J/{point['unit'].rstrip('s')}", at)
    yield from _attained(point, ceilings, at)


def _attained(
    point: Mapping[str, Any], ceilings: Mapping[str, float], at: Mapping[str, float]
) -> Iterator[Measurement]:
    """What was computed and moved a second, and its share of what the device can do at most."""
    middle = statistics.median(point["seconds"])
    flops, moved = ceilings.get("matmul_flops_per_second"), ceilings.get("copy_bytes_per_second")
    alone = point.get("attention")
    if alone:
        one = statistics.median(alone["seconds"])
        yield _one("attention_flops", alone["flops"] / one, "FLOP/s", at, "higher")
        yield _one("attention_bytes_rate", alone["bytes"] / one, "bytes/s", at, "higher")
        if flops and moved:
            yield _one("attention_flops_share", alone["flops"] / one / flops, "of the ceiling", at, "higher")
            yield _one("attention_bytes_share", alone["bytes"] / one / moved, "of the ceiling", at, "higher")
    if flops and "flops" in point:
        yield _one("prefill_flops_share", point["flops"] / middle / flops, "of the ceiling", at, "higher")
    if moved and "step_bytes" in point:
        rate = point["step_bytes"] * point["steps"] / middle
        yield _one("decode_bytes_share", rate / moved, "of the ceiling", at, "higher")


def _ratio(
    name: str, seconds: Sequence[float], base: Sequence[float], at: Mapping[str, float], better: str = "higher"
) -> Iterator[Measurement]:
    """`name`, both ends of its interval, and how wide that is."""
    ratios = stats.paired_ratios(seconds, base)
    low, high = stats.median_interval(ratios)
    middle = statistics.median(ratios)
    yield Measurement(
        name=name,
        unit="x",
        better=better,
        values=tuple(_short(r) for r in ratios),
        value=_short(middle),
        ci95=(_short(low), _short(high)),
        method=PAIRED,
        at=dict(at),
    )
    yield _one(f"{name}_low", low, "x", at, "higher")
    yield _one(f"{name}_high", high, "x", at, "higher")
    yield _one(
        f"{name.removesuffix('_speedup')}_interval", stats.relative_width(low, high), "of the median", at, "lower"
    )


def _many(name: str, values: Sequence[float], unit: str, at: Mapping[str, float], better: str) -> Measurement:
    low, high = stats.median_interval(values)
    return Measurement(
        name=name,
        unit=unit,
        better=better,
        values=tuple(_short(v) for v in values),
        value=_short(statistics.median(values)),
        ci95=(_short(low), _short(high)),
        method=MEDIAN,
        at=dict(at),
    )


def _one(name: str, value: float, unit: str, at: Mapping[str, float], better: str = "none") -> Measurement:
    return Measurement(
        name=name, unit=unit, better=better, value=_short(value), values=(_short(value),), method="single", at=dict(at)
    )


def _short(value: float) -> float:
    """Four significant digits: more than a timing has."""
    return float(f"{value:.4g}")
