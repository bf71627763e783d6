"""Scripts for what was raised: the call alone, and the exception that it is expected to raise.

In: the case of the smallest call that raises, and the exception as a pattern (`type`, `message`, `phase`). Out: a
`Body`; None for a call that no script makes.
"""

from __future__ import annotations

from typing import Any

from compat.reproduce import calls
from compat.reproduce.body import Body, Name

_EXPECTED = '''
def expected(call: Any) -> bool:
    """Whether `call` raises what RAISES says, which is shown; another exception is not this defect and leaves."""
    try:
        call()
    except Exception as error:
        if not same(error, RAISES):
            raise
        traceback.print_exception(error)
        print(f"  raised {kind_of_error(error)}: {first_line(error)}")
        return True
    print("  nothing was raised")
    return False
'''

_CALLED = '''
def main() -> bool:
    """Load as a user does, and make the call."""
    model = candidate(checkpoint())
    return expected(lambda: called(model))
'''

_LOAD = '''
def main() -> bool:
    """Load as a user does."""
    where = checkpoint()
    return expected(lambda: candidate(where))
'''

_SWITCH = '''
def main() -> bool:
    """Load with eager attention, and switch."""
    model = load(checkpoint(), "eager")
    return expected(lambda: model.set_attn_implementation(IMPLEMENTATION))
'''

_SAVE = '''
def main() -> bool:
    """Load as a user does, save, and load what was saved."""
    model = candidate(checkpoint())
    folder = temporary()

    def call() -> None:
        model.save_pretrained(folder)
        auto_class(TASK).from_pretrained(folder, **dtype_argument("auto"))

    return expected(call)
'''

_DRAWN = '''
def main() -> bool:
    """Load as a user does, and make the call with rows drawn from a seed: it broke the device, and was not tried again
    with fewer."""
    model = candidate(checkpoint())
    generator = torch.Generator().manual_seed(CASE["drawn"]["seed"])
    vocabulary = model.config.get_text_config().vocab_size
    rows = [torch.randint(5, vocabulary, (n,), generator=generator).tolist() for n in CASE["drawn"]["lengths"]]
    CASE.update({"rows": rows, **({"decoder": [row[:17] for row in rows]} if TASK == "seq2seq-lm" else {})})
    return expected(lambda: called(model))
'''

_WHOLE = {"load": _LOAD, "switch": _SWITCH, "save": _SAVE}

_OWN: tuple[Name, ...] = (("raised", "same"), ("raised", "kind_of_error"), ("raised", "first_line"))


def raised(case: dict[str, Any], raises: dict[str, Any]) -> Body | None:
    """The body that makes the call of `case` and waits for what it `raises`."""
    kind = calls.kind_of(case)
    constants = {"CASE": case, "RAISES": raises}
    if kind in _WHOLE:
        return Body(_EXPECTED + _WHOLE[kind], constants, _OWN)
    if kind not in calls.KINDS:
        return None
    text, needs = calls.KINDS[kind]
    return Body(
        _EXPECTED + text + (_DRAWN if "drawn" in case else _CALLED), constants, (*calls.IMPORTED, *_OWN, *needs)
    )
