"""Faults of quantization: codes, statistics, products and gradients that are not what the scheme says."""

from __future__ import annotations

from typing import Any

from compat.faults import fault
from compat.faults.patches import Patches

QUANTIZE_4BIT = "bitsandbytes.functional:quantize_4bit"
QUANTIZE_INT8 = "bitsandbytes.functional:int8_vectorwise_quant"
PRODUCT_4BIT = "bitsandbytes.autograd._functions:matmul_4bit"
PRODUCT_INT8 = "bitsandbytes.autograd._functions:matmul"


def _quantized(patches: Patches, change: Any) -> None:
    """`change(codes, state)` gives the codes and state that take the place of those of every 4-bit weight; None leaves
    them."""

    def make(original: Any) -> Any:
        def quantize(*arguments: Any, **keywords: Any) -> Any:
            codes, state = original(*arguments, **keywords)
            changed = change(codes, state)
            if changed is None:
                return codes, state
            patches.reached()
            return changed

        return quantize

    patches.function(QUANTIZE_4BIT, make)


@fault(
    "nested-offset-dropped",
    title="double quantization forgets the mean of the magnitudes",
    origin="bitsandbytes-foundation/bitsandbytes#1549",
    mechanism="the offset is not added when the magnitudes are dequantized",
    cells=("llama/bf16/eager/bnb-nf4-dq",),
    seen_by=("quality",),
    spared=("llama/bf16/eager/bnb-nf4",),
)
def _offset_dropped(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def dequantize(codes: Any, state: Any = None, *arguments: Any, **keywords: Any) -> Any:
            if state is not None and state.nested:
                import copy

                patches.reached()
                state = copy.copy(state)
                state.offset = state.offset * 0
            return original(codes, state, *arguments, **keywords)

        return dequantize

    patches.function("bitsandbytes.functional:dequantize_4bit", make)


@fault(
    "dequantized-weight-kept",
    title="a 4-bit layer keeps its dequantized weight after a training step",
    origin="bitsandbytes-foundation/bitsandbytes#1935",
    mechanism="the copy that backward uses is saved with the module",
    cells=("llama/bf16/eager/bnb-nf4",),
    seen_by=("quality", "memory"),
    spared=("llama/bf16/eager/bnb-int8",),
)
def _kept(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def forward(self: Any, x: Any) -> Any:
            import bitsandbytes.functional as functional

            result = original(self, x)
            state = self.weight.quant_state
            if not getattr(state, "packing_format_for_cpu", False) and "_kept" not in vars(self):
                patches.reached()
                vars(self)["_kept"] = functional.dequantize_4bit(self.weight.data, state)
            return result

        return forward

    patches.method("bitsandbytes.nn.modules:Linear4bit.forward", make)


@fault(
    "codes-swapped",
    title="two entries of the nf4 table are swapped when weights are quantized",
    origin="class: quantization",
    mechanism="weights near -0.39 get the code of -0.18 and the other way round",
    cells=("llama/bf16/eager/bnb-nf4",),
    seen_by=("quality",),
    spared=("llama/bf16/eager/bnb-fp4",),
)
def _codes_swapped(patches: Patches) -> None:
    def change(codes: Any, state: Any) -> Any:
        import torch

        if state.quant_type != "nf4":
            return None
        swap = torch.arange(16, dtype=torch.uint8, device=codes.device)
        swap[3], swap[5] = 5, 3
        return (swap[(codes >> 4).long()] << 4) | swap[(codes & 15).long()], state

    _quantized(patches, change)


@fault(
    "magnitudes-cut-short",
    title="of the blocks' magnitudes only the exponents are kept",
    origin="class: quantization",
    mechanism="absmax is stored in too few bits: rounded to the next power of two",
    cells=("llama/bf16/eager/bnb-nf4", "bert/bf16/sdpa/bnb-fp4"),
    seen_by=("quality",),
    spared=("llama/bf16/eager/bnb-int8",),
)
def _magnitudes_cut(patches: Patches) -> None:
    def change(codes: Any, state: Any) -> Any:
        if state.nested:
            return None
        state.absmax = state.absmax.log2().round().exp2()
        return codes, state

    _quantized(patches, change)


@fault(
    "last-block-wrong",
    title="the magnitude of a matrix's last block is that of the block before it",
    origin="class: quantization",
    mechanism="the loop over blocks reads one past its end",
    cells=("gpt2/bf16/eager/bnb-fp4",),
    seen_by=("quality",),
    spared=("llama/bf16/eager/bnb-int8",),
)
def _last_block(patches: Patches) -> None:
    def change(codes: Any, state: Any) -> Any:
        state.absmax[-1] = state.absmax[-2]
        return codes, state

    _quantized(patches, change)


def _quantize_argument(patches: Patches, name: str, change: Any) -> None:
    """Call quantize_4bit with `change(value)` for the keyword `name`."""

    def make(original: Any) -> Any:
        def quantize(*arguments: Any, **keywords: Any) -> Any:
            wanted = change(keywords.get(name))
            if wanted != keywords.get(name):
                patches.reached()
                keywords[name] = wanted
            return original(*arguments, **keywords)

        return quantize

    patches.function(QUANTIZE_4BIT, make)


@fault(
    "blocks-too-large",
    title="twice as many weights share a magnitude as were asked for",
    origin="class: quantization",
    mechanism="the block size is ignored: 128 in place of 64",
    cells=("llama/bf16/eager/bnb-nf4",),
    seen_by=("quality",),
    spared=("llama/bf16/eager/bnb-int8",),
)
def _blocks_too_large(patches: Patches) -> None:
    _quantize_argument(patches, "blocksize", lambda size: 128)


@fault(
    "nf4-becomes-fp4",
    title="nf4 is asked for and fp4 is stored",
    origin="class: quantization",
    mechanism="the kind of code falls back to the default of the function",
    cells=("llama/bf16/eager/bnb-nf4",),
    seen_by=("quality",),
    spared=("llama/bf16/eager/bnb-fp4",),
)
def _becomes_fp4(patches: Patches) -> None:
    _quantize_argument(patches, "quant_type", lambda kind: "fp4")


@fault(
    "one-scale-a-tensor",
    title="int8 weights share one scale a matrix in place of one a row",
    origin="class: quantization",
    mechanism="the largest magnitude is taken over the whole matrix",
    cells=("llama/bf16/eager/bnb-int8",),
    seen_by=("quality",),
    spared=("llama/bf16/eager/bnb-nf4",),
)
def _one_scale(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def quantize(weight: Any, threshold: float = 0.0) -> Any:
            import torch

            if threshold:  # an activation
                return original(weight, threshold=threshold)
            patches.reached()
            largest = weight.abs().max().float()
            codes = torch.round(weight.float() * (127.0 / largest)).to(torch.int8)
            return codes, largest.expand(weight.shape[0]).contiguous(), None

        return quantize

    patches.function(QUANTIZE_INT8, make)


@fault(
    "outliers-dropped",
    title="int8 products leave out the columns with outliers",
    origin="class: quantization",
    mechanism="outlier columns are zeroed in 8 bits and not added in 16",
    cells=("llama/bf16/eager/bnb-int8", "bert/bf16/sdpa/bnb-int8"),
    seen_by=("quality",),
    spared=("llama/bf16/eager/bnb-nf4",),
)
def _outliers_dropped(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def quantize(values: Any, threshold: float = 0.0) -> Any:
            codes, scale, columns = original(values, threshold=threshold)
            if columns is not None and columns.numel():
                patches.reached()
                columns = columns[:0]
            return codes, scale, columns

        return quantize

    patches.function(QUANTIZE_INT8, make)


@fault(
    "bias-dropped",
    title="4-bit linears forget their bias",
    origin="class: quantization",
    mechanism="the bias is not handed on to the product",
    cells=("gpt2/bf16/eager/bnb-nf4",),
    seen_by=("quality",),
    spared=("llama/bf16/eager/bnb-nf4",),
)
def _bias_dropped(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def product(x: Any, weight: Any, quant_state: Any, out: Any = None, bias: Any = None) -> Any:
            if bias is not None:
                patches.reached()
            return original(x, weight, quant_state, out=out, bias=None)

        return product

    patches.function(PRODUCT_4BIT, make)


@fault(
    "bias-twice",
    title="int8 linears add their bias twice",
    origin="class: quantization",
    mechanism="once in the fused product, once after it",
    cells=("gpt2/bf16/eager/bnb-int8",),
    seen_by=("quality",),
    spared=("llama/bf16/eager/bnb-int8",),
)
def _bias_twice(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def product(x: Any, weight: Any, *arguments: Any, bias: Any = None, **keywords: Any) -> Any:
            result = original(x, weight, *arguments, bias=bias, **keywords)
            if bias is None:
                return result
            patches.reached()
            return result + bias

        return product

    patches.function(PRODUCT_INT8, make)


@fault(
    "one-row-cut-short",
    title="the 4-bit kernel for a single row leaves out the last block of it",
    origin="class: quantization",
    mechanism="the number of blocks is rounded down in the matrix-vector kernel",
    cells=("llama/bf16/eager/bnb-nf4",),
    seen_by=("quality", "cache"),
    spared=("llama/bf16/eager/bnb-int8",),
)
def _one_row(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def product(x: Any, weight: Any, *arguments: Any, **keywords: Any) -> Any:
            if x.numel() == x.shape[-1] > 64:
                patches.reached()
                x = x.clone()
                x[..., -64:] = 0
            return original(x, weight, *arguments, **keywords)

        return product

    patches.function(PRODUCT_4BIT, make)


@fault(
    "backward-transposed",
    title="the gradient of a square 4-bit linear goes through the transposed weight",
    origin="class: quantization",
    mechanism="backward takes the weight for (in, out)",
    cells=("llama/bf16/eager/bnb-nf4",),
    seen_by=("quality", "gradient"),
    spared=("llama/bf16/eager/bnb-int8",),
)
def _backward_transposed(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def backward(ctx: Any, gradient: Any) -> Any:
            import bitsandbytes.functional as functional

            results = list(original(ctx, gradient))
            rows, columns = ctx.state.shape
            if rows == columns and results[0] is not None:
                patches.reached()
                weight = functional.dequantize_4bit(ctx.tensors[1], ctx.state).to(gradient.dtype)
                results[0] = gradient @ weight.t()
            return tuple(results)

        return backward

    patches.method("bitsandbytes.autograd._functions:MatMul4Bit.backward", make)


@fault(
    "merged-weight-off",
    title="dequantizing an int8 weight, as merging an adapter does, divides by 128",
    origin="class: quantization",
    mechanism="the number of steps is taken for a power of two",
    cells=("llama/bf16/eager/bnb-int8",),
    seen_by=("quality",),
    spared=("llama/bf16/eager/bnb-nf4",),
)
def _merged_off(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def dequantize(codes: Any, scale: Any) -> Any:
            patches.reached()
            return original(codes, scale) * (127 / 128)

        return dequantize

    patches.function("bitsandbytes.functional:int8_vectorwise_dequant", make)


@fault(
    "saved-offset-rounded",
    title="a saved model with double quantization has lost precision",
    origin="class: quantization",
    mechanism="the mean of the magnitudes is written in half precision",
    cells=("llama/bf16/eager/bnb-nf4-dq",),
    seen_by=("quality",),
    spared=("llama/bf16/eager/bnb-int8",),
)
def _saved_rounded(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def as_dict(self: Any, *arguments: Any, **keywords: Any) -> Any:
            import torch

            if self.nested:
                patches.reached()
                own, self.offset = self.offset, self.offset.to(torch.float16).float()
                try:
                    return original(self, *arguments, **keywords)
                finally:
                    self.offset = own
            return original(self, *arguments, **keywords)

        return as_dict

    patches.method("bitsandbytes.functional:QuantState.as_dict", make)


@fault(
    "compute-dtype-ignored",
    title="4-bit products compute in fp32 although bf16 was asked for",
    origin="class: quantization",
    mechanism="bnb_4bit_compute_dtype is not handed on to the layers",
    cells=("llama/bf16/eager/bnb-nf4",),
    seen_by=("quality",),
    spared=("llama/bf16/eager/bnb-int8",),
)
def _compute_dtype(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def init(
            self: Any, inputs: Any, outputs: Any, bias: Any = True, compute: Any = None, *more: Any, **rest: Any
        ) -> Any:
            import torch

            patches.reached()
            return original(self, inputs, outputs, bias, torch.float32, *more, **rest)

        return init

    patches.method("bitsandbytes.nn.modules:Linear4bit.__init__", make)


@fault(
    "skipped-modules-ignored",
    title="llm_int8_skip_modules has no effect",
    origin="class: quantization",
    mechanism="the user's list is replaced by the default one",
    cells=("llama/bf16/eager/bnb-int8", "llama/bf16/eager/bnb-nf4"),
    seen_by=("quality",),
    spared=("llama/bf16/eager/none",),
)
def _skip_ignored(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def modules(model: Any, skip_modules: Any = None, *arguments: Any, **keywords: Any) -> Any:
            if skip_modules is not None:
                patches.reached()
            return original(model, None, *arguments, **keywords)

        return modules

    patches.method("transformers.quantizers.base:HfQuantizer.get_modules_to_not_convert", make)


@fault(
    "head-quantized",
    title="the output head is quantized",
    origin="class: quantization",
    mechanism="the list of modules that are left alone by default is empty",
    cells=("llama/bf16/eager/bnb-nf4",),
    seen_by=("quality",),
    spared=("llama/bf16/eager/none",),
)
def _head_quantized(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def keys(model: Any) -> Any:
            if original(model):
                patches.reached()
            return []

        return keys

    patches.function("transformers.quantizers.base:get_keys_to_not_convert", make)


@fault(
    "half-not-quantized",
    title="the feed-forward matrices silently stay in 16 bit",
    origin="class: quantization",
    mechanism="the pattern of modules that are left alone fits too many",
    cells=("llama/bf16/eager/bnb-int8",),
    seen_by=("load", "memory"),
    spared=("llama/bf16/eager/none",),
)
def _half_not(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def convert(name: str, patterns: Any = None) -> Any:
            if ".mlp." in name:
                patches.reached()
                return False
            return original(name, patterns)

        return convert

    patches.function("transformers.quantizers.quantizers_utils:should_convert_module", make)
