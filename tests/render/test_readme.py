"""Marks in pages, and whether README and docs say what is so."""

from __future__ import annotations

import ast
import gzip
import json
import re
import textwrap
import tomllib
from pathlib import Path

import msgspec
import pytest

from compat import store
from compat.axes import ATTENTION, DTYPES, QUANTIZATIONS
from compat.axes.attention import Attention
from compat.axes.quantization import Quantization
from compat.matrix import read_matrix
from compat.records import Check, Measurement, encode_run
from compat.render.markdown import matrix_tables
from compat.render.readme import main, marks, refreshed, refreshed_where_possible
from compat.render.readme_marks import MarkError
from compat.rules import Rule, criteria

from .sample_grid import grid_run
from .sample_runs import small_run

ROOT = Path(__file__).parents[2]
PAGES = tuple(
    ROOT / name
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "benchmarks/README.md",
        "docs/architecture.md",
        "docs/criteria.md",
        "docs/matrices.md",
        "docs/speed.md",
        "docs/stored-form.md",
        "docs/support.md",
    )
)
IDS = [str(p.relative_to(ROOT)) for p in PAGES]


def place(mark: str, body: str = "old\n") -> str:
    return f"before\n\n<!-- compat:{mark} -->\n{body}<!-- compat:end -->\nafter\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a stored run in `reports/it`."""
    (tmp_path / "reports" / "it").mkdir(parents=True)
    store.write_run(small_run(), tmp_path / "reports" / "it")
    return tmp_path


# -- marks -------------------------------------------------------------------------------------------------------


def test_what_stands_between_marks_is_replaced_and_nothing_else(root: Path) -> None:
    page = place("matrix run=reports/it dtypes=bf16 quantizations=none")
    new = refreshed(page, root)
    tables = matrix_tables(small_run(), dtypes=["bf16"], quantizations=["none"]).strip()
    assert new == page.replace("old\n", f"\n{tables}\n\n")
    assert refreshed(new, root) == new


@pytest.mark.parametrize("name", ["matrix", "verdict", "environment", "findings", "speed"])
def test_every_generator_of_a_run_says_something_that_ends(name: str, root: Path) -> None:
    new = refreshed(place(f"{name} run=reports/it"), root)
    assert "old" not in new.splitlines()
    assert [m.name for m in marks(new)] == [name]


def test_grids_of_a_run_stand_with_their_pictures(root: Path) -> None:
    store.write_run(grid_run(), root / "reports" / "it")
    page = refreshed(place("grids run=reports/it models=llama-7b plots=../reports/it/plots"), root)
    assert "### llama-7b, bf16, quantization none" in page
    assert "](../reports/it/plots/llama-7b-bf16-none-prefill-speedup.svg)" in page
    assert "plots" not in refreshed(place("grids run=reports/it"), root)
    with pytest.raises(MarkError, match="unknown value 'lama-7b'; nearest: 'llama-7b'"):
        refreshed(place("grids run=reports/it models=lama-7b"), root)


def test_grids_of_a_run_without_any_are_refused(root: Path) -> None:
    with pytest.raises(MarkError, match="measured nothing on a grid"):
        refreshed(place("grids run=reports/it"), root)


def test_margins_hold_the_farthest_within_and_the_nearest_beyond(root: Path) -> None:
    run = small_run()
    ratios = iter((0.9, 1.4, 2.5, 9.0))
    cells = []
    for cell in [c for c in run.cells if c.axes["attention"] != "eager"][:4]:
        ratio = Measurement(name="ratio_rms", unit="ratio", value=next(ratios))
        cells.append(
            msgspec.structs.replace(
                cell, checks=(Check(name="agreement", outcome=cell.outcome, measurements=(ratio,)),)
            )
        )
    store.write_run(msgspec.structs.replace(run, cells=tuple(cells)), root / "reports" / "it")
    page = refreshed(place("margins run=reports/it check=agreement"), root)
    assert "| `ratio_rms` | not attention eager | &lt;= 1.5 | 4 | 1.95 | 1.4 | 2.5 |" in page


def test_margins_of_measurements_that_no_rule_knows_are_refused(root: Path) -> None:
    with pytest.raises(MarkError, match="measured nothing that a rule speaks of"):
        refreshed(place("margins run=reports/it check=padding"), root)


@pytest.mark.parametrize(
    "mark",
    ["criteria", "criteria check=padding", "load-findings", "refusals", "models", "axes axis=dtype",
     "axes axis=attention", "axes axis=quantization"],
)  # fmt: skip
def test_every_table_of_our_own_is_a_table(mark: str, root: Path) -> None:
    lines = refreshed(place(mark), root).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) > 3
    columns = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert len(columns) == 1, "a cell holds a bare pipe"


def test_axes_tables_hold_every_value(root: Path) -> None:
    for axis, registry in (("dtype", DTYPES), ("attention", ATTENTION), ("quantization", QUANTIZATIONS)):
        table = refreshed(place(f"axes axis={axis}"), root)
        assert all(f"| `{name}` |" in table for name in registry.names)


def test_marks_in_a_fence_are_examples(root: Path) -> None:
    page = "````md\n```\n" + place("nonsense") + "```\n````\n" + place("refusals")
    assert [m.name for m in marks(page)] == ["refusals"]
    assert "compat:nonsense" in refreshed(page, root)


@pytest.mark.parametrize(
    ("page", "says"),
    [
        (place("matrx run=x"), "p.md:3: unknown mark compat:matrx; nearest: 'matrix'"),
        (place("matrix"), "p.md:3: compat:matrix: run is missing"),
        (place("matrix run"), "'run' is not key=value"),
        (place("matrix run=x dtype=bf16"), "unknown option 'dtype'; nearest: 'dtypes'"),
        ("<!-- compat:end -->\n", "p.md:1: an end without a start"),
        ("\n<!-- compat:refusals -->\n", "p.md:2: compat:refusals has no end"),
        ("<!-- compat:refusals -->\n<!-- compat:models -->\n<!-- compat:end -->\n", "before the one of line 1 ends"),
        (place("matrix run=reports/no"), "p.md:3: compat:matrix: there is no run at reports/no"),
        (place("matrix run=reports/it dtypes=bf61"), "dtypes: unknown value 'bf61'; nearest: 'bf16'"),
        (place("matrix run=reports/it quantizations=bnb-int8"), "no cell of run"),
        (place("axes axis=model"), "compat:models"),
        (place("cost file=none.json"), "none.json: No such file"),
        (place("cost file=reports/it/run.json"), "not a file of benchmarks/harness_cost.py"),
    ],
)
def test_a_mark_that_cannot_be_used_says_where_and_why(page: str, says: str, root: Path) -> None:
    with pytest.raises(MarkError, match=re.escape(says)):
        refreshed(page, root, "p.md")


# -- the command -------------------------------------------------------------------------------------------------


def test_check_names_stale_files_and_writes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = root / "page.md"
    page.write_text(place("verdict run=reports/it"), encoding="utf-8")
    arguments = ["--root", str(root), str(page)]
    assert main(["--check", *arguments]) == 1
    assert "page.md: stale" in capsys.readouterr().out
    assert page.read_text(encoding="utf-8") == place("verdict run=reports/it")
    assert main(arguments) == 0
    assert main(["--check", *arguments]) == 0
    assert "11 of 24 cells pass" in page.read_text(encoding="utf-8")


def test_a_missing_run_is_exit_code_4_and_other_files_are_written(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost, good = root / "lost.md", root / "good.md"
    lost.write_text(place("verdict run=reports/none"), encoding="utf-8")
    good.write_text(place("refusals"), encoding="utf-8")
    assert main(["--root", str(root), str(lost), str(good), str(root / "absent.md")]) == 4
    said = capsys.readouterr().err
    assert "lost.md:3: compat:verdict: there is no run at reports/none" in said
    assert "absent.md: No such file" in said
    assert "old" in lost.read_text(encoding="utf-8")
    assert "old\n" not in good.read_text(encoding="utf-8")


def test_a_broken_run_is_named(root: Path) -> None:
    (root / "reports" / "it" / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(MarkError, match=r"run\.json: not a stored run"):
        refreshed(place("verdict run=reports/it"), root)


def test_a_compressed_run_gives_the_same_page(root: Path) -> None:
    page = place("findings run=reports/it")
    plain = refreshed(page, root)
    folder = root / "reports" / "it"
    (folder / "run.json.gz").write_bytes(gzip.compress(encode_run(small_run())))
    (folder / "run.json").unlink()
    assert refreshed(page, root) == plain


def test_cost_shows_the_figures_of_the_file(root: Path) -> None:
    row = {"checks": 4, "harness_seconds": 0.1, "plain_seconds": 0.7, "ratio": 7.0, "median_ratio": 6.0}
    data = {
        "started": "2026-02-03T10:20:30Z",
        "machine": {"cpu": "Example CPU", "packages": {"torch": "2.13.0", "transformers": "5.23.0"}},
        "work": {"cells": 2, "checks": 4, "repeats": 3},
        "overhead": {"wall_seconds": 12.0, "model_seconds": 10.0, "ratio": 1.2},
        "per_check": {"load": row, "all": row},
    }
    (root / "cost.json").write_text(json.dumps(data), encoding="utf-8")
    page = refreshed(place("cost file=cost.json"), root)
    assert "model calls: 1.20 (12.0 s over 10.0 s)" in page
    assert "| `load` | 4 | 100 | 700 | 7.0 | 6.0 |" in page


# -- this project's pages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_generated_parts_are_fresh(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    new, problems = refreshed_where_possible(text, ROOT, page.name)
    assert new == text, f"python -m compat.render.readme {page.relative_to(ROOT)}"
    if problems and not (ROOT / "reports" / "cpu").exists():
        pytest.skip(f"the rest is fresh; not published yet: {problems[0]}")
    assert not problems


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target or target.startswith("reports/"):
            continue
        name, _, anchor = target.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), target
        if anchor:
            assert anchor in _anchors(there), target


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of a page in a language, without their indentation."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(body) for _, body in found]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "toml")], ids=lambda p: str(p.relative_to(ROOT)))
def test_matrix_examples_can_be_read(page: Path, device: str, tmp_path: Path) -> None:
    files = {}
    for text in blocks(page, "toml"):
        if match := re.match(r"# file: (\S+)\n", text):
            files[match[1]] = text
            (tmp_path / match[1]).write_text(text, encoding="utf-8")
    assert files
    if set(files) == {"models.toml"}:
        names = '", "'.join(tomllib.loads(files["models.toml"])["models"])
        axes = f'[axes]\nmodel = ["{names}"]\ndtype = ["bf16"]\nattention = ["eager"]\nquantization = ["none"]\n'
        (tmp_path / "all.toml").write_text(axes, encoding="utf-8")
        files["all.toml"] = axes
    for name in files:
        if name != "models.toml":
            assert read_matrix(tmp_path / name, device).cells


def test_every_toml_example_of_matrices_is_a_file() -> None:
    for page in (ROOT / "docs" / "matrices.md", ROOT / "README.md"):
        assert all(text.startswith("# file: ") for text in blocks(page, "toml"))


def test_examples_of_contributing_are_valid() -> None:
    page = ROOT / "CONTRIBUTING.md"
    rules = [r for text in blocks(page, "toml") for r in tomllib.loads(text).get("rule", [])]
    assert [Rule("finite", r["measurement"], r["source"], r["pass"]).passes for r in rules] == [0]
    refusals = [r for text in blocks(page, "toml") for r in tomllib.loads(text).get("refusal", [])]
    assert [set(r) for r in refusals] == [{"id", "outcome", "type", "message", "meaning"}]
    python = blocks(page, "python")
    entries = [ast.parse(text).body[-1] for text in python]
    rows = [e.value.elts[0] for e in entries if isinstance(e, ast.Expr) and isinstance(e.value, ast.Tuple)]
    names = {"Attention": Attention, "Quantization": Quantization}
    made = [eval(ast.unparse(call), dict(names)) for call in rows if isinstance(call, ast.Call)]
    assert [type(m).__name__ for m in made] == ["Attention", "Quantization"]
    assert [e.name for e in entries if isinstance(e, ast.FunctionDef)] == ["run"]


def test_architecture_has_a_line_for_every_module() -> None:
    text = (
        (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## Where things are")[1].split("##")[0]
    )
    package = ROOT / "compat"
    files = [
        p
        for p in package.rglob("*")
        if p.suffix in (".py", ".toml", ".txt") and not {"matrices", "criteria"} & set(p.parts)
    ]
    listed = re.findall(r"^ {4,}(\S+\.(?:py|toml|txt)) {2,}\S", text, flags=re.MULTILINE)
    assert sorted(p.name for p in files) == sorted(name for name in listed if name != "conftest.py")


def test_criteria_has_a_table_for_every_check_with_rules() -> None:
    page = ROOT / "docs" / "criteria.md"
    tables = {m.options["check"] for m in marks(page.read_text(encoding="utf-8")) if m.name == "criteria"}
    assert tables == {rule.check for rule in criteria().rules}
