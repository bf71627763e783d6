"""Codes times scales: laws of the formats, torchao and quanto as the other side where they are installed, and what the
figures see."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compat.worker import affine
from compat.worker.affine import Affine, affine_figures, affine_weight, dynamic_product, float8_table
from compat.worker.weight_figures import Figures

SHAPE = (16, 256)
SCHEMES = ("torchao-int8", "torchao-int4", "torchao-float8", "quanto-int8", "quanto-int4", "quanto-float8")


def _weight(seed: int = 0, shape: tuple[int, int] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 16


def _held(kind: str, weight: torch.Tensor) -> Affine:
    """What the format `kind` makes of `weight`, by arithmetic of this file alone."""
    rows, columns = weight.shape
    size = {"torchao-int4": 64, "quanto-int4": 128}.get(kind, columns)
    split = weight.reshape(rows, -1, size)
    if kind == "quanto-int4":
        low, high = split.amin(-1), split.amax(-1)
        scale = (high - low) / 15
        codes = ((split - low[..., None]) / scale[..., None]).round().clamp(0, 15)
        return Affine(kind, (rows, columns), codes.to(torch.uint8).reshape(weight.shape), scale, size, offset=low)
    largest = split.abs().amax(-1)
    divisor = {"torchao-int8": 127.5, "torchao-int4": 7.5, "quanto-int8": 127.0}.get(kind, 448.0)
    scale = largest / divisor
    quotient = split / scale[..., None]
    if "float8" in kind:
        codes = quotient.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    else:
        least, most = (-8, 7) if kind == "torchao-int4" else (-128, 127)
        codes = quotient.round().clamp(least, most).to(torch.int8)
    return Affine(kind, (rows, columns), codes.reshape(weight.shape), scale, size)


def _judged(held: Affine, weight: torch.Tensor) -> Figures:
    return affine_figures(held, affine_weight(held), weight, weight)


def test_float8_is_what_torch_reads_in_the_same_bytes() -> None:
    theirs = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    torch.testing.assert_close(float8_table(), theirs, rtol=0, atol=0, equal_nan=True)
    assert float(float8_table().nan_to_num().max()) == 448


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), kind=st.sampled_from(SCHEMES), size=st.sampled_from([1e-3, 1.0, 1e3]))
def test_a_right_weight_has_no_wrong_code_and_lies_within_half_a_step(seed: int, kind: str, size: float) -> None:
    weight = _weight(seed) * size
    held = _held(kind, weight)
    found = _judged(held, weight)
    assert found.codes_differing == 0
    assert found.statistics_error < 1e-6
    step = held.scale[..., None] * (32 if "float8" in kind else 1)
    apart = (affine_weight(held) - weight).abs().reshape(*held.scale.shape, -1)
    assert bool((apart <= step / 2 * (1 + 1e-4)).all())


@settings(max_examples=30)
@given(kind=st.sampled_from(SCHEMES), row=st.integers(0, SHAPE[0] - 1), column=st.integers(0, SHAPE[1] - 1))
def test_one_wrong_code_and_one_wrong_scale_are_seen(kind: str, row: int, column: int) -> None:
    weight = _weight()
    held = _held(kind, weight)
    codes = held.codes.clone()
    codes[row, column] ^= 2
    assert _judged(dataclasses.replace(held, codes=codes), weight).codes_differing == 1
    scale = held.scale.clone()
    scale[row] *= 1.01
    wrong = _judged(dataclasses.replace(held, scale=scale), weight)
    assert wrong.statistics_error == pytest.approx(0.01, rel=1e-3)


def test_a_dropped_zero_or_offset_is_seen() -> None:
    weight = _weight()
    held = _held("quanto-int4", weight)
    none = dataclasses.replace(held, offset=torch.zeros_like(held.scale))
    assert _judged(none, weight).codes_differing > weight.numel() / 2
    assert _judged(none, weight).sqnr_db < 5 < 18 < _judged(held, weight).sqnr_db
    shifted = dataclasses.replace(_held("torchao-int8", weight), zero=torch.full((SHAPE[0], 1), 3))
    assert _judged(shifted, weight).codes_differing > weight.numel() / 2


def test_rounding_activations_costs_what_eight_bits_cost() -> None:
    held = dataclasses.replace(_held("torchao-int8", _weight()), dynamic=True)
    x = torch.randn((5, SHAPE[1]), generator=torch.Generator().manual_seed(1))
    exact = x.double() @ affine_weight(held).double().t()
    lost = (dynamic_product(x, held) - exact).square().mean() / exact.square().mean()
    assert 1e-6 < float(lost) < 4e-4


def test_an_unknown_layout_is_refused() -> None:
    linear = torch.nn.Linear(8, 8)
    assert not affine.is_affine(linear)
    with pytest.raises(ValueError, match=r"the layout of torch\.nn\.parameter\.Parameter is not known"):
        affine.affine_stored(linear)


def _agrees(linear: Any, weight: torch.Tensor, kind: str, tolerance: float) -> None:
    assert affine.is_affine(linear)
    held = affine.affine_stored(linear)
    assert held.kind == kind
    theirs = linear.weight.dequantize().float()
    apart = float((affine_weight(held) - theirs).abs().max())
    assert apart <= tolerance * float(theirs.abs().max())
    found = _judged(held, weight)
    assert found.codes_differing == 0
    assert found.statistics_error < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["torchao-int8", "torchao-int4", "torchao-float8"])
def test_torchao_dequantizes_to_the_same(kind: str, dtype: torch.dtype) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    config = {
        "torchao-int8": lambda: quantization.Int8WeightOnlyConfig(),
        "torchao-int4": lambda: quantization.IntxWeightOnlyConfig(
            weight_dtype=torch.int4, granularity=quantization.PerGroup(64)
        ),
        "torchao-float8": lambda: quantization.Float8WeightOnlyConfig(),
    }[kind]()
    linear = torch.nn.Linear(SHAPE[1], SHAPE[0], bias=False, dtype=dtype)
    linear.weight.data = _weight().to(dtype)
    weight = linear.weight.detach().float().clone()
    quantization.quantize_(linear, config)
    _agrees(linear, weight, kind, 1e-7 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["quanto-int8", "quanto-int4", "quanto-float8"])
def test_quanto_dequantizes_to_the_same(kind: str, dtype: torch.dtype) -> None:
    quanto = pytest.importorskip("optimum.quanto")
    names = {"quanto-int8": "qint8", "quanto-int4": "qint4", "quanto-float8": "qfloat8"}
    model = torch.nn.Sequential(torch.nn.Linear(SHAPE[1], SHAPE[0], bias=False, dtype=dtype))
    model[0].weight.data = _weight().to(dtype)
    weight = model[0].weight.detach().float().clone()
    quanto.quantize(model, weights=getattr(quanto, names[kind]))
    quanto.freeze(model)
    _agrees(model[0], weight, kind, 1e-6 if dtype == torch.float32 else 8e-3)
