"""The reference and the yardstick along the way that a generation took, row by row, alone and unpadded.

In: a row's prompt and the tokens that were generated after it. Out: what the fp64 reference and eager attention say
at each of these steps, and the figures of the recorded logits against them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from compat.worker.group import Group
from compat.worker.inputs import Rows
from compat.worker.metrics import Agreement, Yardstick

Logits = tuple[torch.Tensor, torch.Tensor]


class Teacher:
    """Keeps what it has computed: a row that begins like an earlier one costs nothing."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self._known: dict[tuple[int, ...], list[tuple[tuple[int, ...], Logits]]] = {}

    def logits(self, prompt: Sequence[int], start: int | None, new: Sequence[int]) -> Logits:
        """(r, e): logits of the reference and of eager attention, each (len(new), vocabulary), from which each of the
        tokens `new` had to be chosen. `prompt`: what the decoder reads, or with a decoder `start` token the encoder.
        Raises NoYardstick, StackError."""
        given = tuple(new[:-1])
        known = self._known.setdefault((*prompt, -1 if start is None else start), [])
        for tokens, (r, e) in known:
            if tokens[: len(given)] == given:
                return r[: len(new)], e[: len(new)]
        if start is None:
            rows = Rows(tokens=((*prompt, *given),))
        else:
            rows = Rows(tokens=(tuple(prompt),), decoder=((start, *given),))
        r = self.group.reference_outputs(rows)[0][-len(new) :].double()
        e = self.group.eager_outputs(rows)[0][-len(new) :].double()
        known.append((given, (r, e)))
        return r, e

    def judge(self, taught: Sequence[Logits], logits: Sequence[torch.Tensor]) -> Agreement:
        """The figures of `logits`, one (new tokens, vocabulary) a row, against (r, e) of the same rows."""
        r, e = (torch.cat([pair[i] for pair in taught]) for i in (0, 1))
        return Yardstick(r, e, self.group.dtype, logits=True).compare(torch.cat(list(logits)).to(r.device))
