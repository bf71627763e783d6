"""Evidence of a failing check on real libraries: the module where it begins, the smallest call, and honest silence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from compat.faults import catalogue
from compat.faults.patches import Patches
from compat.worker import cases, starts
from compat.worker.divergence import recording
from compat.worker.explain import beyond, by_figure, explain
from compat.worker.inputs import unpadded

from .checks.groups import attention, group

LIMITS = {"ratio_rms": 1.5, "ratio_token": 3.5, "nonfinite_elements": 0.0}


@contextmanager
def faulty(name: str) -> Iterator[None]:
    patches = Patches()
    try:
        catalogue()[name].apply(patches)
        yield
    finally:
        patches.undo()


def explained(cell: str, check: str, cache: Path, limits: dict[str, float] = LIMITS, **asked: Any) -> dict[str, Any]:
    model, dtype, backend, scheme = cell.split("/")
    request = {"check": check, "limits": limits, "effort": "full", "seconds": 60.0, **asked}
    return explain(group(model, dtype, cache, scheme), attention(backend), request)


def test_a_dropped_padding_mask_is_one_token_and_one_pad(probe_cache: Path) -> None:
    with faulty("sdpa-padding-mask-dropped"):
        found = explained("llama/fp32/sdpa/none", "padding", probe_cache)
    case = found["minimal"]["case"]
    assert found["diverges_at"] == "model.layers.0.self_attn"
    assert (case["kind"], len(case["rows"]), len(case["rows"][0]), case["length"]) == ("padded", 1, 1, 2)
    assert any("flash_attention" in name for name in found["minimal"]["kernels"])


def test_a_norm_is_named_as_itself(probe_cache: Path) -> None:
    with faulty("layernorm-half-variance"):
        found = explained("gpt2/fp16/eager/none", "agreement", probe_cache, {"yardstick_error": 8.0})
    assert found["diverges_at"].endswith((".ln_1", ".ln_2", "ln_f"))
    assert "outliers" in found["minimal"]["case"]


def test_the_clean_stack_shows_nothing(probe_cache: Path) -> None:
    for check in ("agreement", "padding", "cache"):
        found = explained("mistral/bf16/sdpa/none", check, probe_cache)
        assert "case" not in found["minimal"], found
        assert found["minimal"]["note"]


def test_a_check_that_no_call_stands_for_says_so(probe_cache: Path) -> None:
    found = explained("llama/fp32/sdpa/none", "memory", probe_cache)
    assert found == {
        "diverges_at": "",
        "minimal": {"note": "memory asks for no single call that could be made smaller"},
    }


def test_tried_inputs_are_not_kept(probe_cache: Path) -> None:
    own = group("llama", "fp32", probe_cache)
    own.yardstick(own.source.rows(0, [5]))
    before = len(own._yardsticks)
    with faulty("sdpa-padding-mask-dropped"):
        explain(own, attention("sdpa"), {"check": "padding", "limits": LIMITS, "effort": "case", "seconds": 60.0})
    assert len(own._yardsticks) == before == 1


def test_hooks_see_every_module_and_leave_nothing(probe_cache: Path) -> None:
    own = group("llama", "fp32", probe_cache)
    model = own.eager.model
    inputs = unpadded(own.source.rows(0, [5]), own.device, own.dtype)
    with recording(model) as found:
        model(**inputs)
        model(**inputs)
    assert len(found.tensors) == 2, "one a forward"
    assert {key[0] for key in found.tensors[0]} >= {"", "model.layers.1.self_attn", "model.layers.1.mlp.down_proj"}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_every_start_runs_and_its_rows_stand_where_its_windows_say(probe_cache: Path) -> None:
    for model in ("llama", "t5"):
        own = group(model, "fp32", probe_cache)
        for check in ("agreement", "padding", "cache", "generation", "determinism"):
            for case in starts.starts(own, check)[:12]:
                if case["kind"] in ("forward", "padded", "packed") or (case["kind"] == "decode" and model == "llama"):
                    _windows_hold(own, case)


def test_a_model_that_counts_positions_itself_is_asked_to(probe_cache: Path) -> None:
    """transformers 5.23: Bamba's own position ids do not count what its cache holds."""
    found = explained("bamba/fp32/eager/none", "cache", probe_cache, {"ratio_rms": 2.0})
    case = found["minimal"].get("case")
    if case is None:
        pytest.skip("this stack has not the defect")
    assert case["kind"] == "decode"
    assert case["positions"] is False
    assert len(case["steps"]) == 2


def _windows_hold(own: Any, case: cases.Case) -> None:
    """Token ids read through the windows are those of the rows."""
    fed = case["rows"]
    windows = cases.windows(own, case)
    assert len(windows) == len(fed)
    for row, parts in zip(fed, windows, strict=True):
        covered = {p for w in parts for p in range(w.first, w.first + w.count)}
        assert covered <= set(range(len(row)))
        assert all(w.offset >= 0 and w.offset + w.count <= w.columns for w in parts)
        if case["kind"] != "decode":
            assert covered == set(range(len(row)))


@pytest.mark.parametrize(
    ("limits", "figures"),
    [
        ({"ratio_token": 2.5}, {"ratio_token": 2.5}),
        ({"outlier_ratio_token": 5.0, "ratio_token": 2.5}, {"ratio_token": 2.5}),
        ({"adapter_loss_error": 1.0}, {}),
    ],
)
def test_bounds_by_figure(limits: dict[str, float], figures: dict[str, float]) -> None:
    assert by_figure(limits) == figures


def test_what_is_not_finite_is_beyond() -> None:
    limits = {"ratio_rms": 1.5, "ratio_max": 2.5, "kl_excess": 0.0}
    assert beyond({"ratio_rms": None, "ratio_max": 2.0}, limits) == ["ratio_rms"]
