# SPDX-License-Identifier: MIT
"""Drive a headless Chromium by the DevTools protocol, through a pair of pipes.

No port, no driver program and no library: the browser reads commands from descriptor 3 and answers on 4.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from proctools import die_with_parent, wait_until

_KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "Space": 32, "ArrowDown": 40}
_FLAGS = [
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # root has none; and the pages are our own
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--password-store=basic",
    "--hide-scrollbars",
    "--lang=en-US",
    "--host-resolver-rules=MAP rebound.example 127.0.0.1",
]


class Browser:
    """A browser with one page; ``problems`` has what its console and its network complained about."""

    def __init__(self, executable: str, *flags: str) -> None:
        self.problems: list[str] = []
        self._profile = tempfile.mkdtemp(prefix="browser-")
        self._count = 0
        self._session: str | None = None
        self._buffer = b""
        self._answers: dict[int, Any] = {}
        commands, self._writer = os.pipe()
        self._reader, answers = os.pipe()

        def arrange() -> None:
            die_with_parent()
            # Away from 3 and 4 first: one may be where the other has to be.
            high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 50) for fd in (commands, answers)]
            for wanted, fd in zip((3, 4), high, strict=True):
                os.dup2(fd, wanted)

        self._process = subprocess.Popen(
            [executable, *_FLAGS, f"--user-data-dir={self._profile}", *flags, "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(3, 4),
            preexec_fn=arrange,
            env={**os.environ, "HOME": self._profile},
        )
        os.close(commands)
        os.close(answers)
        targets = self.send("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def close(self) -> None:
        with contextlib.suppress(OSError, AssertionError):
            self._session = None
            self.send("Browser.close")
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._writer)
        os.close(self._reader)
        shutil.rmtree(self._profile, ignore_errors=True)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # -- the protocol --------------------------------------------------------------------------

    def send(self, method: str, **params: Any) -> Any:
        """Send a command and return its result."""
        self._count += 1
        number = self._count
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._writer, data) :]
        deadline = time.monotonic() + 20
        while number not in self._answers:
            self._read(deadline)
        answer = self._answers.pop(number)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _read(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        assert left > 0 and select.select([self._reader], [], [], left)[0], "the browser does not answer"
        chunk = os.read(self._reader, 1 << 16)
        assert chunk, "the browser has ended"
        *messages, self._buffer = (self._buffer + chunk).split(b"\0")
        for message in messages:
            self._note(json.loads(message))

    def _note(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers[message["id"]] = message
            return
        params = message.get("params", {})
        if message["method"] == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))
        elif message["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.problems.append(json.dumps(params["args"]))
        elif message["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    # -- the page ------------------------------------------------------------------------------

    def open(self, url: str) -> None:
        """Go to *url*, and wait until its document is complete."""
        self.js("window.before = true")
        result = self.send("Page.navigate", url=url)
        assert "errorText" not in result, result
        wait_until(
            lambda: self.js("!window.before && document.readyState === 'complete'"), 10, f"{url} to be loaded"
        )

    def js(self, expression: str) -> Any:
        """Return the value of an expression; of a promise what it comes to."""
        result = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def text(self, selector: str = "body") -> str:
        """Return the visible text of the first such element; empty without one."""
        return str(self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def wait_text(self, part: str, selector: str = "body", timeout: float = 10.0) -> None:
        wait_until(
            lambda: part in self.text(selector), timeout, lambda: f"{part!r} in {self.text(selector)!r}"
        )

    def press(self, key: str, shift: bool = False) -> None:
        """Press a key, as a keyboard would."""
        common = {"key": " " if key == "Space" else key, "code": key, "windowsVirtualKeyCode": _KEYS[key]}
        text = {"Enter": "\r", "Space": " "}.get(key)
        self.send(
            "Input.dispatchKeyEvent",
            type="keyDown" if text else "rawKeyDown",
            modifiers=8 if shift else 0,
            **({"text": text} if text else {}),
            **common,
        )
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def write(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def tab_to(self, text: str, most: int = 200) -> None:
        """Press Tab until the focus is on what has this text, or this accessible name."""
        for _ in range(most):
            self.press("Tab")
            if text in (self.focused(), self.js("document.activeElement?.getAttribute('aria-label')")):
                return
        raise AssertionError(f"Tab does not come to {text!r}")

    def focused(self) -> str:
        return str(self.js("document.activeElement?.innerText ?? ''"))

    def look(self, width: int, height: int = 900, scheme: str = "light", scale: float = 1) -> None:
        """Have a window of this size, and a light or dark scheme."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        self.send(
            "Emulation.setEmulatedMedia",
            media="screen",
            features=[
                {"name": "prefers-color-scheme", "value": scheme},
                {"name": "prefers-reduced-motion", "value": "reduce"},
            ],
        )

    def scripts(self, run: bool) -> None:
        self.send("Emulation.setScriptExecutionDisabled", value=not run)

    def screenshot(self, path: Path, whole: bool = False) -> None:
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def wait(self, condition: str, timeout: float = 10.0, message: str | Callable[[], str] = "") -> None:
        """Poll an expression until it is true."""
        wait_until(lambda: self.js(f"!!({condition})"), timeout, message or condition)
