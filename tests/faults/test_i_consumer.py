"""I: whoever reads is slow, stops, cancels, leaves, or has its loop end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
import trio

from tests.faults.outcomes import ANSWER, adapter, sockets_to
from tests.faults.playing import (
    HELLO,
    adapter_of,
    completions,
    followed,
    saying,
    task_of,
)
from tests.faults.test_e_stream import held
from tests.faults.test_h_deadline import deaf
from tests.transports import both_transports, on_native
from tests.unit.tasks import adapter as plain_adapter
from tests.unit.test_lifecycle import begun, settled, text_of
from tests.unit.test_trio import eventually as trio_eventually
from tests.unit.virtual_time import run as run_virtually
from tests.unit.wire import (
    LAST_CHUNK,
    STREAM_HEAD,
    WITHIN,
    Connection,
    Received,
    engine,
    eventually,
    final,
    frame,
    playing,
)
from worker_adapters import Timeouts
from worker_adapters.testing.engines import scripted_engine
from worker_adapters.transport import _httpx, _native

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.transports import Transport
    from tests.unit.wire import Server
    from worker_adapters import LlamaCppAdapter, TokenEvent, TokenStream
    from worker_adapters.testing.engines import ScriptedEngine

pytestmark = both_transports

SOON = WITHIN
"""In how many seconds the engine must know: far more than the 0.1 that are aimed at."""

PAD = "x" * 1000


def is_prefix(events: list[TokenEvent], count: int | None = None) -> None:
    """Assert that the tokens are the first so many that were sent."""
    told = [event.t for event in events if event.kind == "token"]
    assert told == [f"{number} {PAD}" for number in range(1, len(told) + 1)]
    assert count is None or len(told) == count


def padded(number: int, **more: Any) -> bytes:
    return frame(f"{number} {PAD}", number, **more)


# I1, I2: slow, and stopped.


def test_i1_a_reader_of_one_token_a_second() -> None:
    count, sent = 20_000, 0

    async def torrent(connection: Connection, _: Received) -> None:
        nonlocal sent
        await connection.send(STREAM_HEAD)
        for number in range(1, count + 1):
            timings = {"predicted_n": number, "predicted_ms": number * 1.5}
            await connection.send(padded(number, timings=timings))
            sent += 1
        await connection.send(final(count), LAST_CHUNK)

    async def main() -> None:
        clock = asyncio.get_running_loop().time
        patient = Timeouts(token_gap=3.0)
        options: dict[str, Any] = {"stream_metrics": True, "timeouts": patient, "clock": clock}
        async with (
            playing(engine(torrent)) as server,
            adapter_of("llamacpp", server.url, **options) as made,
        ):
            asked = task_of("llamacpp", deadline_ms=600_000)
            stream = await made.submit(asked)
            events: list[TokenEvent] = []
            while len(events) < 40:
                events.append(await anext(stream))
                await asyncio.sleep(1.0)
            # The engine waits: what it may still say does not fit into the window.
            assert sent < count
            events += [event async for event in stream]
            assert events[-1].kind == "end"
            is_prefix(events, count)
            reports = sum(event.kind == "metrics" for event in events)
            assert reports + stream.metrics_dropped == count
            assert stream.metrics_dropped > 0

    run_virtually(main())


def test_i2_a_reader_that_has_stopped() -> None:
    async def torrent(connection: Connection, _: Received) -> None:
        await connection.send(STREAM_HEAD)
        for number in range(1, 100_000):
            await connection.send(padded(number))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        patient = Timeouts(token_gap=3.0, idle=3.0)
        async with (
            playing(engine(torrent)) as server,
            adapter_of("llamacpp", server.url, timeouts=patient, clock=loop.time) as made,
        ):
            began = loop.time()
            stream = await made.submit(task_of("llamacpp", deadline_ms=100_000))
            events = [await anext(stream), await anext(stream)]
            [connection] = completions(server)
            # Neither clock of the engine's runs while it is we who are slow; the task's does.
            await connection.over(within=1000.0)
            assert loop.time() - began == pytest.approx(100.0, abs=0.5)
            outcome = await asyncio.wait_for(rest_of(stream), 10)
            events += outcome
            is_prefix(events)
            error = events[-1].error
            assert error is not None
            assert (events[-1].kind, getattr(error, "detail", "")) == ("error", "deadline")

    run_virtually(main())


async def rest_of(stream: TokenStream) -> list[TokenEvent]:
    return [event async for event in stream]


# I3: cancelled, at every moment.


async def only_the_end(stream: TokenStream, server: Any = None, began: float = 0.0) -> None:
    """Assert that after a cancel has returned nothing comes but one end, and the engine knows."""
    events = await rest_of(stream)
    assert [(event.kind, event.finish_reason) for event in events] == [("end", "cancelled")]
    assert stream.cancelled or not stream.tokens_emitted
    if server is not None:
        for connection in completions(server):
            await connection.over()
        assert time.monotonic() - began < SOON


def silent_engine(*pieces: bytes) -> Server:
    return saying(*pieces)


async def test_i3_before_submit_returns() -> None:
    async with silent_engine() as server, adapter(server.url) as made:
        asked = task_of("llamacpp")
        submitting = asyncio.create_task(made.submit(asked))
        await server.asked("/completion")
        began = time.monotonic()
        receipt = await made.cancel(asked.task_id)
        assert receipt.sent
        await only_the_end(await submitting, server, began)


async def test_i3_at_the_same_moment_as_submit() -> None:
    async with silent_engine() as server, adapter(server.url) as made:
        asked = task_of("llamacpp")
        submitting = asyncio.create_task(made.submit(asked))
        await asyncio.sleep(0)
        await made.cancel(asked.task_id)
        await only_the_end(await submitting)


async def test_i3_while_it_waits_for_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_httpx, "MAX_REQUESTS", 1)
    async with (
        silent_engine(STREAM_HEAD, *HELLO) as server,
        adapter(server.url, max_streams=1) as made,
    ):
        first = await made.submit(task_of("llamacpp"))
        asked = task_of("llamacpp")
        waiting = asyncio.create_task(made.submit(asked))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not waiting.done()
        assert (await made.cancel(asked.task_id)).sent
        await only_the_end(await waiting)
        assert len(completions(server)) == 1
        # Its place is nobody's: the next one gets in as soon as the first is over.
        await first.aclose()
        second = await made.submit(task_of("llamacpp"))
        assert (await anext(second)).kind == "started"
        await second.aclose()


async def test_i3_while_connecting() -> None:
    with deaf() as url:
        port = int(url.rpartition(":")[2])
        before = len(held("127.0.0.1", port))
        async with adapter(url) as made:
            asked = task_of("llamacpp")
            submitting = asyncio.create_task(made.submit(asked))
            await eventually(lambda: len(held("127.0.0.1", port)) > before, "it connects")
            assert (await made.cancel(asked.task_id)).sent
            await only_the_end(await submitting)
            await eventually(lambda: len(held("127.0.0.1", port)) == before, "it is closed")


async def test_i3_before_started() -> None:
    async with silent_engine(STREAM_HEAD) as server, adapter(server.url) as made:
        stream = await made.submit(task_of("llamacpp"))
        began = time.monotonic()
        assert (await made.cancel(stream.task_id)).sent
        await only_the_end(stream, server, began)


@pytest.mark.parametrize("how", ["adapter", "stream", "twice", "thread"])
async def test_i3_between_tokens(how: str) -> None:
    async with silent_engine(STREAM_HEAD, *HELLO) as server, adapter(server.url) as made:
        stream = await made.submit(task_of("llamacpp"))
        for kind in ("started", "token"):
            assert (await anext(stream)).kind == kind
        began = time.monotonic()
        match how:
            case "adapter":
                assert (await made.cancel(stream.task_id)).sent
            case "stream":
                assert (await stream.cancel()).sent
            case "twice":
                receipts = await asyncio.gather(*(made.cancel(stream.task_id) for _ in range(5)))
                assert sorted(receipt.sent for receipt in receipts) == [False] * 4 + [True]
            case _:
                receipt = await asyncio.to_thread(asyncio.run, made.cancel(stream.task_id))
                assert receipt.sent
        await only_the_end(stream, server, began)


async def test_i3_with_a_full_queue() -> None:
    sent = 0

    async def torrent(connection: Connection, _: Received) -> None:
        nonlocal sent
        await connection.send(STREAM_HEAD)
        for number in range(1, 100_000):
            await connection.send(padded(number))
            sent += 1

    async with playing(engine(torrent)) as server, adapter(server.url) as made:
        stream = await made.submit(task_of("llamacpp"))
        assert (await anext(stream)).kind == "started"
        before = -1
        while before != sent:  # until the kernel's buffers are full
            before = sent
            await asyncio.sleep(0.1)
        began = time.monotonic()
        assert (await stream.cancel()).sent
        await only_the_end(stream, server, began)


async def test_i3_after_the_end() -> None:
    async with silent_engine(ANSWER) as server, adapter(server.url) as made:
        stream = await made.submit(task_of("llamacpp"))
        outcome = await followed(stream)
        assert outcome.kinds[-1] == "end"
        for receipt in (await stream.cancel(), await made.cancel(stream.task_id)):
            assert (receipt.method, receipt.sent) == ("none", False)
        assert not stream.cancelled


async def test_i3_at_the_same_moment_as_the_end(transport: Transport) -> None:
    ends: list[asyncio.Event] = []

    async def script(connection: Connection, _: Received) -> None:
        go = asyncio.Event()
        ends.append(go)
        await connection.send(STREAM_HEAD, *HELLO)
        await go.wait()
        await connection.send(final(2) + LAST_CHUNK)

    reasons = set()
    async with playing(engine(script)) as server, adapter(server.url) as made:
        for turns in range(60):
            stream = await made.submit(task_of("llamacpp"))
            for kind in ("started", "token", "token"):
                assert (await anext(stream)).kind == kind
            ends[-1].set()
            for _ in range(turns % 12):
                await asyncio.sleep(0)
            if turns % 12 == 11 and transport == "native":
                await eventually(lambda: stream.is_terminal, "the end is here")  # noqa: B023
            receipt = await stream.cancel()
            [end] = await rest_of(stream)
            assert end.kind == "end"
            assert receipt.sent is (end.finish_reason == "cancelled")
            reasons.add(end.finish_reason)
    # Over httpx nothing is read before it is asked for: the end is never there first.
    assert reasons == ({"cancelled", "length"} if transport == "native" else {"cancelled"})


CANCELS = int(os.environ.get("WORKER_ADAPTERS_CANCELS", "150"))
"""How many tasks are cancelled at any time, over each transport and by each of four ways."""


@pytest.mark.timeout(max(60, CANCELS))
@pytest.mark.parametrize("by", ["task", "timer", "thread", "reader"])
async def test_i3_at_any_time(by: str) -> None:
    rng = random.Random(by)
    threads = ThreadPoolExecutor(4)
    loop = asyncio.get_running_loop()

    async def chatter(connection: Connection, _: Received) -> None:
        await connection.send(STREAM_HEAD)
        for number in range(1, 1000):
            await connection.send(frame("x", number))
            await asyncio.sleep(0)

    async def one(made: LlamaCppAdapter) -> None:
        asked = task_of("llamacpp", max_tokens=1000)
        returned = False
        late = 0
        terminals = 0

        async def read() -> None:
            nonlocal late, terminals
            stream = await made.submit(asked)
            async for event in stream:
                late += returned and event.kind == "token"
                terminals += event.is_terminal

        async def cancel() -> None:
            nonlocal returned
            await made.cancel(asked.task_id)
            returned = True

        reader = asyncio.create_task(read())
        for _ in range(1 + rng.randrange(40)):
            await asyncio.sleep(0)
        match by:
            case "task":
                await cancel()
            case "timer":
                await asyncio.sleep(rng.random() * 0.003)
                await cancel()
            case "thread":
                cancelling = loop.run_in_executor(threads, asyncio.run, made.cancel(asked.task_id))
                await cancelling
                returned = True
            case _:
                reader.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await reader
                return
        await asyncio.wait_for(reader, WITHIN)
        assert (late, terminals) == (0, 1)

    async with playing(engine(chatter)) as server, adapter(server.url) as made:
        numbers = iter(range(CANCELS))

        async def work() -> None:
            for _ in numbers:
                await one(made)

        await asyncio.gather(*(work() for _ in range(16)))
        assert not made._submits
        await eventually(lambda: sockets_to(server.url) == 0, "every connection is closed")
    threads.shutdown()


# I4: the reading task is cancelled, the stream is left or dropped.


@pytest.fixture
def endless() -> Iterator[ScriptedEngine]:
    """An engine that goes on until it is left, in a thread of its own."""
    with scripted_engine("llamacpp", delay_ms=1) as running:
        yield running


@pytest.fixture
def without_a_word(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is said by asyncio's debug mode, and nothing by what is collected afterwards."""
    yield
    gc.collect()
    records = [*caplog.get_records("call"), *caplog.records]
    said = [record.getMessage() for record in records if record.name == "asyncio"]
    # How long a step took is the machine's affair.
    assert [message for message in said if not message.startswith("Executing ")] == []


quietly = pytest.mark.usefixtures("without_a_word")


async def by_break(stream: TokenStream) -> None:
    async with stream:
        async for _ in stream:
            break


async def by_batches(stream: TokenStream) -> None:
    async with stream:
        async for _ in stream.batches():
            break


async def by_aclose_twice(stream: TokenStream) -> None:
    await asyncio.gather(stream.aclose(), stream.aclose())
    await stream.aclose()


async def by_aclose_while_it_is_read(stream: TokenStream) -> None:
    reader = asyncio.create_task(rest_of(stream))
    await asyncio.sleep(0)
    await stream.aclose()
    events = await reader
    assert not any(event.is_terminal for event in events)


async def by_task_cancel(stream: TokenStream) -> None:
    reading = asyncio.Event()

    async def read() -> None:
        async for _ in stream:
            reading.set()

    reader = asyncio.create_task(read())
    await reading.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader


async def by_timeout(stream: TokenStream) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await rest_of(stream)


async def by_task_group(stream: TokenStream) -> None:
    reading = asyncio.Event()

    async def read() -> None:
        async for _ in stream:
            reading.set()

    async def fail() -> None:
        await reading.wait()
        raise LookupError

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            group.create_task(fail())

    with pytest.raises(ExceptionGroup):
        await both()


async def by_anyio_scope(stream: TokenStream) -> None:
    with anyio.CancelScope() as scope:
        async for _ in stream:
            scope.cancel()
    assert scope.cancelled_caught


async def by_leaving_in_a_cancelled_scope(stream: TokenStream) -> None:
    # Whatever is awaited on the way out is cancelled again.
    with anyio.CancelScope() as scope:
        async with stream:
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught


LEAVING = [
    by_break,
    by_batches,
    by_aclose_twice,
    by_aclose_while_it_is_read,
    by_task_cancel,
    by_timeout,
    by_task_group,
    by_anyio_scope,
    by_leaving_in_a_cancelled_scope,
]


@quietly
@pytest.mark.parametrize("leave", LEAVING)
def test_i4_every_way_out_lets_the_engine_go(
    endless: ScriptedEngine, leave: Callable[[TokenStream], Awaitable[None]]
) -> None:
    async def main() -> None:
        async with plain_adapter(endless.url) as made:
            stream = await begun(made)
            await leave(stream)
            left = time.monotonic()
            await eventually(lambda: endless.busy == 0, "the engine is left")
            assert time.monotonic() - left < SOON
            assert stream.cancelled
            assert await text_of(made)

    asyncio.run(main(), debug=True)


@quietly
@pytest.mark.parametrize("way", ["here", "in a cycle", "elsewhere"])
def test_i4_a_dropped_stream_lets_the_engine_go(endless: ScriptedEngine, way: str) -> None:
    async def main() -> None:
        async with plain_adapter(endless.url) as made:
            held: list[Any] = [await begun(made)]
            dropped = time.monotonic()
            match way:
                case "here":
                    held.clear()
                case "in a cycle":
                    held.append(held)
                    del held
                    gc.collect()
                case _:
                    await asyncio.to_thread(held.clear)
            await eventually(lambda: endless.busy == 0, "the engine is left")
            assert time.monotonic() - dropped < SOON
            assert await text_of(made)

    asyncio.run(main(), debug=True)


@contextlib.asynccontextmanager
async def at_the_head(made: LlamaCppAdapter, server: Server) -> AsyncIterator[Any]:
    submitting = asyncio.create_task(made.submit(task_of("llamacpp")))
    await server.asked("/completion")
    yield submitting


@contextlib.asynccontextmanager
async def at_a_token(made: LlamaCppAdapter, _: Server) -> AsyncIterator[Any]:
    stream = await made.submit(task_of("llamacpp"))
    reading = asyncio.create_task(rest_of(stream))
    for _turn in range(20):
        await asyncio.sleep(0)
    yield reading
    assert [event.finish_reason for event in await rest_of(stream)] == ["cancelled"]


@contextlib.asynccontextmanager
async def at_a_collect(made: LlamaCppAdapter, _: Server) -> AsyncIterator[Any]:
    stream = await made.submit(task_of("llamacpp"))
    reading = asyncio.create_task(stream.collect())
    for _turn in range(20):
        await asyncio.sleep(0)
    yield reading
    assert stream.cancelled


@contextlib.asynccontextmanager
async def at_a_confirmation(made: LlamaCppAdapter, _: Server) -> AsyncIterator[Any]:
    stream = await made.submit(task_of("llamacpp"))
    yield asyncio.create_task(stream.cancel(confirm_within_ms=60_000))
    assert stream.cancelled


@quietly
@pytest.mark.parametrize("point", [at_the_head, at_a_token, at_a_collect, at_a_confirmation])
def test_i4_a_cancelled_task_is_cancelled(point: Any) -> None:
    async def silence(connection: Connection, request: Received) -> None:
        if request.path == "/completion":
            if point is not at_the_head:
                await connection.send(STREAM_HEAD, *HELLO)
            await connection.until_closed()
        else:  # where it is asked whether a task has stopped
            await connection.until_closed()

    async def main() -> None:
        async with playing(engine(silence)) as server, adapter(server.url) as made:
            async with point(made, server) as task:
                for _ in range(20):
                    await asyncio.sleep(0)
                assert not task.done()
                began = time.monotonic()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            for connection in completions(server):
                await connection.over()
            assert time.monotonic() - began < SOON
            assert not made._submits

    asyncio.run(main(), debug=True)


@quietly
def test_i4_a_second_reader_is_refused() -> None:
    async def main() -> None:
        async with saying(STREAM_HEAD) as server, adapter(server.url) as made:
            stream = await made.submit(task_of("llamacpp"))
            first = asyncio.create_task(anext(stream, None))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="one reader"):
                await anext(stream)
            await stream.aclose()
            assert await first is None

    asyncio.run(main(), debug=True)


@pytest.mark.parametrize("point", ["head", "stream"])
def test_i4_a_cancelled_scope_of_trio(endless: ScriptedEngine, point: Any) -> None:
    async def main() -> None:
        endless.behave(hang=point)
        async with plain_adapter(endless.url) as made:

            async def read() -> None:
                await rest_of(await made.submit(task_of("llamacpp")))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await trio_eventually(lambda: bool(endless.generations))
                began = time.monotonic()
                nursery.cancel_scope.cancel()
            assert nursery.cancel_scope.cancelled_caught
            await trio_eventually(lambda: endless.busy == 0)
            assert time.monotonic() - began < SOON

    trio.run(main)


# I5: loops that end, and more than one of them.


@quietly
def test_i5_a_run_that_ends_with_streams_open(endless: ScriptedEngine) -> None:
    kept: list[object] = []

    async def main() -> None:
        made = plain_adapter(endless.url)
        kept.extend([made, *[await begun(made) for _ in range(3)]])
        assert endless.busy == 3

    asyncio.run(main(), debug=True)
    settled(lambda: endless.busy == 0)
    kept.clear()
    gc.collect()


@quietly
@pytest.mark.parametrize("name", ["sglang", "vllm"])
@pytest.mark.parametrize("way", ["open", "read", "generator", "submit"])
def test_i5_a_run_that_ends_before_an_abort_is_sent(name: str, way: str) -> None:
    """The engine hears of it, or not, as there is time; nobody else does."""
    kept: list[object] = []

    async def main() -> None:
        made = adapter_of(name, running.url)
        asked = task_of(name, max_tokens=1_000_000)
        if way == "submit":
            running.behave(hang="head")
            kept.append(asyncio.create_task(made.submit(asked)))
            await eventually(lambda: running.busy == 1, "the submit")
            return
        stream = await made.submit(asked)
        has_begun = asyncio.Event()

        async def events() -> AsyncIterator[TokenEvent]:
            async for event in stream:
                yield event

        async def read() -> None:
            async for event in stream:
                if event.kind == "token":
                    has_begun.set()

        if way == "read":
            kept.append(asyncio.create_task(read()))
            await has_begun.wait()
        elif way == "generator":
            generator = events()
            await anext(generator)
            kept.append(generator)
        else:
            await anext(stream)
            kept.append(stream)
        assert running.busy == 1

    with scripted_engine(name, delay_ms=1) as running:
        asyncio.run(main(), debug=True)
        settled(lambda: running.busy == 0)
        kept.clear()
        gc.collect()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_i5_a_loop_that_is_closed_as_it_is(endless: ScriptedEngine) -> None:
    made = plain_adapter(endless.url)
    loop = asyncio.new_event_loop()
    kept = [loop.run_until_complete(begun(made))]
    loop.close()
    assert endless.busy == 1
    kept.clear()
    gc.collect()
    settled(lambda: endless.busy == 0)
    # The adapter goes on in the next.
    assert asyncio.run(text_of(made))
    # The idle connection of its calls is found here, not in some later test.
    del made, loop
    gc.collect()


def test_i5_several_runs_with_one_adapter(endless: ScriptedEngine) -> None:
    made = plain_adapter(endless.url)
    texts = {asyncio.run(text_of(made)) for _ in range(3)}
    assert len(texts) == 1


@on_native
def test_i5_a_loop_that_has_ended_leaves_nothing_behind(endless: ScriptedEngine) -> None:
    made = plain_adapter(endless.url)
    plane = made._data_plane
    assert isinstance(plane, _native.NativeTransport)
    for _ in range(3):
        asyncio.run(text_of(made))
        assert len(plane._sessions) == 1


def test_i5_two_loops_in_two_threads(endless: ScriptedEngine) -> None:
    made = plain_adapter(endless.url)
    both = threading.Barrier(2, timeout=WITHIN)
    texts: list[str] = []

    async def talk() -> None:
        async with await begun(made) as stream:
            both.wait()
            for _ in range(20):
                assert (await anext(stream)).kind == "token"
            texts.append(await text_of(made))

    threads = [threading.Thread(target=asyncio.run, args=(talk(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN)
    assert len(texts) == 2
    settled(lambda: endless.busy == 0)
