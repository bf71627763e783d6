"""A probe that is the distilled student of another: fewer layers, which start as the teacher's and learn its outputs.

In: a model row, and the teacher, fp32 on the CPU. Out: a checkpoint folder. As DistilBERT was made (Sanh et al.
2019, arXiv:1910.01108): embeddings, head and one layer of every few are copied, then the student is trained on the KL
divergence of its distribution from the teacher's, here on tokens drawn uniformly. Steps are few: what a check needs is
a student that follows its teacher, not one of use.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from compat.worker import probes, stack_api

STEPS = 120
"""Four layers against two and a `branch_gain` of 0.3: KL falls to a fifth of what frequencies leave, in 10 s."""

ROWS = 16
LENGTH = 24
LEARNING_RATE = 1e-3
WARM_UP = 20

_BERT_NAMES = (
    (r"^distilbert\.embeddings\.", "bert.embeddings."),
    (r"^distilbert\.transformer\.layer\.(\d+)\.", r"bert.encoder.layer.\1."),
    (r"\.attention\.q_lin\.", ".attention.self.query."),
    (r"\.attention\.k_lin\.", ".attention.self.key."),
    (r"\.attention\.v_lin\.", ".attention.self.value."),
    (r"\.attention\.out_lin\.", ".attention.output.dense."),
    (r"\.sa_layer_norm\.", ".attention.output.LayerNorm."),
    (r"\.ffn\.lin1\.", ".intermediate.dense."),
    (r"\.ffn\.lin2\.", ".output.dense."),
    (r"\.output_layer_norm\.", ".output.LayerNorm."),
    (r"^vocab_transform\.", "cls.predictions.transform.dense."),
    (r"^vocab_layer_norm\.", "cls.predictions.transform.LayerNorm."),
    (r"^vocab_projector\.", "cls.predictions.decoder."),
)
"""A weight of DistilBERT -> that of BERT, in turn."""

_LAYER = re.compile(r"\.(?:layer|layers|h|blocks)\.(\d+)\.")


def build_student(row: dict[str, Any], folder: Path, teacher: Any) -> None:
    """Write the probe checkpoint of `row` into `folder` (existing, empty), distilled from `teacher`."""
    probes.build(row, folder)
    arguments = stack_api.dtype_argument(torch.float32)
    student = stack_api.auto_class(row["task"]).from_pretrained(folder, attn_implementation="eager", **arguments)
    distil(student.eval(), teacher, seed=int(row.get("seed", 0)))
    student.save_pretrained(folder)


def distil(student: Any, teacher: Any, seed: int = 0, steps: int = STEPS) -> None:
    """Train `student` in place to say what `teacher` says; both fp32 on the CPU, in eval mode: without dropout a step
    is a function of its tokens."""
    begin(student, teacher)
    generator = torch.Generator().manual_seed(seed + 83)
    optimizer = torch.optim.Adam(student.parameters(), lr=LEARNING_RATE)
    vocabulary = int(teacher.config.get_text_config().vocab_size)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARM_UP) * (1.0 - step / steps)
        tokens = torch.randint(len(probes.SPECIAL_TOKENS), vocabulary, (ROWS, LENGTH), generator=generator)
        with torch.no_grad():
            taught = teacher(input_ids=tokens).logits.log_softmax(-1)
        own = student(input_ids=tokens).logits.log_softmax(-1)
        loss = (taught.exp() * (taught - own)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def begin(student: Any, teacher: Any) -> None:
    """Give `student` the weights of `teacher` that have its names and shapes, of layers one of every few."""
    theirs = teacher.state_dict()
    stride = max(1, _layers(theirs) // max(1, _layers(student.state_dict())))
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            source = theirs.get(_teachers_name(name, stride))
            if source is not None and source.shape == parameter.shape:
                parameter.copy_(source)


def _layers(state: dict[str, torch.Tensor]) -> int:
    return 1 + max((int(found[1]) for name in state if (found := _LAYER.search(name))), default=0)


def _teachers_name(name: str, stride: int) -> str:
    for pattern, replacement in _BERT_NAMES if "distilbert" in name or name.startswith("vocab_") else ():
        name = re.sub(pattern, replacement, name)
    return _LAYER.sub(lambda m: m[0].replace(m[1], str(int(m[1]) * stride)), name, count=1)
