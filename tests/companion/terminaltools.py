# SPDX-License-Identifier: MIT
"""A program in a pseudo-terminal, and what it shows there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from typing import Any

import pyte
from harness import wait_until

# Sequences that pyte takes for text: those of the keyboard's protocol, and questions about modes.
_UNKNOWN_TO_PYTE = re.compile(
    rb"\x1b\[[<>=?][0-9;]*[ut]|\x1b\[\?[0-9;]*\$p|\x1bP[^\x1b]*\x1b\\|\x1b\]11[^\x07\x1b]*(\x07|\x1b\\)"
)

SEQUENCES = {
    "up": "\x1b[A",
    "down": "\x1b[B",
    "home": "\x1b[H",
    "end": "\x1b[F",
    "pagedown": "\x1b[6~",
    "pageup": "\x1b[5~",
    "enter": "\r",
    "escape": "\x1b",
    "tab": "\t",
    "f1": "\x1bOP",
    "ctrl-c": "\x03",
}


class Terminal:
    """Runs *words* in a terminal of *columns* x *lines*."""

    def __init__(self, words: list[str], columns: int, lines: int, env: dict[str, str]) -> None:
        self.master, self.slave = pty.openpty()
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self._lock = threading.Lock()
        self._resize(columns, lines)
        # As a shell leaves it; the slave stays open, so that it can be compared afterwards.
        self.attributes = termios.tcgetattr(self.slave)
        self.proc = subprocess.Popen(
            words,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env={"TERM": "xterm-256color", "LANG": "C.UTF-8", **env},
            start_new_session=True,
        )
        self._over = False
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        pending = b""
        while not self._over:
            if not select.select([self.master], [], [], 0.05)[0]:
                continue
            try:
                data = os.read(self.master, 65536)
            except OSError:
                return
            with self._lock:
                self.raw += data
                pending += data
                # A sequence may come in two parts.
                cut = pending.rfind(b"\x1b")
                whole = len(pending) if cut < len(pending) - 32 else cut
                self._stream.feed(_UNKNOWN_TO_PYTE.sub(b"", pending[:whole]))
                pending = pending[whole:]

    def _resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        with self._lock:
            self.screen.resize(lines, columns)
        self._resize(columns, lines)
        # The terminal does that itself for the group in its foreground.
        self.proc.send_signal(signal.SIGWINCH)

    def press(self, *keys: str) -> None:
        for key in keys:
            os.write(self.master, SEQUENCES.get(key, key).encode())

    def click(self, column: int, line: int) -> None:
        """Click at a place, counted from 0."""
        for end in "Mm":
            os.write(self.master, f"\x1b[<0;{column + 1};{line + 1}{end}".encode())

    @property
    def lines(self) -> list[str]:
        with self._lock:
            return [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def wait(self, *texts: str, timeout: float = 10.0) -> str:
        """The screen once all *texts* are on it."""
        wait_until(
            lambda: all(text in self.text for text in texts),
            timeout,
            lambda: f"{texts} on the screen, which is\n{self.text}",
        )
        return self.text

    def wait_gone(self, text: str, timeout: float = 10.0) -> str:
        wait_until(lambda: text not in self.text, timeout, lambda: f"{text} not on the screen\n{self.text}")
        return self.text

    def line(self, text: str) -> str:
        """The first line of the screen with *text*."""
        return next((line for line in self.lines if text in line), "")

    def selected(self) -> str:
        """The first line that is shown in reverse."""
        with self._lock:
            lines = range(self.screen.lines)
            found = [self.screen.display[y] for y in lines if self.screen.buffer[y][3].reverse]
        return found[0] if found else ""

    def wait_selected(self, start: str) -> None:
        wait_until(
            lambda: self.selected().startswith(start),
            10,
            lambda: f"{start!r} selected, but {self.selected()!r}\n{self.text}",
        )

    def wait_end(self, timeout: float = 10.0) -> int:
        code = self.proc.wait(timeout)
        deadline = time.monotonic() + 2
        while select.select([self.master], [], [], 0)[0] and time.monotonic() < deadline:
            time.sleep(0.01)
        return code

    def assert_as_before(self) -> None:
        """The terminal is left as it was found."""
        assert termios.tcgetattr(self.slave) == self.attributes
        for mode in (b"1049", b"1000", b"1003", b"1006", b"2004"):
            on, off = self.raw.rfind(b"\x1b[?%sh" % mode), self.raw.rfind(b"\x1b[?%sl" % mode)
            assert off >= on, f"mode {mode.decode()} is still on"
        assert self.raw.rfind(b"\x1b[?25h") >= self.raw.rfind(b"\x1b[?25l"), "the cursor is hidden"

    def close(self) -> None:
        if self.proc.poll() is None:
            self.proc.kill()
            self.proc.wait()
        self._over = True
        self._thread.join()
        for fd in (self.master, self.slave):
            with contextlib.suppress(OSError):
                os.close(fd)


@contextlib.contextmanager
def terminal(words: list[Any], columns: int = 80, lines: int = 24, **env: str) -> Iterator[Terminal]:
    found = Terminal([str(word) for word in words], columns, lines, env)
    try:
        yield found
    finally:
        found.close()
