# SPDX-License-Identifier: MIT
"""Run configuration files and apply them to a Config; report mistakes by file and line."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType, TracebackType
from typing import Any, NamedTuple

from gunicorn.config import Config
from gunicorn.errors import ConfigError, all_mistakes, without_middle
from gunicorn.settings import redact
from gunicorn.settings.base import KNOWN_SETTINGS
from gunicorn.settings.foreign import RENAMED_KEYS, key_hint
from gunicorn.settings.later import unused_settings
from gunicorn.settings.monitor import monitor_warnings
from gunicorn.settings.worker import worker_warnings

COMPANION_PREFIX = "companion_"
_IMPORTLIB = os.path.dirname(importlib.__file__) + os.sep
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class ConfigFileError(ConfigError):
    """A configuration file is wrong. ``details`` is its author's part of the traceback."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class ConfigSource(NamedTuple):
    """A configuration file that was run: its path, its label in messages, and the names it defined."""

    path: str | None
    label: str
    names: dict[str, Any]


_given: Mapping[str, bytes] = {}


@contextlib.contextmanager
def given(files: Mapping[str, bytes]) -> Iterator[None]:
    """Within the block use the texts in *files*, by path, instead of those on disk."""
    global _given
    before, _given = _given, files
    try:
        yield
    finally:
        _given = before


# From 3 on, more than any companion has addresses in `bind`.
_LOW_DESCRIPTORS = 16


@contextlib.contextmanager
def _low_descriptors_taken() -> Iterator[None]:
    """Keep the lowest descriptors free within the block.

    They are for the sockets of companions, whose number is known only after reading the file. A library that
    stays open for the life of the process, such as libffi after an import of ctypes, would keep one.
    """
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while not taken or taken[-1] < 2 + _LOW_DESCRIPTORS:
                taken.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        yield
    finally:
        for fd in taken:
            os.close(fd)


# -- running -----------------------------------------------------------------------------------


def read_config(location: str, directory: str) -> ConfigSource:
    """Run what *location* names: a path, ``file:PATH`` or ``python:MODULE``; paths start at *directory*."""
    if location.startswith("python:"):
        return read_module(location[len("python:") :])
    if location.startswith("file:"):
        location = location[len("file:") :]
    return read_file(os.path.join(directory, location))


def read_file(path: str) -> ConfigSource:
    """Run the file at *path*, as the module ``__config__``. Raises ConfigError."""
    source = _given.get(path)
    if source is None:
        try:
            with open(path, "rb") as file:
                source = file.read()
        except OSError as error:
            raise ConfigError(f"cannot read the configuration file {path}: {error.strerror}") from error
    module = ModuleType("__config__")
    module.__file__ = path
    # No loader has found it, and Python 3.15 warns of an empty one when it shows a traceback.
    del module.__spec__
    previous = sys.modules.get("__config__")
    # Classes in the file look their module up there; dataclasses do.
    sys.modules["__config__"] = module
    try:
        # dont_inherit: the future imports of this file are not those of the user's.
        with _low_descriptors_taken():
            exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)
    except KeyboardInterrupt:
        raise  # Ctrl-C at a start
    except BaseException as error:
        if previous is None:
            del sys.modules["__config__"]
        else:
            sys.modules["__config__"] = previous
        raise failure(error, path) from error
    return ConfigSource(path, path, vars(module))


def read_module(name: str) -> ConfigSource:
    """Run the module *name*, even if it was imported before. Raises ConfigError."""
    import importlib.machinery
    import importlib.util

    label = f"python:{name}"
    parent_name, _, child = name.rpartition(".")
    previous = sys.modules.pop(name, None)
    path: str | None = None
    try:
        with _low_descriptors_taken():
            importlib.invalidate_caches()
            spec = importlib.util.find_spec(name)
            if spec is None or spec.loader is None:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            path = spec.origin
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            if isinstance(spec.loader, importlib.machinery.SourceFileLoader) and path:
                # Compiled here: a cached .pyc of the same second and size would be the old text.
                code = compile(spec.loader.get_data(path), path, "exec", dont_inherit=True)
                exec(code, module.__dict__)
            else:
                spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise  # Ctrl-C at a start
    except BaseException as error:
        sys.modules.pop(name, None)
        if previous is not None:
            sys.modules[name] = previous
        if path is None and isinstance(error, ModuleNotFoundError):
            raise ConfigError(f"cannot find the configuration module {name!r}: {error}") from error
        raise failure(error, path or label) from error
    if parent_name:
        setattr(sys.modules[parent_name], child, module)
    return ConfigSource(path, label, vars(module))


def failure(error: BaseException, path: str) -> ConfigFileError:
    """One message with the line for *error*, which running the file at *path* has raised."""
    if isinstance(error, SyntaxError) and error.filename == path:
        where = f"{path}, line {error.lineno}" if error.lineno else path
        return ConfigFileError(f"{where}: {type(error).__name__}: {error.msg}", _format(error, None))
    line = _line_in(error.__traceback__, path)
    where = f"{path}, line {line}" if line else path
    if isinstance(error, SystemExit):
        return ConfigFileError(f"{where}: the file exits (SystemExit: {error.code})")
    return ConfigFileError(f"{where}: {type(error).__name__}: {error}", user_traceback(error))


def _line_in(tb: TracebackType | None, path: str) -> int | None:
    line = None
    while tb is not None:
        if tb.tb_frame.f_code.co_filename == path:
            line = tb.tb_lineno
        tb = tb.tb_next
    return line


def is_ours(filename: str) -> bool:
    """Whether a frame is of the server, or of the import system."""
    return filename.startswith((_PACKAGE, _IMPORTLIB, "<frozen importlib"))


def user_traceback(error: BaseException) -> str:
    """The traceback of *error*, without the leading frames of the server and the import system."""
    tb = error.__traceback__
    while tb is not None:
        if not is_ours(tb.tb_frame.f_code.co_filename):
            break
        tb = tb.tb_next
    return _format(error, tb) if tb is not None else ""


def _format(error: BaseException, tb: TracebackType | None) -> str:
    import traceback

    return "".join(traceback.format_exception(type(error), error, tb)).rstrip()


# -- applying ----------------------------------------------------------------------------------


def apply_source(cfg: Config, source: ConfigSource, *, companions_only: bool = False) -> None:
    """Set the settings that *source* defines. Raises ConfigError with every mistake.

    Other names are the file's own, except for unknown ``companion_…`` names: nobody would notice an ignored
    companion setting before production. *companions_only*: it may set nothing else.
    """
    problems = []
    for name, value in source.names.items():
        known, ours = name in cfg.settings, name.startswith(COMPANION_PREFIX)
        if isinstance(value, ModuleType) and (companions_only or not known):
            continue
        problem: str | None = None
        if companions_only and name == "companion_config_file":
            problem = "companion_config_file cannot be set in the file that it names"
        elif companions_only and known and not ours:
            problem = f"{name} cannot be set here: only companion_* settings can; move it to the main file"
        elif known:
            problem = _set(cfg, name, value)
        elif ours:
            problem = _unknown_companion_setting(cfg, name)
        if problem:
            problems.append((name, problem))
    _report(source, problems)
    cfg.sources.append(source)


def _set(cfg: Config, name: str, value: Any) -> str | None:
    try:
        cfg.set(name, value)
    # The latter two come from a value that no validator expects, such as a list that is nested very deeply.
    except (ValueError, TypeError, ConfigError, OverflowError, RecursionError) as error:
        return f"{name} = {shorten(value)}: {error}"
    return None


def shorten(value: Any) -> str:
    try:
        text = repr(redact.in_value(value))
    except (ValueError, RecursionError):  # a number with thousands of digits, a list nested very deeply
        text = f"({type(value).__name__})"
    return text if len(text) <= 80 else text[:77] + "..."


def _report(source: ConfigSource, problems: list[tuple[str, str]]) -> None:
    if not problems:
        return
    lines = defined_at(source)
    items = [f"line {lines[name]}: {text}" if name in lines else text for name, text in problems]
    if len(items) == 1 and problems[0][0] in lines:
        raise ConfigError(f"{source.label}, {without_middle(items[0])}")
    raise ConfigError(all_mistakes(source.label, items))


def defined_at(source: ConfigSource) -> dict[str, int]:
    """The last line on which the file defines each name; empty if the file cannot be read."""
    import ast

    if source.path is None:
        return {}
    try:
        with open(source.path, "rb") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return {}
    lines: dict[str, int] = {}
    for node in _outer_nodes(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            lines[node.id] = node.lineno
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            lines[node.name] = node.lineno
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                lines[alias.asname or alias.name] = node.lineno
    return lines


def _outer_nodes(node: Any) -> Iterable[Any]:
    """The nodes below *node* in the order of the text, without the bodies of functions and classes."""
    import ast

    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            yield from _outer_nodes(child)


# -- names that nearly fit ---------------------------------------------------------------------


def _unknown_companion_setting(cfg: Config, name: str) -> str:
    key = name[len(COMPANION_PREFIX) :].lower()
    renamed = COMPANION_PREFIX + RENAMED_KEYS.get(key, key)
    if renamed != name and renamed in cfg.settings:
        return f"{name} is not a setting: here it is {renamed}"
    hint = key_hint(key)
    return f"{name} is not a setting" + (f": {hint}" if hint else did_you_mean(name, companion_names(cfg)))


def companion_names(cfg: Config) -> list[str]:
    return [name for name in cfg.settings if name.startswith(COMPANION_PREFIX)]


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    import difflib

    near = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=cutoff)
    # A flag's name may resemble another setting more: preload, of --preload, resembles reload.
    return (_setting_with_flag(name.lower()) or near[0]) if near else None


def _setting_with_flag(word: str) -> str | None:
    flag = "--" + word.replace("_", "-")
    return next((cls.name for cls in KNOWN_SETTINGS if cls.cli and flag in cls.cli), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    near = nearest(name, known)
    return f"; did you mean {near}?" if near else ""


def warnings_of(cfg: Config) -> list[str]:
    """What to warn of, before the server starts or goes on with *cfg*."""
    return [*near_misses(cfg), *monitor_warnings(cfg), *unused_settings(cfg), *worker_warnings(cfg)]


def near_misses(cfg: Config) -> list[str]:
    """A warning for each name in the files that resembles a setting."""
    known = [cls.name for cls in KNOWN_SETTINGS if cls.name and cls.name in cfg.settings]
    warnings = []
    for source in cfg.sources:
        lines: dict[str, int] | None = None
        for name, value in source.names.items():
            if name.startswith("_") or name in cfg.settings or isinstance(value, ModuleType):
                continue
            # Imported from this package, such as gunicorn.workers.asgi.companion.
            if str(getattr(value, "__module__", "")).startswith("gunicorn."):
                continue
            near = nearest(name, known, cutoff=0.75)
            if not near:
                continue
            if lines is None:
                # Only now: parsing takes time, and most files have no such name.
                lines = defined_at(source)
            # A name that is not in the text came by `import *`.
            if name in lines:
                warnings.append(
                    f"{source.label}, line {lines[name]}: {name} is not a setting and has no effect; "
                    f"did you mean {near}?"
                )
    return warnings
