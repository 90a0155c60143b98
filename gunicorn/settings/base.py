# SPDX-License-Identifier: MIT
"""The base of settings: classes that register themselves, instances that hold one value each."""

from __future__ import annotations

import copy
import os
import re
import sys
from types import FunctionType
from typing import TYPE_CHECKING, Any

from gunicorn.errors import ConfigError

if TYPE_CHECKING:
    import argparse

#: Every setting class in the order of definition, those of embedders included.
KNOWN_SETTINGS: list[type[Setting]] = []

#: The sections in the order in which ``--help`` and the documentation show them.
SECTIONS = (
    CONFIG_FILE := "Config File",
    SERVER_SOCKET := "Server Socket",
    WORKER_PROCESSES := "Worker Processes",
    ASGI := "ASGI",
    STATIC_FILES := "Static Files",
    SECURITY := "Security",
    DEBUGGING := "Debugging",
    SERVER_MECHANICS := "Server Mechanics",
    LOGGING := "Logging",
    PROCESS_NAMING := "Process Naming",
    SERVER_HOOKS := "Server Hooks",
    SSL := "SSL",
    COMPANION_PROCESSES := "Companion Processes",
    MONITOR := "Monitor",
    GUNICORN_27 := "Gunicorn 24 to 27",
)


def dedent(text: str) -> str:
    """*text* without the indentation of its lines, the first of which may begin right behind the quotes.

    Not by ``textwrap``, which costs more to import.
    """
    lines = text.expandtabs().strip("\n").rstrip().splitlines()
    indented = [line for line in lines[1 if text[:1].strip() else 0 :] if line.strip()]
    margin = min((len(line) - len(line.lstrip()) for line in indented), default=0)
    return "\n".join((line[margin:] if line in indented else line).rstrip() for line in lines)


def described(clsname: str, attrs: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a setting from its docstring, the manual, and from the keywords *given* in its class.

    Without *name* it is the name of the class; without *flags* (separated by spaces; None: no flag) the flag
    is the name; without *section* it is ``SECTION`` of the module. Raises TypeError for an unknown keyword.
    """
    name = given.pop("name", None) or re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", clsname)
    name = name.lower()
    flags = given.pop("flags", f"--{name.replace('_', '-')}")
    unknown = given.keys() - Setting.__annotations__.keys()
    if unknown:
        raise TypeError(f"{clsname}: a setting has no {', '.join(sorted(unknown))}")
    given.setdefault("section", getattr(sys.modules[attrs["__module__"]], "SECTION", None))
    cli = flags.split() if flags else None
    return {**attrs, "name": name, "cli": cli, "desc": attrs.get("__doc__"), **given}


class SettingMeta(type):
    """Registers each subclass of Setting that has a name, and prepares its class attributes.

    The keywords of the class statement describe a regular setting (see `described`); a class without
    keywords sets all attributes itself.
    """

    def __new__(
        mcs, clsname: str, bases: tuple[type, ...], attrs: dict[str, Any], **given: Any
    ) -> SettingMeta:
        if given:
            attrs = described(clsname, attrs, given)
        # A plain function in a class body would bind to the instance on access. `type` stays as it is:
        # `auto_int(_, x)` relies on being bound.
        for key in ("validator", "default", "formatter"):
            if isinstance(attrs.get(key), FunctionType):
                attrs[key] = staticmethod(attrs[key])
        cls = super().__new__(mcs, clsname, bases, attrs)
        if attrs.get("name"):
            cls.order = len(KNOWN_SETTINGS)  # type: ignore[attr-defined]
            cls.fmt_desc(attrs.get("desc") or "")
            KNOWN_SETTINGS.append(cls)  # type: ignore[arg-type]
        return cls

    def fmt_desc(cls, desc: str) -> None:
        """Set ``desc`` without its indentation, and ``short`` to its first paragraph on one line."""
        text = dedent(desc)
        cls.desc = text
        cls.short = " ".join(text.split("\n\n", 1)[0].split())


class Setting(metaclass=SettingMeta):
    """One setting. The class describes it, an instance holds its value in one Config.

    Subclasses with a ``name`` are registered in KNOWN_SETTINGS as they are defined: a framework adds a
    setting by defining a class.
    """

    name: str | None = None
    value: Any = None
    section: str | None = None
    cli: list[str] | None = None
    validator: Any = None
    type: Any = None
    meta: str | None = None
    action: str | None = None
    default: Any = None
    short: str | None = None
    desc: str | None = None
    nargs: int | str | None = None
    const: Any = None
    order: int = -1
    #: The default in words, where the value depends on the system or the user.
    default_text: str | None = None
    #: The environment variable that replaces the default.
    env_var: str | None = None
    #: What ``--help`` says about the flag, if not the first paragraph of the description.
    flag_help: str | None = None
    #: How the value is printed, if not by ``str``.
    formatter: Any = None

    def __init__(self) -> None:
        # The class's own list or dict must not be shared by all configurations.
        default = copy.copy(self.default) if isinstance(self.default, (list, dict)) else self.default
        given = os.environ.get(self.env_var) if self.env_var else None
        if given is not None:
            try:
                default = self.from_env(given)
                if default is not None:
                    self.set(default)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"environment variable {self.env_var}={given!r}: {error}") from error
        elif default is not None:
            self.set(default)

    def from_env(self, text: str) -> Any:
        """The value for *text*, the content of ``env_var``."""
        return text if text.strip() else self.default

    def add_option(self, parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
        """Add the flags to *parser*; a missing flag is None."""
        if not self.cli:
            return
        options: dict[str, Any] = {
            "dest": self.name,
            "action": self.action or "store",
            "default": None,
            "help": self.help_text().replace("%", "%%"),
        }
        if options["action"] in ("store", "append"):
            options["type"] = self.type or str
            if self.meta is not None:
                options["metavar"] = self.meta
            if self.nargs is not None:
                options["nargs"] = self.nargs
        if self.const is not None:
            options["const"] = self.const
        parser.add_argument(*self.cli, **options)

    def help_text(self) -> str:
        """What ``--help`` says: the first paragraph of the description and the default."""
        text = (self.flag_help or self.short or "").replace("``", "")
        default = self.default_text or self.default
        if self.action in ("store_true", "store_const") or default in (None, "", [], {}):
            return text
        shown = ", ".join(map(str, default)) if isinstance(default, list) else str(default)
        return f"{text} [{shown.replace('``', '')}]"

    def copy(self) -> Setting:
        return copy.copy(self)

    def get(self) -> Any:
        return self.value

    def set(self, val: Any) -> None:
        """Validate *val* and take it. If the validator raises, the old value stays."""
        if self.validator is None:
            raise TypeError(f"setting {self.name!r} has no validator")
        self.value = self.validator(val)

    def set_from_command_line(self, val: Any) -> None:
        """Set the value of a flag. A class whose flag adds to the existing value overrides this."""
        self.set(val)

    def __lt__(self, other: Setting) -> bool:
        return self.section == other.section and self.order < other.order

    def __repr__(self) -> str:
        return f"<setting {self.name} of class {type(self).__name__} with value {self.value!r}>"


def make_settings(ignore: Any = None) -> dict[str, Setting]:
    """A new instance of every known setting by name, except those in *ignore*."""
    ignored = ignore or ()
    return {cls.name: cls() for cls in KNOWN_SETTINGS if cls.name and cls.name not in ignored}


def auto_int(_: Any, x: str) -> int:
    """An integer in decimal, ``0x`` or ``0o``; a leading 0 means octal, as in file modes."""
    text = x.strip()
    if len(text) > 1 and text[0] == "0" and text.isdecimal():
        return int(text, 8)
    return int(text, 0)
