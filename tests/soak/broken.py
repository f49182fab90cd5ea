"""Engines that fail: each in its own way, all at once, again and again."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

from benches.python.clients import chat_task
from benches.python.replay import SERVER_CORE, WORK, build, pinned, replay_server
from tests.soak.gauges import Gauges
from tests.soak.measure import Growth, Report
from worker_adapters import (
    LlamaCppAdapter,
    RetryPolicy,
    TaskRequest,
    Timeouts,
    VllmAdapter,
    WorkerError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.transports import Transport

ONCE = RetryPolicy(attempts=1)


def task() -> TaskRequest:
    return TaskRequest(
        task_id=uuid4(),
        session_id=uuid4(),
        workload="completion",
        model_ref="m",
        engine="llamacpp",
        ctx=0,
        priority="interactive",
        max_tokens=2,
        deadline_ms=10_000,
        prompt="p",
    )


@contextmanager
def faulty_engine(port: int = 0) -> Iterator[int]:
    """Run `tests.soak.faulty` until the end of the block; its port."""
    command = pinned(SERVER_CORE, [sys.executable, "-m", "tests.soak.faulty", port])
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


@contextmanager
def mortal_server() -> Iterator[tuple[int, Callable[[], None]]]:
    """Run a replay server; its port, and what kills it."""
    with replay_server():
        pass  # builds it, and writes its streams
    command = pinned(SERVER_CORE, [build("server"), WORK / "streams"])
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), process.kill
        finally:
            process.kill()


async def outcome_of(adapter: LlamaCppAdapter) -> str:
    """Return ``end``, or the detail of the one error that a task came to."""
    try:
        stream = await adapter.submit(task())
    except WorkerError as error:
        return error.detail
    terminals = [event async for event in stream if event.is_terminal]
    if len(terminals) != 1:
        raise RuntimeError(f"{len(terminals)} terminal events")
    [terminal] = terminals
    detail: str = terminal.data.get("detail", terminal.kind)
    return detail


async def faults(contender: Transport, *, count: int, at_once: int = 16) -> Report:
    """Send ``count`` tasks, each into a fault drawn at random."""
    report = Report()
    details: Counter[str] = Counter()
    with faulty_engine() as port:
        growth = Growth(count, port)
        quick = Timeouts(first_token=2.0, token_gap=0.05, idle=None)

        async def session(work: int, counted: Callable[[], None]) -> None:
            async with LlamaCppAdapter(
                f"http://127.0.0.1:{port}/any", transport=contender, retries=ONCE, timeouts=quick
            ) as adapter:
                left = iter(range(work))

                async def worker() -> None:
                    for _ in left:
                        details[await outcome_of(adapter)] += 1
                        counted()

                async with asyncio.TaskGroup() as group:
                    for _ in range(at_once):
                        group.create_task(worker())

        await session(at_once * 40, lambda: None)
        details.clear()
        before, began = await Gauges.settled(), time.monotonic()
        await session(count, growth.count)
        elapsed = time.monotonic() - began
        await asyncio.sleep(0.1)
        report.figures |= {
            "tasks": count,
            "per s": round(count / elapsed),
            "outcomes": len(details),
            "internal": details["internal"],
        }
        growth.into(report)
        growth.settled(before, await Gauges.settled(), report)
    report.require(sum(details.values()) == count, "tasks without an outcome")
    report.require(not details["internal"], "faults of the library's own")
    report.require(len(details) > 10, f"few outcomes: {sorted(details)}")
    return report


async def mass_reset(contender: Transport, *, count: int) -> Report:
    """Kill an engine under ``count`` streams: each ends with one WORKER_RESET, soon."""
    report = Report()
    errors: Counter[str] = Counter()
    terminals: Counter[int] = Counter()
    base = Gauges.read()
    with mortal_server() as (port, kill):
        # 40,000 tokens a second in all, however many share them.
        url = f"http://127.0.0.1:{port}/p{count * 25}/100000"
        # As many at a time as an adapter has places for.
        adapters = [
            VllmAdapter(url, transport=contender, retries=ONCE, timeouts=Timeouts(connect=60.0))
            for _ in range(-(-count // 1000))
        ]
        for adapter in adapters:
            await adapter.identity()
        last = 0.0
        begun = 0
        all_begun = asyncio.Event()
        opening = asyncio.Semaphore(64)

        async def read(at: int) -> None:
            nonlocal last, begun
            async with opening:
                stream = await adapters[at // 1000].submit(chat_task())
            begun += 1
            if begun == count:
                all_begun.set()
            seen = [event async for event in stream if event.is_terminal]
            last = time.monotonic()
            terminals[len(seen)] += 1
            for event in seen:
                errors[event.code or event.kind] += 1

        readers = [asyncio.ensure_future(read(at)) for at in range(count)]
        waiting = asyncio.ensure_future(all_begun.wait())
        # Nobody's stream ends before the engine does.
        await asyncio.wait((waiting, *readers), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        await asyncio.sleep(2.0)
        killed = time.monotonic()
        kill()
        await asyncio.gather(*readers)
        for adapter in adapters:
            await adapter.aclose()
    await asyncio.sleep(0.1)
    left = Gauges.read().descriptors - base.descriptors
    report.figures |= {
        "streams": count,
        "WORKER_RESET": errors["WORKER_RESET"],
        "last after, s": round(last - killed, 2),
        "descriptors left": left,
    }
    report.require(errors == {"WORKER_RESET": count}, f"other ends: {errors}")
    report.require(terminals == {1: count}, f"terminal events: {terminals}")
    report.require(last - killed <= 5.0, "the last stream heard of it late")
    report.require(left <= 0, "descriptors are left behind")
    return report


async def flapping(contender: Transport, *, seconds: float) -> Report:
    """Stop and start an engine twice a second; every task has an outcome, and then all is well."""
    report = Report()
    details: Counter[str] = Counter()
    slowest = 0.0
    with faulty_engine() as port:
        pass
    is_over = False

    async def flap() -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with faulty_engine(port):
                await asyncio.sleep(0.3)
            await asyncio.sleep(0.2)

    async def ask(adapter: LlamaCppAdapter) -> None:
        nonlocal slowest
        while not is_over:
            began = time.monotonic()
            details[await outcome_of(adapter)] += 1
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.005)

    async with LlamaCppAdapter(f"http://127.0.0.1:{port}/whole", transport=contender) as adapter:
        before = Gauges.read()
        asking = [asyncio.ensure_future(ask(adapter)) for _ in range(20)]
        await flap()
        is_over = True
        await asyncio.gather(*asking)
        while_it_flapped = Counter(details)
        details.clear()
        with faulty_engine(port):
            for _ in range(50):
                details[await outcome_of(adapter)] += 1
        await asyncio.sleep(0.1)
        after = Gauges.read()
    report.figures |= {
        "tasks": sum(while_it_flapped.values()),
        "ended well": while_it_flapped["end"],
        "slowest, s": round(slowest, 2),
        "well afterwards": details["end"],
        "tasks left": after.tasks - before.tasks,
    }
    report.require(not while_it_flapped["internal"], "faults of the library's own")
    report.require(while_it_flapped["end"] > 0, "nothing came through")
    report.require(slowest <= 12.0, "a task outlived its deadline")
    report.require(details == {"end": 50}, f"it did not recover: {details}")
    report.require(after.tasks <= before.tasks, "tasks are left behind")
    return report


async def amplification(contender: Transport, *, count: int) -> Report:
    """Ask ``count`` questions of an engine that only says 503, and count what reaches it."""
    report = Report()
    policy = RetryPolicy(base=0.001, cap=0.002)
    with faulty_engine() as port:
        url = f"http://127.0.0.1:{port}"
        async with LlamaCppAdapter(f"{url}/503", transport=contender, retries=policy) as adapter:
            left = iter(range(count))

            async def worker() -> None:
                for _ in left:
                    try:
                        await adapter.engine_version()
                    except WorkerError:
                        continue
                    raise RuntimeError("an answer where there was none")

            began = time.monotonic()
            await asyncio.gather(*(worker() for _ in range(16)))
            elapsed = time.monotonic() - began
        counts = await asyncio.to_thread(_counts, f"{url}/counts")
    attempts = counts["get"] - 1
    most = (1 + policy.budget) * count + policy.floor * (elapsed + 1)
    report.figures |= {
        "requests": count,
        "attempts": attempts,
        "attempts/request": round(attempts / count, 4),
        "in, s": round(elapsed, 1),
    }
    report.require(count <= attempts <= most, f"{attempts} attempts, {most:.0f} at most")
    return report


def _counts(url: str) -> dict[str, int]:
    with urllib.request.urlopen(url, timeout=10) as response:
        told: dict[str, int] = json.load(response)
    return told
