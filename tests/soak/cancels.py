"""Cancels at random moments, from wherever one can cancel, and what must be so afterwards."""

from __future__ import annotations

import asyncio
import threading
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benches.python.clients import chat_task
from tests.soak.gauges import PATIENCE, Gauges, still_open
from worker_adapters import RetryPolicy, VllmAdapter, WorkerError

if TYPE_CHECKING:
    import random
    from collections.abc import Coroutine
    from typing import Any

    from tests.transports import Transport
    from worker_adapters import TokenStream

WAYS = ("adapter", "stream", "thread", "timer", "timeout", "reader", "leave")
"""How a task is given up: by its id, by its stream, from another thread's loop, by a timer that
cancels it by its id, by one that ends the reader's wait, by cancelling the reader, by leaving."""

AT_ONCE = 64
TIMED = 20_000

AMID = 0.25
"""Share of those whose moment is counted from their first token, not from their submit."""

LONGEST = 0.03
"""The latest moment of a cancel after its submit, in seconds; a token comes every 2 ms."""


@dataclass
class Tally:
    """What came of all of them."""

    cancels: int = 0
    late_tokens: int = 0
    """Tokens that came after cancel() had returned."""
    terminals: Counter[int] = field(default_factory=Counter)
    """How many streams that were read to their end had so many terminal events."""
    ways: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str | None] = field(default_factory=Counter)
    elapsed: array[float] = field(default_factory=lambda: array("d"))
    """How long the first `TIMED` cancels took, in seconds."""
    tokens: int = 0


class Elsewhere:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    async def run(self, work: Coroutine[Any, Any, Any]) -> None:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class _Given:
    """One task: submitted, read, and given up at some moment."""

    def __init__(self, adapter: VllmAdapter, tally: Tally, elsewhere: Elsewhere) -> None:
        self.adapter, self.tally, self.elsewhere = adapter, tally, elsewhere
        self.task = chat_task()
        self.stream: TokenStream | None = None
        self.is_over = False
        """Whether cancel() has returned."""
        self.terminals = 0
        self.has_token = asyncio.Event()

    async def read(self) -> None:
        self.stream = await self.adapter.submit(self.task)
        async for event in self.stream:
            self.note(event.is_terminal, event.finish_reason)

    def note(self, is_terminal: bool, reason: str | None) -> None:
        if is_terminal:
            self.terminals += 1
            self.tally.reasons[reason] += 1
        else:
            self.tally.tokens += 1
            self.has_token.set()
            self.tally.late_tokens += self.is_over

    async def cancel(self, *, by_stream: bool = False) -> None:
        began = time.perf_counter()
        if by_stream and self.stream is not None:
            await self.stream.cancel()
        else:
            await self.adapter.cancel(self.task.task_id)
        self.is_over = True
        if len(self.tally.elapsed) < TIMED:
            self.tally.elapsed.append(time.perf_counter() - began)

    async def run(self, way: str, delay: float, *, amid: bool) -> None:
        loop = asyncio.get_running_loop()
        reader = loop.create_task(self._timed(delay) if way == "timeout" else self.read())
        if amid:
            reader.add_done_callback(lambda _: self.has_token.set())
            await self.has_token.wait()
        match way:
            case "timer":
                fired = loop.create_future()
                loop.call_later(delay, fired.set_result, None)
                await fired
                await self.cancel()
            case "timeout":
                pass
            case "reader" | "leave":
                await asyncio.sleep(delay)
                if way == "leave" and self.stream is not None:
                    await self.stream.aclose()
                else:
                    reader.cancel()
                self.is_over = True
            case _:
                await asyncio.sleep(delay)
                if way == "thread":
                    await self.elsewhere.run(self.cancel())
                else:
                    await self.cancel(by_stream=way == "stream")
        [outcome] = await asyncio.gather(reader, return_exceptions=True)
        if isinstance(outcome, asyncio.CancelledError):
            if way not in {"reader", "leave"}:
                raise RuntimeError("a reader was cancelled whom nobody cancelled")
        elif outcome is not None:
            raise outcome
        if self.stream is not None:
            # Whatever the way, nothing but a terminal event is left to read.
            async for event in self.stream:
                self.note(event.is_terminal, event.finish_reason)
            if way != "leave":
                self.tally.terminals[self.terminals] += 1
        self.tally.ways[way] += 1
        self.tally.cancels += 1

    async def _timed(self, delay: float) -> None:
        try:
            async with asyncio.timeout(delay):
                await self.read()
        except TimeoutError:
            self.is_over = True


@dataclass(frozen=True)
class Outcome:
    """A storm and what it left behind."""

    tally: Tally
    before: Gauges
    after: Gauges
    still_open: int
    """Connections that the engine has not seen the end of, `PATIENCE` after the last cancel."""


async def storm(
    url: str, count: int, rng: random.Random, transport: Transport, *, warm_up: int = AT_ONCE
) -> Outcome:
    """Give up ``count`` tasks at random moments, after ``warm_up`` that do not count.

    Raises what any of them raised.
    """
    port = int(url.split(":")[2].partition("/")[0])
    # What is made once and kept, by interpreter and libraries, is made by the first few.
    await _storm(url, warm_up, rng, transport, Tally())
    before = await _settled(port)
    tally = Tally()
    await _storm(url, count, rng, transport, tally)
    after = await _settled(port)
    return Outcome(tally, before, after, still_open(port))


async def _storm(
    url: str, count: int, rng: random.Random, transport: Transport, tally: Tally
) -> None:
    elsewhere = Elsewhere()
    try:
        once = RetryPolicy(attempts=1)
        async with VllmAdapter(url, transport=transport, retries=once) as adapter:
            await adapter.identity()
            await _some(adapter, tally, elsewhere, rng, count)
    finally:
        elsewhere.close()


async def _some(
    adapter: VllmAdapter, tally: Tally, elsewhere: Elsewhere, rng: random.Random, count: int
) -> None:
    left = iter(range(count))

    async def worker() -> None:
        for _ in left:
            given = _Given(adapter, tally, elsewhere)
            # However busy the machine is, some are amid their tokens.
            await given.run(rng.choice(WAYS), rng.random() * LONGEST, amid=rng.random() < AMID)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(worker())
    except* WorkerError as errors:
        raise errors.exceptions[0] from None


async def _settled(port: int) -> Gauges:
    """Look when the engine has seen the end of every connection, or `PATIENCE` is over."""
    until = time.monotonic() + PATIENCE
    while still_open(port) and time.monotonic() < until:  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(0.01)
    return await Gauges.settled()
