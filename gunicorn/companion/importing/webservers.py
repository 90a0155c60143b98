# SPDX-License-Identifier: MIT
"""Recognise commands that run a web server, whose place this server takes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gunicorn.companion.importing.found import Block, Env, Expression, Found, Program, Text, expand, join

# Programs in front of the one that matters, with the number of their own words.
_LAUNCHERS = {
    ("poetry", "run"): 2,
    ("pipenv", "run"): 2,
    ("uv", "run"): 2,
    ("pdm", "run"): 2,
    ("hatch", "run"): 2,
    ("newrelic-admin", "run-program"): 2,
    ("ddtrace-run",): 1,
    ("opentelemetry-instrument",): 1,
    ("exec",): 1,
    ("nice",): 1,
    ("tini", "--"): 2,
    ("dumb-init",): 1,
}

WSGI = ("gunicorn", "uwsgi", "waitress-serve", "chaussette", "mod_wsgi-express")
ASGI = ("uvicorn", "daphne", "hypercorn")

_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?::-([^}]*))?\})")

_COUNTS = (
    "workers",
    "threads",
    "timeout",
    "graceful_timeout",
    "keepalive",
    "backlog",
    "websocket_max_message_size",
)


class Web(NamedTuple):
    """A web server's command, and the settings that do the same here."""

    kind: str
    settings: dict[str, Any]

    @property
    def asgi(self) -> bool:
        return self.kind in ASGI


def recognise(command: Any) -> Web | None:
    """The web server that *command*, a list or a line for ``sh -c``, runs; None if it is none."""
    words = list(command)
    if [os.path.basename(str(word)) for word in words[:1]] in (["sh"], ["bash"]) and len(words) > 2:
        script = words[-1] if isinstance(words[-1], str) else ""
        # Only the last command stays.
        words = _variables(re.split(r"\s(?:&&|;)\s", script)[-1])
        while words and isinstance(words[0], str) and re.match(r"[A-Za-z_]\w*=", words[0]):
            del words[0]
    while True:
        names = tuple(os.path.basename(word) if isinstance(word, str) else "" for word in words[:2])
        skip = next((n for start, n in _LAUNCHERS.items() if names[: len(start)] == start), 0)
        if re.fullmatch(r"python[\d.]*", names[0] if names else "") and words[1:2] == ["-m"]:
            skip = 2
        if not skip:
            break
        del words[:skip]
    if not words:
        return None
    program = _base(words[0])
    if re.fullmatch(r"python[\d.]*", program) and len(words) > 1:
        program, words = _base(words[1]), words[1:]
    # The servers with which frameworks are developed.
    development = {"manage.py": "runserver", "django-admin": "runserver", "flask": "run"}
    if words[1:2] == [development.get(program, "")]:
        return Web(program, _development(words[2:]))
    if program not in _READERS and len(words) > 1 and _base(words[1]) in (*WSGI, *ASGI):
        # A script that prepares something and runs its arguments.
        program, words = _base(words[1]), words[1:]
    reader = _READERS.get(program)
    return Web(program, reader(words[1:])) if reader else None


def _base(word: Any) -> str:
    if isinstance(word, Text):
        word = word.parts[-1]
    return os.path.basename(word) if isinstance(word, str) else ""


def _variables(script: str) -> list[Any]:
    """The words of *script*, with the variables in them."""

    def part(match: re.Match[str]) -> Env:
        return Env(match[1] or match[2], match[3])

    words = [expand(word, _VARIABLE, part) for word in script.split()]
    return [word.strip("'\"") if isinstance(word, str) else word for word in words]


def _options(
    words: Sequence[Any], short: dict[str, str], flags: Sequence[str] = ()
) -> tuple[dict[str, list[Any]], list[Any]]:
    """The values of the options by name, and the other words. *short*: the names of short options."""
    options: dict[str, list[Any]] = {}
    others: list[Any] = []
    waiting = ""
    for word in words:
        first = word.parts[0] if isinstance(word, Text) else word
        if waiting:
            options.setdefault(waiting, []).append(word)
            waiting = ""
        elif not isinstance(first, str) or not first.startswith("-"):
            others.append(word)
        else:
            name, equals, value = first.partition("=")
            if not name.startswith("--") and len(name) > 2:
                name, equals, value = first[:2], "=", first[2:]
            name = short.get(name, name.lstrip("-").replace("-", "_"))
            if equals:
                rest = word.parts[1:] if isinstance(word, Text) else ()
                options.setdefault(name, []).append(join([value, *rest]))
            elif name in flags:
                options[name] = [True]
            else:
                waiting = name
    return options, others


def _settings(options: dict[str, list[Any]], known: dict[str, str]) -> dict[str, Any]:
    """The settings for *options*, whose names *known* gives."""
    settings: dict[str, Any] = {}
    for option, values in options.items():
        name = known.get(option)
        if name == "bind":
            settings[name] = values[0] if len(values) == 1 else values
        elif name:
            settings[name] = _value(name, values[-1])
    return settings


def _value(name: str, value: Any) -> Any:
    if name in _COUNTS or name.startswith(("max_", "limit_")):
        if isinstance(value, Text) and len(value.parts) == 1 and isinstance(value.parts[0], Env):
            env = value.parts[0]
            return Expression(
                f"int(os.environ[{env.name!r}])"
                if env.default is None
                else f"int(os.environ.get({env.name!r}, {env.default!r}))"
            )
        if isinstance(value, str) and value.isdecimal():
            return int(value)
    return value


_GUNICORN_SHORT = {
    "-b": "bind",
    "-w": "workers",
    "-k": "worker_class",
    "-t": "timeout",
    "-c": "config",
    "-n": "proc_name",
    "-u": "user",
    "-g": "group",
    "-p": "pidfile",
    "-e": "raw_env",
    "-D": "daemon",
}
_GUNICORN_FLAGS = (
    "daemon",
    "preload",
    "reload",
    "capture_output",
    "reuse_port",
    "log_syslog",
    "check_config",
)
_GUNICORN_NAMES = {
    "preload": "preload_app",
    "access_logfile": "accesslog",
    "error_logfile": "errorlog",
    "log_file": "errorlog",
    "log_level": "loglevel",
    "keep_alive": "keepalive",
    "name": "proc_name",
    "pid": "pidfile",
}
_GUNICORN_SAME = (
    "bind",
    "workers",
    "worker_class",
    "worker_connections",
    "worker_tmp_dir",
    "threads",
    "timeout",
    "graceful_timeout",
    "max_requests",
    "max_requests_jitter",
    "backlog",
    "chdir",
    "user",
    "group",
    "umask",
    "pidfile",
    "proc_name",
    "raw_env",
    "daemon",
    "reload",
    "forwarded_allow_ips",
    "certfile",
    "keyfile",
    "capture_output",
    "access_logformat",
    "statsd_host",
    "statsd_prefix",
)


def _gunicorn(words: Sequence[Any]) -> dict[str, Any]:
    options, others = _options(words, _GUNICORN_SHORT, _GUNICORN_FLAGS)
    names = {**{name: name for name in _GUNICORN_SAME}, **_GUNICORN_NAMES}
    settings: dict[str, Any] = {"wsgi_app": others[0]} if others else {}
    settings.update(_settings(options, names))
    if "raw_env" in settings:
        settings["raw_env"] = options["raw_env"]
    if "config" in options:
        settings["# its configuration file"] = options["config"][-1]
    return settings


def _address(host: Any, port: Any) -> Any:
    def parts(value: Any) -> Sequence[Any]:
        return value.parts if isinstance(value, Text) else (value,)

    return join([*parts(host), ":", *parts(port)])


# Options of uvicorn, hypercorn and daphne that are settings, in words of their own or in ours.
_ASGI_SETTINGS = {
    "loop": "asgi_loop",
    "lifespan": "asgi_lifespan",
    "ws_max_size": "websocket_max_message_size",
    "limit_max_requests": "max_requests",
    "limit_max_requests_jitter": "max_requests_jitter",
    "timeout_keep_alive": "keepalive",
    "keep_alive": "keepalive",
    "timeout_graceful_shutdown": "graceful_timeout",
    "ssl_certfile": "certfile",
    "ssl_keyfile": "keyfile",
    "app_dir": "chdir",
}
_ASGI_SAME = (
    *("bind", "workers", "root_path", "forwarded_allow_ips", "backlog", "graceful_timeout"),
    *("max_requests", "max_requests_jitter", "certfile", "keyfile"),
)
_ASGI_FLAGS = (
    *("reload", "factory", "debug", "access_log", "no_access_log", "use_colors", "no_use_colors"),
    *("proxy_headers", "no_proxy_headers", "server_header", "no_server_header", "date_header"),
    *("no_date_header", "reset_contextvars"),
)


def _asgi(words: Sequence[Any], short: dict[str, str]) -> dict[str, Any]:
    options, others = _options(words, short, _ASGI_FLAGS)
    settings: dict[str, Any] = {"wsgi_app": others[0]} if others else {}
    if others and "factory" in options:
        settings["wsgi_app"] = join([*(others[0].parts if isinstance(others[0], Text) else others[:1]), "()"])
    settings["worker_class"] = "asgi"
    if "uds" in options:
        settings["bind"] = join(["unix:", options["uds"][-1]])
    elif "bind" not in options and "fd" not in options:
        host = options.get("host", ["127.0.0.1"])[-1]
        settings["bind"] = _address(host, options.get("port", ["8000"])[-1])
    settings.update(_settings(options, {**{name: name for name in _ASGI_SAME}, **_ASGI_SETTINGS}))
    if settings.get("asgi_loop") not in (None, "auto", "asyncio", "uvloop"):
        del settings["asgi_loop"]
    return settings


def _uvicorn(words: Sequence[Any]) -> dict[str, Any]:
    return _asgi(words, {})


def _daphne(words: Sequence[Any]) -> dict[str, Any]:
    return _asgi(words, {"-b": "host", "-p": "port", "-u": "uds"})


def _hypercorn(words: Sequence[Any]) -> dict[str, Any]:
    return _asgi(words, {"-b": "bind", "-w": "workers", "-k": "loop"})


def _waitress(words: Sequence[Any]) -> dict[str, Any]:
    options, others = _options(words, {}, ("call", "expose_tracebacks"))
    settings: dict[str, Any] = {"wsgi_app": others[0]} if others else {}
    settings["bind"] = options.get("listen", ["0.0.0.0:8080"])[-1]
    if "listen" not in options and ("host" in options or "port" in options):
        host, port = (
            options.get(key, [default])[-1] for key, default in (("host", "0.0.0.0"), ("port", "8080"))
        )
        settings["bind"] = _address(host, port)
    settings["worker_class"] = "gthread"
    return {**settings, **_settings(options, {"threads": "threads"})}


def _development(words: Sequence[Any]) -> dict[str, Any]:
    options, others = _options(
        words, {"-h": "host", "-p": "port"}, ("noreload", "debug", "nothreading", "reload")
    )
    address = others[0] if others else "127.0.0.1:8000"
    if isinstance(address, str) and address.isdecimal():
        address = f"127.0.0.1:{address}"
    if "host" in options or "port" in options:
        address = _address(options.get("host", ["127.0.0.1"])[-1], options.get("port", ["5000"])[-1])
    return {"bind": address, "reload": True}


def _uwsgi(words: Sequence[Any]) -> dict[str, Any]:
    short = {"-p": "processes", "-w": "module", "-s": "socket", "-H": "virtualenv", "-M": "master"}
    options, others = _options(
        words, short, ("master", "enable_threads", "die_on_term", "lazy_apps", "vacuum")
    )
    settings = _settings(options, UWSGI_SETTINGS)
    if "socket" in options:
        settings["protocol"] = "uwsgi"
    ini = options.get("ini", [word for word in others if _base(word).endswith(".ini")])
    if ini:
        settings["# its file, for this command as well"] = ini[-1]
    return settings


# Options of uWSGI that are settings.
UWSGI_SETTINGS = {
    "http": "bind",
    "http_socket": "bind",
    "socket": "bind",
    "module": "wsgi_app",
    "wsgi": "wsgi_app",
    "processes": "workers",
    "workers": "workers",
    "threads": "threads",
    "harakiri": "timeout",
    "max_requests": "max_requests",
    "chdir": "chdir",
}

_READERS: dict[str, Callable[[Sequence[Any]], dict[str, Any]]] = {
    "gunicorn": _gunicorn,
    "gunicorn_paster": _gunicorn,
    "uvicorn": _uvicorn,
    "daphne": _daphne,
    "hypercorn": _hypercorn,
    "waitress-serve": _waitress,
    "uwsgi": _uwsgi,
    "chaussette": lambda words: {"wsgi_app": words[-1]} if words else {},
}


def replace_web_servers(found: Found) -> None:
    """Turn companions that are the web server itself into comments with our settings.

    An ASGI server beside a WSGI server goes on as a companion, and so does one with sockets of its own.
    """
    web = {program.name: recognise(program.values.get("command", ())) for program in found.programs}
    has_wsgi = any(each is not None and not each.asgi for each in web.values())
    for program in list(found.programs):
        server = web[program.name]
        if server is None:
            continue
        if server.asgi and (has_wsgi or "bind" in program.values):
            if "bind" not in program.values:
                program.note(
                    "guess: it stays a server of its own, beside the web tier; with bind and '--fd 3' "
                    "clients wait while it restarts"
                )
            continue
        found.programs.remove(program)
        found.blocks.append(_comment(program, server))
        _connect(found, program)


_WHOLE = "it is for the whole server: in its unit or container"

# Keys of a companion, and what does the same for the web tier.
_FOR_WEB = {
    "numprocs": "more workers",
    "env_file": "the server's own environment must have these variables: EnvironmentFile of its unit, "
    "env_file of its container",
    "probe": "the setting monitor answers /ready and /live",
    "liveness": "the setting monitor answers /ready and /live",
    "stop_timeout": "requests have graceful_timeout to finish; who stops the server must wait longer than "
    "that",
    "stdout": "the settings accesslog and errorlog",
    "rlimits": _WHOLE,
    "nice": _WHOLE,
    "umask": _WHOLE,
    "oom_score_adj": _WHOLE,
    "cpu_affinity": _WHOLE,
}


def _comment(program: Program, server: Web) -> Block:
    from gunicorn.companion.importing.writer import literal

    block = Block(program.source)
    block.note("this server takes its place, so it is no companion")
    command = program.values["command"]
    if command[:2] == ["sh", "-c"] and isinstance(command[2], str) and "&&" in command[2]:
        first = command[2].rpartition("&&")[0].strip()
        block.note(f"guess: before it ran {first}: a companion for that, named in web_after")
    settings = dict(server.settings)
    if "bind" in program.values:
        settings.setdefault("bind", program.values["bind"])
    if "cwd" in program.values:
        settings.setdefault("chdir", program.values["cwd"])
    if "env" in program.values:
        settings["raw_env"] = [
            join([f"{name}=", *(value.parts if isinstance(value, Text) else (str(value),))])
            for name, value in program.values["env"].items()
        ]
    for key in ("max_memory", "max_lifetime"):
        if key in program.values:
            settings[key] = program.values[key]
    for name, value in settings.items():
        equals = ":" if name.startswith("#") else " ="
        block.note(f"guess: {name.lstrip('# ')}{equals} {literal(value, percent=False)}")
    if server.kind in ("gunicorn", "gunicorn_paster"):
        block.note("the command itself can stay as it is: it has the same options here")
    elif server.kind not in _READERS:
        block.note(f"{server.kind} was its server for development: reload is for that, too; set wsgi_app")
    elif server.asgi:
        block.note("an ASGI application needs that worker class: the page 'asgi' of the manual")
    for key, hint in _FOR_WEB.items():
        if program.values.get(key) is not None:
            block.instead(f"{key} = {literal(program.values[key], percent=False)}", hint)
    for note in program.notes:
        block.note(note)
    return block


def _connect(found: Found, web: Program) -> None:
    """Put the web tier where *web* stood in the order."""
    for program in found.programs:
        after = program.values.get("after")
        if after and web.name in after:
            program.values["after"] = list(
                dict.fromkeys("web" if each == web.name else each for each in after)
            )
    if "after" in web.reasons:
        return  # a guess: the web tier does not depend on it
    first = [
        program.name
        for program in found.programs
        if program.name in web.values.get("after", []) and program.values.get("autostart", True)
    ]
    if first:
        found.settings["web_after"] = first, "the web workers wait for them, as there"
