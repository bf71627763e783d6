"""What classes declare of attention beside what a run measured, for a page.

In: a run. Out: rows, a legend and the differences in words, as the template of a matrix wants them; None where the run
asked no cell without quantization.
"""

from __future__ import annotations

from typing import Any

from compat.families import MEANINGS, Support, differences, kind, of_run
from compat.records import Outcome, Run
from compat.render.inert import label
from compat.render.support import LETTER_MEANINGS, MARKS, NOT_RECORDED, attentions_of, declares
from compat.render.symbols import symbol

LOOKS: dict[Support, Outcome | None] = {
    Support.WORKS: Outcome.PASS,
    Support.UNDECLARED: Outcome.PASS,
    Support.DEGRADED: Outcome.DEGRADED,
    Support.WRONG: Outcome.FAIL,
    Support.DECLARED_WRONG: Outcome.FAIL,
    Support.REFUSED: Outcome.UNSUPPORTED,
    Support.DECLARED_REFUSED: Outcome.UNSUPPORTED,
    Support.UNCLEAR: Outcome.INCONCLUSIVE,
    Support.UNAVAILABLE: Outcome.UNAVAILABLE,
    Support.NOT_ASKED: None,
}
"""The outcome whose colour a mark takes; None: that of a cell which is not in the matrix."""


def support(run: Run) -> dict[str, Any] | None:
    """See the module's docstring."""
    families = [f for f in of_run(run) if f.cells]
    backends = attentions_of(families)
    if not backends:
        return None
    seen = {f.support(b) for f in families for b in backends}
    told = any(f.declared is not None for f in families)
    return {
        "backends": [label(b) for b in backends],
        "letters": LETTER_MEANINGS if told else f"What the classes declare is {NOT_RECORDED} in this run",
        "rows": [
            {
                "model": label(f.name),
                "family": kind(f.row),
                "declares": declares(f.declared),
                "marks": [_mark(f.support(b)) for b in backends],
            }
            for f in families
        ],
        "legend": [{**_mark(s), "meaning": MEANINGS[s]} for s in Support if s in seen],
        "told": told,
        "differences": [
            (label(f.name), [label(text, 300) for text in found]) for f in families if (found := differences(f))
        ],
    }


def _mark(support: Support) -> dict[str, str]:
    return {"mark": MARKS[support], "word": support.value, "slug": symbol(LOOKS[support]).slug}
