"""One test for each (cell, check) of the matrix: `test_CHECK[model/dtype/attention/quantization]`.

compat.plugin makes the parameters from the matrix, orders the tests as the plan wants them, and runs the plan in worker
processes; a test waits for its own result. A test passes when its check passes; `degraded` and worse fail it; what
could not be asked or decided is skipped with the reason.
"""

from __future__ import annotations

from compat.plugin import Task


def test_load(compat_task: Task) -> None:
    """Does it load, and is what was asked for what runs?"""
    compat_task.expect_pass()


def test_mode(compat_task: Task) -> None:
    """Did what was to be done with the model take effect, and what does it change?"""
    compat_task.expect_pass()


def test_agreement(compat_task: Task) -> None:
    """Is it as close to the fp64 reference as eager in the same dtype is?"""
    compat_task.expect_pass()


def test_padding(compat_task: Task) -> None:
    """Does padding change anything that it must not?"""
    compat_task.expect_pass()


def test_cache(compat_task: Task) -> None:
    """Does decoding from a cache give what the whole sequence gives?"""
    compat_task.expect_pass()


def test_generation(compat_task: Task) -> None:
    """Does generate follow the model, and the pipeline follow generate?"""
    compat_task.expect_pass()


def test_paged(compat_task: Task) -> None:
    """Does continuous batching over a paged cache write the tokens that the model chooses?"""
    compat_task.expect_pass()


def test_positions(compat_task: Task) -> None:
    """Does it work as far as it was trained, and what does it do beyond that?"""
    compat_task.expect_pass()


def test_distillation(compat_task: Task) -> None:
    """Does a student still say what its teacher says?"""
    compat_task.expect_pass()


def test_quality(compat_task: Task) -> None:
    """Are quantized weights what their scheme says, and their kernels right?"""
    compat_task.expect_pass()


def test_gradient(compat_task: Task) -> None:
    """Does a training step give the gradients that the reference gives?"""
    compat_task.expect_pass()


def test_determinism(compat_task: Task) -> None:
    """Does the same input give the same answer?"""
    compat_task.expect_pass()


def test_dispatch(compat_task: Task) -> None:
    """Which kernels run, on every path and in every part of the model?"""
    compat_task.expect_pass()


def test_work(compat_task: Task) -> None:
    """Does it do more than its arithmetic asks for?"""
    compat_task.expect_pass()


def test_speed(compat_task: Task) -> None:
    """How fast are prefill and decode against eager?"""
    compat_task.expect_pass()


def test_memory(compat_task: Task) -> None:
    """Does it hold what its scheme says, before and after it runs?"""
    compat_task.expect_pass()
