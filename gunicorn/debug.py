# SPDX-License-Identifier: MIT
"""Trace every executed line, as a last resort."""

from __future__ import annotations

import linecache
import re
import sys
import threading
from collections.abc import Iterable
from types import FrameType
from typing import Any

__all__ = ["Spew", "spew", "unspew"]

_NAME_RE = re.compile(r"[^\W\d]\w*")


class Spew:
    """A trace function that prints each line before it runs, with the values of the names in it.

    *trace_names*: the modules to trace; None means all.
    """

    def __init__(self, trace_names: Iterable[str] | None = None, show_values: bool = True) -> None:
        self.trace_names = None if trace_names is None else frozenset(trace_names)
        self.show_values = show_values

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Spew:
        if event == "line":
            self._print_line(frame)
        return self

    def _print_line(self, frame: FrameType) -> None:
        name = frame.f_globals.get("__name__", "?")
        if self.trace_names is not None and name not in self.trace_names:
            return
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno, frame.f_globals).strip()
        print(f"{name}:{frame.f_lineno}: {line or frame.f_code.co_name}")
        if self.show_values and line:
            shown = " ".join(f"{known}={value}" for known, value in _values(frame, line))
            if shown:
                print(f"\t({shown})")


def _values(frame: FrameType, line: str) -> Iterable[tuple[str, str]]:
    for name in dict.fromkeys(_NAME_RE.findall(line)):
        for scope in (frame.f_locals, frame.f_globals):
            if name in scope:
                try:
                    yield name, repr(scope[name])
                except Exception as error:
                    # A half-made object, or one whose repr needs what this line is about to set.
                    yield name, f"<{type(error).__name__} in repr>"
                break


def spew(trace_names: Iterable[str] | None = None, show_values: bool = False) -> None:
    """Trace this thread and all that start from now on."""
    tracer = Spew(trace_names, show_values)
    threading.settrace(tracer)
    sys.settrace(tracer)


def unspew() -> None:
    """Trace no more."""
    threading.settrace(None)
    sys.settrace(None)
