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
    """Collects what the token embedding gives, its gradient kept."""
    seen: list[torch.Tensor] = []

    def note(_: Any, inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.retain_grad()
            seen.append(output)

    handle = network.get_input_embeddings().register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def main() -> bool:
    """A training step of padded and packed rows: the loss, the gradient at the embedding's output, and those of the
    parameters, against fp64 with each row alone."""
    where = checkpoint()
    eager = load(where, "eager")
    reference = fp64(where, eager)
    model = candidate(where)
    rows = [tokens(41, 0), tokens(34, 1)]
    scale = 1024.0 if DTYPE == torch.float16 else 1.0
    eps = torch.finfo(DTYPE).eps
    labels = [[-100 if i % 3 == 0 else t for i, t in enumerate(row)] for row in rows]
    shift = 1 if TASK == "causal-lm" else 0
    count = sum(t != -100 for row in labels for t in row[shift:])
    held = {n for n, p in model.named_parameters() if p.dtype == DTYPE}
    names = [n for n in named(reference.model) if n in held]

    def alone(network: Any, inside: Any, lift: bool) -> tuple[float, torch.Tensor, dict[str, torch.Tensor]]:
        """The loss, the gradient at the embedding (rows one after the other) and of `names`, each row by itself."""
        own, total, at, sums = dict(network.named_parameters()), 0.0, [], {}
        for row, mine in zip(rows, labels):
            network.zero_grad(set_to_none=True)
            with embedded(network) as hidden, inside(), torch.enable_grad():
                output = output_of(network(input_ids=torch.tensor([row], device=DEVICE)), TASK)[0]
                loss = loss_sum(output if lift else output.float(), tuple(mine), TASK) / count
                wanted = [*hidden[:1], *(own[n] for n in names)]
                found = torch.autograd.grad(loss * scale, wanted, allow_unused=True)
            total += float(loss.detach())
            at.append(found[0][0].double() / scale)
            for name, gradient in zip(names, found[1:]):
                if gradient is not None:
                    sums[name] = sums.get(name, 0) + gradient.double() / scale
        return total, torch.cat(at), sums

    def batch(side: str) -> tuple[dict[str, Any], list[tuple[int, slice]]]:
        if side == "packed":
            packed = [t for own in labels for t in ([-100, *own[1:]] if shift else own)]
            positions = [i for r in rows for i in range(len(r))]
            given = {"input_ids": sum(rows, []), "labels": packed, "position_ids": positions}
            ends = [len(rows[0]), len(rows[0]) + len(rows[1])]
            arguments = {k: torch.tensor([v], device=DEVICE) for k, v in given.items()} | {"use_cache": False}
            return arguments, [(0, slice(0, ends[0])), (0, slice(ends[0], ends[1]))]
        width = max(len(r) for r in rows)
        fill = [width - len(r) for r in rows]
        put = lambda row, n, x: [x] * n + row if side == "left" else row + [x] * n  # noqa: E731
        given = {"input_ids": [put(r, n, 0) for r, n in zip(rows, fill)],
                 "labels": [put(r, n, -100) for r, n in zip(labels, fill)],
                 "attention_mask": [put([1] * len(r), n, 0) for r, n in zip(rows, fill)]}
        arguments = {k: torch.tensor(v, device=DEVICE) for k, v in given.items()}
        if side == "left" and accepts(model, "position_ids"):
            arguments["position_ids"] = (arguments["attention_mask"].cumsum(-1) - 1).clamp_min(0)
        start = [n if side == "left" else 0 for n in fill]
        return arguments, [(i, slice(s, s + len(r))) for i, (s, r) in enumerate(zip(start, rows))]

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
    sides = ["right", *(["left"] if shift else []), *(["packed"] if "packed" in ROW.get("features", ()) else [])]
    for side in sides:
        arguments, places = batch(side)
        with trainable(model, side != "left"), embedded(model) as hidden, forced_sdpa_kernel(SDPA_KERNEL):
            with torch.enable_grad():
                output = model(**arguments)
                (output.loss * scale).backward()
            gradient = hidden[0].grad
            grads = {n: p.grad.double() / scale for n, p in model.named_parameters() if p.grad is not None}
        print(side)
        values = {"loss_error": abs(float(output.loss.detach()) - loss) / (eps * abs(loss))}
        missing = [n for n in truth if n not in grads] + (["the embedding's output"] if gradient is None else [])
        values["missing_gradients"] = len(missing)
        values["parameter_ratio"] = max(rms(grads[n] - truth[n]) / max(apart[n], least[n]) for n in truth if n in grads)
        if gradient is not None:
            found = torch.cat([gradient[i, w] for i, w in places]).double() / scale
            pads = torch.ones(gradient.shape[:2], dtype=torch.bool, device=DEVICE)
            for i, w in places:
                pads[i, w] = False
            values["pad_gradient"] = float(gradient[pads].abs().double().max()) / scale / size if pads.any() else 0.0
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
    ("training", "loss_sum"),
    ("training", "named"),
    ("metrics", "rms"),
    ("stack_api", "accepts"),
)


def gradient(check: Check, task: str, judge: str, needs: tuple[Name, ...]) -> Body | None:
    """A training step; `judge` and `needs` are those of the fp64 reference."""
    if task not in ("causal-lm", "masked-lm"):
        return None
    return bounded(check, _MAIN + judge, FIGURES, (*needs, *NEEDS))
