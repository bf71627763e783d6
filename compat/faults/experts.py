"""Faults of routed experts: a router scores rightly, and other experts answer, or with other weights."""

from __future__ import annotations

from typing import Any

from compat.faults import fault
from compat.faults.patches import Patches

MIXTRAL = "transformers.models.mixtral.modeling_mixtral"


@fault(
    "experts-least-likely",
    title="the least likely experts answer",
    origin="class: experts",
    mechanism="topk takes the smallest probabilities; where every expert is chosen nothing changes",
    cells=("mixtral-routed/fp32/eager/none",),
    seen_by=("agreement",),
    spared=("mixtral/fp32/eager/none",),
)
def _least_likely(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def forward(router: Any, hidden_states: Any) -> Any:
            logits, scores, indices = original(router, hidden_states)
            chosen = logits.float().softmax(-1)
            if router.top_k == chosen.shape[-1]:
                return logits, scores, indices
            patches.reached()
            least, indices = chosen.topk(router.top_k, dim=-1, largest=False)
            return logits, (least / least.sum(-1, keepdim=True)).to(scores.dtype), indices

        return forward

    patches.method(f"{MIXTRAL}:MixtralTopKRouter.forward", make)


@fault(
    "expert-weights-not-normalised",
    title="the weights of the chosen experts do not add up to one",
    origin="class: experts",
    mechanism="the division by the sum of the chosen probabilities is left out",
    cells=("mixtral-routed/fp32/eager/none", "mixtral-routed/fp32/sdpa/none"),
    seen_by=("agreement",),
    spared=("mixtral/fp32/eager/none",),
)
def _not_normalised(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def forward(router: Any, hidden_states: Any) -> Any:
            logits, scores, indices = original(router, hidden_states)
            chosen = logits.float().softmax(-1)
            if router.top_k == chosen.shape[-1]:
                return logits, scores, indices
            patches.reached()
            return logits, chosen.gather(-1, indices).to(scores.dtype), indices

        return forward

    patches.method(f"{MIXTRAL}:MixtralTopKRouter.forward", make)
