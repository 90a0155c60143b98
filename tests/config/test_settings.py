# SPDX-License-Identifier: MIT
"""The registry of settings, Config, and what follows from several settings together."""

from __future__ import annotations

import copy
import os
import re
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from gunicorn import config
from gunicorn.errors import ConfigError

#: The interface: setting → flags, section, default.
SETTINGS: dict[str, tuple[list[str], str, Any]] = {
    "config": (["-c", "--config"], "Config File", "./gunicorn.conf.py"),
    "wsgi_app": ([], "Config File", None),
    "bind": (["-b", "--bind"], "Server Socket", ["127.0.0.1:8000"]),
    "backlog": (["--backlog"], "Server Socket", 2048),
    "workers": (["-w", "--workers"], "Worker Processes", 1),
    "worker_class": (["-k", "--worker-class"], "Worker Processes", "sync"),
    "asgi_loop": (["--asgi-loop"], "ASGI", "auto"),
    "asgi_lifespan": (["--asgi-lifespan"], "ASGI", "auto"),
    "asgi_disconnect_grace_period": (["--asgi-disconnect-grace-period"], "ASGI", 3),
    "websocket_max_message_size": (["--websocket-max-message-size"], "ASGI", 16777216),
    "root_path": (["--root-path"], "ASGI", ""),
    "static": (["--static"], "Static Files", {}),
    "static_max_age": (["--static-max-age"], "Static Files", 60),
    "static_follow_symlinks": (["--static-follow-symlinks"], "Static Files", False),
    "threads": (["--threads"], "Worker Processes", 1),
    "worker_connections": (["--worker-connections"], "Worker Processes", 1000),
    "max_requests": (["--max-requests"], "Worker Processes", 0),
    "max_memory": (["--max-memory"], "Worker Processes", None),
    "max_lifetime": (["--max-lifetime"], "Worker Processes", 0),
    "max_lifetime_jitter": (["--max-lifetime-jitter"], "Worker Processes", 0),
    "workers_max": (["--workers-max"], "Worker Processes", 0),
    "workers_spare": (["--workers-spare"], "Worker Processes", 1),
    "reload_batch": (["--reload-batch"], "Worker Processes", 0),
    "max_requests_jitter": (["--max-requests-jitter"], "Worker Processes", 0),
    "timeout": (["-t", "--timeout"], "Worker Processes", 30),
    "graceful_timeout": (["--graceful-timeout"], "Worker Processes", 30),
    "keepalive": (["--keep-alive"], "Worker Processes", 2),
    "limit_request_line": (["--limit-request-line"], "Security", 4094),
    "limit_request_fields": (["--limit-request-fields"], "Security", 100),
    "limit_request_field_size": (["--limit-request-field_size"], "Security", 8190),
    "reload": (["--reload"], "Debugging", False),
    "reload_engine": (["--reload-engine"], "Debugging", "auto"),
    "reload_extra_files": (["--reload-extra-file"], "Debugging", []),
    "spew": (["--spew"], "Debugging", False),
    "check_config": (["--check-config"], "Debugging", False),
    "print_config": (["--print-config"], "Debugging", False),
    "preload_app": (["--preload"], "Server Mechanics", False),
    "sendfile": (["--no-sendfile"], "Server Mechanics", None),
    "reuse_port": (["--reuse-port"], "Server Mechanics", False),
    "chdir": (["--chdir"], "Server Mechanics", "."),
    "daemon": (["-D", "--daemon"], "Server Mechanics", False),
    "raw_env": (["-e", "--env"], "Server Mechanics", []),
    "pidfile": (["-p", "--pid"], "Server Mechanics", None),
    "worker_tmp_dir": (["--worker-tmp-dir"], "Server Mechanics", None),
    "user": (["-u", "--user"], "Server Mechanics", os.geteuid()),
    "group": (["-g", "--group"], "Server Mechanics", os.getegid()),
    "umask": (["-m", "--umask"], "Server Mechanics", 0),
    "initgroups": (["--initgroups"], "Server Mechanics", False),
    "tmp_upload_dir": ([], "Server Mechanics", None),
    "secure_scheme_headers": (
        [],
        "Server Mechanics",
        {"X-FORWARDED-PROTOCOL": "ssl", "X-FORWARDED-PROTO": "https", "X-FORWARDED-SSL": "on"},
    ),
    "forwarded_allow_ips": (["--forwarded-allow-ips"], "Server Mechanics", "127.0.0.1,::1"),
    "pythonpath": (["--pythonpath"], "Server Mechanics", None),
    "paste": (["--paste", "--paster"], "Server Mechanics", None),
    "proxy_protocol": (["--proxy-protocol"], "Server Mechanics", "off"),
    "proxy_allow_ips": (["--proxy-allow-from"], "Server Mechanics", "127.0.0.1,::1"),
    "protocol": (["--protocol"], "Server Mechanics", "http"),
    "uwsgi_allow_ips": (["--uwsgi-allow-from"], "Server Mechanics", "127.0.0.1,::1"),
    "raw_paste_global_conf": (["--paste-global"], "Server Mechanics", []),
    "permit_obsolete_folding": (["--permit-obsolete-folding"], "Server Mechanics", False),
    "strip_header_spaces": (["--strip-header-spaces"], "Server Mechanics", False),
    "permit_unconventional_http_method": (
        ["--permit-unconventional-http-method"],
        "Server Mechanics",
        False,
    ),
    "permit_unconventional_http_version": (
        ["--permit-unconventional-http-version"],
        "Server Mechanics",
        False,
    ),
    "casefold_http_method": (["--casefold-http-method"], "Server Mechanics", False),
    "forwarder_headers": (["--forwarder-headers"], "Server Mechanics", "SCRIPT_NAME,PATH_INFO"),
    "header_map": (["--header-map"], "Server Mechanics", "drop"),
    "accesslog": (["--access-logfile"], "Logging", None),
    "disable_redirect_access_to_syslog": (["--disable-redirect-access-to-syslog"], "Logging", False),
    "access_log_format": (
        ["--access-logformat"],
        "Logging",
        '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"',
    ),
    "errorlog": (["--error-logfile", "--log-file"], "Logging", "-"),
    "loglevel": (["--log-level"], "Logging", "info"),
    "capture_output": (["--capture-output"], "Logging", False),
    "logger_class": (["--logger-class"], "Logging", "gunicorn.glogging.Logger"),
    "logconfig": (["--log-config"], "Logging", None),
    "logconfig_dict": ([], "Logging", {}),
    "logconfig_json": (["--log-config-json"], "Logging", None),
    "syslog_addr": (["--log-syslog-to"], "Logging", "udp://localhost:514"),
    "syslog": (["--log-syslog"], "Logging", False),
    "syslog_prefix": (["--log-syslog-prefix"], "Logging", None),
    "syslog_facility": (["--log-syslog-facility"], "Logging", "user"),
    "enable_stdio_inheritance": (["-R", "--enable-stdio-inheritance"], "Logging", False),
    "statsd_host": (["--statsd-host"], "Logging", None),
    "dogstatsd_tags": (["--dogstatsd-tags"], "Logging", ""),
    "statsd_prefix": (["--statsd-prefix"], "Logging", ""),
    "enable_backlog_metric": (["--enable-backlog-metric"], "Logging", False),
    "proc_name": (["-n", "--name"], "Process Naming", None),
    "default_proc_name": ([], "Process Naming", "gunicorn"),
    "keyfile": (["--keyfile"], "SSL", None),
    "certfile": (["--certfile"], "SSL", None),
    "ssl_version": (["--ssl-version"], "SSL", ssl.PROTOCOL_TLS),
    "cert_reqs": (["--cert-reqs"], "SSL", ssl.CERT_NONE),
    "ca_certs": (["--ca-certs"], "SSL", None),
    "suppress_ragged_eofs": (["--suppress-ragged-eofs"], "SSL", True),
    "do_handshake_on_connect": (["--do-handshake-on-connect"], "SSL", False),
    "ciphers": (["--ciphers"], "SSL", None),
    "companion_workers": (["--companion-worker"], "Companion Processes", []),
    "companion_config_file": (["--companion-config-file"], "Companion Processes", None),
    "companion_control_socket": (["--companion-control-socket"], "Companion Processes", None),
    "companion_control_socket_mode": (["--companion-control-socket-mode"], "Companion Processes", 0o600),
    "companion_run_dir": (["--companion-run-dir"], "Companion Processes", None),
    "companion_cwd": (["--companion-cwd"], "Companion Processes", None),
    "companion_env": (["--companion-env"], "Companion Processes", {}),
    "companion_stop_signal": (["--companion-stop-signal"], "Companion Processes", "SIGTERM"),
    "companion_stop_timeout": (["--companion-stop-timeout"], "Companion Processes", 60),
    "companion_stop_as_group": (["--companion-stop-as-group"], "Companion Processes", False),
    "companion_stop_order": (["--companion-stop-order"], "Companion Processes", "reverse"),
    "companion_reload_timeout": (["--companion-reload-timeout"], "Companion Processes", 60),
    "companion_startsecs": (["--companion-startsecs"], "Companion Processes", 1),
    "companion_restart_delay": (["--companion-restart-delay"], "Companion Processes", 5),
    "companion_restart_delay_max": (["--companion-restart-delay-max"], "Companion Processes", 60),
    "companion_autorestart": (["--companion-autorestart"], "Companion Processes", "always"),
    "companion_start_retries": (["--companion-start-retries"], "Companion Processes", None),
    "companion_start_limit": (["--companion-start-limit"], "Companion Processes", None),
    "companion_retry_after": (["--companion-retry-after"], "Companion Processes", None),
    "companion_on_give_up": (["--companion-on-give-up"], "Companion Processes", "ignore"),
    "companion_start_timeout": (["--companion-start-timeout"], "Companion Processes", 60),
    "companion_watchdog": (["--companion-watchdog"], "Companion Processes", None),
    "companion_max_memory": (["--companion-max-memory"], "Companion Processes", None),
    "companion_max_lifetime": (["--companion-max-lifetime"], "Companion Processes", None),
    "companion_max_lifetime_jitter": (["--companion-max-lifetime-jitter"], "Companion Processes", 0),
    "companion_schedule_timezone": (["--companion-schedule-timezone"], "Companion Processes", None),
    "companion_schedule_jitter": (["--companion-schedule-jitter"], "Companion Processes", 0),
    "companion_stdout": (["--companion-stdout"], "Companion Processes", None),
    "companion_stderr": (["--companion-stderr"], "Companion Processes", None),
    "companion_log_lines": (["--companion-log-lines"], "Companion Processes", 1000),
    "companion_log_format": (["--companion-log-format"], "Companion Processes", "%(name)s | %(message)s"),
    "companion_lease_store": (["--companion-lease-store"], "Companion Processes", None),
    "companion_lease_ttl": (["--companion-lease-ttl"], "Companion Processes", 15),
    "companion_lease_margin": (["--companion-lease-margin"], "Companion Processes", None),
    "companion_lease_on_loss": (["--companion-lease-on-loss"], "Companion Processes", "stop"),
    "companion_manager_shutdown_buffer": (
        ["--companion-manager-shutdown-buffer"],
        "Companion Processes",
        10,
    ),
    "companion_manager_stop_timeout": (["--companion-manager-stop-timeout"], "Companion Processes", None),
    "companion_manager_reload_timeout": (
        ["--companion-manager-reload-timeout"],
        "Companion Processes",
        None,
    ),
    "web_after": (["--web-after"], "Companion Processes", []),
    "companion_reload": (["--companion-reload"], "Companion Processes", "changed"),
    "request_timeout": (["--request-timeout"], "Worker Processes", 0),
    "gc_freeze": (["--no-gc-freeze"], "Companion Processes", True),
    "monitor": (["--monitor"], "Monitor", None),
    "monitor_token": ([], "Monitor", None),
    "monitor_ready": (["--monitor-ready"], "Monitor", []),
    "monitor_hosts": (["--monitor-hosts"], "Monitor", []),
}

#: Hook → the number of arguments.
HOOKS = {
    "on_starting": 1,
    "on_reload": 1,
    "when_ready": 1,
    "pre_fork": 2,
    "post_fork": 2,
    "post_worker_init": 1,
    "worker_int": 1,
    "worker_abort": 1,
    "pre_exec": 1,
    "pre_request": 2,
    "post_request": 4,
    "child_exit": 2,
    "worker_exit": 2,
    "nworkers_changed": 3,
    "on_exit": 1,
    "companion_pre_fork": 2,
    "companion_post_fork": 2,
    "companion_exit": 2,
    "companion_give_up": 2,
}


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WEB_CONCURRENCY", "PORT", "FORWARDED_ALLOW_IPS", "GUNICORN_CMD_ARGS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def own_setting() -> Iterator[type[config.Setting]]:
    class Motto(config.Setting):
        name = "motto"
        section = "Shop"
        cli = ["--motto"]
        validator = config.validate_string
        default = "ever onward"
        desc = """\
            What is written over the door.

            For a test.
            """

    yield Motto
    config.KNOWN_SETTINGS.remove(Motto)


# -- the registry ------------------------------------------------------------------------------


#: Settings of Gunicorn 24 to 27 that do nothing here.
LATER: dict[str, tuple[list[str], str, Any]] = {
    name: ([flag], "Gunicorn 24 to 27", default)
    for name, flag, default in (
        ("http_parser", "--http-parser", "auto"),
        ("http_protocols", "--http-protocols", "h1"),
        ("http2_max_concurrent_streams", "--http2-max-concurrent-streams", 100),
        ("http2_initial_window_size", "--http2-initial-window-size", 65535),
        ("http2_max_frame_size", "--http2-max-frame-size", 16384),
        ("http2_max_header_list_size", "--http2-max-header-list-size", 65536),
        ("http2_cleartext", "--http2-cleartext", "off"),
        ("control_socket", "--control-socket", None),
        ("control_socket_mode", "--control-socket-mode", 0o600),
        ("control_socket_disable", "--no-control-socket", False),
        ("dirty_apps", "--dirty-app", []),
        ("dirty_workers", "--dirty-workers", 0),
        ("dirty_timeout", "--dirty-timeout", 300),
        ("dirty_threads", "--dirty-threads", 1),
        ("dirty_graceful_timeout", "--dirty-graceful-timeout", 30),
    )
}
DIRTY_HOOKS = ("on_dirty_starting", "dirty_post_fork", "dirty_worker_init", "dirty_worker_exit")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("asgi_loop", "gevent", "expected one of auto, asyncio, uvloop"),
        ("http_parser", "c", "expected one of auto, fast, python"),
        ("http_protocols", ["h2", "h1"], "speaks HTTP/1.1"),
        ("http_protocols", "h3", "expected h1, h2 or both"),
        ("http_protocols", "h1,h1", "expected h1, h2 or both"),
        ("http2_max_concurrent_streams", 0, "from 1 to"),
        ("http2_initial_window_size", 2**31, "from 0 to 2147483647"),
        ("http2_max_frame_size", 16383, "from 16384 to 16777215"),
        ("http2_cleartext", "on", "expected one of off"),
        ("control_socket_mode", "rw", "expected a whole number"),
    ],
)
def test_wrong_values_of_settings_of_gunicorn_27(name: str, value: Any, said: str) -> None:
    with pytest.raises((ValueError, TypeError)) as info:
        config.Config().set(name, value)
    assert said in str(info.value)


def test_the_settings_are_those_of_the_interface() -> None:
    known = {cls.name for cls in config.KNOWN_SETTINGS}
    assert known == {*SETTINGS, *HOOKS, *LATER, *DIRTY_HOOKS, "ssl_context"}


@pytest.mark.parametrize("name", [*SETTINGS, *LATER])
def test_flags_section_and_default(name: str) -> None:
    (cls,) = [cls for cls in config.KNOWN_SETTINGS if cls.name == name]
    flags, section, default = {**SETTINGS, **LATER}[name]
    assert (cls.cli or [], cls.section, cls.default) == (flags, section, default)


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_take_their_arguments_and_do_nothing(name: str) -> None:
    hook = getattr(config.Config(), name)
    assert hook(*range(HOOKS[name])) is None


def test_every_default_passes_its_validator() -> None:
    cfg = config.Config()
    for cls in config.KNOWN_SETTINGS:
        setting = cfg.settings[str(cls.name)]
        if cls.default is not None:
            assert setting.validator(cls.default) == setting.get(), cls.name


def test_every_setting_is_described() -> None:
    for cls in config.KNOWN_SETTINGS:
        assert cls.short and cls.short[-1] in ".:", cls.name
        assert cls.desc and not cls.desc.startswith(" "), cls.name
        assert cls.order >= 0


def test_a_setting_that_a_user_defines(own_setting: type[config.Setting]) -> None:
    cfg = config.Config()
    assert cfg.motto == "ever onward"
    assert (own_setting.short, own_setting.desc) == (
        "What is written over the door.",
        "What is written over the door.\n\nFor a test.",
    )
    assert "--motto" in cfg.parser().format_help()
    assert own_setting.order > config.Ciphers.order


def test_make_settings_leaves_out_what_is_ignored() -> None:
    settings = config.make_settings(ignore=("workers",))
    assert "workers" not in settings and "bind" in settings


def test_settings_sort_within_their_section() -> None:
    settings = config.make_settings()
    assert settings["workers"] < settings["threads"]
    assert not settings["threads"] < settings["workers"]
    assert not settings["workers"] < settings["keyfile"]


def test_defaults_are_not_shared() -> None:
    one, other = config.Config(), config.Config()
    one.bind.append("x")
    one.secure_scheme_headers["X"] = "y"
    one.companion_env["X"] = "y"
    assert other.bind == ["127.0.0.1:8000"]
    assert "X" not in other.secure_scheme_headers
    assert other.companion_env == {}


def test_repr_tells_the_value() -> None:
    cfg = config.Config()
    cfg.set("workers", 5)
    assert "with value 5" in repr(cfg.settings["workers"])


# -- Config ------------------------------------------------------------------------------------


def test_values_are_read_as_attributes_and_set_by_set() -> None:
    cfg = config.Config()
    cfg.set("workers", "3")
    assert cfg.workers == 3
    with pytest.raises(AttributeError):
        cfg.workers = 4
    with pytest.raises(AttributeError):
        cfg.no_such_setting  # noqa: B018
    with pytest.raises(AttributeError):
        cfg.set("no_such_setting", 1)


def test_a_value_that_is_refused_leaves_the_old_one() -> None:
    cfg = config.Config()
    with pytest.raises(ValueError, match="0 or more"):
        cfg.set("workers", -1)
    assert cfg.workers == 1


def test_a_setting_that_is_replaced_takes_effect() -> None:
    class Fixed:
        def get(self) -> float:
            return 3.5

    cfg = config.Config()
    cfg.settings["timeout"] = Fixed()  # type: ignore[assignment]
    cfg.settings["unheard_of"] = Fixed()  # type: ignore[assignment]
    assert (cfg.timeout, cfg.unheard_of) == (3.5, 3.5)


def test_a_copy_has_its_values() -> None:
    cfg = config.Config()
    cfg.set("workers", 3)
    assert copy.copy(cfg).workers == 3


def test_every_setting_can_be_asked_for() -> None:
    cfg = config.Config()
    for cls in config.KNOWN_SETTINGS:
        if cls.name not in ("worker_class", "logger_class"):
            getattr(cfg, str(cls.name))


def test_str_is_a_line_a_setting_sorted_and_aligned() -> None:
    cfg = config.Config()
    cfg.set("companion_workers", [{"name": "a", "target": test_a_copy_has_its_values}])
    cfg.set("proc_name", "two\nlines")
    lines = str(cfg).splitlines()
    assert len(lines) == len(config.KNOWN_SETTINGS)
    names = [re.match(r"(\w+) += ", line) for line in lines]
    assert all(names)
    assert [match[1] for match in names if match] == sorted(cfg.settings)
    assert len({line.index("=") for line in lines}) == 1
    shown = {line.split(" ", 1)[0]: line.split("= ", 1)[1] for line in lines}
    assert shown["accesslog"] == "None"
    assert shown["bind"] == "['127.0.0.1:8000']"
    assert shown["child_exit"] == "<ChildExit.child_exit()>"
    assert shown["companion_workers"] == "[{'name': 'a', 'target': <test_a_copy_has_its_values()>}]"
    assert shown["companion_control_socket_mode"] == "0o600"
    assert shown["proc_name"] == r"'two\nlines'"


@pytest.mark.parametrize(
    ("variable", "text", "setting", "expected"),
    [
        ("WEB_CONCURRENCY", "4", "workers", 4),
        ("WEB_CONCURRENCY", "", "workers", 1),
        ("PORT", "5000", "bind", ["0.0.0.0:5000"]),
        ("PORT", " ", "bind", ["127.0.0.1:8000"]),
        ("FORWARDED_ALLOW_IPS", "10.0.0.1,10.0.0.2", "forwarded_allow_ips", ["10.0.0.1", "10.0.0.2"]),
        ("FORWARDED_ALLOW_IPS", "", "forwarded_allow_ips", []),
    ],
)
def test_environment(
    variable: str, text: str, setting: str, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    assert getattr(config.Config(), setting) == expected


@pytest.mark.parametrize(
    ("variable", "text"), [("WEB_CONCURRENCY", "many"), ("PORT", "http"), ("FORWARDED_ALLOW_IPS", "proxy")]
)
def test_a_wrong_variable_is_named(variable: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigError, match=f"{variable}='{text}'"):
        config.Config()


def test_cmd_args_are_split_as_a_shell_does(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config.Config()
    assert cfg.get_cmd_args_from_env() == []
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--name 'my shop' -w 3")
    assert cfg.get_cmd_args_from_env() == ["--name", "my shop", "-w", "3"]


# -- what follows from the settings ------------------------------------------------------------


class OwnWorker:
    setups = 0

    @classmethod
    def setup(cls) -> None:
        cls.setups += 1


@pytest.mark.parametrize(
    ("worker_class", "threads", "expected"),
    [
        ("sync", 1, "sync"),
        ("sync", 2, "gthread"),
        ("gunicorn.workers.sync.SyncWorker", 2, "gthread"),
        ("gthread", 1, "gthread"),
        ("gevent", 4, "gevent"),
        ("shop.workers.Own", 4, "shop.workers.Own"),
        (OwnWorker, 4, "OwnWorker"),
    ],
)
def test_worker_class_str(worker_class: Any, threads: int, expected: str) -> None:
    cfg = config.Config()
    cfg.set("worker_class", worker_class)
    cfg.set("threads", threads)
    assert cfg.worker_class_str == expected


def test_a_worker_class_that_a_user_defines_is_set_up() -> None:
    cfg = config.Config()
    cfg.set("worker_class", OwnWorker)
    before = OwnWorker.setups
    assert cfg.worker_class is OwnWorker
    assert OwnWorker.setups == before + 1


def test_worker_and_logger_classes_by_name() -> None:
    from gunicorn import glogging
    from gunicorn.instrument import statsd
    from gunicorn.workers import gthread, sync

    cfg = config.Config()
    assert cfg.worker_class is sync.SyncWorker
    cfg.set("threads", 2)
    assert cfg.worker_class is gthread.ThreadWorker
    assert cfg.logger_class is glogging.Logger
    cfg.set("statsd_host", "localhost:8125")
    assert cfg.logger_class is statsd.Statsd
    cfg.set("logger_class", OwnWorker)
    assert cfg.logger_class is OwnWorker


def test_addresses() -> None:
    cfg = config.Config()
    cfg.set("bind", ["localhost:1", "unix:/run/a", "[::1]:2", "fd://3"])
    assert cfg.address == [("localhost", 1), "/run/a", ("::1", 2), 3]


def test_names_of_the_process() -> None:
    cfg = config.Config()
    assert cfg.proc_name == "gunicorn"
    cfg.set("default_proc_name", "shop:app")
    assert cfg.proc_name == "shop:app"
    cfg.set("proc_name", "shop")
    assert cfg.proc_name == "shop"


def test_env() -> None:
    cfg = config.Config()
    assert cfg.env == {}
    cfg.set("raw_env", ["A=1", "B=x=y", "C="])
    assert cfg.env == {"A": "1", "B": "x=y", "C": ""}
    with pytest.raises(ValueError, match="KEY=VALUE"):
        cfg.set("raw_env", ["A"])


def test_paste_global_conf() -> None:
    cfg = config.Config()
    assert cfg.paste_global_conf is None
    cfg.set("raw_paste_global_conf", ["a=1", r"b\=c=2", "d=e=f"])
    assert cfg.paste_global_conf == {"a": "1", "b=c": "2", "d": "e=f"}
    cfg.set("raw_paste_global_conf", ["nothing"])
    with pytest.raises(RuntimeError, match="nothing"):
        cfg.paste_global_conf  # noqa: B018


def test_sendfile_is_on_unless_turned_off() -> None:
    cfg = config.Config()
    assert cfg.sendfile is True
    cfg.set("sendfile", "false")
    assert cfg.sendfile is False


def test_reuse_port() -> None:
    cfg = config.Config()
    assert cfg.reuse_port is False
    cfg.set("reuse_port", True)
    assert cfg.reuse_port is hasattr(socket, "SO_REUSEPORT")


def test_ssl_options() -> None:
    cfg = config.Config()
    assert cfg.is_ssl is False
    cfg.set("certfile", __file__)
    assert cfg.is_ssl is True
    assert cfg.ssl_options == {
        "keyfile": None,
        "certfile": __file__,
        "ssl_version": ssl.PROTOCOL_TLS,
        "cert_reqs": ssl.CERT_NONE,
        "ca_certs": None,
        "suppress_ragged_eofs": True,
        "do_handshake_on_connect": False,
        "ciphers": None,
    }


def test_the_ssl_context_hook_makes_the_default_one() -> None:
    assert config.Config().ssl_context("config", lambda: "context") == "context"


def test_uid_and_gid() -> None:
    cfg = config.Config()
    assert (cfg.uid, cfg.gid) == (os.geteuid(), os.getegid())
    cfg.set("user", "root")
    cfg.set("group", 5)
    assert (cfg.uid, cfg.gid) == (0, 5)
