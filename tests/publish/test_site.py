"""A whole site: what is in it, what is not, when it is refused, and that nothing is left half-written."""

from __future__ import annotations

import json
import os
import re
import shutil
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from compat.cli import main
from compat.exit_codes import OK, USAGE
from compat.publish.site import write_site
from compat.publish.tree import MANIFEST
from compat.records import Outcome, Run, decode_run, encode_run, summarize
from compat.store import write_run

from ..render.sample_runs import passing, small_run
from ..render.test_hostile import assert_visible, runs

GOLDEN = Path(__file__).parent.parent / "golden" / "site"
PLACE = "current--cuda-example-gpu-3b5bf1a7a0--default-cuda"
Replace = msgspec.structs.replace


def store(run: Run, folder: Path) -> Path:
    """The folder of the stored run."""
    folder.mkdir(parents=True)
    write_run(run, folder)
    return folder


def later(run: Run, day: int, worse: str = "", **info: Any) -> Run:
    """The run again on another day of March 2026; the cell `worse` fails there."""
    cells = tuple(Replace(c, outcome=Outcome.FAIL, reason="it broke") if c.id == worse else c for c in run.cells)
    told = Replace(run.run, id=f"day-{day}", started=f"2026-03-{day:02d}T10:00:00+00:00", **info)
    return Replace(run, run=told, cells=cells, summary=summarize(cells, 1.0))


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """Two runs of one place: a cell that passed fails in the second."""
    run = small_run()
    passed = next(c.id for c in run.cells if c.outcome is Outcome.PASS)
    return [store(later(run, 1), tmp_path / "one"), store(later(run, 2, passed), tmp_path / "two")]


def files(site: Path) -> dict[str, bytes]:
    """Every file by its name."""
    return {p.relative_to(site).as_posix(): p.read_bytes() for p in site.rglob("*") if p.is_file()}


def data(site: Path, pattern: str) -> dict[str, Any]:
    """The one JSON file that fits."""
    (found,) = site.glob(pattern)
    content: dict[str, Any] = json.loads(found.read_bytes())
    return content


# -- what is in it -----------------------------------------------------------------------------------------------


def test_parts_are_as_stored(two: list[Path], tmp_path: Path) -> None:
    site = tmp_path / "site"
    write_site(two, site)
    found = files(site)
    (matrix,) = (name for name in found if name.startswith("matrix/"))
    parts = {
        "index.html": found["index.html"],
        "matrix.html": found[matrix],
        "compare.html": found["compare.html"],
        "runs.html": found["runs.html"],
        "words.js": found["assets/words.js"],
        "history.json": next(d for n, d in found.items() if n.startswith("data/histories/") and n.endswith(".json")),
        "badge.json": next(d for n, d in found.items() if re.fullmatch(r"badges/[^/]+\.json", n)),
    }
    for name, content in parts.items():
        if os.environ.get("COMPAT_UPDATE_GOLDEN"):
            GOLDEN.mkdir(exist_ok=True)
            (GOLDEN / name).write_bytes(content)
        assert content == (GOLDEN / name).read_bytes(), f"{name} changed; COMPAT_UPDATE_GOLDEN=1 stores it anew"


def test_histories_go_by_time_whatever_the_order_of_the_runs(two: list[Path], tmp_path: Path) -> None:
    write_site(two, tmp_path / "a")
    write_site([*reversed(two), two[0]], tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b"), "the same runs give the same bytes; a run twice counts once"
    history = data(tmp_path / "a", "data/histories/*.json")
    assert [r["started"][:10] for r in history["runs"]] == ["2026-03-01", "2026-03-02"]
    assert history["shown"] == 1
    assert [h for h in history["history"] if h[0] != h[1]] == ["PF"]


def test_what_is_counted_is_what_the_runs_hold(two: list[Path], tmp_path: Path) -> None:
    site = tmp_path / "site"
    write_site(two, site)
    run = later(small_run(), 2)
    index = data(site, "index.json")
    (place,) = index["histories"]
    counts = dict(map(tuple, place["counts"]))
    assert sum(counts.values()) == len(run.cells)
    assert sum(n for m in place["models"] for _, n in m["counts"]) == len(run.cells)
    shown = json.loads((site / index["runs"][0]["data"]).read_bytes())
    assert len(shown["cells"]) == len(shown["outcomes"]) == len(shown["letters"]) == len(run.cells)
    assert [shown["reasons"][n] for n in shown["reason"] if n >= 0].count("it broke") == 1
    badge = json.loads((site / place["badge"]).read_bytes())
    assert badge["color"] == "red"
    assert badge["message"].startswith(f"{counts['pass']} of ")


def test_only_a_run_of_the_whole_matrix_stands_for_a_place(tmp_path: Path) -> None:
    part = later(small_run(), 9)
    part = Replace(part, run=Replace(part.run, settings={"selected": {"cells": ["llama/*"], "checks": []}}))
    paths = [store(later(small_run(), 3), tmp_path / "whole"), store(part, tmp_path / "part")]
    write_site(paths, tmp_path / "site")
    history = data(tmp_path / "site", "data/histories/*.json")
    assert history["shown"] == 0
    assert [r["whole"] for r in history["runs"]] == [True, False]


def test_stacks_devices_and_matrices_are_kept_apart(tmp_path: Path) -> None:
    run = small_run()
    others = [
        later(run, 1),
        later(run, 2, stack=Replace(run.run.stack, name="older")),
        later(run, 3, device="cpu"),
        later(run, 4, matrix=Replace(run.run.matrix, path="elsewhere/mine.toml")),
    ]
    write_site([store(r, tmp_path / str(n)) for n, r in enumerate(others)], tmp_path / "site")
    places = data(tmp_path / "site", "index.json")["histories"]
    assert len({(p["stack"], p["device"], p["matrix"]) for p in places}) == 4
    assert len(list((tmp_path / "site" / "matrix").iterdir())) == 4
    assert {p["matrix"] for p in places} >= {"mine"}, "no folder of the publisher's machine"


def test_a_plain_mode_is_no_axis_of_its_own(tmp_path: Path) -> None:
    run = small_run()
    marked = tuple(Replace(c, axes={**c.axes, "mode": "plain"}) for c in run.cells)
    old, new = later(run, 1), later(Replace(run, cells=marked), 2)
    write_site([store(old, tmp_path / "old"), store(new, tmp_path / "new")], tmp_path / "site")
    history = data(tmp_path / "site", "data/histories/*.json")
    assert "mode" not in history["axes"]
    assert all("." not in letters for letters in history["history"])


def test_data_is_as_the_schema_says_and_the_scripts_hold_the_same(two: list[Path], tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    site = tmp_path / "site"
    write_site(two, site)
    schema = json.loads((site / "schema.json").read_bytes())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    checked = [p for p in site.rglob("*.json") if p.name not in ("schema.json", MANIFEST)]
    assert {p.relative_to(site).parts[0] for p in checked} == {"index.json", "data", "badges"}
    for path in checked:
        content = json.loads(path.read_bytes())
        assert not [e.message for e in validator.iter_errors(content)], path
        kind = content.get("kind", "badge")
        closed = {**schema, **schema["$defs"][kind], "additionalProperties": False}
        del closed["oneOf"]
        assert not [e.message for e in jsonschema.Draft202012Validator(closed).iter_errors(content)], "an unknown key"
        script = path.with_suffix(".js")
        if path.parts[-3:-1] in (("data", "runs"), ("data", "histories")):
            text = re.fullmatch(r"compatData\('[^']+', '(.*)'\);\n", script.read_text(encoding="utf-8"))
            assert text
            assert json.loads(re.sub(r"\\(.)", r"\1", text[1])) == content


def test_the_manifest_lists_every_file(two: list[Path], tmp_path: Path) -> None:
    import hashlib

    site = tmp_path / "site"
    write_site(two, site)
    listed = json.loads((site / MANIFEST).read_bytes())["files"]
    found = files(site)
    del found[MANIFEST]
    assert listed == {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


class Page(HTMLParser):
    """Elements of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def look(site: Path) -> None:
    """Nothing in any file of the site can act, hide or lead elsewhere."""
    for name, content in files(site).items():
        assert all(re.fullmatch(r"[a-z0-9][a-z0-9._-]*", part) for part in name.split("/")), name
        text = content.decode()
        assert_visible(text)
        if name.endswith(".html"):
            page = Page(text)
            ids = [a["id"] for _, a in page.elements if "id" in a]
            assert len(ids) == len(set(ids))
            for tag, found in page.elements:
                assert tag not in ("img", "iframe", "object", "base", "embed", "style"), tag
                assert not [a for a in found if a.startswith("on") or a in ("style", "srcdoc")], tag
                assert not (found.get("http-equiv") or "").startswith("refresh")
                for address in (found.get("href"), found.get("src")):
                    if address is not None and not address.startswith("#"):
                        target = (site / name).parent / address.partition("#")[0]
                        assert target.resolve().is_relative_to(site.resolve())
                        assert target.is_file(), f"{name} leads to {address}"
            assert text.count("<script") == text.count("</script") == sum(t == "script" for t, _ in page.elements)
        elif name.startswith("data/"):
            assert not set("<>&") & set(text), name


def test_every_page_leads_only_to_files_of_the_site(two: list[Path], tmp_path: Path) -> None:
    write_site(two, tmp_path / "site", title="</title><script>alert(1)</script>\u202e")
    look(tmp_path / "site")


def storable(run: Run) -> bool:
    """Whether the stored form can be read back: JSON has no figure that is not finite."""
    try:
        decode_run(encode_run(run))
    except ValueError:
        return False
    return True


@settings(
    max_examples=4,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),  # making such runs smaller takes minutes
)
@given(runs().filter(storable), runs().filter(storable))
def test_hostile_names_are_inert_in_every_file(tmp_path_factory: pytest.TempPathFactory, one: Run, other: Run) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    paths = [store(run, folder / f"run-{n}") for n, run in enumerate((one, other))]
    write_site(paths, folder / "site")
    look(folder / "site")
    index = data(folder / "site", "index.json")
    assert sum(len(p["runs"]) for p in index["histories"]) == len({encode_run(one), encode_run(other)})
    shutil.rmtree(folder)


def test_a_traversal_stays_in_the_folder(tmp_path: Path) -> None:
    run = later(small_run(), 1, stack=Replace(small_run().run.stack, name="../../outside"), device="/etc")
    cell = passing("..\\..\\x/bf16/sdpa/none")
    write_site([store(Replace(run, cells=(*run.cells, cell)), tmp_path / "run")], tmp_path / "deep" / "site")
    look(tmp_path / "deep" / "site")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "run"]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["site"]


def test_no_command_line_no_folder_of_the_publisher(tmp_path: Path) -> None:
    run = later(small_run(), 1, argv=("compat", "run", "/home/someone/secret.toml"))
    run = Replace(run, environment=Replace(run.environment, env_vars={"HF_TOKEN": "secret-value"}))
    write_site([store(run, tmp_path / "run")], tmp_path / "site")
    for name, content in files(tmp_path / "site").items():
        assert b"/home/someone" not in content, name
        assert b"secret-value" not in content, name
        assert str(tmp_path).encode() not in content, name


# -- when it is refused ------------------------------------------------------------------------------------------


def test_a_site_of_ours_is_replaced_whole(two: list[Path], tmp_path: Path) -> None:
    site = tmp_path / "site"
    assert main(["publish", *map(str, two), "--out", str(site)]) == OK
    before = set(files(site))
    assert main(["publish", str(two[0]), "--out", str(site)]) == OK
    after = set(files(site))
    assert before - after, "data of the run that is gone is gone"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "site", "two"], "nothing is left beside it"


@pytest.mark.parametrize("content", ["", "{}", '{"schema": "compat-run/1"}', "not json"])
def test_a_folder_that_is_not_ours_is_refused_and_untouched(
    two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    site = tmp_path / "precious"
    site.mkdir()
    (site / "thesis.txt").write_text("years", encoding="ascii")
    if content:
        (site / MANIFEST).write_text(content, encoding="ascii")
    before = files(site)
    assert main(["publish", *map(str, two), "--out", str(site)]) == USAGE
    assert files(site) == before
    assert "precious: is not a site" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "precious", "two"]


def test_a_foreign_file_in_a_site_is_not_lost(
    two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site"
    assert main(["publish", str(two[0]), "--out", str(site)]) == OK
    (site / "CNAME").write_text("example.org", encoding="ascii")
    before = files(site)
    assert main(["publish", *map(str, two), "--out", str(site)]) == USAGE
    assert files(site) == before
    assert "'CNAME' is no part of the site" in capsys.readouterr().err


def test_an_empty_folder_is_taken_and_a_file_is_not(
    two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "site").mkdir()
    assert main(["publish", str(two[0]), "--out", str(tmp_path / "site")]) == OK
    (tmp_path / "file").write_text("x", encoding="ascii")
    assert main(["publish", str(two[0]), "--out", str(tmp_path / "file")]) == USAGE
    assert "file: is a file" in capsys.readouterr().err


@pytest.mark.parametrize("broken", ["missing", "empty", "torn", "other"])
def test_a_run_that_cannot_be_read_ends_it_and_leaves_the_old_site(
    two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    site, bad = tmp_path / "site", tmp_path / "bad" / "run.json"
    assert main(["publish", str(two[0]), "--out", str(site)]) == OK
    before = files(site)
    text = {"empty": "", "torn": (two[0] / "run.json").read_text()[:500], "other": '{"schema": "compat-run/9"}'}
    if broken in text:
        bad.parent.mkdir()
        bad.write_text(text[broken], encoding="utf-8")
    assert main(["publish", str(two[1]), str(bad), "--out", str(site)]) == USAGE
    assert str(bad) in capsys.readouterr().err
    assert files(site) == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_run_that_changes_meanwhile_is_noticed(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compat.publish import PublishError, places, site

    def and_change(gathered: list[places.Gathered]) -> tuple[places.History, ...]:
        write_run(later(small_run(), 2), two[1])
        return places.histories(gathered)

    monkeypatch.setattr(site, "histories", and_change)
    with pytest.raises(PublishError, match=r"two.*changed while the site was made"):
        write_site(two, tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_the_shared_files_are_those_of_the_package() -> None:
    folder = resources.files("compat.publish")
    scripts = [
        folder.joinpath("assets", n).read_text("utf-8") for n in ("data.js", "matrix.js", "sheet.js", "story.js")
    ]
    assert not [s for s in scripts if re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", s)]
