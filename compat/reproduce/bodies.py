"""What a script does, by the kind of call that shows the defect: `main` as text, its constants, and what it needs.

In: a check with its evidence. Out: a `Body`, or None where no script stands for what the check saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compat.records import Check
from compat.reproduce import measured
from compat.reproduce.body import Body, Name
from compat.reproduce.loading import loading

REFERENCE: tuple[Name, ...] = (("reference", "Reference"), ("metrics", "Yardstick"), ("inputs", "Rows"),
                               ("inputs", "unpadded"))  # fmt: skip
DEQUANTIZED: tuple[Name, ...] = (("load", "quantized_modules"), ("dequantize", "stored"), ("dequantize", "dequantize"))

REPLAYED: tuple[Name, ...] = (
    ("inputs", "padded"),
    ("oracles", "resolved"),
    ("replay", "Prompts"),
    ("replay", "replay"),
)

_QUANTIZED = """
    for path, module in quantized_modules(eager).items():  # before a first forward repacks the codes
        weight = dequantize(stored(module)).cpu()
        reference.set_weight(path, weight.t() if type(master.get_submodule(path)).__name__ == "Conv1D" else weight)
"""

_JUDGE = '''
def fp64(where: Checkpoint, eager: Any) -> Reference:
    """The same weights, as rounded or dequantized, computed in fp64 with an attention of its own."""
    master = from_pretrained(where, TASK, torch.float32, "eager", torch.device("cpu"))
    reference = Reference(master, DEVICE)
    reference.round_weights(DTYPE)
{quantized}    return reference


def judged(reference: Reference, eager: Any, rows: list[Rows], outputs: list[torch.Tensor], at: Any = None) -> bool:
    """Print the figures of `outputs` (one a row) against each row alone and unpadded; whether one is beyond BOUNDS.

    `at` says which positions of all rows one after the other `outputs` hold, where these are not all.
    E(x) = rms(x - r): r is fp64, e eager attention in the same dtype, o the outputs. ratio_rms is E(o) / E(e), and
    ratio_token and ratio_max the same in the worst token and element.
    """
    r = [output_of(reference(**unpadded(one, DEVICE, DTYPE)), TASK)[0] for one in rows]
    e = [run(eager, **unpadded(one, DEVICE, DTYPE))[0] for one in rows]
    found = Yardstick(torch.cat(r), torch.cat(e), DTYPE, TASK != "feature-extraction").compare(torch.cat(outputs), at)
    figures = {{
        "nonfinite_elements": found.nonfinite,
        "yardstick_error": found.yardstick_eps,
        "yardstick_token": found.yardstick_token_eps,
        "candidate_error": found.candidate_eps,
        "ratio_rms": found.ratio_rms,
        "ratio_token": found.ratio_token,
        "ratio_max": found.ratio_max,
        "kl_excess": None if found.kl is None else found.kl - 4 * found.kl_yardstick,
    }}
    broken = [n for n, bound in BOUNDS.items() if (v := figures.get(n)) is None or v > bound]
    for name, value in figures.items():
        bound = f", pass <= {{BOUNDS[name]:g}}" if name in BOUNDS else ""
        print(f"  {{name}} {{'not finite' if value is None else format(value, '.4g')}}{{bound}}")
    return bool(broken)
'''

_START = """
    where = checkpoint()
    eager = load(where, "eager")
    reference = fp64(where, eager)
    model = candidate(where)
"""

_ALONE = '''
def alone() -> list[Rows]:
    """Each row by itself."""
    decoder = CASE.get("decoder", [()] * len(CASE["rows"]))
    return [Rows(tokens=(tuple(t),), decoder=(tuple(d),) if d else ()) for t, d in zip(CASE["rows"], decoder)]
'''

_FORWARD = '''
def main() -> bool:
    """One forward without a mask."""
{start}
    rows = alone()
    whole = Rows(tokens=tuple(r.tokens[0] for r in rows), decoder=tuple(d for r in rows for d in r.decoder))
    o = run(model, **unpadded(whole, DEVICE, DTYPE))
    return judged(reference, eager, rows, list(o))
'''

_IMAGES = '''
def main() -> bool:
    """One forward of images drawn from a seed."""
{start}
    size, drawn = eager.config.image_size, CASE["images"]
    generator = torch.Generator().manual_seed(drawn["seed"])
    images = torch.randn((drawn["of"], 3, size, size), generator=generator)[drawn["which"]]
    o = run(model, **unpadded(Rows(images=images), DEVICE, DTYPE))
    return judged(reference, eager, [Rows(images=image[None]) for image in images], list(o))
'''

_OUTLIERS = '''
def main() -> bool:
    """One forward of embeddings, some of which hold two large values."""
{start}
    every, value = CASE["outliers"]["every"], CASE["outliers"]["value"]
    master = from_pretrained(where, TASK, torch.float32, "eager", torch.device("cpu"))
    rows, outputs = [], []
    for one in alone():
        with torch.no_grad():
            embeddings = master.get_input_embeddings()(torch.tensor(one.tokens)).clone()
        embeddings[:, ::every, embeddings.shape[-1] // 3] = value
        embeddings[:, ::every, embeddings.shape[-1] // 2] = -value
        low = embeddings.to(DTYPE)  # fp64 sees the same input
        rows.append(Rows(tokens=one.tokens, decoder=one.decoder, embeddings=low))
        outputs.append(run(model, **unpadded(rows[-1], DEVICE, DTYPE))[0])
    return judged(reference, eager, rows, outputs)
'''

_BATCH = '''
def batch(model: Any) -> Padded:
    """The rows padded as a tokenizer does it; pads are masked."""
    rows = alone()
    whole = Rows(tokens=tuple(r.tokens[0] for r in rows), decoder=tuple(d for r in rows for d in r.decoder))
    masked = CASE.get("masked_row", False)
    made = padded(whole, CASE["side"], model, DEVICE, CASE["pad"], masked, width=CASE["length"])
    if not CASE.get("positions", True):
        made.arguments.pop("position_ids", None)
    return made
'''

_PADDED = '''
def main() -> bool:
    """One forward of a padded batch; each row judged by itself alone."""
{start}
    given = batch(model)
    o = run(model, **given.arguments)
    return judged(reference, eager, alone(), [o[i, where] for i, where in enumerate(given.valid)])
'''

_PACKED = '''
def main() -> bool:
    """All rows in one, position ids restarting, no mask; each row judged by itself alone."""
{start}
    ids = torch.tensor([[t for row in CASE["rows"] for t in row]], device=DEVICE)
    positions = torch.tensor([[i for row in CASE["rows"] for i in range(len(row))]], device=DEVICE)
    o = run(model, input_ids=ids, position_ids=positions, use_cache=False)[0]
    return judged(reference, eager, alone(), list(o.split([len(row) for row in CASE["rows"]])))
'''

_DECODE = '''
def main() -> bool:
    """The rows in pieces through a cache; what comes back is judged by the full forward of each row alone.

    Of CASE["steps"] a number feeds so many columns; ["reorder", order], ["crop", columns], ["reset"] act on the cache.
    """
{start}
    fed, width = CASE.get("decoder") or CASE["rows"], CASE["length"]
    slots, cache, at, logits, places = list(range(len(fed))), None, 0, [], []
    starts = [sum(len(r) for r in fed[:i]) for i in range(len(fed))]
    if CASE["cache"] == "static":
        cache = static_cache(model, len(fed), CASE.get("room", width), max(len(r) for r in CASE["rows"]))
    for step in CASE["steps"]:
        if step == ["reset"]:
            cache.reset()
            at = 0
        elif isinstance(step, list) and step[0] == "crop":
            cache.crop(-step[1])
            at -= step[1]
        elif isinstance(step, list):
            cache.reorder_cache(torch.tensor(step[1], device=DEVICE))
            slots = [slots[i] for i in step[1]]
        else:
            pads = [width - len(fed[row]) for row in slots]
            ids = [([CASE["pad"]] * pad + fed[row])[at : at + step] for row, pad in zip(slots, pads)]
            arguments = {{"input_ids": torch.tensor(ids, device=DEVICE)}}
            if CASE.get("decoder"):
                arguments = {{"decoder_input_ids": arguments["input_ids"], "input_ids": torch.tensor(CASE["rows"])}}
                arguments["input_ids"] = arguments["input_ids"].to(DEVICE)
            columns, before = torch.arange(at + step, device=DEVICE)[None], torch.tensor(pads, device=DEVICE)[:, None]
            if any(pads):
                arguments["attention_mask"] = (columns >= before).long()
            if not CASE.get("decoder") and accepts(model, "position_ids"):
                arguments["position_ids"] = (columns - before).clamp_min(0)[:, -step:]
            with forced_sdpa_kernel(SDPA_KERNEL), torch.no_grad():
                output = model(**arguments, use_cache=True, past_key_values=cache)
            cache = output.past_key_values
            for slot, (row, pad) in enumerate(zip(slots, pads)):
                first = max(at, pad)
                logits.append(output.logits[slot, first - at :])
                places += [starts[row] + p - pad for p in range(first, at + step)]
            at += step
    return judged(reference, eager, alone(), logits, torch.tensor(places, device=DEVICE))
'''

_GENERATE = '''
def main() -> bool:
    """Greedy generation; every token judged by fp64 on the same prefix, unpadded.

    A token other than fp64's best is excused within 4 times the error of eager attention in the same dtype.
    """
{start}
    given, new = batch(model).arguments, CASE["new"]
    settings = {{"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": CASE["pad"]}}
    settings |= CASE.get("settings", {{}})
    with forced_sdpa_kernel(SDPA_KERNEL), torch.no_grad():
        out = model.generate(input_ids=given["input_ids"], attention_mask=given["attention_mask"], **settings)
    eos = model.generation_config.eos_token_id
    forbidden = [] if eos is None else eos if isinstance(eos, list) else [eos]
    wrong = 0
    for i, prompt in enumerate(CASE["rows"]):
        picked = out[i, -new:].tolist()
        if TASK == "causal-lm":
            one = Rows(tokens=((*prompt, *picked[:-1]),))
        else:
            one = Rows(tokens=(tuple(prompt),), decoder=((int(out[i, 0]), *picked[:-1]),))
        r = output_of(reference(**unpadded(one, DEVICE, DTYPE)), TASK)[0, -new:].double().clone()
        allowed = 4 * (run(eager, **unpadded(one, DEVICE, DTYPE))[0, -new:].double() - r).abs().amax(-1)
        r[:, forbidden] = -torch.inf  # min_new_tokens forbids them
        for step, token in enumerate(picked):
            gap = float(r[step].max() - r[step, token])
            if gap < float("inf") and gap > float(allowed[step]):
                wrong += 1
                best = int(r[step].argmax())
                excused = float(allowed[step])
                print(f"  row {{i}}, step {{step}}: {{token}}; fp64: {{best}} by {{gap:.4g}}, excused {{excused:.4g}}")
    return wrong > 0
'''

_REPLAY = '''
def main() -> bool:
    """Generate with CASE["settings"], then make scores, tokens and lengths from the logits by the documented rules."""
    where = checkpoint()
    model = candidate(where)
    given = batch(model).arguments
    settings = {{"max_new_tokens": CASE["new"], "do_sample": False, "pad_token_id": CASE["pad"], **CASE["settings"]}}
    recorded = {{"return_dict_in_generate": True, "output_scores": True, "output_logits": True}}
    inputs = {{k: given[k] for k in ("input_ids", "attention_mask")}}
    with forced_sdpa_kernel(SDPA_KERNEL), torch.no_grad():
        output = model.generate(**inputs, **settings, **recorded)
    rows = tuple(tuple(r) for r in CASE["rows"])
    prompts = Prompts(rows, CASE["length"])
    if TASK == "seq2seq-lm":
        prompts = Prompts(tuple((int(t),) for t in output.sequences[:, 0]), 1, rows)
    found = replay(resolved(settings, model.generation_config), prompts, output)
    apart = {{n: getattr(found, n) for n in ("score_differences", "token_differences", "length_differences")}}
    print(" ", apart, "in", found.scores, "scores")
    return any(apart.values())
'''

_REPEAT = '''
def main() -> bool:
    """The same forward again: at once, and after a longer one. It may draw no random numbers."""
    where = checkpoint()
    model = candidate(where)
    rows = alone()
    whole = Rows(tokens=tuple(r.tokens[0] for r in rows), decoder=tuple(d for r in rows for d in r.decoder))
    inputs = unpadded(whole, DEVICE, DTYPE)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = run(model, **inputs)
    drew = not torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    again = run(model, **inputs)
    longer = Rows(tokens=tuple(t * 4 for t in whole.tokens), decoder=whole.decoder)
    run(model, **unpadded(longer, DEVICE, DTYPE))
    after = run(model, **inputs)
    apart = {{"at once": int((first != again).sum()), "after a longer input": int((first != after).sum())}}
    print("  elements that differ:", apart, "- random numbers drawn:", drew)
    return drew or any(apart.values())
'''

_KINDS: dict[str, tuple[str, tuple[Name, ...]]] = {
    "forward": (_ALONE + _FORWARD, ()),
    "images": (_IMAGES, ()),
    "outliers": (_ALONE + _OUTLIERS, ()),
    "padded": (_ALONE + _BATCH + _PADDED, (("inputs", "padded"),)),
    "packed": (_ALONE + _PACKED, ()),
    "decode": (_ALONE + _DECODE, (("stack_api", "static_cache"), ("stack_api", "accepts"))),
    "generate": (_ALONE + _BATCH + _GENERATE, (("inputs", "padded"),)),
}


def of(check: Check, axes: Mapping[str, str], task: str) -> Body | None:
    """The body for a failing check: by the smallest call that was found, or by what the check itself looks at."""
    case = check.evidence.minimal.get("case")
    if case:
        return _of_case(check, case, axes["quantization"] != "none")
    if check.name == "gradient":
        quantized = _QUANTIZED.lstrip("\n") if axes["quantization"] != "none" else ""
        needs = (*REFERENCE, *(DEQUANTIZED if quantized else ()))
        return measured.gradient(check, axes, task, _JUDGE.format(quantized=quantized), needs)
    make = {
        "load": loading,
        "quality": measured.quality,
        "memory": measured.memory,
        "dispatch": measured.dispatch,
    }.get(check.name)
    return make(check, axes) if make is not None else None


def _of_case(check: Check, case: Mapping[str, Any], quantized: bool) -> Body:
    kind = next((k for k in ("images", "outliers") if k in case), case["kind"])
    bounds = check.evidence.minimal.get("beyond", {})
    if kind == "repeat":
        return Body((_ALONE + _REPEAT).format(), {"CASE": case}, REFERENCE[2:])
    if kind == "replay":
        return Body((_ALONE + _BATCH + _REPLAY).format(), {"CASE": case}, (*REFERENCE[2:], *REPLAYED))
    main, needs = _KINDS[kind]
    judge = _JUDGE.format(quantized=_QUANTIZED.lstrip("\n") if quantized else "")
    body = main.format(start=_START.strip("\n")) + "\n" + judge
    return Body(body, {"CASE": case, "BOUNDS": bounds}, (*REFERENCE, *needs, *(DEQUANTIZED if quantized else ())))
