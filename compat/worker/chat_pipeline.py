"""Special tokens and chats in the text-generation pipeline, with a stand-in for generate.

In: a load group of a probe, a backend, a text. Out: differences: of the ids handed over (a start token once, a template
that writes its own, a last message of the assistant's that is continued and gets no new turn), and of the answers (the
messages that were given, and behind them one of the assistant's, or its last one continued).
"""

from __future__ import annotations

import copy
from typing import Any

from compat.worker.answers import Differences, records, words
from compat.worker.group import Group, Loaded
from compat.worker.handed_over import padded_ids, tokenized, unlike
from compat.worker.pipeline_calls import call, make
from compat.worker.stand_in import StandIn

CHAT = (
    "{% for m in messages %}{{ '<s> ' + m['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}<s>{% endif %}"
)
"""A chat template for probes that writes the special tokens itself."""

Message = dict[str, str]


def special_tokens(group: Group, loaded: Loaded, text: str, found: Differences) -> None:
    """A tokenizer that writes <s> before each text: once, on one text and in a batch; and not again in a chat, whose
    template has written it. Raises StackError."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(group.tokenizer)
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    pieces = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    tokenizer.backend_tokenizer.post_processor = pieces
    tokenizer.chat_template = CHAT
    pipe = make(loaded, "text-generation", tokenizer=tokenizer)
    row = tokenized(group, text)
    long, short = [start, *row], [start, *row[:4]]
    few, more = " ".join(text.split()[:4]), " ".join(text.split()[4:6])
    chat = [{"role": "user", "content": few}]
    begun = [*chat, {"role": "assistant", "content": more}]
    opened, continued = [start, *row[:4], end, start], [start, *row[:4], end, start, *row[4:6]]
    other = [*begun, {"role": "user", "content": few}]
    longer = [*continued, end, *opened]
    new = [*row[:3], end]
    said = " ".join(text.split()[:3])
    for what, given, rows, settings in (
        ("text", text, [long], {}),
        ("batch", [text, few], [long, short], {"batch_size": 2}),
        ("left to the caller", text, [row], {"add_special_tokens": False}),
        ("chat", chat, [opened], {}),
        ("chat that is continued", begun, [continued], {}),
        ("chats", [other, chat], [longer, opened], {"batch_size": 2}),
    ):
        seen, before = StandIn(new), copy.deepcopy(given)
        with seen.instead(loaded.model):
            answer = call(loaded, pipe, given, **settings)
        ids, mask = padded_ids(group, rows)
        off = unlike(seen.handed(), ids, mask)
        found.inputs += found.note(f"special tokens: {what}", off, seen.handed().get("input_ids"))
        found.inputs += found.note(f"messages changed: {what}", given != before, before, given)
        if what.startswith("chat"):
            chats: Any = given if what == "chats" else [given]
            own = [spoken(answered(c, said)) for c in chats]
            theirs = [spoken(r.get("generated_text")) for r in records(answer)]
            found.texts += found.note(f"answer: {what}", own != theirs, own, theirs)
    with StandIn(new).instead(loaded.model):
        theirs = [words(r.get("generated_text")) for r in records(call(loaded, pipe, chat, return_full_text=False))]
    found.texts += found.note("answer: new text", theirs != [words(said)], said, theirs)


def answered(chat: list[Message], said: str) -> list[Message]:
    """The messages of a chat after the model has said something: in a turn of its own, or behind its last words."""
    last = chat[-1]
    if last["role"] == "assistant":
        return [*chat[:-1], {**last, "content": last["content"] + said}]
    return [*chat, {"role": "assistant", "content": said}]


def spoken(messages: Any) -> Any:
    """(role, words) of each message; what is no list of messages stays."""
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        return messages
    return [(m.get("role"), words(m.get("content"))) for m in messages]
