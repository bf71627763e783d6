"""Made-up runs to render: a small one with every outcome, and a large one of the size that is published.

Out: deterministic `Run` values. No figure here was measured on anything.
"""

from __future__ import annotations

import random

from compat.records import (
    Cell,
    Check,
    Environment,
    Evidence,
    ExceptionInfo,
    FileIdentity,
    Gpu,
    Measurement,
    Outcome,
    Run,
    RunInfo,
    StackIdentity,
    cell_outcome,
    summarize,
)
from compat.sharper import linked

O = Outcome  # noqa: E741
MODELS = (
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "mixtral",
    "gemma",
    "gemma2",
    "gemma3",
    "phi",
    "phi3",
    "falcon",
    "gpt2",
    "gpt_neox",
    "gptj",
    "opt",
    "bloom",
    "stablelm",
    "starcoder2",
    "olmo2",
    "granite",
    "deepseek_v3",
    "mamba",
    "t5",
    "bert",
    "whisper",
)
ATTENTIONS = (
    "eager",
    "sdpa",
    "sdpa-math",
    "sdpa-flash",
    "sdpa-efficient",
    "sdpa-cudnn",
    "flash_attention_2",
    "flash_attention_3",
    "flex_attention",
)
DTYPES = ("fp32", "fp16", "bf16")
QUANTIZATIONS = ("none", "bnb-int8", "bnb-fp4", "bnb-nf4", "bnb-nf4-dq")


def cell_id(model: str, dtype: str, attention: str, quantization: str, *more: str) -> str:
    """The id of a cell from its axis values."""
    return "/".join((model, dtype, attention, quantization, *more))


def a_check(name: str, outcome: Outcome, cell: str, reason: str = "", **evidence: object) -> Check:
    """A check of `cell` with plausible measurements; `evidence` adds to or replaces its evidence."""
    measurements: tuple[Measurement, ...] = ()
    draw = random.Random(f"{cell}/{name}")
    if name == "agreement" and outcome is not O.NOT_RUN:
        error = 0.31 + draw.random() if outcome is O.FAIL else draw.uniform(1e-4, 9e-4)
        samples = tuple(error * draw.uniform(0.9, 1.0) for _ in range(4))
        interval = (error * 0.95, error * 1.04)
        sqnr = Measurement(name="sqnr", unit="dB", better="higher", value=draw.uniform(20, 60), values=samples)
        measurements = (
            Measurement(name="max_error_ratio", unit="x", value=error, values=samples, ci95=interval, method="max"),
            sqnr,
            Measurement(name="non_finite", unit="elements", value=0.0, better="none"),
        )
    if name == "speed" and outcome is not O.NOT_RUN:
        gain = draw.uniform(1.05, 2.2) if "flash" in cell else draw.uniform(0.8, 1.4)
        measurements = tuple(
            Measurement(
                name=f"{phase}_speedup",
                unit="x",
                better="higher",
                value=gain * scale,
                values=(gain, gain),
                ci95=(gain * scale * 0.97, gain * scale * 1.03),
                method="ratio of medians",
            )
            for phase, scale in (("prefill", 1.0), ("decode", 0.8))
        )
    if name == "memory":
        measurements = (Measurement(name="peak_bytes", unit="bytes", value=float(draw.randrange(1 << 28, 1 << 33))),)
    told: dict[str, object] = {"repro": f"compat run --only '{cell}' --check {name}", "seed": 20}
    return Check(
        name=name,
        outcome=outcome,
        reason=reason,
        seconds=round(draw.uniform(0.05, 3), 3),
        measurements=measurements,
        evidence=Evidence(**{**told, **evidence}),  # type: ignore[arg-type]
    )


def a_cell(place: str, *checks: Check, effective: dict[str, object] | None = None, **extras: str) -> Cell:
    """The cell at `place` (`model/dtype/attention/quantization`) with `checks`; `extras` are further axes."""
    axes = dict(zip(("model", "dtype", "attention", "quantization"), place.split("/"), strict=True), **extras)
    outcome = cell_outcome(checks)
    reason = next((c.reason for c in checks if c.outcome is outcome), "")
    return Cell(
        id="/".join(axes.values()),
        axes=axes,
        outcome=outcome,
        effective=effective if effective is not None else {"attention": axes["attention"], "dtype": axes["dtype"]},
        reason=reason,
        seconds=round(sum(c.seconds for c in checks), 3),
        checks=checks,
    )


def passing(place: str, **extras: str) -> Cell:
    """A cell that passes everything."""
    names = ("load", "agreement", "padding", "generation", "speed", "memory")
    return a_cell(place, *(a_check(n, O.PASS, place) for n in names), effective=None, **extras)


def wrong_padding(place: str) -> Cell:
    """A cell whose logits are wrong with padding."""
    kernels = {"aten::_scaled_dot_product_flash_attention": 24, "aten::mm": 170}
    number = random.Random(place).uniform(0.3, 0.9)
    bad = a_check(
        "agreement",
        O.FAIL,
        place,
        f"max_error_ratio is {number:.3f}, over 0.02: logits of padded rows differ from the fp64 reference",
        signature="padded rows differ: the mask is ignored",
        diverges_at="model.layers.0.self_attn",
        minimal={
            "case": {"kind": "padded", "rows": [[134]], "side": "left", "length": 2, "pad": 0},
            "figures": {"ratio_rms": 2844000.0, "ratio_token": 2844000.0},
            "beyond": {"ratio_rms": 1.5, "ratio_token": 3.5},
            "modules": [
                {"module": "model.layers.0.self_attn", "at": "output", "ratio_rms": 6188.0, "ratio_token": 6188.0},
                {"module": "model.layers.0", "at": "output", "ratio_rms": 5014.0, "ratio_token": None},
            ],
            "kernels": {"aten::_scaled_dot_product_flash_attention": 2},
        },
        script=f"{place.replace('/', '_')}--agreement.py",
        kernels=kernels,
        facts={"compared_elements": 4096, "worst_position": {"row": 3, "token": 17}, "padding_side": "left"},
    )
    return a_cell(place, a_check("load", O.PASS, place), bad, a_check("speed", O.PASS, place))


def refused(place: str, reason: str, outcome: Outcome = O.UNSUPPORTED, type_name: str = "ValueError") -> Cell:
    """A cell that the library refuses to load, with the exception."""
    raised = ExceptionInfo(
        type=type_name,
        message=reason,
        refusal=outcome.value + "-" + type_name.lower(),
        traceback=f'Traceback (most recent call last):\n  File "load.py", line 88, in load\n{type_name}: {reason}',
    )
    return a_cell(
        place,
        a_check("load", outcome, place, reason, exception=raised),
        a_check("agreement", O.NOT_RUN, place, "load was refused"),
        effective={},
    )


def degraded(place: str) -> Cell:
    """A cell that ran another kernel than was asked for."""
    load = a_check(
        "load",
        O.DEGRADED,
        place,
        "asked for sdpa-flash, ran the math kernel",
        signature="requested kernel did not run",
        kernels={"aten::_scaled_dot_product_attention_math": 24},
    )
    return a_cell(place, load, a_check("agreement", O.PASS, place), effective={"attention": "sdpa-math"})


def _made_of(cells: list[Cell], *, complete: bool, device: str, gpus: tuple[Gpu, ...]) -> Run:
    packages = {"accelerate": "1.9.0", "bitsandbytes": "0.49.1", "flash-attn": "2.8.3", "torch": "2.13.0"}
    return Run(
        run=RunInfo(
            id="20260203-102030-ab12",
            started="2026-02-03T10:20:30.25Z",
            ended="2026-02-03T10:45:00Z" if complete else "",
            argv=("compat", "run", "matrices/tiny models.toml", "--device", device),
            matrix=FileIdentity(path="matrices/tiny models.toml", sha256="5f" * 32),
            stack=StackIdentity(name="current", sha256="a7" * 32),
            complete=complete,
            device=device,
            settings={"seed": 20, "workers": 2, "checks": ["load", "agreement"]},
        ),
        environment=Environment(
            fingerprint="c0ffee",
            python="3.11.9",
            platform="Linux-6.8-x86_64",
            cpu="Example CPU, 16 cores",
            gpus=gpus,
            driver="580.10" if gpus else "",
            cuda="13.0" if gpus else "",
            cudnn="9.12" if gpus else "",
            packages={**packages, "transformers": "5.23.0"},
        ),
        cells=linked(cells),
        summary=summarize(cells, 1469.5),
    )


def small_run() -> Run:
    """Twenty-odd cells with every outcome, one further axis, a gap in the matrix and a cell without checks."""
    cells = [passing(f"llama/{d}/{a}/none") for d in DTYPES for a in ("eager", "sdpa")]
    cells += [passing(f"falcon/{d}/eager/none") for d in DTYPES]
    cells += [wrong_padding(f"falcon/{d}/sdpa/none") for d in DTYPES]
    cells += [degraded("llama/bf16/sdpa-flash/none"), degraded("falcon/bf16/sdpa-flash/none")]
    cells += [passing("llama/bf16/eager/bnb-nf4"), passing("llama/bf16/sdpa/none", runtime="compile")]
    no_fa2 = "FalconForCausalLM does not support Flash Attention 2"
    cells.append(refused("falcon/bf16/flash_attention_2/none", no_fa2))
    missing = "package flash_attn is not installed"
    cells.append(refused("llama/bf16/flash_attention_2/none", missing, O.UNAVAILABLE, "ImportError"))
    place = "gpt2/bf16/eager/bnb-nf4"
    died = a_check(
        "generation", O.CRASH, place, "the worker died: SIGSEGV after 3 tokens", signature="SIGSEGV in gemm_4bit"
    )
    cells.append(a_cell(place, a_check("load", O.PASS, place), died))
    place = "gpt2/bf16/sdpa/bnb-nf4"
    cells.append(a_cell(place, a_check("load", O.OOM, place, "tried to allocate 20.00 GiB, 11.2 GiB free")))
    place = "gpt2/bf16/eager/none"
    cells.append(
        a_cell(place, a_check("load", O.PASS, place), a_check("speed", O.TIMEOUT, place, "no answer after 300 s"))
    )
    place = "gpt2/fp16/eager/none"
    bug = ExceptionInfo(type="KeyError", message="'logits'", traceback="Traceback ...\nKeyError: 'logits'")
    cells.append(a_cell(place, a_check("agreement", O.ERROR, place, "KeyError: 'logits'", exception=bug)))
    place = "gpt2/fp32/eager/none"
    cells.append(a_cell(place, a_check("agreement", O.INCONCLUSIVE, place, "5 decisive tokens, 16 needed")))
    cells.append(
        Cell(id="gpt2/fp32/sdpa/none", outcome=O.NOT_RUN, reason="interrupted", axes=_axes("gpt2/fp32/sdpa/none"))
    )
    return _made_of(
        cells, complete=False, device="cuda", gpus=(Gpu(name="Example GPU", arch="sm_90", memory_bytes=80 << 30),)
    )


def _axes(place: str) -> dict[str, str]:
    return dict(zip(("model", "dtype", "attention", "quantization"), place.split("/"), strict=True))


def large_run() -> Run:
    """About 1,200 cells: every model by attention in full precision, fewer when quantized."""
    draw = random.Random(7)
    cells = []
    for quantization in QUANTIZATIONS:
        models = MODELS if quantization in ("none", "bnb-nf4") else MODELS[:8]
        for model in models:
            for dtype in DTYPES if quantization == "none" else DTYPES[1:]:
                for attention in ATTENTIONS:
                    cells.append(_large_cell(f"{model}/{dtype}/{attention}/{quantization}", draw))
    gpus = (Gpu(name="Example GPU 96GB", arch="sm_90", memory_bytes=96 << 30),) * 2
    return _made_of(cells, complete=True, device="cuda", gpus=gpus)


def _large_cell(place: str, draw: random.Random) -> Cell:
    model, dtype, attention, quantization = place.split("/")
    if attention.startswith("flash_attention") and dtype == "fp32":
        return refused(place, "Flash Attention only supports fp16 and bf16")
    if attention == "flash_attention_3":
        return refused(place, "package flash_attn_3 is not installed", O.UNAVAILABLE, "ImportError")
    if model in ("mamba", "t5") and attention not in ("eager", "sdpa"):
        return refused(place, f"{model.title()}ForCausalLM does not support {attention}")
    if model == "falcon" and attention.startswith("sdpa"):
        return wrong_padding(place)
    if attention == "sdpa-flash" and dtype == "fp32":
        return degraded(place)
    if model == "deepseek_v3" and quantization != "none":
        return a_cell(place, a_check("load", O.OOM, place, f"tried to allocate {draw.randrange(20, 90)}.00 GiB"))
    if model == "gemma2" and attention == "flex_attention":
        crash = a_check("generation", O.CRASH, place, "the worker died: SIGSEGV", signature="SIGSEGV in flex_decode")
        return a_cell(place, a_check("load", O.PASS, place), crash)
    luck = draw.random()
    if luck < 0.004:
        return a_cell(place, a_check("agreement", O.ERROR, place, "KeyError: 'logits'"))
    if luck < 0.012:
        return a_cell(place, a_check("speed", O.TIMEOUT, place, f"no answer after {draw.randrange(300, 400)} s"))
    if luck < 0.03:
        return a_cell(
            place, a_check("agreement", O.INCONCLUSIVE, place, f"{draw.randrange(9)} decisive tokens, 16 needed")
        )
    return passing(place)
