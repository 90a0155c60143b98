# SPDX-License-Identifier: MIT
"""``--check-config``: check a configuration as far as possible without serving."""

from __future__ import annotations

import os
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

from gunicorn.app.configfile import user_traceback, warnings_of
from gunicorn.config import Config
from gunicorn.errors import AppImportError, ConfigError
from gunicorn.glogging import check_access_format
from gunicorn.settings.http import check_protocol

if TYPE_CHECKING:
    from gunicorn.app.base import Application


def check(app: Application) -> int:
    """Check settings, companions and application; print mistakes on stderr, return the exit status."""
    for warning in warnings_of(app.cfg):
        print(f"Warning: {warning}", file=sys.stderr)
    problems = _settings(app.cfg) + _companions(app.cfg)
    for problem in problems:
        print(f"Error: {problem}", file=sys.stderr)
    app.extend_python_path()
    os.environ.update(app.cfg.env)
    usable = _tls(app.cfg)
    loaded = _application(app)
    return 1 if problems or not usable or not loaded else 0


def derived(app: Application) -> dict[str, Any]:
    """The effective values of settings that were set otherwise or not at all, by name."""
    cfg = app.cfg
    found: dict[str, Any] = {"proc_name": cfg.proc_name, "worker_class": cfg.worker_uri}
    uri = getattr(app, "app_uri", None)
    if uri and cfg.paste is None:
        found["wsgi_app"] = uri
    if not cfg.companion_workers:
        return found
    from gunicorn.companion.server.limits import planned

    try:
        return {**found, **planned(app)}
    except ValueError:  # a mistake in the companions, which `check` reports
        return found


def next_runs(cfg: Config) -> list[str]:
    """A comment for each companion with a schedule: its next three times."""
    if not cfg.companion_workers:
        return []
    from gunicorn.companion.config import build_companion_configs
    from gunicorn.companion.schedule import next_times

    try:
        configs = build_companion_configs(cfg, outputs=False)
    except ValueError:  # a mistake in the companions, which `check` reports
        return []
    found = {
        config.group: next_times(config.schedule, config.schedule_timezone, time.time(), 3)
        or [config.schedule]
        for config in configs
        if config.schedule is not None
    }
    return [f"# companion {group} runs next: {', '.join(times)}" for group, times in found.items()]


def _settings(cfg: Config) -> list[str]:
    problems = []
    for name in ("address", "env", "paste_global_conf", "worker_class", "logger_class"):
        try:
            getattr(cfg, name)
        except (RuntimeError, ConfigError) as error:
            problems.append(str(error))
        except Exception as error:  # the module of a user's class fails
            print(user_traceback(error), file=sys.stderr)
            problems.append(f"{name}: {type(error).__name__}: {error}")
    if not problems:
        try:
            check_access_format(cfg.logger_class, cfg)
            check_protocol(cfg)
        except ConfigError as error:
            problems.append(str(error))
    return problems


def _companions(cfg: Config) -> list[str]:
    if not (cfg.companion_workers or cfg.web_after):
        return []
    from gunicorn.companion.config import build_companion_configs

    try:
        configs = build_companion_configs(cfg)
    except ValueError as error:
        return [str(error)]
    # At run time these are failed starts.
    problems = [
        f"companion {config.group!r}: cwd: there is no directory {config.cwd}"
        for config in configs
        if config.cwd is not None and not os.path.isdir(config.cwd)
    ]
    problems += [
        f"companion {config.group!r}: env_file: there is no file {path}"
        for config in configs
        for path in (os.path.join(config.cwd or "", each) for each in config.env_file)
        if not os.path.exists(path)
    ]
    return list(dict.fromkeys(problems))


def _tls(cfg: Config) -> bool:
    from gunicorn.sock import check_tls

    try:
        check_tls(cfg)
    except ConfigError as error:
        print(f"Error: {error}", file=sys.stderr)
        return False
    return True


def _application(app: Application) -> bool:
    try:
        app.wsgi()
    except (AppImportError, ConfigError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return False
    except (Exception, SystemExit) as error:
        # The application itself fails: show where in its code.
        print("Error: the application cannot be loaded:", file=sys.stderr)
        print(user_traceback(error) or traceback.format_exc(), file=sys.stderr)
        return False
    return True
