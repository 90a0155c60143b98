# SPDX-License-Identifier: MIT
"""Validators: each takes a value as written and returns it as the server uses it.

They raise TypeError for a wrong type and ValueError for a wrong value (ConfigError for an unknown user,
directory or engine). The text says what would be right; the caller adds the name of the setting.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

from gunicorn.errors import ConfigError
from gunicorn.loading import EVENTLET, EVENTLET_NAMES, getcwd
from gunicorn.settings import redact
from gunicorn.settings.addresses import parse_address

RELOAD_ENGINES = ("auto", "poll", "inotify")
HEADER_MAP_WAYS = ("drop", "refuse", "dangerous")
_TRUE = ("true", "yes", "on", "1")
_PROTOCOL_TLS = 2  # ssl.PROTOCOL_TLS, without an import of ssl
_TLS_VERSION = re.compile(r"(PROTOCOL_)?(TLS|SSL)v?[0-9._]*(_METHOD|_CLIENT|_SERVER)?", re.IGNORECASE)
_FALSE = ("false", "no", "off", "0")
PROXY_PROTOCOL_MODES = ("v1", "v2", "auto")
#: The words that may follow the flag ``--proxy-protocol``.
PROXY_PROTOCOL_WORDS = PROXY_PROTOCOL_MODES + _TRUE + _FALSE


def _kind(val: Any) -> str:
    return f"{redact.in_value(val)!r} ({type(val).__name__})"


def validate_bool(val: Any) -> bool | None:
    if val is None or isinstance(val, bool):
        return val
    if not isinstance(val, str):
        raise TypeError(f"expected True or False, not {_kind(val)}")
    word = val.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError(f"expected true or false, not {val!r}")


def validate_proxy_protocol(val: Any) -> bool | None:
    """A boolean, or a mode of later Gunicorns. Both versions are read unless it is ``off``."""
    word = val.strip().lower() if isinstance(val, str) else ""
    if word in PROXY_PROTOCOL_MODES:
        return True
    return validate_bool(val)


def validate_dict(val: Any) -> dict[Any, Any]:
    if not isinstance(val, dict):
        raise TypeError(f"expected a dict, not {_kind(val)}")
    return val


def validate_pos_int(val: Any) -> int:
    """A whole number from 0 up, from an int or from text in decimal, hex, octal or binary."""
    if isinstance(val, str):
        try:
            number = int(val, 10)
        except ValueError:
            try:
                number = int(val, 0)
            except ValueError:
                raise ValueError(f"expected a whole number, not {val!r}") from None
    elif isinstance(val, int):
        number = int(val)  # bool too
    else:
        raise TypeError(f"expected a whole number, not {_kind(val)}")
    if number < 0:
        raise ValueError(f"must be 0 or more, not {number}")
    return number


def validate_umask(val: Any) -> int:
    """A mask of permission bits; digits as text are octal, as in a shell."""
    if isinstance(val, str) and val.strip().isdecimal():
        try:
            return int(val, 8)
        except ValueError:
            raise ValueError(f"expected a mask in octal, such as 022, not {val!r}") from None
    return validate_pos_int(val)


def validate_string(val: Any) -> str | None:
    if val is None:
        return None
    if not isinstance(val, str):
        raise TypeError(f"expected a string, not {_kind(val)}")
    return val.strip()


def validate_file_exists(val: Any) -> str | None:
    path = validate_string(val)
    if not path:
        return path  # such as an empty environment variable
    if _is_missing(path):
        raise ValueError(f"file {path!r} does not exist (seen from {getcwd()})")
    return path


def _is_missing(path: str) -> bool:
    # A file that this user may not see may exist: root reads the keys, and the companion manager may run as
    # another user.
    try:
        os.stat(path)
    except PermissionError:
        return False
    except (OSError, ValueError):
        return True
    return False


def validate_list_string(val: Any) -> list[str]:
    """A list of strings; one string counts as a list of one."""
    if not val:
        return []
    if isinstance(val, str):
        val = [val]
    if not isinstance(val, (list, tuple, set, frozenset)):
        raise TypeError(f"expected a list of strings, not {_kind(val)}")
    strings = [validate_string(item) for item in val]
    if None in strings:
        raise TypeError("expected a list of strings, found None in it")
    return [item for item in strings if item is not None]


def validate_list_of_existing_files(val: Any) -> list[str]:
    """A list of paths, each of a file that exists or a pattern such as ``templates/*.html``."""
    paths = validate_list_string(val)
    for path in paths:
        if not path:
            raise ValueError("expected the path of a file, not ''")
        if not any(char in path for char in "*?["):
            validate_file_exists(path)
    return paths


def validate_string_to_list(val: Any) -> list[str]:
    """A list from comma-separated text, without blanks around the items and without empty ones."""
    text = validate_string(val)
    if not text:
        return []
    return [item.strip() for item in text.split(",") if item.strip()]


def validate_string_to_addr_list(val: Any) -> list[str]:
    """A list of IP addresses or networks from comma-separated text; ``*`` is any address."""
    addresses = validate_string_to_list(val)
    for address in addresses:
        if address not in ("*", "127.0.0.1", "::1"):
            _check_ip(address)
    return addresses


def _check_ip(text: str) -> None:
    import ipaddress  # the defaults do not need it

    if "/" in text:
        ipaddress.ip_network(text)
    else:
        ipaddress.ip_address(text)


def validate_bind(val: Any) -> list[str]:
    addresses = validate_list_string(val)
    for address in addresses:
        try:
            parse_address(address)
        except RuntimeError as error:
            raise ValueError(f"{address!r}: {error}") from None
    return addresses


def validate_assignments(val: Any) -> list[str]:
    """A list of ``KEY=VALUE`` texts."""
    pairs = validate_list_string(val)
    for pair in pairs:
        if not pair.partition("=")[0] or "=" not in pair:
            raise ValueError(f"expected KEY=VALUE, not {pair!r}")
    return pairs


def validate_class(val: Any) -> Any:
    """Return a class, or text that names one; call a function for either."""
    if isinstance(val, (FunctionType, MethodType)):
        val = val()
    if isinstance(val, type):
        return val
    return validate_string(val)


def validate_worker_class(val: Any) -> Any:
    chosen = validate_class(val)
    if isinstance(chosen, str) and chosen.lower() in EVENTLET_NAMES:
        raise ValueError(EVENTLET)
    return chosen


def validate_callable(arity: int) -> Callable[[Any], Any]:
    """A validator for hooks: a callable, or text ``module.name``, that takes *arity* arguments (-1: any)."""

    def validate(val: Any) -> Any:
        found = _named_object(val) if isinstance(val, str) else val
        if not callable(found):
            raise TypeError(f"expected a callable, not {_kind(found)}")
        if arity != -1 and not accepts(found, arity):
            count = "1 argument" if arity == 1 else f"{arity} arguments"
            raise TypeError(f"expected a callable that takes {count}; {describe(found)} does not")
        return found

    return validate


def _named_object(text: str) -> Any:
    import importlib

    module_name, _, name = text.strip().rpartition(".")
    if not module_name:
        raise TypeError(f"expected a callable or text 'module.name', not {text!r}")
    try:
        return getattr(importlib.import_module(module_name), name)
    except ImportError as error:
        raise TypeError(f"{text!r}: cannot import {module_name!r}: {error}") from error
    except AttributeError as error:
        raise TypeError(f"{text!r}: module {module_name!r} has no {name!r}") from error


def accepts(func: Callable[..., Any], count: int) -> bool:
    """Whether *func* can be called with *count* positional arguments."""
    if type(func) is FunctionType:  # nearly every hook: no need of inspect, which is slow to import
        code, optional = func.__code__, len(func.__defaults__ or ())
        if code.co_kwonlyargcount == 0:
            most = count if code.co_flags & 0x04 else code.co_argcount  # 0x04: has *args
            return code.co_argcount - optional <= count <= most
    import inspect

    try:
        signature = inspect.signature(func)
    except ValueError:  # a builtin without a signature
        return True
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def describe(func: Any) -> str:
    """A callable's name for messages."""
    name = getattr(func, "__qualname__", None) or type(func).__qualname__
    return f"{name}()"


def validate_post_request(val: Any) -> Callable[..., Any]:
    """Return a hook of 4 arguments; wrap older ones of 3 (without the response) or 2."""
    hook: Callable[..., Any] = validate_callable(-1)(val)
    if accepts(hook, 4):
        return hook
    if accepts(hook, 3):
        return lambda worker, req, environ, resp: hook(worker, req, environ)
    if accepts(hook, 2):
        return lambda worker, req, environ, resp: hook(worker, req)
    raise TypeError(f"expected a callable that takes 4 arguments; {describe(hook)} does not")


def validate_user(val: Any) -> int:
    """A user id from a number or a name; None is the user that runs this."""
    if val is None:
        return os.geteuid()
    import pwd

    return _id(val, "user", lambda name: pwd.getpwnam(name).pw_uid)


def validate_group(val: Any) -> int:
    """A group id from a number or a name; None is the group that runs this."""
    if val is None:
        return os.getegid()
    import grp

    return _id(val, "group", lambda name: grp.getgrnam(name).gr_gid)


def _id(val: Any, kind: str, look_up: Callable[[str], int]) -> int:
    if isinstance(val, int) and not isinstance(val, bool):
        return val
    if not isinstance(val, str):
        raise TypeError(f"expected a name or a number, not {_kind(val)}")
    name = val.strip()
    try:
        return int(name) if name.isdecimal() else look_up(name)
    except KeyError:
        raise ConfigError(f"no {kind} is named {val!r}; give a name that exists or a number") from None


def validate_chdir(val: Any) -> str:
    """The absolute path of a directory that exists; ``~`` is not expanded, symbolic links are kept."""
    text = validate_string(val)
    if text is None:
        raise TypeError("expected the path of a directory, not None")
    here = getcwd()
    path = os.path.normpath(os.path.join(here, text))
    if path == here:
        return path  # it may be removed, and a later layer name another one
    if _is_missing(path) or os.path.isfile(path):
        raise ConfigError(f"there is no directory {path!r} to change to")
    return path


def validate_statsd_address(val: Any) -> tuple[str, int] | str | None:
    """``HOST[:PORT]`` as (host, port), port 8125 by default; ``unix:PATH`` and ``unix://PATH`` as the path.

    Only where digits follow, ``unix:7777``, is it the port of a host with that name.
    """
    text = validate_string(val)
    if text is None:
        return None
    if text.startswith("unix:") and not text[len("unix:") :].isdecimal():
        path = text[len("unix:") :].removeprefix("//")
        if not path:
            raise TypeError("expected unix:PATH or unix://PATH with a path")
        return path
    try:
        address = parse_address(text, default_port="8125")
    except RuntimeError as error:
        raise TypeError(f"expected HOST[:PORT] or unix://PATH, not {text!r}: {error}") from None
    if isinstance(address, int):
        raise TypeError(f"expected HOST[:PORT] or unix://PATH, not {text!r}")
    if isinstance(address, str):
        host, _, port = text.partition(":")
        return host, int(port)
    return address


def one_of(*words: str) -> Callable[[Any], str]:
    """A validator for one of *words*."""

    def validate(val: Any) -> str:
        text = validate_string(val)
        if text not in words:
            raise ValueError(f"expected one of {', '.join(words)}, not {val!r}")
        return text

    return validate


def or_none(validate: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A validator that takes None beside what *validate* takes."""
    return lambda val: None if val is None else validate(val)


def validate_reload_engine(val: Any) -> str:
    if val not in RELOAD_ENGINES:
        raise ConfigError(f"expected one of {', '.join(RELOAD_ENGINES)}, not {val!r}")
    return str(val)


def validate_header_map_behaviour(val: Any) -> str | None:
    return None if val is None else one_of(*HEADER_MAP_WAYS)(val.lower() if isinstance(val, str) else val)


def validate_seconds(val: Any) -> int | float:
    """A number of seconds, 0 or more, with or without a fraction."""
    if isinstance(val, str):
        try:
            val = float(val) if not val.strip().isdecimal() else int(val)
        except ValueError:
            raise ValueError(f"expected a number of seconds, not {val!r}") from None
    if isinstance(val, bool) or not isinstance(val, (int, float)):
        raise TypeError(f"expected a number of seconds, not {val!r} ({type(val).__name__})")
    if not math.isfinite(val) or val < 0:
        raise ValueError(f"expected a number of seconds, 0 or more, not {val!r}")
    return val


def validate_ssl_version(val: Any) -> int:
    """A protocol constant of the ``ssl`` module, or its name with or without ``PROTOCOL_``.

    None, and versions without a constant in this Python such as ``TLSv1_3``, mean the one that negotiates.
    """
    if val is None:
        return _PROTOCOL_TLS
    if isinstance(val, int) and not isinstance(val, bool):
        return int(val)
    try:
        return _ssl_constant(val, "PROTOCOL_")
    except ValueError:
        if not val.strip() or _TLS_VERSION.fullmatch(val.strip()):
            return _PROTOCOL_TLS
        raise


def validate_cert_reqs(val: Any) -> int:
    """A ``CERT_…`` constant of the ``ssl`` module, its name, or its number as text."""
    number = int(val) if isinstance(val, int) else _ssl_constant(val, "CERT_")
    if number not in (0, 1, 2):
        raise ValueError(f"expected 0 (CERT_NONE), 1 (CERT_OPTIONAL) or 2 (CERT_REQUIRED), not {val!r}")
    return number


def _ssl_constant(val: Any, prefix: str) -> int:
    if not isinstance(val, str):
        raise TypeError(f"expected a constant of the ssl module or its name, not {_kind(val)}")
    import ssl

    text = val.strip()
    if text.isdecimal():
        return int(text)
    name = text if text.startswith(prefix) else prefix + text
    number = getattr(ssl, name, None)
    if not isinstance(number, int):
        known = sorted(key for key in vars(ssl) if key.startswith(prefix))
        raise ValueError(f"expected one of {', '.join(known)}, not {val!r}")
    return int(number)
