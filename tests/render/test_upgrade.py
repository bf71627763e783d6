"""An upgrade as text: golden files of one that has everything, and inert whatever it holds.

COMPAT_UPDATE_GOLDEN=1 writes the golden files again.
"""

from __future__ import annotations

import lzma
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compat.records import FileIdentity, Measurement, StackIdentity
from compat.render.upgrade import render_markdown, render_terminal, verdict
from compat.store import StoreError
from compat.upgrade.result import (
    DEFAULT_FAIL_ON,
    Compared,
    Finding,
    Kind,
    Side,
    Timed,
    Upgrade,
    encode,
    failing,
    grouped,
    read,
    write,
)

GOLDEN = Path(__file__).parent.parent / "golden"
AT = {"batch": 2.0, "length": 128.0, "padding": 0.0}


def _finding(kind: Kind, name: str, cell: str, **more: object) -> Finding:
    return Finding(kind=kind, name=name, cell=cell, words=f"what {name} means", **more)  # type: ignore[arg-type]


def _compared(cell: str, *findings: Finding, status: str = "compared", reason: str = "") -> Compared:
    names = ("model", "dtype", "attention", "quantization")
    axes = dict(zip(names, cell.split("/"), strict=True))
    return Compared(cell=cell, axes=axes, status=status, reason=reason, findings=findings)


def _speedup(name: str, value: float) -> Measurement:
    return Measurement(name=name, unit="x", value=value, ci95=(value - 0.01, value + 0.01), at=AT)


def sample() -> Upgrade:
    """One of every kind of finding, one cell that cannot be compared, three that were timed."""
    falcon, gemma, llama = "falcon/bf16/sdpa/bnb-nf4", "gemma2/bf16/eager/none", "llama/fp32/sdpa/none"
    lost = _finding(Kind.REGRESSED, "quantized_share_lost", falcon, before="100.0%", after="0.0%", value=1.0,
                    unit="of the parameters", bound=0.01)  # fmt: skip
    follows = _finding(Kind.CHANGED, "unpadded_difference", falcon, value=23.7, unit="eager errors", bound=3.0,
                       because="quantized_share_lost")  # fmt: skip
    sides = [
        Side(stack=StackIdentity(name=name, sha256="0" * 64), fingerprint="f", run=run, cells=4, complete=True,
             packages={"torch": "2.13.0", "transformers": version})
        for name, run, version in (("old", "before", "4.57.6"), ("new", "after", "5.23.0"))
    ]  # fmt: skip
    default = [_finding(Kind.CHANGED, "default_attention", cell, before="sdpa", after="eager")
               for cell in (gemma, llama)]  # fmt: skip
    slower = _finding(Kind.SLOWER, "decode", llama, after="12% slower", value=0.88, unit="x", bound=0.95)
    return Upgrade(
        id="u", started="2026-01-02T03:04:05Z", ended="2026-01-02T03:14:05Z", argv=("compat", "upgrade"), device="cpu",
        matrix=FileIdentity(path="matrices/upgrade.toml", sha256="0" * 64), before=sides[0], after=sides[1],
        checks=(
            _finding(Kind.REGRESSED, "check:load", falcon, before="pass", after="fail: no module", detail="none"),
            _finding(Kind.FIXED, "check:cache", gemma, before="fail", after="pass", detail="shapes"),
            _finding(Kind.COVERAGE, "check:memory", llama, before="pass", after="not_run", because="check:load"),
        ),
        across=(
            _compared(falcon, lost, follows),
            _compared(gemma, default[0]),
            _compared(llama, default[1]),
            _compared("gemma2/bf16/sdpa/none",
                      _finding(Kind.COVERAGE, "answers", "gemma2/bf16/sdpa/none", before="loads", after="raised: no"),
                      status="not_comparable", reason="after: raised: no"),
        ),
        timed=(
            Timed(cell=llama, attempts=((_speedup("decode_speedup", 0.88),),) * 3, findings=(slower,)),
            Timed(cell="gpt2/fp32/sdpa/none", attempts=((_speedup("prefill_speedup", 1.01),),)),
            Timed(cell="bert/fp32/sdpa/none", not_stated="the device was shared"),
        ),
        seconds={"run before": 61.0, "across": 12.5},
    )  # fmt: skip


@pytest.mark.parametrize(("name", "text"), [("upgrade.txt", render_terminal(sample(), 100)),
                                            ("upgrade.md", render_markdown(sample()))])  # fmt: skip
def test_golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("COMPAT_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@given(st.integers(60, 140))
def test_no_line_is_wider_than_asked(width: int) -> None:
    assert max(map(len, render_terminal(sample(), width).splitlines())) <= width


HOSTILE = st.sampled_from(
    ["</td><script>alert(1)</script>", "a|b\n# c", "\x1b[2Jgone", "`x` <img src=x>", "\u202eright", "@someone #1"]
)


@given(HOSTILE, HOSTILE, HOSTILE)
def test_text_of_an_upgrade_is_inert(first: str, second: str, third: str) -> None:
    hostile = msgspec.structs.replace(
        sample(),
        before=msgspec.structs.replace(sample().before, stack=StackIdentity(name=first, sha256="")),
        checks=(_finding(Kind.REGRESSED, f"check:{second}", third, before=first, after=second, detail=third),),
        across=(_compared("a/b/c/d", status="not_comparable", reason=third),),
    )
    terminal, page = render_terminal(hostile), render_markdown(hostile)
    for text in (terminal, page):
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert "<script" not in page
    assert "<img" not in page
    rows = [line for line in page.splitlines() if line.startswith("| regressed")]
    assert len(rows) == 1
    assert rows[0].count(" | ") == 5, "no cell of the table is broken by what it holds"


def test_every_finding_is_shown_in_one_group_or_named_as_what_follows() -> None:
    findings = sample().findings
    groups = grouped(findings)
    assert sum(len(g.cells) for g in groups) == sum(not f.because for f in findings)
    for finding in findings:
        causes = [g for g in groups if g.name == finding.because and finding.cell in g.cells]
        assert all(finding.name in g.follow for g in causes)
        assert (
            causes or not finding.because or finding.because not in {f.name for f in findings if f.cell == finding.cell}
        )


def test_the_verdict_is_of_what_fails_and_of_nothing_else() -> None:
    whole = sample()
    assert verdict(whole, DEFAULT_FAIL_ON).startswith("REGRESSED")
    assert {f.kind for f in failing(whole, ("slower",))} == {Kind.SLOWER}
    quiet = msgspec.structs.replace(whole, across=whole.across[1:2], checks=whole.checks[1:2], timed=())
    assert verdict(quiet, ("regressed",)).startswith("CLEAN")
    nothing = msgspec.structs.replace(whole, across=whole.across[3:], checks=(), timed=())
    assert verdict(nothing, DEFAULT_FAIL_ON).startswith("NOTHING COMPARABLE")
    broken = msgspec.structs.replace(whole, across=(_compared("a/b/c/d", status="error", reason="ours"),))
    assert verdict(broken, DEFAULT_FAIL_ON).startswith("ERROR")


def test_what_is_stored_is_read_and_a_bad_file_is_named(tmp_path: Path) -> None:
    assert write(sample(), tmp_path, "page") == ["upgrade.json", "upgrade.md"]
    assert read(tmp_path) == sample()
    other = tmp_path / "other.json"
    other.write_bytes(encode(sample()).replace(b"compat-upgrade/1", b"compat-upgrade/9"))
    with pytest.raises(StoreError, match="compat-upgrade/9"):
        read(other)
    other.write_text("{", encoding="utf-8")
    with pytest.raises(StoreError, match="not a stored upgrade"):
        read(other)
    with pytest.raises(StoreError, match="absent"):
        read(tmp_path / "absent")
    (tmp_path / "upgrade.json").unlink()
    (tmp_path / "upgrade.json.xz").write_bytes(lzma.compress(encode(sample())))
    assert read(tmp_path) == sample()
    (tmp_path / "upgrade.json.xz").write_bytes(lzma.compress(encode(sample()))[:-9])
    with pytest.raises(StoreError, match=r"upgrade\.json\.xz"):
        read(tmp_path)
