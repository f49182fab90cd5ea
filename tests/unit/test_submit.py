"""Submit until the engine has answered: what is refused, what is sent, what is raised."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import threading
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from tests.transports import both_transports
from tests.unit.tasks import PROMPT, adapter, fields, task
from tests.unit.test_stream import saying, shape
from tests.unit.virtual_time import run as run_virtually
from tests.unit.wire import (
    LAST_CHUNK,
    PROPS,
    STREAM_HEAD,
    WITHIN,
    answer,
    engine,
    eventually,
    final,
    frame,
    playing,
)
from worker_adapters import (
    AdapterError,
    DeadlineUnmet,
    DecodeTimeout,
    Extensions,
    InternalError,
    PoolUnavailable,
    SamplerProfile,
    SubmitContext,
    Timeouts,
    WorkerAdapter,
    WorkerError,
    WorkerIdentity,
    WorkerReset,
)
from worker_adapters.engines._identity import CAPABILITIES_SECONDS
from worker_adapters.transport import _httpx as module

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from tests.unit.wire import Connection, Received
    from worker_adapters import CancelReceipt, TokenStream
    from worker_adapters.engines.llamacpp import LlamaCppAdapter

pytestmark = both_transports

GREEDY = SamplerProfile(name="greedy", version="g-1", temperature=0)


async def refused(work: Awaitable[object]) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        await work
    error = caught.value
    assert error.engine == "llamacpp"
    assert error.correlation_id
    assert PROMPT not in f"{error!r} {error}"
    return error


async def nothing(connection: Connection, _: Received) -> None:
    """Answer nothing, and stay."""
    await connection.until_closed()


# Before anything is sent.


@pytest.mark.parametrize(
    ("changes", "detail", "said"),
    [
        ({"engine": "vllm"}, "invalid_request", "vllm"),
        ({"sampler_profile_version": "other"}, "invalid_request", "sampler profile"),
        ({"seed": -1}, "invalid_request", "seed must be from 0 to 4294967294"),
        ({"seed": 2**32 - 1}, "invalid_request", "seed must be from 0 to 4294967294"),
    ],
)
async def test_what_no_engine_is_asked_about(
    changes: dict[str, Any], detail: str, said: str
) -> None:
    async with adapter("http://127.0.0.1:1") as made:
        error = await refused(made.submit(task(**changes)))
    assert isinstance(error, AdapterError)
    assert (error.code, error.detail, error.phase) == ("INVALID_PARAMS", detail, "validate")
    assert (error.retriable, error.processed) == (False, "no")
    assert said in error.message


async def test_an_extension_the_engine_is_not_told_of() -> None:
    beyond = Extensions.all().task_request(
        **fields(extensions={"stop": ["x"], "lora": "l"}),
    )
    async with adapter("http://127.0.0.1:1") as made:
        made._identity = WorkerIdentity(engine_version="b1234")
        error = await refused(made.submit(beyond))
    assert isinstance(error, AdapterError)
    assert (error.code, error.detail) == ("INVALID_PARAMS", "unsupported")
    assert error.message == "llamacpp b1234 does not support lora"


@pytest.mark.parametrize("budget", [0, -1, -(2**63)])
async def test_a_deadline_that_has_passed(budget: int) -> None:
    async with adapter("http://127.0.0.1:1") as made:
        error = await refused(made.submit(task(deadline_ms=budget)))
    assert isinstance(error, DeadlineUnmet)
    assert (error.detail, error.phase, error.processed) == ("deadline", "validate", "no")


@pytest.mark.parametrize("budget", [100, 2**63 - 1])
async def test_a_deadline_near_and_far(budget: int) -> None:
    async with playing(saying(final(0), LAST_CHUNK)) as server, adapter(server.url) as made:
        whole = await (await made.submit(task(deadline_ms=budget))).collect()
    assert whole.finish_reason == "length"


async def test_a_closed_adapter_takes_nothing() -> None:
    made = adapter("http://127.0.0.1:1")
    await made.aclose()
    error = await refused(made.submit(task()))
    assert isinstance(error, InternalError)
    assert error.detail == "closed"
    assert isinstance(await refused(made.props()), InternalError)
    health = await made.health()
    assert (health.live, health.ready, health.reason) == (False, False, "closed")


async def test_the_same_task_twice() -> None:
    async with playing(saying(frame("a", 1))) as server, adapter(server.url) as made:
        first = task()
        stream = await made.submit(first)
        error = await refused(made.submit(first))
        assert (error.detail, error.code) == ("duplicate_id", "INVALID_PARAMS")
        await stream.aclose()
        again = await made.submit(first)
        await again.aclose()


async def test_the_same_task_while_the_first_waits_for_its_head() -> None:
    async with playing(engine(nothing)) as server, adapter(server.url) as made:
        first = task()
        waiting = asyncio.create_task(made.submit(first))
        await eventually(lambda: bool(made._submits), "on its way")
        assert (await refused(made.submit(first))).detail == "duplicate_id"
        await made.cancel(first.task_id)
        assert shape([event async for event in await waiting]) == ["end:cancelled"]


async def test_more_context_than_the_engine_has() -> None:
    async with playing(saying(final(0), LAST_CHUNK)) as server, adapter(server.url) as made:
        error = await refused(made.submit(task(ctx=1025)))
        assert (error.code, error.detail) == ("INVALID_PARAMS", "context_overflow")
        assert "1024" in error.message
        await (await made.submit(task(ctx=1024))).collect()


# What is sent.


async def test_headers_and_started_carry_the_context() -> None:
    async def script(connection: Connection, _: Received) -> None:
        await connection.send(STREAM_HEAD, final(0), LAST_CHUNK)

    context = SubmitContext(
        job_id="j",
        correlation_id="c-1",
        queue_position=3,
        predicted_start_ms=250,
        traceparent="00-abc-def-01",
        tracestate="vendor=1",
    )
    async with (
        playing(engine(script)) as server,
        adapter(server.url, api_key="sk-hunter22") as made,
    ):
        stream = await made.submit(task(), context=context)
        started = await anext(stream)
        await stream.collect()
    [request] = server.requests("/completion")
    assert request.headers["x-correlation-id"] == "c-1"
    assert request.headers["traceparent"] == "00-abc-def-01"
    assert request.headers["tracestate"] == "vendor=1"
    assert request.headers["authorization"] == "Bearer sk-hunter22"
    assert request.headers["content-type"] == "application/json"
    assert started.data["queue_position"] == 3
    assert started.data["predicted_start_ms"] == 250
    assert started.correlation_id == "c-1"


async def test_a_correlation_id_is_made_when_there_is_none() -> None:
    async with playing(saying(final(0), LAST_CHUNK)) as server, adapter(server.url) as made:
        started = await anext(await made.submit(task()))
    assert started.correlation_id is not None
    assert UUID(started.correlation_id).version == 4


async def test_a_seed_is_made_sent_and_reported() -> None:
    async def script(connection: Connection, _: Received) -> None:
        await connection.send(STREAM_HEAD, final(0), LAST_CHUNK)

    async with (
        playing(engine(script)) as server,
        adapter(server.url, rng=random.Random(1)) as made,
    ):
        first = await (await made.submit(task())).collect()
        second = await (await made.submit(task())).collect()
    expected = random.Random(1)
    seeds = [expected.randrange(2**32 - 1) for _ in range(2)]
    assert [request.json["seed"] for request in server.requests("/completion")] == seeds
    assert [first.seed, second.seed] == seeds


async def test_a_profile_is_named_in_started() -> None:
    async with (
        playing(saying(final(0), LAST_CHUNK)) as server,
        adapter(server.url, sampler_profiles=[GREEDY]) as made,
    ):
        started = await anext(await made.submit(task(sampler_profile_version="g-1")))
    assert started.data["sampler_profile_version"] == "g-1"


# What the engine is asked about itself.


async def test_the_engine_s_identity_is_asked_for_once() -> None:
    asked = 0

    async def script(connection: Connection) -> None:
        nonlocal asked
        while True:
            request = await connection.request()
            if request.path == "/props":
                asked += 1
                await connection.send(answer(PROPS))
            else:
                await connection.send(STREAM_HEAD, final(0), LAST_CHUNK)

    async with playing(script) as server, adapter(server.url) as made:
        for _ in range(3):
            await (await made.submit(task())).collect()
        assert asked == 1
        assert await made.engine_version() == "b1-0c1e570"
        assert asked == 2


def test_an_identity_is_asked_for_again_when_it_is_old() -> None:
    builds = iter(["b1", "b2", "b3"])

    async def script(connection: Connection) -> None:
        while True:
            request = await connection.request()
            if request.path == "/props":
                await connection.send(answer(json.dumps({"build_info": next(builds)})))
            else:
                await connection.send(STREAM_HEAD, final(0), LAST_CHUNK)

    async def main() -> None:
        clock = asyncio.get_running_loop().time
        async with playing(script) as server, adapter(server.url, clock=clock) as made:
            versions = []
            for _ in range(4):
                versions.append((await (await made.submit(task())).collect()).engine_version)
                await asyncio.sleep(CAPABILITIES_SECONDS / 2)
        assert versions == ["b1", "b1", "b2", "b2"]

    run_virtually(main())


class Once:
    """An engine that answers for its identity when told to, and counts how often it is asked."""

    def __init__(self, props: bytes = answer(PROPS)) -> None:
        self.props = props
        self.asked = 0
        self.go = asyncio.Event()

    async def play(self, connection: Connection) -> None:
        while True:
            if (await connection.request()).path == "/props":
                self.asked += 1
                await self.go.wait()
                await connection.send(self.props)
            else:
                await connection.send(STREAM_HEAD, final(0), LAST_CHUNK)

    async def submits(self, made: LlamaCppAdapter, count: int) -> list[asyncio.Task[TokenStream]]:
        """Begin that many submits and wait until they all wait."""
        begun = [asyncio.create_task(made.submit(task())) for _ in range(count)]
        await eventually(lambda: len(made._submits) == count, "all are on their way")
        await eventually(lambda: self.asked > 0, "the engine is asked")
        return begun


async def test_submits_at_once_ask_for_the_identity_once() -> None:
    once = Once()
    async with playing(once.play) as server, adapter(server.url) as made:
        begun = await once.submits(made, 20)
        once.go.set()
        answers = [await stream.collect() for stream in await asyncio.gather(*begun)]
        assert {answer.engine_version for answer in answers} == {"b1-0c1e570"}
        assert once.asked == 1


async def test_submits_at_once_share_a_failure_each_with_its_own_name() -> None:
    body = '{"error":{"message":"Loading model","type":"unavailable_error","code":503}}'
    once = Once(answer(body, "503 Service Unavailable"))
    async with playing(once.play) as server, adapter(server.url) as made:
        begun = await once.submits(made, 3)
        once.go.set()
        errors = [await refused(one) for one in begun]
        assert {error.detail for error in errors} == {"loading"}
        assert {error.processed for error in errors} == {"no"}
        assert len({error.correlation_id for error in errors}) == 3
        assert once.asked == 1
        # A failure is nobody's after those who waited for it.
        assert (await refused(made.submit(task()))).detail == "loading"
        assert once.asked == 2


@pytest.mark.parametrize("how", ["cancel", "task", "deadline"])
async def test_who_gives_up_does_not_take_the_others_along(how: str) -> None:
    once = Once()
    async with playing(once.play) as server, adapter(server.url) as made:
        leaving = task(deadline_ms=50) if how == "deadline" else task()
        first = asyncio.create_task(made.submit(leaving))
        await eventually(lambda: once.asked == 1, "the engine is asked")
        others = [asyncio.create_task(made.submit(task())) for _ in range(2)]
        await asyncio.sleep(0)
        if how == "cancel":
            await made.cancel(leaving.task_id)
            assert shape([event async for event in await first]) == ["end:cancelled"]
        elif how == "task":
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
        else:
            assert isinstance(await refused(first), DeadlineUnmet)
        once.go.set()
        for stream in await asyncio.gather(*others):
            assert (await stream.collect()).finish_reason == "length"
        assert once.asked == 1


async def test_a_question_nobody_waits_for_is_given_up() -> None:
    once = Once()
    async with playing(once.play) as server, adapter(server.url) as made:
        begun = await once.submits(made, 2)
        for one in begun:
            one.cancel()
        # Whoever comes now asks anew.
        again = asyncio.create_task(made.submit(task()))
        await eventually(lambda: once.asked == 2, "asked again")
        once.go.set()
        await server.connections[0].over()
        assert (await (await again).collect()).finish_reason == "length"
        assert all(one.cancelled() for one in begun)


async def test_submits_of_other_patience_ask_for_themselves() -> None:
    once = Once()
    async with playing(once.play) as server, adapter(server.url) as made:
        patient = asyncio.create_task(made.submit(task()))
        await eventually(lambda: once.asked == 1, "the engine is asked")
        error = await refused(made.submit(task(), timeouts=Timeouts(unary=0.05)))
        assert (error.detail, error.processed) == ("unary_timeout", "no")
        once.go.set()
        assert (await (await patient).collect()).finish_reason == "length"


async def test_the_identity_is_asked_for_again_after_a_reset() -> None:
    builds = iter(["b1", "b2"])

    async def script(connection: Connection) -> None:
        while True:
            request = await connection.request()
            if request.path == "/props":
                await connection.send(answer(json.dumps({"build_info": next(builds)})))
            else:
                await connection.send(STREAM_HEAD, frame("a", 1))
                connection.close()
                return

    async with playing(script) as server, adapter(server.url) as made:
        versions = []
        for _ in range(2):
            stream = await made.submit(task())
            events = [event async for event in stream]
            assert isinstance(events[-1].error, WorkerReset)
            versions.append(events[0].engine_version)
    assert versions == ["b1", "b2"]


@pytest.mark.parametrize(
    "props",
    [
        answer(
            '{"error":{"code":404,"message":"File Not Found","type":"not_found_error"}}', "404 X"
        ),
        answer("{}"),
    ],
)
async def test_an_engine_that_hides_its_identity_can_be_used(props: bytes) -> None:
    async def script(connection: Connection) -> None:
        while True:
            if (await connection.request()).path == "/props":
                await connection.send(props)
            else:
                await connection.send(STREAM_HEAD, final(0), LAST_CHUNK)

    async with playing(script) as server, adapter(server.url) as made:
        started = await anext(await made.submit(task(ctx=9999)))
    assert "engine_version" not in started.data


# Failures before the answer.


async def test_refused() -> None:
    async with adapter("http://127.0.0.1:1") as made:
        error = await refused(made.submit(task()))
    assert isinstance(error, PoolUnavailable)
    assert (error.code, error.detail, error.phase) == ("POOL_UNAVAILABLE", "connect", "connect")
    assert (error.retriable, error.processed) == (True, "no")


async def test_closed_before_the_head() -> None:
    async def script(connection: Connection, _: Received) -> None:
        connection.close()

    async with playing(engine(script)) as server, adapter(server.url) as made:
        error = await refused(made.submit(task()))
    assert isinstance(error, WorkerReset)
    assert (error.detail, error.phase, error.processed) == ("reset", "head", "unknown")
    assert error.retriable


async def test_an_error_answer() -> None:
    body = '{"error":{"message":"Loading model","type":"unavailable_error","code":503}}'

    async def script(connection: Connection, _: Received) -> None:
        await connection.send(answer(body, "503 Service Unavailable"))

    async with playing(engine(script)) as server, adapter(server.url) as made:
        error = await refused(made.submit(task()))
        assert isinstance(error, PoolUnavailable)
        assert (error.code, error.detail, error.status) == ("POOL_UNREADY", "loading", 503)
        assert (error.message, error.processed) == ("Loading model", "no")


async def test_retry_after_is_reported() -> None:
    async def script(connection: Connection, _: Received) -> None:
        head = b"HTTP/1.1 429 Too Many\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n"
        await connection.send(head)

    async with playing(engine(script)) as server, adapter(server.url) as made:
        error = await refused(made.submit(task()))
    assert isinstance(error, PoolUnavailable)
    assert (error.code, error.retry_after_ms) == ("ADMISSION_REJECT", 5000)


async def test_an_error_answer_larger_than_anyone_reads() -> None:
    async def script(connection: Connection, _: Received) -> None:
        await connection.send(answer("x" * 1_000_000, "400 Bad Request", "text/plain"))

    async with playing(engine(script)) as server, adapter(server.url) as made:
        error = await refused(made.submit(task()))
        await server.connections[-1].over()
    assert (error.status, error.detail) == (400, "invalid_request")
    assert len(error.message) <= 512


def test_an_error_answer_that_never_ends() -> None:
    async def script(connection: Connection, _: Received) -> None:
        await connection.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 99\r\n\r\n{")
        await connection.until_closed()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with playing(engine(script)) as server, adapter(server.url, clock=loop.time) as made:
            began = loop.time()
            error = await refused(made.submit(task()))
            assert loop.time() - began < 3.0
            assert (error.status, error.detail) == (400, "invalid_request")
            await server.connections[-1].over()

    run_virtually(main())


@pytest.mark.parametrize("status", [204, 206, 302])
async def test_a_status_that_is_no_answer(status: int) -> None:
    async def script(connection: Connection, _: Received) -> None:
        head = f"HTTP/1.1 {status} X\r\nLocation: http://x/\r\nContent-Length: 0\r\n\r\n"
        await connection.send(head.encode())

    async with playing(engine(script)) as server, adapter(server.url) as made:
        error = await refused(made.submit(task()))
    assert isinstance(error, AdapterError)
    assert error.detail == ("redirect" if status == 302 else "status")


@pytest.mark.parametrize(
    ("head", "detail"),
    [
        (b"Content-Type: text/html\r\n", "content_type"),
        (b"Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\n", "content_encoding"),
    ],
)
async def test_a_200_that_is_no_stream_is_the_terminal_event(head: bytes, detail: str) -> None:
    async def script(connection: Connection, _: Received) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\n" + head + b"Content-Length: 5\r\n\r\nhello")
        await connection.until_closed()

    async with playing(engine(script)) as server, adapter(server.url) as made:
        stream = await made.submit(task())
        [event] = [event async for event in stream]
        await server.connections[-1].over()
    assert isinstance(event.error, AdapterError)
    assert event.error.detail == detail


# Clocks before the answer.


def test_no_head_in_time() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with playing(engine(nothing)) as server:
            timeouts = Timeouts(first_token=8.0)
            async with adapter(server.url, clock=loop.time, timeouts=timeouts) as made:
                began = loop.time()
                error = await refused(made.submit(task()))
                assert loop.time() - began == pytest.approx(8.0, abs=0.2)
                assert isinstance(error, DecodeTimeout)
                assert (error.detail, error.phase) == ("first_token", "head")
                assert (error.processed, error.retriable) == ("unknown", True)
                await server.connections[-1].over()

    run_virtually(main())


@pytest.mark.parametrize("where", ["props", "head"])
def test_the_deadline_while_waiting(where: str) -> None:
    async def silent(connection: Connection) -> None:
        await connection.request()
        await connection.until_closed()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        script = silent if where == "props" else engine(nothing)
        async with playing(script) as server, adapter(server.url, clock=loop.time) as made:
            began = loop.time()
            error = await refused(made.submit(task(deadline_ms=4_000)))
            assert loop.time() - began == pytest.approx(4.0, abs=0.1)
            assert isinstance(error, DeadlineUnmet)
            assert (error.phase, error.retriable) == ("head", False)
            # A task that waits for what the engine is has not been sent.
            assert error.processed == ("no" if where == "props" else "unknown")
            await server.connections[-1].over()

    run_virtually(main())


def test_the_deadline_while_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def create_connection(*_: Any, **__: Any) -> Any:
            await asyncio.Event().wait()

        monkeypatch.setattr(loop, "create_connection", create_connection)
        async with adapter("http://127.0.0.1:1", clock=loop.time) as made:
            error = await refused(made.submit(task(deadline_ms=2_000)))
            assert isinstance(error, DeadlineUnmet)
            assert (error.phase, error.processed) == ("connect", "no")
            error = await refused(made.submit(task(), timeouts=Timeouts(connect=3.0)))
            assert isinstance(error, PoolUnavailable)
            assert (error.detail, error.phase) == ("connect_timeout", "connect")

    run_virtually(main())


def test_a_peer_that_does_not_read_the_request() -> None:
    async def script(connection: Connection) -> None:
        raw = connection._writer.transport
        assert isinstance(raw, asyncio.Transport)
        # The question and the task come over one connection or over two.
        if not server.requests("/props"):
            await connection.request()
            await connection.send(answer(PROPS))
        raw.pause_reading()
        await asyncio.Event().wait()

    server = playing(script)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        timeouts = Timeouts(first_token=6.0)
        async with server, adapter(server.url, clock=loop.time, timeouts=timeouts) as made:
            huge = task(prompt="x" * 32_000_000)
            error = await refused(made.submit(huge))
            assert isinstance(error, PoolUnavailable)
            assert (error.detail, error.phase) == ("write_timeout", "write")

    run_virtually(main())


# Cancel before the answer.


async def test_cancel_before_the_head() -> None:
    async with playing(engine(nothing)) as server, adapter(server.url) as made:
        request = task()
        waiting = asyncio.create_task(made.submit(request))
        await server.asked("/completion")
        receipt = await made.cancel(request.task_id)
        assert (receipt.method, receipt.sent) == ("close", True)
        stream = await waiting
        [end] = [event async for event in stream]
        assert (end.kind, end.finish_reason, end.tokens_out) == ("end", "cancelled", 0)
        await server.connections[-1].over()
        assert not (await made.cancel(request.task_id)).sent


async def test_cancel_before_the_head_twice_at_once() -> None:
    async with playing(engine(nothing)) as server, adapter(server.url) as made:
        request = task()
        waiting = asyncio.create_task(made.submit(request))
        await server.asked("/completion")
        await asyncio.gather(*(made.cancel(request.task_id) for _ in range(3)))
        assert shape([event async for event in await waiting]) == ["end:cancelled"]


async def test_cancel_before_the_head_from_another_loop() -> None:
    async with playing(engine(nothing)) as server, adapter(server.url) as made:
        request = task()
        waiting = asyncio.create_task(made.submit(request))
        await server.asked("/completion")
        receipt = await asyncio.to_thread(asyncio.run, made.cancel(request.task_id))
        assert receipt.sent
        assert shape([event async for event in await waiting]) == ["end:cancelled"]


@pytest.mark.parametrize("after", ["_on_its_way", "_registered"])
async def test_cancel_from_another_thread_just_after_the_head(
    monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    """Whatever the submit has got to when the cancel finds it, no token comes after."""
    async with playing(saying(frame("a", 1))) as server, adapter(server.url) as made:
        request = task()
        receipts = []
        dispatched, cancel_submit = made._dispatched, made._cancel_submit

        def cancel() -> None:
            receipts.append(asyncio.run(made.cancel(request.task_id)))

        if after == "_on_its_way":

            async def with_cancel(*arguments: Any) -> TokenStream:
                stream = await dispatched(*arguments)
                # While this thread waits, the other one finds the call still under way.
                thread = threading.Thread(target=cancel)
                thread.start()
                thread.join(WITHIN)
                return stream

            monkeypatch.setattr(made, "_dispatched", with_cancel)
            stream = await made.submit(request)
        else:
            found, go = threading.Event(), threading.Event()

            async def wait_then_cancel(call: Any, seconds: float) -> CancelReceipt:
                found.set()
                go.wait(WITHIN)
                return await cancel_submit(call, seconds)

            async def look_while_found(*arguments: Any) -> TokenStream:
                stream = await dispatched(*arguments)
                thread.start()
                found.wait(WITHIN)
                return stream

            thread = threading.Thread(target=cancel)
            monkeypatch.setattr(made, "_cancel_submit", wait_then_cancel)
            monkeypatch.setattr(made, "_dispatched", look_while_found)
            stream = await made.submit(request)
            assert not stream.is_terminal
            go.set()
            await asyncio.to_thread(thread.join, WITHIN)
        assert receipts[0].sent
        assert shape([event async for event in stream]) == ["end:cancelled"]
        await server.connections[-1].over()


async def test_cancel_finds_the_new_task_behind_an_old_one_of_its_id() -> None:
    async def script(connection: Connection, _: Received) -> None:
        if len(server.requests("/completion")) == 1:
            await connection.send(STREAM_HEAD, final(0), LAST_CHUNK)
        else:
            await connection.until_closed()

    async with playing(engine(script)) as server, adapter(server.url) as made:
        request = task()
        old = await made.submit(request)
        await old.collect()
        made._streams[request.task_id] = old  # an ended stream that somebody still holds
        waiting = asyncio.create_task(made.submit(request))
        await eventually(lambda: len(server.requests("/completion")) == 2, "sent")
        assert (await made.cancel(request.task_id)).sent
        assert shape([event async for event in await waiting]) == ["end:cancelled"]


async def test_cancels_at_any_time_leave_nothing_behind() -> None:
    """Cancel at every step a submit can be at: places, sockets and ids all come back."""

    async def script(connection: Connection, _: Received) -> None:
        await connection.send(STREAM_HEAD)
        for n in range(1, 50):
            await connection.send(frame("x", n))
        await connection.until_closed()

    async def one(made: LlamaCppAdapter, turns: int, how: str) -> None:
        request = task()

        async def read() -> list[str]:
            stream = await made.submit(request)
            return shape([event async for event in stream])

        reader = asyncio.create_task(read())
        for _ in range(1 + turns):
            await asyncio.sleep(0)
        if how == "cancel":
            receipt = await made.cancel(request.task_id)
            assert receipt.sent
            assert (await reader)[-1] == "end:cancelled"
        else:
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader

    async with playing(engine(script)) as server, adapter(server.url) as made:
        await made.engine_version()
        for turns in range(60):
            for how in ("cancel", "task"):
                await one(made, turns, how)
        assert not made._submits
        await eventually(lambda: not made._streams, "every stream is forgotten")
        [session] = made._transport._sessions.values()  # type: ignore[attr-defined]
        pool = session.client._transport._pool
        await eventually(lambda: not pool._busy, "every connection is back")
        assert pool._permits._value == module.MAX_REQUESTS


async def test_cancel_at_the_same_moment_as_submit() -> None:
    async with playing(engine(nothing)) as server, adapter(server.url) as made:
        request = task()
        waiting = asyncio.create_task(made.submit(request))
        await asyncio.sleep(0)
        await made.cancel(request.task_id)
        assert shape([event async for event in await waiting]) == ["end:cancelled"]


@pytest.mark.parametrize("unknown", [uuid4(), str(uuid4()), "job-17", ""])
async def test_cancel_an_unknown_task(unknown: UUID | str) -> None:
    async with adapter("http://127.0.0.1:1") as made:
        receipt = await made.cancel(unknown)
    assert (receipt.method, receipt.sent, receipt.elapsed_ms) == ("none", False, 0.0)


async def test_a_cancelled_submit_is_cancelled_and_lets_go() -> None:
    async with playing(engine(nothing)) as server, adapter(server.url) as made:
        waiting = asyncio.create_task(made.submit(task()))
        await server.asked("/completion")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await server.connections[-1].over()
        assert not made._submits


async def test_closing_the_adapter_ends_a_submit() -> None:
    async with playing(engine(nothing)) as server:
        made = adapter(server.url)
        waiting = asyncio.create_task(made.submit(task()))
        await server.asked("/completion")
        await made.aclose()
        assert shape([event async for event in await waiting]) == ["end:cancelled"]
        await server.connections[-1].over()


# Handling an adapter.


def test_one_adapter_serves_several_runs() -> None:
    made: list[WorkerAdapter] = []

    async def main() -> str:
        async with playing(saying(frame("hi", 1), final(1), LAST_CHUNK)) as server:
            if not made:
                made.append(adapter(server.url))
            again = adapter(server.url)
            made[0]._transport = again._transport  # type: ignore[attr-defined]
            made[0]._data_plane = again._data_plane  # type: ignore[attr-defined]
            return (await (await made[0].submit(task())).collect()).text

    assert [asyncio.run(main(), debug=True) for _ in range(3)] == ["hi"] * 3


@pytest.mark.parametrize(
    ("key", "why"),
    [("short", "6 characters"), ("with\r\nline", "printable"), ("käse-key", "ASCII"), ("", "6")],
)
def test_a_key_that_cannot_be_used(key: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        adapter("http://host", api_key=key)
    assert key == "" or key not in str(caught.value)


def test_two_profiles_of_one_version() -> None:
    with pytest.raises(ValueError, match="'g-1'"):
        adapter("http://host", sampler_profiles=[GREEDY, GREEDY])


async def test_a_key_shows_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key = "sk-canary-0123456789"
    body = f'{{"error":{{"message":"wrong key {key}","type":"authentication_error","code":401}}}}'

    async def script(connection: Connection, _: Received) -> None:
        await connection.send(answer(body, "401 Unauthorized"))

    async with playing(engine(script)) as server, adapter(server.url, api_key=key) as made:
        error = await refused(made.submit(task()))
        shown = f"{made!r} {made._transport!r} {error!r} {error} {error.fields()} {caplog.text}"
    assert error.detail == "unauthorized"
    assert "****" in error.message
    assert key not in shown
    assert PROMPT not in shown
