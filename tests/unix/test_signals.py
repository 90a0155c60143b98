# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from gunicorn.unix.signals import SignalInbox, blocked_signals, in_turn, signal_name


def run_python(body: str, *, timeout: float = 20) -> str:
    """Run *body* in an interpreter of its own, so that dispositions of this one stay as they are."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(body)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_signal_names() -> None:
    assert signal_name(signal.SIGTERM) == "SIGTERM"
    assert signal_name(250) == "signal 250"


HUP, TERM, INT, USR1, TTIN = signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGTTIN


@pytest.mark.parametrize(
    "queue, handled",
    [
        ([], []),
        ([HUP, HUP, HUP], [HUP]),
        ([HUP, HUP, TERM], [TERM, HUP]),
        ([HUP, TERM, INT], [TERM, INT, HUP]),
        ([HUP, INT, TERM], [INT, TERM, HUP]),
        ([TTIN, TTIN, HUP, TTIN], [TTIN, TTIN, HUP, TTIN]),
        ([HUP, USR1, HUP], [USR1, HUP]),
        ([TERM, TERM], [TERM]),
    ],
)
def test_a_stop_goes_first_and_repetitions_count_once(queue: list[int], handled: list[int]) -> None:
    assert in_turn(queue, {TERM, INT}, {TTIN}) == handled


def test_one_signal_may_interrupt_where_nobody_waits_for_the_queue() -> None:
    out = run_python(
        """
        import os, signal, time
        from gunicorn.unix.signals import Interrupted, SignalInbox
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        inbox = SignalInbox([signal.SIGHUP, signal.SIGTERM])
        inbox.install()
        try:
            with inbox.interrupting({signal.SIGTERM}):
                os.kill(os.getpid(), signal.SIGHUP)
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(10)
        except Interrupted as exc:
            print(exc)
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            with inbox.interrupting({signal.SIGTERM}):
                print("not reached")
        except Interrupted:
            print(*inbox.drain())
        """
    )
    assert out.splitlines() == ["by SIGTERM", "1 15 15"]


def test_signals_come_in_order_of_arrival_and_wake_the_wait() -> None:
    out = run_python(
        """
        import os, select, signal
        from gunicorn.unix.signals import SignalInbox, blocked_signals
        inbox = SignalInbox([signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD])
        inbox.install()
        for signum in (signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD):
            os.kill(os.getpid(), signum)
        poll = select.poll()
        poll.register(inbox.fileno(), select.POLLIN)
        assert poll.poll(5000)
        print(*inbox.drain())
        assert inbox.drain() == []
        inbox.wake()
        assert poll.poll(5000)
        assert inbox.drain() == []
        assert not [event for event in poll.poll(0)]
        inbox.close()
        assert inbox.pipe == ()
        assert signal.set_wakeup_fd(-1) == -1
        """
    )
    assert out.split() == [
        str(int(n)) for n in (signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD)
    ]


def test_pending_signals_keep_their_order() -> None:
    # Both handlers run between the same two bytecodes: USR1 (10) would come before TERM (15).
    out = run_python(
        """
        import os, signal
        from gunicorn.unix.signals import SignalInbox
        inbox = SignalInbox([signal.SIGUSR1, signal.SIGTERM])
        inbox.install()
        inbox.queue += [signal.SIGUSR1, signal.SIGTERM]
        os.write(inbox.pipe[1], bytes([signal.SIGTERM, signal.SIGUSR1, 0]))
        print(*map(int, inbox.drain()))
        """
    )
    assert out.split() == ["15", "10"]


def test_no_signal_is_lost_in_a_storm() -> None:
    """Every signal ends a wait, wherever in the loop it lands."""
    out = run_python(
        """
        import os, select, signal, time
        from gunicorn.unix.signals import SignalInbox
        inbox = SignalInbox([signal.SIGUSR1])
        inbox.install()
        parent = os.getpid()
        r, w = os.pipe()
        if os.fork() == 0:
            os.close(w)
            # One signal for each acknowledgement; the next follows at once.
            for _ in range(3000):
                os.kill(parent, signal.SIGUSR1)
                if not os.read(r, 1):
                    break
            os._exit(0)
        poll = select.poll()
        poll.register(inbox.fileno(), select.POLLIN)
        got = 0
        while got < 3000:
            assert poll.poll(5000), f"a wait slept through signal {got + 1}"
            for _ in inbox.drain():
                got += 1
                os.write(w, b"x")
        os.wait()
        print(got)
        """
    )
    assert out.split() == ["3000"]


def test_a_child_does_not_write_into_the_pipe_of_its_parent() -> None:
    out = run_python(
        """
        import os, select, signal
        from gunicorn.unix.signals import SignalInbox, blocked_signals, reset_to_default
        inbox = SignalInbox([signal.SIGTERM, signal.SIGUSR1])
        inbox.install()
        with blocked_signals():
            pid = os.fork()
            if pid == 0:
                reset_to_default(handlers={signal.SIGUSR1: lambda s, f: None})
        if pid == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(1)
        _, status = os.waitpid(pid, 0)
        assert os.WTERMSIG(status) == signal.SIGTERM
        assert not select.select([inbox.fileno()], [], [], 0)[0]
        print(inbox.drain())
        """
    )
    assert out.strip() == "[]"


def test_a_signal_sent_during_the_fork_waits_for_the_child() -> None:
    out = run_python(
        """
        import os, signal
        from gunicorn.unix.signals import SignalInbox, blocked_signals, reset_to_default
        inbox = SignalInbox([signal.SIGTERM])
        inbox.install()
        r, w = os.pipe()
        with blocked_signals():
            pid = os.fork()
            if pid == 0:
                # The parent has sent it by now; nothing of the parent's handler may run here.
                os.read(r, 1)
                assert signal.SIGTERM in signal.sigpending()
                reset_to_default(handlers={signal.SIGTERM: lambda s, f: os._exit(7)})
        if pid == 0:
            os._exit(8)
        os.kill(pid, signal.SIGTERM)
        os.write(w, b"x")
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """
    )
    assert out.strip() == "7"


def test_blocked_signals_restores_the_mask() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(RuntimeError), blocked_signals():
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        raise RuntimeError
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_what_is_ignored_stays_ignored() -> None:
    out = run_python(
        """
        import signal
        from gunicorn.unix.signals import reset_to_default
        signal.signal(signal.SIGUSR2, lambda s, f: None)
        reset_to_default()
        for name in ("SIGPIPE", "SIGINT", "SIGUSR2"):
            print(signal.getsignal(getattr(signal, name)).name)
        """
    )
    assert out.split() == ["SIG_IGN", "SIG_DFL", "SIG_DFL"]


def test_an_inbox_that_was_not_installed() -> None:
    inbox = SignalInbox([signal.SIGTERM])
    inbox.wake()
    inbox.receive(signal.SIGTERM)
    assert inbox.drain() == [signal.SIGTERM]
    with pytest.raises(ValueError, match="not installed"):
        inbox.fileno()
    inbox.close()


def test_a_full_pipe_blocks_nobody() -> None:
    read, write = os.pipe()
    inbox = SignalInbox([])
    inbox.pipe = (read, write)
    for fd in (read, write):
        os.set_blocking(fd, False)
    started = time.monotonic()
    for _ in range(70000):
        inbox.wake()
    assert inbox.drain() == []
    assert not select.select([read], [], [], 0)[0]
    assert time.monotonic() - started < 10
    inbox.close()


def test_reset_can_be_limited() -> None:
    out = run_python(
        """
        import signal
        from gunicorn.unix.signals import reset_to_default
        signal.signal(signal.SIGALRM, lambda s, f: None)
        signal.signal(signal.SIGUSR2, lambda s, f: None)
        reset_to_default([signal.SIGUSR2])
        print(signal.getsignal(signal.SIGALRM) not in (signal.SIG_DFL, signal.SIG_IGN))
        print(signal.getsignal(signal.SIGUSR2).name)
        """
    )
    assert out.split() == ["True", "SIG_DFL"]
