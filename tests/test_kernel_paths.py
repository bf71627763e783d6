"""Which paths `dispatch` reports, and which are another check's to say."""

from __future__ import annotations

from typing import Any

import pytest

from compat.axes.attention import ATTENTION
from compat.judge import judge
from compat.kernel_paths import path_findings
from compat.rules import Context, criteria

FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"
MATH = "aten::_safe_softmax"
EAGER = "aten::_softmax"


def _names(attention: str, **paths: dict[str, Any]) -> list[str]:
    return [name for name, _ in path_findings(attention, {"kernels": paths})]


def test_every_path_as_asked_is_no_finding() -> None:
    assert _names("sdpa", plain={FLASH: "all 2"}, decode={FLASH: "all 2"}, train={FLASH: "all 2"}) == []
    assert _names("eager", plain={EAGER: "all 2"}, decode={EAGER: "all 2"}) == []


def test_a_fallback_names_path_and_layers() -> None:
    facts = {"kernels": {"plain": {FLASH: "all 2"}, "decode": {FLASH: ["a"], MATH: ["layers.1.self_attn"]}}}
    assert path_findings("sdpa", facts) == [
        ("path-fell-back", "asked for sdpa, fell back to sdpa math in decode (layers.1.self_attn)")
    ]


def test_another_backend_on_one_path_is_a_finding() -> None:
    assert _names("sdpa", plain={FLASH: "all 2"}, padded={EAGER: "all 2"}) == ["path-other"]
    assert _names("sdpa-flash", plain={FLASH: "all 2"}, padded={MATH: "all 2"}) == ["path-other"]
    assert _names("eager", plain={EAGER: "all 2"}, decode={FLASH: "all 2"}) == ["path-other"]


def test_one_layer_of_the_plain_path_is_a_finding_too() -> None:
    assert _names("sdpa", plain={FLASH: ["a"], EAGER: ["b"]}) == ["path-other"]


def test_what_load_says_is_not_said_again() -> None:
    assert _names("sdpa", plain={MATH: "all 2"}) == []
    assert _names("sdpa", plain={EAGER: "all 2"}, decode={EAGER: "all 2"}) == []
    assert _names("sdpa", plain={EAGER: "all 2"}, decode={MATH: "all 2"}) == ["path-fell-back"]


def test_math_under_autograd_is_documented_and_eager_there_is_not() -> None:
    assert _names("sdpa", plain={FLASH: "all 2"}, train={MATH: ["a"], FLASH: ["b"]}) == []
    assert _names("sdpa", plain={FLASH: "all 2"}, train={EAGER: "all 2"}) == ["path-other"]


@pytest.mark.parametrize(("said", "expected"), [([], ["attentions-switched"]), (["uses eager attention"], [])])
def test_switching_for_attention_weights_must_be_announced(said: list[str], expected: list[str]) -> None:
    facts = {
        "kernels": {"plain": {FLASH: "all 2"}, "attentions": {EAGER: "all 2"}},
        "output_attentions": {"returned": 2, "announced": said},
    }
    assert [name for name, _ in path_findings("sdpa", facts)] == expected


def test_a_finding_decides_the_check() -> None:
    axes = {"model": "m", "dtype": "fp32", "attention": "sdpa", "quantization": "none"}
    facts = {"kernels": {"plain": {FLASH: "all 2"}, "decode": {MATH: "all 2"}}}
    measured = {"unit": "paths", "better": "higher", "method": "single", "values": [2.0], "value": 2.0}
    answer = {"status": "ok", "measurements": [{"name": "compared_paths", **measured}], "facts": facts, "kernels": {}}
    check = judge("dispatch", answer, Context(axes, "cpu", False))
    assert check.outcome.value == "degraded"
    assert "decode (all 2)" in check.reason


def test_every_finding_has_an_outcome() -> None:
    assert {"path-fell-back", "path-other", "attentions-switched"} <= set(criteria().findings)
    assert all(backend.kinds for backend in ATTENTION)
