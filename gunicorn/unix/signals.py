# SPDX-License-Identifier: MIT
"""Queue signals as records, and block signals around a fork.

Only these functions and the workers change signal dispositions: two places show what a signal does in which
process.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FrameType
from typing import Any

_DEFAULT = int(signal.SIG_DFL)

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


def signal_name(signum: int) -> str:
    """``SIGTERM`` for 15; ``signal 62`` for a number that has no name here."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"


class Interrupted(BaseException):
    """Raised in the main thread by a signal of `SignalInbox.interrupts`."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"by {signal_name(signum)}")
        self.signum = signum


def in_turn(queue: Iterable[int], first: Iterable[int], repeatable: Iterable[int]) -> list[int]:
    """The order in which to handle *queue*.

    Signals in *first* go first. A signal counts once, at its last place, unless it is in *repeatable*.
    """
    left = list(queue)
    once = set(left) - set(repeatable)
    kept = [s for i, s in enumerate(left) if s not in once or s not in left[i + 1 :]]
    return sorted(kept, key=lambda signum: signum not in set(first))


class SignalInbox:
    """Turns the arrival of *signals* into entries of a queue and a readable descriptor.

    The Python handler only appends the number and writes a byte into a pipe. The interpreter runs it between
    two bytecodes, so a signal right before ``poll()`` would wait for the end of the poll; the C handler
    writes to the wake-up descriptor, which ends the poll. Either byte may come first: when one is read, the
    other is still in the pipe until the queue has its entry.

    ``install()`` and ``drain()`` belong to the main thread, ``wake()`` to any.
    """

    def __init__(
        self, signals: Iterable[int], at_once: Mapping[Any, Callable[[], object]] | None = None
    ) -> None:
        self.signals = tuple(signals)
        # What the handler of a signal calls, because the process may not get back to its queue.
        self._at_once = at_once or {}
        self.queue: list[int] = []
        self.pipe: tuple[int, int] | tuple[()] = ()
        # The first of these raises Interrupted; set while nobody reads the queue.
        self.interrupts: frozenset[int] = frozenset()
        self._pid = 0

    def install(self) -> None:
        """Create the pipe, and set the handlers. A second call sets them again."""
        if not self.pipe:
            # Both ends are close-on-exec. Neither the handler nor drain() may block.
            self.pipe = os.pipe()
            for fd in self.pipe:
                os.set_blocking(fd, False)
        self._pid = os.getpid()
        signal.set_wakeup_fd(self.pipe[1], warn_on_full_buffer=False)
        for signum in self.signals:
            signal.signal(signum, self.receive)
        # A mask is inherited over exec, and blocked signals would never arrive.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.signals)

    def fileno(self) -> int:
        """The descriptor that is readable while signals wait for ``drain()``."""
        if not self.pipe:
            raise ValueError("the signal inbox is not installed")
        return self.pipe[0]

    def receive(self, signum: int, frame: FrameType | None = None) -> None:
        """The handler: record and wake. Within `interrupting` it raises Interrupted, once."""
        self.queue.append(signum)
        self.wake()
        is_own = os.getpid() == self._pid
        if signum in self._at_once and is_own:
            self._at_once[signum]()
        # Record it anyway: the interrupted code may catch everything.
        if signum in self.interrupts and is_own:
            self.interrupts = frozenset()
            raise Interrupted(signum)

    @contextlib.contextmanager
    def interrupting(self, signals: Iterable[int]) -> Iterator[None]:
        """Within the block the first of *signals* raises Interrupted, at once if one is pending."""
        self.interrupts = frozenset(signals)
        try:
            for signum in self.queue:
                if signum in self.interrupts:
                    raise Interrupted(signum)
            yield
        finally:
            self.interrupts = frozenset()

    def wake(self) -> None:
        """End the current or the next wait on ``fileno()``."""
        if self.pipe:
            # A full pipe wakes as well as one byte more would.
            with contextlib.suppress(BlockingIOError):
                os.write(self.pipe[1], b"\0")

    def drain(self) -> list[int]:
        """Return the signals since the last call, in the order of arrival.

        A signal that came several times before its handler ran counts once, as in the kernel.
        """
        seen = self._read_pipe()
        # One by one: the handler may append at any moment.
        arrived = [self.queue.pop(0) for _ in range(len(self.queue))]
        if len(arrived) > 1:
            # Python runs the handlers of pending signals in numerical order; the bytes of the C handler are
            # in the order of arrival.
            arrived.sort(key=lambda signum: seen.find(signum) if signum in seen else len(seen))
        return arrived

    def _read_pipe(self) -> bytes:
        if not self.pipe:
            return b""
        seen = b""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.pipe[0], 4096):
                seen += chunk
        return seen

    def close(self) -> None:
        """Close the pipe; in the process that installed it, reset the wake-up descriptor first."""
        pipe, self.pipe = self.pipe, ()
        if not pipe:
            return
        if self._pid == os.getpid():
            _drop_wakeup_fd(pipe[1])
        for fd in pipe:
            os.close(fd)


def _drop_wakeup_fd(own: int) -> None:
    """Reset the wake-up descriptor if it is *own*."""
    current = signal.set_wakeup_fd(-1)
    if current not in (-1, own):
        signal.set_wakeup_fd(current, warn_on_full_buffer=False)


@contextlib.contextmanager
def blocked_signals() -> Iterator[set[int]]:
    """Block every signal of this thread, and unblock them at the end of the block.

    Fork and set the child's dispositions within the block: a signal to the child waits for them::

        with blocked_signals():
            pid = os.fork()
            if pid == 0:
                reset_to_default()

    The value is the previous mask, for a child that does not leave the block.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield mask
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def reset_to_default(
    signals: Iterable[int] | None = None, handlers: Mapping[int, Handler] | None = None
) -> None:
    """Give a forked child its own dispositions, and reset the wake-up descriptor of the parent.

    *signals* get their default action, or their function in *handlers*; None means all with a Python handler.
    Ignored signals (``SIGPIPE``, those of ``nohup``) and handlers in C stay.
    """
    signal.set_wakeup_fd(-1)
    if signals is None:
        signals = [signum for signum in signal.valid_signals() if callable(signal.getsignal(signum))]
    # By attribute: gevent may have replaced signal(), and must learn that its own SIGCHLD handler is gone. It
    # would wait for the end of subprocesses for ever.
    set_handler = _without_enums(signal.signal)
    handlers = handlers or {}
    for signum in signals:
        if signum not in handlers:
            set_handler(signum, _DEFAULT)
    for signum, handler in handlers.items():
        set_handler(signum, int(handler) if isinstance(handler, int) else handler)


def set_handler(signum: int, handler: Handler, *, restart: bool) -> None:
    """Handle *signum*; with *restart*, the system call that it interrupts goes on and has no EINTR."""
    _without_enums(signal.signal)(signum, handler)
    signal.siginterrupt(signum, not restart)


def handlers_of(signals: Iterable[int]) -> dict[int, Handler]:
    """Return the current handler of each signal."""
    get_handler = _without_enums(signal.getsignal)
    return {signum: get_handler(signum) for signum in signals}


def disregard(signals: Iterable[int], *, for_good: bool = False) -> None:
    """Ignore *signals* from now on; with *for_good*, even when the interpreter is gone.

    Otherwise they get an empty handler, because programs that this process starts inherit ignored signals.
    But the interpreter removes handlers early in its exit.
    """
    for signum in signals:
        signal.signal(signum, signal.SIG_IGN if for_good else _do_nothing)


def _do_nothing(signum: int, frame: FrameType | None) -> None:
    pass


def unblock_all() -> None:
    """Unblock all signals."""
    _without_enums(signal.pthread_sigmask)(signal.SIG_SETMASK, ())


def _without_enums(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the C function below *function* of ``signal``, unless gevent has replaced that.

    It returns plain numbers. Members of an enum would cost a forked child 100 KiB of private memory: Python
    writes to each object that it uses.
    """
    return getattr(_signal, function.__name__) if function.__module__ == "signal" else function
