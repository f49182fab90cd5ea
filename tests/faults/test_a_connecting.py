"""A: what may happen before there is a connection."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.apart import told_apart
from tests.faults.outcomes import (
    ANSWER,
    LOG,
    SAID,
    TOKENS,
    adapter,
    ask,
    failed,
    finished,
    released,
    sockets_to,
)
from tests.replay.test_url_vectors import ROWS
from tests.transports import Transport, both_transports
from tests.unit.tasks import task
from tests.unit.virtual_time import run as run_virtually
from tests.unit.wire import STREAM_HEAD, engine, eventually, final, playing
from worker_adapters import (
    AdapterError,
    DeadlineUnmet,
    EgressPolicy,
    PoolUnavailable,
    RetryPolicy,
    Timeouts,
)
from worker_adapters.testing.wire import LAST_CHUNK, RawServer
from worker_adapters.transport import _httpx, _native

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker_adapters.testing.wire import Connection, Received

pytestmark = both_transports

told_once = cache(told_apart)


async def says(connection: Connection) -> None:
    await connection.request()
    await connection.send(ANSWER)


def unavailable(told: dict[str, Any], detail: str, phase: str) -> None:
    """Assert what became of a task that was done apart."""
    shown = {key: told[key] for key in ("kind", "detail", "phase", "processed", "retriable")}
    assert shown == {
        "kind": "PoolUnavailable",
        "detail": detail,
        "phase": phase,
        "processed": "no",
        "retriable": True,
    }
    assert told["raised"]


@pytest.mark.parametrize("name", ["nobody", "empty"])
def test_a1_a_name_without_an_address(transport: Transport, name: str) -> None:
    unavailable(told_once(transport)[name], "resolve", "resolve")


def test_a2_a_name_server_that_does_not_answer(transport: Transport) -> None:
    told = told_once(transport)
    for one in told["silent"]:
        unavailable(one, "connect_timeout", "resolve" if transport == "native" else "connect")
        # At the clock of half a second, and not when the lookup gives up.
        assert one["seconds"] < 3.0
    bound = 4 if transport == "native" else min(32, (os.cpu_count() or 1) + 4)
    assert told["threads"] <= bound


def test_a3_a_name_is_asked_for_once(transport: Transport) -> None:
    told = told_once(transport)["rebind"]
    assert (told["tokens"], told["asked"]) == (len(SAID), 1)


def test_a4_refused() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with RawServer(says) as server:
            url = server.url
        async with released():
            for retries in (RetryPolicy(attempts=1), RetryPolicy()):
                async with adapter(url, clock=loop.time, retries=retries) as made:
                    outcome = await ask(made, task())
                    failed(
                        outcome,
                        PoolUnavailable,
                        "connect",
                        phase="connect",
                        processed="no",
                        retriable=True,
                    )
                    assert sockets_to(url) == 0

    run_virtually(main())


def test_a4_a_submit_that_was_refused_is_sent_again() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def answers(connection: Connection, _: Received) -> None:
            await connection.send(ANSWER)

        async with RawServer(says) as gone:
            port = int(gone.url.rpartition(":")[2])
        async with adapter(gone.url, clock=loop.time, retries=RetryPolicy()) as made:
            asked = asyncio.create_task(ask(made, task()))
            # Pauses take up to 0.7 s together, and half of that on average.
            await asyncio.sleep(0.001)
            async with RawServer(engine(answers), port=port) as server:
                finished(await asked)
                assert len(server.received("/completion")) == 1

    run_virtually(main())


OPEN = Path("/proc/self/fd")


def descriptors() -> int:
    return len(list(OPEN.iterdir()))


@contextlib.contextmanager
def deaf() -> Iterator[str]:
    """Yield the URL of a listener whose queue is full, so that the kernel drops every SYN."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(contextlib.closing(socket.create_server(("127.0.0.1", 0))))
        listener.listen(0)
        address = listener.getsockname()
        while True:
            one = stack.enter_context(contextlib.closing(socket.socket()))
            one.settimeout(0.1)
            try:
                one.connect(address)
            except TimeoutError:
                break
        yield f"http://127.0.0.1:{address[1]}"


def test_a5_a_peer_that_does_not_answer() -> None:
    async def main(url: str) -> None:
        loop = asyncio.get_running_loop()
        async with (
            released(),
            adapter(url, clock=loop.time, timeouts=Timeouts(connect=3.0)) as made,
        ):
            before = descriptors()
            outcome = await ask(made, task())
            failed(
                outcome,
                PoolUnavailable,
                "connect_timeout",
                phase="connect",
                processed="no",
                retriable=True,
            )
            assert outcome.seconds == pytest.approx(3.0, abs=0.5)
            # A reactor has three of its own, and none is the socket.
            assert descriptors() <= before + 3

    with deaf() as url:
        run_virtually(main(url))


def test_a6_a_dead_address_gives_way_to_the_next(transport: Transport) -> None:
    told = told_once(transport)["two"]
    assert told["tokens"] == len(SAID)
    # Of the 30 s that connecting may take.
    assert 0.2 <= told["seconds"] < 2.5


@pytest.mark.parametrize("why", ["unreachable", "ports"])
def test_a7_no_way_out(transport: Transport, why: str) -> None:
    unavailable(told_once(transport)[why], "local", "connect")


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(entry.name) for entry in OPEN.iterdir())
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            taken.extend(os.dup(0) for _ in range(highest))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


async def test_a8_no_descriptor_left_is_told_and_streams_go_on() -> None:
    go_on = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(STREAM_HEAD + TOKENS)
        await go_on.wait()
        await connection.send(final(len(SAID)) + LAST_CHUNK)

    async with released(), RawServer(script) as server, adapter(server.url) as made:
        first = asyncio.create_task(ask(made, task()))
        await eventually(lambda: LOG.count("token") == len(SAID), "the first stream is there")
        with no_descriptor_left():
            outcome = await ask(made, task())
            go_on.set()
            finished(await first)
        failed(outcome, PoolUnavailable, "fd", phase="connect", processed="no", retriable=True)
        finished(await ask(made, task()))


def test_a9_what_the_policy_denies_is_not_dialled(transport: Transport) -> None:
    told = told_once(transport)["denied"]
    assert set(told["refused"]) == {
        row["name"] for row in ROWS if not row["allowed"] and "redirect_to" not in row
    }
    for name, (detail, processed) in told["refused"].items():
        # What no URL parser takes is refused when the adapter is made.
        assert detail in {"egress_denied", "ValueError"}, name
        assert processed == "no", name
    assert "egress_denied" in {detail for detail, _ in told["refused"].values()}
    assert told["dialled"] == 0


@pytest.mark.parametrize(
    "url",
    [
        # Nobody asks for its address; it has none.
        "http://name.invalid:8000",
        # Readable for the policy, and not for every parser.
        "http://0177.0.0.01:8000",
        "http://256.1.1.1:8000",
    ],
)
async def test_a9_denied_is_final(url: str) -> None:
    policy = EgressPolicy(allow=["http://10.20.0.0/16:8000"])
    async with released(), adapter(url, egress=policy, retries=RetryPolicy()) as made:
        failed(
            await ask(made, task()),
            AdapterError,
            "egress_denied",
            phase="resolve",
            processed="no",
            retriable=False,
        )


def test_a10_as_many_as_allowed_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_httpx, "MAX_REQUESTS", 1)
    for module in (_httpx, _native):
        monkeypatch.setattr(module, "MAX_WAITING", 1)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        go_on = asyncio.Event()

        async def script(connection: Connection) -> None:
            await connection.request()
            await go_on.wait()
            await connection.send(ANSWER)

        def saturated(outcome: Any) -> None:
            failed(
                outcome,
                PoolUnavailable,
                "saturated",
                phase="queue",
                processed="no",
                retriable=True,
            )

        async with (
            released(),
            playing(script) as server,
            adapter(server.url, clock=loop.time, max_streams=1) as made,
        ):
            first = asyncio.create_task(ask(made, task()))
            await eventually(lambda: bool(server.connections), "the first has its place")

            # The second waits as long as one may, and the third need not.
            second = asyncio.create_task(ask(made, task()))
            await asyncio.sleep(0.1)
            third = await ask(made, task())
            saturated(third)
            assert third.seconds < 0.1
            saturated(await second)
            assert second.result().seconds == pytest.approx(5.0, abs=0.2)

            # No longer than it has.
            late = await ask(made, task(deadline_ms=2_000))
            failed(
                late,
                DeadlineUnmet,
                "deadline",
                phase="queue",
                processed="no",
                retriable=False,
            )
            assert late.seconds == pytest.approx(2.0, abs=0.2)

            # One that is cancelled while it waits leaves the queue, and takes no place later.
            given_up = asyncio.create_task(made.submit(task()))
            await asyncio.sleep(0.1)
            given_up.cancel()
            with pytest.raises(asyncio.CancelledError):
                await given_up
            go_on.set()
            finished(await first)
            finished(await ask(made, task()))

    run_virtually(main())
