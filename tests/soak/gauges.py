"""What a process holds: memory, descriptors, threads, tasks, objects, sockets."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""Of glibc alone."""

PATIENCE = 10.0
"""How long both ends have to let go of their last connections, in seconds."""

ESTABLISHED, CLOSE_WAIT = "01", "08"
"""States of a socket, as /proc/net/tcp has them."""


@dataclass(frozen=True)
class Gauges:
    """What this process holds at a moment."""

    rss: int
    descriptors: int
    threads: int
    tasks: int
    objects: int

    @classmethod
    def read(cls) -> Gauges:
        """Look now, after a collection, without what the allocator keeps free for later."""
        gc.collect()
        if _trim is not None:
            _trim(0)
        try:
            tasks = len(asyncio.all_tasks())
        except RuntimeError:
            tasks = 0
        return cls(rss(), descriptors(), threading.active_count(), tasks, len(gc.get_objects()))

    @classmethod
    async def settled(cls) -> Gauges:
        """Look once the loop has let go of cancelled timers: asyncio does when they are many."""
        loop = asyncio.get_running_loop()
        for _ in range(1000):
            loop.call_later(3600, gc.collect).cancel()
        await asyncio.sleep(0)
        return cls.read()


def rss(pid: int | str = "self") -> int:
    """Return the resident memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def descriptors() -> int:
    """Return how many descriptors are open, without the one it takes to look."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1


def sockets(port: int, *, of_server: bool) -> Counter[str]:
    """Count the sockets at one end of the connections to a port of this machine, by state."""
    wanted = f":{port:04X}"
    found: Counter[str] = Counter()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1 if of_server else 2].endswith(wanted):
            found[fields[3]] += 1
    return found


async def descriptors_settled(aim: int) -> int:
    """Return how many descriptors are open once it is ``aim`` or less, or `PATIENCE` is over."""
    until = time.monotonic() + PATIENCE
    while (count := descriptors()) > aim and time.monotonic() < until:  # noqa: ASYNC110 - no event
        await asyncio.sleep(0.01)
    return count


def still_open(port: int) -> int:
    """Return how many connections the server has not seen the end of."""
    return (states := sockets(port, of_server=True))[ESTABLISHED] + states[CLOSE_WAIT]
