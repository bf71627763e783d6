"""Cutting functions out of our own files: what comes along, what does not, and that it runs."""

from __future__ import annotations

import ast

import pytest

from compat.reproduce import carve
from compat.reproduce.carve import carved


def _names(text: str) -> set[str]:
    found = set()
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {t.id for t in node.targets if isinstance(t, ast.Name)}
    return found


def test_a_function_comes_with_all_that_it_needs_and_nothing_else() -> None:
    imports, text = carved(("metrics", "floor"))
    assert _names(text) == {"floor", "rms"}
    assert imports == ["import math", "import torch"]


def test_names_of_other_modules_of_ours_are_followed() -> None:
    _, text = carved(("load", "from_pretrained"))
    assert {"from_pretrained", "auto_class", "dtype_argument", "TRANSFORMERS", "version_of"} <= _names(text)
    assert "stack_api" not in text, "what was an attribute of a module is a name of the script"


def test_documentation_and_meters_are_left_out() -> None:
    _, text = carved(("reference", "Reference"))
    assert '"""' not in text
    assert "ENTROPY" not in text


def test_what_is_carved_runs_without_us() -> None:
    imports, text = carved(("metrics", "Yardstick"))
    space: dict[str, object] = {"__name__": "elsewhere"}
    import sys
    import types

    sys.modules["elsewhere"] = types.ModuleType("elsewhere")  # dataclasses look their module up
    try:
        exec("\n".join(["from __future__ import annotations", *imports, text]), space)
    finally:
        del sys.modules["elsewhere"]
    import torch

    r = torch.linspace(0, 1, 12, dtype=torch.float64).reshape(3, 4)
    found = space["Yardstick"](r, r + 1e-3, torch.float32, False).compare(r + 2e-3)  # type: ignore[operator]
    assert found.ratio_rms == pytest.approx(2, rel=1e-6)


def test_a_name_that_does_not_exist_is_said() -> None:
    with pytest.raises(KeyError, match="defines no rsm"):
        carved(("metrics", "rsm"))


def test_what_is_no_part_of_the_worker_is_refused() -> None:
    with pytest.raises(ValueError, match="machine, which shapes imports, is no part"):
        carved(("shapes", "_require_room"))


def test_two_definitions_of_one_name_are_refused() -> None:
    carver = carve._Carver()
    carver.origins["rms"] = "elsewhere"
    with pytest.raises(ValueError, match="rms is defined in both elsewhere and metrics"):
        carver.need("metrics", "floor")
