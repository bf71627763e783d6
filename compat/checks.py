"""What the parent knows of each check: its name, which tasks it applies to, whether it needs the device to itself.

The check itself is a file in `compat/worker/checks/`; its rules are rows of criteria.toml.
"""

from __future__ import annotations

from dataclasses import dataclass

from compat.axes.registry import Registry

TEXT_TASKS = ("causal-lm", "masked-lm", "seq2seq-lm", "feature-extraction")
ALL_TASKS = (*TEXT_TASKS, "image-classification")


@dataclass(frozen=True)
class CheckKind:
    """One question that can be asked of a cell."""

    name: str
    question: str
    tasks: tuple[str, ...] = ALL_TASKS
    exclusive: bool = False
    """Whether nothing else may run on the machine meanwhile (it measures time)."""
    timeout_seconds: float = 300.0


CHECKS = Registry(
    "check",
    (
        CheckKind("load", "does it load, and is what was asked for what runs?", timeout_seconds=600.0),
        CheckKind("agreement", "is it as close to the fp64 reference as eager in the same dtype is?"),
        CheckKind("padding", "does padding change anything that it must not?", tasks=TEXT_TASKS),
        CheckKind("generation", "does generate follow the model, and the pipeline follow generate?"),
        CheckKind("speed", "how fast are prefill and decode against eager?", exclusive=True),
        CheckKind("memory", "does it hold what its scheme says, before and after it runs?"),
    ),
)
