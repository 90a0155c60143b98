# SPDX-License-Identifier: MIT
"""What is logged, in which form, and where to; metrics too."""

from __future__ import annotations

from gunicorn.settings.base import LOGGING, Setting
from gunicorn.settings.kinds import Flag, Text
from gunicorn.settings.validators import (
    validate_class,
    validate_dict,
    validate_statsd_address,
)


class AccessLog(Text, section=LOGGING, name="accesslog", flags="--access-logfile", meta="FILE"):
    """The file of the access log; ``-`` is standard output. None is kept unless this is set."""


class DisableRedirectAccessToSyslog(Flag, section=LOGGING):
    """Leave the access log out of syslog where ``syslog`` is on."""


class AccessLogFormat(
    Text,
    section=LOGGING,
    flags="--access-logformat",
    default='%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"',
):
    """The form of a line in the access log.

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

    Each is written ``%(ATOM)s``. What a request lacks is logged as ``-``; characters that could forge a
    line are escaped. A format that would fail at each request, for a conversion that is none or a number
    asked of text, is refused at the start, at a reload and by ``--check-config``.
    """


class ErrorLog(
    Text, section=LOGGING, name="errorlog", flags="--error-logfile --log-file", meta="FILE", default="-"
):
    """The file of the error log, which is the server's own log; ``-`` is standard error."""


class Loglevel(Text, section=LOGGING, flags="--log-level", meta="LEVEL", default="info"):
    """The least severe messages in the error log: ``debug``, ``info``, ``warning``, ``error`` or
    ``critical``.
    """


class CaptureOutput(Flag, section=LOGGING):
    """Send what the application prints to the file of the error log.

    Standard output and standard error are redirected to the file in ``errorlog``.
    """


class LoggerClass(
    Setting, section=LOGGING, meta="STRING", validator=validate_class, default="gunicorn.glogging.Logger"
):
    """The class that logs, by its dotted path; in a file it may be the class itself.

    Derive your own from ``gunicorn.glogging.Logger``. With ``statsd_host`` and nothing set here it is
    ``gunicorn.instrument.statsd.Statsd``.
    """


class LogConfig(Text, section=LOGGING, name="logconfig", flags="--log-config", meta="FILE"):
    """A file of logging configuration in the INI form of ``logging.config.fileConfig``.

    The loggers are ``gunicorn.error`` and ``gunicorn.access``.
    """


class LogConfigDict(
    Setting, section=LOGGING, name="logconfig_dict", flags=None, validator=validate_dict, default={}
):
    """Logging configuration as a dictionary for ``logging.config.dictConfig``.

    It is merged over the server's own. Used in place of ``logconfig`` and ``logconfig_json`` where
    it is not empty.
    """


class LogConfigJson(Text, section=LOGGING, name="logconfig_json", flags="--log-config-json", meta="FILE"):
    """A JSON file with the dictionary for ``logging.config.dictConfig``."""


class SyslogTo(
    Text,
    section=LOGGING,
    name="syslog_addr",
    flags="--log-syslog-to",
    meta="SYSLOG_ADDR",
    default="udp://localhost:514",
):
    """Where syslog listens: ``udp://HOST:PORT``, ``tcp://HOST:PORT``, or ``unix://PATH`` for a socket.

    After the path of a socket ``#stream`` or ``#dgram`` tells its type. On Linux the local one usually is
    ``unix:///dev/log``. Used where ``syslog`` is on.
    """


class Syslog(Flag, section=LOGGING, flags="--log-syslog"):
    """Send the logs to syslog, beside where they go otherwise."""


class SyslogPrefix(Text, section=LOGGING, flags="--log-syslog-prefix", meta="SYSLOG_PREFIX"):
    """The name of the program in syslog: ``gunicorn.`` and this; the process name without it."""


class SyslogFacility(
    Text, section=LOGGING, flags="--log-syslog-facility", meta="SYSLOG_FACILITY", default="user"
):
    """The facility in syslog, such as ``daemon`` or ``local0``."""


class EnableStdioInheritance(Flag, section=LOGGING, flags="-R --enable-stdio-inheritance"):
    """Keep standard output and standard error where they are in daemon mode.

    Without it ``daemon`` sends both to ``/dev/null``. Set ``PYTHONUNBUFFERED`` to see what is
    printed at once.
    """


class StatsdHost(Setting, section=LOGGING, meta="STATSD_ADDR", validator=validate_statsd_address):
    """The statsd server that metrics are sent to: ``HOST[:PORT]``, the port 8125 by default, or
    ``unix://PATH``, or ``unix:PATH``.
    """


class DogstatsdTags(Text, section=LOGGING, meta="DOGSTATSD_TAGS", default=""):
    """Tags for each metric, with commas in between, for servers that speak DogStatsD.

    For example ``service:shop,env:production``. Where this is set, the figures of companions have
    the companion's name as a further tag.
    """


class StatsdPrefix(Text, section=LOGGING, meta="STATSD_PREFIX", default=""):
    """What the name of each metric starts with; a dot is put after it if it ends without one."""
