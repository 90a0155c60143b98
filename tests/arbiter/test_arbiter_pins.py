# SPDX-License-Identifier: MIT
"""What embedders rely on by replacing parts of an arbiter that never runs."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from unittest import mock

import pytest

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import ConfigError, HaltServer


class App(BaseApplication):
    def init(self, parser, opts, args):  # type: ignore[no-untyped-def]
        return None

    def load(self):  # type: ignore[no-untyped-def]
        return None

    def load_config(self) -> None:
        self.cfg.set("errorlog", os.devnull)


@pytest.fixture
def arbiter() -> Iterator[Arbiter]:
    # The children's branches run in this process here.
    before = {signum: signal.getsignal(signum) for signum in (*Arbiter.SIGNALS, signal.SIGABRT)}
    yield Arbiter(App())
    for signum, handler in before.items():
        signal.signal(signum, handler)


def test_making_one_only_sets_up(arbiter: Arbiter) -> None:
    fds = os.listdir("/dev/fd")
    another = Arbiter(App())
    assert len(os.listdir("/dev/fd")) == len(fds)
    assert another.WORKERS == {} and another.LISTENERS == [] and another.PIPE == []
    assert another.WORKERS is not arbiter.WORKERS
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert (another.worker_age, another.master_pid, another.reexec_pid) == (0, 0, 0)
    assert another.num_workers == another.cfg.workers
    assert another.timeout == another.cfg.timeout
    assert another.proc_name == another.cfg.proc_name


def test_the_environment_is_there_for_a_preload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_PATH", raising=False)

    class Preloaded(App):
        def load_config(self) -> None:
            super().load_config()
            self.cfg.set("raw_env", ["SOME_PATH=value"])
            self.cfg.set("preload_app", True)

        def wsgi(self):  # type: ignore[no-untyped-def]
            assert os.environ["SOME_PATH"] == "value"
            raise LookupError("was here")

    try:
        with pytest.raises(LookupError, match="was here"):
            Arbiter(Preloaded())
    finally:
        os.environ.pop("SOME_PATH", None)


@pytest.mark.parametrize(
    "attributes, unlink",
    [
        ({}, True),
        ({"reexec_pid": 7}, False),
        ({"master_pid": 7}, False),
        ({"systemd": True}, False),
    ],
)
def test_stop_closes_the_listeners(arbiter: Arbiter, attributes: dict[str, object], unlink: bool) -> None:
    listeners = [mock.Mock(), mock.Mock()]
    arbiter.LISTENERS = listeners
    for name, value in attributes.items():
        setattr(arbiter, name, value)
    with mock.patch("gunicorn.sock.close_sockets") as close_sockets:
        arbiter.stop()
    close_sockets.assert_called_once_with(listeners, unlink)


def test_stop_with_reuse_port_leaves_the_files(arbiter: Arbiter) -> None:
    arbiter.LISTENERS = listeners = [mock.Mock()]
    arbiter.cfg.settings["reuse_port"] = mock.Mock()
    with mock.patch("gunicorn.sock.close_sockets") as close_sockets:
        arbiter.stop(False)
    close_sockets.assert_called_once_with(listeners, False)


@pytest.mark.parametrize("systemd", [False, True])
def test_reexec_in_the_child(arbiter: Arbiter, systemd: bool) -> None:
    arbiter.LISTENERS = [mock.Mock(), mock.Mock()]
    if not systemd:
        for listener, fd in zip(arbiter.LISTENERS, (4, 5), strict=True):
            listener.fileno.return_value = fd
    arbiter.systemd = systemd
    here = os.getcwd()
    with (
        mock.patch("os.fork", return_value=0),
        mock.patch("os.getpid", side_effect=[2, 3]),
        mock.patch("os.execvpe") as execvpe,
    ):
        arbiter.reexec()
    assert os.getcwd() == here
    program, arguments, environ = execvpe.call_args[0]
    assert program == arguments[0]
    assert environ["GUNICORN_PID"] == "2"
    if systemd:
        assert (environ["LISTEN_PID"], environ["LISTEN_FDS"]) == ("3", "2")
        assert "GUNICORN_FD" not in environ
    else:
        assert environ["GUNICORN_FD"] == "4,5"
        assert "LISTEN_PID" not in environ


def test_reexec_in_the_parent_and_only_once(arbiter: Arbiter) -> None:
    with mock.patch("os.fork", return_value=77) as fork, mock.patch("os.execvpe") as execvpe:
        arbiter.reexec()
        assert arbiter.reexec_pid == 77
        arbiter.reexec()
    assert fork.call_count == 1 and not execvpe.called


def test_no_reexec_where_the_system_refuses_a_process(arbiter: Arbiter) -> None:
    with mock.patch("os.fork", side_effect=BlockingIOError(errno.EAGAIN, "no more")):
        arbiter.reexec()
    assert arbiter.reexec_pid == 0


def test_no_reexec_by_a_successor(arbiter: Arbiter) -> None:
    arbiter.master_pid = 77
    with mock.patch("os.fork") as fork:
        arbiter.reexec()
    assert not fork.called


def test_the_childs_branch_of_a_spawn(arbiter: Arbiter) -> None:
    calls = mock.Mock()
    arbiter.cfg.settings["worker_exit"] = mock.Mock()
    arbiter.cfg.settings["worker_exit"].get.return_value = calls.worker_exit
    worker = calls.worker
    arbiter.worker_class = mock.Mock(return_value=worker)
    with mock.patch("os.fork", return_value=0), pytest.raises(SystemExit) as exit_:
        arbiter.spawn_worker()
    assert not exit_.value.code
    worker.init_process.assert_called_once_with()
    calls.worker_exit.assert_called_once_with(arbiter, worker)
    names = [call[0] for call in calls.mock_calls]
    assert names.index("worker.init_process") < names.index("worker_exit")
    args = arbiter.worker_class.call_args[0]
    assert args == (
        1,
        arbiter.pid,
        arbiter.LISTENERS,
        arbiter.app,
        arbiter.timeout / 2,
        arbiter.cfg,
        arbiter.log,
    )


REFUSED = [OSError(errno.EMFILE, "x"), MemoryError(), ConfigError("certfile")]


@pytest.mark.parametrize(
    "errors, booted, served, code",
    [
        ([KeyboardInterrupt, StopIteration, HaltServer("x"), RuntimeError], False, False, 3),
        ([KeyboardInterrupt, StopIteration, HaltServer("x"), RuntimeError], False, True, 3),
        ([KeyboardInterrupt, StopIteration, HaltServer("x"), RuntimeError], True, True, 255),
        # What the system refuses is tried again, once it is known that the configuration is good.
        (REFUSED, False, False, 3),
        (REFUSED, False, True, 255),
    ],
)
def test_nothing_leads_from_a_worker_into_the_loop(
    arbiter: Arbiter, errors: list[BaseException], booted: bool, served: bool, code: int
) -> None:
    arbiter._served = served
    for error in errors:
        worker = mock.Mock(booted=booted)
        worker.init_process.side_effect = error
        arbiter.worker_class = mock.Mock(return_value=worker)
        with mock.patch("os.fork", return_value=0), pytest.raises(SystemExit) as exit_:
            arbiter.spawn_worker()
        assert exit_.value.code == code


def test_a_fork_that_the_system_refuses(arbiter: Arbiter) -> None:
    worker = mock.Mock()
    arbiter.worker_class = mock.Mock(return_value=worker)
    with mock.patch("os.fork", side_effect=BlockingIOError(errno.EAGAIN, "no more")):
        assert arbiter.spawn_worker() == 0
        assert arbiter.WORKERS == {}
        worker.tmp.close.assert_called_once_with()
        # The next attempt waits a moment.
        arbiter.spawn_workers()
    assert arbiter.worker_class.call_count == 1


@pytest.mark.parametrize("end", [(0, 0), ChildProcessError(errno.ECHILD, "no children")])
def test_reaping(arbiter: Arbiter, end: object) -> None:
    hook = mock.Mock()
    arbiter.cfg.settings["child_exit"] = mock.Mock()
    arbiter.cfg.settings["child_exit"].get.return_value = hook
    worker, other = mock.Mock(), mock.Mock()
    arbiter.WORKERS = {42: worker, 43: other}
    arbiter.reexec_pid = 44
    with mock.patch("os.waitpid", side_effect=[(42, 0), (44, 0), (99, 3 << 8), end]) as waitpid:
        arbiter.reap_workers()
    assert waitpid.call_args_list == [mock.call(-1, os.WNOHANG)] * 4
    worker.tmp.close.assert_called_once_with()
    hook.assert_called_once_with(arbiter, worker)
    assert list(arbiter.WORKERS) == [43] and arbiter.reexec_pid == 0
    assert not other.tmp.close.called


@pytest.mark.parametrize("code", [Arbiter.WORKER_BOOT_ERROR, Arbiter.APP_LOAD_ERROR])
def test_a_boot_error_halts_after_all_are_reaped(arbiter: Arbiter, code: int) -> None:
    workers = {42: mock.Mock(), 43: mock.Mock()}
    arbiter.WORKERS = dict(workers)
    with (
        mock.patch("os.waitpid", side_effect=[(42, code << 8), (43, 0), (0, 0)]),
        pytest.raises(HaltServer) as halt,
    ):
        arbiter.reap_workers()
    assert halt.value.exit_status == code
    assert all(worker.tmp.close.called for worker in workers.values())


def test_a_boot_error_halts_nothing_while_others_serve(arbiter: Arbiter) -> None:
    arbiter.WORKERS = {42: mock.Mock(age=1), 43: mock.Mock(age=2)}
    arbiter.WORKERS[42].tmp.last_update.return_value = 1.0
    assert not arbiter._record(42).booted
    arbiter.WORKERS[42].tmp.last_update.return_value = 2.0
    # The next start waits a moment, which must not pass on a busy machine.
    arbiter.num_workers = 2
    with (
        mock.patch("time.monotonic", return_value=time.monotonic()),
        mock.patch("os.waitpid", side_effect=[(43, 3 << 8), (0, 0)]),
        mock.patch("os.fork") as fork,
    ):
        arbiter.reap_workers()
        assert list(arbiter.WORKERS) == [42]
        arbiter.spawn_workers()
    assert not fork.called


@pytest.mark.parametrize("served", [False, True])
def test_a_heartbeat_file_that_cannot_be_made(arbiter: Arbiter, served: bool) -> None:
    """Before the first worker has booted there is nothing to save; afterwards there is."""
    arbiter.worker_class = mock.Mock(side_effect=OSError(errno.EMFILE, "too many"))
    arbiter._served = served
    if not served:
        with pytest.raises(OSError, match="too many"):
            arbiter.spawn_worker()
        return
    for _ in range(3):
        arbiter.spawn_workers()
    assert arbiter.worker_class.call_count == 1 and arbiter.WORKERS == {}


def test_murder_is_an_abort_and_then_a_kill(arbiter: Arbiter) -> None:
    worker = mock.Mock(aborted=False)
    worker.tmp.last_update.return_value = -1e9
    arbiter.WORKERS = {42: worker}
    arbiter.timeout = 1
    with mock.patch("os.kill") as kill, mock.patch("time.monotonic", return_value=100.0) as clock:
        arbiter.murder_workers()
        assert kill.call_args_list == [mock.call(42, signal.SIGABRT)]
        assert worker.aborted
        arbiter.murder_workers()
        assert kill.call_count == 1
        clock.return_value = 102.0
        arbiter.murder_workers()
        arbiter.murder_workers()
    assert kill.call_args_list[1:] == [mock.call(42, signal.SIGKILL)]


def test_a_worker_that_is_gone_is_forgotten(arbiter: Arbiter) -> None:
    worker = mock.Mock()
    arbiter.WORKERS = {42: worker}
    with mock.patch("os.kill", side_effect=ProcessLookupError):
        arbiter.kill_worker(42, signal.SIGTERM)
    assert arbiter.WORKERS == {}
    worker.tmp.close.assert_called_once_with()


def test_signals_are_only_recorded(arbiter: Arbiter) -> None:
    arbiter.signal(signal.SIGHUP, None)
    arbiter.signal(signal.SIGTERM, None)
    arbiter.wakeup()
    assert arbiter.SIG_QUEUE == [signal.SIGHUP, signal.SIGTERM]
    assert arbiter.SIG_NAMES[signal.SIGHUP] == "hup"


def test_a_retired_worker_that_was_aborted_keeps_its_earlier_deadline(
    arbiter: Arbiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arbiter, "kill_worker", mock.Mock())
    arbiter.WORKERS[1] = mock.Mock(age=1)
    record = arbiter._record(1)
    record.kill_at = 101.0
    arbiter._retire(1, 100.0)
    assert record.kill_at == 101.0
