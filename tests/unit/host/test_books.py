"""Whatever happens in whatever order, the host's books are right in the end."""

from __future__ import annotations

import asyncio
import gc
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.host.scripted import (
    GONE,
    LOADING,
    READY,
    Log,
    Scripted,
    failed,
    host_of,
    settled,
    task,
)
from tests.unit.virtual_time import run
from worker_adapters import TaskRequest, TokenStream, WorkerError
from worker_adapters.host import BreakerPolicy, HedgePolicy, PoolPolicy, ProbePolicy

if TYPE_CHECKING:
    from worker_adapters.host import AdapterHost

OUTCOMES = (
    3,
    3,
    None,
    None,
    failed("connect"),
    failed("engine_error", processed="unknown", status=500),
    failed("invalid_request", retriable=False, status=400),
)
STEPS = (
    "submit", "submit", "submit", "finish", "cut", "cancel", "read", "aclose", "drop", "give up",
    "gate", "open the gates", "bind", "rebind", "unbind", "drain", "probe", "shed", "admit", "wait",
)  # fmt: skip


class Chaos:
    """A pool of up to three replicas, and what clients have of it."""

    def __init__(self, host: AdapterHost, seed: int) -> None:
        self.host = host
        self.draws = random.Random(seed)
        self.adapters: list[Scripted] = []
        self.submits: dict[asyncio.Task[TokenStream], TaskRequest] = {}
        self.streams: list[tuple[TaskRequest, TokenStream]] = []
        self.work: set[asyncio.Task[object]] = set()

    def bound(self) -> list[str]:
        pool = self.host.registry.pool("pool")
        return [] if pool is None else [replica.replica_id for replica in pool.replicas]

    def adapter(self, replica_id: str) -> Scripted:
        made = Scripted(replica_id, play=lambda _: self.draws.choice(OUTCOMES), slots=2)
        self.adapters.append(made)
        return made

    def live(self) -> list[Scripted]:
        return [adapter for adapter in self.adapters if not adapter.is_closed]

    async def step(self, what: str) -> None:
        draws, bound = self.draws, self.bound()
        match what:
            case "submit":
                given = task(deadline_ms=draws.choice((500, 60_000)))
                self.submits[asyncio.create_task(self.host.submit("pool", given))] = given
            case "bind" if len(bound) < 3:
                free = next(name for name in "abc" if name not in bound)
                self.host.bind(self.adapter(free))
            case "rebind" if bound:
                self.host.rebind(self.adapter(draws.choice(bound)))
            case "unbind" if bound:
                self.host.unbind("pool", draws.choice(bound))
            case "drain" if bound:
                draining = self.host.drain("pool", draws.choice(bound), deadline_ms=1000)
                self.work.add(asyncio.create_task(draining))
            case "shed" | "admit" if self.host.registry.pool("pool") is not None:
                self.host.set_admission("pool", what)
            case "probe":
                for adapter in self.live():
                    adapter.state = draws.choice((READY, READY, LOADING, GONE))
                await self.host.probe()
            case "gate":
                for adapter in self.live():
                    adapter.gate = asyncio.Event()
            case "open the gates":
                self.open()
            case "finish" | "cut":
                for adapter in self.live():
                    for body in adapter.bodies.values():
                        if draws.random() < 0.5:
                            body.finish() if what == "finish" else body.cut()
            case "cancel" if self.submits or self.streams:
                of_submits = list(self.submits.values())
                given = draws.choice([*of_submits, *(given for given, _ in self.streams)])
                await self.host.cancel("pool", given.task_id)
            case "give up" if self.submits:
                draws.choice(list(self.submits)).cancel()
            case "read" if self.streams:
                _, stream = draws.choice(self.streams)
                if not stream.is_terminal:
                    self.work.add(asyncio.create_task(self.read(stream)))
            case "aclose" if self.streams:
                await self.streams.pop()[1].aclose()
            case "drop" if self.streams:
                given, _ = self.streams.pop()
                for adapter in self.adapters:
                    adapter.drop(given.task_id)
            case "wait":
                await asyncio.sleep(draws.choice((0.1, 3.0)))
        self.collect()

    def open(self) -> None:
        for adapter in self.adapters:
            if adapter.gate is not None:
                adapter.gate.set()
            adapter.gate = None

    async def read(self, stream: TokenStream) -> object:
        try:
            return [event.kind async for event in stream]
        except RuntimeError:  # somebody else reads it
            return None

    def collect(self) -> None:
        for submit in [submit for submit in self.submits if submit.done()]:
            given = self.submits.pop(submit)
            if submit.cancelled():
                continue
            error = submit.exception()
            if error is None:
                self.streams.append((given, submit.result()))
            else:
                assert isinstance(error, WorkerError), error

    async def end(self) -> None:
        """Have every client come to its end."""
        self.open()
        for submit in self.submits:
            submit.cancel()
        await asyncio.gather(*self.submits, return_exceptions=True)
        self.collect()
        for work in self.work:
            work.cancel()
        await asyncio.gather(*self.work, return_exceptions=True)
        self.work.clear()
        for _, stream in self.streams:
            await stream.aclose()
        self.streams.clear()
        for adapter in self.adapters:
            adapter._streams.clear()
        gc.collect()
        await settled()


@pytest.mark.timeout(180)
@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(min_value=0, max_value=2**32),
    steps=st.lists(st.sampled_from(STEPS), min_size=5, max_size=40),
    is_hedged=st.booleans(),
)
def test_nothing_is_left_behind(seed: int, steps: list[str], is_hedged: bool) -> None:
    async def main() -> None:
        policy = PoolPolicy(
            max_in_flight_per_replica=2,
            max_waiting=3,
            max_wait=2.0,
            breaker=BreakerPolicy(failures=3, cooldown=1.0),
            hedge=HedgePolicy(delay=0.5, budget=0.5) if is_hedged else None,
        )
        log = Log()
        probes = ProbePolicy(interval=1.0, timeout=0.5)
        async with host_of(policy=policy, probes=probes, observers=[log]) as host:
            chaos = Chaos(host, seed)
            host.bind(chaos.adapter("a"))
            for what in steps:
                await chaos.step(what)
                pool = host.registry.pool("pool")
                assert pool is not None
                assert len(pool.admission.waiting) <= 3
                for replica in pool.replicas:
                    assert len(replica.leases) <= 2
                    assert replica.unanswered <= replica.leases
            await chaos.end()
            assert host._dispatcher.tickets == {}
            pool = host.registry.pool("pool")
            assert pool is not None
            assert not pool.admission.leases
            assert not pool.admission.waiting
            for replica in pool.replicas:
                assert not replica.leases
                assert not replica.tenants
            # Of those that are not bound any more, none is open.
            assert host._retired == set()
            bound = {replica.adapter for replica in pool.replicas}
            assert {one for one in chaos.adapters if not one.is_closed} == bound
        assert all(adapter.is_closed for adapter in chaos.adapters)
        began = [event for event in log.events if event.action == "start"]
        ended = [event for event in log.events if event.action == "end"]
        assert len(began) <= len(ended)

    run(main())
