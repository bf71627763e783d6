"""torch.export: the forward as a program in a file, saved, loaded again and run without the model's own code.

A program is exported for each kind of call (which tensors, of which dtype and rank), with sizes left open where export
can do that; where it cannot, one for each size, and the fact is recorded. What runs is always what was loaded from the
file.
"""

from __future__ import annotations

import tempfile
import time
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compat.worker import stack_api
from compat.worker.calls import StackError, under_test
from compat.worker.inputs import output_of, unpadded

if TYPE_CHECKING:
    from compat.worker.group import Group, Loaded
    from compat.worker.report import Report

SIZES = ((2, 33), (3, 57), (4, 90))
"""Rows and tokens that one program is called with."""


class _Forward(torch.nn.Module):
    """The judged output of a model as a function of named tensors; without a cache, which is not part of it."""

    def __init__(self, model: Any, task: str, names: tuple[str, ...], fixed: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.task, self.names, self.fixed = model, task, names, fixed

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return output_of(self.model(**dict(zip(self.names, tensors, strict=True)), **self.fixed), self.task)


class Exported:
    """The programs of one model."""

    def __init__(self, model: Any, task: str) -> None:
        self.model, self.task = model, task
        self.missed = 0
        self.programs: dict[tuple[Any, ...], Any] = {}
        self.saved_bytes: list[int] = []
        self.seconds = 0.0
        self.fixed_because = ""
        """Why a program's sizes had to be fixed, in the library's words."""
        self.unlike_saved = 0
        """Elements in which a loaded program's output is not that of the program before it was saved."""

    def __call__(self, **inputs: Any) -> Any:
        """A forward by the program of these inputs' kind. Raises StackError(phase="export")."""
        tensors = {k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)}
        kind = tuple((k, str(v.dtype), v.dim(), v.shape[0] == 1) for k, v in tensors.items())
        sizes = tuple(tuple(v.shape) for v in tensors.values())
        program = self.programs.get(kind) or self.programs.get((*kind, sizes))
        if program is None:
            program = self._made(kind, sizes, tensors, inputs)
        with under_test("run exported"):
            output = program(*tensors.values())
        # both names, since a task reads one of them
        return types.SimpleNamespace(logits=output, last_hidden_state=output)

    def _made(
        self, kind: tuple[Any, ...], sizes: tuple[Any, ...], tensors: dict[str, torch.Tensor], inputs: dict[str, Any]
    ) -> Any:
        fixed = {k: v for k, v in inputs.items() if k not in tensors}
        if stack_api.accepts(self.model, "use_cache"):
            fixed["use_cache"] = False
        forward = _Forward(self.model, self.task, tuple(tensors), fixed).eval()
        started = time.perf_counter()
        try:
            program, key = self._program(forward, tensors, True), kind
        except StackError as refused:
            self.fixed_because = f"{type(refused.original).__name__}: {str(refused.original).strip()}"[:300]
            program, key = self._program(forward, tensors, False), (*kind, sizes)
        self.seconds += time.perf_counter() - started
        self.programs[key] = program
        return program

    def _program(self, forward: _Forward, tensors: dict[str, torch.Tensor], open_sizes: bool) -> Any:
        """Exported, saved, loaded: the module of what was loaded."""
        arguments = tuple(tensors.values())
        with under_test("export"):
            exported = torch.export.export(
                forward, arguments, dynamic_shapes=(_open(arguments),) if open_sizes else None, strict=False
            )
            with tempfile.TemporaryDirectory(prefix="compat-") as folder:
                path = Path(folder) / "model.pt2"
                torch.export.save(exported, path)
                self.saved_bytes.append(path.stat().st_size)
                loaded = torch.export.load(path).module()
            before = exported.module()(*arguments)
            after = loaded(*arguments)
        self.unlike_saved += int((before != after).sum()) if before.shape == after.shape else after.numel()
        return loaded

    def close(self) -> None:
        """Let go of the programs."""
        self.programs.clear()


def _open(arguments: tuple[torch.Tensor, ...]) -> tuple[dict[int, Any], ...]:
    """Of each tensor the sizes that may vary: rows and positions, of images and sound the rows. A size of 1 is what
    export takes for fixed."""
    return tuple(
        {
            axis: torch.export.Dim.DYNAMIC
            for axis in range(2 if not t.is_floating_point() else 1)
            if axis < t.dim() and t.shape[axis] > 1
        }
        for t in arguments
    )


def way(group: Group, attention: dict[str, Any]) -> Loaded:
    """See compat.worker.modes."""
    loaded = group.fresh(attention)
    loaded.way = loaded.call = Exported(loaded.model, group.task)
    return loaded


def seen(group: Group, loaded: Loaded) -> dict[str, Any]:
    """See compat.worker.modes."""
    own: Exported = loaded.way
    words = f"{len(own.programs)} programs of {max(own.saved_bytes, default=0):,} bytes at most"
    return {"held": "yes" if own.programs else "no", "words": words}


def measure(group: Group, attention: dict[str, Any], report: Report) -> None:
    """How many programs one kind of call needs at several sizes, and whether what was loaded is what was saved."""
    loaded = group.loaded(attention)
    own: Exported = loaded.way
    own.programs.clear()
    for count, length in SIZES:
        rows = group.source.rows(700 + 1000 * group.spec.seed + length, [length] * count)
        loaded(**unpadded(rows, group.device, group.dtype))
    report.measure("programs", len(own.programs), unit="programs")
    report.measure("export_reload_differing", own.unlike_saved, unit="elements")
    report.measure("export_seconds", own.seconds, unit="s", better="none")
    report.measure("export_bytes", max(own.saved_bytes), unit="bytes", better="none")
    if own.fixed_because:
        report.facts["sizes_fixed_because"] = own.fixed_because
