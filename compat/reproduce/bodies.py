"""What a script does, by the kind of call that shows the defect: `main` as text, its constants, and what it needs.

In: a check with its evidence. Out: a `Body`, or None where no script stands for what the check saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compat.records import Check
from compat.reproduce import calls, held, measured, raised
from compat.reproduce.body import Body, Name
from compat.reproduce.gradient import gradient
from compat.reproduce.loading import loading

REFERENCE: tuple[Name, ...] = (("reference", "Reference"), ("metrics", "Yardstick"), ("inputs", "Rows"),
                               ("inputs", "unpadded"), ("divergence", "FEW"))  # fmt: skip
DEQUANTIZED: tuple[Name, ...] = (("load", "quantized_modules"), ("dequantize", "stored"), ("dequantize", "dequantize"))

REPLAYED: tuple[Name, ...] = (
    ("inputs", "padded"),
    ("oracles", "resolved"),
    ("replay", "Prompts"),
    ("replay", "replay"),
)

_HEAD = '''
def fp64(where: Checkpoint, eager: Any) -> Reference:
    """The same weights, as rounded or dequantized, computed in fp64 with an attention of its own."""
    master = master_of(where)
    reference = Reference(master, DEVICE)
    reference.round_weights(DTYPE)
'''

_QUANTIZED = """\
    for path, module in quantized_modules(eager).items():  # before a first forward repacks the codes
        weight = dequantize(stored(module)).cpu()
        reference.set_weight(path, weight.t() if type(master.get_submodule(path)).__name__ == "Conv1D" else weight)
"""

_TAIL = '''\
    return reference


def ready() -> tuple[Any, Any, Reference]:
    """The model in question, eager attention in the same dtype, and fp64."""
    where = checkpoint()
    eager = load(where, "eager")
    reference = fp64(where, eager)
    return candidate(where), eager, reference
'''

_JUDGED_BY = '''

def tells(name: str, value: float | None) -> bool:
    """Whether a figure tells of the defect: it is not finite, or it lies on the side of what was found when it is
    measured from the middle (geometric mean) of bound and finding, or from four bounds where that is less. On another
    machine products add in another order, and clean calls this small lie up to twice their bounds beyond them."""
    if value is None or name not in BOUNDS:
        return name in BOUNDS
    bound, found = BOUNDS[name], FIGURES.get(name, BOUNDS[name])
    return value > (4 * bound if found is None else min(4 * bound, (bound * max(bound, found)) ** 0.5))


def judged(reference: Reference, eager: Any, rows: list[Rows], outputs: list[torch.Tensor], at: Any = None) -> bool:
    """Print the figures of `outputs` (one a row) against each row alone and unpadded; whether one tells of the defect.

    `at` says which positions of all rows one after the other `outputs` hold, where these are not all.
    E(x) = rms(x - r): r is fp64, e eager attention in the same dtype, o the outputs. ratio_rms is E(o) / E(e), and
    ratio_token and ratio_max the same in the worst token and element.
    """
    r = [output_of(reference(**unpadded(one, DEVICE, DTYPE)), TASK)[0] for one in rows]
    e = [run(eager, **unpadded(one, DEVICE, DTYPE))[0] for one in rows]
    found = Yardstick(torch.cat(r), torch.cat(e), DTYPE, TASK != "feature-extraction").compare(torch.cat(outputs), at)
    figures = {
        "nonfinite_elements": found.nonfinite,
        "yardstick_error": found.yardstick_eps,
        "yardstick_token": found.yardstick_token_eps,
        "candidate_error": found.candidate_eps,
        "ratio_rms": found.ratio_rms,
        "ratio_token": found.ratio_token,
        "ratio_max": found.ratio_max,
        "kl_excess": None if found.kl is None else found.kl - 4 * found.kl_yardstick,
    }
    if found.kl is None and not found.nonfinite:  # not measured on parts of rows
        del figures["kl_excess"]
    if at is not None and found.tokens < FEW:  # the yardstick is of all positions: so few are judged as one is
        del figures["ratio_rms"]
    for name, value in figures.items():
        bound = f", pass <= {BOUNDS[name]:g}" if name in BOUNDS else ""
        mark = " <- the defect" if tells(name, value) else ""
        print(f"  {name} {'not finite' if value is None else format(value, '.4g')}{bound}{mark}")
    return any(tells(name, value) for name, value in figures.items())
'''

_FORWARD = '''
def main() -> bool:
    """One forward without a mask."""
    model, eager, reference = ready()
    return judged(reference, eager, alone(), list(called(model)))
'''

_IMAGES = '''
def main() -> bool:
    """One forward of images."""
    model, eager, reference = ready()
    return judged(reference, eager, [Rows(images=image[None]) for image in images(model)], list(called(model)))
'''

_OUTLIERS = '''
def main() -> bool:
    """One forward of embeddings, some of which hold two large values."""
    model, eager, reference = ready()
    every, value = CASE["outliers"]["every"], CASE["outliers"]["value"]
    master = master_of(checkpoint())
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

_PADDED = '''
def main() -> bool:
    """One forward of a padded batch; each row judged by itself alone."""
    model, eager, reference = ready()
    o = called(model)
    return judged(reference, eager, alone(), [o[i, where] for i, where in enumerate(batch(model).valid)])
'''

_PACKED = '''
def main() -> bool:
    """All rows in one, position ids restarting, no mask; each row judged by itself alone."""
    model, eager, reference = ready()
    return judged(reference, eager, alone(), list(called(model)[0].split([len(row) for row in CASE["rows"]])))
'''

_DECODE = '''
def main() -> bool:
    """The rows in pieces through a cache; what comes back is judged by the full forward of each row alone."""
    model, eager, reference = ready()
    logits, places = called(model)
    return judged(reference, eager, alone(), logits, torch.tensor(places, device=DEVICE))
'''

_GENERATE = '''
def main() -> bool:
    """Greedy generation; every token, and the logits that it was picked from, judged by fp64 on the same prefix alone.

    A token other than fp64's best is excused within 4 times the error of eager attention in the same dtype.
    """
    model, eager, reference = ready()
    output, new = called(model), CASE["new"]
    out, logits = output.sequences, torch.stack(list(output.logits)[:new], 1)
    eos = model.generation_config.eos_token_id
    forbidden = [] if eos is None else eos if isinstance(eos, list) else [eos]
    wrong, broken = 0, False
    for i, prompt in enumerate(CASE["rows"]):
        picked = out[i, -new:].tolist()
        if TASK == "causal-lm":
            one = Rows(tokens=((*prompt, *picked[:-1]),))
        else:
            one = Rows(tokens=(tuple(prompt),), decoder=((int(out[i, 0]), *picked[:-1]),))
        length = len((one.decoder or one.tokens)[0])
        at = torch.arange(length - new, length, device=DEVICE)
        broken = judged(reference, eager, [one], [logits[i]], at) or broken
        r = output_of(reference(**unpadded(one, DEVICE, DTYPE)), TASK)[0, -new:].double().clone()
        allowed = 4 * (run(eager, **unpadded(one, DEVICE, DTYPE))[0, -new:].double() - r).abs().amax(-1)
        r[:, forbidden] = -torch.inf  # min_new_tokens forbids them
        for step, token in enumerate(picked):
            gap = float(r[step].max() - r[step, token])
            if gap < float("inf") and gap > float(allowed[step]):
                wrong += 1
                best = int(r[step].argmax())
                excused = float(allowed[step])
                print(f"  row {i}, step {step}: {token}; fp64: {best} by {gap:.4g}, excused {excused:.4g}")
    return broken or (wrong > 0 and "unexcused_tokens" in BOUNDS)
'''

_REPLAY = '''
def main() -> bool:
    """Generate with CASE["settings"], then make scores, tokens and lengths from the logits by the documented rules."""
    where = checkpoint()
    model = candidate(where)
    given = batch(model).arguments
    settings = {"max_new_tokens": CASE["new"], "do_sample": False, "pad_token_id": CASE["pad"], **CASE["settings"]}
    recorded = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    inputs = {k: given[k] for k in ("input_ids", "attention_mask")}
    with forced_sdpa_kernel(SDPA_KERNEL), torch.no_grad():
        output = model.generate(**inputs, **settings, **recorded)
    rows = tuple(tuple(r) for r in CASE["rows"])
    prompts = Prompts(rows, CASE["length"])
    if TASK == "seq2seq-lm":
        prompts = Prompts(tuple((int(t),) for t in output.sequences[:, 0]), 1, rows)
    found = replay(resolved(settings, model.generation_config), prompts, output)
    apart = {n: getattr(found, n) for n in ("score_differences", "token_differences", "length_differences")}
    print(" ", apart, "in", found.scores, "scores")
    return any(apart.values())
'''

_REPEAT = '''
def main() -> bool:
    """The same forward again: at once, and after a longer one. It may draw no random numbers."""
    where = checkpoint()
    model = candidate(where)
    whole = together()
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
    apart = {"at once": int((first != again).sum()), "after a longer input": int((first != after).sum())}
    print("  elements that differ:", apart, "- random numbers drawn:", drew)
    return drew or any(apart.values())
'''

_JUDGED: dict[str, str] = {
    "forward": calls.KINDS["forward"][0] + _FORWARD,
    "images": calls.KINDS["images"][0] + _IMAGES,
    "outliers": calls.ALONE + _OUTLIERS,
    "padded": calls.KINDS["padded"][0] + _PADDED,
    "packed": calls.ALONE + calls.KINDS["packed"][0] + _PACKED,
    "decode": calls.ALONE + calls.KINDS["decode"][0] + _DECODE,
    "generate": calls.KINDS["generate"][0] + _GENERATE,
}


def of(check: Check, axes: Mapping[str, str], task: str) -> Body | None:
    """The body for a failing check: by the smallest call that was found, or by what the check itself looks at."""
    minimal, quantized = check.evidence.minimal, axes["quantization"] != "none"
    case = minimal.get("case")
    if minimal.get("raises") and case:
        return raised.raised(case, minimal["raises"])
    if case:
        return _of_case(check, case, quantized, axes["attention"] == "eager")
    if check.name == "gradient":
        return gradient(check, task, prepared(quantized), needs(quantized))
    make = {
        "load": loading,
        "quality": measured.quality,
        "memory": held.memory,
        "cache": held.cache,
        "dispatch": measured.dispatch,
    }.get(check.name)
    return make(check, axes) if make is not None else None


def prepared(quantized: bool) -> str:
    """What makes the three models: in question, eager, fp64."""
    return _HEAD + (_QUANTIZED if quantized else "") + _TAIL


def judge(quantized: bool) -> str:
    """Text of `fp64`, `ready`, `tells` and `judged`."""
    return prepared(quantized) + _JUDGED_BY


def needs(quantized: bool) -> tuple[Name, ...]:
    """What `judge` needs of our files."""
    return (*REFERENCE, *(DEQUANTIZED if quantized else ()))


def _of_case(check: Check, case: dict[str, Any], quantized: bool, eager: bool) -> Body | None:
    kind = calls.kind_of(case)
    if kind == "repeat":
        return Body(calls.ALONE + _REPEAT, {"CASE": case}, calls.IMPORTED)
    if kind == "replay":
        return Body(calls.ALONE + calls.BATCH + _REPLAY, {"CASE": case}, (*calls.IMPORTED, *REPLAYED))
    if kind not in _JUDGED:
        return None
    bounds = dict(check.evidence.minimal.get("beyond", {}))
    figures = check.evidence.minimal.get("figures", {})
    if eager and "yardstick_error" in bounds:  # the script's yardstick is each row alone: the call itself is eager too
        bounds["candidate_error"] = bounds["yardstick_error"]
    constants = {"CASE": case, "BOUNDS": bounds, "FIGURES": {n: figures[n] for n in bounds if n in figures}}
    own = calls.KINDS[kind][1] if kind in calls.KINDS else ()
    return Body(_JUDGED[kind] + "\n" + judge(quantized), constants, (*needs(quantized), *own))
