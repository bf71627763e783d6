"""torch.compile: the model's forward as compiled graphs.

`nn.Module.compile` compiles calls of the model in place, those that `generate` makes among them (a wrapper made by
`torch.compile(model)` would hand `generate` on to the plain model). The backend is inductor, behind a counter: how many
graphs were compiled, how often they ran, and the seconds of the calls that compiled. Sizes are marked as dynamic, since
checks call a model with more lengths than a user does.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from compat.worker import stack_api
from compat.worker.calls import under_test
from compat.worker.inputs import unpadded

if TYPE_CHECKING:
    from compat.worker.group import Group, Loaded
    from compat.worker.report import Report

FIRST = (2, 33)
"""Rows and tokens of the first call, as `load` makes it."""

LATER = ((3, 57), (4, 90), (2, 41))
"""Of those that follow: other sizes of the same kind of call."""

NEW_TOKENS = 8
"""Of a generation with a static cache."""

KINDS_OF_CALLS = 64
"""Graphs that one model may have: a check calls it with and without a mask, positions, embeddings, a single row. Past
torch's own limit (8) it would silently run uncompiled."""


class Compiled:
    """A compiled model and the account of its graphs."""

    def __init__(self, model: Any, fullgraph: bool) -> None:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        self.graphs = 0
        self.runs = 0
        self.missed = 0
        self.compile_seconds = 0.0
        self._inductor = stack_api.compiler("inductor")
        self._limit = stack_api.allow_graphs(KINDS_OF_CALLS)
        self.model = model
        with under_test("compile"):
            model.compile(backend=self._backend, fullgraph=fullgraph)

    def __call__(self, **inputs: Any) -> Any:
        """A forward whose sizes are marked as dynamic. Raises what the stack raises."""
        for value in inputs.values():
            if isinstance(value, torch.Tensor):
                for axis in range(min(2, value.dim())):
                    if value.shape[axis] > 1:
                        torch._dynamo.maybe_mark_dynamic(value, axis)
        graphs, runs, started = self.graphs, self.runs, time.perf_counter()
        output = self.model(**inputs)
        if self.graphs > graphs:
            self.compile_seconds += time.perf_counter() - started
        self.missed += self.runs == runs
        return output

    def _backend(self, graph: Any, inputs: Any, **options: Any) -> Any:
        self.graphs += 1
        compiled = self._inductor(graph, inputs, **options)

        def run(*arguments: Any) -> Any:
            self.runs += 1
            return compiled(*arguments)

        return run

    @property
    def breaks(self) -> dict[str, int]:
        """Why tracing stopped -> how often."""
        return {str(k).splitlines()[0][:160]: int(v) for k, v in torch._dynamo.utils.counters["graph_break"].items()}

    def close(self) -> None:
        """Let go of the graphs."""
        stack_api.allow_graphs(self._limit)
        torch._dynamo.reset()


def way(group: Group, attention: dict[str, Any]) -> Loaded:
    """See compat.worker.modes."""
    loaded = group.fresh(attention)
    loaded.way = Compiled(loaded.model, fullgraph=group.mode.name == "compile-fullgraph")
    loaded.call = loaded.way
    return loaded


def seen(group: Group, loaded: Loaded) -> dict[str, Any]:
    """See compat.worker.modes."""
    own: Compiled = loaded.way
    held = own.runs > 0 and not own.missed
    words = f"{own.graphs} compiled graphs, which ran {own.runs} times"
    if own.missed:
        words += f"; {own.missed} calls ran none of them"
    return {"held": "yes" if held else "no", "words": words, "graphs": own.graphs}


def measure(group: Group, attention: dict[str, Any], report: Report) -> None:
    """Graphs, breaks and recompilations of one kind of call at several sizes; seconds of the calls that compiled. With
    a static cache, what `generate` makes of it."""
    loaded = group.loaded(attention)
    own: Compiled = loaded.way
    loaded(**_inputs(group, *FIRST))
    first, missed = own.graphs, own.missed
    for size in LATER:
        loaded(**_inputs(group, *size))
    report.measure("graphs", first, unit="graphs", better="none")
    report.measure("recompiles", own.graphs - first, unit="graphs")
    report.measure("missed_calls", own.missed - missed, unit="calls")
    if group.mode.name == "compile-static" and stack_api.takes_static_cache(loaded.model):
        _static(group, loaded, report)
    elif group.mode.name == "compile-static":
        report.facts["static_cache"] = "this family does not say that it works with one"
    report.measure("graph_breaks", sum(own.breaks.values()), unit="breaks")
    report.measure("compile_seconds", own.compile_seconds, unit="s", better="none")
    if own.breaks:
        report.facts["graph_breaks_at"] = list(own.breaks)[:6]


def _inputs(group: Group, count: int, length: int) -> dict[str, Any]:
    rows = group.source.rows(700 + 1000 * group.spec.seed + length, [length] * count)
    return unpadded(rows, group.device, group.dtype)


def _static(group: Group, loaded: Loaded, report: Report) -> None:
    """A greedy batch of unequal prompts from a static cache, every logit against the reference of its row alone."""
    from compat.worker.trials import Trials

    own: Compiled = loaded.way
    trials = Trials(group, loaded)
    rows = group.source.rows(790 + 1000 * group.spec.seed, [21, 14]).tokens
    settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    runs, graphs, started = own.runs, own.graphs, time.perf_counter()
    made = trials.generate("static", trials.batch(rows), settings | stack_api.static_generation())
    trials.judge("static", made, margins=True)
    own.compile_seconds += time.perf_counter() - started
    margins, figures = trials.margins, trials.figures["static"]
    report.measure("static_runs", own.runs - runs, unit="calls of graphs", better="higher")
    report.measure("static_graphs", own.graphs - graphs, unit="graphs", better="none")
    report.measure("unexcused_tokens", margins.unexcused, unit="tokens")
    report.measure("decisive_tokens", margins.decisive, unit="tokens", better="higher")
    report.measure("nonfinite_elements", figures.nonfinite, unit="elements")
    report.measure("ratio_rms", figures.ratio_rms)
    report.measure("ratio_token", figures.ratio_token)
