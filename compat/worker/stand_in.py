"""What takes the place of `model.generate` while a pipeline runs, and sees what is handed over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


class StandIn:
    """Takes the place of `model.generate`: keeps its keywords, returns the prompt and `new` behind it, and of each
    prompt further sequences with `others`."""

    def __init__(self, new: Sequence[int] = (), others: Sequence[Sequence[int]] = ()) -> None:
        self.new = [list(new), *(list(o) for o in others)]
        self.calls: list[dict[str, Any]] = []

    def __call__(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        if arguments:
            keywords["input_ids"] = arguments[0]
        self.calls.append(keywords)
        ids: torch.Tensor = keywords["input_ids"]
        new = torch.tensor(self.new, dtype=ids.dtype, device=ids.device).repeat(len(ids), 1)
        return torch.cat([ids.repeat_interleave(len(self.new), 0), new], -1)

    @contextmanager
    def instead(self, model: Any) -> Iterator[StandIn]:
        """While the block runs, `model.generate` is this."""
        model.generate = self
        try:
            yield self
        finally:
            del model.generate

    def handed(self, number: int = 0) -> dict[str, Any]:
        """The keywords of a call; none where it was not made."""
        return self.calls[number] if number < len(self.calls) else {}

    def settings(self, number: int = 0) -> dict[str, Any]:
        """What the call sets, by name: a passed config's values, and keywords over them."""
        given = {k: v for k, v in self.handed(number).items() if not isinstance(v, torch.Tensor) and v is not None}
        config = given.pop("generation_config", None)
        return (set_values(config) if config is not None else {}) | given


class Recorder:
    """Takes the place of `model.generate` and calls it: keeps the logits of each step, which must be those of the
    trial, so that a pipeline that computes in another precision is seen before a token changes."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.logits: list[torch.Tensor] = []

    def __call__(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        recorded = {"return_dict_in_generate": True, "output_logits": True}
        output = type(self.model).generate(self.model, *arguments, **{**keywords, **recorded})
        self.logits += output.logits
        sequences: torch.Tensor = output.sequences
        return sequences

    @contextmanager
    def instead(self) -> Iterator[Recorder]:
        """While the block runs, `model.generate` is this."""
        self.model.generate = self
        try:
            yield self
        finally:
            del self.model.generate

    def unlike(self, logits: Sequence[torch.Tensor], dtype: torch.dtype) -> int:
        """Steps whose logits are farther from those of the trial than a few roundings in `dtype`, or of another
        shape."""
        steps = list(zip(self.logits, logits, strict=False))
        allowed = 16 * torch.finfo(dtype).eps
        off = sum(
            a.shape != b.shape or not float((a - b).abs().max()) <= allowed * float(b.abs().max()) for a, b in steps
        )
        return off + (not steps)


def set_values(config: Any) -> dict[str, Any]:
    """The values that a GenerationConfig really sets."""
    return {
        k: v
        for k, v in config.to_diff_dict().items()
        if v is not None and not k.startswith("_") and k != "transformers_version"
    }
