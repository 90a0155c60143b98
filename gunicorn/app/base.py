# SPDX-License-Identifier: MIT
"""Applications: load the configuration, layer by layer, and the WSGI callable."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from gunicorn.app import configfile
from gunicorn.app.start import Start, apply_environ, as_at_start
from gunicorn.config import Config
from gunicorn.errors import AppImportError, ConfigError, all_mistakes
from gunicorn.loading import asked_to_exit, check_protocol, collecting_seldom
from gunicorn.master import handoff
from gunicorn.settings.server import ConfigFile
from gunicorn.unix.process import open_standard_streams

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

WSGICallable = Callable[..., Any]


class BaseApplication:
    """What the server runs: a configuration in ``cfg`` and a WSGI callable from ``wsgi()``.

    To embed the server, derive from this: ``load_config()`` sets values by
    ``self.cfg.set(name, value)``, ``load()`` returns the WSGI callable; then call ``run()``.
    """

    cfg: Config
    # What `wsgi` returns if there are static files, and the configuration that it was made for.
    _with_files: tuple[Config, WSGICallable] | None = None

    def __init__(self, usage: str | None = None, prog: str | None = None) -> None:
        # First, or the next file that is opened would get their numbers.
        open_standard_streams()
        self.usage = usage
        self.prog = prog
        self.callable: WSGICallable | None = None
        self.logger: Any = None
        self._start = Start.here()
        self.do_load_config()

    def init(self, parser: ArgumentParser, opts: Namespace, args: list[str]) -> dict[str, Any] | None:
        """Look at the command line before the other layers; returned settings rank below a config file."""
        raise NotImplementedError

    def load(self) -> WSGICallable:
        """Return the WSGI callable. Called once in each process that needs it."""
        raise NotImplementedError

    def load_config(self) -> None:
        """Set everything that is not at its default in ``self.cfg``."""
        raise NotImplementedError

    def load_default_config(self) -> None:
        self.cfg = Config(self.usage, prog=self.prog)

    def do_load_config(self) -> None:
        """Load the configuration at the start; print a mistake on stderr and exit."""
        try:
            self.load_default_config()
            self.load_config()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            fail(error)

    def wsgi(self) -> WSGICallable:
        """The WSGI callable, loaded on the first call."""
        if self.callable is None:
            with collecting_seldom():
                self.callable = self.load()
            # It may have closed them.
            open_standard_streams()
            check_protocol(self.callable, self.cfg.settings["worker_class"].get())
        if not self.cfg.static:
            return self.callable
        # The application stays over a reload of a preloading server; the files and their settings don't.
        if self._with_files is None or self._with_files[0] is not self.cfg:
            from gunicorn.static import wrap

            self._with_files = self.cfg, wrap(self.callable, self.cfg)
        return self._with_files[1]

    def fresh_config(self, files: Mapping[str, bytes] | None = None) -> Config:
        """A new Config from all layers, read with the arguments, directory and environment of the start.

        The running configuration stays as it is; `adopt_config` replaces it. Raises ConfigError, even if the
        file exits. *files*: texts of configuration files, by path, that this process may not read itself.
        """
        rehearsal = object.__new__(type(self))
        rehearsal.__dict__.update(self.__dict__)
        rehearsal.__dict__["chdir"] = _stay
        try:
            with configfile.given(files or {}), as_at_start(self._start) as effects:
                rehearsal.load_default_config()
                # The current directory is another one if that of the start cannot be entered.
                rehearsal.cfg.settings["chdir"].value = self._start.directory
                rehearsal.load_config()
        except ConfigError:
            raise
        except SystemExit as error:
            raise ConfigError(f"the configuration cannot be loaded: exit {error.code}") from error
        except BaseException as error:
            # BaseException: asyncio.CancelledError and gevent.Timeout are no Exception.
            raise ConfigError(
                f"the configuration cannot be loaded: {type(error).__name__}: {error}"
            ) from error
        fresh = rehearsal.cfg
        fresh.effects = effects
        # load_config may set attributes of the application, such as the WSGI callable.
        fresh.noted = {
            name: value
            for name, value in rehearsal.__dict__.items()
            if name not in ("cfg", "chdir") and self.__dict__.get(name, fresh) is not value
        }
        return fresh

    def adopt_config(self, fresh: Config) -> None:
        """Use a Config from `fresh_config`, and apply what loading it changed in the process."""
        for name in self.cfg.env:
            apply_environ({name: self.cfg.env_orig.get(name)})
        if fresh.effects is not None:
            fresh.effects.apply()
        self.__dict__.update(fresh.noted)
        self.cfg = fresh
        if fresh.spew:
            _spew()

    def reload(self) -> None:
        """Load the configuration again. Raises ConfigError and changes nothing if it is wrong."""
        self.adopt_config(self.fresh_config())

    def run(self) -> None:
        """Serve until a signal ends it."""
        from gunicorn.arbiter import Arbiter

        try:
            Arbiter(self).run()
        except (RuntimeError, ConfigError, AppImportError) as error:
            fail(error)
        except SystemExit as error:
            if _while_loading(error):
                fail(AppImportError(f"the application cannot be loaded: {asked_to_exit(error)}"))
            raise
        except Exception as error:
            if _while_loading(error):
                fail(error)
            raise


class Application(BaseApplication):
    """A BaseApplication with all layers of configuration: files, environment and command line."""

    def chdir(self) -> None:
        """Change to the configured directory and let modules be imported from it. Raises ConfigError."""
        try:
            os.chdir(self.cfg.chdir)
        except FileNotFoundError:
            raise ConfigError(
                f"the directory {self.cfg.chdir} was removed; start in another one, or name it by --chdir"
            ) from None
        if self.cfg.chdir not in sys.path:
            sys.path.insert(0, self.cfg.chdir)

    # -- files -------------------------------------------------------------------------------

    def get_config_from_filename(self, filename: str) -> dict[str, Any]:
        """Run the file and return what it defines. Raises ConfigError."""
        return configfile.read_file(os.path.join(self._start.directory, filename)).names

    def get_config_from_module_name(self, module_name: str) -> dict[str, Any]:
        """Run the module, again if it was imported before, and return what it defines. Raises ConfigError."""
        return configfile.read_module(module_name).names

    def load_config_from_module_name_or_filename(self, location: str) -> dict[str, Any]:
        """Set what the file or module at *location* defines; returns all of that. Raises ConfigError."""
        source = configfile.read_config(location, self._start.directory)
        configfile.apply_source(self.cfg, source)
        return source.names

    def load_config_from_file(self, filename: str) -> dict[str, Any]:
        return self.load_config_from_module_name_or_filename(filename)

    def _default_config_file(self) -> str | None:
        """``gunicorn.conf.py`` in the directory of the start, or None. Raises ConfigError."""
        path = os.path.join(self._start.directory, "gunicorn.conf.py")
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            # It was there at the start: a deploy is at work. Nobody means to run without any configuration.
            if path in self.__dict__.get("_files_read", ()):
                raise ConfigError(f"the configuration file {path} is gone; put it back or restart") from None
            return None
        except OSError as error:
            raise ConfigError(f"cannot read the configuration file {path}: {error.strerror}") from error
        return path

    # -- layers ------------------------------------------------------------------------------

    def load_config(self) -> None:
        """Apply the layers in their order; each one outranks those before it."""
        parser = self.cfg.parser()
        args = parser.parse_args(self._start.argv)
        for name, value in (self.init(parser, args, args.args) or {}).items():
            self._set(f"application: {name}", name.lower(), value)
        # Configuration modules may be there, and modules that the files import.
        with contextlib.suppress(ConfigError):
            self.chdir()
        env_args = self._parse_environment(parser)
        location = args.config or env_args.config or self._own_config() or self._default_config_file()
        if location:
            self.load_config_from_file(location)
        companions = args.companion_config_file or env_args.companion_config_file
        companions = companions or self.cfg.companion_config_file
        if companions:
            source = configfile.read_config(companions, self._start.directory)
            configfile.apply_source(self.cfg, source, companions_only=True)
        self._apply_arguments(env_args, "GUNICORN_CMD_ARGS")
        self._apply_arguments(args, "command line")
        self._files_read = [source.path for source in self.cfg.sources]
        self.chdir()

    def _own_config(self) -> str | None:
        """The file that an embedding application has chosen, if any."""
        location: str | None = self.cfg.config
        return location if location != ConfigFile.default else None

    def _parse_environment(self, parser: ArgumentParser) -> Namespace:
        try:
            return parser.parse_args(self.cfg.get_cmd_args_from_env())
        except ValueError as error:  # an unbalanced quote
            raise ConfigError(f"environment variable GUNICORN_CMD_ARGS: {error}") from error
        except SystemExit as error:
            if error.code:
                print("(in the environment variable GUNICORN_CMD_ARGS)", file=sys.stderr)
            raise

    def _apply_arguments(self, arguments: Namespace, origin: str) -> None:
        mistakes = []
        for name, value in vars(arguments).items():
            if name == "args" or value is None:
                continue
            flag = (self.cfg.settings[name].cli or [name])[-1]
            try:
                self._set(f"{flag} {configfile.shorten(value)}", name, value, by_flag=True)
            except ConfigError as error:
                mistakes.append(str(error))
        if mistakes:
            raise ConfigError(all_mistakes(origin, mistakes))

    def _set(self, source: str, name: str, value: Any, by_flag: bool = False) -> None:
        try:
            if by_flag:
                self.cfg.settings[name].set_from_command_line(value)
            else:
                self.cfg.set(name, value)
        except (ValueError, TypeError, AttributeError, ConfigError) as error:
            raise ConfigError(f"{source}: {error}") from error

    def adopt_config(self, fresh: Config) -> None:
        super().adopt_config(fresh)
        self.chdir()
        self.extend_python_path()

    # -- running -----------------------------------------------------------------------------

    def extend_python_path(self) -> None:
        """Put the directories of ``pythonpath`` first on the import path."""
        if self.cfg.pythonpath is None:
            return
        for text in self.cfg.pythonpath.split(","):
            path = os.path.abspath(text.strip())
            if text.strip() and path not in sys.path:
                sys.path.insert(0, path)

    def run(self) -> None:
        """Check or print the configuration if requested; otherwise detach if requested, and serve."""
        if self.cfg.print_config or self.cfg.check_config:
            from gunicorn.app.check import check, derived, next_runs

            if self.cfg.print_config:
                print(self.cfg.shown(derived(self)), *next_runs(self.cfg), sep="\n", flush=True)
            sys.exit(check(self))
        if self.cfg.spew:
            _spew()
        if self.cfg.daemon:
            from gunicorn.unix.process import daemonize

            if os.environ.get("NOTIFY_SOCKET"):
                print(
                    "Warning: systemd watches the process that it started; with --daemon that one exits. "
                    "Leave --daemon out.",
                    file=sys.stderr,
                )
            daemonize(self.cfg.enable_stdio_inheritance)
        self.extend_python_path()
        super().run()


def _stay() -> None:
    """Replaces ``chdir`` while `fresh_config` reads a configuration."""


def _spew() -> None:
    from gunicorn.debug import spew

    spew()


def fail(error: BaseException) -> NoReturn:
    """Print *error* on stderr, with the user's part of its traceback, and exit with status 1."""
    text = str(error)
    if isinstance(error, (ConfigError, AppImportError)):
        details = getattr(error, "details", "")
    else:
        details = configfile.user_traceback(error)
        if details or not text:
            text = f"{type(error).__name__}: {text}"
    if details:
        print(details, file=sys.stderr)
    print(f"Error: {text}", file=sys.stderr, flush=True)
    _tell_old_master(text)
    sys.exit(1)


def _tell_old_master(reason: str) -> None:
    """If this process is to succeed a master that waits for it, say why it does not."""
    fd, _ = handoff.report_to(os.environ)
    if fd is not None:
        from gunicorn.master.upgrade import write_report

        write_report(fd, reason)


def _while_loading(error: BaseException) -> bool:
    """Whether a preloaded application raised *error*: its author needs only the trace of that code."""
    tb = error.__traceback__
    while tb is not None:
        if tb.tb_frame.f_code is BaseApplication.wsgi.__code__:
            return True
        tb = tb.tb_next
    return False
