"""Attention backends. To add one, add an entry here."""

from __future__ import annotations

from dataclasses import dataclass

from compat.axes.registry import Registry


@dataclass(frozen=True)
class Attention:
    """One way to compute attention.

    `implementation` is what transformers is asked for; `sdpa_kernel` restricts torch's SDPA to one backend (a member of
    torch.nn.attention.SDPBackend; after `legacy ` it is asked for by the deprecated torch.backends.cuda.sdp_kernel).
    `convert` names what the loaded model is converted to before it is used, `provider` the execution provider of ONNX
    Runtime that runs it once it is exported, `keyword` the keyword of `from_pretrained` by which guides of its time
    ask for it. `kinds` are the kinds of kernel (KERNEL_KINDS) that count as this backend having run; `slower_kinds`
    are kinds that compute the same but mean that the backend fell back.
    """

    name: str
    implementation: str
    kinds: frozenset[str]
    slower_kinds: frozenset[str] = frozenset()
    sdpa_kernel: str | None = None
    convert: str | None = None
    provider: str | None = None
    keyword: str | None = None

    @property
    def effective(self) -> str:
        """What a model that really has this backend is said to have."""
        return self.convert or self.implementation


FUSED_SDPA = frozenset({"sdpa flash", "sdpa efficient", "sdpa cudnn"})

KERNEL_KINDS: tuple[tuple[str, str], ...] = (
    ("aten::_scaled_dot_product_flash_attention", "sdpa flash"),
    ("aten::_scaled_dot_product_efficient_attention", "sdpa efficient"),
    ("aten::_scaled_dot_product_cudnn_attention", "sdpa cudnn"),
    ("aten::_scaled_dot_product_fused_attention", "sdpa fused"),
    ("aten::_safe_softmax", "sdpa math"),
    ("aten::_scaled_dot_product_attention_math", "sdpa math"),
    ("aten::_softmax", "eager"),
    ("aten::_transformer_encoder_layer_fwd", "encoder layer"),
    ("CPUExecutionProvider", "onnxruntime cpu"),
    ("CUDAExecutionProvider", "onnxruntime cuda"),
    ("aten::_native_multi_head_attention", "encoder layer"),
    ("flash_attn_3::", "flash_attn 3"),
    ("flash_attn::", "flash_attn"),
    ("flash_attn.cute::", "flash_attn 4"),
    ("flex_attention", "flex"),
    ("FlexAttention", "flex"),
    ("Torch-Compiled Region", "flex"),
)
"""Prefix (or part) of an operator's name -> kind of attention kernel; the first match decides."""


def kernel_kind(operator: str) -> str | None:
    """The kind of attention kernel that `operator` belongs to, or None when it is not one."""
    return next((kind for part, kind in KERNEL_KINDS if part in operator), None)


ATTENTION = Registry(
    "attention",
    (
        Attention("eager", "eager", frozenset({"eager"})),
        Attention("sdpa", "sdpa", FUSED_SDPA, frozenset({"sdpa math"})),
        Attention("sdpa-math", "sdpa", frozenset({"sdpa math"}), sdpa_kernel="MATH"),
        Attention("sdpa-flash", "sdpa", frozenset({"sdpa flash"}), sdpa_kernel="FLASH_ATTENTION"),
        Attention("sdpa-efficient", "sdpa", frozenset({"sdpa efficient"}), sdpa_kernel="EFFICIENT_ATTENTION"),
        Attention("sdpa-cudnn", "sdpa", frozenset({"sdpa cudnn"}), sdpa_kernel="CUDNN_ATTENTION"),
        Attention("flash_attention_2", "flash_attention_2", frozenset({"flash_attn"})),
        Attention(
            "flash_attention_2-legacy",
            "flash_attention_2",
            frozenset({"flash_attn"}),
            keyword="use_flash_attention_2",
        ),
        Attention("flash_attention_3", "flash_attention_3", frozenset({"flash_attn 3"})),
        Attention("flash_attention_4", "flash_attention_4", frozenset({"flash_attn 4"})),
        Attention("flex_attention", "flex_attention", frozenset({"flex"})),
        Attention("sdpa-flash-legacy", "sdpa", frozenset({"sdpa flash"}), sdpa_kernel="legacy FLASH_ATTENTION"),
        Attention(
            "bettertransformer",
            "eager",
            FUSED_SDPA | {"encoder layer"},
            frozenset({"sdpa math"}),
            convert="bettertransformer",
        ),
        Attention("onnxruntime", "onnxruntime", frozenset({"onnxruntime cpu"}), provider="CPUExecutionProvider"),
        Attention(
            "onnxruntime-cuda",
            "onnxruntime",
            frozenset({"onnxruntime cuda"}),
            frozenset({"onnxruntime cpu"}),
            provider="CUDAExecutionProvider",
        ),
    ),
)
