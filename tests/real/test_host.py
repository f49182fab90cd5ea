"""A host over two real llama.cpp replicas: one dies in mid-stream, one is drained and replaced."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.real.support import eventually, task
from tests.unit.host.scripted import Log
from worker_adapters import LlamaCppAdapter, PoolUnavailable, RetryPolicy, WorkerError, WorkerReset
from worker_adapters.host import AdapterHost, ProbePolicy
from worker_adapters.testing.llamacpp import LlamaCppServer, tiny_model

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from worker_adapters import TokenStream

pytestmark = pytest.mark.real

POOL = "chat"
LONG: Final[dict[str, Any]] = {"max_tokens": 15_000, "ctx": 16_000}


@pytest.fixture(scope="module")
def mortal() -> Iterator[LlamaCppServer]:
    """A replica configured as ``slow_server`` is, to be killed by one test and started anew."""
    model = tiny_model(layers=32, n_ctx_train=16384)
    with LlamaCppServer(["-np", "2", "-c", "32768"], model=model) as running:
        yield running


def replica(server: LlamaCppServer, replica_id: str) -> LlamaCppAdapter:
    return LlamaCppAdapter(
        server.url, pool_id=POOL, replica_id=replica_id, retries=RetryPolicy(attempts=1)
    )


@pytest.fixture
async def log() -> Log:
    return Log()


@pytest.fixture
async def host(slow_server: LlamaCppServer, log: Log) -> AsyncIterator[AdapterHost]:
    """A host with the replica ``a`` that lives."""
    async with AdapterHost(probes=ProbePolicy(interval=0.5), observers=[log]) as made:
        made.bind(replica(slow_server, "a"))
        yield made


async def speaking(stream: TokenStream) -> TokenStream:
    """Read until a token has come."""
    while (await anext(stream)).kind != "token":
        pass
    return stream


def where(log: Log, stream: TokenStream) -> str | None:
    """Name the replica that took a stream's task up."""
    (event,) = [
        event
        for event in log.events
        if event.action == "start" and event.task is not None
        if event.task.task_id == stream.task_id
    ]
    return event.replica_id


async def both_speaking(host: AdapterHost, log: Log) -> dict[str | None, TokenStream]:
    """Have a long stream on either of two replicas."""
    streams = [await speaking(await host.submit(POOL, task(**LONG))) for _ in range(2)]
    placed = {where(log, stream): stream for stream in streams}
    # The second one went to the idle one.
    assert set(placed) == {"a", "b"}
    return placed


async def test_a_replica_is_drained_and_another_takes_its_place(
    host: AdapterHost, log: Log, mortal: LlamaCppServer
) -> None:
    host.bind(replica(mortal, "b"))
    await host.probe()
    props = await host.props(POOL)
    assert (props.slots_total, props.slots_free, props.source) == (4, 4, "slots")
    placed = await both_speaking(host, log)
    short = asyncio.create_task(host.drain(POOL, "b", deadline_ms=300))
    receipt = await short
    assert (receipt.replicas, receipt.finished, receipt.aborted) == (("b",), 0, 1)
    *_, terminal = [event async for event in placed["b"]]
    assert (terminal.kind, terminal.finish_reason) == ("end", "cancelled")
    # The other one has gone on, and takes what comes.
    assert (await anext(placed["a"])).kind == "token"
    stream = await speaking(await host.submit(POOL, task(**LONG)))
    assert where(log, stream) == "a"
    # Its engine is idle again, so another adapter takes its place; the streams on `a` stay.
    host.rebind(replica(mortal, "b"))
    await host.probe()
    after = await speaking(await host.submit(POOL, task(**LONG)))
    assert where(log, after) == "b"
    # A rebind lets what runs finish where it is.
    host.rebind(replica(mortal, "b"))
    assert (await anext(after)).kind == "token"
    for each in (placed["a"], stream, after):
        assert (await host.cancel(POOL, each.task_id, confirm_within_ms=5000)).sent
        await each.aclose()

    async def closed() -> bool:
        return [event.action for event in log.events].count("closed") == 2

    await eventually(closed, "both old adapters are closed")
    health = await host.health(POOL)
    assert (health.ready, health.in_flight) == (True, 0)


async def test_a_replica_that_is_killed_costs_its_own_streams_alone(
    host: AdapterHost, log: Log, mortal: LlamaCppServer
) -> None:
    host.bind(replica(mortal, "b"))
    await host.probe()
    placed = await both_speaking(host, log)
    mortal.kill()
    events = [event async for event in placed["b"]]
    error = events[-1].error
    assert isinstance(error, WorkerReset)
    assert (error.code, error.retriable) == ("WORKER_RESET", True)
    assert error.tokens_emitted > 0
    # Everything from now on goes to the other one, though no probe may have noticed yet.
    for _ in range(8):
        collected = await (await host.submit(POOL, task(max_tokens=4))).collect()
        assert collected.tokens_out == 4
    assert (await anext(placed["a"])).kind == "token"
    await placed["a"].aclose()

    async def noticed() -> bool:
        health = await host.health(POOL)
        return [one.live for one in health.replicas] == [True, False]

    await eventually(noticed, "a probe finds it gone")
    assert (await host.health(POOL)).ready
    retried = [event for event in log.events if event.action == "retry"]
    for event in retried:
        assert isinstance(event.error, PoolUnavailable)
        assert event.error.processed == "no"
    host.unbind(POOL, "b")
    told = await host.capabilities()
    assert [(one.replica_id, one.slots_total) for one in told.adapters] == [("a", 2)]


async def test_a_host_that_is_left_frees_every_slot(slow_server: LlamaCppServer, log: Log) -> None:
    async with AdapterHost(observers=[log]) as host:
        host.bind(replica(slow_server, "a"))
        stream = await speaking(await host.submit(POOL, task(**LONG)))
        waiting = asyncio.create_task(stream.collect())
        await asyncio.sleep(0)
    collected = await waiting
    assert collected.finish_reason == "cancelled"
    with pytest.raises(WorkerError):
        await host.submit(POOL, task())
    async with replica(slow_server, "a") as adapter:

        async def idle() -> bool:
            return (await adapter.props()).slots_free == 2

        await eventually(idle, "both slots are free")
