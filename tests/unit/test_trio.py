"""Adapters and streams in tasks of trio."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.transports import both_transports
from tests.unit.tasks import adapter, task
from tests.unit.test_stream import shape
from tests.unit.wire import WITHIN
from worker_adapters import PoolUnavailable, TokenStream
from worker_adapters.testing.engines import scripted_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from worker_adapters.testing.engines import ScriptedEngine

pytestmark = both_transports


@pytest.fixture
def engine() -> Iterator[ScriptedEngine]:
    with scripted_engine("llamacpp", tokens=8) as running:
        yield running


async def eventually(condition: Callable[[], bool]) -> None:
    with trio.fail_after(WITHIN):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another thread
            await trio.sleep(0.005)


def test_every_call(engine: ScriptedEngine) -> None:
    async def main() -> None:
        async with adapter(engine.url) as made:
            assert (await made.health()).ready
            assert (await made.props()).slots_total == 4
            assert await made.engine_version() == (await made.identity()).engine_version
            assert (await made.capabilities()).engine == "llamacpp"
            inputs = task(workload="embedding", prompt=..., max_tokens=0, inputs=["one", "two"])
            assert [len(vector) for vector in await made.embed(inputs)] == [4, 4]
            assert not (await made.cancel(inputs.task_id)).sent
        await made.aclose()

    trio.run(main)


def test_a_stream_in_every_way(engine: ScriptedEngine) -> None:
    async def main() -> None:
        async with adapter(engine.url) as made:
            whole = await (await made.submit(task())).collect()
            stream = await made.submit(task())
            assert isinstance(stream, TokenStream)
            async with stream:
                events = [event async for event in stream]
                assert [event async for event in stream] == []
            assert "".join(event.t or "" for event in events) == whole.text
            assert (stream.cancelled, stream.is_terminal, stream.tokens_emitted) == (False, True, 8)
            batches = [each async for each in (await made.submit(task())).batches(2, 0.5)]
            assert [len(batch) for batch in batches] == [2] * 5
            pieces = [piece async for piece in (await made.submit(task())).sse(max_wait=0.1)]
            assert b"".join(pieces).count(b"event: ") == 10
            assert str(stream.task_id) in repr(stream)

    trio.run(main)


def test_errors_are_the_same() -> None:
    async def main() -> None:
        async with adapter("http://127.0.0.1:1") as made:
            with pytest.raises(PoolUnavailable):
                await made.submit(task())

    trio.run(main)


@pytest.mark.parametrize("waits_for", ["head", "stream"])
def test_a_cancelled_scope(engine: ScriptedEngine, waits_for: Any) -> None:
    async def main() -> None:
        engine.behave(hang=waits_for)
        made = adapter(engine.url)
        kept: list[TokenStream] = []

        async def read() -> None:
            kept.append(await made.submit(task()))
            assert not [event async for event in kept[0]]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await eventually(lambda: bool(engine.generations))
            if waits_for == "stream":
                await eventually(lambda: bool(kept) and kept[0].tokens_emitted == 3)
            nursery.cancel_scope.cancel()
        assert nursery.cancel_scope.cancelled_caught
        for stream in kept:
            assert stream.cancelled
            assert shape([event async for event in stream]) == ["end:cancelled"]
        [generation] = engine.generations
        await eventually(lambda: generation.outcome == "left")
        await made.aclose()

    trio.run(main)


def test_a_read_in_a_scope_that_was_cancelled_before(engine: ScriptedEngine) -> None:
    async def main() -> None:
        engine.behave(hang="stream", after=0)
        async with adapter(engine.url) as made:
            stream = await made.submit(task())
            with trio.CancelScope() as scope:
                scope.cancel()
                async for _ in stream:
                    pass
            assert scope.cancelled_caught
            assert stream.cancelled

    trio.run(main)


def test_leaving_in_a_scope_that_is_cancelled(engine: ScriptedEngine) -> None:
    async def main() -> None:
        engine.behave(hang="stream")
        with trio.CancelScope() as scope:
            async with adapter(engine.url) as made, await made.submit(task()) as stream:
                await anext(stream)
                scope.cancel()
        assert stream.cancelled
        [generation] = engine.generations
        await eventually(lambda: generation.outcome == "left")

    trio.run(main)


def test_a_dropped_stream_closes(engine: ScriptedEngine) -> None:
    async def main() -> None:
        engine.behave(hang="stream")
        async with adapter(engine.url) as made:
            stream = await made.submit(task())
            await anext(stream)
            del stream
            gc.collect()
            [generation] = engine.generations
            await eventually(lambda: generation.outcome == "left")

    trio.run(main)


def test_cancel_from_another_task(engine: ScriptedEngine) -> None:
    async def main() -> None:
        engine.behave(hang="stream")
        seen: list[Any] = []
        async with adapter(engine.url) as made, trio.open_nursery() as nursery:
            stream = await made.submit(task())

            async def read() -> None:
                seen.extend([event async for event in stream])

            nursery.start_soon(read)
            await eventually(lambda: stream.tokens_emitted == 3)
            assert (await stream.cancel()).sent
        assert shape(seen)[-1] == "end:cancelled"

    trio.run(main)


def test_the_same_adapter_serves_both(engine: ScriptedEngine) -> None:
    made = adapter(engine.url)

    async def tokens() -> int:
        return (await (await made.submit(task())).collect()).tokens_out

    assert trio.run(tokens) == 8
    assert asyncio.run(tokens()) == 8
    assert trio.run(tokens) == 8
    trio.run(made.aclose)
