# SPDX-License-Identifier: MIT
"""Queue signals as records, and block signals around a fork.

Only these functions (and the workers' own table) change a signal disposition, so two places show what a
signal does in which process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None

# The functions of `signal` turn each number that they return into a member of an enum. On the way of
# each fork, with 64 numbers in a mask, that costs several times what the calls do; those of the
# module below return the numbers.
_plain: Any = sys.modules.get("_signal", signal)
_ALL = tuple(sorted(map(int, signal.valid_signals())))
_SIG_BLOCK, _SIG_SETMASK = int(signal.SIG_BLOCK), int(signal.SIG_SETMASK)
# As names of this module: in a child that was just forked each object that is touched is a page that is
# copied, and to look an attribute up touches two.
_sigmask, _signal, _set_wakeup_fd = _plain.pthread_sigmask, _plain.signal, _plain.set_wakeup_fd
_SIG_DFL, _SIG_IGN = _plain.SIG_DFL, _plain.SIG_IGN


def signal_name(signum: int) -> str:
    """``SIGTERM`` for 15; ``signal 62`` for a number that has no name here."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"


class Interrupted(BaseException):
    """Raised in whatever the main thread is doing by a signal of `SignalInbox.interrupts`."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"by {signal_name(signum)}")
        self.signum = signum


def in_turn(queue: Iterable[int], first: Iterable[int], repeatable: Iterable[int]) -> list[int]:
    """Return *queue* in the order of its handling.

    Signals in *first* overtake all others. A signal counts once, where it came last, unless it is in
    *repeatable*.
    """
    left = list(queue)
    once = set(left) - set(repeatable)
    kept = [s for i, s in enumerate(left) if s not in once or s not in left[i + 1 :]]
    return sorted(kept, key=lambda signum: signum not in set(first))


class SignalInbox:
    """Turns the arrival of *signals* into entries of a queue and a readable descriptor.

    The Python handler appends the number and writes a byte into a pipe, nothing
    else. The interpreter itself runs that handler only between two bytecodes, so a
    signal that lands after the last check and before ``poll()`` would go unseen
    until the wait is over; the wake-up descriptor, written by the C handler,
    ends the wait in that case too. Either byte may come first: whichever
    is read, the other one is still in the pipe when the queue gains its entry.

    ``install()`` and ``drain()`` belong to the main thread, ``wake()`` to any.
    """

    def __init__(self, signals: Iterable[int]) -> None:
        self.signals = tuple(signals)
        self.queue: list[int] = []
        self.pipe: tuple[int, int] | tuple[()] = ()
        # The first of these that arrives raises Interrupted, while the queue is not read yet.
        self.interrupts: frozenset[int] = frozenset()
        self._pid = 0

    def install(self) -> None:
        """Make the pipe and take the signals over. A second call takes them over again."""
        if not self.pipe:
            # Both ends are close-on-exec and must never block: not the handler, not drain().
            self.pipe = os.pipe()
            for fd in self.pipe:
                os.set_blocking(fd, False)
        self._pid = os.getpid()
        signal.set_wakeup_fd(self.pipe[1], warn_on_full_buffer=False)
        for signum in self.signals:
            signal.signal(signum, self.receive)
        # Blocked ones are inherited over exec, and would never arrive.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.signals)

    def fileno(self) -> int:
        """The descriptor that is readable while ``drain()`` has something to return."""
        if not self.pipe:
            raise ValueError("the signal inbox is not installed")
        return self.pipe[0]

    def receive(self, signum: int, frame: FrameType | None = None) -> None:
        """The handler: record and wake. Raises Interrupted, once, where that is wanted."""
        self.queue.append(signum)
        self.wake()
        # Record it anyway: the interrupted code may catch everything.
        if signum in self.interrupts and os.getpid() == self._pid:
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
        """Return the signals that have arrived since the last call, in order.

        A signal that came several times before its handler could run counts once,
        as a pending signal does in the kernel.
        """
        seen = self._read_pipe()
        # Entries are taken out one by one: the handler may append at any moment.
        arrived = [self.queue.pop(0) for _ in range(len(self.queue))]
        if len(arrived) > 1:
            # Python's handlers of signals that were pending together run in numerical order; the bytes of
            # the C handler keep the order of arrival.
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
        """Close the pipe; in the process that installed it, give the wake-up descriptor back first."""
        pipe, self.pipe = self.pipe, ()
        if not pipe:
            return
        if self._pid == os.getpid():
            _drop_wakeup_fd(pipe[1])
        for fd in pipe:
            os.close(fd)


def _drop_wakeup_fd(own: int) -> None:
    """Let go of the wake-up descriptor, if it is *own*."""
    current = signal.set_wakeup_fd(-1)
    if current not in (-1, own):
        signal.set_wakeup_fd(current, warn_on_full_buffer=False)


@contextlib.contextmanager
def blocked_signals() -> Iterator[set[int]]:
    """Block every signal of this thread, and unblock them at the end of the block.

    Fork within the block, and set the child's own dispositions there: a signal sent to the child in between
    then waits for them::

        with blocked_signals():
            pid = os.fork()
            if pid == 0:
                reset_to_default()

    The value is the previous mask, for a child that restores it in another way.
    """
    mask = block_all()
    try:
        yield mask
    finally:
        set_mask(mask)


def block_all() -> set[int]:
    """Hold back every signal of this thread; return the mask as it was, for `set_mask`."""
    return _sigmask(_SIG_BLOCK, _ALL)  # type: ignore[no-any-return]


def set_mask(mask: Iterable[int]) -> None:
    """Unblock all signals that are not in *mask*."""
    _sigmask(_SIG_SETMASK, mask)


def reset_to_default(
    signals: Iterable[int] | None = None, handlers: Mapping[int, Handler] | None = None
) -> None:
    """Give a forked child dispositions of its own and let go of the parent's wake-up descriptor.

    *signals* go back to the default; none means all that have a Python handler. What is
    ignored (``SIGPIPE``, and what ``nohup`` set) or handled in C stays. *handlers* are set
    instead of the default where given.
    """
    _set_wakeup_fd(-1)
    if signals is None:
        signals = [signum for signum in _ALL if callable(_plain.getsignal(signum))]
    own = handlers or {}
    for signum in signals:
        if signum not in own:
            _signal(signum, _SIG_DFL)
    for signum, handler in own.items():
        if isinstance(handler, int):
            # A member of the enum is not the number that the module below compares with.
            handler = _SIG_IGN if handler else _SIG_DFL
        _signal(signum, handler)
    if "gevent.signal" in sys.modules and signal.SIGCHLD in signals:
        # If gevent has patched it, the library learns of children by this signal. It must know that its
        # handler is gone, or it would wait for the end of a subprocess for ever.
        signal.signal(signal.SIGCHLD, own.get(signal.SIGCHLD, signal.SIG_DFL))


def disregard(signals: Iterable[int], *, for_good: bool = False) -> None:
    """Ignore *signals* from now on; with *for_good*, even when the interpreter is gone.

    Without it, use a handler: an ignored signal stays ignored in programs that this process starts. But the
    interpreter restores the default action early in its exit.
    """
    for signum in signals:
        _signal(signum, _SIG_IGN if for_good else _do_nothing)


def _do_nothing(signum: int, frame: FrameType | None) -> None:
    pass


def unblock_all() -> None:
    """Clear the signal mask, for a child that starts a program of its own."""
    set_mask(())
