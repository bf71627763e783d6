"""BetterTransformer: what optimum makes of a loaded model, and back.

In: a model loaded with eager attention. Out: the same object, its layers or their attention replaced by optimum's. The
way back is measured in compat.worker.way_back.
"""

from __future__ import annotations

import importlib
from typing import Any


def convert(model: Any) -> Any:
    """`model` converted by optimum, in place: by `model.to_bettertransformer()` where transformers has it (4.x). Raises
    what the libraries raise."""
    if hasattr(model, "to_bettertransformer"):
        return model.to_bettertransformer()
    return importlib.import_module("optimum.bettertransformer").BetterTransformer.transform(model)


def reverse(model: Any) -> Any:
    """`model` converted back: a new model that takes over what the converted one held. Raises what the libraries
    raise."""
    if hasattr(model, "reverse_bettertransformer"):
        return model.reverse_bettertransformer()
    return importlib.import_module("optimum.bettertransformer").BetterTransformer.reverse(model)


def replaced_modules(model: Any) -> list[str]:
    """Paths of the modules that optimum has put in place of the family's own."""
    return [p for p, m in model.named_modules() if type(m).__module__.startswith("optimum.bettertransformer")]
