"""What is said of a cell before anything runs: bytes by arithmetic, what does not fit, seconds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compat import availability
from compat.axes import DTYPES, QUANTIZATIONS
from compat.builtin import matrices_folder
from compat.device import GPU_WORKERS, WEIGHTS_SHARE, container_limit, default_workers, memory_bytes, no_room
from compat.matrix import CellSpec, Model, read_matrix

COUNTS = st.integers(1, 10**12)


def _shape(total: int, covered: int) -> Model:
    row = {"source": "shape", "type": "llama", "task": "causal-lm", "parameters": total, "linear_parameters": covered}
    return Model("big", row)


def _cell(dtype: str = "bf16", quantization: str = "none") -> CellSpec:
    return CellSpec("big", dtype, "eager", quantization, ("load", "memory"))


@given(COUNTS, st.sampled_from(DTYPES.names))
def test_without_a_scheme_every_parameter_has_the_size_of_its_dtype(total: int, dtype: str) -> None:
    expected = {"fp32": 4, "fp16": 2, "bf16": 2}[dtype] * total
    assert availability.weights_bytes(_cell(dtype), _shape(total, total // 2)) == expected


@given(COUNTS, st.floats(0, 1))
def test_a_scheme_shrinks_what_it_covers_and_nothing_else(total: int, share: float) -> None:
    covered = int(share * total)
    model = _shape(total, covered)
    taken = {name: availability.weights_bytes(_cell(quantization=name), model) or 0 for name in QUANTIZATIONS.names}
    rest = 2 * (total - covered)
    assert taken["none"] == 2 * total
    assert taken["bnb-int8"] == covered + rest
    assert taken["bnb-nf4"] == taken["bnb-fp4"] == pytest.approx(covered * (0.5 + 4 / 64) + rest, abs=1)
    assert rest <= taken["bnb-nf4-dq"] <= taken["bnb-nf4"]


def test_a_model_that_is_read_from_files_has_no_bytes_beforehand() -> None:
    row = {"source": "folder", "path": "/", "task": "causal-lm", "parameters": 10}
    assert availability.weights_bytes(_cell(), Model("mine", row)) is None
    uncounted = Model("big", {"source": "shape", "type": "llama", "task": "causal-lm", "config": {}})
    assert availability.weights_bytes(_cell(), uncounted) is None
    assert availability.missing(_cell(), uncounted, "cpu") == "", "the worker will say"


@given(COUNTS, COUNTS)
def test_room_is_most_of_the_memory(needed: int, memory: int) -> None:
    reason = no_room(needed, memory, "cpu")
    assert bool(reason) == (needed > WEIGHTS_SHARE * memory)
    assert no_room(needed, None, "cpu") == "", "unknown memory is no reason"


def test_a_cell_beyond_the_memory_is_named_with_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "_memory", lambda device: 16 * 2**30)
    model = _shape(7_000_000_000, 6_700_000_000)
    assert availability.missing(_cell(), model, "cpu") == (
        "its weights take 13.0 GiB, more than 80% of the 16.0 GiB of cpu"
    )
    monkeypatch.setattr(availability, "_installed", lambda distribution: True)
    assert availability.missing(_cell(quantization="bnb-nf4"), model, "cpu") == ""


def test_this_machine_has_memory() -> None:
    memory = memory_bytes("cpu")
    assert memory is not None
    assert 2**28 < memory < 2**50
    limit = container_limit()
    assert limit is None or memory <= limit


def test_seconds_of_a_shape_grow_with_it_and_unmeasured_kinds_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = read_matrix(matrices_folder() / "speed.toml", "cpu")
    monkeypatch.setattr(availability, "_costs", lambda: {"cpu": {"shape": {"load": 10.0}}})
    cells = {name: CellSpec(name, "bf16", "eager", "none", ("load",)) for name in ("gpt2-124m", "opt-350m")}
    small, large = (availability.estimate_seconds(matrix, (cell,)) for cell in cells.values())
    assert small == pytest.approx(1.244, abs=0.01)
    assert large / small == pytest.approx(331_196_416 / 124_439_808)
    assert availability.not_estimated(matrix, tuple(cells.values())) == 0
    monkeypatch.setattr(availability, "_costs", lambda: {"cpu": {"probe": {"load": 10.0}}})
    assert availability.estimate_seconds(matrix, tuple(cells.values())) == 0
    assert availability.not_estimated(matrix, tuple(cells.values())) == 2


@pytest.mark.parametrize(
    ("cores", "gigabytes", "devices", "workers"),
    [(16, 140, 1, 12), (64, 140, 1, GPU_WORKERS), (16, 24, 1, 6), (8, 140, 2, 6), (2, 2, 1, 1), (2, 140, 4, 4)],
)
def test_a_gpu_gets_as_many_workers_as_cores_and_memory_have_room_for(
    monkeypatch: pytest.MonkeyPatch, cores: int, gigabytes: int, devices: int, workers: int
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("compat.device.memory_bytes", lambda kind: gigabytes << 30)
    assert default_workers("cuda", devices) == workers
    assert default_workers("cpu", 1) == min(cores, 2)
