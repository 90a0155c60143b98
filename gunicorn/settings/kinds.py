# SPDX-License-Identifier: MIT
"""The common kinds of settings, and hooks, which are settings too."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar

from gunicorn.settings.base import Setting, SettingMeta
from gunicorn.settings.validators import (
    or_none,
    validate_bool,
    validate_callable,
    validate_pos_int,
    validate_seconds,
    validate_string,
)

Function = TypeVar("Function", bound=Callable[..., Any])


class Flag(Setting):
    """On or off; off unless its flag is given."""

    action = "store_true"
    validator = validate_bool
    default = False


class Count(Setting):
    """A whole number from 0 on."""

    meta = "INT"
    type = int
    validator = validate_pos_int


class Seconds(Setting):
    """A duration, with fractions."""

    meta = "SECONDS"
    validator = validate_seconds


class OptionalSeconds(Setting):
    """A duration, or none."""

    meta = "SECONDS"
    validator = or_none(validate_seconds)


class Text(Setting):
    """Text, or none."""

    meta = "STRING"
    validator = validate_string


def hook(class_name: str, *, does: str = "does nothing", **given: Any) -> Callable[[Function], Function]:
    """Make a setting, the class *class_name* in its module, of the decorated function, which is its default.

    A configured function must take the same parameters. The docstring is the manual; *does* describes the
    default there.
    """

    def define(function: Function) -> Function:
        assert isinstance(function, FunctionType)
        # As `--print-config` shows it.
        function.__qualname__ = f"{class_name}.{function.__name__}"
        code = function.__code__
        parameters = code.co_varnames[: code.co_argcount]
        attrs = {
            "__module__": function.__module__,
            "__doc__": function.__doc__,
            "type": callable,
            "validator": validate_callable(len(parameters)),
            "default": function,
            "default_text": f"``def {function.__name__}({', '.join(parameters)})``, {does}",
        }
        function.__globals__[class_name] = SettingMeta(
            class_name, (Setting,), attrs, name=function.__name__, flags=None, **given
        )
        return function

    return define
