# SPDX-License-Identifier: MIT
"""``gunicorn-companion import``: what becomes of each file and of each key, and which files are refused."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import import_tables
import pytest
from harness import ROOT
from importcases import CASES, DATA, VARIABLES, expected, translated

from gunicorn.app.wsgiapp import WSGIApplication
from gunicorn.companion import config, ctl, keys
from gunicorn.companion.client import completion
from gunicorn.companion.importing import (
    circus,
    compose,
    execline,
    oncalendar,
    pm2,
    procfile,
    supervisord,
    systemd,
    uwsgi,
    values,
)
from gunicorn.companion.importing.command import ORIGINS, recognise, translate
from gunicorn.companion.importing.found import (
    NOT_WITH_SCHEDULE,
    RELOAD_TIMEOUT,
    RESTART_DELAY_MAX,
    Env,
    Found,
    Mark,
    Program,
    Source,
    SourceError,
    Text,
    plain,
)
from gunicorn.companion.importing.webservers import recognise as recognise_web
from gunicorn.companion.importing.webservers import replace_web_servers
from gunicorn.companion.importing.writer import PLACEHOLDER_KEYS, literal, write
from gunicorn.companion.schedule import check_schedule

ORIGIN_MODULES: dict[str, Any] = {
    "supervisord": supervisord,
    "procfile": procfile,
    "circus": circus,
    "uwsgi": uwsgi,
    "systemd": systemd,
    "compose": compose,
    "pm2": pm2,
}

# -- whole files -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_a_file_becomes_what_is_expected(case: str) -> None:
    assert translated(*CASES[case]) == expected(case).read_text()


def test_there_are_files_of_every_kind() -> None:
    assert {case.partition("/")[0] for case in CASES} == set(ORIGINS) == set(ORIGIN_MODULES)
    assert len(CASES) >= 30


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with an application and all that the files mention, as it would be on their host."""
    (tmp_path / "tiny.py").write_text("def app(environ, start_response): ...\n")
    for name in ("srv/shop/venv", "srv/shop/lib", "var/log/shop", "run/shop", "data/compose"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("srv/shop/env", "data/compose/.env.shop", "data/compose/a.env"):
        (tmp_path / name).write_text("A=1\n")
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value.replace("/srv/", f"{tmp_path}/srv/"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    yield tmp_path
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_passes_the_check(case: str, place: Path, monkeypatch, capsys) -> None:
    text = re.sub(r"/(srv|var/log|run)/shop|/data/", rf"{place}\g<0>", translated(*CASES[case]))
    assert check(place, text, monkeypatch, capsys) == (0, "")


def check(place: Path, text: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> tuple[object, str]:
    """The exit status of ``gunicorn --check-config``, and what it prints of mistakes."""
    (place / "gunicorn.conf.py").write_text(text)
    monkeypatch.setattr(sys, "argv", ["gunicorn", "--check-config", "tiny:app"])
    with pytest.raises(SystemExit) as end:
        WSGIApplication("%(prog)s").run()
    return end.value.code, capsys.readouterr().err


def test_the_file_of_the_manual_passes_the_check(place: Path, monkeypatch, capsys) -> None:
    """What is often asked for can be said."""
    page = (ROOT / "docs/migrating.rst").read_text().partition("\nIn one file:\n")[2]
    text = textwrap.dedent(page.partition("code-block:: python\n\n")[2])
    assert check(place, text, monkeypatch, capsys) == (0, "")


# -- each key --------------------------------------------------------------------------------

# A value for each key of each table. What it stands in makes it take effect.
SUPERVISORD = {
    "command": "sleep 3",
    "process_name": "other",
    "numprocs": "2",
    "numprocs_start": "3\nnumprocs=2",
    "priority": "5\n[program:later]\ncommand=x",
    "autostart": "false",
    "startsecs": "7",
    "startretries": "7",
    "autorestart": "true",
    "exitcodes": "0,3",
    "stopsignal": "INT",
    "stopwaitsecs": "7",
    "stopasgroup": "true",
    "redirect_stderr": "true",
    "stdout_logfile": "/tmp/x",
    "stdout_logfile_maxbytes": "3MB\nstdout_logfile=/tmp/x",
    "stdout_logfile_backups": "3\nstdout_logfile=/tmp/x",
    "stderr_logfile": "/tmp/x",
    "stderr_logfile_maxbytes": "3MB\nstderr_logfile=/tmp/x",
    "stderr_logfile_backups": "3\nstderr_logfile=/tmp/x",
    "environment": 'A="b"',
    "directory": "/tmp",
    "umask": "027",
    "socket": "tcp://127.0.0.1:8001",
}
CIRCUS = {
    "cmd": "sleep 3",
    "args": "x",
    "shell": "True",
    "working_dir": "/tmp",
    "numprocesses": "2",
    "singleton": "True\nnumprocesses = 2",
    "autostart": "False",
    "respawn": "False",
    "max_retry": "7",
    "graceful_timeout": "7",
    "stop_signal": "INT",
    "stop_children": "True",
    "max_age": "7",
    "max_age_variance": "7",
    "priority": "-1\n[watcher:first]\ncmd = x",
    "virtualenv": "/venv",
    "rlimit_nofile": "7",
    **{
        f"{stream}_stream.{key}": f"{value}\n{stream}_stream.filename = /tmp/x"
        for stream in ("stdout", "stderr")
        for key, value in {
            "class": "StdoutStream",
            "max_bytes": "7",
            "backup_count": f"7\n{stream}_stream.max_bytes = 7",
            "time_format": "%Y",
        }.items()
    },
    **{f"{stream}_stream.filename": "/tmp/x" for stream in ("stdout", "stderr")},
    "env": "A=b",
}
UWSGI = {
    "attach-daemon": "sleep 3",
    "attach-daemon2": "cmd=sleep 3",
    "smart-attach-daemon": "/tmp/pid sleep 3",
    "smart-attach-daemon2": "cmd=sleep 3",
    "legion-attach-daemon": "legion sleep 3",
    "mule": "mule.py",
    "mules": "2",
    "env": "A=b",
    "module": "a:b",
    "wsgi": "a:b",
    "wsgi-file": "a.py",
    "callable": "b\nmodule = a",
    "http": ":1",
    "http-socket": ":1",
    "socket": ":1",
    "processes": "3",
    "workers": "3",
    "threads": "3",
    "harakiri": "3",
    "max-requests": "3",
    "listen": "3",
    "chdir": "/tmp",
    "pidfile": "/tmp/x",
    "daemonize": "/tmp/x",
    "logto": "/tmp/x",
    "uid": "shop",
    "gid": "shop",
    "procname": "shop",
    "lazy-apps": "true\nmodule = a",
    "reload-on-rss": "300",
    "cheaper": "2",
    "max-worker-lifetime": "3600",
    "pythonpath": "/tmp",
    "static-map": "/s=/srv/s",
    "static-map2": "/s=/srv",
    "check-static": "/srv",
    "cron": "-1 -1 -1 -1 -1 true",
    "cron2": "hour=3 true",
    "unique-cron": "-1 -1 -1 -1 -1 true",
    "ini": "x.ini",
}
SYSTEMD = {
    "Type": "notify",
    "ExecStart": "sleep 3",
    "ExecStartPre": "true",
    "ExecCondition": "true",
    "Restart": "always",
    "RestartSec": "7",
    "RestartMaxDelaySec": "7",
    "TimeoutStartSec": "7",
    "TimeoutStopSec": "7",
    "TimeoutSec": "7",
    "RuntimeMaxSec": "7",
    "RuntimeRandomizedExtraSec": "7",
    "WatchdogSec": "7",
    "SuccessExitStatus": "3",
    "KillMode": "mixed",
    "KillSignal": "SIGINT",
    "WorkingDirectory": "/tmp",
    "Environment": "A=b",
    "EnvironmentFile": "/tmp/x",
    "UnsetEnvironment": "A",
    "StandardOutput": "append:/tmp/x",
    "StandardError": "append:/tmp/x",
    "UMask": "027",
    "Nice": "7",
    "OOMScoreAdjust": "7",
    "CPUAffinity": "0",
    "LimitNOFILE": "7",
    "MemoryMax": "300M",
    "MemoryHigh": "300M",
    "StartLimitIntervalSec": "70",
    "StartLimitBurst": "7",
}
COMPOSE = {
    "command": "sleep 3",
    "entrypoint": "x",
    "environment": "{A: b}",
    "env_file": "x.env",
    "working_dir": "/tmp",
    "depends_on": "[other]",
    "restart": "always",
    "deploy": "{replicas: 2}",
    "scale": "2",
    "healthcheck": "{test: [CMD, 'true']}",
    "stop_signal": "SIGINT",
    "stop_grace_period": "7s",
    "mem_limit": "300M",
    "ulimits": "{nofile: 7}",
    "oom_score_adj": "7",
    "cpuset": "'0'",
    "image": "shop",
    "build": ".",
    "profiles": "[a]",
}
PM2 = {
    "name": '"other"',
    "script": '"sleep 3"',
    "args": '"x"',
    "interpreter": '"perl"',
    "interpreter_args": '"-x"',
    "node_args": '"-x"',
    "cwd": '"/tmp"',
    "instances": "2",
    "exec_mode": '"cluster"',
    "env": '{"A": "b"}',
    "max_memory_restart": '"300M"',
    "out_file": '"/tmp/x"',
    "error_file": '"/tmp/x"',
    "log_file": '"/tmp/x"',
    "merge_logs": 'true, "instances": 2, "out_file": "/tmp/x"',
    "combine_logs": 'true, "instances": 2, "out_file": "/tmp/x"',
    "time": 'true, "out_file": "/tmp/x"',
    "log_date_format": '"YYYY", "out_file": "/tmp/x"',
    "min_uptime": "7000",
    "listen_timeout": "7000",
    "wait_ready": "true",
    "kill_timeout": "7000",
    "max_restarts": "7",
    "restart_delay": "7000",
    "exp_backoff_restart_delay": "7000",
    "autorestart": "false",
    "stop_exit_codes": "[3]",
    "namespace": '"jobs"',
    "cron_restart": '"0 3 * * *", "autorestart": false',
}


def file_with(origin: str, key: str, value: str) -> Source:
    """A file with a program, and *key* in it unless that is empty."""
    line = f"{key}={value}\n" if key else ""
    if origin == "supervisord":
        base = "" if key == "command" else "command=true\n"
        return Source("x.conf", f"[program:x]\n{base}{line}")
    if origin == "circus":
        base = "" if key == "cmd" else "cmd = true\n"
        return Source("x.ini", f"[watcher:x]\n{base}{line}")
    if origin == "uwsgi":
        return Source("x.ini", f"[uwsgi]\nmaster = true\n{line}")
    if origin == "systemd":
        base = "" if key == "ExecStart" else "ExecStart=true\n"
        return Source("x.service", f"[Service]\n{base}{line}")
    if origin == "compose":
        base = "" if key == "command" else "    command: 'true'\n"
        other = "  other:\n    command: 'true'\n"
        return Source("x.yml", f"services:\n{other}  x:\n{base}{f'    {key}: {value}' if key else ''}\n")
    base = "" if key == "script" else '"script": "true"'
    more = f'"{key}": {value}' if key else ""
    return Source("x.json", f'{{"apps": [{{{", ".join(filter(None, (base, more)))}}}]}}')


def found_in(origin: str, source: Source) -> str:
    module = ORIGIN_MODULES[origin]
    found = module.translate_all([source]) if origin == "systemd" else module.translate(source)
    return write([found], ["x"])


SAMPLES = {
    "supervisord": SUPERVISORD,
    "circus": CIRCUS,
    "uwsgi": UWSGI,
    "systemd": SYSTEMD,
    "compose": COMPOSE,
    "pm2": PM2,
}


@pytest.mark.parametrize("origin", SAMPLES)
def test_every_key_of_the_table_is_tried(origin: str) -> None:
    assert SAMPLES[origin].keys() == ORIGIN_MODULES[origin].HERE.keys()


@pytest.mark.parametrize("origin", SAMPLES)
def test_keys_with_a_counterpart_have_an_effect(origin: str) -> None:
    assert [key for key in SAMPLES[origin] if not has_an_effect(origin, key)] == []


def has_an_effect(origin: str, key: str) -> bool:
    value = SAMPLES[origin][key]
    text = found_in(origin, file_with(origin, key, value))
    assert "not known, and left out" not in text, key
    # Without the key, the rest of the value stays.
    rest = value.partition("\n")[2] if origin != "pm2" else value.partition(", ")[2]
    first, equals, more = rest.partition("=" if origin != "pm2" else ": ")
    without = file_with(origin, first.strip().strip('"') if equals else "", more.strip())
    return settings_of(text) != settings_of(found_in(origin, without))


def settings_of(text: str) -> str:
    """The text without its places, which differ."""
    return re.sub(r"line \d+", "", text)


@pytest.mark.parametrize("origin", SAMPLES)
def test_keys_without_a_counterpart_are_comments_that_help(origin: str) -> None:
    assert [key for key in ORIGIN_MODULES[origin].INSTEAD if not is_a_comment(origin, key)] == []


def is_a_comment(origin: str, key: str) -> bool:
    value = "true" if origin in ("pm2", "compose") else "1"
    text = found_in(origin, file_with(origin, key, value))
    comments = " ".join(
        line.strip().lstrip("# ") for line in text.splitlines() if line.strip().startswith("#")
    )
    hint = " ".join(plain(ORIGIN_MODULES[origin].INSTEAD[key]).split())
    return hint in comments and "not known, and left out" not in text


@pytest.mark.parametrize("origin", SAMPLES)
def test_an_unknown_key_is_said_to_be_left_out(origin: str) -> None:
    assert "not known, and left out" in found_in(origin, file_with(origin, "made_up", "1"))


# -- mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.conf",
            "command=x\n[program:x]\n",
            "a.conf, line 1: 'command=x' stands before the first [section]",
        ),
        ("a.conf", "[program:x]\ncommand\n", "a.conf, line 2: 'command' is not KEY = VALUE"),
        (
            "a.conf",
            "[program:x\n\n[supervisord]\n",
            "a.conf, line 1: the section '[program:x' does not end with ]",
        ),
        ("a.conf", "[program:x]\nnumprocs=1\n", "a.conf, line 1: [program:x] has no command"),
        (
            "a.conf",
            "[program:x]\ncommand=a\nnumprocs=four\n",
            "line 3: numprocs: 'four' is not a whole number",
        ),
        ("a.conf", "[program:x]\ncommand=a 'b\n", 'line 2: command: "a \'b": no closing quotation'),
        ("a.conf", "[program:x]\ncommand=a\nstopsignal=NO\n", "line 3: stopsignal: 'NO' is not a signal"),
        (
            "a.conf",
            "[program:x]\ncommand=a\nautostart=maybe\n",
            "line 3: autostart: 'maybe' is neither true nor false",
        ),
        ("a.conf", "[program:x]\ncommand=a\numask=9\n", "line 3: umask: '9' is not an octal number"),
        (
            "a.conf",
            "[program:x]\ncommand=a\nenvironment=A\n",
            "line 3: environment: 'A' is not NAME=\"value\"",
        ),
        (
            "a.conf",
            "[program:x]\ncommand=a\nstdout_logfile=b\nstdout_logfile_maxbytes=x\n",
            "line 4: stdout_logfile_maxb",
        ),
        ("a.conf", "[group:x]\n", "line 1: [group:x] has no programs"),
        ("Procfile", "a: b\nc\n", "Procfile, line 2: 'c' is not NAME: COMMAND"),
        ("Procfile", "a: b 'c\n", 'Procfile, line 1: "b \'c": no closing quotation'),
        ("a.ini", "[watcher:x]\nnumprocesses = 1\n", "a.ini, line 1: [watcher:x] has no cmd"),
        ("a.ini", "[watcher:x]\ncmd = a\nmax_age = x\n", "a.ini, line 3: max_age: 'x' is not a whole number"),
        ("a.ini", "[uwsgi]\nworkers = many\n", "a.ini, line 2: workers: 'many' is not a whole number"),
        ("a.ini", "[uwsgi]\nstatic-map = /s\n", "a.ini, line 2: static-map: '/s' is not PREFIX=DIR"),
        ("a.ini", "[uwsgi]\ncron = 1 2\n", "a.ini, line 2: cron: '1 2' is not five numbers and a command"),
        ("a.service", "[Unit]\n", "a.service: it has no section [Service]"),
        ("a.service", "[Service]\nType=simple\n", "a.service, line 1: [Service] has no ExecStart"),
        (
            "a.service",
            "[Service]\nExecStart=a\nRestartSec=soon\n",
            "line 3: RestartSec: 'soon' is not a time",
        ),
        ("a.service", "[Service]\nExecStart=a\nRestartSec=3 parsec\n", "the unit 'parsec' is not known"),
        (
            "a.service",
            "[Unit]\nStartLimitBurst=5\nStartLimitIntervalSec=soon\n[Service]\nExecStart=a\n",
            "line 3: StartLimitIntervalSec: 'soon' is not a time",
        ),
        ("a.yml", "services:\n  a: [\n", "a.yml, line 3: "),
        ("a.yml", "a: 1\n", "a.yml: it has no 'services'"),
        (
            "a.yml",
            "services:\n  a:\n    command: x\n    restart: maybe\n",
            "line 2: services: a: restart: 'maybe'",
        ),
        (
            "a.yml",
            "services:\n  a:\n    command: x\n    deploy: 3\n",
            "services: a: deploy: 3 is not understood",
        ),
        ("a.json", '{"apps": [\n}', "a.json, line 2: Expecting value"),
        ("a.json", '{"name": 1}', "a.json: it has no 'apps'"),
        ("a.json", '{"apps": [{"name": "a"}]}', "a.json: apps[0] has no 'script'"),
        (
            "a.json",
            '{"apps": [{"script": "a", "instances": "two"}]}',
            "apps[0]: instances: 'two' is not a whole",
        ),
        (
            "ecosystem.config.js",
            "module.exports = {}",
            "node -p 'JSON.stringify(require(\"./ecosystem.config.js\"))'",
        ),
        ("a.txt", "?\n", "what kind of file is it? --from says so: supervisord, procfile"),
    ],
)
def test_a_mistake_is_one_error_with_its_place(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SourceError) as caught:
        translate([str(tmp_path / name)])
    assert str(caught.value).startswith(str(tmp_path / name)) and message in str(caught.value)


def test_a_file_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.conf"
    path.write_bytes(b"[program:x]\ncommand=\xff\n")
    with pytest.raises(SourceError, match=r"a\.conf, line 2: it is not UTF-8"):
        translate([str(path)])
    with pytest.raises(SourceError, match=r"none: cannot read it: No such file"):
        translate([str(tmp_path / "none")])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "supervisord.conf",
            "[supervisord]\n[include]\nfiles = /dev/zero\n",
            "/dev/zero: it has more than 1048576 bytes",
        ),
        ("uwsgi.ini", "[uwsgi]\nattach-daemon = " + "x" * 200_000, "line 2: attach-daemon: it has 200000"),
        ("supervisord.conf", "[program:a]\ncommand=" + "x" * 200_000, "line 2: command: it has 200000"),
        (
            "supervisord.conf",
            "[program:a]\ncommand=x\nenvironment=A=" + "x" * 200_000,
            "line 3: environment: it has 200002 characters",
        ),
        ("pm2.json", '{"apps":' + "[" * 100_000, "pm2.json: it is nested too deeply"),
        ("compose.yml", "services: " + "[" * 20_000, "compose.yml: it is nested too deeply"),
    ],
    ids=["endless", "uwsgi", "command", "environment", "json", "yaml"],
)
def test_a_file_without_measure_is_an_error_and_not_a_long_wait(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SourceError) as caught:
        translate([str(tmp_path / name)])
    assert message in str(caught.value)


def test_a_long_name_is_cut(tmp_path: Path) -> None:
    (tmp_path / "supervisord.conf").write_text(
        "".join(f"[program:{'n' * 1000}{end}]\ncommand=x\n" for end in "ab")
    )
    text = translate([str(tmp_path / "supervisord.conf")])
    assert f'"{"n" * 190}"' in text and f'"{"n" * 190}-2"' in text


def test_yaml_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(SourceError, match=r"pip install PyYAML"):
        translate([str(DATA / "compose/health.yml")])


@pytest.mark.parametrize(
    ("name", "text", "origin"),
    [
        ("supervisord.conf", "[supervisord]\n", "supervisord"),
        ("x.ini", "; comment\n[program:a]\ncommand=b\n", "supervisord"),
        ("x.ini", "[uwsgi]\n", "uwsgi"),
        ("x.ini", "[watcher:a]\n", "circus"),
        ("x", "[Unit]\n[Service]\n", "systemd"),
        ("Procfile.dev", "", "procfile"),
        ("x", "# comment\nweb: gunicorn a\n", "procfile"),
        ("compose.yaml", "", "compose"),
        ("x", "version: '3'\nservices:\n  a: {}\n", "compose"),
        ("x", '{"apps": []}', "pm2"),
        ("x", '[\n{"script": "a"}]', "pm2"),
        ("x.yml", "", "compose"),
    ],
)
def test_a_kind_is_recognised_by_name_or_text(name: str, text: str, origin: str) -> None:
    assert recognise(Source(name, text)) == origin


def test_our_own_defaults_are_known() -> None:
    assert keys.KEYS["reload_timeout"].default == RELOAD_TIMEOUT
    assert keys.KEYS["restart_delay_max"].default == RESTART_DELAY_MAX


def test_the_writer_knows_which_keys_take_placeholders() -> None:
    assert set(PLACEHOLDER_KEYS) == set(keys.PLACEHOLDER_KEYS)


# -- parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "command", "env"),
    [
        ("rq worker 'a b'", ["rq", "worker", "a b"], {}),
        ("A=1 B='x y' rq", ["rq"], {"A": "1", "B": "x y"}),
        ("env A=1 rq", ["rq"], {"A": "1"}),
        ("exec rq", ["rq"], {}),
        ("echo '$HOME'", ["echo", "$HOME"], {}),
        ("rq $QUEUES", ["sh", "-c", "exec rq $QUEUES"], {}),
        ("A=1 rq $QUEUES", ["sh", "-c", "A=1 exec rq $QUEUES"], {}),
        ("rq > /tmp/x 2>&1", ["sh", "-c", "exec rq > /tmp/x 2>&1"], {}),
        ("a && b $C", ["sh", "-c", "a && exec b $C"], {}),
        ("a | b", ["sh", "-c", "a | b"], {}),
        ("a; b", ["sh", "-c", "a; b"], {}),
        ("a & b", ["sh", "-c", "a & b"], {}),
        ("(a)", ["sh", "-c", "(a)"], {}),
        ('echo "a;b" $C', ["sh", "-c", 'exec echo "a;b" $C'], {}),
    ],
)
def test_a_line_needs_a_shell_only_for_what_it_says(
    line: str, command: list[str], env: dict[str, str]
) -> None:
    program = Program("x", "x")
    values.run_line(program, line)
    assert program.values["command"] == command
    assert program.values.get("env", {}) == env
    # Without exec the shell stays, and passes no signal on.
    assert program.values.get("stop_as_group", False) == (
        command[:2] == ["sh", "-c"] and "exec" not in command[2]
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1min 30s", 90),
        ("1.5h", 5400),
        ("100ms", 0.1),
        ("infinity", None),
        ("2d", 172800),
        ("1m30s", 90),
    ],
)
def test_times(text: str, seconds: float | None) -> None:
    assert values.seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "short", "number"),
    [
        ("50MB", "50M", 50 * 2**20),
        ("300m", "300M", 300 * 2**20),
        ("1.5GiB", "1.5G", 1610612736),
        ("0", "0", 0),
    ],
)
def test_sizes(text: str, short: str, number: int) -> None:
    assert (values.size(text), values.bytes_of(text)) == (short, number)


@pytest.mark.parametrize(
    ("value", "percent", "written"),
    [
        ("50%", True, '"50%%"'),
        ("50%", False, '"50%"'),
        ('a"b\\\n', False, '"a\\"b\\\\\\n"'),
        (Text(("a{%", Env("X"), Mark("%(index)d"))), True, "f\"a{{%%{_env('X')}%(index)d\""),
        (Text(("a", Env("X", "d"))), False, "f\"a{os.environ.get('X', 'd')}\""),
        (Text(("a", Env("X", 'q"'))), False, '"a" + os.environ.get("X", "q\\"")'),
        (Text((Env("X"),)), False, 'os.environ["X"]'),
        ({"a": [1, None, True, 0.5]}, True, '{"a": [1, None, True, 0.5]}'),
    ],
)
def test_a_value_is_written_as_python(value: Any, percent: bool, written: str) -> None:
    assert literal(value, percent=percent) == written
    os.environ["X"] = "x"
    try:
        eval(written, {"os": os, "_env": os.environ.get})
    finally:
        del os.environ["X"]


@pytest.mark.parametrize(
    ("command", "kind", "settings"),
    [
        (
            "gunicorn -w4 --bind=:80 --preload a:b",
            "gunicorn",
            {"wsgi_app": "a:b", "workers": 4, "bind": ":80"},
        ),
        ("python -m gunicorn a", "gunicorn", {"wsgi_app": "a"}),
        ("uv run gunicorn -b :1 -b :2 a", "gunicorn", {"wsgi_app": "a", "bind": [":1", ":2"]}),
        ("uvicorn a:b --uds /x", "uvicorn", {"bind": "unix:/x"}),
        (
            "uvicorn --root-path /shop --ws-max-size 99 --loop uvloop --no-server-header --factory a:b",
            "uvicorn",
            {
                "wsgi_app": "a:b()",
                "root_path": "/shop",
                "websocket_max_message_size": 99,
                "asgi_loop": "uvloop",
            },
        ),
        (
            "hypercorn -b :1 -b :2 -k trio --keep-alive 9 --root-path /x a:b",
            "hypercorn",
            {"bind": [":1", ":2"], "worker_class": "asgi", "keepalive": 9, "root_path": "/x"},
        ),
        ("daphne a:b", "daphne", {"bind": "127.0.0.1:8000"}),
        ("waitress-serve --port=81 a:b", "waitress-serve", {"bind": "0.0.0.0:81"}),
        ("uwsgi --http :1 --module a:b", "uwsgi", {"bind": ":1", "wsgi_app": "a:b"}),
        ("python manage.py runserver 0.0.0.0:8000", "manage.py", {"bind": "0.0.0.0:8000", "reload": True}),
        ("./manage.py runserver 81 --noreload", "manage.py", {"bind": "127.0.0.1:81"}),
        ("flask run --host 0.0.0.0 -p 5001", "flask", {"bind": "0.0.0.0:5001"}),
        ("python manage.py migrate", None, {}),
        ("flask shell", None, {}),
        ("/bin/prepare.sh gunicorn a", "gunicorn", {"wsgi_app": "a"}),
        ("celery -A gunicorn worker", None, {}),
        ("python -m http.server", None, {}),
    ],
)
def test_web_servers_are_recognised(command: str, kind: str | None, settings: dict[str, Any]) -> None:
    web = recognise_web(command.split())
    assert (web.kind if web else None) == kind
    assert not web or settings.items() <= web.settings.items()


def test_names_of_several_files_are_told_apart(tmp_path: Path) -> None:
    for name in ("a.conf", "b.conf"):
        (tmp_path / name).write_text("[program:x]\ncommand=a\n[program:y]\ncommand=b\npriority=1000\n")
    for name in ("Procfile.a", "Procfile.b"):
        (tmp_path / name).write_text("web: gunicorn a\nrelease: b\n")
    names: dict[str, Any] = {}
    exec(
        translate([str(tmp_path / name) for name in ("a.conf", "b.conf", "Procfile.a", "Procfile.b")]), names
    )
    assert names["web_after"] == ["release", "release-2"]
    assert [(each["name"], each.get("after")) for each in names["companion_workers"]] == [
        ("x", None),
        ("y", ["x"]),
        ("x-2", None),
        ("y-2", ["x-2"]),
        ("release", None),
        ("release-2", None),
    ]


def test_nobody_waits_for_what_does_not_start() -> None:
    text = "[program:a]\ncommand=a\nautostart=false\npriority=1\n[program:b]\ncommand=b\n"
    found: Found = supervisord.translate(Source("x.conf", text))
    assert "after" not in found.programs[1].values


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a 'b c' \"d e\"", ["a", "b c", "d e"]),
        (r"a\x20b c\sd \t", ["a b", "c d", "\t"]),
        (r"'a\\b' \d", ["a\\b", r"\d"]),
        ("a''b '' c", ["ab", "", "c"]),
    ],
)
def test_words_of_a_unit(text: str, words: list[str]) -> None:
    assert execline.split(text) == words


@pytest.mark.parametrize(
    ("word", "shell"),
    [
        ("a b", "'a b'"),
        ("$A", "$A"),
        ("${A}", '"${A}"'),
        ("x${A}y z", '"x${A}y z"'),
        ("$$A", "'$A'"),
        ('${A}"`$B', '"${A}\\"\\`\\$B"'),
    ],
)
def test_words_of_a_unit_for_a_shell(word: str, shell: str) -> None:
    assert execline.for_shell([word]) == shell


def program_of(name: str, text: str) -> Program:
    """The only program of a file."""
    source = Source(name, text)
    origin = recognise(source)
    module = ORIGIN_MODULES[origin]
    found: Found = module.translate_all([source]) if origin == "systemd" else module.translate(source)
    replace_web_servers(found)
    found.finish()
    (program,) = found.programs
    return program


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("a.conf", "[program:a]\ncommand=a\nnumprocs=0\n", "autostart", False),
        ("a.ini", "[watcher:a]\ncmd = a\nnumprocesses = 0\n", "autostart", False),
        ("a.json", '{"script": "a", "env": {"A": true, "B": 1}}', "env", {"A": "true", "B": "1"}),
        ("a.json", '{"script": "a.sh", "interpreter": "none"}', "command", ["./a.sh"]),
        ("a.yml", "services:\n  a:\n    entrypoint: a b\n    command: null\n", "command", ["a", "b"]),
        ("a.yml", "services:\n  a: {command: a, deploy: {replicas: 0}}\n", "autostart", False),
        (
            "a.yml",
            "services:\n  a: {command: a, deploy: {restart_policy: {condition: any}}}\n",
            "autorestart",
            "always",
        ),
        (
            "a.yml",
            "services:\n  a: {command: a, healthcheck: {test: b c, interval: 0s}}\n",
            "probe",
            {"command": ["sh", "-c", "b c"], "every": 30, "timeout": 30},
        ),
        (
            "a.conf",
            "[program:a]\ncommand=a\n[eventlistener:m]\ncommand=memmon -a 200MB "
            "-m a-very-long-address-for-mail@of-a-very-long-name.example.org -p b=1GB -p a=300MB\n",
            "max_memory",
            "300M",
        ),
        (
            "a.conf",
            "[program:a]\ncommand=a\n[eventlistener:m]\ncommand=memmon -a 20MB\n",
            "max_memory",
            "20M",
        ),
        ("a.service", "[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart=a\n", "start_limit", None),
        ("a.service", "[Service]\nExecStart=a\nRestart=on-success\n", "autorestart", "always"),
        ("a.service", "[Service]\nExecStart=a\nTimeoutSec=7\n", "start_timeout", 7),
        ("a.service", "[Service]\nExecStart=a\nTimeoutSec=7\n", "stop_timeout", 7),
        ("a.json", '{"script": "a", "out_file": "/dev/null"}', "stdout", "/dev/null"),
        ("a.service", "[Service]\nExecStart=a\nRestartSec=2min\n", "restart_delay_max", 120),
        ("a.service", "[Service]\nExecStart=-@/a b c\n", "command", ["/a", "c"]),
        ("a.service", "[Service]\nExecStart=a ; b\n", "command", ["sh", "-c", "a && exec b"]),
        ("a.service", "[Service]\nExecStart=a\nExecStart=\nExecStart=b\n", "command", ["b"]),
        ("a.service", "[Service]\nExecStart=a \\\n# no\n  b\n", "command", ["a", "b"]),
        ("a@7.service", "[Service]\nExecStart=a %i %%\n", "command", ["a", "7", "%"]),
        ("a.ini", "[uwsgi]\nattach-daemon = $(HOME)/a\n", "command", [Text((Env("HOME"), "/a"))]),
        ("a.conf", "[program:a]\n  command=a\n    b\n  directory=/c\n", "command", ["a", "b"]),
        ("a.conf", "[program:a] ; x\n  command=a\n    b\n  directory=/c\n", "cwd", "/c"),
        ("Procfile", "a: cd x && b\n", "cwd", "x"),
    ],
)
def test_a_value(name: str, text: str, key: str, value: Any) -> None:
    assert program_of(name, text).values[key] == value


@pytest.mark.parametrize(
    ("name", "text", "note"),
    [
        ("a.service", "[Service]\nExecStart=a\nStandardOutput=socket\n", "stdout=socket: the output goes"),
        ("a.service", "[Service]\nExecStart=a\nRestart=on-success\n", "there is no such way"),
        ("a.service", "[Service]\nExecStart=a\nKillMode=process\n", "everything that is left is killed"),
        ("a.service", "[Service]\nExecStart=a\nMemoryMax=20%\n", "a memory limit of 20%"),
        ("a.ini", "[uwsgi]\nattach-daemon2 = cmd=a,colour=b\n", "colour=b: not known, and left out"),
        ("a.service", "[Service]\nExecStart=a %Y\n", "%Y of systemd has no counterpart"),
        ("a.service", "[Service]\nExecStart=-a\n", "a failure counts as a success there"),
        ("a.yml", "services:\n  a: {command: a, deploy: {mode: global}}\n", "deploy: mode: it belongs to"),
        ("a.conf", "[program:a]\ncommand=a\ndirectory=/x\nstdout_logfile=b\n", "the path starts at cwd here"),
    ],
)
def test_a_note(name: str, text: str, note: str) -> None:
    assert any(note in each for each in program_of(name, text).notes)


def test_nobody_waits_for_what_waits_for_a_command(tmp_path: Path) -> None:
    unit = "[Unit]\nAfter={}\n[Service]\nExecStart=x\n"
    files = {"a.service": unit.format("b.service"), "b.service": unit.format(""), "b.timer": "[Timer]\nA=b\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    text = translate([str(tmp_path / name) for name in files])
    assert '"after"' not in text
    assert "# - it does not wait for b, which is not started by itself" in text


def test_what_there_is_nothing_to_run_in_is_said() -> None:
    (block,) = systemd.translate_all([Source("a.target", "[Unit]\n")]).blocks
    assert block.notes == ["nothing to run; leave it with systemd"]
    (block,) = supervisord.translate(Source("a.conf", "[group:a]\nprograms=b\ncolour=c\n")).blocks
    assert block.notes == ["colour = c: not known, and left out"]


def test_an_unknown_section_of_circus_is_said_to_be_left_out() -> None:
    (block,) = circus.translate(Source("a.ini", "[other]\na = b\n")).blocks
    assert block.notes == ["not known, and left out"]


def test_a_file_of_variables_beside_a_procfile_is_taken(tmp_path: Path) -> None:
    (tmp_path / "Procfile").write_text("a: b\n")
    assert "env_file" not in translate([str(tmp_path / "Procfile")])
    (tmp_path / ".env").write_text("A=1\n")
    text = translate([str(tmp_path / "Procfile")])
    assert f'"env_file": "{tmp_path}/.env",' in text and "# guess: Foreman and Honcho read it" in text


def test_what_ran_before_the_web_server_is_not_lost() -> None:
    found: Found = procfile.translate(
        Source("Procfile", "web: python manage.py migrate && gunicorn shop.wsgi\n")
    )
    replace_web_servers(found)
    assert not found.programs
    assert any("before it ran python manage.py migrate" in line for line in found.blocks[0].notes)


def test_secrets_are_named(tmp_path: Path) -> None:
    text = "[program:x]\ncommand=a\nenvironment=DB_PASSWORD=hidden,LEVEL=info\n"
    text += "[supervisord]\nenvironment=API_KEY=x\n"
    (tmp_path / "a.conf").write_text(text)
    head = translate([str(tmp_path / "a.conf")]).partition("companion_workers")[0]
    assert "# Secrets stand here as they are (API_KEY, DB_PASSWORD): env_file keeps them apart" in head


def test_no_text_of_a_file_ends_its_comment(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"script": "a", "uid": "x\\nimport os\\u0000", "colour": "\\r1/0\\u000c1/0"}')
    names: dict[str, Any] = {}
    exec(translate([str(path)]), names)
    assert names["companion_workers"][0]["name"] == "a" and "os" not in names


# -- the manual ------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ORIGINS)
def test_every_kind_has_its_page_with_its_keys(origin: str) -> None:
    page = (ROOT / f"docs/from-{origin}.rst").read_text()
    assert f".. include:: import_{origin}.inc" in page
    assert f"   from-{origin}\n" in (ROOT / "docs/migrating.rst").read_text()
    rows = set(re.findall(r"   \* - ``(.+)``\n     - \S", import_tables.table(origin)))
    module = ORIGIN_MODULES[origin]
    assert rows >= module.HERE.keys() | module.INSTEAD.keys()
    # Each file that the page shows is one of those that are tested above.
    shown = re.findall(r"literalinclude:: \.\./tests/importing/expected/(\S+)", page)
    assert shown and set(shown) <= {expected(case).name for case in CASES}


# -- the command -----------------------------------------------------------------------------


def test_the_command_prints_or_writes_a_new_file(tmp_path: Path, capsys, monkeypatch) -> None:
    source, target = tmp_path / "jobs", tmp_path / "gunicorn.conf.py"
    source.write_text("[program:x]\ncommand=a\n")
    assert ctl.main(["import", str(source)]) == 0
    printed = capsys.readouterr().out
    assert '"command": ["a"]' in printed
    assert ctl.main(["import", str(source), "-o", str(target)]) == 0
    assert f"gunicorn --check-config -c {target}" in capsys.readouterr().out
    assert target.read_text() == printed
    # The source may hold passwords.
    assert target.stat().st_mode & 0o777 == 0o600
    capsys.readouterr()
    assert ctl.main(["import", str(source), "-o", str(target)]) == 1
    assert "exists already, and is not overwritten" in capsys.readouterr().err
    assert ctl.main(["import", str(source), "--from", "uwsgi"]) == 0
    assert "only the section [uwsgi] is read" in capsys.readouterr().out
    assert ctl.main(["import", str(tmp_path / "none")]) == 1
    assert (
        capsys.readouterr().err
        == f"gunicorn-companion: {tmp_path}/none: cannot read it: No such file or directory\n"
    )


def test_help_names_every_kind(capsys) -> None:
    with pytest.raises(SystemExit):
        ctl.main(["import", "--help"])
    text = capsys.readouterr().out
    assert all(origin in text for origin in ORIGINS)


def test_kinds_and_files_are_completed(capsys) -> None:
    def ask(*words: str) -> tuple[int, list[str]]:
        code = completion.complete(ctl.build_parser, "fish", list(words))
        return code, capsys.readouterr().out.split()

    assert ask("import", "--from", "") == (completion.OK, list(ORIGINS))
    for words in (["import", ""], ["import", "a.conf", "b"], ["import", "-o", ""]):
        assert ask(*words) == (completion.FILES, [])
    assert "--output" in ask("import", "--")[1]


def test_other_commands_load_none_of_it() -> None:
    import subprocess

    code = "import sys, gunicorn.companion.ctl; print([name for name in sys.modules if 'importing' in name])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


# -- timers ------------------------------------------------------------------------------------


def test_the_keys_that_a_schedule_excludes_are_those_of_the_server() -> None:
    assert set(NOT_WITH_SCHEDULE) == set(config.NOT_WITH_SCHEDULE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("daily", "0 0 * * *"),
        ("weekly", "0 0 * * 1"),
        ("quarterly UTC", "0 0 1 1,4,7,10 * UTC"),
        ("03:30", "30 3 * * *"),
        ("*-*-* 03:30:00", "30 3 * * *"),
        ("*:0/15", "*/15 * * * *"),
        ("00/2:00", "0 */2 * * *"),
        ("Mon..Fri *-*-* 09:00", "0 9 * * 1-5"),
        ("sat,sun 10:00", "0 10 * * 6,0"),
        ("fri..sun 10:00", "0 10 * * 5-7"),
        ("Mon", "0 0 * * 1"),
        ("*-02-29", "0 0 29 2 *"),
        ("12-24 18:00", "0 18 24 12 *"),
        ("*-*-1,15 04:05", "5 4 1,15 * *"),
        ("*-*-01 00:00:00 Europe/Berlin", "0 0 1 * * Europe/Berlin"),
        ("2026-*-* 3:00", None),
        ("Mon *-*-01 4:00", None),
        ("*-*-* *:0/10:30", None),
        ("*-*-* 04:00:15", None),
        ("*-*~1", None),
        ("fri..mon 3:00", None),
        ("now", None),
        ("", None),
    ],
)
def test_a_time_of_a_timer_in_five_fields(text: str, expected: str | None) -> None:
    found = oncalendar.to_cron(text)
    assert (None if found is None else " ".join(filter(None, found))) == expected
    if found is not None:
        assert check_schedule(found.fields) == found.fields
