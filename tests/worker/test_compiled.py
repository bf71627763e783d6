"""A compiled model's account of its graphs, on modules that compile in a second or two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from compat.worker import stack_api
from compat.worker.modes.compiled import KINDS_OF_CALLS, Compiled


class Small(torch.nn.Module):
    """Doubles; with `broken`, printing in between stops the tracing."""

    def __init__(self, broken: bool) -> None:
        super().__init__()
        self.broken = broken

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + 1
        if self.broken:
            torch._dynamo.graph_break()
        return x * 2


@pytest.fixture
def made() -> Iterator[list[Compiled]]:
    """Lets go of the graphs of the test."""
    own: list[Compiled] = []
    yield own
    for one in own:
        one.close()


def _compiled(made: list[Compiled], broken: bool = False, fullgraph: bool = False) -> Compiled:
    made.append(Compiled(Small(broken).eval(), fullgraph))
    return made[-1]


def test_one_graph_serves_every_size(made: list[Compiled]) -> None:
    own = _compiled(made)
    for shape in ((2, 3), (4, 5), (3, 9)):
        x = torch.ones(shape)
        assert torch.equal(own(x=x), (x + 1) * 2)
    assert (own.graphs, own.runs, own.missed, own.breaks) == (1, 3, 0, {})
    assert own.compile_seconds > 0


def test_a_break_is_counted_and_the_answer_stays(made: list[Compiled]) -> None:
    own = _compiled(made, broken=True)
    assert torch.equal(own(x=torch.ones(2, 3)), torch.full((2, 3), 4.0))
    assert own.graphs == 2
    assert sum(own.breaks.values()) == 1


def test_fullgraph_refuses_a_break_in_its_own_words(made: list[Compiled]) -> None:
    own = _compiled(made, broken=True, fullgraph=True)
    with pytest.raises(Exception, match="graph_break") as caught:
        own(x=torch.ones(2, 3))
    assert type(caught.value).__module__ == "torch._dynamo.exc"


def test_a_call_that_runs_no_graph_is_missed(made: list[Compiled]) -> None:
    own = _compiled(made)
    with torch.compiler.set_stance("force_eager"):
        own(x=torch.ones(2, 3))
    assert (own.runs, own.missed) == (0, 1)


def test_the_limit_of_graphs_is_put_back() -> None:
    config: Any = torch._dynamo.config
    before = config.recompile_limit
    own = Compiled(Small(False), fullgraph=False)
    assert config.recompile_limit == KINDS_OF_CALLS
    own.close()
    assert config.recompile_limit == before
    assert stack_api.allow_graphs(before) == before
