"""Faults of masks: a token attends to what it must not, or not to what it must."""

from __future__ import annotations

from typing import Any

from compat.faults import fault
from compat.faults.patches import Patches

SDPA = "transformers.integrations.sdpa_attention:sdpa_attention_forward"


@fault(
    "sdpa-padding-mask-dropped",
    title="SDPA ignores the padding mask",
    origin="class: masks",
    mechanism="the attention mask is not handed on; is_causal is used in its place",
    cells=("llama/fp32/sdpa/none", "bert/fp32/sdpa/none"),
    seen_by=("padding",),
    spared=("llama/fp32/eager/none",),
)
def _padding_mask_dropped(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def forward(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **rest: Any) -> Any:
            if attention_mask is not None:
                patches.reached()
                attention_mask = None
            return original(module, query, key, value, attention_mask, **rest)

        return forward

    patches.function(SDPA, make)
