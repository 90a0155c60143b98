# SPDX-License-Identifier: MIT
"""Memory told truly: the figures of one process, of a session, of several; with real forks."""

from __future__ import annotations

import os

import pytest
from companiontools import answer_of

from gunicorn.companion.supervise import memory
from gunicorn.memory import Memory, parse, private_beyond

MB = 1024 * 1024

needs_rollup = pytest.mark.skipif(
    not os.path.exists("/proc/self/smaps_rollup"), reason="the kernel does not tell"
)

MODERN = b"""\
56290421c000-7ffeb0ea9000 ---p 00000000 00:00 0                          [rollup]
Rss:              50000 kB
Pss:              12000 kB
Pss_Dirty:         9000 kB
Pss_Anon:          9000 kB
Pss_File:          3000 kB
Pss_Shmem:            0 kB
Shared_Clean:      8000 kB
Shared_Dirty:     37000 kB
Private_Clean:     1000 kB
Private_Dirty:     4000 kB
Anonymous:        41000 kB
Swap:                 0 kB
"""
OLD = b"\n".join(line for line in MODERN.splitlines() if not line.startswith(b"Pss_"))


@pytest.mark.parametrize(
    ("rollup", "expected"),
    [
        (MODERN, Memory(50000 * 1024, 12000 * 1024, 5000 * 1024, 32000 * 1024)),
        # A kernel that does not tell anonymous memory's share.
        (OLD, Memory(50000 * 1024, 12000 * 1024, 5000 * 1024, 38000 * 1024)),
        # Figures that were not read in the same moment.
        (MODERN.replace(b"41000", b" 8999"), Memory(50000 * 1024, 12000 * 1024, 5000 * 1024, 0)),
        (b"", Memory()),
        (b"Rss: many kB\nPss: 3 pages\nPrivate_Dirty:\nAnonymous 3 kB\n", Memory()),
    ],
)
def test_the_kernels_lines(rollup, expected):
    assert parse(rollup) == expected


def test_sums():
    one, two = Memory(10, 4, 3, 5), Memory(100, 40, 30, 50)
    assert one + two == Memory(110, 44, 33, 55)
    assert (one + two).separate == 99
    assert memory.totals([one, two]) == {
        "rss": 110, "pss": 44, "private": 33, "saved": 55, "separate": 99, "manager": None,
    }  # fmt: skip
    assert memory.totals([])["separate"] == 0


def test_what_is_not_there():
    assert memory.of_process(4_000_000) is None
    assert memory.of_session([]) is None
    assert memory.of_session([4_000_000]) is None
    assert memory.of_sessions([]) == {}
    assert memory.of_sessions([4_000_000]) == {}
    assert memory.resident(4_000_000) == 0
    assert memory.beyond({4_000_000: 0}) == {}
    assert private_beyond(4_000_000, 0) == 0
    assert memory.totals([], manager=4_000_000)["manager"] is None


# A parent with 32 MB of its own and three children, sessions of their own, one of which writes to half of it,
# and one of which has a child.
FAMILY = """
    import json, os, sys
    from gunicorn.companion.supervise import memory
    from gunicorn.unix import libc
    if len(sys.argv) > 1:
        os.setgroups([]), os.setgid(65534), os.setuid(65534)
        libc.stay_dumpable()  # as the manager does

    size = 32 * 1024 * 1024
    block = bytearray(os.urandom(4096) * (size // 4096))
    ready, done = os.pipe(), os.pipe()

    def fork(work):
        pid = os.fork()
        if pid:
            return pid
        work()
        os.close(done[1])
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os._exit(0)

    def writes():
        os.setsid()
        for n in range(0, size // 2, 4096):
            block[n] = 1

    def has_child():
        os.setsid()
        fork(lambda: None)

    children = [fork(os.setsid), fork(writes), fork(has_child)]
    for _ in range(4):
        assert os.read(ready[0], 1)

    def figures(pid):
        values = {}
        for line in open(f"/proc/{pid}/smaps_rollup"):
            name, _, rest = line.partition(":")
            if rest.endswith("kB\\n"):
                values[name] = int(rest.split()[0]) * 1024
        return values

    found = memory.of_sessions(children)
    grandchildren = open(f"/proc/{children[2]}/task/{children[2]}/children").read().split()
    print(json.dumps({
        "found": [found[pid].as_dict() for pid in children],
        "told": [[figures(pid)] for pid in children[:2]] + [[figures(children[2]), figures(*grandchildren)]],
        "separate": memory.totals(found.values())["separate"],
        "manager": memory.totals([], os.getpid())["manager"],
        "resident": [memory.resident(pid) for pid in children],
        "beyond": [
            len(memory.beyond({pid: int(found[pid].private * part) for pid in children}))
            for part in (0.9, 1.1, 100)
        ],
    }))
    os.close(done[1])
    for pid in children:
        os.waitpid(pid, 0)
"""


COUNTED = {"rss": ["Rss"], "pss": ["Pss"], "private": ["Private_Clean", "Private_Dirty"]}


@needs_rollup
@pytest.mark.parametrize(
    "user",
    [
        [],
        pytest.param(["nobody"], marks=pytest.mark.skipif(os.geteuid() != 0, reason="has to become another")),
    ],
    ids=["own", "unprivileged"],
)
def test_sessions_of_real_processes(user):
    answer = answer_of(FAMILY, *user)
    for found, processes in zip(answer["found"], answer["told"], strict=True):
        for key, names in COUNTED.items():
            told = sum(figures[name] for figures in processes for name in names)
            assert found[key] == pytest.approx(told, rel=0.02, abs=100_000), key
        saved = sum(figures["Anonymous"] - figures["Pss_Anon"] for figures in processes)
        assert found["saved"] == pytest.approx(saved, rel=0.02, abs=100_000)
    shares, writes, has_child = answer["found"]
    assert shares["private"] < 4 * MB < 16 * MB <= writes["private"] < 20 * MB
    # Half of the block is shared by five, half by four.
    assert shares["saved"] > 24 * MB and 12 * MB < writes["saved"] < 24 * MB
    # Two processes, each of which would have had its own.
    assert has_child["saved"] > 48 * MB
    assert answer["separate"] == sum(found["pss"] + found["saved"] for found in answer["found"])
    # Four times the block and Python, as four programs of their own would have them.
    assert 4 * 32 * MB < answer["separate"] < 4 * 50 * MB
    assert answer["manager"]["pss"] > 0
    assert answer["resident"][:2] == pytest.approx([found["rss"] for found in answer["found"][:2]], rel=0.1)
    assert answer["beyond"] == [3, 0, 0]
