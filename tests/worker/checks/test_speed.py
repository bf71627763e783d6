"""The speed check: what it times, leaves out, and is not misled by."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from compat.faults.patches import Patches
from compat.speed.figures import figures
from compat.worker.checks import speed
from compat.worker.group import Group
from compat.worker.stepping import Batch, Point, Steps, batch
from tests.worker.checks.groups import attention, group

SDPA = "transformers.integrations.sdpa_attention:sdpa_attention_forward"


def _asked(model: str, cache: Path, dtype: str = "fp32", **settings: Any) -> Group:
    own = group(model, dtype, cache)
    own.spec.speed.update(settings)
    return own


def _measured(facts: dict[str, Any]) -> dict[tuple[str, float], Any]:
    return {(m.name, m.at.get("length", 0)): m for m in figures(facts)}


def test_every_point_of_a_grid_is_timed_on_both_sides(probe_cache: Path) -> None:
    own = _asked("llama", probe_cache, points=[[2, 32, 0.0], [2, 64, 0.3]], budget_seconds=0.05)
    facts = speed.run(own, attention("sdpa")).facts
    assert [(p["phase"], p["length"], p["padding"]) for p in facts["points"]] == [
        ("prefill", 32, 0.0), ("decode", 32, 0.0), ("prefill", 64, 0.3), ("decode", 64, 0.3),
    ]  # fmt: skip
    for point in facts["points"]:
        assert len(point["seconds"]) == len(point["baseline_seconds"]) >= 6
        assert all(s > 0 for s in point["seconds"])
    padded = facts["points"][2]
    assert padded["tokens"] == 90, "real tokens: 64 and 26, not two times 64"
    found = _measured(facts)
    assert found["prefill_rate", 64].value < found["prefill_rate", 32].value * 10
    assert found["time_per_output_token", 32].value > 0


def test_a_slow_backend_is_slower_and_the_baseline_is_not(probe_cache: Path, patches: Patches) -> None:
    def slowly(original: Any) -> Any:
        def forward(*arguments: Any, **more: Any) -> Any:
            until = time.perf_counter() + 0.03
            while time.perf_counter() < until:
                pass
            return original(*arguments, **more)

        return forward

    patches.function(SDPA, slowly)
    own = _asked("gpt2", probe_cache, budget_seconds=0.1)
    found = _measured(speed.run(own, attention("sdpa")).facts)
    assert found["prefill_speedup", 128].ci95[1] < 0.8
    assert found["decode_speedup", 128].ci95[1] < 0.8


def test_eager_is_timed_alone(probe_cache: Path) -> None:
    facts = speed.run(_asked("bert", probe_cache), attention("eager")).facts
    assert [p["phase"] for p in facts["points"]] == ["prefill"]
    assert "baseline_seconds" not in facts["points"][0]


def test_a_point_that_does_not_fit_is_left_out_and_the_others_are_measured(probe_cache: Path, patches: Patches) -> None:
    def small(original: Any) -> Any:
        def forward(module: Any, query: torch.Tensor, *arguments: Any, **more: Any) -> Any:
            if query.shape[2] >= 64:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 17.00 GiB")
            return original(module, query, *arguments, **more)

        return forward

    patches.function("transformers.models.llama.modeling_llama:eager_attention_forward", small)
    own = _asked("llama", probe_cache, points=[[2, 32, 0.0], [2, 64, 0.0]], budget_seconds=0.05)
    facts = speed.run(own, attention("sdpa")).facts
    assert "does not fit" in facts["left_out"]["2x64@0 prefill"]
    large = [p for p in facts["points"] if p["length"] == 64]
    assert large, "the candidate fits, and is timed alone"
    assert "baseline_seconds" not in large[0]
    assert all("baseline_seconds" in p for p in facts["points"] if p["length"] == 32)


def test_a_point_beyond_learned_positions_is_left_out_with_its_reason(probe_cache: Path) -> None:
    own = _asked("gpt2", probe_cache, points=[[2, 32, 0.0], [1, 32, 0.3], [2, 100000, 0.0]], budget_seconds=0.05)
    left_out = speed.run(own, attention("sdpa")).facts["left_out"]
    assert "positions" in left_out["2x100000@0"]
    assert "padded" in left_out["1x32@0.3"]


def test_extras_say_what_is_attained_and_what_the_pipeline_costs(probe_cache: Path) -> None:
    own = _asked("llama", probe_cache, points=[[2, 64, 0.3]], budget_seconds=0.1, extras=True)
    facts = speed.run(own, attention("sdpa")).facts
    found = {name for name, _ in _measured(facts)}
    assert {"attention_flops_share", "prefill_flops_share", "decode_bytes_share", "time_to_first_token",
            "pipeline_over_generate", "prefill_peak_bytes"} <= found  # fmt: skip
    alone = facts["points"][0]["attention"]
    heads, head_dim = own.master.config.num_attention_heads, own.master.config.hidden_size // 4
    pairs = 64 * 65 // 2 + 26 * 27 // 2
    assert alone["flops"] % pairs == 0, "counted over the pairs of real tokens only"
    assert alone["flops"] // pairs in (4 * heads * d for d in (head_dim, own.master.config.head_dim))
    assert 0 < _measured(facts)["attention_flops_share", 64].value < 1


def test_a_baseline_can_be_another_cell(probe_cache: Path) -> None:
    own = _asked("gpt2", probe_cache, "bf16")
    other = group("gpt2", "fp32", probe_cache).spec
    named = {"group": vars(other), "attention": attention("sdpa"), "cell": "gpt2/fp32/sdpa/none"}
    own.spec.speed.update(baseline=named, budget_seconds=0.05)
    facts = speed.run(own, attention("sdpa")).facts
    assert facts["baseline"] == "gpt2/fp32/sdpa/none"
    assert len(facts["points"][0]["baseline_seconds"]) >= 6


@pytest.mark.parametrize("model", ["llama", "mistral", "gpt2"])
def test_steps_walk_the_same_lengths_again_and_answer_as_a_whole_forward(model: str, probe_cache: Path) -> None:
    own = group(model, "fp32", probe_cache)
    loaded = own.eager
    prompt = batch(own, loaded.model, Point(2, 40, 0.3), 7)
    steps = Steps(loaded, prompt, 2, window=8)
    lengths = []
    with torch.no_grad():
        for _ in range(6):
            steps.refill()
            lengths.append(steps.done)
            steps()
    assert lengths == [0, 2, 4, 6, 0, 2], "after eight steps the cache starts again"


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_a_padded_step_is_the_step_of_each_row_alone(model: str, probe_cache: Path) -> None:
    own = group(model, "fp32", probe_cache)
    loaded, seen = own.eager, []
    prompt = batch(own, loaded.model, Point(2, 40, 0.3), 7)
    loaded.model.register_forward_hook(lambda module, inputs, output: seen.append(output.logits[:, -1]))
    steps = Steps(loaded, prompt, 1)
    with torch.no_grad():
        steps.refill()
        steps()
        together = seen[-1]
        mask = prompt.arguments["attention_mask"].bool()
        for row in range(2):
            ids = prompt.arguments["input_ids"][row : row + 1, mask[row]]
            steps_alone = Steps(loaded, Batch({"input_ids": ids}, ids.numel()), 1)
            steps_alone.token = prompt.arguments["input_ids"][row : row + 1, -1:]
            steps_alone.refill()
            steps_alone()
            assert torch.allclose(seen[-1][0], together[row], atol=1e-4)
