# SPDX-License-Identifier: MIT
"""Read a docker-compose.yml, with PyYAML."""

from __future__ import annotations

import os
import re
from typing import Any

from gunicorn.companion.importing import values
from gunicorn.companion.importing.found import (
    OTHER_USER,
    Env,
    Found,
    Mark,
    Program,
    Source,
    SourceError,
    Text,
    clean,
    join,
    leftover,
    one_line,
    present,
)

TITLE = "compose"
DEFAULTS = {"autorestart": "never", "stop_timeout": 10}

#: Keys of a service with a counterpart.
HERE = {
    "command": "``command``, a list of words",
    "entrypoint": "the first words of ``command``",
    "environment": "``env``; a name without a value: the server's environment has it",
    "env_file": "``env_file``",
    "working_dir": "``cwd``",
    "depends_on": "``after``",
    "restart": "``autorestart``: no is ``never``, unless-stopped ``always``; on-failure:3 ``start_retries``",
    "deploy": "``numprocs`` from replicas, ``max_memory`` from limits (a guess)",
    "scale": "``numprocs``",
    "healthcheck": "``probe``",
    "stop_signal": "``stop_signal``",
    "stop_grace_period": "``stop_timeout``; above 60 ``reload_timeout`` too, for a restart",
    "mem_limit": "a guess: ``max_memory``, a restart in the place of a kill",
    "ulimits": "``rlimits``",
    "oom_score_adj": "``oom_score_adj``",
    "cpuset": "``cpu_affinity``",
    "image": "a program of others, such as a database, stays with compose",
    "build": "the program runs on the host, or all in one container",
    "profiles": "``group``, and ``autostart`` False",
}

_CONTAINER = "it belongs to the container; leave it with the container of the server"
_HOST = "companions share the network of the server"

#: Keys without a counterpart, with what to do.
INSTEAD = {
    "user": OTHER_USER,
    "ports": "the program itself listens; the web tier by ``bind``",
    "expose": "the program itself listens; the web tier by ``bind``",
    "volumes": "paths are those of the host, or of the container of the server",
    "volumes_from": _CONTAINER,
    "networks": _HOST,
    "network_mode": _HOST,
    "links": _HOST,
    "external_links": _HOST,
    "extra_hosts": _HOST,
    "dns": _HOST,
    "hostname": _HOST,
    "logging": 'output goes to the server\'s own; a file: ``"stdout": {"file": …, "max_bytes": "10M"}``',
    "init": "always so: the server reaps orphans",
    "labels": "none needed",
    "container_name": "the name of the service is the companion's",
    "extends": "write the keys of the other service into this one",
    "secrets": "``env_file``, or a file that only the server's user may read",
    "configs": _CONTAINER,
    "tmpfs": _CONTAINER,
    "read_only": _CONTAINER,
    "privileged": _CONTAINER,
    "cap_add": _CONTAINER,
    "cap_drop": _CONTAINER,
    "security_opt": _CONTAINER,
    "sysctls": _CONTAINER,
    "shm_size": _CONTAINER,
    "devices": _CONTAINER,
    "platform": _CONTAINER,
    "pull_policy": _CONTAINER,
    "pid": _CONTAINER,
    "ipc": _CONTAINER,
    "cpus": "begin the command of the server with systemd's ``CPUQuota``, or leave it with the container",
    "cpu_shares": "``nice``",
    "mem_reservation": _CONTAINER,
    "memswap_limit": _CONTAINER,
    "pids_limit": "``rlimits`` with nproc, which counts all processes of the user",
    "tty": "output is never a terminal",
    "stdin_open": "descriptor 0 is always /dev/null",
    "develop": "the setting ``reload``",
    "group_add": "the setting ``initgroups``",
}

# Images of programs that are not the application's own.
_OTHERS = re.compile(
    r"(?:.*/)?(postgres|postgis|mysql|mariadb|mongo|redis|valkey|memcached|rabbitmq|nats|kafka|zookeeper|nginx|"
    r"traefik|caddy|haproxy|elasticsearch|opensearch|minio|mailhog|mailpit|adminer|pgadmin4?|prometheus|grafana|"
    r"vault|consul|etcd|clickhouse.*|pgbouncer|busybox|varnish)(?:[:@].*)?"
)
_VARIABLE = re.compile(r"\$(?:\$|(\w+)|\{(\w+)(?:(:?[-?+])([^}]*))?\})")


def translate(source: Source) -> Found:
    """Raises SourceError."""
    services, lines = _load(source)
    found = Found(origin=TITLE, defaults=dict(DEFAULTS))
    readers: list[_Reader] = []
    for name, service in services.items():
        place = f"services: {name} in {source.path}, line {lines.get(name, 0)}"
        if not isinstance(service, dict):
            raise SourceError(source.path, lines.get(name), f"services: {name}: not a mapping")
        image = str(service.get("image", ""))
        if _OTHERS.fullmatch(image) and "build" not in service:
            found.block(place).note(f"image: {image}: a program of its own, which stays with compose")
            continue
        if not service.get("command") and not service.get("entrypoint"):
            block = found.block(place)
            block.note(
                "its command stands in the Dockerfile (CMD, ENTRYPOINT): write it here as a companion: "
                f'{{"name": "{name}", "command": [...]}}'
            )
            continue
        program = found.add(name, place)
        reader = _Reader(source, name, lines.get(name), service, program)
        reader.run()
        readers.append(reader)
    if any("image" in reader.service or "build" in reader.service for reader in readers):
        found.block(source.path).note(
            "guess: paths, users and libraries of its programs are those of their images: look at each"
        )
    for reader in readers:
        reader.relations(found, services)
    return found


def _load(source: Source) -> tuple[dict[str, Any], dict[str, int]]:
    """The services, and the line of each."""
    try:
        import yaml
    except ImportError:
        raise SourceError(source.path, None, "YAML needs a library: pip install PyYAML") from None
    try:
        data = yaml.safe_load(source.text)
        tree = yaml.compose(source.text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        raise SourceError(
            source.path, mark.line + 1 if mark else None, str(exc.problem or exc.context)
        ) from None
    except yaml.YAMLError as exc:
        raise SourceError(source.path, None, one_line(str(exc))) from None
    if not isinstance(data, dict) or not isinstance(data.get("services"), dict):
        raise SourceError(source.path, None, "it has no 'services'")
    lines: dict[str, int] = {}
    for key, value in tree.value:
        if key.value == "services":
            lines = {str(name.value): name.start_mark.line + 1 for name, _ in value.value}
    return {str(name): service for name, service in data["services"].items()}, lines


def _interpolate(text: str) -> str | Text:
    """``${NAME:-default}`` is a variable of the environment."""
    parts: list[str | Env | Mark] = []
    end = 0
    for match in _VARIABLE.finditer(text):
        parts.append(text[end : match.start()])
        end = match.end()
        name = match[1] or match[2]
        if name is None:
            parts.append("$")
        else:
            sign = match[3] or ""
            # Compose takes an unset variable for an empty one.
            default = None if "?" in sign else match[4] if "-" in sign else ""
            parts.append(Env(name, default))
    return join([*parts, text[end:]])


class _Reader:
    def __init__(
        self, source: Source, name: str, line: int | None, service: dict[str, Any], program: Program
    ) -> None:
        self.source = source
        self.name = name
        self.line = line
        self.service = service
        self.program = program
        self.here = os.path.dirname(os.path.abspath(source.path))

    def run(self) -> None:
        for key, value in self.service.items():
            method = getattr(self, f"_set_{key}", None)
            try:
                if value is None:
                    pass  # as compose config writes what is not set
                elif method is not None:
                    method(value)
                elif not str(key).startswith("x-"):
                    leftover(self.program, str(key), "", INSTEAD, HERE)
            except (ValueError, TypeError, AttributeError, KeyError) as exc:
                reason = exc if isinstance(exc, ValueError) else f"{one_line(repr(value))} is not understood"
                raise SourceError(
                    self.source.path, self.line, f"services: {self.name}: {key}: {reason}"
                ) from None
        self._command()

    def _words(self, value: Any) -> list[str | Text]:
        if value is None:
            return []
        words = [str(word) for word in value] if isinstance(value, list) else values.split(str(value))
        return [_interpolate(word) for word in words]

    def _command(self) -> None:
        try:
            words = [*self._words(self.service.get("entrypoint")), *self._words(self.service.get("command"))]
        except ValueError as exc:
            raise SourceError(self.source.path, self.line, f"services: {self.name}: command: {exc}") from None
        if not words:
            raise SourceError(self.source.path, self.line, f"services: {self.name}: its command is empty")
        self.program.set("command", words)

    def _set_environment(self, value: Any) -> None:
        if isinstance(value, list):
            pairs = [str(each).partition("=") for each in value]
            # A name alone is passed through, as everything is here.
            given = {name: text for name, equals, text in pairs if equals}
        else:
            given = {name: text for name, text in value.items() if text is not None}
        env = {}
        for name, text in given.items():
            shown = str(text).lower() if isinstance(text, bool) else str(text)
            expanded = _interpolate(shown)
            if not (isinstance(expanded, Text) and expanded.parts in ((Env(name),), (Env(name, ""),))):
                env[str(name)] = expanded
        if env:
            self.program.set("env", env)

    def _set_env_file(self, value: Any) -> None:
        files = value if isinstance(value, list) else [value]
        needed: list[str] = []
        optional: list[str] = []
        for each in files:
            path = each["path"] if isinstance(each, dict) else each
            places = optional if isinstance(each, dict) and each.get("required") is False else needed
            places.append(os.path.normpath(os.path.join(self.here, str(path))))
        self.program.set("env_file", present(needed, optional))

    def _set_working_dir(self, value: Any) -> None:
        self.program.set("cwd", _interpolate(str(value)))

    def _set_restart(self, value: Any) -> None:
        word, _, count = str(value).partition(":")
        ways = {"False": "never", "no": "never", "always": "always", "unless-stopped": "always"}
        ways["on-failure"] = "on-failure"
        if word not in ways:
            raise ValueError(f"{value!r} is none of {', '.join(ways)}")
        self.program.set("autorestart", ways[word])
        if count:
            self.program.set("start_retries", max(1, values.whole(count)))

    def _set_scale(self, value: Any) -> None:
        self.program.copies(values.whole(value))

    def _set_deploy(self, value: Any) -> None:
        if "replicas" in value:
            self._set_scale(value["replicas"])
        memory = value.get("resources", {}).get("limits", {}).get("memory")
        if memory:
            self._set_mem_limit(memory)
        condition = value.get("restart_policy", {}).get("condition")
        if condition:
            ways = {"none": "never", "on-failure": "on-failure", "any": "always"}
            self.program.set("autorestart", ways.get(condition, "always"))
        for key in value:
            if key not in ("replicas", "resources", "restart_policy"):
                self.program.instead(f"deploy: {key}", _CONTAINER)

    def _set_mem_limit(self, value: Any) -> None:
        self.program.guess(
            "max_memory", values.size(str(value)), "a restart, by private memory: measure again"
        )

    def _set_stop_signal(self, value: Any) -> None:
        self.program.set("stop_signal", values.signal_name(str(value)))

    def _set_stop_grace_period(self, value: Any) -> None:
        self.program.stop_within(values.some_seconds(str(value)))

    def _set_ulimits(self, value: Any) -> None:
        limits = {}
        for name, limit in value.items():
            pair = [limit["soft"], limit["hard"]] if isinstance(limit, dict) else limit
            limits[str(name)] = "unlimited" if pair == -1 else pair
        self.program.set("rlimits", limits)

    def _set_oom_score_adj(self, value: Any) -> None:
        self.program.set("oom_score_adj", values.whole(value))

    def _set_cpuset(self, value: Any) -> None:
        self.program.set("cpu_affinity", str(value))

    def _set_profiles(self, value: Any) -> None:
        if value:
            groups = [clean(str(each)) for each in value]
            self.program.set("group", groups if len(groups) > 1 else groups[0])
            self.program.set("autostart", False, "a profile runs when it is asked for")

    def _set_healthcheck(self, value: Any) -> None:
        test = value.get("test")
        if value.get("disable") or test in (None, ["NONE"]):
            return
        if isinstance(test, list) and test[:1] == ["CMD"]:
            command: list[Any] = [_interpolate(str(word)) for word in test[1:]]
        else:
            script = test[1] if isinstance(test, list) else str(test)
            command = ["sh", "-c", _interpolate(str(script))]
        probe: dict[str, Any] = {"command": command}
        for key, ours in (("interval", "every"), ("timeout", "timeout")):
            # 0 is the default there, too.
            probe[ours] = values.some_seconds(str(value.get(key) or 0)) or 30
        if value.get("retries") is not None:
            probe["failures"] = max(1, values.whole(value["retries"]))
        patience = values.some_seconds(str(value.get("start_period") or 0))
        patience += probe["every"] * probe.get("failures", 3)
        if patience > 60:
            self.program.set("start_timeout", patience, "start_period and all retries")
        self.program.set("probe", probe, "it is RUNNING when this succeeds; liveness restarts it")

    def relations(self, found: Found, services: dict[str, Any]) -> None:
        wanted = self.service.get("depends_on") or []
        after = []
        for name in wanted:
            program = found.named(str(name))
            details = wanted[name] if isinstance(wanted, dict) else None
            condition = details.get("condition") if isinstance(details, dict) else None
            if program is None:
                self.program.note(
                    f"depends_on: {name}: it stays outside; the program must wait for it by itself"
                    if str(name) in services
                    else f"depends_on: {name}: there is no such service"
                )
                continue
            after.append(program.name)
            if condition == "service_completed_successfully":
                program.set_job("others need it")
        if after:
            self.program.set("after", after)
