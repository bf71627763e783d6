"""cache: does decoding from a cache give what the whole sequence gives?

Rows of tokens are fed piece by piece, on the paths that users take, and every logit that comes back is judged against
the fp64 reference of its row alone, unpadded and without a cache; eager's error on the whole rows is the yardstick.
- batch: left-padded rows, mask and positions as `generate` gives them: prefill, single tokens, beams reordered (with
  repeats), a chunk across the window, rows selected and repeated. The model makes the cache. In turns with it:
- beside: other rows with other pads in the same shapes; after a reset a prefill in one piece beyond the window.
- single: one row without mask and positions: chunks, single tokens, a cache cropped, copied and
  gone on with on both sides. The user makes the cache.
- static: a padded batch in a cache of fixed size with room to spare, then other rows in the same cache after a reset,
  a prefill beyond the window, slots that change places.
- short: one row that begins with two tokens.
- long: one row, prefilled in two chunks, that ends past position 256.
- offloaded: a model whose weights accelerate fetches for each forward; a cache that waits in the host's memory.
- quantized: a cache of 8-bit floats, against the same rounding of our own.
- generate: two turns of a chat in a padded batch, the first prefilled in chunks; prompt lookup and an assistant, whose
  drafts are partly rejected; a static cache. Logits and tokens are judged alike.
Encoder-decoder models walk the same paths on the decoder's side, with padded encoder rows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from compat.worker import caches, continuations, quantized_cache, stack_api
from compat.worker.caches import Walk
from compat.worker.calls import under_test
from compat.worker.checks.agreement import record
from compat.worker.continuations import Judged
from compat.worker.group import Group, Loaded
from compat.worker.inputs import DECODER_TOKENS, Rows
from compat.worker.metrics import Agreement
from compat.worker.quantized_cache import Compared
from compat.worker.report import Report

SEED = 800
"""Added to 1000 times the run's seed."""


@dataclass(frozen=True)
class Shape:
    """How long the pieces of the walks are, in tokens."""

    prefill: int
    decode: int
    chunk: int
    more: int
    """A last chunk of the batch."""
    first: int
    """The single row's prefill; its next chunk crosses what the prefill left of the window."""
    second: int
    far: int
    """The single row's last chunk: past two windows."""
    keep: int
    """Tokens that a crop leaves."""
    pads: tuple[int, int, int] = (0, 5, 13)
    """Of the batch's rows; each row has a token in the prefill."""
    other_pads: tuple[int, int, int] = (3, 11, 0)
    static_pads: tuple[tuple[int, int], tuple[int, int]] = ((9, 0), (0, 4))
    over: int = 48
    """A prefill in one piece, longer than the probes' window, whose length blocks of 16 divide."""

    @property
    def parts(self) -> int:
        """Tokens that a row has before its copy goes another way."""
        return self.prefill + self.decode

    @property
    def length(self) -> int:
        """Tokens a row."""
        return max(self.parts + self.chunk + self.more + 5, self.first + self.second + self.far + 2)


PROBE = Shape(prefill=30, decode=5, chunk=13, more=14, first=20, second=15, far=30, keep=40)
"""Around the probes' window of 32: the longest row decodes across it, the others meet it in a chunk."""

NO_PADS = ((0, 0), (0, 0))

DEEP = (
    PROBE,
    Shape(prefill=33, decode=34, chunk=31, more=33, first=31, second=2, far=64, keep=33),
    Shape(2, 40, 2, 63, 1, 32, 97, 1, pads=(0, 1, 0), other_pads=(1, 0, 1), static_pads=NO_PADS),
    Shape(64, 3, 65, 5, 65, 63, 33, 64, pads=(0, 5, 40), other_pads=(33, 0, 1)),
)

REAL = Shape(prefill=18, decode=2, chunk=5, more=4, first=9, second=6, far=8, keep=12, over=16)
"""For real checkpoints, whose every forward costs a hundred times as much."""

LONG = (126, 123, 12)
"""Prefill, chunk and single tokens of one long row: across the block edges 128 and 256, and past position 256, which
bf16 cannot tell from 257."""

LONG_PADS = 3
"""The long row is by itself and padded on the left: what is done for batches only is not done for it."""

ENCODER_LENGTHS = (33, 26, 15)

ORDER = (2, 0, 0)
"""Slots that the reordered slots go on with: a permutation with a repeat."""


def run(group: Group, attention: dict[str, Any]) -> Report:
    """See the module's docstring. Raises StackError, Unavailable, NoYardstick."""
    report = Report(seed=group.spec.seed)
    loaded = group.loaded(attention)
    real = group.row["source"] != "probe"
    shapes = (REAL,) if real else DEEP if group.spec.at_least("deep") else (PROBE,)
    more = group.spec.at_least("deep" if real else "standard")
    figures: dict[str, Agreement] = {}
    if not stack_api.takes_caches(loaded.model):
        report.facts["cache"] = "tuples: this family takes no cache object in this version, so only that is asked"
        figures = {"tuples": _tuples(group, loaded, shapes[0]), "long": _long(group, loaded)}
        return _told(report, figures)
    for number, shape in enumerate(shapes):
        rows = draw(group, shape, number)
        suffix = f" {number}" if number else ""
        figures |= {f"{name}{suffix}": f for name, f in _walks(group, loaded, rows, shape, more, report).items()}
    if more and not real:
        figures["long"] = _long(group, loaded)
        figures |= _offloaded(group, loaded, draw(group, PROBE), report)
    if not stack_api.returns_logits_of_drafts():
        report.facts["continuations"] = "not asked: this version gives the logits of drafts in another form"
        return _told(report, figures)
    judged = continuations.run(group, loaded, more)
    figures |= judged.figures
    _told(report, figures)
    _generated(judged, report)
    if more:
        _quantized(quantized_cache.run(group, loaded, draw(group, shapes[0]), shapes[0].prefill), report)
    return report


def _told(report: Report, figures: dict[str, Agreement]) -> Report:
    record(report, list(figures.values()), own_yardstick=False)
    compared = [f.elements for f in figures.values()]
    report.measure("compared_elements", compared, unit="elements", better="higher", method="min")
    report.facts["paths"] = list(figures)
    report.facts["worst_path"] = max(figures, key=lambda name: _badness(figures[name]))
    return report


def _generated(judged: Judged, report: Report) -> None:
    report.measure("unexcused_tokens", judged.unexcused, unit="tokens")
    report.measure("judged_tokens", judged.tokens, unit="tokens", better="higher")
    report.measure("paths_raised", len(judged.raised), unit="paths")
    report.facts |= judged.facts
    if judged.raised:
        report.facts["raised"] = judged.raised
    if judged.fed_again is not None:
        report.measure("tokens_fed_again", judged.fed_again, unit="tokens a row")
    if judged.rejected is not None:
        report.measure("drafts_rejected", judged.rejected, unit="tokens", better="higher")
        report.measure("assistant_settings_changed", judged.changed, unit="settings")
        report.facts["drafts_accepted"] = judged.accepted


def _quantized(found: Compared | str, report: Report) -> None:
    if isinstance(found, str):
        report.facts["quantized"] = found
        return
    report.measure("quantized_difference", found.differing, unit="elements")
    report.measure("quantized_compared", found.compared, unit="elements", better="higher")
    report.facts["quantized_beyond_scale"] = found.beyond


def _badness(figure: Agreement) -> float:
    return float("inf") if figure.ratio_token is None else figure.ratio_token


# -- rows --------------------------------------------------------------------------------------------------------


def draw(group: Group, shape: Shape, number: int = 0) -> Rows:
    """Five rows: three of their own; row 3 parts from row 0 after `shape.parts` tokens, row 4 from row 2 after
    `shape.keep`. Encoder-decoder models: five decoder rows, and the encoder's rows of those that they part from."""
    seed = SEED + 1000 * group.spec.seed + 10 * number
    drawn = group.source.rows(seed, [shape.length] * 5)
    tokens = list(drawn.tokens)
    if drawn.decoder:
        tokens = [(drawn.decoder[0][0], *row[1:]) for row in tokens]
    tokens[3] = tokens[0][: shape.parts] + tokens[3][shape.parts :]
    tokens[4] = tokens[2][: shape.keep] + tokens[4][shape.keep :]
    if not drawn.decoder:
        return Rows(tokens=tuple(tokens))
    encoder = group.source.rows(seed + 1, list(ENCODER_LENGTHS)).tokens
    return Rows(tokens=(*encoder, encoder[0], encoder[2]), decoder=tuple(tokens))


# -- walks -------------------------------------------------------------------------------------------------------


def _walks(group: Group, loaded: Loaded, rows: Rows, shape: Shape, more: bool, report: Report) -> dict[str, Agreement]:
    model = loaded.model
    padless = bool(rows.decoder)
    batch = Walk(loaded, rows, [0, 1, 2], [] if padless else list(shape.pads))
    beside = Walk(loaded, rows, [2, 0, 1], [] if padless else list(shape.other_pads))
    plain = stack_api.rolls_back(model)  # a recurrent layer has to be told what it is
    single = Walk(loaded, rows, [2], cache=stack_api.dynamic_cache(model.config, plain=plain), masked=False)
    single.positioned = False
    caches.in_turns(_batch(batch, shape, report), _beside(beside, shape), _single(single, shape, plain))
    walks = {"batch": batch, "beside": beside, "single": single}
    if more:
        walks["short"] = _short(loaded, rows)
    figures = {name: caches.compare(group, rows, walk.pieces) for name, walk in walks.items()}
    held = caches.held(group, batch.cache, len(batch.slots), batch.columns)
    if held.tensors:
        report.measure("cache_bytes_per_token", held.bytes / (len(batch.slots) * batch.columns), unit="bytes/token")
        report.measure("cache_other_dtype", held.other_dtype, unit="tensors")
    if held.expected:
        report.measure("cache_over_arithmetic", held.bytes / held.expected)
    if not more:
        return figures
    without = caches.no_static_cache(loaded)
    if not without and plain:
        static = _static(loaded, rows, shape)
        figures["static"] = caches.compare(group, rows, static.pieces)
    else:
        report.facts["static"] = without or "a recurrent layer has no slots to fill"
    return figures


def _batch(walk: Walk, shape: Shape, report: Report) -> Iterator[None]:
    """See the module's docstring. Yields after each step."""
    walk.step(shape.prefill)
    held = caches.held(walk.loaded.group, walk.cache, len(walk.slots), walk.columns)
    if held.expected:
        report.measure("prefill_cache_over_arithmetic", held.bytes / held.expected)
    yield
    for _ in range(shape.decode):
        walk.step(1)
        yield
    walk.reorder(ORDER)
    walk.follow(2, 3)
    for count in (1, shape.chunk, 1):
        walk.step(count)
        yield
    if not stack_api.rolls_back(walk.loaded.model):
        report.facts["select"] = "recurrent layers have no selection of rows"
        return
    walk.select([0, 2])
    walk.repeat(2)
    for count in (1, shape.more, 1):
        walk.step(count)
        yield


def _tuples(group: Group, loaded: Loaded, shape: Shape) -> Agreement:
    """A batch on the cache that the model itself makes: a prefill, single tokens, slots that change places, a chunk.

    In an encoder-decoder slots stay: beams share their encoder's row, whose keys and values many families leave alone.
    """
    rows = draw(group, shape)
    walk = Walk(loaded, rows, [0, 1, 2], [] if rows.decoder else list(shape.pads))
    for count in (shape.prefill, *[1] * shape.decode):
        walk.step(count)
    if not rows.decoder:
        walk.reorder(ORDER)
        walk.follow(2, 3)
    for count in (1, shape.chunk, 1):
        walk.step(count)
    return caches.compare(group, rows, walk.pieces)


def _beside(walk: Walk, shape: Shape) -> Iterator[None]:
    """Shapes as the batch has them, other pads and rows: what one call leaves behind would fit the other. Then the rows
    in another order in the same cache, after a reset."""
    for count in (shape.prefill, *[1] * shape.decode):
        walk.step(count)
        yield
    walk.reset(walk.slots[::-1], walk.pads)
    for count in (shape.over, 1):
        walk.step(count)
        yield


def _single(walk: Walk, shape: Shape, crops: bool) -> Iterator[None]:
    """See the module's docstring. Yields after each step."""
    for count in (shape.first, shape.second, 1, 1, shape.far):
        walk.step(count)
        yield
    if not crops:
        return
    walk.crop(walk.columns - shape.keep)
    other = walk.fork()
    other.follow(0, 4)
    for count in (1, 2, min(11, shape.length - shape.keep - 3)):
        other.step(count)
        yield
        walk.step(count)
        yield


def _short(loaded: Loaded, rows: Rows) -> Walk:
    """One row whose prompt is shorter than the kernel of a recurrent layer's convolution."""
    walk = Walk(loaded, rows, [1])
    for count in (2, 1, 3, 1):
        walk.step(count)
    return walk


def _long(group: Group, loaded: Loaded) -> Agreement:
    """One row of which the last tokens come one at a time; see LONG."""
    rows = group.source.rows(SEED + 5 + 1000 * group.spec.seed, [sum(LONG)])
    if rows.decoder:
        rows = Rows(tokens=(rows.tokens[0][:DECODER_TOKENS],), decoder=((rows.decoder[0][0], *rows.tokens[0][1:]),))
    walk = Walk(loaded, rows, [0], [] if rows.decoder else [LONG_PADS])
    for count in (*LONG[:2], *[1] * LONG[2]):
        walk.step(count)
    return caches.compare(group, rows, walk.pieces)


def _offloaded(group: Group, loaded: Loaded, rows: Rows, report: Report) -> dict[str, Agreement]:
    """Weights that accelerate's hooks fetch for each forward (eager cells, once a group); a cache that waits in the
    host's memory (where there is an accelerator)."""
    walks: dict[str, Walk] = {}
    plain = group.mode.kind == "plain" and not group.spec.quantization["library"]
    if loaded.attention["name"] == "eager" and plain:
        with under_test("offload"):
            model = stack_api.offload_to_host(copy.deepcopy(loaded.model), group.device)
        walks["offloaded weights"] = Walk(replace(loaded, model=model, how="reloaded"), rows, [0, 1])
    if group.device.type == "cpu":
        report.facts["offloaded cache"] = "needs an accelerator"
    elif stack_api.rolls_back(loaded.model) and not rows.decoder:
        cache = stack_api.offloaded_cache(loaded.model.config)
        walks["offloaded cache"] = Walk(loaded, rows, [0, 1], cache=cache)
    for walk in walks.values():
        for count in (PROBE.first, PROBE.second, 1):
            walk.step(count)
    return {name: caches.compare(group, rows, walk.pieces) for name, walk in walks.items()}


def _static(loaded: Loaded, rows: Rows, shape: Shape) -> Walk:
    """See the module's docstring. First with a mask of what was fed and positions left to the model where it makes them
    right, then with a mask over all slots and positions given."""
    pads = NO_PADS if rows.decoder else shape.static_pads
    room = shape.length + max(max(p) for p in pads)
    longest = max(len(r) for r in rows.tokens)
    cache = stack_api.static_cache(loaded.model, 2, room, longest)
    walk = Walk(loaded, rows, [0, 1], list(pads[0]), cache)
    positioned = walk.positioned
    walk.positioned = positioned and not stack_api.makes_positions(loaded.model)
    walk.room = room if stack_api.reads_mask_width(loaded.model) else 0
    for count in (shape.prefill - 1, 1, 1, 1, 1, 5, 1):
        walk.step(count)
    walk.reset([1, 2], pads[1])
    walk.room, walk.positioned = room, positioned
    for count in (shape.prefill // 2, shape.prefill // 2 + 3, 1, 1, 4):
        walk.step(count)
    walk.reset([2, 0], pads[0])
    for count in (min(shape.over, shape.length - 2), 1):
        walk.step(count)
    walk.reorder([1, 0])
    walk.step(1)
    return walk
