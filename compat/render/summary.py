"""Everything the renderers say, worked out once: verdict, environment, grids, failure groups, speed and counts.

In: a `Run`. Out: a `Report` of plain values; renderers add layout and escaping and no opinion of their own.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from compat.records import BAD, SEVERITY, Cell, Outcome, Run, RunInfo
from compat.render.evidence import sharper_counts
from compat.render.exhibits import sections
from compat.render.figures import duration, plain, plural, size
from compat.render.grids import Extras, Panel, panels, shared_extras
from compat.render.groups import QUIET, Group, failures, not_asked
from compat.render.inert import label, one_line
from compat.render.patterns import Patterns, patterns
from compat.render.plot_parts import Section
from compat.render.sight import in_one_line
from compat.render.speed import Speed, speed
from compat.render.symbols import symbol

HEADLINE_PACKAGES: tuple[str, ...] = ("torch", "transformers")
FIRST_PACKAGES: tuple[str, ...] = (
    *HEADLINE_PACKAGES,
    "bitsandbytes",
    "flash-attn",
    "flash_attn",
    "triton",
    "accelerate",
)
READING_ORDER: tuple[Outcome, ...] = (Outcome.PASS, *(o for o in SEVERITY if o is not Outcome.PASS))
"""Counts start with what works; then the worst first."""


@dataclass(frozen=True)
class Verdict:
    """The first thing anyone reads. Parts that do not apply are empty."""

    partial: str
    headline: str
    avoid: str
    harness: str

    @property
    def text(self) -> str:
        """All of it as one paragraph."""
        return " ".join(part for part in (self.partial, self.headline, self.avoid, self.harness) if part)


@dataclass(frozen=True)
class Report:
    """What a renderer needs."""

    verdict: Verdict
    environment: tuple[tuple[str, str], ...]
    counts: tuple[tuple[Outcome, int], ...]
    """Outcomes that occur, in reading order, with their number of cells."""
    checks: tuple[tuple[str, dict[Outcome, int]], ...]
    panels: tuple[Panel, ...]
    shared: Extras
    failures: tuple[Group, ...]
    not_asked: tuple[Group, ...]
    speed: Speed
    sections: tuple[Section, ...]
    """Speed and memory on a grid, and by quantization."""
    command: str
    """The command line of the run, or empty."""
    sharper: str
    """How many 16-bit cells were judged in a finer dtype too, or empty."""


def summarise(run: Run, *, pattern_limit: int = 4) -> Report:
    """The report on `run`; `pattern_limit` bounds the cell patterns named for each failure group."""
    return Report(
        verdict=verdict(run),
        environment=environment(run),
        counts=_counts(c.outcome for c in run.cells),
        checks=_check_counts(run.cells),
        panels=panels(run.cells),
        shared=shared_extras(run.cells),
        failures=failures(run.cells, pattern_limit),
        not_asked=not_asked(run.cells, pattern_limit),
        speed=speed(run.cells),
        sections=sections(run),
        sharper=sharper_counts(run.cells),
        command=shlex.join(run.run.argv),
    )


def verdict(run: Run) -> Verdict:
    """What may be concluded from `run`, in a few words. Counts come from the cells themselves."""
    counts = Counter(c.outcome for c in run.cells)
    total = len(run.cells)
    return Verdict(_partial(run, counts), _headline(run, counts, total), _avoid(run.cells), _harness(counts))


def _partial(run: Run, counts: Counter[Outcome]) -> str:
    if run.run.complete:
        return ""
    missing = counts[Outcome.NOT_RUN]
    left = f" ({missing:,} of {plural(len(run.cells), 'cell')} not run)" if missing else ""
    return f"PARTIAL: the run did not finish{left}."


def _headline(run: Run, counts: Counter[Outcome], total: int) -> str:
    place = headline_place(run)
    if not total:
        return f"The run holds no cells on {place}: nothing can be said."
    passed = counts[Outcome.PASS]
    if passed == total:
        return f"{'All ' if total > 1 else ''}{plural(total, 'cell')} {'pass' if total > 1 else 'passes'} on {place}."
    verb = "passes" if passed == 1 else "pass"
    rest = [_tally(o, counts[o]) for o in SEVERITY if counts[o] and o not in QUIET | {Outcome.PASS}]
    quiet = [_tally(o, counts[o]) for o in SEVERITY if counts[o] and o in QUIET]
    text = f"{passed:,} of {plural(total, 'cell')} {verb} on {place}"
    if rest:
        text += "; " + ", ".join(rest)
    if quiet:
        text += f"; {sum(counts[o] for o in QUIET):,} not asked ({', '.join(quiet)})"
    return text + "."


def _tally(outcome: Outcome, count: int) -> str:
    singular, more = {
        Outcome.FAIL: ("fails", "fail"),
        Outcome.CRASH: ("crashes", "crash"),
        Outcome.OOM: ("runs out of memory", "run out of memory"),
        Outcome.TIMEOUT: ("times out", "time out"),
        Outcome.ERROR: ("harness error", "harness errors"),
    }.get(outcome, (symbol(outcome).word, symbol(outcome).word))
    return f"{count:,} {singular if count == 1 else more}"


def _avoid(cells: Sequence[Cell]) -> str:
    bad = [c for c in cells if c.outcome in BAD and c.outcome is not Outcome.ERROR]
    return f"Do not use {_listed(patterns(bad, cells, 3))}." if bad else ""


def _listed(found: Patterns) -> str:
    return one_line(found.text, 600)


def _harness(counts: Counter[Outcome]) -> str:
    errors = counts[Outcome.ERROR]
    if not errors:
        return ""
    them = "it says" if errors == 1 else "they say"
    return f"The harness itself failed on {plural(errors, 'cell')} (error): {them} nothing about the stack."


def headline_place(run: Run) -> str:
    """The device and the two packages that matter most: `cuda (Example GPU; torch 2.13.0, transformers 5.23.0)`."""
    names = list(dict.fromkeys(label(g.name, 60) for g in run.environment.gpus))
    known = run.environment.packages
    versions = [f"{name} {label(known[name], 40)}" for name in HEADLINE_PACKAGES if name in known]
    device = label(run.run.device, 40) if run.run.device else "an unnamed device"
    gpus = ", ".join(names[:3]) if run.run.device != "cpu" else ""
    details = "; ".join(part for part in (gpus, ", ".join(versions)) if part)
    return f"{device} ({details})" if details else device


def environment(run: Run) -> tuple[tuple[str, str], ...]:
    """The machine, the packages and the run as (label, text) pairs; what was not recorded is left out."""
    env, info = run.environment, run.run
    took = f"{duration(run.summary.seconds)} for {plural(len(run.cells), 'cell')}"
    pairs = [
        ("device", _machine(run)),
        ("packages", ", ".join(_packages(env.packages))),
        ("python", one_line(", ".join(_named(("", env.python), ("", env.platform))))),
        ("cpu", one_line(env.cpu)),
        ("run", ", ".join(_named(("", one_line(info.id)), ("", _when(info)), ("took", took)))),
        ("stack", one_line(" ".join(_named(("", info.stack.name), ("sha256", info.stack.sha256[:12]))))),
        ("matrix", one_line(" ".join(_named(("", info.matrix.path), ("sha256", info.matrix.sha256[:12]))))),
        (
            "settings",
            ", ".join(
                text
                for k, v in sorted(info.settings.items())
                if (not isinstance(v, dict) or k == "selected") and (text := _setting(k, v))
            ),
        ),
        ("selftest", in_one_line(info.settings.get("selftest"))),
        ("all cells", ", ".join(f"{label(n, 40)} {label(v, 60)}" for n, v in shared_extras(run.cells))),
    ]
    return tuple((name, text) for name, text in pairs if text)


def _setting(name: str, value: Any) -> str:
    """A setting in words: `8 workers on cuda:0, cuda:1`; "" for a selection of nothing."""
    if name == "lanes" and isinstance(value, list):
        places = dict.fromkeys(one_line(plain(v, 20), 20) for v in value)
        return f"{plural(len(value), 'worker')} on {', '.join(list(places)[:8])}"
    if name == "selected" and isinstance(value, dict):
        named = {k: " ".join(str(x) for x in v) for k, v in value.items() if isinstance(v, list) and v}
        return "; ".join(f"{label(k, 40)} {one_line(text, 80)}" for k, text in named.items())
    if name == "model_seconds" and isinstance(value, (int, float)):
        return f"{duration(float(value))} in the stack under test"
    return f"{label(name, 40)} {one_line(plain(value, 80), 80)}"


def _machine(run: Run) -> str:
    """`cuda; 2 x Example GPU (sm_90, 80 GiB); driver 580, CUDA 13.0`, or what is there of it."""
    env = run.environment
    gpus = ", ".join(f"{n} x {_gpu(g.name, g.arch, g.memory_bytes)}" for g, n in Counter(env.gpus).items())
    below = one_line(", ".join(_named(("driver", env.driver), ("CUDA", env.cuda), ("cuDNN", env.cudnn))))
    return "; ".join(part for part in (one_line(run.run.device), gpus, below) if part)


def _named(*pairs: tuple[str, str]) -> list[str]:
    return [f"{name} {text}".strip() for name, text in pairs if text]


def _gpu(name: str, arch: str, memory_bytes: int) -> str:
    details = ", ".join(
        part for part in (label(arch, 40) if arch else "", size(memory_bytes) if memory_bytes else "") if part
    )
    return f"{label(name, 60)} ({details})" if details else label(name, 60)


def _packages(packages: dict[str, str]) -> list[str]:
    order = {name: i for i, name in enumerate(FIRST_PACKAGES)}
    names = sorted(packages, key=lambda n: (order.get(n, len(order)), n))
    return [f"{label(n, 60)} {label(packages[n], 60)}" for n in names]


def _when(info: RunInfo) -> str:
    """`2026-02-03 10:20:30 to 10:45:00 UTC`, or what is there of it."""
    started, ended = _clock(info.started), _clock(info.ended)
    if ended and ended[:10] == started[:10]:
        ended = ended[10:].strip()
    return " to ".join(part for part in (started, ended) if part) + (" UTC" if started or ended else "")


def _clock(time: str) -> str:
    """An ISO 8601 time in UTC without its fraction and zone."""
    return one_line(time, 40).replace("T", " ").split(".")[0].split("+")[0].rstrip("Z")


def _counts(outcomes: Iterable[Outcome]) -> tuple[tuple[Outcome, int], ...]:
    counted: Counter[Outcome] = Counter(outcomes)
    return tuple((o, counted[o]) for o in READING_ORDER if counted[o])


def _check_counts(cells: Sequence[Cell]) -> tuple[tuple[str, dict[Outcome, int]], ...]:
    checks: dict[str, Counter[Outcome]] = {}
    for cell in cells:
        for check in cell.checks:
            checks.setdefault(check.name, Counter())[check.outcome] += 1
    return tuple((name, {o: c[o] for o in READING_ORDER if c[o]}) for name, c in checks.items())
