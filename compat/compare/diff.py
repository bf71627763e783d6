"""Two runs compared: what became of every cell and every check, and what else is not alike. Pure.

In: two runs. Out: a `Diff` (compat/compare/result.py). `diff_runs(a, a)` holds nothing but `same`; swapping the runs
swaps regressed with fixed and new with gone. A diff says what happened; compat/compare/gate.py says what of it counts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compat.compare.result import CellChange, CheckChange, Diff, Difference, Kind, Side
from compat.compare.speed import LEAST_EFFECT, compare_speed
from compat.records import BAD, WITHHELD, Cell, Check, Outcome, Run

RANK: dict[Outcome, int] = {
    Outcome.PASS: 0,
    Outcome.DEGRADED: 1,
    Outcome.UNSUPPORTED: 2,
    **dict.fromkeys(BAD - {Outcome.ERROR}, 3),
}
"""Outcomes that say something of the cell, best first. A refusal in plain words is worse than a result that can be
used, and better than a wrong one. `error`, `inconclusive`, `unavailable` and `not_run` say nothing of the cell: to or
from one of these is a change without direction."""

ONCE = frozenset({Outcome.OOM, Outcome.TIMEOUT})
"""Outcomes that a busy machine can cause: believed when they repeat."""

EFFECTIVE = ("attention", "dtype", "quantization", "kernels", "quantized_modules")
"""What held after loading, as far as a change of it matters."""

SETTINGS = ("compat", "criteria", "depth", "seed", "speed", "selected")
"""Settings of a run that shape its outcomes."""

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def diff_runs(base: Run, head: Run, least_effect: float = LEAST_EFFECT) -> Diff:
    """What `head` has other than `base`; `least_effect` is the smallest relative difference of a speed to state."""
    ours, theirs = {c.id: c for c in head.cells}, {c.id: c for c in base.cells}
    repeated = _repeated(base), _repeated(head)
    ids = [*ours, *(i for i in theirs if i not in ours)]
    speed, not_comparable = compare_speed(base, head, least_effect)
    return Diff(
        base=_side(base),
        head=_side(head),
        differences=tuple(_differences(base, head)),
        cells=tuple(_cell(theirs.get(i), ours.get(i), repeated) for i in ids),
        speed=speed,
        speed_not_comparable=not_comparable,
        least_effect=least_effect,
        compared=sum(k.name in {x.name for x in theirs[i].checks} for i in ours if i in theirs for k in ours[i].checks),
    )


def outcomes_seen(check: Check) -> frozenset[Outcome]:
    """The outcome of `check` and those of its earlier attempts (`evidence.facts["attempts"]`)."""
    earlier = check.evidence.facts.get("attempts")
    said = [a.get("outcome") for a in earlier if isinstance(a, Mapping)] if isinstance(earlier, Sequence) else []
    return frozenset({check.outcome, *(Outcome(o) for o in said if o in set(Outcome))})


def flaky(check: Check) -> bool:
    """Whether the attempts of `check` within its run differ."""
    return len(outcomes_seen(check)) > 1


# -- cells and checks --------------------------------------------------------------------------------------------

_Repeated = frozenset[tuple[str, Outcome]]


def _load_group(cell: Cell) -> str:
    return "/".join(cell.axes.get(a, "") for a in ("model", "dtype", "quantization", "mode"))


def _repeated(run: Run) -> _Repeated:
    """(load group, outcome) of ONCE that several checks of the group have, or that one was asked for again and kept."""
    seen: Counter[tuple[str, Outcome]] = Counter()
    for cell in run.cells:
        for check in cell.checks:
            if check.outcome in ONCE:
                again = "attempts" in check.evidence.facts and not flaky(check)
                seen[_load_group(cell), check.outcome] += 2 if again else 1
    return frozenset(key for key, count in seen.items() if count > 1)


def _cell(base: Cell | None, head: Cell | None, repeated: tuple[_Repeated, _Repeated]) -> CellChange:
    cell = head or base
    assert cell is not None
    before = {c.name: c for c in base.checks} if base else {}
    after = {c.name: c for c in head.checks} if head else {}
    changes, same = [], 0
    for name in [*after, *(n for n in before if n not in after)]:
        one, other = before.get(name), after.get(name)
        once = (
            one is not None and one.outcome in ONCE and (_load_group(cell), one.outcome) not in repeated[0],
            other is not None and other.outcome in ONCE and (_load_group(cell), other.outcome) not in repeated[1],
        )
        kind = _kind(one, other, once)
        if kind is Kind.SAME:
            same += 1
        else:
            changes.append(_check(name, kind, one, other))
    effective = _effective(base, head) if base and head else ()
    return CellChange(
        id=cell.id,
        axes=cell.axes,
        kind=_cell_kind(base, head, {c.kind for c in changes}, bool(effective)),
        base=base.outcome if base else None,
        head=head.outcome if head else None,
        checks=tuple(changes),
        same=same,
        effective=effective,
    )


def _kind(base: Check | None, head: Check | None, once: tuple[bool, bool]) -> Kind:
    """What became of a check; `once` says of which sides an outcome of ONCE stands alone."""
    if base is None:
        return Kind.NEW
    if head is None:
        return Kind.GONE
    seen = outcomes_seen(base), outcomes_seen(head)
    if seen[0] != seen[1] and max(map(len, seen)) > 1 and seen[0] & seen[1]:
        return Kind.FLAKY
    if base.outcome is head.outcome:
        one, other = base.evidence.signature, head.evidence.signature
        return Kind.CHANGED if one and other and one != other else Kind.SAME
    before, after = RANK.get(base.outcome), RANK.get(head.outcome)
    if before is None or after is None or before == after:
        return Kind.CHANGED
    if once[before < after]:  # the worse side
        return Kind.SPURIOUS
    return Kind.REGRESSED if before < after else Kind.FIXED


def _cell_kind(base: Cell | None, head: Cell | None, kinds: set[Kind], effective: bool) -> Kind:
    """A cell's kind from those of its checks. Where `load` was withheld in one run, the outcomes of the cells count
    too: a combination that was refused and now runs wrongly has no check that both runs asked."""
    if base is None:
        return Kind.NEW
    if head is None:
        return Kind.GONE
    before, after = RANK.get(base.outcome), RANK.get(head.outcome)
    if _withheld(base) != _withheld(head) and before is not None and after is not None and before != after:
        kinds = kinds | {Kind.REGRESSED if before < after else Kind.FIXED}
    if {Kind.REGRESSED, Kind.FIXED} <= kinds:
        return Kind.MIXED
    for kind in (Kind.REGRESSED, Kind.FIXED, Kind.FLAKY, Kind.SPURIOUS):
        if kind in kinds:
            return kind
    return Kind.CHANGED if kinds or effective or base.outcome is not head.outcome else Kind.SAME


def _withheld(cell: Cell) -> bool:
    load = cell.check("load")
    return load is not None and load.outcome in WITHHELD


def _check(name: str, kind: Kind, base: Check | None, head: Check | None) -> CheckChange:
    worse = _worse(base, head)
    return CheckChange(
        check=name,
        kind=kind,
        base=base.outcome if base else None,
        head=head.outcome if head else None,
        attempts=max(c.attempts for c in (base, head) if c),
        cause=worse.evidence.signature or _NUMBER.sub("#", worse.reason),
        reason=worse.reason,
        repro=(head or worse).evidence.repro,
    )


def _worse(base: Check | None, head: Check | None) -> Check:
    """The side whose reason is to be told: the worse one, head where neither is."""
    if base is None or head is None:
        one = head or base
        assert one is not None
        return one
    order = list(Outcome)
    worse_base = order.index(base.outcome) < order.index(head.outcome)
    if Outcome.PASS in (base.outcome, head.outcome):  # why it is not a pass, whatever it is
        return head if base.outcome is Outcome.PASS else base
    return base if worse_base else head


# -- what else is not alike --------------------------------------------------------------------------------------


def _side(run: Run) -> Side:
    return Side(
        id=run.run.id,
        started=run.run.started,
        complete=run.run.complete,
        cells=len(run.cells),
        device=run.run.device,
        stack=run.run.stack.name,
        fingerprint=run.environment.fingerprint,
    )


def _differences(base: Run, head: Run) -> Iterator[Difference]:
    yield from _other("package", base.environment.packages, head.environment.packages)
    yield from _other("machine", _machine(base), _machine(head))
    yield from _other("run", _settings(base), _settings(head))


def _machine(run: Run) -> dict[str, str]:
    env = run.environment
    gpus = ", ".join(f"{n} x {g.name} {g.arch}".strip() for g, n in Counter(env.gpus).items())
    known = {
        "device": run.run.device,
        "gpus": gpus,
        "cpu": env.cpu,
        "platform": env.platform,
        "python": env.python,
        "driver": env.driver,
        "cuda": env.cuda,
        "cudnn": env.cudnn,
    }
    return known | {f"${name}": value for name, value in env.env_vars.items()}


def _settings(run: Run) -> dict[str, str]:
    info = run.run
    models, shard = info.settings.get("models"), info.settings.get("shard")
    digests = {
        f"model {name}": str(row.get("digest", "")) for name, row in models.items() if isinstance(row, Mapping)
    } if isinstance(models, Mapping) else {}  # fmt: skip
    return {
        "matrix": f"{info.matrix.path} {info.matrix.sha256[:12]}".strip(),
        "stack": info.stack.name,
        **{name: _text(info.settings[name]) for name in SETTINGS if name in info.settings},
        **({"shard": str(shard.get("part", ""))} if isinstance(shard, Mapping) else {}),
        **digests,
    }


def _other(subject: str, base: Mapping[str, str], head: Mapping[str, str]) -> Iterator[Difference]:
    for name in [*head, *(n for n in base if n not in head)]:
        one, other = base.get(name, ""), head.get(name, "")
        if one != other:
            yield Difference(subject=subject, name=name, base=one, head=other)


def _effective(base: Cell, head: Cell) -> tuple[Difference, ...]:
    """What held after loading, where both runs say so."""
    sides = [{k: _text(c.effective[k]) for k in EFFECTIVE if k in c.effective} for c in (base, head)]
    return tuple(_other("effective", *sides)) if all(sides) else ()


def _text(value: Any) -> str:
    """A stored setting as text that is the same for equal values."""
    if isinstance(value, Mapping):
        return " ".join(f"{k}={_text(value[k])}" for k in sorted(value))
    if isinstance(value, (list, tuple)):
        return ",".join(map(_text, value))
    return str(value)
