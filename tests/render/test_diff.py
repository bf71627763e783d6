"""The diff of two made-up runs, compared with stored pages; and text that is meant to harm."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from compat.compare.diff import diff_runs
from compat.compare.gate import GATES, findings
from compat.compare.result import Diff, decode_diff
from compat.records import Cell, Check, Evidence, Measurement, Outcome, Run, cell_outcome, summarize
from compat.render.diff import FORMATS, render_diff

from .sample_runs import small_run

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = {"diff.txt": "terminal", "diff.md": "markdown", "diff.json": "json"}


def _with(cell: Cell, **changes: object) -> Cell:
    """`cell` with its last check changed."""
    last = msgspec.structs.replace(cell.checks[-1], **changes)
    checks = (*cell.checks[:-1], last)
    return msgspec.structs.replace(cell, checks=checks, outcome=cell_outcome(checks))


def later_run() -> Run:
    """The small run, later: one regression with a cause in two cells, a fix, a flaky and a spurious check, a cell less,
    a cell more, another kernel, another package."""
    run = small_run()
    cells: dict[str, Cell] = {c.id: c for c in run.cells}
    evidence = Evidence(signature="agreement: ratio_rms", repro="compat run m.toml --cells 'llama/fp16/*'")
    for place in ("llama/fp16/eager/none", "llama/fp16/sdpa/none"):
        cells[place] = _with(cells[place], outcome=Outcome.FAIL, reason="ratio_rms 3.2, pass <= 1.5", evidence=evidence)
    fixed = cells["falcon/bf16/sdpa/none"]
    checks = tuple(msgspec.structs.replace(c, outcome=Outcome.PASS, reason="") for c in fixed.checks)
    cells["falcon/bf16/sdpa/none"] = msgspec.structs.replace(fixed, checks=checks, outcome=Outcome.PASS)
    tries = Evidence(facts={"attempts": [{"outcome": "fail"}]}, repro="compat run m.toml")
    cells["llama/bf16/eager/none"] = _with(
        cells["llama/bf16/eager/none"], attempts=2, outcome=Outcome.DEGRADED, reason="once so, once so", evidence=tries
    )
    before = cells["falcon/fp16/eager/none"]
    cells["falcon/fp16/eager/none"] = _with(before, outcome=Outcome.TIMEOUT, reason="no answer after 60 s")
    cells["falcon/fp32/eager/none"] = msgspec.structs.replace(
        cells["falcon/fp32/eager/none"], effective={"attention": "eager", "kernels": ["sdpa math"]}
    )
    del cells["gpt2/fp16/eager/none"]
    fresh = cells["llama/fp32/sdpa/none"]
    cells["qwen2/fp32/sdpa/none"] = msgspec.structs.replace(
        fresh, id="qwen2/fp32/sdpa/none", axes={**fresh.axes, "model": "qwen2"}
    )
    packages = {**run.environment.packages, "transformers": "5.24.0", "peft": "0.21.2"}
    return Run(
        run=msgspec.structs.replace(run.run, id="later", started="2026-02-04T10:20:30Z"),
        environment=msgspec.structs.replace(run.environment, packages=packages),
        cells=tuple(cells.values()),
        summary=summarize(cells.values(), 1.0),
    )


def earlier_run() -> Run:
    """The small run, whose flaky check passed."""
    run = small_run()
    cells = {c.id: c for c in run.cells}
    steady = cells["llama/bf16/eager/none"]
    cells["llama/bf16/eager/none"] = _with(
        steady, outcome=Outcome.DEGRADED, evidence=Evidence(signature="speed: decode_speedup_high")
    )
    cells["falcon/fp32/eager/none"] = msgspec.structs.replace(
        cells["falcon/fp32/eager/none"], effective={"attention": "eager", "kernels": ["sdpa flash"]}
    )
    return msgspec.structs.replace(run, cells=tuple(cells.values()))


def sample() -> Diff:
    """What became of the small run."""
    return diff_runs(earlier_run(), later_run())


@pytest.mark.parametrize("name", NAMES)
def test_page_is_as_stored(name: str) -> None:
    diff = sample()
    text = render_diff(diff, NAMES[name], found=findings(diff, GATES))
    path = GOLDEN / name
    if os.environ.get("COMPAT_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{name} changed; COMPAT_UPDATE_GOLDEN=1 stores it anew"


def test_json_is_the_stored_form_and_other_formats_are_refused() -> None:
    assert decode_diff(render_diff(sample(), "json").encode()) == sample()
    with pytest.raises(ValueError, match="terminal, markdown, json"):
        render_diff(sample(), "html")


def test_no_line_is_wider_than_the_terminal_but_commands() -> None:
    lines = render_diff(sample(), "terminal", width=60).splitlines()
    assert [x for x in lines if len(x) > 60 and not x.startswith("   $ ")] == []


def test_runs_that_share_no_check_say_that_nothing_can_be_compared() -> None:
    run = small_run()
    nothing = msgspec.structs.replace(run, cells=())
    diff = diff_runs(run, nothing)
    assert diff.compared == 0
    for form in FORMATS[:2]:
        assert "Nothing can be compared" in render_diff(diff, form)


HARM = "<script>x</script>`|\x1b[31m\u202e @user [a](http://b)"


def _hostile(run: Run) -> Run:
    """`run` with harm in every text."""
    speed = Measurement(name="prefill_speedup", unit="x", value=0.5, ci95=(0.4, 0.6), at={"length": 8.0})
    evidence = Evidence(signature=HARM, repro=HARM, facts={"baseline": HARM})
    checks = (Check(name=HARM, outcome=Outcome.FAIL, reason=HARM, evidence=evidence),)
    other = Check(name="speed", outcome=Outcome.PASS, measurements=(speed,), evidence=evidence)
    cell = run.cells[0]
    own = msgspec.structs.replace(cell, id=HARM, axes={**cell.axes, "model": HARM}, checks=checks)
    timed = msgspec.structs.replace(cell, checks=(other,), outcome=Outcome.PASS, effective={"attention": HARM})
    info = msgspec.structs.replace(run.run, id=HARM, started=HARM, device=HARM, settings={"seed": HARM})
    packages = {HARM: HARM}
    return msgspec.structs.replace(
        run, cells=(own, timed), run=info, environment=msgspec.structs.replace(run.environment, packages=packages)
    )


def _harmless(run: Run) -> Run:
    """The hostile run as it was before."""
    bad = _hostile(run)
    cells = tuple(
        msgspec.structs.replace(
            c,
            checks=tuple(
                msgspec.structs.replace(
                    k,
                    outcome=Outcome.PASS,
                    measurements=tuple(msgspec.structs.replace(m, value=1.0, ci95=(1.0, 1.0)) for m in k.measurements),
                )
                for k in c.checks
            ),
            effective={"attention": "x"} if c.effective else {},
        )
        for c in bad.cells
    )
    return msgspec.structs.replace(bad, cells=cells)


@pytest.mark.parametrize("form", ["terminal", "markdown"])
def test_text_from_a_run_cannot_do_harm(form: str) -> None:
    diff = diff_runs(_harmless(small_run()), _hostile(small_run()))
    text = render_diff(diff, form, found=findings(diff, GATES))
    assert "regressed" in text
    assert "slower" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    if form == "markdown":
        for line in text.splitlines():
            assert "<script" not in line
            assert "@user" not in line or line.count("`") or "&#64;" in line
            assert "](http" not in line
