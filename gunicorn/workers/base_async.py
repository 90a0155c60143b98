# SPDX-License-Identifier: MIT
"""The base of workers with a thread of control for each connection, which stays open."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from gunicorn.http.errors import NoMoreData
from gunicorn.http.parser import RequestParser
from gunicorn.workers import connection
from gunicorn.workers.base import Worker
from gunicorn.workers.cycle import CLOSE, KEEP, LINGER, RESET, HandledElsewhere, Outcome


class _AlreadyHandled:
    def __iter__(self) -> Iterator[bytes]:
        raise HandledElsewhere


#: The result of an application that has used the socket itself; the connection ends with it.
ALREADY_HANDLED: object = _AlreadyHandled()


class AsyncWorker(Worker):
    """A subclass accepts connections and calls ``handle()`` for each, many at a time.

    Its ``timeout_ctx()`` is a context in which waiting for the next request ends after `keepalive` seconds.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.worker_connections: int = self.cfg.worker_connections
        self.keepalive = float(self.cfg.keepalive)
        self._names: dict[Any, Any] = {}

    @classmethod
    def places(cls, cfg: Any) -> int:
        connections: int = cfg.worker_connections
        return connections

    def timeout_ctx(self) -> Any:
        """A context manager that ends its block quietly after `keepalive` seconds."""
        raise NotImplementedError

    def is_already_handled(self, respiter: Any) -> bool:
        """Whether an application says by its result that it has answered on the socket itself."""
        return respiter is ALREADY_HANDLED

    def load_wsgi(self) -> None:
        super().load_wsgi()
        if type(self).is_already_handled is AsyncWorker.is_already_handled:
            return
        application = self.wsgi

        def translate(environ: Any, start_response: Any) -> Any:
            result = application(environ, start_response)
            return ALREADY_HANDLED if self.is_already_handled(result) else result

        self.wsgi = translate

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Serve the requests of a connection one after the other, and close it."""
        outcome: Outcome = RESET  # for an exception that ends the process or the greenlet
        try:
            outcome = self._serve_requests(listener, client, addr)
        except Exception as error:
            if isinstance(error, NoMoreData):
                self.log.debug("The connection ended during a request: %s", error)
            self.handle_error(None, client, addr, error)
            outcome = LINGER
        finally:
            if outcome == RESET:
                connection.reset(client)
            else:
                connection.close_gracefully(client, more_expected=outcome == LINGER)

    def _serve_requests(self, listener: Any, client: Any, addr: Any) -> Outcome:
        parser = self.cycle.parser_class(self.cfg, client, addr, policy=self.cycle.policy)
        server = self.address_of(listener)
        while True:
            req = self._next_request(parser)
            if req is None:
                return CLOSE
            answer = self.handle_request(server, req, client, addr)
            if not isinstance(answer, str):
                answer = KEEP if answer else CLOSE
            if answer != KEEP:
                return answer

    def address_of(self, listener: Any) -> Any:
        """The address of *listener*; after the first call also if that is closed."""
        if listener not in self._names:
            self._names[listener] = listener.getsockname()
        return self._names[listener]

    def _next_request(self, parser: RequestParser) -> Any:
        """The next request of a connection, or None at its end and after `keepalive` idle seconds."""
        waits = self.timeout_ctx() if parser.req_count else contextlib.nullcontext()
        req = None
        with waits, contextlib.suppress(StopIteration):
            req = next(parser)
        return req

    def keeps_alive(self) -> bool:
        """Whether a connection may stay open after its response."""
        return self.keepalive > 0

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> Outcome | bool:
        """Have the application answer *req*; returns what becomes of the connection."""
        try:
            return self.cycle.serve(req, sock, addr, listener_name, keep=self.keeps_alive(), multithread=True)
        except HandledElsewhere:
            return CLOSE
