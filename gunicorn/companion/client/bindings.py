# SPDX-License-Identifier: MIT
"""The keys of ``top``, from which its help, its line of keys and the manual are made."""

from __future__ import annotations

from typing import NamedTuple


class Key(NamedTuple):
    """A key of the screen. *short* is for the line at the bottom; without it the key is only in the help."""

    keys: str
    action: str
    short: str
    help: str


KEYS = (
    Key("r", "restart", "Restart", "restart the companion; on a web worker: reload them all"),
    Key("s", "stop", "Stop", "stop the companion, and keep it stopped"),
    Key("a", "start", "Start", "start the companion"),
    Key("k", "kill", "", "kill the web worker; the master starts another"),
    Key("plus,equals_sign", "more", "Scale", "one copy more (numprocs), or one web worker more"),
    Key("minus", "fewer", "", "one copy fewer, or one web worker fewer"),
    Key("d", "dump", "Dump", "show the stacks of all Python threads, now"),
    Key("slash", "filter", "Filter", "show only rows with some words; Escape shows all"),
    Key("o", "order", "Sort", "sort by the next column; or click on its title"),
    Key("i", "invert", "", "sort the other way round"),
    Key("enter", "zoom", "", "give the screen to the output; Escape goes back"),
    Key("tab", "next", "", "go to the next table, and to the output"),
    Key("escape", "back", "", "leave what is in front"),
    Key("question_mark,h,f1", "help", "Help", "show this help"),
    Key("q,ctrl+c", "leave", "Quit", "leave; the server runs on"),
)
# How textual's names of keys are shown.
KEY_NAMES = {
    "plus": "+",
    "minus": "-",
    "slash": "/",
    "question_mark": "?",
    "enter": "Enter",
    "tab": "Tab",
    "escape": "Escape",
    "f1": "F1",
    "ctrl+c": "Ctrl-C",
    "equals_sign": "",
}


def show_keys(keys: str) -> str:
    """``q, Ctrl-C`` of ``q,ctrl+c``."""
    return ", ".join(filter(None, (KEY_NAMES.get(key, key) for key in keys.split(","))))
