"""One side of a comparison of two stacks: what this one does when it is asked the same, or nothing in particular.

In: a load group, a backend, a file to write to. Out: plain facts (what is held after loading, what is chosen where the
user says nothing) and tensors (outputs of the same inputs by the same weights). `compare` then reads the files of both
sides and measures how far they are apart, in units of eager's own error against fp64: nothing is decided here.

A part that the stack refuses is a fact of its own (`raised`), so that one side's refusal does not hide the other parts.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from compat.worker import pipeline_calls, stack_api
from compat.worker.calls import StackError, under_test
from compat.worker.dispatch import kernels_seen
from compat.worker.group import Group, Loaded, NoYardstick
from compat.worker.inputs import Rows, padded, unpadded
from compat.worker.load import dtype_shares, quantized_modules, weights_bytes
from compat.worker.metrics import Yardstick, rms

LENGTHS = (49, 46, 40, 34)
"""Tokens of the rows: pads of 0, 3, 9 and 15 in a batch."""

PROMPTS = (21, 14)
"""Tokens of the rows that are continued: the second is padded on the left by 7."""

NEW_TOKENS = 12

PADDED_TASKS = ("causal-lm", "masked-lm", "seq2seq-lm", "feature-extraction")
PAIRED_TASKS = ("image-text-to-text", "speech-seq2seq")
"""Tasks whose rows have one length: an image or a sound stands beside each."""

Parts = dict[str, dict[str, Any]]
Tensors = dict[str, torch.Tensor]


def location(group: Group) -> dict[str, Any]:
    """Where the checkpoint lies on this machine, made first where it is one that compat makes; "" for one that has no
    folder. Raises StackError, Unavailable."""
    folder = Path(group.checkpoint.location)
    return {"location": str(folder) if folder.is_absolute() and folder.is_dir() else ""}


def answer(group: Group, attention: dict[str, Any], file: Path, defaults: bool) -> dict[str, Any]:
    """Facts by part, and the names of the tensors that `file` then holds. `defaults`: ask too what is chosen where the
    user says nothing, which does not depend on the backend. Raises StackError where the model does not load."""
    loaded = group.loaded(attention)
    tensors: Tensors = {}
    parts: Parts = {}

    def part(name: str, ask: Callable[[], dict[str, Any]]) -> None:
        try:
            parts[name] = ask()
        except NoYardstick as error:
            parts[name] = {"missing": str(error)[:300]}
        except StackError as error:
            original = error.original
            said = {"phase": error.phase, "type": type(original).__name__, "message": str(original)[:300]}
            parts[name] = {"raised": said}

    part("held", lambda: _held(group, loaded))
    part("forward", lambda: _forward(group, loaded, tensors))
    if group.task in PADDED_TASKS:
        for side in ("left", "right") if group.task == "causal-lm" else ("right",):
            part(f"{side}_padded", lambda side=side: _padded(group, loaded, side, tensors))  # type: ignore[misc]
    if group.task in ("causal-lm", "seq2seq-lm"):
        part("generate", lambda: _generated(group, loaded, tensors))
    part("eager", lambda: _eager(group, tensors))
    part("reference", lambda: _reference(group, tensors))
    if defaults:
        for name, ask in (("load_defaults", _load_defaults), ("dtype_default", _dtype_default)):
            part(name, lambda ask=ask: ask(group))  # type: ignore[misc]
        if group.task in ("causal-lm", "seq2seq-lm"):
            part("generate_defaults", lambda: _generate_defaults(group, loaded))
        if group.task == "causal-lm":
            part("pipeline_defaults", lambda: _pipeline_defaults(group, loaded))
            config = transformers.GenerationConfig(max_new_tokens=8)
            part("pipeline_config", lambda: _pipeline_defaults(group, loaded, generation_config=config))
            part("pipeline_beams", lambda: _pipeline_defaults(group, loaded, num_beams=2))
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file)
    return {"parts": {name: found for name, found in parts.items() if found}}


# -- what is asked -----------------------------------------------------------------------------------------------


def _held(group: Group, loaded: Loaded) -> dict[str, Any]:
    model = loaded.model
    facts: dict[str, Any] = {
        "attention": stack_api.effective_attention(model),
        "dtypes": {name: round(share, 4) for name, share in sorted(dtype_shares(model).items())},
        "training": any(module.training for module in model.modules()),
        "weights_bytes": group.bytes_at_load(model) or weights_bytes(model),
    }
    if group.spec.quantization["library"]:
        modules = quantized_modules(model)
        whole = sum(group.quantizable.values())
        done = sum(n for path, n in group.quantized.items() if path in group.quantizable)
        facts |= {
            "says_quantized": bool(getattr(model, "is_quantized", False)),
            "quantized_share": round(done / whole, 4) if whole else None,
            "quantized_bytes": sum(m.weight.numel() * m.weight.element_size() for m in modules.values()),
            "quantized_modules": len(modules),
            "quantized_kinds": sorted({type(m).__name__ for m in modules.values()}),
            "quantized_names": sorted(modules)[:40],
        }
    return facts


def _rows(group: Group) -> Rows:
    """Rows of unequal length; images, or one length, where nothing is padded."""
    lengths = [0, 0] if group.task == "image-classification" else list(LENGTHS)
    if group.task in PAIRED_TASKS:
        lengths = [LENGTHS[-1]] * 2
    return group.source.rows(700 + 1000 * group.spec.seed, lengths)


def _singles(rows: Rows) -> list[Rows]:
    """Rows that can stand in one batch without padding."""
    if rows.images is not None:
        return [rows]
    decoder = rows.decoder or ((),) * len(rows.tokens)
    return [Rows(tokens=(t,), decoder=(d,) if d else ()) for t, d in zip(rows.tokens, decoder, strict=True)]


def _flat(outputs: list[torch.Tensor]) -> torch.Tensor:
    """Rows of (positions, features) as one (tokens, features)."""
    return torch.cat(outputs)


def _forward(group: Group, loaded: Loaded, tensors: Tensors) -> dict[str, Any]:
    found: list[torch.Tensor] = []
    with kernels_seen(loaded.attention["implementation"]) as seen:
        for rows in _singles(_rows(group)):
            found += list(loaded(**unpadded(rows, group.device, group.dtype)))
    tensors["unpadded"] = _flat(found)
    return {"kernels": sorted(seen)}


def _padded(group: Group, loaded: Loaded, side: str, tensors: Tensors) -> dict[str, Any]:
    """The batch with its mask and nothing else: position ids are the library's business."""
    batch = padded(_rows(group), side, loaded.model, group.device, group.source.pad)
    batch.arguments.pop("position_ids", None)
    output = loaded(**batch.arguments)
    tensors[f"{side}_padded"] = _flat([o[valid] for o, valid in zip(output, batch.valid, strict=True)])
    return {}


def _generated(group: Group, loaded: Loaded, tensors: Tensors) -> dict[str, Any]:
    rows = group.source.rows(800 + 1000 * group.spec.seed, list(PROMPTS))
    batch = padded(rows, "left" if group.task == "causal-lm" else "right", loaded.model, group.device, group.source.pad)
    asked = {k: batch.arguments[k] for k in ("input_ids", "attention_mask")}
    output: Any = loaded.generate(
        **asked, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    tensors["tokens"] = output.sequences[:, -NEW_TOKENS:]
    tensors["token_logits"] = torch.stack(list(output.logits), 1)
    return {}


def _eager(group: Group, tensors: Tensors) -> dict[str, Any]:
    rows = _rows(group)
    tensors["eager"] = _flat(group.eager_outputs(rows))
    return {}


def _reference(group: Group, tensors: Tensors) -> dict[str, Any]:
    tensors["reference"] = _flat(group.reference_outputs(_rows(group)))
    return {}


# -- what is chosen where the user says nothing ------------------------------------------------------------------


def _from_pretrained(group: Group, folder: str, **arguments: Any) -> Any:
    with under_test("load"), stack_api.default_dtype_kept():
        own = group.checkpoint.arguments
        return stack_api.auto_class(group.task).from_pretrained(folder, **own, **arguments)


def _load_defaults(group: Group) -> dict[str, Any]:
    """The backend of a model that is loaded without naming one."""
    if group.spec.quantization["library"]:
        return {}
    model = _from_pretrained(group, group.checkpoint.location, **stack_api.dtype_argument(group.dtype))
    return {"attention": stack_api.effective_attention(model)}


def _dtype_default(group: Group) -> dict[str, Any]:
    """The dtype of a model that is loaded without naming one, from a checkpoint that is stored in bf16."""
    source = Path(group.checkpoint.location)
    weights = source / "model.safetensors"
    if group.spec.quantization["library"] or group.spec.dtype != "fp32" or not weights.is_file():
        return {}
    folder = Path(tempfile.mkdtemp(prefix="compat-across-"))
    try:
        half = {k: t.bfloat16() if t.is_floating_point() else t for k, t in load_file(weights).items()}
        save_file(half, folder / weights.name, {"format": "pt"})
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        config |= dict.fromkeys(("dtype", "torch_dtype"), "bfloat16")
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        shares = dtype_shares(_from_pretrained(group, str(folder)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"dtype": max(shares, key=lambda name: shares[name])}


class _Resolved(BaseException):
    """Leaves `generate` as soon as its settings are known; no Exception, so that nobody takes it for a failure."""


@contextmanager
def _stopping(model: Any) -> Iterator[list[Any]]:
    """While the block runs, `model.generate` ends when it has put its settings together; they are in the list."""
    resolved: list[Any] = []
    prepare = type(model)._prepare_generation_config

    def kept(*arguments: Any, **more: Any) -> Any:
        config, _ = prepare(model, *arguments, **more)
        resolved.append(config)
        raise _Resolved

    model._prepare_generation_config = kept
    try:
        yield resolved
    finally:
        del model._prepare_generation_config


def _settings(resolved: list[Any]) -> dict[str, Any]:
    """What decides which tokens come: settings of sampling only where it samples, neutral values for what is open."""
    if not resolved:
        return {}
    config = resolved[0]
    neutral: dict[str, Any] = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "min_new_tokens": None,
                               "max_new_tokens": None, "num_return_sequences": 1, "use_cache": True}  # fmt: skip
    if getattr(config, "do_sample", None):
        neutral |= {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None, "typical_p": 1.0}
    found = {name: getattr(config, name, None) for name in neutral}
    said = {name: neutral[name] if value is None else value for name, value in found.items()}
    if said["max_new_tokens"] is None:
        said["max_length"] = getattr(config, "max_length", None)
    return said


def _generate_defaults(group: Group, loaded: Loaded) -> dict[str, Any]:
    """Settings of `generate(input_ids)`, resolved by the library."""
    rows = group.source.rows(800 + 1000 * group.spec.seed, [PROMPTS[0]])
    with _stopping(loaded.model) as resolved, suppress(_Resolved):
        loaded.generate(input_ids=torch.tensor(rows.tokens, device=group.device))
    return _settings(resolved)


def _pipeline_defaults(group: Group, loaded: Loaded, **given: Any) -> dict[str, Any]:
    """Settings of `pipeline("text-generation")(text, **given)`, resolved by the library; with nothing given also the
    side on which it pads."""
    tokenizer = copy.deepcopy(group.tokenizer)
    tokenizer.padding_side = "right"  # what a tokenizer does that says nothing
    pipe = pipeline_calls.make(loaded, "text-generation", tokenizer=tokenizer)
    words = group.source.rows(800 + 1000 * group.spec.seed, [5])
    text = tokenizer.decode(list(words.tokens[0]))
    with _stopping(loaded.model) as resolved, suppress(_Resolved):
        pipeline_calls.call(loaded, pipe, text, **given)
    return _settings(resolved) | ({} if given else {"padding_side": pipe.tokenizer.padding_side})


# -- how far two sides are apart ---------------------------------------------------------------------------------


def compare(dtype: torch.dtype, files: tuple[Path, Path]) -> dict[str, Any]:
    """Figures of the tensors in the files of both sides, by path; `files`: of the stack before, of the one after.

    `unit` is eager's own error against fp64 on the stack where it is smaller, and no less than what `dtype` can tell
    apart. Raises OSError.
    """
    before, after = (load_file(file) for file in files)
    found: dict[str, Any] = {"paths": {}, "facts": {}}
    yard, which = _smaller_yardstick(before, after, dtype)
    if yard is None:
        found["facts"]["yardstick"] = "neither stack has a finite eager output and reference"
        return found
    unit = max(yard.error, yard.unit)
    found["facts"] |= {"yardstick": which, "unit_eps": _short(unit / yard.scale)}
    r, other = before.get("reference"), after.get("reference")
    if r is not None and other is not None:
        found["paths"]["reference"] = _apart(r, other, None, yard, unit)
    for path in ("unpadded", "left_padded", "right_padded"):
        if path in before and path in after:
            found["paths"][path] = _apart(before[path], after[path], r, yard, unit)
    if "tokens" in before and "tokens" in after:
        found["tokens"] = _tokens(before, after, unit)
    return found


def _smaller_yardstick(before: Tensors, after: Tensors, dtype: torch.dtype) -> tuple[Yardstick | None, str]:
    made: list[tuple[float, str, Yardstick]] = []
    for side, name in ((before, "from"), (after, "to")):
        if {"reference", "eager"} <= side.keys() and side["reference"].shape == side["eager"].shape:
            yard = Yardstick(side["reference"].double(), side["eager"], dtype, logits=False)
            if not yard.empty and math.isfinite(yard.error):
                made.append((yard.error, name, yard))
    if not made:
        return None, ""
    _, name, yard = min(made, key=lambda entry: entry[0])
    return yard, name


def _apart(
    before: torch.Tensor, after: torch.Tensor, r: torch.Tensor | None, yard: Yardstick, unit: float
) -> dict[str, Any]:
    """Figures of one path; `r` is the reference that both are measured against, where there is one."""
    if before.shape != after.shape:
        return {"shapes": [list(before.shape), list(after.shape)]}
    a, b = before.double(), after.double()
    finite = [int((~torch.isfinite(x)).sum()) for x in (a, b)]
    said: dict[str, Any] = {"elements": a.numel(), "nonfinite": finite}
    if any(finite):
        return said
    token = (b - a).square().mean(-1).sqrt()
    normal = yard.token_error.clamp_min(unit) if yard.token_error.shape == token.shape else torch.tensor(unit)
    said |= {
        "difference": _short(rms(b - a) / unit),
        "difference_token": _short(float((token / normal).max())),
        "largest": _short(float((b - a).abs().max())),
        "identical": bool(torch.equal(before, after)),
    }
    if r is not None and r.shape == a.shape and bool(torch.isfinite(r).all()):
        said["errors"] = [_short(rms(x - r.double()) / unit) for x in (a, b)]
    return said


def _tokens(before: Tensors, after: Tensors, unit: float) -> dict[str, Any]:
    """Where greedy tokens part, and by how much `before` preferred its own there, in units of the yardstick's error:
    a choice between two that are as good as equal may go either way."""
    a, b = before["tokens"], after["tokens"]
    if a.shape != b.shape:
        return {"shapes": [list(a.shape), list(b.shape)]}
    gaps: list[float] = []
    at: list[int] = []
    for row in range(a.shape[0]):
        parts = (a[row] != b[row]).nonzero()
        if len(parts):
            step = int(parts[0])
            logits = before["token_logits"][row, step].double()
            gaps.append(_short(float(logits[a[row, step]] - logits[b[row, step]]) / unit))
            at.append(step)
    return {"compared": a.numel(), "differing": int((a != b).sum()), "first_at": at, "gaps": gaps}


def _short(value: float) -> float:
    return float(f"{value:.6g}")
