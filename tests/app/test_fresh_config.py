# SPDX-License-Identifier: MIT
"""Reading the configuration again: all of the new one or nothing, and no trace of having looked."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gunicorn.app.base import BaseApplication
from gunicorn.app.wsgiapp import WSGIApplication
from gunicorn.errors import ConfigError

pytestmark = pytest.mark.usefixtures("here")


def state(app: Any) -> tuple[Any, ...]:
    """Everything that a look at the configuration must leave as it was."""
    return (
        dict(app.__dict__),
        str(app.cfg),
        os.getcwd(),
        dict(os.environ),
        list(sys.path),
        {name: module for name, module in sys.modules.items() if name.startswith(("fre", "__config"))},
    )


def test_a_fresh_config_leaves_no_trace(start: Any, here: Path) -> None:
    (here / "gunicorn.conf.py").write_text("workers = 2\n")
    app = start("--threads", "4")
    (here / "gunicorn.conf.py").write_text(
        "import os, sys\n"
        "os.environ['FRESH'] = '1'\n"
        "sys.path.insert(0, 'fresh/lib')\n"
        "os.chdir('/')\n"
        "workers = 3\n"
        "threads = 5\n"
    )
    before = state(app)
    fresh = app.fresh_config()
    assert state(app)[:5] == before[:5]
    assert fresh is not app.cfg
    assert (app.cfg.workers, fresh.workers, fresh.threads) == (2, 3, 4)


FAILURES = {
    "workers = -1\n": "line 1: workers = -1",
    "x = \n": "line 1: SyntaxError",
    "raise SystemExit(0)\n": "exits",
    "import sys\nsys.exit('no')\n": "line 2",
    "1 / 0\n": "ZeroDivisionError",
    "companion_worker = []\n": "companion_workers",
    "import os, sys\nos.environ['X'] = 'y'\nsys.path[:] = []\nos.chdir('/')\nworkers = 'x'\n": "line 5",
    "companion_config_file = 'nowhere.py'\n": "nowhere.py",
    "raise KeyError('k')\n": "KeyError",
    "import asyncio\nraise asyncio.CancelledError\n": "line 2: CancelledError",
    "raise KeyboardInterrupt\n": "KeyboardInterrupt",
}


# To show a traceback must cause no warning.
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("how", ["path", "module"])
@pytest.mark.parametrize("text", FAILURES)
def test_a_mistake_changes_nothing(start: Any, here: Path, text: str, how: str) -> None:
    (here / "frepkg").mkdir()
    (here / "frepkg/__init__.py").write_text("")
    conf = here / "frepkg/conf.py"
    conf.write_text("workers = 2\n")
    app = start("-c", "python:frepkg.conf" if how == "module" else "frepkg/conf.py")
    before = state(app)
    package = sys.modules.get("frepkg")
    conf.write_text(text)
    with pytest.raises(ConfigError) as info:
        app.fresh_config()
    assert FAILURES[text] in str(info.value)
    assert "\n" not in str(info.value)
    assert state(app) == before
    if package is not None:
        assert package.__dict__["conf"] is sys.modules["frepkg.conf"]
    with pytest.raises(ConfigError):
        app.reload()
    assert state(app) == before


def test_a_later_mistake_puts_the_module_back(start: Any, here: Path) -> None:
    (here / "freconf.py").write_text("workers = 2\n")
    (here / "companions.py").write_text("")
    app = start("-c", "python:freconf", "--companion-config-file", "companions.py")
    module = sys.modules["freconf"]
    (here / "companions.py").write_text("workers = 3\n")
    with pytest.raises(ConfigError):
        app.fresh_config()
    assert sys.modules["freconf"] is module


def test_a_module_is_really_run_again(start: Any, here: Path) -> None:
    # Same size, same second: the cached byte code looks as good as new.
    (here / "freconf.py").write_text("workers = 2\n")
    app = start("-c", "python:freconf")
    for workers in (3, 4, 5):
        (here / "freconf.py").write_text(f"workers = {workers}\n")
        app.reload()
        assert app.cfg.workers == workers


def test_reload_takes_over_what_the_file_does(start: Any, here: Path) -> None:
    (here / "gunicorn.conf.py").write_text("raw_env = ['FRE_A=1', 'FRE_B=1']\n")
    app = start()
    os.environ.update(app.cfg.env)  # as the arbiter does
    (here / "sub").mkdir()
    (here / "gunicorn.conf.py").write_text(
        "import os, sys\n"
        "assert 'FRE_A' not in os.environ\n"
        "os.environ['FRE_C'] = '1'\n"
        "sys.path.insert(0, 'fre/lib')\n"
        "raw_env = ['FRE_B=2']\n"
        "chdir = 'sub'\n"
    )
    app.reload()
    assert app.cfg.env == {"FRE_B": "2"}
    assert app.cfg.env_orig.get("FRE_A") is None
    assert "FRE_A" not in os.environ
    assert os.environ["FRE_C"] == "1"
    assert "fre/lib" in sys.path
    assert os.getcwd() == str(here / "sub")


def test_paths_start_where_the_server_did(start: Any, here: Path) -> None:
    (here / "sub").mkdir()
    (here / "conf.py").write_text("chdir = 'sub'\nworkers = 2\ncompanion_config_file = 'companions.py'\n")
    (here / "companions.py").write_text("companion_startsecs = 2\n")
    app = start("-c", "conf.py")
    assert os.getcwd() == str(here / "sub")
    for _ in range(2):
        fresh = app.fresh_config()
        assert (fresh.workers, fresh.chdir, fresh.companion_startsecs) == (2, str(here / "sub"), 2)
        assert os.getcwd() == str(here / "sub")
        app.reload()
    os.chdir("/")
    assert app.fresh_config().chdir == str(here / "sub")
    assert os.getcwd() == "/"


def test_from_a_directory_that_is_gone(start: Any, here: Path) -> None:
    (here / "sub").mkdir()
    (here / "conf.py").write_text("workers = 2\n")
    app = start("-c", f"{here}/conf.py")
    os.chdir(here / "sub")
    (here / "sub").rmdir()
    assert app.fresh_config().workers == 2
    with pytest.raises(FileNotFoundError):
        os.getcwd()
    os.chdir("/")


def test_a_link_that_was_switched_leads_to_the_new_release(
    start: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in (1, 2):
        (here / f"release{n}").mkdir()
        (here / f"release{n}/gunicorn.conf.py").write_text(f"workers = {n}\n")
    (here / "current").symlink_to("release1")
    monkeypatch.chdir(here / "current")
    monkeypatch.setenv("PWD", str(here / "current"))
    app = start()
    assert app.cfg.workers == 1
    (here / "current").unlink()
    (here / "current").symlink_to("release2")
    app.reload()
    assert (app.cfg.workers, app.cfg.chdir) == (2, str(here / "current"))
    assert os.path.samefile(".", here / "release2")


def test_arguments_and_environment_are_those_of_the_start(
    start: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "3")
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--threads 4")
    app = start("--timeout", "5")
    # The application may change these.
    monkeypatch.setattr(sys, "argv", ["other", "--timeout", "6", "--nonsense"])
    monkeypatch.setenv("WEB_CONCURRENCY", "7")
    monkeypatch.delenv("GUNICORN_CMD_ARGS")
    fresh = app.fresh_config()
    assert (fresh.workers, fresh.threads, fresh.timeout) == (3, 4, 5)
    assert os.environ["WEB_CONCURRENCY"] == "7"


def test_a_default_file_that_is_gone_is_a_mistake(start: Any, here: Path) -> None:
    (here / "gunicorn.conf.py").write_text("workers = 2\n")
    app = start()
    (here / "gunicorn.conf.py").unlink()
    with pytest.raises(ConfigError, match=r"gunicorn\.conf\.py is gone"):
        app.fresh_config()
    (here / "gunicorn.conf.py").write_text("workers = 3\n")
    assert app.fresh_config().workers == 3


def test_a_default_file_may_appear(start: Any, here: Path) -> None:
    app = start()
    (here / "gunicorn.conf.py").write_text("workers = 2\n")
    assert app.fresh_config().workers == 2


def test_the_application_that_is_served_may_change(start: Any, here: Path) -> None:
    (here / "gunicorn.conf.py").write_text("wsgi_app = 'a:app'\n")
    app = start(kind=WSGIApplication)
    (here / "gunicorn.conf.py").write_text("wsgi_app = 'b:app'\n")
    fresh = app.fresh_config()
    assert app.app_uri == "a:app"
    app.adopt_config(fresh)
    assert app.app_uri == "b:app"


def test_an_embedders_load_config(start: Any, here: Path) -> None:
    class Embedded(BaseApplication):
        def __init__(self) -> None:
            self.options: dict[str, Any] = {"workers": 2}
            super().__init__()

        def load_config(self) -> None:
            for name, value in self.options.items():
                self.cfg.set(name, value)
            self.seen = dict(self.options)

    app = Embedded()
    app.options["workers"] = 3
    fresh = app.fresh_config()
    assert (app.cfg.workers, fresh.workers, app.seen) == (2, 3, {"workers": 2})
    app.reload()
    assert (app.cfg.workers, app.seen) == (3, {"workers": 3})
    app.options["workers"] = "many"
    with pytest.raises(ConfigError, match="many"):
        app.fresh_config()
    app.options = {"unheard_of": 1}
    with pytest.raises(ConfigError, match="unheard_of"):
        app.reload()
    assert app.cfg.workers == 3


def in_a_child(body: Callable[[], None]) -> str:
    """What *body* raises, if anything, in a process of its own."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(read)
            body()
            status = 0
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error} | {type(error.__cause__).__name__}".encode())
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return text


@pytest.mark.skipif(os.geteuid() != 0, reason="drops privileges")
@pytest.mark.parametrize("what", ["file", "directory", "default file"])
def test_a_file_that_the_user_may_not_read(start: Any, short_dir: Path, what: str) -> None:
    base = short_dir / "conf"
    base.mkdir()
    short_dir.chmod(0o755)
    os.chdir(base)
    (base / "gunicorn.conf.py").write_text("workers = 2\n")
    app = start() if what == "default file" else start("-c", "gunicorn.conf.py")
    if what == "file":
        (base / "gunicorn.conf.py").chmod(stat.S_IRUSR)
    else:
        base.chmod(stat.S_IRWXU)

    def body() -> None:
        os.setgid(65534)
        os.setuid(65534)
        app.fresh_config()

    os.chdir("/")
    said = in_a_child(body)
    assert said.startswith("ConfigError: cannot read the configuration file")
    assert str(base / "gunicorn.conf.py") in said
    assert said.endswith("| PermissionError")


@pytest.mark.skipif(os.geteuid() != 0, reason="drops privileges")
def test_a_start_directory_that_the_user_may_not_enter(start: Any, short_dir: Path) -> None:
    closed, opened = short_dir / "closed", short_dir / "open"
    short_dir.chmod(0o755)
    for directory in (closed, opened):
        directory.mkdir()
    (closed / "key.pem").write_text("")
    (opened / "conf.py").write_text(f"companion_startsecs = 3\nkeyfile = {str(closed / 'key.pem')!r}\n")
    opened.chmod(0o755)
    os.chdir(closed)
    app = start("-c", str(opened / "conf.py"))
    closed.chmod(0o700)

    def body() -> None:
        os.setgid(65534)
        os.setuid(65534)
        fresh = app.fresh_config()
        assert (fresh.companion_startsecs, fresh.chdir) == (3, str(closed))

    assert in_a_child(body) == ""
