"""Expectation files: what they may say, what they excuse, and the baselines that are written from runs."""

from __future__ import annotations

import datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import Phase, given, settings

from compat.commands.expect import gate
from compat.compare.baseline import updated
from compat.compare.expect import EXPECTABLE, ExpectationError, Expectations, account, read_expectations
from compat.matrix import read_matrix
from compat.records import Environment, Outcome, Run
from compat.store import read_run

from ..matrix_files import TINY, write
from ..stored_runs import runs
from .test_diff import A, cell, check, run_of

O = Outcome  # noqa: E741
ROOT = Path(__file__).parents[2]
UNSHRUNK = (Phase.explicit, Phase.generate)
"""Runs take long to shrink."""
DAY = datetime.date(2026, 6, 1)

FILE = """
[[expect]]
cells = "llama/*"
checks = ["agreement"]
outcome = "fail"
reason = "known"
"""


def book(folder: Path, text: str = FILE, device: str = "cpu", **packages: str) -> Expectations:
    """The file with this text, for a device and packages."""
    return read_expectations(write(folder, text, "e.toml")).on(device, packages, DAY)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("checks =", "check ="), "expect[0].check: unknown key; nearest valid: 'checks'"),
        (('"agreement"', '"agrement"'), "expect[0].checks: unknown value 'agrement'; nearest valid: 'agreement'"),
        (('"fail"', '"failed"'), "expect[0].outcome: unknown value 'failed'; nearest valid: 'fail'"),
        (('"fail"', '"error"'), "expect[0].outcome: unknown value 'error'"),
        (('"fail"', '"pass"'), "expect[0].outcome: unknown value 'pass'"),
        (('reason = "known"', 'reason = " "'), "expect[0].reason: is missing or empty"),
        (('reason = "known"', ""), "expect[0].reason: is missing or empty"),
        (('cells = "llama/*"', "cells = []"), "expect[0].cells: is empty"),
        (('cells = "llama/*"', "cells = 3"), "expect[0].cells: 3 is no text"),
        (("reason", 'when = "torch"\nreason'), "expect[0].when: 'torch' is no condition such as 'torch<2.10'"),
        (("reason", 'when = "torch <<2"\nreason'), "expect[0].when: 'torch <<2' is no condition"),
        (("reason", 'device = "gpu"\nreason'), "expect[0].device: unknown value 'gpu'; nearest valid: 'cpu'"),
        (("reason", 'expires = "soon"\nreason'), "expect[0].expires: 'soon' is no date such as 2026-12-31"),
        (("reason", 'issue = "123"\nreason'), "expect[0].issue: '123' is no link"),
        (("reason", "strict = 1\nreason"), "expect[0].strict: 1 is neither true nor false"),
        (("[[expect]]", "[[expects]]"), "expects: unknown key; nearest valid: 'expect'"),
        (("[[expect]]", "[expect]"), "expect: is written as [[expect]] tables"),
        (("[[expect]]", "[[expect]"), "(file): not valid TOML"),
    ],
)
def test_a_mistake_is_named_with_file_key_and_what_would_be_right(
    change: tuple[str, str], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ExpectationError) as raised:
        book(tmp_path, FILE.replace(*change, 1))
    assert str(tmp_path / "e.toml") in str(raised.value)
    assert says in str(raised.value)


def test_an_absent_file_is_named_with_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, FILE, "known.toml")
    with pytest.raises(ExpectationError, match=r"knwon.toml.*nearest valid: 'known.toml'"):
        read_expectations(tmp_path / "knwon.toml")


def test_only_the_named_outcome_of_the_named_check_is_excused(tmp_path: Path) -> None:
    known = book(tmp_path)
    assert known.covering(A, check(O.FAIL)) is not None
    assert known.covering(A, check(O.CRASH)) is None, "another outcome is news"
    assert known.covering(A, check(O.FAIL, "padding")) is None
    assert known.covering("opt/fp32/eager/none", check(O.FAIL)) is None
    either = book(tmp_path, FILE.replace("llama/*", "{llama,opt}/*"))
    assert either.covering("opt/fp32/eager/none", check(O.FAIL)) is not None, "as reports write many cells"
    assert either.covering("gpt2/fp32/eager/none", check(O.FAIL)) is None


@pytest.mark.parametrize(
    ("conditions", "device", "packages", "holds"),
    [
        ('when = "torch<2.10"', "cpu", {"torch": "2.9.1"}, True),
        ('when = "torch<2.10"', "cpu", {"torch": "2.10.0+cpu"}, False),
        ('when = "torch>=2.10"', "cpu", {"torch": "2.13.0+cpu"}, True),
        ('when = ["torch>=2", "flash-attn<3"]', "cpu", {"torch": "2.9", "flash_attn": "2.8.3.post2"}, True),
        ('when = ["torch>=2", "flash-attn<3"]', "cpu", {"torch": "2.9"}, False),
        ('when = "transformers>=5"', "cpu", {"transformers": "5.24.0.dev0"}, True),
        ('device = "cuda"', "cpu", {}, False),
        ('device = "cuda"', "cuda", {}, True),
        ("expires = 2026-06-01", "cpu", {}, True),
        ("expires = 2026-05-31", "cpu", {}, False),
    ],
)
def test_conditions(conditions: str, device: str, packages: dict[str, str], holds: bool, tmp_path: Path) -> None:
    known = book(tmp_path, FILE + conditions, device, **packages)
    assert (known.covering(A, check(O.FAIL)) is not None) == holds


def test_what_an_account_tells_apart(tmp_path: Path) -> None:
    text = FILE + (
        '[[expect]]\ncells = "opt/*"\noutcome = "crash"\nreason = "gone"\nexpires = 2026-01-01\n'
        '[[expect]]\ncells = "t5/*"\noutcome = "fail"\nreason = "fits nothing"\n'
        '[[expect]]\ncells = "bert/*"\noutcome = "fail"\nreason = "a whole cell"\n'
        '[[expect]]\ncells = "gpt2/*"\nchecks = ["agreement"]\noutcome = "fail"\nreason = "loose"\nstrict = false\n'
    )
    run = run_of(
        cell(A, check(O.FAIL), check(O.FAIL, "padding")),
        cell("llama/fp32/eager/none", check(O.PASS)),
        cell("opt/fp32/eager/none", check(O.CRASH)),
        cell("bert/fp32/eager/none", check(O.PASS)),
        cell("gpt2/fp32/eager/none", check(O.PASS)),
    )
    found = account(run, book(tmp_path, text))
    assert [(c.id, k.name, e.key) for c, k, e in found.expected] == [(A, "agreement", "expect[0]")]
    assert [(c.id, k.name) for c, k in found.unexpected] == [(A, "padding"), ("opt/fp32/eager/none", "agreement")]
    assert [(c.id, e.key) for c, _, e in found.passing] == [
        ("llama/fp32/eager/none", "expect[0]"),
        ("bert/fp32/eager/none", "expect[3]"),
    ]
    assert [e.key for e in found.expired] == ["expect[1]"]
    assert [e.key for e in found.idle] == ["expect[2]"]


@settings(max_examples=15)
@given(runs())
def test_nothing_failing_is_lost_and_outcomes_stay(run: Run) -> None:
    found = account(run, None)
    failing = [k for c in run.cells for k in c.checks if k.outcome in {*EXPECTABLE, O.ERROR} - {O.INCONCLUSIVE}]
    assert [k for _, k in found.unexpected] == failing
    assert not found.expected


# -- the files that come with compat -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "device"), [("cpu", "cpu"), ("h200", "cuda")])
def test_every_failure_of_the_published_runs_is_known_and_no_more(name: str, device: str) -> None:
    run = read_run(ROOT / "reports" / name / "run.json.xz")
    known = read_expectations(ROOT / "matrices" / "expectations" / f"default-{device}.toml")
    found = account(run, known.on(device, run.environment.packages, DAY))
    assert not [f"{c.id}: {k.name}: {k.outcome}: {k.reason}" for c, k in found.unexpected]
    assert not [f"{c.id}: {k.name}: {e.key}" for c, k, e in found.passing]
    assert not [e.key for e in found.idle]
    assert {e.key for _, _, e in found.expected} == {e.key for e in known.entries}, "an entry that excuses nothing"


def test_a_matrix_may_name_its_expectations(tmp_path: Path) -> None:
    write(tmp_path, FILE, "mine.toml")
    path = write(tmp_path, 'expectations = "mine.toml"\n' + TINY)
    assert read_matrix(path, "cpu").expectations == tmp_path / "mine.toml"


# -- baselines ---------------------------------------------------------------------------------------------------


@settings(max_examples=10, phases=UNSHRUNK)
@given(runs())
def test_a_baseline_of_a_run_excuses_exactly_what_fails_in_it(run: Run) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "e.toml"
        path.write_text(updated(run).text, encoding="utf-8")
        known = read_expectations(path).on(run.run.device, run.environment.packages, DAY)
        found = account(run, known, EXPECTABLE)
        assert not found.unexpected
        assert not found.passing
        again = updated(run, path.read_text(encoding="utf-8"), known)
        assert again.text == path.read_text(encoding="utf-8"), "a second update changes nothing"
        assert (again.added, again.removed) == ((), ())


def test_an_update_keeps_comments_drops_what_is_fixed_and_says_so(tmp_path: Path) -> None:
    text = (
        "# ours\n\n# seen by Ann\n[[expect]]  # keep me\ncells = ['llama/*']\nchecks = ['agreement']\n"
        "outcome = 'fail'\n"
        "reason = 'known'  # really\n\n# to go\n[[expect]]\ncells = ['llama/*']\nchecks = ['padding']\n"
        "outcome = 'fail'\n"
        "reason = 'was fixed'\n\n[[expect]]\ncells = ['t5/*']\noutcome = 'fail'\nreason = 'not in this run'\n"
    )
    known = book(tmp_path, text)
    run = run_of(cell(A, check(O.FAIL), check(O.PASS, "padding"), check(O.DEGRADED, "cache", signature="cache: x")))
    new = updated(run, text, known)
    assert "# ours" in new.text
    assert "# seen by Ann\n[[expect]]  # keep me\n" in new.text
    assert "reason = 'known'  # really" in new.text
    assert "# to go" not in new.text
    assert "not in this run" in new.text
    assert new.removed == ("expect[1]: was fixed",)
    assert new.added == (f"{A}: cache degraded",)
    assert new.kept == 2
    assert not account(run, book(tmp_path, new.text)).unexpected


def test_a_file_whose_entries_cannot_be_told_apart_is_left_alone(tmp_path: Path) -> None:
    text = 'title = """\n[[expect]]\n"""\n' + FILE
    with pytest.raises(ValueError, match=r"1 entries, but 2 lines"):
        updated(run_of(cell(A, check(O.FAIL))), text, book(tmp_path, text))


# -- the gate ----------------------------------------------------------------------------------------------------


def test_the_gate_tells_what_is_known_and_how_to_accept_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, FILE, "e.toml")
    run = run_of(cell(A, check(O.FAIL)))
    assert gate(run, Path("compat-runs/x"), path, (), False) == 0
    assert "1 failure expected, 0 unexpected" in capsys.readouterr().out
    worse = run_of(cell(A, check(O.FAIL), check(O.CRASH, "padding")))
    assert gate(worse, Path("compat-runs/x"), path, (), False) == 1
    assert f"$ compat baseline update compat-runs/x --out {path}" in capsys.readouterr().out
    assert gate(worse, Path("compat-runs/x"), path, ("fail",), False) == 0, "--fail-on fail counts no crash"
    fixed = run_of(cell(A, check(O.PASS)))
    assert gate(fixed, Path("x"), path, (), False) == 0
    assert gate(fixed, Path("x"), path, (), True) == 1, "--strict counts unexpected passes"
    assert "1 passed although a failure is expected" in capsys.readouterr().out
    broken = run_of(cell(A, check(O.FAIL), check(O.ERROR, "padding")))
    assert gate(broken, Path("x"), path, ("fail",), False) == 3, "the harness's own fault is nobody's to expect"


def test_text_of_the_file_cannot_harm_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, FILE.replace('"known"', '"\\u001b[31m\\u202e"'), "e.toml")
    env = Environment(packages={"torch": "2"})
    bad = check(O.CRASH, "padding", signature="\x1b[2J")
    run = msgspec.structs.replace(run_of(cell(A, check(O.FAIL), bad)), environment=env)
    assert gate(run, Path("x\x1b"), path, (), True) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out
