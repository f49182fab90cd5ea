"""The engine's own abort: sent once by whoever gives a task up, and by nobody else."""

from __future__ import annotations

import asyncio
import gc
import json
import warnings
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.transports import both_transports
from tests.unit.tasks import ONCE, task
from tests.unit.test_stream import gone, shape, until_token
from tests.unit.virtual_time import run as run_virtually
from tests.unit.wire import (
    LAST_CHUNK,
    PROPS,
    STREAM_HEAD,
    answer,
    chunk,
    eventually,
    final,
    frame,
    playing,
)
from worker_adapters import DeadlineUnmet, DecodeTimeout, RetryPolicy, Timeouts, WorkerError
from worker_adapters._abort import Aborts
from worker_adapters.engines._http import ABORT_SECONDS
from worker_adapters.engines.llamacpp import LlamaCppAdapter
from worker_adapters.transport import Request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from pathlib import Path

    from tests.unit.wire import Connection, Received, Server
    from worker_adapters import TaskRequest, TokenStream
    from worker_adapters.engines._dispatch import Dispatch

    Answering = Callable[[Connection, Received], Awaitable[None]]

pytestmark = both_transports

WAITING = {"confirm_within_ms": 5000}

HELLO = (frame("hel", 1), frame("lo", 2))


class Aborting(LlamaCppAdapter):
    """llama.cpp as it would be with a route to abort by id."""

    cancel_kind = "close+abort"
    aborts = True

    def _abort_request(self, dispatch: Dispatch) -> Request | None:
        if not self.aborts:
            return None
        body = json.dumps({"id": dispatch.request_id}).encode()
        return Request("POST", "/abort", ((b"content-type", b"application/json"),), body)

    def _completion(self, dispatch: Dispatch) -> tuple[str, dict[str, Any]]:
        path, payload = super()._completion(dispatch)
        return path, {**payload, "id": dispatch.request_id}


async def taken(connection: Connection, _: Received) -> None:
    await connection.send(answer("{}"))


async def silence(connection: Connection, _: Received) -> None:
    await connection.until_closed()


def saying(*pieces: bytes) -> Answering:
    async def script(connection: Connection, _: Received) -> None:
        await connection.send(*pieces)
        await connection.until_closed()

    return script


@asynccontextmanager
async def engine(
    completion: Answering, abort: Answering = taken, **options: Any
) -> AsyncIterator[tuple[Aborting, Server]]:
    """Play an engine that aborts, and an adapter for it on the loop's clock."""

    async def script(connection: Connection) -> None:
        while True:
            request = await connection.request()
            match request.path:
                case "/props":
                    await connection.send(answer(PROPS))
                case "/abort":
                    await abort(connection, request)
                case _:
                    await completion(connection, request)

    options = {"clock": asyncio.get_running_loop().time, "retries": ONCE, **options}
    async with playing(script) as server, Aborting(server.url, **options) as made:
        yield made, server


async def started(made: Aborting, asked: TaskRequest | None = None) -> TokenStream:
    """Return a stream that has had a token."""
    stream = await made.submit(task() if asked is None else asked)
    await until_token(stream)
    return stream


def ids(server: Server, path: str) -> list[str]:
    return [request.json["id"] for request in server.requests(path)]


async def aborted_once(server: Server) -> None:
    """Wait for the abort of the one completion, and make sure that it stays alone."""
    await server.asked("/abort")
    await asyncio.sleep(0.02)
    assert ids(server, "/abort") == ids(server, "/completion")


async def never_aborted(made: Aborting, server: Server) -> None:
    await made.aclose()
    assert made._aborts.pending == set()
    assert server.requests("/abort") == []


@pytest.fixture(autouse=True)
def no_word_in_debug_mode(caplog: pytest.LogCaptureFixture) -> Any:
    """Whatever happens here happens without a warning and without a line in the log."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
        gc.collect()
    records = [*caplog.get_records("call"), *caplog.records]
    said = [record.getMessage() for record in records if record.name == "asyncio"]
    # How long a step took is the machine's affair.
    assert [message for message in said if not message.startswith("Executing ")] == []


def debugging(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main, debug=True)


# Given up: once.


@pytest.mark.parametrize("by", ["adapter", "stream"])
def test_cancel_sends_it_and_reports_the_answer(by: str) -> None:
    async def main() -> None:
        async with engine(saying(STREAM_HEAD, *HELLO)) as (made, server):
            stream = await started(made)
            if by == "adapter":
                receipt = await made.cancel(stream.task_id, **WAITING)
            else:
                receipt = await stream.cancel(**WAITING)
            assert (receipt.method, receipt.sent, receipt.confirmed) == ("close+abort", True, True)
            # The answer has been waited for: nothing is left to come.
            assert ids(server, "/abort") == ids(server, "/completion")
            again = await made.cancel(stream.task_id)
            assert (again.method, again.sent, again.confirmed) == ("none", False, None)
            assert shape([event async for event in stream]) == ["end:cancelled"]
            await stream.aclose()
            await aborted_once(server)
            await gone_but_abort(server)

    debugging(main())


async def gone_but_abort(server: Server) -> None:
    """Wait until the connection of the completion is closed."""
    [connection] = [
        connection
        for connection in server.connections
        if any(request.path == "/completion" for request in connection.received)
    ]
    await connection.over()


@pytest.mark.parametrize("by", ["adapter", "stream"])
def test_a_cancel_waits_for_nobody_unless_it_is_told_to(by: str) -> None:
    async def main() -> None:
        async with engine(saying(STREAM_HEAD, *HELLO), silence) as (made, server):
            stream = await started(made)
            began = asyncio.get_running_loop().time()
            leaving = made.cancel(stream.task_id) if by == "adapter" else stream.cancel()
            receipt = await leaving
            assert (receipt.method, receipt.sent, receipt.confirmed) == ("close+abort", True, None)
            assert asyncio.get_running_loop().time() - began < 0.1
            assert receipt.elapsed_ms < 100
            await aborted_once(server)

    run_virtually(main())


def test_a_cancel_waits_no_longer_than_it_is_told_to() -> None:
    async def main() -> None:
        async with engine(saying(STREAM_HEAD, *HELLO), silence) as (made, _):
            stream = await started(made)
            receipt = await made.cancel(stream.task_id, confirm_within_ms=250)
            assert (receipt.method, receipt.sent, receipt.confirmed) == ("close+abort", True, False)
            assert 250 <= receipt.elapsed_ms < 400

    run_virtually(main())


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf")])
def test_a_time_to_wait_that_is_none_cancels_nothing(wrong: float) -> None:
    async def main() -> None:
        async with engine(saying(STREAM_HEAD, *HELLO)) as (made, _):
            stream = await started(made)
            for leave in (
                made.cancel(stream.task_id, confirm_within_ms=wrong),
                stream.cancel(confirm_within_ms=wrong),
            ):
                with pytest.raises(ValueError, match="confirm_within_ms must be from 0 to"):
                    await leave
            assert not stream.is_terminal

    debugging(main())


@pytest.mark.parametrize(("refusals", "tries"), [(1, 2), (2, 3), (9, 3)])
def test_an_abort_that_fails_is_sent_again(refusals: int, tries: int) -> None:
    async def main() -> None:
        answers = [answer("", "503 Busy")] * refusals + [answer("{}")]

        async def flaky(connection: Connection, _: Received) -> None:
            await connection.send(answers.pop(0))

        async with engine(saying(STREAM_HEAD, *HELLO), flaky, retries=RetryPolicy()) as (
            made,
            server,
        ):
            stream = await started(made)
            receipt = await stream.cancel(**WAITING)
            assert receipt.confirmed is (refusals < 3)
            assert ids(server, "/abort") == ids(server, "/completion") * tries

    run_virtually(main())


def test_many_cancels_at_once_send_one() -> None:
    async def main() -> None:
        async with engine(saying(STREAM_HEAD, *HELLO)) as (made, server):
            stream = await started(made)
            receipts = await asyncio.gather(*(made.cancel(stream.task_id) for _ in range(5)))
            assert sum(receipt.sent for receipt in receipts) == 1
            await aborted_once(server)

    debugging(main())


def test_cancel_from_another_loop() -> None:
    async def main() -> None:
        async with engine(saying(STREAM_HEAD, *HELLO)) as (made, server):
            stream = await started(made)
            receipt = await asyncio.to_thread(asyncio.run, made.cancel(stream.task_id, **WAITING))
            assert (receipt.method, receipt.confirmed) == ("close+abort", True)
            await aborted_once(server)

    debugging(main())


def test_leaving_the_stream() -> None:
    async def main() -> None:
        async with engine(saying(STREAM_HEAD, *HELLO)) as (made, server):
            async with await made.submit(task()) as stream:
                async for event in stream:
                    if event.kind == "token":
                        break
            await aborted_once(server)

    debugging(main())


def test_a_cancelled_reader() -> None:
    async def main() -> None:
        async with engine(saying(STREAM_HEAD, *HELLO)) as (made, server):
            stream = await started(made)
            await until_token(stream)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await anext(stream)
            await aborted_once(server)

    debugging(main())


@pytest.mark.parametrize("thread", [False, True])
def test_dropping_the_stream(thread: bool) -> None:
    async def main() -> None:
        async with engine(saying(STREAM_HEAD, *HELLO)) as (made, server):
            held = [await started(made)]
            if thread:
                await asyncio.to_thread(held.clear)
            else:
                held.clear()
            gc.collect()
            await aborted_once(server)

    debugging(main())


@pytest.mark.parametrize("how", ["drop", "leave", "stay"])
def test_closing_the_adapter_waits_for_it(how: str) -> None:
    async def slowly(connection: Connection, _: Received) -> None:
        await asyncio.sleep(0.05)
        await connection.send(answer("{}"))
        finished.append("abort")

    finished: list[str] = []

    async def main() -> None:
        async with engine(saying(STREAM_HEAD, *HELLO), slowly) as (made, server):
            held = [await started(made)]
            if how == "drop":
                held.clear()
            elif how == "leave":
                await held[0].aclose()
            await made.aclose()
            assert finished == ["abort"]
            assert ids(server, "/abort") == ids(server, "/completion")
            assert made._aborts.pending == set()

    debugging(main())


def test_the_deadline_in_the_middle() -> None:
    async def main() -> None:
        async with engine(saying(STREAM_HEAD, *HELLO)) as (made, server):
            stream = await started(made, task(deadline_ms=4_000))
            events = [event async for event in stream]
            assert isinstance(events[-1].error, DeadlineUnmet)
            await aborted_once(server)

    run_virtually(main())


def test_the_token_gap() -> None:
    async def main() -> None:
        async with engine(saying(STREAM_HEAD, *HELLO), timeouts=Timeouts(token_gap=2.0)) as (
            made,
            server,
        ):
            stream = await started(made)
            events = [event async for event in stream]
            assert isinstance(events[-1].error, DecodeTimeout)
            await aborted_once(server)

    run_virtually(main())


def test_no_first_token_after_the_head() -> None:
    async def main() -> None:
        async with engine(saying(STREAM_HEAD), timeouts=Timeouts(first_token=3.0)) as (
            made,
            server,
        ):
            [event] = [event async for event in await made.submit(task())]
            assert isinstance(event.error, DecodeTimeout)
            await aborted_once(server)

    run_virtually(main())


def test_nonsense_in_the_middle() -> None:
    async def main() -> None:
        broken = chunk(b"data: {nonsense\n\n")
        async with engine(saying(STREAM_HEAD, *HELLO, broken)) as (made, server):
            stream = await started(made)
            events = [event async for event in stream]
            assert events[-1].error is not None
            await aborted_once(server)

    debugging(main())


# Given up before the head.


@pytest.mark.parametrize(
    ("changes", "timeouts", "kind"),
    [
        ({"deadline_ms": 2_000}, Timeouts(), DeadlineUnmet),
        ({}, Timeouts(first_token=2.0), DecodeTimeout),
    ],
)
def test_a_clock_before_the_head(
    changes: dict[str, Any], timeouts: Timeouts, kind: type[WorkerError]
) -> None:
    async def main() -> None:
        async with engine(silence, timeouts=timeouts) as (made, server):
            with pytest.raises(kind):
                await made.submit(task(**changes))
            await aborted_once(server)

    run_virtually(main())


def test_cancel_before_the_head() -> None:
    async def main() -> None:
        async with engine(silence) as (made, server):
            asked = task()
            waiting = asyncio.create_task(made.submit(asked))
            await server.asked("/completion")
            receipt = await made.cancel(asked.task_id, **WAITING)
            assert (receipt.method, receipt.sent, receipt.confirmed) == ("close+abort", True, True)
            assert ids(server, "/abort") == ids(server, "/completion")
            assert shape([event async for event in await waiting]) == ["end:cancelled"]
            await aborted_once(server)

    debugging(main())


def test_a_submit_whose_task_is_cancelled() -> None:
    async def main() -> None:
        async with engine(silence) as (made, server):
            waiting = asyncio.create_task(made.submit(task()))
            await server.asked("/completion")
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await aborted_once(server)

    debugging(main())


def test_closing_the_adapter_before_the_head() -> None:
    async def main() -> None:
        async with engine(silence) as (made, server):
            waiting = asyncio.create_task(made.submit(task()))
            await server.asked("/completion")
            await made.aclose()
            assert ids(server, "/abort") == ids(server, "/completion")
            assert shape([event async for event in await waiting]) == ["end:cancelled"]

    debugging(main())


def test_cancel_before_anything_was_sent() -> None:
    asked = task()

    async def props(connection: Connection) -> None:
        await connection.request()
        await connection.until_closed()

    async def main() -> None:
        async with playing(props) as server, Aborting(server.url) as made:
            waiting = asyncio.create_task(made.submit(asked))
            await server.asked("/props")
            receipt = await made.cancel(asked.task_id)
            assert (receipt.method, receipt.confirmed) == ("close", None)
            assert shape([event async for event in await waiting]) == ["end:cancelled"]
            await never_aborted(made, server)

    debugging(main())


# Not given up.


def test_not_after_a_normal_end() -> None:
    async def main() -> None:
        async with engine(saying(STREAM_HEAD, *HELLO, final(2), LAST_CHUNK)) as (made, server):
            stream = await made.submit(task())
            assert (await stream.collect()).text == "hello"
            assert not (await stream.cancel()).sent
            await never_aborted(made, server)

    debugging(main())


def test_not_when_left_after_its_end_has_come() -> None:
    body = b"".join(piece[piece.index(b"\r\n") + 2 : -2] for piece in (*HELLO, final(2)))

    async def main() -> None:
        async with engine(saying(STREAM_HEAD, chunk(body), LAST_CHUNK)) as (made, server):
            stream = await made.submit(task())
            assert (await anext(stream)).kind == "started"
            assert stream.is_terminal
            await stream.aclose()
            await never_aborted(made, server)

    debugging(main())


@pytest.mark.parametrize("cut", ["truncated", "reset", "engine_error"])
def test_not_after_a_reset(cut: str) -> None:
    async def cut_off(connection: Connection, _: Received) -> None:
        await connection.send(STREAM_HEAD, *HELLO)
        await asyncio.sleep(0.01)
        match cut:
            case "truncated":
                connection.close()
            case "reset":
                connection.reset()
            case _:
                error = b'{"error":{"code":500,"message":"boom","type":"server_error"}}'
                await connection.send(chunk(b"data: " + error + b"\n\n"), LAST_CHUNK)

    async def main() -> None:
        async with engine(cut_off) as (made, server):
            stream = await started(made)
            events = [event async for event in stream]
            error = events[-1].error
            assert isinstance(error, WorkerError)
            assert (error.kind, error.detail) == ("WorkerReset", cut)
            await never_aborted(made, server)

    debugging(main())


def test_not_when_the_engine_refused() -> None:
    async def main() -> None:
        refusing = saying(answer('{"error":{"message":"no"}}', "400 Bad Request"))
        async with engine(refusing) as (made, server):
            with pytest.raises(WorkerError):
                await made.submit(task())
            await never_aborted(made, server)

    debugging(main())


def test_not_without_a_route_for_it() -> None:
    async def main() -> None:
        async with engine(saying(STREAM_HEAD, *HELLO)) as (made, server):
            made.aborts = False
            stream = await started(made)
            receipt = await stream.cancel()
            assert (receipt.method, receipt.sent, receipt.confirmed) == ("close", True, None)
            await never_aborted(made, server)

    debugging(main())


# How it is sent.


@pytest.mark.parametrize("status", ["404 Not Found", "500 Oops"])
def test_a_refused_abort_is_not_confirmed(status: str) -> None:
    async def main() -> None:
        async with engine(
            saying(STREAM_HEAD, *HELLO), saying(answer("no", status, "text/plain"))
        ) as (made, server):
            stream = await started(made)
            receipt = await stream.cancel(**WAITING)
            assert (receipt.method, receipt.confirmed) == ("close+abort", False)
            await aborted_once(server)

    debugging(main())


def test_an_answer_that_says_nothing_confirms_nothing() -> None:
    async def main() -> None:
        async with engine(saying(STREAM_HEAD, *HELLO)) as (made, server):
            made.confirms_abort = False  # type: ignore[misc]
            stream = await started(made)
            receipt = await stream.cancel(**WAITING)
            assert (receipt.method, receipt.sent, receipt.confirmed) == ("close+abort", True, None)
            await aborted_once(server)

    debugging(main())


def test_an_abort_nobody_answers_takes_two_seconds() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with engine(saying(STREAM_HEAD, *HELLO), silence) as (made, server):
            streams = [await started(made) for _ in range(3)]
            began = loop.time()
            receipt = await streams[0].cancel(**WAITING)
            assert ABORT_SECONDS <= loop.time() - began < ABORT_SECONDS + 0.5
            assert receipt.confirmed is False
            assert receipt.elapsed_ms >= ABORT_SECONDS * 1000
            # All together, not one after the other.
            began = loop.time()
            await made.aclose()
            assert loop.time() - began < ABORT_SECONDS + 0.5
            assert len(server.requests("/abort")) == 3

    run_virtually(main())


def test_an_abort_that_is_cut_off() -> None:
    async def cut(connection: Connection, _: Received) -> None:
        connection.reset()

    async def main() -> None:
        async with engine(saying(STREAM_HEAD, *HELLO), cut) as (made, _):
            stream = await started(made)
            receipt = await stream.cancel(**WAITING)
            assert (receipt.method, receipt.confirmed) == ("close+abort", False)
            assert shape([event async for event in stream]) == ["end:cancelled"]

    debugging(main())


def test_it_carries_the_key_of_its_time_and_the_task_s_correlation(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-first-key\n", encoding="utf-8")

    async def main() -> None:
        async with engine(saying(STREAM_HEAD, *HELLO), api_key=file) as (made, server):
            stream = await started(made)
            file.write_text("sk-second-key-longer\n", encoding="utf-8")
            await stream.cancel(**WAITING)
            [submitted], [aborted] = server.requests("/completion"), server.requests("/abort")
            assert submitted.headers["authorization"] == "Bearer sk-first-key"
            assert aborted.headers["authorization"] == "Bearer sk-second-key-longer"
            correlation = submitted.headers["x-correlation-id"]
            assert aborted.headers["x-correlation-id"] == correlation
            assert aborted.headers["content-type"] == "application/json"

    debugging(main())


def test_a_key_that_is_gone_leaves_closing(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-first-key", encoding="utf-8")

    async def main() -> None:
        async with engine(saying(STREAM_HEAD, *HELLO), api_key=file) as (made, server):
            stream = await started(made)
            file.unlink()
            receipt = await stream.cancel(**WAITING)
            assert (receipt.method, receipt.confirmed) == ("close+abort", False)
            await gone(server)
            assert server.requests("/abort") == []

    debugging(main())


def test_a_task_submitted_again_has_another_id() -> None:
    async def main() -> None:
        async with engine(saying(STREAM_HEAD, *HELLO)) as (made, server):
            asked = task()
            for _ in range(2):
                stream = await started(made, asked)
                await stream.cancel(**WAITING)
            first, second = ids(server, "/abort")
            assert first != second
            assert ids(server, "/completion") == [first, second]

    debugging(main())


def test_an_abort_that_finds_its_client_closed_is_not_taken() -> None:
    async def refused() -> bool | None:
        raise RuntimeError("Cannot send a request, as the client has been closed.")

    async def main() -> None:
        aborts = Aborts()
        abort = aborts.prepared(refused)
        abort.start()
        assert aborts.pending == {abort}
        assert await abort.taken() is False
        assert aborts.pending == set()

    debugging(main())


def test_an_abort_under_way_ends_with_its_loop_and_none_begins_after_it() -> None:
    sent: list[str] = []
    aborts = Aborts()
    first, later = [], []

    async def for_long() -> bool | None:
        sent.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            sent.append("given up")
        return True

    async def main() -> None:
        first.append(aborts.prepared(for_long))
        later.append(aborts.prepared(for_long))
        first[0].start()
        await asyncio.sleep(0)
        assert sent == ["begun"]

    with asyncio.Runner(debug=True) as runner:
        loop = runner.get_loop()
        loop.run_until_complete(main())
        loop.run_until_complete(loop.shutdown_asyncgens())
        assert sent == ["begun", "given up"]
        assert aborts.pending == set()

        async def start() -> None:
            later[0].start()
            assert await later[0].taken() is False

        loop.run_until_complete(start())
    assert sent == ["begun", "given up"]
    assert aborts.pending == set()


def test_a_loop_that_ends_with_streams_open_says_nothing() -> None:
    kept: list[TokenStream] = []

    async def main() -> None:
        async def script(connection: Connection) -> None:
            while (await connection.request()).path == "/props":
                await connection.send(answer(PROPS))
            await connection.send(STREAM_HEAD, *HELLO)
            await connection.until_closed()

        async with playing(script) as server:
            made = Aborting(server.url)
            stream = await made.submit(task())
            await until_token(stream)
            dropped = await made.submit(task())
            await until_token(dropped)
            kept.append(stream)
            del dropped
            await eventually(lambda: len(server.connections) >= 2, "both")

    debugging(main())
    kept.clear()
    gc.collect()
