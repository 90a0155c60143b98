# SPDX-License-Identifier: MIT
"""Send metrics to a statsd daemon, with DogStatsD's tags if configured."""

from __future__ import annotations

import logging
import random
import socket
import time
from datetime import timedelta
from typing import Any

from gunicorn.glogging import Logger
from gunicorn.logs.accesslog import microseconds, status_code
from gunicorn.logs.files import Throttle

# Keys in the `extra` of a log call, which send a figure along with the line, or in its place.
METRIC_VAR = "metric"
VALUE_VAR = "value"
MTYPE_VAR = "mtype"
# A dict of tags for this figure alone; only DogStatsD understands them.
TAGS_VAR = "tags"
GAUGE_TYPE = "gauge"
COUNTER_TYPE = "counter"
HISTOGRAM_TYPE = "histogram"
_FORMS = {GAUGE_TYPE: "g", COUNTER_TYPE: "c|@1.0", HISTOGRAM_TYPE: "ms"}

# Seconds between two attempts to connect. Looking a name up may block for seconds, so attempts become rare.
RETRY_DELAY = 5.0
LONGEST_RETRY_DELAY = 320.0


class Statsd(Logger):
    """A Logger that counts what it logs, and times requests.

    A log call with ``extra={"metric": name, "value": number, "mtype": "gauge"}`` sends that figure,
    whatever the log level is; without a message it logs nothing.
    """

    def __init__(self, cfg: Any) -> None:
        self.sock: socket.socket | None = None
        self._tried = 0.0
        self._retry_delay = RETRY_DELAY
        self._reported = False
        self._figures_lost = Throttle()
        super().__init__(cfg)

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        prefix = (cfg.statsd_prefix or "").rstrip(".")
        self.prefix = prefix and prefix + "."
        self.dogstatsd_tags: str | None = cfg.dogstatsd_tags or None
        self._address = cfg.statsd_host
        self._connect()

    def _connect(self) -> None:
        """Make the socket. With UDP it does not matter whether a daemon is there."""
        if self.sock is not None:
            self.sock.close()
        self.sock = None
        self._tried = time.monotonic()
        if not self._address:
            return
        try:
            self.sock = _connected(self._address)
            self._reported = False
            self._retry_delay = RETRY_DELAY
        except OSError as error:
            if not self._reported:
                self._reported = True
                Logger.warning(self, "statsd at %s cannot be reached: %s", _shown(self._address), error)

    def close_in_child(self) -> None:
        super().close_in_child()
        self._address = None
        self._connect()

    # -- log calls -----------------------------------------------------------------------

    def critical(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        super().critical(msg, *args, **kwargs)
        self._count_line("critical", kwargs)

    def error(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        super().error(msg, *args, **kwargs)
        self._count_line("error", kwargs)

    def warning(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        super().warning(msg, *args, **kwargs)
        self._count_line("warning", kwargs)

    def exception(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        super().exception(msg, *args, **kwargs)
        self._count_line("exception", kwargs)

    def _count_line(self, level: str, kwargs: dict[str, Any]) -> None:
        self.increment(f"gunicorn.log.{level}", 1)
        self._send_extra(kwargs.get("extra"))

    def info(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        self.log(logging.INFO, msg, *args, **kwargs)

    def debug(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        self.log(logging.DEBUG, msg, *args, **kwargs)

    def log(self, lvl: int | str, msg: Any, *args: Any, **kwargs: Any) -> None:
        """Log as Logger does, and send the figure in ``extra``."""
        self._send_extra(kwargs.get("extra"))
        if msg:
            super().log(lvl, msg, *args, **kwargs)

    def _send_extra(self, extra: dict[str, Any] | None) -> None:
        if not extra:
            return
        metric, value = extra.get(METRIC_VAR), extra.get(VALUE_VAR)
        # 0 is a figure.
        if not metric or value is None:
            return
        kind = extra.get(MTYPE_VAR)
        tags = extra.get(TAGS_VAR)
        if kind in _FORMS and tags and self.dogstatsd_tags:
            # Only if tags are configured does the server understand them.
            listed = ",".join(f"{name}:{tag}" for name, tag in tags.items())
            self._sock_send(f"{self.prefix}{metric}:{value}|{_FORMS[kind]}|#{listed}")
        elif kind == GAUGE_TYPE:
            self.gauge(metric, value)
        elif kind == COUNTER_TYPE:
            self.increment(metric, value)
        elif kind == HISTOGRAM_TYPE:
            self.histogram(metric, value)

    # -- requests ------------------------------------------------------------------------

    def access(self, resp: Any, req: Any, environ: Any, request_time: timedelta) -> None:
        """Write the line of one request, if there is an access log, and send its figures."""
        super().access(resp, req, environ, request_time)
        self.histogram("gunicorn.request.duration", microseconds(request_time) / 1000)
        self.increment("gunicorn.requests", 1)
        self.increment(f"gunicorn.request.status.{status_code(resp)}", 1)

    # -- figures -------------------------------------------------------------------------

    def gauge(self, name: str, value: float) -> None:
        """Set *name* to *value*."""
        self._sock_send(f"{self.prefix}{name}:{value}|g")

    def increment(self, name: str, value: float, sampling_rate: float = 1.0) -> None:
        """Add *value* to the counter *name*; below a rate of 1, only that part of the calls is sent."""
        if sampling_rate >= 1.0 or random.random() < sampling_rate:
            self._sock_send(f"{self.prefix}{name}:{value}|c|@{sampling_rate}")

    def decrement(self, name: str, value: float, sampling_rate: float = 1.0) -> None:
        """Subtract *value* from the counter *name*."""
        self.increment(name, -value, sampling_rate)

    def histogram(self, name: str, value: float) -> None:
        """Add *value*, in milliseconds, to the distribution *name*."""
        self._sock_send(f"{self.prefix}{name}:{value}|ms")

    def _sock_send(self, msg: str | bytes) -> None:
        if isinstance(msg, str):
            msg = msg.encode("ascii", "replace")
        if self.dogstatsd_tags:
            msg += (b"," if b"|#" in msg else b"|#") + self.dogstatsd_tags.encode("utf-8", "replace")
        if self.sock is None:
            self._connect_again()
        if self.sock is None:
            return
        try:
            self.sock.send(msg)
        except BlockingIOError:
            pass
        except OSError:
            # No daemon is there at the moment. A new Unix socket needs a new connection.
            if isinstance(self._address, str):
                self._connect_again()
        except Exception:
            lost = self._figures_lost.failed()
            if lost:
                # Not self.warning(), which would send a figure about itself.
                Logger.warning(self, "Metrics for statsd were lost: %d", lost, exc_info=True)

    def _connect_again(self) -> None:
        if self._address and time.monotonic() > self._tried + self._retry_delay:
            if not isinstance(self._address, str):
                self._retry_delay = min(LONGEST_RETRY_DELAY, self._retry_delay * 2)
            self._connect()


def _shown(address: tuple[str, int] | str) -> str:
    """Format *address* as in ``statsd_host``."""
    if isinstance(address, str):
        return f"unix://{address}"
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _connected(address: str | tuple[str, int]) -> socket.socket:
    target: Any = address
    family: int = socket.AF_UNIX
    if not isinstance(address, str):
        host, port = address
        family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    sock = socket.socket(family, socket.SOCK_DGRAM)
    # If the buffer is full, lose a figure rather than time.
    sock.setblocking(False)
    try:
        sock.connect(target)
    except BaseException:
        sock.close()
        raise
    return sock
