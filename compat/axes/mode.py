"""Modes: what is done with a loaded model before it is used. To add one, add an entry here and in `worker/modes/`.

There are two kinds. `how`: the same function by another way, so that the yardstick and the reference are those of the
plain model. `what`: another function, so that they change with it. `plain`, the default, is neither; it is left out of
ids and of stored axes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compat.axes.registry import Registry

PLAIN = "plain"


@dataclass(frozen=True)
class Mode:
    """One thing to do with a loaded model; `does` says it in words."""

    name: str
    kind: str
    """`plain`, `how` or `what`."""
    family: str
    """Modes of one family are made and looked at in one way: `compile`, `export`, `placement`, `adapter`, `pruning`."""
    does: str
    needs: str = ""
    """Distribution that it needs beside torch and transformers."""
    gpus: int = 0
    """How many GPUs it needs."""


MODES = Registry(
    "mode",
    (
        Mode(PLAIN, "plain", "plain", "the model as it was loaded"),
        Mode("compile", "how", "compile", "torch.compile of the whole model, defaults"),
        Mode("compile-fullgraph", "how", "compile", "torch.compile that refuses graph breaks"),
        Mode("compile-static", "how", "compile", "torch.compile; generates from a static cache"),
        Mode("export", "how", "export", "torch.export, saved to a .pt2 file and loaded again"),
        Mode("device-map-auto", "how", "placement", 'device_map="auto"', "accelerate"),
        Mode("max-memory", "how", "placement", 'device_map="auto" with too little memory for all of it', "accelerate"),
        Mode("cpu-offload", "how", "placement", "weights wait in the host's memory", "accelerate"),
        Mode("disk-offload", "how", "placement", "weights wait on the disk", "accelerate"),
        Mode("two-gpus", "how", "placement", "layers on two GPUs", "accelerate", gpus=2),
        Mode("lora", "what", "adapter", "a LoRA adapter on every linear layer", "peft"),
        Mode("lora-merged", "what", "adapter", "a LoRA adapter merged into the weights", "peft"),
        Mode("pruned-50", "what", "pruning", "half of every linear layer's weights pruned by magnitude"),
        Mode("sparse-2:4", "what", "pruning", "two of four weights pruned, in torch's semi-structured form"),
    ),
)


def mode_of(axes: Mapping[str, str]) -> str:
    """The mode of a cell with these axes: what is not said is plain."""
    return axes.get("mode", PLAIN) or PLAIN
