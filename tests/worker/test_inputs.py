"""Inputs: drawn from a seed, padded as a tokenizer pads, with valid positions that are right."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compat.worker.inputs import (
    AUDIO_FRAMES,
    DECODER_TOKENS,
    FIRST_TOKEN,
    Rows,
    Source,
    output_of,
    padded,
    sample_shape,
    unpadded,
)

CPU = torch.device("cpu")
CONFIG = SimpleNamespace(vocab_size=64, pad_token_id=0, decoder_start_token_id=2, image_size=8)
LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=5)
SIDES = st.sampled_from(["left", "right"])


class _Causal:
    def forward(self, input_ids: Any, attention_mask: Any = None, position_ids: Any = None) -> None: ...

    def can_generate(self) -> bool:
        return True


class _Encoder:
    def forward(self, input_ids: Any, attention_mask: Any = None) -> None: ...


def _source(task: str) -> Source:
    return Source({"source": "probe", "task": task}, CONFIG)


@given(st.integers(0, 1000), LENGTHS)
def test_the_same_seed_draws_the_same_rows(seed: int, lengths: list[int]) -> None:
    rows = _source("causal-lm").rows(seed, lengths)
    assert rows == _source("causal-lm").rows(seed, lengths)
    assert [len(r) for r in rows.tokens] == lengths
    assert all(FIRST_TOKEN <= t < 64 for r in rows.tokens for t in r), "no special token among them"
    assert rows.key() == _source("causal-lm").rows(seed, lengths).key()


def test_other_rows_have_another_key() -> None:
    rows = [Rows(((5, 6),)), Rows(((5,), (6,))), Rows(((5, 7),)), Rows(((5, 6),), decoder=((2,),)),
            Rows(images=torch.zeros(1, 3, 2, 2)), Rows(images=torch.ones(1, 3, 2, 2))]  # fmt: skip
    assert len({r.key() for r in rows}) == len(rows)


@given(LENGTHS, SIDES, st.booleans(), st.integers(0, 63))
def test_padding_keeps_every_row_where_it_says(lengths: list[int], side: str, more: bool, pad: int) -> None:
    rows = _source("causal-lm").rows(1, lengths)
    batch = padded(rows, side, _Causal(), CPU, pad, all_pad_row=more)
    ids, mask = batch.arguments["input_ids"], batch.arguments["attention_mask"]
    assert ids.shape == mask.shape == (len(lengths) + more, max(lengths))
    for i, (row, where) in enumerate(zip(rows.tokens, batch.valid, strict=True)):
        assert tuple(ids[i, where].tolist()) == row
        assert mask[i, where].all()
        assert int(mask[i].sum()) == len(row)
        assert all(int(t) == pad for t, m in zip(ids[i], mask[i], strict=True) if not m)
        assert batch.arguments["position_ids"][i, where].tolist() == list(range(len(row)))
    if more:
        assert not mask[-1].any()


def test_a_model_without_position_ids_gets_none() -> None:
    batch = padded(_source("masked-lm").rows(1, [3, 2]), "right", _Encoder(), CPU, 0)
    assert set(batch.arguments) == {"input_ids", "attention_mask"}


def test_encoder_decoder_rows_are_valid_in_the_decoder() -> None:
    rows = _source("seq2seq-lm").rows(1, [5, 9])
    assert [len(d) for d in rows.decoder] == [DECODER_TOKENS] * 2
    assert {d[0] for d in rows.decoder} == {2}, "the decoder starts with its start token"
    batch = padded(rows, "right", _Encoder(), CPU, 0, all_pad_row=True)
    assert batch.valid == (slice(0, DECODER_TOKENS),) * 2
    assert batch.arguments["decoder_input_ids"].shape == (3, DECODER_TOKENS)


def test_images_are_given_in_the_dtype_of_the_cell() -> None:
    rows = _source("image-classification").rows(0, [0, 0, 0])
    assert rows.images is not None
    pixels = unpadded(rows, CPU, torch.bfloat16)["pixel_values"]
    assert (pixels.shape, pixels.dtype) == ((3, 3, 8, 8), torch.bfloat16)
    assert torch.equal(pixels, rows.images.to(torch.bfloat16))


def test_rows_of_unequal_length_do_not_go_in_unpadded() -> None:
    with pytest.raises(ValueError, match=r"length|sequence"):
        unpadded(Rows(((5, 6), (7,))), CPU, torch.float32)


def test_the_judged_output_has_positions_and_features() -> None:
    logits = SimpleNamespace(logits=torch.zeros(2, 5, 7), last_hidden_state=torch.zeros(2, 5, 3))
    assert output_of(logits, "causal-lm").shape == (2, 5, 7)
    assert output_of(logits, "feature-extraction").shape == (2, 5, 3)
    assert output_of(SimpleNamespace(logits=torch.zeros(2, 7)), "image-classification").shape == (2, 1, 7)


def test_sounds_are_as_long_as_their_convolutions_make_frames_of() -> None:
    config = SimpleNamespace(conv_stride=[5, 2, 2])
    assert sample_shape(config) == (AUDIO_FRAMES * 20,)
    rows = Source({"source": "probe", "task": "audio-classification"}, config).rows(3, [0, 0])
    assert rows.images is not None
    assert rows.images.shape == (2, AUDIO_FRAMES * 20)
    given = unpadded(rows, CPU, torch.bfloat16)
    assert list(given) == ["input_values"]
    assert given["input_values"].dtype == torch.bfloat16


def test_a_picture_is_as_large_as_the_tower_that_reads_it() -> None:
    inner = SimpleNamespace(image_size=8)
    assert sample_shape(inner) == (3, 8, 8)
    assert sample_shape(SimpleNamespace(image_size=4, vision_config=inner)) == (3, 8, 8)
