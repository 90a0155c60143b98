# SPDX-License-Identifier: MIT
"""What is logged, in which form, and where to; metrics too."""

from __future__ import annotations

from gunicorn.settings.base import Setting
from gunicorn.settings.validators import (
    validate_bool,
    validate_class,
    validate_dict,
    validate_statsd_address,
    validate_string,
)


class AccessLog(Setting):
    name = "accesslog"
    section = "Logging"
    cli = ["--access-logfile"]
    meta = "FILE"
    validator = validate_string
    desc = """\
        The file of the access log; ``-`` is standard output. None is kept unless this is set.
        """


class DisableRedirectAccessToSyslog(Setting):
    name = "disable_redirect_access_to_syslog"
    section = "Logging"
    cli = ["--disable-redirect-access-to-syslog"]
    action = "store_true"
    validator = validate_bool
    default = False
    desc = """\
        Leave the access log out of syslog where ``syslog`` is on.
        """


class AccessLogFormat(Setting):
    name = "access_log_format"
    section = "Logging"
    cli = ["--access-logformat"]
    meta = "STRING"
    validator = validate_string
    default = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"'
    desc = """\
        The form of a line in the access log.

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
        line are escaped.
        """


class ErrorLog(Setting):
    name = "errorlog"
    section = "Logging"
    cli = ["--error-logfile", "--log-file"]
    meta = "FILE"
    validator = validate_string
    default = "-"
    desc = """\
        The file of the error log, which is the server's own log; ``-`` is standard error.
        """


class Loglevel(Setting):
    name = "loglevel"
    section = "Logging"
    cli = ["--log-level"]
    meta = "LEVEL"
    validator = validate_string
    default = "info"
    desc = """\
        The least severe messages in the error log: ``debug``, ``info``, ``warning``, ``error`` or
        ``critical``.
        """


class CaptureOutput(Setting):
    name = "capture_output"
    section = "Logging"
    cli = ["--capture-output"]
    action = "store_true"
    validator = validate_bool
    default = False
    desc = """\
        Send what the application prints to the file of the error log.

        Standard output and standard error are redirected to the file in ``errorlog``.
        """


class LoggerClass(Setting):
    name = "logger_class"
    section = "Logging"
    cli = ["--logger-class"]
    meta = "STRING"
    validator = validate_class
    default = "gunicorn.glogging.Logger"
    desc = """\
        The class that logs, by its dotted path; in a file it may be the class itself.

        Derive your own from ``gunicorn.glogging.Logger``. With ``statsd_host`` and nothing set here it is
        ``gunicorn.instrument.statsd.Statsd``.
        """


class LogConfig(Setting):
    name = "logconfig"
    section = "Logging"
    cli = ["--log-config"]
    meta = "FILE"
    validator = validate_string
    desc = """\
        A file of logging configuration in the INI form of ``logging.config.fileConfig``.

        The loggers are ``gunicorn.error`` and ``gunicorn.access``.
        """


class LogConfigDict(Setting):
    name = "logconfig_dict"
    section = "Logging"
    validator = validate_dict
    default = {}
    desc = """\
        Logging configuration as a dictionary for ``logging.config.dictConfig``.

        It is merged over the server's own. Used in place of ``logconfig`` and ``logconfig_json`` where
        it is not empty.
        """


class LogConfigJson(Setting):
    name = "logconfig_json"
    section = "Logging"
    cli = ["--log-config-json"]
    meta = "FILE"
    validator = validate_string
    desc = """\
        A JSON file with the dictionary for ``logging.config.dictConfig``.
        """


class SyslogTo(Setting):
    name = "syslog_addr"
    section = "Logging"
    cli = ["--log-syslog-to"]
    meta = "SYSLOG_ADDR"
    validator = validate_string
    default = "udp://localhost:514"
    desc = """\
        Where syslog listens: ``udp://HOST:PORT``, ``tcp://HOST:PORT``, or ``unix://PATH`` for a socket.

        After the path of a socket ``#stream`` or ``#dgram`` tells its type. On Linux the local one usually is
        ``unix:///dev/log``. Used where ``syslog`` is on.
        """


class Syslog(Setting):
    name = "syslog"
    section = "Logging"
    cli = ["--log-syslog"]
    action = "store_true"
    validator = validate_bool
    default = False
    desc = """\
        Send the logs to syslog, beside where they go otherwise.
        """


class SyslogPrefix(Setting):
    name = "syslog_prefix"
    section = "Logging"
    cli = ["--log-syslog-prefix"]
    meta = "SYSLOG_PREFIX"
    validator = validate_string
    desc = """\
        The name of the program in syslog: ``gunicorn.`` and this; the process name without it.
        """


class SyslogFacility(Setting):
    name = "syslog_facility"
    section = "Logging"
    cli = ["--log-syslog-facility"]
    meta = "SYSLOG_FACILITY"
    validator = validate_string
    default = "user"
    desc = """\
        The facility in syslog, such as ``daemon`` or ``local0``.
        """


class EnableStdioInheritance(Setting):
    name = "enable_stdio_inheritance"
    section = "Logging"
    cli = ["-R", "--enable-stdio-inheritance"]
    action = "store_true"
    validator = validate_bool
    default = False
    desc = """\
        Keep standard output and standard error where they are in daemon mode.

        Without it ``daemon`` sends both to ``/dev/null``. Set ``PYTHONUNBUFFERED`` to see what is
        printed at once.
        """


class StatsdHost(Setting):
    name = "statsd_host"
    section = "Logging"
    cli = ["--statsd-host"]
    meta = "STATSD_ADDR"
    validator = validate_statsd_address
    desc = """\
        The statsd server that metrics are sent to: ``HOST[:PORT]``, the port 8125 by default, or
        ``unix://PATH``, or ``unix:PATH``.
        """


class DogstatsdTags(Setting):
    name = "dogstatsd_tags"
    section = "Logging"
    cli = ["--dogstatsd-tags"]
    meta = "DOGSTATSD_TAGS"
    validator = validate_string
    default = ""
    desc = """\
        Tags for each metric, with commas in between, for servers that speak DogStatsD.

        For example ``service:shop,env:production``. Where this is set, the figures of companions have
        the companion's name as a further tag.
        """


class StatsdPrefix(Setting):
    name = "statsd_prefix"
    section = "Logging"
    cli = ["--statsd-prefix"]
    meta = "STATSD_PREFIX"
    validator = validate_string
    default = ""
    desc = """\
        What the name of each metric starts with; a dot is put after it if it ends without one.
        """
