# SPDX-License-Identifier: MIT
"""Read units of systemd: services, with the sockets of the same name, and timers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gunicorn.companion.importing import execline, inifile, oncalendar, values
from gunicorn.companion.importing.found import (
    OTHER_USER,
    Found,
    Mark,
    Program,
    Source,
    SourceError,
    Text,
    expand,
    leftover,
    present,
)
from gunicorn.companion.importing.inifile import Entry, Section

TITLE = "systemd"
STYLE = inifile.Style(backslash=True)
DEFAULTS = {"autorestart": "never", "stop_timeout": 90, "stop_as_group": True}

#: Keys of [Service] with a counterpart.
HERE = {
    "Type": "notify: ``ready`` is ``notify``; oneshot: a job, with ``startsecs``; forking: a guess",
    "ExecStart": '``command``, a list of words; with variables ``["sh", "-c", "exec …"]``',
    "ExecStartPre": 'before it in one shell: ``["sh", "-c", "… && exec …"]``',
    "ExecCondition": "the same",
    "Restart": "``autorestart``: always, no is ``never``, all others ``on-failure``",
    "RestartSec": "``restart_delay``",
    "RestartMaxDelaySec": "``restart_delay_max``",
    "TimeoutStartSec": "``start_timeout``",
    "TimeoutStopSec": "``stop_timeout``; above 60 ``reload_timeout`` too, for a restart",
    "TimeoutSec": "both",
    "RuntimeMaxSec": "``max_lifetime``; with ``Type=oneshot`` or ``Restart=no`` ``max_runtime``",
    "RuntimeRandomizedExtraSec": "``max_lifetime_jitter``",
    "WatchdogSec": "``watchdog``",
    "SuccessExitStatus": "``success_exit_codes``",
    "KillMode": "control-group and process: ``stop_as_group`` True and False; mixed: False",
    "KillSignal": "``stop_signal``",
    "WorkingDirectory": "``cwd``",
    "Environment": "``env``",
    "EnvironmentFile": "``env_file``",
    "UnsetEnvironment": "None in ``env``",
    "StandardOutput": "append: and file: are ``stdout``; null is /dev/null",
    "StandardError": "the same in ``stderr``",
    "UMask": "``umask``",
    "Nice": "``nice``",
    "OOMScoreAdjust": "``oom_score_adj``",
    "CPUAffinity": "``cpu_affinity``",
    "LimitNOFILE": "``rlimits``, and so every ``Limit…``",
    "MemoryMax": "a guess: ``max_memory``, a restart in the place of a kill",
    "MemoryHigh": "the same",
    "StartLimitIntervalSec": "``start_limit``; in [Unit] as well",
    "StartLimitBurst": "``start_limit``; in [Unit] as well",
}

_SANDBOX = "leave it in the unit of the server, where it holds for companions too"

#: Keys without a counterpart, with what to do.
INSTEAD = {
    "User": OTHER_USER,
    "Group": OTHER_USER,
    "SupplementaryGroups": OTHER_USER,
    "DynamicUser": _SANDBOX,
    "ExecStartPost": "the hook ``companion_post_fork`` runs before the program",
    "ExecReload": "``gunicorn-companion signal NAME HUP``; of the web tier: ``gunicorn-companion reload``",
    "ExecStop": "the stop signal ends it: ``stop_signal``, or a ladder in ``stop_signals``",
    "ExecStopPost": "the hook ``companion_exit``",
    "RestartPreventExitStatus": '``success_exit_codes``, with ``"autorestart": "on-failure"``',
    "RestartForceExitStatus": '``"autorestart": "always"``',
    "RestartSteps": "the delay doubles with each failure, up to ``restart_delay_max``",
    "RemainAfterExit": "a job that has ended with 0 satisfies ``after``",
    "SendSIGHUP": "``gunicorn-companion signal NAME HUP``",
    "SendSIGKILL": "always so: after ``stop_timeout`` everything that is left gets SIGKILL",
    "FinalKillSignal": "it is SIGKILL",
    "RestartKillSignal": "``stop_signal`` is used at restarts as well",
    "WatchdogSignal": "it is SIGABRT",
    "TimeoutAbortSec": "``stop_timeout``",
    "NotifyAccess": "every process of the companion may write to NOTIFY_SOCKET",
    "PIDFile": "not needed: the process is a child of the server",
    "PassEnvironment": "always so: a companion has the server's environment",
    "SyslogIdentifier": "its name stands in front of each line of output",
    "StandardInput": "descriptor 0 is always /dev/null",
    "LogRateLimitIntervalSec": _SANDBOX,
    "LogRateLimitBurst": _SANDBOX,
    "RuntimeDirectory": _SANDBOX,
    "StateDirectory": _SANDBOX,
    "CacheDirectory": _SANDBOX,
    "LogsDirectory": _SANDBOX,
    "ConfigurationDirectory": _SANDBOX,
    "PermissionsStartOnly": "not needed",
    "RootDirectory": _SANDBOX,
    "PrivateTmp": _SANDBOX,
    "PrivateDevices": _SANDBOX,
    "ProtectSystem": _SANDBOX,
    "ProtectHome": _SANDBOX,
    "NoNewPrivileges": _SANDBOX,
    "ReadWritePaths": _SANDBOX,
    "ReadOnlyPaths": _SANDBOX,
    "CapabilityBoundingSet": _SANDBOX,
    "AmbientCapabilities": _SANDBOX,
    "RestrictAddressFamilies": _SANDBOX,
    "SystemCallFilter": _SANDBOX,
    "LoadCredential": _SANDBOX,
    "Slice": _SANDBOX,
    "Delegate": _SANDBOX,
    "CPUQuota": _SANDBOX,
    "CPUWeight": _SANDBOX,
    "IOWeight": _SANDBOX,
    "TasksMax": _SANDBOX,
    "MemorySwapMax": _SANDBOX,
    "CPUSchedulingPolicy": 'begin the command with ``"chrt"``',
    "IOSchedulingClass": 'begin the command with ``"ionice"``',
    "OOMPolicy": "a companion that the kernel kills for memory is started again",
    "GuessMainPID": "not needed",
    "Sockets": "``bind``",
    "FileDescriptorStoreMax": "``bind`` keeps sockets open while a program restarts",
}

#: Keys of [Unit], [Install], [Socket] and [Timer].
UNIT = {
    "After": "``after``, if that unit is imported as well",
    "Requires": "the companion is there too, if that unit is imported as well; ``After`` is the order",
    "Wants": "the companion is there too, if that unit is imported as well; ``After`` is the order",
    "BindsTo": "the companion is there too, if that unit is imported as well; ``After`` is the order",
    "Requisite": "the companion is there too, if that unit is imported as well; ``After`` is the order",
    "PartOf": "the companion is there too, if that unit is imported as well; ``After`` is the order",
    "Before": "``after`` of the other one",
    "OnFailure": "the hook ``companion_give_up``",
    "StartLimitAction": '``"on_give_up": "shutdown"`` stops the server',
    "OnCalendar": "``schedule`` of the service, where five fields of cron can say it",
    "OnUnitActiveSec": "``schedule``: ``every 15m``",
    "Persistent": "``schedule_catch_up``",
    "RandomizedDelaySec": "``schedule_jitter``",
    "ListenStream": "``bind`` of the service of the same name",
}
_DESCRIPTIVE = ("Description", "Documentation", "WantedBy", "RequiredBy", "Alias", "DefaultDependencies")


def translate_all(sources: Sequence[Source]) -> Found:
    """Units are translated together, because they name each other. Raises SourceError."""
    found = Found(origin=TITLE, defaults=dict(DEFAULTS))
    units = {os.path.basename(source.path): (source, inifile.read(source, STYLE)) for source in sources}
    programs: dict[str, Program] = {}
    for unit, (source, sections) in units.items():
        stem, _, kind = unit.rpartition(".")
        by_name = {section.name: section for section in sections}
        if kind == "timer" and f"{stem}.service" in units:
            pass  # a key of the service
        elif kind in ("timer", "target", "path", "mount", "slice"):
            _no_service(source, sections, found)
        elif kind == "socket":
            if f"{stem}.service" not in units and f"{stem}@.service" not in units:
                found.block(source.path).note("a socket without its service: give that file too")
        elif "Service" not in by_name:
            raise SourceError(source.path, None, "it has no section [Service]")
        else:
            program = found.add(stem.rstrip("@").replace("@", "-"), source.path)
            programs[unit] = program
            socket = units.get(f"{stem}.socket")
            reader = _Reader(unit, by_name["Service"], by_name.get("Unit"), program)
            reader.run(socket[1] if socket else ())
    for unit, program in programs.items():
        _relations(units[unit][1], program, programs, set(units))
        timer = units.get(f"{unit.rpartition('.')[0]}.timer")
        if timer is not None:
            _timer(program, os.path.basename(timer[0].path), timer[1])
    return found


def _no_service(source: Source, sections: Iterable[Section], found: Found) -> None:
    block = found.block(source.path)
    stem = os.path.basename(source.path).rpartition(".")[0]
    if any(section.name == "Timer" for section in sections):
        block.note(f"a timer without its service: give {stem}.service, too")
    if not block.notes:
        block.note("nothing to run; leave it with systemd")


def _relations(
    sections: Iterable[Section], program: Program, programs: dict[str, Program], units: set[str]
) -> None:
    after: list[str] = []
    for section in sections:
        if section.name not in ("Unit", "Install"):
            continue
        for entry in section.entries:
            names = entry.value.split()
            if entry.key in ("After", "Requires", "Wants", "BindsTo", "Requisite", "PartOf"):
                # As there, only After is an order: the others may well go both ways.
                if entry.key == "After":
                    after += [programs[name].name for name in names if name in programs]
                others = [name for name in names if name not in units]
                if others:
                    program.instead(
                        f"{entry.key}={' '.join(others)}", "not imported; leave it in the unit of the server"
                    )
            elif entry.key == "Before":
                for name in names:
                    if name in programs:
                        other = programs[name]
                        befores = other.values.get("after", [])
                        other.set("after", list(dict.fromkeys([*befores, program.name])))
            elif entry.key.startswith("StartLimit") and entry.key in HERE:
                pass
            elif entry.key not in _DESCRIPTIVE:
                leftover(program, entry.key, entry.value, UNIT, ())
    if after:
        program.set("after", list(dict.fromkeys([*program.values.get("after", []), *after])))


def _timer(program: Program, unit: str, sections: Iterable[Section]) -> None:
    """Have *program* run at the times of its timer."""
    given: dict[str, list[str]] = {}
    for section in sections:
        for entry in section.entries:
            if section.name == "Timer":
                given.setdefault(entry.key, []).append(entry.value)
    calendar, rhythm = given.get("OnCalendar", []), given.get("OnUnitActiveSec", [])
    if len(calendar) == 1 and not rhythm and (times := oncalendar.to_cron(calendar[0])) is not None:
        program.set_schedule(times.fields, f"OnCalendar={calendar[0]}")
        if times.zone:
            program.set("schedule_timezone", times.zone)
    elif len(rhythm) == 1 and not calendar and (seconds := values.some_seconds(rhythm[0])) >= 1:
        program.set_schedule(f"every {seconds:.0f}s", f"OnUnitActiveSec={rhythm[0]}")
    else:
        shown = ", ".join(f"{key}={value}" for key, found in given.items() for value in found)
        program.note(f"{unit}: {shown}: five fields of cron cannot say it")
        program.set(
            "autostart", False, "its timer starts it: leave that with systemd, or start it by command"
        )
        return
    if given.get("Persistent", ["no"])[-1].lower() in ("yes", "true", "on", "1"):
        program.set("schedule_catch_up", True)
    if delay := given.get("RandomizedDelaySec"):
        program.set("schedule_jitter", values.some_seconds(delay[-1]))


# Keys that confine a service; there are too many to name each.
_CONFINING = re.compile(
    "Protect|Private|Restrict|Lock|Memory|CPU|IO|IP|Tasks|Capability|SystemCall|Secure|Keyring|Proc|Device|Mount|"
    "Inaccessible|Temporary|ReadOnly|ReadWrite|NoExec|Exec.*Paths|Bind.*Paths|Root|Remove|Runtime.*|State.*|Cache.*|"
    "Logs.*|AppArmor|SELinux|Smack|Set|Import|LoadCredential|Extension|Allowed|Delegate|Personality|Same"
)
_SPECIFIER = re.compile(r"%([a-zA-Z%])")
# Names of limits: Limit… in a unit, ours.
_LIMITS = {
    "NOFILE": "nofile",
    "NPROC": "nproc",
    "CORE": "core",
    "AS": "as",
    "CPU": "cpu",
    "DATA": "data",
    "FSIZE": "fsize",
    "MEMLOCK": "memlock",
    "RSS": "rss",
    "STACK": "stack",
    "SIGPENDING": "sigpending",
    "MSGQUEUE": "msgqueue",
    "NICE": "nice",
    "RTPRIO": "rtprio",
    "RTTIME": "rttime",
}


class _Reader:
    def __init__(self, unit: str, section: Section, head: Section | None, program: Program) -> None:
        self.section = section
        self.head = head
        self.program = program
        self.stem = unit.rpartition(".")[0]
        self.template = self.stem.endswith("@")
        prefix, _, instance = self.stem.partition("@")
        self.prefix, self.instance = prefix, instance

    def run(self, socket: Iterable[Section]) -> None:
        program = self.program
        for key in dict.fromkeys(entry.key for entry in self.section.entries):
            entries = self._of(key)
            if not entries:
                continue
            with self.section.naming(entries[-1]):
                self._key(key, entries)
        self._command()
        self._start_limit()
        self._life()
        addresses = [
            entry.value
            if ":" in entry.value
            else f"unix:{entry.value}"
            if "/" in entry.value
            else f"0.0.0.0:{entry.value}"
            for section in socket
            if section.name == "Socket"
            for entry in section.entries
            if entry.key == "ListenStream"
        ]
        if addresses:
            program.set("bind", addresses)
        if self.template:
            program.guess("numprocs", 1, "as many as there were instances")
            program.guess("index_start", 1, "%i is the number of the copy")

    def _of(self, key: str) -> list[Entry]:
        """The entries of *key*; an empty one takes away those before it."""
        entries: list[Entry] = []
        for entry in self.section.all(key):
            entries = [*entries, entry] if entry.value else []
        return entries

    def _last(self, key: str) -> str | None:
        entries = self._of(key)
        return entries[-1].value if entries else None

    def _expand(self, text: str) -> str | Text:
        def part(match: re.Match[str]) -> Any:
            letter = match[1]
            if letter == "%":
                return "%"
            if letter in "iIjJ" and self.template:
                return Mark("%(index)d")
            known = {
                "i": self.instance,
                "I": self.instance,
                "n": f"{self.stem}.service",
                "N": self.stem,
                "p": self.prefix,
                "P": self.prefix,
            }
            if letter in known:
                return known[letter]
            places = {
                "t": "/run",
                "S": "/var/lib",
                "C": "/var/cache",
                "L": "/var/log",
                "E": "/etc",
                "T": "/tmp",
            }
            if letter in places:
                return places[letter]
            self.program.note(f"%{letter} of systemd has no counterpart, and was left as it is")
            return None

        return expand(text, _SPECIFIER, part)

    def _key(self, key: str, entries: list[Entry]) -> None:
        value = entries[-1].value
        method: Callable[[str], None] | None = getattr(self, f"_set_{key}", None)
        if key.startswith("Limit") and key[len("Limit") :] in _LIMITS:
            self._limit(_LIMITS[key[len("Limit") :]], value)
        elif method is not None:
            method(value)
        elif key == "Environment":
            self._environment(entries)
        elif key == "EnvironmentFile":
            self._environment_file(entries)
        elif key == "UnsetEnvironment":
            names = " ".join(entry.value for entry in entries).split()
            self._env({name.partition("=")[0]: None for name in names})
        elif key not in HERE and key not in INSTEAD and _CONFINING.match(key):
            self.program.instead(key, _SANDBOX)
        elif key not in HERE:
            for entry in entries:
                leftover(self.program, entry.key, entry.value, INSTEAD, HERE)

    def _env(self, variables: dict[str, Any]) -> None:
        self.program.set("env", {**self.program.values.get("env", {}), **variables})

    # -- the command ---------------------------------------------------------------------

    def _command(self) -> None:
        starts = self._commands("ExecStart")
        if not starts:
            raise SourceError(self.section.path, self.section.line, "[Service] has no ExecStart")
        before = [*self._commands("ExecCondition"), *self._commands("ExecStartPre"), *starts[:-1]]
        prefixes, words = starts[-1]
        if "-" in prefixes:
            self.program.note("ExecStart=-…: a failure counts as a success there: success_exit_codes")
        lines = [
            f"{{ {execline.for_shell(each)} || :; }}" if "-" in optional else execline.for_shell(each)
            for optional, each in before
        ]
        if lines or execline.has_variables(words):
            script = " && ".join([*lines, f"exec {execline.for_shell(words)}"])
            self.program.set("command", ["sh", "-c", self._expand(script)])
        else:
            self.program.set("command", [self._expand(word) for word in execline.plain(words)])

    def _commands(self, key: str) -> list[tuple[str, list[str]]]:
        """The commands of *key*, each with its prefixes and its words."""
        found = []
        for entry in self._of(key):
            for line in execline.commands(entry.value):
                bare = line.strip().lstrip(execline.PREFIXES)
                with self.section.naming(entry):
                    words = execline.split(bare)
                    if not words:
                        raise ValueError("it is empty")
                prefixes = line.strip()[: len(line.strip()) - len(bare)]
                if "@" in prefixes and len(words) > 1:
                    del words[1]  # the name that the program sees as its own
                found.append((prefixes, words))
        return found

    # -- keys ----------------------------------------------------------------------------

    def _set_Type(self, value: str) -> None:
        if value in ("notify", "notify-reload"):
            self.program.set("ready", "notify")
        elif value == "forking":
            self.program.note(
                "guess: Type=forking: here it must stay in the foreground, so take the option away that puts "
                "it into the background"
            )
            if any(re.search(r"\bmulti\s+start\b", entry.value) for entry in self._of("ExecStart")):
                self.program.note(
                    "guess: in the place of celery multi start: the command celery -A APP worker, and "
                    "numprocs with --hostname=NAME%(index)d@%%h for several nodes"
                )
        elif value == "dbus":
            self.program.note("Type=dbus: it is RUNNING after startsecs; a probe can tell better")

    def _set_Restart(self, value: str) -> None:
        if value in ("always", "no"):
            self.program.set("autorestart", "always" if value == "always" else "never")
        elif value == "on-failure":
            self.program.set("autorestart", "on-failure")
        elif value == "on-success":
            self.program.note("Restart=on-success: there is no such way")
            self.program.guess("autorestart", "always", "the nearest")
        else:
            self.program.guess("autorestart", "on-failure", f"the nearest to {value}")

    def _set_RestartSec(self, value: str) -> None:
        self.program.set("restart_delay", values.some_seconds(value))

    def _set_RestartMaxDelaySec(self, value: str) -> None:
        self.program.set("restart_delay_max", values.some_seconds(value))

    def _set_TimeoutStartSec(self, value: str) -> None:
        seconds = values.seconds(value)
        if seconds:
            self.program.set("start_timeout", seconds)

    def _set_TimeoutStopSec(self, value: str) -> None:
        self.program.stop_within(values.seconds(value) or None)

    def _set_TimeoutSec(self, value: str) -> None:
        self._set_TimeoutStartSec(value)
        self._set_TimeoutStopSec(value)

    def _set_RuntimeRandomizedExtraSec(self, value: str) -> None:
        self.program.set("max_lifetime_jitter", values.some_seconds(value))

    def _set_WatchdogSec(self, value: str) -> None:
        seconds = values.seconds(value)
        if seconds:
            self.program.set("watchdog", seconds)

    def _set_SuccessExitStatus(self, value: str) -> None:
        words = value.split()
        codes = [int(word) for word in words if word.isdecimal()]
        others = [word for word in words if not word.isdecimal()]
        if codes:
            self.program.set("success_exit_codes", [0, *codes])
        if others:
            self.program.note(f"SuccessExitStatus={' '.join(others)}: only exit codes, as numbers")

    def _set_KillMode(self, value: str) -> None:
        self.program.set("stop_as_group", value == "control-group")
        if value in ("process", "none"):
            self.program.note(f"KillMode={value}: at stop_timeout everything that is left is killed")

    def _set_KillSignal(self, value: str) -> None:
        self.program.set("stop_signal", values.signal_name(value))

    def _set_WorkingDirectory(self, value: str) -> None:
        path = value.lstrip("-")
        if path == "~":
            self.program.note("WorkingDirectory=~: write the home directory into cwd")
        else:
            self.program.set("cwd", self._expand(path))

    def _environment(self, entries: list[Entry]) -> None:
        variables: dict[str, Any] = {}
        for entry in entries:
            for word in execline.split(entry.value):
                name, equals, value = word.partition("=")
                if not equals:
                    raise ValueError(f"{word!r} is not NAME=value")
                variables[name] = self._expand(value)
        self._env(variables)

    def _environment_file(self, entries: list[Entry]) -> None:
        needed = [entry.value for entry in entries if not entry.value.startswith("-")]
        optional = [entry.value[1:] for entry in entries if entry.value.startswith("-")]
        self.program.set("env_file", present(needed, optional))

    def _output(self, stream: str, value: str) -> None:
        kind, _, path = value.partition(":")
        if kind in ("append", "file", "truncate"):
            self.program.set(stream, self._expand(path))
        elif kind == "null":
            self.program.set(stream, "/dev/null")
        elif kind not in ("journal", "inherit", "syslog", "kmsg", "journal+console", "tty"):
            self.program.note(f"{stream}={value}: the output goes to the server's own")

    def _set_StandardOutput(self, value: str) -> None:
        self._output("stdout", value)

    def _set_StandardError(self, value: str) -> None:
        output = self._last("StandardOutput") or ""
        if value == "inherit" and output.partition(":")[0] in ("append", "file", "truncate", "null"):
            self.program.set("stderr", "stdout")
        else:
            self._output("stderr", value)

    def _set_UMask(self, value: str) -> None:
        self.program.set("umask", values.octal(value))

    def _set_Nice(self, value: str) -> None:
        self.program.set("nice", values.whole(value))

    def _set_OOMScoreAdjust(self, value: str) -> None:
        self.program.set("oom_score_adj", values.whole(value))

    def _set_CPUAffinity(self, value: str) -> None:
        self.program.set("cpu_affinity", re.sub(r"[,\s]+", ",", value.strip()))

    def _limit(self, name: str, value: str) -> None:
        def one(text: str) -> int | str:
            if text == "infinity":
                return "unlimited"
            return values.bytes_of(text) if re.search("[A-Za-z]", text) else values.whole(text)

        limits = self.program.values.setdefault("rlimits", {})
        parts = [one(part) for part in value.split(":")]
        limits[name] = parts[0] if len(parts) == 1 else parts

    def _set_MemoryMax(self, value: str) -> None:
        if value != "infinity":
            if value.endswith("%"):
                self.program.note(f"a memory limit of {value}: max_memory is a size, such as 300M")
            else:
                self.program.guess(
                    "max_memory", values.size(value), "a restart, by private memory: measure again"
                )

    def _set_MemoryHigh(self, value: str) -> None:
        if "max_memory" not in self.program.values:
            self._set_MemoryMax(value)

    def _life(self) -> None:
        limits = self._of("RuntimeMaxSec")
        seconds = self.section.parse(limits[-1], values.seconds) if limits else None
        job = self._last("Type") == "oneshot" or self._last("Restart") in (None, "no")
        if seconds:
            self.program.set("max_runtime" if job else "max_lifetime", seconds)
        if self._last("Type") == "oneshot" and "autorestart" not in self.program.values:
            self.program.set_job("it runs once")
            self.program.set("start_retries", 1, "and is not tried again")

    def _start_limit(self) -> None:
        places = [section for section in (self.head, self.section) if section is not None]
        given = {entry.key: entry for section in places for entry in section.entries}
        burst, interval = given.get("StartLimitBurst"), given.get("StartLimitIntervalSec")
        seconds = self.section.parse(interval, values.seconds) if interval else 10
        count = self.section.parse(burst, values.whole) if burst else 5
        if (burst or interval) and seconds and count:
            self.program.set("start_limit", f"{count}/{seconds:g}s")
        elif interval and not seconds:
            self.program.set("start_limit", None)
