# SPDX-License-Identifier: MIT
"""The states, events and actions in a companion's life."""

from __future__ import annotations

import enum

# Why a companion is STOPPED without a command.
EXITED = "exited"
GAVE_UP = "gave up"


class State(enum.Enum):
    """What a companion is. The names are supervisord's; no other is ever shown."""

    STOPPED = "STOPPED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    BACKOFF = "BACKOFF"
    STOPPING = "STOPPING"


class Event(enum.Enum):
    """The events of a companion."""

    START = "start"
    STOP = "stop"
    RESTART = "restart"
    FORKED = "forked"
    BLOCKED = "blocked"
    START_FAILED = "start failed"
    ALIVE = "alive for startsecs"
    EXITED = "exited"
    EMPTY = "session empty"
    DELAY_PASSED = "delay passed"
    DEADLINE = "deadline passed"
    READY = "ready"
    BEAT = "alive by its own word"
    NOT_READY = "not ready in time"
    HUNG = "silent for too long"
    LEFTOVERS_KILLED = "what it left behind was killed"


class Cause(str, enum.Enum):
    """Why a process of a companion has ended, or ends. A string too, for hooks and for JSON."""

    EXIT = "exit"  # by itself
    COMMAND = "command"
    MEMORY = "memory"
    LIFETIME = "lifetime"
    CODE = "code"  # a file that it has loaded has changed
    REREAD = "reread"  # its configuration has changed, or is gone
    NOT_READY = "not ready"
    WATCHDOG = "watchdog"
    SERVER = "server"  # which stops, or replaces the manager

    def __str__(self) -> str:
        return self.value


class Action(enum.Enum):
    """What the manager has to do about it."""

    SIGNAL = "send the stop signal"
    KILL = "SIGKILL to every process of the session"
    RELEASE = "clear the run record"
    ABORT = "have it write its stacks: SIGABRT"
    GIVE_UP = "say that it is not tried any more"
