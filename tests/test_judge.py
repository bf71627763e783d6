"""Laws of judging, the tables that it reads, and what each way of ending means."""

from __future__ import annotations

import ast
import dataclasses
import fnmatch
import functools
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import compat.worker
from compat import judge as judging
from compat import kernel_paths
from compat.axes import ALL_AXES, ATTENTION, DTYPES, MODES, PLAIN, QUANTIZATIONS
from compat.builtin import matrices_folder
from compat.checks import CHECKS
from compat.device import DEVICE_TYPES
from compat.judge import derive, doubts, judge, not_run, rejudge
from compat.matrix import read_matrix
from compat.records import SEVERITY, Check, Evidence, Measurement, Outcome
from compat.rules import Context, Rule, context_of, criteria, refusals
from compat.store import read_run

WORKER = Path(compat.worker.__file__).parent
REPORTS = Path(__file__).parents[1] / "reports"
CPU = "cpu"


def context(attention: str = "sdpa", dtype: str = "bf16", quantization: str = "none", **more: Any) -> Context:
    """A cell of the llama probe."""
    axes = {"model": more.get("model", "llama"), "dtype": dtype, "attention": attention, "quantization": quantization}
    axes |= {"mode": more["mode"]} if more.get("mode", PLAIN) != PLAIN else {}
    return Context(axes, more.get("device", CPU), more.get("real", False), frozenset(more.get("features", ())))


CONTEXTS = st.builds(
    context,
    attention=st.sampled_from(ATTENTION.names),
    dtype=st.sampled_from(DTYPES.names),
    quantization=st.sampled_from(QUANTIZATIONS.names),
    device=st.sampled_from(DEVICE_TYPES),
    real=st.booleans(),
    features=st.sampled_from([(), ("moe",)]),
)


def _sent_home() -> dict[str, dict[str, str]]:
    """Check -> measurement -> direction, as the published runs hold them; and what only other depths or machines
    measure, as the worker's sources name it."""
    found: dict[str, dict[str, str]] = {check: {} for check in CHECKS.names}
    for folder in ("cpu", "h200", "bettertransformer-cpu", "onnxruntime-cpu"):
        for cell in read_run(REPORTS / folder).cells:
            for check in cell.checks:
                found[check.name] |= {m.name: m.better for m in check.measurements}
    sources = "".join(path.read_text(encoding="utf-8") for path in WORKER.rglob("*.py"))
    for rule in criteria().rules:
        if rule.measurement not in found[rule.check] and re.search(rf"\b{rule.measurement}\b", sources):
            found[rule.check][rule.measurement] = "lower"
    return found


SENT_HOME = _sent_home()
RULES = criteria().rules
MODELS = tuple(
    model
    for name in ("default-cpu.toml", "speed-cpu.toml")
    for model in read_matrix(matrices_folder() / name, "cpu").models.values()
)


# -- the tables --------------------------------------------------------------------------------------------------


def test_the_published_runs_name_what_is_measured() -> None:
    assert SENT_HOME["agreement"]["ratio_rms"] == "lower"
    assert SENT_HOME["generation"]["decisive_tokens"] == "higher"
    assert "yardstick_error" in SENT_HOME["padding"]
    assert set(SENT_HOME) == set(CHECKS.names)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: f"{r.check}-{r.measurement}-{RULES.index(r)}")
def test_every_rule_has_a_source_and_speaks_of_what_a_check_measures(rule: Rule) -> None:
    assert len(rule.source) > 10, "a threshold without a source is an opinion"
    assert rule.measurement in SENT_HOME[rule.check], f"{rule.check} measures {sorted(SENT_HOME[rule.check])}"
    better = SENT_HOME[rule.check][rule.measurement]
    assert better in ("lower", "higher"), "a measurement without a direction cannot be judged"
    if rule.doubt:
        assert (rule.guard, rule.required, rule.band, rule.degraded) == (False, False, False, None), (
            "it decides nothing"
        )
        assert not {**rule.only, **rule.excepted}, "doubts are asked about without a cell"
    if rule.degraded is not None:
        assert not rule.guard, "beyond a guard nothing can be said, so not that it is degraded"
        wider = rule.degraded < rule.passes if better == "higher" else rule.degraded > rule.passes
        assert wider, f"degraded {rule.degraded} is not beyond pass {rule.passes}"


@pytest.mark.parametrize("rule", RULES, ids=lambda r: f"{r.check}-{r.measurement}-{RULES.index(r)}")
def test_every_rule_holds_for_some_cell_and_names_known_values(rule: Rule) -> None:
    known = {"dtype": DTYPES.names, "attention": ATTENTION.names, "quantization": QUANTIZATIONS.names,
             "device": DEVICE_TYPES, "real": ("yes", "no"), "feature": sorted({f for m in MODELS for f in m.features}),
             "model": [m.name for m in MODELS], "mode": MODES.names}  # fmt: skip
    for conditions in (rule.only, rule.excepted):
        for key, values in conditions.items():
            assert key in (*ALL_AXES, "device", "real", "feature"), f"{key} is nothing that a rule can ask"
            assert all(fnmatch.filter(known[key], v) for v in values), f"{key}: {values}"
    earlier = [
        r
        for r in RULES[: RULES.index(rule)]
        if (r.check, r.measurement, r.band) == (rule.check, rule.measurement, rule.band)
    ]
    reached = [c for c in _all_contexts() if _speaks(rule, c) and not any(_speaks(r, c) for r in earlier)]
    assert reached, "an earlier rule decides for every cell: this one is never read"


def _speaks(rule: Rule, at: Context) -> bool:
    """Whether the row holds for a cell of which every figure is stored."""
    return dataclasses.replace(rule, band=False).holds(at)


@functools.cache
def _all_contexts() -> list[Context]:
    features = [(), *{(f,) for r in RULES for f in (*r.only.get("feature", ()), *r.excepted.get("feature", ()))}]
    models = ["llama", *{m for r in RULES for m in r.only.get("model", ())}]
    return [
        context(a, d, q, device=v, real=r, features=f, model=m)
        for a in ATTENTION.names
        for d in DTYPES.names
        for q in QUANTIZATIONS.names
        for v in DEVICE_TYPES
        for r in (True, False)
        for f in features
        for m in models
    ] + [context(features=f, mode=mode) for f in features for mode in MODES.names if mode != PLAIN]


def test_every_finding_that_is_used_has_an_outcome_and_every_outcome_is_used() -> None:
    trees = [ast.parse(Path(str(m.__file__)).read_text(encoding="utf-8")) for m in (judging, kernel_paths)]
    used = {n.elts[0].value for tree in trees for n in ast.walk(tree)
            if isinstance(n, ast.Tuple) and len(n.elts) == 2 and isinstance(n.elts[0], ast.Constant)
            and isinstance(n.elts[0].value, str) and isinstance(n.elts[1], (ast.JoinedStr, ast.Constant))
            and "-" in n.elts[0].value}  # fmt: skip
    words = {n.value for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    assert used <= set(criteria().findings)
    assert set(criteria().findings) <= words


def test_no_finding_is_a_pass() -> None:
    assert Outcome.PASS not in criteria().findings.values()


# -- laws --------------------------------------------------------------------------------------------------------


@given(st.sampled_from(RULES), st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_a_worse_value_never_gets_a_better_outcome(rule: Rule, one: float, other: float) -> None:
    better = SENT_HOME[rule.check][rule.measurement]
    good, bad = (max(one, other), min(one, other)) if better == "higher" else (min(one, other), max(one, other))
    severity = [SEVERITY.index(rule.outcome(value, better)) for value in (good, bad)]
    assert severity[1] <= severity[0], f"{bad} is judged better than {good}"


@given(st.sampled_from(RULES))
def test_a_value_that_is_no_number_never_passes(rule: Rule) -> None:
    assert rule.outcome(math.nan, SENT_HOME[rule.check][rule.measurement]) != Outcome.PASS


def _measurement(name: str, value: float | None, better: str = "lower") -> Measurement:
    return Measurement(name=name, unit="ratio", better=better, values=(value,), value=value)


def _clean(check: str, dtype: str = "bf16") -> dict[str, float | None]:
    """Values that pass, for every measurement of `check`."""
    found: dict[str, float | None] = {}
    for name, better in SENT_HOME[check].items():
        bounds = [r.passes for r in RULES if (r.check, r.measurement) == (check, name) and not r.band]
        found[name] = (max if better == "higher" else min)(bounds, default=0.0)
    return found


FACTS: dict[str, Any] = {
    "attention": "sdpa",
    "dtype_shares": {"bfloat16": 1.0},
    "devices": ["cpu"],
    "training": False,
}
KERNELS = {"aten::_scaled_dot_product_flash_attention_for_cpu": 2}


def _check(name: str, values: Mapping[str, float | None], facts: Mapping[str, Any] = FACTS,
           kernels: Mapping[str, int] = KERNELS) -> Check:  # fmt: skip
    measured = tuple(_measurement(n, v, SENT_HOME[name][n]) for n, v in values.items())
    evidence = Evidence(facts=dict(facts), kernels=dict(kernels))
    return Check(name=name, outcome=Outcome.PASS, measurements=measured, evidence=evidence)


def _judged(name: str, values: Mapping[str, float | None], facts: Mapping[str, Any] = FACTS,
            kernels: Mapping[str, int] = KERNELS, at: Context | None = None) -> Check:  # fmt: skip
    return rejudge(_check(name, values, facts, kernels), at or context())


@pytest.mark.parametrize("check", CHECKS.names)
def test_clean_measurements_pass_with_nothing_to_explain(check: str) -> None:
    judged = _judged(check, _clean(check))
    assert (judged.outcome, judged.reason, judged.evidence.signature) == (Outcome.PASS, "", "")


REQUIRED = sorted({(r.check, r.measurement) for r in RULES if r.required and r.holds(context())})


@pytest.mark.parametrize(("check", "name"), REQUIRED)
def test_a_missing_required_measurement_is_inconclusive(check: str, name: str) -> None:
    judged = _judged(check, {n: v for n, v in _clean(check).items() if n != name})
    assert judged.outcome == Outcome.INCONCLUSIVE
    assert name in judged.reason


JUDGED = sorted({(r.check, r.measurement) for r in RULES if r.holds(context()) and not r.doubt})


@pytest.mark.parametrize(("check", "name"), JUDGED)
def test_a_figure_that_was_not_finite_never_passes(check: str, name: str) -> None:
    """The worker stores a figure that is not finite as None."""
    judged = _judged(check, _clean(check) | {name: None})
    assert judged.outcome == Outcome.INCONCLUSIVE
    assert name in judged.reason


@pytest.mark.parametrize(("check", "name"), [(r.check, r.measurement) for r in RULES if r.doubt])
def test_a_sign_that_was_not_finite_is_a_doubt(check: str, name: str) -> None:
    assert not doubts(_judged(check, _clean(check)))
    judged = _judged(check, _clean(check) | {name: None})
    assert judged.outcome == Outcome.PASS
    (doubt,) = doubts(judged)
    assert doubt.reason.startswith(f"{name} nan")
    assert doubt.phase == name.partition("_")[0]


def test_nonfinite_elements_fail_although_no_ratio_was_derived() -> None:
    none = dict.fromkeys(("ratio_rms", "ratio_token", "ratio_max", "candidate_error", "kl_excess"))
    judged = _judged("agreement", _clean("agreement") | none | {"nonfinite_elements": 3.0})
    assert judged.outcome == Outcome.FAIL
    assert "nonfinite_elements 3" in judged.reason


@given(st.sampled_from(CHECKS.names), st.data(), CONTEXTS, st.randoms(use_true_random=False))
def test_the_order_of_measurements_does_not_matter(check: str, data: st.DataObject, at: Context, random: Any) -> None:
    some = st.one_of(st.none(), st.floats(0, 100))
    values = {name: data.draw(some) for name in SENT_HOME[check]}
    items = list(values.items())
    random.shuffle(items)
    one, other = _judged(check, values, at=at), _judged(check, dict(items), at=at)
    assert (one.outcome, one.reason, one.evidence) == (other.outcome, other.reason, other.evidence)


@given(st.sampled_from(CHECKS.names), st.data(), CONTEXTS)
def test_judging_again_changes_nothing(check: str, data: st.DataObject, at: Context) -> None:
    values = {name: data.draw(st.one_of(st.none(), st.floats(0, 100))) for name in SENT_HOME[check]}
    once = _judged(check, values, at=at)
    assert rejudge(once, at) == once


@given(st.sampled_from(CHECKS.names), st.data(), CONTEXTS)
def test_a_check_takes_the_worst_of_its_verdicts(check: str, data: st.DataObject, at: Context) -> None:
    """Making one more measurement worse than its bounds never improves the outcome."""
    values = {name: data.draw(st.floats(0, 100)) for name in SENT_HOME[check]}
    name = data.draw(st.sampled_from(sorted(values)))
    worse = -math.inf if SENT_HOME[check][name] == "higher" else math.inf
    before, after = _judged(check, values, at=at), _judged(check, values | {name: worse}, at=at)
    assert SEVERITY.index(after.outcome) <= SEVERITY.index(before.outcome), name


def test_a_broken_yardstick_makes_the_others_inconclusive_and_eager_fail() -> None:
    values = _clean("agreement") | {"yardstick_error": 1000.0, "candidate_error": 1.25}
    judged = _judged("agreement", values)
    assert judged.outcome == Outcome.INCONCLUSIVE
    assert "1.25" in judged.reason, "the candidate's own error must be told"
    eager = {n: v for n, v in values.items() if not n.startswith("ratio") and n != "candidate_error"}
    assert _judged("agreement", eager, at=context("eager")).outcome == Outcome.FAIL


@pytest.mark.parametrize(("value", "outcome"), [(1.5, "pass"), (1.51, "degraded"), (3.0, "degraded"), (3.01, "fail")])
def test_the_bounds_of_the_criterion_are_those_of_its_page(value: float, outcome: str) -> None:
    assert _judged("agreement", _clean("agreement") | {"ratio_rms": value}).outcome == outcome


# -- requested against effective ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("finding", "facts", "kernels"),
    [
        ("attention-differs", {"attention": "eager"}, KERNELS),
        ("kernel-fell-back", {}, {"aten::_safe_softmax": 2}),
        ("kernel-other", {}, {"aten::_softmax": 2}),
        ("kernel-unseen", {}, {}),
        ("switch-ignored", {"switch": "ignored: asked for sdpa, stayed eager"}, KERNELS),
        ("switch-ignored", {"switch": "said it took effect, but the kernels were aten::_softmax"}, KERNELS),
        ("dtype-differs", {"dtype_shares": {"float32": 1.0}}, KERNELS),
        ("not-quantized", {"quantization": {"says_quantized": True, "modules": 0, "kinds": []}}, KERNELS),
        ("training-mode", {"training": True}, KERNELS),
        ("device-differs", {"devices": ["cpu", "meta"]}, KERNELS),
    ],
)
def test_what_ran_against_what_was_asked_for(finding: str, facts: dict[str, Any], kernels: dict[str, int]) -> None:
    judged = _judged("load", _clean("load"), FACTS | facts, kernels)
    assert judged.outcome == criteria().findings[finding]
    assert judged.evidence.signature.startswith(f"load: {finding}")


def test_a_switch_that_took_effect_is_no_finding() -> None:
    assert _judged("load", _clean("load"), FACTS | {"switch": "took effect"}).outcome == Outcome.PASS


# -- exceptions and other ends -----------------------------------------------------------------------------------

SAID: dict[str, list[tuple[str, str]]] = {}
for _row in tomllib.loads((Path(__file__).parent / "said.toml").read_text(encoding="utf-8"))["said"]:
    SAID.setdefault(_row["refusal"], []).append((_row["type"], _row["message"]))


def _raised(kind: str, message: str, phase: str = "load") -> Check:
    exception = {"type": kind, "message": message, "traceback": "Traceback ..."}
    return judge("load", {"status": "raised", "phase": phase, "exception": exception, "seconds": 1.5}, context())


@pytest.mark.parametrize(
    ("refusal", "kind", "message"),
    [pytest.param(r, k, m, id=f"{r}-{i}")
     for r, said in SAID.items() for i, (k, m) in enumerate(said)],
)  # fmt: skip
def test_a_recognised_exception_has_its_outcome(refusal: str, kind: str, message: str) -> None:
    expected = next(r for r in refusals() if r.id == refusal)
    check = _raised(kind, message)
    assert check.evidence.exception is not None
    assert check.evidence.exception.refusal == refusal, "another row recognised it first"
    assert check.outcome == expected.outcome
    assert check.evidence.signature == refusal
    assert expected.meaning in check.reason


def test_every_refusal_has_a_message_here_and_a_meaning() -> None:
    assert set(SAID) == {r.id for r in refusals()}
    assert all(r.meaning for r in refusals())
    assert len({r.id for r in refusals()}) == len(refusals())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("ValueError", "shapes (2, 3) and (4, 5) do not fit"),
        ("RuntimeError", "expected scalar type BFloat16 but found Float"),
        ("KeyError", "'q_proj'"),
        ("AttributeError", "'LlamaConfig' object has no attribute 'rope_theta'"),
        ("safetensors_rust.SafetensorError", "Error while deserializing header: incomplete metadata, file not covered"),
        ("NotImplementedError", ""),
        ("RuntimeError", ""),
        ("ImportError", "cannot import name 'clear_device_cache' from 'accelerate.utils'"),
        ("TypeError", "forward() got an unexpected keyword argument 's_aux'"),
    ],
)
def test_an_exception_that_is_no_refusal_fails(kind: str, message: str) -> None:
    check = _raised(kind, message, "forward")
    assert check.outcome == Outcome.FAIL
    assert check.reason.startswith(f"forward raised {kind.rsplit('.', 1)[-1]}")
    assert check.evidence.exception is not None
    assert check.evidence.exception.refusal == ""
    assert check.evidence.facts["phase"] == "forward"


@pytest.mark.parametrize(
    ("kind", "message", "says"),
    [
        ("RuntimeError", "CUDA error: out of memory", "device"),
        ("ImportError", "FlashAttention2 has been toggled on, but it cannot be used due to the following error: "
         "FlashAttention2 is not available on CPU. Please make sure you are on any of the supported devices: (cuda).",
         "CPU|device"),
    ],
)  # fmt: skip
def test_the_stated_cause_is_the_real_one(kind: str, message: str, says: str) -> None:
    meaning = _raised(kind, message).reason.split(": ")[0]
    assert any(word in meaning for word in says.split("|")), meaning


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ("unavailable", Outcome.UNAVAILABLE),
        ("no_yardstick", Outcome.INCONCLUSIVE),
        ("timeout", Outcome.TIMEOUT),
        ("crash", Outcome.CRASH),
        ("oom", Outcome.OOM),
        ("gibberish", Outcome.ERROR),
    ],
)
def test_every_way_to_end_has_an_outcome_and_keeps_its_reason(status: str, outcome: Outcome) -> None:
    answer = {"status": status, "reason": "because 3 of 4", "seconds": 2.0, "stderr": "the end"}
    check = judge("speed", answer, context(), "compat run m", attempts=2)
    assert check.outcome == outcome
    assert check.reason == "because 3 of 4"
    assert (check.seconds, check.attempts, check.evidence.repro) == (2.0, 2, "compat run m")
    assert check.evidence.facts["stderr"] == "the end"
    assert check.evidence.signature == f"{status}: because N of N", "failures with one cause share a signature"


def test_an_exception_of_the_harness_is_an_error_even_if_it_reads_like_a_refusal() -> None:
    exception = {"type": "ImportError", "message": SAID["quantization-not-available"][0][1], "traceback": ""}
    check = judge("load", {"status": "error", "exception": exception}, context())
    assert check.outcome == Outcome.ERROR
    assert "harness" in check.reason


def test_failures_with_the_same_cause_share_a_signature() -> None:
    one = _raised("RuntimeError", "LlamaForCausalLM: size 12 against 0x7ffe12", "forward")
    other = _raised("RuntimeError", "OPTForCausalLM: size 99 against 0x1234ab", "forward")
    assert one.evidence.signature == other.evidence.signature


def test_an_answer_with_nothing_that_a_rule_speaks_of_is_inconclusive() -> None:
    check = _check("generation", {"flipped_tokens": 1.0})
    assert rejudge(check, context()).outcome == Outcome.INCONCLUSIVE


def test_what_was_not_run_says_why_and_stays_so_when_judged_again() -> None:
    check = not_run("speed", "load is unsupported")
    assert (check.outcome, check.reason) == (Outcome.NOT_RUN, "load is unsupported")
    assert rejudge(check, context()) == check


# -- speed -------------------------------------------------------------------------------------------------------


def _timed(seconds: list[float], baseline: list[float], **more: Any) -> dict[str, Any]:
    point = {"phase": "prefill", "batch": 2, "length": 128, "padding": 0.0, "tokens": 256, "unit": "tokens"}
    return {"points": [point | {"seconds": seconds, "baseline_seconds": baseline} | more]}


def test_speedups_are_derived_from_raw_pairs() -> None:
    derived = {m.name: m for m in derive("speed", (), _timed([0.5] * 6, [1.0] * 6))}
    assert derived["prefill_speedup"].value == 2.0
    assert derived["prefill_speedup"].at == {"batch": 2, "length": 128, "padding": 0.0}
    assert derived["prefill_rate"].value == 512
    assert derive("load", (), _timed([0.5], [1.0])) == ()


def _speed(facts: dict[str, Any]) -> Check:
    return judge("speed", {"status": "ok", "measurements": [], "facts": facts, "kernels": {}}, context())


def test_figures_are_worked_out_anew_when_judged_again_and_not_twice() -> None:
    first = _speed(_timed([0.5] * 6, [1.0] * 6))
    again = rejudge(first, context())
    assert again == first
    assert len(again.measured("prefill_speedup")) == 1


def test_a_timing_passes_and_every_point_is_judged() -> None:
    good = _timed([1.0] * 6, [1.0] * 6)
    assert _speed(good).outcome == Outcome.PASS
    slow = _timed([3.0] * 6, [1.0] * 6)["points"][0] | {"length": 4096}
    judged = _speed({"points": [*good["points"], slow]})
    assert judged.outcome == Outcome.DEGRADED
    assert "prefill_speedup_high at 2x4096@0" in judged.reason


@pytest.mark.parametrize(("more", "sign"), [({"contention": 0.5}, "contention"), ({"rates": [1, 0.4]}, "device_rate")])
def test_figures_of_a_machine_that_was_shared_or_slowed_are_in_doubt(more: dict[str, Any], sign: str) -> None:
    judged = _speed(_timed([1.0] * 6, [1.0] * 6, **more))
    (doubt,) = doubts(judged)
    assert (doubt.phase, doubt.at) == ("prefill", {"batch": 2, "length": 128, "padding": 0.0})
    assert doubt.reason.startswith(f"prefill_{sign} at 2x128@0 0.")
    assert judged.measurement("prefill_rate") is not None, "what was measured stays readable"
    assert not doubts(_speed(_timed([1.0] * 6, [1.0] * 6)))


SECONDS = st.lists(st.floats(0.01, 10), min_size=6, max_size=6)
SHARE = st.floats(0, 1)


@given(SECONDS, SECONDS, SHARE, SHARE)
def test_a_sign_of_a_disturbed_machine_decides_no_outcome(
    seconds: list[float], baseline: list[float], contention: float, rate: float
) -> None:
    calm = _speed(_timed(seconds, baseline))
    disturbed = _speed(_timed(seconds, baseline, contention=contention, rates=[1.0, rate]))
    assert (disturbed.outcome, disturbed.reason) == (calm.outcome, calm.reason)
    signs = {d.reason.partition(" ")[0] for d in doubts(disturbed)} - {d.reason.partition(" ")[0] for d in doubts(calm)}
    assert ("prefill_contention" in signs) == (float(f"{contention:.4g}") > 0.2)
    assert ("prefill_device_rate" in signs) == (float(f"{rate:.4g}") < 0.7)


def test_without_a_baseline_an_interval_says_nothing_of_the_outcome() -> None:
    facts = _timed([0.1, 1.0, 0.2, 2.0, 0.1, 1.0], [])
    judged = _speed(facts)
    assert judged.outcome is Outcome.PASS
    assert [d.reason.partition(" ")[0] for d in doubts(judged)] == ["prefill_interval"]


@pytest.mark.parametrize(
    ("ratios", "outcome", "stated"),
    [
        ((0.2, 0.9), Outcome.INCONCLUSIVE, False),  # slow, or not
        ((0.34, 0.51), Outcome.INCONCLUSIVE, True),
        ((0.36, 0.51), Outcome.PASS, True),
        ((0.55, 3.0), Outcome.PASS, False),  # by how much is not known; that it is not slow is
        ((0.1, 0.45), Outcome.DEGRADED, False),  # slow, by whatever factor
        ((0.4, 0.49), Outcome.DEGRADED, True),
    ],
)
def test_an_interval_is_inconclusive_where_it_allows_slow_and_not_slow(
    ratios: tuple[float, float], outcome: Outcome, stated: bool
) -> None:
    low, high = ratios
    middle = [low + (high - low) * i / 5 for i in range(6)]
    judged = _speed(_timed([1.0] * 6, middle))
    measured = judged.measurement("prefill_speedup")
    assert measured is not None
    assert measured.ci95 == (low, high)
    assert judged.outcome is outcome
    assert bool(doubts(judged)) is not stated


def test_nothing_timed_is_inconclusive() -> None:
    assert _speed({"points": [], "left_out": {"4x4096@0": "does not fit"}}).outcome == Outcome.INCONCLUSIVE


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=5),
    st.lists(st.booleans(), min_size=1, max_size=5),
)
def test_a_phase_of_a_grid_is_inconclusive_when_no_point_of_it_is_left(
    prefill: list[tuple[bool, bool]], decode: list[bool]
) -> None:
    """One point of a phase that says slow or not slow is enough."""

    def at(i: int) -> dict[str, float]:
        return {"batch": 1, "length": 128.0 * (i + 1), "padding": 0}

    measured = [Measurement(name="prefill_rate", unit="tokens/s", better="higher", value=100.0, at=at(0))]

    def low(phase: str, wide: bool, i: int) -> Measurement:
        return Measurement(name=f"{phase}_speedup_low", unit="x", better="higher", value=0.1 if wide else 0.9, at=at(i))

    for i, (wide, shared) in enumerate(prefill):
        measured.append(low("prefill", wide, i))
        measured.append(Measurement(name="prefill_contention", unit="ratio", value=0.5 if shared else 0.0, at=at(i)))
    measured += [low("decode", wide, i) for i, wide in enumerate(decode)]
    check = rejudge(
        Check(name="speed", outcome=Outcome.INCONCLUSIVE, measurements=tuple(measured)),
        context_of(
            {"model": MODELS[0].name, "dtype": "fp32", "attention": "sdpa", "quantization": "none"}, "cpu", MODELS[0]
        ),
    )
    lost = all(wide for wide, _ in prefill) or all(decode)
    assert check.outcome is (Outcome.INCONCLUSIVE if lost else Outcome.PASS), check.reason
