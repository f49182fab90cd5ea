"""Many streams, many requests, slow readers, unequal neighbours."""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benches.python.clients import CONTENDERS, Slot, chat_task
from benches.python.replay import replay_server
from benches.python.streams import texts
from tests.soak.gauges import Gauges, descriptors_settled, rss
from tests.soak.measure import Growth, Report, percentile, slope
from worker_adapters import VllmAdapter

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.transports import Transport
    from worker_adapters import TokenStream

STREAM_KIB = 16.0
"""What a stream may cost, in KiB: HARDENING's aim for the native transport."""

PER_STALLED = 128 << 10
ADDED_MS = 10.0


class Seen(Slot):
    """A stream's tokens, counted."""

    def __init__(self, begun: Callable[[], None]) -> None:
        self.tokens = 0
        self.on_text = None
        self._begun = begun

    def begin(self) -> None:
        """See `Slot.begin`."""
        self._begun()


async def streams(contender: str, *, count: int, seconds: float, interval_ms: int) -> Report:
    """Hold ``count`` streams for so long; memory is looked at every second."""
    report = Report()
    tokens = int(seconds * 1000 / interval_ms)
    with replay_server() as server:
        url = f"http://127.0.0.1:{server.port}/p{interval_ms * 1000}/{tokens}"
        base = Gauges.read()
        begun = 0
        all_begun = asyncio.Event()

        def one_begun() -> None:
            nonlocal begun
            begun += 1
            if begun == count:
                all_begun.set()

        cpu, clock = time.process_time(), time.monotonic()
        async with CONTENDERS[contender](url, count) as client:
            slots = [Seen(one_begun) for _ in range(count)]
            running = [
                asyncio.ensure_future(client.stream(number, slot))
                for number, slot in enumerate(slots)
            ]
            waiting = asyncio.ensure_future(all_begun.wait())
            await asyncio.wait((waiting, *running), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            set_up, up_after = time.process_time() - cpu, time.monotonic() - clock
            cpu, clock = time.process_time(), time.monotonic()
            samples: list[tuple[float, float]] = []
            while not any(task.done() for task in running):
                samples.append((time.monotonic() - clock, float(rss())))
                await asyncio.sleep(1.0)
            held, busy = time.monotonic() - clock, time.process_time() - cpu
            outcomes = await asyncio.gather(*running, return_exceptions=True)
        failed = [outcome for outcome in outcomes if outcome is not None]
        # The first seconds fill buffers.
        steady = samples[len(samples) // 5 :]
        grown = slope(steady) / count
        peak = max((y for _, y in samples), default=float(base.rss))
        each = (peak - base.rss) / count / 1024
        report.figures |= {
            "streams": count,
            "held, s": round(held, 1),
            "up after, s": round(up_after, 1),
            "set-up CPU, ms/stream": round(set_up / count * 1e3, 3),
            "KiB/stream": round(each, 1),
            "growth, B/stream/s": round(grown, 2),
            "CPU, %": round(100 * busy / held, 1),
            "tokens": sum(slot.tokens for slot in slots),
        }
        report.require(not failed, f"{len(failed)} streams failed: {failed[:1]!r}")
        report.require(sum(slot.tokens for slot in slots) == count * tokens, "tokens are missing")
        if contender == "native":
            # A page in five minutes, of every stream.
            report.require(grown <= 4096 / 300, "memory grows while streams are held")
            report.require(each <= STREAM_KIB, f"a stream takes {each:.1f} KiB")
    left = await descriptors_settled(base.descriptors) - base.descriptors
    report.figures["descriptors left"] = left
    report.require(left <= 0, "descriptors are left behind")
    return report


async def requests(contender: str, *, count: int, at_once: int = 32) -> Report:
    """Send ``count`` requests, each a short stream."""
    report = Report()
    tokens = 5
    with replay_server() as server:
        url = f"http://127.0.0.1:{server.port}/t1/{tokens}"
        growth = Growth(count, server.port)

        async def session(work: int, counted: Callable[[], None]) -> None:
            async with CONTENDERS[contender](url, at_once) as client:
                left = iter(range(work))

                async def worker() -> None:
                    for _ in left:
                        slot = Seen(lambda: None)
                        await client.stream(0, slot)
                        if slot.tokens != tokens:
                            raise RuntimeError("tokens are missing")
                        counted()

                async with asyncio.TaskGroup() as group:
                    for _ in range(at_once):
                        group.create_task(worker())

        await session(at_once * 10, lambda: None)
        before, began = await Gauges.settled(), time.monotonic()
        await session(count, growth.count)
        elapsed = time.monotonic() - began
        await asyncio.sleep(0.1)
        report.figures |= {"requests": count, "per s": round(count / elapsed)}
        growth.into(report)
        growth.settled(before, await Gauges.settled(), report)
    return report


async def slow_readers(contender: Transport, *, count: int, tokens: int) -> Report:
    """Read 10 tokens a second of streams that come flat out, then the rest; not one is lost."""
    report = Report()
    known = texts()
    whole = hashlib.sha256()
    for number in range(tokens):
        whole.update(known[number % len(known)].encode())
    expected = whole.digest()
    with replay_server() as server:
        url = f"http://127.0.0.1:{server.port}/t1/{tokens}"
        async with VllmAdapter(url, transport=contender) as adapter:
            await adapter.identity()
            base = rss()
            opened = [await adapter.submit(chat_task()) for _ in range(count)]
            digests = [hashlib.sha256() for _ in opened]

            async def slowly(at: int, stream: TokenStream) -> None:
                reader = aiter(stream)
                for _ in range(100):
                    event = await anext(reader)
                    if event.t is not None:
                        digests[at].update(event.t.encode())
                    await asyncio.sleep(0.1)

            peak = 0
            reading = asyncio.gather(*(slowly(at, one) for at, one in enumerate(opened)))
            while not reading.done():
                await asyncio.wait((reading,), timeout=0.5)
                peak = max(peak, rss())
            await reading
            blocked = _blocked(server.port)
            began = time.monotonic()
            for at, stream in enumerate(opened):
                async for batch in stream.batches():
                    for event in batch:
                        if event.t is not None:
                            digests[at].update(event.t.encode())
                report.require(
                    event.finish_reason == "stop", f"a stream ended with {event.finish_reason}"
                )
            elapsed = time.monotonic() - began
    each = (peak - base) / count
    report.figures |= {
        "streams": count,
        "tokens each": tokens,
        "engine held back": blocked,
        "KiB/stream": round(each / 1024, 1),
        "tokens/s at last": round(count * tokens / elapsed),
        "texts that differ": sum(one.digest() != expected for one in digests),
    }
    report.require(each <= PER_STALLED, f"{each / 1024:.0f} KiB a stream")
    report.require(blocked == count, f"only {blocked} of the engine's sockets were held back")
    report.require(all(one.digest() == expected for one in digests), "tokens were lost")
    return report


def _blocked(port: int) -> int:
    """Return how many of the server's sockets have something to send that nobody takes."""
    ending = f":{port:04X}"
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return sum(row[1].endswith(ending) and int(row[4].partition(":")[0], 16) > 0 for row in rows)


async def fairness(contender: Transport, *, count: int, burst_mb: int) -> Report:
    """Look how late the tokens of ``count`` streams come without, and with, a burst beside them."""
    report = Report()
    with replay_server() as server:
        base = f"http://127.0.0.1:{server.port}"
        async with (
            VllmAdapter(f"{base}/s50000/400", transport=contender) as adapter,
            VllmAdapter(f"{base}/t1/{burst_mb * 4000}", transport=contender) as bursting,
        ):
            await adapter.identity()
            await bursting.identity()
            late: dict[bool, list[float]] = {False: [], True: []}
            has_burst = False

            async def read() -> None:
                async for event in await adapter.submit(chat_task()):
                    if event.t is not None:
                        late[has_burst].append(time.clock_gettime_ns(1) - int(event.t))

            readers = [asyncio.ensure_future(read()) for _ in range(count)]
            await asyncio.sleep(4.0)
            late[False].clear()  # while they all began
            await asyncio.sleep(5.0)
            has_burst = True
            began, came = time.monotonic(), 0
            stream = await bursting.submit(chat_task())
            async for batch in stream.batches():
                came += len(batch)
            elapsed = time.monotonic() - began
            has_burst = False
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
    quiet, busy = (percentile(late[burst], 0.99) / 1e6 for burst in (False, True))
    report.figures |= {
        "streams": count,
        "burst, MB": burst_mb,
        "burst, tokens/s": round(came / elapsed),
        "late by, p99 ms": round(quiet, 1),
        "beside it, p99 ms": round(busy, 1),
    }
    report.require(busy - quiet <= ADDED_MS, f"the burst adds {busy - quiet:.1f} ms")
    return report
