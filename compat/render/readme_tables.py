"""Parts of pages that are made from compat's own tables: thresholds, refusals, axes, models; and the harness's cost.

In: the options of a mark and the folder that its paths start from. Out: Markdown.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from compat.axes import ATTENTION, DTYPES, MODES, QUANTIZATIONS, Attention
from compat.builtin import matrices_folder
from compat.checks import CHECKS
from compat.render.figures import plural
from compat.render.markdown import _table, code
from compat.render.readme_marks import MarkError, Options, bound, listed, own_text, where
from compat.rules import Rule, criteria, criteria_tables, refusals


def criteria_part(options: Options, root: Path) -> str:
    """Thresholds of a check."""
    checks = listed(options, "check", CHECKS.names)
    rules = [r for r in criteria().rules if checks is None or r.check in checks]
    if not rules:
        raise MarkError(f"compat/criteria has no rule for {options.get('check', 'any check')}")
    rows = [
        [code(r.measurement), where(r), bound(r, r.passes), _beyond(r), own_text(r.source)]
        for r in rules
    ]  # fmt: skip
    return _table(["measurement", "holds for", "pass", "beyond that", "source"], rows, "llrll")


def _beyond(rule: Rule) -> str:
    if rule.guard:
        return "inconclusive"
    if rule.doubt:
        return "its figures are marked `?`"
    return "fail" if rule.degraded is None else f"degraded to {bound(rule, rule.degraded)}, then fail"


def own_findings_part(options: Options, root: Path) -> str:
    """The facts of `load` that have an outcome of their own."""
    found = {name: row for table in criteria_tables().values() for name, row in table.get("finding", {}).items()}
    rows = [[code(name), row["outcome"], own_text(row["source"])] for name, row in found.items()]
    return _table(["finding", "outcome", "source"], rows, "lll")


def refusals_part(options: Options, root: Path) -> str:
    """How libraries say no."""
    rows = [[code(r.id), r.outcome.value, code(r.type), own_text(r.meaning)] for r in refusals()]
    return _table(["id", "outcome", "exception", "meaning"], rows, "llll")


def _asked(attention: Attention) -> str:
    """What is asked of the libraries for a backend."""
    if attention.provider:
        return f"exported to ONNX, {code(attention.provider)}"
    return code(attention.implementation) + (f", then {code('to_bettertransformer')}" if attention.convert else "")


def axes_part(options: Options, root: Path) -> str:
    """The values of an axis, as its registry has them."""
    if options["axis"] == "dtype":
        return _table(["dtype", "torch"], [[code(d.name), code(d.torch_name)] for d in DTYPES], "ll")
    if options["axis"] == "attention":
        rows = [[code(a.name), _asked(a), _kernel(a.sdpa_kernel), ", ".join(sorted(a.kinds))]
                for a in ATTENTION]  # fmt: skip
        return _table(
            ["attention", "asked of transformers", "forced SDPA kernel", "counts as having run"], rows, "llll"
        )
    if options["axis"] == "quantization":
        rows = [[code(q.name), q.library or "-", f"{q.bits:g}" if q.bits else "-"] for q in QUANTIZATIONS]
        return _table(["quantization", "library", "bits a weight"], rows, "llr")
    if options["axis"] == "mode":
        rows = [[code(m.name), m.kind, own_text(m.does), m.needs or "-"] for m in MODES]
        return _table(["mode", "kind", "what is done", "needs"], rows, "llll")
    raise MarkError(
        "axis is one of dtype, attention, quantization, mode; models have a mark of their own, compat:models"
    )


def _kernel(name: str | None) -> str:
    return code(name) if name else "-"


def models_part(options: Options, root: Path) -> str:
    """The rows of models.toml."""
    data = tomllib.loads((matrices_folder() / "models.toml").read_text(encoding="utf-8"))
    rows = [
        [code(name), row["source"], row["task"], own_text(", ".join(row.get("features", ())))]
        for name, row in data["models"].items()
    ]
    return _table(["model", "source", "task", "features"], rows, "llll")


def cost_part(options: Options, root: Path) -> str:
    """The tables of benchmarks/harness_cost.py from the JSON that it wrote."""
    return _benchmark(options["file"], root, "harness_cost.py", _cost_parts)


def noise_part(options: Options, root: Path) -> str:
    """The table of benchmarks/timing_noise.py from the JSON that it wrote."""
    return _benchmark(options["file"], root, "timing_noise.py", _noise_parts)


def filter_part(options: Options, root: Path) -> str:
    """The table of benchmarks/site_filter.py from the JSON that it wrote."""
    return _benchmark(options["file"], root, "site_filter.py", _filter_parts)


def _benchmark(file: str, root: Path, made_by: str, parts: Callable[[Any], Iterator[str]]) -> str:
    """The text that `parts` make of a stored benchmark. Raises MarkError."""
    try:
        data: Any = json.loads((root / file).read_text(encoding="utf-8"))
        return "\n\n".join(parts(data))
    except OSError as error:
        raise MarkError(f"{file}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise MarkError(f"{file}: not a file of benchmarks/{made_by}: {error}") from error


def _noise_parts(data: Any) -> Iterator[str]:
    packages = ", ".join(f"{name} {version}" for name, version in data["packages"].items())
    beside = ", beside processes that keep every core busy" if data["busy"] else ""
    yield (
        f"Measured on {code(data['machine'])} ({code(packages)}), {code(data['date'])}{beside}: "
        f"{data['comparisons']} comparisons of each kind, {data['budget_seconds']:g} s each, one call "
        f"{1e3 * data['call_seconds']:.1f} ms."
    )
    count = data["comparisons"]
    rows = [
        [f"{float(share):.0%}", f"{x['flagged']} ({x['flagged'] / count:.1%})", f"{x['inconclusive']}",
         f"{x['interval_holds_truth'] / count:.0%}", f"{x['median_ratio']:.4f}", f"{x['median_width']:.2%}",
         f"{x['median_pairs']:g}", f"{x['median_contention']:.0%}", f"{x['median_overhead']:.1%}"]
        for share, x in data["planted"].items()
    ]  # fmt: skip
    head = [
        "planted",
        "flagged",
        "inconclusive",
        "interval holds",
        "median ratio",
        "width",
        "pairs",
        "contention",
        "overhead",
    ]
    yield _table(head, rows, "rrrrrrrrr")


def _filter_parts(data: Any) -> Iterator[str]:
    yield (
        f"Measured on {code(data['machine'])} ({code(data['browser'])}), {code(data['date'])}, at a load average of "
        f"{data['load_average']:g}: {data['cells']} over {plural(data['runs'], 'run')}; the page was there after "
        f"{data['opened_seconds']:.1f} s."
    )
    rows = [
        [name, f"{x['keys']}", f"{x['processor_median']:g}", f"{x['processor_largest']:g}", f"{x['median']:g}",
         f"{x['largest']:g}"]
        for name, x in data["milliseconds"].items()
    ]  # fmt: skip
    yield _table(["keys", "pressed", "processor, median", "largest", "wall, median", "largest"], rows, "lrrrrr")


def _cost_parts(data: Any) -> Iterator[str]:
    machine, work = data["machine"], data["work"]
    packages = ", ".join(f"{name} {machine['packages'][name]}" for name in ("torch", "transformers"))
    yield (
        f"Measured on {code(machine['cpu'])} ({code(packages)}), {code(data['started'][:10])}: "
        f"{work['cells']:,} cells, {work['checks']:,} checks, median of {plural(work['repeats'], 'repeat')}."
    )
    overhead = data["overhead"]
    yield (
        f"Wall time over the seconds spent in model calls: {overhead['ratio']:.2f} ({overhead['wall_seconds']:.1f} s "
        f"over {overhead['model_seconds']:.1f} s)."
    )
    rows = [
        [name if name == "all" else code(name), f"{row['checks']:,}", f"{1e3 * row['harness_seconds']:.0f}",
         f"{1e3 * row['plain_seconds']:.0f}", f"{row['ratio']:.1f}", f"{row['median_ratio']:.1f}"]
        for name, row in data["per_check"].items()
    ]  # fmt: skip
    head = ["check", "asked", "compat, ms a check", "plain loop, ms a check", "ratio", "median ratio of a cell"]
    yield _table(head, rows, "lrrrrr")
