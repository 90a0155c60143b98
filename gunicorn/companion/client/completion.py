# SPDX-License-Identifier: MIT
"""Completion for bash, zsh and fish: the scripts, and the words that they ask for.

A script only hands over the words on the line. What may come next is found in the parser, so it never lacks
a command or an option; names and pids come from the running server.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gunicorn.companion.client.connection import OK, Failure, connect

# Exit code: complete the name of a file.
FILES = 3
# In seconds: to find the server, without a second attempt, and to get its answer.
FIND, ANSWER = 0.05, 0.5

SCRIPTS = {
    "bash": r"""# Completion of gunicorn-companion for bash.
_gunicorn_companion() {
    local found
    found=$("${1/#\~/$HOME}" __complete bash "${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" 2>/dev/null) ||
        { [[ $? == 3 ]] && compopt -o default; found=; }
    COMPREPLY=()
    [[ -z $found ]] || mapfile -t COMPREPLY <<< "$found"
}
complete -F _gunicorn_companion gunicorn-companion
""",
    "zsh": r"""#compdef gunicorn-companion
# Completion of gunicorn-companion for zsh.
_gunicorn_companion() {
    local found
    local -a words_found
    found=$(${~words[1]} __complete zsh "${(@)words[2,CURRENT-1]}" "$PREFIX" 2>/dev/null)
    [[ $? == 3 ]] && { _files; return }
    words_found=("${(@f)found}")
    [[ -n $found ]] && _describe -V -t words gunicorn-companion words_found
}
if [[ ${funcstack[1]} == _gunicorn-companion ]]; then
    _gunicorn_companion "$@"
else
    compdef _gunicorn_companion gunicorn-companion
fi
""",
    "fish": r"""# Completion of gunicorn-companion for fish.
function __gunicorn_companion_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    $words[1] __complete fish $words[2..-1] "$current" 2>/dev/null
    test $status -eq 3; and __fish_complete_path "$current"
end
complete -c gunicorn-companion -f -k -a '(__gunicorn_companion_complete)'
""",
}

Candidate = tuple[str, str]


def show_script(options: Any) -> int:
    """Print the script of one shell."""
    print(SCRIPTS[options.shell], end="")
    return OK


class Line:
    """What the words so far ask of the next one. Raises LookupError if they make no sense."""

    def __init__(self, parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
        self.parser = parser
        self.socket: str | None = parser.get_default("socket")
        self.given: list[str] = []
        # The option whose value comes next.
        self.pending: argparse.Action | None = None
        self.options_end = False
        for word in words:
            self._read(word)

    def _read(self, word: str) -> None:
        if self.pending is not None:
            self._set(self.pending, word)
            self.pending = None
        elif word == "--" and not self.options_end:
            self.options_end = True
        elif word.startswith("-") and not self.options_end:
            name, equals, value = word.partition("=")
            action = self.options().get(name)
            if action is not None and action.nargs != 0:
                if equals:
                    self._set(action, value)
                else:
                    self.pending = action
        elif (commands := _commands(self.parser)) is not None:
            self.parser = commands.choices[word]
        else:
            self.given.append(word)

    def _set(self, option: argparse.Action, value: str) -> None:
        if option.dest == "socket":
            self.socket = value

    def options(self) -> dict[str, argparse.Action]:
        return self.parser._option_string_actions

    def argument(self) -> argparse.Action | None:
        """The positional argument that the next word belongs to."""
        positional = [one for one in self.parser._actions if not one.option_strings]
        for number, action in enumerate(positional):
            if action.nargs in ("*", "+") or number == len(self.given):
                return action
        return None


def _commands(parser: argparse.ArgumentParser) -> Any:
    """The action of the commands, if *parser* has them."""
    found = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return next(found, None)


def complete(
    build_parser: Callable[[Sequence[str]], argparse.ArgumentParser], shell: str, words: list[str]
) -> int:
    """Print what the last of *words* may become. Nothing is said of what goes wrong: somebody is typing."""
    breaks = ""
    if shell == "bash":
        # Bash would take rq:0 for three words.
        words, breaks = _split(words[0])[1:] or [""], words[1]
    *before, prefix = words
    try:
        line = Line(build_parser(before), before)
    except LookupError:
        return OK
    start = ""
    option = line.pending
    if option is None and prefix.startswith("-") and "=" in prefix and not line.options_end:
        name, _, prefix = prefix.partition("=")
        option, start = line.options().get(name), f"{name}="
    wanted = option or (None if prefix.startswith("-") and not line.options_end else line.argument())
    if wanted is not None and (wanted.dest == "socket" or wanted.metavar == "FILE"):
        return FILES
    if option is None and prefix.startswith("-") and not line.options_end:
        found: Iterator[Candidate] = _options(line)
    else:
        found = _values(line, option or line.argument())
    for word, text in dict(found).items():
        if word.startswith(prefix):
            print(_as_line(shell, start + word, start + prefix, text, breaks))
    return OK


def _as_line(shell: str, word: str, prefix: str, text: str, breaks: str) -> str:
    if shell == "bash":
        # Bash replaces what follows the last of these characters.
        at = max((prefix.rfind(character) for character in breaks if character in ":="), default=-1)
        return word[at + 1 :]
    if shell == "zsh":
        word = word.replace("\\", "\\\\").replace(":", "\\:")
        return f"{word}:{text}" if text else word
    return f"{word}\t{text}"


def _split(line: str) -> list[str]:
    """The words of a command line that may end within one."""
    try:
        words = shlex.split(line)
    except ValueError:
        # It ends within quotes.
        words = line.split()
    return words if line[-1:].strip() else [*words, ""]


def _options(line: Line) -> Iterator[Candidate]:
    for name, action in line.options().items():
        if action.help != argparse.SUPPRESS and name.startswith("--"):
            yield name, _short(action.help)


def _short(text: str | None) -> str:
    return (text or "").partition("; ")[0].partition(": ")[0].partition(" (")[0].replace("%%", "%")


def _values(line: Line, action: argparse.Action | None) -> Iterator[Candidate]:
    if action is None:
        return
    if isinstance(action, argparse._SubParsersAction):
        for command in action._choices_actions:
            yield command.dest, _short(command.help)
        return
    if action.choices is not None:
        for choice in action.choices:
            yield str(choice), ""
        return
    kinds = str(action.metavar).split("|")
    if "SIG" in kinds:
        for each in signal.Signals:
            yield each.name.removeprefix("SIG"), ""
    if "NAME" in kinds:
        for candidate in _names(line, groups_only=line.parser.prog.endswith(" scale")):
            if candidate[0] not in line.given:
                yield candidate
    if "PID" in kinds and "kill" in line.given:
        yield from _workers(line)


def _ask(line: Line, command: str) -> dict[str, Any]:
    with contextlib.suppress(Failure), connect(line.socket, FIND) as connection:
        connection.sock.settimeout(ANSWER)
        return connection.ask(cmd=command)
    return {}


def _names(line: Line, groups_only: bool) -> Iterator[Candidate]:
    companions = _ask(line, "status").get("companions", [])
    for one in companions:
        if ":" in one["name"]:
            yield one["name"].partition(":")[0], "all its copies"
        if not groups_only:
            yield one["name"], one["state"]
    if groups_only:
        return
    for group in dict.fromkeys(group for one in companions for group in one.get("groups", ())):
        yield f"@{group}", "all of the group"
    if companions:
        yield "all", "all companions"
        if line.parser.prog.endswith(" dump"):
            yield "web", "all web workers"


def _workers(line: Line) -> Iterator[Candidate]:
    for worker in _ask(line, "web").get("web", {}).get("workers", []):
        yield str(worker["pid"]), worker["state"]
