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
from compat.worker.metrics import mean_kl, top1_agreement
from compat.worker.reference import Reference
from compat.worker.report import Report


def run(group: Group, attention: dict[str, Any]) -> Report:
    """See the module's docstring. Raises StackError, Unavailable."""
    report = Report(seed=group.spec.seed)
    if not group.row.get("teacher"):
        raise Unavailable("the row of this model names no teacher")
    rows = cases(group)
    taught = group.once("taught", lambda: _ask(group, rows))
    loaded = group.loaded(attention)
    outputs = [row for each in rows for row in loaded(**unpadded(each, group.device, group.dtype))]
    theirs = torch.cat(taught).log_softmax(-1)
    own = torch.cat([o.double() for o in outputs]).log_softmax(-1)
    exact = torch.cat([r for each in rows for r in group.reference_outputs(each)]).double().log_softmax(-1)
    frequencies = theirs.logsumexp(0) - torch.tensor(float(len(theirs)), device=theirs.device).log()
    uninformed = mean_kl(theirs, frequencies)
    figures = {
        "student_kl": mean_kl(theirs, own),
        "exact_kl": mean_kl(theirs, exact),
        "checkpoint_kl": mean_kl(theirs, group.once("student", lambda: _checkpoint(group, rows))),
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
    report.measure("top1_agreement", top1_agreement(theirs, own), unit="of tokens", better="higher")
    report.facts |= {"teacher": group.row["teacher"]["name"], "top1_in_fp64": round(top1_agreement(theirs, exact), 6)}
    return report


def _checkpoint(group: Group, rows: list[Rows]) -> torch.Tensor:
    """Log-probabilities (tokens, vocabulary) fp64 of the student's checkpoint, computed in fp32 on the CPU."""
    found = torch.cat([row for each in rows for row in group.master_outputs(each)])
    return found.double().log_softmax(-1).to(group.device)


def _ask(group: Group, rows: list[Rows]) -> list[torch.Tensor]:
    """Logits (positions, vocabulary) fp64 of the teacher, one a row."""
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
