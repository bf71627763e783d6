"""A made-up run on a grid: a model of 7B, four backends and five quantizations on one GPU, with gaps and doubts.

Out: a deterministic `Run`. No figure here was measured on anything; their shape follows that of real ones (attention
grows with the square of the length, everything else with the length, and eager holds every score).
"""

from __future__ import annotations

import random
from typing import Any

import msgspec

from compat.records import Cell, Check, Evidence, Measurement, Outcome, Run
from compat.sharper import linked

from .sample_runs import a_cell, a_check, refused, small_run

O = Outcome  # noqa: E741
LENGTHS, BATCHES, PADDING = (256, 2048, 4096), (1, 4), (0.0, 0.3)
QUADRATIC = {"eager": 6.2, "sdpa": 1.05, "flash_attention_2": 0.92, "sdpa-math": 9.0}
SCORES = {"eager": 3.4, "sdpa": 0.0, "flash_attention_2": 0.0, "sdpa-math": 4.1}
DECODE = {"none": 31.0, "bnb-int8": 9.4, "bnb-fp4": 24.5, "bnb-nf4": 24.1, "bnb-nf4-dq": 22.7}
BITS = {"none": 16.0, "bnb-int8": 8.0, "bnb-fp4": 4.5, "bnb-nf4": 4.5, "bnb-nf4-dq": 4.127}
MODEL = "llama-7b"


def grid_run() -> Run:
    """`llama-7b` in bf16 at 2 x 3 x 2 points, its quantizations at two cache lengths, and a backend that is missing."""
    base = small_run()
    cells = [_grid_cell(a) for a in ("eager", "sdpa", "flash_attention_2", "sdpa-math")]
    cells.append(refused(f"{MODEL}/bf16/flex_attention/none", "flex_attention needs a compiler that is not installed"))
    cells.append(_wrong_cell("sdpa-cudnn"))
    for scheme in list(DECODE)[1:]:
        cells += [_quantized_cell(scheme, a) for a in ("eager", "sdpa")]
    models = {MODEL: {"source": "shape", "task": "causal-lm"}}
    info = msgspec.structs.replace(base.run, settings={**base.run.settings, "models": models}, complete=True)
    return msgspec.structs.replace(base, run=info, cells=linked(cells))


def measured(
    name: str, value: float, width: float = 0.0, unit: str = "x", at: dict[str, float] | None = None
) -> Measurement:
    """A measurement at a point, its 95% interval `width` wide (relative) where that is not zero."""
    interval = (value * (1 - width / 2), value * (1 + width / 2)) if width else None
    better = "higher" if name.endswith(("rate", "speedup", "share")) else "none"
    return Measurement(name=name, unit=unit, better=better, value=value, ci95=interval, values=(value,), at=at or {})


def _seconds(attention: str, length: int, batch: int, padding: float) -> float:
    """Seconds of one forward."""
    real = length * (1 - padding if attention == "flash_attention_2" else 1.0)
    linear = 2.45e-5 * length * batch * (1 - 0.15 * padding if attention == "flash_attention_2" else 1.0)
    masks = 1.0 + (0.9 * padding if attention == "sdpa" else 0.0)
    return 0.012 + linear + QUADRATIC[attention] * 1.1e-9 * batch * real * real * masks


def _grid_cell(attention: str) -> Cell:
    place = f"{MODEL}/bf16/{attention}/none"
    draw = random.Random(place)
    found: list[Measurement] = []
    left_out: dict[str, str] = {}
    points: list[dict[str, Any]] = []
    for padding in PADDING:
        for batch in BATCHES:
            for length in LENGTHS:
                at = {"length": float(length), "batch": float(batch), "padding": padding}
                if batch == 1 and padding:
                    left_out[f"{batch}x{length}@{padding:g}"] = "one row alone has nothing to be padded to"
                    continue
                if attention == "sdpa-math" and batch == 4 and length == 4096:
                    left_out[f"4x4096@{padding:g} prefill"] = "the candidate does not fit: CUDA out of memory"
                    continue
                noisy = attention == "sdpa" and batch == 1 and length == 256
                points.append({"phase": "prefill", **at, "seconds": [1.0], "baseline_seconds": [1.0]})
                found += _prefill(attention, draw, at, 0.62 if noisy else 0.012)
                if not padding:
                    points.append({"phase": "decode", **at, "seconds": [1.0], "baseline_seconds": [1.0]})
                    found += _decode(attention, draw, at)
    found += [measured("load_seconds", 3.9, unit="s"), measured("first_call_seconds", 0.8 + draw.random(), unit="s")]
    if attention == "sdpa":
        found.append(measured("pipeline_over_generate", 1.31, 0.02))
    facts = {
        "points": points,
        "left_out": left_out,
        "baseline": "eager",
        "ceilings": {"copy_bytes_per_second": 3.9e12, "matmul_flops_per_second": 7.1e14},
        "device_before": {"sm_clock_mhz": 1980, "temperature_celsius": 41, "throttling": [], "processes": 1},
        "device_after": {"sm_clock_mhz": 1755, "temperature_celsius": 63, "throttling": ["SwPowerCap"], "processes": 1},
    }
    told = "prefill_interval at 1x256@0 0.62 of the median, pass <= 0.5"
    outcome = O.INCONCLUSIVE if attention == "sdpa" else O.PASS
    return a_cell(place, _checked(place, outcome, tuple(found), facts, told if outcome is not O.PASS else ""))


def _prefill(attention: str, draw: random.Random, at: dict[str, float], width: float) -> list[Measurement]:
    length, batch, padding = int(at["length"]), int(at["batch"]), at["padding"]
    seconds = _seconds(attention, length, batch, padding) * draw.uniform(0.99, 1.01)
    tokens = batch * length * (1 - padding)
    scores = SCORES[attention] * 2.0 * 32 * batch * length * length
    best = {"eager": 0.09, "sdpa": 0.58, "flash_attention_2": 0.64, "sdpa-math": 0.06}[attention]
    found = [
        measured("prefill_rate", tokens / seconds, width, "tokens/s", at=at),
        measured("prefill_interval", width, unit="of the median", at=at),
        measured("prefill_peak_bytes", 9.1e4 * batch * length + scores, unit="bytes", at=at),
        measured("prefill_flops_share", 2 * 6.7e9 * tokens / seconds / 7.1e14, unit="of the ceiling", at=at),
        measured("attention_flops_share", best * length / (length + 900.0), unit="of the ceiling", at=at),
        measured("attention_bytes_share", 0.5 * best * 700 / (length + 300.0), unit="of the ceiling", at=at),
        measured("time_to_first_token", seconds, 0.01, "s", at=at),
    ]
    if attention != "eager":
        ratio = _seconds("eager", length, batch, padding) / seconds
        found.append(measured("prefill_speedup", ratio, width, at=at))
    return found


def _decode(attention: str, draw: random.Random, at: dict[str, float]) -> list[Measurement]:
    rate = at["batch"] * DECODE["none"] * (1.12 if attention == "flash_attention_2" else 1.0) / (1 + at["length"] / 3e4)
    rate *= draw.uniform(0.99, 1.01)
    found = [
        measured("decode_rate", rate, 0.02, "tokens/s", at=at),
        measured("decode_interval", 0.02, unit="of the median", at=at),
        measured("decode_bytes_share", 0.34, unit="of the ceiling", at=at),
    ]
    if attention != "eager":
        found.append(measured("decode_speedup", draw.uniform(0.995, 1.15), 0.02, at=at))
    return found


def _checked(place: str, outcome: Outcome, found: tuple[Measurement, ...], facts: dict[str, Any], why: str) -> Check:
    evidence = Evidence(facts=facts, repro=f"compat speed --cells '{place}'")
    return Check(name="speed", outcome=outcome, reason=why, seconds=61.0, measurements=found, evidence=evidence)


def _wrong_cell(attention: str) -> Cell:
    place = f"{MODEL}/bf16/{attention}/none"
    at = {"length": 256.0, "batch": 4.0, "padding": 0.0}
    quick = (measured("prefill_rate", 99999.0, 0.01, "tokens/s", at=at),)
    return a_cell(place, a_check("agreement", O.FAIL, place, "far off"), _checked(place, O.PASS, quick, {}, ""))


def _quantized_cell(scheme: str, attention: str) -> Cell:
    place = f"{MODEL}/bf16/{attention}/{scheme}"
    draw = random.Random(place)
    found = []
    for length in (256.0, 2048.0):
        at = {"length": length, "batch": 1.0, "padding": 0.0}
        noisy = scheme == "bnb-int8" and attention == "eager"
        rate = DECODE[scheme] * draw.uniform(0.97, 1.03) / (1 + length / 3e4)
        found.append(measured("decode_rate", rate, 0.7 if noisy else 0.025, "tokens/s", at=at))
        found.append(measured("decode_interval", 0.7 if noisy else 0.025, unit="of the median", at=at))
    ought = 6.74e9 * BITS[scheme] / 8 + 5.2e8
    bytes_held = (
        Measurement(name="weights_bytes", unit="bytes", value=ought * 1.002),
        Measurement(name="weights_expected_bytes", unit="bytes", value=ought),
        Measurement(name="kv_cache_bytes_per_token", unit="bytes", value=524288.0),
        Measurement(name="kv_cache_over_arithmetic", unit="ratio", value=1.0),
    )
    memory = Check(name="memory", outcome=O.PASS, measurements=bytes_held)
    return a_cell(place, _checked(place, O.PASS, tuple(found), {"baseline": "eager"}, ""), memory)
