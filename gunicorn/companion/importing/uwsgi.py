# SPDX-License-Identifier: MIT
"""Read a uwsgi.ini: its daemons and mules, and the settings of the web tier."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from gunicorn.companion.importing import inifile, values
from gunicorn.companion.importing.found import (
    Block,
    Env,
    Expression,
    Found,
    Program,
    Source,
    expand,
    leftover,
)
from gunicorn.companion.importing.inifile import Entry, Section
from gunicorn.companion.importing.writer import literal

TITLE = "uWSGI"
STYLE = inifile.Style(comments=";#", backslash=True, bare=True)
DEFAULTS: dict[str, Any] = {}

#: Keys of [uwsgi] with a counterpart.
HERE = {
    "attach-daemon": "a companion; ``command`` is the list of its words",
    "attach-daemon2": "``cmd`` is ``command``, ``stopsignal`` ``stop_signal``, ``chdir`` ``cwd``, "
    "``throttle`` ``restart_delay``, ``freq`` ``start_retries``",
    "smart-attach-daemon": "a companion, in the foreground; it ends with the server",
    "smart-attach-daemon2": "the same",
    "legion-attach-daemon": "a companion; ``lease`` has one host run it",
    "mule": "a companion: ``python FILE``; without a file there is nothing to run",
    "mules": "nothing to run: a mule without a file waits for messages",
    "env": "``raw_env``, for web workers and companions",
    "module": "``wsgi_app``",
    "wsgi": "``wsgi_app``",
    "wsgi-file": "``wsgi_app``, the file's module",
    "callable": "the part of ``wsgi_app`` behind the colon",
    "http": "``bind``",
    "http-socket": "``bind``",
    "socket": '``bind`` with ``protocol = "uwsgi"``: nginx keeps its ``uwsgi_pass``',
    "processes": "``workers``",
    "workers": "``workers``",
    "threads": "``threads``",
    "harakiri": "``timeout``",
    "max-requests": "``max_requests``",
    "listen": "``backlog``",
    "chdir": "``chdir``",
    "pidfile": "``pidfile``",
    "daemonize": "``errorlog``; ``daemon`` if nothing watches the server",
    "logto": "``errorlog``",
    "uid": "``user``",
    "gid": "``group``",
    "procname": "``proc_name``",
    "lazy-apps": "``preload_app = False``; without it uWSGI loads before it forks: ``preload_app = True``",
    "reload-on-rss": "``max_memory`` of the web workers counts private memory: measure again",
    "cheaper": "``workers``, with ``workers_max``",
    "max-worker-lifetime": "``max_lifetime`` of the web workers",
    "pythonpath": "``pythonpath``",
    "static-map": "``static``, a dictionary; it needs ``gunicorn[static]``",
    "static-map2": "``static``, with the prefix added to the directory",
    "check-static": "``static``, with the prefix ``/``",
    "cron": "a companion with a ``schedule``; no run begins while another one still runs",
    "cron2": "the same",
    "unique-cron": "the same",
    "ini": "give the other file too: ``gunicorn-companion import A.ini B.ini``",
}

#: Keys without a counterpart, with what to do.
INSTEAD = {
    "master": "there is always a master",
    "virtualenv": "start the ``gunicorn`` of that virtualenv",
    "home": "start the ``gunicorn`` of that virtualenv",
    "venv": "start the ``gunicorn`` of that virtualenv",
    "vacuum": "always so: sockets and the pid file are removed",
    "die-on-term": "always so: TERM ends the server",
    "enable-threads": "always so",
    "single-interpreter": "always so",
    "need-app": "always so",
    "chmod-socket": "the setting ``umask``",
    "chown-socket": "the socket belongs to the user that starts the server",
    "buffer-size": "the settings ``limit_request_line`` and ``limit_request_field_size``",
    "post-buffering": "not needed: bodies are read by the application",
    "stats": "``gunicorn-companion web`` and ``metrics``; the setting ``monitor``",
    "touch-chain-reload": "``gunicorn-companion reload``, with the setting ``reload_batch = 1``",
    "touch-reload": "``gunicorn-companion reload``, or the setting ``reload`` while developing",
    "py-autoreload": "the setting ``reload``",
    "disable-logging": "``accesslog`` is None unless set",
    "log-master": "not needed",
    "log-format": "the setting ``access_log_format``",
    "log-maxsize": "logrotate, then USR1 to the master",
    "static-expires": "the setting ``static_max_age``",
    "static-index": "none: a directory has no index",
    "static-safe": "the setting ``static_follow_symlinks``",
    "offload-threads": "let the proxy serve files",
    "spooler": "a job queue with a companion as its worker: RQ, Celery, dramatiq",
    "spooler-processes": "``numprocs`` of that companion",
    "farm": "a job queue with a companion as its worker: RQ, Celery, dramatiq",
    "import": "import it in the application, or in the hook ``post_worker_init``",
    "shared-import": "import it in the application, or in the hook ``when_ready``",
    "gevent": '``worker_class = "gevent"`` and ``worker_connections``',
    "async": '``worker_class = "gevent"`` and ``worker_connections``',
    "asyncio": '``worker_class = "asgi"``, for an ASGI application',
    "http-websockets": "a companion with ``bind``: :doc:`programs`",
    "http-timeout": "the proxy's timeout; ``timeout`` is that of a worker",
    "plugin": "not needed",
    "plugins": "not needed",
    "thunder-lock": "not needed",
    "cheaper-initial": "``workers``",
    "cheaper-step": "not needed",
    "cheaper-algo": "``workers_spare`` idle workers are kept",
    "cheaper-overload": "not needed",
    "worker-reload-mercy": "the setting ``graceful_timeout``",
    "reload-mercy": "the setting ``graceful_timeout``",
    "evil-reload-on-rss": "``max_memory`` of the web workers",
    "evil-reload-on-as": "``rlimits`` of a unit: ``LimitAS``",
    "no-orphans": "always so: workers end with the master",
    "ignore-sigpipe": "not needed",
    "ignore-write-errors": "not needed",
    "disable-write-exception": "not needed",
    "strict": "``gunicorn --check-config`` finds unknown settings",
    "memory-report": "``gunicorn-companion status -v``",
    "auto-procname": "the setting ``proc_name``, with ``gunicorn[setproctitle]``",
    "umask": "the setting ``umask``",
    "emperor": "one server for each application",
    "route": "the proxy's rules",
    "master-fifo": "``gunicorn-companion reload`` and signals",
}

_OPTIONS = re.compile(r"\s*,\s*(?=[a-z_]+=)")


def translate(source: Source) -> Found:
    """Raises SourceError."""
    found = Found(origin=TITLE)
    for section in inifile.read(source, STYLE):
        if section.name != "uwsgi":
            found.block(section.place).note("only the section [uwsgi] is read")
            continue
        web = found.block(f"{section.place}: the web tier")
        for entry in section.entries:
            with section.naming(entry):
                _entry(section, entry, found, web)
        _web(section, web)
    return found


def _key(entry: Entry) -> str:
    return entry.key.lower().replace("_", "-")


def _magic(text: str, section: Section) -> Any:
    """*text* without uWSGI's variables: ``$(HOME)``, ``%d``, ``%n``, ``%p`` and its own keys."""
    path = os.path.abspath(section.path)
    base = os.path.basename(path)
    known = {"p": path, "d": f"{os.path.dirname(path)}/", "s": base, "n": base.rpartition(".")[0] or base}
    own = {entry.key: entry.value for entry in section.entries}

    def part(match: re.Match[str]) -> Any:
        if match[1]:
            return Env(match[1])
        if match[2]:
            return own.get(match[2])
        return known.get(match[3])

    return expand(text, re.compile(r"\$\((\w+)\)|%\(([\w-]+)\)|%([pdsn])"), part)


def _add(found: Found, section: Section, entry: Entry, name: str) -> Program:
    return found.add(name, f"{entry.key} in {section.path}, line {entry.line}")


def _name(command: str) -> str:
    """A name for a command: its program, or the module or script that an interpreter runs."""
    words = command.split()
    base = re.sub(r"\.(py|js|rb|sh)$", "", os.path.basename(words[0])) if words else "daemon"
    if re.fullmatch(r"python[\d.]*|node|ruby|sh|bash", base):
        for word in words[1:]:
            if not word.startswith("-"):
                base = re.sub(r"\.(py|js|rb|sh)$", "", os.path.basename(word))
                break
    return base


def _run(program: Program, section: Section, command: str) -> None:
    """uWSGI runs a daemon by a shell."""
    expanded = _magic(command, section)
    if isinstance(expanded, str):
        values.run_line(program, expanded)
    else:
        program.set("command", [_magic(word, section) for word in values.split(command)])


def _entry(section: Section, entry: Entry, found: Found, web: Block) -> None:
    key, value = _key(entry), entry.value
    if key in ("attach-daemon", "legion-attach-daemon"):
        if key.startswith("legion"):
            _, _, value = value.partition(" ")
        program = _add(found, section, entry, _name(value))
        _run(program, section, value)
        if key.startswith("legion"):
            program.note(
                "guess: it runs on each host; there only on the lord of the legion, as with the key lease"
            )
    elif key == "smart-attach-daemon":
        pidfile, _, command = value.partition(" ")
        _smart(_add(found, section, entry, _name(command)), section, pidfile, command)
    elif key in ("attach-daemon2", "smart-attach-daemon2"):
        _daemon2(found, section, entry)
    elif key == "mule":
        if value in ("", "true", "1"):
            web.note(
                "mule: without a file it waits for messages; use a job queue with a companion: RQ, Celery"
            )
        else:
            program = _add(found, section, entry, f"mule-{_name(value)}")
            program.guess("command", ["python", _magic(value, section)], "the Python that the mule ran in")
            program.note(
                'for a function of your application: "target": "module:function", which shares its memory'
            )
    elif key == "mules":
        web.note(f"mules = {value}: they wait for messages; use a job queue with a companion: RQ, Celery")
    elif key in ("cron", "cron2", "unique-cron"):
        _cron(found, section, entry)
    elif key == "ini":
        web.note(f"ini = {value}: not read here; give that file too")
    elif key not in INSTEAD and f"%({entry.key})" in " ".join(each.value for each in section.entries):
        pass  # a variable of the file itself
    elif key not in HERE:
        leftover(web, key, value, INSTEAD, HERE)


def _smart(program: Program, section: Section, pidfile: str, command: str) -> None:
    _run(program, section, command)
    program.note(f"the pid file {pidfile} is not needed: it starts and ends with the server")
    words = [word for word in program.values["command"] if isinstance(word, str)]
    if any(re.search(r"--daemon|-daemonize|^-d$|--detach", word) for word in words):
        program.note("guess: take the option away that puts it into the background")


def _daemon2(found: Found, section: Section, entry: Entry) -> None:
    options = dict(part.strip().partition("=")[::2] for part in _OPTIONS.split(entry.value))
    if "cmd" not in options:
        raise ValueError("it has no cmd=")
    program = _add(found, section, entry, _name(options["cmd"]))
    _run(program, section, options.pop("cmd"))
    for name, value in options.items():
        if name == "stopsignal":
            program.set("stop_signal", values.signal_name(value))
        elif name == "chdir":
            program.set("cwd", _magic(value, section))
        elif name == "throttle":
            program.set("restart_delay", values.whole(value))
        elif name == "max_throttle":
            program.set("restart_delay_max", values.whole(value))
        elif name == "freq":
            program.set("start_retries", max(1, values.whole(value)))
        elif name in ("daemonize", "daemon"):
            program.note(f"{name}={value}: here it must stay in the foreground")
        elif name in ("uid", "gid", "user", "group"):
            program.note(f"{name}={value}: companions run as the server's user; setpriv in the command")
        elif name in (
            "pidfile",
            "control",
            "smart",
            "touch",
            "ns_pid",
            "legion",
            "reloadsignal",
            "notifypid",
        ):
            program.instead(f"{name}={value}", "not needed, or gunicorn-companion signal and restart")
        else:
            program.instead(f"{name}={value}", "not known, and left out")


def _cron(found: Found, section: Section, entry: Entry) -> None:
    """``minute hour day month weekday command``, with -1 for each, and -5 for each fifth."""
    text = entry.value
    options: dict[str, str] = {}
    if _key(entry) == "cron2":
        named, _, command = text.partition(" ")
        options = dict(part.partition("=")[::2] for part in named.split(","))
        fields = [options.get(name, "-1") for name in ("minute", "hour", "day", "month", "week")]
    else:
        words = text.split(None, 5)
        fields, command = words[:5], words[5] if len(words) > 5 else ""
    if not command or any(re.fullmatch(r"-?\d+", field) is None for field in fields):
        raise ValueError(f"{text!r} is not five numbers and a command")
    when = " ".join(
        "*" if field == "-1" else f"*/{field[1:]}" if field.startswith("-") else field for field in fields
    )
    program = _add(found, section, entry, _name(command))
    _run(program, section, command)
    program.set_schedule(when)
    if options.get("harakiri", "").isdecimal():
        program.set("max_runtime", int(options["harakiri"]))


def _web(section: Section, web: Block) -> None:
    """The settings for the web tier, as comments."""
    entries = {_key(entry): entry for entry in section.entries}
    settings: dict[str, Any] = {}

    def take(setting: str, *keys: str, count: bool = False) -> None:
        for key in keys:
            if key in entries:
                entry = entries[key]
                settings[setting] = section.parse(entry, _count) if count else _magic(entry.value, section)

    take("chdir", "chdir")
    take("wsgi_app", "wsgi-file", "wsgi", "module")
    if isinstance(settings.get("wsgi_app"), str):
        app = re.sub(r"\.py$", "", str(settings["wsgi_app"])).replace("/", ".")
        name = entries["callable"].value if "callable" in entries else "application"
        settings["wsgi_app"] = app if ":" in app else f"{app}:{name}"
    addresses = [
        re.sub(r"^:", "0.0.0.0:", entry.value) if ":" in entry.value else f"unix:{entry.value}"
        for entry in section.entries
        if _key(entry) in ("http", "http-socket", "socket")
    ]
    if addresses:
        settings["bind"] = [_magic(address, section) for address in addresses]
    if "socket" in entries:
        settings["protocol"] = "uwsgi"
        if "http" in entries or "http-socket" in entries:
            web.note("all addresses of bind speak one protocol: HTTP, or with protocol that of uWSGI")
    take("workers", "processes", "workers", count=True)
    if "cheaper" in entries:
        if "workers" in settings:
            settings["workers_max"] = settings["workers"]
        settings["workers"] = section.parse(entries["cheaper"], values.whole)
    take("threads", "threads", count=True)
    take("timeout", "harakiri", count=True)
    take("max_requests", "max-requests", count=True)
    take("max_lifetime", "max-worker-lifetime", count=True)
    take("backlog", "listen", count=True)
    take("pidfile", "pidfile")
    take("errorlog", "logto", "daemonize")
    take("user", "uid")
    take("group", "gid")
    take("proc_name", "procname")
    take("pythonpath", "pythonpath")
    if "reload-on-rss" in entries:
        settings["max_memory"] = f"{entries['reload-on-rss'].value}M"
    if settings.get("wsgi_app"):
        settings["preload_app"] = "lazy-apps" not in entries
    static = dict(_static(section))
    if static:
        settings["static"] = static
    env = [entry.value for entry in section.entries if _key(entry) == "env"]
    if env:
        settings["raw_env"] = [_magic(value, section) for value in env]
    for name, value in settings.items():
        web.note(f"guess: {name} = {literal(value, percent=False)}")


def _static(section: Section) -> Iterator[tuple[str, Any]]:
    """Directories of static files by the prefix of their URLs."""
    for entry in section.entries:
        key = _key(entry)
        prefix, equals, directory = entry.value.partition("=")
        if key == "check-static":
            yield "/", _magic(entry.value, section)
        elif key in ("static-map", "static-map2"):
            if not equals:
                with section.naming(entry):
                    raise ValueError(f"{entry.value!r} is not PREFIX=DIR")
            if key == "static-map2":
                directory = directory.rstrip("/") + prefix
            yield prefix, _magic(directory, section)


def _count(text: str) -> int | Expression:
    return Expression("os.cpu_count()") if text in ("%k", "auto") else values.whole(text)
