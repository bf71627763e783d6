"""What classes declare, read off them, against what the library then does when a model of the class is asked for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compat import declarations
from compat.builtin import matrices_folder
from compat.execute.worker_process import environment_of
from compat.families import FLAGS
from compat.matrix import read_matrix
from compat.worker import stack_api
from compat.worker.declarations import config_of, looked_at

ROWS: dict[str, dict[str, Any]] = {
    name: dict(model.row) for name, model in read_matrix(matrices_folder() / "families.toml", "cpu").models.items()
}


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom", "mpnet", "beit", "wav2vec2", "jamba", "siglip", "t5"])
def test_sdpa_and_flex_are_taken_exactly_where_they_are_declared(name: str) -> None:
    row = ROWS[name]
    told = looked_at(row)["declares"]
    cls = stack_api.model_class(config_of(row), row["task"])
    for flag, implementation in (("sdpa", "sdpa"), ("flex", "flex_attention")):
        if told[flag]:
            made = cls._from_config(config_of(row), attn_implementation=implementation)
            assert stack_api.effective_attention(made) == implementation
        else:
            with pytest.raises(ValueError, match=r"does not support"):
                cls._from_config(config_of(row), attn_implementation=implementation)


@pytest.mark.parametrize("name", ["llama", "falcon", "gpt2"])
def test_a_switch_takes_effect_exactly_where_it_is_declared(name: str) -> None:
    row = ROWS[name]
    made = stack_api.model_class(config_of(row), row["task"])._from_config(config_of(row), attn_implementation="eager")
    made.set_attn_implementation("sdpa")
    assert (stack_api.effective_attention(made) == "sdpa") == looked_at(row)["declares"]["switch"]


def test_a_class_that_cannot_be_found_says_why() -> None:
    assert "no_such_type" in looked_at(ROWS["llama"] | {"type": "no_such_type"})["error"]
    assert looked_at(ROWS["bert"] | {"task": "causal-lm", "type": "vit", "config": {}})["error"]
    assert "hub" in looked_at({"source": "hub", "repo": "a/b", "task": "causal-lm"})["error"]
    missing = {"source": "package", "package": "no_such_thing", "distribution": "no-such-thing", "file": "x"}
    assert "no-such-thing" in looked_at({**missing, "task": "causal-lm"})["error"]


def test_classes_of_another_library_declare_nothing() -> None:
    assert stack_api.declared(dict) == {}


def test_one_process_answers_for_all_rows() -> None:
    asked = {"llama": ROWS["llama"], "odd": ROWS["llama"] | {"type": "no_such_type"}}
    found = declarations.ask(asked, sys.executable)
    assert found["llama"].name == "LlamaForCausalLM"
    assert set(found["llama"].flags) == set(FLAGS)
    assert not found["odd"].name
    assert "no_such_type" in found["odd"].error


def test_an_interpreter_that_gives_no_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(declarations.DeclarationsError, match="cannot be started"):
        declarations.ask({}, str(tmp_path / "none"))
    odd = tmp_path / "python"
    odd.write_text("#!/bin/sh\necho broken >&2\nexit 3\n", encoding="utf-8")
    odd.chmod(0o755)
    with pytest.raises(declarations.DeclarationsError, match="ended with 3"):
        declarations.ask({}, str(odd))


def test_nothing_but_json_is_printed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "compat.worker.declarations"], input="{}", capture_output=True, text=True, check=True,
        env=environment_of(), timeout=300,
    )  # fmt: skip
    assert json.loads(done.stdout) == {}
