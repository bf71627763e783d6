"""gradient sees what a training step learns wrongly, leaves the model as it was, and does not mind another order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compat.faults import catalogue
from compat.faults.patches import Patches
from compat.judge import judge
from compat.records import Check, Outcome
from compat.rules import context_of
from compat.worker import adapters, practice, stack_api, training
from compat.worker.checks import gradient
from compat.worker.group import Group
from compat.worker.report import Report
from compat.worker.training import IGNORED

from .groups import MODELS, attention, figures, group


@pytest.fixture(scope="module")
def llama(probe_cache: Path) -> Group:
    return group("llama", "fp32", probe_cache)


@pytest.fixture(scope="module")
def bert(probe_cache: Path) -> Group:
    return group("bert", "bf16", probe_cache)


def _judged(own: Group, backend: str, report: Report) -> Check:
    name = own.checkpoint.location.rsplit("/probe-", 1)[1].rsplit("-", 1)[0]
    axes = {"model": name, "dtype": own.spec.dtype, "attention": backend, "quantization": "none"}
    answer = {"status": "ok", "measurements": report.measurements, "facts": report.facts, "kernels": {}, "seed": 0}
    return judge("gradient", answer, context_of(axes, "cpu", MODELS[name]))


# -- our own arithmetic ------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), length=st.integers(2, 9), causal=st.booleans())
def test_the_loss_is_torchs_cross_entropy(seed: int, length: int, causal: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(length, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 7, (length,), generator=generator)
    labels[torch.rand(length, generator=generator) < 0.4] = IGNORED
    labels[-1] = 3
    found = training.loss_sum(logits, tuple(labels.tolist()), "causal-lm" if causal else "masked-lm")
    predicted, targets = (logits[:-1], labels[1:]) if causal else (logits, labels)
    expected = torch.nn.functional.cross_entropy(predicted, targets, ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), rank=st.integers(1, 4), transposed=st.booleans())
def test_an_adapters_gradients_are_autograds(seed: int, rank: int, transposed: bool) -> None:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    a, b, weight, x = drawn(rank, 5), drawn(3, rank), drawn(*((5, 3) if transposed else (3, 5))), drawn(4, 5)
    adapter = adapters.Adapter("path", a.detach(), b.detach(), transposed)
    effective = (weight + adapter.added()).detach().requires_grad_()
    (x @ (effective if transposed else effective.t())).tanh().sum().backward()
    assert effective.grad is not None
    full = weight.t() if not transposed else weight
    (x @ full + adapters.ALPHA / adapters.RANK * x @ a.t() @ b.t()).tanh().sum().backward()
    for found, own in zip(adapter.gradients(effective.grad), (a, b), strict=True):
        torch.testing.assert_close(found, own.grad, rtol=1e-9, atol=1e-9)


def test_labels_are_ignored_where_the_lesson_says_so(llama: Group) -> None:
    taught = training.lesson(llama, 3, [20, 12])
    assert taught.count == sum(sum(t != IGNORED for t in row[1:]) for row in taught.labels)
    assert 0 < taught.count < 30
    assert all(t in (IGNORED, own) for row, ids in zip(taught.labels, taught.rows.tokens, strict=True)
               for t, own in zip(row, ids, strict=True))  # fmt: skip


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 3), length=st.integers(2, 7))
def test_cross_entropy_over_shifted_labels_is_torchs(seed: int, rows: int, length: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, length, 5, generator=generator)
    labels = torch.randint(0, 5, (rows, length), generator=generator)
    labels[torch.rand(rows, length, generator=generator) < 0.4] = IGNORED
    labels[0, 1] = 2
    wide = logits[:, :-1].reshape(-1, 5).double()
    expected = torch.nn.functional.cross_entropy(wide, labels[:, 1:].reshape(-1), ignore_index=IGNORED)
    assert practice.cross_entropy(logits, practice.shifted(labels)) == pytest.approx(float(expected), rel=1e-12)


def test_what_is_missing_is_as_far_apart_as_zeros() -> None:
    own = {"a": torch.ones(3), "b": torch.full((2,), 2.0)}
    assert practice.apart(own, own) == 0.0
    assert practice.apart({}, own) == pytest.approx(1.0)


@pytest.mark.parametrize(("model", "expected"), [("llama", 2), ("bert", 2), ("gpt2", 2), ("bart", 6)])
def test_each_layer_of_attention_has_one_dropout_and_it_is_put_back(
    model: str, expected: int, probe_cache: Path
) -> None:
    own = group(model, "fp32", probe_cache).loaded(attention("eager")).model
    places = practice.attention_dropout(own)
    before = [getattr(holder, name) for holder, name in places]
    assert len({id(holder) for holder, _ in places}) == len(places) == expected
    assert set(map(id, (h for h, _ in places))) <= set(map(id, (h for h, _ in practice.every_dropout(own))))
    with practice.dropping(places, 0.5):
        assert {getattr(holder, name) for holder, name in places} == {0.5}
    assert [getattr(holder, name) for holder, name in places] == before


# -- clean -------------------------------------------------------------------------------------------------------


def test_a_clean_step_passes_in_eager_with_every_case(llama: Group) -> None:
    report = gradient.run(llama, attention("eager"))
    assert report.facts["cases"] == ["right", "packed", "checkpointed", "accumulated", "left"]
    seen = figures(report)
    assert seen["compared_parameters"] == 3 * 21
    assert seen["compared_adapters"] == 28
    assert seen["recomputed_modules"] > 0
    assert _judged(llama, "eager", report).outcome == Outcome.PASS


def test_a_clean_step_passes_under_sdpa(llama: Group, bert: Group) -> None:
    for own in (llama, bert):
        report = gradient.run(own, attention("sdpa"))
        check = _judged(own, "sdpa", report)
        assert check.outcome == Outcome.PASS, check.reason


def test_quick_depth_walks_one_case(probe_cache: Path) -> None:
    report = gradient.run(group("llama", "fp32", probe_cache, depth="quick"), attention("eager"))
    assert report.facts["cases"] == ["right"]
    assert "compared_adapters" not in figures(report)


def _state(model: Any) -> dict[str, Any]:
    drops = {n: m.p for n, m in model.named_modules() if isinstance(m, torch.nn.Dropout)}
    return {
        "modules": [(n, id(m)) for n, m in model.named_modules()],
        "weights": {n: (p.detach().clone(), p.requires_grad, p.grad) for n, p in model.named_parameters()},
        "hooks": [n for n, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks],
        "dropout": drops,
        "training": [n for n, m in model.named_modules() if m.training],
        "config": model.config.to_dict(),
        "checkpointing": [n for n, m in model.named_modules() if getattr(m, "gradient_checkpointing", False)],
    }


def test_the_model_is_left_as_it_was(bert: Group) -> None:
    model = bert.loaded(attention("eager")).model
    before = _state(model)
    gradient.run(bert, attention("eager"))
    after = _state(model)
    weights, own = after.pop("weights"), before.pop("weights")
    assert after == before
    assert set(before["dropout"].values()) == {0.1}, "the probe has dropout, which the steps are to do without"
    assert weights.keys() == own.keys()
    for name, (value, trainable, given_) in own.items():
        assert torch.equal(weights[name][0], value), name
        assert (weights[name][1], weights[name][2]) == (trainable, given_) == (True, None), name


# -- what it sees ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "measurement"),
    [
        ("mask-dropped-in-backward", "ratio_token"),
        ("mask-dropped-in-training", "loss_error"),
        ("labels-shifted-twice", "ratio_rms"),
        ("ignored-labels-learned", "pad_gradient"),
        ("loss-averaged-over-pads", "parameter_ratio"),
        ("keys-get-no-gradient", "missing_gradients"),
        ("checkpoint-draws-again", "recomputed_dropout_error"),
        ("attention-dropout-lost", "attention_dropout_lost"),
        ("loss-kept", "step_left_bytes"),
    ],
)
def test_a_fault_is_seen_where_it_shows(llama: Group, patches: Patches, fault: str, measurement: str) -> None:
    catalogue()[fault].apply(patches)
    check = _judged(llama, "sdpa", gradient.run(llama, attention("sdpa")))
    assert patches.times_reached
    assert check.outcome in (Outcome.FAIL, Outcome.DEGRADED)
    assert measurement in check.reason


@pytest.mark.parametrize(
    ("fault", "measurement"),
    [
        ("checkpoint-drops-mask", "ratio_token"),
        ("checkpoint-keeps-activations", "recomputed_modules"),
        ("items-in-batch-ignored", "loss_error"),
        ("lora-scaling-wrong", "adapter_error"),
        ("base-not-frozen", "base_gradients"),
    ],
)
def test_a_fault_of_any_backend_is_seen_in_eager(llama: Group, patches: Patches, fault: str, measurement: str) -> None:
    catalogue()[fault].apply(patches)
    check = _judged(llama, "eager", gradient.run(llama, attention("eager")))
    assert patches.times_reached
    assert check.outcome in (Outcome.FAIL, Outcome.DEGRADED)
    assert measurement in check.reason


def test_a_loss_in_bf16_is_no_loss_in_fp32(probe_cache: Path, patches: Patches) -> None:
    own = group("llama", "bf16", probe_cache)
    catalogue()["loss-in-model-dtype"].apply(patches)
    check = _judged(own, "sdpa", gradient.run(own, attention("sdpa")))
    assert patches.times_reached
    assert check.outcome == Outcome.DEGRADED
    assert "loss_beside_logits" in check.reason


def test_inputs_learn_and_labels_may_come_shifted(llama: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama.loaded(attention("eager")).model
    monkeypatch.setattr(type(model), "enable_input_require_grads", lambda self: None)
    loss = type(model).loss_function.fget(model)
    twice = lambda logits, labels, vocab_size, shift_labels=None, **more: loss(  # noqa: E731
        logits, labels if shift_labels is None else shift_labels, vocab_size, **more
    )
    monkeypatch.setattr(model, "_loss_function", twice, raising=False)
    seen = figures(gradient.run(llama, attention("eager")))
    assert seen["inputs_without_gradient"] == 1
    assert seen["shift_labels_error"] > 1000
    assert stack_api.upcasts_loss(model)


def test_a_wider_sum_is_not_minded(bert: Group, patches: Patches) -> None:
    catalogue()["benign-sdpa-in-fp32"].apply(patches)
    check = _judged(bert, "sdpa", gradient.run(bert, attention("sdpa")))
    assert patches.times_reached
    assert check.outcome == Outcome.PASS, check.reason


def test_a_class_that_drops_the_divisor_is_told_from_one_that_hands_it_on(llama: Group, bert: Group) -> None:
    assert stack_api.divides_by_items(llama.loaded(attention("eager")).model)
    assert not stack_api.divides_by_items(bert.loaded(attention("eager")).model)


@pytest.mark.parametrize("model", ["wav2vec2", "swin", "clip"])
def test_models_without_an_embedding_of_tokens_are_taught_too(model: str, probe_cache: Path) -> None:
    report = gradient.run(group(model, "fp32", probe_cache), attention("eager"))
    seen = figures(report)
    assert seen["missing_gradients"] == 0
    assert seen["compared_elements"] > 1000
    assert seen["parameter_ratio"] < 3.75
    assert "checkpointed" in report.facts["cases"]
