"""Inputs of a model: unpadded rows, padded batches, prompts and images, drawn from a seed.

In: a model row, its checkpoint's tokenizer where one is needed, a seed. Out: `Rows`, from which forward arguments are
made with padding on either side. Token ids of probes are uniform over the vocabulary without the special tokens; real
checkpoints read English text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compat.worker import stack_api

FIRST_TOKEN = 5
"""Ids below this one are special tokens of a probe's vocabulary."""

CLASSIFYING = ("image-classification", "audio-classification")
"""Tasks whose rows are no text: a picture or a sound in, one answer out."""

AUDIO_FRAMES = 50
"""Frames of a sound, about: of raw samples, as many as the convolutions of its family make one frame of."""

DECODER_TOKENS = 17
"""Decoder input length of encoder-decoder models; the encoder gets the row's length."""


def english_text() -> str:
    """Six paragraphs of English, for checkpoints with real weights."""
    return (Path(__file__).parent / "english.txt").read_text(encoding="utf-8")


def sample_shape(config: Any) -> tuple[int, ...]:
    """What a row of a classifier is: (3, height, width) of a picture, (samples,) of a sound that convolutions of
    `conv_stride` turn into frames."""
    strides = getattr(config, "conv_stride", None)
    if strides:
        return (AUDIO_FRAMES * math.prod(strides),)
    size = int(getattr(config, "vision_config", config).image_size)
    return (3, size, size)


@dataclass(frozen=True)
class Rows:
    """Unpadded samples of one model: token rows, or images (pixel values) for vision models. `images` also holds sound:
    features (rows, bins, frames) or raw samples (rows, samples)."""

    tokens: tuple[tuple[int, ...], ...] = ()
    images: torch.Tensor | None = None
    decoder: tuple[tuple[int, ...], ...] = ()
    embeddings: torch.Tensor | None = None
    """(rows, positions, hidden) fp32 that stand for `tokens`: what no embedding of these tokens would be."""

    @property
    def floating(self) -> bool:
        """Whether the input is rounded to the cell's dtype before anything is computed."""
        return self.images is not None or self.embeddings is not None

    def key(self) -> str:
        """A short text that is equal for equal rows."""
        import hashlib

        material = repr((self.tokens, self.decoder)).encode()
        for tensor in (self.images, self.embeddings):
            if tensor is not None:
                material += tensor.double().numpy().tobytes()
        return hashlib.sha256(material).hexdigest()[:16]


class Source:
    """Draws rows for one model."""

    def __init__(self, row: dict[str, Any], config: Any, tokenizer: Any = None) -> None:
        self.row = row
        self.task = row["task"]
        text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
        self.vocab = int(getattr(text_config, "vocab_size", 0) or 0)
        self.pad = int(getattr(config, "pad_token_id", None) or 0)
        self.start = getattr(config, "decoder_start_token_id", None)
        self.config = config
        vision = getattr(config, "vision_config", config)
        self.image_size = int(getattr(vision, "image_size", 0) or 0)
        self.image_tokens = [int(getattr(config, "image_token_id", 0) or 0)] * int(
            getattr(config, "image_seq_length", 0) or 0
        )
        self.sound = (
            int(getattr(config, "num_mel_bins", 0) or 0),
            2 * int(getattr(config, "max_source_positions", 0) or 0),  # the first convolutions halve it
        )
        self._text: list[int] = []
        if row["source"] != "probe" and tokenizer is not None:
            self._text = [int(t) for t in tokenizer(english_text(), add_special_tokens=False)["input_ids"]]

    def rows(self, seed: int, lengths: list[int]) -> Rows:
        """One row of each length (tokens); as many pictures or sounds as there are lengths. Rows of text with an image
        begin with the tokens that stand for it; of a model of speech, the decoder has the length."""
        generator = torch.Generator().manual_seed(seed)
        if self.task in CLASSIFYING:
            return Rows(images=torch.randn((len(lengths), *sample_shape(self.config)), generator=generator))
        if self.task == "speech-seq2seq":
            features = torch.randn((len(lengths), *self.sound), generator=generator)
            own = int(self.start if self.start is not None else self.pad)
            spoken = tuple((own, *self._row(generator, n - 1)) for n in lengths)
            return Rows(images=features, decoder=spoken)
        if self.task == "image-text-to-text":
            images = torch.randn((len(lengths), 3, self.image_size, self.image_size), generator=generator)
            return Rows(tuple((*self.image_tokens, *self._row(generator, n)) for n in lengths), images)
        tokens = tuple(self._row(generator, n) for n in lengths)
        if self.task != "seq2seq-lm":
            return Rows(tokens=tokens)
        start = int(self.start if self.start is not None else self.pad)
        decoder = tuple((start, *self._row(generator, DECODER_TOKENS - 1)) for _ in lengths)
        return Rows(tokens=tokens, decoder=decoder)

    def _row(self, generator: torch.Generator, length: int) -> tuple[int, ...]:
        if self._text:
            text = self._text * (1 + length // len(self._text))
            at = int(torch.randint(0, max(1, len(text) - length), (1,), generator=generator))
            return tuple(text[at : at + length])
        ids = torch.randint(FIRST_TOKEN, self.vocab, (length,), generator=generator)
        return tuple(int(t) for t in ids)


def unpadded(rows: Rows, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Forward arguments for rows of equal length, without a mask; images (four dimensions), sound (three as features,
    two as samples) and embeddings in `dtype`."""
    arguments: dict[str, torch.Tensor] = {}
    if rows.images is not None:
        name = {2: "input_values", 3: "input_features", 4: "pixel_values"}[rows.images.dim()]
        arguments[name] = rows.images.to(device=device, dtype=dtype)
    if rows.embeddings is not None:
        arguments["inputs_embeds"] = rows.embeddings.to(device=device, dtype=dtype)
    elif rows.tokens:
        arguments["input_ids"] = torch.tensor(rows.tokens, device=device)
    if rows.decoder:
        arguments["decoder_input_ids"] = torch.tensor(rows.decoder, device=device)
    return arguments


def padding_sides(row: Mapping[str, Any], task: str) -> list[str]:
    """The sides on which rows are padded: those that a model row names, or both for a causal language model, and the
    right for others, as their tokenizers do."""
    return row.get("padding_sides") or (["left", "right"] if task == "causal-lm" else ["right"])


@dataclass(frozen=True)
class Padded:
    """A padded batch: forward arguments and, for each row, where its valid output positions are."""

    arguments: dict[str, torch.Tensor]
    valid: tuple[slice, ...]


def padded(
    rows: Rows,
    side: str,
    model: Any,
    device: torch.device,
    pad_id: int,
    all_pad_row: bool = False,
    width: int = 0,
) -> Padded:
    """Rows of unequal length in one batch, padded on `side` with `pad_id`, as a user's tokenizer does it.

    Position ids are passed as `generate` makes them (cumulative sum of the mask) to causal models that accept them.
    `all_pad_row` appends a row that is masked everywhere; `width` is the batch's least width.
    """
    longest = max(width, *(len(r) for r in rows.tokens))
    ids, mask, valid = [], [], []
    for row in rows.tokens:
        pads = longest - len(row)
        ids.append([pad_id] * pads + list(row) if side == "left" else list(row) + [pad_id] * pads)
        mask.append([0] * pads + [1] * len(row) if side == "left" else [1] * len(row) + [0] * pads)
        valid.append(slice(pads, longest) if side == "left" else slice(0, len(row)))
    if all_pad_row:
        ids.append([pad_id] * longest)
        mask.append([0] * longest)
    arguments = {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }
    if rows.decoder:
        decoder = [*rows.decoder, *([rows.decoder[0]] if all_pad_row else [])]
        arguments["decoder_input_ids"] = torch.tensor(decoder, device=device)
        valid = [slice(0, len(d)) for d in rows.decoder]
    elif stack_api.accepts(model, "position_ids") and getattr(model, "can_generate", lambda: False)():
        positions = (arguments["attention_mask"].cumsum(-1) - 1).clamp_min(0)
        arguments["position_ids"] = positions
    return Padded(arguments, tuple(valid))


def output_of(output: Any, task: str) -> torch.Tensor:
    """The tensor that a task is judged on: logits, or the last hidden state. Shape (batch, positions, features)."""
    tensor = output.last_hidden_state if task == "feature-extraction" else output.logits
    return tensor.unsqueeze(1) if tensor.dim() == 2 else tensor


def single_rows(rows: Rows) -> list[Rows]:
    """Each token row as rows of its own."""
    decoder = rows.decoder or ((),) * len(rows.tokens)
    return [Rows(tokens=(t,), decoder=(d,) if d else ()) for t, d in zip(rows.tokens, decoder, strict=True)]
