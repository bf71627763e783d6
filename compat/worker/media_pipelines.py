"""The pipelines of pictures and sounds against forward and the documented preprocessing.

In: a load group of a classifier, a backend. Out: counts in the report: answers one by one against a forward, a batch
against the reference of each item alone, and how a picture of another size than the model's is resized.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers

from compat.worker.calls import under_test
from compat.worker.group import Group, Loaded
from compat.worker.inputs import Rows
from compat.worker.pipeline_calls import Made, batched, call, make
from compat.worker.report import Report
from compat.worker.scored_answers import Answers, ranked

OTHER_SIZE = (77, 51)
"""Width and height of a picture that has to be resized."""


def image_classification(group: Group, loaded: Loaded, report: Report, texts: list[str], made: Made) -> None:
    """image-classification: softmax over the labels, best five, from PIL images through the image processor; one by
    one, and as one batch."""
    from PIL import Image

    generator = torch.Generator().manual_seed(group.spec.seed)
    size = group.source.image_size
    drawn = torch.randint(0, 256, (4, size, size, 3), generator=generator, dtype=torch.uint8)
    images = [Image.fromarray(x.numpy()) for x in drawn]
    with under_test("pipeline"):
        processor = transformers.AutoImageProcessor.from_pretrained(group.checkpoint.location)
    pipe = make(loaded, "image-classification", image_processor=processor)
    found = Answers()
    ids = {label: i for i, label in loaded.model.config.id2label.items()}
    single, batch = (
        found.each(x, len(images))
        for x in (call(loaded, pipe, images, top_k=5), batched(loaded, pipe, images, top_k=5))
    )
    for pixels, alone, together in zip(drawn, single, batch, strict=True):
        values = _normalized(pixels, processor)
        own = loaded.forward(pixel_values=values.to(group.device, group.dtype)).logits[0].float().softmax(-1)
        found.add(own, ranked(alone, lambda record: ids.get(record.get("label"))))
        rows = Rows(images=values.float())
        r, e = group.reference_outputs(rows)[0][0], group.eager_outputs(rows)[0][0]
        for answer in (alone, together):
            found.judge(r, e, ranked(answer, lambda record: ids.get(record.get("label"))))
    found.record(report, "image-classification")
    if processor.do_resize:
        report.measure("resize_difference", _resize_difference(loaded, pipe, processor, generator), unit="of 255")


def _resize_difference(loaded: Loaded, pipe: Any, processor: Any, generator: torch.Generator) -> float:
    """Mean distance of the pixels that a picture of another size becomes from those that PIL's resize makes of it with
    the processor's own `resample`, in steps of a byte; 255 where they have another shape. Raises StackError."""
    import numpy
    from PIL import Image

    width, height = OTHER_SIZE
    picture = Image.fromarray(torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8).numpy())
    size = (int(processor.size["width"]), int(processor.size["height"]))
    small = picture.resize(size, resample=Image.Resampling(int(processor.resample)))
    own = _normalized(torch.from_numpy(numpy.array(small)), processor)
    loaded.activate()
    with under_test("pipeline"):
        theirs = pipe.preprocess(picture)["pixel_values"].float().cpu()
    if theirs.shape != own.shape:
        return 255.0
    step = float(processor.rescale_factor) / torch.tensor(processor.image_std)[None, :, None, None]
    return float(((theirs - own) / step).abs().mean())


def audio_classification(group: Group, loaded: Loaded, report: Report, texts: list[str], made: Made) -> None:
    """audio-classification: softmax over the labels, best five, from raw samples through the feature extractor; one by
    one, and as one batch."""
    rows = group.source.rows(group.spec.seed, [0] * 4).images
    assert rows is not None
    sounds = [(3.0 + 2.0 * x).numpy() for x in rows]  # of another level and mean than the model wants
    with under_test("pipeline"):
        extractor = transformers.AutoFeatureExtractor.from_pretrained(group.checkpoint.location)
    pipe = make(loaded, "audio-classification", feature_extractor=extractor)
    found = Answers()
    ids = {label: i for i, label in loaded.model.config.id2label.items()}
    single, batch = (
        found.each(x, len(sounds))
        for x in (call(loaded, pipe, sounds, top_k=5), batched(loaded, pipe, sounds, top_k=5))
    )
    for sound, alone, together in zip(sounds, single, batch, strict=True):
        values = _levelled(torch.from_numpy(sound), extractor)
        own = loaded.forward(input_values=values.to(group.device, group.dtype)).logits[0].float().softmax(-1)
        found.add(own, ranked(alone, lambda record: ids.get(record.get("label"))))
        r, e = (
            x[0][0] for x in (group.reference_outputs(Rows(images=values)), group.eager_outputs(Rows(images=values)))
        )
        for answer in (alone, together):
            found.judge(r, e, ranked(answer, lambda record: ids.get(record.get("label"))))
    found.record(report, "audio-classification")


def _levelled(sound: torch.Tensor, extractor: Any) -> torch.Tensor:
    """(1, samples) fp32 from (samples,): mean 0 and variance 1 where the extractor says so, in its own order of
    roundings."""
    import numpy

    x = sound.numpy()
    if extractor.do_normalize:
        x = (x - x.mean()) / numpy.sqrt(x.var() + 1e-7)
    return torch.from_numpy(x)[None]


def _normalized(pixels: torch.Tensor, processor: Any) -> torch.Tensor:
    """(1, 3, height, width) from (height, width, 3) bytes of the model's own size: (x / 255 - mean) / std."""
    x = pixels.permute(2, 0, 1)[None].double() * float(processor.rescale_factor)
    mean, std = (
        torch.tensor(v, dtype=torch.float64)[None, :, None, None] for v in (processor.image_mean, processor.image_std)
    )
    return ((x - mean) / std).float()
