"""Make a failing case smaller while it goes on failing: fewer rows, fewer pads, fewer steps, shorter rows.

In: a case, and a function that says whether a case shows the defect. Out: the smallest that was found. Each reduction
is a bisection that assumes nothing: what it returns was tried and failed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compat.worker import cases
from compat.worker.cases import Case

Shows = Callable[[Case], bool]


class OutOfTime(Exception):
    """Raised by a predicate whose time is up: what was found until then stands."""


def shortest(longest: int, fails: Callable[[int], bool], least: int = 1) -> int:
    """A number of `least` .. `longest` that fails and whose predecessor was seen not to (or that is `least`).

    `longest` is known to fail and is not tried. Where failing is monotone, the answer is the least that fails.
    """
    low, high = least - 1, longest  # low does not fail (least - 1 stands for nothing), high does
    while high - low > 1:
        middle = (low + high) // 2
        if fails(middle):
            high = middle
        else:
            low = middle
    return high


def minimised(case: Case, shows: Shows) -> tuple[Case, bool]:
    """(the smallest case found, whether time was left to look everywhere); `case` itself shows the defect."""
    best = [case]

    def tried(smaller: Case) -> bool:
        if shows(smaller):
            best[0] = smaller
            return True
        return False

    try:
        for reduce in (
            _fewer_settings,
            _fewer_rows,
            _fewer_steps,
            _fewer_pads,
            _shorter,
            _shorter_decoder,
            _fewer_pads,
            _fewer_steps,
        ):
            reduce(best, tried)
    except OutOfTime:
        return best[0], False
    return best[0], True


def _fewer_settings(best: list[Case], tried: Shows) -> None:
    for name in best[0].get("settings", {}):
        tried(best[0] | {"settings": {k: v for k, v in best[0]["settings"].items() if k != name}})


def _fewer_rows(best: list[Case], tried: Shows) -> None:
    count = cases.size(best[0])
    if any(not isinstance(step, int) and step[0] in ("reorder", "select") for step in best[0].get("steps", ())):
        return  # the order names rows
    if count == 1 or any(tried(cases.only(best[0], [i])) for i in range(count)):
        return
    whole = best[0]
    for keep in range(count - 1):  # two rows: one that is wrong, and one that makes it so
        if tried(cases.only(whole, [keep, count - 1])) or tried(cases.only(whole, [0, keep + 1])):
            return


def _fewer_pads(best: list[Case], tried: Shows) -> None:
    whole = best[0]
    if cases.size(whole) == 1 and cases.pads(whole) and whole["kind"] != "decode":
        shortest(cases.pads(whole), lambda n: tried(cases.with_pads(whole, n)))


def _fewer_steps(best: list[Case], tried: Shows) -> None:
    whole = best[0]
    if "new" in whole:
        shortest(whole["new"], lambda n: tried(whole | {"new": n}))
    elif whole["kind"] == "decode" and len(whole["steps"]) > 2 and all(isinstance(s, int) for s in whole["steps"]):
        shortest(len(whole["steps"]), lambda n: n > 1 and tried(_first_steps(whole, n)), least=2)


def _first_steps(case: Case, count: int) -> Case:
    kept = case["steps"][:count]
    dropped = case["length"] - sum(kept)
    fed = _fed(case)
    return case | {"steps": kept, "length": sum(kept), fed: [r[: len(r) - dropped] for r in case[fed]]}


def _fed(case: Case) -> str:
    """Which rows are fed piece by piece."""
    return "decoder" if case.get("decoder") else "rows"


def _shorter(best: list[Case], tried: Shows) -> None:
    if "images" in best[0]:
        return
    if best[0]["kind"] == "decode":
        _shorter_prefill(best, tried)
        return
    for end in ("tail", "head"):
        if "outliers" in best[0] and end == "head":
            return  # large values stand at every n-th token from the start
        whole = best[0]

        def cut(n: int, whole: Case = whole, end: str = end) -> bool:
            return tried(cases.cut(whole, n, end))

        shortest(max(len(r) for r in whole["rows"]), cut)


def _shorter_prefill(best: list[Case], tried: Shows) -> None:
    """Drop tokens from the start: what is decoded afterwards stays."""
    whole: dict[str, Any] = best[0]
    fed, (first, *later) = _fed(whole), whole["steps"]
    if ["reset"] in later:
        return
    pads = whole["length"] - min(len(r) for r in whole[fed])
    spare = first - pads - sum(step[1] for step in later if not isinstance(step, int) and step[0] == "crop")

    def without(gone: int) -> Case:
        rows = [r[gone:] for r in whole[fed]]
        return whole | {fed: rows, "steps": [first - gone, *later], "length": whole["length"] - gone}

    if spare > 1:
        shortest(spare, lambda left: tried(without(spare - left)))


def _shorter_decoder(best: list[Case], tried: Shows) -> None:
    whole = best[0]
    if whole.get("decoder") and whole["kind"] != "decode":
        longest = len(whole["decoder"][0])
        shortest(longest, lambda n: tried(whole | {"decoder": [d[:n] for d in whole["decoder"]]}))
