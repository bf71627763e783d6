"""Two stacks that were asked the same: from what both answered to findings. Pure.

In: the answers of both workers (compat/worker/across.py) and the figures of their comparison. Out: a `Compared`. Every
bound is a row of criteria/across.toml; this module holds no figure of its own.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from compat.axes.attention import kernel_kind
from compat.records import WITHHELD, ExceptionInfo, Measurement
from compat.rules import refusals
from compat.upgrade.result import Compared, Finding, Kind

PATHS = ("unpadded", "left_padded", "right_padded")
"""What was computed of the same input, beside the reference and tokens."""

OF_THE_STACK = frozenset({"raised", "crash", "oom", "timeout"})
"""Ends of an answer that are the stack's doing."""

CAUSES = (
    "quantized_share_lost", "quantized_kinds", "dtypes", "attention", "attention_kernels", "reference_difference",
    "unpadded_difference", "unpadded_difference_token",
)  # fmt: skip
"""Findings that others of the same cell follow from, first the deepest."""

FOLLOW = frozenset(
    {"reference_difference", "token_gap", "weights_bytes_growth", "quantized_kinds"}
    | {f"{path}_difference{end}" for path in PATHS for end in ("", "_token")}
)

Answer = Mapping[str, Any]


@dataclass(frozen=True)
class FigureRule:
    """A row of [[figure]]."""

    name: str
    unit: str
    bound: float
    kind: Kind
    words: str
    source: str
    by_errors: bool = False


@dataclass(frozen=True)
class FactRule:
    """A row of [[fact]]; `name` may be `*`: every name of the part, called `called.NAME`."""

    part: str
    name: str
    called: str
    kind: Kind
    words: str
    source: str


@dataclass(frozen=True)
class Timing:
    """When a difference of speed between processes is stated."""

    slower: float
    confirmations: int
    source: str


@dataclass(frozen=True)
class Rules:
    """criteria/across.toml, read."""

    figures: tuple[FigureRule, ...]
    facts: tuple[FactRule, ...]
    timing: Timing


@cache
def rules() -> Rules:
    """The table. Raises KeyError or ValueError for a row that cannot be meant."""
    table = tomllib.loads((Path(__file__).parents[1] / "criteria" / "across.toml").read_text(encoding="utf-8"))
    return Rules(
        figures=tuple(
            FigureRule(r["name"], r["unit"], float(r["pass"]), Kind(r["kind"]), r["words"], r["source"], "by" in r)
            for r in table["figure"]
        ),
        facts=tuple(
            FactRule(r["part"], r["name"], r["as"], Kind(r["kind"]), r["words"], r["source"]) for r in table["fact"]
        ),
        timing=Timing(**table["timing"]),
    )


def known(name: str) -> bool:
    """Whether a finding may be called `name`."""
    own = {"answers", *(r.name for r in rules().figures), *(r.called for r in rules().facts if r.name != "*")}
    open_ended = ("raised.", *(f"{r.called}." for r in rules().facts if r.name == "*"))
    return name in own or name.startswith(open_ended)


def names() -> tuple[str, ...]:
    """What a finding may be called, for messages; settings as `generate.do_sample`."""
    settings = [f"{r.called}.do_sample" for r in rules().facts if r.name == "*"]
    own = (*(r.name for r in rules().figures), *(r.called for r in rules().facts if r.name != "*"))
    return (*own, "answers", "raised.forward", *settings)


def compared(
    cell: str, axes: Mapping[str, str], before: Answer, after: Answer, figures: Answer | None, seconds: float = 0.0
) -> Compared:
    """What the answers of both stacks say of one cell; `figures` of the comparison, None where there was none."""
    made = Compared(cell=cell, axes=dict(axes), status="compared", seconds=round(seconds, 3))
    for side, name in ((before, "the stack before"), (after, "the stack after")):
        if side["status"] == "error":
            return msgspec.structs.replace(made, status="error", reason=f"{name}: {said(side)}")
    if before["status"] != "ok" or after["status"] != "ok":
        return msgspec.structs.replace(
            made, status="not_comparable", reason=_why(before, after), findings=tuple(_withheld(cell, before, after))
        )
    if figures is not None and figures["status"] != "ok":
        return msgspec.structs.replace(made, status="error", reason=f"comparing: {said(figures)}")
    parts = _parts(before), _parts(after)
    measured = tuple(_measurements(*parts, figures or {}))
    found = [*_of_figures(cell, measured, figures or {}, parts), *_of_facts(cell, *parts), *_of_raised(cell, *parts)]
    return msgspec.structs.replace(
        made,
        measurements=measured,
        findings=tuple(_with_causes(found)),
        facts={"before": parts[0], "after": parts[1], "figures": dict(figures or {})},
    )


def said(answer: Answer) -> str:
    """How an answer ended, in one line."""
    exception = answer.get("exception") or {}
    text = exception.get("message") or answer.get("reason") or answer["status"]
    kind = exception.get("type", "").rsplit(".", 1)[-1]
    first = next((line.strip() for line in str(text).splitlines() if line.strip()), "")
    return f"{kind}: {first}"[:240] if kind else first[:240]


# -- sides that do not answer ------------------------------------------------------------------------------------


def _why(before: Answer, after: Answer) -> str:
    ended = [(name, side) for name, side in (("before", before), ("after", after)) if side["status"] != "ok"]
    return "; ".join(f"{name}: {side['status']}: {said(side)}" for name, side in ended)


def _withheld(cell: str, before: Answer, after: Answer) -> Iterator[Finding]:
    """A cell that one side alone answers for."""
    if before["status"] == "ok":
        refused = after["status"] in ("unavailable", "no_yardstick") or _refused(after.get("exception"))
        kind = Kind.COVERAGE if refused else Kind.REGRESSED
        yield Finding(kind=kind, name="answers", cell=cell, words="whether the cell can be asked at all",
                      before="loads", after=f"{after['status']}: {said(after)}")  # fmt: skip
    elif after["status"] == "ok":
        yield Finding(kind=Kind.GAINED, name="answers", cell=cell, words="whether the cell can be asked at all",
                      before=f"{before['status']}: {said(before)}", after="loads")  # fmt: skip


def _refused(exception: Mapping[str, str] | None) -> bool:
    """Whether the library says no in words that are recognised (refusals.toml)."""
    if not exception:
        return False
    info = ExceptionInfo(type=exception.get("type", ""), message=exception.get("message", ""))
    return any(r.fits(info) and r.outcome in WITHHELD for r in refusals())


# -- figures -----------------------------------------------------------------------------------------------------


def _parts(answer: Answer) -> dict[str, dict[str, Any]]:
    """The parts of an answer, kinds of kernel among what is held."""
    parts = {name: dict(found) for name, found in answer["parts"].items()}
    seen = parts.get("forward", {}).get("kernels")
    if seen is not None and "raised" not in parts.get("held", {"raised": 1}):
        parts["held"]["kernels"] = sorted({kind for name in seen if (kind := kernel_kind(name))})
    return parts


def _measurements(before: Answer, after: Answer, figures: Answer) -> Iterator[Measurement]:
    units = {r.name: r.unit for r in rules().figures}
    values: dict[str, float] = {}
    held = before.get("held", {}), after.get("held", {})
    shares = [side.get("quantized_share") for side in held]
    if None not in shares:
        values["quantized_share_lost"] = shares[0] - shares[1]
    sizes = [side.get("weights_bytes") for side in held]
    if all(sizes):
        values["weights_bytes_growth"] = sizes[1] / sizes[0] - 1
    added = 0
    for path, found in figures.get("paths", {}).items():
        for name in ("difference", "difference_token"):
            if name in found and f"{path}_{name}" in units:
                values[f"{path}_{name}"] = found[name]
        if path in PATHS and "nonfinite" in found:
            added += max(0, found["nonfinite"][1] - found["nonfinite"][0])
    if figures.get("paths"):
        values["nonfinite_added"] = float(added)
    if "gaps" in figures.get("tokens", {}):
        values["token_gap"] = max(figures["tokens"]["gaps"], default=0.0)
    for name, value in values.items():
        short = float(f"{value:.6g}")
        yield Measurement(name=name, unit=units[name], better="lower", value=short, values=(short,), method="single")


def _of_figures(
    cell: str, measured: Sequence[Measurement], figures: Answer, parts: tuple[Answer, Answer]
) -> Iterator[Finding]:
    by_name = {m.name: m for m in measured}
    for rule in rules().figures:
        own = by_name.get(rule.name)
        if own is None or own.value is None or own.value <= rule.bound:
            continue
        path = figures.get("paths", {}).get(rule.name.split("_difference")[0], {})
        errors = path.get("errors") if rule.by_errors else None
        same_reference = by_name.get("reference_difference")
        kind = rule.kind
        if errors and same_reference is not None and (same_reference.value or 0.0) <= _bound("reference_difference"):
            kind = _by_errors(errors, _bound("unpadded_difference"))
        sides = _sides(rule.name, errors, parts, figures)
        yield Finding(
            kind=kind, name=rule.name, cell=cell, words=rule.words, before=sides[0], after=sides[1],
            value=own.value, unit=rule.unit, bound=rule.bound, source=rule.source,
        )  # fmt: skip


def _bound(name: str) -> float:
    return next(r.bound for r in rules().figures if r.name == name)


def _by_errors(errors: Sequence[float], bound: float) -> Kind:
    """What two errors against fp64 say, both in units of eager's own: the second is that of the new stack."""
    before, after = errors
    if after > bound and after > before:
        return Kind.REGRESSED
    return Kind.FIXED if before > bound >= after else Kind.CHANGED


def _sides(name: str, errors: Sequence[float] | None, parts: tuple[Answer, Answer], figures: Answer) -> tuple[str, str]:
    """What to show of both sides."""
    key = {"quantized_share_lost": "quantized_share", "weights_bytes_growth": "weights_bytes"}.get(name)
    if key is not None:
        before, after = (p["held"][key] for p in parts)
        return (f"{before:.1%}", f"{after:.1%}") if key == "quantized_share" else (f"{before:,}", f"{after:,}")
    if errors is not None:
        return f"{errors[0]:.3g} eager errors off fp64", f"{errors[1]:.3g} eager errors off fp64"
    if name == "token_gap":
        tokens = figures["tokens"]
        return (
            "",
            f"{tokens['differing']} of {tokens['compared']} tokens are others, from step {min(tokens['first_at'])}",
        )
    return "", ""


# -- facts -------------------------------------------------------------------------------------------------------


def _of_facts(cell: str, before: Answer, after: Answer) -> Iterator[Finding]:
    for rule in rules().facts:
        own, other = before.get(rule.part, {}), after.get(rule.part, {})
        if "raised" in own or "raised" in other:
            continue
        wanted = sorted(own.keys() & other.keys()) if rule.name == "*" else [rule.name]
        for name in wanted:
            if name in own and name in other and own[name] != other[name]:
                called = f"{rule.called}.{name}" if rule.name == "*" else rule.called
                words = f"{name}: {rule.words}" if rule.name == "*" else rule.words
                yield Finding(kind=rule.kind, name=called, cell=cell, words=words, before=shown(own[name]),
                              after=shown(other[name]), source=rule.source)  # fmt: skip


def shown(value: Any) -> str:
    """A fact as text."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _of_raised(cell: str, before: Answer, after: Answer) -> Iterator[Finding]:
    """Parts that one side alone refuses."""
    for part in before.keys() | after.keys():
        own, other = before.get(part, {}).get("raised"), after.get(part, {}).get("raised")
        if bool(own) == bool(other):
            continue
        raised = own or other
        text = f"{raised['phase']} raised {raised['type']}: {raised['message']}"[:240]
        words = f"whether {part.replace('_', ' ')} can be asked"
        if other:
            kind = Kind.COVERAGE if _refused(other) else Kind.REGRESSED
            yield Finding(kind=kind, name=f"raised.{part}", cell=cell, words=words, before="runs", after=text)
        else:
            yield Finding(kind=Kind.GAINED, name=f"raised.{part}", cell=cell, words=words, before=text, after="runs")


def _with_causes(found: Sequence[Finding]) -> Iterator[Finding]:
    """Each finding with the one that it follows from, if that is there too."""
    there = {f.name for f in found}
    for finding in sorted(found, key=lambda f: (list(Kind).index(f.kind), f.name)):
        because = ""
        if finding.name in FOLLOW:
            before = CAUSES[: CAUSES.index(finding.name)] if finding.name in CAUSES else CAUSES
            because = next((c for c in before if c in there and c != finding.name), "")
            own_path = finding.name.replace("_token", "")
            if not because and own_path != finding.name and own_path in there:
                because = own_path
        yield msgspec.structs.replace(finding, because=because)
