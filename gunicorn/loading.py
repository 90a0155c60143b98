# SPDX-License-Identifier: MIT
"""Load code by name: the application, worker and logger classes, entry points."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

from gunicorn.errors import AppImportError

if TYPE_CHECKING:
    import ast

# Flags of a code object, as in `inspect`, whose import takes several percent of a start.
CO_VARARGS, CO_COROUTINE = 0x04, 0x80
DEFAULT_WORKER = "gunicorn.workers.sync.SyncWorker"
ASGI_WORKER = "gunicorn.workers.asgi.ASGIWorker"
# What Gunicorn 27 calls its own.
_OTHER_ASGI_WORKER = "gunicorn.workers.gasgi.asgiworker"
EVENTLET_NAMES = ("eventlet", "egg:gunicorn#eventlet", "gunicorn.workers.geventlet.eventletworker")
# New objects for one collection of garbage while the application is loaded; Python has 700 or 2,000.
SELDOM = 10_000
EVENTLET = "the eventlet worker is not supported, as eventlet is no longer maintained; use 'gevent' instead"


class AppModuleNotFound(AppImportError, ModuleNotFoundError):
    """The application's module was not found."""


def getcwd() -> str:
    """The working directory, under the name that the shell has for it.

    A deploy that switches a symbolic link leaves ``$PWD`` as it was, so a reload finds the new release; the
    system call names the old one. For a removed directory it is a path that does not exist.
    """
    try:
        actual = os.getcwd()
    except OSError:
        try:
            return os.readlink("/proc/self/cwd")
        except OSError:
            return os.path.join(os.sep, "a removed directory")
    shown = os.environ.get("PWD")
    if shown:
        try:
            if os.path.samefile(shown, actual):
                return shown
        except OSError:
            pass
    return actual


@contextlib.contextmanager
def collecting_seldom() -> Iterator[None]:
    """Collect garbage more seldom within the block, in which an application is loaded.

    Nearly all objects that it makes stay, and each collection visits them.
    """
    before = gc.get_threshold()
    # 0: none at all.
    seldom = (max(before[0], SELDOM), *before[1:]) if before[0] else before
    gc.set_threshold(*seldom)
    try:
        yield
    finally:
        # The application may have set its own.
        if gc.get_threshold() == seldom:
            gc.set_threshold(*before)


def asked_to_exit(error: SystemExit) -> str:
    """The message for an application that calls ``sys.exit()`` while it is loaded."""
    tb = error.__traceback__
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    where = f", in {tb.tb_frame.f_code.co_filename}, line {tb.tb_lineno}" if tb is not None else ""
    return f"it asked to exit, with {error.code!r}{where}"


# -- the application ---------------------------------------------------------------------------


def import_app(module: str) -> Callable[..., Any]:
    """The WSGI callable that ``MODULE[:EXPRESSION]`` names; the expression is ``application`` by default.

    An expression is a name, names with dots, or the call of a factory with literal arguments. Raises
    AppImportError if module, attribute or factory do not fit; other errors of the module go through.
    """
    module_name, colon, expression = module.partition(":")
    module_name = module_name.strip()
    if not module_name:
        raise AppImportError(f"{module!r} names no module; write MODULE:CALLABLE, such as shop.wsgi:app")
    path, call = parse_expression(expression.strip() if colon else "application", module)
    loaded = _import_app_module(module_name)
    found = _look_up(loaded, module_name, path, implied=not colon)
    if call is not None:
        found = call_factory(found, f"{module_name}:{'.'.join(path)}", *call)
        if found is None:
            raise AppImportError(f"the factory {expression!r} of module {module_name!r} returned None")
    elif found is None:
        raise AppImportError(f"{module_name}:{'.'.join(path)} is None, so there is no application to serve")
    if not callable(found):
        raise AppImportError(
            f"{module!r} gives {type(found).__name__} {found!r}, which is not callable; a WSGI application is"
        )
    return found  # type: ignore[no-any-return]


def _import_app_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # The name is wrong only if this module, or a package of it, was not found. Otherwise an import in the
        # application fails.
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise
        hint = ""
        if name.endswith(".py") and os.path.exists(name):
            hint = f"; did you mean {name[:-3].replace(os.sep, '.')}:application?"
        elif os.sep in name:
            hint = "; give the module's name with dots, not the path of its file"
        raise AppModuleNotFound(f"module {name!r} was not found ({error}){hint}", name=error.name) from error


def load_lazy_imports() -> list[str]:
    """Load what modules have imported lazily (PEP 810, Python 3.15), so that processes forked later share it.

    Return what cannot be loaded, as texts: an import for type checkers alone, perhaps. It stays lazy. Modules
    of the standard library keep theirs, which are for rare cases.
    """
    kind = getattr(types, "LazyImportType", None)
    if kind is None:
        return []
    failed: list[str] = []
    seen: set[str] = set()
    # What is loaded may import lazily, too.
    while fresh := sys.modules.keys() - seen:
        seen |= fresh
        for name in fresh:
            module = sys.modules.get(name)
            if name.partition(".")[0] in sys.stdlib_module_names or not isinstance(module, ModuleType):
                continue
            # Asking a module itself would load one of importlib.util.LazyLoader.
            names = object.__getattribute__(module, "__dict__")
            for key, value in list(names.items()):
                if type(value) is kind:
                    try:
                        names[key] = value.resolve()
                    except Exception as error:
                        failed.append(f"{key} in {name}: {error}")
    return failed


_Call = tuple[list[Any], dict[str, Any]]


def parse_expression(expression: str, whole: str) -> tuple[list[str], _Call | None]:
    """The attribute path in *expression*, and the arguments if it is a call. Raises AppImportError."""
    if all(part.isidentifier() for part in expression.split(".")):
        return expression.split("."), None
    import ast

    try:
        node = ast.parse(expression, mode="eval").body
    except SyntaxError:
        raise AppImportError(
            f"cannot read {expression!r} in {whole!r}: it is no attribute name and no call of one"
        ) from None
    if not isinstance(node, ast.Call):
        raise AppImportError(f"{expression!r} in {whole!r} is neither an attribute name nor a call of one")
    try:
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError("** is not literal")
        args = [ast.literal_eval(arg) for arg in node.args]
        kwargs = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    except (ValueError, TypeError, MemoryError, RecursionError):
        raise AppImportError(
            f"the arguments in {expression!r} must be literals: strings, numbers, lists and the like"
        ) from None
    return _attribute_path(node.func, expression), (args, kwargs)


def _attribute_path(node: ast.expr, expression: str) -> list[str]:
    import ast

    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise AppImportError(
            f"only a name, or names with dots, can be called as the factory in {expression!r}"
        )
    return [node.id, *reversed(names)]


def _look_up(module: ModuleType, module_name: str, path: list[str], implied: bool) -> Any:
    found: Any = module
    where = f"module {module_name!r}"
    for name in path:
        try:
            found = getattr(found, name)
        except AttributeError:
            raise AppImportError(
                f"{where} was found, but it has no attribute {name!r}{_hint(found, name, implied)}"
            ) from None
        where = f"{name!r} of {where}"
    return found


def _hint(holder: Any, name: str, implied: bool) -> str:
    import difflib

    names = [key for key in dir(holder) if not key.startswith("_")]
    near: list[str] = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not near and implied:
        near = [name for name in names if name in ("app", "wsgi", "create_app", "make_app")][:1]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return hint + (" (the default attribute is 'application')" if implied else "")


def call_factory(factory: Any, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Call *factory*, which *name* names. Raises AppImportError if it does not take the arguments."""
    if not callable(factory):
        raise AppImportError(f"{name} is of type {type(factory).__name__} and cannot be called")
    try:
        return factory(*args, **kwargs)
    except TypeError as error:
        # There is no frame below this one: the call itself failed, not the factory.
        if error.__traceback__ is not None and error.__traceback__.tb_next is None:
            raise AppImportError(f"{name} cannot be called with the arguments given: {error}") from error
        raise


def is_asgi(app: Any) -> bool:
    """Whether *app* must be an ASGI application: it needs three arguments (scope, receive, send), not two.

    A coroutine function is never a WSGI application, even if it takes any number of arguments. Classes,
    decorators and C extensions may hide the signature; then the answer is False.
    """
    function, bound = app, 0
    if not isinstance(app, FunctionType):
        function = app.__func__ if isinstance(app, MethodType) else type(app).__call__
        bound = 1
    if not isinstance(function, FunctionType) or isinstance(app, type):
        return False
    code = function.__code__
    most = code.co_argcount - bound
    least = most - len(function.__defaults__ or ())
    if code.co_flags & CO_COROUTINE:
        return least <= 3 and (most >= 3 or bool(code.co_flags & CO_VARARGS))
    return least == 3


def is_wsgi(app: Any) -> bool:
    """Whether *app* must be a WSGI application: a plain function of two arguments."""
    if not isinstance(app, FunctionType | MethodType):
        return False
    code = app.__code__
    most = code.co_argcount - isinstance(app, MethodType)
    least = most - len(app.__defaults__ or ())
    return not code.co_flags & (CO_COROUTINE | CO_VARARGS) and least <= 2 == most


def is_asgi_worker(worker_class: Any) -> bool:
    """Whether the configured *worker_class* is our own for ASGI."""
    chosen = load_class(worker_class)
    return f"{chosen.__module__}.{chosen.__name__}" == ASGI_WORKER


def check_protocol(app: Any, worker_class: Any) -> None:
    """Raise AppImportError if *app* is ASGI and the configured *worker_class* is one of ours, for WSGI, or
    the other way round.

    A user's own class may serve anything, even if it derives from one of ours.
    """
    asgi = is_asgi(app)
    if not asgi and not is_wsgi(app):
        return
    try:
        chosen = load_class(worker_class)
    except Exception:
        return  # No mistake of the application: loading the class reports it.
    if not chosen.__module__.startswith("gunicorn.workers."):
        return
    serves_asgi = is_asgi_worker(chosen)
    if asgi and not serves_asgi:
        raise AppImportError(
            f"{_name_of(app)} is an ASGI application, and the worker class {chosen.__name__} serves WSGI; "
            "use -k asgi (pip install 'gunicorn[asgi]')"
        )
    if serves_asgi and not asgi:
        raise AppImportError(
            f"{_name_of(app)} is a WSGI application, and the worker class asgi serves ASGI; "
            "use another one, such as -k gthread"
        )


def _name_of(app: Any) -> str:
    named = app if hasattr(app, "__qualname__") else type(app)
    return f"{named.__module__}:{named.__qualname__}"


# -- classes -----------------------------------------------------------------------------------


def load_class(uri: Any, default: str = DEFAULT_WORKER, section: str = "gunicorn.workers") -> type[Any]:
    """The class that *uri* names. Raises RuntimeError.

    It may be a class, ``egg:DISTRIBUTION#NAME`` for an entry point of the group *section*, a worker's alias,
    the name of an entry point in that group, or ``module.Class``.
    """
    if isinstance(uri, type):
        return uri
    if not isinstance(uri, str):
        raise RuntimeError(f"expected a class or the name of one, not {uri!r}")
    uri = uri.strip() or default
    if uri.lower() in EVENTLET_NAMES:
        raise RuntimeError(EVENTLET)
    if uri.lower() == _OTHER_ASGI_WORKER:
        uri = ASGI_WORKER
    if uri.startswith("egg:"):
        distribution, _, name = uri[len("egg:") :].partition("#")
        if distribution == "gunicorn":  # its own entry points are the aliases
            return _class_by_alias(name or "sync", section)
        return _loaded(lambda: load_entry_point(distribution, section, name or "main"), uri)
    if "." not in uri:
        return _class_by_alias(uri, section)
    return _class_by_path(uri)


def _class_by_alias(name: str, section: str) -> type[Any]:
    aliases: dict[str, str] = {}
    if section == "gunicorn.workers":
        aliases = importlib.import_module("gunicorn.workers").SUPPORTED_WORKERS
    if name.lower() in aliases:
        return _class_by_path(aliases[name.lower()])
    from importlib import metadata

    for entry in metadata.entry_points(group=section, name=name):
        return _loaded(entry.load, name)
    known = f"one of {', '.join(sorted(aliases))}, " if aliases else ""
    raise RuntimeError(f"{name!r} is not {known}a class by its dotted path or an entry point in {section!r}")


def _class_by_path(uri: str) -> type[Any]:
    module_name, _, name = uri.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise RuntimeError(f"class {uri!r}: module {module_name!r} was not found ({error})") from error
        raise RuntimeError(f"class {uri!r} needs a module that is not installed: {error}") from error
    except AttributeError as error:
        if hasattr(sys.modules.get(module_name), "__file__") and not hasattr(sys.modules[module_name], name):
            raise RuntimeError(f"class {uri!r}: module {module_name!r} has no {name!r}") from error
        raise
    except (ImportError, RuntimeError, ValueError) as error:
        raise RuntimeError(f"class {uri!r} cannot be loaded: {error}") from error
    return found  # type: ignore[no-any-return]


def _loaded(load: Callable[[], Any], uri: str) -> type[Any]:
    try:
        return load()  # type: ignore[no-any-return]
    except (ImportError, AttributeError) as error:
        raise RuntimeError(f"entry point {uri!r} cannot be loaded: {error}") from error


def load_entry_point(distribution: str, group: str, name: str) -> Any:
    """The object of an installed distribution's entry point. Raises ImportError if there is none."""
    from importlib import metadata

    try:
        entries = metadata.distribution(distribution).entry_points
    except metadata.PackageNotFoundError:
        raise ImportError(f"no distribution {distribution!r} is installed") from None
    for entry in entries:
        if entry.group == group and entry.name == name:
            return entry.load()
    raise ImportError(f"distribution {distribution!r} has no entry point {name!r} in group {group!r}")


def make_fail_app(msg: bytes | str) -> Callable[..., Iterable[bytes]]:
    """A WSGI application that answers each request with status 500 and *msg*."""
    body = msg.encode("utf-8") if isinstance(msg, str) else msg

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
        start_response("500 Internal Server Error", headers)
        return [body]

    return app
