"""Our own dequantization: laws of the formats, bitsandbytes' own functions as the other side, and what the figures
see."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compat.worker import dequantize
from compat.worker.dequantize import Nested, Stored, figures
from compat.worker.weight_figures import Figures

functional = pytest.importorskip("bitsandbytes.functional")
SHAPE = (32, 128)


def _weight(seed: int = 0, shape: tuple[int, int] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 16


def _four_bit(weight: torch.Tensor, kind: str = "nf4", double: bool = False, blocksize: int = 64) -> Stored:
    codes, state = functional.quantize_4bit(weight, quant_type=kind, compress_statistics=double, blocksize=blocksize)
    nested = None
    if double:
        inner = state.state2
        nested = Nested(state.absmax, inner.absmax, float(state.offset), inner.code, inner.blocksize)
    rows, columns = weight.shape
    scale = torch.empty(0) if double else state.absmax
    return Stored(kind, (rows, columns), codes.reshape(-1), scale, blocksize, state.code, nested, state.dtype)


def _int8(weight: torch.Tensor) -> Stored:
    codes, scale, _ = functional.int8_vectorwise_quant(weight.half())
    return Stored("int8", (weight.shape[0], weight.shape[1]), codes, scale, weight.shape[1])


def _judged(held: Stored, weight: torch.Tensor) -> Figures:
    return figures(held, dequantize.dequantize(held), weight, weight)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 1000),
    kind=st.sampled_from(["nf4", "fp4"]),
    double=st.booleans(),
    blocksize=st.sampled_from([64, 128]),
    size=st.floats(1e-3, 1e3),
)
def test_four_bits_are_what_bitsandbytes_dequantizes(
    seed: int, kind: str, double: bool, blocksize: int, size: float
) -> None:
    weight = _weight(seed) * size
    held = _four_bit(weight, kind, double, blocksize)
    codes, state = functional.quantize_4bit(weight, quant_type=kind, compress_statistics=double, blocksize=blocksize)
    theirs = functional.dequantize_4bit(codes, state)
    torch.testing.assert_close(dequantize.dequantize(held), theirs, rtol=1e-6, atol=1e-6 * float(weight.abs().max()))


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), kind=st.sampled_from(["int8", "nf4", "fp4"]), double=st.booleans())
def test_a_clean_matrix_has_only_the_formats_own_error(seed: int, kind: str, double: bool) -> None:
    weight = _weight(seed).half().float()
    held = _int8(weight) if kind == "int8" else _four_bit(weight, kind, double)
    seen = _judged(held, weight)
    assert seen.codes_differing == 0
    assert seen.statistics_error < 1e-3
    assert seen.table_error < 1e-6
    assert seen.sqnr_db > {"int8": 38, "nf4": 20, "fp4": 17.5}[kind]
    assert seen.worst_block < {"int8": 0.0032, "nf4": 0.1, "fp4": 0.1}[kind]


def test_nf4_loses_of_a_normal_weight_what_is_known() -> None:
    weight = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0))
    assert _judged(_four_bit(weight), weight).mean_error == pytest.approx(0.0728, abs=2e-4)


def test_tables_are_the_formats_definitions() -> None:
    assert float(dequantize.table("nf4").diff().min()) > 0
    assert sorted(dequantize.table("fp4").abs().unique().tolist()) == pytest.approx(
        [0, 1 / 192, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1]
    )
    dynamic = dequantize.dynamic_table()
    assert len(dynamic) == 256
    assert float(dynamic.diff().min()) > 0
    torch.testing.assert_close(dynamic, functional.create_dynamic_map(), rtol=0, atol=1e-7)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), at=st.integers(0, 63), kind=st.sampled_from(["int8", "nf4", "fp4"]))
def test_one_wrong_scale_is_seen_wherever_it_stands(seed: int, at: int, kind: str) -> None:
    weight = _weight(seed).half().float()
    held = _int8(weight) if kind == "int8" else _four_bit(weight, kind)
    held.scale[at % len(held.scale)] *= 1.01
    assert _judged(held, weight).statistics_error > 5e-3


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), at=st.integers(0, 2047))
def test_one_wrong_code_is_counted(seed: int, at: int) -> None:
    weight = _weight(seed)
    held = _four_bit(weight)
    held.codes[at] ^= 0x30
    assert _judged(held, weight).codes_differing == 1


def test_faults_of_the_statistics_are_seen() -> None:
    weight = _weight()
    held = _four_bit(weight, double=True)
    assert held.nested is not None
    without = dataclasses.replace(held, nested=dataclasses.replace(held.nested, offset=0.0))
    assert _judged(without, weight).statistics_error > 0.1
    halved = dataclasses.replace(_four_bit(weight), scale=_four_bit(weight).scale.half())
    assert _judged(halved, weight).statistics_error > 1e-4
    table = dequantize.table("nf4").clone()
    table[[3, 5]] = table[[5, 3]]
    assert _judged(dataclasses.replace(_four_bit(weight), table=table), weight).table_error > 0.1
    assert _judged(dataclasses.replace(_four_bit(weight), table=table[:8]), weight).table_error == 1


def test_one_matrix_quantized_twice_is_seen() -> None:
    weight = _weight()
    once = dequantize.dequantize(_four_bit(weight, "fp4"))
    assert _judged(_four_bit(once, "nf4"), weight).codes_differing > 100


def test_a_block_of_zeros_is_no_fault() -> None:
    weight = _weight()
    weight[3] = 0
    for held in (_four_bit(weight), _four_bit(weight, "fp4")):
        seen = _judged(held, weight)
        assert seen.codes_differing == 0
        assert seen.statistics_error < 1e-6


def test_repacked_codes_are_refused() -> None:
    import bitsandbytes

    linear = bitsandbytes.nn.Linear4bit(128, 32, bias=False, quant_type="nf4")
    linear.weight.data = _weight()
    linear = linear.to("cpu")
    assert dequantize.stored(linear).kind == "nf4"
    linear.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match="repacked"):
        dequantize.stored(linear)
