"""The registries: one entry a name, helpful errors, and kinds of kernels that agree with the backends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compat.axes import ALL_AXES, ATTENTION, DTYPES, QUANTIZATIONS, Dtype, Registry, axes_of, identity_of, nearest
from compat.axes.attention import FUSED_SDPA, KERNEL_KINDS, kernel_kind


def test_a_name_registered_twice_raises() -> None:
    twice = Dtype("fp8", "float8_e4m3fn", 0.125, 1)
    with pytest.raises(ValueError, match=r"dtype 'fp8' is registered twice"):
        Registry("dtype", (twice, twice))


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(KeyError, match="unknown attention 'spda'; nearest: 'sdpa'"):
        ATTENTION["spda"]


def test_a_name_that_is_like_none_gets_no_suggestion() -> None:
    with pytest.raises(KeyError) as caught:
        DTYPES["qqqqqq"]
    assert "nearest" not in str(caught.value)
    assert nearest("qqqqqq", DTYPES.names) == ""


def test_a_registry_keeps_order_and_knows_its_names() -> None:
    assert DTYPES.names == ("fp32", "fp16", "bf16")
    assert [d.name for d in DTYPES] == list(DTYPES.names)
    assert len(QUANTIZATIONS) == len(QUANTIZATIONS.names)
    assert "bf16" in DTYPES
    assert "bf17" not in DTYPES


def test_eps_and_bytes_are_those_of_the_format() -> None:
    mantissa_bits = {"fp32": 23, "fp16": 10, "bf16": 7}
    assert {d.name: d.eps for d in DTYPES} == {name: 2.0**-bits for name, bits in mantissa_bits.items()}
    assert {d.name: d.bytes for d in DTYPES} == {"fp32": 4, "fp16": 2, "bf16": 2}


def test_eager_is_first_since_the_others_are_judged_against_it() -> None:
    assert ATTENTION.names[0] == "eager"


def test_every_kind_that_a_backend_names_can_be_seen() -> None:
    seen = {kind for _, kind in KERNEL_KINDS}
    for backend in ATTENTION:
        assert backend.kinds, f"{backend.name} accepts no kernel"
        assert backend.kinds | backend.slower_kinds <= seen, f"{backend.name} names a kind that no operator has"
        assert not backend.kinds & backend.slower_kinds, f"{backend.name}: a kind cannot be both right and slower"


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "sdpa flash"),
        ("aten::_scaled_dot_product_flash_attention", "sdpa flash"),
        ("aten::_scaled_dot_product_efficient_attention", "sdpa efficient"),
        ("aten::_scaled_dot_product_cudnn_attention", "sdpa cudnn"),
        ("aten::_safe_softmax", "sdpa math"),
        ("aten::_softmax", "eager"),
        ("flash_attn::_flash_attn_forward", "flash_attn"),
        ("flash_attn::_flash_attn_varlen_forward", "flash_attn"),
        ("flash_attn_3::fwd", "flash_attn 3"),
        ("flash_attn.cute::_flash_attn_fwd", "flash_attn 4"),
        ("aten::mm", None),
        ("bitsandbytes::int8_linear_matmul", None),
    ],
)
def test_operators_are_told_apart(operator: str, kind: str | None) -> None:
    assert kernel_kind(operator) == kind


def test_the_math_fallback_is_slower_and_never_what_sdpa_asked_for() -> None:
    assert "sdpa math" not in FUSED_SDPA
    assert "sdpa math" in ATTENTION["sdpa"].slower_kinds
    assert ATTENTION["sdpa-flash"].kinds == {"sdpa flash"}
    assert not ATTENTION["sdpa-flash"].slower_kinds


def test_bytes_of_the_four_bit_schemes_are_those_of_qlora() -> None:
    # QLoRA, section 3: double quantization saves 0.373 bits a parameter (0.5 - 0.127)
    plain, double = QUANTIZATIONS["bnb-nf4"], QUANTIZATIONS["bnb-nf4-dq"]
    assert plain.overhead_bytes * 8 == pytest.approx(0.5)
    assert double.overhead_bytes * 8 == pytest.approx(0.127, abs=5e-4)
    assert plain.bits == double.bits == 4
    assert QUANTIZATIONS["none"].library == ""


def test_overhead_counts_scales_in_the_dtype_of_the_cell() -> None:
    quanto, torchao = QUANTIZATIONS["quanto-int4"], QUANTIZATIONS["torchao-int4"]
    assert quanto.overhead(2) * 128 == pytest.approx(4)  # a scale and a shift for each 128 weights
    assert quanto.overhead(4) == 2 * quanto.overhead(2)
    assert torchao.overhead(2) * 64 == pytest.approx(3)  # a scale and a byte of zero point for each 64
    assert QUANTIZATIONS["bnb-nf4"].overhead(2) == QUANTIZATIONS["bnb-nf4"].overhead(4)


@given(st.permutations(ALL_AXES), st.booleans())
def test_an_id_and_its_axes_are_one_in_whatever_order_the_axes_come(order: list[str], plain: bool) -> None:
    identity = "llama/bf16/sdpa/none" + ("" if plain else "/compile")
    axes = axes_of(identity)
    assert identity_of({name: axes[name] for name in order if name in axes}) == identity
