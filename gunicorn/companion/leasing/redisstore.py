# SPDX-License-Identifier: MIT
"""Leases in Redis or Valkey: one hash each, changed by scripts.

``gunicorn:lease:NAME`` has the fields ``owner``, ``token``, ``until`` (milliseconds of the server's clock),
``note``, and ``run``, the run of the server that wrote it. The key does not expire, for token and note
outlive the lease.

A server that keeps nothing on disk forgets its leases when it is restarted. So nobody gets a lease from a
server that has been up for less than a ttl, unless this run of the server wrote that the lease is free.
Whoever held a lease writes it again with the next renewal.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel

from gunicorn.companion.leasing.remote import RemoteStore, addresses
from gunicorn.companion.leasing.store import Answer, LeaseError, Store, StoreError, split_url

PREFIX = "gunicorn:lease:"

# INFO may be forbidden to the user; then there is no run to compare.
_READ = """
local info = redis.pcall('INFO', 'server')
if type(info) ~= 'string' then info = '' end
local this_run = string.match(info, 'run_id:(%x+)') or ''
local up = string.match(info, 'uptime_in_seconds:(%d+)')
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function number(value) return string.format('%.0f', value) end
local function read(key)
    local found = redis.call('HMGET', key, 'owner', 'token', 'until', 'note', 'run')
    return {owner = found[1] or '', token = tonumber(found[2] or 0), till = tonumber(found[3] or 0),
            note = found[4] or '', run = found[5] or ''}
end
local function write(...) redis.call('HSET', KEYS[1], 'run', this_run, ...) end
local function held(lease) return lease.owner ~= '' and lease.till > now end
"""

# Tokens are milliseconds of the clock, or one more than the last: they grow even when the server lost its
# data.
_ACQUIRE = (
    _READ
    + """
local owner, ttl = ARGV[1], tonumber(ARGV[2])
local lease = read(KEYS[1])
if held(lease) and lease.owner ~= owner then
    return {0, lease.owner, number(lease.token), number(lease.till - now), lease.note}
end
-- A server that has just started may have forgotten a holder. Its uptime is in whole seconds.
local wait = lease.run ~= this_run and up and ttl + 1000 - up * 1000 or 0
if wait > 0 then
    local who = 'unknown (the store has just started) ' .. this_run
    return {0, who, number(lease.token), number(wait), lease.note}
end
local token = number(math.max(lease.token + 1, now))
write('owner', owner, 'token', token, 'until', number(now + ttl))
return {1, owner, token, number(ttl), lease.note}
"""
)

# With an older token, or none, the server lost what it had acknowledged, and nobody acquired the lease since.
_RENEW = (
    _READ
    + """
local owner, token, ttl, note = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local lease = read(KEYS[1])
if lease.token > token or (lease.token == token and lease.owner ~= owner) then return 0 end
write('owner', owner, 'token', number(token), 'until', number(now + ttl))
if note then write('note', note) end
return 1
"""
)

_RELEASE = (
    _READ
    + """
local owner, token, note = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local lease = read(KEYS[1])
if lease.owner ~= owner or lease.token ~= token then return 0 end
write('owner', '', 'until', 0)
if note then write('note', note) end
return 1
"""
)

_ANY_FREE = (
    _READ
    + """
for _, key in ipairs(KEYS) do
    if not held(read(key)) then return 1 end
end
return 0
"""
)


def connect(url: str, timeout: float) -> Store:
    return RemoteStore(lambda: RedisClient(url, timeout), timeout)


def check(url: str) -> None:
    """Raise ValueError with what to change."""
    if url.startswith("sentinel:"):
        _sentinels(url)
        return
    parts = split_url(url)
    if not parts.hostname:
        raise ValueError(f"names no host: write it as in {parts.scheme}://queue.internal:6379/0")
    if not (parts.path.strip("/") or "0").isdecimal():
        raise ValueError(f"has a path that is not the number of a database, as in redis://{parts.hostname}/0")
    parse_url(url)


def _sentinels(url: str) -> tuple[list[tuple[str, int]], str, dict[str, Any], dict[str, Any]]:
    """Return the addresses, the service, the options for Redis, and those for the sentinels."""
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError("names no service: write it as in sentinel://one:26379,two:26379/mymaster/0")
    sentinels = addresses(url, 26379)
    query = dict(parse_qsl(parts.query))
    scheme = "rediss" if query.pop("tls", "") in ("1", "true") else "redis"
    own = {key: query.pop("sentinel_" + key, None) for key in ("username", "password")}
    for_sentinels: dict[str, Any] = {key: value for key, value in own.items() if value}
    options = parse_url(f"{scheme}://{login}{at}x/{database or 0}?{urlencode(query)}")
    del options["host"]
    if options.pop("connection_class", None) is not None:
        options["ssl"] = True
        for_sentinels.update({key: value for key, value in options.items() if key.startswith("ssl")})
    return sentinels, unquote(service), options, for_sentinels


class RedisClient:
    """One connection, made when it is needed."""

    def __init__(self, url: str, timeout: float) -> None:
        self._timeout = timeout
        always = {
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            # The caller tries again when it is time.
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
            "decode_responses": True,
        }
        if urlsplit(url).scheme == "sentinel":
            sentinels, service, options, for_sentinels = _sentinels(url)
            for_sentinels.update(always)
            sentinel = Sentinel(sentinels, sentinel_kwargs=for_sentinels, **{**options, **always})
            self._client: Any = sentinel.master_for(service)
            self._pools = [each.connection_pool for each in (self._client, *sentinel.sentinels)]
        else:
            pool: Any = redis.ConnectionPool(**{**parse_url(url), **always})
            self._client = redis.Redis(connection_pool=pool)
            self._pools = [pool]

    def acquire(self, name: str, owner: str, ttl: float) -> Answer:
        mine, holder, token, rest, note = self._run(_ACQUIRE, [name], owner, round(ttl * 1000))
        return Answer(bool(mine), holder, int(token), int(rest) / 1000, note)

    def renew(self, name: str, owner: str, token: int, ttl: float, note: str | None) -> bool:
        given = [] if note is None else [note]
        return bool(self._run(_RENEW, [name], owner, token, round(ttl * 1000), *given) == 1)

    def release(self, name: str, owner: str, token: int, note: str | None) -> None:
        self._run(_RELEASE, [name], owner, token, *([] if note is None else [note]))

    def any_free(self, names: Sequence[str]) -> bool:
        return bool(self._run(_ANY_FREE, names))

    def close(self) -> None:
        for pool in self._pools:
            pool.disconnect()

    def cut(self) -> None:
        # Ends what another thread waits for: each connection is shut down before it is closed.
        with contextlib.suppress(Exception):
            self.close()

    def _run(self, script: str, names: Sequence[str], *arguments: object) -> Any:
        try:
            return self._client.eval(script, len(names), *(PREFIX + name for name in names), *arguments)
        except redis.TimeoutError as exc:
            raise StoreError(f"no answer within {self._timeout:g}s") from exc
        except redis.RedisError as exc:
            # A key of this name that is something else.
            kind = LeaseError if "WRONGTYPE" in str(exc) else StoreError
            # What follows is the client as Python shows it.
            raise kind(str(exc).partition(" : <")[0]) from exc
