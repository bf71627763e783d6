"""A headless Chromium that scripts drive through the DevTools protocol over a pipe: no package, no port, no network.

In: the name of the program and the size of its window. Out: pages that are opened from files, real key presses, values
of expressions, pictures, and everything that a page wrote to the console or tried to load.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
LIMIT_SECONDS = 60.0
"""How long one answer may take."""

KEYS: dict[str, tuple[int, str]] = {
    "Tab": (9, ""), "Enter": (13, "\r"), "Escape": (27, ""), " ": (32, " "), "End": (35, ""), "Home": (36, ""),
    "PageUp": (33, ""), "PageDown": (34, ""),
    "ArrowLeft": (37, ""), "ArrowUp": (38, ""), "ArrowRight": (39, ""), "ArrowDown": (40, ""), "Backspace": (8, ""),
}  # fmt: skip
"""Key -> virtual key code and the text that it types."""


class BrowserError(Exception):
    """No browser, or one that did not answer or raised."""


class Browser:
    """One page of a browser; a context manager."""

    def __init__(self, width: int = 1280, height: int = 900, *, dark: bool = False, program: str = "") -> None:
        """Start it. `width` and `height` are those of the page, in CSS pixels. Raises BrowserError."""
        found = program or next((p for p in map(shutil.which, PROGRAMS) if p), "")
        if not found:
            raise BrowserError(f"no browser: one of {', '.join(PROGRAMS)} has to be on the PATH")
        self.console: list[str] = []
        self.requests: list[str] = []
        self._profile = tempfile.mkdtemp(prefix="compat-chromium-")
        self._number, self._buffer = 0, b""
        self._loaded: set[str | None] = {None}
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        command = [found, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
                   "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
                   f"--user-data-dir={self._profile}", f"--window-size={width},{height}", "about:blank"]  # fmt: skip

        def pipes() -> None:
            os.dup2(theirs_in, 100)
            os.dup2(theirs_out, 101)
            os.dup2(100, 3)
            os.dup2(101, 4)

        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False,
            preexec_fn=pipes,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._session = ""
        targets = self._ask("Target.getTargets")["targetInfos"]
        page = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session = self._ask("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")
        self._ask("Page.setLifecycleEventsEnabled", enabled=True)
        self._ask("Performance.enable", timeDomain="threadTicks")
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])

    def __enter__(self) -> Browser:
        """The browser itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End it and remove its profile."""
        self._process.terminate()
        self._process.wait(10)
        os.close(self._in)
        os.close(self._out)
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, page: Path, hash: str = "") -> None:
        """Load a file and wait for its `load` event. The same file with another hash is loaded anew."""
        for address in ("about:blank", page.resolve().as_uri() + hash):
            loader = self._ask("Page.navigate", url=address).get("loaderId")
            self._until(lambda awaited=loader: awaited in self._loaded, f"{address} to load")

    def value(self, expression: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise BrowserError(f"{expression[:200]}: {answer['exceptionDetails']['exception'].get('description')}")
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until an expression is true."""
        end = time.monotonic() + LIMIT_SECONDS
        while not self.value(f"Boolean({expression})"):
            if time.monotonic() > end:
                raise BrowserError(f"never true: {expression}")
            time.sleep(0.02)

    def worked_seconds(self) -> float:
        """Processor time of the page's main thread so far: scripts, style, layout. Other processes do not count."""
        metrics = self._ask("Performance.getMetrics")["metrics"]
        return float(next(m["value"] for m in metrics if m["name"] == "TaskDuration"))

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press and release one key, as a keyboard does."""
        code, text = KEYS[key] if key in KEYS else (ord(key.upper()), key)
        event = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self._ask("Input.dispatchKeyEvent", type="keyDown", **event, **({"text": text} if text else {}))
        self._ask("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        """Press the keys of `text` one after another."""
        for key in text:
            self.press(key)

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """What is to be seen, as PNG; `whole` beyond the window too."""
        answer = self._ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        answers: list[dict[str, Any]] = []

        def answered() -> bool:
            return any(a["id"] == number for a in answers)

        self._until(answered, method, answers)
        answer = next(a for a in answers if a["id"] == number)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _until(self, done: Any, what: str, answers: list[dict[str, Any]] | None = None) -> None:
        end = time.monotonic() + LIMIT_SECONDS
        while not done():
            ready, _, _ = select.select([self._in], [], [], max(end - time.monotonic(), 0))
            data = os.read(self._in, 1 << 20) if ready else b""
            if not data:
                raise BrowserError(f"the browser did not answer: {what}")
            *whole, self._buffer = (self._buffer + data).split(b"\0")
            for part in whole:
                self._take(json.loads(part), answers)

    def _take(self, message: dict[str, Any], answers: list[dict[str, Any]] | None) -> None:
        if "id" in message:
            if answers is not None:
                answers.append(message)
            return
        given = message.get("params", {})
        match message.get("method"):
            case "Page.lifecycleEvent" if given["name"] == "load":
                self._loaded.add(given["loaderId"])
            case "Runtime.exceptionThrown":
                self.console.append(str(given["exceptionDetails"].get("exception", {}).get("description", "raised")))
            case "Runtime.consoleAPICalled":
                self.console.append(" ".join(str(a.get("value", a.get("description"))) for a in given["args"]))
            case "Log.entryAdded":
                self.console.append(f"{given['entry']['level']}: {given['entry']['text']}")
            case "Network.requestWillBeSent":
                self.requests.append(given["request"]["url"])
