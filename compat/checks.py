"""What the parent knows of each check: its question, the cells it applies to, whether it needs the device to itself.

The check itself is a file in `compat/worker/checks/`; its rules are a file in `compat/criteria/`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field

from compat.axes.mode import MODES, PLAIN, mode_of
from compat.axes.registry import Registry

TEXT_TASKS = ("causal-lm", "masked-lm", "seq2seq-lm", "feature-extraction")
GENERATING_TASKS = ("causal-lm", "seq2seq-lm")
CLASSIFYING_TASKS = ("image-classification", "audio-classification")
ALL_TASKS = (*TEXT_TASKS, *CLASSIFYING_TASKS)
GRAPHS = {"attention": ("onnxruntime*",)}
"""Cells whose model is an exported graph: no modules, no parameters, no gradients, no operators of torch."""

COMPOSITE_TASKS = ("image-text-to-text", "speech-seq2seq")
"""Models of two parts, one of which reads images or sound; a check that can feed them says so."""

EVERY_TASK = (*ALL_TASKS, *COMPOSITE_TASKS)

DEPTHS = ("quick", "standard", "deep")
"""How much a check looks at, from least to most: time for sight."""

EVERY_MODE = ("*",)

UNCOMPILED = (
    PLAIN,
    *(m.name for m in MODES if m.family in ("placement", "adapter", "pruning")),
)
"""Modes in which a call of another kind costs no compilation of many seconds, and has a cache."""


@dataclass(frozen=True)
class CheckKind:
    """One question that can be asked of a cell."""

    name: str
    question: str
    tasks: tuple[str, ...] = ALL_TASKS
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Axis -> values or patterns, for a check that has something to ask of these cells only."""
    excepted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Axis -> values or patterns of cells that it has nothing to ask of: a graph has no modules and no gradients."""
    modes: tuple[str, ...] = (PLAIN,)
    """Patterns of the modes (`axes/mode.py`) in which it has something to ask."""
    mode_tasks: tuple[str, ...] = EVERY_TASK
    """Of the tasks, those of which it asks something in a mode that is not plain."""
    shapes: bool = False
    """Whether it has something to ask of a model of random weights, of which only speed and memory mean anything."""
    exclusive: bool = False
    """Whether nothing else may run on the machine meanwhile (it measures time)."""
    on_request: bool = False
    """Whether only a matrix or command that names it asks it."""
    row_key: str = ""
    """A key of a model's row without which it has nothing to ask."""
    timeout_seconds: float = 300.0

    def applies(self, task: str, axes: Mapping[str, str]) -> bool:
        """Whether the check has something to ask of a cell with these axis values."""
        mode = mode_of(axes)
        asked_in = any(fnmatch.fnmatchcase(mode, p) for p in self.modes)
        of_task = task in self.tasks and (mode == PLAIN or task in self.mode_tasks)

        def fits(named: Mapping[str, tuple[str, ...]]) -> list[bool]:
            return [any(fnmatch.fnmatchcase(axes[axis], p) for p in patterns) for axis, patterns in named.items()]

        return of_task and asked_in and all(fits(self.only)) and not any(fits(self.excepted))


CHECKS = Registry(
    "check",
    (
        CheckKind(
            "load",
            "does it load, and is what was asked for what runs?",
            tasks=EVERY_TASK,
            modes=EVERY_MODE,
            shapes=True,
            timeout_seconds=600.0,
        ),
        CheckKind(
            "mode",
            "did what was to be done with the model take effect, and what does it change?",
            modes=tuple(m.name for m in MODES if m.name != PLAIN),
            timeout_seconds=600.0,
        ),
        CheckKind(
            "agreement",
            "is it as close to the fp64 reference as eager in the same dtype is?",
            tasks=EVERY_TASK,
            modes=EVERY_MODE,
            timeout_seconds=600.0,
        ),
        CheckKind(
            "padding",
            "does padding change anything that it must not?",
            tasks=TEXT_TASKS,
            modes=EVERY_MODE,
            timeout_seconds=600.0,
        ),
        CheckKind(
            "cache",
            "does decoding from a cache give what the whole sequence gives?",
            tasks=GENERATING_TASKS,
            modes=UNCOMPILED,
        ),
        CheckKind(
            "generation",
            "does generate follow the model, and the pipeline follow generate?",
            tasks=EVERY_TASK,
            # pipelines are made of plain models
            modes=UNCOMPILED,
            mode_tasks=GENERATING_TASKS,
            # a forced SDPA kernel walks the code of `sdpa`; its kernel is what the other checks look at
            only={"attention": ("eager", "sdpa", "flash_*", "flex_*", "bettertransformer", "onnxruntime*")},
        ),
        CheckKind(
            "paged",
            "does continuous batching over a paged cache write the tokens that the model chooses?",
            tasks=("causal-lm",),
            only={"attention": ("eager", "sdpa", "flash_attention_*")},
            on_request=True,
        ),
        CheckKind(
            "positions",
            "does the model work as far as it was trained, and what does it do beyond that?",
            tasks=TEXT_TASKS,
            only={"quantization": ("none",)},
            excepted=GRAPHS,
            on_request=True,
        ),
        CheckKind(
            "distillation",
            "does a student still say what its teacher says?",
            tasks=("causal-lm", "masked-lm"),
            excepted=GRAPHS,
            on_request=True,
            row_key="teacher",
        ),
        CheckKind(
            "quality",
            "are the weights quantized as asked, and at what loss?",
            only={"quantization": ("bnb-*", "torchao-*", "quanto-*")},
            excepted=GRAPHS,
        ),
        CheckKind(
            "gradient",
            "does a training step give the gradients that the reference gives?",
            tasks=EVERY_TASK,
            excepted=GRAPHS,
        ),
        CheckKind(
            "determinism",
            "does the same input give the same answer, whatever ran before it or beside it?",
            tasks=(*ALL_TASKS, "image-text-to-text"),
            modes=(PLAIN, *(m.name for m in MODES if m.kind == "what")),
        ),
        CheckKind(
            "dispatch",
            "which kernels run, on every path and in every part of the model?",
            tasks=EVERY_TASK,
            excepted=GRAPHS,
        ),
        CheckKind("work", "does it do more work than its arithmetic asks for?", excepted=GRAPHS),
        CheckKind("speed", "how fast are prefill and decode against eager?", shapes=True, exclusive=True),
        CheckKind(
            "memory",
            "does it hold what its scheme says, before and after it runs?",
            tasks=EVERY_TASK,
            shapes=True,
            excepted=GRAPHS,
        ),
    ),
)
