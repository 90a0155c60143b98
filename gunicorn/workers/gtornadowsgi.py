# SPDX-License-Identifier: MIT
"""WSGI applications on Tornado's HTTP server: their environ and their answers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import tornado
from tornado.httputil import HTTPHeaders, RequestStartLine, ResponseStartLine
from tornado.ioloop import IOLoop
from tornado.wsgi import WSGIContainer

from gunicorn import SERVER_SOFTWARE
from gunicorn.http import environ as environment
from gunicorn.http import head as response_head
from gunicorn.http.errors import ParseException
from gunicorn.http.parse import RequestHead, keeps_underscore
from gunicorn.http.wsgi import (
    Response,
    base_environ,
    forwarded_script_name,
    proxy_environ,
    server_script_name,
)
from gunicorn.workers.cycle import Stopped

_DONE = object()


class Answer(Response):
    """An application's response, kept until it is complete: the library sends it in one piece."""

    def __init__(self, head: RequestHead, cfg: Any) -> None:
        super().__init__(head, None, cfg)
        self.parts: list[bytes] = []

    def write(self, arg: bytes) -> None:
        if not isinstance(arg, bytes):
            raise TypeError(f"an application must give bytes, not {type(arg).__name__}")
        if self.status is None:
            raise AssertionError("content was given before start_response was called")
        if self.response_length is not None:
            arg = arg[: self.response_length - self.sent]
        if arg and self.has_body:
            # From here on the status cannot be replaced.
            self.headers_sent = True
            self.sent += len(arg)
            self.parts.append(arg)

    @property
    def is_short(self) -> bool:
        """Whether the content is shorter than its Content-Length."""
        return self.has_body and self.response_length is not None and self.sent < self.response_length

    def tornado_headers(self) -> HTTPHeaders:
        """The headers for the library, with those that it adds for its own applications."""
        headers = HTTPHeaders()
        for name, value in self.headers:
            headers.add(name, value)
        code = self.status_code
        if self.has_body and self.response_length is None:
            headers["Content-Length"] = str(self.sent)
        if code not in (204, 304):
            headers.setdefault("Content-Type", "text/html; charset=UTF-8")
        headers.setdefault("Server", f"TornadoServer/{tornado.version}")
        headers.setdefault("Date", response_head.current_date())
        if self.ends_connection:
            headers["Connection"] = "close"
        return headers


class Container(WSGIContainer):  # type: ignore[misc]
    """Runs a WSGI application in the library's way, with the environ of this server."""

    def __init__(self, worker: Any, application: Any, executor: Any) -> None:
        super().__init__(application, executor)
        self._worker = worker
        self._base = base_environ(worker.cfg)
        self._base["SERVER_SOFTWARE"] = SERVER_SOFTWARE
        self._base["wsgi.multithread"] = executor is not None
        self._script_name = server_script_name()

    def environ(self, request: Any) -> dict[str, Any]:
        """The environ of *request*. Raises ParseException for one that has none."""
        reply = request.connection
        head: RequestHead = reply.head
        policy = self._worker.cycle.policy
        trusted = policy.forwarded_allow.allows(reply.conn.address)
        headers = [
            pair for pair in head.headers if "_" not in pair[0] or keeps_underscore(pair[0], policy, trusted)
        ]
        script_name = self._script_name
        if trusted:
            script_name = forwarded_script_name(headers, policy, script_name)
        script_name, path = environment.split_script_name(head.path, script_name)
        environ = {
            **self._base,
            "REQUEST_METHOD": head.method,
            "SCRIPT_NAME": script_name,
            "PATH_INFO": path,
            "QUERY_STRING": head.query,
            "RAW_URI": head.target,
            "REMOTE_ADDR": request.remote_ip,
            "SERVER_PROTOCOL": request.version,
            "wsgi.url_scheme": request.protocol,
            "wsgi.input": io.BytesIO(request.body or b""),
        }
        environment.add_headers(environ, headers)
        if head.authority is not None:
            environ["HTTP_HOST"] = head.authority
        environment.add_server(environ, None, request.protocol)
        address = reply.context.address
        if isinstance(address, tuple):
            environ["REMOTE_PORT"] = str(address[1])
        environ.update(proxy_environ(reply))
        return environ

    async def handle_request(self, request: Any) -> None:
        reply = request.connection
        answer = Answer(reply.head, self._worker.cfg)
        try:
            environ = self.environ(request)
        except ParseException as error:
            start_line = RequestStartLine(request.method, request.uri, request.version)
            reply.refuse(start_line, request.headers, error)
            reply.cut_off()
            return
        failure = await self._run(self._steps(environ, answer))
        if failure is not None:
            where = f"{request.method} {request.uri}"
            self._worker.cycle.log_failure(failure, False, where, reply.context.address)
            answer = self._failure(reply.head)
        assert answer.status is not None and answer.status_code is not None
        status_line = ResponseStartLine("HTTP/1.1", answer.status_code, answer.status[4:])
        headers = answer.tornado_headers()
        reply.closes |= headers.get("Connection") == "close"
        sent = reply.write_headers(status_line, headers, b"".join(answer.parts) or None)
        if answer.is_short:
            await sent
            reply.cut_off()
        else:
            reply.finish()

    def _steps(self, environ: dict[str, Any], answer: Answer) -> Iterator[None]:
        """Run the application; pause after each block of content."""
        result = self.wsgi_application(environ, answer.start_response)
        if not self._worker.alive:
            self._worker.cycle.end_fork(None)
        try:
            for item in result:
                if answer.sent == answer.response_length or not answer.has_body:
                    break
                answer.write(item)
                yield
        finally:
            if hasattr(result, "close"):
                result.close()
        if answer.status is None:
            raise AssertionError("the application did not call start_response")

    async def _run(self, steps: Iterator[None]) -> BaseException | None:
        """Take *steps* to their end, each in its own turn of the loop; returns the exception they raised.

        A raise would not do: a future takes no StopIteration, and some exceptions would end the loop.
        """

        def step() -> Any:
            try:
                return next(steps, _DONE)
            except Stopped:
                raise
            except BaseException as error:
                # Here: the loop of a fork shares its descriptors with that of the worker.
                self._worker.cycle.end_fork(error)
                return error

        loop = IOLoop.current()
        while (outcome := await loop.run_in_executor(self.executor, step)) is None:
            pass
        return outcome if isinstance(outcome, BaseException) else None

    def _failure(self, head: RequestHead) -> Answer:
        answer = Answer(head, self._worker.cfg)
        headers = [("Content-Type", "text/plain"), ("Connection", "close")]
        answer.start_response("500 Internal Server Error", headers)
        answer.write(b"Internal Server Error\n")
        return answer
