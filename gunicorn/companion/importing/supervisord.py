# SPDX-License-Identifier: MIT
"""Read a supervisord.conf, with the files that it includes."""

from __future__ import annotations

import glob
import os
import re
import shlex
from collections.abc import Iterator
from typing import Any, NamedTuple

from gunicorn.companion.importing import inifile, values
from gunicorn.companion.importing.found import (
    OTHER_USER,
    Env,
    Expression,
    Found,
    Mark,
    Program,
    Source,
    SourceError,
    Text,
    clean,
    expand,
    leftover,
    one_line,
    plain,
)
from gunicorn.companion.importing.inifile import Entry, Section

TITLE = "supervisord"
STYLE = inifile.Style(inline=";#", delimiters="=:", indent=True, lower=True)

# What applies where a file says nothing.
DEFAULTS = {"autorestart": "on-failure", "start_retries": 3, "stop_timeout": 10}

_ROTATED = "a dictionary in ``stdout``: ``max_bytes`` and ``backups``"
_NO_LISTENERS = "``gunicorn-companion events`` prints what happens, a line of JSON each"

#: Keys of [program:x], [fcgi-program:x] and [eventlistener:x] with a counterpart.
HERE = {
    "command": "``command``, a list of words",
    "process_name": "the copies are ``NAME:0``, ``NAME:1`` and so on",
    "numprocs": "``numprocs``",
    "numprocs_start": "``index_start``",
    "priority": "a guess: ``after`` names those of the next lower priority; a stop goes the other way",
    "autostart": "``autostart``",
    "startsecs": "``startsecs``",
    "startretries": "``start_retries``",
    "autorestart": "``autorestart``: true is ``always``, false ``never``, unexpected ``on-failure``",
    "exitcodes": "``success_exit_codes``",
    "stopsignal": "``stop_signal``",
    "stopwaitsecs": "``stop_timeout``; above 60 ``reload_timeout`` too, for a restart",
    "stopasgroup": "``stop_as_group``",
    "redirect_stderr": '``"stderr": "stdout"``',
    "stdout_logfile": "``stdout``; AUTO and a terminal: the server's output",
    "stdout_logfile_maxbytes": f"{_ROTATED}; 50 MB by default there",
    "stdout_logfile_backups": _ROTATED,
    "stderr_logfile": "``stderr``",
    "stderr_logfile_maxbytes": "the same in ``stderr``",
    "stderr_logfile_backups": "the same in ``stderr``",
    "environment": "``env``",
    "directory": "``cwd``",
    "umask": "``umask``",
    "socket": "``bind``; the program takes descriptor 3, not 0",
}

#: Keys without a counterpart, with what to do.
INSTEAD = {
    "killasgroup": "always so: at stop_timeout everything that is left is killed",
    "user": OTHER_USER,
    "serverurl": "``gunicorn-companion`` finds its server by itself",
    "stdout_capture_maxbytes": _NO_LISTENERS,
    "stdout_events_enabled": _NO_LISTENERS,
    "stdout_syslog": "without a file the output goes to the server's own, and under systemd to the journal",
    "stderr_capture_maxbytes": _NO_LISTENERS,
    "stderr_events_enabled": _NO_LISTENERS,
    "stderr_syslog": "without a file the output goes to the server's own, and under systemd to the journal",
    "socket_backlog": "the setting ``backlog``",
    "socket_owner": "the socket belongs to the user that companions run as",
    "socket_mode": "the setting ``umask`` decides",
    "buffer_size": _NO_LISTENERS,
    "events": _NO_LISTENERS,
    "result_handler": _NO_LISTENERS,
}

#: Keys of the other sections.
SERVER = {
    "logfile": "the setting ``errorlog``",
    "logfile_maxbytes": "the log is not rotated: logrotate, then USR1 to the master",
    "logfile_backups": "the log is not rotated: logrotate, then USR1 to the master",
    "loglevel": "the setting ``loglevel``",
    "pidfile": "the setting ``pidfile``",
    "umask": "the setting ``umask``",
    "nodaemon": "the server stays in the foreground unless the setting ``daemon`` is True",
    "silent": "the setting ``errorlog``",
    "minfds": '``LimitNOFILE`` of the unit, or of a companion ``"rlimits": {"nofile": 4096}``',
    "minprocs": '``LimitNPROC`` of the unit, or of a companion ``"rlimits": {"nproc": 200}``',
    "nocleanup": "there are no temporary log files",
    "childlogdir": "there are no temporary log files: ``gunicorn-companion logs``",
    "strip_ansi": "output is kept as it is",
    "user": "the setting ``user``",
    "directory": "the setting ``chdir``",
    "identifier": "the setting ``proc_name``",
    "environment": "``companion_env``, for all companions",
    "file": "the setting ``companion_control_socket``",
    "chmod": "the setting ``companion_control_socket_mode``",
    "chown": "the socket belongs to the user that companions run as",
    "username": "the mode and the directory of the socket decide who may connect",
    "password": "the mode and the directory of the socket decide who may connect",
    "port": "no commands over TCP; the setting ``monitor`` shows a page: :doc:`monitor`",
    "serverurl": "``gunicorn-companion -s SOCKET``",
    "prompt": "there is no shell of commands; ``gunicorn-companion top`` is a live screen",
    "history_file": "there is no shell of commands; ``gunicorn-companion top`` is a live screen",
    "files": "read here as well",
    "programs": "``group`` of each of them; commands take ``@GROUP``",
    "priority": "a guess: ``after``, as for programs",
    "supervisor.rpcinterface_factory": "not needed",
}

# Well-known event listeners, and what does their work.
_LISTENERS = {
    "memmon": "max_memory of a companion restarts it above that much memory",
    "httpok": 'liveness of a companion: {"http": "http://127.0.0.1:8000/health"}',
    "crashmail": "the hook companion_exit is called at each end of a companion",
    "crashmailbatch": "the hook companion_exit is called at each end of a companion",
    "crashsms": "the hook companion_exit is called at each end of a companion",
    "fatalmailbatch": "the hook companion_give_up is called when a companion gives up",
    "processes": '"on_give_up": "shutdown" stops the server when a companion gives up',
}

_EXPANSION = re.compile(r"%(?:\((\w+)\)(0?\d{0,2}[ds])|%)")


def translate(source: Source) -> Found:
    """Raises SourceError."""
    found = Found(origin=TITLE, defaults=dict(DEFAULTS))
    sections = list(_with_included(source))
    groups = _groups(sections, found)
    priorities: dict[str, tuple[int, int]] = {}
    listeners: list[Section] = []
    for section in sections:
        kind, colon, name = section.name.partition(":")
        if kind == "eventlistener":
            listeners.append(section)
        elif kind in ("program", "fcgi-program") and colon:
            program = found.add(name, section.place)
            _Reader(section, name, program, groups.get(name)).run()
            priorities[program.name] = _priority(section, groups.get(name))
        elif kind != "group":
            _server_section(section, found)
    found.order(priorities)
    for listener in listeners:
        _listener(listener, found)
    return found


def _with_included(source: Source) -> Iterator[Section]:
    for section in inifile.read(source, STYLE):
        yield section
        entry = section.last().get("files") if section.name == "include" else None
        if entry is None:
            continue
        here = os.path.dirname(source.path)
        for pattern in entry.value.replace("%(here)s", os.path.abspath(here)).split():
            for path in sorted(glob.glob(os.path.join(here, pattern))):
                if os.path.abspath(path) != os.path.abspath(source.path):
                    # The files that an included file names are not read there either.
                    yield from inifile.read_included(path, section, entry, STYLE)


class _Group(NamedTuple):
    name: str
    priority: int


def _groups(sections: list[Section], found: Found) -> dict[str, _Group]:
    """The group of each program that has one."""
    groups: dict[str, _Group] = {}
    for section in sections:
        kind, _, name = section.name.partition(":")
        if kind != "group":
            continue
        entries = section.last()
        if "programs" not in entries:
            raise SourceError(section.path, section.line, f"[{section.name}] has no programs")
        group = _Group(name, section.get("priority", values.whole, 999))
        for program in re.split(r"[,\s]+", entries["programs"].value.strip()):
            groups[program] = group
        unknown = [entry for entry in section.entries if entry.key not in ("programs", "priority")]
        if unknown:
            block = found.block(section.place)
            for entry in unknown:
                leftover(block, entry.key, entry.value, {}, ())
    return groups


def _priority(section: Section, group: _Group | None) -> tuple[int, int]:
    own = section.get("priority", values.whole, 999)
    return (group.priority, own) if group else (own, 0)


def _server_section(section: Section, found: Found) -> None:
    block = found.block(section.place)
    for entry in section.entries:
        if section.name == "supervisord" and entry.key == "environment":
            env = _environment(section, entry, {"here": _here(section)})
            found.settings["companion_env"] = env, "environment of [supervisord]"
        elif section.name != "include":
            shown = "" if entry.key == "password" else entry.value
            leftover(block, entry.key, shown, SERVER, ())


def _listener(section: Section, found: Found) -> None:
    block = found.block(section.place)
    entries = section.last()
    command = entries["command"].value if "command" in entries else ""
    block.note(
        f"command = {one_line(command)}: no companion, because there are no events on its standard input"
    )
    words = command.split()
    program = os.path.basename(words[0]) if words else ""
    if program in ("memmon", "httpok"):
        _watched(program, words[1:], found)
    for word in (program, section.name.partition(":")[2]):
        if word in _LISTENERS:
            block.note(f"{word}: {_LISTENERS[word]}")
            return
    if "events" in entries and "FATAL" in entries["events"].value:
        block.note('companion_on_give_up = "shutdown" stops the server when a companion gives up')
    for entry in section.entries:
        if entry.key in ("events", "result_handler", "buffer_size"):
            leftover(block, entry.key, entry.value, INSTEAD, HERE)


def _watched(listener: str, words: list[str], found: Found) -> None:
    """Set what memmon and httpok of superlance watch in the programs themselves."""
    names = [words[place + 1] for place, word in enumerate(words[:-1]) if word in ("-p", "-g", "-a")]
    limits = dict(name.partition("=")[::2] for name in names)
    for program in found.programs:
        if listener == "memmon":
            text = limits.get(program.old_name) or limits.get(program.values.get("group", ""))
            text = text or next((name for name, value in limits.items() if not value), "")
            try:
                program.guess("max_memory", values.size(text), "memmon's, by private memory: measure again")
            except ValueError:
                pass
        elif program.old_name in limits and re.match(r"http://(localhost|[\d.]+)[:/]", words[-1]):
            program.guess("liveness", {"http": words[-1]}, "httpok's")


def _here(section: Section) -> str:
    return os.path.dirname(os.path.abspath(section.path))


def _environment(section: Section, entry: Entry, known: dict[str, Any]) -> dict[str, Any]:
    """The variables of ``A="x",B=y``."""
    with section.naming(entry):
        values.check_length(entry.value)
    lexer = shlex.shlex(entry.value, posix=True)
    lexer.wordchars += "/.+-():%@*$!~^&"
    lexer.commenters = ""
    try:
        tokens = list(lexer)
    except ValueError as exc:
        raise section.error(entry, str(exc).lower()) from None
    env: dict[str, Any] = {}
    place = 0
    while place < len(tokens):
        if tokens[place] == ",":
            place += 1
            continue
        name, equals, value = (*tokens[place : place + 3], "", "")[:3]
        if equals != "=" or name in (",", "="):
            raise section.error(entry, f'{inifile.one(entry.value)} is not NAME="value",NAME="value"')
        if value == ",":
            value, place = "", place - 1
        env[name] = _expanded(value, known)
        place += 3
    # What the server's environment has is inherited.
    return {name: value for name, value in env.items() if value != Text((Env(name),))}


def _expanded(text: str, known: dict[str, Any]) -> str | Text:
    """*text* with our placeholders in the place of theirs."""

    def replace(match: re.Match[str]) -> Any:
        name, form = match[1], match[2]
        if name is None:
            return "%"
        if name.startswith("ENV_"):
            return Env(name[4:])
        if name not in known:
            return None
        value = known[name]
        if isinstance(value, Mark):
            return Mark(f"{value.text}{form}")
        if isinstance(value, Expression):
            return value
        try:
            return f"%{form}" % value
        except (TypeError, ValueError):
            return None

    return expand(text, _EXPANSION, replace)


class _Reader:
    """Translates the keys of one program."""

    def __init__(self, section: Section, name: str, program: Program, group: _Group | None) -> None:
        self.section = section
        self.entries = section.last()
        self.program = program
        self.group = group
        self.numprocs = section.get("numprocs", values.whole, 1)
        self.start = section.get("numprocs_start", values.whole, 0)
        self.known: dict[str, Any] = {
            "program_name": name,
            "group_name": group.name if group else name,
            "here": _here(section),
            "numprocs": self.numprocs,
            "process_num": Mark("%(index)") if self.numprocs > 1 else self.start,
            "host_node_name": Expression("os.uname().nodename"),
        }

    def run(self) -> None:
        if "command" not in self.entries:
            raise SourceError(self.section.path, self.section.line, f"[{self.section.name}] has no command")
        # The command first: others look at it.
        for key, entry in sorted(self.entries.items(), key=lambda item: item[0] != "command"):
            if key not in HERE:
                leftover(self.program, key, entry.value, INSTEAD, HERE)
            elif method := getattr(self, f"_set_{key}", None):
                self.section.parse(entry, method)
        self._outputs()
        self.program.copies(self.numprocs)
        if self.numprocs > 1 and self.start:
            self.program.set("index_start", self.start)
        if self.group:
            self.program.set("group", clean(self.group.name))

    def _set_command(self, value: str) -> None:
        words = values.split(value)
        if not words:
            raise ValueError("it is empty")
        self.program.set("command", [_expanded(word, self.known) for word in words])

    def _set_process_name(self, value: str) -> None:
        if self.numprocs > 1:
            self.program.note(
                f"process_name = {value}: the copies are {self.program.name}:{self.start}, "
                f"{self.program.name}:{self.start + 1} and so on"
            )
        elif value not in ("%(program_name)s", self.program.name):
            self.program.note(f"process_name = {value}: its name here is {self.program.name}")

    def _set_autostart(self, value: str) -> None:
        if not values.boolean(value):
            self.program.set("autostart", False)

    def _set_startsecs(self, value: str) -> None:
        self.program.set("startsecs", values.whole(value))

    def _set_startretries(self, value: str) -> None:
        retries = values.whole(value)
        if retries:
            self.program.set("start_retries", retries)
        else:
            self.program.set("start_retries", 1, "0 there: one failed start is enough")

    def _set_autorestart(self, value: str) -> None:
        if value.lower() == "unexpected":
            self.program.set("autorestart", "on-failure")
        else:
            self.program.set("autorestart", "always" if values.boolean(value) else "never")

    def _set_exitcodes(self, value: str) -> None:
        codes = [values.whole(code) for code in re.split(r"[,\s]+", value.strip()) if code]
        if codes and codes != [0]:
            self.program.set("success_exit_codes", codes)

    def _set_stopsignal(self, value: str) -> None:
        self.program.set("stop_signal", values.signal_name(value))

    def _set_stopwaitsecs(self, value: str) -> None:
        self.program.stop_within(values.whole(value))

    def _set_stopasgroup(self, value: str) -> None:
        if values.boolean(value):
            self.program.set("stop_as_group", True)

    def _set_environment(self, value: str) -> None:
        env = _environment(self.section, self.entries["environment"], self.known)
        if env:
            self.program.set("env", env)

    def _set_directory(self, value: str) -> None:
        self.program.set("cwd", _expanded(value, self.known))

    def _set_umask(self, value: str) -> None:
        self.program.set("umask", values.octal(value))

    def _set_socket(self, value: str) -> None:
        address = re.sub(r"^tcp://", "", re.sub(r"^unix://", "unix:", value))
        self.program.set("bind", _expanded(re.sub(r"^\*:", "0.0.0.0:", address), self.known))
        words = self.program.values["command"]
        for place, word in enumerate(words):
            if word in ("--fd=0", "fd://0") or (word == "0" and words[place - 1] == "--fd"):
                words[place] = word.replace("0", "3")
        self.program.note(
            "guess: the program accepts at descriptor 3; there it was 0, so look at its options"
        )

    def _outputs(self) -> None:
        together = self.section.get("redirect_stderr", values.boolean, False)
        self._output("stdout")
        if together:
            self.program.set("stderr", "stdout")
        else:
            self._output("stderr")

    def _output(self, stream: str) -> None:
        entry = self.entries.get(f"{stream}_logfile")
        if entry is None or entry.value.upper() == "AUTO":
            return
        if entry.value.upper() == "NONE":
            self.program.set(stream, "/dev/null")
            return
        if entry.value.startswith(("/dev/std", "/dev/fd/", "/proc/self/fd/")):
            return
        if entry.value == "syslog":
            self.program.note(f"{entry.key} = syslog: {plain(INSTEAD['stdout_syslog'])}")
            return
        path = _expanded(entry.value, self.known)
        if "cwd" in self.program.values and re.match(r"[^/%]", entry.value):
            self.program.note(f"guess: {entry.key} = {entry.value}: the path starts at cwd here")
        max_bytes = self.section.get(f"{stream}_logfile_maxbytes", values.size, "50M")
        if not values.bytes_of(max_bytes):
            self.program.set(stream, path)
            return
        backups = self.section.get(f"{stream}_logfile_backups", values.whole, 10)
        self.program.set(stream, {"file": path, "max_bytes": max_bytes, "backups": backups})
