"""Which family takes which attention backend, as declared and as measured: a table for pages.

In: a stored run. Out: Markdown: a table of marks, what the marks mean, and in words where declaration and measurement
differ. Runs stored before declarations were kept say so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from compat.families import FLAGS, MEANINGS, Family, Flags, Support, differences, kind, of_run
from compat.records import Run
from compat.render.grids import in_order
from compat.render.markdown import _plain, _table, code
from compat.render.summary import headline_place

MARKS: dict[Support, str] = {
    Support.WORKS: "✓",
    Support.UNDECLARED: "✓u",
    Support.DEGRADED: "~",
    Support.WRONG: "✗",
    Support.DECLARED_WRONG: "✗d",
    Support.REFUSED: "r",
    Support.DECLARED_REFUSED: "rd",
    Support.UNCLEAR: "?",
    Support.UNAVAILABLE: "a",
    Support.NOT_ASKED: "⋅",
}

LETTERS = dict(zip(FLAGS, "SFXPCW", strict=True))
"""A declaration in one letter."""

LETTER_MEANINGS = (
    "S sdpa, F flash attention, X flex_attention, P generate_batch (paged), C compiles as one graph, W "
    "set_attn_implementation takes effect; ⋅ not declared, ? this version has no words for it"
)

NOT_RECORDED = "not recorded"
"""Of runs that were stored before `load` kept what the class declares."""


def declares(flags: Flags | None) -> str:
    """What a class declares, six letters; NOT_RECORDED where no answer was stored."""
    if flags is None:
        return NOT_RECORDED
    return "".join(
        "?" if (told := flags.get(name)) is None else letter if told else "⋅" for name, letter in LETTERS.items()
    )


def attentions_of(families: Iterable[Family]) -> tuple[str, ...]:
    """The backends of which a cell was asked, in the order of tables."""
    return in_order(
        "attention",
        (
            c.axes["attention"]
            for f in families
            for c in f.cells
            if f.support(c.axes["attention"]) is not Support.NOT_ASKED
        ),
    )


def support_tables(run: Run, models: Collection[str] | None = None) -> str:
    """The support table of `run`, for the models named (all when None). Raises ValueError when nothing is selected."""
    families = [f for f in of_run(run) if f.cells and (models is None or f.name in models)]
    backends = attentions_of(families)
    if not backends:
        raise ValueError(f"run {run.run.id!r} has asked no cell without quantization of these models")
    head = (
        f"Measured on {code(headline_place(run))}, {code(run.run.started[:10])}, run {code(run.run.id)}, stack "
        f"{code(run.run.stack.name)}: all dtypes, no quantization, the worst of their outcomes."
    )
    told = any(f.declared is not None for f in families)
    parts = [head, _grid(families, backends, told), _legend(families, backends)]
    if told:
        parts += [f"The letters: {_plain(LETTER_MEANINGS)}.", _differences(families)]
    else:
        parts.append(
            f"What the classes declare is {NOT_RECORDED} in this run; marks tell nothing of declarations then."
        )
    return "\n\n".join(parts) + "\n"


def _grid(families: Sequence[Family], backends: Sequence[str], told: bool) -> str:
    rows = []
    for family in families:
        own = [f"`{declares(family.declared)}`"] if told else []
        rows.append(
            [code(family.name, 60), _plain(kind(family.row)), *own, *(mark(family.support(b)) for b in backends)]
        )
    more = ["declares"] if told else []
    head = ["model", "family", *more, *(code(b, 60) for b in backends)]
    return _table(head, rows, "ll" + "l" * len(more) + "c" * len(backends))


def mark(support: Support) -> str:
    """The mark of a cell of the table, in Markdown."""
    text = MARKS[support].replace("~", "&#126;")
    return f"**{text}**" if support in (Support.WRONG, Support.DECLARED_WRONG, Support.DECLARED_REFUSED) else text


def _legend(families: Sequence[Family], backends: Sequence[str]) -> str:
    seen = {f.support(b) for f in families for b in backends}
    return "\n".join(f"- {mark(s)} {s.value}: {MEANINGS[s]}" for s in Support if s in seen)


def _differences(families: Sequence[Family]) -> str:
    lines = [f"- {code(f.name, 60)}: {_plain(text)}" for f in families for text in differences(f)]
    return "Where declaration and measurement differ:\n\n" + ("\n".join(lines) or "- nowhere")
