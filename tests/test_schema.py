"""The JSON Schema of run.json: as published, true of stored runs, and false of what is none."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings

from compat import cli, exit_codes
from compat.records import SCHEMA, Run, encode_run
from compat.schema import FILE, schema, text
from compat.store import read_run

from .render.sample_runs import small_run
from .stored_runs import runs

ROOT = Path(__file__).parents[1]
VALIDATOR: Any = jsonschema.Draft202012Validator(schema())


def _plain(run: Run) -> Any:
    return json.loads(encode_run(run))


def test_it_is_a_schema_and_stored_as_it_is() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    stored = ROOT / "docs" / "schema" / FILE
    assert stored.read_text(encoding="utf-8") == text(), f"stale: compat schema > docs/schema/{FILE}"


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema"]) == exit_codes.OK
    assert capsys.readouterr().out == text()


@pytest.mark.parametrize("name", ["cpu", "h200"])
def test_published_runs_fit(name: str) -> None:
    """Every fifteenth cell: all of them take seconds."""
    run = read_run(ROOT / "reports" / name)
    VALIDATOR.validate(_plain(msgspec.structs.replace(run, cells=run.cells[::15])))


@settings(max_examples=25)
@given(runs())
def test_any_run_that_is_written_fits(run: Run) -> None:
    VALIDATOR.validate(_plain(run))


def _without(*path: str | int) -> Any:
    return _with(path, None, drop=True)


def _with(path: tuple[str | int, ...], value: Any, drop: bool = False) -> Any:
    made = copy.deepcopy(_plain(small_run()))
    place = made
    for key in path[:-1]:
        place = place[key]
    if drop:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return made


@pytest.mark.parametrize(
    "broken",
    [
        _without("cells"),
        _without("schema"),
        _without("run", "id"),
        _without("cells", 0, "outcome"),
        _with(("schema",), "compat-run/2"),
        _with(("cells", 0, "outcome"), "great"),
        _with(("cells", 0, "axes", "model"), 7),
        _with(("cells", 0, "checks", 0, "seconds"), "long"),
        _with(("cells", 0, "checks", 0, "measurements"), [{"name": "a"}]),
        _with(("cells", 0, "checks", 0, "evidence", "kernels"), {"mm": "often"}),
    ],
)
def test_what_is_no_run_does_not_fit(broken: Any) -> None:
    assert not VALIDATOR.is_valid(broken)


def test_keys_of_later_versions_are_allowed() -> None:
    assert VALIDATOR.is_valid(_with(("cells", 0, "colour"), "red"))
    assert f"({SCHEMA})" in schema()["title"]
