"""agreement: is the backend as close to the fp64 reference as eager attention in the same dtype is?

Seeds with a length each: at and beside block edges and windows, and long. Then activations with outliers: a few tokens
whose embedding holds two values of hundreds, as real checkpoints have them, so that what overflows or cancels in the
cell's dtype does. For the eager cell the figure is its own error in units of eps * rms(r), since it is its own
yardstick, and the reference's own answer on one fixed input; the others report the ratios of docs/criteria.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from compat.worker import reference, stack_api
from compat.worker.calls import StackError, under_test
from compat.worker.divergence import tensors
from compat.worker.group import Group, Loaded
from compat.worker.inputs import CLASSIFYING, Rows, padded, unpadded
from compat.worker.metrics import Agreement, distance
from compat.worker.report import Report

LENGTHS = {
    "quick": (33, 65, 31),
    "standard": (33, 64, 65, 31, 129),
    "deep": (33, 64, 65, 31, 129, 32, 63, 127, 128, 2, 1, 17, 255, 256, 257),
}
"""Block edges of flash kernels (32, 64, 128), the probes' windows of 32, and one more or less; each with its seed."""

LONG = {"standard": 300, "deep": 500}
"""One row of this length: positions above 256 are not whole numbers in bf16. Probes have 512 positions."""

LONGEST = 1100
"""The long row of a probe whose positions reach so far: torch's flash kernel on a CPU cuts keys into blocks of 512."""

REAL_LENGTHS = {"quick": (33, 31), "standard": (33, 64, 65, 31, 48), "deep": (33, 64, 65, 31, 48, 129, 300)}
"""For real checkpoints, whose every token costs a hundred times as much."""

IMAGES = 16

OUTLIER_LENGTH = 40
OUTLIER_VALUE = 400.0
"""Above 256, whose square overflows fp16; a few channels of real checkpoints reach thousands
(Massive Activations, https://arxiv.org/abs/2402.17762)."""

OUTLIER_EVERY = 7
"""Tokens from one outlier to the next."""

ANSWER_SEED = 424_242
ANSWER_LENGTH = 24
ANSWERS = 16
ANSWER_PADS = 5
PATCH = 16
"""Side of a probe's patches. A picture that asks for interpolated positions is higher by one, wider by two."""

OUTPUTS = 4
"""Numbers that one fp64 output is folded into."""


def cases(group: Group) -> list[Rows]:
    """One case a seed: two rows of a length (one row for real checkpoints), or a few images."""
    first = 1000 * group.spec.seed
    real = group.row["source"] != "probe"
    lengths = (REAL_LENGTHS if real else LENGTHS)[group.spec.depth]
    if group.task in CLASSIFYING:
        return [group.source.rows(first + i, [0] * IMAGES) for i in range(len(lengths))]
    found = [group.source.rows(first + i, [length] * (1 if real else 2)) for i, length in enumerate(lengths)]
    if not real and group.spec.depth in LONG:
        reach = getattr(group.master.config.get_text_config(), "max_position_embeddings", None) or 0
        found.append(group.source.rows(first + 500, [LONGEST if reach > LONGEST else LONG[group.spec.depth]]))
    return found


def outliers(group: Group) -> Rows | None:
    """A row of embeddings, some of which hold two large values; None where the model takes token ids only, and for real
    checkpoints, which have outliers of their own."""
    if group.row["source"] != "probe" or group.task in CLASSIFYING or not stack_api.takes_embeddings(group.master):
        return None
    rows = group.source.rows(1000 * group.spec.seed + 600, [OUTLIER_LENGTH])
    with torch.no_grad():
        embeddings = group.master.get_input_embeddings()(torch.tensor(rows.tokens)).clone()
    width = embeddings.shape[-1]
    embeddings[:, ::OUTLIER_EVERY, width // 3] = OUTLIER_VALUE
    embeddings[:, ::OUTLIER_EVERY, width // 2] = -OUTLIER_VALUE
    return Rows(tokens=rows.tokens, decoder=rows.decoder, embeddings=embeddings)


def run(group: Group, attention: dict[str, Any]) -> Report:
    """See the module's docstring. Raises StackError, Unavailable, NoYardstick."""
    report = Report(seed=group.spec.seed)
    loaded = group.loaded(attention)
    own = loaded.own_yardstick

    def compared(rows: Rows) -> Agreement:
        o = _flat(list(loaded(**unpadded(rows, group.device, group.dtype))))
        return group.yardstick(rows).compare(o)

    figures = [compared(rows) for rows in cases(group)]
    record(report, figures, own_yardstick=own)
    report.measure("compared_elements", [f.elements for f in figures], unit="elements", better="higher", method="sum")
    graph = bool(loaded.facts.get("graph"))
    plain = group.mode.kind == "plain"
    if group.row["source"] == "probe" and group.task not in CLASSIFYING and plain and not graph:
        _embedded(group, loaded, report)
    large = outliers(group) if group.spec.at_least("standard") and not graph else None
    if large is not None:
        record(report, [compared(large)], own_yardstick=own, prefix="outlier_")
    if reference.ENTROPY.ratio is not None:
        report.measure("attention_entropy", round(reference.ENTROPY.ratio, 3), unit="of log n")
    report.facts["reference"] = {
        "dtype": str(group.reference.dtype).removeprefix("torch."),
        "attention": group.reference.attention,
        "inv_freq": group.reference.inv_freq_dtype,
    }
    if own and plain and not group.spec.quantization["library"] and group.reference.dtype == torch.float64:
        if group.spec.checkpoint:
            report.facts["answer_note"] = "not compared: the checkpoint is one that another stack may have made"
            return report
        if not stack_api.answers_as_stored():
            report.facts["answer_note"] = "not compared: stored answers were made with transformers 5"
            return report
        report.facts["answer"] = answer(group)
        if group.dtype == torch.float32 and group.row["source"] in ("probe", "package"):
            try:
                report.facts["outputs"] = outputs(group)
            except StackError as error:  # none of the stored ones is there then
                report.facts |= {"outputs": {}, "outputs_note": str(error)[:160]}
    return report


def _embedded(group: Group, loaded: Loaded, report: Report) -> None:
    """The same text as token ids and as the embeddings of these: one kernel, one answer."""
    if not stack_api.takes_embeddings(loaded.model):
        return
    rows = group.source.rows(1000 * group.spec.seed, [LENGTHS["quick"][0]] * 2)
    inputs = unpadded(rows, group.device, group.dtype)
    o = loaded(**inputs)
    reader = loaded.model.get_encoder() if group.task == "seq2seq-lm" else loaded.model
    with torch.no_grad():
        embeddings = reader.get_input_embeddings()(inputs.pop("input_ids"))
    other = loaded(**inputs, inputs_embeds=embeddings)
    report.measure("embedding_difference", distance(other, o), unit="eps rms(output)")


def answer(group: Group) -> list[float]:
    """What the fp64 reference gives for one fixed input, folded into ANSWERS numbers by random signs.

    The same for every correct implementation of the family: compat.judge compares it with the stored answer, which sees
    what changes every backend and the reference alike.
    """
    image = group.task in CLASSIFYING
    rows = group.source.rows(ANSWER_SEED, [ANSWER_LENGTH] * (1 if image or group.row["source"] != "probe" else 2))
    flat = _flat(group.reference_outputs(rows)).double().flatten().cpu()
    return _folded(flat, ANSWERS)


def outputs(group: Group) -> dict[str, list[float]]:
    """Everything that the fp32 model returns for one fixed padded batch when it is asked for all that it can return
    (hidden states and attention weights of every layer, a pooled state, a router's scores, two segments of text, a
    padded sound, a wider picture by interpolated positions), each tensor folded into OUTPUTS numbers as `answer` folds
    one. compat.judge compares them with the stored ones: nothing else looks at these outputs. Raises StackError."""
    model = group.master
    count = 1 if group.task == "image-classification" else 2
    rows = group.source.rows(ANSWER_SEED, [ANSWER_LENGTH] * count)
    cpu = torch.device("cpu")
    if rows.tokens and rows.images is None:
        uneven = Rows((rows.tokens[0], rows.tokens[1][: ANSWER_LENGTH - ANSWER_PADS]), None, rows.decoder)
        side = "left" if group.task == "causal-lm" else "right"
        arguments: dict[str, Any] = dict(padded(uneven, side, model, cpu, group.source.pad).arguments)
    else:
        arguments = dict(unpadded(rows, cpu, torch.float32))
    if group.task == "audio-classification":
        mask = torch.ones_like(arguments["input_values"], dtype=torch.long)
        mask[1, mask.shape[1] * 3 // 4 :] = 0
        arguments |= {"attention_mask": mask, "input_values": arguments["input_values"] * mask}
    if stack_api.accepts(model, "token_type_ids") and getattr(model.config, "type_vocab_size", 0) > 1:
        arguments["token_type_ids"] = (torch.arange(ANSWER_LENGTH) >= ANSWER_LENGTH // 2).long().expand(count, -1)
    asked = ["output_hidden_states", "output_attentions"]
    asked += ["output_router_logits"] if "moe" in group.row.get("features", ()) else []
    with under_test("forward"), torch.no_grad():
        given = {"": model(**arguments, **dict.fromkeys(asked, True))}
        if stack_api.accepts(model, "interpolate_pos_encoding"):
            wider = torch.nn.functional.pad(arguments["pixel_values"], (0, 2 * PATCH, 0, PATCH), mode="reflect")
            given["interpolated"] = model(pixel_values=wider, interpolate_pos_encoding=True)
    found = {}
    for name, tensor in tensors(given):
        if tensor.is_floating_point():
            found[name.lstrip(".")] = _folded(tensor.double().flatten(), OUTPUTS)
    return found


def _folded(flat: torch.Tensor, count: int) -> list[float]:
    """`flat`, fp64, as `count` sums with random signs, each of the size of its elements."""
    generator = torch.Generator().manual_seed(ANSWER_SEED)
    signs = torch.randint(0, 2, (count, flat.numel()), generator=generator).double() * 2 - 1
    return [float(f"{x:.10g}") for x in (signs @ flat / flat.numel() ** 0.5)]


def record(report: Report, figures: list[Agreement], own_yardstick: bool, prefix: str = "") -> None:
    """Put the figures of several comparisons into `report`: raw values, worst as the value."""
    report.measure(f"{prefix}nonfinite_elements", [f.nonfinite for f in figures], unit="elements", method="sum")
    report.measure(f"{prefix}yardstick_error", [f.yardstick_eps for f in figures], unit="eps rms(r)")
    if own_yardstick:
        report.measure(f"{prefix}yardstick_token", [f.yardstick_token_eps for f in figures], unit="eps rms(r)")
        return
    report.measure(f"{prefix}candidate_error", [f.candidate_eps for f in figures], unit="eps rms(r)")
    report.measure(f"{prefix}ratio_rms", [f.ratio_rms for f in figures])
    report.measure(f"{prefix}ratio_token", [f.ratio_token for f in figures])
    report.measure(f"{prefix}ratio_max", [f.ratio_max for f in figures])
    kl = [None if f.kl is None else f.kl - 4 * f.kl_yardstick for f in figures]
    if any(v is not None for v in kl):
        report.measure(f"{prefix}kl_excess", kl, unit="nats")


def by_path(figures: Mapping[str, Agreement]) -> dict[str, float | None]:
    """Path -> ratio by token, as it stands in the facts."""
    return {name: None if f.ratio_token is None else round(f.ratio_token, 3) for name, f in figures.items()}


def _flat(outputs: list[torch.Tensor]) -> torch.Tensor:
    """Rows of (positions, features) as one (tokens, features)."""
    return torch.cat(outputs)
