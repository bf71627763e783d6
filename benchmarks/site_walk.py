"""Walk a published site in a headless Chromium with nothing but a keyboard, and look at every page as it goes.

    python benchmarks/site_walk.py SITE                 # exit code 1 where something is wrong
    python benchmarks/site_walk.py SITE --pictures DIR  # pictures at 1280 and 390 pixels, light and dark

Looked at: console and policy errors, requests that leave the folder, the contrast of every text in light and dark, a
focus that can be seen, headings, table captions and scopes, width at 390 pixels; then the walk itself: from the first
page to a model's cells, a cell's story, the next one, back, filters, two runs compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from chromium import Browser

LOOK = Path(__file__).with_suffix(".js").read_text(encoding="utf-8") + ";"
CONTRAST, STRUCTURE, FOCUS = (
    f"(() => {{{LOOK} return lookAt.{what}(); }})()" for what in ("contrast", "structure", "focus")
)
ROWS = "document.querySelectorAll('.models tbody tr')"
LEFT = "document.querySelectorAll('.models tbody tr:not([hidden])')"
TOLD = "document.querySelector('output.shown').textContent"
READY = "document.readyState === 'complete'"


class Walk:
    """What is wrong so far."""

    def __init__(self, site: Path) -> None:
        """`site` is the folder."""
        self.site = site
        self.wrong: list[str] = []

    def expect(self, true: object, what: str) -> None:
        """Note `what` unless it holds."""
        print(f"{'ok   ' if true else 'WRONG'} {what}")
        if not true:
            self.wrong.append(what)

    def look(self, page: Path, *, dark: bool, width: int, picture: Path | None) -> None:
        """One page at one width in one theme."""
        name = page.relative_to(self.site).as_posix()
        with Browser(width, 900, dark=dark) as browser:
            browser.open(page)
            browser.wait(READY)
            if name.startswith("matrix/"):
                browser.wait("document.querySelector('#sheet button.cell')")
            where = f"{name} at {width}, {'dark' if dark else 'light'}"
            found = browser.value(CONTRAST)
            self.expect(not found, f"{where}: contrast of every text is 4.5 or more {found or ''}")
            found = browser.value(STRUCTURE)
            self.expect(not found, f"{where}: language, headings, captions, scopes, labels {found or ''}")
            wide = browser.value("document.documentElement.scrollWidth - innerWidth")
            self.expect(wide <= 0, f"{where}: nothing sticks out ({wide} px)")
            self.quiet(browser, where)
            if picture:
                browser.picture(picture)

    def quiet(self, browser: Browser, where: str) -> None:
        """Nothing on the console, nothing from elsewhere."""
        elsewhere = [u for u in browser.requests if not u.startswith(("file:", "about:"))]
        self.expect(not browser.console, f"{where}: the console is empty {browser.console or ''}")
        self.expect(not elsewhere, f"{where}: nothing was asked of another host {elsewhere or ''}")


def tab(browser: Browser, found: Callable[[dict[str, object]], bool], walk: Walk, limit: int = 80) -> bool:
    """Press Tab until the focus is where `found` says; every stop has to be seen."""
    for _ in range(limit):
        browser.press("Tab")
        focus = browser.value(FOCUS)
        if focus["tag"] != "BODY" and not focus["seen"]:
            walk.expect(False, f"focus is seen on {focus}")
        if found(focus):
            return True
    return False


def by_keyboard(walk: Walk) -> None:
    """From the first page to the story of a cell, back, filters, and two runs compared: keys only."""
    with Browser(1280, 900) as browser:
        browser.open(walk.site / "index.html")
        browser.press("Tab")
        walk.expect("Skip" in browser.value(FOCUS)["name"], "the first stop is the skip link")
        browser.press("Enter")
        walk.expect(browser.value("document.activeElement.id") == "main", "the skip link goes to the content")
        walk.expect(tab(browser, lambda f: f["tag"] == "INPUT", walk), "Tab reaches the search of models")
        name = str(browser.value("document.querySelector('.models tbody th').textContent"))
        browser.type(name)
        walk.expect(
            browser.value("document.querySelectorAll('.models tbody tr:not([hidden])').length >= 1"), "typing filters"
        )
        walk.expect(tab(browser, lambda f: f["kind"] == "tally", walk), "Tab reaches the model's figures")
        browser.press("Enter")
        browser.wait(
            "document.querySelector('#sheet button.cell') && document.querySelectorAll('#tools select').length"
        )
        rows = "Array.from(document.querySelectorAll('#sheet .model'), (n) => n.textContent)"
        walk.expect(
            browser.value(f"{rows}.length && {rows}.every((n) => n === {name!r})"),
            "the figure leads to this model's cells",
        )
        walk.expect(tab(browser, lambda f: f["tag"] == "INPUT", walk), "Tab reaches the search")
        browser.type("sdpa")
        walk.expect("of" in browser.value(TOLD), "typing filters the cells")
        walk.expect(tab(browser, lambda f: str(f["kind"]).startswith("cell"), walk), "Tab reaches a cell")
        before = browser.value(FOCUS)["name"]
        for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "End", "Home", "PageDown"):
            browser.press(key)
            walk.expect(str(browser.value(FOCUS)["kind"]).startswith("cell"), f"{key} stays in the table")
        cell = browser.value(FOCUS)["name"]
        walk.expect(cell != before, "arrow keys walk")
        browser.press("Enter")
        walk.expect(browser.value("document.activeElement.id") == "drawer-title", "Enter opens the story")
        browser.wait("document.querySelector('#drawer .check, #drawer .evidence .note')")
        story = browser.value("document.querySelector('#drawer').textContent")
        walk.expect("History" in story and "Evidence" in story, "the story has its history and evidence")
        found = browser.value(CONTRAST)
        walk.expect(not found, f"the story's contrast {found or ''}")
        title = "document.querySelector('#drawer-title').textContent"
        first = browser.value(title)
        walk.expect("cell=" in browser.value("location.hash"), "the address names the cell")
        browser.press("ArrowRight")
        second = browser.value(title)
        browser.press("ArrowLeft")
        only = browser.value("document.querySelectorAll('#sheet button.cell:not(.off)').length") == 1
        walk.expect(only or first != second or browser.value(title) != second, "arrow keys go to the next story")
        walk.expect(tab(browser, lambda f: f["name"] == "Close", walk), "Tab reaches Close")
        browser.press("Escape")
        walk.expect(browser.value("document.querySelector('#drawer').hidden"), "Escape closes")
        walk.expect(str(browser.value(FOCUS)["kind"]).startswith("cell"), "and the focus is on a cell again")
        walk.quiet(browser, "matrix, walked")
        browser.open(walk.site / "compare.html")
        browser.wait("document.querySelector('.told').textContent")
        walk.expect(tab(browser, lambda f: f["tag"] == "SELECT", walk), "Tab reaches the choice of runs")
        told = browser.value("document.querySelector('.told').textContent")
        for _ in range(3):
            browser.press("ArrowDown")
        browser.wait("document.querySelector('.rows').children.length")
        walk.expect(browser.value("document.querySelector('.told').textContent"), f"runs are compared ({told})")
        walk.quiet(browser, "compare.html, walked")


def main() -> int:
    """Look at every page, walk, say what is wrong."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("site", type=Path, metavar="SITE")
    parser.add_argument("--pictures", type=Path, metavar="DIR")
    given = parser.parse_args()
    walk = Walk(given.site)
    if given.pictures:
        given.pictures.mkdir(parents=True, exist_ok=True)
    for page in sorted(given.site.rglob("*.html")):
        for width, dark in ((1280, False), (1280, True), (390, False)):
            name = f"{page.parent.name}-{page.stem}"[-60:] + f"-{width}{'-dark' if dark else ''}.png"
            walk.look(page, dark=dark, width=width, picture=given.pictures / name if given.pictures else None)
    by_keyboard(walk)
    print(f"{len(walk.wrong)} wrong" + "".join(f"\n  {what}" for what in walk.wrong))
    return 1 if walk.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
