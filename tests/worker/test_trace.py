"""The tracer counts what it says: products, copies, casts, host reads, memory that is kept, and where each happened."""

from __future__ import annotations

import copy
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention as sdpa

from compat.worker.trace import OUTSIDE, Trace, tracing

small = st.integers(1, 5)


class _Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(8, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def _traced(call: Any, model: torch.nn.Module | None = None) -> Trace:
    with tracing(model or _Net()) as trace, torch.no_grad():
        call()
    return trace


def _kinds(trace: Trace) -> list[str]:
    return [o.kind for o in trace.operators if o.kind]


@given(rows=small, inner=small, columns=small, batch=small)
def test_products_count_rows_times_inner_times_columns(rows: int, inner: int, columns: int, batch: int) -> None:
    a, b = torch.ones(rows, inner), torch.ones(inner, columns)
    assert sum(o.macs for o in _traced(lambda: a @ b).operators) == rows * inner * columns
    assert sum(o.macs for o in _traced(lambda: torch.addmm(torch.ones(columns), a, b)).operators) == a.numel() * columns
    left, right = torch.ones(batch, rows, inner), torch.ones(batch, inner, columns)
    assert sum(o.macs for o in _traced(lambda: torch.bmm(left, right)).operators) == batch * rows * inner * columns


@given(queries=st.integers(1, 6), keys=st.integers(1, 6), heads=st.sampled_from([1, 2]))
def test_fused_attention_counts_every_score(queries: int, keys: int, heads: int) -> None:
    q, k = torch.ones(2, heads, queries, 16), torch.ones(2, heads, keys, 16)
    trace = _traced(lambda: sdpa(q, k, k))
    assert _kinds(trace) == ["attention"]
    assert sum(o.macs for o in trace.operators) == 2 * heads * queries * keys * 32


def test_a_product_is_known_by_its_weight_and_its_module() -> None:
    net = _Net()
    product = next(o for o in _traced(lambda: net(torch.ones(3, 8)), net).operators if o.macs)
    assert (product.where, product.weight, product.macs) == ("inner", "inner.weight", 3 * 8 * 4)
    outside = next(o for o in _traced(lambda: torch.ones(3, 8) @ torch.ones(8, 2), net).operators if o.macs)
    assert (outside.where, outside.weight) == (OUTSIDE, "")


def test_copies_are_told_from_casts_and_repeats() -> None:
    x = torch.ones(2, 3, 4)
    assert _kinds(_traced(x.clone)) == ["copy"]
    assert _kinds(_traced(lambda: torch.cat([x, x]))) == ["copy"]
    assert _kinds(_traced(x.bfloat16)) == ["cast"]
    assert _kinds(_traced(lambda: x[:, None].expand(2, 5, 3, 4).reshape(10, 3, 4))) == ["spread"]
    assert _kinds(_traced(lambda: x.repeat_interleave(2, 1))) == ["spread"]
    assert _kinds(_traced(lambda: x.transpose(0, 1).view(3, 2, 4))) == []
    assert "copy" in _kinds(_traced(lambda: copy.deepcopy(x)))


def test_the_host_is_seen_to_wait() -> None:
    x = torch.ones(3)
    assert _traced(lambda: x.sum().item()).synchronisations() == 1
    assert _traced(lambda: bool(x.any())).synchronisations() == 1
    assert _traced(x.tolist).synchronisations() == 1
    assert _traced(lambda: x + 1).synchronisations() == 0


def test_memory_that_is_let_go_does_not_outlive_and_memory_that_is_kept_does() -> None:
    kept: list[torch.Tensor] = []
    assert _traced(lambda: torch.ones(64) + 1).outliving() == {}
    trace = _traced(lambda: kept.append(torch.ones(64) + 1))
    assert trace.outliving() == {"aten::add": 256}
    kept.clear()
    assert trace.outliving() == {}


def test_calls_say_dtype_and_whether_autograd_recorded() -> None:
    net = _Net()
    with tracing(net) as trace:
        net(torch.ones(1, 8))
    assert [(c.where, c.output, c.recording) for c in trace.calls] == [
        ("inner", torch.float32, True),
        ("", torch.float32, True),
    ]
    assert not any(c.recording for c in _traced(lambda: net(torch.ones(1, 8)), net).calls)


def test_a_call_that_raises_leaves_no_hook_and_no_module_behind() -> None:
    net = _Net()
    try:
        with tracing(net) as trace:
            net(torch.ones(1, 3))
    except RuntimeError:
        pass
    assert [c.where for c in trace.calls] == ["inner", ""]
    net(torch.ones(1, 8))
    assert len(trace.calls) == 2


def test_kernels_that_are_no_operator_are_seen_where_they_are_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    interface = ModuleType("flash_attn.cute.interface")

    def launching(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, None]:
        return sdpa(query, key, value), None

    launching.compile_cache = {}  # type: ignore[attr-defined]
    monkeypatch.setattr(interface, "_flash_attn_fwd", launching, raising=False)
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)

    class Attention(torch.nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            assert interface._flash_attn_fwd.compile_cache is launching.compile_cache  # type: ignore[attr-defined]
            return interface._flash_attn_fwd(rows, rows, rows)[0]

    model = torch.nn.Sequential(torch.nn.Linear(8, 8), Attention())
    for asked, expected in (("flash_attention_4", ["1"]), ("flash_attention_2", [])):
        with tracing(model, asked) as trace, torch.no_grad():
            model(torch.randn(1, 2, 4, 8))
        launched = [o for o in trace.operators if o.name == "flash_attn.cute::_flash_attn_fwd"]
        assert [o.where for o in launched] == expected
        assert all(o.kind == "attention" and o.dtypes == (torch.float32,) * 3 for o in launched)
        assert interface._flash_attn_fwd is launching
