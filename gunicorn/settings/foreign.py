# SPDX-License-Identifier: MIT
"""Other programs' names for keys: those of supervisord and others.

Used if a name is unknown: the message then says what to write instead.
"""

from __future__ import annotations

import re

_ROTATION = 'stdout and stderr may be dictionaries: {"file": "rq.log", "max_bytes": "50M", "backups": 10}'
_NO_LISTENERS = "there are no event listeners; `gunicorn-companion events` prints what happens"
_LEASE = "one in a fleet of servers has a lease, by companion_lease_store"
_NO_USER = "companions run as the server's user; change it in the command: setpriv --reuid NAME PROGRAM"

#: Keys of supervisord and others, with our key.
RENAMED_KEYS = {
    # supervisord
    "directory": "cwd",
    "environment": "env",
    "numprocs_start": "index_start",
    "socket": "bind",
    "exitcodes": "success_exit_codes",
    "startretries": "start_retries",
    "stderr_logfile": "stderr",
    "stdout_logfile": "stdout",
    "stopasgroup": "stop_as_group",
    "stopsignal": "stop_signal",
    "stopwaitsecs": "stop_timeout",
    # circus, pm2, compose files and units of systemd
    "cmd": "command",
    "cpuaffinity": "cpu_affinity",
    "cpuset": "cpu_affinity",
    "depends_on": "after",
    "entrypoint": "command",
    "environmentfile": "env_file",
    "exec": "command",
    "execstart": "command",
    "graceful_timeout": "stop_timeout",
    "instances": "numprocs",
    "kill_timeout": "stop_timeout",
    "activedeadlineseconds": "max_runtime",
    "backofflimit": "schedule_retries",
    "concurrencypolicy": "schedule_overlap",
    "cron": "schedule",
    "cron_restart": "schedule",
    "crontab": "schedule",
    "oncalendar": "schedule",
    "onunitactivesec": "schedule",
    "persistent": "schedule_catch_up",
    "randomizeddelaysec": "schedule_jitter",
    "timezone": "schedule_timezone",
    "max_age": "max_lifetime",
    "max_age_variance": "max_lifetime_jitter",
    "max_memory_restart": "max_memory",
    "max_restarts": "start_retries",
    "max_retry": "start_retries",
    "restartmaxdelaysec": "restart_delay_max",
    "restartsec": "restart_delay",
    "runtimemaxsec": "max_runtime",
    "stop_exit_codes": "success_exit_codes",
    "successexitstatus": "success_exit_codes",
    "numprocesses": "numprocs",
    "oomscoreadjust": "oom_score_adj",
    "replicas": "numprocs",
    "requires": "after",
    "restart": "autorestart",
    "script": "command",
    "stop_children": "stop_as_group",
    "stop_grace_period": "stop_timeout",
    "ulimits": "rlimits",
    "startupprobe": "probe",
    "readinessprobe": "probe",
    "livenessprobe": "liveness",
    "working_dir": "cwd",
    "working_directory": "cwd",
    "workingdirectory": "cwd",
}

#: Keys without a single counterpart here, with what to do.
OTHER_KEYS = {
    # supervisord, [program:x]
    "killasgroup": "always so: at stop_timeout the children are killed as well",
    "priority": "what must run before it is named in after, and stops after it; web means the web workers",
    "process_name": "of several copies (numprocs) the names are NAME:0, NAME:1 and so on (index_start)",
    "redirect_stderr": 'here it is "stderr": "stdout"',
    "serverurl": "gunicorn-companion finds the server by itself",
    "user": _NO_USER,
    # supervisord, [eventlistener:x], [fcgi-program:x] and [group:x]
    "buffer_size": _NO_LISTENERS,
    "events": _NO_LISTENERS,
    "programs": 'each companion names its groups: "group": "workers"; commands take @workers',
    "result_handler": _NO_LISTENERS,
    "socket_backlog": "the server's setting backlog",
    "socket_mode": "the server's setting umask decides",
    "socket_owner": "a socket belongs to the user that companions run as",
    # circus, pm2, compose files, s6
    "healthcheck": "probe says when it is ready, liveness whether it still works",
    "health_check": "probe says when it is ready, liveness whether it still works",
    "notification_fd": '"ready": "notify", or a probe such as {"log": "ready"}',
    "notification-fd": '"ready": "notify", or a probe such as {"log": "ready"}',
    "listen_timeout": "start_timeout",
    "wait_ready": '"ready": "notify", or a probe such as {"tcp": "127.0.0.1:8001"}',
    "before": "name this one in the after of the other; in web_after, if web workers are to wait for it",
    "args": "the arguments follow the program in command, a list",
    "copy_env": "always so",
    "exp_backoff_restart_delay": "restart_delay is the first delay, restart_delay_max the longest (seconds)",
    "startlimitburst": 'start_limit has both: "5/60s"',
    "startlimitintervalsec": 'start_limit has both: "5/60s"',
    "leader_elect": _LEASE,
    "leader-elect": _LEASE,
    "legion": _LEASE,
    "lock": _LEASE,
    "gid": _NO_USER,
    "timeout": "start_timeout, stop_timeout or watchdog",
    "uid": _NO_USER,
}

#: Keys of a check in compose files, Kubernetes and others, with ours for `probe` and `liveness`.
PROBE_KEYS = {
    "exec": "command",
    "failurethreshold": "failures",
    "grpc": "command: there is no client for it",
    "httpget": 'http, a URL: "http://127.0.0.1:8001/health"',
    "initialdelayseconds": "delay",
    "interval": "every",
    "path": "http, a URL, or file",
    "periodseconds": "every",
    "port": 'tcp, an address: "127.0.0.1:8001"',
    "retries": "failures",
    "start_period": "delay; checks that fail before a companion is ready do not count anyway",
    "successthreshold": "successes",
    "tcpsocket": 'tcp, an address: "127.0.0.1:8001"',
    "test": "command, without its first word CMD",
    "timeoutseconds": "timeout",
    "url": "http",
}

# LimitNOFILE of a unit and rlimit_nofile of circus.
_LIMIT_RE = re.compile(
    "(?:limit|rlimit_)(as|core|cpu|data|fsize|locks|memlock|msgqueue|nice|nofile|nproc|rss|rtprio|rttime"
    "|sigpending|stack)"
)

_AUTORESTART = {
    "true": "always",
    "false": "never",
    "unexpected": "on-failure",
    "no": "never",
    "yes": "always",
}


def key_hint(key: str) -> str | None:
    """What to write instead of another program's key; None if it is not known."""
    key = key.lower()
    if key in RENAMED_KEYS:
        return f"here it is {RENAMED_KEYS[key]}"
    if key in OTHER_KEYS:
        return OTHER_KEYS[key]
    limit = _LIMIT_RE.fullmatch(key)
    if limit is not None:
        return f'here it is "rlimits": {{"{limit[1]}": …}}'
    if not key.startswith(("stdout_", "stderr_")):
        return None
    if "logfile_" in key:
        return _ROTATION
    return "a companion writes to a file (stdout, stderr) or to the server's own output"


def probe_hint(key: str) -> str | None:
    """The same for a key within `probe` or `liveness`."""
    known = PROBE_KEYS.get(key.lower())
    return f"{key}: here it is {known}" if known else None


def autorestart_hint(value: object) -> str | None:
    """Our word for a value of supervisord's ``autorestart`` or compose's ``restart``."""
    return _AUTORESTART.get(str(value).lower())
