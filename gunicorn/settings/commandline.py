# SPDX-License-Identifier: MIT
"""The parser of the command line, with hints about unknown flags."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from gunicorn.settings import redact
from gunicorn.settings.http import PROXY_PROTOCOL_WORDS

_PROXY_PROTOCOL = "--proxy-protocol"


class Parser(argparse.ArgumentParser):
    """ArgumentParser whose errors suggest what to write for an unknown flag."""

    def parse_args(  # type: ignore[override]  # typed as overloads that all come to this
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        found, unknown = self.parse_known_args(_with_modes(given), namespace)
        # The value of an unknown flag is not another mistake.
        unknown = [word for word in unknown if word.startswith("-")] or unknown
        if unknown:
            unknown = redact.in_value(unknown)
            lines = [f"unrecognized arguments: {' '.join(unknown)}"]
            lines += [hint for hint in map(self._hint, unknown) if hint]
            self.error("\n  ".join(lines))
        return found

    def _hint(self, argument: str) -> str | None:
        if not argument.startswith("--"):
            return None
        import difflib

        flag = argument.partition("=")[0]
        near = difflib.get_close_matches(flag, self._option_string_actions, n=1, cutoff=0.75)
        return f"{argument}: did you mean {near[0]}?" if near else None


def _with_modes(args: list[str]) -> list[str]:
    """*args* with ``--proxy-protocol`` and its optional mode joined into one word.

    Otherwise argparse would take the name of the application for the mode.
    """
    end = args.index("--") if "--" in args else len(args)
    joined: list[str] = []
    for word in args[:end]:
        if joined and joined[-1] == _PROXY_PROTOCOL and word in PROXY_PROTOCOL_WORDS:
            joined[-1] = f"{_PROXY_PROTOCOL}={word}"
        else:
            joined.append(_PROXY_PROTOCOL if _is_proxy_protocol(word) else word)
    return [f"{word}=auto" if word == _PROXY_PROTOCOL else word for word in joined] + args[end:]


def _is_proxy_protocol(word: str) -> bool:
    # Flags may be shortened as long as they are unambiguous.
    return word.startswith("--proxy-p") and _PROXY_PROTOCOL.startswith(word)
