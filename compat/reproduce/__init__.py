"""Reproducers: for a failing check of a cell, a script that shows the defect alone, without compat.

In: a check as stored, the cell's axes, the model's row. Out: the script's text; "" where no script stands for what the
check saw. The script makes the same weights, calls the model as the smallest failing call does, and ends with 1 when
the defect shows, 0 when it does not, 2 when it could not say. Everything that comes from a matrix or a run reaches it
as a literal.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compat.axes import ATTENTION, DTYPES, PLAIN, QUANTIZATIONS, mode_of
from compat.records import Check, Environment, Outcome
from compat.reproduce import bodies, text
from compat.reproduce.expected import expected

FOLDER = "reproducers"
"""Folder of a run's reproducers."""

SHOWN = frozenset({Outcome.FAIL, Outcome.DEGRADED})
"""Outcomes that a script can show."""


@dataclass(frozen=True)
class Subject:
    """What a script is about, beside the check."""

    cell: str
    axes: Mapping[str, str]
    row: Mapping[str, Any]
    """The model's row of models.toml."""
    device: str = "cpu"
    packages: Mapping[str, str] | None = None
    """As the run recorded them."""
    how: str = "loaded"
    """How the backend was reached: `loaded`, `switched` or `reloaded`."""
    machine: str = ""
    """Where it was found, in words."""


def file_name(cell: str, check: str) -> str:
    """`CELL--CHECK.py` with underscores for slashes: safe in any folder, and different for different cells."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", cell).lstrip(".-")[:120] or "cell"
    own = re.sub(r"[^A-Za-z0-9_]+", "_", check)[:40]
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+){3}", cell) and len(cell) <= 120:
        return f"{plain}--{own}.py"
    return f"{plain}-{zlib.crc32(cell.encode('utf-8', 'surrogatepass')):08x}--{own}.py"


def script(check: Check, subject: Subject) -> str:
    """The reproducer of `check`, or "" where there is none."""
    if check.outcome not in SHOWN and not check.evidence.minimal.get("raises"):
        return ""
    if mode_of(subject.axes) != PLAIN:  # a script loads a model and calls it, as a plain cell does
        return ""
    attention, scheme = ATTENTION[subject.axes["attention"]], QUANTIZATIONS[subject.axes["quantization"]]
    body = bodies.of(check, subject.axes, str(subject.row.get("task", "")))
    if body is None or attention.provider is not None:  # a graph, which a script would have to export first
        return ""
    constants: dict[str, Any] = {
        "CELL": subject.cell,
        "FOUND": f"{check.name} is {check.outcome.value}: {check.reason}",
        "MEASURED_WITH": {k: (subject.packages or {})[k] for k in text.NAMED if k in (subject.packages or {})},
        "ROW": dict(subject.row),
        "DTYPE_NAME": DTYPES[subject.axes["dtype"]].torch_name,
        "IMPLEMENTATION": attention.implementation,
        "SDPA_KERNEL": attention.sdpa_kernel,
        "SWITCHED": subject.how == "switched",
        "CONVERTED": attention.convert is not None,
        "QUANTIZATION": {"library": scheme.library, "arguments": scheme.arguments} if scheme.library else None,
        "DEVICE_NAME": subject.device.split(":")[0],
        **body.constants,
    }
    return text.script(constants, body.main, body.needs, about(check, subject))


def about(check: Check, subject: Subject) -> list[tuple[str, str]]:
    """What the head of a script says: (name, text) pairs, not inert yet."""
    axes, packages = subject.axes, subject.packages or {}
    scheme = "" if axes["quantization"] == "none" else f", quantized to {axes['quantization']}"
    scheme += f", mode {axes['mode']}" if "mode" in axes else ""
    versions = ", ".join(f"{name} {packages[name]}" for name in text.NAMED if name in packages)
    pairs = [
        ("What", f"{axes['model']} in {axes['dtype']}, attention {axes['attention']}{scheme}: {check.name}"),
        ("Expected", expected(check)),
        ("Seen", check.reason),
        ("With", versions),
        ("On", ", ".join(t for t in (subject.device, subject.machine) if t)),
    ]
    return [(name, words) for name, words in pairs if words]


def machine(environment: Environment) -> str:
    """The machine in words: `2 x Example GPU, driver 580.10, CUDA 13.0, Python 3.11.9, Linux-6.8-x86_64`."""
    gpus = [f"{count} x {name}" for name, count in Counter(g.name for g in environment.gpus).items()]
    named = (("driver", environment.driver), ("CUDA", environment.cuda), ("Python", environment.python))
    return ", ".join(
        [*gpus, *(f"{n} {t}" for n, t in named if t), *([environment.platform] * bool(environment.platform))]
    )
