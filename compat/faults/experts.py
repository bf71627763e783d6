"""Faults of routed experts: a router scores rightly, and other experts answer, or with other weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compat.faults import fault
from compat.faults.patches import Patches

ROUTER = "transformers.models.mixtral.modeling_mixtral:MixtralTopKRouter.forward"


def _routed(patches: Patches, choose: Callable[[Any, Any], tuple[Any, Any]]) -> None:
    """`choose` makes weights and experts of a router's probabilities and of the experts that it chose, where it had a
    choice."""

    def make(original: Any) -> Any:
        def forward(router: Any, hidden_states: Any) -> Any:
            logits, scores, indices = original(router, hidden_states)
            if indices.shape[-1] < logits.shape[-1]:
                patches.reached()
                weights, indices = choose(logits.float().softmax(-1), indices)
                scores = weights.to(scores.dtype)
            return logits, scores, indices

        return forward

    patches.method(ROUTER, make)


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
    def choose(probabilities: Any, indices: Any) -> tuple[Any, Any]:
        least, those = probabilities.topk(indices.shape[-1], dim=-1, largest=False)
        return least / least.sum(-1, keepdim=True), those

    _routed(patches, choose)


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
    _routed(patches, lambda probabilities, indices: (probabilities.gather(-1, indices), indices))
