# SPDX-License-Identifier: MIT
"""Fill ``%(name)s``, ``%(group)s`` and ``%(index)d`` in the texts of a companion's configuration. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gunicorn.settings import redact

# For the name and the group of a copy, and its number: %(index)s, %(index)d or, with zeros, %(index)02d.
_PLACEHOLDER = re.compile(r"%(?:%|\((?:name|group)\)s|\(index\)(?:0?\d{1,2})?[ds])")
# What stands at a '%', to be shown in an error.
_STRAY = re.compile(r"%(?:\([^)]*\)?[0-9]*[a-z]?|.)?", re.DOTALL)

HELP = "%(name)s, %(group)s and %(index)d are filled in, and a plain '%' is written '%%'"


def fill(value: Any, values: Mapping[str, Any]) -> Any:
    """Return *value* with its placeholders filled, also those in texts of lists and dictionaries.

    *values*: ``name``, ``group`` and ``index``. Raises ValueError for a '%' that begins no placeholder.
    """
    if isinstance(value, str):
        return _fill_text(value, values, redact.in_text) if "%" in value else value
    if isinstance(value, Mapping):
        return {key: _fill_item(key, item, values) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(fill(item, values) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_fill_word(value, number, values) for number in range(len(value)))
    return value


def check(value: Any) -> None:
    """Raise ValueError for a '%' in *value* that begins no placeholder."""
    fill(value, {"name": "", "group": "", "index": 0})


def _fill_text(text: str, values: Mapping[str, Any], redacted: Callable[[str], Any]) -> str:
    stray = _find_stray(text)
    if stray is not None:
        shown = redacted(text)
        what = f"{stray!r} is no placeholder" if shown == text else "it has a '%' that begins no placeholder"
        raise ValueError(f"{shown!r}: {what}: {HELP}")
    return _PLACEHOLDER.sub(lambda found: found[0] % values, text)


def _fill_word(words: Sequence[Any], number: int, values: Mapping[str, Any]) -> Any:
    """Fill one of *words*. It may be a secret by the word before it: ``--password x``."""
    word = words[number]
    if isinstance(word, str):
        return (
            _fill_text(word, values, lambda _: redact.in_value(list(words))[number]) if "%" in word else word
        )
    return fill(word, values)


def _fill_item(key: Any, item: Any, values: Mapping[str, Any]) -> Any:
    """Fill *item* of a dictionary. The value of a variable may be a secret: an error names the key alone."""
    if isinstance(item, str) and _find_stray(item) is not None:
        raise ValueError(
            f"{key}: it has a '%' that begins no placeholder: {HELP}; of a value from elsewhere "
            "value.replace('%', '%%')"
        )
    return fill(item, values)


def _find_stray(text: str) -> str | None:
    """Return the first '%' that begins no placeholder, with what follows; None if there is none."""
    at = 0
    while (at := text.find("%", at)) >= 0:
        found = _PLACEHOLDER.match(text, at)
        if found is None:
            stray = _STRAY.match(text, at)
            return stray[0] if stray is not None else None
        at = found.end()
    return None


def texts(value: Any) -> Iterator[str]:
    """Return all texts in *value*."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from texts(item)


def has_any(value: Any) -> bool:
    """Whether there is something in *value* to fill, or a '%%'."""
    return any("%" in text for text in texts(value))


def differs(value: Any) -> bool:
    """Whether *value*, before it is filled, is another one for each copy."""
    found = (match[0] for text in texts(value) for match in _PLACEHOLDER.finditer(text))
    return any(each.startswith(("%(name)", "%(index)")) for each in found)
