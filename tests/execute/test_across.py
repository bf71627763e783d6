"""Two stacks compared for real: workers, environments, the command. The stack that differs holds a patch of OPT."""

from __future__ import annotations

import json
import signal
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from compat import environments, stacks
from compat.builtin import matrices_folder
from compat.cli import main
from compat.execute.across import Both, TwoStacks
from compat.exit_codes import FINDINGS, INTERRUPTED, NOTHING, OK, USAGE
from compat.matrix import CellSpec, read_matrix
from compat.upgrade import bisecting
from compat.upgrade.bisecting import BisectOptions
from compat.upgrade.conduct import JOURNAL
from compat.upgrade.result import Kind, read

from ..matrix_files import write
from .running import start, wait_until

MODELS = read_matrix(matrices_folder() / "default-cpu.toml", "cpu").models

MATRIX = """
title = "Tiny upgrade"
checks = ["load"]

[axes]
model = ["opt", "llama"]
dtype = ["fp32"]
attention = ["eager"]
quantization = ["none"]
"""

PATCH = """
import importlib.abc, importlib.machinery, sys

MODULE = "transformers.models.opt.modeling_opt"


def _patch(module):
    original = module.OPTForCausalLM.forward
    module.OPTPreTrainedModel._supports_sdpa = False
    module.OPTForCausalLM._supports_sdpa = False

    def forward(self, input_ids=None, attention_mask=None, *arguments, **keywords):
        if attention_mask is not None and attention_mask.dim() == 2 and not bool(attention_mask[:, 0].all()):
            attention_mask = None  # what a left-padded batch must not lose
        return original(self, input_ids, attention_mask, *arguments, **keywords)

    forward.__wrapped__ = original
    module.OPTForCausalLM.forward = forward


class _Loader(importlib.abc.Loader):
    def __init__(self, loader):
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.loader.exec_module(module)
        _patch(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        spec.loader = _Loader(spec.loader)
        return spec


sys.meta_path.insert(0, _Finder())
"""
"""A module that changes OPT: no SDPA by default, and a mask that pads on the left is not seen."""


def _wheel(folder: Path, version: str, patched: bool) -> None:
    """A wheel of `opt-behaviour`, which changes OPT by itself once it is installed, or does nothing."""
    info = f"opt_behaviour-{version}.dist-info"
    files = {
        "opt_behaviour.py": PATCH if patched else "",
        "opt_behaviour.pth": "import opt_behaviour\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: opt-behaviour\nVersion: {version}\n",
    }
    with zipfile.ZipFile(folder / f"opt_behaviour-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{p},,\n" for p in [*files, f"{info}/RECORD"]))


@pytest.fixture(scope="module", autouse=True)
def _index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """pip, configured as a user would without a network: 1.0 does nothing, 1.1 and 2.0 change OPT."""
    folder = tmp_path_factory.mktemp("wheels")
    for version, patched in (("1.0", False), ("1.1", True), ("2.0", True)):
        _wheel(folder, version, patched)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(folder))
        yield


def _stack(folder: Path, name: str, version: str) -> Path:
    text = f'name = "{name}"\ntitle = "A stack of a test"\n[pins]\nopt-behaviour = "{version}"\n'
    return write(folder, text, f"{name}.toml")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, probe_cache: Path) -> tuple[Path, Path]:
    """Two stacks, created: the plain one and the one that changes OPT."""
    folder = tmp_path_factory.mktemp("stacks")
    made = _stack(folder, "plain", "1.0"), _stack(folder, "patched", "2.0")
    for path in made:
        environments.create(stacks.read_stack(path), probe_cache)
    return made


def _words(pair: tuple[Path, Path], folder: Path, cache: Path) -> list[str]:
    matrix = write(folder, MATRIX)
    return ["--from", str(pair[0]), "--to", str(pair[1]), "--matrix", str(matrix), "--device", "cpu",
            "--cache", str(cache)]  # fmt: skip


def test_the_same_stack_in_two_processes_gives_the_same_bits(tmp_path: Path, probe_cache: Path) -> None:
    other = tmp_path / "python"
    other.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    other.chmod(0o755)
    both = Both((sys.executable, str(other)), tmp_path, MODELS, "cpu", probe_cache)
    with TwoStacks(both) as two:
        for model, dtype, quantization in (("gpt2", "bf16", "none"), ("t5", "fp32", "none"), ("vit", "fp32", "none"),
                                           ("llama", "bf16", "bnb-nf4")):  # fmt: skip
            cell = CellSpec(model=model, dtype=dtype, attention="sdpa", quantization=quantization, checks=())
            checkpoint = two.locate(model)
            assert Path(checkpoint).is_dir()
            made = two.compare(cell, checkpoint, defaults=True)
            assert made.status == "compared", made.reason
            assert made.findings == ()
            paths = made.facts["figures"]["paths"]
            assert all(p["identical"] and p["elements"] > 0 for p in paths.values())
            assert set(paths) >= {"reference", "unpadded"}
            assert ("left_padded" in paths) == (model in ("gpt2", "llama"))
            if model == "llama":
                assert made.facts["before"]["held"]["quantized_share"] == 1.0
    assert not list(tmp_path.glob("*.safetensors")), "tensors go when they are compared"


def test_an_upgrade_names_what_the_patch_changes_and_nothing_of_the_other_family(
    pair: tuple[Path, Path], tmp_path: Path, probe_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["upgrade", *_words(pair, tmp_path, probe_cache), "--out", str(tmp_path / "up"), "-q", "--no-timing"]
    assert main([*words, "--workers", "1"]) == FINDINGS
    shown = capsys.readouterr().out
    assert "REGRESSED" in shown.splitlines()[-3]
    found = read(tmp_path / "up")
    assert {f.cell for f in found.findings} == {"opt/fp32/eager/none"}
    by_name = {f.name: f for f in found.findings}
    assert by_name["left_padded_difference"].kind is Kind.REGRESSED
    assert (by_name["default_attention"].before, by_name["default_attention"].after) == ("sdpa", "eager")
    assert "unpadded_difference" not in by_name, "only left-padded batches are other"
    assert found.before.packages == found.after.packages
    for side in ("before", "after"):
        run = json.loads((tmp_path / "up" / side / "run.json").read_text(encoding="utf-8"))
        assert run["run"]["stack"]["name"] == {"before": "plain", "after": "patched"}[side]
    assert main(["upgrade", "--show", str(tmp_path / "up")]) == FINDINGS
    assert main(["upgrade", "--show", str(tmp_path / "up"), "--fail-on", "slower"]) == OK
    capsys.readouterr()
    assert main([*words[:-3], str(tmp_path / "up"), "-q"]) == USAGE
    assert "already holds an upgrade" in capsys.readouterr().err
    again = ["upgrade", *_words(pair, tmp_path, probe_cache), "--resume", str(tmp_path / "up"), "-q"]
    assert main(again) == USAGE, "it was started without timing"
    assert "timing was False, is True" in capsys.readouterr().err


def test_an_interrupted_upgrade_says_how_to_go_on_and_goes_on(
    pair: tuple[Path, Path], tmp_path: Path, probe_cache: Path
) -> None:
    words = _words(pair, tmp_path, probe_cache)
    cells = ["--cells", "llama/*", "--no-timing", "--workers", "1"]
    process = start("upgrade", *words, *cells, "--out", tmp_path / "up")
    wait_until(lambda: (tmp_path / "up" / "before" / "run.json").exists(), "the first side has run")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, said
    assert f"--resume {tmp_path / 'up'}" in said
    assert len((tmp_path / "up" / JOURNAL).read_text(encoding="utf-8").splitlines()) == 1
    assert main(["upgrade", *words, *cells, "--resume", str(tmp_path / "up"), "-q"]) == OK
    assert read(tmp_path / "up").compared == 1


def test_bisect_names_package_and_version(pair: tuple[Path, Path], tmp_path: Path, probe_cache: Path) -> None:
    options = BisectOptions(
        before=str(pair[0]), after=str(pair[1]), matrix=write(tmp_path, MATRIX), cell="opt/fp32/eager/none",
        across="left_padded_difference", device="cpu", out=tmp_path / "bi", cache=probe_cache,
    )  # fmt: skip
    found, folder = bisecting.conduct(options)
    assert folder == tmp_path / "bi"
    assert found.packages == ("opt-behaviour",)
    assert (found.first_other, found.last_same) == ("1.1", "1.0")
    assert [s.other for s in found.steps] == [True, True]
    assert found.steps[0].shown


def test_bisect_of_what_does_not_differ_names_nothing(
    pair: tuple[Path, Path], tmp_path: Path, probe_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bisect", *_words(pair, tmp_path, probe_cache), "--out", str(tmp_path / "bi"), "-q"]
    assert main([*words, "--cell", "llama/fp32/eager/none", "--across", "left_padded_difference"]) == NOTHING
    assert "both stacks behave the same" in capsys.readouterr().out
    assert main([*words, "--cell", "lama/fp32/eager/none"]) == USAGE
    assert "nearest: 'llama/fp32/eager/none'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main([*words, "--cell", "llama/fp32/eager/none", "--across", "left_padded_diference"])
    assert ended.value.code == USAGE
    assert "nearest: 'left_padded_difference'" in capsys.readouterr().err
