# SPDX-License-Identifier: MIT
"""The command as it is run: ``--check-config``, ``--print-config``, ``--help``, ``--version``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gunicorn import __version__
from gunicorn.config import KNOWN_SETTINGS
from gunicorn.settings import SECTIONS

ROOT = Path(__file__).resolve().parents[2]

SHOP = """
import os

def app(environ, start_response):
    start_response("200 OK", [])
    return [b""]

def make(*args):
    print("made with", *args)
    return app

def fails():
    raise LookupError("no stock")

wanted = os.environ.get("SHOP")
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "broken.py").write_text("import a_module_that_is_missing\n")
    (tmp_path / "crash.py").write_text("1 / 0\n")
    (tmp_path / "needs_env.py").write_text("import os\nos.environ['SHOP']\nfrom shop import app\n")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/inner.py").write_text("from shop import app\n")
    return tmp_path


def gunicorn(directory: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("PWD", "PORT")}
    return subprocess.run(
        [sys.executable, "-m", "gunicorn", *args],
        cwd=directory,
        env={**clean, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_version(here: Path) -> None:
    done = gunicorn(here, "--version")
    assert (done.returncode, done.stdout) == (0, f"gunicorn (version {__version__})\n")


def test_version_and_config_import_little(here: Path) -> None:
    code = (
        "import sys; before = set(sys.modules)\n"
        "import gunicorn.app.wsgiapp\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    slow = {
        "ssl",
        "socket",
        "argparse",
        "logging",
        "inspect",
        "dataclasses",
        "subprocess",
        "ipaddress",
        "asyncio",
    }
    assert not slow & set(done.stdout.split())
    assert not [
        name for name in done.stdout.split() if name.startswith(("gunicorn.workers", "gunicorn.comp"))
    ]


def test_help_is_grouped_and_complete(here: Path) -> None:
    done = gunicorn(here, "--help")
    assert done.returncode == 0
    for cls in KNOWN_SETTINGS:
        for flag in cls.cli or ():
            assert re.search(rf"(^|\s){re.escape(flag)}\b", done.stdout), flag
    places = [done.stdout.find(f"\n{section}:\n") for section in SECTIONS if section != "Server Hooks"]
    assert -1 not in places
    assert places == sorted(places)
    assert "usage: gunicorn [OPTIONS] [MODULE:CALLABLE]" in done.stdout


# -- print -------------------------------------------------------------------------------------


def test_print_config(here: Path) -> None:
    (here / "gunicorn.conf.py").write_text(
        "workers = 3\n"
        "def companion_post_fork(manager, companion): pass\n"
        "companion_workers = [{'name': 'a', 'target': 'shop:make'}]\n"
    )
    environment = {"WEB_CONCURRENCY": "9", "XDG_RUNTIME_DIR": str(here)}
    done = gunicorn(here, "--print-config", "--companion-startsecs", "2", "shop:app", **environment)
    assert (done.returncode, done.stderr) == (0, "")
    shown = dict(re.split(r" += ", line, maxsplit=1) for line in done.stdout.splitlines())
    assert list(shown) == sorted(str(cls.name) for cls in KNOWN_SETTINGS)
    assert shown["workers"] == "3"
    assert shown["companion_startsecs"] == "2"
    assert shown["companion_post_fork"] == "<companion_post_fork()>"
    assert shown["companion_workers"] == "[{'name': 'a', 'target': 'shop:make'}]"
    assert shown["chdir"] == str(here)
    # What follows from other settings is worked out, and nothing is made for it.
    assert shown["companion_control_socket"] == f"{here}/gunicorn/companion-PID.sock"
    assert re.fullmatch(rf"{here}/gunicorn/run-[0-9a-f]{{16}}", shown["companion_run_dir"])
    assert float(shown["companion_manager_stop_timeout"]) == 70
    assert float(shown["companion_manager_reload_timeout"]) == 70
    assert not (here / "gunicorn").exists()


def test_print_config_shows_what_counts(here: Path) -> None:
    done = gunicorn(here, "--print-config", "--threads", "3", "shop:app")
    shown = dict(re.split(r" += ", line, maxsplit=1) for line in done.stdout.splitlines())
    assert shown["worker_class"] == "gunicorn.workers.gthread.ThreadWorker"
    assert shown["wsgi_app"] == shown["proc_name"] == "shop:app"
    wrong = gunicorn(here, "--print-config", "--companion-worker", "a b=shop:make", "shop:app")
    assert wrong.returncode == 1 and "companion_run_dir" in wrong.stdout


SECRETS = """
raw_env = ["SECRET_KEY=sesame1", "DATABASE_URL=postgres://shop:sesame2@db/shop", "MODE=live"]
companion_env = {"DATABASE_PASSWORD": "sesame3", "QUEUE": "mail"}
companion_workers = [
    {"name": "rq", "command": ["rq", "--url", "redis://:sesame4@queue/0", "--password", "sesame5"],
     "env": {"API_TOKEN": "sesame6", "QUEUE": "mail"}},
]
statsd_prefix = "shop"
syslog_addr = "udp://log:sesame7@host:514"
"""


def test_what_is_printed_has_no_secrets(here: Path) -> None:
    (here / "gunicorn.conf.py").write_text(SECRETS)
    done = gunicorn(here, "--print-config", "shop:app")
    assert "sesame" not in done.stdout + done.stderr
    for kept in ("SECRET_KEY=***", "postgres://shop:***@db/shop", "MODE=live", "'QUEUE': 'mail'"):
        assert kept in done.stdout
    (here / "gunicorn.conf.py").write_text(SECRETS + "workers = 0\nwsgi_app = 'crash:app'\n")
    done = gunicorn(here, "--log-level", "debug", "--preload", "--bind", "127.0.0.1:0")
    assert "The configuration is:" in done.stderr and "SECRET_KEY=***" in done.stderr
    assert "sesame" not in done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "raw_env = ['SECRET_KEY=sesame', 'B']",
        "raw_env = {'SECRET_KEY': 'sesame'}",
        "companion_env = ['SECRET_KEY=sesame']",
        "companion_env = {'PASSWORD': b'sesame'}\ncompanion_workers = [{'name': 'a', 'target': 'shop:app'}]",
        "companion_workers = [{'name': 'a', 'env': 'PASSWORD=sesame', 'target': 'shop:app'}]",
        "companion_workers = [{'name': 'a', 'command': 'job --password=sesame'}]",
        "companion_workers = {'name': 'a', 'env': {'PASSWORD': 'sesame'}}",
    ],
)
def test_a_mistake_is_told_without_secrets(here: Path, line: str) -> None:
    (here / "gunicorn.conf.py").write_text(f"{line}\n")
    done = gunicorn(here, "--check-config", "shop:app")
    assert done.returncode == 1
    assert "***" in done.stderr and "sesame" not in done.stderr


def test_print_config_checks_as_well(here: Path) -> None:
    done = gunicorn(here, "--print-config", "shop:ap")
    assert done.returncode == 1
    assert "workers" in done.stdout
    assert "no attribute 'ap'" in done.stderr


# -- check -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ["shop:app"],
        ["shop:make('a', 3)"],
        ["--chdir", "lib", "inner:app"],
        ["--pythonpath", "lib", "inner:app"],
        ["--env", "SHOP=1", "needs_env:app"],
        ["--companion-worker", "a=shop:make", "shop:app"],
        ["-k", "gthread", "--statsd-host", "localhost", "shop:app"],
    ],
)
def test_all_is_well(here: Path, args: list[str]) -> None:
    done = gunicorn(here, "--check-config", *args)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere:app"], ["module 'nowhere' was not found"]),
        (["shop:ap"], ["module 'shop' was found", "'ap'", "did you mean 'app'"]),
        (["shop:fails()"], ["LookupError: no stock", "shop.py", "in fails"]),
        (["broken:app"], ["No module named 'a_module_that_is_missing'", "broken.py"]),
        (["needs_env:app"], ["KeyError: 'SHOP'"]),
        (["-k", "unheard_of", "shop:app"], ["unheard_of", "gthread"]),
        (["--logger-class", "no.such", "shop:app"], ["'no'"]),
        (["-k", "broken.Worker", "shop:app"], ["a_module_that_is_missing"]),
        (["-k", "crash.Worker", "shop:app"], ["ZeroDivisionError", "crash.py"]),
        (["--access-logformat", "%(h)d", "shop:app"], ["access_log_format '%(h)d': "]),
        (["--statsd-host", "localhost", "--access-logformat", "%", "shop:app"], ["access_log_format"]),
        (["--companion-worker", "a b=shop:make", "shop:app"], ["a b"]),
        (
            ["--companion-worker", "a=x:y", "--companion-stdout", "gone/x", "shop:app"],
            ["gone does not exist"],
        ),
        (
            ["-c", "cwd.py", "shop:app"],
            ["companion 'b': cwd: there is no directory gone", "'b': env_file: there is no file gone/1.env"],
        ),
        (["--companion-worker", "a=x:y", "--companion-stop-signal", "SIGNONE", "shop:app"], ["SIGNONE"]),
    ],
)
def test_what_is_wrong(here: Path, args: list[str], said: list[str]) -> None:
    (here / "cwd.py").write_text(
        "companion_workers = [{'name': 'b', 'target': 'x:y', 'cwd': 'gone',"
        " 'numprocs': 2, 'env_file': '%(index)d.env'}]"
    )
    done = gunicorn(here, "--check-config", *args)
    assert done.returncode == 1, done.stderr
    for text in said:
        assert text in done.stderr
    # The traceback shows the user's code only.
    assert f"{ROOT}{os.sep}gunicorn{os.sep}" not in done.stderr


NEAR = """
from shop import *
import multiprocessing as worker_multiprocessing
worker = 3
bnid = "127.0.0.1:0"
_worker = 4
def post_forc(server, worker): pass
Preload_App = True
base_dir = "/srv"
debug = True
preload = True
something_else = [1]
# What is imported from the package is no mistake.
from gunicorn.config import Bind
"""


def test_near_misses_are_warned_of(here: Path) -> None:
    (here / "gunicorn.conf.py").write_text(NEAR)
    done = gunicorn(here, "--check-config", "shop:app")
    assert done.returncode == 0
    warned = re.findall(
        r"Warning: .*gunicorn\.conf\.py, line (\d+): (\w+) is .* did you mean (\w+)\?", done.stderr
    )
    assert warned == [
        ("4", "worker", "workers"),
        ("5", "bnid", "bind"),
        ("7", "post_forc", "post_fork"),
        ("8", "Preload_App", "preload_app"),
        # `preload` is the name of the flag for preload_app, not a misspelt `reload`.
        ("11", "preload", "preload_app"),
    ]
    assert len(done.stderr.splitlines()) == 5


LATER = """
control_socket_mode = 0o660
http2_max_frame_size = 20000
"""

REFUSED = """
dirty_apps = ["ml:App"]
http_protocols = "h2,h1"
def on_dirty_starting(arbiter): pass
"""


def test_settings_of_later_versions_are_warned_of(here: Path) -> None:
    (here / "gunicorn.conf.py").write_text(LATER)
    done = gunicorn(here, "--check-config", "shop:app")
    assert done.returncode == 0
    unused = re.findall(r"Warning: (\w+) has no effect: ", done.stderr)
    assert unused == ["http2_max_frame_size", "control_socket_mode"]
    assert len(done.stderr.splitlines()) == 2
    (here / "gunicorn.conf.py").write_text(REFUSED)
    done = gunicorn(here, "--check-config", "shop:app")
    assert done.returncode == 1
    head, *lines = done.stderr.splitlines()
    assert head.endswith("3 mistakes:") and len(lines) == 3
    assert "line 2: dirty_apps" in lines[0] and "let a companion" in lines[0]


def test_each_mistake_has_a_line_of_its_own(here: Path) -> None:
    companions = [
        {"name": "rq", "target": "jobs:run", "directory": "/srv", "stopwaitsecs": 60, "user": "rq"},
        {"name": "tick", "command": "tick --fast"},
    ]
    (here / "gunicorn.conf.py").write_text(f"companion_workers = {companions!r}\n")
    done = gunicorn(here, "--check-config", "shop:app")
    assert done.returncode == 1
    head, *lines = done.stderr.splitlines()
    assert head == "Error: invalid companion configuration: 4 mistakes:"
    assert lines[:2] == [
        "  companion 'rq': unknown key directory: here it is cwd",
        "  companion 'rq': unknown key stopwaitsecs: here it is stop_timeout",
    ]
    assert [line.split(": ")[0] for line in lines] == ["  companion 'rq'"] * 3 + ["  companion 'tick'"]


@pytest.mark.parametrize("args", [["--check-config"], ["--bind", "127.0.0.1:0"]])
def test_an_asgi_application_under_a_wsgi_class(here: Path, args: list[str]) -> None:
    (here / "live.py").write_text("async def app(scope, receive, send): ...\n")
    done = gunicorn(here, *args, "live:app")
    assert done.returncode in (1, 4)
    assert "live:app is an ASGI application" in done.stderr
    assert "-k asgi" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "said"), [("gthraed", "'gthraed' is not"), ("crash.Worker", "ZeroDivision")]
)
def test_a_wrong_worker_class_is_reported_once_with_an_asgi_application(
    here: Path, name: str, said: str
) -> None:
    (here / "live.py").write_text("async def app(scope, receive, send): ...\n")
    done = gunicorn(here, "--check-config", "-k", name, "live:app")
    assert done.returncode == 1
    assert said in done.stderr
    assert sum(line.startswith("Error: ") for line in done.stderr.splitlines()) == 1


def test_near_misses_are_told_only_where_configurations_are_checked(here: Path) -> None:
    (here / "gunicorn.conf.py").write_text(NEAR + "raise SystemExit('read to the end')\n")
    done = gunicorn(here, "shop:app")
    assert done.returncode == 1
    assert "Warning" not in done.stderr
    assert "read to the end" in done.stderr


# -- the start ---------------------------------------------------------------------------------


def test_a_mistake_is_told_without_our_own_frames(here: Path) -> None:
    (here / "gunicorn.conf.py").write_text("import shop\nworkers = shop.fails()\n")
    done = gunicorn(here, "shop:app")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert [line for line in lines if "File " in line] == [
        f'  File "{here}/gunicorn.conf.py", line 2, in <module>',
        f'  File "{here}/shop.py", line 13, in fails',
    ]
    assert lines[-1] == f"Error: {here}/gunicorn.conf.py, line 2: LookupError: no stock"


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("crash:app", ["Error: ZeroDivisionError: division by zero", 'crash.py", line 1']),
        ("broken:app", ["No module named 'a_module_that_is_missing'", 'broken.py", line 1']),
        ("nowhere:app", ["Error: module 'nowhere' was not found"]),
        ("shop:ap", ["Error: module 'shop' was found, but it has no attribute 'ap'"]),
        ("leaves:app", ["Error: the application cannot be loaded: it asked to exit, with 0, in", "line 2"]),
    ],
)
def test_a_preloaded_application_that_fails(here: Path, uri: str, said: list[str]) -> None:
    (here / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    done = gunicorn(here, "--preload", "--bind", "127.0.0.1:0", uri)
    assert done.returncode == 1
    for text in said:
        assert text in done.stderr
    assert f"{ROOT}{os.sep}gunicorn{os.sep}" not in done.stderr


def test_no_application(here: Path) -> None:
    done = gunicorn(here)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: no application to serve")


def test_the_console_script_is_the_same(here: Path) -> None:
    script = Path(sys.executable).with_name("gunicorn")
    if not script.exists():
        pytest.skip("the console script is not installed")
    done = subprocess.run(
        [script, "--check-config", "shop:app"], cwd=here, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "args, code, said",
    [
        (["--version"], 0, "gunicorn (version"),
        (["--help"], 0, "usage: gunicorn"),
        (["--chdir", "HERE", "--check-config", "shop:app"], 0, ""),
        (["--chdir", "HERE", "-c", "HERE/c.py", "--check-config", "shop:app"], 0, ""),
        (["--check-config", "shop:app"], 1, "gone (deleted) was removed; start in another one"),
        (["-c", "c.py", "shop:app"], 1, "cannot read the configuration file"),
    ],
)
def test_started_in_a_directory_that_was_removed(here: Path, args: list[str], code: int, said: str) -> None:
    (here / "c.py").write_text("workers = 2")
    (here / "gone").mkdir()
    args = [arg.replace("HERE", str(here)) for arg in args]
    script = 'cd gone && rmdir ../gone && exec "$@"'
    done = subprocess.run(
        ["sh", "-c", script, "sh", sys.executable, "-m", "gunicorn", *args],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == (1 if code else 0)
