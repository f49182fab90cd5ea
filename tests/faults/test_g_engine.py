"""G: the engine is slow, gone, another one than before, or does not do as it is told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.playing import (
    HELLO,
    SPOKE,
    adapter_of,
    completions,
    followed,
    left,
    saying,
    task_of,
    told,
)
from tests.transports import both_transports
from tests.unit.test_abort import Aborting, ids
from tests.unit.test_abort import engine as aborting_engine
from tests.unit.test_abort import saying as abortable
from tests.unit.test_abort import started as begun
from tests.unit.virtual_time import run as run_virtually
from tests.unit.wire import (
    LAST_CHUNK,
    PROPS,
    STREAM_HEAD,
    Connection,
    Received,
    answer,
    final,
    playing,
)
from worker_adapters import AdapterError, PoolUnavailable, RetryPolicy, Timeouts
from worker_adapters.testing.engines import SCRIPTED, scripted_engine

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.unit.wire import Script, Server

pytestmark = both_transports

TELLING = ("sglang", "llamacpp")
"""One whose abort is a request of its own, and one that is told by closing."""


def was_let_go(server: Any) -> None:
    """The connection was closed, and where the engine has an abort, it was sent."""
    [generation] = server.generations
    assert generation.outcome == "left"
    assert server.aborts == ([generation.id] if server.dialect == "sglang" else [])


@pytest.mark.parametrize("hang", ["head", "first"])
@pytest.mark.parametrize("name", TELLING)
def test_g1_no_first_token(name: str, hang: Any) -> None:
    async def main() -> None:
        server = SCRIPTED[name](hang=hang)
        asked = task_of(name, deadline_ms=600_000)
        outcome = await told(server, asked, timeouts=Timeouts(first_token=120.0, idle=None))
        assert outcome.outcome == ("DecodeTimeout", "first_token")
        assert outcome.seconds == pytest.approx(120.0, abs=0.5)
        assert outcome.is_raised is (hang == "head")
        assert (outcome.fault.retriable, outcome.tokens) == (True, [])
        was_let_go(server)

    run_virtually(main())


@pytest.mark.parametrize("name", TELLING)
def test_g2_tokens_stop(name: str) -> None:
    async def main() -> None:
        server = SCRIPTED[name](hang="stream", after=3)
        outcome = await told(server, timeouts=Timeouts(token_gap=30.0, idle=None))
        assert outcome.outcome == ("DecodeTimeout", "token_gap")
        assert outcome.seconds == pytest.approx(30.0, abs=0.5)
        assert (len(outcome.tokens), outcome.fault.tokens_emitted) == (3, 3)
        assert (outcome.fault.retriable, outcome.fault.processed) == (True, "yes")
        was_let_go(server)

    run_virtually(main())


def test_g2_tokens_stop_in_a_hundred_streams_at_once() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        silent = Timeouts(token_gap=30.0, idle=None)
        async with (
            SCRIPTED["llamacpp"](hang="stream", after=3) as server,
            adapter_of("llamacpp", server.url, timeouts=silent, clock=loop.time) as made,
        ):
            began = loop.time()
            tasks = [task_of("llamacpp") for _ in range(100)]
            streams = await asyncio.gather(*map(made.submit, tasks))
            for outcome in await asyncio.gather(*map(followed, streams)):
                assert outcome.outcome == ("DecodeTimeout", "token_gap")
                assert len(outcome.tokens) == 3
            assert loop.time() - began == pytest.approx(30.0, abs=1.0)
            await left(server)
            assert [row.outcome for row in server.generations] == ["left"] * 100

    run_virtually(main())


@pytest.mark.parametrize("name", TELLING)
def test_g3_a_trickle_without_end(name: str) -> None:
    async def main() -> None:
        server = SCRIPTED[name](delay_ms=29_000)
        asked = task_of(name, deadline_ms=200_000, max_tokens=1000)
        outcome = await told(server, asked, timeouts=Timeouts(token_gap=30.0, idle=None))
        assert outcome.outcome == ("DeadlineUnmet", "deadline")
        assert outcome.seconds == pytest.approx(200.0, abs=0.5)
        assert len(outcome.tokens) == outcome.fault.tokens_emitted == 6
        assert (outcome.fault.retriable, outcome.fault.phase) == (False, "stream")
        was_let_go(server)

    run_virtually(main())


def version(build: str, then: Callable[[Connection], Awaitable[None]]) -> Script:
    """Return a llama.cpp of that build; ``then`` is what becomes of a stream that has begun."""

    async def play(connection: Connection) -> None:
        while True:
            request = await connection.request()
            match request.path:
                case "/props":
                    props = PROPS.replace("b1-0c1e570", build)
                    await connection.send(answer(props))
                case "/health":
                    await connection.send(answer('{"status":"ok"}'))
                case _:
                    await connection.send(STREAM_HEAD, *HELLO)
                    await then(connection)

    return play


async def killed(connection: Connection) -> None:
    connection.reset()


async def done(connection: Connection) -> None:
    await connection.send(final(2), LAST_CHUNK)


async def put_in_place(old: Server, build: str) -> Server:
    """Start a server where another has been."""
    made = playing(version(build, done))
    made._address = ("127.0.0.1", int(old.url.rpartition(":")[2]))
    await made.start()
    return made


async def test_g4_gone_between_a_probe_and_a_submit() -> None:
    old = playing(version("b1-old", done))
    await old.start()
    async with adapter_of("llamacpp", old.url) as made:
        assert (await made.health()).ready
        assert await made.engine_version() == "b1-old"
        await old.stop()
        with pytest.raises(PoolUnavailable) as caught:
            await made.submit(task_of("llamacpp"))
        error = caught.value
        assert (error.detail, error.processed, error.retriable) == ("connect", "no", True)
        new = await put_in_place(old, "b2-new")
        outcome = await followed(await made.submit(task_of("llamacpp")))
        assert outcome.events[0].engine_version == "b2-new"
        assert await made.engine_version() == "b2-new"
    await new.stop()


async def test_g4_killed_in_mid_stream_and_another_version_behind_it() -> None:
    old = playing(version("b1-old", killed))
    await old.start()
    async with adapter_of("llamacpp", old.url) as made:
        outcome = await followed(await made.submit(task_of("llamacpp")))
        assert outcome.outcome == ("WorkerReset", "reset")
        assert outcome.tokens == list(SPOKE)
        await old.stop()
        new = await put_in_place(old, "b2-new")
        outcome = await followed(await made.submit(task_of("llamacpp")))
        assert (outcome.tokens, outcome.kinds[-1]) == (list(SPOKE), "end")
        assert outcome.events[0].engine_version == "b2-new"
    await new.stop()


async def refusing(connection: Connection, _: Received) -> None:
    await connection.send(answer('{"detail":"Not Found"}', "404 Not Found"))


async def failing(connection: Connection, _: Received) -> None:
    await connection.send(answer("", "500 Internal Server Error"))


async def hanging(connection: Connection, _: Received) -> None:
    await connection.until_closed()


async def resetting(connection: Connection, _: Received) -> None:
    connection.reset()


ABORTS = {"missing": (refusing, 1), "fails": (failing, 3), "breaks": (resetting, 3)}


@pytest.mark.parametrize("what", [*ABORTS, "hangs"])
def test_g6_an_abort_that_comes_to_nothing(what: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        script, tries = ABORTS.get(what, (hanging, 1))
        saying_hello = abortable(STREAM_HEAD, *HELLO)
        async with aborting_engine(saying_hello, script, retries=RetryPolicy()) as (made, server):
            stream = await begun(made)
            cancelled = loop.time()
            receipt = await stream.cancel()
            assert (receipt.method, receipt.sent, receipt.confirmed) == ("close+abort", True, None)
            # Here it is over at once, whatever becomes of the abort, and there is no second error.
            assert loop.time() - cancelled < 0.05
            [end] = [event async for event in stream]
            assert (end.kind, end.finish_reason) == ("end", "cancelled")
            [connection] = completions(server)
            await connection.over()
            await made._aborts.taken()
            assert loop.time() - cancelled < 2.1
            assert ids(server, "/abort") == ids(server, "/completion") * tries

    run_virtually(main())


def test_g6_a_confirmation_that_does_not_come() -> None:
    async def main() -> None:
        async with aborting_engine(abortable(STREAM_HEAD, *HELLO), hanging) as (made, _):
            stream = await begun(made)
            receipt = await stream.cancel(confirm_within_ms=60_000)
            assert (receipt.sent, receipt.confirmed) == (True, False)
            assert receipt.elapsed_ms < 2_100

    run_virtually(main())


def test_g6_only_what_has_an_abort_sends_one() -> None:
    assert Aborting.cancel_kind == "close+abort"

    async def main() -> None:
        async with aborting_engine(abortable(STREAM_HEAD, *HELLO)) as (made, server):
            made.aborts = False
            stream = await begun(made)
            assert (await stream.cancel()).method == "close"
            assert ids(server, "/abort") == []

    run_virtually(main())


async def test_g7_a_task_id_that_is_under_way() -> None:
    asked = task_of("llamacpp")
    go_on = asyncio.Event()

    async def end(connection: Connection) -> None:
        await go_on.wait()
        await connection.send(final(2), LAST_CHUNK)

    async with (
        saying(STREAM_HEAD, *HELLO, then=end) as server,
        adapter_of("llamacpp", server.url) as made,
    ):
        first = await made.submit(asked)
        with pytest.raises(AdapterError) as caught:
            await made.submit(asked)
        error = caught.value
        assert (error.detail, error.retriable, error.processed) == ("duplicate_id", False, "no")
        go_on.set()
        outcome = await followed(first)
        assert (outcome.tokens, outcome.kinds[-1]) == (list(SPOKE), "end")
        again = await followed(await made.submit(asked))
        assert (again.tokens, again.kinds[-1]) == (list(SPOKE), "end")
        assert len(completions(server)) == 2


async def test_g7_many_of_one_id_at_once() -> None:
    asked = task_of("llamacpp")
    async with (
        scripted_engine("llamacpp") as server,
        adapter_of("llamacpp", server.url) as made,
    ):
        came = await asyncio.gather(
            *(made.submit(asked) for _ in range(20)), return_exceptions=True
        )
        refused = [error for error in came if isinstance(error, AdapterError)]
        assert [error.detail for error in refused] == ["duplicate_id"] * 19
        [stream] = [one for one in came if not isinstance(one, BaseException)]
        assert (await followed(stream)).kinds[-1] == "end"
        assert len(server.generations) == 1
