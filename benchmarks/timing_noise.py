"""How often the timing engine is wrong: the same against the same, and against planted slowdowns.

In: a device. Out: a table, and JSON with --out. benchmarks/README.md says how to read it.

    python benchmarks/timing_noise.py                       # about 10 minutes
    python benchmarks/timing_noise.py --comparisons 20      # a first look
    python benchmarks/timing_noise.py --busy                # beside processes that keep every core busy

Both sides run one model. A planted slowdown waits on the device (on a CPU: spins) for a share of what a call takes,
measured beforehand, after each call of the candidate. A comparison counts as flagged when compat.speed.stats.stated
says so and nothing in compat/criteria/speed.toml casts doubt on it.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from compat import device as accelerator
from compat.judge import doubts, judge
from compat.rules import Context
from compat.speed.stats import median_interval, paired_ratios, relative_width, stated
from compat.worker.ceilings import canary
from compat.worker.environment import describe
from compat.worker.timing import Clock, Side, Timing, compare

PLANTED = (0.0, 0.02, 0.05)
"""Slowdowns of the candidate."""

AIMS = {0.0: ("at most", 0.01), 0.02: ("at least", 0.5), 0.05: ("at least", 0.95)}
"""Share of comparisons that may, or have to, be flagged; that of 2% is an aim on a GPU only."""

SHAPES: dict[str, dict[str, int]] = {
    "cpu": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 688, "rows": 2,
            "length": 128},
    "cuda": {"hidden_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 16, "intermediate_size": 5504,
             "rows": 4, "length": 1024},
}  # fmt: skip
"""A decoder large enough that the device, and not the host, sets the pace."""


CELL = {"model": "decoder", "dtype": "fp32", "attention": "sdpa", "quantization": "none"}
"""What the criteria are told of it."""


def forward(device: torch.device) -> Callable[[], Any]:
    """A forward of a small decoder with SDPA attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = dict(SHAPES[device.type])
    rows, length = shape.pop("rows"), shape.pop("length")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    config = LlamaConfig(**shape, vocab_size=2048, attn_implementation="sdpa")
    model = LlamaForCausalLM(config).to(device=device, dtype=dtype).eval()
    ids = torch.randint(0, 2048, (rows, length), device=device)

    def call() -> Any:
        with torch.no_grad():
            return model(input_ids=ids, use_cache=False)

    return call


def slowed(device: torch.device, call: Callable[[], Any], own_seconds: float) -> Callable[[float], None]:
    """`call` and then a wait for a share of its time: on a CPU of the time that it just took, on a GPU, whose time is
    not known yet, of `own_seconds`."""
    if device.type == "cpu":

        def spinning(share: float) -> None:
            started = time.perf_counter()
            call()
            until = started + (1 + share) * (time.perf_counter() - started)
            while time.perf_counter() < until:
                pass

        return spinning
    clock, cycles = Clock(device), 10_000_000
    waiting = Side(lambda: torch.cuda._sleep(cycles))
    clock.sample(waiting)
    a_second = cycles / statistics.median(clock.sample(waiting) for _ in range(5))

    def sleeping(share: float) -> None:
        call()
        if share:
            torch.cuda._sleep(int(share * own_seconds * a_second))

    return sleeping


@contextmanager
def competitors(count: int) -> Iterator[None]:
    """Keep `count` other processes busy."""
    others = [multiprocessing.get_context("spawn").Process(target=_burn, daemon=True) for _ in range(count)]
    for process in others:
        process.start()
    try:
        yield
    finally:
        for process in others:
            process.terminate()


def _burn() -> None:
    total = 0
    while True:
        total = (total * 31 + 7) % 1_000_003


def measure(device: torch.device, comparisons: int, budget: float) -> dict[str, Any]:
    """`comparisons` of each planted slowdown, in turn, so that a drift of the machine meets all alike."""
    call, clock = forward(device), Clock(device)
    own = statistics.median(clock.sample(Side(call)) for _ in range(30))
    slower = slowed(device, call, own)
    found: dict[float, list[dict[str, Any]]] = {share: [] for share in PLANTED}
    for _ in range(comparisons):
        for share in PLANTED:
            sides = [Side(functools.partial(slower, share)), Side(call)]
            timing = compare(sides, device, budget, canary=canary(device, torch.get_num_threads()))
            ratios = paired_ratios(*timing.seconds)
            low, high = median_interval(ratios)
            found[share].append(
                {
                    "ratio": statistics.median(ratios),
                    "width": relative_width(low, high),
                    "stated": stated(low, high),
                    "inconclusive": inconclusive(timing),
                    "holds": low <= 1 / (1 + share) <= high,
                    "pairs": len(ratios),
                    "overhead": timing.overhead,
                    "contention": timing.contention,
                    "rate": min(timing.rates),
                    "seconds": timing.wall_seconds,
                }
            )
    return {
        "call_seconds": own,
        "budget_seconds": budget,
        "comparisons": comparisons,
        "planted": {f"{share:g}": _summed(share, rows) for share, rows in found.items()},
    }


def inconclusive(timing: Timing) -> bool:
    """Whether compat would refuse to state this comparison, by the criteria of its figures."""
    point = {
        "phase": "prefill", "batch": 1, "length": 1, "padding": 0.0, "tokens": 1, "unit": "tokens",
        "seconds": timing.seconds[0], "baseline_seconds": timing.seconds[1], "contention": timing.contention,
        "rates": timing.rates,
    }  # fmt: skip
    answer = {"status": "ok", "measurements": [], "facts": {"points": [point]}, "kernels": {}}
    return bool(doubts(judge("speed", answer, Context(CELL, "cpu", real=False))))


def _summed(share: float, rows: list[dict[str, Any]]) -> dict[str, Any]:
    expected = "slower" if share else ""
    return {
        "flagged": sum(bool(r["stated"]) and not r["inconclusive"] for r in rows),
        "inconclusive": sum(r["inconclusive"] for r in rows),
        "flagged_rightly": sum(r["stated"] == expected and not r["inconclusive"] for r in rows) if share else 0,
        "interval_holds_truth": sum(r["holds"] for r in rows),
        "median_ratio": statistics.median(r["ratio"] for r in rows),
        "widest_ratio": max(abs(r["ratio"] - 1 / (1 + share)) for r in rows),
        "median_width": statistics.median(r["width"] for r in rows),
        "median_pairs": statistics.median(r["pairs"] for r in rows),
        "median_overhead": statistics.median(r["overhead"] for r in rows),
        "median_contention": statistics.median(r["contention"] or 0.0 for r in rows),
        "least_device_rate": min(r["rate"] for r in rows),
        "median_seconds": statistics.median(r["seconds"] for r in rows),
        "ratios": [float(f"{r['ratio']:.4g}") for r in rows],
        "widths": [float(f"{r['width']:.3g}") for r in rows],
    }


def table(result: dict[str, Any]) -> str:
    """The figures for a terminal."""
    rows = [
        [
            f"{float(share):.0%}",
            f"{x['flagged']} of {result['comparisons']}",
            f"{x['inconclusive']}",
            f"{x['interval_holds_truth'] / result['comparisons']:.1%}",
            f"{x['median_ratio']:.4f}",
            f"{x['median_width']:.2%}",
            f"{x['median_pairs']:g}",
            f"{x['median_overhead']:.1%}",
            f"{x['median_seconds']:.2f}",
        ]
        for share, x in result["planted"].items()
    ]
    headers = [
        "slower by",
        "flagged",
        "inconclusive",
        "interval holds",
        "median ratio",
        "width",
        "pairs",
        "overhead",
        "s",
    ]
    return tabulate(rows, headers=headers)


def _met(result: dict[str, Any]) -> bool:
    met = True
    for share, (sense, bound) in AIMS.items():
        if share == 0.02 and result["device"] == "cpu":
            continue
        rate = result["planted"][f"{share:g}"]["flagged"] / result["comparisons"]
        met &= rate <= bound if sense == "at most" else rate >= bound
    return met


def main() -> int:
    """0 when the aims are met, 1 when not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=200, help="of each planted slowdown (default: 200)")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds of one comparison (default: 1)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--busy", action="store_true", help="beside processes that keep every core busy; aims do not hold"
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    kind = accelerator.detect().type if arguments.device == "auto" else arguments.device
    device = torch.device(kind)
    if kind == "cpu":
        torch.set_num_threads(1)
    with competitors((os.cpu_count() or 1) if arguments.busy else 0):
        result = measure(device, arguments.comparisons, arguments.budget)
    described = describe()
    result |= {
        "device": kind,
        "machine": described["gpus"][0]["name"] if kind == "cuda" else described["cpu"],
        "packages": {k: described["packages"][k] for k in ("torch", "transformers")},
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "busy": arguments.busy,
    }
    print(table(result))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if arguments.busy:
        return 0
    print("aims met" if _met(result) else "aims NOT met")
    return 0 if _met(result) else 1


if __name__ == "__main__":
    sys.exit(main())
