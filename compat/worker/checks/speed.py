"""speed: prefill and decode against a baseline, interleaved in one process, at every point of a grid.

What goes home are raw seconds (`facts["points"]`) and what a reader needs to doubt them; compat.speed_figures turns
them into rates, ratios and intervals. A point that does not fit is left out with its reason, and takes no other with
it.
Decode is timed over cache lengths that both sides have walked before; what a length never seen costs (a kernel that
plans or compiles for each one) is measured apart.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from compat.speed.rounds import short
from compat.worker import speed_extras
from compat.worker.calls import StackError, out_of_memory, under_test
from compat.worker.ceilings import Canary, canary
from compat.worker.dispatch import forced_sdpa_kernel, synchronize
from compat.worker.group import Group, Loaded, Masters
from compat.worker.inputs import CLASSIFYING, unpadded
from compat.worker.report import Report
from compat.worker.spec import GroupSpec
from compat.worker.stepping import WINDOW, Batch, Point, Steps, batch, cacheless
from compat.worker.timing import WARM_SHARE, Clock, Side, Timing, compare

POINTS: tuple[Point, ...] = (Point(2, 128),)
"""Where nothing else is asked for."""

BUDGET_SECONDS = 0.06
"""Of one comparison, where nothing else is asked for."""

SEED = 900
"""Of the rows that are timed."""

DECODE_STEPS = 2
"""Single-token steps in one call of a decode comparison."""

NEW_LENGTHS = 4
"""Decode steps at new cache lengths, and as many again."""

Prepared = Callable[[Loaded], Side]
"""Makes the side of a backend."""


def run(group: Group, attention: dict[str, Any]) -> Report:
    """See the module's docstring. Raises StackError, Unavailable, NoYardstick."""
    report = Report(seed=group.spec.seed)
    candidate = group.loaded(attention)
    baseline = _baseline(group, report, attention)
    asked = group.spec.speed
    extras = bool(asked.get("extras"))
    points = [Point(int(b), int(n), float(p)) for b, n, p in asked.get("points") or ()] or list(POINTS)
    if group.task in (*CLASSIFYING, "speech-seq2seq"):
        points = list({p.batch: Point(p.batch, POINTS[0].length) for p in points}.values())
    report.facts |= {"points": [], "left_out": {}}
    sides = [candidate] if baseline is None else [candidate, baseline]
    with under_test("forward"):
        if extras:
            speed_extras.before(report, group)
        for point in points:
            why = "" if group.task in CLASSIFYING else does_not_apply(candidate.model, point)
            if why:
                report.facts["left_out"][point.name] = why
                continue
            _point(report, group, sides, point, extras)
        if group.task == "causal-lm" and not asked.get("points"):
            _new_lengths(report, group, candidate)
        if extras:
            speed_extras.after(report, group, candidate)
    if candidate.load_seconds is not None:
        report.measure("load_seconds", candidate.load_seconds, unit="s")
    return report


def _baseline(group: Group, report: Report, attention: dict[str, Any]) -> Loaded | None:
    """What the candidate is compared with: eager of its own group, or the cell that was named; None for itself."""
    asked: Any = group.spec.speed.get("baseline") or "eager"
    if asked == "eager":
        report.facts["baseline"] = "eager"
        return None if attention["name"] == "eager" else group.eager
    report.facts["baseline"] = asked["cell"]
    if asked["group"]["key"] == group.spec.key:
        return None if asked["attention"]["name"] == attention["name"] else group.loaded(asked["attention"])
    if "baseline" not in group.kept:
        group.kept["baseline"] = Group(GroupSpec(**asked["group"]), Masters())
    other: Group = group.kept["baseline"]
    return other.loaded(asked["attention"])


def does_not_apply(model: Any, point: Point) -> str:
    """Why `model` cannot be asked for this point, or ""."""
    if point.batch == 1 and point.padding:
        return "one row alone has nothing to be padded to"
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    most = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    rotary = getattr(config, "rope_parameters", None) or getattr(config, "rope_theta", None)
    if isinstance(most, int) and not rotary and point.length + WINDOW[1] + 2 > most:
        return f"the model has {most} positions"
    return ""


def _point(report: Report, group: Group, sides: list[Loaded], point: Point, extras: bool) -> None:
    """Everything that is timed at one point."""
    inputs = batch(group, sides[0].model, point, SEED)
    entry = _measure(report, group, sides, point, "prefill", functools.partial(prefill_side, group, point=point))
    if entry is not None:
        entry |= {"tokens": inputs.tokens, "unit": unit(group)}
        _peak(group, sides, inputs, entry, extras)
        if extras:
            speed_extras.prefill(report, group, sides[0], point, inputs, entry)
    if group.task != "causal-lm":
        return

    window = 0

    def decode(side: Loaded) -> Side:
        nonlocal window
        window = window or decode_window(group, side, point)
        return decode_side(group, side, point, window)

    entry = _measure(report, group, sides, point, "decode", decode, lambda: window // DECODE_STEPS)
    if entry is not None:
        entry |= {"tokens": point.batch * DECODE_STEPS, "unit": "tokens", "steps": DECODE_STEPS}
        if extras:
            speed_extras.decode(group, sides[0], inputs, entry)


def unit(group: Group) -> str:
    """What a prefill's rate counts."""
    return {"image-classification": "images", "audio-classification": "sounds"}.get(group.task, "tokens")


def prefill_side(group: Group, loaded: Loaded, point: Point) -> Side:
    """A forward of the whole batch, without a cache."""
    inputs = batch(group, loaded.model, point, SEED)
    return _side(loaded, functools.partial(loaded.model, **inputs.arguments, **cacheless(loaded.model)))


def decode_side(group: Group, loaded: Loaded, point: Point, window: int) -> Side:
    """DECODE_STEPS single tokens on a cache that holds the batch, and starts again after `window` tokens."""
    steps = Steps(loaded, batch(group, loaded.model, point, SEED), DECODE_STEPS, window)
    return _side(loaded, steps, steps.refill)


def decode_window(group: Group, loaded: Loaded, point: Point) -> int:
    """How many cache lengths to walk: as many as a warm-up can, since lengths must not be new when they are timed."""
    clock, trial = Clock(group.device), decode_side(group, loaded, point, WINDOW[0])
    one = min(clock.sample(trial) for _ in range(3)) / DECODE_STEPS
    least, most = WINDOW
    return max(least, min(most, int(WARM_SHARE * _budget(group) / one) // DECODE_STEPS * DECODE_STEPS))


def _side(loaded: Loaded, call: Callable[[], Any], refill: Callable[[], None] = lambda: None) -> Side:
    @contextmanager
    def around() -> Iterator[None]:
        with under_test("forward"), forced_sdpa_kernel(loaded.attention["sdpa_kernel"]), torch.no_grad():
            yield

    return Side(call, loaded.activate, refill, around)


def _measure(
    report: Report,
    group: Group,
    sides: list[Loaded],
    point: Point,
    phase: str,
    prepared: Prepared,
    least_warm: Callable[[], int] = lambda: 1,
) -> dict[str, Any] | None:
    """Compare the sides at one point; its entry in the report, or None where the candidate does not fit. A baseline
    that does not fit leaves the candidate alone."""
    for able in (sides, sides[:1])[: len(sides)]:
        try:
            ready = [prepared(side) for side in able]
            timing = compare(ready, group.device, _budget(group), canary=_canary(group), least_warm=least_warm())
        except StackError as error:
            if not out_of_memory(error.original):
                raise
            _release(group)
            side = "baseline or candidate" if len(able) == 2 else "candidate"
            report.facts["left_out"][f"{point.name} {phase}"] = f"the {side} does not fit: {error.original}"[:200]
            continue
        entry = _entry(timing, point, phase)
        report.facts["points"].append(entry)
        return entry
    return None


def _canary(group: Group) -> Canary:
    return canary(group.device, torch.get_num_threads())


def _budget(group: Group) -> float:
    """Seconds that a comparison may take."""
    return float(group.spec.speed.get("budget_seconds") or BUDGET_SECONDS)


def _entry(timing: Timing, point: Point, phase: str) -> dict[str, Any]:
    """What is kept of a comparison: raw seconds, and how they came about."""
    named = dict(zip(("seconds", "baseline_seconds"), ([short(s) for s in x] for x in timing.seconds), strict=False))
    return {
        "phase": phase,
        "batch": point.batch,
        "length": point.length,
        "padding": point.padding,
        **named,
        "first_seconds": short(timing.first_seconds[0]),
        "calls": timing.calls,
        "stopped": timing.stopped,
        "warm_calls": timing.warm_calls,
        "overhead": round(timing.overhead, 4),
        "host_share": timing.host_share,
        "contention": timing.contention,
        "rates": list(timing.rates),
    }


def _release(group: Group) -> None:
    if group.device.type == "cuda":
        torch.cuda.empty_cache()


def _peak(group: Group, sides: list[Loaded], inputs: Batch, entry: dict[str, Any], extras: bool) -> None:
    """Bytes of activations of one more forward of each side, by the device's own counter; on a CPU, where our own
    account slows the forward, only as an extra."""
    if group.device.type != "cuda" and not extras:
        return
    for name, side in zip(("peak_bytes", "baseline_peak_bytes"), sides, strict=False):
        if name == "baseline_peak_bytes" and "baseline_seconds" not in entry:
            return
        entry[name] = speed_extras.peak_bytes(group, side, inputs.arguments | cacheless(side.model))


def _new_lengths(report: Report, group: Group, candidate: Loaded) -> None:
    """The cost of a decode step at a cache length that this process has hardly seen, over that of the same step again.

    The start is drawn from the cell's name: cells with the same shapes do not pay for each other. The second walk
    follows at once, so that a machine that slows down slows both.
    """
    entry = next((p for p in report.facts["points"] if p["phase"] == "decode"), None)
    if entry is None:
        return
    drawn = zlib.crc32(f"{group.spec.key}/{candidate.attention['name']}".encode())
    rows = group.source.rows(901, [40 + 4 * (drawn % 100)] * entry["batch"])
    steps = Steps(candidate, Batch(unpadded(rows, group.device, group.dtype), 0), 1, NEW_LENGTHS)
    side = _side(candidate, steps, steps.refill)
    clock = Clock(group.device)
    fresh, again = ([clock.sample(side) for _ in range(NEW_LENGTHS)] for _ in range(2))
    synchronize(group.device)
    ratios = [f / a for f, a in zip(fresh, again, strict=True)]
    report.measure("decode_new_length_cost", ratios, unit="of a warm step", method="median")
