"""One client, one scenario, one process: prints what it took as JSON.

    client.py CONTENDER LOOP PORT SCENARIO

LOOP is ``uvloop`` or ``asyncio``, SCENARIO a JSON object: its ``kind`` and the numbers of that
kind. CPU is that of the whole process with its threads.
"""

import asyncio
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benches.python.clients import CONTENDERS, Client, Slot

OPENING = 256
"""How many requests wait for their responses to begin at a time."""

BEGIN_SECONDS = 30.0
"""How long streams that have begun are read before counting begins without the others."""


class Tally(Slot):
    """One stream's reports."""

    __slots__ = ("_run", "on_text", "tokens")

    def __init__(self, run: "Run") -> None:
        self._run = run
        self.tokens = 0
        self.on_text = run.on_text

    def begin(self) -> None:
        """See `Slot.begin`."""
        self._run.begin()


class Run:
    """All streams of a scenario: CPU is counted from when each of them has begun."""

    def __init__(self, streams: int, on_text: Callable[[str], None] | None = None) -> None:
        self.on_text = on_text
        self.all_begun = asyncio.Event()
        self.tallies = [Tally(self) for _ in range(streams)]
        self._missing = streams
        self._opening = asyncio.Semaphore(OPENING)
        self._from = (0.0, 0.0, 0)

    def begin(self) -> None:
        """Another stream has begun."""
        self._opening.release()
        self._missing -= 1
        if not self._missing:
            self.all_begun.set()
            self.count_from_now()

    def count_from_now(self) -> None:
        """Begin to count."""
        self._from = self._now()

    @property
    def tokens(self) -> int:
        """How many have come in all."""
        return sum(tally.tokens for tally in self.tallies)

    def _now(self) -> tuple[float, float, int]:
        return time.process_time(), time.perf_counter(), self.tokens

    def spent(self) -> dict[str, Any]:
        """Return CPU, time and tokens since all have begun."""
        cpu, wall, tokens = (now - then for now, then in zip(self._now(), self._from, strict=True))
        return {"cpu_s": cpu, "wall_s": wall, "tokens": tokens}

    async def stream(self, client: Client, number: int) -> None:
        """Read one stream, once its turn to open has come."""
        await self._opening.acquire()
        await client.stream(number, self.tallies[number])


class FirstText:
    """Notes when it is first called."""

    at = 0

    def __call__(self, _text: str) -> None:
        """Take a text."""
        if not self.at:
            self.at = time.monotonic_ns()


async def flat(port: int, make: Any, streams: int, tokens: int) -> dict[str, Any]:
    """Read streams that come as fast as they can be taken."""
    async with make(f"http://127.0.0.1:{port}/t{streams}/{tokens}", streams) as client:
        run = Run(streams)
        await asyncio.gather(*(run.stream(client, number) for number in range(streams)))
        return run.spent()


async def paced(port: int, make: Any, streams: int, rate: int, seconds: float) -> dict[str, Any]:
    """Read streams of so many tokens a second, for so long."""
    path = f"p{1_000_000 // rate}/100000"
    async with make(f"http://127.0.0.1:{port}/{path}", streams) as client:
        run = Run(streams)
        tasks = [asyncio.create_task(run.stream(client, number)) for number in range(streams)]
        await _begun(run, tasks)
        await asyncio.sleep(seconds)
        spent = run.spent()
        _leave(spent)
    return spent


async def requests(
    port: int, make: Any, streams: int, requests: int, tokens: int
) -> dict[str, Any]:
    """Send so many requests one after the other on each of the streams."""
    async with make(f"http://127.0.0.1:{port}/t1/{tokens}", streams) as client:

        async def one_after_the_other(number: int, count: int) -> int:
            total = 0
            for _ in range(count):
                run = Run(1)
                await client.stream(number, run.tallies[0])
                total += run.tokens
            return total

        # Connections are opened and code is warm before anything is counted.
        await asyncio.gather(*(one_after_the_other(number, 1) for number in range(streams)))
        cpu, wall = time.process_time(), time.perf_counter()
        total = await asyncio.gather(
            *(one_after_the_other(number, requests) for number in range(streams))
        )
        return {
            "cpu_s": time.process_time() - cpu,
            "wall_s": time.perf_counter() - wall,
            "tokens": sum(total),
        }


async def memory(port: int, make: Any, streams: int) -> dict[str, Any]:
    """Hold streams open; ``make`` None: tasks that wait for nothing, the control."""
    waiting = asyncio.Event()
    if make is None:
        before = _resident()
        idle = [asyncio.create_task(waiting.wait()) for _ in range(streams)]
        await asyncio.sleep(0.1)
        after = _resident()
        assert len(idle) == streams
        return {"bytes_per_stream": (after - before) / streams}
    async with make(f"http://127.0.0.1:{port}/p1000000/1000", streams) as client:
        run = Run(1)
        # Whatever is loaded or made once is not a stream's.
        first = asyncio.create_task(run.stream(client, 0))
        await _begun(run, [first])
        run = Run(streams - 1)
        before = _resident()
        tasks = [asyncio.create_task(run.stream(client, number)) for number in range(streams - 1)]
        await _begun(run, tasks)
        await asyncio.sleep(2.0)
        result = {"bytes_per_stream": (_resident() - before) / (streams - 1)}
        _leave(result)
    return result


async def late(port: int, make: Any, streams: int, rate: int, seconds: float) -> dict[str, Any]:
    """Tell how long after they were sent tokens are in the consumer's hands."""
    lateness: list[int] = []
    now = time.monotonic_ns

    def note(text: str) -> None:
        lateness.append(now() - int(text))

    path = f"s{1_000_000 // rate}/100000"
    async with make(f"http://127.0.0.1:{port}/{path}", streams) as client:
        run = Run(streams, note)
        tasks = [asyncio.create_task(run.stream(client, number)) for number in range(streams)]
        await _begun(run, tasks)
        await asyncio.sleep(1.0)
        lateness.clear()
        cpu, wall = time.process_time(), time.perf_counter()
        await asyncio.sleep(seconds)
        result = {
            "cpu_s": time.process_time() - cpu,
            "wall_s": time.perf_counter() - wall,
            "tokens": len(lateness),
            **_quantiles("late_us", lateness),
        }
        _leave(result)
    return result


async def first(port: int, make: Any, streams: int, requests: int) -> dict[str, Any]:
    """Tell how long after the request the first token is in the consumer's hands.

    Streams of 20 tokens at 20 a second begin evenly spread over time.
    """
    times: list[int] = []
    loop = asyncio.get_running_loop()
    async with make(f"http://127.0.0.1:{port}/n50000/20", streams) as client:
        began = loop.time()

        async def one_after_the_other(number: int) -> None:
            await asyncio.sleep(began + number * 0.01 - loop.time())
            for _ in range(requests):
                seen = FirstText()
                sent = time.monotonic_ns()
                await client.stream(number, Run(1, seen).tallies[0])
                times.append(seen.at - sent)

        await asyncio.gather(*(one_after_the_other(number) for number in range(streams)))
    return _quantiles("first_us", times)


def _leave(result: dict[str, Any]) -> None:
    """End the process with the result: streams that go on would only be taken down."""
    print(json.dumps(result), flush=True)
    os._exit(0)


async def _begun(run: Run, tasks: list[asyncio.Task[None]]) -> None:
    """Wait until every stream has begun; raise what ended one before.

    A client that cannot keep up with those that have begun may never come to begin the others.
    """
    begun = asyncio.create_task(run.all_begun.wait())
    done, _ = await asyncio.wait(
        [begun, *tasks], timeout=BEGIN_SECONDS, return_when=asyncio.FIRST_COMPLETED
    )
    for task in done:
        task.result()
    if not done:
        run.count_from_now()


def _quantiles(name: str, times: list[int]) -> dict[str, float]:
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return {f"{name}_p50": cuts[49] / 1000, f"{name}_p99": cuts[98] / 1000}


def _resident() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


KINDS: dict[str, Callable[..., Any]] = {
    "flat": flat,
    "paced": paced,
    "requests": requests,
    "memory": memory,
    "late": late,
    "first": first,
}


def main() -> None:
    """Run the command line."""
    contender, loop, port, text = sys.argv[1:]
    scenario = json.loads(text)
    work = KINDS[scenario.pop("kind")](int(port), CONTENDERS.get(contender), **scenario)
    if loop == "uvloop":
        import uvloop

        result = uvloop.run(work)
    else:
        result = asyncio.run(work)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
