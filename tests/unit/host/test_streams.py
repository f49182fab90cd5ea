"""Streams of a host: of either transport and other workloads, ended and dropped elsewhere."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import TYPE_CHECKING

import pytest

from tests.transports import both_transports
from tests.unit.host.scripted import Scripted, host_of, settled, task
from tests.unit.tasks import adapter
from tests.unit.virtual_time import run
from tests.unit.wire import LAST_CHUNK, STREAM_HEAD, engine, eventually, final, frame, playing
from worker_adapters import StreamDecoder, TaskRequest, TokenStream
from worker_adapters.host import AdapterHost
from worker_adapters.transport._pulled import PulledStream

if TYPE_CHECKING:
    from tests.unit.wire import Connection, Received


@both_transports
@pytest.mark.parametrize("way", ["events", "batches", "sse", "collect", "cancel", "aclose", "drop"])
async def test_an_old_adapter_is_closed_however_its_last_stream_is_left(way: str) -> None:
    closed = asyncio.Event()
    go_on = asyncio.Event()

    @engine
    async def script(connection: Connection, request: Received) -> None:
        if request.path != "/completion":
            await connection.until_closed()
            return
        await connection.send(STREAM_HEAD, frame("one", 1))
        await go_on.wait()
        await connection.send(frame("two", 2) + final(2) + LAST_CHUNK)

    def note(event: object) -> None:
        if getattr(event, "action", "") == "closed":
            closed.set()

    async with playing(script) as server, AdapterHost(observers=[note]) as host:
        host.bind(adapter(server.url))
        stream: TokenStream | None = await host.submit("default", task())
        assert stream is not None
        host.rebind(adapter(server.url))
        await asyncio.sleep(0)
        assert not closed.is_set()
        go_on.set()
        match way:
            case "events":
                kinds = [event.kind async for event in stream]
                assert kinds == ["started", "token", "token", "end"]
            case "batches":
                texts = [event.t async for batch in stream.batches() for event in batch]
                assert texts == [None, "one", "two", None]
            case "sse":
                assert b"".join([piece async for piece in stream.sse()]).count(b"event: ") == 4
            case "collect":
                assert (await stream.collect()).text == "onetwo"
            case "cancel":
                await stream.cancel()
                assert [event.kind async for event in stream] == ["end"]
            case "aclose":
                await stream.aclose()
            case "drop":
                stream = None
                gc.collect()
        await eventually(closed.is_set, "the old adapter is closed")
        pool = host.registry.pool("default")
        assert pool is not None
        assert not pool.admission.leases


async def test_a_stream_that_is_dropped_in_another_thread_frees_its_place() -> None:
    one = Scripted("a", play=lambda _: None)
    async with host_of(one) as host:
        given = task()
        held = [await host.submit("pool", given)]
        one.drop(given.task_id)
        dropping = threading.Thread(target=held.clear)
        dropping.start()
        await asyncio.to_thread(dropping.join)
        gc.collect()
        await settled()
        assert (await host.health("pool")).in_flight == 0
        assert host._dispatcher.tickets == {}


def test_an_answer_that_is_no_stream_has_ended_when_it_comes() -> None:
    class Embedding(Scripted):
        def _answered(self, task: TaskRequest, is_cancelled: bool) -> TokenStream:
            assert not is_cancelled
            decoder = StreamDecoder("llamacpp")
            decoder.dispatched(0.0)
            events = decoder.complete(0.0, tokens_in=3, embeddings=[[1.0, 2.0]])
            return PulledStream(task.task_id, decoder, None, events=events)

    async def main() -> None:
        one = Embedding("a")
        async with host_of(one) as host:
            given = task(workload="embedding", inputs=("x",), prompt=None)
            stream = await host.submit("pool", given)
            assert (await host.health("pool")).in_flight == 0
            host.rebind(Scripted("a"))
            await settled()
            assert not one.is_closed
            collected = await stream.collect()
            assert collected.embeddings == [[1.0, 2.0]]
            await settled()
            assert one.is_closed is True

    run(main())


def test_an_id_may_be_used_again_once_its_task_is_over() -> None:
    async def main() -> None:
        one = Scripted("a")
        async with host_of(one) as host:
            given = task()
            first = await host.submit("pool", given)
            assert [event.kind async for event in first][-1] == "end"
            one.play = lambda _: None
            second = await host.submit("pool", given)
            await first.aclose()
            del first
            gc.collect()
            await settled()
            assert (await host.cancel("pool", given.task_id)).sent
            assert second.is_terminal

    run(main())
