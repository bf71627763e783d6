"""Links from 16-bit cells to the finer dtype that looked closer."""

from __future__ import annotations

from compat.records import Cell, Check, Outcome
from compat.sharper import linked


def _cell(identity: str, outcome: Outcome | None = Outcome.PASS, **effective: object) -> Cell:
    axes = dict(zip(("model", "dtype", "attention", "quantization"), identity.split("/"), strict=True))
    checks = () if outcome is None else (Check(name="agreement", outcome=outcome),)
    return Cell(id=identity, axes=axes, outcome=outcome or Outcome.NOT_RUN, checks=checks, effective=dict(effective))


def _links(*cells: Cell) -> list[object]:
    return [c.effective.get("sharper") for c in linked(cells)]


def test_the_sharpest_dtype_of_the_same_cell_is_named_with_its_outcome() -> None:
    bf16, fp16, fp32 = (_cell(f"llama/{d}/sdpa/none") for d in ("bf16", "fp16", "fp32"))
    fp32 = _cell("llama/fp32/sdpa/none", Outcome.FAIL)
    link = {"cell": "llama/fp32/sdpa/none", "agreement": "fail"}
    assert _links(bf16, fp16, fp32) == [link, link, None]
    assert _links(bf16, fp16)[0] == {"cell": "llama/fp16/sdpa/none", "agreement": "pass"}


def test_another_backend_or_scheme_is_not_the_same_cell() -> None:
    for other in ("llama/fp32/eager/none", "llama/fp32/sdpa/bnb-nf4", "gpt2/fp32/sdpa/none"):
        (link, _) = _links(_cell("llama/bf16/sdpa/none"), _cell(other))
        assert isinstance(link, dict)
        assert not link["cell"]
        assert "not in this run" in link["note"]


def test_a_cell_that_was_not_judged_links_nowhere_and_is_no_link() -> None:
    asked, silent = _cell("llama/bf16/sdpa/none"), _cell("llama/fp32/sdpa/none", Outcome.NOT_RUN)
    (link, _) = _links(asked, silent)
    assert isinstance(link, dict)
    assert not link["cell"]
    assert _links(_cell("llama/bf16/sdpa/none", None), _cell("llama/fp32/sdpa/none")) == [None, None]


def test_an_older_link_is_replaced_and_the_rest_stays() -> None:
    old = _cell("llama/bf16/sdpa/none", how="switched", sharper={"cell": "gone"})
    (cell, _) = linked([old, _cell("llama/fp32/sdpa/none")])
    assert cell.effective == {"how": "switched", "sharper": {"cell": "llama/fp32/sdpa/none", "agreement": "pass"}}
