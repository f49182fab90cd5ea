"""The token stream: every way it can go, and end, over a real socket."""

from __future__ import annotations

import asyncio
import gc
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from tests.transports import both_transports, on_httpx, on_native
from tests.unit.tasks import adapter, task
from tests.unit.virtual_time import run as run_virtually
from tests.unit.wire import (
    LAST_CHUNK,
    STREAM_HEAD,
    WITHIN,
    chunk,
    engine,
    eventually,
    final,
    frame,
    playing,
)
from worker_adapters import DeadlineUnmet, DecodeTimeout, Timeouts, WorkerReset
from worker_adapters.transport._pulled import PulledStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from tests.transports import Transport
    from tests.unit.wire import Connection, Received, Script, Server
    from worker_adapters import TokenEvent, TokenStream
    from worker_adapters.engines.llamacpp import LlamaCppAdapter

pytestmark = both_transports

T = TypeVar("T")

QUEUE_EVENTS = 256
"""How many events of a native stream wait before its socket is no longer read."""

HELLO = (frame("hel", 1), frame("lo", 2))


def saying(*pieces: bytes, then: Callable[[Connection], Awaitable[None]] | None = None) -> Script:
    """Return an engine that answers a completion with these chunks, each sent by itself."""

    async def script(connection: Connection, _: Received) -> None:
        await connection.send(STREAM_HEAD, *pieces)
        if then is not None:
            await then(connection)
        else:
            await connection.until_closed()

    return engine(script)


@asynccontextmanager
async def streaming(
    script: Script, *, timeouts: Timeouts | None = None, **changes: Any
) -> AsyncIterator[tuple[TokenStream, LlamaCppAdapter, Server]]:
    """Submit one task to an engine that plays this script, on the loop's clock."""
    clock = asyncio.get_running_loop().time
    async with (
        playing(script) as server,
        adapter(server.url, clock=clock, timeouts=timeouts) as made,
    ):
        yield await made.submit(task(**changes)), made, server


async def until_token(stream: TokenStream) -> TokenEvent:
    async for event in stream:
        if event.kind == "token":
            return event
    raise AssertionError("no token")


def shape(events: list[TokenEvent]) -> list[Any]:
    """Return kinds, with the text of tokens and the reason of the end."""
    return [
        event.t
        if event.kind == "token"
        else f"end:{event.finish_reason}"
        if event.kind == "end"
        else event.kind
        for event in events
    ]


async def gone(server: Server) -> None:
    """Wait until the connection of the completion is closed."""
    await server.connections[-1].over()


# The way it should go.


async def test_events_in_order() -> None:
    async with streaming(saying(*HELLO, final(2), LAST_CHUNK), seed=7) as (stream, _, server):
        events = [event async for event in stream]
        assert shape(events) == ["started", "hel", "lo", "end:length"]
        assert [event async for event in stream] == []
        await gone(server)
    started, *_, end = events
    assert started.data["engine"] == "llamacpp"
    assert started.engine_version == "b1-0c1e570"
    assert started.model == "tiny"
    assert started.seed == end.seed == 7
    assert started.correlation_id
    assert (end.tokens_out, end.tokens_in, end.usage_source) == (2, 8, "engine")
    assert not stream.cancelled
    assert stream.is_terminal


async def test_what_arrives_together_comes_together() -> None:
    async with streaming(saying(frame("a", 1)[:-2] + b"\r\n", final(1), LAST_CHUNK)) as (
        stream,
        *_,
    ):
        batches = [shape(batch) async for batch in stream.batches()]
    assert all(batches)
    assert [name for batch in batches for name in batch] == ["started", "a", "end:length"]
    body = b"".join(f[f.index(b"\r\n") + 2 : -2] for f in (*HELLO, final(2)))
    async with streaming(saying(chunk(body), LAST_CHUNK)) as (stream, *_):
        assert [len(batch) async for batch in stream.batches()] == [4]


async def test_single_events_and_batches_can_be_mixed() -> None:
    body = b"".join(f[f.index(b"\r\n") + 2 : -2] for f in (*HELLO, final(2)))
    async with streaming(saying(chunk(body), LAST_CHUNK)) as (stream, *_):
        assert (await anext(stream)).kind == "started"
        assert [shape(batch) async for batch in stream.batches()] == [["hel", "lo", "end:length"]]


async def test_collect() -> None:
    async with streaming(saying(*HELLO, final(2, "eos"), LAST_CHUNK), seed=7) as (stream, *_):
        whole = await stream.collect()
    assert (whole.text, whole.finish_reason, whole.tokens_out) == ("hello", "stop", 2)
    assert (whole.seed, whole.model, whole.engine_version) == (7, "tiny", "b1-0c1e570")
    assert shape(list(whole.events)) == ["started", "hel", "lo", "end:stop"]


async def test_collect_raises_the_error_event() -> None:
    broken = chunk(b'data: {"error":{"code":500,"message":"boom","type":"server_error"}}\n\n')
    async with streaming(saying(*HELLO, broken, LAST_CHUNK)) as (stream, *_):
        with pytest.raises(WorkerReset) as caught:
            await stream.collect()
    assert (caught.value.detail, caught.value.tokens_emitted) == ("engine_error", 2)


async def test_collect_what_is_left() -> None:
    async with streaming(saying(*HELLO, final(2), LAST_CHUNK)) as (stream, *_):
        assert (await until_token(stream)).t == "hel"
        assert (await stream.collect()).text == "lo"


async def test_collect_after_the_end_has_been_read() -> None:
    async with streaming(saying(*HELLO, final(2), LAST_CHUNK)) as (stream, *_):
        assert [event async for event in stream]
        with pytest.raises(RuntimeError, match="nothing is left to collect"):
            await stream.collect()


async def test_collect_after_the_end_was_handed_over() -> None:
    async with streaming(saying(*HELLO, final(2), LAST_CHUNK)) as (stream, *_):
        while (await anext(stream)).kind != "end":
            pass
        with pytest.raises(RuntimeError, match="nothing is left to collect"):
            await stream.collect()


async def test_collect_a_stream_that_was_left() -> None:
    async with streaming(saying(*HELLO)) as (stream, *_):
        await until_token(stream)
        await stream.aclose()
        with pytest.raises(RuntimeError, match="nothing is left to collect"):
            await stream.collect()


@pytest.mark.parametrize("seen", [0, 2])
async def test_collect_a_stream_that_is_left_meanwhile(seen: int) -> None:
    async with streaming(saying(*HELLO[:seen])) as (stream, _, server):
        collecting = asyncio.create_task(stream.collect())
        await eventually(lambda: stream.tokens_emitted == seen, "the tokens")
        await asyncio.sleep(0)
        await stream.aclose()
        with pytest.raises(RuntimeError, match="left while it was being collected"):
            await collecting
        await gone(server)


async def test_collect_a_stream_that_is_cancelled_meanwhile() -> None:
    async with streaming(saying(*HELLO)) as (stream, made, _):
        collecting = asyncio.create_task(stream.collect())
        await eventually(lambda: stream.tokens_emitted == 2, "both tokens")
        await made.cancel(stream.task_id)
        whole = await collecting
    assert whole.finish_reason == "cancelled"
    assert "hello".startswith(whole.text)


async def test_collect_twice_at_once_leaves_the_first_alone() -> None:
    go = asyncio.Event()

    async def go_on(connection: Connection) -> None:
        await go.wait()
        await connection.send(final(2), LAST_CHUNK)

    async with streaming(saying(*HELLO, then=go_on)) as (stream, *_):
        collecting = asyncio.create_task(stream.collect())
        await eventually(lambda: stream.tokens_emitted == 2, "both tokens")
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="one reader"):
            await stream.collect()
        go.set()
        assert (await collecting).text == "hello"


async def test_iteration_yields_the_error_event_and_stops() -> None:
    async def leave(connection: Connection) -> None:
        connection.close()

    async with streaming(saying(*HELLO, then=leave)) as (stream, *_):
        events = [event async for event in stream]
        assert [event async for event in stream] == []
    assert shape(events) == ["started", "hel", "lo", "error"]
    error = events[-1].error
    assert isinstance(error, WorkerReset)
    assert (error.detail, error.phase, error.tokens_emitted) == ("truncated", "stream", 2)
    assert error.processed == "yes"


async def test_a_reset_connection_is_a_worker_reset() -> None:
    go = asyncio.Event()

    async def reset(connection: Connection) -> None:
        await go.wait()
        connection.reset()

    async with streaming(saying(*HELLO, then=reset)) as (stream, *_):
        assert (await until_token(stream)).t == "hel"
        assert (await until_token(stream)).t == "lo"
        go.set()
        [last] = [event async for event in stream]
    assert isinstance(last.error, WorkerReset)
    assert last.error.detail == "reset"


async def test_the_connection_is_used_again_after_a_clean_end(transport: Transport) -> None:
    async def script(connection: Connection, _: Received) -> None:
        await connection.send(STREAM_HEAD, final(0), LAST_CHUNK)

    class Keeping(type(adapter("http://x"))):  # type: ignore[misc]
        keeps_after_stream = True

    async with playing(engine(script)) as server, Keeping(server.url) as made:
        for _ in range(3):
            await (await made.submit(task())).collect()
    # Native streams have a pool of their own beside that of the calls.
    assert len(server.connections) == (2 if transport == "native" else 1)


async def test_llamacpp_is_asked_to_close_after_a_stream() -> None:
    async def script(connection: Connection, request: Received) -> None:
        assert request.headers["connection"] == "close"
        await connection.send(STREAM_HEAD, final(0), LAST_CHUNK)

    async with streaming(engine(script)) as (stream, *_):
        await stream.collect()


async def test_frames_after_the_end_close_the_connection() -> None:
    late = saying(frame("a", 1), final(1), frame("late", 2), LAST_CHUNK)
    async with streaming(late) as (stream, _, server):
        assert shape([event async for event in stream]) == ["started", "a", "end:length"]
        await gone(server)


def test_a_body_that_does_not_end_is_not_waited_for() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with streaming(saying(frame("a", 1), final(1))) as (stream, _, server):
            began = loop.time()
            assert shape([event async for event in stream])[-1] == "end:length"
            assert loop.time() - began < 0.3
            await gone(server)

    run_virtually(main())


def test_an_end_nobody_comes_back_from_is_closed() -> None:
    async def main() -> None:
        async with streaming(saying(frame("a", 1), final(1))) as (stream, _, server):
            while (await anext(stream)).kind != "end":
                pass
            await gone(server)
            assert [event async for event in stream] == []

    run_virtually(main())


# Giving up.


async def test_cancel_between_tokens() -> None:
    async with streaming(saying(*HELLO)) as (stream, made, server):
        await until_token(stream)
        receipt = await made.cancel(stream.task_id)
        assert (receipt.method, receipt.sent, receipt.confirmed) == ("close", True, None)
        assert receipt.elapsed_ms >= 0
        await gone(server)
        assert shape([event async for event in stream]) == ["end:cancelled"]
        assert stream.cancelled
        again = await made.cancel(stream.task_id)
        assert (again.method, again.sent) == ("none", False)


async def test_cancel_takes_back_what_was_not_handed_over() -> None:
    body = b"".join(f[f.index(b"\r\n") + 2 : -2] for f in HELLO)
    async with streaming(saying(chunk(body))) as (stream, made, _):
        assert (await anext(stream)).kind == "started"
        await made.cancel(stream.task_id)
        assert shape([event async for event in stream]) == ["end:cancelled"]


async def test_cancel_wakes_a_pending_read() -> None:
    async with streaming(saying(*HELLO)) as (stream, made, server):
        seen: list[TokenEvent] = []

        async def read() -> None:
            async for event in stream:
                seen.append(event)  # noqa: PERF401 - looked at meanwhile

        reader = asyncio.create_task(read())
        await eventually(lambda: len(seen) == 3, "both tokens")
        await made.cancel(str(stream.task_id))
        await reader
        assert shape(seen) == ["started", "hel", "lo", "end:cancelled"]
        await gone(server)


async def test_cancel_before_the_first_frame() -> None:
    async with streaming(saying()) as (stream, made, server):
        await made.cancel(stream.task_id)
        [end] = [event async for event in stream]
        assert (end.kind, end.finish_reason, end.tokens_out) == ("end", "cancelled", 0)
        await gone(server)


async def test_cancel_after_the_end_changes_nothing() -> None:
    body = b"".join(f[f.index(b"\r\n") + 2 : -2] for f in (*HELLO, final(2)))
    async with streaming(saying(chunk(body), LAST_CHUNK)) as (stream, made, _):
        assert (await anext(stream)).kind == "started"
        assert not (await made.cancel(stream.task_id)).sent
        assert shape([event async for event in stream]) == ["end:length"]
        assert not stream.cancelled


async def test_cancel_twice_at_once() -> None:
    async with streaming(saying(*HELLO)) as (stream, made, _):
        await until_token(stream)
        receipts = await asyncio.gather(*(made.cancel(stream.task_id) for _ in range(2)))
        assert sorted(receipt.sent for receipt in receipts) == [False, True]
        assert shape([event async for event in stream]) == ["end:cancelled"]


async def test_cancel_from_another_loop() -> None:
    async with streaming(saying(*HELLO)) as (stream, made, server):
        await until_token(stream)
        receipt = await asyncio.to_thread(asyncio.run, made.cancel(stream.task_id))
        assert receipt.sent
        await gone(server)
        assert shape([event async for event in stream]) == ["end:cancelled"]


class Elsewhere:
    """A loop in a thread of its own, which can be stopped and blocked."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(WITHIN)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.join()

    def join(self) -> None:
        self._thread.join(WITHIN)

    def close(self) -> None:
        if self._thread.is_alive():
            self.stop()
        # As asyncio.run leaves its loop.
        self.loop.run_until_complete(self._tidy())
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    async def _tidy(self) -> None:
        pending = asyncio.all_tasks() - {asyncio.current_task()}
        for left in pending:
            left.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


@pytest.mark.parametrize("how", ["stopped", "closed"])
async def test_cancel_where_the_stream_s_loop_runs_no_more(how: str) -> None:
    elsewhere = Elsewhere()
    async with playing(saying(*HELLO)) as server:

        async def begin() -> TokenStream:
            stream = await adapter(server.url).submit(task())
            await until_token(stream)
            return stream

        try:
            stream = await asyncio.to_thread(elsewhere.run, begin())
            elsewhere.stop()
            if how == "closed":
                await asyncio.to_thread(elsewhere.close)
            receipt = await asyncio.wait_for(stream.cancel(), WITHIN)
            if how == "stopped":
                assert (receipt.method, receipt.confirmed) == ("close", None)
                assert stream.cancelled
            await gone(server)
            assert not (await stream.cancel()).sent
        finally:
            if how == "stopped":
                await asyncio.to_thread(elsewhere.close)


@pytest.mark.parametrize("stops", [False, True])
async def test_cancel_where_the_stream_s_loop_is_stuck(
    monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    monkeypatch.setattr("worker_adapters.stream.ELSEWHERE_SECONDS", 0.1)
    elsewhere = Elsewhere()
    release = threading.Event()
    async with playing(saying(*HELLO)) as server:

        async def begin() -> TokenStream:
            stream = await adapter(server.url).submit(task())
            await until_token(stream)
            return stream

        try:
            stream = await asyncio.to_thread(elsewhere.run, begin())
            elsewhere.loop.call_soon_threadsafe(release.wait)
            if stops:
                elsewhere.loop.call_soon_threadsafe(elsewhere.loop.stop)
            receipt = await asyncio.wait_for(stream.cancel(), WITHIN)
            assert (receipt.method, receipt.sent) == ("close", True)
            release.set()
            if stops:
                await asyncio.to_thread(elsewhere.join)
            else:
                await eventually(lambda: stream.cancelled, "cancelled when the loop goes on")
            await asyncio.to_thread(elsewhere.close)
            await gone(server)
        finally:
            release.set()
            if not elsewhere.loop.is_closed():
                await asyncio.to_thread(elsewhere.close)


async def test_aclose_twice_and_then_nothing_more() -> None:
    async with streaming(saying(*HELLO)) as (stream, _, server):
        await until_token(stream)
        await stream.aclose()
        await stream.aclose()
        assert stream.cancelled
        assert [event async for event in stream] == []
        await gone(server)


async def test_aclose_while_another_task_reads() -> None:
    async with streaming(saying(*HELLO)) as (stream, _, server):
        await until_token(stream)
        await until_token(stream)
        reader = asyncio.create_task(anext(stream, None))
        await asyncio.sleep(0)
        await stream.aclose()
        assert await reader is None
        await gone(server)


async def test_leaving_the_context_closes() -> None:
    async with streaming(saying(*HELLO)) as (stream, _, server):

        async def leave() -> None:
            async with stream:
                await until_token(stream)
                raise LookupError

        with pytest.raises(LookupError):
            await leave()
        await gone(server)


async def test_a_dropped_stream_closes_and_is_forgotten() -> None:
    async with playing(saying(*HELLO)) as server, adapter(server.url) as made:
        request = task()
        stream = await made.submit(request)
        async for event in stream:
            if event.kind == "token":
                break
        del stream
        gc.collect()
        await gone(server)
        assert not (await made.cancel(request.task_id)).sent
        assert len(made._streams) == 0


async def test_batches_do_not_keep_a_dropped_stream() -> None:
    async with playing(saying(*HELLO)) as server, adapter(server.url) as made:
        async for _ in (await made.submit(task())).batches():
            break
        gc.collect()
        await gone(server)


async def test_a_stream_dropped_in_another_thread_closes() -> None:
    async with playing(saying(*HELLO)) as server, adapter(server.url) as made:
        held = [await made.submit(task())]
        await until_token(held[0])
        await asyncio.to_thread(held.clear)
        await gone(server)


async def test_closing_the_adapter_ends_its_streams() -> None:
    async with streaming(saying(*HELLO)) as (stream, made, server):
        await until_token(stream)
        await made.aclose()
        await made.aclose()
        await gone(server)
        assert shape([event async for event in stream]) == ["end:cancelled"]


async def test_a_cancelled_reader_is_cancelled_and_ends_the_stream() -> None:
    async with streaming(saying(*HELLO)) as (stream, _, server):
        await until_token(stream)
        await until_token(stream)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(stream)
        await gone(server)
        assert shape([event async for event in stream]) == ["end:cancelled"]


async def test_two_readers_are_refused() -> None:
    async with streaming(saying()) as (stream, *_):
        first = asyncio.create_task(anext(stream, None))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="one reader"):
            await anext(stream)
        await stream.aclose()
        assert await first is None


@on_httpx
async def test_a_timer_is_stopped_in_its_own_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[int] = []
    stop = asyncio.TimerHandle.cancel

    def cancel(timer: asyncio.TimerHandle) -> None:
        stopped.append(threading.get_ident())
        stop(timer)

    async with playing(saying(*HELLO)) as server, adapter(server.url) as made:
        held = [await made.submit(task())]
        await until_token(held[0])
        assert isinstance(held[0], PulledStream)
        timer = held[0]._timer
        assert timer is not None
        monkeypatch.setattr(asyncio.TimerHandle, "cancel", cancel)
        await asyncio.to_thread(held.clear)
        await eventually(timer.cancelled, "the timer is stopped")
        await gone(server)
    assert set(stopped) == {threading.get_ident()}


def test_a_loop_that_ends_with_a_stream_open_says_nothing() -> None:
    kept: list[TokenStream] = []

    async def main() -> None:
        async with playing(saying(*HELLO)) as server:
            made = adapter(server.url)
            stream = await made.submit(task())
            await until_token(stream)
            kept.append(stream)

    asyncio.run(main(), debug=True)
    kept.clear()
    gc.collect()


# Clocks.


def test_no_frame_in_time() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        timeouts = Timeouts(first_token=7.0)
        async with streaming(saying(), timeouts=timeouts) as (stream, _, server):
            began = loop.time()
            [event] = [event async for event in stream]
            assert loop.time() - began == pytest.approx(7.0, abs=0.1)
            assert isinstance(event.error, DecodeTimeout)
            assert (event.error.detail, event.error.phase) == ("first_token", "first_token")
            await gone(server)

    run_virtually(main())


def test_a_gap_between_tokens() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        timeouts = Timeouts(token_gap=3.0)
        async with streaming(saying(*HELLO), timeouts=timeouts) as (stream, _, server):
            began = loop.time()
            events = [event async for event in stream]
            assert loop.time() - began == pytest.approx(3.0, abs=0.1)
            assert shape(events) == ["started", "hel", "lo", "error"]
            error = events[-1].error
            assert isinstance(error, DecodeTimeout)
            assert (error.detail, error.tokens_emitted) == ("token_gap", 2)
            await gone(server)

    run_virtually(main())


def test_no_byte_for_too_long() -> None:
    async def main() -> None:
        async def ping(connection: Connection) -> None:
            for _ in range(5):
                await asyncio.sleep(8.0)
                await connection.send(chunk(b":\n\n"))
            await connection.until_closed()

        timeouts = Timeouts(first_token=None, idle=10.0)
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with streaming(saying(then=ping), timeouts=timeouts) as (stream, *_):
            [event] = [event async for event in stream]
            assert loop.time() - began == pytest.approx(50.0, abs=0.5)
            assert isinstance(event.error, DecodeTimeout)
            assert event.error.detail == "idle"

    run_virtually(main())


@on_httpx
def test_a_slow_reader_is_not_the_engine_s_fault() -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def go_on(connection: Connection) -> None:
            await go.wait()
            await connection.send(final(2), LAST_CHUNK)

        timeouts = Timeouts(token_gap=3.0)
        async with streaming(saying(*HELLO, then=go_on), timeouts=timeouts) as (stream, *_):
            await until_token(stream)
            await asyncio.sleep(30.0)
            await until_token(stream)
            await asyncio.sleep(20.0)
            go.set()
            assert shape([event async for event in stream]) == ["end:length"]

    run_virtually(main())


@on_native
def test_a_gap_nobody_reads_in_is_the_engine_s_own() -> None:
    async def main() -> None:
        timeouts = Timeouts(token_gap=3.0)
        async with streaming(saying(*HELLO), timeouts=timeouts) as (stream, _, server):
            assert (await until_token(stream)).t == "hel"
            await gone(server)
            events = [event async for event in stream]
            assert shape(events) == ["lo", "error"]
            assert isinstance(events[-1].error, DecodeTimeout)
            assert (events[-1].error.detail, events[-1].error.tokens_emitted) == ("token_gap", 2)

    run_virtually(main())


@on_native
@pytest.mark.parametrize(("count", "text"), [(8 * QUEUE_EVENTS, "x"), (40, "x" * 4096)])
def test_a_reader_whose_queue_is_full_is_not_the_engine_s_fault(count: int, text: str) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def go_on(connection: Connection) -> None:
            await go.wait()
            await connection.send(final(count), LAST_CHUNK)

        flood = (frame(text, n) for n in range(1, count + 1))
        timeouts = Timeouts(token_gap=3.0)
        async with streaming(saying(*flood, then=go_on), timeouts=timeouts) as (stream, *_):
            await until_token(stream)
            await asyncio.sleep(30.0)
            for _ in range(count - 1):
                await until_token(stream)
            go.set()
            assert shape([event async for event in stream]) == ["end:length"]

    run_virtually(main())


def test_a_reader_that_has_stalled_is_told_by_the_deadline() -> None:
    count = 3000

    async def main() -> None:
        flood = (frame("x" * 100, n) for n in range(1, count + 1))
        timeouts = Timeouts(token_gap=3.0, idle=3.0)
        streams = streaming(saying(*flood), timeouts=timeouts, deadline_ms=20_000)
        async with streams as (stream, _, server):
            await until_token(stream)
            await asyncio.sleep(60.0)
            assert stream.is_terminal
            await gone(server)
            events = [event async for event in stream]
            assert isinstance(events[-1].error, DeadlineUnmet)
            # What had come by then is whole, and no more came than there was room for.
            assert [event.i for event in events[:-1]] == list(range(1, len(events)))
            assert 1 < len(events) < count

    run_virtually(main())


def test_the_deadline_ends_a_stream_that_trickles() -> None:
    async def main() -> None:
        async def trickle(connection: Connection) -> None:
            for n in range(1, 1000):
                await connection.send(frame("x", n))
                await asyncio.sleep(1.0)

        loop = asyncio.get_running_loop()
        began = loop.time()
        async with streaming(saying(then=trickle), deadline_ms=9_500) as (stream, _, server):
            events = [event async for event in stream]
            assert loop.time() - began == pytest.approx(9.5, abs=0.3)
            error = events[-1].error
            assert isinstance(error, DeadlineUnmet)
            assert (error.phase, error.retriable) == ("stream", False)
            assert error.tokens_emitted == len(events) - 2
            await gone(server)

    run_virtually(main())


def test_the_deadline_ends_a_stream_nobody_reads() -> None:
    async def main() -> None:
        body = b"".join(f[f.index(b"\r\n") + 2 : -2] for f in HELLO)
        async with streaming(saying(chunk(body)), deadline_ms=3_000) as (stream, _, server):
            assert (await anext(stream)).kind == "started"
            await gone(server)
            events = [event async for event in stream]
            assert shape(events) == ["hel", "lo", "error"]
            assert isinstance(events[-1].error, DeadlineUnmet)

    run_virtually(main())


@pytest.mark.parametrize("ends", [False, True])
def test_what_arrived_before_the_deadline_can_still_be_read(ends: bool) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def go_on(connection: Connection) -> None:
            await go.wait()
            await connection.send(frame("!", 3), frame("?", 4))
            if ends:
                await connection.send(final(4), LAST_CHUNK)

        async with streaming(saying(*HELLO, then=go_on), deadline_ms=3_000) as (stream, _, server):
            for text in ("hel", "lo"):
                assert (await until_token(stream)).t == text
            go.set()
            await asyncio.sleep(20.0)
            await gone(server)
            events = [event async for event in stream]
            assert shape(events) == ["!", "?", "end:length" if ends else "error"]
            if not ends:
                assert isinstance(events[-1].error, DeadlineUnmet)
                assert events[-1].error.tokens_emitted == 4

    run_virtually(main())


def test_the_first_token_that_arrived_in_time() -> None:
    async def main() -> None:
        timeouts = Timeouts(first_token=3.0)
        async with streaming(saying(*HELLO, final(2)), timeouts=timeouts) as (stream, *_):
            await asyncio.sleep(20.0)
            assert shape([event async for event in stream]) == [
                "started",
                "hel",
                "lo",
                "end:length",
            ]

    run_virtually(main())


@on_httpx
async def test_what_arrived_before_a_reader_that_blocked_the_loop() -> None:
    late = 0.0
    go = asyncio.Event()

    async def go_on(connection: Connection) -> None:
        await go.wait()
        await connection.send(frame("!", 3))
        await connection.until_closed()

    def clock() -> float:
        return asyncio.get_running_loop().time() + late

    async with (
        playing(saying(*HELLO, then=go_on)) as server,
        adapter(server.url, clock=clock) as made,
    ):
        stream = await made.submit(task(deadline_ms=10_000))
        for text in ("hel", "lo"):
            assert (await until_token(stream)).t == text
        go.set()
        assert isinstance(stream, PulledStream)
        body = stream._body
        assert body is not None
        pooled = body._pooled  # type: ignore[attr-defined]
        await eventually(lambda: pooled._connection.socket._held, "the bytes are here")
        late = 100.0
        assert shape([event async for event in stream]) == ["!", "error"]


@on_native
async def test_what_arrived_while_the_loop_was_blocked() -> None:
    late = 0.0
    go, sent = threading.Event(), threading.Event()

    async def go_on(connection: Connection) -> None:
        await asyncio.to_thread(go.wait, WITHIN)
        await connection.send(frame("!", 3))
        sent.set()
        await connection.until_closed()

    def clock() -> float:
        return asyncio.get_running_loop().time() + late

    with playing(saying(*HELLO, then=go_on)) as server:
        async with adapter(server.url, clock=clock) as made:
            stream = await made.submit(task(deadline_ms=10_000))
            for text in ("hel", "lo"):
                assert (await until_token(stream)).t == text
            go.set()
            assert sent.wait(WITHIN)
            late = 100.0
            assert shape([event async for event in stream]) == ["!", "error"]


@on_native
@pytest.mark.timeout(20)
def test_a_batch_is_not_held_back_where_no_more_fits() -> None:
    async def main() -> None:
        frames = [frame("x" * 4096, n) for n in range(1, 41)]
        async with streaming(saying(*frames, final(40), LAST_CHUNK)) as (stream, *_):
            batches = [batch async for batch in stream.batches(max_wait=5.0)]
        assert sum(event.kind == "token" for batch in batches for event in batch) == 40
        assert len(batches) > 1

    run_virtually(main())


async def test_a_slow_reader_holds_the_engine_back() -> None:
    sent = 0
    pad = "x" * 4096

    async def flood(connection: Connection) -> None:
        nonlocal sent
        for n in range(1, 20_000):
            await connection.send(frame(pad, n))
            sent += 1
        await connection.send(final(sent), LAST_CHUNK)

    async with streaming(saying(then=flood)) as (stream, *_):
        await until_token(stream)
        before = -1
        while before != sent:  # until the kernel's buffers are full
            before = sent
            await asyncio.sleep(0.2)
        assert sent < 10_000
        await until_token(stream)


async def test_what_a_small_batch_leaves_holds_the_engine_back() -> None:
    async def flood(connection: Connection) -> None:
        for n in range(1, 20_000):
            await connection.send(frame("x" * 4096, n))

    async with streaming(saying(then=flood)) as (stream, *_):
        batches = stream.batches(max_events=1)
        for _ in range(500):
            assert len(await anext(batches)) == 1
            await asyncio.sleep(0)
        assert stream._pending < 100
