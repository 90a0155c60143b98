# SPDX-License-Identifier: MIT
"""Every name that other people's code relies on is where it was, and is called as it was.

``public_interface.txt`` lists them: a module at the left margin, below it its constants (``NAME: type``),
functions, classes with their methods, and the settings (``setting CLASS name``). A signature may have
grown by parameters with a default; a call that was good stays good.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

LISTING = Path(__file__).with_name("public_interface.txt")
# Modules that need a library.
NEEDS = {"gunicorn.workers.ggevent": "gevent", "gunicorn.workers.gtornado": "tornado"}


def entries() -> Iterator[tuple[str, str, str]]:
    """(module, class or "", what is listed of it), one a line."""
    module = owner = ""
    for line in LISTING.read_text().splitlines():
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if not line.startswith(" "):
            module, owner = text, ""
            yield module, "", ""
        elif line.startswith("      "):
            yield module, owner, text
        else:
            owner = text.split()[1].split("(")[0] if text.startswith("class ") else ""
            yield module, "", text


ENTRIES = list(entries())
OF_MODULE = {module: [entry[1:] for entry in ENTRIES if entry[0] == module] for module, _, _ in ENTRIES}


def load(name: str) -> ModuleType:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    return importlib.import_module(name)


def parameters(listed: str) -> ast.arguments:
    """Those of ``name(self, a, b=1)``."""
    function = ast.parse(f"def {listed.split(' [')[0]}: pass").body[0]
    assert isinstance(function, ast.FunctionDef)
    return function.args


def check_call(function: Any, listed: str, *, bound: bool) -> None:
    """*function* takes what is *listed*: the same names in the same places, no more of them required."""
    wanted = parameters(listed)
    names = [argument.arg for argument in wanted.args][1 if bound else 0 :]
    signature = inspect.signature(function)
    ours = list(signature.parameters.values())
    if bound and ours and ours[0].name in ("self", "cls", "_"):
        ours = ours[1:]
    kinds = {parameter.kind for parameter in ours}
    takes_any = inspect.Parameter.VAR_POSITIONAL in kinds and inspect.Parameter.VAR_KEYWORD in kinds
    plain = [p for p in ours if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if takes_any and len(plain) < len(names):
        names = names[: len(plain)]
    assert [p.name for p in plain[: len(names)]] == names, f"{listed}: ours is {signature}"
    required = len(names) - len(wanted.defaults)
    assert all(p.default is not p.empty for p in plain[required:]), f"{listed}: ours is {signature}"
    if wanted.vararg is not None:
        assert inspect.Parameter.VAR_POSITIONAL in kinds, listed


def name_of(text: str) -> str:
    found = re.match(r"(?:class |def )?(\w+)", text)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("module", OF_MODULE)
def test_all_of_a_module_is_there(module: str) -> None:
    for owner, text in OF_MODULE[module]:
        check(load(module), owner, text)


def check(home: Any, owner: str, text: str) -> None:
    if not text:
        return
    if owner:
        home = getattr(home, owner)
    if text.startswith("setting "):
        _, name, setting = text.split()
        assert getattr(home, name).name == setting
        return
    thing = getattr(home, name_of(text))
    if text.startswith("class "):
        bases = re.search(r"\((.*)\)", text)
        assert inspect.isclass(thing)
        for base in filter(None, bases[1].split(", ") if bases else ()):
            assert base in {parent.__name__ for parent in thing.__mro__}, f"{text}: {thing.__mro__}"
    elif text.endswith("[property]"):
        assert isinstance(inspect.getattr_static(home, name_of(text)), property)
    elif "(" in text and ": " not in text:
        static = inspect.getattr_static(home, name_of(text))
        assert callable(thing)
        bound = bool(owner) and not isinstance(static, classmethod | staticmethod)
        check_call(thing, text.removeprefix("def "), bound=bool(owner) and (bound or "[classmethod]" in text))


def test_the_listing_was_read() -> None:
    assert len(ENTRIES) > 500
    assert sum(text.startswith("setting ") for _, _, text in ENTRIES) == 93
