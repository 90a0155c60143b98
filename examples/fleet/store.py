# SPDX-License-Identifier: MIT
"""What the scheduler writes and the page reads, in the same Redis that keeps the lease."""

import functools
import json
import os
import time

import redis

# The token makes the write safe, whatever the lease is worth by then: a smaller one changes nothing.
NOTE = """
if tonumber(redis.call('get', 'token') or 0) > tonumber(ARGV[1]) then
    return 0
end
redis.call('set', 'token', ARGV[1])
redis.call('lpush', 'chores', ARGV[2])
redis.call('ltrim', 'chores', 0, 19)
return 1
"""


@functools.cache
def connect():
    return redis.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True)


def note_chore(server, pid, token):
    """Note a chore; False if a process with a larger token has noted one."""
    chore = {"at": time.strftime("%H:%M:%S"), "server": server, "pid": pid, "token": token}
    return bool(connect().eval(NOTE, 0, token, json.dumps(chore)))


def chores():
    """The latest chores, the last one first."""
    return [json.loads(text) for text in connect().lrange("chores", 0, -1)]
