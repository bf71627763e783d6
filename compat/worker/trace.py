"""What a call into a model really does, operator by operator: kernels, multiply-adds, copies, casts, reads by the host.

In: a model and a block of calls into it. Out: a `Trace`. A TorchDispatchMode sees every operator below autograd, global
forward hooks say inside which module it ran, a TorchFunctionMode sees reads by the host that are no operator. The
numbers are exact and the same in every run: they need no clock and no repetition.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

from compat.worker.affine import code_storage, is_affine
from compat.worker.dispatch import QUANTIZED_LIBRARIES, is_kernel, kernels_seen, launches

OUTSIDE = "(outside the model)"
"""Where an operator ran that no module's forward called: `generate`, a pipeline, a backward pass."""

COPIES = frozenset({"clone", "copy_", "_to_copy", "cat", "stack", "repeat", "index_select", "copy"})
"""Operators that write what was already there, as such or in another dtype or layout."""

PRODUCTS = frozenset({"mm", "_int_mm", "bmm", "_grouped_mm", "mv", "dot", "addmm", "baddbmm", "addbmm", "addmv"})
"""Matrix products of aten; those that add have the product in their second and third tensor."""

LAYER_PRODUCTS = ("aten::mm", "aten::addmm", "aten::_grouped_mm")
"""Products that are a linear layer's, even where the weight that they read is a copy of its parameter."""

SYNCHRONISING = frozenset({"_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "unique_dim"})
"""Operators for whose result the host must wait, because a number or a shape depends on it."""

HOST_READS = frozenset({torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.tolist})
"""Calls that bring a tensor to the host, and that are no operator when it is there already."""

KEPT_BYTES = 64
"""Memory smaller than this is not followed: scalars."""


class Operator(NamedTuple):
    """One operator that ran."""

    name: str
    where: str
    """Path of the innermost module whose forward was running; "" is the model itself."""
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of the tensors that it wrote (none for a view)."""
    written: int
    """Bytes that it wrote."""
    kind: str
    """`attention`, `quantized`, `product`, `copy`, `cast`, `spread` (a copy that repeats its source), `sync` or ""."""
    macs: int
    """Multiply-adds."""
    dtypes: tuple[torch.dtype, ...]
    """Of its floating tensor arguments."""
    weight: str
    """Name of the parameter that a product, copy or quantized operator reads, or ""."""


class Call(NamedTuple):
    """One forward of a module."""

    where: str
    inputs: tuple[torch.dtype, ...]
    """Dtypes of its floating positional arguments."""
    output: torch.dtype | None
    """Of what it returned: of the first, where it returned several."""
    recording: bool
    """Whether autograd was recording."""


@dataclass
class Trace:
    """What ran inside one `tracing` block."""

    operators: list[Operator] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    kernels: dict[str, int] = field(default_factory=dict)
    """Where operators could not be seen (compiled attention): kernels by name, from the profiler."""
    host_reads: int = 0
    transfers: int = 0
    """Copies from one device to another."""
    storages: list[tuple[StorageWeakRef, int, str]] = field(default_factory=list)
    """Memory that the block allocated: a weak reference, bytes, the operator that did."""

    def outliving(self) -> dict[str, int]:
        """Operator -> bytes that it allocated and that something still holds: to be asked when the block's results
        have been let go."""
        found: dict[str, int] = {}
        for reference, size, name in self.storages:
            if not reference.expired():
                found[name] = found.get(name, 0) + size
        return found

    def synchronisations(self) -> int:
        """How often the host had to wait for the device, or fetched a tensor from it."""
        return self.host_reads + sum(o.kind == "sync" for o in self.operators)


class _Overload(NamedTuple):
    """What holds for every call of one overload."""

    name: str
    short: str
    view: bool
    in_place: bool


@cache
def _overload(func: Any) -> _Overload:
    name = func._schema.name
    short = name.partition("::")[2]
    aliases = [r.alias_info for r in func._schema.returns]
    view = bool(aliases) and all(a is not None and not a.is_write for a in aliases)
    in_place = any(a is not None and a.is_write for a in aliases)
    return _Overload(name, short, view or short in ("_unsafe_view", "lift_fresh", "_reshape_alias"), in_place)


class _Dispatch(TorchDispatchMode):
    def __init__(self, trace: Trace, stack: list[str], weights: dict[int, str], names: frozenset[str]) -> None:
        super().__init__()
        self.trace = trace
        self.stack = stack
        self.weights = weights
        self.names = names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if hasattr(func, "_schema"):
            self._note(_overload(func), args, result)
        return result

    def launched(self, name: str, args: Any, result: Any) -> None:
        """Note a kernel that is no operator of torch; what it wrote was allocated by operators, noted before."""
        self._note(_Overload(name, name.partition("::")[2], view=False, in_place=True), args, result)

    def _note(self, overload: _Overload, args: Any, result: Any) -> None:
        tensors = list(_tensors(args))
        out = [] if overload.view else list(_tensors(result if isinstance(result, (tuple, list)) else (result,)))
        if not overload.in_place:
            for tensor in out:
                storage = tensor.untyped_storage()
                if storage.nbytes() >= KEPT_BYTES:
                    self.trace.storages.append((StorageWeakRef(storage), storage.nbytes(), overload.name))
        macs = multiply_adds(overload.short, args, tensors, result)
        kind = self._kind(overload, tensors, out, macs)
        where = self.stack[-1] if self.stack else OUTSIDE
        self.trace.operators.append(
            Operator(
                overload.name,
                where,
                tuple(_shape(t) for t in out),
                sum(t.numel() * t.element_size() for t in out),
                kind,
                macs,
                tuple(t.dtype for t in tensors if t.dtype.is_floating_point),
                self._weight(where, kind, tensors) if kind not in ("", "sync", "attention") else "",
            )
        )

    def _weight(self, where: str, kind: str, tensors: list[torch.Tensor]) -> str:
        """The parameter that an operator reads; of a product in a linear's own forward, in any case that linear's."""
        found = next((n for t in tensors if (n := self.weights.get(t.untyped_storage().data_ptr()))), "")
        own = f"{where}.weight"
        return own if not found and kind in ("product", "quantized") and own in self.names else found

    def _kind(self, overload: _Overload, tensors: list[torch.Tensor], out: list[torch.Tensor], macs: int) -> str:
        if is_kernel(overload.name, tensors[0].dim() if tensors else 0):
            return "quantized" if overload.name.partition("::")[0] in QUANTIZED_LIBRARIES else "attention"
        if macs:
            return "product"
        if overload.short in SYNCHRONISING:
            return "sync"
        if overload.short not in COPIES or not out or not tensors:
            return ""
        source = tensors[-1] if overload.short in ("copy_", "copy") else tensors[0]
        if source.device != out[0].device:
            self.trace.transfers += 1
        if source.dtype != out[0].dtype and source.dtype.is_floating_point:
            return "cast"
        if source.is_nested or out[0].is_nested:  # rows without their pads, which have no strides
            return "copy"
        spread = any(step == 0 and size > 1 for step, size in zip(source.stride(), source.shape, strict=True))
        more = overload.short in ("repeat", "index_select") and out[0].numel() > source.numel()
        return "spread" if spread or more else "copy"


class _HostReads(TorchFunctionMode):
    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in HOST_READS:
            self.trace.host_reads += 1
        return func(*args, **(kwargs or {}))


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor) and is_traceable_wrapper_subclass(value):
            yield from _tensors(getattr(value, name) for name in value.__tensor_flatten__()[0])
        elif isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape of `tensor`; of nested rows, which have none, the number of elements."""
    return (tensor.numel(),) if tensor.is_nested else tuple(tensor.shape)


def multiply_adds(short: str, args: Any, tensors: list[torch.Tensor], result: Any) -> int:
    """Multiply-adds of a product; 0 for every other operator. Attention counts the scores that a mask will hide; of a
    whole encoder layer in one operator its linear layers, which are no modules of their own, are left out."""
    if short in PRODUCTS:
        first, second = (tensors[1], tensors[2]) if "add" in short else (tensors[0], tensors[1])
        return first.numel() * (second.shape[-1] if second.dim() > 1 else 1)
    if short.startswith("_scaled_dot_product_") and "backward" not in short:
        query, key, value = tensors[:3]
        return query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
    if short == "_transformer_encoder_layer_fwd":
        rows = tensors[0].unbind() if tensors[0].is_nested else tensors[0]
        return sum(2 * len(row) ** 2 * row.shape[-1] for row in rows)
    if "convolution" in short and "backward" not in short:
        return int(result.numel() * tensors[1][0].numel())
    if short in ("gemv_4bit", "gemm_4bit"):
        outputs = next(a for a in args if isinstance(a, (list, tuple)))[0]
        return int(tensors[0].numel() * outputs)
    if short == "qbytes_mm":  # quanto: activations, codes (out, in), scales
        return int(tensors[0].numel() * tensors[1].shape[0])
    if short.startswith("_weight_int4pack_mm"):  # activations, codes, scales and shifts (groups, out, 2)
        return int(tensors[0].numel() * tensors[2].shape[1])
    if short.startswith("int8_") and short.endswith(("_mm", "_matmul")):
        return int(tensors[0].numel() * (tensors[2] if "mixed" in short else tensors[1]).shape[0])
    return 0


def weight_names(model: Any) -> dict[int, str]:
    """Address of a matrix's memory, or of its codes' -> its parameter's name (the first, for tied ones)."""
    found: dict[int, str] = {}
    for path, module in model.named_modules():
        if is_affine(module):
            found[code_storage(module).untyped_storage().data_ptr()] = f"{path}.weight"
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or is_traceable_wrapper_subclass(parameter):
            continue
        found.setdefault(parameter.untyped_storage().data_ptr(), name)
    found.pop(0, None)
    return found


@contextmanager
def tracing(model: Any, implementation: str = "") -> Iterator[Trace]:
    """Trace everything run inside the block; modules are named by their path in `model`.

    flex_attention compiles itself, and a dispatch mode would stop it: for that `implementation` calls and kernels are
    seen, no other operators.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    trace = Trace()
    stack: list[str] = []

    def enter(module: Any, inputs: Any) -> None:
        if id(module) in paths:
            stack.append(paths[id(module)])

    def leave(module: Any, inputs: Any, output: Any) -> None:
        if id(module) not in paths:
            return
        path = stack.pop()
        floats = tuple(t.dtype for t in _tensors(inputs) if t.dtype.is_floating_point)
        first = next(_tensors(output if isinstance(output, (tuple, list)) else (output,)), None)
        trace.calls.append(Call(path, floats, None if first is None else first.dtype, torch.is_grad_enabled()))

    hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
    try:
        if implementation == "flex_attention":
            with kernels_seen(implementation) as seen:
                yield trace
            trace.kernels.update(seen)
        else:
            names = frozenset(name for name, _ in model.named_parameters())
            dispatch = _Dispatch(trace, stack, weight_names(model), names)
            with _HostReads(trace), dispatch, launches(implementation, dispatch.launched):
                yield trace
    finally:
        for hook in hooks:
            hook.remove()
