# SPDX-License-Identifier: MIT
"""The layers of configuration, in the process of the test."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from gunicorn.app.base import BaseApplication
from gunicorn.app.wsgiapp import WSGIApplication
from gunicorn.errors import ConfigError

pytestmark = pytest.mark.usefixtures("here")


def cfg_of(start: Any, *args: str, **options: Any) -> Any:
    return start(*args, **options).cfg


# -- which file --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "location", ["conf.py", "file:conf.py", "{}/conf.py", "file:{}/conf.py", "conf.other"]
)
def test_a_file_by_its_path(start: Any, here: Path, location: str) -> None:
    (here / "conf.py").write_text("workers = 3\nproc_name = 'mine'\nsomething = 'else'\n")
    (here / "conf.other").write_text((here / "conf.py").read_text())
    cfg = cfg_of(start, "-c", location.format(here))
    assert (cfg.workers, cfg.proc_name) == (3, "mine")


def test_a_module(start: Any, here: Path) -> None:
    (here / "laypkg").mkdir()
    (here / "laypkg/__init__.py").write_text("")
    (here / "laypkg/conf.py").write_text("workers = 3\n")
    assert cfg_of(start, "-c", "python:laypkg.conf").workers == 3


def test_the_default_file(start: Any, here: Path) -> None:
    assert cfg_of(start).workers == 1
    (here / "gunicorn.conf.py").write_text("workers = 3\n")
    assert cfg_of(start).workers == 3
    (here / "other.py").write_text("threads = 2\n")
    cfg = cfg_of(start, "-c", "other.py")
    assert (cfg.workers, cfg.threads) == (1, 2)


def test_the_file_can_be_named_in_the_environment(
    start: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "a.py").write_text("workers = 3\n")
    (here / "b.py").write_text("workers = 4\n")
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "-c a.py")
    assert cfg_of(start).workers == 3
    assert cfg_of(start, "-c", "b.py").workers == 4


def test_a_file_sees_itself(start: Any, here: Path) -> None:
    (here / "conf.py").write_text(
        "import dataclasses, os\n"
        "@dataclasses.dataclass\n"
        "class Here:\n"
        "    n: 'int'\n"
        "proc_name = os.path.basename(__file__)\n"
        "workers = Here(3).n\n"
    )
    cfg = cfg_of(start, "-c", "conf.py")
    assert (cfg.proc_name, cfg.workers) == ("conf.py", 3)


# -- which layer wins --------------------------------------------------------------------------

LAYERS = ["default", "WEB_CONCURRENCY", "framework", "file", "GUNICORN_CMD_ARGS", "line"]


@pytest.mark.parametrize("used", [set(c) for n in range(3) for c in itertools.combinations(LAYERS[1:], n)])
def test_the_later_layer_wins(
    start: Any, here: Path, used: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args, framework = [], None
    if "WEB_CONCURRENCY" in used:
        monkeypatch.setenv("WEB_CONCURRENCY", "11")
    if "framework" in used:
        framework = {"WORKERS": 12}
    if "file" in used:
        (here / "gunicorn.conf.py").write_text("workers = 13\n")
    if "GUNICORN_CMD_ARGS" in used:
        monkeypatch.setenv("GUNICORN_CMD_ARGS", "--workers 14")
    if "line" in used:
        args = ["-w", "15"]
    values = dict(zip(LAYERS, [1, 11, 12, 13, 14, 15], strict=True))
    cfg = cfg_of(start, *args, framework=framework)
    assert cfg.workers == max(values[layer] for layer in {"default", *used})


COMPANION_LAYERS = ["default", "file", "companion file", "GUNICORN_CMD_ARGS", "line"]


@pytest.mark.parametrize(
    "used", [set(c) for n in range(3) for c in itertools.combinations(COMPANION_LAYERS[1:], n)]
)
def test_where_the_companions_file_ranks(
    start: Any, here: Path, used: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main, args = "", []
    if "file" in used:
        main = "companion_stop_timeout = 61\n"
    if "companion file" in used:
        main += "companion_config_file = 'companions.py'\n"
        (here / "companions.py").write_text("import os\nown = 3\ncompanion_stop_timeout = 62\n")
    if "GUNICORN_CMD_ARGS" in used:
        monkeypatch.setenv("GUNICORN_CMD_ARGS", "--companion-stop-timeout=63")
    if "line" in used:
        args = ["--companion-stop-timeout", "64"]
    (here / "gunicorn.conf.py").write_text(main)
    values = dict(zip(COMPANION_LAYERS, range(60, 65), strict=True))
    assert cfg_of(start, *args).companion_stop_timeout == max(values[layer] for layer in {"default", *used})


@pytest.mark.parametrize("how", ["file", "GUNICORN_CMD_ARGS", "line"])
def test_the_companions_file_can_be_named_by(
    start: Any, here: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "companions.py").write_text("companion_reload = 'all'\n")
    (here / "wrong.py").write_text("companion_reload = 'changed'\n")
    args = []
    if how == "file":
        (here / "gunicorn.conf.py").write_text("companion_config_file = 'companions.py'\n")
    elif how == "GUNICORN_CMD_ARGS":
        (here / "gunicorn.conf.py").write_text("companion_config_file = 'wrong.py'\n")
        monkeypatch.setenv("GUNICORN_CMD_ARGS", "--companion-config-file companions.py")
    else:
        monkeypatch.setenv("GUNICORN_CMD_ARGS", "--companion-config-file wrong.py")
        args = ["--companion-config-file", "companions.py"]
    assert cfg_of(start, *args).companion_reload == "all"


def test_companions_of_flags_add_to_those_of_the_file(
    start: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "gunicorn.conf.py").write_text(
        "companion_workers = [{'name': 'a', 'target': 'm:a'}]\ncompanion_env = {'A': '1', 'B': '1'}\n"
    )
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--companion-worker b=m:b --companion-env B=2")
    cfg = cfg_of(start, "--companion-worker", "c=m.n:C.run", "--companion-env", "C=x=y")
    assert cfg.companion_workers == [
        {"name": "a", "target": "m:a"},
        {"name": "b", "target": "m:b"},
        {"name": "c", "target": "m.n:C.run"},
    ]
    assert cfg.companion_env == {"A": "1", "B": "2", "C": "x=y"}


@pytest.mark.parametrize(
    ("args", "setting", "value"),
    [
        (["-b", "a", "-b", "unix:b"], "bind", ["a", "unix:b"]),
        (["--preload"], "preload_app", True),
        (["--no-sendfile"], "sendfile", False),
        (["--umask", "0022"], "umask", 18),
        (["-m", "0xFF"], "umask", 255),
        (["-w 2"], "workers", 2),
        (["--companion-control-socket", ""], "companion_control_socket", ""),
        (["--companion-stop-signal", "10"], "companion_stop_signal", 10),
        (["--cert-reqs", "2"], "cert_reqs", 2),
        (["--env", "A=1", "-e", "B=2"], "env", {"A": "1", "B": "2"}),
        (["-b", "fd://42"], "bind", ["fd://42"]),
    ],
)
def test_flags(start: Any, args: list[str], setting: str, value: Any) -> None:
    assert getattr(cfg_of(start, *args), setting) == value


#: A flag with its argument, and the setting that it sets to which value.
COMPANION_FLAGS: dict[str, tuple[str, object]] = {
    "--companion-config-file companions.py": ("companion_config_file", "companions.py"),
    "--companion-control-socket run/c.sock": ("companion_control_socket", "run/c.sock"),
    "--companion-control-socket-mode 660": ("companion_control_socket_mode", 0o660),
    "--companion-run-dir run/here": ("companion_run_dir", "run/here"),
    "--companion-cwd sub": ("companion_cwd", "sub"),
    "--companion-env A=1 --companion-env B=two=2": ("companion_env", {"A": "1", "B": "two=2"}),
    "--companion-stop-signal SIGINT": ("companion_stop_signal", "SIGINT"),
    "--companion-stop-timeout 7": ("companion_stop_timeout", 7),
    "--companion-stop-as-group": ("companion_stop_as_group", True),
    "--companion-stop-order together": ("companion_stop_order", "together"),
    "--companion-reload-timeout 8": ("companion_reload_timeout", 8),
    "--companion-startsecs 0.5": ("companion_startsecs", 0.5),
    "--companion-restart-delay 0.25": ("companion_restart_delay", 0.25),
    "--companion-stdout out.log": ("companion_stdout", "out.log"),
    "--companion-stderr stdout": ("companion_stderr", "stdout"),
    "--companion-manager-shutdown-buffer 3": ("companion_manager_shutdown_buffer", 3),
    "--companion-manager-stop-timeout 4": ("companion_manager_stop_timeout", 4),
    "--companion-manager-reload-timeout 5": ("companion_manager_reload_timeout", 5),
    "--companion-reload all": ("companion_reload", "all"),
    "--no-gc-freeze": ("gc_freeze", False),
}


@pytest.mark.parametrize("how", ["line", "environment"])
def test_every_companion_flag_sets_its_setting(
    start: Any, here: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "companions.py").write_text("companion_startsecs = 2\n")
    text = " ".join(COMPANION_FLAGS)
    if how == "environment":
        monkeypatch.setenv("GUNICORN_CMD_ARGS", text)
    cfg = cfg_of(start, *(text.split() if how == "line" else []))
    found = {name: getattr(cfg, name) for name, _ in COMPANION_FLAGS.values()}
    assert found == dict(COMPANION_FLAGS.values())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["-q"], "unrecognized arguments: -q"),
        (["-w", "many"], "--workers"),
        (["--companion-worker", "nothing"], "NAME=MODULE:CALLABLE"),
        (["--companion-worker", "a=:"], "NAME=MODULE:CALLABLE"),
        (["--companion-env", "nothing"], "KEY=VALUE"),
    ],
)
def test_flags_that_the_parser_refuses(
    start: Any, args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as info:
        start(*args)
    assert info.value.code == 2
    assert said in capsys.readouterr().err


# -- what is said about mistakes ---------------------------------------------------------------

MISTAKES = {
    "workers = -3\n": ["conf.py, line 1: workers = -3: ", "0 or more"],
    "import os\n\nif os.name:\n    bind = 'h:x'\n": ["conf.py, line 4: bind = 'h:x': ", "port 'x'"],
    "def pre_fork(server):\n    pass\n": ["conf.py, line 1: pre_fork", "2 arguments"],
    "companion_stop_tiemout = 3\n": [
        "line 1: companion_stop_tiemout is not",
        "did you mean companion_stop_timeout",
    ],
    "companion_directory = '/srv'\n": ["companion_directory is not a setting: here it is companion_cwd"],
    "companion_stopwaitsecs = 9\n": [
        "companion_stopwaitsecs is not a setting: here it is companion_stop_timeout"
    ],
    "companion_autorestart = 'unexpected'\n": ["'unexpected': here it is 'on-failure'"],
    "companion_user = 'rq'\n": ["companion_user is not a setting: companions run as the server's user"],
    "companion_workers = 'a'\n": ["companion_workers = 'a'", "list of dicts"],
    "user = 'no-such-user-here'\n": ["line 1: user", "no-such-user-here"],
    "workers = -3\ntimeout = 'x'\ncompanion_startsec = 1\n": [
        "3 mistakes",
        "line 1: workers",
        "line 2: timeout",
        "line 3: companion_startsec is not a setting; did you mean companion_startsecs?",
    ],
    "x = 1\ndef f(:\n": ["conf.py, line 2: SyntaxError"],
    "def f():\n    return 1 / 0\nf()\n": ["conf.py, line 2: ZeroDivisionError"],
    "x = nowhere\n": ["conf.py, line 1: NameError: name 'nowhere'"],
    "\nraise SystemExit('enough')\n": ["conf.py, line 2", "exits", "enough"],
    "import sys\nsys.exit()\n": ["conf.py, line 2", "exits"],
    "import no_such_module_here\n": ["line 1: ModuleNotFoundError", "no_such_module_here"],
    "globals()['workers'] = -3\n": ["conf.py: workers = -3"],
    "a = '\0'\n": ["conf.py", "null bytes"],
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_in_the_file_ends_the_start_with_one_message(
    start: Any, here: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "conf.py").write_text(text)
    with pytest.raises(SystemExit) as info:
        start("-c", "conf.py")
    assert info.value.code == 1
    err = capsys.readouterr().err
    assert err.count("\nError: ") + err.startswith("Error: ") == 1
    message = f"\n{err}".partition("\nError: ")[2]
    # Each of several mistakes has a line of its own.
    assert message.count("\n  line ") == (3 if "3 mistakes" in MISTAKES[text] else 0)
    for said in MISTAKES[text]:
        assert said in message
    # The traceback shows the user's file, and not our code that reads it.
    assert f"{os.sep}gunicorn{os.sep}app" not in err


def test_the_users_part_of_the_traceback_is_shown(
    start: Any, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "conf.py").write_text("def f():\n    return 1 / 0\nf()\n")
    with pytest.raises(SystemExit):
        start("-c", "conf.py")
    err = capsys.readouterr().err
    assert err.count("File ") == 2
    assert "return 1 / 0" in err


COMPANION_MISTAKES = {
    "workers = 3\n": ["companions.py, line 1: workers cannot be set here"],
    "companion_config_file = 'x'\n": ["companion_config_file cannot"],
    "companion_startsec = 3\n": ["did you mean companion_startsecs"],
    "companion_startsecs = -3\nbind = 'x'\n": ["2 mistakes", "line 1: companion_startsecs", "line 2: bind"],
    "x = \n": ["companions.py, line 1: SyntaxError"],
    "gc_freeze = False\n": ["gc_freeze cannot be set here"],
}


@pytest.mark.parametrize("text", COMPANION_MISTAKES)
def test_a_mistake_in_the_companions_file(
    start: Any, here: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "companions.py").write_text(text)
    with pytest.raises(SystemExit):
        start("--companion-config-file", "companions.py")
    err = capsys.readouterr().err
    for said in COMPANION_MISTAKES[text]:
        assert said in err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["-c", "nowhere.py"], "nowhere.py: No such file"),
        (["-c", "."], "Is a directory"),
        (["-c", "python:laynothing"], "cannot find the configuration module 'laynothing'"),
        (["-c", "python:os.nothing"], "cannot find the configuration module 'os.nothing'"),
        (["--companion-config-file", "nowhere.py"], "nowhere.py: No such file"),
        (["-w", "-3"], "--workers -3: must be 0 or more"),
        (["-b", "h:x"], "--bind ['h:x']"),
        (["-k", "eventlet"], "gevent"),
        (["--companion-startsecs", "-1"], "--companion-startsecs '-1'"),
        (["--chdir", "/no/such/directory"], "--chdir '/no/such/directory'"),
        (["--reload-engine", "x"], "--reload-engine 'x'"),
    ],
)
def test_values_that_are_refused(
    start: Any, args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as info:
        start(*args)
    assert info.value.code == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("--foo=bar", 2, ["unrecognized arguments: --foo=bar", "GUNICORN_CMD_ARGS"]),
        ("--workers -3", 1, ["GUNICORN_CMD_ARGS: --workers -3"]),
        ("--dirty-workers 2", 1, ["--dirty-workers", "there are no dirty workers", "GUNICORN_CMD_ARGS"]),
        ("--name 'open", 1, ["GUNICORN_CMD_ARGS", "quotation"]),
    ],
)
def test_mistakes_in_cmd_args(
    start: Any,
    text: str,
    code: int,
    said: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GUNICORN_CMD_ARGS", text)
    with pytest.raises(SystemExit) as info:
        start()
    assert info.value.code == code
    err = capsys.readouterr().err
    assert all(part in err for part in said)


# What is said of a flag that does not exist.
UNKNOWN_FLAGS = {
    ("--wrokers", "3"): "--wrokers: did you mean --workers?",
    ("--db-password=sesame",): "unrecognized arguments: --db-password=***",
}


@pytest.mark.parametrize("flags", UNKNOWN_FLAGS)
def test_unknown_flags(start: Any, flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        start(*flags, "app:app", kind=WSGIApplication)
    assert info.value.code == 2
    assert UNKNOWN_FLAGS[flags] in capsys.readouterr().err


def test_several_values_are_told_line_by_line(start: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        start("-w", "-3", "-b", "h:x", "--env", "SECRET_KEY")
    err = capsys.readouterr().err
    assert err.startswith("Error: command line: 3 mistakes:\n  --bind ['h:x']: ")
    assert err.count("\n  --") == 3


def test_several_flags_are_told_line_by_line(start: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        start("--wrokers", "3", "--relaod", "--frob", "app:app")
    err = capsys.readouterr().err
    assert "unrecognized arguments: --wrokers --relaod --frob\n" in err
    assert "\n  --wrokers: " in err and "\n  --relaod: " in err


@pytest.mark.parametrize(
    ("args", "value", "uri"),
    [
        (["--proxy-protocol", "app:app"], "auto", "app:app"),
        (["app:app", "--proxy-protocol"], "auto", "app:app"),
        (["--proxy-prot", "app:app"], "auto", "app:app"),
        (["--proxy-protocol", "v2", "app:app"], "v2", "app:app"),
        (["--proxy-protocol", "auto", "--reload", "app:app"], "auto", "app:app"),
        (["--proxy-protocol=v1", "app:app"], "v1", "app:app"),
        (["--proxy-protocol", "off", "app:app"], "off", "app:app"),
        (["--proxy-protocol", "--", "v2"], "auto", "v2"),
        (["--proxy-protocol", "app:app", "--"], "auto", "app:app"),
    ],
)
def test_the_modes_of_proxy_protocol(start: Any, args: list[str], value: str, uri: str) -> None:
    app = start(*args, kind=WSGIApplication)
    assert app.cfg.proxy_protocol == value
    assert app.app_uri == uri


def test_a_wrong_mode_of_proxy_protocol(start: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        start("--proxy-protocol=v3", "app:app")
    assert "--proxy-protocol 'v3': expected one of off, v1, v2, auto, not 'v3'" in capsys.readouterr().err


def test_a_module_named_like_a_companion_setting_is_no_mistake(start: Any, here: Path) -> None:
    (here / "companion_laytasks.py").write_text("")
    (here / "gunicorn.conf.py").write_text("import companion_laytasks\nworkers = 2\n")
    assert cfg_of(start).workers == 2


# -- directories -------------------------------------------------------------------------------


def test_chdir_and_the_import_path(start: Any, here: Path) -> None:
    (here / "sub").mkdir()
    (here / "laybeside.py").write_text("n = 3\n")
    (here / "conf.py").write_text("import laybeside\nworkers = laybeside.n\nchdir = 'sub'\n")
    cfg = cfg_of(start, "-c", "conf.py")
    assert cfg.workers == 3
    assert cfg.chdir == os.getcwd() == str(here / "sub")
    assert {str(here), str(here / "sub")} <= set(sys.path)


def test_pythonpath(start: Any, here: Path) -> None:
    app = start("--pythonpath", f"{here}/lib, other,")
    app.extend_python_path()
    app.extend_python_path()
    assert sys.path[:2] == [f"{here}/other", f"{here}/lib"]
    assert sys.path.count(f"{here}/lib") == 1


# -- applications ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "conf", "uri"),
    [
        (["app:app"], "", "app:app"),
        (["app:app"], "wsgi_app = 'app1:app1'", "app:app"),
        ([], "wsgi_app = 'app1:app1'", "app1:app1"),
        (["--reload", "--", "app:app"], "", "app:app"),
    ],
)
def test_the_application_by_name(start: Any, here: Path, args: list[str], conf: str, uri: str) -> None:
    (here / "gunicorn.conf.py").write_text(conf)
    app = start(*args, kind=WSGIApplication)
    assert app.app_uri == uri
    assert app.cfg.proc_name == (args[-1] if args else "gunicorn")


@pytest.mark.parametrize(("args", "said"), [([], "MODULE:CALLABLE"), (["a:a", "b:b"], "a:a b:b")])
def test_no_application_or_two(
    start: Any, args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        start(*args, kind=WSGIApplication)
    assert said in capsys.readouterr().err


def test_the_callable_is_loaded_once(start: Any) -> None:
    app = start()
    assert app.wsgi() is app.wsgi()


def test_an_embedders_own_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Embedded(BaseApplication):
        def __init__(self, options: dict[str, Any]) -> None:
            self.options = options
            super().__init__()

        def load_config(self) -> None:
            for name, value in self.options.items():
                self.cfg.set(name, value)

        def load(self) -> Any:
            return len

    monkeypatch.setattr(sys, "argv", ["prog", "--unknown-to-us"])
    app = Embedded({"bind": "127.0.0.1:0", "workers": 2})
    assert (app.cfg.bind, app.cfg.workers, app.wsgi()) == (["127.0.0.1:0"], 2, len)
    with pytest.raises(SystemExit):
        Embedded({"workers": "many"})


def test_what_an_application_must_define() -> None:
    class Empty(BaseApplication):
        def do_load_config(self) -> None: ...

    app = Empty()
    for call in (app.load, app.load_config, lambda: app.init(None, None, [])):  # type: ignore[arg-type]
        with pytest.raises(NotImplementedError):
            call()


def test_the_older_ways_to_read_a_file(start: Any, here: Path) -> None:
    (here / "conf.py").write_text("workers = 3\nother = 4\n")
    (here / "layconf.py").write_text("workers = 5\n")
    app = start()
    assert app.get_config_from_filename("conf.py")["other"] == 4
    assert app.get_config_from_module_name("layconf")["workers"] == 5
    assert app.cfg.workers == 1
    assert app.load_config_from_file("conf.py")["workers"] == 3
    assert app.cfg.workers == 3
    app.load_config_from_module_name_or_filename("python:layconf")
    assert app.cfg.workers == 5
    with pytest.raises(ConfigError):
        app.load_config_from_file("nowhere.py")
