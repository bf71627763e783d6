"""A text for the issue tracker of the project whose defect a check has found: no word of it needs compat.

In: a cell's story, one of its checks, the script that shows it, and what the script printed where it was run. Out:
Markdown: a title, what is expected and seen, the environment, the script, the output.
"""

from __future__ import annotations

from dataclasses import dataclass

from compat.records import Check
from compat.render.evidence import begins, kernels, smallest
from compat.render.figures import plural
from compat.render.inert import label, one_line
from compat.render.markdown import _block, _plain, _table, code
from compat.reproduce.expected import expected
from compat.story import Story

MOST_SCRIPT = 50_000
"""Characters of a script that stand in the text; GitHub takes 65,536 in all. A longer one has to be attached."""
MOST_OUTPUT = 6_000
"""Characters of output, the last ones."""


@dataclass(frozen=True)
class Tried:
    """A script that was run alone."""

    code: int
    output: str
    """What it wrote to stdout and stderr, in the order in which it came."""
    packages: str
    """The versions that it ran with, in words."""


def render_issue(story: Story, check: Check, script: str, tried: Tried | None = None) -> str:
    """The text, ending in a newline. Without `tried` its output is what the run recorded, and says so."""
    axes = story.cell.axes
    scheme = f", {axes['quantization']}" if axes.get("quantization", "none") != "none" else ""
    model, dtype, attention = (label(axes.get(a, "")) for a in ("model", "dtype", "attention"))
    title = f"{model} ({dtype}, {attention}{one_line(scheme)}): {one_line(check.reason or check.outcome.value, 120)}"
    parts = [
        f"# {_plain(title)}",
        f"**Expected:** {_plain(expected(check))}.",
        f"**Seen:** {code(check.reason or check.outcome.value, 1000)}",
        _details(check),
        "## Environment",
        _environment(story),
        "## Script",
        _script(script),
        "## Output",
        _recorded(story, check) if tried is None else _printed(tried),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _details(check: Check) -> str:
    evidence = check.evidence
    named = (
        ("first module whose output leaves the error that eager attention has", begins(evidence)),
        ("smallest call that shows it", smallest(evidence)),
        ("kernels of that call", kernels(evidence)),
    )
    return "\n".join(f"- {name}: {code(text)}" for name, text in named if text)


def _environment(story: Story) -> str:
    env = story.run.environment
    gpus = ", ".join(f"{label(g.name, 80)} ({label(g.arch, 20)})" for g in env.gpus)
    rows = [(name, version) for name, version in env.packages.items()]
    named = (
        ("python", env.python),
        ("platform", env.platform),
        ("device", story.run.run.device),
        ("gpus", gpus),
        ("driver", env.driver),
        ("cuda", env.cuda),
        ("cudnn", env.cudnn),
        ("cpu", env.cpu),
    )
    rows = [*((n, t) for n, t in named if t), *rows]
    return _table(["", ""], ([code(n, 60), code(t, 200)] for n, t in rows), "ll")


def _script(script: str) -> str:
    if not script:
        return "No script stands for what was seen."
    lines = plural(script.count("\n"), "line")
    told = (
        "It imports torch and transformers and nothing else that has to be installed. It ends with 1 when the defect "
        "shows, with 0 when it does not, with 2 when it could not say."
    )
    if len(script) > MOST_SCRIPT:
        return f"{told}\n\nIt is too long to stand here ({lines}) and is attached."
    body = _block(script.rstrip("\n"), "python", lines=True)
    return f"{told}\n\n<details>\n<summary>The script, {lines}</summary>\n\n{body}\n\n</details>"


def _recorded(story: Story, check: Check) -> str:
    exception = check.evidence.exception
    if exception is not None:
        text = exception.traceback.strip() or f"{exception.type}: {exception.message}"
    else:
        text = check.reason or check.outcome.value
    run = code(story.run.run.id, 80)
    return f"Recorded in run {run} (the script was not run for this text):\n\n{_block(text[-MOST_OUTPUT:], lines=True)}"


def _printed(tried: Tried) -> str:
    text = tried.output.strip()[-MOST_OUTPUT:]
    return f"Exit code {tried.code}, with {code(tried.packages)}:\n\n{_block(text or '(nothing)', lines=True)}"
