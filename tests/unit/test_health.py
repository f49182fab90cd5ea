"""Whether an engine is ready: one bad probe, another model, and what it does not tell."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.transports import both_transports
from tests.unit.tasks import adapter, task
from tests.unit.virtual_time import run as run_virtually
from tests.unit.wire import LAST_CHUNK, PROPS, STREAM_HEAD, answer, final, playing
from worker_adapters import AdapterError, ExpectedModel, Timeouts, WorkerHealth, WorkerIdentity
from worker_adapters.engines._identity import CAPABILITIES_SECONDS, FLAP_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.unit.wire import Connection, Server
    from worker_adapters.engines.llamacpp import LlamaCppAdapter

    Probe = Callable[[Connection], Awaitable[None]]

pytestmark = both_transports

OK = WorkerHealth(live=True, ready=True)


async def good(connection: Connection) -> None:
    await connection.send(answer('{"status":"ok"}'))


async def silent(connection: Connection) -> None:
    await connection.until_closed()


async def cut(connection: Connection) -> None:
    connection.close()


async def half(connection: Connection) -> None:
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")
    connection.close()


async def loading(connection: Connection) -> None:
    body = '{"error":{"message":"Loading model","type":"unavailable_error","code":503}}'
    await connection.send(answer(body, "503 Service Unavailable"))


@asynccontextmanager
async def probed(*probes: Probe, **options: Any) -> AsyncIterator[tuple[LlamaCppAdapter, Server]]:
    """Play one of these per health request, in order; an adapter on the loop's clock."""
    following = iter(probes)

    async def script(connection: Connection) -> None:
        while True:
            if (await connection.request()).path == "/props":
                await connection.send(answer(PROPS))
            else:
                await next(following)(connection)

    clock = asyncio.get_running_loop().time
    timeouts = Timeouts(unary=1.0)
    async with (
        playing(script) as server,
        adapter(server.url, clock=clock, timeouts=timeouts, **options) as made,
    ):
        yield made, server
    assert next(following, None) is None, "a probe was not made"


# One bad probe.


@pytest.mark.parametrize("bad", [silent, cut, half])
def test_one_bad_probe_after_a_good_one_does_not_flip_it(bad: Probe) -> None:
    async def main() -> None:
        async with probed(good, bad, good) as (made, _):
            assert await made.health() == OK
            assert await made.health() == OK

    run_virtually(main())


@pytest.mark.parametrize(
    ("bad", "reason", "live"),
    [(silent, "unary_timeout", False), (cut, "reset", False), (half, "truncated", False)],
)
def test_two_in_a_row_flip_it_and_so_does_the_next(bad: Probe, reason: str, live: bool) -> None:
    async def main() -> None:
        async with probed(good, bad, bad, bad, good) as (made, _):
            assert await made.health() == OK
            down = WorkerHealth(live=live, ready=False, reason=reason)
            assert await made.health() == down
            # Not ready before: one bad probe is enough.
            assert await made.health() == down
            assert await made.health() == OK

    run_virtually(main())


def test_a_bad_probe_without_a_good_one_before_is_believed() -> None:
    async def main() -> None:
        async with probed(cut, good) as (made, _):
            assert not (await made.health()).ready
            assert await made.health() == OK

    run_virtually(main())


@pytest.mark.parametrize(
    ("probes", "takes", "ready"),
    [
        ((silent, silent), 1.0, False),
        ((silent, good), 0.5, True),
        ((cut, silent), 1.0, False),
    ],
)
def test_two_probes_take_no_longer_than_one_may(
    probes: tuple[Probe, ...], takes: float, ready: bool
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with probed(good, *probes) as (made, _):
            assert await made.health() == OK
            began = loop.time()
            assert (await made.health()).ready is ready
            assert loop.time() - began == pytest.approx(takes, abs=0.05)

    run_virtually(main())


def test_a_probe_and_the_question_for_the_model_take_no_longer_than_one_call_may() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def slow(connection: Connection) -> None:
            while True:
                path = (await connection.request()).path
                await asyncio.sleep(0.4)
                if path == "/props":
                    await connection.until_closed()
                await good(connection)

        async with (
            playing(slow) as server,
            adapter(
                server.url,
                clock=loop.time,
                timeouts=Timeouts(unary=1.0),
                expect=ExpectedModel(name="tiny"),
            ) as made,
        ):
            began = loop.time()
            found = await made.health()
            # It answered the first question.
            assert found == WorkerHealth(live=True, ready=False, reason="unary_timeout")
            assert loop.time() - began == pytest.approx(1.0, abs=0.05)

    run_virtually(main())


async def test_an_engine_that_is_gone_after_its_first_answer_is_not_live() -> None:
    async def dying(connection: Connection) -> None:
        await connection.request()
        await good(connection)
        await connection.request()
        connection.close()

    expect = ExpectedModel(name="tiny")
    async with playing(dying) as server, adapter(server.url, expect=expect) as made:
        assert await made.health() == WorkerHealth(live=False, ready=False, reason="reset")


@pytest.mark.parametrize(("age", "ready"), [(FLAP_SECONDS - 1, True), (FLAP_SECONDS + 1, False)])
def test_a_good_probe_counts_for_a_while(age: float, ready: bool) -> None:
    async def main() -> None:
        probes = (good, cut, good) if ready else (good, cut)
        async with probed(*probes) as (made, _):
            assert await made.health() == OK
            await asyncio.sleep(age)
            assert (await made.health()).ready is ready

    run_virtually(main())


def test_what_the_engine_says_itself_is_believed_at_once() -> None:
    async def main() -> None:
        async with probed(good, loading) as (made, _):
            assert await made.health() == OK
            found = await made.health()
            assert found == WorkerHealth(live=True, ready=False, reason="loading")
            assert found.state == "loading"

    run_virtually(main())


async def test_a_refused_connection_is_believed_at_once() -> None:
    async with probed(good) as (made, _):
        assert await made.health() == OK
    async with adapter("http://127.0.0.1:1") as made:
        made._ready_at = made._clock()
        assert await made.health() == WorkerHealth(live=False, ready=False, reason="connect")


@pytest.mark.parametrize(
    ("health", "state"),
    [
        (OK, "ready"),
        (WorkerHealth(live=True, ready=False, reason="loading"), "loading"),
        (WorkerHealth(live=True, ready=False, reason="draining"), "draining"),
        (WorkerHealth(live=True, ready=False, reason="wrong_model"), "failed"),
        (WorkerHealth(live=True, ready=False), "failed"),
        (WorkerHealth(live=False, ready=False, reason="connect"), "unreachable"),
    ],
)
def test_the_state_in_one_word(health: WorkerHealth, state: str) -> None:
    assert health.state == state


# The model that is expected.


@pytest.mark.parametrize(
    ("expected", "told", "differs"),
    [
        ({}, {"model": "other"}, False),
        ({"name": "tiny"}, {"model": "tiny"}, False),
        ({"name": "tiny"}, {"model": "other"}, True),
        ({"name": "tiny"}, {}, False),
        ({"path": "/models/a.gguf"}, {"model_path": "/models/a.gguf"}, False),
        ({"path": "/models/a.gguf"}, {"model_path": "/other/a.gguf"}, True),
        ({"path": "/models/a.gguf"}, {"model_path": "a.gguf"}, False),
        ({"path": "/models/a.gguf"}, {"model_path": "./b.gguf"}, True),
        ({"path": "/models/a.gguf"}, {}, False),
        ({"path": "C:\\models\\a.gguf"}, {"model_path": "c:\\Models\\a.gguf"}, False),
        ({"path": "/models/a.gguf"}, {"model_path": "models\\a.gguf"}, False),
        ({"digest": "sha256:AB12"}, {"model_digest": "ab12"}, False),
        ({"digest": "sha256:ab12"}, {"model_digest": "sha256:ab13"}, True),
        ({"digest": "ab12"}, {}, False),
        ({"name": "tiny", "digest": "ab12"}, {"model": "tiny", "model_digest": "cd"}, True),
    ],
)
def test_what_is_another_model(
    expected: dict[str, str], told: dict[str, str], differs: bool
) -> None:
    identity = WorkerIdentity(engine_version="b1", **told)
    assert ExpectedModel(**expected).differs_from(identity) is differs


def serving(models: list[str]) -> Callable[[Connection], Awaitable[None]]:
    """Return an engine that is asked for its model this often, and has these loaded."""
    following = iter(models)

    async def script(connection: Connection) -> None:
        while True:
            request = await connection.request()
            if request.path == "/props":
                props = json.loads(PROPS) | {"model_alias": next(following)}
                await connection.send(answer(json.dumps(props)))
            elif request.path == "/health":
                await good(connection)
            else:
                await connection.send(STREAM_HEAD, final(0), LAST_CHUNK)

    return script


async def test_another_model_is_not_ready_until_it_is_loaded() -> None:
    expect = ExpectedModel(name="tiny")
    async with (
        playing(serving(["other", "tiny", "other"])) as server,
        adapter(server.url, expect=expect) as made,
    ):
        wrong = WorkerHealth(live=True, ready=False, reason="wrong_model")
        assert await made.health() == wrong
        assert await made.health() == OK
        assert await made.health() == wrong


async def test_another_model_gets_no_task() -> None:
    expect = ExpectedModel(name="tiny")
    async with (
        playing(serving(["other", "tiny"])) as server,
        adapter(server.url, expect=expect) as made,
    ):
        with pytest.raises(AdapterError) as caught:
            await made.submit(task())
        error = caught.value
        assert (error.detail, error.phase, error.processed) == ("wrong_model", "validate", "no")
        assert server.requests("/completion") == []
        # It is asked again: another one may be loaded by now.
        whole = await (await made.submit(task())).collect()
        assert whole.model == "tiny"


def test_an_engine_that_was_replaced_gets_no_task_once_what_it_told_is_old() -> None:
    async def main() -> None:
        clock = asyncio.get_running_loop().time
        expect = ExpectedModel(name="tiny")
        async with (
            playing(serving(["tiny", "tiny", "other"])) as server,
            adapter(server.url, expect=expect, clock=clock) as made,
        ):
            await (await made.submit(task())).collect()
            await asyncio.sleep(CAPABILITIES_SECONDS - 1)
            # A good probe has just asked: nobody has to again.
            assert await made.health() == OK
            await asyncio.sleep(CAPABILITIES_SECONDS - 1)
            await (await made.submit(task())).collect()
            assert len(server.requests("/props")) == 2
            await asyncio.sleep(1)
            with pytest.raises(AdapterError) as caught:
                await made.submit(task())
            assert caught.value.detail == "wrong_model"

    run_virtually(main())


@pytest.mark.parametrize("props", [answer("no", "404 Not Found"), answer("{}"), answer("[]")])
async def test_an_engine_that_does_not_tell_its_model_is_taken_as_it_is(props: bytes) -> None:
    async def script(connection: Connection) -> None:
        while True:
            path = (await connection.request()).path
            if path == "/props":
                await connection.send(props)
            elif path == "/health":
                await good(connection)
            else:
                await connection.send(STREAM_HEAD, final(0), LAST_CHUNK)

    expect = ExpectedModel(name="tiny", path="/models/tiny.gguf", digest="ab12")
    async with playing(script) as server, adapter(server.url, expect=expect) as made:
        assert await made.health() == OK
        assert (await (await made.submit(task())).collect()).finish_reason == "length"


async def test_any_answer_is_a_sign_of_life() -> None:
    async def nonsense(connection: Connection) -> None:
        while (await connection.request()).path == "/health":
            await good(connection)
        await connection.send(answer("{}", "500 Oops"))

    async with (
        playing(nonsense) as server,
        adapter(server.url, expect=ExpectedModel(name="tiny")) as made,
    ):
        found = await made.health()
    assert (found.live, found.ready) == (True, False)


# What is no answer of an engine's.


async def test_a_client_that_raises_what_it_likes() -> None:
    def raising(failure: type[BaseException]) -> httpx.MockTransport:
        async def handle(_: httpx.Request) -> httpx.Response:
            raise failure("of the client's own")

        return httpx.MockTransport(handle)

    async with (
        httpx.AsyncClient(transport=raising(LookupError)) as client,
        adapter("http://engine", http_client=client) as made,
    ):
        assert await made.health() == WorkerHealth(live=False, ready=False, reason="internal")
    async with (
        httpx.AsyncClient(transport=raising(asyncio.CancelledError)) as client,
        adapter("http://engine", http_client=client) as made,
    ):
        with pytest.raises(asyncio.CancelledError):
            await made.health()
