# SPDX-License-Identifier: MIT
"""Command lines of systemd's units: their words by its rules, and the same for a shell."""

from __future__ import annotations

import re
import shlex

PREFIXES = "-@:+!|"

_VARIABLE = re.compile(r"\$(?:[A-Za-z_]\w*|\{[A-Za-z_]\w*\}|\$)")
# systemd.syntax(7); an escape that is not among them stays as it is.
_ESCAPES = {
    **{"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "s": " "},
    **{letter: letter for letter in "\\\"';"},
}
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|([0-7]{3})|(.))", re.DOTALL)


def _unescaped(match: re.Match[str]) -> str:
    if match[1]:
        return chr(int(match[1], 16))
    if match[2]:
        return chr(int(match[2], 8))
    return _ESCAPES.get(match[3], match[0])


def split(text: str) -> list[str]:
    """The words of *text*, without quotes and escapes. Raises ValueError."""
    words: list[str] = []
    word: str | None = None
    quote = ""
    for piece in re.findall(r"\\(?:x[0-9a-fA-F]{2}|[0-7]{3}|.)|.", text, re.DOTALL):
        if piece == quote:
            quote = ""
        elif not quote and piece in ("'", '"'):
            quote, word = piece, word or ""
        elif not quote and piece.isspace():
            if word is not None:
                words.append(word)
            word = None
        else:
            word = (word or "") + (_ESCAPE.sub(_unescaped, piece) if len(piece) > 1 else piece)
    if quote:
        raise ValueError(f"{text!r}: no closing quotation")
    return words if word is None else [*words, word]


def commands(text: str) -> list[str]:
    """The commands of a line, which `` ; `` separates."""
    return re.split(r"\s;\s", text)


def has_variables(words: list[str]) -> bool:
    """Whether systemd would put variables into *words*."""
    return any(match[0] != "$$" for word in words for match in _VARIABLE.finditer(word))


def plain(words: list[str]) -> list[str]:
    """*words* without variables, as the program gets them."""
    return [word.replace("$$", "$") for word in words]


def for_shell(words: list[str]) -> str:
    """A line in which only variables mean something to a shell."""
    return " ".join(map(_for_shell, words))


def _for_shell(word: str) -> str:
    if re.fullmatch(r"\$[A-Za-z_]\w*", word):
        return word  # several words, there and here
    if not has_variables([word]):
        return shlex.quote(word.replace("$$", "$"))
    parts = re.split(f"({_VARIABLE.pattern})", word)
    # Only braces make a variable within a word.
    quoted = [
        part if part.startswith("${") else re.sub(r'(["\\`$])', r"\\\1", part.replace("$$", "$"))
        for part in parts
    ]
    return f'"{"".join(quoted)}"'
