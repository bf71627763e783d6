"""The fp64 reference against naive loops and a forward written by hand, and that it is fp64 throughout."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compat.builtin import matrices_folder
from compat.matrix import read_matrix
from compat.worker import checkpoints, reference
from compat.worker.load import from_pretrained
from compat.worker.reference import Reference, attention

CPU = torch.device("cpu")


def _tensor(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class _Module(torch.nn.Module):
    """What `attention` asks of the module that calls it."""

    def __init__(self, causal: bool, sinks: torch.Tensor | None = None) -> None:
        super().__init__()
        self.is_causal = causal
        if sinks is not None:
            self.sinks = sinks


def _naive(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool,
    scaling: float,
    window: int | None,
    softcap: float | None,
    bias: torch.Tensor | None,
    sinks: torch.Tensor | None,
) -> list[list[list[list[float]]]]:
    """One number at a time, in Python's floats: result[batch][query][head][feature]."""
    batch, heads, queries, width = q.shape
    keys, groups = k.shape[2], q.shape[1] // k.shape[1]
    offset = keys - queries if causal else 0
    out = [[[[0.0] * width for _ in range(heads)] for _ in range(queries)] for _ in range(batch)]
    for b, h, i in itertools.product(range(batch), range(heads), range(queries)):
        scores: dict[int, float] = {}
        for j in range(keys):
            distance = i + offset - j
            if (causal and distance < 0) or (window and (distance >= window or -distance >= window)):
                continue
            s = scaling * math.fsum(float(q[b, h, i, d]) * float(k[b, h // groups, j, d]) for d in range(width))
            s = softcap * math.tanh(s / softcap) if softcap else s
            scores[j] = s + (float(bias[0, h, i, j]) if bias is not None else 0.0)
        total = math.fsum(math.exp(s) for s in scores.values())
        total += math.exp(float(sinks[h])) if sinks is not None else 0.0
        for d in range(width if scores else 0):
            out[b][i][h][d] = math.fsum(math.exp(s) * float(v[b, h // groups, j, d]) for j, s in scores.items()) / total
    return out


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1000),
    causal=st.booleans(),
    groups=st.sampled_from([1, 2]),
    sizes=st.sampled_from([(5, 5), (1, 6), (3, 6), (6, 3)]),
    window=st.sampled_from([None, 1, 2, 4]),
    softcap=st.sampled_from([None, 1.5]),
    scaling=st.sampled_from([None, 0.25]),
    biased=st.booleans(),
    sinking=st.booleans(),
)
def test_attention_is_what_a_naive_loop_computes(
    seed: int,
    causal: bool,
    groups: int,
    sizes: tuple[int, int],
    window: int | None,
    softcap: float | None,
    scaling: float | None,
    biased: bool,
    sinking: bool,
) -> None:
    """Queries and keys of unequal number: cross attention, or decoding from a cache when causal."""
    queries, keys = sizes
    q, k, v = (
        _tensor(seed, 2, 4, queries, 3),
        _tensor(seed + 1, 2, 4 // groups, keys, 3),
        _tensor(seed + 2, 2, 4 // groups, keys, 3),
    )
    bias = _tensor(seed + 3, 1, 4, queries, keys) if biased else None
    sinks = _tensor(seed + 4, 4) if sinking else None
    found, _ = attention(_Module(causal), q, k, v, None, scaling=scaling, sliding_window=window, softcap=softcap,
                         s_aux=sinks, position_bias=bias)  # fmt: skip
    expected = _naive(q, k, v, causal, scaling or 3**-0.5, window, softcap, bias, sinks)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-13)


def test_rows_that_may_attend_to_nothing_are_zero() -> None:
    q, k, v = _tensor(0, 1, 2, 6, 4), _tensor(1, 1, 2, 3, 4), _tensor(2, 1, 2, 3, 4)
    out, _ = attention(_Module(causal=True), q, k, v, None)
    assert torch.equal(out[:, :3], torch.zeros(1, 3, 2, 4, dtype=torch.float64)), "three queries before any key"
    assert bool(out[:, 3:].abs().sum() > 0)
    plain = reference._plain_sdpa(q, k, v, attn_mask=torch.zeros(6, 3, dtype=torch.bool))
    assert torch.equal(plain, torch.zeros(1, 2, 6, 4, dtype=torch.float64))


def test_sinks_of_the_module_count_as_those_of_the_call() -> None:
    q, k, v, sinks = _tensor(0, 1, 2, 4, 4), _tensor(1, 1, 2, 4, 4), _tensor(2, 1, 2, 4, 4), _tensor(3, 2)
    own, _ = attention(_Module(True, sinks), q, k, v, None)
    given_, _ = attention(_Module(True), q, k, v, None, s_aux=sinks)
    assert torch.equal(own, given_)
    assert not torch.allclose(own, attention(_Module(True), q, k, v, None)[0])


@pytest.mark.parametrize("masked", ["causal", "bool", "float", "minimum of fp32", "minimum of fp64", "none"])
@pytest.mark.parametrize("grouped", [False, True])
def test_the_plain_sdpa_is_torchs_definition(masked: str, grouped: bool) -> None:
    q, k, v = _tensor(0, 2, 4, 6, 8), _tensor(1, 2, 2 if grouped else 4, 6, 8), _tensor(2, 2, 2 if grouped else 4, 6, 8)
    keep = torch.ones(6, 6, dtype=torch.bool).tril()
    mask = {
        "bool": keep,
        "float": _tensor(3, 1, 4, 6, 6),
        "minimum of fp32": torch.zeros(6, 6, dtype=torch.float64).masked_fill(~keep, torch.finfo(torch.float32).min),
        "minimum of fp64": torch.zeros(6, 6, dtype=torch.float64).masked_fill(~keep, torch.finfo(torch.float64).min),
    }.get(masked)
    arguments: dict[str, Any] = {"attn_mask": mask, "is_causal": masked == "causal", "enable_gqa": grouped}
    found = reference._plain_sdpa(q, k, v, **arguments)
    torch.testing.assert_close(found, torch.nn.functional.scaled_dot_product_attention(q, k, v, **arguments),
                               rtol=1e-12, atol=1e-13)  # fmt: skip


CASTS: dict[str, Any] = {
    "softmax": lambda x: torch.softmax(x, -1, dtype=torch.float32),
    "functional.softmax": lambda x: torch.nn.functional.softmax(x, dim=-1, dtype=torch.float32),
    "Tensor.softmax": lambda x: x.softmax(-1, dtype=torch.float32),
    "float": lambda x: x.float(),
    "half": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "to(dtype)": lambda x: x.to(torch.float32),
    "to(dtype=)": lambda x: x.to(dtype=torch.bfloat16),
    "to(device, dtype)": lambda x: x.to("cpu", torch.float32),
    "to(tensor)": lambda x: x.to(torch.zeros(1)),
    "type": lambda x: x.type(torch.float32),
    "type_as": lambda x: x.type_as(torch.zeros(1)),
    "sum(dtype=)": lambda x: x.sum(-1, dtype=torch.float32),
    "cumsum(dtype=)": lambda x: x.cumsum(-1, dtype=torch.float32),
}


@pytest.mark.parametrize("name", CASTS)
def test_casts_of_fp64_to_a_lower_float_are_suppressed(name: str) -> None:
    x = _tensor(0, 3, 4) * (1 + 2.0**-40)
    exact = {"softmax": x.softmax(-1), "functional.softmax": x.softmax(-1), "Tensor.softmax": x.softmax(-1),
             "sum(dtype=)": x.sum(-1), "cumsum(dtype=)": x.cumsum(-1)}.get(name, x)  # fmt: skip
    with reference._Fp64Mode():
        found = CASTS[name](x)
    assert found.dtype == torch.float64
    assert torch.equal(found, exact)


def test_casts_of_other_tensors_are_left_alone() -> None:
    with reference._Fp64Mode():
        assert torch.arange(3).float().dtype == torch.float32
        assert torch.ones(3).half().dtype == torch.float16
        assert torch.ones(3, dtype=torch.float64).long().dtype == torch.int64
        assert torch.ones(3, dtype=torch.float64).bool().dtype == torch.bool


# -- a llama forward by hand -------------------------------------------------------------------------------------


def _row(**config: Any) -> dict[str, Any]:
    """The llama probe with other configuration."""
    row = read_matrix(matrices_folder() / "default-cpu.toml", "cpu").models["llama"].row
    return {**row, "config": {**row["config"], **config}}


@pytest.fixture(scope="module")
def llama(probe_cache: Path) -> Any:
    """A llama probe of one layer, in fp32."""
    checkpoint = checkpoints.resolve(_row(num_hidden_layers=1), probe_cache)
    return from_pretrained(checkpoint, "causal-lm", torch.float32, "eager", CPU)


IDS = [[5, 300, 17, 42, 5, 511, 77, 8, 300, 9]]


def _by_hand(model: Any, ids: list[list[int]]) -> Any:
    """Llama (https://arxiv.org/abs/2302.13971) with grouped heads, in numpy's fp64: RMSNorm, RoPE, SwiGLU."""
    w = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    config, layer = model.config, "model.layers.0."
    heads, pairs = config.num_attention_heads, config.num_key_value_heads
    width = config.hidden_size // heads

    def norm(x: Any, name: str) -> Any:
        return w[name] * x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps)

    def split(x: Any, name: str, count: int) -> Any:
        return (x @ w[f"{layer}self_attn.{name}.weight"].T).reshape(x.shape[0], count, width).transpose(1, 0, 2)

    def rotate(x: Any) -> Any:
        frequency = 10000.0 ** (-np.arange(0, width, 2, dtype=np.float64) / width)
        angle = np.arange(x.shape[1], dtype=np.float64)[:, None] * np.concatenate([frequency, frequency])
        half = np.concatenate([-x[..., width // 2 :], x[..., : width // 2]], -1)
        return x * np.cos(angle) + half * np.sin(angle)

    x = w["model.embed_tokens.weight"][ids[0]]
    n = norm(x, f"{layer}input_layernorm.weight")
    q, k, v = rotate(split(n, "q_proj", heads)), rotate(split(n, "k_proj", pairs)), split(n, "v_proj", pairs)
    k, v = np.repeat(k, heads // pairs, 0), np.repeat(v, heads // pairs, 0)
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(width)
    scores[:, np.triu(np.ones(scores.shape[1:], bool), 1)] = -np.inf
    p = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = ((p / p.sum(-1, keepdims=True)) @ v).transpose(1, 0, 2).reshape(len(x), -1)
    x = x + mixed @ w[f"{layer}self_attn.o_proj.weight"].T
    n = norm(x, f"{layer}post_attention_layernorm.weight")
    gate = n @ w[f"{layer}mlp.gate_proj.weight"].T
    x = x + (gate / (1 + np.exp(-gate)) * (n @ w[f"{layer}mlp.up_proj.weight"].T)) @ w[f"{layer}mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ w["lm_head.weight"].T


def _relative(x: Any, y: Any) -> float:
    return float(np.abs(x - y).max() / np.abs(y).max())


def test_the_reference_is_a_forward_by_hand_to_fp64_and_double_is_not(llama: Any) -> None:
    assert llama.config.rope_parameters["rope_theta"] == 10000.0
    expected = _by_hand(llama, IDS)
    own = Reference(llama, CPU)
    assert (own.attention, own.inv_freq_dtype) == ("own", "float64")
    found = own(input_ids=torch.tensor(IDS)).logits
    assert found.dtype == torch.float64
    assert _relative(found[0].numpy(), expected) < 1e-12
    with torch.no_grad():
        double = Reference(llama, CPU).model.double()
        double.config._attn_implementation = "eager"
        naive = double(input_ids=torch.tensor(IDS)).logits[0].double().numpy()
        single = llama(input_ids=torch.tensor(IDS)).logits[0].double().numpy()
    assert _relative(single, expected) > 1e-8, "fp32 is told from the reference"
    assert _relative(naive, expected) > 1e-12, "model.double() is not fp64: if it is now, the reference can be simpler"


def test_rounding_the_weights_rounds_them_and_nothing_else(llama: Any) -> None:
    own = Reference(llama, CPU)
    own.round_weights(torch.bfloat16)
    for (name, rounded), original in zip(own.model.named_parameters(), llama.parameters(), strict=True):
        assert torch.equal(rounded, original.to(torch.bfloat16).double()), name
    frequencies = [b for n, b in own.model.named_buffers() if "inv_freq" in n]
    assert frequencies
    assert all(b.dtype == torch.float64 for b in frequencies)
    exact = 10000.0 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    torch.testing.assert_close(frequencies[0], exact, rtol=1e-15, atol=0)


def test_a_weight_can_be_replaced_by_what_was_dequantized(llama: Any) -> None:
    own = Reference(llama, CPU)
    before = own(input_ids=torch.tensor(IDS)).logits
    path = "model.layers.0.self_attn.q_proj"
    own.set_weight(path, torch.zeros_like(llama.get_submodule(path).weight))
    assert not torch.allclose(own(input_ids=torch.tensor(IDS)).logits, before)
    assert bool(llama.get_submodule(path).weight.abs().sum() > 0), "the master keeps its own"


def test_the_master_is_left_as_it_was(llama: Any) -> None:
    implementation = llama.config._attn_implementation
    before = {n: p.clone() for n, p in llama.named_parameters()}
    Reference(llama, CPU)(input_ids=torch.tensor(IDS))
    assert llama.config._attn_implementation == implementation == "eager"
    assert all(torch.equal(p, before[n]) and p.dtype == torch.float32 for n, p in llama.named_parameters())


def test_the_entropy_of_uniform_attention_is_one() -> None:
    meter = reference.EntropyMeter()
    assert meter.ratio is None
    meter.add(torch.full((1, 2, 3, 16), 1 / 16, dtype=torch.float64), torch.ones(1, 1, 3, 16, dtype=torch.bool))
    assert meter.ratio == pytest.approx(1.0)
    meter.add(torch.eye(16, dtype=torch.float64)[None, None], torch.ones(1, 1, 16, 16, dtype=torch.bool))
    assert meter.ratio == pytest.approx(6 / 22), "rows that look at one key add nothing"
    few = reference.EntropyMeter()
    few.add(torch.full((1, 1, 1, 4), 0.25, dtype=torch.float64), torch.ones(1, 1, 1, 4, dtype=torch.bool))
    assert few.ratio is None, "rows with few keys say nothing"


def test_a_bias_in_the_mask_counts_and_what_the_mask_forbids_does_not() -> None:
    q, k, v = (_tensor(i, 1, 2, 5, 4) for i in range(3))
    bias = _tensor(3, 1, 2, 5, 5)
    given = bias.masked_fill(torch.eye(5, dtype=torch.bool), torch.finfo(torch.float64).min)
    module = _Module(causal=False)
    by_argument, _ = attention(
        module, q, k, v, None, position_bias=bias.masked_fill(torch.eye(5, dtype=torch.bool), 0.0)
    )
    by_mask, _ = attention(module, q, k, v, given)
    assert torch.equal(by_mask, by_argument)
    plain, _ = attention(module, q, k, v, None)
    assert not torch.allclose(by_mask, plain)
    low = torch.zeros(1, 1, 5, 5, dtype=torch.float16).fill_(torch.finfo(torch.float16).min)
    assert torch.equal(attention(module, q, k, v, low)[0], plain)
