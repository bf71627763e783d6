"""The paths on which a user's input reaches a model's kernels, each walked once and traced.

In: a backend of a group. Out: a `Walk` a path: what ran, and what its own arithmetic needs (rows, positions, cached
positions). `dispatch` and `work` both read them, so they are walked once a backend and kept in the group.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from compat.worker import stack_api
from compat.worker.announcements import announcements
from compat.worker.calls import StackError, under_test
from compat.worker.dispatch import forced_sdpa_kernel
from compat.worker.group import Group, Loaded
from compat.worker.inputs import Rows, output_of, padded, unpadded
from compat.worker.trace import Trace, tracing

LENGTH = 41
"""Tokens of a row: a prime that no probe has as a dimension, so that a tensor of 41 x 41 is scores or a mask; more than
the probes' windows."""

ROWS = 2

CHUNK = 3
"""Tokens of a chunk on a cache: fewer than any dimension, more than one."""

NEW_TOKENS = {"quick": 2, "standard": 4, "deep": 4}
"""Tokens that `generate` adds, by depth: the prompt, and steps from the cache. What clean runs counted, at depth
standard, was counted over as many steps."""

BEAMS = 2

PADS = (0, 7)
"""Pads of the rows of a padded batch."""

NO_CACHE = "the forward returned no cache"
"""Why a path is absent that begins on one."""

CACHING_TASKS = ("causal-lm", "seq2seq-lm", "image-text-to-text")
"""Tasks whose models decode from a cache."""

PADDED_TASKS = ("causal-lm", "seq2seq-lm", "masked-lm", "feature-extraction")
"""Tasks whose rows are nothing but tokens, so that a batch of them is padded."""


@dataclass
class Walk:
    """One path, walked once."""

    name: str
    trace: Trace
    rows: int
    steps: tuple[tuple[int, int], ...]
    """Of each forward by the path's own arithmetic: new positions of a row, positions cached before it. In an
    encoder-decoder these are the decoder's."""
    source: int = 0
    """Encoder positions of a row that the path computes; 0 where the encoder does not run."""
    source_keys: int = 0
    """Encoder positions that cross-attention reads."""
    beams: int = 1
    """Copies of a row that the decoder works on."""
    last_only: bool = False
    """Whether only the last position of each step needs logits."""
    outliving: dict[str, int] = field(default_factory=dict)
    """Operator -> bytes that it allocated and that were still held when the results had been let go."""


@dataclass
class Walks:
    """Every path that this family and backend have."""

    walks: dict[str, Walk] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    """Path -> why it could not be walked, in the stack's words."""
    attentions: dict[str, Any] = field(default_factory=dict)
    """What the library did when asked to return attention weights."""
    gradients_left_off: int = 0
    """Calls of `generate` after which autograd records nothing, although it did before."""


def refused(why: str) -> bool:
    """Whether a path is absent because the stack says that it has none: no cache came back, a kernel that was forced
    does not take the call, something is not supported. Other exceptions are nobody's refusal."""
    return why == NO_CACHE or any(word in why for word in ("No available kernel", "support", "not implemented"))


def walked(group: Group, attention: dict[str, Any]) -> Walks:
    """The walks of one backend; kept. Raises StackError when the first forward raises."""
    key = f"walks {attention['name']}"
    if key not in group.kept:
        group.kept[key] = _Walker(group, group.loaded(attention)).all()
    found: Walks = group.kept[key]
    return found


class _Walker:
    def __init__(self, group: Group, loaded: Loaded) -> None:
        self.group = group
        self.loaded = loaded
        self.model = loaded.model
        self.depth = group.spec.depth
        self.compiled = loaded.attention["implementation"] == "flex_attention"
        self.found = Walks()
        self.sources = group.source.rows(9000 + 1000 * group.spec.seed, [LENGTH] * ROWS)
        self.inputs = unpadded(self.sources, group.device, group.dtype)
        self.seq2seq = "decoder_input_ids" in self.inputs
        self.caching = group.task in CACHING_TASKS

    def all(self) -> Walks:
        """Walk them. The one with `output_attentions` comes before most: what it switches must not stay so."""
        self.loaded.activate()
        if self.group.spec.quantization["library"]:
            self._forward(**self.inputs)  # kernels repack quantized weights in their first call
        self._walk("plain", lambda: self._forward(**self.inputs), required=True)
        if self.group.spec.at_least("standard") and not self.compiled and self.loaded.attention["name"] != "eager":
            self._attentions()
        if self.caching:
            self._cached("prefill", "decode", "chunk", self.inputs)
            if self.group.task in PADDED_TASKS:
                self._cached("padded_prefill", "padded_decode", "", self._padded())
            if not self.compiled:
                self._generate("generate")
        elif self.group.task in PADDED_TASKS:
            self._walk("padded", lambda: self._forward(**self._padded()))
        if self.group.spec.at_least("standard") and not self.compiled:
            if self.caching:
                self._generate("beam_generate", num_beams=BEAMS)
            if not self.group.spec.quantization["library"]:
                self._train()
        if self.group.spec.at_least("deep") and self.caching and not self.compiled:
            self._generate("sampled_generate", do_sample=True, top_k=20)
            self._generate("static_generate", **stack_api.static_generation())
        self._look_for_leftovers()
        return self.found

    def _look_for_leftovers(self) -> None:
        walks = self.found.walks.values()
        if any(walk.trace.outliving() for walk in walks):  # a reference cycle may hold it: worth a collection only now
            gc.collect()
        for walk in walks:
            walk.outliving = walk.trace.outliving()
            walk.trace.storages.clear()

    def _walk(self, name: str, call: Callable[[], Any], required: bool = False, **own: Any) -> Any:
        """Trace `call` as path `name`; None (and a reason) where the stack raises. The backend is not chosen anew: what
        one path leaves switched, the next one shows."""
        try:
            with tracing(self.model, self.loaded.attention["implementation"]) as trace:
                result = call()
        except StackError as error:
            if required:
                raise
            self.found.absent[name] = f"{type(error.original).__name__}: {str(error.original)[:200]}"
            return None
        tokens = self.inputs.get("decoder_input_ids", self.inputs.get("input_ids"))
        shape: dict[str, Any] = {"steps": ((LENGTH if tokens is None else tokens.shape[1], 0),)}
        if self.seq2seq:
            shape |= {"source": LENGTH, "source_keys": LENGTH}
        self.found.walks[name] = Walk(name, trace, ROWS, **(shape | own))
        return result

    def _forward(self, **inputs: Any) -> Any:
        with under_test("forward"), forced_sdpa_kernel(self.loaded.attention["sdpa_kernel"]), torch.no_grad():
            return self.model(**inputs)

    def _padded(self) -> dict[str, torch.Tensor]:
        tokens = tuple(t[: len(t) - pads] for t, pads in zip(self.sources.tokens, PADS, strict=True))
        rows = Rows(tokens=tokens, decoder=self.sources.decoder)
        side = "left" if self.caching and not self.seq2seq else "right"
        return padded(rows, side, self.model, self.group.device, self.group.source.pad).arguments

    def _attentions(self) -> None:
        """Ask for attention weights: which backends cannot return, and what is said about it."""
        with announcements() as said:
            output = self._walk("attentions", lambda: self._forward(**self.inputs, output_attentions=True))
        if output is None:
            return
        names = ("attentions", "decoder_attentions", "encoder_attentions", "cross_attentions")
        returned = sum(1 for n in names for t in (getattr(output, n, None) or ()) if isinstance(t, torch.Tensor))
        about = [line for line in said if "attention" in line.lower()]
        self.found.attentions = {"returned": returned, "announced": about[:1]}

    def _cached(self, prefill: str, decode: str, chunk: str, inputs: dict[str, torch.Tensor]) -> None:
        """A prefill and what follows it on its cache."""
        output = self._walk(prefill, lambda: self._forward(**inputs, use_cache=True))
        if output is None:
            return
        cache = getattr(output, stack_api.cache_argument(self.model), None)
        if cache is None:
            self.found.absent[decode] = NO_CACHE
            return
        own = inputs["decoder_input_ids" if self.seq2seq else "input_ids"]
        past = own.shape[1]
        for name, count in ((decode, 1), (chunk, CHUNK)):
            if name and (name != chunk or self.group.spec.at_least("standard")):
                step = self._step(inputs, output, cache, own[:, :count], past)
                self._walk(name, partial(self._forward, **step, use_cache=True), steps=((count, past),), source=0)
                past += count

    def _step(
        self, inputs: dict[str, torch.Tensor], output: Any, cache: Any, tokens: torch.Tensor, past: int
    ) -> dict[str, Any]:
        """Arguments of a forward of `tokens` on a cache of `past` positions, as `generate` makes them."""
        step: dict[str, Any] = {stack_api.cache_argument(self.model): cache}
        mask = inputs.get("attention_mask")
        if self.seq2seq:
            step |= {"decoder_input_ids": tokens, "encoder_outputs": (output.encoder_last_hidden_state,)}
            return step if mask is None else {**step, "attention_mask": mask}
        step["input_ids"] = tokens
        if mask is not None:
            step["attention_mask"] = torch.cat([mask, mask.new_ones(ROWS, tokens.shape[1] + past - mask.shape[1])], 1)
        if "position_ids" in inputs:
            step["position_ids"] = inputs["position_ids"][:, -1:] + 1 + torch.arange(tokens.shape[1]).to(tokens.device)
        return step

    def _generate(self, name: str, **more: Any) -> None:
        """`generate` as a user calls it, with gradients enabled around it: it has to switch them off itself."""
        count = NEW_TOKENS[self.depth] if name == "generate" else 2
        arguments = {
            **{k: v for k, v in self.inputs.items() if k != "decoder_input_ids"},
            "attention_mask": torch.ones_like(self.inputs["input_ids"]),
            "max_new_tokens": count,
            "min_new_tokens": count,
            "do_sample": False,
            "use_cache": True,
            "pad_token_id": self.group.source.pad,
            **more,
        }

        def call() -> Any:
            with under_test("generate"), forced_sdpa_kernel(self.loaded.attention["sdpa_kernel"]), torch.enable_grad():
                output = self.model.generate(**arguments)
                self.found.gradients_left_off += not torch.is_grad_enabled()
                return output

        first = 1 if self.seq2seq else self.inputs["input_ids"].shape[1]
        steps = ((first, 0), *((1, first + i) for i in range(count - 1)))
        self._walk(name, call, steps=steps, last_only=True, beams=more.get("num_beams", 1))

    def _train(self) -> None:
        """A forward and a backward, without dropout; the gradients are dropped."""

        def call() -> None:
            with under_test("backward"), forced_sdpa_kernel(self.loaded.attention["sdpa_kernel"]), torch.enable_grad():
                inputs = {**self.inputs, **({"use_cache": False} if self.caching else {})}
                output_of(self.model(**inputs), self.group.task).float().square().mean().backward()

        try:
            self._walk("train", call)
        finally:
            self.model.zero_grad(set_to_none=True)
