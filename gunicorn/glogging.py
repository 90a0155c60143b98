# SPDX-License-Identifier: MIT
"""The error log and the access log: their files and formats."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
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
    open_safely_later,
    opening_safely,
    redirect_stdio,
    reopen,
    report_write_error,
    restore_stdio,
)
from gunicorn.logs.syslog import SYSLOG_FACILITIES, parse_syslog_address

__all__ = ["CONFIG_DEFAULTS", "SYSLOG_FACILITIES", "Logger", "SafeAtoms", "loggers", "parse_syslog_address"]

ERROR_FORMAT = "%(asctime)s [%(process)d] [%(levelname)s] %(message)s"
DATE_FORMAT = "[%Y-%m-%d %H:%M:%S %z]"

#: What `logconfig_dict` and `logconfig_json` replace key by key, so that they need to name only what differs.
CONFIG_DEFAULTS: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "root": {"level": "INFO", "handlers": ["console"]},
    "loggers": {
        "gunicorn.error": {"level": "INFO", "handlers": ["error_console"], "propagate": False},
        "gunicorn.access": {"level": "INFO", "handlers": ["console"], "propagate": False},
    },
    "handlers": {
        "console": {
            "class": "logging.StreamHandler",
            "formatter": "generic",
            "stream": "ext://sys.stdout",
        },
        "error_console": {
            "class": "logging.StreamHandler",
            "formatter": "generic",
            "stream": "ext://sys.stderr",
        },
    },
    "formatters": {
        "generic": {"format": ERROR_FORMAT, "datefmt": DATE_FORMAT, "class": "logging.Formatter"},
    },
}

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def loggers() -> list[logging.Logger]:
    """Every logger there is, the root logger first."""
    # A copy, made in one step: threads may ask for new loggers meanwhile.
    existing = list(logging.root.manager.loggerDict.values())
    return [logging.root, *(log for log in existing if isinstance(log, logging.Logger))]


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

    # For subclasses whose own setup() does not come here.
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
        with _all_or_nothing() as replaced:
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
        _apply_logconfig(cfg)
        self._capture(cfg)

    def _capture(self, cfg: Any) -> None:
        """Send standard output and error into the error log's file, or back where they went."""
        handler = self._get_gunicorn_handler(self.error_log)
        self.logfile = None
        if cfg.capture_output and cfg.errorlog not in (None, "-") and isinstance(handler, LogFile):
            self.logfile = handler.stream
            redirect_stdio(fileno(handler))
        else:
            restore_stdio()

    def _get_gunicorn_handler(self, log: logging.Logger) -> LogFile | LogStream | None:
        """The handler that a file setting has put on *log*, or none."""
        for handler in log.handlers:
            if _is_own(handler) and isinstance(handler, (LogStream, LogFile)):
                return handler
        return None

    def _set_handler(
        self, log: logging.Logger, output: str | None, fmt: logging.Formatter, stream: Any = None
    ) -> None:
        """Let *log* go to *output*: a path, ``-`` for *stream* (standard error if none), None for nowhere."""
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
        """Settle once what each request would ask."""
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
        # Only our own file or stream with nothing done to it can be given finished lines. Everyone else
        # gets records that carry the atoms, which JSON formatters read.
        self._direct = None
        handler = self._get_gunicorn_handler(self.access_log)
        if self._line is not None and self.access_fmt == Logger.access_fmt and handler is not None:
            self._direct, self._plain = handler, handler.formatter

    @property
    def wants_access(self) -> bool:
        """Whether ``access()`` does anything, so that a worker need not measure for nothing."""
        return self._logs_access or type(self).access is not Logger.access

    def atoms(self, resp: Any, req: Any, environ: Any, request_time: timedelta) -> dict[str, Any]:
        """What the access-log format may name; a subclass may add its own."""
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
        """Whether all that becomes of a record is *handler*'s line; the application may have seen to more."""
        return (
            log.handlers == [handler]
            and not log.filters
            and not log.propagate
            and handler.formatter is self._plain
            and not handler.filters
            and handler.level <= logging.INFO
        )

    def now(self) -> str:
        """The local time as the atom ``t`` shows it."""
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
        """Open every log file anew under its name, after a rotation has moved the old one away.

        The new file takes the old one's descriptor. So there is no moment at which a thread that is
        just logging, or code that a signal has interrupted while it logs, finds its file closed.
        """
        for handler in _file_handlers():
            try:
                reopen(handler, self.cfg)
            except (OSError, ValueError) as error:
                # ValueError: its owner has closed the stream below it.
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
                # A connection, which is opened again when needed.
                handler.close()
        self.logfile = None
        close_uncaptured()

    def close_on_exec(self) -> None:
        """Keep the log files from programs that the application starts."""
        for handler in _file_handlers():
            os.set_inheritable(fileno(handler), False)


def check_access_format(logger_class: type[Any], cfg: Any) -> None:
    """Raise ConfigError if ``access_log_format`` would fail at each request.

    What an ``access()`` of the user's makes of it is not known, and any text may be right.
    """
    access = getattr(logger_class, "access", None)
    if not getattr(access, "__module__", "").startswith("gunicorn."):
        return
    try:
        accesslog.check_format(cfg.access_log_format, own=logger_class.atoms is not Logger.atoms)
    except ValueError as error:
        raise ConfigError(f"access_log_format {cfg.access_log_format!r}: {error}") from error


# -- what a setup replaces ----------------------------------------------------------------------


@contextlib.contextmanager
def _all_or_nothing() -> Iterator[list[logging.Handler]]:
    """Put every logger back as it was if the block raises; else close the handlers it put in the list."""
    before = [(log, log.level, list(log.handlers), log.propagate, log.disabled) for log in loggers()]
    replaced: list[logging.Handler] = []
    try:
        yield replaced
    except BaseException:
        for log, level, handlers, propagate, disabled in before:
            for handler in [found for found in log.handlers if found not in handlers]:
                handler.close()
            log.handlers[:] = handlers
            log.setLevel(level)
            log.propagate, log.disabled = propagate, disabled
        raise
    in_use = {id(handler) for log in loggers() for handler in log.handlers}
    for handler in replaced:
        if id(handler) not in in_use:
            handler.close()


def _apply_logconfig(cfg: Any) -> None:
    _drop_logconfig()
    if not (cfg.logconfig_dict or cfg.logconfig_json or cfg.logconfig):
        return
    # Not at the top: its imports (sockets, pickles) take most of logging's time at a start.
    import json
    import logging.config

    before = {id(handler) for log in loggers() for handler in log.handlers}
    try:
        with opening_safely(cfg):
            if cfg.logconfig_dict:
                logging.config.dictConfig({**CONFIG_DEFAULTS, **cfg.logconfig_dict})
            elif cfg.logconfig_json:
                with open(cfg.logconfig_json, encoding="utf-8") as file:
                    logging.config.dictConfig({**CONFIG_DEFAULTS, **json.load(file)})
            else:
                _apply_logconfig_file(cfg.logconfig)
    except Exception as error:
        # The standard library's errors name only the place; the reason is their cause.
        cause = f" ({error.__cause__})" if error.__cause__ is not None else ""
        where = cfg.logconfig_json or cfg.logconfig
        name = "logconfig_dict" if cfg.logconfig_dict else f"log configuration {where!r}"
        # A KeyError has only the missing name.
        reason = f"there is no section or key {error}" if isinstance(error, KeyError) else error
        raise ConfigError(f"{name}: {reason}{cause}") from error
    for log in loggers():
        for handler in log.handlers:
            if id(handler) not in before:
                handler._gunicorn_logconfig = True  # type: ignore[attr-defined]
                open_safely_later(handler, cfg)
                if type(handler).handleError is logging.Handler.handleError:
                    handler.handleError = functools.partial(report_write_error, handler)  # type: ignore[method-assign]


def _apply_logconfig_file(path: str) -> None:
    if not os.path.exists(path):
        raise FileNotFoundError("there is no such file")
    import logging.config

    logging.config.fileConfig(
        path,
        defaults={"__file__": path, "here": os.path.dirname(os.path.abspath(path))},
        disable_existing_loggers=False,
    )


def _drop_logconfig() -> None:
    """Take away what an earlier logconfig installed: the next may name other loggers, or be none."""
    for log in loggers():
        for handler in list(log.handlers):
            if getattr(handler, "_gunicorn_logconfig", False):
                log.removeHandler(handler)


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
    """Call ``reopen_files()`` of *log*. A logger of the user's that fails there ends no process."""
    try:
        log.reopen_files()
    except Exception:
        log.exception("The log files cannot be reopened")


def follow(log: Any, old_cfg: Any, cfg: Any) -> None:
    """Apply a changed log configuration; with the same one begin new files, as after a rotation."""
    # The files of logconfig may have changed under their names.
    if _log_settings(cfg) != _log_settings(old_cfg) or cfg.logconfig or cfg.logconfig_json:
        log.setup(cfg)
    else:
        log.reopen_files()


def _log_settings(cfg: Any) -> dict[str, Any]:
    return {name: setting.get() for name, setting in cfg.settings.items() if setting.section == "Logging"}
