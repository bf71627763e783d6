"""Faults of what is done with a loaded model: an adapter merged wrongly, a graph that keeps what it saw, weights that
come back from the wrong place."""

from __future__ import annotations

from typing import Any

from compat.faults import fault
from compat.faults.patches import Patches


@fault(
    "lora-merged-with-wrong-scale",
    title="a merged adapter counts twice",
    origin="class: adapters",
    mechanism="merging multiplies B A by alpha / rank once more than applying the adapter does",
    cells=("llama/fp32/sdpa/none/lora-merged", "bert/bf16/sdpa/none/lora-merged"),
    seen_by=("mode",),
    spared=("llama/fp32/sdpa/none/lora",),
)
def _merge_scale(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def get_delta_weight(self: Any, adapter: str) -> Any:
            patches.reached()
            return 2 * original(self, adapter)

        return get_delta_weight

    patches.method("peft.tuners.lora.layer:Linear.get_delta_weight", make)


@fault(
    "compiled-graph-keeps-its-mask",
    title="a compiled model goes on with the padding mask of its first batch",
    origin="class: compilation",
    mechanism="the mask is taken for a constant of the graph; batches of the same shape reuse it",
    cells=("llama/fp32/sdpa/none/compile",),
    seen_by=("padding",),
    spared=("llama/fp32/sdpa/none",),
)
def _stale_mask(patches: Patches) -> None:
    kept: dict[tuple[Any, ...], Any] = {}

    def make(original: Any) -> Any:
        def compile_fx(graph: Any, inputs: Any, *arguments: Any, **keywords: Any) -> Any:
            compiled = original(graph, inputs, *arguments, **keywords)
            if not hasattr(graph, "graph"):
                return compiled
            names = [n.name for n in graph.graph.nodes if n.op == "placeholder"]
            masks = [i for i, name in enumerate(names) if "attention_mask" in name]

            def run(*values: Any) -> Any:
                given = list(values)
                for i in masks:
                    first = kept.setdefault((given[i].dtype, *given[i].shape), given[i].clone())
                    if not first.equal(given[i]):
                        patches.reached()
                    given[i] = first
                return compiled(*given)

            return run if masks else compiled

        return compile_fx

    patches.function("torch._inductor.compile_fx:compile_fx", make)


@fault(
    "offloaded-layer-of-another",
    title="the second layer runs with the weights of the first",
    origin="class: offloading",
    mechanism="the hook of a layer looks its weights up under the name of the one before",
    cells=("llama/fp32/sdpa/none/cpu-offload", "llama/bf16/sdpa/none/disk-offload"),
    seen_by=("mode", "agreement"),
    spared=("llama/fp32/sdpa/none",),
)
def _other_layer(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def getitem(self: Any, key: str) -> Any:
            if "layers.1." in self.prefix + key:
                patches.reached()
                return self.dataset[(self.prefix + key).replace("layers.1.", "layers.0.")]
            return original(self, key)

        return getitem

    patches.method("accelerate.utils.offload:PrefixedDataset.__getitem__", make)


@fault(
    "pruning-is-undone-by-saving",
    title="a pruned model is dense again once it is loaded",
    origin="class: pruning",
    mechanism="the unpruned weight is what is written to the file",
    cells=("llama/fp32/sdpa/none/pruned-50",),
    seen_by=("mode",),
    spared=("llama/fp32/sdpa/none",),
)
def _saved_dense(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def save_pretrained(self: Any, *arguments: Any, **keywords: Any) -> Any:
            import torch

            state = {name: tensor.clone() for name, tensor in self.state_dict().items()}
            for name, tensor in state.items():
                if name.endswith("proj.weight") and float((tensor == 0).float().mean()) > 0.4:
                    patches.reached()
                    tensor[tensor == 0] = float(torch.finfo(tensor.dtype).smallest_normal)
            return original(self, *arguments, **{**keywords, "state_dict": state})

        return save_pretrained

    patches.method("transformers.modeling_utils:PreTrainedModel.save_pretrained", make)
