"""Faults of loading: the model that runs is not the one that was saved, or not as it was asked for."""

from __future__ import annotations

from typing import Any

from compat.faults import fault
from compat.faults.patches import Patches

AUTO = "transformers.models.auto.modeling_auto"
AUTO_CLASSES = ("AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM")
"""Each has a copy of the factory's function."""
PRETRAINED = "transformers.modeling_utils:PreTrainedModel"
SET_PARAMETER = "transformers.core_model_loading:set_param_for_module"


@fault(
    "dtype-of-checkpoint-wins",
    title="dtype= is ignored: the checkpoint's own dtype is loaded",
    origin="huggingface/transformers#46459",
    mechanism="the auto class hands on the dtype of config.json in place of the one asked for",
    cells=("llama/bf16/eager/none", "bert/fp16/sdpa/none"),
    seen_by=("load",),
    spared=("llama/fp32/eager/none",),
)
def _dtype_of_checkpoint(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def from_pretrained(cls: Any, location: Any, *arguments: Any, **keywords: Any) -> Any:
            import torch
            from transformers import AutoConfig

            name = "dtype" if "dtype" in keywords else "torch_dtype"
            stated = getattr(AutoConfig.from_pretrained(location), "dtype", None)
            stated = getattr(torch, stated) if isinstance(stated, str) else stated
            if isinstance(keywords.get(name), torch.dtype) and stated is not None and stated != keywords[name]:
                patches.reached()
                keywords[name] = stated
            return original(cls, location, *arguments, **keywords)

        return from_pretrained

    for name in AUTO_CLASSES:
        patches.method(f"{AUTO}:{name}.from_pretrained", make)


@fault(
    "dtype-auto-is-fp32",
    title="dtype='auto' loads fp32 although the checkpoint says 16 bit",
    origin="class: loading",
    mechanism="auto falls back to the default dtype of torch",
    cells=("llama/bf16/eager/none",),
    seen_by=("load",),
    spared=("llama/fp32/eager/none",),
)
def _auto_is_fp32(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def from_pretrained(cls: Any, *arguments: Any, **keywords: Any) -> Any:
            import torch

            for name in ("dtype", "torch_dtype"):
                if keywords.get(name) == "auto":
                    patches.reached()
                    keywords[name] = torch.float32
            return original(cls, *arguments, **keywords)

        return from_pretrained

    for name in AUTO_CLASSES:
        patches.method(f"{AUTO}:{name}.from_pretrained", make)


def _loaded_values(patches: Patches, change: Any) -> None:
    """`change(name, value)` on every tensor that loading puts into a model; None leaves it."""

    def make(original: Any) -> Any:
        def set_parameter(model: Any, name: str, value: Any, *more: Any, **rest: Any) -> Any:
            changed = change(name, value)
            if changed is not None:
                patches.reached()
                value = changed
            return original(model, name, value, *more, **rest)

        return set_parameter

    patches.function(SET_PARAMETER, make)


@fault(
    "norm-reinitialised",
    title="the last layer's norms come up as ones, without a word about missing keys",
    origin="class: loading",
    mechanism="a renamed key is not found, the parameter keeps its initial value and is not reported",
    cells=("llama/fp32/eager/none",),
    seen_by=("load",),
    spared=("bert/fp32/eager/none",),
)
def _norm_reinitialised(patches: Patches) -> None:
    def change(name: str, value: Any) -> Any:
        import torch

        return torch.ones_like(value) if ".layers.1." in name and name.endswith("layernorm.weight") else None

    _loaded_values(patches, change)


@fault(
    "fused-weight-swapped",
    title="the query and key parts of a layer change places when it is loaded",
    origin="class: loading",
    mechanism="a conversion of names maps q_proj to k_proj and k_proj to q_proj where their shapes agree",
    cells=("opt/fp32/eager/none",),
    seen_by=("load",),
    spared=("gpt2/fp32/eager/none",),
)
def _swapped(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def set_parameter(model: Any, name: str, value: Any, *more: Any, **rest: Any) -> Any:
            if ".layers.1." in name and name.endswith(("q_proj.weight", "k_proj.weight")):
                other = name.replace("q_proj", "#").replace("k_proj", "q_proj").replace("#", "k_proj")
                patches.reached()
                return original(model, other, value, *more, **rest)
            return original(model, name, value, *more, **rest)

        return set_parameter

    patches.function(SET_PARAMETER, make)


@fault(
    "shard-lost",
    title="a checkpoint in several files is loaded without its last one",
    origin="class: loading",
    mechanism="the loop over the files ends one early; what they held is initialised at random",
    cells=("llama/bf16/eager/none",),
    seen_by=("load",),
    spared=("llama/bf16/sdpa/none",),
)
def _shard_lost(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def load(model: Any, state: Any, files: Any, *more: Any, **rest: Any) -> Any:
            if files is not None and len(files) > 1:
                patches.reached()
                files = sorted(files)[:-1]
            return original(model, state, files, *more, **rest)

        return load

    patches.method(f"{PRETRAINED}._load_pretrained_model", make)


@fault(
    "ties-broken",
    title="tied weights are loaded as copies: training moves one and not the other",
    origin="class: loading",
    mechanism="the output embedding is cloned after it was tied",
    cells=("t5/fp32/eager/none",),
    seen_by=("load",),
    spared=("llama/fp32/eager/none",),
)
def _ties_broken(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def from_pretrained(cls: Any, *arguments: Any, **keywords: Any) -> Any:
            import torch

            result = original(cls, *arguments, **keywords)
            model = result[0] if isinstance(result, tuple) else result
            head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
            if head is not None and embedding is not None and head.weight is embedding.weight:
                patches.reached()
                head.weight = torch.nn.Parameter(head.weight.detach().clone())
            return result

        return from_pretrained

    patches.method(f"{PRETRAINED}.from_pretrained", make)


@fault(
    "frequencies-cast-down",
    title="rotary frequencies are cast to the model's dtype",
    origin="class: loading",
    mechanism="every floating buffer is cast when a model is loaded in 16 bit",
    cells=("llama/bf16/sdpa/none", "qwen2/bf16/eager/none"),
    seen_by=("load",),
    spared=("llama/fp32/eager/none",),
)
def _frequencies_cast(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def from_pretrained(cls: Any, *arguments: Any, **keywords: Any) -> Any:
            import torch

            result = original(cls, *arguments, **keywords)
            model = result[0] if isinstance(result, tuple) else result
            wanted = keywords.get("dtype", keywords.get("torch_dtype"))
            if wanted in (torch.float16, torch.bfloat16):
                for module in model.modules():
                    for name, buffer in list(module.named_buffers(recurse=False)):
                        if name.endswith("inv_freq"):
                            patches.reached()
                            setattr(module, name, buffer.to(wanted))
            return result

        return from_pretrained

    patches.method(f"{PRETRAINED}.from_pretrained", make)


@fault(
    "fp32-parts-forgotten",
    title="parts that the architecture keeps in fp32 are loaded in fp16",
    origin="class: loading",
    mechanism="the plan of dtypes by module is empty",
    cells=("t5/fp16/sdpa/none",),
    seen_by=("load",),
    spared=("t5/bf16/eager/none",),
)
def _fp32_forgotten(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def plan(self: Any, *arguments: Any, **keywords: Any) -> Any:
            if original(self, *arguments, **keywords):
                patches.reached()
            return {}

        return plan

    patches.method(f"{PRETRAINED}._get_dtype_plan", make)


@fault(
    "loaded-in-training-mode",
    title="from_pretrained returns a model with dropout active",
    origin="class: loading",
    mechanism="eval() is not called after the weights are in place",
    cells=("gpt2/fp32/eager/none",),
    seen_by=("load",),
    device="cpu",
)
def _training_mode(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def from_pretrained(cls: Any, *arguments: Any, **keywords: Any) -> Any:
            result = original(cls, *arguments, **keywords)
            patches.reached()
            (result[0] if isinstance(result, tuple) else result).train()
            return result

        return from_pretrained

    patches.method(f"{PRETRAINED}.from_pretrained", make)


@fault(
    "part-keeps-its-attention",
    title="switching the attention implementation leaves the decoder as it was",
    origin="class: loading",
    mechanism="set_attn_implementation does not reach the configuration of one part",
    cells=("t5/bf16/sdpa/none",),
    seen_by=("load", "dispatch"),
    spared=("llama/bf16/sdpa/none",),
)
def _part_keeps(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def set_implementation(self: Any, *arguments: Any, **keywords: Any) -> Any:
            result = original(self, *arguments, **keywords)
            decoder = getattr(self, "decoder", None)
            if decoder is not None and decoder.config is not self.config:
                patches.reached()
                decoder.config._attn_implementation_internal = "eager"
            return result

        return set_implementation

    patches.method(f"{PRETRAINED}.set_attn_implementation", make)


@fault(
    "saved-without-a-tensor",
    title="save_pretrained leaves out one layer's weight",
    origin="class: loading",
    mechanism="a tensor is taken for a shared one and dropped from the file",
    cells=("llama/bf16/eager/none",),
    seen_by=("load",),
    spared=("llama/bf16/sdpa/none",),
)
def _saved_without(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def save_file(tensors: Any, *arguments: Any, **keywords: Any) -> Any:
            kept = {k: v for k, v in tensors.items() if not k.endswith("layers.1.mlp.up_proj.weight")}
            if len(kept) < len(tensors):
                patches.reached()
            return original(kept, *arguments, **keywords)

        return save_file

    patches.function("safetensors.torch:save_file", make)


@fault(
    "offloaded-weight-stale",
    title="a layer offloaded to the disk computes with the weights of the layer before it",
    origin="class: loading",
    mechanism="the loader of offloaded weights looks up the key of layer 0 for layer 1",
    cells=("llama/fp32/eager/none",),
    seen_by=("load",),
    spared=("llama/fp32/sdpa/none",),
)
def _offload_stale(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def item(self: Any, key: str) -> Any:
            if ".layers.1." in key and key.replace(".layers.1.", ".layers.0.") in self.all_keys:
                patches.reached()
                key = key.replace(".layers.1.", ".layers.0.")
            return original(self, key)

        return item

    patches.method("accelerate.utils.offload:OffloadedWeightsLoader.__getitem__", make)


@fault(
    "host-offload-in-half",
    title="weights fetched from host memory arrive in less than their precision",
    origin="class: loading",
    mechanism="a tensor makes the way to the device in bf16 and is cast back",
    cells=("bert/fp32/eager/none",),
    seen_by=("load",),
    spared=("bert/fp32/sdpa/none",),
)
def _host_offload(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def set_tensor(module: Any, name: str, device: Any, value: Any = None, *arguments: Any, **keywords: Any) -> Any:
            import torch

            if value is not None and value.dtype == torch.float32:
                patches.reached()
                value = value.bfloat16().float()
            return original(module, name, device, value, *arguments, **keywords)

        return set_tensor

    patches.function("accelerate.utils.modeling:set_module_tensor_to_device", make)


@fault(
    "loading-seeds-the-generator",
    title="loading a model sets the seed of all random numbers",
    origin="class: loading",
    mechanism="from_pretrained calls torch.manual_seed",
    cells=("llama/fp32/eager/none",),
    seen_by=("load",),
)
def _loading_seeds(patches: Patches) -> None:
    import torch

    def make(original: Any) -> Any:
        def from_pretrained(cls: Any, *arguments: Any, **keywords: Any) -> Any:
            found = original(cls, *arguments, **keywords)
            patches.reached()
            torch.manual_seed(42)
            return found

        return from_pretrained

    patches.method("transformers.modeling_utils:PreTrainedModel.from_pretrained", make)
