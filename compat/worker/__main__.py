"""The worker's loop: requests as JSON lines on stdin, one answer a line on the descriptor that stdout was.

    {"op": "hello"}                                       -> the environment
    {"op": "check", "group": {...}, "attention": {...}, "check": "agreement"} -> what the check saw
    {"op": "timing", "do": "open" | "sample" | "close", ...}  -> one side of a comparison with another process
    {"op": "across", "do": "locate" | "answer" | "compare", ...}  -> one side of a comparison of two stacks, or both
    {"op": "explain", ..., "limits": {...}, "effort": "full", "seconds": 10} -> why it failed

Libraries print to stdout; that is sent to stderr, so that answers stay whole. The loop ends with stdin.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, TextIO


def main() -> None:
    """Answer requests until stdin closes."""
    _end_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # a library that asks a question gets no answer, and never a request of ours
    os.close(nothing)
    session: Any = None
    for line in requests:
        request = json.loads(line)
        if request["op"] == "hello":
            from compat.worker.environment import describe

            _answer(answers, {"status": "ok", "environment": describe()})
            continue
        if session is None:
            session = _Session(request["threads"])
        others = {"explain": session.explain, "timing": session.timing, "across": session.across}
        asked = others.get(request["op"], session.check)
        _answer(answers, asked(request))


def _end_with_parent() -> None:
    """Die when the parent does, even in the middle of a check (Linux: prctl(PR_SET_PDEATHSIG))."""
    import ctypes
    import signal

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


def _answer(answers: TextIO, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


class _Session:
    """Holds the current group between requests."""

    def __init__(self, threads: int) -> None:
        from compat.worker import stack_api
        from compat.worker.group import Masters

        stack_api.quiet_logs()
        gc.freeze()  # what importing made stays: looking through it for garbage took 0.2 s after every load group
        self.threads = threads
        self.masters = Masters()
        self.group: Any = None
        self.company: Any = None
        self.sampler: Any = None

    def check(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run one check; every way it can end becomes an answer."""
        from compat.worker import reference
        from compat.worker.calls import CLOCK
        from compat.worker.checks import CHECKS
        from compat.worker.dispatch import forget_compiled

        CLOCK.reset()
        reference.ENTROPY.total, reference.ENTROPY.rows = 0.0, 0
        started = time.perf_counter()
        answer: dict[str, Any]
        try:
            self._inject(tuple(request.get("faults", ())))
        except Exception as error:  # the stack has no such place, or what was put in cannot be taken back
            return {"status": "error", "injection": f"{type(error).__name__}: {error}", "exception": _exception(error)}

        def asked() -> dict[str, Any]:
            group = self._group(request["group"])
            before = group.missed_calls
            if request["attention"]["implementation"] == "flex_attention":
                forget_compiled()
            report = CHECKS[request["check"]](group, request["attention"])
            if group.missed_calls > before:
                report.facts["mode_missed"] = group.missed_calls - before
            return {
                "measurements": report.measurements,
                "facts": report.facts,
                "kernels": report.kernels,
                "seed": report.seed,
            }

        answer = self._answered(asked, request["check"])
        if self.company is not None:
            answer["faults_reached"], answer["set_aside"] = self.company.reached, self.company.set_aside
        answer["seconds"] = round(time.perf_counter() - started, 6)
        answer["model_seconds"] = round(CLOCK.seconds, 6)
        return answer

    def timing(self, request: dict[str, Any]) -> dict[str, Any]:
        """Open, sample or close one side of a comparison whose other side is another process."""
        from compat.worker.sampling import Sampler

        if self.sampler is None:
            self.sampler = Sampler()
        sampler: Sampler = self.sampler
        if request["do"] == "open":
            return self._answered(
                lambda: sampler.open(self._group(request["group"]), request["attention"], request), "speed"
            )
        if request["do"] == "sample":
            return self._answered(lambda: sampler.sample(int(request["calls"])), "speed")
        return self._answered(sampler.close, "speed")

    def across(self, request: dict[str, Any]) -> dict[str, Any]:
        """Find the checkpoint, answer as one side of a comparison of two stacks, or compare the answers of both."""
        from pathlib import Path

        from compat.worker import across

        try:
            self._inject(tuple(request.get("faults", ())))
        except Exception as error:  # as for a check
            return {"status": "error", "injection": f"{type(error).__name__}: {error}", "exception": _exception(error)}

        def asked() -> dict[str, Any]:
            group = self._group(request["group"])
            if request["do"] == "locate":
                return across.location(group)
            if request["do"] == "compare":
                return across.compare(group.dtype, (Path(request["files"][0]), Path(request["files"][1])))
            return across.answer(group, request["attention"], Path(request["file"]), bool(request["defaults"]))

        return self._answered(asked, "across")

    def _answered(self, asked: Callable[[], dict[str, Any]], phase: str) -> dict[str, Any]:
        """What `asked` returns, with status `ok`; every other way it can end, as an answer."""
        from compat.worker.calls import StackError, Unavailable
        from compat.worker.group import NoYardstick

        answer: dict[str, Any]
        try:
            return {"status": "ok", **asked()}
        except StackError as error:
            answer = {"status": "raised", "phase": error.phase, "exception": _exception(error.original)}
            self._after(error.original)
        except Unavailable as error:
            answer = {"status": "unavailable", "reason": str(error)}
        except NoYardstick as error:
            answer = {"status": "no_yardstick", "reason": str(error)}
        except MemoryError as error:
            answer = {"status": "raised", "phase": phase, "exception": _exception(error)}
            self._drop()
        except Exception as error:  # a fault of the harness: it must be reported, not end the loop
            answer = {"status": "error", "exception": _exception(error)}
        return answer

    def explain(self, request: dict[str, Any]) -> dict[str, Any]:
        """Say why a check failed; not being able to is an answer too (`note`), and changes no outcome."""
        from compat.worker.calls import StackError, Unavailable
        from compat.worker.explain import explain
        from compat.worker.group import NoYardstick
        from compat.worker.raised import device_lost

        try:
            found = explain(self._group(request["group"]), request["attention"], request)
            return {"status": "ok", **found}
        except (StackError, Unavailable, NoYardstick) as error:
            if isinstance(error, StackError):
                self._after(error.original)
            answer: dict[str, Any] = {"status": "ok", "minimal": {"note": f"explaining it raised: {error}"[:400]}}
            if isinstance(error, StackError) and device_lost(error.original):
                answer["device_lost"] = True
            return answer
        except Exception as error:  # evidence is missing then, the outcome stands
            return {"status": "error", "exception": _exception(error)}

    def _inject(self, faults: tuple[str, ...]) -> None:
        """Put the named faults of the self-test into the stack, after taking back the last ones. Loaded models go:
        a fault may change what loading does."""
        if faults in ((self.company.names, self.company.inside) if self.company is not None else ((),)):
            return
        from compat.worker.group import Masters

        self._drop()
        self.masters = Masters()
        gc.freeze()  # no model is held now: what is left are modules
        if self.company is not None:
            self.company.leave()
            self.company = None
        if faults:
            from compat.faults import catalogue
            from compat.faults.patches import Company

            known = catalogue()
            company = Company()
            company.enter({name: known[name].apply for name in faults})
            self.company = company

    def _group(self, spec: dict[str, Any]) -> Any:
        from compat.worker.group import Group
        from compat.worker.spec import GroupSpec

        if self.group is None or self.group.spec.key != spec["key"]:
            self._drop()
            self.group = Group(GroupSpec(**spec), self.masters)
            self._set_threads()
        self.group.spec = dataclasses.replace(self.group.spec, speed=spec.get("speed", {}))
        return self.group

    def _set_threads(self) -> None:
        """One thread for tiny models on a CPU: more cost more than they bring."""
        import torch

        from compat.worker.group import LARGE_PARAMETERS

        if self.group.device.type == "cpu":
            torch.set_num_threads(1)
            if self.group.row["source"] != "probe":
                size = sum(p.numel() for p in self.group.master.parameters())
                torch.set_num_threads(self.threads if size > LARGE_PARAMETERS else 1)

    def _after(self, error: BaseException) -> None:
        """Out of memory: let go of everything, so that the next check starts clean."""
        from compat.worker.calls import out_of_memory

        if out_of_memory(error):
            self._drop()

    def _drop(self) -> None:
        if self.group is not None:
            self.group.close()
            self.group = None


def _exception(error: BaseException) -> dict[str, str]:
    text = "".join(traceback.format_exception(error))
    for folder in sorted({p.rstrip("/") for p in sys.path if len(p) > 1}, key=len, reverse=True):
        text = text.replace(f'"{folder}/', '"')  # say which file, not where this machine keeps it
    return {
        "type": f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins."),
        "message": str(error)[:4000],
        "traceback": text[-6000:],
    }


if __name__ == "__main__":
    main()
