"""Laws of the small parts: names, columns, scripts, kinds of change, badges, bounds."""

from __future__ import annotations

import json
import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compat.publish.bounds import bounds
from compat.publish.changes import KINDS, change, table
from compat.publish.columns import LETTERS, OUTCOMES, columns, pooled, rows
from compat.publish.data import json_text, script_text
from compat.publish.names import shown, slug
from compat.records import Check, Measurement, Outcome
from compat.rules import Context, criteria

from ..render.test_hostile import PAYLOADS, hostile

LAW = settings(max_examples=50, deadline=None, database=None)
names = st.one_of(hostile, st.text("abc/.-_ A\u202e<\\'", max_size=80))
outcomes = st.one_of(st.none(), st.sampled_from(Outcome))


@LAW
@given(names)
def test_a_slug_is_a_name_that_every_file_system_takes(text: str) -> None:
    name = slug(text)
    assert re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,59}", name)
    assert "--" not in name
    assert not name.endswith(".")
    assert name.split(".")[0] not in ("con", "nul", "aux", "prn", "com1")


@LAW
@given(names, names)
def test_different_texts_have_different_slugs_and_shown_names(one: str, other: str) -> None:
    assert (slug(one) == slug(other)) == (one == other)
    if one != other and len(one) > 800 and len(other) > 800:
        assert shown(one) != shown(other)


def test_a_plain_name_is_its_own_slug_and_one_made_to_look_like_another_s_is_not() -> None:
    assert slug("gpt_neox") == "gpt_neox"
    assert slug("smollm2-135m") == "smollm2-135m"
    taken = slug("Gpt Neox")
    assert taken.startswith("gpt-neox-")
    assert slug(taken) != taken, "a name that looks like one with a digest gets a digest of its own"
    assert slug("nul") != "nul"
    assert slug("../../etc/passwd").startswith("etc-passwd-")


@LAW
@given(names)
def test_a_shown_name_is_visible_bounded_and_not_empty(text: str) -> None:
    name = shown(text)
    assert 0 < len(name) <= 200
    assert name.strip()
    assert not {c for c in name if unicodedata.category(c) in {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}}


def test_long_names_that_begin_alike_stay_apart() -> None:
    assert shown("x" * 10_000) != shown("x" * 10_001)
    assert shown("x" * 201) != shown("x" * 202)
    assert shown("short") == "short"


@LAW
@given(
    st.lists(
        st.tuples(
            names.map(shown),
            st.dictionaries(
                st.one_of(st.sampled_from(["model", "dtype", "attention", "quantization"]), names.map(shown)),
                names.map(shown),
                max_size=6,
            ),
        ),
        max_size=8,
    )
)
def test_columns_give_back_their_rows(cells: list[tuple[str, dict[str, str]]]) -> None:
    table = columns(cells)
    assert rows(table) == cells
    again = json.loads(json_text(table.content))
    assert [tuple(n) for n in again["cells"]] == list(table.cells)


def test_an_id_is_written_only_where_it_says_something() -> None:
    axes = {"model": "llama", "dtype": "bf16", "attention": "sdpa", "quantization": "none"}
    assert columns([("llama/bf16/sdpa/none", axes)]).ids == ()
    assert columns([("another", axes)]).ids == ((0, "another"),)
    assert columns([("llama/bf16/sdpa/none/compile", {**axes, "mode": "compile"})]).ids == ()


@LAW
@given(st.lists(names))
def test_pooled_texts_come_back(texts: list[str]) -> None:
    pool, numbers = pooled(texts)
    assert [pool[n] if n >= 0 else "" for n in numbers] == texts
    assert len(set(pool)) == len(pool)


@LAW
@given(st.recursive(names, lambda inner: st.one_of(st.lists(inner), st.dictionaries(names, inner)), max_leaves=8))
def test_a_script_holds_its_data_and_nothing_ends_it(content: object) -> None:
    text = json_text(content)
    assert json.loads(text) == content
    script = script_text("runs/0", text)
    assert not re.search("[<>&\u2028\u2029\n]", script[:-1])
    inside = re.fullmatch(r"compatData\('runs/0', '((?:[^'\\]|\\.)*)'\);\n", script)
    assert inside, "one call with two strings, whatever they hold"
    assert json.loads(re.sub(r"\\(.)", r"\1", inside[1])) == content


def test_the_payload_that_looks_like_a_prototype_stays_text() -> None:
    assert "__proto__" in PAYLOADS
    assert script_text("k", json_text({"__proto__": {"a": 1}})) == ("compatData('k', '{\"__proto__\":{\"a\":1}}');\n")


def test_every_outcome_has_a_letter_of_its_own() -> None:
    assert {OUTCOMES[LETTERS[o]] for o in Outcome} == set(Outcome)
    assert all(len(letter) == 1 and letter.isascii() and letter != "." for letter in LETTERS.values())


@LAW
@given(outcomes, outcomes)
def test_changes_are_mirrored_and_the_pages_have_the_same(base: Outcome | None, head: Outcome | None) -> None:
    mirror = {"regressed": "fixed", "fixed": "regressed", "new": "gone", "gone": "new", "changed": "changed"}
    there, back = change(base, head), change(head, base)
    assert (there is None) == (base is head) == (back is None)
    if there is not None and back is not None:
        assert mirror[there.word] == back.word
    pair = (LETTERS[base] if base else ".") + (LETTERS[head] if head else ".")
    assert (KINDS[table()[pair]] if pair in table() else None) == there


@pytest.mark.parametrize(("value", "letter"), [(1.0, "P"), (1e9, "F")])
def test_a_figure_stands_beside_its_bound(value: float, letter: str) -> None:
    axes = {"model": "llama", "dtype": "bf16", "attention": "sdpa", "quantization": "none"}
    context = Context(axes, "cpu", real=False)
    figure = Measurement(name="ratio_rms", unit="ratio", values=(value,), value=value)
    check = Check(name="agreement", outcome=Outcome.PASS, measurements=(figure,))
    rule = next(
        r for r in criteria().rules if r.check == "agreement" and r.measurement == "ratio_rms" and r.holds(context)
    )
    sources: dict[str, int] = {}
    assert bounds(check, context, sources) == [["ratio_rms", f"at most {rule.passes:.4g}", letter, 0]]
    assert list(sources) == [rule.source]
