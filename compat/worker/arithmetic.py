"""What a path has to multiply, by our own arithmetic: from the shapes of weights and the lengths of the input alone.

In: a model and a walk. Out: multiply-adds of each weight and of each attention layer. A weight is multiplied once with
every position of its part of the model; an output head in `generate` with the last position only; an expert with the
positions that are routed to it; keys and values of cross-attention once a sequence. Attention multiplies every query
with every key that the cache holds, those that a mask hides counted.

What the arithmetic does not know (audio, several images a row) is left out, and named.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from compat.worker import stack_api
from compat.worker.paths import Walk
from compat.worker.trace import weight_names

_EXPERT = re.compile(r"\.experts\.\d+\.")
_CROSS_KEYS = re.compile(r"(EncDecAttention|crossattention|encoder_attn|cross_attn)\.(\w+\.)*(k|v|k_proj|v_proj)$")
_CROSS = re.compile(r"(EncDecAttention|crossattention|encoder_attn|cross_attn)")
_ENCODER = re.compile(r"(^|\.)encoder\.")
_POOLED = re.compile(r"(^|\.)(pooler|classifier|text_projection|visual_projection|score)(\.|$)")
_FOREIGN = re.compile(r"vision|visual|image|audio|speech|multi_modal|qformer")
_LATENT = re.compile(r"(^|\.)kv_b_proj$")
_PROJECTOR = re.compile(r"multi_modal_projector")
_TOWER = re.compile(r"vision_tower|vision_model")
_CLASS_TOKEN = re.compile(r"(^|\.)(cls_token|class_embedding)$")
_SHARED_LAYERS = re.compile(r"(^|\.)\w*layer_groups\.\d+\.")
IMAGE_TEXT = "image-text-to-text"
TASKS = ("causal-lm", "masked-lm", "seq2seq-lm", "feature-extraction", "image-classification", IMAGE_TEXT)
"""Tasks whose inputs the arithmetic knows."""


def _text_config(config: Any) -> Any:
    """The part of a composite config that speaks of the text decoder."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _first(config: Any, *names: str) -> int | None:
    """The first of several spellings that the config has a whole number for."""
    return next((v for name in names if isinstance(v := getattr(config, name, None), int) and v), None)


@dataclass(frozen=True)
class Weight:
    """A matrix that multiplies positions."""

    name: str
    """Of its parameter; a tied one has its first name, experts with a module each share one."""
    size: int
    """Multiply-adds of one position."""
    kind: str
    """`encoder`, `decoder`, `cross` (keys and values of cross-attention), `latent` (makes keys and values of all cached
    positions in each step), `head`, `pooled`, `patches`, `tower` (patches, and the class token where
    there is one)."""
    router: bool = False
    """Whether it chooses experts: libraries do that in fp32."""


def name_of(name: str) -> str:
    """Experts that are modules of their own count together: which of them a position takes is the router's choice."""
    return _EXPERT.sub(".experts.*.", name)


class Arithmetic:
    """The arithmetic of one loaded model."""

    def __init__(self, model: Any, task: str) -> None:
        self.model = model
        self.task = task
        self.config = model.config
        self.text = _text_config(model.config)
        self.patches = self._patches()
        self.class_token = int(any(_CLASS_TOKEN.search(name) for name, _ in model.named_parameters()))
        self.left_out: list[str] = []
        self.weights: dict[str, Weight] = {}
        canonical = weight_names(model)
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        for path, module in model.named_modules():
            for own, parameter in module.named_parameters(recurse=False):
                size = self._size(path, own, module, parameter) * self._turns(path)
                if not size:
                    continue
                wrapper = is_traceable_wrapper_subclass(parameter)  # which has no memory of its own
                address = 0 if wrapper else parameter.untyped_storage().data_ptr()
                name = name_of(canonical.get(address, f"{path}.{own}"))
                kind = self._kind(path, module, module is head)
                if kind is None:
                    self.left_out.append(f"{path}.{own}")
                else:
                    router = parameter.dim() == 2 and parameter.shape[0] == self._experts() and kind != "head"
                    self.weights.setdefault(name, Weight(name, size, kind, router))

    def _patches(self) -> int:
        own = getattr(self.config, "vision_config", self.config)
        size, patch = (getattr(own, n, None) for n in ("image_size", "patch_size"))
        return (size // patch) ** 2 if isinstance(size, int) and isinstance(patch, int) else 0

    def _size(self, path: str, own: str, module: Any, parameter: torch.Tensor) -> int:
        """Multiply-adds of one position; 0 where the parameter multiplies none."""
        if own != "weight" and parameter.dim() != 3:
            return 0
        if _EXPERT.search(f"{path}.{own}"):
            return module.in_features * module.out_features * self._chosen() if hasattr(module, "in_features") else 0
        if isinstance(module, torch.nn.Linear):  # quantized ones are subclasses, with a packed weight
            return module.in_features * module.out_features
        if type(module).__name__ == "Conv1D":
            return parameter.numel()
        if isinstance(module, torch.nn.Conv2d):
            return parameter.numel()
        if parameter.dim() == 3 and "expert" in path:
            return parameter.numel() // parameter.shape[0] * self._chosen()
        is_router = parameter.dim() == 2 and parameter.shape[0] == self._experts()
        return parameter.numel() if is_router and not isinstance(module, torch.nn.Embedding) else 0

    def _turns(self, path: str) -> int:
        """How often one forward comes by: layers that share their weights (ALBERT) are one module."""
        groups = _first(self.text, "num_hidden_groups")
        shared = groups and _SHARED_LAYERS.search(path)
        return int(self.text.num_hidden_layers) // groups if groups and shared else 1

    def _chosen(self) -> int:
        """Experts of a position."""
        return int(getattr(self.text, "num_experts_per_tok", 1) or 1)

    def _experts(self) -> int:
        names = ("num_local_experts", "num_experts", "n_routed_experts")
        return next((int(n) for name in names if (n := getattr(self.text, name, None))), -1)

    def _kind(self, path: str, module: Any, head: bool) -> str | None:
        if head:
            return "head"
        if self.task not in TASKS:
            return None
        if isinstance(module, torch.nn.Conv2d):
            return "patches" if self.patches else None
        if self.task == IMAGE_TEXT and self.patches and (_TOWER.search(path) or _PROJECTOR.search(path)):
            return "patches" if _PROJECTOR.search(path) else "tower"
        if _FOREIGN.search(path) and self.task != "image-classification":
            return None
        if _POOLED.search(path):
            return "pooled"
        if self.task == "seq2seq-lm":
            if _CROSS_KEYS.search(path):
                return "cross"
            return "encoder" if _ENCODER.search(path) else "decoder"
        return "latent" if _LATENT.search(path) else "decoder"

    def positions(self, kind: str, walk: Walk) -> int:
        """How many positions, of all rows together, a weight of `kind` is multiplied with on this path."""
        if self.task == "image-classification":
            tokens = {"pooled": 1, "patches": self.patches, "head": 1}.get(kind, self.patches + self.class_token)
            return walk.rows * tokens
        if kind in ("patches", "tower"):
            return (
                walk.rows * (self.patches + (self.class_token if kind == "tower" else 0))
                if walk.steps[0][1] == 0
                else 0
            )
        tokens = sum(new for new, _ in walk.steps)
        if kind == "head" and walk.last_only and stack_api.accepts(self.model, "logits_to_keep"):
            tokens = len(walk.steps)
        if kind == "encoder":
            return walk.rows * walk.source
        if kind == "latent":
            tokens = sum(new + past for new, past in walk.steps)
        return walk.rows * walk.beams * {"cross": walk.source, "pooled": 1}.get(kind, tokens)

    def products(self, walk: Walk) -> dict[str, tuple[int, int]]:
        """Weight -> (multiply-adds on this path, multiply-adds of one position)."""
        return {w.name: (w.size * self.positions(w.kind, walk), w.size) for w in self.weights.values()}

    # -- attention -----------------------------------------------------------------------------------------------

    def attention(self, path: str, walk: Walk) -> int | None:
        """Multiply-adds of the attention layer at `path` on this path; None where the arithmetic does not know it."""
        width = self.width(path)
        if width is None or not self._knows(path):
            return None
        rows, pairs = self._pairs(path, walk)
        return rows * width * self._turns(path) * sum(queries * keys for queries, keys in pairs)

    def traffic(self, path: str, walk: Walk) -> int | None:
        """Elements of the queries, keys, values and outputs of all heads that the attention layer at `path` takes and
        gives on this path: what one copy of each would write."""
        width = self.width(path)
        if width is None or not self._knows(path):
            return None
        rows, pairs = self._pairs(path, walk)
        return rows * width * self._turns(path) * sum(queries + keys for queries, keys in pairs)

    def _knows(self, path: str) -> bool:
        seen = self.task in (IMAGE_TEXT, "image-classification") and self.patches > 0
        return self.task in TASKS and (seen or not _FOREIGN.search(path))

    def _pairs(self, path: str, walk: Walk) -> tuple[int, list[tuple[int, int]]]:
        """Rows, and of each forward the queries and keys of a row."""
        if self.task == "image-classification" or (self.task == IMAGE_TEXT and _TOWER.search(path)):
            return walk.rows, [(self.patches + self.class_token,) * 2]
        if self.task == "seq2seq-lm" and _ENCODER.search(path):
            return walk.rows, [(walk.source, walk.source)]
        rows = walk.rows * walk.beams
        if _CROSS.search(path):
            return rows, [(new, walk.source_keys) for new, _ in walk.steps]
        window = self.window(path)
        return rows, [(new, new + (min(past, window - 1) if window else past)) for new, past in walk.steps]

    def width(self, path: str) -> int | None:
        """Heads x (head_dim of queries + head_dim of values); None where the config does not say."""
        in_tower = self.task == IMAGE_TEXT and _TOWER.search(path)
        config = self.config.vision_config if in_tower else self.text
        decoder = self.task == "seq2seq-lm" and not _ENCODER.search(path)
        heads = _first(config, *(("decoder_attention_heads",) if decoder else ("encoder_attention_heads",)))
        heads = heads or _first(config, "num_attention_heads", "n_head", "n_heads", "num_heads")
        hidden = _first(config, "hidden_size", "n_embd", "d_model", "dim")
        if not heads or not hidden:
            return None
        if _first(config, "kv_lora_rank"):  # latent attention: keys and values have widths of their own
            query = _first(config, "qk_head_dim")
            value = _first(config, "v_head_dim")
            return heads * (query + value) if query and value else None
        return 2 * heads * (_first(config, "head_dim", "d_kv") or hidden // heads)

    def window(self, path: str) -> int | None:
        """Keys that a query of this layer may see, where it slides."""
        module = self.model.get_submodule(path)
        config = self.text
        window = getattr(config, "sliding_window", None)
        kinds, index = getattr(config, "layer_types", None), getattr(module, "layer_idx", None)
        if kinds and index is not None:
            return int(window) if window and kinds[index] == "sliding_attention" else None
        if getattr(config, "use_sliding_window", True) is False:
            return None
        return int(window) if window else None
