"""C: what may happen while a request is sent, and before anything has come back."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from tests.faults.outcomes import (
    ANSWER,
    RESTING_ANSWER,
    adapter,
    ask,
    failed,
    finished,
    released,
    resting,
    until_sockets,
)
from tests.transports import both_transports
from tests.unit.tasks import task
from tests.unit.virtual_time import run as run_virtually
from tests.unit.wire import playing
from worker_adapters import (
    AdapterError,
    PoolUnavailable,
    RetryPolicy,
    Timeouts,
    WorkerReset,
)
from worker_adapters.testing.faults import Blackhole, FaultProxy, LimitData, Reset
from worker_adapters.testing.wire import RawServer, response

if TYPE_CHECKING:
    from tests.faults.outcomes import Outcome
    from worker_adapters.testing.faults import Toxic
    from worker_adapters.testing.wire import Connection

pytestmark = both_transports

LARGE = "x" * (24 << 20)
"""More of a prompt than the buffers of two sockets take."""


def reset(outcome: Outcome, engine: str = "llamacpp") -> None:
    failed(
        outcome,
        WorkerReset,
        "reset",
        phase="head",
        processed="unknown",
        retriable=True,
        engine=engine,
    )


@pytest.mark.parametrize("cut", [Reset(1, direction="up"), LimitData(1, direction="up")])
async def test_c1_a_submit_cut_off_is_sent_once(cut: Toxic) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()

    async with (
        released(),
        RawServer(script) as server,
        FaultProxy(server.url, cut) as proxy,
        adapter(proxy.url, retries=RetryPolicy()) as made,
    ):
        reset(await ask(made, task()))
        assert len(proxy.connections) == 1
        await until_sockets(proxy.url, 0)


def test_c1_a_question_cut_off_is_asked_again() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def script(connection: Connection) -> None:
            await connection.request()
            connection.reset()

        async with (
            released(),
            playing(script) as server,
            adapter(server.url, clock=loop.time, retries=RetryPolicy()) as made,
        ):
            made._identity = None
            with pytest.raises(WorkerReset) as caught:
                await made.engine_version()
            assert (caught.value.detail, caught.value.processed) == ("reset", "unknown")
            assert len(server.received("/props")) == 4

    run_virtually(main())


class Leaving:
    """An engine in another thread, which closes a connection at rest when it is told to."""

    def __init__(self, *, by_reset: bool) -> None:
        self.server = RawServer(self._play)
        self._by_reset = by_reset
        self._leave: asyncio.Event
        self._loop: asyncio.AbstractEventLoop
        self._left = threading.Event()

    async def _play(self, connection: Connection) -> None:
        self._loop, self._leave = asyncio.get_running_loop(), asyncio.Event()
        await connection.request()
        await connection.send(RESTING_ANSWER)
        await self._leave.wait()
        if self._by_reset:
            connection.reset()
            await connection.until_closed()  # which the loop does later
        else:
            connection.half_close()
        self._left.set()

    def leave(self) -> None:
        """Return when the connection has been closed; the caller's loop has not turned."""
        self._loop.call_soon_threadsafe(self._leave.set)
        assert self._left.wait(5)


@pytest.mark.parametrize("by_reset", [False, True])
@pytest.mark.parametrize("seen", [False, True])
async def test_c2_a_connection_closed_at_rest_is_replaced_unseen(
    by_reset: bool, seen: bool
) -> None:
    engine = Leaving(by_reset=by_reset)
    async with released(), AsyncExitStack() as stack:
        server = stack.enter_context(engine.server)
        made = await stack.enter_async_context(resting(server.url))
        finished(await ask(made, task(engine="vllm")))
        await until_sockets(server.url, 1)
        engine.leave()
        if seen:
            await until_sockets(server.url, 0)
        finished(await ask(made, task(engine="vllm")))
        assert [len(one.received) for one in server.connections] == [1, 1]


@pytest.mark.parametrize("by_reset", [False, True])
async def test_c2_one_that_is_closed_after_the_write_is_a_reset(by_reset: bool) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(RESTING_ANSWER)
        await connection.request()
        if by_reset:
            connection.reset()

    async with (
        released(),
        RawServer(script) as server,
        resting(server.url, retries=RetryPolicy()) as made,
    ):
        finished(await ask(made, task(engine="vllm")))
        reset(await ask(made, task(engine="vllm")), "vllm")
        assert [len(one.received) for one in server.connections] == [2]
        await until_sockets(server.url, 0)


def test_c3_an_engine_that_does_not_read() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def script(connection: Connection) -> None:
            await connection.until_closed()

        async with (
            released(),
            playing(script) as server,
            FaultProxy(server.url, Blackhole(100, reads=False, direction="up")) as proxy,
            adapter(proxy.url, clock=loop.time, timeouts=Timeouts(first_token=10.0)) as made,
        ):
            outcome = await ask(made, task(prompt=LARGE))
            failed(
                outcome,
                PoolUnavailable,
                "write_timeout",
                phase="write",
                processed="unknown",
                retriable=True,
            )
            assert outcome.seconds == pytest.approx(10.0, abs=0.5)
            assert proxy.passed["up"] == 100
            await until_sockets(proxy.url, 0)

    run_virtually(main())


@pytest.mark.parametrize(("status", "detail"), [(413, "invalid_request"), (401, "unauthorized")])
async def test_c4_an_answer_to_half_a_request_is_heard(status: int, detail: str) -> None:
    async def script(connection: Connection) -> None:
        await connection.read(1000)
        await connection.send(response("no", f"{status} X"))
        # What was not read has the kernel send a reset behind the answer.
        connection.cut()

    async with released(), RawServer(script) as server, adapter(server.url) as made:
        failed(
            await ask(made, task(prompt=LARGE)),
            AdapterError,
            detail,
            phase="head",
            processed="no",
            retriable=False,
            status=status,
        )
        assert len(server.connections) == 1
        await until_sockets(server.url, 0)


INTERIM = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"


@pytest.mark.parametrize(
    "before",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\n" + INTERIM,
        INTERIM * 16,
    ],
)
async def test_c5_interim_answers_are_skipped(before: bytes) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(before + ANSWER)

    async with released(), RawServer(script) as server, adapter(server.url) as made:
        finished(await ask(made, task()))


@pytest.mark.parametrize("count", [17, 1000])
async def test_c5_but_not_for_ever(count: int) -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(INTERIM * count + ANSWER)

    async with released(), RawServer(script) as server, adapter(server.url) as made:
        failed(
            await ask(made, task()),
            AdapterError,
            "protocol",
            phase="head",
            processed="unknown",
            retriable=False,
        )
        await until_sockets(server.url, 0)
