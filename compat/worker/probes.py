"""Probe checkpoints: tiny models built from a config, with weights that make attention visible.

Default initialisation (std 0.02) makes attention nearly uniform, so that a wrong mask, scale, window or head changes
nothing. Weights here follow docs/criteria.md: embeddings N(0, 1); query and key matrices sqrt(2)/sqrt(fan_in), so that
scores have a standard deviation of about 2; value and output matrices 1.5/sqrt(fan_in); other matrices
1/sqrt(fan_in); norm weights 1 + 0.1 N; biases N(0, 0.02); attention sinks N(2, 1). Rows of an untied output head get
a factor exp(N / 2): some tokens are likelier than others, as in a real model, and greedy choices are clearer.

In: a model row (models.toml) as a dict. Out: a checkpoint folder as `save_pretrained` writes it, with a tokenizer or an
image processor, loaded afterwards the way users load.
"""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import torch

from compat.worker import stack_api

PROBE_VERSION = 6
"""Part of the cache key: raise it whenever a change here changes the weights."""

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")

_QUERY_KEY = re.compile(r"(^|\.)(q|k|q_proj|k_proj|query|key|q_lin|k_lin|q_b_proj|kv_a_proj_with_mqa|kv_b_proj)$")
_QUERY = re.compile(r"(^|\.)(q|q_proj|query|q_lin|q_b_proj)$")
_FUSED = re.compile(r"(^|\.)(query_key_value|qkv_proj|Wqkv|c_attn|qkv)$")
_VALUE_OUT = re.compile(
    r"(^|\.)(v|o|v_proj|o_proj|value|v_lin|out_lin|out_proj)$"
    r"|(attention|attn|attention\.output|self_attention)\.(dense|c_proj)$"
)
_BRANCH = re.compile(r"(^|\.)(output\.dense|out_lin|lin2|o_proj|out_proj|down_proj|fc2|c_proj)$")
"""The last linear of a branch, whose output is added to the residual stream."""

_QK_NORM = re.compile(r"(^|\.)(q_norm|k_norm|[qk]_layernorm(\.norms\.\d+)?)$")


def fan_in(name: str, shape: torch.Size, hidden: int, module: torch.nn.Module) -> int:
    """Number of inputs that one output sums over, for the layouts that transformers uses."""
    if type(module).__name__ == "Conv1D":  # stored (in, out)
        return shape[0]
    if len(shape) == 3 and "expert" in name:  # (experts, ., .) in either order
        other = shape[1] if shape[2] == hidden else shape[2]
        return other if "down" in name else hidden
    return math.prod(shape[1:])


_STATE_SPACE = ("A_log", "dt_bias", "D")
"""Parameters of a state-space mixer that have a valid range: decay, step size, and what passes by the state."""


def sensitise(
    model: torch.nn.Module, seed: int, query_gain: float = 1.0, embedding_gain: float = 1.0, branch_gain: float = 1.0
) -> None:
    """Give every parameter of `model` (fp32, CPU) a value drawn from `seed` by the scheme of this module's docstring.

    `query_gain` multiplies query weights, for families that do not scale scores by 1/sqrt(head_dim) (T5);
    `embedding_gain` multiplies embeddings, for families that scale them up themselves (Gemma); `branch_gain` what each
    layer adds to its input: with less of it, fewer layers can follow (a teacher).
    Each parameter has a generator of its own, seeded by its name: adding one does not move the others.
    """
    hidden = int(getattr(model.config, "hidden_size", 0) or getattr(model.config, "d_model", 0))
    seen: set[int] = set()
    with torch.no_grad():
        for module_name, module in model.named_modules():
            for own, parameter in module.named_parameters(recurse=False):
                if id(parameter) in seen:
                    continue
                seen.add(id(parameter))
                full = f"{module_name}.{own}"
                generator = torch.Generator().manual_seed(_name_seed(full, seed))
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
                value = _value(module_name, own, module, parameter, noise, hidden, query_gain)
                gain = embedding_gain if isinstance(module, torch.nn.Embedding) else 1.0
                if own == "weight" and _BRANCH.search(module_name):
                    gain = branch_gain
                parameter.copy_(gain * value)


def _name_seed(name: str, seed: int) -> int:
    import zlib

    return (zlib.crc32(name.encode()) + 1_000_003 * seed) % (2**63)


def _value(
    module_name: str,
    own: str,
    module: torch.nn.Module,
    parameter: torch.Tensor,
    noise: torch.Tensor,
    hidden: int,
    query_gain: float,
) -> torch.Tensor:
    kind = type(module).__name__
    if own == "original0":  # lengths of a normalised weight's slices: outputs of variance 1
        return math.sqrt(module.original1.shape[0] / parameter.numel()) * (1.0 + 0.1 * noise)
    if "sinks" in own:
        return 2.0 + noise
    if own in _STATE_SPACE:
        return _state_space(own, parameter.shape, noise)
    if "norm" in kind.lower() and own == "weight":
        centre = float(parameter.mean())  # 1, or 0 for families that compute (1 + weight)
        gain = math.sqrt(2.0) if _QK_NORM.search(module_name) else 1.0
        return gain + (centre - 1.0) + 0.1 * noise
    if isinstance(module, torch.nn.Embedding) or own in ("cls_token", "position_embeddings", "mask_token"):
        return noise
    if parameter.ndim < 2 or "bias" in own:
        return 0.02 * noise
    scale = 1.0 / math.sqrt(fan_in(f"{module_name}.{own}", parameter.shape, hidden, module))
    if _QUERY_KEY.search(module_name) or _FUSED.search(module_name):
        gain = math.sqrt(2.0) * (query_gain if _QUERY.search(module_name) else 1.0)
        return gain * scale * noise
    if _VALUE_OUT.search(module_name):
        return 1.5 * scale * noise
    if module_name.endswith("lm_head"):
        return scale * noise * torch.exp(0.5 * noise.mean(-1, keepdim=True) * math.sqrt(noise.shape[-1]))
    return scale * noise


def _state_space(own: str, shape: torch.Size, noise: torch.Tensor) -> torch.Tensor:
    """Decays of 1 to 4 a step's length, and steps from 0.02 to 0.7 over the heads: some forget within a token, some
    remember for tens of them (with the library's own steps of 1.3 all forget at once)."""
    count = shape.numel()
    if own == "A_log":
        return torch.linspace(1.0, 4.0, count).flip(0).log().reshape(shape)
    if own == "dt_bias":
        return torch.linspace(-4.0, 0.0, count).reshape(shape) + 0.1 * noise
    return 1.0 + 0.1 * noise


ROUTE_CHANNELS = 8
"""Channels of the residual stream that say which experts a token goes to, and nothing else."""

ROUTE_VALUE = 4.0
ROUTE_GAIN = 0.5


def route_by_token(model: torch.nn.Module, seed: int) -> None:
    """Let the experts of a token be a matter of its id, by a wide margin.

    A router that picks the best few of many scores has near ties, where tokens part between dtypes. Here each token has
    one of ROUTE_CHANNELS channels of its embedding set, no layer writes to these channels, and routers read nothing
    else: the scores of a token are a permutation of evenly spaced values.
    """
    generator = torch.Generator().manual_seed(seed + 71)
    channels = ROUTE_CHANNELS
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[:, :channels] = 0.0
        tokens = torch.arange(embedding.shape[0])
        embedding[tokens, tokens % channels] = ROUTE_VALUE
        for name, parameter in model.named_parameters():
            if re.search(r"(o_proj|down_proj)(\.weight)?$", name):
                parameter[..., :channels, :] = 0.0
            elif re.search(r"mlp\.(gate|router)\.weight$", name):
                experts = parameter.shape[0]
                parameter.zero_()
                for channel in range(channels):
                    order = torch.randperm(experts, generator=generator)
                    parameter[:, channel] = ROUTE_GAIN * (order - (experts - 1) / 2)


def bias_choices(model: torch.nn.Module, size: float) -> None:
    """Let routers that add a bias to their scores before they choose add `size` to every other pair of experts, and
    take it from the rest: pairs, so that within a group of four some are chosen for it."""
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                signs = 1.0 - 2.0 * ((torch.arange(buffer.numel()) // 2) % 2)
                buffer.copy_(size * signs)


def draw(model: torch.nn.Module, row: dict[str, Any]) -> None:
    """Give `model` (fp32, CPU) the weights of the probe `row`."""
    gains = {name: float(row.get(name, 1.0)) for name in ("query_gain", "embedding_gain", "branch_gain")}
    sensitise(model, seed=int(row.get("seed", 0)), **gains)
    if row.get("routed_by_token"):
        route_by_token(model, seed=int(row.get("seed", 0)))
    if row.get("choice_bias"):
        bias_choices(model, float(row["choice_bias"]))


def build(row: dict[str, Any], folder: Path) -> None:
    """Write the probe checkpoint of `row` into `folder` (existing, empty).

    Raises what the configuration or model class raises for arguments that it refuses.
    """
    import transformers

    config = transformers.AutoConfig.for_model(row["type"], **copy.deepcopy(row["config"]))
    with torch.random.fork_rng(devices=[]):  # what draw() leaves alone
        torch.manual_seed(0)
        model = stack_api.auto_class(row["task"]).from_config(config).eval()
    draw(model, row)
    model.save_pretrained(folder)
    if row.get("legacy_config"):
        _write_legacy(folder / "config.json", row["config"])
    if row["task"] == "image-classification":
        _image_processor(config).save_pretrained(folder)
    elif row["task"] == "audio-classification":
        transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    else:
        word_tokenizer(int(config.vocab_size)).save_pretrained(folder)


def _write_legacy(path: Path, given: dict[str, Any]) -> None:
    """Write a config.json again with the keys that transformers 4 knows, as checkpoints of the hub have it: the dtype
    as `torch_dtype`, and of the rotary embedding what the row's `config` says, at the top."""
    own = json.loads(path.read_text(encoding="utf-8"))
    own.pop("rope_parameters", None)
    own |= {name: given[name] for name in ("rope_theta", "rope_scaling") if name in given}
    if "dtype" in own:
        own["torch_dtype"] = own.pop("dtype")
    path.write_text(json.dumps(own, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def word_tokenizer(vocab_size: int) -> Any:
    """A word-level tokenizer whose word `w17` is token 17; left padding is left to the caller."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(SPECIAL_TOKENS)}
    words |= {f"w{i}": i for i in range(len(SPECIAL_TOKENS), vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pad, bos, eos, unk, mask = SPECIAL_TOKENS
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos, unk_token=unk, mask_token=mask
    )


def _image_processor(config: Any) -> Any:
    import transformers

    own = getattr(config, "vision_config", config)
    size = {"height": own.image_size, "width": own.image_size}
    # the PIL backend needs no torchvision; before it existed, the plain class was it
    cls = getattr(transformers, "ViTImageProcessorPil", None) or transformers.ViTImageProcessor
    return cls(size=size)
