"""agreement sees scale, outliers and what every backend does alike; padding sees masks and positions on every path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compat.faults.patches import Patches
from compat.worker.checks import agreement, padding
from compat.worker.group import Group

from .groups import MODELS, attention, figures, group

SDPA = "transformers.integrations.sdpa_attention:sdpa_attention_forward"
LLAMA = "transformers.models.llama.modeling_llama"


@pytest.fixture(scope="module")
def llama(probe_cache: Path) -> Group:
    return group("llama", "fp32", probe_cache)


def test_one_percent_of_the_scale_shows_in_fp32(llama: Group, patches: Patches) -> None:
    patches.function(SDPA, lambda own: lambda *a, **k: own(*a, **{**k, "scaling": k["scaling"] * 1.01}))
    seen = figures(agreement.run(llama, attention("sdpa")))
    assert seen["ratio_rms"] > 1000
    assert seen["outlier_ratio_rms"] > 100


def test_outliers_show_a_variance_that_overflows(probe_cache: Path, patches: Patches) -> None:
    half = group("llama", "fp16", probe_cache)
    clean = figures(agreement.run(half, attention("eager")))

    def make(own: Any) -> Any:
        def forward(self: Any, hidden: torch.Tensor) -> torch.Tensor:
            if hidden.dtype == torch.float64:
                return own(self, hidden)
            variance = hidden.pow(2).mean(-1, keepdim=True)
            return self.weight * hidden * torch.rsqrt(variance + self.variance_epsilon)

        return forward

    patches.method(f"{LLAMA}:LlamaRMSNorm.forward", make)
    seen = figures(agreement.run(group("llama", "fp16", probe_cache), attention("eager")))
    assert clean["outlier_yardstick_error"] < 2
    assert seen["outlier_yardstick_error"] is None or seen["outlier_yardstick_error"] > 50
    assert seen["yardstick_error"] < 8, "ordinary activations do not show it: that is what the outliers are for"


def test_the_answer_sees_what_every_backend_does_alike(llama: Group, patches: Patches) -> None:
    clean = agreement.run(llama, attention("eager")).facts["answer"]
    assert len(clean) == agreement.ANSWERS
    patches.function(
        f"{LLAMA}:apply_rotary_pos_emb", lambda own: lambda q, k, cos, sin, *more: own(q, k, cos, -sin, *more)
    )
    wrong = group("llama", "fp32", Path(llama.spec.cache))
    report = agreement.run(wrong, attention("eager"))
    assert figures(report)["yardstick_error"] < 64, "reference and eager agree: both turn the wrong way"
    assert max(abs(a - b) for a, b in zip(clean, report.facts["answer"], strict=True)) > 0.1


def test_the_same_model_gives_the_same_answer_in_another_process_order(llama: Group) -> None:
    again = group("llama", "fp32", Path(llama.spec.cache))
    agreement.run(again, attention("sdpa"))
    first, second = (agreement.run(g, attention("eager")).facts["answer"] for g in (llama, again))
    assert first == pytest.approx(second, rel=1e-9)


def test_depth_looks_at_more(probe_cache: Path) -> None:
    elements = {}
    for depth in ("quick", "standard", "deep"):
        own = group("llama", "fp32", probe_cache, depth=depth)
        elements[depth] = sum(len(row) for rows in agreement.cases(own) for row in rows.tokens)
    assert elements["quick"] < elements["standard"] < elements["deep"]


PATHS = {
    "left",
    "right",
    "one row",
    "left, no position ids",
    "packed",
    "packed beside one text",
    "holes",
    "own mask",
    "drawn",
}


def test_padding_walks_every_path(llama: Group) -> None:
    report = padding.run(llama, attention("sdpa"))
    ratios = report.facts["ratio_token_by_path"]
    assert set(ratios) == PATHS
    assert max(ratios.values()) < 3
    seen = figures(report)
    assert seen["pad_content_changes"] == seen["neighbour_changes"] == seen["mask_dtype_changes"] == 0


def test_padding_turns_encoders_round_and_makes_holes_in_decoders(probe_cache: Path) -> None:
    encoder = padding.run(group("bert", "fp32", probe_cache), attention("sdpa"))
    assert encoder.facts["ratio_token_by_path"]["positions turned round"] < 3
    roberta = padding.run(group("roberta", "fp32", probe_cache), attention("eager"))
    assert "positions turned round" not in roberta.facts["ratio_token_by_path"], "its table begins behind the pad's row"
    for name in ("t5", "bart"):
        assert figures(padding.run(group(name, "fp32", probe_cache), attention("eager")))["decoder_mask_changes"] == 0


@pytest.mark.parametrize(
    ("broken", "only"),
    [
        # a mask of one row's batch is dropped; larger batches are right
        (lambda mask: None if mask is not None and mask.shape[0] == 1 and mask.shape[-1] == 49 else mask, "one row"),
        # packed rows see each other: a causal mask in place of the block-diagonal one
        (
            lambda mask: None if mask is not None and mask.shape[-2:] == (86, 86) else mask,
            "packed",
        ),
    ],
)
def test_padding_names_the_path_that_is_wrong(llama: Group, patches: Patches, broken: Any, only: str) -> None:
    def make(own: Any) -> Any:
        return lambda module, q, k, v, mask, **rest: own(module, q, k, v, broken(mask), **rest)

    patches.function(SDPA, make)
    ratios = padding.run(llama, attention("sdpa")).facts["ratio_token_by_path"]
    assert ratios[only] > 1000
    assert ratios["right"] < 3
    assert ratios["left"] < 3


def test_every_family_that_declares_packing_is_a_causal_model() -> None:
    declared = [m for m in MODELS.values() if m.features & {"packed", "packed beside one text", "holes", "mask-4d"}]
    assert len(declared) > 8
    assert {m.task for m in declared} == {"causal-lm"}


def test_the_smallest_bad_batch_is_found(probe_cache: Path, patches: Patches) -> None:
    """A mask that is dropped in batches of three and more: hypothesis makes the batch no smaller than that."""
    deep = group("llama", "fp32", probe_cache, depth="deep")
    clean = padding.run(deep, attention("sdpa")).facts
    assert "smallest_bad_batch" not in clean

    def make(own: Any) -> Any:
        def forward(module: Any, q: Any, k: Any, v: Any, mask: Any, **rest: Any) -> Any:
            return own(module, q, k, v, None if q.shape[0] >= 3 else mask, **rest)

        return forward

    patches.function(SDPA, make)
    batch = padding.run(deep, attention("sdpa")).facts["smallest_bad_batch"]
    assert len(batch["lengths"]) == 3
