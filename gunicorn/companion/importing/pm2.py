# SPDX-License-Identifier: MIT
"""Read pm2's ecosystem file, as JSON."""

from __future__ import annotations

import json
import os
from typing import Any

from gunicorn.companion.importing import values
from gunicorn.companion.importing.found import (
    OTHER_USER,
    Expression,
    Found,
    Program,
    Source,
    SourceError,
    clean,
    leftover,
    one_line,
    plain,
)

TITLE = "pm2"
DEFAULTS = {"start_retries": 16, "stop_timeout": 1.6}

#: Keys of an application with a counterpart.
HERE = {
    "name": "``name``",
    "script": "the program in ``command``",
    "args": "the arguments in ``command``",
    "interpreter": "the first word of ``command``; without it node, python3 or sh, by the script's ending",
    "interpreter_args": "behind it",
    "node_args": "behind it",
    "cwd": "``cwd``",
    "instances": "``numprocs``; max is a guess",
    "exec_mode": "cluster is a guess: ``bind``, which all copies share, and ``listen({fd: 3})``",
    "env": "``env``",
    "max_memory_restart": "``max_memory``, which counts private memory, not RSS: measure again",
    "out_file": "``stdout``",
    "error_file": "``stderr``",
    "log_file": "``stdout``, with ``stderr`` in it",
    "merge_logs": "without it each copy has a file of its own: ``%(index)d`` in its name",
    "combine_logs": "the same",
    "time": "``stamp`` in ``stdout`` and ``stderr``",
    "log_date_format": "the same",
    "min_uptime": "``startsecs``, in seconds",
    "listen_timeout": "``start_timeout``, in seconds",
    "wait_ready": "``ready`` is ``notify``; ``READY=1`` to NOTIFY_SOCKET for process.send('ready')",
    "kill_timeout": "``stop_timeout``, in seconds",
    "max_restarts": "``start_retries``",
    "restart_delay": "``restart_delay``, in seconds",
    "exp_backoff_restart_delay": "``restart_delay``, in seconds; the delay doubles by itself",
    "autorestart": "``autorestart``: false is ``never``",
    "stop_exit_codes": "``success_exit_codes``, with ``on-failure``",
    "namespace": "``group``",
    "cron_restart": "with ``autorestart`` false ``schedule``; else a companion with a ``schedule`` that runs "
    "``gunicorn-companion restart NAME``",
}

#: Keys without a counterpart, with what to do.
INSTEAD = {
    "uid": OTHER_USER,
    "gid": OTHER_USER,
    "user": OTHER_USER,
    "watch": "the setting ``reload`` restarts Python companions whose files have changed",
    "ignore_watch": "the setting ``reload``",
    "watch_options": "the setting ``reload``",
    "watch_delay": "the setting ``reload``",
    "pid_file": "``gunicorn-companion pid NAME``",
    "treekill": "always so: children that are left are killed",
    "kill_signal": "``stop_signal``",
    "shutdown_with_message": "SIGTERM ends it: ``process.on('SIGTERM', …)``",
    "instance_var": "``GUNICORN_COMPANION_INDEX`` is the number of the copy",
    "increment_var": "``%(index)d`` in ``env``, and ``index_start``",
    "append_env_to_name": "not needed",
    "filter_env": "None in ``env`` removes a variable",
    "source_map_support": 'node\'s option: ``["node", "--enable-source-maps", …]``',
    "force": "not needed",
    "vizion": "not needed",
    "automation": "not needed",
    "pmx": "not needed",
    "trace": "not needed",
    "post_update": "a script for your deployment",
    "disable_logs": '``"stdout": "/dev/null"``',
    "log_type": '``companion_log_format = "json"``',
    "port": "``bind``, or ``PORT`` in ``env``",
}

_INTERPRETERS = {
    ".js": ["node"],
    ".cjs": ["node"],
    ".mjs": ["node"],
    ".py": ["python3"],
    ".sh": ["sh"],
    ".rb": ["ruby"],
    ".pl": ["perl"],
    ".php": ["php"],
    ".ts": ["npx", "ts-node"],
}


def translate(source: Source) -> Found:
    """Raises SourceError."""
    if source.path.endswith((".js", ".cjs", ".mjs", ".ts")):
        raise SourceError(
            source.path,
            None,
            "it is a program, and only node can tell what it says: "
            f"node -p 'JSON.stringify(require(\"./{os.path.basename(source.path)}\"))' > ecosystem.json",
        )
    try:
        data = json.loads(source.text)
    except json.JSONDecodeError as exc:
        raise SourceError(source.path, exc.lineno, f"{exc.msg} (column {exc.colno})") from None
    found = Found(origin=TITLE, defaults=dict(DEFAULTS))
    apps = data.get("apps", [data] if "script" in data else None) if isinstance(data, dict) else data
    if isinstance(apps, dict):
        apps = [apps]
    if not isinstance(apps, list) or not apps:
        raise SourceError(source.path, None, "it has no 'apps'")
    for number, app in enumerate(apps):
        if not isinstance(app, dict) or not app.get("script"):
            raise SourceError(source.path, None, f"apps[{number}] has no 'script'")
        script = str(app["script"])
        name = str(app.get("name") or os.path.basename(script).rpartition(".")[0] or script)
        program = found.add(name, f"apps[{number}], {name}, in {source.path}")
        _Reader(source, number, app, program).run()
    if isinstance(data, dict) and "deploy" in data:
        found.block(f"deploy in {source.path}").note(
            "deployment is not the server's work; at its end: gunicorn-companion reload --wait"
        )
    return found


class _Reader:
    def __init__(self, source: Source, number: int, app: dict[str, Any], program: Program) -> None:
        self.source = source
        self.number = number
        self.app = app
        self.program = program

    def run(self) -> None:
        for key, value in self.app.items():
            method = getattr(self, f"_set_{_ALIASES.get(key, key)}", None)
            try:
                if method is not None:
                    method(value)
                elif key.startswith("env_"):
                    self.program.note(f"{key}: used by pm2 with --env {key[4:]}; give its variables in env")
                elif _ALIASES.get(key, key) not in HERE:
                    leftover(self.program, key, json.dumps(value), INSTEAD, HERE)
            except (ValueError, TypeError, AttributeError) as exc:
                reason = (
                    exc if isinstance(exc, ValueError) else f"{one_line(json.dumps(value))} is not understood"
                )
                raise SourceError(self.source.path, None, f"apps[{self.number}]: {key}: {reason}") from None
        self._command()
        self._outputs()
        self._schedule()

    def _schedule(self) -> None:
        when = self.app.get("cron_restart")
        if not when:
            return
        if self.app.get("autorestart", True):
            self.program.instead(f"cron_restart = {json.dumps(when)}", plain(HERE["cron_restart"]))
        else:
            self.program.set_schedule(str(when))
            self.program.set("schedule_overlap", "restart")
            self.program.note("guess: it runs at these times; pm2 also ran it when it was started")

    def _get(self, key: str) -> Any:
        return next((self.app[each] for each in self.app if _ALIASES.get(each, each) == key), None)

    @staticmethod
    def _words(value: Any) -> list[str]:
        if value is None:
            return []
        return [str(word) for word in value] if isinstance(value, list) else values.split(str(value))

    def _command(self) -> None:
        script = str(self.app["script"])
        try:
            own, options, args = [
                self._words(each)
                for each in (
                    script if not os.path.splitext(script)[1] else [script],
                    self._get("interpreter_args"),
                    self.app.get("args"),
                )
            ]
        except ValueError as exc:
            raise SourceError(self.source.path, None, f"apps[{self.number}]: {exc}") from None
        interpreter = self.app.get("interpreter")
        if interpreter:
            first = [] if interpreter == "none" else [str(interpreter)]
        else:
            first = _INTERPRETERS.get(os.path.splitext(script)[1], [])
        if not first and own and "/" not in own[0] and os.path.splitext(own[0])[1]:
            own[0] = f"./{own[0]}"  # a file, not a name to be looked up
        self.program.set("command", [*first, *options, *own, *args])

    def _set_cwd(self, value: Any) -> None:
        self.program.set("cwd", str(value))

    def _set_env(self, value: Any) -> None:
        # As JavaScript writes them: true, not True.
        env = {str(name): text if isinstance(text, str) else json.dumps(text) for name, text in value.items()}
        if env:
            self.program.set("env", env)

    def _copies(self) -> bool:
        return "numprocs" in self.program.values

    def _set_instances(self, value: Any) -> None:
        if value in ("max", "0", 0, -1, "-1"):
            less = " - 1" if value in (-1, "-1") else ""
            code = f"max(1, os.cpu_count(){less})" if less else "os.cpu_count()"
            self.program.guess("numprocs", Expression(code), f"instances is {value}")
        else:
            self.program.copies(values.whole(value))

    def _set_exec_mode(self, value: Any) -> None:
        if value in ("cluster", "cluster_mode"):
            self.program.note(
                "exec_mode = cluster: node's cluster shared one port. guess: give bind its address, and call "
                "listen({fd: 3}) in the program; all copies share it, and clients wait while they restart"
            )

    def _set_max_memory_restart(self, value: Any) -> None:
        size = str(value) if isinstance(value, int) else values.size(value)
        self.program.guess("max_memory", size, "private memory, not RSS: measure again")

    def _set_min_uptime(self, value: Any) -> None:
        self.program.set("startsecs", values.seconds(str(value), 0.001))

    def _set_listen_timeout(self, value: Any) -> None:
        if value:
            self.program.set("start_timeout", values.seconds(str(value), 0.001))

    def _set_wait_ready(self, value: Any) -> None:
        if value:
            self.program.set("ready", "notify")
            self.program.note(
                "guess: it writes READY=1 to NOTIFY_SOCKET in the place of process.send('ready')"
            )

    def _set_kill_timeout(self, value: Any) -> None:
        self.program.stop_within(values.seconds(str(value), 0.001))

    def _set_max_restarts(self, value: Any) -> None:
        self.program.set("start_retries", max(1, values.whole(value)))

    def _set_restart_delay(self, value: Any) -> None:
        self.program.set("restart_delay", values.seconds(str(value), 0.001))

    def _set_exp_backoff_restart_delay(self, value: Any) -> None:
        self.program.set("restart_delay", values.seconds(str(value), 0.001), "and doubled with each failure")

    def _set_autorestart(self, value: Any) -> None:
        if not value:
            self.program.set("autorestart", "never")

    def _set_cron_restart(self, value: Any) -> None:
        if value and len(str(value).split()) != 5:
            raise ValueError(f"{value!r} is not five fields of cron")

    def _set_stop_exit_codes(self, value: Any) -> None:
        codes = [values.whole(code) for code in (value if isinstance(value, list) else [value])]
        self.program.set("success_exit_codes", codes)
        if self.app.get("autorestart", True):
            self.program.set("autorestart", "on-failure", "these exit codes end it for good")

    def _set_namespace(self, value: Any) -> None:
        if value != "default":
            self.program.set("group", clean(str(value)))

    def _outputs(self) -> None:
        together = self._get("log_file")
        out, err = self._get("out_file") or together, self._get("error_file")
        stamp = bool(self.app.get("time") or self.app.get("log_date_format"))
        merged = bool(self.app.get("merge_logs") or self.app.get("combine_logs"))
        for stream, path in (("stdout", out), ("stderr", err)):
            if path in ("/dev/null", "NULL"):
                self.program.set(stream, "/dev/null")
            elif path and path not in ("/dev/stdout", "/dev/stderr"):
                target = self._path(str(path), merged)
                self.program.set(stream, {"file": target, "stamp": True} if stamp else target)
        if together and not err:
            self.program.set("stderr", "stdout")

    def _path(self, path: str, merged: bool) -> Any:
        from gunicorn.companion.importing.found import Mark, join

        if not self._copies() or merged:
            return path
        # pm2 puts the number of the copy before the ending.
        start, ending = os.path.splitext(path)
        return join([f"{start}-", Mark("%(index)d"), ending])


# Names of one key.
_ALIASES = {
    "exec": "script",
    "exec_interpreter": "interpreter",
    "node_args": "interpreter_args",
    "interpreterArgs": "interpreter_args",
    "output": "out_file",
    "out": "out_file",
    "err_file": "error_file",
    "error": "error_file",
    "err": "error_file",
    "log": "log_file",
    "max_memory": "max_memory_restart",
    "restartDelay": "restart_delay",
}
