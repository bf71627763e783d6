"""What classes declare beside what was measured, as a page wants it."""

from __future__ import annotations

import msgspec

from compat.families import Support
from compat.publish.declared import LOOKS, support

from ..render.test_support import declared_run


def test_marks_stand_beside_what_the_class_declares() -> None:
    found = support(declared_run())
    assert found is not None
    assert found["backends"] == ["eager", "sdpa", "flash_attention_2"]
    llama, mixtral = found["rows"]
    assert (llama["model"], llama["family"], llama["declares"]) == ("llama", "decoder", "S⋅?PCW")
    assert [m["word"] for m in llama["marks"]] == ["works", "declared, wrong", "works undeclared"]
    assert [(m["mark"], m["slug"]) for m in mixtral["marks"]] == [
        ("~", "degraded"),
        ("rd", "unsupported"),
        ("⋅", "absent"),
    ]
    words = [m["word"] for m in found["legend"]]
    assert set(words) == {m["word"] for row in found["rows"] for m in row["marks"]}
    assert len(words) == len(set(words))
    told = dict(found["differences"])
    assert "declares sdpa, fail in cache" in told["llama"]
    assert "declares sdpa, refused: it says no" in told["mixtral"]


def test_a_run_without_declarations_tells_nothing_of_them() -> None:
    found = support(declared_run(told=False))
    assert found is not None
    assert not found["told"]
    assert not found["differences"]
    assert "not recorded" in found["letters"]
    assert "declared, wrong" not in {m["word"] for row in found["rows"] for m in row["marks"]}


def test_a_run_of_quantized_cells_alone_has_no_table() -> None:
    run = declared_run()
    quantized = tuple(c for c in run.cells if c.axes["quantization"] != "none")
    assert quantized
    assert support(msgspec.structs.replace(run, cells=quantized)) is None


def test_every_mark_has_a_look() -> None:
    assert set(LOOKS) == set(Support)
