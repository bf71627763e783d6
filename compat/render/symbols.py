"""The one table of marks for outcomes, used by every format, so that colour never carries a meaning alone.

In: an outcome, or None for a combination that the matrix does not hold. Out: its mark, word and meaning. Every glyph
is one column wide in every locale (no East Asian ambiguous character). Letters: upper case asks for a look, lower
case says that nothing was asked of the cell.
"""

from __future__ import annotations

from typing import NamedTuple

from compat.records import Outcome


class Symbol(NamedTuple):
    """How an outcome looks. `style` is a rich style for terminals, `slug` a name for CSS classes."""

    glyph: str
    ascii_glyph: str
    letter: str
    word: str
    meaning: str
    style: str
    slug: str

    @property
    def mark(self) -> str:
        """Glyph and letter: two columns, for tables with room."""
        return self.glyph + self.letter

    def dense(self, ascii: bool = False) -> str:
        """One column, for dense tables: a tick for a pass, so that all else stands out, or else the letter."""
        if self.letter in ("P", ABSENT.letter):
            return self.ascii_glyph if ascii else self.glyph
        return self.letter


def _symbol(glyph: str, ascii_glyph: str, letter: str, outcome: Outcome, meaning: str, style: str) -> Symbol:
    word = outcome.value.replace("_", " ")
    return Symbol(glyph, ascii_glyph, letter, word, meaning, style, outcome.value.replace("_", "-"))


ABSENT = Symbol("⋅", ".", "⋅", "not in the matrix", "", "dim", "absent")

SYMBOLS: dict[Outcome, Symbol] = {
    Outcome.PASS: _symbol("✓", "+", "P", Outcome.PASS, "every check that was asked passed", "green"),
    Outcome.DEGRADED: _symbol("~", "~", "D", Outcome.DEGRADED, "works, but not as asked, or at a worse cost", "yellow"),
    Outcome.FAIL: _symbol("✗", "x", "F", Outcome.FAIL, "runs and is wrong, or refuses what it promises", "bold red"),
    Outcome.CRASH: _symbol("!", "!", "C", Outcome.CRASH, "the process died", "bold red"),
    Outcome.ERROR: _symbol(
        "!", "!", "E", Outcome.ERROR, "the harness failed: says nothing about the cell", "bold magenta"
    ),
    Outcome.OOM: _symbol("!", "!", "O", Outcome.OOM, "out of memory", "bold red"),
    Outcome.TIMEOUT: _symbol("!", "!", "T", Outcome.TIMEOUT, "no answer within the time limit", "bold red"),
    Outcome.INCONCLUSIVE: _symbol("?", "?", "I", Outcome.INCONCLUSIVE, "ran, but nothing can be concluded", "cyan"),
    Outcome.UNSUPPORTED: _symbol("-", "-", "u", Outcome.UNSUPPORTED, "the library refuses it explicitly", "dim"),
    Outcome.UNAVAILABLE: _symbol(
        "-", "-", "a", Outcome.UNAVAILABLE, "a package or device for it is missing here", "dim"
    ),
    Outcome.NOT_RUN: _symbol("-", "-", "n", Outcome.NOT_RUN, "in the matrix, not run", "dim"),
}


def symbol(outcome: Outcome | None) -> Symbol:
    """The symbol of `outcome`; None is a combination that the matrix does not hold."""
    return ABSENT if outcome is None else SYMBOLS[outcome]
