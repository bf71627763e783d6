"""positions: does the model work as far as it was trained, and what does it do beyond that?

A row of exactly the trained length is judged as in agreement. What lies beyond depends on the scheme. Rotary, ALiBi,
relative and computed positions have no end: a longer row, and longer rows beside shorter ones in a padded batch, are
judged against the fp64 reference of each row alone; a model that raises there refuses what its scheme allows. A learned
table has no entry there: the model has to raise, and whatever it returns instead is garbage.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from compat.worker.calls import StackError, Unavailable
from compat.worker.checks.agreement import by_path, record
from compat.worker.checks.padding import valid_outputs
from compat.worker.group import Group, Loaded
from compat.worker.inputs import Rows, padded, padding_sides, unpadded
from compat.worker.metrics import Agreement
from compat.worker.report import Report

BEYOND = 37
"""Tokens more than the trained length."""

LONGEST = 1100
"""Trained lengths up to which the check is affordable; probes have 512 positions."""


_POSITION = re.compile(r"pos|wpe")
"""What the name of a table of positions holds."""


def trained_length(config: Any) -> int | None:
    """Positions that a model was trained on, as its configuration says it; None where it does not."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    named = (getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    return next((int(n) for n in named if n), None)


def learned_tables(model: Any, trained: int) -> dict[str, int]:
    """Names of the weights that hold a row for each position and none beyond (`wpe.weight`) -> positions that they
    serve. Up to 4 rows more than `trained` are those of an offset; positions begin behind a table's padding row."""
    found = {}
    for path, module in model.named_modules():
        weight = module.weight if isinstance(module, torch.nn.Embedding) else None
        if weight is None or not trained <= weight.shape[0] <= trained + 4 or not _POSITION.search(path):
            continue
        offset = 0 if module.padding_idx is None else module.padding_idx + 1
        found[f"{path}.weight"] = min(trained, weight.shape[0] - offset)
    return found


def run(group: Group, attention: dict[str, Any]) -> Report:
    """See the module's docstring. Raises StackError, Unavailable, NoYardstick."""
    report = Report(seed=group.spec.seed)
    trained = trained_length(group.master.config)
    if trained is None or trained > LONGEST:
        said = "no trained length" if trained is None else f"a trained length of {trained:,}"
        raise Unavailable(f"the configuration states {said}; this check takes up to {LONGEST:,} positions")
    loaded = group.loaded(attention)
    tables = learned_tables(group.master, trained)
    end = min((trained, *tables.values()))
    report.facts |= {"trained_length": trained, "last_position": end, "tables": sorted(tables)}
    seed = 970 + 1000 * group.spec.seed
    with _buffers_kept(loaded.model):
        figures = _figures(group, loaded, seed, end, bool(tables), report)
    found = list(figures.values())
    record(report, found, own_yardstick=False)
    report.measure("compared_elements", [f.elements for f in found], unit="elements", better="higher", method="sum")
    report.facts["ratio_token_by_path"] = by_path(figures)
    return report


@contextmanager
def _buffers_kept(model: Any) -> Iterator[None]:
    """Afterwards every buffer is the one that it was: some families make theirs longer, and other checks look at it."""
    held = [(module, dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for module, buffers in held:
            module._buffers.update(buffers)


def _figures(group: Group, loaded: Loaded, seed: int, end: int, learned: bool, report: Report) -> dict[str, Agreement]:
    """By path; what is counted goes into `report`."""
    figures = {"as trained": _alone(group, loaded, group.source.rows(seed, [end]))}
    beyond = group.source.rows(seed + 1, [end + BEYOND])
    if learned:
        if group.device.type == "cpu":
            refused = _refused(group, loaded, beyond, report)
            report.measure("garbage_beyond", 0 if refused else len(beyond.tokens), unit="rows")
        else:
            report.facts["beyond"] = "not asked on an accelerator: an index beyond a table breaks its context"
    elif not _ends(group) or group.device.type == "cpu":
        refused = _refused(group, loaded, beyond, report)
        report.measure("refused_beyond", len(beyond.tokens) if refused else 0, unit="rows")
        if not refused:
            figures |= dict(_beyond(group, loaded, beyond, seed + 2, end))
    else:
        report.facts["beyond"] = "not asked on an accelerator: positions are looked up in a buffer"
    return figures


def _ends(group: Group) -> bool:
    """Whether computed positions lie in a buffer of so many rows, which some families make longer and others do not."""
    return any(b.dim() == 2 and b.shape[0] > BEYOND and _POSITION.search(n) for n, b in group.master.named_buffers())


def _beyond(group: Group, loaded: Loaded, alone: Rows, seed: int, end: int) -> Iterator[tuple[str, Agreement]]:
    yield "beyond", _alone(group, loaded, alone)
    rows = group.source.rows(seed, [end + BEYOND, end - BEYOND])
    for side in padding_sides(group.row, group.task):
        batch = padded(rows, side, loaded.model, group.device, group.source.pad)
        yield f"beyond, padded on the {side}", group.yardstick(rows).compare(valid_outputs(loaded, batch))


def _alone(group: Group, loaded: Loaded, rows: Rows) -> Agreement:
    output = loaded(**unpadded(rows, group.device, group.dtype))
    return group.yardstick(rows).compare(torch.cat(list(output)))


def _refused(group: Group, loaded: Loaded, rows: Rows, report: Report) -> bool:
    """Whether the model raises for `rows`; what it raises goes into the facts."""
    try:
        loaded(**unpadded(rows, group.device, group.dtype))
    except StackError as refused:
        report.facts["beyond"] = f"{type(refused.original).__name__}: {refused.original}"[:200]
        return True
    return False
