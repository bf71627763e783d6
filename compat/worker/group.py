"""A load group: one model, dtype and quantization on one device, shared by every attention backend and check.

In: the group's spec as the parent sends it. Out: loaded models, the fp64 reference and the eager yardstick, each made
on first use and kept while the group lasts. One load serves all backends where `set_attn_implementation` takes effect;
where it does not, the model is loaded again, and both facts are recorded.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers

from compat import device as machine
from compat.axes.mode import MODES
from compat.worker import (
    bettertransformer,
    checkpoints,
    dequantize,
    modes,
    onnx_runtime,
    probes,
    quantizers,
    shapes,
    stack_api,
)
from compat.worker.affine import Affine
from compat.worker.calls import StackError, Unavailable, under_test
from compat.worker.dequantize import Stored
from compat.worker.dispatch import forced_sdpa_kernel, synchronize
from compat.worker.inputs import CLASSIFYING, Rows, Source, output_of, single_rows, unpadded
from compat.worker.load import (
    DTYPES,
    from_pretrained,
    held_bytes_growth,
    quantizable_parameters,
    quantized_modules,
    weights_bytes,
)
from compat.worker.metrics import Yardstick
from compat.worker.process_settings import process_settings
from compat.worker.reference import Reference
from compat.worker.spec import GroupSpec

LARGE_PARAMETERS = 20_000_000
"""Above this many parameters a CPU forward gains from more than one thread; below, it loses."""


class NoYardstick(Exception):
    """Eager attention could not be loaded or run, so nothing can be judged against it; the message says why."""


@dataclass
class Loaded:
    """One attention backend of a group, ready to run."""

    group: Group
    attention: dict[str, Any]
    model: Any
    how: str
    """`loaded`, `switched`, `reloaded` (switching was asked for and had no effect) or `converted` (loaded by itself
    and converted), `keyword` (loaded by itself, asked for by an older keyword) or `exported` (to a graph of ONNX
    Runtime's)."""
    facts: dict[str, Any] = field(default_factory=dict)
    load_seconds: float | None = None
    call: Any = None
    """What a forward calls in place of the model, in a mode that is another way to the same function."""
    way: Any = None
    """What that mode keeps of its own (compat.worker.modes)."""

    @property
    def own_yardstick(self) -> bool:
        """Whether this is what the other backends are judged against."""
        return self.attention["name"] == "eager" and self.way is None

    @property
    def alone(self) -> bool:
        """Whether it shares its model with no other backend."""
        return self.how in ("reloaded", "converted", "exported", "keyword")

    def activate(self) -> None:
        """Make sure that a model shared with other backends computes with this one."""
        implementation = self.attention["implementation"]
        if stack_api.effective_attention(self.model) != implementation and not self.alone:
            with under_test("switch"):
                stack_api.switch_attention(self.model, implementation)

    def __call__(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Forward without gradients; the judged output, shape (batch, positions, features)."""
        return output_of(self.forward(**inputs), self.group.task)

    def forward(self, **inputs: Any) -> Any:
        """The model's own output object. Raises StackError(phase="forward")."""
        self.activate()
        with under_test("forward"), forced_sdpa_kernel(self.attention["sdpa_kernel"]), torch.no_grad():
            output = (self.call or self.model)(**inputs)
            synchronize(self.group.device)
        return output

    def generate(self, **arguments: Any) -> torch.Tensor:
        """`model.generate`. Raises StackError(phase="generate")."""
        self.activate()
        with under_test("generate"), forced_sdpa_kernel(self.attention["sdpa_kernel"]), torch.no_grad():
            output: torch.Tensor = self.model.generate(**arguments)
            synchronize(self.group.device)
        return output


EAGER = {"name": "eager", "implementation": "eager", "sdpa_kernel": None, "kinds": ["eager"]}


class Masters:
    """The fp32 model of the last checkpoint, shared by the groups of one model."""

    def __init__(self) -> None:
        self._key = ""
        self._model: Any = None

    def get(self, checkpoint: checkpoints.Checkpoint, task: str) -> Any:
        """The checkpoint in fp32 with eager attention on the CPU; a shape on the meta device. Raises StackError."""
        if self._key != checkpoint.location:
            self._model = None
            with under_test("load"):
                shape, asked = checkpoint.config is not None, (torch.float32, "eager", torch.device("cpu"))
                self._model = shapes.on_meta(checkpoint, task) if shape else from_pretrained(checkpoint, task, *asked)
            self._key = checkpoint.location
        return self._model


class Group:
    """See the module's docstring."""

    def __init__(self, spec: GroupSpec, masters: Masters) -> None:
        self.spec = spec
        self.row = spec.row
        self.task: str = spec.row["task"]
        self.dtype = DTYPES[spec.dtype]
        self.mode = MODES[spec.mode]
        self.device = torch.device(spec.device)
        self._masters = masters
        self._loaded: dict[str, Loaded] = {}
        self._ways: dict[str, Loaded] = {}
        self.changes: Any = None
        """What a mode that makes another function of the model did to its weights (compat.worker.modes)."""
        self._reference_outputs: dict[str, list[torch.Tensor]] = {}
        self._eager_outputs: dict[str, list[torch.Tensor]] = {}
        self._cacheless_outputs: dict[str, list[torch.Tensor]] = {}
        self._yardsticks: dict[str, Yardstick] = {}
        self._dequantized: dict[str, torch.Tensor] = {}
        self._stored: dict[int, dict[str, Stored | Affine]] = {}
        self._bytes_at_load: dict[int, int] = {}
        self._growth: dict[int, int] = {}
        self.left_changed: set[str] = set()
        """What loading changed that holds for the whole process."""
        self.quantized: dict[str, int] = {}
        self.kept: dict[str, Any] = {}
        """What checks worked out once for all attention backends."""

    # -- what is loaded ------------------------------------------------------------------------------------------

    @property
    def shape(self) -> bool:
        """Whether the weights are random ones of full size: nothing can be said of what the model computes."""
        return bool(self.row["source"] == "shape")

    @cached_property
    def checkpoint(self) -> checkpoints.Checkpoint:
        if self.spec.checkpoint:
            return checkpoints.Checkpoint(self.spec.checkpoint)
        return checkpoints.resolve(self.row, Path(self.spec.cache))

    @property
    def master(self) -> Any:
        """The checkpoint in fp32 on the CPU; of a shape its configuration, names and sizes, on the meta device."""
        return self._masters.get(self.checkpoint, self.task)

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer; left padding, pad token set. Not for vision models."""
        with under_test("tokenizer"):
            if self.shape:
                return probes.word_tokenizer(int(self.master.config.get_text_config().vocab_size))
            # a probe's tokenizer is none of its family's, which AutoTokenizer would take for some families
            probe = self.row["source"] == "probe"
            loader = transformers.PreTrainedTokenizerFast if probe else transformers.AutoTokenizer
            tokenizer = loader.from_pretrained(self.checkpoint.location, **self.checkpoint.arguments)
            if probe and not stack_api.accepts(self.master, "token_type_ids"):  # which this tokenizer would make
                tokenizer.model_input_names = ["input_ids", "attention_mask"]
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @cached_property
    def source(self) -> Source:
        """Draws inputs."""
        text = self.row["source"] not in ("probe", "shape") and self.task not in CLASSIFYING
        return Source(self.row, self.master.config, self.tokenizer if text else None)

    @cached_property
    def quantizable(self) -> dict[str, int]:
        return quantizable_parameters(self.master, quantizers.left_alone(self.spec.quantization))

    def loaded(self, attention: dict[str, Any]) -> Loaded:
        """The model with `attention`, in the group's mode. Raises StackError (phase `load` or `switch`, or that of the
        mode), Unavailable."""
        if self.mode.kind != "how":
            return self.plain(attention)
        name = attention["name"]
        if name not in self._ways:
            self._ways[name] = modes.way(self, attention)
        return self._ways[name]

    def plain(self, attention: dict[str, Any]) -> Loaded:
        """The model with `attention`, called as it was loaded: of two ways to one function the ordinary one. Raises
        StackError (phase `load` or `switch`), Unavailable."""
        name = attention["name"]
        if name not in self._loaded:
            self._loaded[name] = self._load(attention)
        return self._loaded[name]

    def _load(self, attention: dict[str, Any]) -> Loaded:
        implementation = attention["implementation"]
        if attention["name"] != "eager" and not self._loaded:
            # eager always comes first, so that switching is asked for whichever cells were selected; where it does not
            # load, the backend is loaded directly
            with contextlib.suppress(StackError):
                self.plain(EAGER)
        if attention.get("convert"):
            return self._from_checkpoint(attention, "converted", {})
        if attention.get("provider"):
            return self._exported(attention)
        if attention.get("keyword"):
            return self._from_checkpoint(attention, "keyword", {})
        base = next((x.model for x in self._loaded.values() if not x.alone), None)
        if base is None:
            return self._from_checkpoint(attention, "loaded", {})
        others = (x for x in self._loaded.values() if x.how not in ("converted", "exported", "keyword"))
        twin = next((x for x in others if x.attention["implementation"] == implementation), None)
        if twin is not None:
            return Loaded(self, attention, twin.model, twin.how, dict(twin.facts))
        facts: dict[str, Any] = {}
        if not stack_api.knows_switching():
            facts["switch"] = "this version of transformers has no set_attn_implementation"
            return self._from_checkpoint(attention, "reloaded", facts)
        try:
            with under_test("switch"):
                effective = stack_api.switch_attention(base, implementation)
        except StackError as refused:  # loading may still accept what switching refuses
            facts["switch"] = f"raised {type(refused.original).__name__}: {refused.original}"
        else:
            if effective:
                return Loaded(self, attention, base, "switched", {"switch": "took effect"})
            stays = stack_api.effective_attention(base)
            facts["switch"] = f"ignored: asked for {implementation}, stayed {stays}"
        return self._from_checkpoint(attention, "reloaded", facts)

    def _from_checkpoint(
        self, attention: dict[str, Any], how: str, facts: dict[str, Any], placement: dict[str, Any] | None = None
    ) -> Loaded:
        facts = {**facts, **stack_api.mended(self.spec.quantization["library"])}
        started = time.perf_counter()
        model = self.untouched(attention, placement)
        if attention.get("convert"):
            with under_test("convert"):
                model = bettertransformer.convert(model)
            facts = {**facts, "converted": bettertransformer.replaced_modules(model)}
        seconds = time.perf_counter() - started
        if self.mode.kind == "what":
            facts = facts | modes.change(self, model, self._note_quantized)
        else:
            self._note_quantized(model)
            self._bytes_at_load[id(model)] = weights_bytes(model)
        return Loaded(self, attention, model, how, facts, seconds)

    def untouched(self, attention: dict[str, Any], placement: dict[str, Any] | None = None) -> Any:
        """The model as it comes from the checkpoint, whatever the mode. Raises StackError(phase="load")."""
        asked, scheme = (self.dtype, attention["implementation"], self.device), self.spec.quantization
        if attention.get("keyword"):
            if self.shape:
                raise Unavailable(f"a shape is not loaded, so that {attention['keyword']} would not be read")
            placement = {**(placement or {}), "attn_implementation": None, attention["keyword"]: True}
        empty = self.master if self.shape else None
        checkpoint = self.checkpoint  # may have to be made, which is not the library's doing
        before = process_settings() | {"seed": torch.initial_seed()}
        with stack_api.default_dtype_kept(), under_test("load"):
            if self.shape:
                model = shapes.from_pretrained(checkpoint, empty, *asked, scheme)
            else:
                quantized = scheme if scheme["library"] else None
                model = from_pretrained(checkpoint, self.task, *asked, quantized, placement)
            synchronize(self.device)
            now = process_settings() | {"seed": torch.initial_seed()}
            self.left_changed |= {name for name, value in now.items() if value != before[name]}
        return model

    @property
    def missed_calls(self) -> int:
        """Calls, up to now, that a mode which is another way to the same function did not take that way."""
        return sum(int(x.way.missed) for x in self._ways.values())

    def graph(self, attention: dict[str, Any]) -> onnx_runtime.Asked:
        """What is asked of ONNX Runtime for `attention`."""
        asked = (self.checkpoint, self.task, self.dtype, str(attention["provider"]))
        return onnx_runtime.Asked(*asked, Path(self.spec.cache), self.master)

    def _exported(self, attention: dict[str, Any]) -> Loaded:
        started = time.perf_counter()
        with stack_api.default_dtype_kept():
            model = onnx_runtime.load(self.graph(attention))
        return Loaded(self, attention, model, "exported", {"graph": True}, time.perf_counter() - started)

    def fresh(self, attention: dict[str, Any], placement: dict[str, Any] | None = None) -> Loaded:
        """Load `attention` once more, for what must not meet a model that others have run; not kept. `placement`:
        further keywords of `from_pretrained`, which then places the weights. Raises StackError(phase="load")."""
        if attention.get("provider"):
            return self._exported(attention)
        return self._from_checkpoint(attention, "reloaded", {}, placement)

    def reload(self, attention: dict[str, Any], facts: dict[str, Any]) -> Loaded:
        """Load `attention` from the checkpoint although switching said that it took effect; replaces what was
        loaded."""
        self._loaded[attention["name"]] = self._from_checkpoint(attention, "reloaded", facts)
        return self._loaded[attention["name"]]

    def _note_quantized(self, model: Any) -> None:
        """Remember what was quantized, and the values of the first model, before a first forward repacks them."""
        with under_test("quantized state"):
            held = {path: dequantize.stored(module) for path, module in quantized_modules(model).items()}
            self._growth[id(model)] = held_bytes_growth(held)
            if not self.shape:  # of a large model the first codes would be kept beside the repacked ones
                self._stored[id(model)] = held
            if self.quantized:
                return
            for path, own in held.items():
                if not self.shape:
                    self._dequantized[path] = dequantize.dequantize(own).cpu()
                self.quantized[f"{path}.weight"] = self.master.get_submodule(path).weight.numel()

    def stored(self, model: Any) -> dict[str, Stored | Affine]:
        """Module path -> what each quantized linear of `model` (loaded by this group) held when it was loaded."""
        return self._stored[id(model)]

    def bytes_growth(self, model: Any) -> int:
        """Bytes that the scheme may hold more after the first forward of `model` (loaded by this group) than before."""
        return self._growth[id(model)]

    def bytes_at_load(self, model: Any) -> int:
        """What `model` (loaded by this group) held before its first forward."""
        return self._bytes_at_load[id(model)]

    def dequantized(self, path: str) -> torch.Tensor:
        """The weight of a quantized linear by our own arithmetic, fp32 (out_features, in_features), on the CPU."""
        return self._dequantized[path]

    def master_weight(self, path: str) -> torch.Tensor:
        """The checkpoint's weight of a linear, fp32 (out_features, in_features), on the CPU."""
        own = self.master.get_submodule(path)
        weight: torch.Tensor = own.weight.detach()
        # Conv1D keeps (in, out); the quantized linear that replaces it keeps (out, in)
        return weight.t().contiguous() if type(own).__name__ == "Conv1D" else weight

    @property
    def eager(self) -> Loaded:
        """The yardstick. Raises NoYardstick when eager attention cannot be loaded."""
        try:
            return self.plain(EAGER)
        except StackError as error:
            raise NoYardstick(f"eager attention did not load: {error}") from error

    # -- reference and yardstick ---------------------------------------------------------------------------------

    @cached_property
    def reference(self) -> Reference:
        """fp64 with this group's weights: as rounded to the dtype, and as dequantized."""
        if (self.spec.quantization["library"] or self.mode.kind == "what") and not self._loaded:
            _ = self.eager  # loading notes the dequantized weights, and what the mode made of them
        reference = Reference(self.master, self.device, self.reference_dtype(self.master))
        reference.round_weights(self.dtype)
        for path, weight in self._dequantized.items():
            transposed = type(self.master.get_submodule(path)).__name__ == "Conv1D"
            reference.set_weight(path, weight.t() if transposed else weight)
        if self.changes is not None:
            self.changes.to_reference(reference)
        return reference

    def reference_dtype(self, model: Any) -> torch.dtype:
        """float64, or float32 where fp64 weights of `model` would take more than 40% of the device's memory."""
        needed = 8 * sum(p.numel() for p in model.parameters())
        if self.device.type == "cuda":
            available = torch.cuda.get_device_properties(self.device).total_memory
        else:
            available = machine.memory_bytes("cpu") or 0
        return torch.float64 if needed < 0.4 * available else torch.float32

    def reference_outputs(self, rows: Rows) -> list[torch.Tensor]:
        """Per row (positions, features) fp64 of unpadded forwards; kept."""
        return self._outputs(rows, self._reference_outputs, self._reference_forward, torch.float64)

    def master_outputs(self, rows: Rows) -> list[torch.Tensor]:
        """Per row (positions, features) of the checkpoint in fp32 on the CPU, unpadded. Raises StackError."""
        with under_test("forward"), torch.no_grad():
            output = self.master(**unpadded(rows, torch.device("cpu"), torch.float32))
            return list(output_of(output, self.task))

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """What `make` returns, made once for all backends and checks of the group."""
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def eager_outputs(self, rows: Rows, cached: bool = True) -> list[torch.Tensor]:
        """Per row (positions, features) of unpadded eager forwards in the cell's dtype; kept. A plain forward of a
        causal model fills a cache; not `cached` asks for none. Raises NoYardstick."""
        eager = self.eager
        try:
            if cached or not stack_api.accepts(eager.model, "use_cache"):
                return self._outputs(rows, self._eager_outputs, eager, self.dtype)
            run = functools.partial(eager, use_cache=False)
            return self._outputs(rows, self._cacheless_outputs, run, self.dtype)
        except StackError as error:
            raise NoYardstick(f"eager attention did not run: {error}") from error

    def yardstick(self, rows: Rows, cached: bool = True) -> Yardstick:
        """What candidates on `rows` are compared with; kept. For `cached` see eager_outputs. Raises NoYardstick."""
        key = rows.key() if cached else f"{rows.key()} cacheless"
        if key not in self._yardsticks:
            r, e = torch.cat(self.reference_outputs(rows)), torch.cat(self.eager_outputs(rows, cached))
            self._yardsticks[key] = Yardstick(r, e, self.dtype, logits=self.task != "feature-extraction")
        return self._yardsticks[key]

    def _reference_forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        with under_test("reference"):
            return output_of(self.reference(**inputs), self.task)

    def _outputs(
        self, rows: Rows, kept: dict[str, list[torch.Tensor]], run: Any, dtype: torch.dtype
    ) -> list[torch.Tensor]:
        key = rows.key()
        if key not in kept:
            if rows.floating or len({len(r) for r in rows.tokens}) == 1:
                # images and embeddings are rounded to the cell's dtype first: the reference sees the same input
                batch = run(**unpadded(rows, self.device, self.dtype if rows.floating else dtype))
                kept[key] = list(batch)
            else:
                kept[key] = [self._outputs(one, kept, run, dtype)[0] for one in single_rows(rows)]
        return kept[key]

    @contextlib.contextmanager
    def forgetting(self) -> Iterator[None]:
        """What is computed of rows inside the block is not kept afterwards: for inputs that are tried once."""
        kept: tuple[dict[str, Any], ...] = (
            self._reference_outputs,
            self._eager_outputs,
            self._cacheless_outputs,
            self._yardsticks,
        )
        before = [set(outputs) for outputs in kept]
        try:
            yield
        finally:
            for outputs, known in zip(kept, before, strict=True):
                for key in set(outputs) - known:
                    del outputs[key]

    def close(self) -> None:
        """Let go of everything on the device."""
        self._loaded.clear()
        for way in self._ways.values():
            way.way.close()
        self._ways.clear()
        self.changes = None
        self._reference_outputs.clear()
        self._eager_outputs.clear()
        self._cacheless_outputs.clear()
        self._yardsticks.clear()
        self._dequantized.clear()
        for by_model in (self._stored, self._bytes_at_load, self._growth):
            by_model.clear()
        self.kept.clear()
        self.__dict__.pop("reference", None)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
