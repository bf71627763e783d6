"""quality sees wrong weights, kernels, gradients and saves, and does not mind more precise kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compat.faults import catalogue
from compat.faults.patches import Patches
from compat.worker.checks import quality
from compat.worker.dequantize import Stored, dequantize
from compat.worker.quantized_products import error_of, int8_product

from .groups import attention, figures, group

pytest.importorskip("bitsandbytes")

EXACT = (
    "codes_differing",
    "scheme_differing",
    "skipped_quantized",
    "unskipped_differing",
    "saved_differing",
    "saved_output_differing",
    "training_left_behind_bytes",
    "compute_dtype_differing",
    "threshold_differing",
    "gradient_cut",
    "kernel_nonfinite",
)
FAULTS = {  # the family, the scheme, and what must move
    "outliers-dropped": ("llama", "bnb-int8", "kernel_error_outliers", 10),
    "bias-dropped": ("gpt2", "bnb-nf4", "kernel_error_channel", 5),
    "one-row-cut-short": ("llama", "bnb-nf4", "kernel_error_single", 10),
    "backward-transposed": ("llama", "bnb-nf4", "gradient_error", 10),
    "dequantized-weight-kept": ("llama", "bnb-nf4", "training_left_behind_bytes", 1e5),
    "nested-offset-dropped": ("llama", "bnb-nf4-dq", "dequantize_error", 10),
}


@pytest.mark.parametrize(
    "scheme", ["bnb-int8", "bnb-int8-t0", "bnb-nf4", "bnb-nf4-dq", "bnb-fp4", "bnb-nf4-fp32compute"]
)
def test_a_clean_stack_is_exact_where_it_should_be(scheme: str, probe_cache: Path) -> None:
    own = group("llama", "bf16", probe_cache, scheme)
    seen = figures(quality.run(own, attention("eager")))
    assert {name: seen[name] for name in EXACT} == dict.fromkeys(EXACT, 0)
    assert seen["weights_compared"] == seen["kernels_compared"] == 14
    assert seen["kernel_error"] < 1.5
    assert seen["kernel_error_outliers"] < 1.5
    assert seen["gradient_error"] < 1
    shared = figures(quality.run(own, attention("sdpa")))
    assert "output_kl" in seen
    assert "output_kl" not in shared, "a backend is not judged by what quantization loses"
    assert shared.items() <= seen.items()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_moves_the_figure_that_is_meant_for_it(fault: str, probe_cache: Path, patches: Patches) -> None:
    model, scheme, name, least = FAULTS[fault]
    catalogue()[fault].apply(patches)
    seen = figures(quality.run(group(model, "bf16", probe_cache, scheme), attention("eager")))
    assert patches.times_reached
    assert seen[name] > least


def test_a_kernel_that_computes_in_fp64_raises_nothing(probe_cache: Path, patches: Patches) -> None:
    def make(own: Any) -> Any:
        def product(x: Any, weight: Any, *more: Any, bias: Any = None, state: Any = None, **rest: Any) -> Any:
            if state.CB is None or torch.is_grad_enabled():
                return own(x, weight, *more, bias=bias, state=state, **rest)
            patches.reached()
            full = x.double() @ (state.CB.double() * state.SCB.double()[:, None] / 127).t()
            return (full if bias is None else full + bias.double()).to(x.dtype)

        return product

    patches.function("bitsandbytes.autograd._functions:matmul", make)
    seen = figures(quality.run(group("gpt2", "bf16", probe_cache, "bnb-int8"), attention("eager")))
    assert patches.times_reached
    assert {name: seen[name] for name in EXACT} == dict.fromkeys(EXACT, 0)
    assert max(seen[n] for n in seen if n.startswith("kernel_error")) < 1.5


def test_where_nothing_is_quantized_nothing_is_compared(probe_cache: Path) -> None:
    seen = figures(quality.run(group("falcon", "bf16", probe_cache, "bnb-nf4"), attention("eager")))
    assert seen == {"weights_compared": 0, "kernels_compared": 0}


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 5), outliers=st.booleans())
def test_the_int8_product_is_what_a_naive_loop_computes(seed: int, rows: int, outliers: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 12, generator=generator)
    if outliers:
        x[0, 3] = 9.0
    codes = torch.randint(-127, 128, (6, 12), generator=generator).to(torch.int8)
    scale = torch.rand(6, generator=generator) + 0.1
    held = Stored("int8", (6, 12), codes, scale, 12)
    found = int8_product(x, held, 6.0)
    weight = dequantize(held).double()
    for i in range(rows):
        values = x[i].half().double()
        largest = max(abs(v) for v in values.tolist() if abs(v) < 6)
        for o in range(6):
            total = 0.0
            for k in range(12):
                if any(abs(float(x[r, k])) >= 6 for r in range(rows)):
                    total += float(x[i, k]) * float(weight[o, k])
                else:
                    total += round(float(values[k]) * 127 / largest) * largest / 127 * float(weight[o, k])
            assert float(found[i, o]) == pytest.approx(total, rel=1e-9, abs=1e-12)


def test_one_wrong_channel_shows_in_the_worst_channel_only() -> None:
    exact = torch.randn(32, 512, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rounded = exact.bfloat16()
    clean = error_of(rounded, exact, torch.bfloat16)
    assert max(clean.overall, clean.channel, clean.row) < 1
    wrong = rounded.clone()
    wrong[:, 7] *= 1.05
    seen = error_of(wrong, exact, torch.bfloat16)
    assert seen.overall < 1 < 5 < seen.channel
    wrong[0, 0] = float("nan")
    assert error_of(wrong, exact, torch.bfloat16).nonfinite == 1
