"""Scripts as text: every kind compiles, imports nothing of ours, and takes hostile names for what they are."""

from __future__ import annotations

import ast
import tokenize
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compat import reproduce
from compat.builtin import matrix_path
from compat.checks import CHECKS as CHECKS_OF_CELLS
from compat.matrix import read_matrix
from compat.records import Check, Evidence, Outcome
from compat.reproduce import Subject, file_name, script, text
from compat.reproduce.bodies import judge
from compat.reproduce.expected import EXPECTED, FINDINGS, expected
from compat.rules import criteria_tables

from ..render.test_hostile import PAYLOADS

AXES = {"model": "llama", "dtype": "bf16", "attention": "sdpa", "quantization": "none"}
ROW: dict[str, Any] = {
    "name": "llama",
    "source": "probe",
    "type": "llama",
    "task": "causal-lm",
    "config": {"vocab_size": 9},
}
LAYOUT: dict[str, Any] = {"rows": [[5, 6], [7]], "side": "left", "length": 3, "pad": 0}
CASES: dict[str, dict[str, Any]] = {
    "forward": {"kind": "forward", "rows": [[5, 6]]},
    "images": {"kind": "forward", "images": {"seed": 1, "of": 4, "which": [2]}},
    "outliers": {"kind": "forward", "rows": [[5, 6]], "outliers": {"every": 7, "value": 400.0}},
    "padded": {"kind": "padded", **LAYOUT},
    "packed": {"kind": "packed", "rows": [[5, 6], [7]]},
    "decode": {"kind": "decode", **LAYOUT, "steps": [2, ["crop", 1], 2], "cache": "dynamic"},
    "decode with a copy": {"kind": "decode", **LAYOUT, "steps": [2, ["copy"], 1, ["back"], 1], "cache": "plain"},
    "generate": {"kind": "generate", **LAYOUT, "new": 2},
    "replay": {"kind": "replay", **LAYOUT, "new": 2, "settings": {"repetition_penalty": 1.3}},
    "repeat": {"kind": "repeat", "rows": [[5, 6]]},
}
RAISED: dict[str, dict[str, Any]] = {
    **{kind: case for kind, case in CASES.items() if kind not in ("outliers", "replay", "repeat")},
    **{kind: {"kind": kind} for kind in ("load", "switch", "save")},
    "train": {"kind": "train", "rows": [[5, 6]]},
    "drawn": {
        "kind": "generate",
        "drawn": {"seed": 0, "lengths": [3, 3]},
        "side": "left",
        "length": 3,
        "pad": 0,
        "new": 2,
    },
}
RAISES = {"phase": "forward", "type": "ValueError", "message": "rows"}


def _failed(name: str, reason: str = "", signature: str = "", **minimal: Any) -> Check:
    evidence = Evidence(minimal=minimal, signature=signature, facts={"switch": "ignored: asked for sdpa, stayed eager"})
    return Check(name=name, outcome=Outcome.FAIL, reason=reason, evidence=evidence)


CHECKS = {
    "load": _failed("load", "quantized_share 0.1"),
    "quality": _failed("quality", bounds={"codes_differing": 0}),
    "gradient": _failed("gradient", bounds={"ratio_rms": 1.5}),
    "gradient of parameters": _failed("gradient", bounds={"yardstick_parameter": 48}),
    "memory": _failed("memory", bounds={"left_behind_bytes": 0}),
    "memory of weights": _failed("memory", bounds={"weights_over_scheme": 1.01}),
    "cache": _failed("cache", bounds={"cache_over_arithmetic": 1.05}, note="no single call"),
    "dispatch": _failed("dispatch", signature="dispatch: path-fell-back: x"),
    "dispatch of weights": _failed("dispatch", signature="dispatch: attentions-switched: x"),
    "offload": _failed("load", "offload_difference 4", bounds={"offload_difference": 0}),
}


def _imported(source: str) -> set[str]:
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.Import, ast.ImportFrom))]
    return {(n.module or "") if isinstance(n, ast.ImportFrom) else n.names[0].name for n in nodes}


def _defined_before_use(source: str) -> None:
    """Every name that a function of the script reads at module level is defined there."""
    import builtins

    tree = ast.parse(source)
    defined = {"__name__", *dir(builtins)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            defined |= {(a.asname or a.name).split(".")[0] for a in node.names}
    read = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    assert read <= defined, read - defined


@pytest.mark.parametrize("quantization", ["none", "bnb-nf4"])
@pytest.mark.parametrize("kind", [*CASES, *CHECKS])
def test_every_kind_of_script_is_whole(kind: str, quantization: str) -> None:
    check = CHECKS.get(kind) or _failed("agreement", case=CASES[kind], beyond={"ratio_rms": 1.5})
    made = script(check, Subject("c", {**AXES, "quantization": quantization}, ROW))
    compile(made, "script", "exec")
    assert not {name for name in _imported(made) if name.split(".")[0] == "compat"}
    _defined_before_use(made)
    assert "sys.exit(1 if shows else 0)" in made


def test_a_student_is_distilled_again_and_others_bring_no_code_for_it() -> None:
    teacher = {**ROW, "name": "large"}
    made = script(_failed("agreement", case=CASES["forward"], beyond={"ratio_rms": 1.5}), Subject("c", AXES, ROW))
    taught = script(
        _failed("agreement", case=CASES["forward"], beyond={"ratio_rms": 1.5}),
        Subject("c", AXES, {**ROW, "teacher": teacher}),
    )
    assert "def distil(" in taught
    assert "build_student(ROW, folder" in taught
    assert "distil" not in made
    _defined_before_use(taught)


@pytest.mark.parametrize("kind", RAISED)
def test_every_call_that_raises_has_a_script_that_waits_for_its_exception(kind: str) -> None:
    made = script(_failed("load", case=RAISED[kind], raises=RAISES), Subject("c", AXES, ROW))
    compile(made, "script", "exec")
    assert not {name for name in _imported(made) if name.split(".")[0] == "compat"}
    _defined_before_use(made)
    assert "expected(" in made
    lost = Check(
        name="load", outcome=Outcome.CRASH, evidence=Evidence(minimal={"case": RAISED[kind], "raises": RAISES})
    )
    assert script(lost, Subject("c", AXES, ROW)), "a call that broke the device has one too"


def test_a_call_that_no_script_makes_has_none() -> None:
    assert script(_failed("load", case={"kind": "juggle"}, raises=RAISES), Subject("c", AXES, ROW)) == ""
    assert script(_failed("load", case={"kind": "juggle"}), Subject("c", AXES, ROW)) == ""


@pytest.mark.parametrize("kind", ["memory of weights", "load", "dispatch"])
def test_a_shape_is_drawn_and_not_read(kind: str) -> None:
    row = {**ROW, "source": "shape", "config": {"vocab_size": 9}}
    made = script(CHECKS[kind], Subject("c", {**AXES, "quantization": "bnb-nf4"}, row))
    compile(made, "script", "exec")
    assert not {name for name in _imported(made) if name.split(".")[0] == "compat"}
    _defined_before_use(made)
    assert "state_dict=drawn" in made


def test_what_no_script_stands_for_has_none() -> None:
    assert script(_failed("work", bounds={"linear_work": 1.0}), Subject("c", AXES, ROW)) == ""
    assert script(_failed("agreement", note="no single call"), Subject("c", AXES, ROW)) == ""
    passed = Check(name="load", outcome=Outcome.PASS, evidence=CHECKS["load"].evidence)
    assert script(passed, Subject("c", AXES, ROW)) == ""


HOSTILE = st.one_of(st.sampled_from(PAYLOADS), st.text(max_size=30), st.just('"""\nimport os\n'), st.just("{start}\\"))


@settings(max_examples=20)
@given(cell=HOSTILE, reason=HOSTILE, key=HOSTILE, value=st.one_of(HOSTILE, st.floats(), st.none()))
def test_text_of_a_run_stays_a_literal(cell: str, reason: str, key: str, value: Any) -> None:
    check = _failed("agreement", reason, case=CASES["padded"], beyond={key: 1.0})
    made = script(check, Subject(cell, AXES, {**ROW, key: value, "task": "causal-lm"}, packages={"torch": reason}))
    tree = ast.parse(made.encode("utf-8").decode("utf-8"))
    plain = script(_failed("agreement", case=CASES["padded"], beyond={}), Subject("c", AXES, ROW))
    shape = [type(n).__name__ for n in tree.body if not isinstance(n, (ast.Assign, ast.Expr))]
    assert shape == [type(n).__name__ for n in ast.parse(plain).body if not isinstance(n, (ast.Assign, ast.Expr))]
    named = {
        t.id: n.value for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)
    }
    assert ast.literal_eval(named["CELL"]) == cell


@given(
    value=st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), HOSTILE), lambda x: st.lists(x, max_size=3))
)
def test_a_literal_is_what_it_was(value: Any) -> None:
    assert ast.literal_eval(text.literal(value)) == value


@given(cell=HOSTILE, other=HOSTILE)
def test_file_names_are_safe_and_tell_cells_apart(cell: str, other: str) -> None:
    name = file_name(cell, "agreement")
    assert name.isascii()
    assert len(name) < 200
    assert not set(name) & set('/\\:*?"<>|\n\0 ')
    assert not name.startswith(("-", "."))
    assert (name == file_name(other, "agreement")) == (cell == other)


def test_file_names_of_the_default_matrix_are_plain() -> None:
    assert file_name("gpt_neox/bf16/sdpa-math/bnb-nf4", "load") == "gpt_neox_bf16_sdpa-math_bnb-nf4--load.py"
    cells = [c.id for c in read_matrix(matrix_path("default"), "cpu").cells]
    assert len({reproduce.file_name(c, "load") for c in cells}) == len(set(cells))


@settings(max_examples=40)
@given(name=st.sampled_from(["What", "Seen"]), words=HOSTILE)
def test_a_comment_holds_whatever_it_is_given(name: str, words: str) -> None:
    made = text.comment(name, words)
    assert made.isascii()
    assert all(line.startswith("# ") and line.isprintable() and len(line) <= 120 for line in made.split("\n"))


@settings(max_examples=20)
@given(reason=HOSTILE, version=HOSTILE, machine=HOSTILE)
def test_the_head_of_a_script_is_comments_that_change_nothing(reason: str, version: str, machine: str) -> None:
    check = _failed("agreement", reason, case=CASES["padded"], beyond={"ratio_rms": 1.5})
    made = script(check, Subject("c", AXES, ROW, packages={"torch": version}, machine=machine))
    lines = made.encode("utf-8").splitlines(keepends=True)
    assert tokenize.detect_encoding(iter(lines).__next__)[0] == "utf-8"
    before = made.split("from __future__")[0]
    assert len(ast.parse(before).body) == 1, "a docstring and comments"
    compile(made, "script", "exec")


def test_the_head_says_what_is_expected_seen_and_where() -> None:
    check = _failed("agreement", "ratio_rms 7, pass <= 1.5", case=CASES["padded"], beyond={"ratio_rms": 1.5})
    packages = {"torch": "2.13.0", "transformers": "5.23.0", "numpy": "2.4.6"}
    made = script(check, Subject("c", AXES, ROW, "cuda:0", packages, machine="1 x Example GPU, Python 3.11.9"))
    head = [" ".join(line.split()) for line in made.split("\n\n")[2].split("\n")]
    assert head[0] == "# What: llama in bf16, attention sdpa: agreement"
    assert head[1].startswith("# Expected: the output is as close to an fp64 computation")
    assert head[-3:] == [
        "# Seen: ratio_rms 7, pass <= 1.5",
        "# With: torch 2.13.0, transformers 5.23.0",
        "# On: cuda:0, 1 x Example GPU, Python 3.11.9",
    ]


@pytest.mark.parametrize("name", CHECKS_OF_CELLS.names)
def test_what_may_be_expected_is_said_for_every_check(name: str) -> None:
    assert expected(_failed(name)) == EXPECTED[name]


def test_what_may_be_expected_of_a_finding_and_of_an_exception_is_its_own() -> None:
    assert expected(CHECKS["dispatch of weights"]).startswith("output_attentions runs")
    assert expected(_failed("load", case=RAISED["load"], raises=RAISES)).startswith("the call returns")
    rows = {name for table in criteria_tables().values() for name in table.get("finding", ())}
    assert set(FINDINGS) <= rows, "a finding that the criteria do not have"


def _tells(bound: float, found: float | None) -> Any:
    """`tells` as scripts carry it, for a figure `x` with this bound that was found to be so."""
    source = judge(quantized=False)
    (function,) = (n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == "tells")
    names: dict[str, Any] = {"BOUNDS": {"x": bound}, "FIGURES": {"x": found}}
    exec(ast.get_source_segment(source, function) or "", names)
    return names["tells"]


@given(bound=st.just(0.0) | st.floats(1e-9, 1e9), times=st.floats(1, 1e12), value=st.floats(0, 1e21))
def test_what_was_found_tells_of_the_defect_and_what_passes_does_not(bound: float, times: float, value: float) -> None:
    found = bound * times
    tells = _tells(bound, found)
    assert tells("x", None), "not finite"
    assert not tells("y", value), "no bound speaks of it"
    assert not tells("x", min(value, bound))
    assert tells("x", found) or found <= bound * 1.000001
    assert tells("x", 4 * bound + value) or value <= 1e-6 * bound
    assert not tells("x", min(value, 1.99 * bound)) or times < 4, "clean calls of few tokens lie so far beyond a bound"


@given(bound=st.floats(1e-9, 1e9), value=st.floats(0, 1e12))
def test_a_defect_that_was_not_finite_tells_far_beyond_its_bound(bound: float, value: float) -> None:
    assert _tells(bound, None)("x", value) == (value > 4 * bound)
