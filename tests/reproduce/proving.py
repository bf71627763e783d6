"""A fault put into a worker and into a reproducer: what the evidence says, and how the script ends.

`python -m tests.reproduce.proving FAULT SCRIPT` runs a script on a stack that has a fault of compat.faults;
`python -m tests.reproduce.proving --table [FAULT ...]` proves one fault after the other and prints what came of it.
`python -m tests.reproduce.proving --run RUN [--jobs N] [--outcome fail] [PATTERN ...]` runs the script of every failing
check of a stored run (of the cells that fit a pattern, of one outcome) alone, where compat cannot be imported, N at a
time, and prints how each ends; its own exit code is 1 when a script does not show its failure or a check that is `fail`
has none.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compat import reproduce
from compat.axes import AXES
from compat.builtin import matrix_path
from compat.execute.explaining import explain_request, explained, raised_by
from compat.execute.local import check_request, group_spec
from compat.judge import broken, judge
from compat.matrix import CellSpec, read_matrix
from compat.plan import make_plan
from compat.records import Cell, Check, Outcome, Run
from compat.render.evidence import kernels, smallest
from compat.rules import context_of
from compat.store import read_run
from compat.stored import reproducer

ROOT = Path(__file__).parents[2]
SECONDS = 60.0
"""For explaining: a machine that runs other things too must not cut it short."""


@dataclass(frozen=True)
class Proof:
    """What became of one fault in one check of one cell."""

    check: Check
    script: str


def explain_in_process(cell: str, check: str, cache: Path, fault: str = "") -> Proof:
    """Check, judge and explain `cell` in this process, with `fault` in the stack; taken back afterwards."""
    from compat.worker.__main__ import _Session

    models = read_matrix(matrix_path("default"), "cpu").models
    axes = dict(zip(AXES, cell.split("/"), strict=True))
    spec = CellSpec(**axes, checks=(check,))
    (group,) = make_plan([spec]).groups
    model = models[axes["model"]]
    context = context_of(axes, "cpu", model)
    own: dict[str, Any] = group_spec(group, model, "cpu", cache, 0, "standard")
    request = check_request(check, own, spec.attention, 1)
    session = _Session(1)
    try:
        found = judge(check, session.check(request | {"faults": [fault] if fault else []}), context)
        limits = broken(found, context)
        asked = explain_request(request, limits, "full", raised_by(found, limits)) | {"seconds": SECONDS}
        answer = session.explain(asked)
        how = session.group.loaded(request["attention"]).how
    finally:
        session.check({**request, "check": "no check"})  # takes the fault back
    found = explained(found, limits, answer)
    subject = reproduce.Subject(cell, axes, model.row, "cpu", {}, how)
    return Proof(found, reproduce.script(found, subject))


def exit_code(script: Path, fault: str = "") -> int:
    """How `script` ends, on the stack as it is or with `fault` in it."""
    words = [str(script)] if not fault else ["-m", "tests.reproduce.proving", fault, str(script)]
    folder = ROOT if fault else script.parent
    return subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, timeout=300).returncode


def _run_with_fault(fault: str, script: str) -> None:
    import transformers  # noqa: F401  so that the fault finds what it changes

    from compat.faults import catalogue
    from compat.faults.patches import Patches

    catalogue()[fault].apply(Patches())
    runpy.run_path(script, run_name="__main__")


PROVEN = (
    ("sdpa-padding-mask-dropped", "llama/fp32/sdpa/none", "padding"),
    ("sdpa-causal-dropped", "llama/bf16/sdpa/none", "agreement"),
    ("mask-of-wrong-row", "bert/fp32/sdpa/none", "padding"),
    ("sdpa-window-too-wide", "mistral/fp32/sdpa/none", "agreement"),
    ("softcap-dropped", "gemma2/bf16/eager/none", "agreement"),
    ("opt-scaled-twice", "opt/bf16/sdpa/none", "agreement"),
    ("heads-swapped", "gpt2/bf16/sdpa/none", "agreement"),
    ("learned-positions-count-pads", "gpt2/fp32/eager/none", "padding"),
    ("decode-positions-from-cache-length", "llama/fp32/eager/none", "generation"),
    ("cache-crop-keeps-rejected", "llama/fp32/sdpa/none", "cache"),
    ("static-cache-not-reset", "llama/fp32/sdpa/none", "cache"),
    ("cache-reorder-keys-only", "llama/bf16/eager/none", "cache"),
    ("rmsnorm-half-variance", "llama/fp16/eager/none", "agreement"),
    ("probabilities-in-fp8", "llama/bf16/sdpa/none", "agreement"),
    ("dtype-of-checkpoint-wins", "llama/bf16/eager/none", "load"),
    ("loaded-in-training-mode", "gpt2/fp32/eager/none", "load"),
    ("sdpa-math-in-decode", "llama/fp32/sdpa/none", "dispatch"),
    ("codes-swapped", "llama/bf16/eager/bnb-nf4", "quality"),
    ("backward-transposed", "llama/bf16/eager/bnb-nf4", "quality"),
    ("repetition-penalty-counts-pads", "llama/fp32/sdpa/none", "generation"),
    ("mask-dropped-in-backward", "llama/fp32/sdpa/none", "gradient"),
    ("labels-shifted-twice", "llama/fp32/eager/none", "gradient"),
)
"""Fault, cell and check of the table."""


def _table(names: list[str]) -> None:
    """For each fault of PROVEN (or those named): module, call, kernels, how its script ends with and without it."""
    cache = Path(os.environ["COMPAT_CACHE"]) if "COMPAT_CACHE" in os.environ else Path(tempfile.mkdtemp())
    print("| fault | cell | check | module | smallest call | kernels | with | without |")
    print("|:--|:--|:--|:--|:--|:--|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for fault, cell, check in PROVEN:
            if names and fault not in names:
                continue
            proof = explain_in_process(cell, check, cache, fault)
            evidence, path = proof.check.evidence, Path(folder) / reproduce.file_name(cell, check)
            path.write_text(proof.script, encoding="utf-8")
            ends = (exit_code(path, fault), exit_code(path)) if proof.script else ("-", "-")
            told = (evidence.diverges_at, smallest(evidence), kernels(evidence))
            print("|", " | ".join([fault, cell, check, *(t or "-" for t in told), *map(str, ends)]), "|", flush=True)


# -- the scripts of a stored run ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How the script of one check ended; no code where there is no script."""

    cell: str
    check: Check
    code: int | None
    last: str
    """The last line that it printed."""
    seen: str = ""
    """The line before: what it measured, or what it waited for."""
    seconds: float = 0.0

    @property
    def shown(self) -> bool:
        """Whether the failure was shown; one that is only degraded may be without a script."""
        return self.code == 1 or (self.code is None and self.check.outcome != Outcome.FAIL)


def without_compat(folder: Path) -> Path:
    """A Python in `folder` that has the packages of this one, but not compat: a virtual environment whose site-packages
    links to each package but ours, and to no .pth file, by which an editable install works. Raises RuntimeError where
    compat can be imported all the same."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    (own,) = folder.glob("lib/python*/site-packages")
    for packages in (p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")):
        for entry in Path(packages).iterdir():
            ours = entry.name == "compat" or entry.name.startswith("compat-")
            if not ours and entry.suffix != ".pth" and not (own / entry.name).exists():
                (own / entry.name).symlink_to(entry)
    python = folder / "bin" / "python"
    words = [str(python), "-P", "-c", "import compat"]
    tried = subprocess.run(words, cwd=folder, env={}, capture_output=True, text=True, timeout=120)
    if "No module named 'compat'" not in tried.stderr:
        raise RuntimeError("compat can be imported where it must not be: " + (tried.stderr.strip() or "it imports"))
    return python


def scripts_end(
    run: Run, folder: Path, patterns: Sequence[str], python: Path, jobs: int = 1, outcome: str = ""
) -> Iterator[Ended]:
    """Run the script of every failing check (of one outcome, where `outcome` names it), `jobs` at a time, each in an
    empty folder and with nothing of the caller's environment but PATH; from `folder` (of the run) where it is there,
    else made from what is stored."""
    asked = [
        (cell.id, check, _script(run, folder, cell, check))
        for cell in run.cells
        if not patterns or any(fnmatch.fnmatchcase(cell.id, p) for p in patterns)
        for check in cell.checks
        if (check.outcome in reproduce.SHOWN or check.evidence.minimal.get("raises"))
        and outcome in ("", check.outcome.value)
    ]
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda one: _ends(one[0], one[1], one[2], python), asked)


def _script(run: Run, folder: Path, cell: Cell, check: Check) -> str:
    stored = folder / reproduce.FOLDER / check.evidence.script
    there = check.evidence.script and stored.is_file()
    return stored.read_text(encoding="utf-8") if there else reproducer(run, cell, check)


def _ends(cell: str, check: Check, text: str, python: Path) -> Ended:
    if not text:
        return Ended(cell, check, None, "no script")
    with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryDirectory() as elsewhere:
        path = Path(elsewhere) / "script.py"
        path.write_text(text, encoding="utf-8")
        started = time.monotonic()
        words = ["env", "-i", f"PATH={os.environ['PATH']}", f"HOME={empty}", str(python), "-P", str(path)]
        ended = subprocess.run(words, cwd=empty, capture_output=True, text=True, timeout=600)
    said = [line for line in (ended.stdout if ended.returncode < 2 else ended.stderr).splitlines() if line.strip()]
    seconds = time.monotonic() - started
    marked = [line for line in said if "<- the defect" in line] or said[-2:-1]
    last, seen = (lines[-1].strip() if lines else "" for lines in (said, marked))
    return Ended(cell, check, ended.returncode, last, seen, seconds)


def _run_scripts(words: Sequence[str]) -> int:
    """The table of a stored run; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.reproduce.proving --run")
    parser.add_argument("folder", type=Path)
    parser.add_argument("patterns", nargs="*")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--outcome", choices=[o.value for o in Outcome], default="")
    asked = parser.parse_intermixed_args(words)
    folder, run = asked.folder, read_run(asked.folder)
    wrong = count = 0
    with tempfile.TemporaryDirectory() as scratch:
        python = without_compat(Path(scratch) / "venv")
        print("| cell | check | outcome | exit code | seconds | last line | before it |\n|:--|:--|:--|--:|--:|:--|:--|")
        where = folder if folder.is_dir() else folder.parent
        for one in scripts_end(run, where, asked.patterns, python, asked.jobs, asked.outcome):
            count, wrong = count + 1, wrong + (not one.shown)
            code = "-" if one.code is None else str(one.code)
            told = [one.cell, one.check.name, one.check.outcome.value, code, f"{one.seconds:.0f}", one.last, one.seen]
            print("|", " | ".join(t.replace("|", "\\|") for t in told), "|", flush=True)
    print(f"{count} failing checks; {wrong} not shown by a script")
    return 1 if wrong else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--table"]:
        _table(sys.argv[2:])
    elif sys.argv[1:2] == ["--run"]:
        sys.exit(_run_scripts(sys.argv[2:]))
    else:
        _run_with_fault(*sys.argv[1:3])
