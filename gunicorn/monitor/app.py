# SPDX-License-Identifier: MIT
"""The WSGI application of the monitor: routes, probes, actions."""

from __future__ import annotations

import hashlib
import json
import mimetypes
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from gunicorn.monitor import access, html, inherited, openmetrics
from gunicorn.monitor.collect import STANDBY, Refused, Source, Unavailable
from gunicorn.monitor.live import Live
from gunicorn.monitor.stream import Stream, TooManyStreams

Environ = dict[str, Any]

STATIC = os.path.join(os.path.dirname(__file__), "static")
MOST_BODY = 16 * 1024
MOST_LINES = 10_000
DEFAULT_LINES = 100

# Seconds since the last turn of the master's loop, which turns at least once a second.
MASTER_SILENCE = 5.0
# Seconds for the manager's answer to a probe; and how long its last answer counts while it is busy.
PROBE_PATIENCE = 0.08
PROBE_MEMORY = 30.0

_HEADERS = [
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]
_REASONS = {
    200: "OK",
    304: "Not Modified",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    421: "Misdirected Request",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
JSON = "application/json"
HTML = "text/html; charset=utf-8"


class Options(NamedTuple):
    """The monitor's settings: ``monitor_token``, ``monitor_ready``, and the allowed host names."""

    token: str | None
    ready: list[str]
    hosts: list[str]


class Answer(NamedTuple):
    """What is sent: content, or the events of a stream."""

    status: int
    content_type: str
    body: bytes | Stream
    headers: tuple[tuple[str, str], ...] = (("Cache-Control", "no-store"),)


class Wrong(Exception):
    """Ends a request with an error: a status and a text for people."""

    def __init__(self, status: int, text: str, *headers: tuple[str, str]) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers


def as_json(value: Any, status: int = 200, *headers: tuple[str, str]) -> Answer:
    body = json.dumps(value, separators=(",", ":")).encode() + b"\n"
    return Answer(status, JSON, body, (("Cache-Control", "no-store"), *headers))


class Monitor:
    """The application."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.hosts = access.Hosts(options.hosts)
        self.source = Source(inherited.control_path)
        self.live = Live(self.source)
        # The states of companions at the manager's latest answer to a probe, and when that was.
        self._states: tuple[float, dict[str, str]] = (0.0, {})

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        try:
            answer = self._answer(method, environ["PATH_INFO"], environ)
        except Wrong as wrong:
            answer = as_json({"error": str(wrong)}, wrong.status, *wrong.headers)
        except Refused as refused:
            answer = as_json({"error": str(refused)}, 409)
        except Unavailable as error:
            answer = as_json({"error": str(error)}, 503)
        headers = [("Content-Type", answer.content_type), *_HEADERS, *answer.headers]
        if isinstance(answer.body, Stream):
            # nginx would keep events back.
            headers.append(("X-Accel-Buffering", "no"))
        else:
            headers.append(("Content-Length", str(len(answer.body))))
        start_response(f"{answer.status} {_REASONS[answer.status]}", headers)
        if isinstance(answer.body, Stream):
            return answer.body
        return [b"" if method == "HEAD" else answer.body]

    def _answer(self, method: str, path: str, environ: Environ) -> Answer:
        probe = PROBES.get(path)
        if probe is None and not self.hosts.allow(environ.get("HTTP_HOST")):
            raise Wrong(
                421, "The monitor does not go by this host name. The setting monitor_hosts allows it."
            )
        if path == "/api/action":
            _check_method(method, "POST")
            return self._act(environ)
        _check_method(method, "GET", "HEAD")
        if probe is not None:
            return probe(self)
        query = parse_qs(environ["QUERY_STRING"])
        route = ROUTES.get(path)
        if route is not None:
            if method == "HEAD" and path in STREAMS:
                return Answer(200, "text/event-stream", b"")
            return route(self, query, environ)
        for prefix, named in NAMED_ROUTES.items():
            if path.startswith(prefix):
                # PEP 3333: bytes as Latin-1.
                name = path[len(prefix) :].encode("latin-1").decode("utf-8", "replace")
                return named(self, name, environ)
        raise Wrong(404, "There is no such page.")

    # -- probes ----------------------------------------------------------------------------

    def _live(self) -> Answer:
        age = _master_age()
        good = age is not None and age < MASTER_SILENCE
        text = {} if good else {"missing": [_silence(age)]}
        return as_json({"live": good, **text}, 200 if good else 503)

    def _ready(self) -> Answer:
        missing = []
        age = _master_age()
        if age is None or age >= MASTER_SILENCE:
            missing.append(_silence(age))
        elif not any(worker["state"] in ("idle", "busy") for worker in _workers()):
            missing.append("no web worker has booted")
        missing += self._companions_missing()
        return as_json({"ready": not missing, "missing": missing}, 503 if missing else 200)

    def _companions_missing(self) -> list[str]:
        if not self.options.ready:
            return []
        try:
            self._states = time.monotonic(), self.source.states(PROBE_PATIENCE)
        except (Unavailable, Refused) as error:
            # It may be busy for a moment.
            if time.monotonic() - self._states[0] > PROBE_MEMORY:
                return [str(error)]
        states = self._states[1]
        missing = []
        for name in self.options.ready:
            chosen = {each: state for each, state in states.items() if _means(name, each)}
            if not chosen:
                missing.append(f"there is no companion {name}")
            missing += [
                f"companion {each} is {state}"
                for each, state in chosen.items()
                if state not in ("RUNNING", STANDBY)
            ]
        return missing

    # -- reading ---------------------------------------------------------------------------

    def _index(self, query: Any, environ: Environ) -> Answer:
        try:
            return _page(html.render_index(self.source.status()))
        except (Unavailable, Refused) as error:
            return _page(html.render_error(str(error)), 503)

    def _companion_page(self, name: str, environ: Environ) -> Answer:
        try:
            return _page(html.render_companion(self._companion_named(name), self._lines(name)))
        except Wrong as wrong:
            return _page(html.render_error(str(wrong), name), wrong.status)
        except (Unavailable, Refused) as error:
            return _page(html.render_error(str(error), name), 503)

    def _lines(self, name: str) -> list[dict[str, Any]]:
        try:
            return self.source.logs(name, DEFAULT_LINES)
        except Refused:
            return []  # its output is not captured

    def _static(self, name: str, environ: Environ) -> Answer:
        if name not in os.listdir(STATIC):
            raise Wrong(404, "There is no such file.")
        with open(os.path.join(STATIC, name), "rb") as file:
            content = file.read()
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        headers = (("ETag", tag), ("Cache-Control", "no-cache"))
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        if kind.startswith("text/"):
            kind += "; charset=utf-8"
        if tag in environ.get("HTTP_IF_NONE_MATCH", ""):
            return Answer(304, kind, b"", headers)
        return Answer(200, kind, content, headers)

    def _metrics(self, query: Any, environ: Environ) -> Answer:
        content_type, modern = openmetrics.negotiate(environ.get("HTTP_ACCEPT", ""))
        status = self.source.status()
        text = openmetrics.render(status, status.pop("web"), openmetrics=modern)
        return Answer(200, content_type, text.encode())

    def _status(self, query: Any, environ: Environ) -> Answer:
        return as_json(self.source.status())

    def _history(self, query: Any, environ: Environ) -> Answer:
        return as_json(self.source.history())

    def _events(self, query: Any, environ: Environ) -> Answer:
        return as_json({"history": self.source.events(_name(query))})

    def _logs(self, query: Any, environ: Environ) -> Answer:
        return as_json({"lines": self.source.logs(_name(query), _count(query))})

    def _session(self, query: Any, environ: Environ) -> Answer:
        token, given = self.options.token, environ.get("HTTP_AUTHORIZATION")
        session = {"actions": bool(token)}
        if token and given is not None:
            session["authorized"] = access.has_token(given, token)
        return as_json(session)

    def _companion(self, name: str, environ: Environ) -> Answer:
        return as_json(self._companion_named(name))

    def _companion_named(self, name: str) -> dict[str, Any]:
        try:
            found = self.source.companion(name)
        except Refused as refused:
            raise Wrong(404, str(refused)) from None
        if found is None:
            raise Wrong(404, f"{name} means several companions.")
        return found

    def _stream(self, query: Any, environ: Environ) -> Answer:
        return _streamed(self.live.watch())

    def _log_stream(self, query: Any, environ: Environ) -> Answer:
        return _streamed(self.source.follow_logs(_name(query), _count(query)))

    # -- acting ----------------------------------------------------------------------------

    def _act(self, environ: Environ) -> Answer:
        if not access.same_origin(environ.get("HTTP_ORIGIN"), environ.get("HTTP_HOST")):
            raise Wrong(403, "Actions are only taken from the monitor's own page.")
        token = self.options.token
        if not token:
            raise Wrong(403, "There are no actions: monitor_token is not set.")
        if not access.has_token(environ.get("HTTP_AUTHORIZATION"), token):
            raise Wrong(401, "The token is wrong or missing.", ("WWW-Authenticate", 'Bearer realm="monitor"'))
        request = _request_of(_body(environ))
        # More than for a question: the master may have to answer.
        reply = self.source.ask(5.0, **request)
        return as_json(reply)


def _check_method(method: str, *allowed: str) -> None:
    if method not in allowed:
        raise Wrong(405, f"Use {' or '.join(allowed)}.", ("Allow", ", ".join(allowed)))


def _page(text: str, status: int = 200) -> Answer:
    return Answer(status, HTML, text.encode("utf-8", "replace"))


def _streamed(source: Any) -> Answer:
    try:
        return Answer(200, "text/event-stream", Stream(source))
    except TooManyStreams:
        source.close()
        raise Wrong(503, "Too many pages are open. Close one, or reload this one later.") from None


def _name(query: dict[str, list[str]]) -> str | None:
    return query["name"][0] if "name" in query else None


def _count(query: dict[str, list[str]]) -> int:
    text = query.get("lines", [str(DEFAULT_LINES)])[0]
    if not text.isdecimal() or len(text) > 9:
        raise Wrong(400, "'lines' is not a number.")
    return min(int(text), MOST_LINES)


def _body(environ: Environ) -> Any:
    if environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower() != JSON:
        raise Wrong(415, f"The content must be {JSON}.")
    body = environ["wsgi.input"].read(MOST_BODY + 1)
    if len(body) > MOST_BODY:
        raise Wrong(413, f"The content has more than {MOST_BODY} bytes.")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise Wrong(400, "The content is not JSON.") from None


#: What an action may say beside its name; it becomes the request of the control socket.
ACTIONS = {
    "start": ("name",),
    "stop": ("name",),
    "restart": ("name",),
    "scale": ("name", "numprocs"),
    "web": ("do", "count", "pid"),
    "dump": ("what",),
}


def _request_of(action: Any) -> dict[str, Any]:
    if not isinstance(action, dict):
        raise Wrong(400, "The content is not an object.")
    name = action.get("action")
    if not isinstance(name, str) or name not in ACTIONS:
        raise Wrong(400, f"'action' is not one of {', '.join(ACTIONS)}.")
    unknown = action.keys() - {"action", *ACTIONS[name]}
    if unknown:
        raise Wrong(400, f"The action {name} takes no {', '.join(sorted(unknown))}.")
    if ACTIONS[name][0] not in action:
        raise Wrong(400, f"The action {name} needs '{ACTIONS[name][0]}'.")
    return {"cmd": name, **{key: action[key] for key in ACTIONS[name] if key in action}}


def _means(name: str, companion: str) -> bool:
    return name == companion or companion.rpartition(":")[0] == name


def _workers() -> list[dict[str, Any]]:
    workers: list[dict[str, Any]] = inherited.scoreboard.read()["workers"]
    return workers


def _master_age() -> float | None:
    """Seconds since the last turn of the master's loop; None where nobody can know."""
    if inherited.scoreboard is None:
        return None
    age: float = inherited.scoreboard.read()["master"]["beat_age"]
    return age


def _silence(age: float | None) -> str:
    return "there is no scoreboard" if age is None else f"the master has not answered for {age:g} s"


PROBES: dict[str, Callable[[Monitor], Answer]] = {"/live": Monitor._live, "/ready": Monitor._ready}
ROUTES: dict[str, Callable[[Monitor, dict[str, list[str]], Environ], Answer]] = {
    "/": Monitor._index,
    "/metrics": Monitor._metrics,
    "/api/status": Monitor._status,
    "/api/history": Monitor._history,
    "/api/events": Monitor._events,
    "/api/logs": Monitor._logs,
    "/api/session": Monitor._session,
    "/api/stream": Monitor._stream,
    "/api/logs/stream": Monitor._log_stream,
}
STREAMS = ("/api/stream", "/api/logs/stream")
NAMED_ROUTES: dict[str, Callable[[Monitor, str, Environ], Answer]] = {
    "/api/companion/": Monitor._companion,
    "/companion/": Monitor._companion_page,
    "/static/": Monitor._static,
}
