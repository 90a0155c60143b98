# SPDX-License-Identifier: MIT
"""Read a circus.ini."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from typing import Any

from gunicorn.companion.importing import inifile, values
from gunicorn.companion.importing.found import (
    OTHER_USER,
    Env,
    Found,
    Mark,
    Program,
    Source,
    SourceError,
    Text,
    expand,
    join,
    leftover,
)
from gunicorn.companion.importing.inifile import Section

TITLE = "circus"
STYLE = inifile.Style(delimiters="=:", indent=True)
DEFAULTS = {"start_retries": 5, "stop_timeout": 30}

#: Keys of [watcher:x] with a counterpart.
HERE = {
    "cmd": "``command``, a list of words",
    "args": "more words of ``command``",
    "shell": '``["sh", "-c", "…"]``',
    "working_dir": "``cwd``",
    "numprocesses": "``numprocs``",
    "singleton": "one process",
    "autostart": "``autostart``",
    "respawn": "``autorestart``: false is ``never``",
    "max_retry": "``start_retries``; -1: none",
    "graceful_timeout": "``stop_timeout``; above 60 ``reload_timeout`` too, for a restart",
    "stop_signal": "``stop_signal``",
    "stop_children": "``stop_as_group``",
    "max_age": "``max_lifetime``",
    "max_age_variance": "``max_lifetime_jitter``",
    "priority": "a guess: ``after`` names those of the next higher priority; a stop goes the other way",
    "virtualenv": "``env``: its ``bin`` at the front of ``PATH``",
    "rlimit_nofile": "``rlimits``, and so every ``rlimit_…``",
    "stdout_stream.class": "FileStream: ``stdout``; others: the server's output",
    "stdout_stream.filename": "``stdout``",
    "stdout_stream.max_bytes": "``max_bytes`` in ``stdout``",
    "stdout_stream.backup_count": "``backups`` in ``stdout``",
    "stdout_stream.time_format": "``stamp`` in ``stdout``",
    "stderr_stream.class": "the same in ``stderr``",
    "stderr_stream.filename": "the same in ``stderr``",
    "stderr_stream.max_bytes": "the same in ``stderr``",
    "stderr_stream.backup_count": "the same in ``stderr``",
    "stderr_stream.time_format": "the same in ``stderr``",
    "env": "``env``, as in the section [env:x]",
}

_HOOK = "hooks are functions of gunicorn.conf.py: companion_post_fork, companion_exit, companion_give_up"

#: Keys without a counterpart, with what to do.
INSTEAD = {
    "uid": OTHER_USER,
    "gid": "companions run as the server's group (setting ``group``)",
    "copy_env": "always so: a companion has the server's environment; None in ``env`` removes a variable",
    "copy_path": "``env``: set PYTHONPATH",
    "warmup_delay": "copies start at once; ``restart --rolling`` waits between them",
    "shell_args": 'write the shell into the command: ``["sh", "-c", "…"]``',
    "send_hup": "``gunicorn-companion signal NAME HUP``",
    "on_demand": "``bind`` with ``autostart`` False; ``gunicorn-companion start NAME`` starts it",
    "stdin_socket": "``bind``; the program takes descriptor 3, not 0",
    "close_child_stdin": "descriptor 0 is always /dev/null",
    "close_child_stdout": '``"stdout": "/dev/null"``',
    "close_child_stderr": '``"stderr": "/dev/null"``',
    "virtualenv_py_ver": "the program of the virtualenv knows its version",
    "use_sockets": "``bind`` has the addresses of the sockets that ``$(circus.sockets.NAME)`` names",
    "use_papa": "``bind`` keeps the sockets while a program restarts",
    "stdout_stream.refresh_time": "not needed",
    "stderr_stream.refresh_time": "not needed",
    "stdout_stream.rotate_when": "a file rotates by size; by time: logrotate, then USR1 to the master",
    "stderr_stream.rotate_when": "a file rotates by size; by time: logrotate, then USR1 to the master",
    "stdout_stream.color": "``NO_COLOR`` in the environment of the server turns colours off",
    "stderr_stream.color": "``NO_COLOR`` in the environment of the server turns colours off",
    "hooks.before_start": _HOOK,
    "hooks.after_start": _HOOK,
    "hooks.before_spawn": _HOOK,
    "hooks.after_spawn": _HOOK,
    "hooks.before_stop": _HOOK,
    "hooks.after_stop": _HOOK,
    "hooks.before_signal": _HOOK,
    "hooks.after_signal": _HOOK,
    "hooks.before_reap": _HOOK,
    "hooks.after_reap": _HOOK,
    "hooks.extended_stats": "``gunicorn-companion metrics``",
}

#: Keys of [circus], and what plugins become.
SERVER = {
    "endpoint": "the setting ``companion_control_socket``",
    "endpoint_owner": "the socket belongs to the user that companions run as",
    "pubsub_endpoint": "``gunicorn-companion events``",
    "statsd": "``gunicorn-companion top`` and ``metrics``; the setting ``statsd_host``",
    "stats_endpoint": "``gunicorn-companion top`` and ``metrics``",
    "statsd_close_outputs": "not needed",
    "httpd": "the setting ``monitor``: :doc:`monitor`",
    "httpd_host": "the setting ``monitor``: :doc:`monitor`",
    "httpd_port": "the setting ``monitor``: :doc:`monitor`",
    "httpd_close_outputs": "not needed",
    "check_delay": "not needed: the end of a process is noticed at once",
    "warmup_delay": "programs start at once, or in the order of ``after``",
    "umask": "the setting ``umask``",
    "loglevel": "the setting ``loglevel``",
    "logoutput": "the setting ``errorlog``",
    "loggerconfig": "the setting ``logconfig``",
    "pidfile": "the setting ``pidfile``",
    "debug": "the setting ``loglevel``",
    "debug_gc": "not needed",
    "stream_backend": "not needed",
    "include": "read here as well",
    "include_dir": "read here as well",
}

PLUGINS = {
    "flapping": 'start_limit of a companion, such as "5/60s"',
    "resourcewatcher": "max_memory of a companion",
    "resource_watcher": "max_memory of a companion",
    "httpobserver": 'liveness of a companion: {"http": "http://127.0.0.1:8000/health"}',
    "http_observer": 'liveness of a companion: {"http": "http://127.0.0.1:8000/health"}',
    "commandreloader": "reload = True restarts companions whose files have changed",
    "command_reloader": "reload = True restarts companions whose files have changed",
    "watchdog": "watchdog of a companion, with WATCHDOG=1 sent to NOTIFY_SOCKET",
    "statsd": "the setting statsd_host",
    "fullstats": "the setting statsd_host",
    "full_stats": "the setting statsd_host",
    "redisobserver": "liveness of a companion, with a command",
    "redis_observer": "liveness of a companion, with a command",
}

_EXPANSION = re.compile(r"\$\(([\w.-]+)\)|\(\(([\w.-]+)\)\)")


def translate(source: Source) -> Found:
    """Raises SourceError."""
    found = Found(origin=TITLE, defaults=dict(DEFAULTS))
    sections = _with_included(source)
    sockets = {
        section.name.partition(":")[2]: section for section in sections if section.name.startswith("socket:")
    }
    priorities: dict[str, int] = {}
    for section in sections:
        kind, colon, name = section.name.partition(":")
        if kind == "watcher" and colon:
            program = found.add(name, section.place)
            _Reader(section, program, sockets, _env_for(sections, name)).run()
            priorities[program.name] = section.get("priority", values.whole, 0)
        elif kind == "plugin":
            _plugin(section, found)
        elif kind in ("circus", "socket"):
            _other(section, kind, found)
        elif not kind.startswith("env"):
            block = found.block(section.place)
            block.note("not known, and left out")
    # The highest comes first.
    found.order({name: -priority for name, priority in priorities.items()})
    return found


def _with_included(source: Source) -> list[Section]:
    sections = inifile.read(source, STYLE)
    for section in list(sections):
        if section.name != "circus":
            continue
        here = os.path.dirname(source.path)
        for entry in section.entries:
            pattern = {"include": entry.value, "include_dir": os.path.join(entry.value, "*.ini")}.get(
                entry.key
            )
            for path in sorted(glob.glob(os.path.join(here, pattern))) if pattern else []:
                sections += inifile.read_included(path, section, entry, STYLE)
    return sections


def _env_for(sections: list[Section], watcher: str) -> dict[str, Any]:
    env: dict[str, Any] = {}
    for section in sections:
        kind, _, names = section.name.partition(":")
        if kind != "env":
            continue
        if not names or any(fnmatch.fnmatch(watcher, name.strip()) for name in names.split(",")):
            for entry in section.entries:
                env[entry.key] = _variables(entry.value)
    return env


def _variables(text: str) -> str | Text:
    """The value of a variable, in which $X is one of the environment."""

    def part(match: re.Match[str]) -> Env:
        return Env(match[1] or match[2])

    return expand(text, re.compile(r"\$(?:(\w+)|\{(\w+)\})"), part)


def _other(section: Section, kind: str, found: Found) -> None:
    block = found.block(section.place)
    for entry in section.entries:
        if kind == "circus" and entry.key not in ("include", "include_dir"):
            leftover(block, entry.key, entry.value, SERVER, ())
        elif kind == "socket" and entry.key not in ("host", "port", "path", "family", "type"):
            block.note(f"{entry.key} = {entry.value}: not needed, or the settings umask and backlog")


def _plugin(section: Section, found: Found) -> None:
    block = found.block(section.place)
    use = section.last().get("use")
    names = [*(use.value.lower() if use else "").split("."), section.name.partition(":")[2].lower()]
    hint = next((text for name, text in PLUGINS.items() if name in names), None)
    nothing = "there are no plugins; gunicorn-companion events prints what happens"
    block.note(f"use = {use.value if use else ''}: {hint or nothing}")


def _limit(text: str) -> int | str:
    return "unlimited" if text in ("-1", "infinity") else values.whole(text)


class _Reader:
    def __init__(
        self, section: Section, program: Program, sockets: dict[str, Section], env: dict[str, Any]
    ) -> None:
        self.section = section
        self.entries = section.last()
        self.program = program
        self.sockets = sockets
        self.env = env
        self.singleton = self._flag("singleton")
        self.numprocs = section.get("numprocesses", values.whole, 1)
        self.numbered = self.numprocs > 1 and not self.singleton
        # In the order of their descriptors.
        self.bind: list[str | Text] = []

    def _flag(self, key: str) -> bool:
        return self.section.get(key, values.boolean, False)

    def run(self) -> None:
        program = self.program
        if "cmd" not in self.entries:
            raise SourceError(self.section.path, self.section.line, f"[{self.section.name}] has no cmd")
        for key, entry in self.entries.items():
            name = key.lower()
            if name.startswith("rlimit_"):
                limits = program.values.setdefault("rlimits", {})
                limits[name[len("rlimit_") :]] = self.section.parse(entry, _limit)
            elif name.startswith("hooks.") and name not in INSTEAD:
                program.note(f"{key} = {entry.value}: {_HOOK}")
            elif name not in HERE:
                leftover(program, key, entry.value, INSTEAD, HERE)
            elif method := getattr(self, f"_set_{name}", None):
                self.section.parse(entry, method)
        self._command()
        if self.env:
            program.set("env", {**self.env, **program.values.get("env", {})})
        if not self.singleton:
            program.copies(self.numprocs)
        if self.numbered:
            program.set("index_start", 1, "circus counts from 1")
        if self.bind:
            program.set("bind", self.bind)
        for stream in ("stdout", "stderr"):
            self._output(stream)

    def _expand(self, text: str) -> str | Text:
        def part(match: re.Match[str]) -> Any:
            whole = match[1] or match[2]
            name = whole.lower()
            if name == "circus.wid":
                return Mark("%(index)d") if self.numbered else "1"
            if name.startswith("circus.env."):
                variable = whole[len("circus.env.") :].upper()
                known = self.env.get(variable)
                return known if isinstance(known, str) else Env(variable)
            if name.startswith("circus.sockets."):
                return self._descriptor(name[len("circus.sockets.") :])
            return None

        return expand(text, _EXPANSION, part)

    def _descriptor(self, name: str) -> str | None:
        """The number of the descriptor of a socket, which the companion then binds."""
        section = next((each for key, each in self.sockets.items() if key.lower() == name), None)
        if section is None:
            return None
        entries = section.last()
        if "path" in entries:
            address = join(["unix:", entries["path"].value])
        else:
            host = entries["host"].value if "host" in entries else "127.0.0.1"
            address = f"{host}:{entries['port'].value if 'port' in entries else '0'}"
        if address not in self.bind:
            self.bind.append(address)
        return str(3 + self.bind.index(address))

    def _command(self) -> None:
        cmd, args = self.entries["cmd"], self.entries.get("args")
        line = f"{cmd.value} {args.value if args else ''}".strip()
        if self._flag("shell"):
            values.use_shell(self.program, line)
            script = self.program.values["command"][2]
            self.program.values["command"][2] = self._expand(script)
            return
        with self.section.naming(cmd):
            words = values.split(line)
        self.program.set("command", [self._expand(word) for word in words])

    def _set_working_dir(self, value: str) -> None:
        self.program.set("cwd", self._expand(value))

    def _set_autostart(self, value: str) -> None:
        if not values.boolean(value):
            self.program.set("autostart", False)

    def _set_respawn(self, value: str) -> None:
        if not values.boolean(value):
            self.program.set("autorestart", "never")

    def _set_max_retry(self, value: str) -> None:
        retries = values.whole(value)
        self.program.set("start_retries", retries if retries > 0 else None)

    def _set_graceful_timeout(self, value: str) -> None:
        self.program.stop_within(values.some_seconds(value))

    def _set_stop_signal(self, value: str) -> None:
        self.program.set("stop_signal", values.signal_name(value))

    def _set_stop_children(self, value: str) -> None:
        if values.boolean(value):
            self.program.set("stop_as_group", True)

    def _set_max_age(self, value: str) -> None:
        if values.whole(value):
            self.program.set("max_lifetime", values.whole(value))

    def _set_max_age_variance(self, value: str) -> None:
        self.program.set("max_lifetime_jitter", values.whole(value))

    def _set_virtualenv(self, value: str) -> None:
        env = {"VIRTUAL_ENV": value, "PATH": join([f"{value}/bin:", Env("PATH")])}
        self.program.set("env", {**self.program.values.get("env", {}), **env})

    def _set_env(self, value: str) -> None:
        env = dict(pair.strip().partition("=")[::2] for pair in value.split(",") if pair.strip())
        self.program.set("env", {**self.program.values.get("env", {}), **env})

    def _output(self, stream: str) -> None:
        entry = self.entries.get(f"{stream}_stream.filename")
        kind = self.entries.get(f"{stream}_stream.class")
        if entry is None or (kind is not None and not kind.value.endswith("FileStream")):
            return
        output: dict[str, Any] = {"file": self._expand(entry.value)}
        if limit := self.section.get(f"{stream}_stream.max_bytes", values.whole, 0):
            output["max_bytes"] = limit
            output["backups"] = self.section.get(f"{stream}_stream.backup_count", values.whole, 0)
        if f"{stream}_stream.time_format" in self.entries:
            output["stamp"] = True
        self.program.set(stream, output if len(output) > 1 else output["file"])
