# SPDX-License-Identifier: MIT
"""Write the error log and the access log."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from datetime import timedelta
from typing import Any

from gunicorn.errors import ConfigError
from gunicorn.logs import accesslog
from gunicorn.logs.accesslog import SafeAtoms
from gunicorn.logs.files import (
    LogFile,
    LogStream,
    Throttle,
    close_uncaptured,
    fileno,
    open_log,
    redirect_stdio,
    reopen,
    restore_stdio,
)
from gunicorn.logs.logconfig import (
    CONFIG_DEFAULTS,
    DATE_FORMAT,
    ERROR_FORMAT,
    all_or_nothing,
    apply_logconfig,
    loggers,
)
from gunicorn.logs.syslog import SYSLOG_FACILITIES, parse_syslog_address

__all__ = ["CONFIG_DEFAULTS", "SYSLOG_FACILITIES", "Logger", "SafeAtoms", "loggers", "parse_syslog_address"]

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _is_own(handler: logging.Handler) -> bool:
    return getattr(handler, "_gunicorn", False)


class Logger:
    """Writes the two logs; ``logger_class`` may replace it.

    ``setup(cfg)`` may be called again with another configuration, which then applies; if it raises, the logs
    stay where they were.
    """

    LOG_LEVELS = {
        "critical": logging.CRITICAL,
        "error": logging.ERROR,
        "warning": logging.WARNING,
        "info": logging.INFO,
        "debug": logging.DEBUG,
    }
    loglevel = logging.INFO

    error_fmt = ERROR_FORMAT
    datefmt = DATE_FORMAT
    access_fmt = "%(message)s"
    syslog_fmt = "[%(process)d] %(message)s"

    # For subclasses whose setup() does not call this one.
    _logs_access = False
    _line: accesslog.Line | None = None
    _direct: LogFile | LogStream | None = None
    _now: tuple[float, str] = (0.0, "")
    _throttle: Throttle

    def __init__(self, cfg: Any) -> None:
        self.error_log = logging.getLogger("gunicorn.error")
        self.error_log.propagate = False
        self.access_log = logging.getLogger("gunicorn.access")
        self.access_log.propagate = False
        self.error_handlers: list[logging.Handler] = []
        self.access_handlers: list[logging.Handler] = []
        self.logfile: Any = None
        self.lock = threading.Lock()
        self.cfg = cfg
        self.setup(cfg)

    # -- where it goes -------------------------------------------------------------------

    def setup(self, cfg: Any) -> None:
        """Log as *cfg* says.

        Raises ConfigError, with nothing changed, if a file, logconfig or the access log's format is unusable.
        """
        check_access_format(type(self), cfg)
        with all_or_nothing() as replaced:
            previous, self.cfg = self.cfg, cfg
            try:
                self._apply(cfg, replaced)
            except BaseException:
                self.cfg = previous
                raise
        self._prepare_access(cfg)

    def _apply(self, cfg: Any, replaced: list[logging.Handler]) -> None:
        self.loglevel = self.LOG_LEVELS.get((cfg.loglevel or "").lower(), logging.INFO)
        for log, level in ((self.error_log, self.loglevel), (self.access_log, logging.INFO)):
            log.propagate = False
            log.setLevel(level)
            for handler in [found for found in log.handlers if _is_own(found)]:
                log.removeHandler(handler)
                replaced.append(handler)
        if cfg.errorlog is not None:
            self._set_handler(self.error_log, cfg.errorlog, logging.Formatter(self.error_fmt, self.datefmt))
        if cfg.accesslog is not None:
            self._set_handler(
                self.access_log, cfg.accesslog, logging.Formatter(self.access_fmt), stream=sys.stdout
            )
        if cfg.syslog:
            self._set_syslog_handler(self.error_log, cfg, self.syslog_fmt, "error")
            if not cfg.disable_redirect_access_to_syslog:
                self._set_syslog_handler(self.access_log, cfg, self.syslog_fmt, "access")
        apply_logconfig(cfg)
        self._capture(cfg)

    def _capture(self, cfg: Any) -> None:
        """Send standard output and error into the file of the error log, or end that."""
        handler = self._get_gunicorn_handler(self.error_log)
        self.logfile = None
        if cfg.capture_output and cfg.errorlog not in (None, "-") and isinstance(handler, LogFile):
            self.logfile = handler.stream
            redirect_stdio(fileno(handler))
        else:
            restore_stdio()

    def _get_gunicorn_handler(self, log: logging.Logger) -> LogFile | LogStream | None:
        """Return the handler of *log* that a file setting has made, or None."""
        for handler in log.handlers:
            if _is_own(handler) and isinstance(handler, (LogStream, LogFile)):
                return handler
        return None

    def _set_handler(
        self, log: logging.Logger, output: str | None, fmt: logging.Formatter, stream: Any = None
    ) -> None:
        """Send *log* to *output*: a path, ``-`` for *stream* (default: standard error), None for nowhere."""
        old = self._get_gunicorn_handler(log)
        if old is not None:
            log.removeHandler(old)
        if output is None:
            return
        handler: LogStream | LogFile
        if output == "-":
            handler = LogStream(stream or sys.stderr)
        else:
            handler = open_log(output, self.cfg)
        handler.setFormatter(fmt)
        handler._gunicorn = True
        log.addHandler(handler)

    def _set_syslog_handler(self, log: logging.Logger, cfg: Any, fmt: str, name: str) -> None:
        program = cfg.syslog_prefix or cfg.proc_name.replace(":", ".")
        try:
            facility = SYSLOG_FACILITIES[cfg.syslog_facility.lower()]
        except KeyError:
            known = ", ".join(SYSLOG_FACILITIES)
            raise ConfigError(f"unknown syslog facility {cfg.syslog_facility!r}; known are {known}") from None
        try:
            kind, address = parse_syslog_address(cfg.syslog_addr)
        except RuntimeError as error:
            raise ConfigError(str(error)) from error
        from gunicorn.logs.sysloghandler import SyslogHandler

        handler = SyslogHandler(address, facility, kind)
        handler.setFormatter(logging.Formatter(f"gunicorn.{program}.{name}: {fmt}"))
        handler._gunicorn = True
        log.addHandler(handler)

    # -- the error log -------------------------------------------------------------------

    def critical(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        self.error_log.critical(msg, *args, **kwargs)

    def error(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        self.error_log.error(msg, *args, **kwargs)

    def warning(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        self.error_log.warning(msg, *args, **kwargs)

    def info(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        self.error_log.info(msg, *args, **kwargs)

    def debug(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        self.error_log.debug(msg, *args, **kwargs)

    def exception(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        self.error_log.exception(msg, *args, **kwargs)

    def log(self, lvl: int | str, msg: Any, *args: Any, **kwargs: Any) -> None:
        """Log at *lvl*, a number or a name of LOG_LEVELS (info if it is none)."""
        if isinstance(lvl, str):
            lvl = self.LOG_LEVELS.get(lvl.lower(), logging.INFO)
        self.error_log.log(lvl, msg, *args, **kwargs)

    # -- the access log ------------------------------------------------------------------

    def _prepare_access(self, cfg: Any) -> None:
        """Decide once what is the same for each request."""
        self._logs_access = bool(
            cfg.accesslog
            or cfg.logconfig
            or cfg.logconfig_dict
            or cfg.logconfig_json
            or (cfg.syslog and not cfg.disable_redirect_access_to_syslog)
        )
        self._format = cfg.access_log_format
        self._throttle = Throttle()
        self._line = None
        if type(self).atoms is Logger.atoms:
            self._line = accesslog.line_function(self._format, self.now, self._get_user)
        # Give finished lines only to our own, unchanged file or stream. All others get records with the
        # atoms, which JSON formatters read.
        self._direct = None
        handler = self._get_gunicorn_handler(self.access_log)
        if self._line is not None and self.access_fmt == Logger.access_fmt and handler is not None:
            self._direct, self._plain = handler, handler.formatter

    @property
    def wants_access(self) -> bool:
        """Whether ``access()`` does anything; if not, a worker need not measure time."""
        return self._logs_access or type(self).access is not Logger.access

    def atoms(self, resp: Any, req: Any, environ: Any, request_time: timedelta) -> dict[str, Any]:
        """Return the names for the format of the access log; a subclass may add its own."""
        return accesslog.all_atoms(resp, req, environ, request_time, self.now(), self._get_user(environ))

    def access(self, resp: Any, req: Any, environ: Any, request_time: timedelta) -> None:
        """Write the line of one request, if there is an access log."""
        log = self.access_log
        if not self._logs_access or not log.isEnabledFor(logging.INFO):
            return
        try:
            handler = self._direct
            if handler is not None and self._line is not None and self._is_plain(log, handler):
                handler.write_line(self._line(resp, req, environ, request_time))
                throttle = self._throttle
                if throttle.count and (lost := throttle.recovered()):
                    self.error("The access log works again (lines lost: %d)", lost)
            else:
                log.info(self._format, SafeAtoms(self.atoms(resp, req, environ, request_time)))
        except Exception as error:
            lost = self._throttle.failed()
            if not lost:
                return
            if isinstance(error, OSError):
                self.error("The access log cannot be written: %s (lines lost: %d)", error, lost)
            else:
                self.error("The access log failed (lines lost: %d):\n%s", lost, traceback.format_exc())

    def _is_plain(self, log: logging.Logger, handler: logging.Handler) -> bool:
        """Whether a record becomes a line of *handler* and nothing else: the application may add more."""
        return (
            log.handlers == [handler]
            and not log.filters
            and not log.propagate
            and handler.formatter is self._plain
            and not handler.filters
            and handler.level <= logging.INFO
        )

    def now(self) -> str:
        """Return the local time for the atom ``t``."""
        now = time.time()
        second, text = self._now
        if not second <= now < second + 1:
            second = now // 1
            at = time.localtime(second)
            # Not %b, which would follow the locale.
            text = time.strftime(f"[%d/{_MONTHS[at.tm_mon - 1]}/%Y:%H:%M:%S %z]", at)
            self._now = (second, text)
        return text

    def _get_user(self, environ: Any) -> str | None:
        return accesslog.basic_user(environ)

    # -- files ---------------------------------------------------------------------------

    def reopen_files(self) -> None:
        """Reopen every log file by its name, after a rotation has moved the old one.

        The new file takes the descriptor of the old one, so that no thread, and no code that a signal has
        interrupted, finds its file closed while it logs.
        """
        for handler in _file_handlers():
            try:
                reopen(handler, self.cfg)
            except (OSError, ValueError) as error:
                # ValueError: the stream was closed.
                why = getattr(error, "strerror", None) or error
                self.error("Log file %s cannot be reopened: %s", handler.baseFilename, why)
        if self.logfile is not None:
            redirect_stdio(self.logfile.fileno())

    def close_in_child(self) -> None:
        """In a child that is not a process of the server: close the server's log files.

        A rotated file frees its space only when nobody has it open. Later log lines go to standard error.
        The handlers of a logconfig stay, because the child's own code may use them.
        """
        for handler in [*self.error_log.handlers, *self.access_log.handlers]:
            if isinstance(handler, LogFile):
                handler.close_in_child()
            elif _is_own(handler) and not isinstance(handler, LogStream):
                # A connection, which is opened again with the next message.
                handler.close()
        self.logfile = None
        close_uncaptured()

    def close_on_exec(self) -> None:
        """Keep the log files from programs that the application starts."""
        for handler in _file_handlers():
            os.set_inheritable(fileno(handler), False)


def check_access_format(logger_class: type[Any], cfg: Any) -> None:
    """Raise ConfigError if ``access_log_format`` would fail at each request.

    An ``access()`` of the user's may accept any text.
    """
    access = getattr(logger_class, "access", None)
    if not getattr(access, "__module__", "").startswith("gunicorn."):
        return
    try:
        accesslog.check_format(cfg.access_log_format, own=logger_class.atoms is not Logger.atoms)
    except ValueError as error:
        raise ConfigError(f"access_log_format {cfg.access_log_format!r}: {error}") from error


# -- files --------------------------------------------------------------------------------------


def _file_handlers() -> list[logging.FileHandler]:
    found = {
        id(handler): handler
        for log in loggers()
        for handler in log.handlers
        if isinstance(handler, logging.FileHandler) and handler.stream is not None
    }
    return list(found.values())


def reopen_logs(log: Any) -> None:
    """Call ``reopen_files()`` of *log*, and log an error of it, which must not end the process."""
    try:
        log.reopen_files()
    except Exception:
        log.exception("The log files cannot be reopened")


def follow(log: Any, old_cfg: Any, cfg: Any) -> None:
    """Apply a changed log configuration; for the same one, reopen the files as after a rotation."""
    # The file of a logconfig may have changed.
    if _log_settings(cfg) != _log_settings(old_cfg) or cfg.logconfig or cfg.logconfig_json:
        log.setup(cfg)
    else:
        log.reopen_files()


def _log_settings(cfg: Any) -> dict[str, Any]:
    return {name: setting.get() for name, setting in cfg.settings.items() if setting.section == "Logging"}
