"""What a user may expect where a check fails, in words for someone who has never heard of compat.

In: a check as stored. Out: one sentence.
"""

from __future__ import annotations

from compat.records import Check

EXPECTED: dict[str, str] = {
    "load": "from_pretrained gives the model that was asked for: its weights, dtype, attention and quantization",
    "mode": "what is done with a loaded model takes effect, and changes nothing that it is not meant to change",
    "agreement": "the output is as close to an fp64 computation of the same weights as that of eager attention in the "
    "same dtype",
    "determinism": "the same input gives the same output, bit for bit",
    "padding": "padding a batch does not change the output of its rows",
    "cache": "decoding from a cache gives what one forward of the sequence gives, and the cache holds what it needs",
    "paged": "continuous batching over a paged cache writes the tokens that the model chooses without it",
    "positions": "a model works on as many positions as it was trained on, and beyond them as its scheme says",
    "distillation": "a distilled student says what its teacher says, as nearly as the same weights do in fp64",
    "generation": "generate picks the tokens that its logits and settings call for, as the documentation defines them",
    "gradient": "the loss and the gradients of a training step are as close to fp64 as those of eager attention",
    "dispatch": "the attention that was asked for runs, or the library says that it does not",
    "work": "a call computes what its arithmetic asks for, and not more",
    "speed": "the backend costs what its arithmetic asks for",
    "quality": "quantized weights and their kernels are as exact as the scheme's own arithmetic",
    "memory": "the model takes the memory that its scheme and dtype need",
}
"""Check -> what holds where it passes."""

FINDINGS: dict[str, str] = {
    "switch-ignored": "set_attn_implementation switches to the attention that it is given, or raises",
    "not-quantized": "a model that says is_quantized holds quantized modules",
    "dtype-differs": "the parameters are in the dtype that was asked for",
    "training-mode": "from_pretrained returns the model in eval mode",
    "attentions-switched": "output_attentions runs the attention that was asked for, or says that it does not",
    "kernel-fell-back": "the kernel that was asked for runs, or the library says that it fell back",
    "path-fell-back": "the kernel that was asked for runs on every path, or the library says that it fell back",
}
"""Finding (see criteria) -> what holds where there is none."""


def expected(check: Check) -> str:
    """What should have been seen in place of what `check` saw."""
    raises = check.evidence.minimal.get("raises")
    exception = check.evidence.exception
    if isinstance(raises, dict) or (exception is not None and not check.measurements):
        return "the call returns, or raises an error that says what is not supported"
    parts = check.evidence.signature.split(": ")
    finding = parts[1] if len(parts) > 1 else ""
    return FINDINGS.get(finding) or EXPECTED.get(check.name, "the check passes")
