# SPDX-License-Identifier: MIT
"""Applications in PasteDeploy files, and the server as their ``server_runner``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from gunicorn.app import pasterapp
from gunicorn.app.wsgiapp import WSGIApplication

pytest.importorskip("paste.deploy")

INI = """
[app:main]
paste.app_factory = paste_shop:factory
name = main

[app:admin]
paste.app_factory = paste_shop:factory
name = admin of %(owner)s

[server:main]
use = egg:gunicorn#main
host = 127.0.0.1
port = 6543
workers = 3
"""

LOGGING = """
[loggers]
keys = root

[handlers]
keys =

[formatters]
keys =

[logger_root]
level = INFO
handlers =
"""


@pytest.fixture(autouse=True)
def paste_files(here: Path) -> None:
    (here / "shop.ini").write_text(INI)
    (here / "logged.ini").write_text(INI + LOGGING)
    (here / "paste_shop.py").write_text(
        "def factory(global_conf, name):\n    return lambda *call: [name, dict(global_conf)]\n"
    )


@pytest.mark.parametrize(
    ("args", "name"),
    [
        (["--paste", "shop.ini"], "main"),
        (["--paster", "shop.ini"], "main"),
        (["--paste", "shop.ini#main"], "main"),
        (["--paste", "shop.ini#admin", "--paste-global", "owner=me"], "admin of me"),
    ],
)
def test_the_application_of_a_file(start: Any, here: Path, args: list[str], name: str) -> None:
    app = start(*args, kind=WSGIApplication)
    called: Any = app.wsgi()({}, None)
    assert called[0] == name
    assert called[1]["__file__"] == str(here / "shop.ini")
    assert app.cfg.proc_name == str(here / "shop.ini")
    assert app.cfg.logconfig is None


def test_a_file_named_in_the_configuration(start: Any, here: Path) -> None:
    (here / "gunicorn.conf.py").write_text("paste = 'logged.ini'\nraw_paste_global_conf = ['owner=me']\n")
    app = start(kind=WSGIApplication)
    assert app.wsgi()({}, None)[0] == "main"
    assert app.cfg.logconfig == str(here / "logged.ini")
    assert app.fresh_config().paste == "logged.ini"


def test_its_logging_ranks_below_the_configuration(start: Any, here: Path) -> None:
    app = start("--paste", "logged.ini", kind=WSGIApplication)
    assert app.cfg.logconfig == str(here / "logged.ini")
    app = start("--paste", "logged.ini", "--log-config", "other", kind=WSGIApplication)
    assert app.cfg.logconfig == "other"


def test_a_file_that_is_not_there(start: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        start("--paste", "nowhere.ini#main", kind=WSGIApplication)
    assert "nowhere.ini" in capsys.readouterr().err


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    apps: list[Any] = []
    monkeypatch.setattr(pasterapp.PasterServerApplication, "run", lambda self: apps.append(self))
    # The command line is that of pserve or of paster.
    monkeypatch.setattr(sys, "argv", ["pserve", "shop.ini", "--reload-interval=3"])
    return apps


def site(environ: Any, start_response: Any) -> list[bytes]:
    return [b"site"]


@pytest.mark.parametrize(
    ("section", "bind"),
    [
        ({}, ["127.0.0.1:8000"]),
        ({"host": "h", "port": "1"}, ["h:1"]),
        ({"port": "1"}, [":1"]),
        ({"host": "h1:1,unix:/run/s"}, ["h1:1", "unix:/run/s"]),
        ({"bind": "h:2"}, ["h:2"]),
    ],
)
def test_addresses_of_a_server_section(served: list[Any], section: dict[str, str], bind: list[str]) -> None:
    pasterapp.serve(site, {}, **section)
    assert served[0].cfg.bind == bind


def test_a_server_section(served: list[Any], here: Path) -> None:
    (here / "conf.py").write_text("threads = 2\nworkers = 2\n")
    section = {"config": "conf.py", "workers": "3", "Timeout": "7", "preload_app": "true", "keepalive": None}
    pasterapp.serve(site, {"__file__": "logged.ini"}, **section)
    (app,) = served
    cfg = app.cfg
    assert app.wsgi() is site
    assert (cfg.threads, cfg.workers, cfg.timeout, cfg.preload_app, cfg.keepalive) == (2, 3, 7, True, 2)
    assert (cfg.proc_name, cfg.logconfig) == (str(here / "logged.ini"), str(here / "logged.ini"))
    os.chdir("/")
    assert app.fresh_config().workers == 3


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"wrkers": "3"}, "wrkers is not a setting; did you mean workers?"),
        ({"workers": "x"}, "workers = x"),
        ({"http_protocols": "h2"}, "server section: http_protocols = h2: this server speaks HTTP/1.1"),
        ({"workers": "x", "timeuot": "3"}, "2 mistakes:\n  workers = x: expected"),
        ({"raw_env": "SECRET_KEY"}, "raw_env = SECRET_KEY"),
        ({"companion_env": "SECRET_KEY=sesame"}, "companion_env = SECRET_KEY=***"),
    ],
)
def test_mistakes_in_a_server_section(
    served: list[Any], section: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        pasterapp.serve(site, {}, **section)
    err = capsys.readouterr().err
    assert said in err and "sesame" not in err


def test_the_entry_point_leads_here() -> None:
    from importlib import metadata

    entries = metadata.entry_points(group="paste.server_runner", name="main")
    values = {entry.value for entry in entries if entry.dist and entry.dist.name == "gunicorn"}
    assert values <= {"gunicorn.app.pasterapp:serve"}
