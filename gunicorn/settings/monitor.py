# SPDX-License-Identifier: MIT
"""Settings for the monitor, and the companion that they add."""

from __future__ import annotations

import re
from typing import Any

from gunicorn.settings import redact
from gunicorn.settings.base import MONITOR, Setting
from gunicorn.settings.kinds import Text
from gunicorn.settings.validators import parse_address, validate_list_string, validate_string

SECTION = MONITOR

MONITOR_NAME = "monitor"
MONITOR_TARGET = "gunicorn.monitor.server:run"
#: The monitor's own settings in its environment, as JSON.
MONITOR_VARIABLE = "GUNICORN_MONITOR"

_LOOPBACK_RE = re.compile(r"localhost|127(\.\d{1,3}){3}|::1")


def validate_monitor(val: Any) -> str | None:
    """Return an address with its port, or ``unix:PATH``; None for nothing."""
    text = validate_string(val)
    if not text:
        return None
    try:
        address = parse_address(text, default_port="")
    except RuntimeError as error:
        hint = "expected HOST:PORT or unix:PATH, such as 127.0.0.1:9600"
        raise ValueError(f"{text!r}: {hint} ({error})") from None
    if isinstance(address, int):
        raise ValueError(f"{text!r}: expected HOST:PORT or unix:PATH, not a descriptor")
    return text


def _hidden(value: str | None) -> str:
    return redact.HIDDEN if value else str(value)


class Monitor(
    Setting,
    meta="ADDRESS",
    validator=validate_monitor,
    default_text="none: no monitor",
    flag_help="The address of the monitor: a page, metrics and probes.",
):
    """The address of the monitor, which shows web workers and companions in a page, metrics and probes.

    ``HOST:PORT``, such as ``127.0.0.1:9600``, or ``unix:PATH``. It adds a companion with the name
    ``monitor``. Everybody who reaches the address may read: read the page about the monitor before you choose
    one that is not local.
    """


class MonitorToken(
    Text,
    flags=None,
    env_var="GUNICORN_MONITOR_TOKEN",
    formatter=_hidden,
    default_text="none: the monitor only shows",
):
    """The secret that allows actions in the monitor, such as restarts.

    Without it the monitor refuses all actions. There is no flag, because everybody on the machine can read
    command lines; the environment variable ``GUNICORN_MONITOR_TOKEN`` is the default.
    """


class MonitorReady(
    Setting,
    meta="NAME",
    action="append",
    validator=validate_list_string,
    default=[],
    flag_help="A companion that must be RUNNING before the monitor's /ready says so; repeat it for more.",
):
    """The companions that must be RUNNING for ``/ready`` of the monitor, beside one web worker.

    A list of names; that of a group means all its copies. By default no companion counts.
    """


class MonitorHosts(
    Setting,
    meta="HOST",
    action="append",
    validator=validate_list_string,
    default=[],
    flag_help="A host name under which the monitor may be used, behind a proxy; repeat it for more.",
):
    """Host names under which browsers may use the monitor, beside ``localhost``.

    Names without a port, such as ``monitor.example.com``. Needed behind a proxy that passes the public name
    on. IP addresses and the host in ``monitor`` are always allowed. Other names are refused, so that a page
    elsewhere cannot reach the monitor through a name of its own (DNS rebinding).
    """


def monitor_companion(cfg: Any) -> dict[str, Any]:
    """Return the entry of ``companion_workers`` that *cfg* adds for its monitor."""
    import json

    own = {"token": cfg.monitor_token, "ready": cfg.monitor_ready, "hosts": [*cfg.monitor_hosts, cfg.monitor]}
    return {
        "name": MONITOR_NAME,
        "target": MONITOR_TARGET,
        "bind": cfg.monitor,
        # Not arguments of the target, which ``status`` shows.
        "env": {MONITOR_VARIABLE: json.dumps(own)},
        # The settings for all companions are made for the application's.
        "cwd": None,
        "stdout": None,
        "stderr": None,
        "stop_signal": "SIGTERM",
        "stop_timeout": 5,
        "stop_as_group": False,
        "reload_timeout": 5,
        "startsecs": 1,
        "restart_delay": 1,
        "restart_delay_max": 30,
        "autorestart": "always",
        "start_retries": None,
        "start_limit": None,
        "max_memory": None,
        "max_lifetime": None,
        "max_lifetime_jitter": 0,
        "watchdog": None,
    }


def monitor_warnings(cfg: Any) -> list[str]:
    """What to warn of: everybody in the network can read the monitor."""
    if not cfg.monitor or cfg.monitor_token:
        return []
    address = parse_address(cfg.monitor)
    if not isinstance(address, tuple) or _LOOPBACK_RE.fullmatch(address[0]):
        return []
    return [
        f"monitor: everybody who reaches {cfg.monitor} can read it; use 127.0.0.1 and a proxy with a login"
        " (monitor_token silences this warning, and reading stays open)"
    ]
