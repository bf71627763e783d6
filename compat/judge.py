"""From what a check saw to an outcome. Pure: re-judging a stored run needs no GPU and no torch.

In: a worker's answer (or how the worker ended) and the axes of the cell. Out: a `records.Check`. Thresholds are rows of
criteria/*.toml, recognised refusals rows of refusals.toml; this module holds no figure of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from compat.axes import ATTENTION, DTYPES, MODES, PLAIN, mode_of
from compat.axes.attention import kernel_kind
from compat.kernel_paths import path_findings
from compat.records import SEVERITY, Check, Evidence, ExceptionInfo, Measurement, Outcome, point_name
from compat.rules import Context, Refusal, Rule, criteria, refusals
from compat.speed import figures as speed_figures

_HERE = Path(__file__).parent

GONE = 1e9
"""The distance of an output that is no longer there, or not finite."""


@dataclass(frozen=True)
class Doubt:
    """Why the figures of one phase at one point are not stated, although they were measured."""

    phase: str
    """`prefill` or `decode`."""
    at: Mapping[str, float]
    reason: str

    def against(self, figure: Measurement) -> bool:
        """Whether `figure` is of that phase and point."""
        return (figure.name.partition("_")[0], figure.at) == (self.phase, self.at)


@dataclass(frozen=True)
class Verdict:
    """One thing that was judged, and how: `signature` is the same for failures with the same cause."""

    outcome: Outcome
    reason: str
    signature: str


# -- entry points ------------------------------------------------------------------------------------------------


def judge(check: str, answer: Mapping[str, Any], context: Context, repro: str = "", attempts: int = 1) -> Check:
    """The outcome of a worker's answer (see compat.worker.__main__), with its evidence."""
    seconds = float(answer.get("seconds", 0.0))
    status = answer["status"]
    if status == "ok":
        measurements = _measurements(answer["measurements"])
        evidence = Evidence(kernels=answer["kernels"], facts=answer["facts"], repro=repro, seed=answer.get("seed"))
        return rejudge(Check(name=check, outcome=Outcome.INCONCLUSIVE, reason="nothing was measured", seconds=seconds,
                             attempts=attempts,
                             measurements=measurements, evidence=evidence), context)  # fmt: skip
    exception = ExceptionInfo(**answer["exception"]) if "exception" in answer else None
    facts = {k: answer[k] for k in ("phase", "stderr") if k in answer}
    verdict = _of_status(status, exception, answer)
    known = _recognised(exception) if status == "raised" else None
    if exception is not None and known is not None:
        exception = msgspec.structs.replace(exception, refusal=known.id)
    return Check(
        name=check,
        outcome=verdict.outcome,
        reason=verdict.reason,
        seconds=seconds,
        attempts=attempts,
        evidence=Evidence(exception=exception, signature=verdict.signature, repro=repro, facts=facts),
    )


def rejudge(check: Check, context: Context) -> Check:
    """The same check under today's criteria; one without measurements keeps what was seen when it ran."""
    check = msgspec.structs.replace(check, measurements=derive(check.name, check.measurements, check.evidence.facts))
    if not check.measurements:
        return check
    check = _with_answer(check, context)
    verdicts = [*_by_rules(check, context), *by_facts(check, context)]
    verdict = min(verdicts, key=lambda v: SEVERITY.index(v.outcome), default=None)
    if verdict is None:
        verdict = Verdict(Outcome.INCONCLUSIVE, "nothing was judged: no rule speaks of what was measured", "unjudged")
    reason = "; ".join(dict.fromkeys(v.reason for v in verdicts if v.outcome == verdict.outcome and v.reason))
    passed = verdict.outcome == Outcome.PASS
    evidence = msgspec.structs.replace(check.evidence, signature="" if passed else verdict.signature)
    return msgspec.structs.replace(check, outcome=verdict.outcome, reason="" if passed else reason, evidence=evidence)


def broken(check: Check, context: Context) -> dict[str, float]:
    """Measurement -> the bound of `pass` that it breaks, for those that made the check fail or degraded."""
    found: dict[str, float] = {}
    decided: set[str] = set()
    for rule in criteria().rules:
        if rule.check != check.name or rule.measurement in decided or not rule.holds(context):
            continue
        decided.add(rule.measurement)
        measured = check.measurement(rule.measurement)
        if measured is not None and measured.value is not None:
            unit = rule.unit(context)
            if rule.outcome(measured.value, measured.better, unit) in (Outcome.FAIL, Outcome.DEGRADED):
                found[rule.measurement] = rule.passes * unit
    return found


def doubts(check: Check) -> tuple[Doubt, ...]:
    """What speaks against the figures of a judged timing: one for each sign of a disturbed machine and each interval
    that is too wide; also for those that are not finite. The check may pass all the same, since its outcome hangs on
    less than a figure does."""
    return tuple(
        Doubt(rule.measurement.partition("_")[0], measured.at, _explained(rule, measured, Outcome.INCONCLUSIVE, 1.0))
        for rule in _casting_doubt()
        if rule.check == check.name
        for measured in check.measured(rule.measurement)
        if measured.value is None or rule.outcome(measured.value, measured.better) is Outcome.INCONCLUSIVE
    )


@cache
def _casting_doubt() -> tuple[Rule, ...]:
    return tuple(rule for rule in criteria().rules if rule.doubt)


def not_run(check: str, reason: str) -> Check:
    """A check that was planned and not asked."""
    return Check(name=check, outcome=Outcome.NOT_RUN, reason=reason)


# -- answers that carry no measurements --------------------------------------------------------------------------


def _recognised(exception: ExceptionInfo | None) -> Refusal | None:
    return next((r for r in refusals() if exception is not None and r.fits(exception)), None)


def _of_status(status: str, exception: ExceptionInfo | None, answer: Mapping[str, Any]) -> Verdict:
    if status == "raised" and exception is not None:
        known = _recognised(exception)
        first = _first_line(exception.message)
        if known is not None:
            return Verdict(known.outcome, f"{known.meaning}: {first}", known.id)
        name = exception.type.rsplit(".", 1)[-1]
        phase = answer.get("phase", "")
        return Verdict(Outcome.FAIL, f"{phase} raised {name}: {first}", f"{phase} raised {name}: {_pattern(first)}")
    if status == "error" and exception is not None:
        name = exception.type.rsplit(".", 1)[-1]
        first = _first_line(exception.message)
        return Verdict(Outcome.ERROR, f"the harness raised {name}: {first}", f"harness {name}: {_pattern(first)}")
    reason = str(answer.get("reason", ""))
    outcome = {
        "unavailable": Outcome.UNAVAILABLE,
        "no_yardstick": Outcome.INCONCLUSIVE,
        "timeout": Outcome.TIMEOUT,
        "crash": Outcome.CRASH,
        "oom": Outcome.OOM,
    }.get(status, Outcome.ERROR)
    return Verdict(outcome, reason or f"the worker answered {status!r}", f"{status}: {_pattern(reason)}")


def _first_line(text: str) -> str:
    line = next((x.strip() for x in text.splitlines() if x.strip()), "(no message)")
    return line if len(line) <= 200 else line[:197] + "..."


def _pattern(text: str) -> str:
    """`text` with what differs from cell to cell (class names, numbers, addresses) made the same."""
    text = re.sub(r"0x[0-9a-fA-F]+|\d+(\.\d+)?(e[+-]?\d+)?", "N", text)
    return re.sub(r"\b[A-Z]\w+For\w+\b", "MODEL", text)[:160]


# -- measurements ------------------------------------------------------------------------------------------------


def _measurements(raw: Sequence[Mapping[str, Any]]) -> tuple[Measurement, ...]:
    return tuple(Measurement(**{**m, "values": tuple(m["values"])}) for m in raw)


def derive(check: str, measured: tuple[Measurement, ...], facts: Mapping[str, Any]) -> tuple[Measurement, ...]:
    """`measured` with what follows from raw seconds (rates, speedups and their intervals), worked out anew."""
    if check != "speed":
        return measured
    found = speed_figures.figures(facts)
    names = {m.name for m in found}
    return (*(m for m in measured if m.name not in names), *found)


def _with_answer(check: Check, context: Context) -> Check:
    """`check` with the distance of the reference's answer, and of all that the model returns, from what is stored,
    where it gave them and they are stored."""
    given, stored = check.evidence.facts.get("answer"), context.answer
    kept = tuple(m for m in check.measurements if m.name not in ("known_answer_error", "known_outputs_error"))
    if given and len(given) == len(stored):
        kept = (*kept, _single("known_answer_error", _apart(given, stored), "of the answer's rms", "lower"))
    returned, known = check.evidence.facts.get("outputs"), context.outputs
    if isinstance(returned, Mapping) and known:
        far = {name: _apart(returned.get(name, ()), own) for name, own in known.items()}
        worst = max(far, key=lambda name: far[name])
        kept = (*kept, _single("known_outputs_error", far[worst], f"of the rms of {worst}", "lower"))
    return msgspec.structs.replace(check, measurements=kept)


def _apart(given: Sequence[float], stored: Sequence[float]) -> float:
    """The largest difference, in units of the stored rms; GONE where there are not as many."""
    if len(given) != len(stored):
        return GONE
    scale = math.sqrt(sum(s * s for s in stored) / len(stored))
    found = max(abs(g - s) for g, s in zip(given, stored, strict=True))
    if not math.isfinite(found):
        return GONE
    return found / scale if scale else GONE * (found > 0)


def _single(name: str, value: float, unit: str, better: str) -> Measurement:
    return Measurement(
        name=name, unit=unit, better=better, value=_short(value), values=(_short(value),), method="single"
    )


def _short(value: float) -> float:
    """Four significant digits: more than a timing has."""
    return float(f"{value:.4g}")


def _by_rules(check: Check, context: Context) -> list[Verdict]:
    """One verdict for each measurement (each point of a grid) that a rule speaks of; the first row that holds
    decides."""
    verdicts: list[Verdict] = []
    guarded: list[tuple[str, str, Verdict]] = []
    decided: set[str] = set()
    for rule in criteria().rules:
        if rule.doubt or rule.check != check.name or rule.measurement in decided or not rule.holds(context):
            continue
        decided.add(rule.measurement)
        found = check.measured(rule.measurement)
        if rule.required and not found:
            verdicts.append(_missing(rule))
        for measured in found:
            verdict = _of_measurement(rule, check, measured, context)
            if rule.guard and measured.at:
                guarded.append((rule.measurement.partition("_")[0], point_name(measured.at), verdict))
            else:
                verdicts.append(verdict)
    return verdicts + _guards_of_points(guarded)


def _guards_of_points(guarded: Sequence[tuple[str, str, Verdict]]) -> list[Verdict]:
    """What guards say of a grid, from (phase, point, verdict): a phase is inconclusive when no point of it is left of
    which something can be said. (Reports mark each point that a guard speaks against.)"""
    doubted = {(phase, point) for phase, point, v in guarded if v.outcome == Outcome.INCONCLUSIVE}
    certain = {phase for phase, point, _ in guarded if (phase, point) not in doubted}
    return [v if phase not in certain else Verdict(Outcome.PASS, "", "") for phase, _, v in guarded]


def _missing(rule: Rule) -> Verdict:
    reason = f"{rule.measurement} was not measured"
    return Verdict(Outcome.INCONCLUSIVE, reason, f"{rule.check}: {reason}")


def _of_measurement(rule: Rule, check: Check, measured: Measurement, context: Context) -> Verdict:
    """What `rule` says of one measurement. A figure that is not finite is counted in a measurement of its own."""
    if measured.value is None:
        return _missing(rule)
    unit = rule.unit(context)
    outcome = rule.outcome(measured.value, measured.better, unit)
    reason = _explained(rule, measured, outcome, unit)
    own = check.measurement("candidate_error")
    if outcome == Outcome.INCONCLUSIVE and rule.measurement == "yardstick_error" and own and own.value is not None:
        reason = (
            f"eager, the yardstick, is itself off: {reason}; this backend's own error is {own.value:.4g} {own.unit}"
        )
    return Verdict(outcome, reason, f"{check.name}: {rule.measurement}")


def _explained(rule: Rule, measured: Measurement, outcome: Outcome, normal: float) -> str:
    if outcome == Outcome.PASS:
        return ""
    sign = ">=" if measured.better == "higher" else "<="
    unit = "" if measured.unit == "ratio" else f" {measured.unit}"
    value = measured.value if measured.value is not None else float("nan")
    stored = f" ({rule.passes:.4g} times that of clean runs)" if rule.band else ""
    at = f" at {point_name(measured.at)}" if measured.at else ""
    return f"{rule.measurement}{at} {value:.4g}{unit}, pass {sign} {rule.passes * normal:.4g}{stored}"


# -- requested against effective ---------------------------------------------------------------------------------


def by_facts(check: Check, context: Context) -> list[Verdict]:
    """Findings of `load` and `dispatch`: what was asked for against what was seen; of any check, calls that did not go
    the way that its mode asks for."""
    missed = check.evidence.facts.get("mode_missed")
    found = [("mode-missed", f"{missed} calls did not go the way of {mode_of(context.axes)}")] if missed else []
    if check.name == "dispatch":
        return _of_findings("dispatch", path_findings(context.axes["attention"], check.evidence.facts))
    if check.name != "load":
        return _of_findings(check.name, found)
    facts, mode = check.evidence.facts, MODES[mode_of(context.axes)]
    found += _mode_findings(mode.name, facts.get("mode"))
    requested = ATTENTION[context.axes["attention"]]
    if facts.get("attention") != requested.effective:
        found.append(("attention-differs", f"asked for {requested.effective}, effective {facts.get('attention')}"))
    # inductor makes one kernel of what eager attention and the math path of SDPA are composed of
    composed = mode.family == "compile" and requested.kinds <= {"eager", "sdpa math"}
    unseen = composed or "no-attention" in context.features
    found += _kernel_findings(requested.name, check.evidence.kernels, unseen)
    if str(facts.get("switch", "")).startswith(("ignored", "said")):
        found.append(("switch-ignored", f"set_attn_implementation {facts['switch']}"))
    wanted = DTYPES[context.axes["dtype"]].torch_name
    shares = facts.get("dtype_shares", {})
    if shares and wanted not in shares:
        found.append(("dtype-differs", f"asked for {wanted}, parameters are {', '.join(shares)}"))
    quantization = facts.get("quantization")
    if quantization is not None and not quantization["modules"] and quantization["says_quantized"]:
        found.append(("not-quantized", "is_quantized is True and no module is quantized"))
    if facts.get("training"):
        found.append(("training-mode", "the loaded model is in training mode"))
    devices = facts.get("devices", [])
    if mode.family != "placement" and any(not d.startswith(context.device) for d in devices):
        found.append(("device-differs", f"asked for {context.device}, parameters are on {', '.join(devices)}"))
    return _of_findings("load", found)


def _mode_findings(mode: str, seen: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Whether a mode that was asked for took effect; a plain cell says nothing of it."""
    if seen is None:
        return [] if mode == PLAIN else [("mode-absent", f"asked for {mode}, and nothing was seen of it")]
    if seen["held"] == "nothing to do":
        return [("mode-without-effect", f"asked for {mode}: {seen['words']}")]
    return [] if seen["held"] == "yes" else [("mode-absent", f"asked for {mode}: {seen['words']}")]


def _of_findings(check: str, found: Sequence[tuple[str, str]]) -> list[Verdict]:
    outcomes = criteria().findings
    return [Verdict(outcomes[name], reason, f"{check}: {name}: {_pattern(reason)}") for name, reason in found]


def _kernel_findings(attention: str, kernels: Mapping[str, int], attentionless: bool) -> list[tuple[str, str]]:
    requested = ATTENTION[attention]
    kinds = {kind for name in kernels if (kind := kernel_kind(name)) is not None}
    if not kinds and attentionless:
        return []
    if not kinds:
        return [("kernel-unseen", "no attention operator was seen in a forward")]
    if kinds <= requested.kinds:
        return []
    ran = ", ".join(sorted(kinds))
    if kinds <= requested.kinds | requested.slower_kinds:
        return [("kernel-fell-back", f"asked for {attention}, fell back to: {ran}")]
    return [("kernel-other", f"asked for {attention}, ran: {ran}")]
