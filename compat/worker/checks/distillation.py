"""distillation: does a student still say what its teacher says?

The model's row names the teacher. Both are asked for the same rows. Measured in nats a token, over all the vocabulary:

    student_kl     KL(teacher || student as this cell runs it)
    exact_kl       KL(teacher || student in fp64, with the weights of this cell as rounded and dequantized)
    checkpoint_kl  KL(teacher || student in fp32, with the weights of its checkpoint)
    uninformed_kl  KL(teacher || the teacher's mean distribution over these tokens)

The teacher computes in fp64 too. Shares are of `uninformed_kl`: `kl_share`, of student_kl, is 0 for one that says all
that its teacher says, and 1 for one that knows no more than how frequent each token is. `kl_lost`, of exact_kl -
checkpoint_kl, is what dtype and quantization took from the weights; `kl_added`, of student_kl - exact_kl, what running
them adds. `top1_agreement`: share of tokens at which the likeliest one is the teacher's.
"""

from __future__ import annotations

from typing import Any

import torch

from compat.worker import checkpoints
from compat.worker.calls import Unavailable, under_test
from compat.worker.checks.agreement import cases
from compat.worker.group import Group
from compat.worker.inputs import Rows, output_of, unpadded
from compat.worker.load import from_pretrained
from compat.worker.reference import Reference
from compat.worker.report import Report


def run(group: Group, attention: dict[str, Any]) -> Report:
    """See the module's docstring. Raises StackError, Unavailable."""
    report = Report(seed=group.spec.seed)
    if not group.row.get("teacher"):
        raise Unavailable("the row of this model names no teacher")
    rows = cases(group)
    taught = _taught(group, rows)
    loaded = group.loaded(attention)
    outputs = [row for each in rows for row in loaded(**unpadded(each, group.device, group.dtype))]
    theirs = torch.cat(taught).log_softmax(-1)
    own = torch.cat([o.double() for o in outputs]).log_softmax(-1)
    exact = torch.cat([r for each in rows for r in group.reference_outputs(each)]).double().log_softmax(-1)
    frequencies = theirs.logsumexp(0) - torch.tensor(float(len(theirs)), device=theirs.device).log()
    uninformed = _kl(theirs, frequencies)
    figures = {
        "student_kl": _kl(theirs, own),
        "exact_kl": _kl(theirs, exact),
        "checkpoint_kl": _kl(theirs, _checkpoint(group, rows)),
    }
    report.measure("nonfinite_elements", int((~torch.isfinite(own)).sum()), unit="elements", method="sum")
    report.measure("compared_tokens", len(theirs), unit="tokens", better="higher")
    for name, value in figures.items():
        report.measure(name, value, unit="nats")
    report.measure("uninformed_kl", uninformed, unit="nats", better="higher")
    shares = {
        "kl_share": figures["student_kl"],
        "kl_lost": figures["exact_kl"] - figures["checkpoint_kl"],
        "kl_added": figures["student_kl"] - figures["exact_kl"],
    }
    for name, value in shares.items():
        report.measure(name, value / uninformed if uninformed else None, unit="of uninformed_kl")
    report.measure("top1_agreement", _same(theirs, own), unit="of tokens", better="higher")
    report.facts |= {"teacher": group.row["teacher"]["name"], "top1_in_fp64": round(_same(theirs, exact), 6)}
    return report


def _kl(p: torch.Tensor, q: torch.Tensor) -> float:
    """Mean KL(p || q) in nats; `p` (tokens, vocabulary) and `q`, which broadcasts to it, are log-probabilities."""
    return float((p.exp() * (p - q)).sum(-1).mean())


def _same(p: torch.Tensor, q: torch.Tensor) -> float:
    return float((p.argmax(-1) == q.argmax(-1)).double().mean())


def _checkpoint(group: Group, rows: list[Rows]) -> torch.Tensor:
    """Log-probabilities (tokens, vocabulary) fp64 of the student's checkpoint, computed in fp32 on the CPU."""
    if "student" not in group.kept:
        found = []
        for each in rows:
            with under_test("forward"), torch.no_grad():
                found += list(output_of(group.master(**unpadded(each, torch.device("cpu"), torch.float32)), group.task))
        group.kept["student"] = torch.cat(found).double().log_softmax(-1).to(group.device)
    student: torch.Tensor = group.kept["student"]
    return student


def _taught(group: Group, rows: list[Rows]) -> list[torch.Tensor]:
    """Logits (positions, vocabulary) fp64 of the teacher, one a row; worked out once for all backends of the group."""
    if "taught" not in group.kept:
        group.kept["taught"] = _ask(group, rows)
    taught: list[torch.Tensor] = group.kept["taught"]
    return taught


def _ask(group: Group, rows: list[Rows]) -> list[torch.Tensor]:
    checkpoint = checkpoints.teacher_of(group.row, group.spec.cache)
    with under_test("load"):
        teacher = from_pretrained(checkpoint, group.task, torch.float32, "eager", torch.device("cpu"))
    sizes = [int(m.config.get_text_config().vocab_size) for m in (teacher, group.master)]
    if sizes[0] != sizes[1]:
        raise Unavailable(f"the teacher has a vocabulary of {sizes[0]:,} and the student one of {sizes[1]:,}")
    reference = Reference(teacher, group.device, group.reference_dtype(teacher))
    found: list[torch.Tensor] = []
    for each in rows:
        with under_test("reference"):
            found += list(output_of(reference(**unpadded(each, group.device, torch.float64)), group.task).double())
    return found
