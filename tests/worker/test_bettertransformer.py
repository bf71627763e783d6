"""Converted models: what a CPU shows of torch's fast path here, and whole cells where the stack is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention as sdpa

from compat import environments, stacks
from compat.axes import ATTENTION
from compat.axes.attention import kernel_kind
from compat.identity import default_cache
from compat.records import Outcome
from compat.worker import stack_api
from compat.worker.dispatch import forced_sdpa_kernel, kernels_seen
from compat.worker.trace import tracing

from ..execute.running import run
from ..matrix_files import write

WIDTH, HEADS, TOKENS = 32, 2, 7


def created(name: str) -> None:
    """Skip where the stack `name` has no environment in the user's cache."""
    try:
        environments.interpreter(stacks.find(name).name, default_cache())
    except environments.NotCreated as error:
        pytest.skip(str(error))


class _Layers(torch.nn.Module):
    """Two encoder layers as optimum's modules call them: rows that have pads are nested first."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(WIDTH, HEADS, 64, batch_first=True) for _ in range(2)
        )

    def forward(self, x: torch.Tensor, pads: torch.Tensor) -> torch.Tensor:
        if bool(pads.any()):
            x = torch._nested_tensor_from_mask(x, ~pads)
        for layer in self.layers:
            own = layer.self_attn
            norms = (layer.norm1.eps, layer.norm1.weight, layer.norm1.bias, layer.norm2.weight, layer.norm2.bias)
            products = (layer.linear1.weight, layer.linear1.bias, layer.linear2.weight, layer.linear2.bias)
            attention = (own.in_proj_weight, own.in_proj_bias, own.out_proj.weight, own.out_proj.bias)
            x = torch._transformer_encoder_layer_fwd(x, WIDTH, HEADS, *attention, False, False, *norms, *products)
        return x.to_padded_tensor(0.0) if x.is_nested else x


@pytest.mark.parametrize("pads", [0, 3])
def test_torchs_encoder_layer_is_one_operator_of_its_own_kind(pads: int) -> None:
    x = torch.randn(2, TOKENS, WIDTH)
    mask = torch.zeros(2, TOKENS, dtype=torch.bool)
    mask[1, TOKENS - pads :] = True
    model = _Layers().eval()
    with torch.no_grad(), kernels_seen() as seen:
        model(x, mask)
    assert {kernel_kind(name) for name in seen} == {"encoder layer"} < ATTENTION["bettertransformer"].kinds
    with torch.no_grad(), tracing(model) as trace:
        model(x, mask)
    layers = [o for o in trace.operators if o.name == "aten::_transformer_encoder_layer_fwd"]
    assert [o.kind for o in layers] == ["attention"] * 2
    expected = 2 * WIDTH * (TOKENS**2 + (TOKENS - pads) ** 2)  # pads are taken out of nested rows
    assert [o.macs for o in layers] == [expected] * 2
    assert layers[0].written == (2 * TOKENS - pads) * WIDTH * 4


def test_the_legacy_spelling_runs_the_same_kernel_and_leaves_nothing_behind() -> None:
    q, k, v = (torch.randn(1, 2, 16, 64) for _ in range(3))
    before = (torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled())
    with kernels_seen() as seen, forced_sdpa_kernel(ATTENTION["sdpa-flash-legacy"].sdpa_kernel), torch.no_grad():
        sdpa(q, k, v, is_causal=True)
    assert dict(seen) == {"aten::_scaled_dot_product_flash_attention_for_cpu": 1}
    assert (torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()) == before
    with (
        forced_sdpa_kernel("legacy FLASH_ATTENTION"),
        pytest.raises(RuntimeError, match=r"No available kernel|No viable backend"),
    ):
        sdpa(q.double(), k.double(), v.double(), attn_mask=torch.zeros(16, 16, dtype=torch.bool), dropout_p=0.5)


def _tiny() -> transformers.LlamaForCausalLM:
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_attention_heads=2)).eval()


def test_caches_of_older_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _tiny()
    assert stack_api.takes_caches(model)
    assert stack_api.first_cache(model) is None
    filled = model(torch.tensor([[1, 2], [3, 4]]), use_cache=True).past_key_values
    ((keys, _),) = stack_api.cache_tensors(filled)
    assert stack_api.reorder_cache(model, filled, torch.tensor([1, 1])) is filled
    ((after, _),) = stack_api.cache_tensors(filled)
    assert torch.equal(after, keys[[1, 1]])
    assert stack_api.emptied_cache(model, filled) is filled
    monkeypatch.setattr(stack_api, "TRANSFORMERS", (4, 45, 2))
    assert type(stack_api.first_cache(model)).__name__ == "DynamicCache"
    assert stack_api.emptied_cache(model, object()).get_seq_length() == 0
    monkeypatch.setattr(model, "_supports_cache_class", False, raising=False)
    assert not stack_api.takes_caches(model)
    assert stack_api.first_cache(model) is None


def test_input_gradients_can_be_given_up_where_nothing_asked_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _tiny()
    monkeypatch.setattr(stack_api, "TRANSFORMERS", (4, 45, 2))
    monkeypatch.setattr(type(model), "disable_input_require_grads", lambda self: self._require_grads_hook.remove())
    stack_api.forget_input_gradients(model)
    monkeypatch.setattr(stack_api, "TRANSFORMERS", (5, 23, 0))
    with pytest.raises(AttributeError):
        stack_api.forget_input_gradients(model)


CELLS = """
title = "Converted"
checks = ["load", "agreement", "dispatch"]

[settings]
stack = "{stack}"

[axes]
model = {models}
dtype = ["fp32"]
attention = ["bettertransformer"]
quantization = ["none"]
"""


def test_right_refused_and_in_name_only(tmp_path: Path) -> None:
    created("bettertransformer")
    models = '["bert", "llama", "gpt2"]'
    text = CELLS.format(stack="bettertransformer", models=models)
    stored = run(write(tmp_path, text), tmp_path / "run", default_cache())
    cells = {c.axes["model"]: c for c in stored.cells}
    assert stored.run.stack.name == "bettertransformer"
    assert (cells["bert"].outcome, cells["llama"].outcome) == (Outcome.DEGRADED, Outcome.UNSUPPORTED)
    worse = {c.name: c.reason for c in cells["bert"].checks if c.outcome == Outcome.DEGRADED}
    assert worse == {"dispatch": "paths_raised 1 paths, pass <= 0"}, "a converted layer returns no attention weights"
    load = {c.name: c for c in cells["bert"].checks}["load"]
    assert load.evidence.facts["attention"] == "bettertransformer"
    assert set(load.evidence.facts["misuses"].values()) != {"accepted"}
    for name in ("reverse_differing", "reverse_output_differing", "misuses_accepted", "reversals_raised"):
        measured = load.measurement(name)
        assert measured is not None
        assert measured.value == 0
    agreement = {c.name: c for c in cells["gpt2"].checks}["agreement"]
    assert agreement.outcome == Outcome.FAIL, "two rows without a mask see what comes after them"
