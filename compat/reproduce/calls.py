"""Text of the calls that a case (compat.worker.cases) stands for, as scripts make them.

In: nothing. Out: Python source by the kind of a case: functions that take the model and give what it answered. What
they judge, or which exception they wait for, is in `bodies` and `raised`.
"""

from __future__ import annotations

from compat.reproduce.body import Name

ALONE = '''
def alone() -> list[Rows]:
    """Each row by itself."""
    decoder = CASE.get("decoder", [()] * len(CASE["rows"]))
    return [Rows(tokens=(tuple(t),), decoder=(tuple(d),) if d else ()) for t, d in zip(CASE["rows"], decoder)]


def together() -> Rows:
    """All rows."""
    rows = alone()
    return Rows(tokens=tuple(r.tokens[0] for r in rows), decoder=tuple(d for r in rows for d in r.decoder))
'''

FORWARD = '''
def called(model: Any) -> torch.Tensor:
    """One forward without a mask."""
    return run(model, **unpadded(together(), DEVICE, DTYPE))
'''

IMAGES = '''
def images(model: Any) -> torch.Tensor:
    """Images or sounds drawn from a seed."""
    drawn = CASE["images"]
    generator = torch.Generator().manual_seed(drawn["seed"])
    return torch.randn((drawn["of"], *sample_shape(model.config)), generator=generator)[drawn["which"]]


def called(model: Any) -> torch.Tensor:
    """One forward of images or sounds."""
    return run(model, **unpadded(Rows(images=images(model)), DEVICE, DTYPE))
'''

BATCH = '''
def batch(model: Any) -> Padded:
    """The rows padded as a tokenizer does it; pads are masked."""
    masked = CASE.get("masked_row", False)
    made = padded(together(), CASE["side"], model, DEVICE, CASE["pad"], masked, width=CASE["length"])
    if not CASE.get("positions", True):
        made.arguments.pop("position_ids", None)
    return made
'''

PADDED = '''
def called(model: Any) -> torch.Tensor:
    """One forward of a padded batch."""
    return run(model, **batch(model).arguments)
'''

PACKED = '''
def called(model: Any) -> torch.Tensor:
    """All rows in one, position ids restarting, no mask."""
    ids = torch.tensor([[t for row in CASE["rows"] for t in row]], device=DEVICE)
    positions = torch.tensor([[i for row in CASE["rows"] for i in range(len(row))]], device=DEVICE)
    return run(model, input_ids=ids, position_ids=positions, use_cache=False)
'''

DECODE = '''
def called(model: Any) -> tuple[list[torch.Tensor], list[int]]:
    """The rows in pieces through a cache: logits, and the positions of all rows one after the other that they are for.

    Of CASE["steps"] a number feeds so many columns; a list does something to the cache (Feeding).
    """
    fed, width, logits, places = CASE.get("decoder") or CASE["rows"], CASE["length"], [], []
    way = Feeding(list(range(len(fed))))
    starts = [sum(len(r) for r in fed[:i]) for i in range(len(fed))]
    if CASE["cache"] == "static":
        way.cache = static_cache(model, len(fed), CASE.get("room", width), max(len(r) for r in CASE["rows"]))
    elif CASE["cache"] == "plain":
        way.cache = dynamic_cache(model.config, plain=True)
    named = cache_argument(model)
    for step in CASE["steps"]:
        if isinstance(step, list):
            way.act(step, DEVICE)
            continue
        at, pads = way.at, [width - len(fed[row]) for row in way.slots]
        ids = [([CASE["pad"]] * pad + fed[row])[at : at + step] for row, pad in zip(way.slots, pads)]
        arguments = {"input_ids": torch.tensor(ids, device=DEVICE)}
        if CASE.get("decoder"):
            arguments = {"decoder_input_ids": arguments["input_ids"], "input_ids": torch.tensor(CASE["rows"])}
            arguments["input_ids"] = arguments["input_ids"].to(DEVICE)
        columns, before = torch.arange(at + step, device=DEVICE)[None], torch.tensor(pads, device=DEVICE)[:, None]
        if any(pads) or CASE.get("wide"):
            unused = max(0, CASE.get("room", 0) - at - step) if CASE.get("wide") else 0
            arguments["attention_mask"] = torch.nn.functional.pad((columns >= before).long(), (0, unused))
        if not CASE.get("decoder") and CASE.get("positions", True) and accepts(model, "position_ids"):
            arguments["position_ids"] = (columns - before).clamp_min(0)[:, -step:]
        with forced_sdpa_kernel(SDPA_KERNEL), torch.no_grad():
            output = model(**arguments, use_cache=True, **{named: way.cache})
        way.cache = getattr(output, named)
        for slot, (row, pad) in enumerate(zip(way.slots, pads)):
            first = max(at, pad)
            logits.append(output.logits[slot, first - at :])
            places += [starts[row] + p - pad for p in range(first, at + step)]
        way.at += step
    return logits, places
'''

GENERATE = '''
def called(model: Any) -> Any:
    """Greedy generation of CASE["new"] tokens: `sequences`, and the `logits` that they were picked from."""
    given, new = batch(model).arguments, CASE["new"]
    settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": CASE["pad"]}
    settings |= {"return_dict_in_generate": True, "output_logits": True, **CASE.get("settings", {})}
    with forced_sdpa_kernel(SDPA_KERNEL), torch.no_grad():
        return model.generate(input_ids=given["input_ids"], attention_mask=given["attention_mask"], **settings)
'''

TRAIN = '''
def called(model: Any) -> None:
    """A forward in train mode, and its backward."""
    with trainable(model), forced_sdpa_kernel(SDPA_KERNEL), torch.enable_grad():
        loss_of(model, CASE["rows"], CASE.get("decoder"), TASK, DEVICE).backward()
'''

IMPORTED: tuple[Name, ...] = (("inputs", "Rows"), ("inputs", "unpadded"))
"""What the calls of every kind need."""

KINDS: dict[str, tuple[str, tuple[Name, ...]]] = {
    "forward": (ALONE + FORWARD, ()),
    "images": (IMAGES, (("inputs", "sample_shape"),)),
    "padded": (ALONE + BATCH + PADDED, (("inputs", "padded"),)),
    "packed": (PACKED, ()),
    "decode": (
        DECODE,
        (
            ("feeding", "Feeding"),
            ("stack_api", "static_cache"),
            ("stack_api", "dynamic_cache"),
            ("stack_api", "accepts"),
            ("stack_api", "cache_argument"),
        ),
    ),
    "generate": (ALONE + BATCH + GENERATE, (("inputs", "padded"),)),
    "train": (TRAIN, (("training", "trainable"), ("raised", "loss_of"))),
}
"""Kind of a case -> the text that defines `called`, and what it needs of our files."""


def kind_of(case: dict[str, object]) -> str:
    """Which of KINDS a case is."""
    return next((k for k in ("images", "outliers") if k in case), str(case["kind"]))
