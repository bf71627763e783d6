"""What GitHub is told: bounded, by cause, worst first, and nothing left out in silence."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from compat import cli, github
from compat.exit_codes import FINDINGS, OK, USAGE
from compat.records import Outcome, Run, summarize
from compat.render.github import MOST, ROWS, SUMMARY_BYTES, command, render_annotations, render_summary
from compat.render.summary import summarise
from compat.store import read_run, write_run

from .sample_runs import a_cell, a_check, large_run, small_run

H200 = Path(__file__).parents[2] / "reports" / "h200"


def many_causes(count: int) -> Run:
    """A run with `count` causes of failure and as many of degradation."""
    cells = []
    for n in range(count):
        for outcome, attention in ((Outcome.FAIL, "eager"), (Outcome.DEGRADED, "sdpa")):
            place = f"model{n}/bf16/{attention}/none"
            cells.append(a_cell(place, a_check("load", outcome, place, f"cause {n}", signature=f"s{n} {attention}")))
    return msgspec.structs.replace(small_run(), cells=tuple(cells), summary=summarize(cells, 1))


@pytest.mark.parametrize(("causes", "shown"), [(1, 1), (MOST, MOST), (MOST + 1, MOST), (40, MOST)])
def test_annotations_are_at_most_ten_of_a_kind_and_the_last_counts_the_rest(causes: int, shown: int) -> None:
    lines = render_annotations(many_causes(causes)).splitlines()
    for kind in ("error", "warning"):
        own = [line for line in lines if line.startswith(f"::{kind} ")]
        assert len(own) == shown
        told = re.search(r"title=compat%3A (\d+) more causes?::(\d+) cells? more;", own[-1])
        assert (told is not None) == (causes > MOST)
        assert told is None or int(told[1]) == int(told[2]) == causes - MOST + 1
    kinds = [line.split()[0] for line in lines]
    assert kinds == sorted(kinds), "errors first"


def test_nothing_wrong_is_no_annotation() -> None:
    run = small_run()
    fine = msgspec.structs.replace(run, cells=tuple(c for c in run.cells if c.outcome is Outcome.PASS))
    assert render_annotations(fine) == ""


def test_properties_and_messages_are_escaped_as_the_runner_reads_them() -> None:
    made = command("error", "a: b, 50%", "1: 2, 50%\nnext")
    assert made == "::error title=a%3A b%2C 50%25::1: 2, 50%25 next"


@pytest.mark.parametrize("room", [SUMMARY_BYTES, 20_000])
def test_a_summary_fits_and_names_what_it_leaves_out(room: int) -> None:
    run = large_run()
    text = render_summary(run, room)
    assert len(text.encode("utf-8")) <= room
    assert text.startswith("## compat\n")
    causes = summarise(run).failures
    whole = all(f"<summary>{n}. " in text for n in range(1, len(causes) + 1))
    assert ("Left out here" in text) == (not whole or text.count("<summary>Matrix") < len(summarise(run).panels))
    if room == SUMMARY_BYTES:
        assert whole
        assert "Left out" not in text


def test_more_causes_than_a_table_takes_are_counted() -> None:
    run = many_causes(ROWS // 2 + 5)
    text = render_summary(run, 60_000)
    assert len(text.encode("utf-8")) <= 60_000
    assert re.search(r"Left out here, since a summary takes 1 MiB: .*causes in full \(\d+\)", text)
    assert "10 more causes in the stored run." in render_summary(run)


def test_no_room_is_no_half_sentence() -> None:
    assert render_summary(small_run(), 0) == ""
    assert render_summary(small_run(), -5) == ""


STEP = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": "/x/summary"}


@pytest.mark.parametrize(
    ("asked", "known", "path"),
    [
        (None, STEP, "/x/summary"),
        (True, STEP, "/x/summary"),
        (False, STEP, None),
        (None, {}, None),
        (None, {"GITHUB_STEP_SUMMARY": "/x/summary"}, None),
        (None, {"GITHUB_ACTIONS": "true"}, None),
        (True, {"GITHUB_STEP_SUMMARY": "/x/summary"}, "/x/summary"),
    ],
)
def test_github_is_told_in_its_steps_or_when_asked(asked: bool | None, known: dict[str, str], path: str | None) -> None:
    assert github.summary_file(asked, known) == (None if path is None else Path(path))


def test_asking_outside_of_a_step_is_an_error() -> None:
    with pytest.raises(github.GithubError, match="GITHUB_STEP_SUMMARY names no file"):
        github.summary_file(True, {})


def test_the_report_command_tells_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(small_run(), tmp_path)
    summary = tmp_path / "summary.md"
    summary.write_text("before\n", encoding="utf-8")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert cli.main(["report", str(tmp_path)]) == OK
    out = capsys.readouterr().out
    assert render_annotations(small_run()) in out
    assert summary.read_text(encoding="utf-8") == "before\n" + render_summary(small_run())
    assert cli.main(["report", str(tmp_path), "--no-github"]) == OK
    assert cli.main(["report", str(tmp_path), "--format", "json"]) == OK
    out = capsys.readouterr().out
    assert not [line for line in out.split("\n") if line.startswith("::")]
    assert summary.read_text(encoding="utf-8") == "before\n" + render_summary(small_run())
    summary.write_text("x" * (SUMMARY_BYTES - 100), encoding="utf-8")
    assert cli.main(["report", str(tmp_path)]) == OK
    assert summary.stat().st_size <= SUMMARY_BYTES
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "no" / "folder"))
    capsys.readouterr()
    assert cli.main(["report", str(tmp_path)]) == OK
    assert "the step's summary cannot be written" in capsys.readouterr().err
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    assert cli.main(["report", str(tmp_path), "--github"]) == USAGE
    assert "GITHUB_STEP_SUMMARY" in capsys.readouterr().err


def test_every_cause_of_a_published_run_is_in_its_summary() -> None:
    run = read_run(H200)
    text = render_summary(run)
    causes = summarise(run, pattern_limit=4).failures
    assert len(re.findall(r"^<summary>\d+\. ", text, flags=re.MULTILINE)) == len(causes) > 20
    assert "Left out" not in text


def test_what_is_expected_is_counted_and_no_error() -> None:
    run = many_causes(2)
    expected = {("model0/bf16/eager/none", "load"), ("model1/bf16/sdpa/none", "load")}
    lines = render_annotations(run, expected).splitlines()
    assert [line.split()[0] for line in lines] == ["::error", "::warning", "::notice"]
    assert "model1/bf16/eager/none" in lines[0]
    assert "model0/bf16/sdpa/none" in lines[1]
    assert lines[2] == "::notice title=compat%3A 2 expected failures::in 2 cells; `compat expect` names each."
    assert "Expectations name 2 failing checks of those below." in render_summary(run, expected=expected)


def test_a_cell_keeps_what_is_not_expected() -> None:
    place = "model0/bf16/eager/none"
    checks = (a_check("load", Outcome.FAIL, place, "known"), a_check("cache", Outcome.DEGRADED, place, "new"))
    run = msgspec.structs.replace(small_run(), cells=(a_cell(place, *checks),))
    (only, notice) = render_annotations(run, {(place, "load")}).splitlines()
    assert only.startswith("::warning title=compat%3A degraded in 1 cell::")
    assert "new" in only
    assert "1 expected failure::" in notice


def test_the_gate_of_expectations_tells_the_step_what_is_not_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = many_causes(2)
    (tmp_path / "run").mkdir()
    write_run(run, tmp_path / "run")
    book, summary = tmp_path / "book.toml", tmp_path / "summary.md"
    book.write_text(
        '[[expect]]\ncells = ["model0/*"]\noutcome = ["fail", "degraded"]\nreason = "known"\n', encoding="utf-8"
    )
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    words = ["expect", str(tmp_path / "run"), "--expectations", str(book), "--github"]
    assert cli.main(words) == FINDINGS
    lines = [line for line in capsys.readouterr().out.split("\n") if line.startswith("::")]
    assert [line.split()[0] for line in lines] == ["::error", "::warning", "::notice"]
    assert all("model1" in line for line in lines[:2])
    assert "Expectations name 2 failing checks" in summary.read_text(encoding="utf-8")
