"""Streams where loops end, threads and processes come and go, and interpreters stop."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.transports import both_transports, on_native
from tests.unit.tasks import adapter, task
from tests.unit.wire import WITHIN, eventually
from worker_adapters._core import NativeTarget, Reactor, StreamDecoder
from worker_adapters.testing.engines import scripted_engine
from worker_adapters.transport import _native
from worker_adapters.transport._tls import TlsSetup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from worker_adapters import TokenStream
    from worker_adapters.engines.llamacpp import LlamaCppAdapter
    from worker_adapters.testing.engines import ScriptedEngine

pytestmark = both_transports


@pytest.fixture
def engine() -> Iterator[ScriptedEngine]:
    """An engine that goes on until it is left, in a thread of its own."""
    with scripted_engine("llamacpp", delay_ms=1) as running:
        yield running


def settled(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + WITHIN
    while not condition():
        assert time.monotonic() < until
        threading.Event().wait(0.002)


async def begun(made: LlamaCppAdapter) -> TokenStream:
    """Return a stream without an end of its own that has begun to come."""
    stream = await made.submit(task(ctx=0, max_tokens=1_000_000))
    for kind in ("started", "token"):
        assert (await anext(stream)).kind == kind
    return stream


async def text_of(made: LlamaCppAdapter) -> str:
    return (await (await made.submit(task(max_tokens=4))).collect()).text


# Loops.


async def test_an_adapter_dropped_in_another_thread(engine: ScriptedEngine) -> None:
    made = adapter(engine.url)
    kept: list[object] = [made, await begun(made)]
    del made
    await asyncio.to_thread(kept.clear)
    gc.collect()
    await eventually(lambda: engine.busy == 0, "the engine is left")


@on_native
@pytest.mark.timeout(20)
async def test_a_reactor_can_be_used_by_whom_it_tells(engine: ScriptedEngine) -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    reactor = Reactor(lambda _: None, threaded=True)

    def unattended() -> None:
        assert reactor.fileno() >= 0
        told.set()

    loop.add_reader(reactor.fileno(), reactor.turn)
    native = NativeTarget(reactor, engine.url).submit(
        "POST",
        "/completion",
        [(b"Content-Type", b"application/json")],
        b'{"prompt":"x","stream":true,"n_predict":4}',
        StreamDecoder("llamacpp"),
        unattended,
    )
    head = loop.create_future()
    if not native.head(head):
        await head
    await told.wait()
    loop.remove_reader(reactor.fileno())
    native.close()
    reactor.close()


# Gathering, and bounds.


@pytest.mark.parametrize("window", [0.001, 0.1])
@on_native
async def test_a_gather_window_loses_nothing(engine: ScriptedEngine, window: float) -> None:
    async with adapter(engine.url, gather_window=window) as made:
        texts = await asyncio.gather(*(text_of(made) for _ in range(20)))
        assert len(set(texts)) == 1
        # Idle in between, then woken again.
        assert await text_of(made) == texts[0]


@on_native
async def test_a_gather_window_wakes_less_often(engine: ScriptedEngine) -> None:
    async def sizes(window: float) -> list[int]:
        async with adapter(engine.url, gather_window=window) as made:
            stream = await made.submit(task(max_tokens=200))
            return [len(batch) async for batch in stream.batches()]

    at_once, gathered = await sizes(0.0), await sizes(0.05)
    assert sum(at_once) == sum(gathered) == 202
    assert len(gathered) < len(at_once) / 2


@on_native
async def test_a_thread_that_reads_loses_nothing(engine: ScriptedEngine) -> None:
    async with adapter(engine.url) as made:
        made._data_plane = _native.NativeTransport(
            engine.url, tls=partial(TlsSetup.of, None), threaded=True
        )
        texts = await asyncio.gather(*(text_of(made) for _ in range(20)))
        assert len(set(texts)) == 1
        # Idle in between, then woken again; and let go of when it is left.
        assert await text_of(made) == texts[0]
        async with await begun(made):
            pass
        await eventually(lambda: engine.busy == 0, "the engine is left")


@pytest.mark.parametrize("window", [-0.001, 0.1001, float("nan"), float("inf")])
@on_native
def test_a_gather_window_has_bounds(window: float) -> None:
    with pytest.raises(ValueError, match=r"gather_window must be from 0 to 0\.1 seconds"):
        adapter("http://127.0.0.1:1", gather_window=window)


@on_native
async def test_as_many_streams_as_allowed(engine: ScriptedEngine) -> None:
    with pytest.raises(ValueError, match="max_streams must be 1 or more, not 0"):
        adapter(engine.url, max_streams=0)
    async with adapter(engine.url, max_streams=2) as made:
        first, second = [await begun(made) for _ in range(2)]
        third = asyncio.create_task(text_of(made))
        for _ in range(5):
            await anext(second)
        assert not third.done()
        assert len(engine.generations) == 2
        await first.aclose()
        assert await third
        await second.aclose()
