"""What model families declare beside what a run measured of them. Pure.

In: rows of models.toml, what their classes declare, a run's cells. Out: what kind of family a row is, how each
attention backend of it is supported, and in words where declaration and measurement differ.

Support is read off the cells without quantization, all dtypes together, by the worst of their outcomes. A forced SDPA
kernel has no declaration of its own: classes declare SDPA, and which kernels take what is torch's affair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from compat.axes import ATTENTION
from compat.records import Cell, Outcome, Run, worst

FLAGS = ("sdpa", "flash", "flex", "paged", "compile", "switch")
"""What a class can declare, in the order of tables."""

Flags = Mapping[str, bool | None]


class Support(StrEnum):
    """How a family takes an attention backend."""

    WORKS = "works"
    UNDECLARED = "works undeclared"
    DEGRADED = "degraded"
    WRONG = "wrong"
    DECLARED_WRONG = "declared, wrong"
    REFUSED = "refused"
    DECLARED_REFUSED = "declared, refused"
    UNCLEAR = "unclear"
    UNAVAILABLE = "unavailable"
    NOT_ASKED = "not asked"


MEANINGS: dict[Support, str] = {
    Support.WORKS: "every check passed, and the class declares it where it can",
    Support.UNDECLARED: "every check passed, and the class does not declare it",
    Support.DEGRADED: "works, but not as asked, or at a worse cost",
    Support.WRONG: "runs and is wrong, or ends without an answer",
    Support.DECLARED_WRONG: "the class declares it, and it is wrong or ends without an answer",
    Support.REFUSED: "refused in the library's own words",
    Support.DECLARED_REFUSED: "the class declares it, and the library refuses it",
    Support.UNCLEAR: "ran, and nothing can be concluded",
    Support.UNAVAILABLE: "a package or device for it was missing",
    Support.NOT_ASKED: "not run, or not in the matrix",
}

_WRONG = (Outcome.FAIL, Outcome.CRASH, Outcome.OOM, Outcome.TIMEOUT)

_KINDS = {
    "causal-lm": "decoder",
    "masked-lm": "encoder",
    "feature-extraction": "encoder",
    "seq2seq-lm": "encoder-decoder",
    "image-classification": "vision",
    "audio-classification": "audio",
    "image-text-to-text": "vision-language",
    "speech-seq2seq": "speech encoder-decoder",
}


def kind(row: Mapping[str, Any]) -> str:
    """What a family is, from its task and features: `decoder`, `decoder, mixture of experts`, `state-space` ...;
    `unknown` for a row that was not stored."""
    features = set(row.get("features", ()))
    name = _KINDS.get(str(row.get("task", "")), "unknown")
    if "no-attention" in features:
        name = "state-space"
    elif features & {"hybrid", "state-space", "linear-attention"}:
        name = f"{name}, hybrid"
    return f"{name}, mixture of experts" if "moe" in features else name


def flag_of(attention: str) -> str:
    """Which declaration speaks of a backend; "" where none does (eager, forced kernels, older keywords, unknown
    names)."""
    known = next((a for a in ATTENTION if a.name == attention), None)
    if known is None or known.sdpa_kernel is not None or known.keyword is not None:
        return ""
    name = known.implementation
    return next((f for f in ("sdpa", "flash", "flex", "paged") if name.startswith(f)), "")


def support(outcomes: Sequence[Outcome], declared: bool | None) -> Support:
    """How a backend is supported, from the outcomes of its cells and from what the class declares of it.

    Cells that were not asked decide only where there are no others, and one that lacks a package only where none ran.
    """
    asked = [o for o in outcomes if o is not Outcome.NOT_RUN]
    ran = [o for o in asked if o is not Outcome.UNAVAILABLE]
    if not ran:
        return Support.UNAVAILABLE if asked else Support.NOT_ASKED
    if all(o is Outcome.UNSUPPORTED for o in ran):
        return Support.DECLARED_REFUSED if declared else Support.REFUSED
    outcome = worst(ran)
    if outcome in _WRONG:
        return Support.DECLARED_WRONG if declared else Support.WRONG
    if outcome in (Outcome.ERROR, Outcome.INCONCLUSIVE):
        return Support.UNCLEAR
    if outcome is Outcome.DEGRADED:
        return Support.DEGRADED
    return Support.UNDECLARED if declared is False else Support.WORKS


@dataclass(frozen=True)
class Family:
    """One model of a table: its row, what its class declares, and its cells in a run."""

    name: str
    row: Mapping[str, Any]
    cls: str
    """Name of its class; "" where it is not known."""
    declared: Flags | None
    """None where nobody was asked, or no answer was stored."""
    problem: str
    """Why the class is not known, where it was asked for."""
    cells: tuple[Cell, ...]
    """Those of the run without quantization."""

    def flag(self, attention: str) -> bool | None:
        """What the class declares of a backend; None where nothing does, or it is not known."""
        return (self.declared or {}).get(flag_of(attention))

    def of(self, attention: str) -> tuple[Cell, ...]:
        """Its cells with a backend."""
        return tuple(c for c in self.cells if c.axes["attention"] == attention)

    def support(self, attention: str) -> Support:
        """How a backend is supported."""
        return support([c.outcome for c in self.of(attention)], self.flag(attention))


def stored_declarations(cells: Sequence[Cell]) -> tuple[str, Flags | None]:
    """The class and what it declared, as a `load` check of one of `cells` stored it; None for runs without it."""
    cls = ""
    for cell in cells:
        load = cell.check("load")
        facts = load.evidence.facts if load is not None else {}
        cls = cls or str(facts.get("class", ""))
        if isinstance(facts.get("declares"), dict) and facts["declares"]:
            return cls, {str(k): v if isinstance(v, bool) else None for k, v in facts["declares"].items()}
    return cls, None


def row_of(run: Run, model: str) -> Mapping[str, Any]:
    """The row of `model` as the run stored it; empty where it stored none."""
    found: Any = run.run.settings
    for key in ("models", model, "row"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def of_run(run: Run) -> tuple[Family, ...]:
    """The families of a run, in its order; what they declare as it was stored."""
    names = dict.fromkeys(c.axes["model"] for c in run.cells)
    found = []
    for name in names:
        every = [c for c in run.cells if c.axes["model"] == name]
        cls, declared = stored_declarations(every)
        found.append(Family(name, row_of(run, name), cls, declared, "", plain(every)))
    return tuple(found)


def plain(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells without quantization and at the default of every further axis."""
    axes = {"model", "dtype", "attention", "quantization"}
    return tuple(c for c in cells if c.axes.get("quantization", "none") == "none" and not set(c.axes) - axes)


def differences(family: Family) -> tuple[str, ...]:
    """In words, where what the class declares and what was measured differ; each said once for all dtypes."""
    said: dict[str, None] = {}
    for cell in family.cells:
        backend, flag = cell.axes["attention"], family.flag(cell.axes["attention"])
        load = cell.check("load")
        if load is None or cell.outcome in (Outcome.NOT_RUN, Outcome.UNAVAILABLE):
            continue
        how = str(load.evidence.facts.get("how", ""))
        if (family.declared or {}).get("switch") and how == "reloaded":
            said["declares that set_attn_implementation takes effect, and had to be loaded again"] = None
        if flag is True and cell.outcome is Outcome.UNSUPPORTED:
            said[f"declares {backend}, refused: {cell.reason}"] = None
        elif flag is True and load.outcome in _WRONG:
            said[f"declares {backend}, does not load: {cell.reason}"] = None
        elif flag is True and (ran := _other_kernels(cell, backend)):
            said[f"declares {backend}, ran {ran}"] = None
        elif flag is True and cell.outcome in _WRONG:
            said[f"declares {backend}, {_failed(cell)}"] = None
        elif flag is False and how and cell.outcome is not Outcome.UNSUPPORTED:
            how_it_went = "works" if cell.outcome is Outcome.PASS else _failed(cell)
            said[f"does not declare {backend}, takes it without a word: {how_it_went}"] = None
    return tuple(said)


def _other_kernels(cell: Cell, backend: str) -> str:
    """Kernels that ran and are none of the backend's, as names; "" where there are none."""
    wanted = ATTENTION[backend].kinds | ATTENTION[backend].slower_kinds
    return ", ".join(sorted(set(cell.effective.get("kernels", ())) - wanted))


def _failed(cell: Cell) -> str:
    """The outcome of a cell, with the checks that gave it."""
    names = [c.name for c in cell.checks if c.outcome is cell.outcome]
    return f"{cell.outcome.value} in {', '.join(names)}" if names else cell.outcome.value
