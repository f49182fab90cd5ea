"""Tasks that are given up, and interpreters that end with streams open."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from benches.python.replay import replay_server
from tests.soak.cancels import storm
from tests.soak.measure import BYTES_PER_REQUEST, OBJECTS, WARM_UP, Report, percentile

if TYPE_CHECKING:
    from tests.transports import Transport

STREAMS = 100

PROGRAM = """
import asyncio, sys
from benches.python.clients import chat_task
from worker_adapters import VllmAdapter

async def main():
    adapter = VllmAdapter(sys.argv[1], transport=sys.argv[2])
    streams = [await adapter.submit(chat_task()) for _ in range(int(sys.argv[3]))]
    for stream in streams:
        await anext(stream)
    return adapter, streams

if sys.argv[4] == "run":
    kept = asyncio.run(main())
else:
    loop = asyncio.new_event_loop()
    kept = loop.run_until_complete(main())
    if sys.argv[4] == "exit":
        sys.exit(0)
"""


async def cancels(contender: Transport, *, count: int) -> Report:
    """Give tasks up at random moments."""
    report = Report()
    seed = random.randrange(2**32)
    with replay_server() as server:
        url = f"http://127.0.0.1:{server.port}/p2000/100000"
        began = time.monotonic()
        warm_up = max(3000, int(count * WARM_UP))
        outcome = await storm(url, count, random.Random(seed), contender, warm_up=warm_up)
        elapsed = time.monotonic() - began
    tally, before, after = outcome.tally, outcome.before, outcome.after
    grown = (after.rss - before.rss) / count
    report.figures |= {
        "cancels": tally.cancels,
        "per s": round(count / elapsed),
        "tokens": tally.tokens,
        "tokens after": tally.late_tokens,
        "p50, ms": round(percentile(tally.elapsed, 0.5) * 1e3, 2),
        "p99, ms": round(percentile(tally.elapsed, 0.99) * 1e3, 1),
        "connections left": outcome.still_open,
        "descriptors left": after.descriptors - before.descriptors,
        "tasks left": after.tasks - before.tasks,
        "objects left": after.objects - before.objects,
        "RSS, B/cancel": round(grown, 1),
    }
    report.require(tally.late_tokens == 0, f"tokens after a cancel (seed {seed})")
    report.require(set(tally.terminals) == {1}, f"terminal events: {tally.terminals}")
    report.require(outcome.still_open == 0, "connections are left open")
    report.require(after.descriptors <= before.descriptors, "descriptors are left behind")
    report.require(after.tasks <= before.tasks, "tasks are left behind")
    report.require(after.objects - before.objects <= OBJECTS * 10, "objects are left behind")
    # A heap may have a page or a hundred more than before: that is no slope.
    report.require(
        after.rss - before.rss <= 2**19 + BYTES_PER_REQUEST * count, f"{grown:.0f} B a cancel"
    )
    return report


async def exits(contender: Transport, *, repeats: int) -> Report:
    """End interpreters that have streams open, in three ways."""
    report = Report()
    failed: list[str] = []
    slowest = 0.0
    with replay_server() as server:
        url = f"http://127.0.0.1:{server.port}/n50000/100000"
        for number in range(repeats):
            way = ("run", "end", "exit")[number % 3]
            began = time.monotonic()
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-W", "error", "-c", PROGRAM, url, contender),
                *(str(STREAMS), way),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            try:
                _, told = await asyncio.wait_for(process.communicate(), 60)
            except TimeoutError:
                process.kill()
                failed.append(f"{way}: it hangs")
                continue
            slowest = max(slowest, time.monotonic() - began)
            if process.returncode != 0 or b"panicked" in told or b"Fatal" in told:
                failed.append(f"{way}: {process.returncode}, {told[-300:]!r}")
    report.figures |= {
        "exits": repeats,
        "streams each": STREAMS,
        "failed": len(failed),
        "slowest, s": round(slowest, 1),
    }
    report.require(not failed, f"{failed[:1]}")
    return report
