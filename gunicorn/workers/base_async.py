# SPDX-License-Identifier: MIT
"""What workers share that give each connection a thread of control of its own, and keep it open."""

from __future__ import annotations

import contextlib
from typing import Any

from gunicorn.http.errors import NoMoreData
from gunicorn.http.parser import RequestParser
from gunicorn.workers import closing
from gunicorn.workers.base import Worker
from gunicorn.workers.cycle import Fate

ALREADY_HANDLED = object()


class AsyncWorker(Worker):
    """A subclass accepts connections and calls ``handle()`` for each, many at a time.

    Its ``timeout_ctx()`` is a context in which waiting for the next request ends after `keepalive` seconds.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.worker_connections: int = self.cfg.worker_connections

    def timeout_ctx(self) -> Any:
        """A context manager that ends its block quietly after `keepalive` seconds."""
        raise NotImplementedError

    def is_already_handled(self, respiter: Any) -> bool:
        """Whether an application says by its result that it has answered on the socket itself."""
        return respiter is ALREADY_HANDLED

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Serve the requests of a connection one after the other, and close it."""
        fate = Fate.CLOSE
        try:
            parser = RequestParser(self.cfg, client, addr, policy=self.cycle.policy)
            server = listener.getsockname()
            fate = Fate.KEEP
            while fate is Fate.KEEP:
                req = self._next_request(parser)
                if req is None:
                    fate = Fate.CLOSE
                    break
                answer = self.handle_request(server, req, client, addr)
                fate = answer if isinstance(answer, Fate) else Fate.KEEP if answer else Fate.CLOSE
        except Exception as error:
            if isinstance(error, NoMoreData):
                self.log.debug("The connection ended within a request: %s", error)
            self.handle_error(None, client, addr, error)
            fate = Fate.LINGER
        finally:
            if fate is Fate.RESET:
                closing.reset(client)
            else:
                closing.close_gracefully(client, more_expected=fate is Fate.LINGER)

    def _next_request(self, parser: RequestParser) -> Any:
        """The next request of a connection, or None at its end and after `keepalive` idle seconds."""
        waits = self.timeout_ctx() if parser.req_count else contextlib.nullcontext()
        req = None
        with waits, contextlib.suppress(StopIteration):
            req = next(parser)
        return req

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> Fate | bool:
        """Have the application answer *req*; returns what becomes of the connection."""
        return self.cycle.serve(
            req, sock, addr, listener_name, keep=bool(self.cfg.keepalive), multithread=True
        )
