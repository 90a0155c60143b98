# SPDX-License-Identifier: MIT
"""A companion from the fork to its end, through spawn() and real forks."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from companiontools import HERE, Script
from harness import is_alive, wait_until

from gunicorn.companion.config import CompanionConfig
from gunicorn.companion.runfile import RunFile
from gunicorn.companion.spawn import Launch, spawn
from gunicorn.unix import session

pytestmark = pytest.mark.skipif(not session.HAVE_PROC, reason="looks at processes by /proc")

RUNNER = HERE / "spawnrunner.py"
# 32 and 33 are glibc's own; its posix_spawn() leaves them ignored.
THREAD_SIGNALS = 0b11 << 31


@dataclass
class End:
    """How a companion ended, and what it wrote."""

    code: int
    out: str
    err: str
    error: str | None
    record: dict[str, Any]
    pid: int
    parent: int


def plan_of(directory: Path, target: str, **options: Any) -> str:
    keys = ("before", "while_running", "run_dir", "nofile", "environ")
    own = {name: options.pop(name) for name in keys if name in options}
    plan = {
        "target": target,
        "config": options,
        "result": str(directory / "result"),
        "before": "",
        "while_running": "",
        "run_dir": None,
        "nofile": None,
        "environ": {},
        **own,
    }
    plan["before"] = textwrap.dedent(plan["before"])
    plan["while_running"] = textwrap.dedent(plan["while_running"])
    return json.dumps(plan)


@pytest.fixture(scope="module")
def runner() -> Iterator[Script]:
    script = Script(RUNNER)
    yield script
    script.go_on()
    script.wait_closed()
    script.end()


@pytest.fixture
def run(tmp_path, runner):
    """Runs one companion to its end."""

    def start(target: str, **options: Any) -> End:
        runner.stdin.write(plan_of(tmp_path, target, **options).encode() + b"\n")
        runner.stdin.flush()
        assert runner.line(60.0) == "done"
        out, err = ((tmp_path / f"result-{name}").read_text() for name in ("out", "err"))
        assert (tmp_path / "result").exists(), err
        result = json.loads((tmp_path / "result").read_text())
        # Only the parent went on after the fork.
        went_on = list(tmp_path.glob("result.*"))
        assert [path.name for path in went_on] == [f"result.{result['parent']}"]
        for path in tmp_path.glob("result*"):
            path.unlink()
        return End(out=out, err=err, **result)

    return start


# -- how it ends -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "code"),
    [("nothing", 0), ("returns_a_value", 0), ("dies", -signal.SIGKILL), ("exits_at_once", 9)],
)
def test_an_end(run, target, code):
    end = run(target)
    assert (end.code, end.out, end.err, end.error) == (code, "", "", None)


@pytest.mark.parametrize(
    ("argument", "code", "err"),
    [
        ("", 0, ""),
        ("None", 0, ""),
        ("0", 0, ""),
        ("3", 3, ""),
        ("256 + 7", 7, ""),
        ("-1", 255, ""),
        ("True", 1, ""),
        ("'queue gone'", 1, "queue gone\n"),
        ("(1, 2)", 1, "(1, 2)\n"),
    ],
)
def test_sys_exit(run, argument, code, err):
    end = run("", before=f"import sys; target = lambda: sys.exit({argument})")
    assert (end.code, end.err, end.error) == (code, err, None)


def test_an_exception_is_a_traceback_that_begins_with_the_target(run):
    end = run("raises")
    lines = end.err.splitlines()
    assert end.code == 1
    assert lines[0] == "Traceback (most recent call last):"
    assert "spawntargets.py" in lines[1] and "in raises" in lines[1]
    assert lines[-1] == "ValueError: no such queue"
    assert "run_target" not in end.err
    # It is the companion that failed, not its start.
    assert end.error is None


def test_an_interrupt_is_a_death_by_sigint(run):
    end = run("interrupted", before="import atexit")
    assert end.code == -signal.SIGINT
    assert end.err.splitlines()[-1] == "KeyboardInterrupt"


def test_a_real_sigint_raises(tmp_path, run):
    end = run(
        "waits",
        stdout=str(tmp_path / "out"),
        while_running="""
            import os, signal
            # Sent while signals are blocked or later: it is never lost.
            os.kill(pid, signal.SIGINT)
        """,
    )
    # Just after the fork it comes before the target: a start that was interrupted.
    assert end.code == -signal.SIGINT or end.error == "KeyboardInterrupt"


def test_a_stop_signal_in_the_first_moment_is_not_lost(run):
    end = run("waits", while_running="import os, signal; os.kill(pid, signal.SIGTERM)")
    assert end.code == -signal.SIGTERM


def test_an_excepthook_of_its_own_is_called(run):
    end = run("own_excepthook")
    assert (end.code, end.out) == (1, "hook ValueError own_excepthook\n")


def test_an_excepthook_that_fails_hides_nothing(run):
    end = run("excepthook_that_fails")
    assert end.code == 1
    assert "the reporter is down" in end.err
    assert end.err.splitlines()[-1] == "ValueError: boom"
    assert end.out == "own atexit\n"


def test_threads_are_joined(run):
    end = run("threads")
    assert (end.code, end.out) == (0, "from the thread\n")


def test_daemon_threads_are_not(run):
    assert run("daemon_thread").code == 0


def test_an_executor_finishes_its_jobs(run):
    end = run("pool", before="from concurrent.futures import ThreadPoolExecutor")
    assert end.code == 0
    assert sorted(end.out.splitlines()) == ["job 0", "job 1", "job 2"]


def test_an_executor_of_the_master_holds_up_nothing(run):
    end = run(
        "pool",
        before="""
            import threading, warnings
            warnings.simplefilter("ignore", DeprecationWarning)
            from concurrent.futures import ThreadPoolExecutor
            done = threading.Event()
            executor = ThreadPoolExecutor(2)
            executor.submit(done.wait)
        """,
        while_running="done.set()",
    )
    assert end.code == 0
    assert sorted(end.out.splitlines()) == ["job 0", "job 1", "job 2"]


INHERITED = """
    import atexit, logging, multiprocessing.util, tempfile, weakref
    atexit.register(print, "inherited atexit")
    class Thing: pass
    kept = Thing()
    weakref.finalize(kept, print, "inherited finalize")
    multiprocessing.util.Finalize(None, print, ("inherited multiprocessing",), exitpriority=1)
    directory = tempfile.TemporaryDirectory()
"""


def test_its_own_exit_handlers_run(run):
    end = run("registers_exit_handlers")
    assert sorted(end.out.splitlines()) == ["own atexit", "own finalize", "own multiprocessing"]


def test_the_masters_exit_handlers_do_not_run(tmp_path, run):
    log = tmp_path / "out"
    end = run(
        "registers_exit_handlers",
        before=INHERITED,
        stdout=str(log),
        while_running="""
        import os
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert os.path.isdir(directory.name)
    """,
    )
    assert end.code == 0
    assert sorted(log.read_text().splitlines()) == ["own atexit", "own finalize", "own multiprocessing"]
    # In the master itself they do.
    assert sorted(end.out.splitlines()) == [
        "inherited atexit",
        "inherited finalize",
        "inherited multiprocessing",
    ]


def test_an_exit_handler_that_fails_stops_no_other(run):
    end = run("exit_handler_that_fails")
    assert (end.code, end.out) == (0, "the other one\n")
    assert "ZeroDivisionError" in end.err


def test_exit_handlers_run_after_an_exception(run):
    end = run("exit_handlers_after_an_exception")
    assert (end.code, end.out) == (1, "own atexit\n")


def test_a_child_that_returns_from_the_target_ends_likewise(run):
    end = run(
        "forks_and_both_return",
        while_running="os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)",
        before="import os",
    )
    assert end.code == 0
    assert end.out == "handler\n" * 2


def test_multiprocessing_works(run):
    end = run("processes", before="import multiprocessing")
    assert (end.code, end.out) == (0, "from the process\n0\n")


def test_children_of_the_master_are_not_joined(run):
    end = run(
        "registers_exit_handlers",
        before="""
            import multiprocessing, time
            child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
            child.start()
        """,
        while_running="""
            import os
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            assert child.is_alive()
            child.kill()
            child.join()
        """,
    )
    assert end.code == 0
    assert "Error" not in end.err


# -- its output --------------------------------------------------------------------------


def test_output_is_flushed_at_the_end(run):
    end = run("leaves_output_unflushed")
    assert (end.code, end.out, end.err) == (0, "without an end", "nor here")


def test_what_the_master_has_buffered_is_written_once(run):
    end = run("nothing", before="import sys; sys.stdout.write('of the master')")
    assert end.out == "of the master"


def test_output_that_cannot_be_written_is_told_by_the_exit_code(run):
    assert run("output_lost", stdout="/dev/full").code == 120


def test_output_goes_into_files_line_by_line(tmp_path):
    out, err = tmp_path / "out", tmp_path / "err"
    out.write_text("before\n")
    script = Script(RUNNER, plan_of(tmp_path, "prints_and_waits", stdout=str(out), stderr=str(err)))
    # While it still runs, and after what is there.
    wait_until(lambda: err.read_text() == "and one on stderr\n")
    before, pid = out.read_text().splitlines()
    assert before == "before" and is_alive(int(pid))
    # It goes with its parent.
    script.popen.kill()
    wait_until(lambda: not is_alive(int(pid)))
    script.end()


def test_stderr_may_go_where_stdout_goes(tmp_path, run):
    both = tmp_path / "both"
    end = run("leaves_output_unflushed", stdout=str(both), stderr="stdout")
    assert both.read_text() in ("without an endnor here", "nor herewithout an end")
    assert (end.out, end.err) == ("", "")
    end = run("leaves_output_unflushed", stderr="stdout")
    assert (len(end.out), end.err) == (22, "")


def test_a_replaced_stdout_of_the_master_does_not_count(run):
    end = run("leaves_output_unflushed", before="import io, sys; sys.stdout = io.StringIO()")
    assert end.out == "without an end"


def test_a_closed_descriptor_is_not_given_to_a_file(run, tmp_path):
    end = run("facts", before="close = [0, 2]", stdout=str(tmp_path / "out"))
    assert end.code == 0
    files = json.loads((tmp_path / "out").read_text())["files"]
    assert files == {"0": "/dev/null", "1": str(tmp_path / "out"), "2": "/dev/null"}


# -- what it is ----------------------------------------------------------------------------


def facts_of(end: End) -> dict[str, Any]:
    assert end.code == 0, end.err
    return json.loads(end.out)


def test_a_process_of_its_own(run, tmp_path):
    facts = facts_of(
        run(
            "facts",
            # What a manager has: handlers, a wake-up descriptor, descriptors, a mask.
            before="""
                import os, signal, socket
                from gunicorn.unix.signals import SignalInbox
                inbox = SignalInbox([signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP, signal.SIGUSR1])
                inbox.install()
                signal.signal(signal.SIGTTOU, signal.SIG_IGN)
                signal.signal(signal.SIGHUP, signal.SIG_IGN)
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM})
                listener = socket.socket()
                close = [*inbox.pipe, listener.fileno()]
            """,
            while_running="signal.pthread_sigmask(signal.SIG_SETMASK, ())",
        )
    )
    assert facts["session"] == facts["group"] == facts["pid"]
    assert facts["blocked"] == 0
    assert facts["ignored"] & ~THREAD_SIGNALS == 1 << (signal.SIGPIPE - 1)
    assert facts["caught"] & ~THREAD_SIGNALS == 1 << (signal.SIGINT - 1)
    assert set(facts["handlers"]) == {repr(signal.SIG_DFL)}
    assert facts["wakeup"] == -1
    assert facts["pdeathsig"] == signal.SIGTERM
    assert facts["main"] and facts["threads"] == ["MainThread"]
    # Besides its output, and the run file of the lock nothing: it was closed before the target.
    assert set(facts["files"]) <= {"0", "1", "2"}, facts["files"]
    assert facts["stdin"] == ["/dev/null", "", 0]
    assert facts["line_buffered"] == [True, True]
    assert facts["same_streams"] == [True, True]


HELD_BACK = """
from gunicorn.companion.child import descriptors
from gunicorn.unix import spare
descriptors.reserve(2)
spare.ONE.fill()
close = list(spare.ONE.fds)
"""


def test_descriptors_that_were_held_back_are_closed(run):
    assert set(facts_of(run("facts", before=HELD_BACK))["files"]) <= {"0", "1", "2"}
    # Nor does it take their numbers for its own.
    assert run("", before=HELD_BACK + "target = lambda: print(spare.ONE.fds)\n").out == "[]\n"


def test_the_parent_death_signal_is_the_stop_signal(run):
    end = run("facts", stop_signal="INT")
    assert facts_of(end)["pdeathsig"] == signal.SIGINT


def test_the_record_is_there_before_the_target_runs(run, tmp_path):
    code = "import json, os; target = lambda: print(open(os.environ['RUN']).read())"
    end = run(
        "",
        before=code,
        run_dir=str(tmp_path),
        environ={"RUN": str(tmp_path / "rq.run")},
        stop_signal="INT",
        stop_timeout=7,
    )
    record = json.loads(end.out)
    assert record == end.record
    assert (record["name"], record["pid"], record["session"]) == ("rq", end.pid, end.pid)
    assert (record["stop_signal"], record["stop_timeout"]) == (signal.SIGINT, 7)
    assert record["supervisor"] == end.parent
    assert record["signalled"] is True
    assert record["started"] and record["supervisor_started"]


def test_two_have_random_numbers_of_their_own(run):
    before = "import random; random.seed(1)"
    assert facts_of(run("facts", before=before))["random"] != facts_of(run("facts", before=before))["random"]


SERVER = {
    "NOTIFY_SOCKET": "@x",
    "WATCHDOG_PID": "1",
    "WATCHDOG_USEC": "2",
    "LISTEN_PID": "1",
    "LISTEN_FDS": "1",
    "LISTEN_FDNAMES": "web",
    "GUNICORN_PID": "1",
    "GUNICORN_FD": "3",
}


def test_the_environment(run, tmp_path):
    found = facts_of(run("facts", env={"QUEUE": "mail", "HOME": "/x"}, environ={**SERVER, "OTHER": "1"}))[
        "environ"
    ]
    assert not set(found) & set(SERVER)
    assert found["GUNICORN_COMPANION_NAME"] == "rq"
    assert (found["QUEUE"], found["HOME"], found["OTHER"]) == ("mail", "/x", "1")


def test_the_directory(run, tmp_path):
    (tmp_path / "d").mkdir()
    assert facts_of(run("facts", cwd=str(tmp_path / "d")))["cwd"] == str(tmp_path / "d")
    # Its files are looked for there.
    run("nothing", cwd=str(tmp_path / "d"), stdout="log")
    assert (tmp_path / "d" / "log").exists()


OWN_NICE = [sys.executable, "-c", "import os; print(os.getpriority(os.PRIO_PROCESS, 0))"]


@pytest.mark.parametrize(("nice", "found"), [(12, 12), (19, 19), (None, 3)])
def test_the_nice_value(run, nice, found):
    before = """
        import os
        os.setpriority(os.PRIO_PROCESS, 0, 3)
        def target():
            print(os.getpriority(os.PRIO_PROCESS, 0))
    """
    assert run("", before=before, nice=nice).out == f"{found}\n"
    assert run("", before=before, nice=nice, command=OWN_NICE).out == f"{found}\n"


def test_the_limit_of_open_files_is_that_of_the_server(run):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    raised = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({hard}, {hard}))"
    assert facts_of(run("facts", before=raised, nofile=[min(soft, 512), hard]))["nofile"] == min(soft, 512)


def test_the_title(run):
    pytest.importorskip("setproctitle")
    assert "companion [rq]" in facts_of(run("facts"))["cmdline"]


def test_a_broken_pipe_is_an_error_and_no_death(run):
    end = run("writes_to_a_closed_pipe")
    assert (end.code, end.out) == (0, "BrokenPipeError\n")


def test_another_program(run, tmp_path):
    before = """
        import signal
        signal.signal(signal.SIGTERM, print)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    """
    end = run("becomes_another_program", run_dir=str(tmp_path), before=before)
    assert end.code == 5
    count, *status = end.out.splitlines()
    assert int(count) == 4  # with the directory that ls reads
    found = dict(line.split(":\t") for line in status if line.startswith("Sig"))
    assert int(found["SigBlk"], 16) == int(found["SigCgt"], 16) == 0
    # As in every program that a Python program becomes.
    assert int(found["SigIgn"], 16) & ~THREAD_SIGNALS == 1 << (signal.SIGPIPE - 1)


def test_it_gets_its_stop_signal_when_the_parent_dies(tmp_path):
    plan = plan_of(
        tmp_path,
        "",
        before="""
            import os, signal, time
            def target():
                signal.signal(signal.SIGUSR2, lambda *a: (os.write(1, b"USR2\\n"), os._exit(0)))
                os.write(1, b"ready\\n")
                while True:
                    time.sleep(60)
        """,
        stop_signal="USR2",
    )
    script = Script(RUNNER, plan)
    assert script.line() == "ready"
    script.popen.kill()
    assert script.line() == "USR2"
    script.wait_closed()
    script.end()


# -- a start that fails ----------------------------------------------------------------------


def test_a_missing_directory(run):
    end = run("nothing", cwd="/nonexistent")
    assert (end.code, end.error) == (1, "cannot enter cwd /nonexistent: No such file or directory")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="gives up a capability of Linux")
def test_a_nice_value_that_the_system_refuses(run):
    before = """
        import ctypes, os, resource
        os.setpriority(os.PRIO_PROCESS, 0, 3)
        resource.setrlimit(resource.RLIMIT_NICE, (0, 0))
        # capget(2): the version, this process; effective, permitted and inheritable, twice.
        head, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        libc = ctypes.CDLL(None)
        assert libc.capget(head, sets) == 0
        sets[0] &= ~(1 << 23)  # CAP_SYS_NICE
        assert libc.capset(head, sets) == 0
    """
    end = run("nothing", before=before, nice=2)
    assert (end.code, end.error) == (1, "cannot set nice to 2: Permission denied")


def test_a_log_that_cannot_be_opened(run, tmp_path):
    end = run("nothing", stderr=str(tmp_path))
    assert (end.code, end.error) == (1, f"cannot open stderr {tmp_path}: Is a directory")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("raise ValueError('no database\\nat all')", "companion_post_fork: ValueError: no database"),
        ("raise ValueError", "companion_post_fork: ValueError"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    ],
)
def test_a_hook_that_raises(run, body, error):
    hook = f"def hook():\n    print('in the hook', end='')\n    {body}\n"
    end = run("returns_a_value", before=hook)
    assert (end.code, end.error) == (1, error)
    assert end.out == "in the hook"
    assert "in hook" in end.err and "Traceback" in end.err


@pytest.mark.parametrize(
    ("target", "hook", "error"),
    [
        ("raises", "pass", "ValueError: no such queue"),
        ("returns_a_value", "raise ValueError(7)", "companion_post_fork: ValueError: 7"),
        (
            "nosuch:run",
            "pass",
            "cannot import nosuch:run: ModuleNotFoundError: No module named 'nosuch'",
        ),
    ],
)
def test_a_traceback_that_has_been_printed_again_and_again_is_one_line(run, target, hook, error):
    hook = f"def hook(): {hook}\n"
    for told, known in (
        (f"repeats = ['another', {error!r}]", True),
        ("repeats = ['another']", False),
        # It has run for long.
        (f"repeats = [{error!r}]; repeats_until = 1", False),
    ):
        end = run(target, before=hook + told)
        line = f"{error} (again; its traceback has been printed before)\n"
        assert end.code == 1
        assert (end.err == line) is ("Traceback" not in end.err) is known
        assert end.error in (error, None)


def test_an_excepthook_of_its_own_is_called_each_time(run):
    end = run("own_excepthook", before="repeats = ['ValueError']")
    assert end.err == "ValueError (again; its traceback has been printed before)\n"
    assert end.out == "hook ValueError own_excepthook\n"


def test_the_hook_runs_in_the_companion_before_the_target(run):
    code = """
        import os, signal
        def hook():
            print("hook", os.environ["GUNICORN_COMPANION_NAME"], signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        target = lambda: print("target")
    """
    assert run("", before=code).out == "hook rq set()\ntarget\n"


@pytest.mark.parametrize("target", ["spawntargets:Shop.Jobs.run", "spawntargets:Shop.made('jobs')"])
def test_a_target_by_name(run, target):
    end = run(target)
    assert (end.code, end.out, end.error) == (0, "the jobs of the shop\n", None)


def test_a_target_by_name_is_imported_in_the_companion(run, tmp_path):
    (tmp_path / "lateapp.py").write_text("import os\nprint('imported by', os.getpid())\ndef run(): pass\n")
    end = run("lateapp:run", before=f"import sys; sys.path.insert(0, {str(tmp_path)!r})")
    assert end.out == f"imported by {end.pid}\n"


@pytest.mark.parametrize(
    ("target", "error", "err"),
    [
        (
            "nosuchmodule:run",
            "cannot import nosuchmodule:run: ModuleNotFoundError: No module named",
            "Traceback",
        ),
        ("spawntargets:nosuch", "module 'spawntargets' has no 'nosuch' to run", "companion rq: module"),
        (
            "spawntargets:Shop.nosuch.run",
            "module 'spawntargets' has no 'Shop.nosuch.run' to run",
            "companion rq",
        ),
        ("spawntargets:Shop.number", "spawntargets:Shop.number is not callable", "companion rq"),
        (
            "spawntargets:Shop.made('', number=3)",
            "spawntargets:Shop.made('', number=3) returns 3, and not what the companion is to call",
            "companion rq",
        ),
        ("spawntargets:Shop.made(a=1)", "spawntargets:Shop.made cannot be called with", "companion rq"),
    ],
)
def test_a_target_that_is_not_found(run, target, error, err):
    end = run(target)
    assert end.code == 1
    assert end.error is not None and end.error.startswith(error)
    assert err in end.err


def test_a_module_that_fails_to_import(run, tmp_path):
    (tmp_path / "badapp.py").write_text("raise RuntimeError('no settings')\n")
    end = run("badapp:run", before=f"import sys; sys.path.insert(0, {str(tmp_path)!r})")
    assert end.error == "cannot import badapp:run: RuntimeError: no settings"
    assert "badapp.py" in end.err


# -- a program in the place of a target --------------------------------------------------------


def command(run, *words: str, **options: Any) -> End:
    return run("", command=list(words), **options)


WORDS = [
    "",
    " ",
    "two words",
    "it's",
    'say "hi"',
    "*",
    "$HOME",
    "`id`",
    "a;b|c&d>e",
    "back\\slash",
    "new\nline",
    "tab\t",
    "~",
    "{a,b}",
    "-c",
    "\N{SNOWMAN}",
    "#no comment",
]


def test_the_words_of_a_command_arrive_as_they_are(run):
    show = "import json, sys; print(json.dumps(sys.argv[1:]))"
    end = command(run, sys.executable, "-c", show, *WORDS)
    assert (end.code, end.err) == (0, "")
    assert json.loads(end.out) == WORDS


def test_a_program_ends_as_it_does(run):
    assert command(run, "false").code == 1
    assert command(run, "sh", "-c", "exit 7").code == 7
    assert command(run, "sh", "-c", "kill -9 $$").code == -signal.SIGKILL
    assert command(run, "true").error is None


FACTS = "import spawntargets; spawntargets.facts()"


def program_facts(run, **options: Any) -> dict[str, Any]:
    return facts_of(command(run, sys.executable, "-c", FACTS, **options))


def test_a_program_of_its_own(run, tmp_path):
    facts = program_facts(
        run,
        run_dir=str(tmp_path),
        # What a manager and an application have: some of it closed by nobody, and inheritable.
        before="""
            import os, signal, socket
            from gunicorn.unix.signals import SignalInbox
            inbox = SignalInbox([signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP, signal.SIGUSR1])
            inbox.install()
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM})
            close = inbox.pipe
            foreign = [os.dup(1) for _ in range(50)]
            for fd in foreign:
                os.set_inheritable(fd, True)
            os.set_inheritable(os.dup2(1, 900), True)
        """,
        while_running="signal.pthread_sigmask(signal.SIG_SETMASK, ())",
    )
    assert facts["session"] == facts["group"] == facts["pid"]
    assert facts["blocked"] == 0
    # By the interpreter that the program itself is.
    ignored = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
    assert facts["ignored"] & ~THREAD_SIGNALS == ignored
    assert facts["pdeathsig"] == signal.SIGTERM
    assert set(facts["files"]) <= {"0", "1", "2"}, facts["files"]
    assert facts["stdin"][0] == "/dev/null"


def test_a_program_ignores_no_signal(run):
    end = command(run, "cat", "/proc/self/status", before="import signal")
    found = dict(line.split(":\t") for line in end.out.splitlines() if line.startswith("Sig"))
    assert int(found["SigIgn"], 16) & ~THREAD_SIGNALS == 0
    assert int(found["SigBlk"], 16) == int(found["SigCgt"], 16) == 0


def test_the_environment_of_a_program(run):
    found = program_facts(run, env={"QUEUE": "mail"}, environ={**SERVER, "OTHER": "1"})["environ"]
    assert not set(found) & set(SERVER)
    assert (found["GUNICORN_COMPANION_NAME"], found["QUEUE"], found["OTHER"]) == ("rq", "mail", "1")
    assert "GUNICORN_COMPANION_INDEX" not in found


@pytest.mark.parametrize(
    ("environ", "env", "value"),
    [
        ({}, {}, "1"),
        # Empty is off, whoever says so.
        ({}, {"PYTHONUNBUFFERED": ""}, ""),
        ({"PYTHONUNBUFFERED": ""}, {}, ""),
    ],
)
def test_a_python_program_writes_its_output_at_once_unless_told_otherwise(run, environ, env, value):
    found = program_facts(run, env=env, environ=environ)["environ"]
    assert found["PYTHONUNBUFFERED"] == value


def test_the_record_of_a_program_stays_true(run, tmp_path):
    show = f"import json; print(open({str(tmp_path / 'rq.run')!r}).read())"
    end = command(run, sys.executable, "-c", show, run_dir=str(tmp_path))
    record = json.loads(end.out)
    assert record == end.record and record["pid"] == record["session"] == end.pid


def test_the_hook_runs_before_a_program_too(run):
    hook = "import os\ndef hook():\n    os.environ['SECRET'] = 's'\n    print('hook')\n"
    assert command(run, "sh", "-c", "echo program $SECRET", before=hook).out == "hook\nprogram s\n"


def test_a_program_is_looked_up_in_the_path_of_the_companion(run, tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        script = tmp_path / name / "ours"
        script.write_text(f"#!/bin/sh\necho {name} $0\n")
        script.chmod(0o755)
    path = f"{tmp_path / 'missing'}:{tmp_path / 'second'}:{tmp_path / 'first'}"
    assert command(run, "ours", env={"PATH": path}).out == f"second {tmp_path / 'second' / 'ours'}\n"
    # One that may not be executed hides no other.
    (tmp_path / "second" / "ours").chmod(0o644)
    assert command(run, "ours", env={"PATH": path}).out.startswith("first")
    # Relative to the directory of the companion: a directory of PATH, and a name with a slash.
    assert command(run, "ours", env={"PATH": "first"}, cwd=str(tmp_path)).out.startswith("first")
    assert command(run, "first/ours", cwd=str(tmp_path)).out.startswith("first")
    assert command(run, "ours", env={"PATH": ""}, cwd=str(tmp_path / "first")).out.startswith("first")


def broken(tmp_path: Path) -> dict[str, str]:
    """Files that cannot be executed, and what is said of each."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    files = {
        "plain": ("echo hello\n", 0o755),
        "closed": ("#!/bin/sh\n", 0o644),
        "lost": ("#!/usr/bin/nosuch -x\n", 0o755),
        "dos": ("#!/bin/sh\r\necho\r\n", 0o755),
    }
    for name, (text, mode) in files.items():
        (tmp_path / name).write_bytes(text.encode())
        (tmp_path / name).chmod(mode)
    at = str(tmp_path)
    return {
        "plain": f"{at}/plain is neither a program of this system nor a script with a '#!' line",
        "closed": f"{at}/closed is not executable for this user",
        "lost": f"{at}/lost needs the interpreter /usr/bin/nosuch, which does not exist",
        "dos": f"{at}/dos needs the interpreter '/bin/sh\\r', which does not exist",
        "directory": f"{at}/directory is a directory",
        "link": f"{at}/link is a link to nowhere, which does not exist",
    }


@pytest.mark.parametrize("name", ["plain", "closed", "lost", "dos", "directory", "link"])
def test_a_program_that_cannot_be_run(run, tmp_path, name):
    reason = broken(tmp_path)[name]
    for word, path in ((f"{tmp_path}/{name}", "/bin"), (name, str(tmp_path))):
        end = command(run, word, env={"PATH": path}, run_dir=str(tmp_path))
        assert (end.code, end.out) == (1, "")
        assert end.error == f"cannot run {word!r}: {reason}"


def test_a_program_that_is_missing(run, tmp_path):
    end = command(run, "nodex", "-e", "0", env={"PATH": "/bin:/nonexistent"})
    assert (end.code, end.error) == (1, "cannot run 'nodex': not found in PATH (/bin:/nonexistent)")
    end = command(run, "bin/nodex", cwd=str(tmp_path))
    assert end.error == f"cannot run 'bin/nodex': no such file (working directory {tmp_path})"


def test_a_program_gets_its_stop_signal_when_the_parent_dies(tmp_path):
    script = Script(
        RUNNER,
        plan_of(
            tmp_path,
            "",
            command=["sh", "-c", "trap 'echo USR2; exit' USR2; echo ready; while :; do sleep 0.05; done"],
            stop_signal="USR2",
        ),
    )
    assert script.line() == "ready"
    script.popen.kill()
    assert script.line() == "USR2"
    script.wait_closed()
    script.end()


# -- what it is told, and the sockets that it gets -------------------------------------------------


def told(facts: dict[str, Any]) -> dict[str, str]:
    names = ("NOTIFY_", "WATCHDOG_", "LISTEN_", "GUNICORN_")
    return {name: value for name, value in facts["environ"].items() if name.startswith(names)}


TWO_LISTENERS = """
    import os, socket
    from gunicorn.companion.child import descriptors
    def listener():
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        return sock
    {before}
    listeners = [listener(), listener()]
    close = [sock.fileno() for sock in listeners]
"""
RESERVED = "os.closerange(3, 6); descriptors.reserve(2)"


@pytest.mark.parametrize("words", [None, [sys.executable, "-c", FACTS]], ids=["target", "command"])
def test_it_is_told_by_the_variables_of_systemd(run, words):
    options: dict[str, Any] = {"command": words} if words else {}
    end = run(
        "facts",
        name="rq:2",
        index=2,
        watchdog=2.5,
        before=TWO_LISTENERS.format(before=RESERVED) + "    notify = '@there'\n",
        environ={**SERVER, "GUNICORN_COMPANION_INDEX": "9"},
        **options,
    )
    facts = facts_of(end)
    assert told(facts) == {
        "GUNICORN_COMPANION_NAME": "rq:2",
        "GUNICORN_COMPANION_INDEX": "2",
        "NOTIFY_SOCKET": "@there",
        "WATCHDOG_USEC": "2500000",
        "LISTEN_PID": str(end.pid),
        "LISTEN_FDS": "2",
        "LISTEN_FDNAMES": "rq:rq",
    }
    assert {number: name.partition(":")[0] for number, name in facts["files"].items() if int(number) > 2} == {
        "3": "socket",
        "4": "socket",
    }


LISTENS = """
import json, os, socket
def show():
    made = [socket.socket(fileno=number) for number in (3, 4)]
    print(json.dumps([[s.getsockname()[1], os.get_blocking(s.fileno()), s.get_inheritable()] for s in made]))
    # Else what they are closed by is the garbage collector.
    return [sock.detach() for sock in made]
"""


@pytest.mark.parametrize("kind", ["target", "command"])
@pytest.mark.parametrize("before", [RESERVED, "os.closerange(3, 20)", "os.dup2(1, 30)"])
def test_its_sockets_are_those_of_the_manager(run, tmp_path, kind, before):
    (tmp_path / "listens.py").write_text(LISTENS)
    options: dict[str, Any] = {"env": {"PYTHONPATH": str(tmp_path)}}
    if kind == "command":
        options["command"] = [sys.executable, "-c", "import listens; listens.show()"]
    code = TWO_LISTENERS.format(before=before) + f"    import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    code += "    listeners[0].setblocking(False)\n"
    code += "    sys.stderr.write(str([sock.getsockname()[1] for sock in listeners]))\n"
    end = run("listens:show", before=code, run_dir=str(tmp_path), **options)
    assert end.code == 0, end.err
    first, second = json.loads(end.err)
    # What an earlier program has set is no property of its successor's sockets.
    assert json.loads(end.out) == [[first, True, True], [second, True, True]]


WATCHES = """os.closerange(3, 20)
    from types import SimpleNamespace
    from gunicorn.companion.child.watch import SourceWatch
    watch = SourceWatch(lambda tell: SimpleNamespace(start=lambda: tell("a.py"), stop=lambda: None))"""


def test_a_socket_does_not_take_the_place_of_the_pipe_for_changes(run):
    end = run(
        "facts",
        before=TWO_LISTENERS.format(before=WATCHES) + "    close += [watch.fileno()]\n",
        while_running="""
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            print([change.path for change in watch.receive()])
        """,
    )
    assert end.out.splitlines()[-1] == "['a.py']"


def test_copies_share_what_one_of_them_has_set(run):
    before = TWO_LISTENERS.format(before=RESERVED) + "    listeners[0].setblocking(False)\n"
    code = "    import os\n    target = lambda: print(os.get_blocking(3), os.get_blocking(4))\n"
    assert run("", name="rq:0", index=0, before=before + code).out == "False True\n"


def test_a_socket_does_not_take_the_place_of_a_file_of_the_application(run):
    before = TWO_LISTENERS.format(before="os.closerange(3, 6); held = open('/etc/passwd')")
    end = run("facts", before=before)
    assert end.code == 1
    assert end.error is not None
    assert end.error.startswith("descriptor 3, needed for a socket of 'bind', is held by /etc/passwd")
    # A program has no such objects; but the hook before it has.
    hook = "    hook = lambda: print(held.readline()[:5])\n"
    end = command(run, "ls", "-l", "/proc/self/fd/3", before=before + hook)
    assert (end.code, end.err) == (0, "")
    assert end.out.startswith("root:") and "socket:" in end.out


def test_a_program_that_fails_with_sockets_tells_why(run, tmp_path):
    # The run file is in the place of a socket.
    before = TWO_LISTENERS.format(before="os.closerange(3, 20)")
    for run_dir in (None, str(tmp_path)):
        end = command(run, "nodex", before=before, run_dir=run_dir, env={"PATH": "/bin"})
        assert (end.code, end.error) == (1, "cannot run 'nodex': not found in PATH (/bin)")


@pytest.mark.parametrize("armed", ["pass", "import faulthandler; faulthandler.enable()"])
def test_the_watchdogs_sigabrt_shows_the_stacks(run, armed):
    code = """
        import os, signal, threading, time
        {armed}
        begun = threading.Event()
        def hangs_in_a_thread():
            begun.set()
            time.sleep(30)
        def target():
            threading.Thread(target=hangs_in_a_thread).start()
            begun.wait()
            os.kill(os.getpid(), signal.SIGABRT)
    """
    end = run("", before=code.format(armed=armed), watchdog=10)
    assert end.code == -signal.SIGABRT
    assert "hangs_in_a_thread" in end.err and "in target" in end.err


def test_without_a_watchdog_nothing_is_armed_but_what_the_master_had(run):
    code = "import faulthandler\n{}\ntarget = lambda: print(faulthandler.is_enabled())\n"
    assert run("", before=code.format("faulthandler.disable()")).out == "False\n"
    assert run("", before=code.format("faulthandler.enable()")).out == "True\n"


def test_a_fork_that_is_refused(monkeypatch):
    def fork() -> int:
        # No signal arrives meanwhile.
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        raise BlockingIOError("no memory")

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    monkeypatch.setattr("os.fork", fork)
    launch = Launch(CompanionConfig("rq", print), RunFile(-1, None), close=(), post_fork=None)
    (outcome,) = spawn([launch])
    assert isinstance(outcome, BlockingIOError)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


# -- what is set in the child ----------------------------------------------------------

SHOWS_ITSELF = """
    import json, os, resource
    def target():
        umask = os.umask(0)
        with open("/proc/self/oom_score_adj") as file:
            score = int(file.read())
        print(json.dumps({
            "umask": umask,
            "score": score,
            "cpus": sorted(os.sched_getaffinity(0)),
            "nofile": resource.getrlimit(resource.RLIMIT_NOFILE),
            "core": resource.getrlimit(resource.RLIMIT_CORE),
            "env": {name: value for name, value in os.environ.items() if name[:3] == "SET"},
        }))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_what_is_set_in_the_child(tmp_path, run):
    (tmp_path / "one.env").write_text("SET_A=file\nexport SET_B='file # 1'\nSET_C=file\nSET_D=file\n")
    (tmp_path / "two.env").write_text("SET_B=two\n")
    cpu = min(os.sched_getaffinity(0))
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    keys = {
        "umask": 0o27,
        "oom_score_adj": 700,
        "cpu_affinity": [cpu],
        "rlimits": {"nofile": [100, 200], "core": [0, None]},
        "cwd": str(tmp_path),
        "env_file": ["one.env", "two.env"],
        "env": {"SET_A": "env", "SET_C": None, "SET_E": None},
        "stdout": "out",
        "environ": {"SET_D": "server", "SET_E": "server", "SET_F": "server"},
    }
    assert run("", before=SHOWS_ITSELF, **keys).code == 0
    assert json.loads((tmp_path / "out").read_text()) == {
        "umask": 0o27,
        "score": 700,
        "cpus": [cpu],
        "nofile": [100, 200],
        "core": [0, hard],
        "env": {"SET_A": "env", "SET_B": "two", "SET_D": "file", "SET_F": "server"},
    }
    # The umask is not for the server's files.
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o644


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
@pytest.mark.parametrize(
    ("keys", "error"),
    [
        (
            {"cpu_affinity": [8191]},
            "cannot set cpu_affinity to [8191]: Invalid argument (the server may use ",
        ),
        (
            {"rlimits": {"nofile": [2**31, None]}},
            f"cannot set rlimits nofile to {2**31}: ",
        ),
        ({"env_file": ["/nowhere/a.env"]}, "cannot read env_file /nowhere/a.env: No such file or directory"),
        (
            {"env_file": ["wrong.env"]},
            "cannot read env_file wrong.env, line 2: A: the quotes are not closed on this line",
        ),
    ],
)
def test_what_the_system_refuses(tmp_path, run, keys, error):
    (tmp_path / "wrong.env").write_text("B=1\nA='XYZZY")
    end = run("nothing", cwd=str(tmp_path), **keys)
    assert (end.code, end.out, end.err) == (1, "", "")
    assert end.error.startswith(error)
    assert "XYZZY" not in end.error
