"""A stored run as JUnit XML, in the form that pytest's --junitxml gives the same tests.

In: a `Run`. Out: XML: one test case a check, with the axes, the outcome and the run's id as properties; a cell that was
not asked at all is one skipped case. What fails a test under pytest is a failure here, `error` is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from xml.etree import ElementTree as ET

from compat.axes import AXES
from compat.records import BAD, Cell, Check, Outcome, Run
from compat.render.figures import measured
from compat.render.inert import label, one_line, visible
from compat.render.summary import environment

FAILED = BAD | {Outcome.DEGRADED}
"""Outcomes that fail a test, as in compat.plugin."""

CLASS = "compat.suites.test_matrix"
"""Where the same test is under pytest."""

CELL = "cell"
"""Stands for a check where a cell has none."""


def render_junit(run: Run) -> str:
    """The XML, ending in a newline. Its counts are those of its own test cases."""
    cases = [(cell, check) for cell in run.cells for check in _answers(cell)]
    counts = {
        "tests": len(cases),
        "failures": sum(c.outcome in FAILED - {Outcome.ERROR} for _, c in cases),
        "errors": sum(c.outcome is Outcome.ERROR for _, c in cases),
        "skipped": sum(c.outcome not in FAILED | {Outcome.PASS} for _, c in cases),
    }
    root = ET.Element("testsuites", name="compat")
    attributes = {"time": _seconds(run.summary.seconds), **{k: str(n) for k, n in counts.items()}}
    if run.run.started:
        attributes["timestamp"] = one_line(run.run.started, 40)
    suite = ET.SubElement(root, "testsuite", name="compat", attrib=attributes)
    _properties(suite, {**dict(environment(run)), "run": label(run.run.id)})
    for cell, check in cases:
        _case(suite, run, cell, check)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _answers(cell: Cell) -> Iterator[Check]:
    yield from cell.checks
    if not cell.checks:
        yield Check(name=CELL, outcome=cell.outcome, reason=cell.reason)


def _case(suite: ET.Element, run: Run, cell: Cell, check: Check) -> None:
    name = f"test_{label(check.name, 60)}[{label(cell.id, 300)}]"
    case = ET.SubElement(suite, "testcase", classname=CLASS, name=name, time=_seconds(check.seconds))
    axes = {axis: cell.axes[axis] for axis in AXES if axis in cell.axes}
    named = {**axes, **cell.axes, "check": check.name, "outcome": check.outcome.value, "run": run.run.id}
    _properties(case, {label(k, 60): label(v, 200) for k, v in named.items()})
    if check.outcome is Outcome.PASS:
        return
    reason = one_line(check.reason) or check.outcome.value
    if check.outcome is Outcome.ERROR or check.outcome in FAILED:
        kind = "error" if check.outcome is Outcome.ERROR else "failure"
        told = ET.SubElement(case, kind, message=f"{check.outcome.value}: {reason}", type=check.outcome.value)
        told.text = "\n".join(_lines(check))
    else:
        ET.SubElement(case, "skipped", message=f"{check.outcome.value}: {reason}", type="pytest.skip")


def _lines(check: Check) -> Iterator[str]:
    """What a reader needs beside the reason."""
    evidence = check.evidence
    if check.reason:
        yield one_line(check.reason, 2000)
    judged = [m for m in check.measurements if m.better != "none" and m.name in check.reason]
    yield from (measured(m) for m in judged[:10])
    if evidence.kernels:
        yield f"kernels: {', '.join(label(k) for k in sorted(evidence.kernels)[:12])}"
    if evidence.diverges_at:
        yield f"first module that leaves: {one_line(evidence.diverges_at, 200)}"
    if evidence.exception is not None:
        text = evidence.exception.traceback.strip() or f"{evidence.exception.type}: {evidence.exception.message}"
        yield visible(text[-8000:], lines=True)
    if evidence.repro:
        yield f"again: {one_line(evidence.repro, 1000)}"


def _properties(parent: ET.Element, pairs: Mapping[str, str]) -> None:
    holder = ET.SubElement(parent, "properties")
    for name, value in pairs.items():
        ET.SubElement(holder, "property", name=name, value=value)


def _seconds(seconds: float) -> str:
    return f"{max(seconds, 0.0):.3f}"
