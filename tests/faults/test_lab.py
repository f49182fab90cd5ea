"""The fault lab itself: what each toxic does to bytes, and that a proxy leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import socket
import ssl
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.outcomes import ANSWER, SAID, adapter, ask, finished, released
from tests.unit.tasks import task
from tests.unit.virtual_time import run as run_virtually
from tests.unit.wire import PROPS, answer, eventually
from worker_adapters import LlamaCppAdapter
from worker_adapters.sync import SyncWorkerAdapter
from worker_adapters.testing.engines import scripted_engine
from worker_adapters.testing.faults import (
    Bandwidth,
    Blackhole,
    Coalescer,
    Cut,
    FaultProxy,
    HalfClose,
    Latency,
    LimitData,
    LocalCa,
    Reset,
    Slicer,
    Toxic,
)
from worker_adapters.testing.wire import Connection, RawServer, connect

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

SENT = bytes(range(256)) * 4


async def pieces(*given: bytes, cut: Cut | None = None) -> AsyncGenerator[bytes, None]:
    for piece in given:
        yield piece
    if cut is not None:
        raise cut


async def through(toxic: Toxic, *given: bytes, cut: Cut | None = None) -> list[bytes | str]:
    """Return the pieces that come through, and how it ends where that is a cut."""
    came: list[bytes | str] = []
    try:
        async for piece in toxic.apply(pieces(*given, cut=cut)):
            came.append(piece)  # noqa: PERF401 - what came before a cut counts
    except Cut as ended:
        came.append(ended.how)
    return came


def joined(came: list[bytes | str]) -> bytes:
    return b"".join(piece for piece in came if isinstance(piece, bytes))


def at_times(toxic: Toxic, *given: bytes) -> list[tuple[float, int]]:
    """Return when, in seconds, how many bytes come through; time is virtual."""

    async def main() -> list[tuple[float, int]]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        return [
            (round(loop.time() - began, 6), len(piece))
            async for piece in toxic.apply(pieces(*given))
        ]

    return run_virtually(main())


def test_latency_delays_all_bytes_by_the_same() -> None:
    # Not one after the other: a late line is no slow one.
    assert at_times(Latency(2.0), b"a", b"bc") == [(2.0, 1), (2.0, 2)]


def test_jitter_keeps_the_order_and_its_bounds() -> None:
    given = [bytes([count]) for count in range(100)]

    async def main() -> list[bytes | str]:
        return await through(Latency(1.0, 0.5), *given)

    assert run_virtually(main()) == given
    times = at_times(Latency(1.0, 0.5, seed=3), *given)
    assert times == at_times(Latency(1.0, 0.5, seed=3), *given)
    assert all(0.5 <= time <= 1.5 for time, _ in times)
    assert len({time for time, _ in times}) > 1


def test_a_late_cut_comes_after_what_was_before_it() -> None:
    async def main() -> list[bytes | str]:
        return await through(Latency(1.0), b"a", cut=Cut("reset"))

    assert run_virtually(main()) == [b"a", "reset"]


def test_bandwidth_spreads_bytes_evenly() -> None:
    times = at_times(Bandwidth(100), b"x" * 50, b"y" * 50)
    assert times[-1][0] == pytest.approx(1.0)
    assert sum(size for _, size in times) == 100
    assert all(size <= 2 for _, size in times)


def test_a_line_at_rest_saves_nothing_up() -> None:
    times = at_times(Bandwidth(1000), b"x")
    assert times == [(0.001, 1)]


@pytest.mark.parametrize("toxic", [Slicer(), Slicer(7, 3), Slicer(1000)])
async def test_a_slicer_cuts_and_loses_nothing(toxic: Slicer) -> None:
    came = await through(toxic, SENT, b"tail")
    assert joined(came) == SENT + b"tail"
    assert all(1 <= len(piece) <= toxic.size + toxic.variation for piece in came)


def test_a_slicer_takes_its_time() -> None:
    assert at_times(Slicer(1, delay=1.0), b"abc") == [(0.0, 1), (1.0, 1), (2.0, 1)]


async def test_a_coalescer_puts_together() -> None:
    one_by_one = [bytes([byte]) for byte in SENT]
    assert await through(Coalescer(), *one_by_one) == [SENT]
    assert await through(Coalescer(1000), *one_by_one) == [SENT[:1000], SENT[1000:]]
    assert await through(Coalescer()) == []


@pytest.mark.parametrize("count", [0, 1, 4, 5, 9])
async def test_what_happens_after_some_bytes(count: int) -> None:
    sent = b"abcde", b"fghi"
    first = b"abcdefghi"[:count]
    for toxic, ending in (
        (LimitData(count), ["close"]),
        (Reset(count), ["reset"]),
        (HalfClose(count), []),
    ):
        came = await through(toxic, *sent)
        assert came[len(came) - len(ending) :] == ending
        assert joined(came[: len(came) - len(ending)]) == first


def test_a_blackhole_swallows_even_the_end() -> None:
    async def main(toxic: Blackhole) -> tuple[list[bytes | str], float]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        return await through(toxic, b"abc", b"def"), loop.time() - began

    came, seconds = run_virtually(main(Blackhole(4, timeout=60.0)))
    assert came == [b"abc", b"d", "close"]
    assert seconds == pytest.approx(60.0)


async def test_a_blackhole_that_does_not_read_leaves_it_where_it_is() -> None:
    given = pieces(b"abc", b"def")
    async for _ in Blackhole(1, reads=False, timeout=0.0).apply(given):
        with pytest.raises(Cut):
            async for _ in Blackhole(0, reads=False, timeout=0.0).apply(given):
                pass
        assert await anext(given) == b"def"
        break


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Latency(1.0, 2.0),
        lambda: Latency(-1.0),
        lambda: Latency(math.nan),
        lambda: Latency(math.inf),
        lambda: Bandwidth(0),
        lambda: Bandwidth(math.nan),
        lambda: Slicer(delay=math.nan),
        lambda: Slicer(0),
        lambda: Slicer(2, 2),
        lambda: Slicer(delay=-1),
        lambda: Coalescer(0),
        lambda: LimitData(-1),
        lambda: FaultProxy("127.0.0.1:8080"),
        lambda: FaultProxy("http://"),
        lambda: FaultProxy("http://x:99999"),
    ],
)
def test_what_makes_no_sense(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        wrong()


@pytest.mark.parametrize(
    "toxic",
    [
        partial(Latency, 1.0),
        partial(Bandwidth, 1),
        Slicer,
        Coalescer,
        LimitData,
        Blackhole,
        Reset,
        HalfClose,
    ],
)
def test_a_direction_that_is_none(toxic: Any) -> None:
    assert toxic(direction="up").direction == "up"
    with pytest.raises(ValueError, match="direction"):
        toxic(direction="sideways")


def test_a_toxic_that_is_none() -> None:
    wrong: Any = 3
    with pytest.raises(TypeError, match="Toxic"):
        FaultProxy("http://127.0.0.1:8080", wrong)


# The proxy.


async def echo(connection: Connection) -> None:
    while piece := await connection.read(100):
        await connection.send(piece)


@asynccontextmanager
async def client(url: str) -> AsyncIterator[Connection]:
    end = await connect("127.0.0.1", int(url.rpartition(":")[2]))
    try:
        yield end
    finally:
        end.cut()


async def everything(end: Connection) -> bytes:
    came = b""
    while piece := await end.read(1000):
        came += piece
    return came


async def test_without_toxics_it_passes_all_on_and_both_ends_with_it() -> None:
    async with released(), RawServer(echo) as server, FaultProxy(server.url) as proxy:
        async with client(proxy.url) as end:
            await end.send(SENT)
            end.half_close()
            assert await everything(end) == SENT
        assert proxy.passed == {"up": len(SENT), "down": len(SENT)}
        await server.connections[0].over()
        await proxy.connections[0].over()


async def test_toxics_of_both_directions_work_together() -> None:
    toxics = Slicer(3), LimitData(10), Coalescer(4, direction="up")
    async with released(), RawServer(echo) as server, FaultProxy(server.url, *toxics) as proxy:
        async with client(proxy.url) as end:
            await end.send(b"abcdefghij", b"klm")
            assert await everything(end) == b"abcdefghij"
        await server.connections[0].over()


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_reset_is_one_on_both_sides(direction: Any) -> None:
    async with (
        released(),
        RawServer(echo) as server,
        FaultProxy(server.url, Reset(1, direction=direction)) as proxy,
        client(proxy.url) as end,
    ):
        await end.send(b"ab")
        with pytest.raises(ConnectionError):
            await everything(end)
        await server.connections[0].over()


async def test_a_reset_by_an_end_is_passed_on() -> None:
    async def resets(connection: Connection) -> None:
        await connection.read(1)
        connection.reset()

    async with (
        RawServer(resets) as server,
        FaultProxy(server.url) as proxy,
        client(proxy.url) as end,
    ):
        await end.send(b"a")
        with pytest.raises(ConnectionError):
            await everything(end)


async def test_half_a_connection_goes_on() -> None:
    async with (
        released(),
        RawServer(echo) as server,
        FaultProxy(server.url, HalfClose(3)) as proxy,
        client(proxy.url) as end,
    ):
        await end.send(b"abc", b"def")
        assert await everything(end) == b"abc"
        await end.send(b"ghi")
        end.half_close()
        await server.connections[0].over()
        assert proxy.passed == {"up": 9, "down": 3}


async def test_an_engine_that_is_not_there_is_a_reset() -> None:
    async with RawServer(echo) as server:
        gone = server.url
    async with released(), FaultProxy(gone) as proxy, client(proxy.url) as end:
        with pytest.raises(ConnectionError):
            await everything(end)


async def test_a_proxy_that_ends_lets_go_of_what_hangs() -> None:
    toxics = Blackhole(direction="up"), Latency(60)
    async with released(), RawServer(echo) as server, AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(FaultProxy(server.url, *toxics))
        end = await stack.enter_async_context(client(proxy.url))
        await end.send(b"a")
        await eventually(lambda: len(server.connections) == 1, "the engine has been reached")
        await proxy.stop()
        await server.connections[0].over()
        assert await everything(end) == b""


async def test_a_proxy_that_ends_at_any_moment_leaves_no_socket() -> None:
    async with released(), RawServer(echo) as server:
        for moments in range(40):
            proxy = FaultProxy(server.url)
            await proxy.start()
            async with client(proxy.url) as end:
                end.close()
                for _ in range(moments):
                    await asyncio.sleep(0)
                await proxy.stop()
    gc.collect()  # a writer that nobody closed warns here


async def test_a_server_that_ends_while_it_accepts_leaves_no_socket(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asyncio.get_running_loop().set_debug(True)
    async with released():
        for moments in range(8):
            server = RawServer(echo)
            await server.start()
            port = int(server.url.rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port)) as end:
                for _ in range(moments):
                    await asyncio.sleep(0)
                await server.stop()
                end.settimeout(10.0)
                # The server has let go of it.
                with contextlib.suppress(ConnectionResetError):
                    await asyncio.to_thread(end.recv, 1)
    gc.collect()  # a socket that nobody closed warns here
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


# As users have it.


async def said(connection: Connection) -> None:
    while True:
        request = await connection.request()
        await connection.send(answer(PROPS) if request.path == "/props" else ANSWER)


async def test_in_front_of_an_engine() -> None:
    toxics = Latency(0.01), Slicer(5)
    async with (
        scripted_engine("llamacpp") as engine,
        FaultProxy(engine.url + "/", *toxics) as proxy,
        LlamaCppAdapter(proxy.url) as made,
    ):
        assert (await (await made.submit(task())).collect()).tokens_out == 16
        proxy.toxics = (Reset(),)
        async with adapter(proxy.url) as another:
            outcome = await ask(another, task())
            assert outcome.error is not None
            assert outcome.error.detail == "reset"


def test_in_a_thread() -> None:
    with (
        RawServer(said) as server,
        FaultProxy(server.url, Slicer(5)) as proxy,
        SyncWorkerAdapter(LlamaCppAdapter(proxy.url)) as made,
    ):
        assert made.submit(task()).collect().text == "".join(SAID)


async def test_in_front_of_tls() -> None:
    ca = LocalCa()
    async with (
        RawServer(said, tls=ca.serving()) as server,
        FaultProxy(server.url, Slicer(5)) as proxy,
        adapter(proxy.url, tls=ca.trusted) as made,
    ):
        assert proxy.url.startswith("https://")
        finished(await ask(made, task()))


async def test_a_client_with_a_certificate() -> None:
    ca = LocalCa()
    async with (
        RawServer(said, tls=ca.serving(asks_for_certificate=True)) as server,
        adapter(server.url, tls=ca.client()) as made,
    ):
        finished(await ask(made, task()))


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2])
def test_versions_are_what_was_asked_for(newest: ssl.TLSVersion) -> None:
    context = LocalCa().serving(newest=newest)
    assert (context.minimum_version, context.maximum_version) == (newest, newest)
