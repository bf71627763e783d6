"""What README, docs and workflows tell people to type is what the command takes; `console` blocks are what it prints.

A block marked `console` is typed: each line after `$ ` is run on the published runs, and what stands below it is what
is printed (`...` stands for anything). Other commands, in `sh` blocks and indented ones, are parsed alone.
"""

from __future__ import annotations

import argparse
import doctest
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from compat import cli

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md"])
WORKFLOWS = sorted((ROOT / "docs" / "workflows").glob("*.yml"))
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?:\$ )?(?:\.venv/bin/)?(?:python -m )?compat\s")
GENERATED = re.compile(r"<!-- compat:\w.*?<!-- compat:end -->", re.DOTALL)


def names() -> list[str]:
    return [str(p.relative_to(ROOT)) for p in PAGES]


def fenced(page: str, *languages: str) -> list[str]:
    """Blocks of a page in one of `languages`, but for what is generated."""
    text = GENERATED.sub("", (ROOT / page).read_text(encoding="utf-8"))
    return [body for language, body in FENCE.findall(text) if language in languages]


def shell_lines(page: str) -> Iterator[str]:
    """Every line that a reader would type: of `sh` and `console` blocks, and of blocks that are indented."""
    text = FENCE.sub("", GENERATED.sub("", (ROOT / page).read_text(encoding="utf-8")))
    indented = [line[4:] for line in text.split("\n") if line.startswith("    ")]
    blocks = [line for block in fenced(page, "sh", "console") for line in joined(block)]
    yield from (line for line in [*blocks, *indented] if COMMAND.match(line))


def joined(block: str) -> list[str]:
    """The lines of a block, those that end in a backslash with the next one."""
    return re.sub(r"\\\n\s*", "", block).split("\n")


def words(line: str) -> list[str]:
    """The arguments of a command as it stands in a page: without prompt, comment and optional parts."""
    line = re.sub(r"\s\[[^\]]*\]", "", line)  # a synopsis
    found = shlex.split(line.removeprefix("$ "), comments=True)
    found = found[: next((i for i, w in enumerate(found) if w in ("|", ">", "&&")), len(found))]
    found = found[found.index("compat") + 1 :] if "compat" in found else found[1:]
    stand_ins = {"MATRIX": "default", "my-stack": "transformers-4.57"}
    return [stand_ins.get(w, w) for w in found if w != "..."]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the examples name."""
    here = tmp_path / "here"
    python = tmp_path / "old" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\n", encoding="ascii")
    python.chmod(0o755)
    here.mkdir()
    for folder in ("reports", "matrices"):
        (here / folder).symlink_to(ROOT / folder)
    stack = (ROOT / "matrices" / "stacks" / "transformers-4.57.toml").read_text(encoding="utf-8")
    (here / "candidate.toml").write_text(stack.replace('"transformers-4.57"', '"candidate"'), encoding="utf-8")
    monkeypatch.chdir(here)
    return here


def parsed(line: str, arguments: list[str]) -> argparse.Namespace:
    try:
        return cli._parser().parse_args(arguments)
    except SystemExit:
        pytest.fail(f"not a command of compat: {line}")


@pytest.mark.parametrize("page", names())
def test_every_command_of_a_page_is_one_of_ours(page: str, typed: Path) -> None:
    for line in shell_lines(page):
        assert parsed(line, words(line)).command, line


@pytest.mark.parametrize("page", names())
def test_every_command_that_a_sentence_names_exists(page: str) -> None:
    known = next(a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    text = GENERATED.sub("", (ROOT / page).read_text(encoding="utf-8"))
    for name in re.findall(r"`compat ([a-z]+)\b", text):
        assert name in known, f"{page} names `compat {name}`"


@pytest.mark.parametrize("page", names())
def test_every_toml_of_a_page_can_be_read(page: str) -> None:
    for block in fenced(page, "toml"):
        tomllib.loads(block)


def examples() -> list[Any]:
    """Each block of each page that is to be typed."""
    return [
        pytest.param(block, id=f"{page}-{n}") for page in names() for n, block in enumerate(fenced(page, "console"), 1)
    ]


@pytest.mark.parametrize("block", examples())
def test_a_console_prints_what_the_page_says(block: str, typed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checker = doctest.OutputChecker()
    for example in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        line, _, expected = re.sub(r"\\\n\s*", "", example).partition("\n")
        arguments = words(f"$ {line}")
        assert parsed(line, arguments).command not in ("run", "speed", "selftest", "stack"), "examples are cheap"
        cli.main(arguments)
        got = capsys.readouterr()
        printed = got.out + got.err
        told = re.sub(r"^\.\.\.$", "<...>", expected, flags=re.MULTILINE).replace("<...>", "...")
        assert checker.check_output(told, printed, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE), printed[:3000]


def test_there_are_examples_to_type() -> None:
    assert len(examples()) >= 4


# -- workflows ---------------------------------------------------------------------------------------------------


def steps(path: Path) -> list[dict[str, Any]]:
    """Every step of every job."""
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_a_workflow_is_whole_and_bounded(path: Path) -> None:
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert data["permissions"] == {"contents": "read"}
    assert data["concurrency"]["group"]
    assert "pull_request_target" not in data[True], "YAML reads the key `on` as true"
    for job in data["jobs"].values():
        assert 0 < job["timeout-minutes"] <= 120
        assert set(job.get("env", {})) <= {"SHARD", "SHARDS", "CELLS", "COMPAT_CACHE", "PIP_CACHE_DIR"}
    shards = data["jobs"]["shard"]
    assert shards["strategy"]["matrix"]["shard"] == list(range(1, int(shards["env"]["SHARDS"]) + 1))
    joined_runs = [w for s in steps(path) for w in s.get("run", "").split() if re.fullmatch(r"runs/shard-\d", w)]
    assert joined_runs == [f"runs/shard-{n}" for n in shards["strategy"]["matrix"]["shard"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_nothing_from_outside_is_pasted_into_a_shell(path: Path) -> None:
    for step in steps(path):
        assert "${{" not in step.get("run", ""), "expressions reach a shell as variables of the environment"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_every_command_of_a_workflow_is_one_of_ours(path: Path, typed: Path) -> None:
    values = {"$SHARD": "1", "$SHARDS": "2", "$CELLS": "*"}
    seen = []
    for step in steps(path):
        for line in joined(step.get("run", "")):
            if COMMAND.match(line):
                for name, value in sorted(values.items(), reverse=True):
                    line = line.replace(name, value)
                assert "$" not in line, line
                seen.append(parsed(line, words(line)).command)
    assert {"run", "merge", "report", "expect"} <= set(seen)
