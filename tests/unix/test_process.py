# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from unittest import mock

import pytest
from proctools import is_alive, wait_until

from gunicorn.unix import process


@pytest.mark.parametrize(
    "status, text, code, signum",
    [
        (0, "exited with status 0", 0, None),
        (3 << 8, "exited with status 3", 3, None),
        (signal.SIGKILL, "killed by SIGKILL", None, signal.SIGKILL),
        # With a core dump.
        (signal.SIGSEGV | 0x80, "killed by SIGSEGV", None, signal.SIGSEGV),
    ],
)
def test_statuses(status: int, text: str, code: int | None, signum: int | None) -> None:
    assert process.describe_status(status) == text
    assert process.describe_end(status) == ("was " if text.startswith("killed") else "") + text
    assert process.exit_code(status) == code
    assert process.term_signal(status) == signum


def test_usernames() -> None:
    assert process.get_username(0) == "root"
    with pytest.raises(KeyError):
        process.get_username(2**31 - 5)


def test_the_title_without_the_library() -> None:
    with mock.patch.dict(sys.modules, {"setproctitle": None}):
        process.set_process_title("anything")


def run(body: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-c", textwrap.dedent(body)],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
        **options,
    )


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become somebody else")
@pytest.mark.parametrize(
    "uid, gid, initgroups, expected",
    [
        (65534, 65534, False, "65534 65534 [7]"),
        (65534, 65534, True, "65534 65534 [65534]"),
        # No such user: the groups cannot be looked up, and stay.
        (2345, 65534, True, "2345 65534 [7]"),
        (2345, 0, False, "2345 0 [7]"),
        (0, 0, False, "0 0 [7]"),
        (0, 65534, True, "0 65534 [7]"),
    ],
)
def test_owner(uid: int, gid: int, initgroups: bool, expected: str) -> None:
    done = run(
        f"""
        import os
        from gunicorn.unix.process import set_owner_process
        os.setgroups([7])
        set_owner_process({uid}, {gid}, {initgroups})
        assert os.getresuid() == 3 * (os.getuid(),) and os.getresgid() == 3 * (os.getgid(),)
        print(os.getuid(), os.getgid(), os.getgroups())
        """
    )
    assert done.stdout.strip() == expected


def daemon(tmp_path: Path, inherit: bool, **environ: str) -> list[str]:
    """What a daemon says of itself: session, parent, terminal, umask, and where its stdio goes."""
    report = tmp_path / "report"
    done = run(
        f"""
        import os
        from gunicorn.unix.process import daemonize
        before = os.getsid(0)
        daemonize({inherit})
        line = [os.getsid(0) != before, os.getsid(0) != os.getpid(), oct(os.umask(0))]
        line += [os.readlink(f"/proc/self/fd/{{fd}}") == "/dev/null" for fd in (0, 1, 2)]
        print("a line on stdout")
        with open({str(report)!r} + ".new", "w") as stream:
            print(*line, os.getpid(), sep="\\n", file=stream)
        os.rename({str(report)!r} + ".new", {str(report)!r})
        """,
        env={**os.environ, **environ},
    )
    wait_until(report.exists, 10)
    assert (done.stdout == "a line on stdout\n") == (inherit or bool(environ))
    *words, pid = report.read_text().split()
    wait_until(lambda: not is_alive(int(pid)), 10)
    return words


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
class TestDaemonize:
    def test_detached(self, tmp_path: Path) -> None:
        assert daemon(tmp_path, False) == ["True", "True", "0o22", "True", "True", "True"]

    def test_with_its_stdio(self, tmp_path: Path) -> None:
        assert daemon(tmp_path, True) == ["True", "True", "0o22", "True", "False", "False"]

    @pytest.mark.parametrize("name", ["GUNICORN_PID", "GUNICORN_FD"])
    def test_not_a_second_time(self, tmp_path: Path, name: str) -> None:
        assert daemon(tmp_path, False, **{name: "5"})[0] == "False"
