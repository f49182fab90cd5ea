"""Take events that are already there from native streams: CPU time per event of the taking.

The replay server sends one stream flat out. The reader lets the stream's queue fill, then takes
what is in it, and only that is timed: the thread's CPU time. The events were read and decoded
before, in the reactor's turn, so that this is what comes on top of decoding. Results go to stdout
as JSON, times in nanoseconds per event.
"""

import argparse
import asyncio
import gc
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeAlias

from benches.python.clients import CONTENDERS, OursClient, chat_task
from benches.python.endtoend import OURS
from benches.python.replay import replay_server
from worker_adapters import TokenStream

FEWEST = 64
"""A queue that holds fewer says more of the clock than of the events."""

Take: TypeAlias = Callable[[AsyncIterator[Any], int], Coroutine[Any, Any, int]]


async def each(events: AsyncIterator[Any], count: int) -> int:
    """Take them one by one, every text read."""
    taken = texts = 0
    async for event in events:
        if event.t is not None:
            texts += 1
        taken += 1
        if taken == count:
            break
    return texts


async def batches(events: AsyncIterator[Any], count: int) -> int:
    """Take them at once, every text read."""
    taken = texts = 0
    async for batch in events:
        for event in batch:
            if event.t is not None:
                texts += 1
        taken += len(batch)
        if taken >= count:
            break
    return texts


async def sse(events: AsyncIterator[Any], count: int) -> int:
    """Take them at once, as server-sent events; how many there were is looked at afterwards."""
    del count
    return len(await anext(events))


WAYS: dict[str, tuple[Take, Callable[[TokenStream], AsyncIterator[Any]]]] = {
    "async for": (each, aiter),
    "batches()": (batches, lambda stream: stream.batches()),
    "sse()": (sse, lambda stream: stream.sse()),
}


async def bursts(adapter: Any, way: str, wanted: int) -> list[float]:
    """Return ns per event of as many full queues of one stream."""
    take, iterate = WAYS[way]
    found: list[float] = []
    stream: TokenStream = await adapter.submit(chat_task())
    async with stream:
        events = iterate(stream)
        await anext(events)
        while len(found) < wanted:
            while not stream._is_full:
                if stream.is_terminal:
                    raise RuntimeError("the stream was too short")
                await asyncio.sleep(0)
            count = stream._pending
            if count < FEWEST:
                raise RuntimeError(f"a full queue holds {count} events")
            started = time.thread_time_ns()
            got = await take(events, count)
            spent = time.thread_time_ns() - started
            if got < count - 1:
                raise RuntimeError(f"{got} of {count} events had a text")
            found.append(spent / count)
    return found


async def measure(port: int, rounds: int, wanted: int) -> dict[str, list[float]]:
    """Return, by way of reading, the median of each round."""
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    async with CONTENDERS[OURS](f"http://127.0.0.1:{port}/t1/100000", 1) as client:
        assert isinstance(client, OursClient)
        for _ in range(rounds):
            for way, medians in found.items():
                gc.collect()
                gc.disable()
                medians.append(statistics.median(await bursts(client.adapters[0], way, wanted)))
                gc.enable()
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--bursts", type=int, default=100)
    arguments = parser.parse_args()
    with replay_server() as server:
        found = asyncio.run(measure(server.port, arguments.rounds, arguments.bursts))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
