"""Feeding rows to a model piece by piece through a cache, and comparing what comes back with each row alone.

In: a loaded model, `Rows`, and for each slot of the batch the row that it follows and its pads. Out: the logits of
every position that was fed, each judged by the fp64 reference of its row alone, unpadded and without a cache. What the
cache is (dynamic, static, quantized), in which pieces the tokens come, and what happens to the cache between them
(reorder, crop, select, repeat, reset) is the caller's choice.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from compat.worker import stack_api
from compat.worker.calls import under_test
from compat.worker.dispatch import forced_sdpa_kernel
from compat.worker.group import Group, Loaded
from compat.worker.inputs import Rows
from compat.worker.metrics import Agreement


@dataclass(frozen=True)
class Piece:
    """Logits (positions, features) that a path gave for positions `first`, `first + 1`, ... of row `row`."""

    row: int
    first: int
    logits: torch.Tensor


@dataclass
class Walk:
    """A batch under way: `slots` says which row each slot follows, `pads` how many columns it is padded on the left.

    Encoder-decoder rows are fed on the decoder's side, where nothing is padded; the encoder's rows are padded on the
    right. `masked` and `positioned` say whether an attention mask and position ids are given as `generate` gives them.
    """

    loaded: Loaded
    rows: Rows
    slots: list[int]
    pads: list[int] = field(default_factory=list)
    cache: Any = None
    masked: bool = True
    positioned: bool = True
    room: int = 0
    """Columns of the mask where it is wider than what has been fed: the unused slots of a static cache are masked."""
    columns: int = 0
    pieces: list[Piece] = field(default_factory=list)
    _encoder: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pads = self.pads or [0] * len(self.slots)
        model = self.loaded.model
        self._cache_name = stack_api.cache_argument(model)
        if self.cache is None:
            self.cache = stack_api.first_cache(model)
        self.positioned = self.positioned and stack_api.accepts(model, "position_ids")

    @property
    def _device(self) -> torch.device:
        return self.loaded.group.device

    def _fed(self) -> tuple[tuple[int, ...], ...]:
        return self.rows.decoder or self.rows.tokens

    def step(self, count: int) -> None:
        """Feed the next `count` tokens of every slot. Raises StackError."""
        stop = self.columns + count
        fed = self._fed()
        unfilled = self.loaded.group.source.pad
        ids = [
            [fed[row][c - pad] if c >= pad else unfilled for c in range(self.columns, stop)]
            for row, pad in zip(self.slots, self.pads, strict=True)
        ]
        tokens = torch.tensor(ids, device=self._device)
        arguments = self._encoder_arguments() if self.rows.decoder else self._decoder_arguments(count)
        arguments["decoder_input_ids" if self.rows.decoder else "input_ids"] = tokens
        output = self.loaded.forward(**arguments, **{self._cache_name: self.cache}, use_cache=True)
        self.cache = getattr(output, self._cache_name)
        for slot, (row, pad) in enumerate(zip(self.slots, self.pads, strict=True)):
            first = max(self.columns, pad)
            if first < stop:
                self.pieces.append(Piece(row, first - pad, output.logits[slot, first - self.columns :]))
        self.columns = stop

    def _decoder_arguments(self, count: int) -> dict[str, torch.Tensor]:
        """Mask over all columns so far, positions of the new ones (0 under the pads)."""
        columns = torch.arange(self.columns + count, device=self._device)[None]
        pads = torch.tensor(self.pads, device=self._device)[:, None]
        arguments = {}
        if self.masked:
            mask = (columns >= pads).long()
            unused = max(0, self.room - mask.shape[1])
            arguments["attention_mask"] = torch.nn.functional.pad(mask, (0, unused))
        if self.positioned:
            arguments["position_ids"] = (columns - pads).clamp_min(0)[:, -count:]
        return arguments

    def _encoder_arguments(self) -> dict[str, Any]:
        """The encoder's output and mask. Once a cache holds the cross-attention's keys and values, the hidden states
        are nothing but zeros of the right shape: it is the cache that must count."""
        encoded = [self.rows.tokens[row] for row in self.slots]
        longest = max(len(r) for r in self.rows.tokens)
        mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in encoded], device=self._device)
        kind = self._encoder.get("kind")
        if not self.columns or kind is None:
            ids = [[*r, *[self.loaded.group.source.pad] * (longest - len(r))] for r in encoded]
            output = self._encode(torch.tensor(ids, device=self._device), mask)
            self._encoder = {"kind": type(output), "like": output.last_hidden_state[:1]}
        else:
            like = self._encoder["like"]
            output = kind(last_hidden_state=torch.zeros_like(like).expand(len(encoded), -1, -1))
        return {"encoder_outputs": output, "attention_mask": mask}

    def _encode(self, ids: torch.Tensor, mask: torch.Tensor) -> Any:
        self.loaded.activate()
        kernel = self.loaded.attention["sdpa_kernel"]
        with under_test("forward"), forced_sdpa_kernel(kernel), torch.no_grad():
            return self.loaded.model.get_encoder()(input_ids=ids, attention_mask=mask)

    # -- what happens to the cache between steps -----------------------------------------------------------------

    def reorder(self, order: Sequence[int]) -> None:
        """Slot i goes on with what slot `order[i]` has seen, as beam search does it."""
        with under_test("cache"):
            order_of = torch.tensor(order, device=self._device)
            self.cache = stack_api.reorder_cache(self.loaded.model, self.cache, order_of)
        self._take(order)

    def select(self, indices: Sequence[int]) -> None:
        """Keep these slots only."""
        with under_test("cache"):
            self.cache.batch_select_indices(torch.tensor(indices, device=self._device))
        self._take(indices)

    def repeat(self, times: int) -> None:
        """Every slot `times` times, copies side by side."""
        with under_test("cache"):
            self.cache.batch_repeat_interleave(times)
        self._take([i for i in range(len(self.slots)) for _ in range(times)])

    def crop(self, tokens: int) -> None:
        """Forget the last `tokens` columns."""
        with under_test("cache"):
            self.cache.crop(-tokens)
        self.columns -= tokens

    def reset(self, slots: Sequence[int], pads: Sequence[int]) -> None:
        """Empty the cache and begin again with other rows."""
        with under_test("cache"):
            self.cache = stack_api.emptied_cache(self.loaded.model, self.cache)
        self.slots, self.pads, self.columns = list(slots), list(pads), 0

    def fork(self) -> Walk:
        """A walk that goes on from here with a copy of the cache."""
        with under_test("cache"):
            cache = copy.deepcopy(self.cache)
        return Walk(
            self.loaded,
            self.rows,
            list(self.slots),
            list(self.pads),
            cache,
            self.masked,
            self.positioned,
            self.room,
            self.columns,
            self.pieces,
            dict(self._encoder),
        )

    def follow(self, slot: int, row: int) -> None:
        """Let `slot` go on with the tokens of `row`, which has the same ones so far."""
        seen = self.columns - self.pads[slot]
        fed = self._fed()
        assert fed[row][:seen] == fed[self.slots[slot]][:seen], "the rows part earlier"
        self.slots[slot] = row

    def _take(self, order: Sequence[int]) -> None:
        self.slots = [self.slots[i] for i in order]
        self.pads = [self.pads[i] for i in order]


def no_static_cache(loaded: Loaded) -> str:
    """Why a static cache is not walked, or "".

    flash_attention kernels are handed the unused slots as keys: on one H200 (transformers 5.23, flash-attn 2.8.3) the
    forward is wrong by 500 times eager's error (mistral) or ends in a CUDA error (llama, gemma2, falcon). Nothing
    says so, but it is no defect of the kernel; depth deep shows it.
    """
    if not stack_api.takes_static_cache(loaded.model):
        return "the class does not take a static cache"
    if loaded.attention["implementation"].startswith("flash") and not loaded.group.spec.at_least("deep"):
        return "flash kernels attend to the unused slots of a static cache: asked at depth deep"
    return ""


def in_turns(*walks: Iterator[None]) -> None:
    """Run several walks step by step in turns, each to its end: caches must not share anything."""
    left = list(walks)
    while left:
        left = [walk for walk in left if next(walk, left) is None]


def compare(group: Group, rows: Rows, pieces: Iterable[Piece]) -> Agreement:
    """The figures of all `pieces` of `rows` together (see Yardstick). Raises NoYardstick."""
    starts = [0]
    for fed in rows.decoder or rows.tokens:
        starts.append(starts[-1] + len(fed))
    chosen = list(pieces)
    ranges = [torch.arange(len(p.logits)) + starts[p.row] + p.first for p in chosen]
    at = torch.cat(ranges).to(group.device) if ranges else torch.zeros(0, dtype=torch.long, device=group.device)
    width = chosen[0].logits.shape[-1] if chosen else group.source.vocab
    o = torch.cat([p.logits for p in chosen]) if chosen else torch.zeros(0, width, device=group.device)
    return group.yardstick(rows, cached=False).compare(o, at)


# -- what a cache holds ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """Bytes of keys and values in a cache, and what they would be by arithmetic."""

    bytes: int
    """Of memory that it keeps alive."""
    expected: int
    tensors: int
    other_dtype: int
    """Tensors that are not of the cell's dtype."""


def held(group: Group, cache: Any, batch: int, columns: int) -> Held:
    """What `cache` holds for `batch` rows of `columns` tokens, against 2 x key/value heads x head_dim x bytes x tokens
    for each layer with attention, windows holding no more than themselves.

    Layers without keys and values (recurrent ones) count nothing on either side.
    """
    config = group.master.config.get_text_config(decoder=True)
    layers = stack_api.cache_tensors(stack_api.decoder_cache(cache))
    tensors = [t for layer in layers for t in layer]
    expected = 0
    for layer, window in zip(layers, windows(config, len(layers)), strict=True):
        if layer:
            latent = layer[0].shape[1] == 1
            expected += batch * min(columns, window or columns) * _bytes_a_token(config, group.dtype, latent)
    return Held(
        storage_bytes(tensors),
        expected,
        len(tensors),
        sum(t.dtype != group.dtype for t in tensors),
    )


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of memory that `tensors` keep alive: of their whole storages, each counted once. A view keeps all that it
    is a part of."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def windows(config: Any, layers: int) -> list[int | None]:
    """The attention window of each layer, None where a token sees all before it. From the config's own words."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding" if window else "full"] * layers
    found = [window if "sliding" in kind else None for kind in kinds]
    return (found + [None] * layers)[:layers]


def _bytes_a_token(config: Any, dtype: torch.dtype, latent: bool) -> int:
    """Bytes of one token's keys and values in one layer; 0 where the config does not say. Multi-head latent attention
    keeps its compressed vector and one rotary key (`latent`, one head) or keys and values of every head."""
    queries = _first(config, "num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "num_heads")
    heads = 1 if getattr(config, "multi_query", False) else None
    if getattr(config, "new_decoder_architecture", False):
        heads = None  # Falcon: the newer layout has key/value heads whatever `multi_query` says
    heads = heads or _first(config, "num_key_value_heads", "num_kv_heads") or queries
    hidden = _first(config, "hidden_size", "n_embd", "d_model")
    if not (heads and queries and hidden):
        return 0
    if getattr(config, "kv_lora_rank", None):
        every = queries * (config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim)
        return int((config.kv_lora_rank + config.qk_rope_head_dim if latent else every) * dtype.itemsize)
    head_dim = _first(config, "head_dim", "d_kv") or hidden // queries
    return 2 * heads * head_dim * dtype.itemsize


def _first(config: Any, *names: str) -> int | None:
    """The first of several spellings that the config has a value for."""
    return next((int(value) for name in names if (value := getattr(config, name, None))), None)
