"""Events in lists and as server-sent events: how much comes at a time, and how late."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import pytest

from tests.transports import both_transports
from tests.unit.tasks import adapter, task
from tests.unit.test_stream import HELLO, gone, saying, shape, streaming, until_token
from tests.unit.virtual_time import run as run_virtually
from tests.unit.wire import LAST_CHUNK, chunk, eventually, final, frame, playing
from worker_adapters import Timeouts
from worker_adapters.stream import MAX_WAIT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.unit.wire import Connection
    from worker_adapters import TokenStream

pytestmark = both_transports

TOGETHER = chunk(b"".join(f[f.index(b"\r\n") + 2 : -2] for f in (*HELLO, final(2))))
"""The whole answer in one network read."""


def every(seconds: float, *pieces: bytes) -> Callable[[Connection], Awaitable[None]]:
    """Go on with these chunks, one at a time."""

    async def go_on(connection: Connection) -> None:
        for piece in pieces:
            await asyncio.sleep(seconds)
            await connection.send(piece)
        await connection.until_closed()

    return go_on


async def timed(stream: TokenStream, **bounds: Any) -> list[tuple[float, list[Any]]]:
    """Return every batch with the time it came at, in seconds from here."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    return [
        (round(loop.time() - began, 1), shape(batch)) async for batch in stream.batches(**bounds)
    ]


# How many.


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [1] * 4), (2, [2, 2]), (3, [3, 1]), (4, [4]), (9, [4]), (None, [4])]
)
async def test_no_more_than_max_events(most: int | None, sizes: list[int]) -> None:
    async with streaming(saying(TOGETHER, LAST_CHUNK)) as (stream, *_):
        batches = [shape(batch) async for batch in stream.batches(most)]
    assert [len(batch) for batch in batches] == sizes
    assert [name for batch in batches for name in batch] == ["started", "hel", "lo", "end:length"]


async def test_readers_can_be_mixed() -> None:
    async with streaming(saying(TOGETHER, LAST_CHUNK)) as (stream, *_):
        assert shape(await anext(stream.batches(1))) == ["started"]
        assert (await anext(stream)).t == "hel"
        assert shape(await anext(stream.batches(1))) == ["lo"]
        assert (await anext(stream.sse())).startswith(b"event: end\ndata: {")
        assert [piece async for piece in stream.sse()] == []


async def test_single_events_leave_the_rest_to_a_batch() -> None:
    async with streaming(saying(TOGETHER, LAST_CHUNK)) as (stream, *_):
        await anext(stream)
        assert [shape(batch) async for batch in stream.batches(2)] == [
            ["hel", "lo"],
            ["end:length"],
        ]


@pytest.mark.parametrize("most", [0, -1])
async def test_max_events_that_is_none(most: int) -> None:
    async with streaming(saying(*HELLO)) as (stream, *_):
        with pytest.raises(ValueError, match=f"max_events must be 1 or more, not {most}"):
            stream.batches(most)


@pytest.mark.parametrize("wait", [-0.1, MAX_WAIT_SECONDS + 1, float("nan"), float("inf")])
async def test_max_wait_that_is_none(wait: float) -> None:
    async with streaming(saying(*HELLO)) as (stream, *_):
        for made in (stream.sse, lambda max_wait: stream.batches(None, max_wait)):
            with pytest.raises(ValueError, match="max_wait must be from 0 to 10 seconds"):
                made(max_wait=wait)


# How late.


def test_a_batch_waits_from_its_first_event_on() -> None:
    async def main() -> None:
        pieces = [frame(letter, n) for n, letter in enumerate("abcdef", 1)]
        script = saying(then=every(1.0, *pieces, final(6), LAST_CHUNK))
        async with streaming(script) as (stream, *_):
            assert await timed(stream, max_wait=2.5) == [
                (3.5, ["started", "a", "b", "c"]),
                (6.5, ["d", "e", "f"]),
                (7.0, ["end:length"]),
            ]

    run_virtually(main())


def test_a_full_batch_does_not_wait() -> None:
    async def main() -> None:
        pieces = [frame(letter, n) for n, letter in enumerate("abcd", 1)]
        script = saying(then=every(1.0, *pieces, final(4), LAST_CHUNK))
        async with streaming(script) as (stream, *_):
            assert await timed(stream, max_events=2, max_wait=2.5) == [
                (1.0, ["started", "a"]),
                (3.0, ["b", "c"]),
                (5.0, ["d", "end:length"]),
            ]

    run_virtually(main())


def test_the_terminal_event_does_not_wait() -> None:
    async def main() -> None:
        async with streaming(saying(*HELLO, then=every(1.0, final(2), LAST_CHUNK))) as (stream, *_):
            assert await timed(stream, max_wait=9.0) == [
                (1.0, ["started", "hel", "lo", "end:length"])
            ]

    run_virtually(main())


def test_what_comes_between_two_batches_is_read_on() -> None:
    async def main() -> None:
        script = saying(*HELLO, then=every(3.0, frame("!", 3), frame("?", 4), final(4), LAST_CHUNK))
        async with streaming(script) as (stream, *_):
            batches = stream.batches(max_wait=1.0)
            assert shape(await anext(batches)) == ["started", "hel", "lo"]
            await asyncio.sleep(30.0)
            assert shape(await anext(batches)) == ["!", "?", "end:length"]
            assert [batch async for batch in batches] == []

    run_virtually(main())


def test_a_clock_strikes_while_a_batch_waits() -> None:
    async def main() -> None:
        timeouts = Timeouts(token_gap=3.0)
        async with streaming(saying(*HELLO), timeouts=timeouts) as (stream, _, server):
            assert await timed(stream, max_wait=9.0) == [(3.0, ["started", "hel", "lo", "error"])]
            await gone(server)

    run_virtually(main())


@pytest.mark.parametrize("ends", [False, True])
def test_what_arrived_before_the_deadline_while_a_read_went_on(ends: bool) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def go_on(connection: Connection) -> None:
            await go.wait()
            last = (final(3), LAST_CHUNK) if ends else ()
            await connection.send(b"".join((frame("!", 3), *last)))
            await connection.until_closed()

        async with streaming(saying(*HELLO, then=go_on), deadline_ms=5_000) as (stream, _, server):
            batches = stream.batches(max_wait=1.0)
            assert shape(await anext(batches)) == ["started", "hel", "lo"]
            go.set()
            await asyncio.sleep(20.0)
            await gone(server)
            rest = [name async for batch in batches for name in shape(batch)]
            assert rest == ["!", "end:length" if ends else "error"]

    run_virtually(main())


# Giving up.


async def until_waiting(stream: TokenStream) -> None:
    """Wait until both tokens are there and held back."""
    await eventually(lambda: stream.tokens_emitted == 2, "both tokens")
    await asyncio.sleep(0)


@pytest.mark.parametrize("rendered", [False, True])
async def test_cancel_takes_back_what_is_held_back(rendered: bool) -> None:
    async with streaming(saying(*HELLO)) as (stream, made, server):

        async def read() -> bytes:
            if rendered:
                return await anext(stream.sse(max_wait=9.0))
            batch = await anext(stream.batches(max_wait=9.0))
            return b"".join(event.to_sse() for event in batch)

        reading = asyncio.create_task(read())
        await until_waiting(stream)
        assert (await made.cancel(stream.task_id)).sent
        last = await reading
        await gone(server)
    assert last.count(b"event: ") == 1
    assert b'"finish_reason":"cancelled"' in last


async def test_a_reader_that_is_cancelled_while_a_batch_waits() -> None:
    async with streaming(saying(*HELLO)) as (stream, _, server):
        reading = asyncio.ensure_future(anext(stream.batches(max_wait=9.0)))
        await until_waiting(stream)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await gone(server)
        assert shape([event async for event in stream]) == ["end:cancelled"]


async def test_a_stream_that_is_left_while_a_batch_waits() -> None:
    async with streaming(saying(*HELLO)) as (stream, _, server):
        reading = asyncio.ensure_future(anext(stream.batches(max_wait=9.0), None))
        await until_waiting(stream)
        await stream.aclose()
        assert await reading is None
        await gone(server)


async def test_a_stream_that_is_dropped_while_a_read_goes_on() -> None:
    async with playing(saying(*HELLO)) as server, adapter(server.url) as made:
        batches = (await made.submit(task())).batches(max_wait=0.01)
        seen: list[Any] = []
        while "lo" not in seen:
            seen += shape(await anext(batches))
        assert len(made._streams) == 1
        del batches
        gc.collect()
        await gone(server)
        assert len(made._streams) == 0


# Rendered.


async def test_sse_is_what_the_events_render_to() -> None:
    async with playing(saying(*HELLO, final(2), LAST_CHUNK)) as server, adapter(server.url) as made:
        events = [event async for event in await made.submit(task(seed=7))]
        pieces = [piece async for piece in (await made.submit(task(seed=7))).sse()]
    assert all(pieces)
    rendered = b"".join(pieces).split(b"\n\n")
    # The ends tell their times, and the starts their own correlation ids.
    assert rendered[1:3] == [event.to_sse()[:-2] for event in events[1:3]]
    assert [one.split(b"\n")[0] for one in rendered[:-1]] == [
        b"event: " + event.kind.encode() for event in events
    ]


async def test_sse_pieces_hold_whole_events() -> None:
    async with streaming(saying(TOGETHER, LAST_CHUNK)) as (stream, *_):
        [piece] = [piece async for piece in stream.sse()]
    assert piece.endswith(b"\n\n")
    kinds = [event.split(b"\n")[0] for event in piece.split(b"\n\n")[:-1]]
    assert kinds == [b"event: started", b"event: token", b"event: token", b"event: end"]


async def test_sse_yields_the_error_event_and_stops() -> None:
    async def leave(connection: Connection) -> None:
        connection.close()

    async with streaming(saying(*HELLO, then=leave)) as (stream, *_):
        whole = b"".join([piece async for piece in stream.sse()])
    assert b'event: error\ndata: {"code":"WORKER_RESET"' in whole
    assert whole.count(b"event: ") == 4


def test_sse_waits_as_batches_do() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        pieces = [frame(letter, n) for n, letter in enumerate("abcd", 1)]
        script = saying(then=every(1.0, *pieces, final(4), LAST_CHUNK))
        async with streaming(script) as (stream, *_):
            began = loop.time()
            came = [
                (round(loop.time() - began, 1), piece.count(b"event: "))
                async for piece in stream.sse(max_wait=2.5)
            ]
        assert came == [(3.5, 4), (5.0, 2)]

    run_virtually(main())


async def test_sse_goes_on_after_single_events() -> None:
    async with streaming(saying(TOGETHER, LAST_CHUNK)) as (stream, *_):
        assert (await until_token(stream)).t == "hel"
        [piece] = [piece async for piece in stream.sse()]
    assert piece.count(b"event: ") == 2
