# SPDX-License-Identifier: MIT
"""Settings for logs and metrics."""

from __future__ import annotations

from typing import Any

from gunicorn.settings.base import LOGGING, Setting
from gunicorn.settings.kinds import Flag, Text
from gunicorn.settings.validators import parse_address, validate_class, validate_dict, validate_string

SECTION = LOGGING


def validate_statsd_address(val: Any) -> tuple[str, int] | str | None:
    """``HOST[:PORT]`` as (host, port), port 8125 by default; ``unix:PATH`` and ``unix://PATH`` as the path.

    ``unix:`` and digits alone, such as ``unix:7777``, are a host of that name and its port.
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


class AccessLog(Text, name="accesslog", flags="--access-logfile", meta="FILE"):
    """The file of the access log; ``-`` is standard output. Without it there is no access log."""


class DisableRedirectAccessToSyslog(Flag, section=SECTION):
    """Don't send the access log to syslog when ``syslog`` is on."""


class AccessLogFormat(
    Text, flags="--access-logformat", default='%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"'
):
    """The format of a line in the access log.

    =============  ==================================================
    atom           what it is
    =============  ==================================================
    ``h``          address of the client
    ``l``          always ``-``
    ``u``          user name of HTTP basic authentication
    ``t``          date and time of the request
    ``r``          request line
    ``m``          method
    ``U``          path, without the query string
    ``q``          query string
    ``H``          protocol
    ``s``          status
    ``B``          bytes of the response's body
    ``b``          the same, ``-`` for none
    ``f``          referrer
    ``a``          user agent
    ``T``          duration in whole seconds
    ``M``          duration in milliseconds
    ``D``          duration in microseconds
    ``L``          duration in seconds with a fraction
    ``p``          process id of the worker
    ``{Name}i``    request header field
    ``{Name}o``    response header field
    ``{Name}e``    variable of the environ
    =============  ==================================================

    Write each as ``%(ATOM)s``. A missing value is logged as ``-``; characters that could forge a line are
    escaped. A format that would fail at each request, because of an unknown conversion or a number
    conversion for text, is refused at the start, at a reload and by ``--check-config``.
    """


class ErrorLog(Text, name="errorlog", flags="--error-logfile --log-file", meta="FILE", default="-"):
    """The file of the error log, which is the server's own log; ``-`` is standard error."""


class Loglevel(Text, flags="--log-level", meta="LEVEL", default="info"):
    """The least severe messages in the error log: ``debug``, ``info``, ``warning``, ``error`` or
    ``critical``.
    """


class CaptureOutput(Flag, section=SECTION):
    """Send what the application prints to the file of the error log.

    Standard output and standard error are redirected to the file in ``errorlog``.
    """


class LoggerClass(Setting, meta="STRING", validator=validate_class, default="gunicorn.glogging.Logger"):
    """The logger class, by its dotted path; in a file it may be the class itself.

    Derive your own from ``gunicorn.glogging.Logger``. With ``statsd_host`` the default is
    ``gunicorn.instrument.statsd.Statsd``.
    """


class LogConfig(Text, name="logconfig", flags="--log-config", meta="FILE"):
    """A file of logging configuration in the INI format of ``logging.config.fileConfig``.

    The loggers are ``gunicorn.error`` and ``gunicorn.access``.
    """


class LogConfigDict(Setting, name="logconfig_dict", flags=None, validator=validate_dict, default={}):
    """Logging configuration as a dictionary for ``logging.config.dictConfig``.

    It is merged into the server's own. If it is not empty, it replaces ``logconfig`` and ``logconfig_json``.
    """


class LogConfigJson(Text, name="logconfig_json", flags="--log-config-json", meta="FILE"):
    """A JSON file with the dictionary for ``logging.config.dictConfig``."""


class SyslogTo(
    Text, name="syslog_addr", flags="--log-syslog-to", meta="SYSLOG_ADDR", default="udp://localhost:514"
):
    """The address of syslog: ``udp://HOST:PORT``, ``tcp://HOST:PORT``, or ``unix://PATH`` for a socket.

    Add ``#stream`` or ``#dgram`` to the path of a socket to give its type. On Linux the local one usually is
    ``unix:///dev/log``. It has an effect only if ``syslog`` is on.
    """


class Syslog(Flag, flags="--log-syslog"):
    """Send the logs to syslog as well."""


class SyslogPrefix(Text, flags="--log-syslog-prefix", meta="SYSLOG_PREFIX"):
    """The name of the program in syslog, after ``gunicorn.``; by default the process name."""


class SyslogFacility(Text, flags="--log-syslog-facility", meta="SYSLOG_FACILITY", default="user"):
    """The facility in syslog, such as ``daemon`` or ``local0``."""


class EnableStdioInheritance(Flag, flags="-R --enable-stdio-inheritance"):
    """Keep standard output and standard error open in daemon mode.

    Without it ``daemon`` sends both to ``/dev/null``. Set ``PYTHONUNBUFFERED`` to see printed lines at once.
    """


class StatsdHost(Setting, meta="STATSD_ADDR", validator=validate_statsd_address):
    """The statsd server for metrics: ``HOST[:PORT]``, the port 8125 by default, or ``unix://PATH``, or
    ``unix:PATH``.
    """


class DogstatsdTags(Text, meta="DOGSTATSD_TAGS", default=""):
    """Comma-separated tags for each metric, for servers that speak DogStatsD.

    For example ``service:shop,env:production``. With it, the metrics of companions have the companion's name
    as a further tag.
    """


class StatsdPrefix(Text, meta="STATSD_PREFIX", default=""):
    """The prefix of each metric's name; a dot is added if it does not end with one."""


class EnableBacklogMetric(Flag, section=LOGGING):
    """Send the number of connections that wait to be accepted to statsd, once a second; Linux only.

    ``gunicorn.backlog`` is a gauge of all listeners together, ``gunicorn.socket.backlog`` a distribution with
    a value for each.
    """
