# SPDX-License-Identifier: MIT
"""Every setting of Gunicorn 27.0.1, with its default and each kind of legal value, in a file and as a flag.

Each is accepted, or refused with the sentence that says what to do instead.
"""

from __future__ import annotations

import ast
import os
from inspect import signature
from pathlib import Path
from typing import Any

import gunicorn_27
import pytest
from harness import Server

from gunicorn.app.check import check
from gunicorn.config import KNOWN_SETTINGS
from gunicorn.settings.base import SERVER_HOOKS

SWITCH = "True", "False", "None", "'true'", "'False'", "' TRUE '"
COUNT = "0", "1", "5", "'5'", "' 5 '", "'0x10'", "'1_000'"
TEXT = "None", "'x'", "' x '"
ADDRESSES = "'*'", "''", "None", "'127.0.0.1'", "' 127.0.0.1 , ::1 '", "'10.0.0.0/8,::1/128'", "'127.0.0.1,'"
FACILITY = "None", "'user'", "'local0'", "'daemon'"

#: Settings of Gunicorn 23: flag, default, other legal values.
OLD: dict[str, tuple[str | None, str, tuple[str, ...]]] = {
    "wsgi_app": (None, "None", ("'app:app'", "'app'")),
    "bind": (
        "--bind",
        "['127.0.0.1:8000']",
        ("'127.0.0.1'", "':8000'", "''", "[]", "'[::1]:8000'", "'::1'", "'unix:/tmp/x'", "'fd://3'"),
    ),
    "backlog": ("--backlog", "2048", COUNT),
    "workers": ("--workers", "1", COUNT),
    "worker_class": (
        "--worker-class",
        "'sync'",
        (
            "'gthread'",
            "'gevent'",
            "'gevent_wsgi'",
            "'gevent_pywsgi'",
            "'tornado'",
            "'gunicorn.workers.sync.SyncWorker'",
            "'egg:gunicorn#sync'",
        ),
    ),
    "threads": ("--threads", "1", COUNT),
    "worker_connections": ("--worker-connections", "1000", COUNT),
    "max_requests": ("--max-requests", "0", COUNT),
    "max_requests_jitter": ("--max-requests-jitter", "0", COUNT),
    "timeout": ("--timeout", "30", COUNT),
    "graceful_timeout": ("--graceful-timeout", "30", COUNT),
    "keepalive": ("--keep-alive", "2", COUNT),
    "limit_request_line": ("--limit-request-line", "4094", (*COUNT, "8190", "8191")),
    "limit_request_fields": ("--limit-request-fields", "100", (*COUNT, "32769")),
    "limit_request_field_size": ("--limit-request-field_size", "8190", COUNT),
    "reload": ("--reload", "False", SWITCH),
    "reload_engine": ("--reload-engine", "'auto'", ("'poll'", "'inotify'")),
    "reload_extra_files": ("--reload-extra-file", "[]", ("'conf.py'", "['conf.py']", "['*.py']", "['*.no']")),
    "spew": ("--spew", "False", SWITCH),
    "preload_app": ("--preload", "False", SWITCH),
    "sendfile": (None, "None", SWITCH),
    "reuse_port": ("--reuse-port", "False", SWITCH),
    "chdir": ("--chdir", "'.'", ("'./'",)),
    "daemon": ("--daemon", "False", SWITCH),
    "raw_env": ("--env", "[]", ("'A=1'", "['A=1', 'B=2=3']", "['A=']")),
    "pidfile": ("--pid", "None", ("'server.pid'",)),
    "worker_tmp_dir": ("--worker-tmp-dir", "None", ("'/dev/shm'",)),
    "user": ("--user", "None", (f"{os.geteuid()}", f"'{os.geteuid()}'", "'root'")),
    "group": ("--group", "None", (f"{os.getegid()}", f"'{os.getegid()}'")),
    "umask": ("--umask", "0", ("0o22", "18", "'18'", "'0o22'", "'0x12'")),
    "initgroups": ("--initgroups", "False", SWITCH),
    "tmp_upload_dir": (None, "None", ("'/tmp'",)),
    "secure_scheme_headers": (
        None,
        "{'X-FORWARDED-PROTOCOL': 'ssl', 'X-FORWARDED-PROTO': 'https', 'X-FORWARDED-SSL': 'on'}",
        ("{}", "{'x-forwarded-proto': 'https'}"),
    ),
    "forwarded_allow_ips": ("--forwarded-allow-ips", "'127.0.0.1,::1'", ADDRESSES),
    "pythonpath": ("--pythonpath", "None", ("'/srv/shop,/srv/vendor'",)),
    "paste": ("--paste", "None", ()),
    "proxy_protocol": (
        "--proxy-protocol",
        "'off'",
        ("'v1'", "'v2'", "'auto'", "'V1'", "' auto '", "'1'", "'0'", *SWITCH),
    ),
    "proxy_allow_ips": ("--proxy-allow-from", "'127.0.0.1,::1'", ADDRESSES),
    "raw_paste_global_conf": ("--paste-global", "[]", ("'a=1'", "['a=1']")),
    "permit_obsolete_folding": ("--permit-obsolete-folding", "False", SWITCH),
    "strip_header_spaces": ("--strip-header-spaces", "False", SWITCH),
    "permit_unconventional_http_method": ("--permit-unconventional-http-method", "False", SWITCH),
    "permit_unconventional_http_version": ("--permit-unconventional-http-version", "False", SWITCH),
    "casefold_http_method": ("--casefold-http-method", "False", SWITCH),
    "forwarder_headers": (
        "--forwarder-headers",
        "'SCRIPT_NAME,PATH_INFO'",
        ("''", "None", "'a,b,,c'", "'*'"),
    ),
    "header_map": ("--header-map", "'drop'", ("'refuse'", "'dangerous'", "'DROP'")),
    "accesslog": ("--access-logfile", "None", ("'-'", "'access.log'")),
    "disable_redirect_access_to_syslog": ("--disable-redirect-access-to-syslog", "False", SWITCH),
    "access_log_format": ("--access-logformat", "'%(h)s'", ("'%({x}i)s %(D)d'", "'plain'", "'%%'", "''")),
    "errorlog": ("--error-logfile", "'-'", ("'error.log'",)),
    "loglevel": (
        "--log-level",
        "'info'",
        ("'debug'", "'DEBUG'", "'warning'", "'error'", "'critical'", "'warn'"),
    ),
    "capture_output": ("--capture-output", "False", SWITCH),
    "logger_class": ("--logger-class", "'gunicorn.glogging.Logger'", ("'simple'", "None")),
    "logconfig": ("--log-config", "None", ()),
    "logconfig_dict": (None, "{}", ("{'version': 1}",)),
    "logconfig_json": ("--log-config-json", "None", ()),
    "syslog_addr": (
        "--log-syslog-to",
        "'udp://localhost:514'",
        ("'tcp://h:1'", "'unix:///dev/log'", "'unix:///dev/log#stream'"),
    ),
    "syslog": ("--log-syslog", "False", SWITCH),
    "syslog_prefix": ("--log-syslog-prefix", "None", TEXT),
    "syslog_facility": ("--log-syslog-facility", "'user'", FACILITY),
    "enable_stdio_inheritance": ("--enable-stdio-inheritance", "False", SWITCH),
    "statsd_host": ("--statsd-host", "None", ("'h'", "'h:1'", "'unix:///x'", "'[::1]:1'")),
    "dogstatsd_tags": ("--dogstatsd-tags", "''", TEXT),
    "statsd_prefix": ("--statsd-prefix", "''", TEXT),
    "proc_name": ("--name", "None", TEXT),
    "default_proc_name": (None, "'gunicorn'", TEXT),
    "keyfile": ("--keyfile", "None", ("''",)),
    "certfile": ("--certfile", "None", ("''",)),
    "ssl_version": (
        "--ssl-version",
        "2",
        ("None", "'2'", "'TLS'", "'TLSv1_2'", "'TLSv1_3'", "'SSLv3'", "''"),
    ),
    "cert_reqs": ("--cert-reqs", "0", ("1", "2", "'1'")),
    "ca_certs": ("--ca-certs", "None", ()),
    "suppress_ragged_eofs": ("--suppress-ragged-eofs", "True", SWITCH),
    "do_handshake_on_connect": ("--do-handshake-on-connect", "False", SWITCH),
    "ciphers": ("--ciphers", "None", ("'ECDHE+AESGCM'",)),
    "ssl_context": (None, "lambda config, factory: factory()", ()),
    **{
        str(cls.name): (None, f"lambda {', '.join(signature(cls.default).parameters)}: None", ())
        for cls in KNOWN_SETTINGS
        if cls.section == SERVER_HOOKS and cls.name != "ssl_context" and cls.default is not None
    },
}

NO_HTTP2 = "speaks HTTP/1.1: let a proxy"
NO_DIRTY = "let a companion"
PARSER = "there is one parser"
SOCKET = "companion_control_socket"

#: Settings since: flag, default, other legal values with what is said of them; ``Error`` if they are refused.
NEW: dict[str, tuple[str | None, str, dict[str, str]]] = {
    "asgi_loop": ("--asgi-loop", "'auto'", dict.fromkeys(("'asyncio'", "'uvloop'", "'AUTO'", "None"), "")),
    "asgi_lifespan": ("--asgi-lifespan", "'auto'", dict.fromkeys(("'on'", "'off'", "'ON'", "None"), "")),
    "asgi_disconnect_grace_period": (
        "--asgi-disconnect-grace-period",
        "3",
        dict.fromkeys(("0", "10", "'5'"), ""),
    ),
    "websocket_max_message_size": (
        "--websocket-max-message-size",
        "16777216",
        dict.fromkeys(("0", "1", "'0x10'"), ""),
    ),
    "root_path": (
        "--root-path",
        "''",
        {"'/shop'": "", "'/shop/'": "", "None": "", "'shop'": "Error: begins with a slash"},
    ),
    "http_parser": (
        "--http-parser",
        "'auto'",
        {"'fast'": PARSER, "'python'": PARSER, "'Auto'": "", "None": ""},
    ),
    "http_protocols": (
        "--http-protocols",
        "'h1'",
        {
            "'H1'": "",
            "''": "",
            "None": "",
            "'h1,'": "",
            "'h2'": f"Error: {NO_HTTP2}",
            "'h2, h1'": f"Error: {NO_HTTP2}",
        },
    ),
    "http2_max_concurrent_streams": ("--http2-max-concurrent-streams", "100", {"1": NO_HTTP2}),
    "http2_initial_window_size": (
        "--http2-initial-window-size",
        "65535",
        {"0": NO_HTTP2, "2147483647": NO_HTTP2},
    ),
    "http2_max_frame_size": ("--http2-max-frame-size", "16384", {"16777215": NO_HTTP2}),
    "http2_max_header_list_size": ("--http2-max-header-list-size", "65536", {"0": NO_HTTP2}),
    "http2_cleartext": (
        "--http2-cleartext",
        "'off'",
        {
            "'OFF'": "",
            "None": "",
            "False": "",
            "True": f"Error: {NO_HTTP2}",
            "'both'": f"Error: {NO_HTTP2}",
            "'upgrade'": f"Error: {NO_HTTP2}",
            "'prior-knowledge'": f"Error: {NO_HTTP2}",
        },
    ),
    "protocol": ("--protocol", "'http'", {"'uwsgi'": "", "'HTTP'": ""}),
    "uwsgi_allow_ips": ("--uwsgi-allow-from", "'127.0.0.1,::1'", dict.fromkeys(ADDRESSES, "")),
    "enable_backlog_metric": ("--enable-backlog-metric", "False", dict.fromkeys(SWITCH, "")),
    "control_socket": ("--control-socket", "None", {"'/run/gunicorn.ctl'": SOCKET}),
    "control_socket_mode": ("--control-socket-mode", "0o600", {"0o660": SOCKET, "'0o660'": SOCKET}),
    "control_socket_disable": ("--no-control-socket", "False", dict.fromkeys(SWITCH, "")),
    "dirty_apps": ("--dirty-app", "[]", {"None": "", "['ml:App']": f"Error: {NO_DIRTY}"}),
    "dirty_workers": ("--dirty-workers", "0", {"2": f"Error: {NO_DIRTY}"}),
    "dirty_timeout": ("--dirty-timeout", "300", {"10": f"Error: {NO_DIRTY}"}),
    "dirty_threads": ("--dirty-threads", "1", {"2": f"Error: {NO_DIRTY}"}),
    "dirty_graceful_timeout": ("--dirty-graceful-timeout", "30", {"10": f"Error: {NO_DIRTY}"}),
    "on_dirty_starting": (None, "None", {"lambda arbiter: None": f"Error: {NO_DIRTY}"}),
    "dirty_post_fork": (None, "None", {"lambda arbiter, worker: None": f"Error: {NO_DIRTY}"}),
    "dirty_worker_init": (None, "None", {"lambda worker: None": f"Error: {NO_DIRTY}"}),
    "dirty_worker_exit": (None, "None", {"lambda arbiter, worker: None": f"Error: {NO_DIRTY}"}),
}

ALL: dict[str, tuple[str | None, str, dict[str, str]]] = {
    **{name: (flag, default, dict.fromkeys(legal, "")) for name, (flag, default, legal) in OLD.items()},
    **NEW,
}

SWITCHES = {cls.name for cls in KNOWN_SETTINGS if cls.action in ("store_true", "store_const")}


def as_flag(name: str, value: str) -> list[str]:
    """The words of a command line for *value*, as Python writes it; none if it has no such form."""
    flag = ALL[name][0]
    if flag is None or value in ("None", "[]"):
        return []
    given = ast.literal_eval(value)
    if name in SWITCHES:
        return [flag] if given is True else []
    if (isinstance(given, bool) and name != "proxy_protocol") or value == "'0x10'":
        return []
    return [f"{flag}={item}" for item in (given if isinstance(given, list) else [given])]


def checked(start: Any, capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    """The exit status of ``--check-config`` with these arguments, and what it prints."""
    try:
        status = check(start("-c", "conf.py", *args))
    except SystemExit as error:
        status = int(error.code or 0)
    return status, capsys.readouterr().err


def test_the_manual_has_a_row_for_each_new_setting() -> None:
    assert {cls.name for cls in gunicorn_27.added()} == NEW.keys()
    text = gunicorn_27.table()
    assert all(f"`{name} <setting-" in text for name in NEW)


def everything(turn: int) -> tuple[str, list[str]]:
    """A configuration file, and a command line, with the default of every setting, or another legal value.

    The other values take turns; a setting that has no more of them begins again.
    """
    text, args = "", []
    for name, (_, default, others) in ALL.items():
        values = [default, *others] if name in OLD else [default]
        value = values[turn % len(values)]
        text += f"{name} = {value}\n"
        args += as_flag(name, value)
    return text, args


@pytest.mark.parametrize("turn", range(max(len(legal) for _, _, legal in OLD.values()) + 1))
def test_all_settings_together(turn: int, start: Any, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, args = everything(turn)
    (here / "conf.py").write_text(text)
    assert checked(start, capsys) == (0, "")
    (here / "conf.py").write_text("")
    assert checked(start, capsys, *args) == (0, "")


@pytest.mark.parametrize("name", NEW)
def test_each_value_of_a_new_setting(
    name: str, start: Any, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value, said in NEW[name][2].items():
        (here / "conf.py").write_text(f"{name} = {value}\n")
        expect(said, *checked(start, capsys))
        args = as_flag(name, value)
        if args and said:
            (here / "conf.py").write_text("")
            expect(said, *checked(start, capsys, *args))


def expect(said: str, status: int, output: str) -> None:
    words = said.removeprefix("Error: ")
    assert status == (said != words), output
    assert words in output and bool(words) == bool(output), output


def test_a_server_starts_with_all_of_it() -> None:
    text, args = everything(0)
    # What the test decides itself.
    mine = ("bind", "wsgi_app", "http_parser", "control_socket")
    lines = [line for line in text.splitlines() if line.split()[0] not in mine]
    lines += ["http_parser = 'fast'", "control_socket = '/run/x.ctl'"]
    words = [word for word in args if not word.startswith(("--bind", "--http-parser"))]
    with Server(config="\n".join(lines), args=words) as server:
        assert server.get("/").status == 200
        for name in ("http_parser", "control_socket"):
            assert server.log().count(f"{name} has no effect: ") == 1, server.log()
