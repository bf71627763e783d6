"""Which parts of the stack stored runs show at work, with counts: a table for pages.

In: stored runs by folder. Out: Markdown, a row for each system and run; a system that no run shows says so. A system is
shown where a cell or a check of it was asked and answered; what was refused counts as an answer, what was left out or
lacked a package does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from compat.axes.mode import MODES
from compat.device import DEVICE_TYPES
from compat.families import kind, row_of
from compat.records import Cell, Check, Outcome, Run
from compat.render.figures import plural
from compat.render.markdown import _plain, _table, code
from compat.render.summary import headline_place

ANSWERED = frozenset(Outcome) - {Outcome.NOT_RUN, Outcome.UNAVAILABLE}

COLUMNS: dict[str, tuple[Outcome, ...]] = {
    "pass": (Outcome.PASS,),
    "degraded": (Outcome.DEGRADED,),
    "fail": (Outcome.FAIL, Outcome.CRASH, Outcome.OOM, Outcome.TIMEOUT),
    "unclear": (Outcome.INCONCLUSIVE, Outcome.ERROR),
    "refused": (Outcome.UNSUPPORTED,),
}
"""Column -> the outcomes that it counts."""


@dataclass(frozen=True)
class System:
    """One part of the stack, and what shows it: a test of a cell, or of one check of a cell."""

    name: str
    cell: Callable[[Cell], bool] | None = None
    check: Callable[[Check], bool] | None = None
    family: Callable[[str, frozenset[str]], bool] | None = None
    """Of a family's kind and features, for every cell of it."""


def _attention(*starts: str) -> Callable[[Cell], bool]:
    return lambda cell: cell.axes.get("attention", "").startswith(starts)


def _axis(axis: str, *starts: str) -> Callable[[Cell], bool]:
    return lambda cell: cell.axes.get(axis, "").startswith(starts)


def _adapters(check: Check) -> bool:
    return check.name == "gradient" and check.measurement("compared_adapters") is not None


def _elsewhere(check: Check) -> bool:
    return check.name == "load" and check.measurement("offload_difference") is not None


def _named(name: str) -> Callable[[Check], bool]:
    return lambda check: check.name == name


def _pipelines(check: Check) -> bool:
    return check.name == "generation" and check.measurement("pipeline_compared") is not None


def _kind(*parts: str) -> Callable[[str, frozenset[str]], bool]:
    return lambda kind, _: any(kind == part or kind.startswith(f"{part},") for part in parts)


PLACEMENTS = tuple(m.name for m in MODES if m.family == "placement")

SYSTEMS: tuple[System, ...] = (
    System("eager attention", _attention("eager")),
    System("SDPA, and each of its kernels", _attention("sdpa")),
    System("FlashAttention-2", _attention("flash_attention_2")),
    System("FlashAttention-3 and 4", _attention("flash_attention_3", "flash_attention_4")),
    System("FlexAttention", _attention("flex")),
    System("paged attention, continuous batching", check=_named("paged")),
    System("BetterTransformer", _attention("bettertransformer")),
    System("ONNX Runtime", _attention("onnxruntime")),
    System("torch.compile", _axis("mode", "compile")),
    System("torch.export", _axis("mode", "export")),
    System("bitsandbytes, 8 bits", _axis("quantization", "bnb-int8")),
    System("bitsandbytes, 4 bits", _axis("quantization", "bnb-fp4", "bnb-nf4")),
    System("torchao", _axis("quantization", "torchao")),
    System("quanto", _axis("quantization", "quanto")),
    System("PEFT adapters, trained", check=_adapters),
    System("PEFT adapters, used and merged", _axis("mode", "lora")),
    System("accelerate: weights offloaded after loading", check=_elsewhere),
    System("accelerate: device_map, offloading, two GPUs", _axis("mode", *PLACEMENTS)),
    System("pruning, 2:4 sparsity", _axis("mode", "pruned", "sparse")),
    System("a distilled student against its teacher", check=_named("distillation")),
    System("positions at and beyond the trained length", check=_named("positions")),
    System("key/value caches", check=_named("cache")),
    System("generate", check=_named("generation")),
    System("pipelines", check=_pipelines),
    System("training steps", check=_named("gradient")),
    System("decoder models", family=_kind("decoder")),
    System("encoder models", family=_kind("encoder")),
    System("encoder-decoder models", family=_kind("encoder-decoder", "speech encoder-decoder")),
    System("mixtures of experts", family=lambda _, features: "moe" in features),
    System(
        "state-space and other recurrent models",
        family=lambda _, features: bool(features & {"state-space", "linear-attention", "no-attention"}),
    ),
    System("vision models", family=_kind("vision")),
    System("audio models", family=_kind("audio", "speech encoder-decoder")),
    System("vision-language models", family=_kind("vision-language")),
    System("real checkpoints", family=lambda _, features: "real" in features),
)
"""What the table lists, in its order."""


def answers(run: Run, system: System) -> Counter[Outcome]:
    """Outcome -> how many cells (or checks) of `system` the run has answers of."""
    found: list[Outcome] = []
    for cell in run.cells:
        if system.check is not None:
            found += [c.outcome for c in cell.checks if system.check(c)]
        elif system.cell is not None:
            found += [cell.outcome] if system.cell(cell) else []
        elif system.family is not None:
            row = row_of(run, cell.axes["model"])
            features = frozenset(str(f) for f in row.get("features", ()))
            found += [cell.outcome] if system.family(kind(row), features) else []
    return Counter(o for o in found if o in ANSWERED)


def systems_table(runs: Mapping[str, Run]) -> str:
    """The table of SYSTEMS for `runs` (folder -> run)."""
    rows = [row for system in SYSTEMS for row in _rows(system, runs)]
    head = ["system", "report", "counted", *COLUMNS]
    places = "\n".join(
        f"- {code(folder)}: {code(headline_place(run))}, {code(run.run.started[:10])}" for folder, run in runs.items()
    )
    return f"{_table(head, rows, 'lll' + 'r' * len(COLUMNS))}\n\nThe reports:\n\n{places}\n"


def systems_brief(runs: Mapping[str, Run]) -> str:
    """A row for each of SYSTEMS and a column for each type of device: how many of its cells or checks pass, of those
    that were not refused, in the run that has most of them, and how many runs have others."""
    rows = []
    for system in SYSTEMS:
        counted = "checks" if system.check is not None else "cells"
        shown = [_largest(system, {f: r for f, r in runs.items() if r.run.device == device}) for device in DEVICE_TYPES]
        rows.append([_plain(system.name), counted, *shown])
    return _table(["system", "counted", *(f"pass on {device}" for device in DEVICE_TYPES)], rows, "llll") + "\n"


def _largest(system: System, runs: Mapping[str, Run]) -> str:
    found = {folder: count for folder, run in runs.items() if (count := answers(run, system))}
    if not found:
        return "no stored run"
    folder = max(found, key=lambda name: found[name].total())
    count, others = found[folder], len(found) - 1
    ran = count.total() - count[Outcome.UNSUPPORTED]
    more = f", {plural(others, 'more run')}" if others else ""
    return f"{count[Outcome.PASS]:,} of {ran:,} in {code(folder.rsplit('/', 1)[-1])}{more}"


def _rows(system: System, runs: Mapping[str, Run]) -> Iterator[Sequence[str]]:
    shown = {folder: count for folder, run in runs.items() if (count := answers(run, system))}
    name = _plain(system.name)
    if not shown:
        yield [name, "no stored run shows it", *[""] * (len(COLUMNS) + 1)]
    for number, (folder, count) in enumerate(shown.items()):
        yield [
            "" if number else name,
            code(folder),
            "checks" if system.check is not None else "cells",
            *(f"{sum(count[o] for o in outcomes):,}" for outcomes in COLUMNS.values()),
        ]
