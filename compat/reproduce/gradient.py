"""The script for `gradient`: one training step against the same step in fp64.

In: a check and the bounds that it breaks. Out: a `Body`; None where it broke no bound on a figure that the script
measures, or for a task whose batches it does not make.
"""

from __future__ import annotations

from compat.records import Check
from compat.reproduce.body import Body, Name
from compat.reproduce.measured import bounded

_MAIN = '''
@contextlib.contextmanager
def embedded(network: Any) -> Any:
    """Collects what the token embeddings give, call by call, its gradient kept."""
    seen: list[torch.Tensor] = []

    def note(_: Any, inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.retain_grad()
            seen.append(output)

    handles = [module.register_forward_hook(note) for module in embeddings(network)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def main() -> bool:
    """A training step of padded and packed rows: the loss, the gradient at the embedding's output, and those of the
    parameters, against fp64 with each row alone."""
    where = checkpoint()
    eager = load(where, "eager")
    reference = fp64(where, eager)
    model = candidate(where)
    rows, decoders = [tokens(41, 0), tokens(34, 1)], []
    scale = 1024.0 if DTYPE == torch.float16 else 1.0
    eps = torch.finfo(DTYPE).eps
    labels = [[-100 if i % 3 == 0 else t for i, t in enumerate(row)] for row in rows]
    if TASK == "seq2seq-lm":  # the library shifts the labels to what the decoder reads
        start = getattr(model.config, "decoder_start_token_id", None)
        labels = [tokens(17, 2), tokens(14, 3)]
        decoders = [[model.config.pad_token_id if start is None else start, *own[:-1]] for own in labels]
    shift = 1 if TASK == "causal-lm" else 0
    count = sum(t != -100 for row in labels for t in row[shift:])
    held = {n for n, p in model.named_parameters() if p.dtype == DTYPE}
    names = [n for n in named(reference.model) if n in held]

    def alone(network: Any, inside: Any, lift: bool) -> tuple[float, torch.Tensor, dict[str, torch.Tensor]]:
        """The loss, the gradient at the embedding (rows one after the other, the encoder's before the decoder's) and of
        `names`, each row by itself."""
        own, total, at, sums = dict(network.named_parameters()), 0.0, [], {}
        trained = [n for n in names if own[n].requires_grad]
        for i, (row, mine) in enumerate(zip(rows, labels)):
            network.zero_grad(set_to_none=True)
            one = Rows(tokens=(tuple(row),), decoder=(tuple(decoders[i]),) if decoders else ())
            with embedded(network) as hidden, inside(), torch.enable_grad():
                output = output_of(network(**unpadded(one, DEVICE, DTYPE)), TASK)[0]
                loss = loss_sum(output if lift else output.float(), tuple(mine), TASK) / count
                found = torch.autograd.grad(loss * scale, [*hidden, *(own[n] for n in trained)], allow_unused=True)
            total += float(loss.detach())
            at += [gradient[0].double() / scale for gradient in found[: len(hidden)]]
            for name, gradient in zip(trained, found[len(hidden) :]):
                if gradient is not None:
                    sums[name] = sums.get(name, 0) + gradient.double() / scale
        return total, torch.cat(at), sums

    def batch(side: str) -> tuple[dict[str, Any], list[tuple[int, int, slice]]]:
        """What the model is called with, and the places of the rows: (call of an embedding, row, positions)."""
        if side == "packed":
            packed = [t for own in labels for t in ([-100, *own[1:]] if shift else own)]
            positions = [i for r in rows for i in range(len(r))]
            given = {"input_ids": sum(rows, []), "labels": packed, "position_ids": positions}
            ends = [len(rows[0]), len(rows[0]) + len(rows[1])]
            arguments = {k: torch.tensor([v], device=DEVICE) for k, v in given.items()} | {"use_cache": False}
            return arguments, [(0, 0, slice(0, ends[0])), (0, 0, slice(ends[0], ends[1]))]
        width, most = max(len(r) for r in rows), max(len(own) for own in labels)
        fill = [width - len(r) for r in rows]
        put = lambda row, n, x: [x] * n + row if side == "left" else row + [x] * n  # noqa: E731
        given = {"input_ids": [put(r, n, 0) for r, n in zip(rows, fill)],
                 "labels": [put(own, most - len(own), -100) for own in labels],
                 "attention_mask": [put([1] * len(r), n, 0) for r, n in zip(rows, fill)]}
        arguments = {k: torch.tensor(v, device=DEVICE) for k, v in given.items()}
        if side == "left" and accepts(model, "position_ids"):
            arguments["position_ids"] = (arguments["attention_mask"].cumsum(-1) - 1).clamp_min(0)
        places = []
        for i, (r, n) in enumerate(zip(rows, fill)):
            places.append((0, i, slice(n, width) if side == "left" else slice(0, len(r))))
            if decoders:
                places.append((1, i, slice(0, len(decoders[i]))))
        return arguments, places

    loss, r, truth = alone(reference.model, reference.computing, True)
    with trainable(eager, True):
        _, e, normal = alone(eager, contextlib.nullcontext, False)
    size, whole = rms(r), rms(torch.cat([g.flatten() for g in truth.values()]))
    least = {n: eps * (4 * whole if rms(g) < 1e-8 * whole else max(rms(g), 1e-2 * whole)) for n, g in truth.items()}
    apart = {n: rms(normal[n] - g) if n in normal else 0.0 for n, g in truth.items()}
    yardstick = Yardstick(r / size, e / size, DTYPE, False)
    print("eager attention, each row alone")
    own = {"yardstick_error": yardstick.compare(r / size).yardstick_eps,
           "yardstick_parameter": max(apart[n] / least[n] for n in truth)}
    broken = beyond(own)
    packs = "packed" in ROW.get("features", ()) and takes_packed_rows(model)
    sides = ["right", *(["left"] if shift else []), *(["packed"] if shift and packs else [])]
    for side in sides:
        arguments, places = batch(side)
        with trainable(model, side != "left"), embedded(model) as hidden, forced_sdpa_kernel(SDPA_KERNEL):
            with torch.enable_grad():
                output = model(**arguments)
                (output.loss * scale).backward()
            gradients = [own.grad for own in hidden]
            grads = {n: p.grad.double() / scale for n, p in model.named_parameters() if p.grad is not None}
        print(side)
        values = {"loss_error": abs(float(output.loss.detach()) - loss) / (eps * abs(loss))}
        flowed = len(gradients) > max(call for call, _, _ in places) and all(g is not None for g in gradients)
        missing = [n for n in truth if n not in grads] + ([] if flowed else ["the embedding's output"])
        values["missing_gradients"] = len(missing)
        values["parameter_ratio"] = max(rms(grads[n] - truth[n]) / max(apart[n], least[n]) for n in truth if n in grads)
        if flowed:
            found = torch.cat([gradients[call][i, w] for call, i, w in places]).double() / scale
            for call, i, w in places:
                gradients[call][i, w] = 0
            values["pad_gradient"] = max(float(g.abs().max()) for g in gradients) / scale / size
            seen = yardstick.compare(found / size)
            values |= {"ratio_rms": seen.ratio_rms, "ratio_token": seen.ratio_token, "ratio_max": seen.ratio_max,
                       "nonfinite_elements": seen.nonfinite}
        broken = beyond({k: float("nan") if v is None else v for k, v in values.items()}) or broken
    return broken
'''

FIGURES = (
    "loss_error", "ratio_rms", "ratio_token", "ratio_max", "nonfinite_elements", "missing_gradients", "pad_gradient",
    "parameter_ratio", "yardstick_error", "yardstick_parameter",
)  # fmt: skip

NEEDS: tuple[Name, ...] = (
    ("training", "trainable"),
    ("training", "embeddings"),
    ("training", "loss_sum"),
    ("training", "named"),
    ("metrics", "rms"),
    ("stack_api", "accepts"),
    ("stack_api", "takes_packed_rows"),
)


def gradient(check: Check, task: str, judge: str, needs: tuple[Name, ...]) -> Body | None:
    """A training step; `judge` and `needs` are those of the fp64 reference."""
    if task not in ("causal-lm", "masked-lm", "seq2seq-lm"):
        return None
    return bounded(check, _MAIN + judge, FIGURES, (*needs, *NEEDS))
