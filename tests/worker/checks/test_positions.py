"""positions passes where the library is right, and sees tables read beyond their end and positions that wrap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compat.faults.patches import Patches
from compat.worker.checks import positions
from compat.worker.checks.positions import learned_tables, trained_length

from .groups import attention, figures, group

EMBEDDING = "torch.nn.functional:embedding"


def test_positions_without_an_end_are_judged_beyond_it(probe_cache: Path) -> None:
    report = positions.run(group("llama", "fp32", probe_cache), attention("sdpa"))
    seen = figures(report)
    assert seen["refused_beyond"] == 0
    assert seen["ratio_rms"] < 1.5
    assert seen["ratio_token"] < 3.5
    assert set(report.facts["ratio_token_by_path"]) == {
        "as trained", "beyond", "beyond, padded on the left", "beyond, padded on the right",
    }  # fmt: skip
    assert report.facts["trained_length"] == report.facts["last_position"] == 512


def test_a_learned_table_refuses_what_lies_beyond_it(probe_cache: Path) -> None:
    report = positions.run(group("gpt2", "fp32", probe_cache), attention("eager"))
    assert figures(report)["garbage_beyond"] == 0
    assert report.facts["tables"] == ["transformer.wpe.weight"]
    assert "IndexError" in report.facts["beyond"]


def test_a_table_that_is_read_beyond_its_end_is_seen(probe_cache: Path, patches: Patches) -> None:
    def clamped(original: Any) -> Any:
        def embedding(ids: torch.Tensor, weight: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
            return original(ids.clamp(max=weight.shape[0] - 1), weight, *rest, **more)

        return embedding

    own = group("gpt2", "fp32", probe_cache)
    patches.function(EMBEDDING, clamped)
    assert figures(positions.run(own, attention("eager")))["garbage_beyond"] == 1


def test_positions_that_start_again_at_the_trained_length_are_seen(probe_cache: Path, patches: Patches) -> None:
    own = group("llama", "fp32", probe_cache)
    loaded = own.loaded(attention("sdpa"))
    held = {id(m) for m in loaded.model.modules()}

    def wrapping(_: type, original: Any) -> Any:
        def forward(module: Any, x: torch.Tensor, position_ids: torch.Tensor, *rest: Any) -> Any:
            return original(module, x, position_ids % 512 if id(module) in held else position_ids, *rest)

        return forward

    patches.classes("LlamaRotaryEmbedding", "forward", wrapping)
    report = positions.run(own, attention("sdpa"))
    errors = next(m["values"] for m in report.measurements if m["name"] == "candidate_error")
    assert errors[0] < 128, "as trained"
    assert min(errors[1:]) > 10_000, "beyond, in eager attention too: the error against fp64 tells, not the ratio"


def test_the_end_of_a_table_is_behind_its_padding_row() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position_embeddings = torch.nn.Embedding(512, 4, padding_idx=1)
            self.embed_positions = torch.nn.Embedding(514, 4)
            self.words = torch.nn.Embedding(512, 4)

    assert learned_tables(Model(), 512) == {"position_embeddings.weight": 510, "embed_positions.weight": 512}


@pytest.mark.parametrize(("named", "length"), [({"n_positions": 64}, 64), ({"max_seq_len": 32}, 32), ({}, None)])
def test_the_trained_length_is_what_the_configuration_says(named: dict[str, int], length: int | None) -> None:
    config = type("Config", (), named)()
    assert trained_length(config) == length


def test_a_table_that_grew_is_put_back(probe_cache: Path) -> None:
    own = group("m2m_100", "fp32", probe_cache)
    model = own.loaded(attention("eager")).model
    before = {name: buffer.shape for name, buffer in model.named_buffers()}
    seen = figures(positions.run(own, attention("eager")))
    assert seen["refused_beyond"] == 0
    assert {name: buffer.shape for name, buffer in model.named_buffers()} == before
