"""What `compat speed` measures beside the clock: memory, ceilings, attention alone, first tokens, energy, pipelines.

In: a load group, a backend and a point. Out: more keys of the point's entry, and facts. Each is left out where the
device or the family does not have it.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable
from typing import Any

import torch

from compat import device as accelerator
from compat.speed.rounds import short
from compat.worker import pipeline_calls, stack_api
from compat.worker.allocations import Allocations
from compat.worker.arithmetic import Arithmetic
from compat.worker.attention_alone import captured
from compat.worker.calls import under_test
from compat.worker.ceilings import ceilings
from compat.worker.dispatch import forced_sdpa_kernel, synchronize
from compat.worker.group import Group, Loaded
from compat.worker.load import weights_bytes
from compat.worker.report import Report
from compat.worker.stepping import Batch, Point, cacheless, last_logits
from compat.worker.timing import Side, compare

PART = 0.3
"""Share of a comparison's budget that each extra may take."""

NEW_TOKENS = 32
"""Tokens that a pipeline and `generate` write."""

ENERGY_SECONDS = 1.0
"""The counter of energy moves every 20 to 100 ms."""


def before(report: Report, group: Group) -> None:
    """Ceilings, and the state of the device before the first sample."""
    report.facts["ceilings"] = ceilings(group.device, group.dtype, torch.get_num_threads())
    report.facts["threads"] = torch.get_num_threads()
    if group.device.type == "cuda":
        report.facts["device_before"] = accelerator.volatile(group.device.index or 0)


def after(report: Report, group: Group, candidate: Loaded) -> None:
    """The state of the device after the last sample; the pipeline against generate."""
    if group.device.type == "cuda":
        report.facts["device_after"] = accelerator.volatile(group.device.index or 0)
    if group.task == "causal-lm":
        _pipeline(report, group, candidate)


def peak_bytes(group: Group, loaded: Loaded, arguments: dict[str, Any]) -> int:
    """Most bytes that one forward holds at once beside weights and inputs."""
    if group.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(group.device)
        held = torch.cuda.memory_allocated(group.device)
        loaded.forward(**arguments)
        return int(torch.cuda.max_memory_allocated(group.device) - held)
    account = Allocations()
    with account:
        loaded.forward(**arguments)
    return int(account.peak_bytes)


def prefill(report: Report, group: Group, loaded: Loaded, point: Point, inputs: Batch, entry: dict[str, Any]) -> None:
    """The share of the ceilings that a prefill attains; attention alone; the time to a first token; energy."""
    causal = group.task in stack_api.CAUSAL_TASKS
    extra = cacheless(loaded.model)
    alone = None
    if loaded.attention["implementation"] != "flex_attention":
        loaded.activate()
        with forced_sdpa_kernel(loaded.attention["sdpa_kernel"]), torch.no_grad():
            alone = captured(loaded, inputs, extra, causal)
    if alone is None:
        report.facts["attention_alone"] = "the family's attention is not called through the library's registry"
    else:
        timing = _alone(group, loaded, alone.again)
        entry["attention"] = {"seconds": timing, "flops": alone.flops, "bytes": alone.bytes}
    if group.task == "causal-lm":
        known = _multiply_adds(group, loaded.model)
        if known is not None:
            layers = int(loaded.model.config.get_text_config().num_hidden_layers)
            own = layers * alone.flops if alone is not None else 0
            entry["flops"] = 2 * known * inputs.tokens + own
        first = {**inputs.arguments, "use_cache": True, **last_logits(loaded.model)}
        entry["first_token_seconds"] = _alone(group, loaded, functools.partial(loaded.model, **first))
    energy = _energy(group, loaded, functools.partial(loaded.model, **inputs.arguments, **extra))
    if energy is not None:
        entry["joules"] = energy


def decode(group: Group, loaded: Loaded, inputs: Batch, entry: dict[str, Any]) -> None:
    """Bytes that one step has to read at least: every weight but the table of embeddings, and the cache of real
    tokens."""
    model = loaded.model
    config = model.config.get_text_config()
    table = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    tied = head is not None and head.weight.data_ptr() == table.data_ptr()
    weights = weights_bytes(model) - (0 if tied else table.numel() * table.element_size())
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = 2 * int(config.num_hidden_layers) * int(heads) * int(head_dim) * group.dtype.itemsize * inputs.tokens
    if not any("expert" in name for name, _ in model.named_modules()):
        entry["step_bytes"] = weights + cache


def _multiply_adds(group: Group, model: Any) -> int | None:
    """Multiply-adds of all weights for one position; None where the arithmetic leaves something out."""
    own = Arithmetic(model, group.task)
    return None if own.left_out else sum(weight.size for weight in own.weights.values())


def _side(loaded: Loaded, call: Callable[[], Any]) -> Side:
    def around() -> Any:
        return forced_sdpa_kernel(loaded.attention["sdpa_kernel"])

    def guarded() -> Any:
        with torch.no_grad():
            return call()

    return Side(guarded, loaded.activate, around=around)


def _alone(group: Group, loaded: Loaded, call: Callable[[], Any]) -> list[float]:
    """Seconds of samples of one call."""
    budget = PART * float(group.spec.speed.get("budget_seconds") or 1.0)
    return [short(s) for s in compare([_side(loaded, call)], group.device, budget).seconds[0]]


def _energy(group: Group, loaded: Loaded, call: Callable[[], Any]) -> float | None:
    """Joules of one call by the device's own counter; None without one."""
    index = group.device.index or 0
    if group.device.type != "cuda" or accelerator.energy_joules(index) is None:
        return None
    side = _side(loaded, call)
    with side.around():
        side.before()
        side.call()
        synchronize(group.device)
        started, first = time.perf_counter(), accelerator.energy_joules(index)
        calls = 0
        while time.perf_counter() - started < ENERGY_SECONDS:
            side.call()
            synchronize(group.device)
            calls += 1
        last = accelerator.energy_joules(index)
    return None if first is None or last is None else (last - first) / calls


def _pipeline(report: Report, group: Group, loaded: Loaded) -> None:
    """The text-generation pipeline against `generate` and the tokenizer, on one prompt, both greedy."""
    tokenizer = copy.deepcopy(group.tokenizer)
    ids = group.source.rows(902, [64]).tokens[0]
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    pipe = pipeline_calls.make(loaded, "text-generation", tokenizer=tokenizer)

    def through() -> Any:
        return pipe(text, **settings)

    def directly() -> Any:
        tokens = tokenizer(text, return_tensors="pt").to(group.device)
        written = loaded.model.generate(**tokens, **settings, pad_token_id=tokenizer.pad_token_id)
        return tokenizer.batch_decode(written, skip_special_tokens=True)

    budget = float(group.spec.speed.get("budget_seconds") or 1.0)
    with under_test("pipeline"):
        timing = compare([_side(loaded, through), _side(loaded, directly)], group.device, budget)
    report.facts["pipeline"] = {
        "seconds": [short(s) for s in timing.seconds[0]],
        "generate_seconds": [short(s) for s in timing.seconds[1]],
        "prompt_tokens": len(ids),
        "new_tokens": NEW_TOKENS,
    }
