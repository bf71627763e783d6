"""The text of a script: constants as literals, the body, and below it what the body needs, cut out of our files.

In: constants, the source of `main`, names to carve. Out: Python that imports torch, transformers and nothing of ours.
"""

from __future__ import annotations

import json
import pprint
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from compat.render.inert import label
from compat.reproduce.carve import carved

NAMED = ("torch", "transformers", "accelerate", "bitsandbytes", "peft", "optimum")
"""Packages whose versions a script names."""

MODEL = (
    ("checkpoints", "Checkpoint"),
    ("dispatch", "forced_sdpa_kernel"),
    ("inputs", "output_of"),
    ("stack_api", "auto_class"),
    ("stack_api", "dtype_argument"),
    ("stack_api", "forget_quantizer"),
)
"""What every script needs to have a model."""

FILES = (("probes", "build"), ("load", "from_pretrained"))
"""What one needs beside that for a model with a checkpoint."""

STUDENT = (*FILES, ("distil", "build_student"))
"""The same for a probe that is another's student."""

SHAPE = (
    ("shapes", "on_meta"),
    ("shapes", "weights"),
    ("shapes", "Drawn"),
    ("stack_api", "loading_arguments"),
    ("stack_api", "takes_slices"),
    ("stack_api", "takes_state_dict"),
)
"""What one needs beside that for a model of full size with random weights."""

_HEAD = '''#!/usr/bin/env python3
"""Shows one defect of the installed packages; needs torch, transformers and nothing else.

Ends with 1 when the defect shows, with 0 when it does not, with 2 when it could not say. What was found, and where,
stands in the lines and constants below; `main` is the whole experiment; what stands under it makes the weights and
computes in fp64. Written by compat.
"""

ABOUT
from __future__ import annotations

import os
import sys
import traceback


def no_answer(*raised: object) -> None:
    """Ends with 2: Python's own 1 would mean that the defect shows."""
    traceback.print_exception(*raised)
    sys.stderr.flush()
    os._exit(2)


sys.excepthook = no_answer

'''

_MODEL = '''

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
DTYPE = getattr(torch, DTYPE_NAME)
DEVICE = torch.device(DEVICE_NAME)
TASK = ROW["task"]


def temporary() -> Path:
    """A folder that goes when the script ends."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
'''

_FILES = '''

def converted(path: Path) -> str:
    """A GGUF file as an ordinary fp32 checkpoint."""
    folder = temporary()
    model = auto_class(TASK).from_pretrained(path.parent, gguf_file=path.name, **dtype_argument(torch.float32))
    forget_quantizer(model)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
    return str(folder)


def checkpoint() -> Checkpoint:
    """Where from_pretrained finds the weights: a probe is built, a package or folder is looked up."""
    if ROW["source"] == "probe":
        folder = temporary()
        build(ROW, folder)
        return Checkpoint(str(folder))
    if ROW["source"] == "package":
        found = importlib.util.find_spec(ROW["package"])
        if found is None or found.origin is None:
            raise SystemExit(2)
        path = Path(found.origin).parent / ROW["file"]
        return Checkpoint(str(path)) if path.suffix != ".gguf" else Checkpoint(converted(path))
    trust = {"trust_remote_code": True} if ROW.get("trust_remote_code") else {}
    if ROW["source"] == "folder":
        return Checkpoint(ROW["path"], trust)
    return Checkpoint(ROW["repo"], {"revision": ROW.get("revision", "main"), **trust})


def load(where: Checkpoint, implementation: str) -> Any:
    """The model in the cell's dtype and quantization."""
    return from_pretrained(where, TASK, DTYPE, implementation, DEVICE, QUANTIZATION)


def master_of(where: Checkpoint) -> Any:
    """The model in fp32 on the CPU, not quantized."""
    return from_pretrained(where, TASK, torch.float32, "eager", torch.device("cpu"))
'''

_BUILT = "        build(ROW, folder)\n"
_STUDENT = """        taught = temporary()
        build(ROW["teacher"], taught)
        arguments = {"attn_implementation": "eager", **dtype_argument(torch.float32)}
        build_student(ROW, folder, auto_class(TASK).from_pretrained(taught, **arguments).eval())
"""

_SHAPE = '''

def checkpoint() -> Checkpoint:
    """The configuration alone: weights are drawn when the model is made."""
    return Checkpoint("shape", config=transformers.AutoConfig.for_model(ROW["type"], **ROW["config"]))


def load(where: Checkpoint, implementation: str) -> Any:
    """The model with random weights in the cell's dtype and quantization, through the library's own loader."""
    empty = on_meta(where, TASK)
    drawn: dict[str, Any] = dict(weights(empty, DTYPE, DEVICE))
    arguments = loading_arguments(DTYPE, implementation, DEVICE, QUANTIZATION)
    if DEVICE.type != "cpu" and takes_state_dict(quantized=True):
        arguments["device_map"] = {"": str(DEVICE)}
    drawn = drawn if takes_slices() else Drawn(drawn)
    model = type(empty).from_pretrained(None, config=where.config, state_dict=drawn, **arguments)
    return model if "device_map" in arguments else model.to(DEVICE)


def master_of(where: Checkpoint) -> Any:
    """The model in fp32 without values."""
    return on_meta(where, TASK)
'''

_RUN = '''

def candidate(where: Checkpoint) -> Any:
    """The model with the attention in question, reached as it was when the defect was found."""
    if CONVERTED:
        return load(where, IMPLEMENTATION).to_bettertransformer()
    if not SWITCHED:
        return load(where, IMPLEMENTATION)
    model = load(where, "eager")
    model.set_attn_implementation(IMPLEMENTATION)
    return model


def run(model: Any, **inputs: Any) -> torch.Tensor:
    """The judged output, (batch, positions, features)."""
    with forced_sdpa_kernel(SDPA_KERNEL), torch.no_grad():
        return output_of(model(**inputs), TASK)
'''

_FOOT = """

if __name__ == "__main__":
    print(CELL)
    print(FOUND)
    print("measured with", MEASURED_WITH, "- here: torch", torch.__version__, "transformers", transformers.__version__)
    shows = main()
    print("the defect shows" if shows else "the defect does not show")
    sys.exit(1 if shows else 0)
"""

_OWN_IMPORTS = (
    "import atexit",
    "import contextlib",
    "import importlib.util",
    "import shutil",
    "import tempfile",
    "from pathlib import Path",
    "from typing import Any",
    "import torch",
    "import transformers",
)


def literal(value: Any) -> str:
    """`value` (plain JSON and TOML values) as Python source: nothing in it can become anything else."""
    plain = json.loads(json.dumps(value, default=str))
    shown = pprint.pformat(plain, width=116, compact=True)
    shown = shown if shown.isascii() else ascii(plain)
    return shown.replace("##[", "\\x23#[")  # the same text: a log of GitHub Actions takes the bare form for a command


def comment(name: str, text: str) -> str:
    """`# name: text` on lines of at most 118 characters. All of it is ASCII without controls, so that nothing can leave
    the comment; it may not stand on the first two lines of a file, where Python looks for an encoding."""
    plain = label(text, 1000).encode("ascii", "backslashreplace").decode("ascii")
    lines = textwrap.wrap(plain, 104, break_on_hyphens=False) or [plain]
    return "\n".join(f"# {name + ':' if i == 0 else '':<10} {line}" for i, line in enumerate(lines))


def script(
    constants: Mapping[str, Any], main: str, needs: Sequence[tuple[str, str]], about: Sequence[tuple[str, str]] = ()
) -> str:
    """The whole script; `about` are (name, text) pairs for its head. Raises what `carved` raises."""
    row = constants["ROW"]
    names: Sequence[tuple[str, str]] = FILES
    having = _FILES
    if row.get("source") == "shape":
        names, having = SHAPE, _SHAPE
    elif row.get("source") == "probe" and "teacher" in row:
        names, having = STUDENT, _FILES.replace(_BUILT, _STUDENT)
    foot, mending = _FOOT, _mending(constants)
    if mending:
        foot = foot.replace("    shows = main()", "    print(mended(QUANTIZATION['library']))\n    shows = main()")
    imports, definitions = carved(*MODEL, *names, *needs, *mending)
    lines = sorted(
        {*imports, *_OWN_IMPORTS}, key=lambda x: (x.startswith("from torch"), "torch" in x or "transf" in x, x)
    )
    named = "\n".join(f"{name} = {literal(value)}" for name, value in constants.items())
    special = 'inf, nan = float("inf"), float("nan")\n' if re.search(r"\b(inf|nan)\b", named) else ""
    told = "".join(comment(name, words) + "\n" for name, words in about)
    head = _HEAD.replace("ABOUT\n", told + "\n" if told else "") + "\n".join(lines) + "\n\n" + special + named + "\n"
    model = _MODEL + having + _RUN
    return f"{head}\n\n{main.strip()}\n{model}\n\n{definitions}\n{foot}"


def _mending(constants: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What lets old libraries load at all, where the run had it mended too (stack_api.mended knows which do not)."""
    library = (constants["QUANTIZATION"] or {}).get("library")
    old = str(constants["MEASURED_WITH"].get("transformers", "")).startswith("4.")
    return (("stack_api", "mended"),) if library and old and constants["DEVICE_NAME"] == "cpu" else ()
