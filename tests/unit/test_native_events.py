"""What iterates over a native stream, and what tasks and loops do to it."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from tests.transports import on_native
from tests.unit.tasks import adapter, task
from tests.unit.wire import WITHIN
from worker_adapters.testing.engines import scripted_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from worker_adapters import TokenStream
    from worker_adapters.engines.llamacpp import LlamaCppAdapter
    from worker_adapters.testing.engines import ScriptedEngine

pytestmark = [pytest.mark.timeout(60), on_native]

LOOPS = (asyncio.new_event_loop, uvloop.new_event_loop)


@pytest.fixture
def engine(transport: str) -> Iterator[ScriptedEngine]:
    """An engine that goes on until it is left, in a thread of its own."""
    assert transport == "native"
    with scripted_engine("llamacpp", delay_ms=2) as running:
        yield running


async def begun(made: LlamaCppAdapter) -> TokenStream:
    """Return a stream without an end of its own that has begun to come."""
    stream = await made.submit(task(ctx=0, max_tokens=1_000_000))
    for kind in ("started", "token"):
        assert (await anext(stream)).kind == kind
    return stream


def dry(stream: TokenStream) -> TokenStream:
    """Take what has come, so that the next to read waits."""
    stream._take()
    return stream


async def next_of(events: AsyncIterator[Any]) -> Any:
    return await anext(events)


@pytest.mark.parametrize("form", ["events", "batches", "sse"])
async def test_a_step_is_no_future_of_its_own(engine: ScriptedEngine, form: str) -> None:
    made = adapter(engine.url)

    def iterated(stream: TokenStream) -> AsyncIterator[Any]:
        return aiter(stream) if form == "events" else getattr(stream, form)()

    one, other = [iterated(dry(await begun(made))) for _ in range(2)]
    assert await asyncio.wait_for(anext(one), WITHIN)
    assert all(await asyncio.gather(anext(one), anext(other)))
    done, _ = await asyncio.wait([asyncio.ensure_future(anext(one))], timeout=WITHIN)
    assert [step.result() for step in done]
    await made.aclose()


@pytest.mark.parametrize("bounds", [{"max_wait": 0.1}, {"max_events": 3}])
async def test_two_readers_of_two_kinds(engine: ScriptedEngine, bounds: dict[str, Any]) -> None:
    made = adapter(engine.url)
    stream = dry(await begun(made))
    first = asyncio.create_task(next_of(stream.batches(**bounds)))
    await asyncio.sleep(0)
    for second in (aiter(stream), stream.batches(), stream.sse(), stream):
        with pytest.raises(RuntimeError, match="one reader"):
            await next_of(second)
    assert await asyncio.wait_for(first, WITHIN)
    assert (await anext(stream)).kind == "token"
    await made.aclose()


@pytest.mark.parametrize("shared", [True, False])
async def test_two_steps_begun_before_either_waits(engine: ScriptedEngine, shared: bool) -> None:
    made = adapter(engine.url)
    stream = dry(await begun(made))
    one = aiter(stream)
    other = one if shared else aiter(stream)
    steps = [asyncio.ensure_future(step) for step in (anext(one), anext(other))]
    first, second = await asyncio.wait_for(asyncio.gather(*steps, return_exceptions=True), WITHIN)
    assert not isinstance(first, BaseException)
    assert isinstance(second, RuntimeError)
    assert not stream.cancelled
    await made.aclose()


async def test_a_task_cancelled_before_it_waits_ends_nothing(engine: ScriptedEngine) -> None:
    made = adapter(engine.url)
    stream = dry(await begun(made))
    reading = asyncio.ensure_future(anext(aiter(stream)))
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not stream.cancelled
    assert (await anext(stream)).kind == "token"
    await made.aclose()


async def test_a_reader_in_another_loop_ends_nothing(engine: ScriptedEngine) -> None:
    made = adapter(engine.url)
    stream = await begun(made)
    seen: list[BaseException] = []

    async def read() -> None:
        try:
            async for _ in stream:
                dry(stream)
        except RuntimeError as error:
            seen.append(error)

    await asyncio.to_thread(asyncio.run, read())
    assert "different loop" in str(seen[0])
    assert not stream.cancelled
    assert (await anext(stream)).kind == "token"
    await made.aclose()


async def test_cancelled_twice_while_waiting(engine: ScriptedEngine) -> None:
    made = adapter(engine.url)
    stream = dry(await begun(made))
    rest: list[str] = []

    async def read() -> None:
        try:
            async for _ in stream:
                pass
        except asyncio.CancelledError:
            rest.extend([event.kind async for event in stream])
            raise

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    reading.cancel("enough")
    reading.cancel("enough")
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert rest == ["end"]
    await made.aclose()


@pytest.mark.parametrize("window", [0, 0.001])
@pytest.mark.parametrize("new_loop", LOOPS)
def test_tasks_that_meddle_with_each_other(
    engine: ScriptedEngine, new_loop: Callable[[], asyncio.AbstractEventLoop], window: float
) -> None:
    marked: contextvars.ContextVar[int] = contextvars.ContextVar("marked")

    async def main() -> None:
        made = adapter(engine.url, gather_window=window)
        streams = {number: await begun(made) for number in range(20)}

        async def read(number: int) -> int:
            marked.set(number)
            itself, count = asyncio.current_task(), 0
            async for event in streams[number]:
                assert marked.get() == number
                assert asyncio.current_task() is itself
                count += event.kind == "token"
                if number % 5 == 0 and count == 10:
                    await streams[number + 1].cancel()
                    await streams[number + 2].aclose()
                    tasks[number + 3].cancel()
                    async with await begun(made):
                        pass
                if count == 100:
                    if number == 19:
                        # In a turn of the reactor that this closes.
                        await made.aclose()
                    else:
                        break
            return count

        tasks = [asyncio.create_task(read(number)) for number in streams]
        async with asyncio.timeout(WITHIN):
            counts = await asyncio.gather(*tasks, return_exceptions=True)
        for number, count in enumerate(counts):
            if number % 5 == 3:
                assert isinstance(count, asyncio.CancelledError)
            else:
                assert isinstance(count, int), count
                assert (number % 5 not in (1, 2)) <= (count >= 10)

    with asyncio.Runner(loop_factory=new_loop, debug=True) as runner:
        runner.run(main())


@pytest.mark.parametrize("window", [0, 0.001])
@pytest.mark.parametrize("new_loop", LOOPS)
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_a_task_that_breaks_the_loop_off(
    engine: ScriptedEngine,
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    window: float,
    kind: type[BaseException],
) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        loop = runner.get_loop()
        made = adapter(engine.url, gather_window=window)

        async def read(stop_at: int | None) -> int:
            count = 0
            async with await begun(made) as stream:
                async for _ in stream:
                    count += 1
                    if count == stop_at:
                        raise kind
                    if count == 50:
                        break
            return count

        tasks = [loop.create_task(read(stop_at)) for stop_at in (None, 20, None)]
        with pytest.raises(kind):
            loop.run_until_complete(asyncio.wait(tasks))
        assert isinstance(tasks[1].exception(), kind)
        # Whoever else reads goes on, in the same loop.
        others = asyncio.gather(tasks[0], tasks[2])
        assert set(loop.run_until_complete(asyncio.wait_for(others, WITHIN))) == {50}
        runner.run(made.aclose())


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("new_loop", LOOPS)
def test_a_loop_closed_on_waiting_tasks_keeps_no_descriptor(
    engine: ScriptedEngine, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def main() -> list[asyncio.Task[Any]]:
        made = adapter(engine.url)
        streams = [await begun(made) for _ in range(5)]
        tasks = [asyncio.create_task(next_of(aiter(dry(stream)))) for stream in streams]
        await asyncio.sleep(0)
        return tasks

    def leave() -> None:
        loop = new_loop()
        loop.set_exception_handler(lambda *_: None)  # tasks are destroyed that are pending
        loop.run_until_complete(main())
        loop.close()

    def descriptors() -> int:
        gc.collect()
        return sum(map(is_of_events, Path("/proc/self/fd").iterdir()))

    def is_of_events(descriptor: Path) -> bool:
        try:
            return "event" in str(descriptor.readlink())
        except OSError:
            return False

    before = descriptors()
    for _ in range(5):
        leave()
    pause = threading.Event()
    for _ in range(200):
        if descriptors() <= before:
            break
        pause.wait(0.01)
    assert descriptors() <= before


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_a_task_that_nobody_holds_goes_on(engine: ScriptedEngine, loop_factory: Any) -> None:
    async def main() -> None:
        made = adapter(engine.url)
        came: list[int] = []
        enough = asyncio.Event()

        async def consume() -> None:
            async with await begun(made) as stream:
                async for event in stream:
                    came.append(event.i or 0)
                    if len(came) == 20:
                        break
            enough.set()

        asyncio.get_running_loop().call_soon(lambda: asyncio.create_task(consume()))
        async with asyncio.timeout(WITHIN):
            while not enough.is_set():
                gc.collect()
                await asyncio.sleep(0)
        await made.aclose()

    with asyncio.Runner(loop_factory=loop_factory, debug=True) as runner:
        runner.run(main())
