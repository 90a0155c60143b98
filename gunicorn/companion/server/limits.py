# SPDX-License-Identifier: MIT
"""How long the companion manager is given to end, and what else follows from the settings."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from gunicorn.companion import graph
from gunicorn.companion.checks import WEB
from gunicorn.companion.config import CompanionConfig, build_companion_configs
from gunicorn.companion.server.run_directory import Places

Configs = list[CompanionConfig]


def stop_timeout(cfg: Any, configs: Configs, draining: float = 0.0) -> float:
    """Seconds that the manager has at a stop; 0 without companions.

    *draining*: how long companions of earlier configurations may still take.
    """
    explicit = cfg.companion_manager_stop_timeout
    if explicit is not None:
        return float(explicit)
    if not configs and not draining:
        return 0.0
    return max(draining, longest(cfg, configs, lambda config: config.stop_timeout)) + buffer(cfg)


def reload_timeout(cfg: Any, configs: Configs) -> float:
    """Seconds that the manager has when another one replaces it."""
    explicit = cfg.companion_manager_reload_timeout
    if explicit is not None:
        return float(explicit)
    if not configs:
        return 0.0
    # Each has a successor, and none waits for another one.
    return max(float(config.reload_timeout) for config in configs) + buffer(cfg)


def buffer(cfg: Any) -> float:
    return float(cfg.companion_manager_shutdown_buffer)


def longest(cfg: Any, configs: Configs, seconds: Callable[[CompanionConfig], float]) -> float:
    """What the slowest companion may take to end; if they stop in order, the slowest chain of them.

    Web workers are part of a chain if a companion comes after them, or they after a companion.
    """
    if cfg.companion_stop_order != "reverse":
        return max(map(seconds, configs), default=0.0)
    return max(graph.stop_times(configs, cfg.web_after, seconds, cfg.graceful_timeout).values(), default=0.0)


def web_wait(cfg: Any, configs: Configs) -> float:
    """Seconds from the begin of a stop until web workers are told, at most; 0: they need not wait."""
    if cfg.companion_stop_order != "reverse" or not graph.concerns_web(configs, cfg.web_after):
        return 0.0
    times = graph.stop_times(configs, cfg.web_after, lambda config: config.stop_timeout, 0.0)
    return times[WEB]


def planned(app: Any) -> dict[str, Any]:
    """Return the values that follow from the settings, by name, if the server of *app* is started now.

    Raises ValueError for companions that are wrong.
    """
    configs = build_companion_configs(app.cfg)
    control, run_dir = Places(SimpleNamespace(app=app, cfg=app.cfg)).planned()
    return {
        "companion_control_socket": control,
        "companion_run_dir": run_dir,
        "companion_manager_stop_timeout": stop_timeout(app.cfg, configs),
        "companion_manager_reload_timeout": reload_timeout(app.cfg, configs),
    }
