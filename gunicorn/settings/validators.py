# SPDX-License-Identifier: MIT
"""Validators: each takes a value as written and returns it as the server uses it.

They raise TypeError for a wrong type and ValueError for a wrong value (ConfigError for an unknown user,
directory or engine). The text says what would be right; the caller adds the name of the setting.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

from gunicorn.loading import getcwd
from gunicorn.settings import redact

TRUE_WORDS = ("true", "yes", "on", "1")
FALSE_WORDS = ("false", "no", "off", "0")
SIZE_RE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
# The smallest process has more private memory: a smaller limit lacks its unit.
MIN_MEMORY = 2**20
# Three centuries, for which "never" is a better word. Clocks, poll(2) and systemd's microseconds take it.
MAX_SECONDS = 10**10
# What a signed integer of the kernel holds.
MAX_NUMBER = 2**63 - 1


def type_and_value(val: Any) -> str:
    return f"{redact.in_value(val)!r} ({type(val).__name__})"


def validate_bool(val: Any) -> bool | None:
    if val is None or isinstance(val, bool):
        return val
    if not isinstance(val, str):
        raise TypeError(f"expected True or False, not {type_and_value(val)}")
    word = val.strip().lower()
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    raise ValueError(f"expected true or false, not {val!r}")


def validate_dict(val: Any) -> dict[Any, Any]:
    if not isinstance(val, dict):
        raise TypeError(f"expected a dict, not {type_and_value(val)}")
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
        raise TypeError(f"expected a whole number, not {type_and_value(val)}")
    if number < 0:
        raise ValueError(f"must be 0 or more, not {number}")
    if number > MAX_NUMBER:
        raise ValueError("the number is too large")
    return number


def validate_number(val: Any) -> int:
    """As `validate_pos_int`, but True and False are no numbers."""
    if isinstance(val, bool):
        raise TypeError(f"expected a whole number, not {type_and_value(val)}")
    return validate_pos_int(val)


def validate_string(val: Any) -> str | None:
    if val is None:
        return None
    if not isinstance(val, str):
        raise TypeError(f"expected a string, not {type_and_value(val)}")
    return val.strip()


def validate_file_exists(val: Any) -> str | None:
    path = validate_string(val)
    if not path:
        return path  # such as an empty environment variable
    if is_missing(path):
        raise ValueError(f"file {path!r} does not exist (seen from {getcwd()})")
    return path


def is_missing(path: str) -> bool:
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
        raise TypeError(f"expected a list of strings, not {type_and_value(val)}")
    strings = [validate_string(item) for item in val]
    if None in strings:
        raise TypeError("expected a list of strings, found None in it")
    return [item for item in strings if item is not None]


def validate_class(val: Any) -> Any:
    """Return a class, or text that names one; call a function for either."""
    if isinstance(val, (FunctionType, MethodType)):
        val = val()
    if isinstance(val, type):
        return val
    return validate_string(val)


def validate_callable(arity: int) -> Callable[[Any], Any]:
    """A validator for hooks: a callable, or text ``module.name``, that takes *arity* arguments (-1: any)."""

    def validate(val: Any) -> Any:
        found = _named_object(val) if isinstance(val, str) else val
        if not callable(found):
            raise TypeError(f"expected a callable, not {type_and_value(found)}")
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


def one_of(*words: str) -> Callable[[Any], str]:
    """A validator for one of *words*."""

    def validate(val: Any) -> str:
        text = validate_string(val)
        if text not in words:
            raise ValueError(f"expected one of {', '.join(words)}, not {val!r}")
        return text

    return validate


def any_case(default: str, *others: str) -> Callable[[Any], str]:
    """A validator for *default* or one of *others*, in any case; None is *default*."""
    check = one_of(default, *others)
    return lambda val: default if val is None else check(val.lower() if isinstance(val, str) else val)


def or_none(validate: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A validator that takes None beside what *validate* takes."""
    return lambda val: None if val is None else validate(val)


def validate_seconds(val: Any) -> int | float:
    """A number of seconds, 0 or more, with or without a fraction."""
    if isinstance(val, str):
        try:
            val = float(val) if not val.strip().isdecimal() else int(val)
        except ValueError:
            raise ValueError(f"expected a number of seconds, not {val!r}") from None
    if isinstance(val, bool) or not isinstance(val, (int, float)):
        raise TypeError(f"expected a number of seconds, not {val!r} ({type(val).__name__})")
    # Not isfinite(): it raises OverflowError for a whole number that is no float.
    if val > MAX_SECONDS:
        raise ValueError(f"expected a number of seconds, at most {MAX_SECONDS}")
    if not val >= 0:  # not a number, too
        raise ValueError(f"expected a number of seconds, 0 or more, not {val!r}")
    return val


def parse_size(value: Any) -> int:
    """A number of bytes from text like '300M', or from itself. Raises ValueError."""
    match = SIZE_RE.fullmatch(value.strip()) if isinstance(value, str) else None
    size: float
    if match is not None:
        size = float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " ")
    elif isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        raise ValueError(f"{value!r} is not a size: a number of bytes, or text like '300M' or '1.5G'")
    if size > MAX_NUMBER:
        raise ValueError("the size is more than a system can have")
    return int(size)


def check_size(value: Any) -> int:
    """The most memory that a process may have."""
    size = parse_size(value)
    if size < 1:
        raise ValueError(f"{value!r} leaves no memory (None turns the limit off)")
    if size < MIN_MEMORY:
        unit_forgotten = str(size) == str(value).strip() and size <= 2**17
        hint = f": write '{size}M'" if unit_forgotten else ""
        raise ValueError(f"{value!r} is {size} bytes, but every process uses more than 1M{hint}")
    return size


# -- addresses ---------------------------------------------------------------------------------

Address = tuple[str, int] | str | int

_PORT_RE = re.compile(r"[0-9]{1,5}")


def is_ipv6(addr: str) -> bool:
    """Whether *addr* is an IPv6 address, without brackets; a zone (``%eth0``) may follow."""
    import socket

    try:
        socket.inet_pton(socket.AF_INET6, addr.partition("%")[0])
    except (OSError, ValueError, UnicodeError):
        return False
    return True


def parse_address(netloc: str, default_port: str = "8000") -> Address:
    """Parse *netloc* to (host, port), the path of a Unix socket, or a descriptor's number.

    ``HOST``, ``HOST:PORT``, ``:PORT``, ``[IPv6]``, ``[IPv6]:PORT`` with an optional ``tcp://``;
    ``unix:PATH`` and ``unix://PATH``; ``fd://N``. A host that is left out is ``0.0.0.0``.
    Raises RuntimeError with what is wrong.
    """
    scheme, separator, rest = netloc.partition("://")
    if netloc.startswith("unix:"):
        path = rest if netloc.startswith("unix://") else netloc[len("unix:") :]
        if not path:
            raise RuntimeError(f"{netloc!r} has no path; write unix:/path/to/socket")
        return path
    if netloc.startswith("fd://"):
        if not rest.isdecimal():
            raise RuntimeError(f"{rest!r} is not the number of a file descriptor")
        return int(rest)
    if separator:
        if scheme.lower() != "tcp":
            raise RuntimeError(f"the scheme {scheme!r} of {netloc!r} is not one of tcp, unix, fd")
        netloc = rest
    host, port = _split_port(netloc, default_port)
    if not _PORT_RE.fullmatch(port) or int(port) > 65535:
        raise RuntimeError(f"port {port!r} is not a number from 0 to 65535")
    return host.lower() or "0.0.0.0", int(port)


def _split_port(netloc: str, default_port: str) -> tuple[str, str]:
    if netloc.startswith("["):
        host, bracket, after = netloc[1:].partition("]")
        if not bracket or (after and not after.startswith(":")):
            raise RuntimeError(f"{netloc!r} is not of the form [IPv6]:PORT")
        return host, after[1:] if after else default_port
    if netloc.count(":") > 1:
        # Bare IPv6; with a port it needs brackets, because it would be ambiguous.
        if is_ipv6(netloc):
            return netloc, default_port
        raise RuntimeError(f"{netloc!r} has too many colons; write an IPv6 address as [ADDRESS]:PORT")
    host, colon, port = netloc.partition(":")
    return host, port if colon else default_port
