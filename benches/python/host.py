"""What the adapter host adds to a task: CPU time of lookups, choices, refusals and submits.

The adapters answer from memory, so that what is timed is the host alone; a submit is measured
beside the same one made of the adapter itself. CPU time of the thread, the garbage collector paused
as ``timeit`` does. Results go to stdout as JSON, by what was done: nanoseconds each, one figure per
round.
"""

import argparse
import asyncio
import gc
import json
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

from worker_adapters import (
    CancelReceipt,
    PoolUnavailable,
    StreamDecoder,
    SubmitContext,
    TaskRequest,
    Timeouts,
    TokenStream,
    WorkerAdapter,
    WorkerHealth,
    WorkerProps,
)
from worker_adapters.host import AdapterHost, ProbePolicy
from worker_adapters.host.routing import Router
from worker_adapters.transport._pulled import PulledStream

POOLS = 1000
REPLICAS = 16


class Instant(WorkerAdapter):
    """An adapter whose streams have ended when they are returned."""

    engine = dialect = "llamacpp"

    def __init__(self, pool_id: str, replica_id: str) -> None:
        self.pool_id = pool_id
        self.replica_id = replica_id

    async def health(self, *, timeouts: Timeouts | None = None) -> WorkerHealth:
        """Be ready."""
        del timeouts
        return WorkerHealth(live=True, ready=True)

    async def props(self, *, timeouts: Timeouts | None = None) -> WorkerProps:
        """Have slots."""
        del timeouts
        return WorkerProps(slots_total=8, slots_free=8)

    async def submit(
        self,
        task: TaskRequest,
        *,
        context: SubmitContext | None = None,
        timeouts: Timeouts | None = None,
    ) -> TokenStream:
        """Return a stream that has ended."""
        del context, timeouts
        decoder = StreamDecoder("llamacpp")
        decoder.dispatched(0.0)
        events = decoder.complete(0.0)
        return PulledStream(task.task_id, decoder, None, events=events)

    async def cancel(self, task_id: UUID | str, *, confirm_within_ms: float = 0) -> CancelReceipt:
        """Do nothing."""
        del task_id, confirm_within_ms
        return CancelReceipt(method="none", sent=False, elapsed_ms=0.0)

    async def engine_version(self, *, timeouts: Timeouts | None = None) -> str:
        """Name a version."""
        del timeouts
        return "1"

    async def aclose(self) -> None:
        """Have nothing to close."""


def a_task() -> TaskRequest:
    """Return a task of its own."""
    return TaskRequest(
        task_id=uuid4(),
        session_id=uuid4(),
        workload="completion",
        model_ref="tiny.gguf",
        engine="llamacpp",
        ctx=512,
        priority="interactive",
        max_tokens=16,
        deadline_ms=60_000,
        prompt="Once",
    )


def timed(rounds: int, count: int, work: Callable[[], object]) -> list[float]:
    """Return ns of thread time for each of ``count`` that ``work`` does, per round."""
    found = []
    for _ in range(rounds):
        gc.collect()
        gc.disable()
        began = time.thread_time_ns()
        work()
        found.append((time.thread_time_ns() - began) / count)
        gc.enable()
    return found


def lookups(host: AdapterHost, rounds: int, count: int) -> dict[str, list[float]]:
    """Look pools up, alone and while another thread swaps the snapshot all the time."""
    names = [f"pool-{random.randrange(POOLS)}" for _ in range(count)]
    look = host.registry.pool

    def work() -> None:
        for name in names:
            look(name)

    alone = timed(rounds, count, work)
    over = threading.Event()
    swaps = 0

    def swap() -> None:
        nonlocal swaps
        while not over.wait(0.001):
            pool = look("pool-1")
            if pool is not None:
                host.registry.put(pool)
                swaps += 1

    writer = threading.Thread(target=swap)
    writer.start()
    try:
        contended = timed(rounds, count, work)
    finally:
        over.set()
        writer.join()
    return {"lookup": alone, "lookup while pools are swapped": contended}


def choices(host: AdapterHost, rounds: int, count: int) -> dict[str, list[float]]:
    """Choose among the replicas of a pool."""
    router, pool = Router(random.Random(1)), host.registry.pool("wide")
    if pool is None:
        raise RuntimeError("no pool")
    replicas = pool.replicas

    def two() -> None:
        for _ in range(count):
            router.pick(replicas, lambda replica: replica.is_ready, 0.0)

    def keyed() -> None:
        for number in range(count):
            router.keep(str(number), replicas, lambda replica: replica.is_ready, 1.25)

    return {
        f"choice of two among {REPLICAS}": timed(rounds, count, two),
        f"affinity among {REPLICAS}": timed(rounds, count, keyed),
    }


async def submits(host: AdapterHost, rounds: int, count: int) -> dict[str, list[float]]:
    """Submit to the host and to an adapter, in turn; have the host refuse."""
    adapter = Instant("alone", "0")
    ways: dict[str, Callable[[TaskRequest], Any]] = {
        "submit to an adapter": adapter.submit,
        f"submit to the host, {REPLICAS} replicas": lambda task: host.submit("wide", task),
    }
    found: dict[str, list[float]] = {name: [] for name in (*ways, "refusal")}
    host.set_admission("pool-0", "shed")
    for _ in range(rounds):
        for name, submit in ways.items():
            tasks = [a_task() for _ in range(count)]
            gc.collect()
            gc.disable()
            began = time.thread_time_ns()
            for task in tasks:
                await (await submit(task)).aclose()
            found[name].append((time.thread_time_ns() - began) / count)
            gc.enable()
        tasks = [a_task() for _ in range(count)]
        began = time.thread_time_ns()
        for task in tasks:
            try:
                await host.submit("pool-0", task)
            except PoolUnavailable:
                continue
        found["refusal"].append((time.thread_time_ns() - began) / count)
    return found


async def measure(rounds: int, count: int) -> dict[str, list[float]]:
    """Return ns by what was done, one figure per round."""
    async with AdapterHost(probes=ProbePolicy(interval=3600.0)) as host:
        for number in range(POOLS):
            host.bind(Instant(f"pool-{number}", "0"))
        for number in range(REPLICAS):
            host.bind(Instant("wide", str(number)))
        await host.probe()
        await asyncio.sleep(0.5)
        return {
            **lookups(host, rounds, 100 * count),
            **choices(host, rounds, count),
            **await submits(host, rounds, count),
        }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=10_000)
    arguments = parser.parse_args()
    json.dump(asyncio.run(measure(arguments.rounds, arguments.count)), sys.stdout)


if __name__ == "__main__":
    main()
