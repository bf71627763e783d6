"""Rows of a batch that end at different times: which token parts them, and whether a stop string ends each where its
own words say it; and what a streamer hears of a row up to its end."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from compat.worker.answers import apart
from compat.worker.probes import SPECIAL_TOKENS

if TYPE_CHECKING:
    from compat.worker.trials import Generated, Trials

STEPS = 8
WHOLE_WORD = 100
"""Words of a probe from this token on have three digits: none is the beginning of another."""


def parting_token(new: Sequence[Sequence[int]], least: int = 0) -> int | None:
    """A token from `least` on at which rows `new` would end at different times, the first within 4 tokens."""
    for token in (t for tokens in new for t in tokens[1:4] if t >= least):
        ends = [tokens.index(token) if token in tokens else len(tokens) for tokens in new]
        if min(ends) < 4 and max(ends) > min(ends) + 1:
            return token
    return None


def stopped(new: Sequence[Sequence[int]], token: int, pad: int) -> list[list[int]]:
    """Rows that end behind `token`, padded to the longest."""
    kept = [list(row[: row.index(token) + 1]) if token in row else list(row) for row in new]
    longest = max(map(len, kept))
    return [row + [pad] * (longest - len(row)) for row in kept]


def stop_string_differences(trials: Trials, greedy: Generated) -> int | None:
    """Tokens of the greedy batch, generated again with a stop string that some rows write and others do not, which are
    not those of before up to the string and pads behind it; None where no word parts the rows. Raises StackError."""
    rows = range(len(greedy.batch.rows))
    new = [greedy.new(row)[: STEPS - 1] for row in rows]  # some models force an end as the last token
    token = parting_token(new, WHOLE_WORD)
    if token is None:
        return None
    settings = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False, "pad_token_id": trials.pad}
    given = {k: v.clone() for k, v in greedy.batch.arguments.items()}
    words = {"stop_strings": [f"w{token}", "never said"], "tokenizer": spelling_tokenizer(trials.group.source.vocab)}
    sequences = trials.loaded.generate(**given, **settings, **trials.varied, **words)
    width = 1 if trials.decoder_start is not None else greedy.batch.width
    return apart(stopped(new, token, trials.pad), sequences[:, width : width + STEPS - 1])


class _Listener:
    """Keeps what `generate` tells a streamer: tokens, and when there will be no more."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ends: list[int] = []
        """How many tokens there were at each end."""

    def put(self, value: Any) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ends.append(len(self.tokens))


def stream_differences(trials: Trials, alone: Generated) -> int:
    """Tokens of a row generated again that a streamer was not told, or was told beside: it gets the prompt, each new
    token, and one end behind the last (an end that is missing, or is another, counts as one). Raises StackError."""
    listener = _Listener()
    given = {k: v.clone() for k, v in alone.batch.arguments.items()}
    settings = {"max_new_tokens": STEPS, "do_sample": False, "pad_token_id": trials.pad}
    sequences = trials.loaded.generate(**given, **settings, **trials.varied, streamer=listener)
    return apart(sequences[0], listener.tokens) + int(listener.ends != [sequences.shape[1]])


def spelling_tokenizer(vocab: int) -> Any:
    """A tokenizer whose token 317 is `w317`, and whose first tokens are letters: stop strings want one that can spell
    any word, which a probe's cannot."""
    import transformers
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    names = [*SPECIAL_TOKENS, *string.ascii_lowercase]
    names += [f"w{i}" for i in range(len(names), vocab)]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    pad, bos, eos, unk, _ = SPECIAL_TOKENS
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos, unk_token=unk
    )
