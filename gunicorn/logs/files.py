# SPDX-License-Identifier: MIT
"""Open files and streams of logs, write lines, and reopen files after a rotation."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import select
import stat
import sys
import time
from collections.abc import Iterator
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, TextIO

from gunicorn.errors import ConfigError
from gunicorn.unix import trust
from gunicorn.unix.trust import Owner
from gunicorn.unix.unpatched import original

# Standard output and error as before the capture, for a reload that ends it.
_uncaptured: dict[int, int] = {}


if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:
    _StreamHandler = logging.StreamHandler  # no subscript before Python 3.11


# Seconds to wait for somebody to read: in a process that supervises others, and in all others.
_SUPERVISORS_PATIENCE = 0.05
_PATIENCE = 1.0
# Seconds for which a look at the reader counts where a write waits in no case: the look is for what the
# application has printed, which goes out before the line.
_LOOK = 0.01
# Raised where the system cannot write without waiting to a file of this kind.
_NOT_SUPPORTED = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ESPIPE}


def never_block() -> None:
    """Have this process, which supervises others, wait for a reader of its log no longer than a moment."""
    LogStream.supervisor = os.getpid()


class Throttle:
    """Limits the reports of a repeated failure to one a minute."""

    INTERVAL = 60.0

    def __init__(self) -> None:
        self._next_report = float("-inf")
        # Failures that have not been reported.
        self.count = 0

    def failed(self) -> int:
        """Count a failure; return how many to report now: 0 within a minute of the last report."""
        self.count += 1
        lost = self.recovered()
        if lost:
            self._next_report = time.monotonic() + self.INTERVAL
        return lost

    def recovered(self) -> int:
        """Return, after a success, how many failures to report now: 0 within a minute of the last report."""
        if not self.count or time.monotonic() < self._next_report:
            return 0
        count, self.count = self.count, 0
        return count


def report_write_error(handler: Any, record: logging.LogRecord) -> None:
    """Report once a minute, on standard error, that a log cannot be written; replaces `Handler.handleError`.

    A traceback for each line would fill another disk. A wrong log call is still shown with its traceback.
    """
    error = sys.exc_info()[1]
    if not isinstance(error, OSError):
        logging.Handler.handleError(handler, record)
        return
    handler.throttle = getattr(handler, "throttle", None) or Throttle()
    _report_lost(handler, f"cannot be written: {error}", handler.throttle.failed())


def _report_lost(handler: logging.Handler, what: str, lost: int) -> None:
    if lost and logging.raiseExceptions and sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"{_described(handler)} {what} (lines lost: {lost})\n")
            sys.stderr.flush()


def _described(handler: logging.Handler) -> str:
    path = getattr(handler, "baseFilename", None)
    return f"The log file {path}" if path is not None else f"The log {handler}"


class LogFile(logging.FileHandler):
    """A file that gets each line with one ``write(2)``.

    So lines of several processes that append to one file never mix, no line waits in a buffer when the
    process is killed, and a signal handler may log while a line is being written.
    """

    _gunicorn = False
    _torn = False
    handleError = report_write_error
    throttle: Throttle | None = None

    def __init__(self, path: str, owner: Owner | None = None) -> None:
        self._owner = owner
        super().__init__(path, mode="a", encoding="utf-8", errors="backslashreplace")

    def _open(self) -> TextIOWrapper:
        return _open_stream(self, self._owner)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.write_line(f"{self.format(record)}\n".encode("utf-8", "backslashreplace"))
            if self.throttle is not None:
                _report_lost(self, "works again", self.throttle.recovered())
        except RecursionError:
            raise
        except Exception:
            self.handleError(record)

    def close_in_child(self) -> None:
        """Close the file in this process alone, and write to standard error from now on."""
        if self.stream is not None:
            # Keep it: once freed, it would close the file that has its number then.
            self._left = self.stream
            os.close(self.stream.fileno())
            stream = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            self.stream = stream

    def write_line(self, line: bytes) -> None:
        if self.stream is None:
            # logging.config closes every handler there is.
            self.stream = self._open()
        # Below the buffers.
        file = self.stream.buffer.raw  # type: ignore[attr-defined]
        if self._torn:
            # A full disk had room for a part of the last line.
            line = b"\n" + line
        while (written := file.write(line)) != len(line):
            if written is None:
                raise BlockingIOError("nobody reads from the log's pipe")
            self._torn = True
            line = line[written:]
        if self._torn:
            self._torn = False


class LogStream(_StreamHandler):
    """Standard output or standard error.

    When nobody reads, it waits once, a second at most, and then leaves lines out until somebody reads again;
    the next line that goes out says how many. Else a log reader that hangs would take the web tier with it.
    """

    # The process that waits only for a moment.
    supervisor: int | None = None
    _gunicorn = False
    _left_out = 0
    # A part of the last line went out.
    _torn = False
    _polled: tuple[int, Any] = (-1, None)
    # Whether the system can write without waiting, and until when the last look counts.
    _nowait = hasattr(os, "RWF_NOWAIT")
    _looked_until = 0.0
    handleError = report_write_error

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._put(f"{self.format(record)}\n")
        except RecursionError:
            raise
        except Exception:
            self.handleError(record)

    def write_line(self, line: bytes) -> None:
        with self.lock:  # type: ignore[union-attr]
            self._put(line.decode())

    def _put(self, text: str) -> None:
        # Else a client could keep its line out of an ASCII log.
        data = text.encode(getattr(self.stream, "encoding", None) or "utf-8", "backslashreplace")
        try:
            fd = self.stream.fileno()
        except (OSError, ValueError, AttributeError):
            # It is no file.
            self.stream.write(data.decode())
            self.stream.flush()
            return
        if self._polled[0] != fd:
            self._polled = fd, _poll_for(fd)
            self._nowait = LogStream._nowait
        if self._polled[1] is None:
            self.stream.flush()
            while data:
                data = data[os.write(fd, data) :]
            return
        now = time.monotonic()
        if self._left_out or not self._nowait or now >= self._looked_until:
            if not self._has_room():
                self._left_out += 1
                return
            self._looked_until = now + _LOOK
        # What the application has printed comes before this line.
        self.stream.flush()
        if self._left_out:
            note = f"[lines left out, because nobody read them: {self._left_out}]\n"
            data = b"\n" * self._torn + note.encode() + data
        # A pipe takes a line of PIPE_BUF bytes whole or not at all.
        for start in range(0, len(data), select.PIPE_BUF):
            if not self._write(fd, data[start : start + select.PIPE_BUF]):
                self._torn = start > 0
                self._left_out += 1
                return
        self._left_out = 0

    def _has_room(self) -> bool:
        # After a line was left out there is no more waiting.
        patience = 0.0
        if not self._left_out:
            patience = _SUPERVISORS_PATIENCE if self.supervisor == os.getpid() else _PATIENCE
        return bool(self._polled[1].poll(patience * 1000))

    def _write(self, fd: int, data: bytes) -> bool:
        """Write *data*; False if there is suddenly no room, because another process was faster."""
        while data:
            try:
                written = self._write_now(fd, data)
            except BlockingIOError:
                if not self._has_room():
                    return False
                continue
            data = data[written:]
        return True

    def _write_now(self, fd: int, data: bytes) -> int:
        """Write; without waiting where the system can. O_NONBLOCK would count for all who share the file."""
        if self._nowait:
            try:
                return os.pwritev(fd, [data], -1, os.RWF_NOWAIT)
            except OSError as error:
                if error.errno not in _NOT_SUPPORTED:
                    raise
                self._nowait = False
        return os.write(fd, data)


def _poll_for(fd: int) -> Any:
    """Return a poll object that tells whether *fd* takes bytes; None for a file or /dev/null: always."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) or (stat.S_ISCHR(mode) and not os.isatty(fd)):
        return None
    # gevent's would switch to another greenlet.
    poll = original("select", "poll")()
    poll.register(fd, select.POLLOUT)
    return poll


def fileno(handler: logging.FileHandler) -> int:
    stream = handler.stream
    if stream is None:
        raise ValueError("the log file is closed")
    return stream.fileno()


def open_log(path: str, cfg: Any) -> LogFile:
    try:
        return LogFile(path, _owner(cfg))
    except OSError as error:
        raise ConfigError(f"log file {path!r} cannot be opened: {error.strerror or error}") from error


def _open_stream(handler: logging.FileHandler, owner: Owner | None) -> TextIOWrapper:
    fd = trust.open_file(handler.baseFilename, _flags(handler.mode), owner=owner)
    try:
        stream = open(fd, handler.mode, encoding=handler.encoding, errors=handler.errors)  # noqa: SIM115
    except BaseException:
        os.close(fd)
        raise
    assert isinstance(stream, TextIOWrapper)
    return stream


_standard_open = logging.FileHandler._open


def _open_as_ours(cfg: Any, handler: logging.FileHandler) -> TextIOWrapper:
    if handler.mode not in ("a", "w"):
        return _standard_open(handler)
    return _open_stream(handler, _owner(cfg))


@contextlib.contextmanager
def opening_safely(cfg: Any) -> Iterator[None]:
    """As root, open the files of the standard library's handlers in this block as safely as our own."""
    if os.geteuid() != 0:
        yield
        return
    before = logging.FileHandler._open
    setattr(logging.FileHandler, "_open", lambda handler: _open_as_ours(cfg, handler))  # noqa: B010
    try:
        yield
    finally:
        setattr(logging.FileHandler, "_open", before)  # noqa: B010


def open_safely_later(handler: logging.Handler, cfg: Any) -> None:
    """Do the same for files that *handler* opens later: with its first line, or after its own rotation."""
    if (
        os.geteuid() == 0
        and isinstance(handler, logging.FileHandler)
        and type(handler)._open is _standard_open
    ):
        handler._open = functools.partial(_open_as_ours, cfg, handler)  # type: ignore[method-assign]


def _owner(cfg: Any) -> Owner | None:
    """Return the owner of log files that root opens: the user who must reopen them after a rotation."""
    wanted = (cfg.uid, cfg.gid)
    return wanted if os.geteuid() == 0 and wanted != (0, os.getegid()) else None


def _flags(mode: str) -> int:
    return os.O_WRONLY | os.O_CREAT | (os.O_APPEND if "a" in mode else os.O_TRUNC)


def reopen(handler: logging.FileHandler, cfg: Any) -> None:
    target = fileno(handler)
    if "a" in handler.mode and _is_at(target, handler.baseFilename):
        return
    # Do not wait for the reader of a named pipe: that would block the whole process.
    fd = trust.open_file(handler.baseFilename, _flags(handler.mode) | os.O_NONBLOCK, owner=_owner(cfg))
    try:
        os.set_blocking(fd, True)
        os.dup2(fd, target, inheritable=os.get_inheritable(target))
    finally:
        os.close(fd)


def _is_at(fd: int, path: str) -> bool:
    """Whether *path* is still the open file: then there is nothing to reopen, and perhaps no right to."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except OSError:
        return False


def redirect_stdio(fd: int) -> None:
    """Send standard output and error into the file *fd*."""
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
        if number not in _uncaptured:
            with contextlib.suppress(OSError):
                _uncaptured[number] = os.dup(number)
        os.dup2(fd, number)
        # Else a file is buffered in blocks, and what a worker prints appears hours later, or never.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def close_uncaptured() -> None:
    """Close the copies that `restore_stdio` needs, in a child that never calls it."""
    for number in list(_uncaptured):
        os.close(_uncaptured.pop(number))


def restore_stdio() -> None:
    """End the capture of standard output and error, if there is one."""
    for number in list(_uncaptured):
        saved = _uncaptured.pop(number)
        os.dup2(saved, number)
        os.close(saved)
