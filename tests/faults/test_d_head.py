"""D: what is wrong with the response head, or with what it says."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.faults.outcomes import (
    ANSWER,
    KEY,
    RESTING_ANSWER,
    adapter,
    ask,
    failed,
    finished,
    released,
    resting,
    until_sockets,
)
from tests.transports import Transport, both_transports, on_httpx, on_native
from tests.unit.tasks import PROMPT, task
from tests.unit.virtual_time import run as run_virtually
from tests.unit.wire import playing
from worker_adapters import (
    AdapterError,
    DecodeTimeout,
    PoolUnavailable,
    RetryPolicy,
    Timeouts,
    WorkerError,
    WorkerIdentity,
    WorkerReset,
)
from worker_adapters.testing.faults import FaultProxy, Slicer
from worker_adapters.testing.wire import RawServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from worker_adapters import VllmAdapter
    from worker_adapters.testing.wire import Connection

pytestmark = both_transports


@dataclass
class Answering:
    """An engine that gives whatever is asked one answer, and the adapter that asks."""

    server: RawServer
    adapter: VllmAdapter
    answer: bytes = b""

    async def refuses(
        self,
        given: bytes | str,
        cls: type[WorkerError],
        detail: str,
        *,
        processed: str,
        retriable: bool,
        kept: bool,
        **more: Any,
    ) -> WorkerError:
        """Assert what comes of an answer, that it was asked for once, and of the connection."""
        self.answer = given.encode("latin-1") if isinstance(given, str) else given
        # What an engine is is asked anew after some errors; here the task is all that is asked.
        self.adapter._identity = WorkerIdentity(engine_version="0.1", ctx_max=1024)
        before = len(self.server.received())
        outcome = await ask(self.adapter, task(engine="vllm", deadline_ms=600_000))
        error = failed(
            outcome,
            cls,
            detail,
            engine="vllm",
            **{"phase": "head", "processed": processed, "retriable": retriable, **more},
        )
        await until_sockets(self.server.url, int(kept))
        assert len(self.server.received()) == before + 1
        return error


@asynccontextmanager
async def answering(**options: Any) -> AsyncIterator[Answering]:
    async def script(connection: Connection) -> None:
        while True:
            await connection.request()
            await connection.send(engine.answer)

    async with released(), RawServer(script) as server, resting(server.url, **options) as made:
        engine = Answering(server, made)
        yield engine


def refusal(status: int, body: str = "no", headers: str = "") -> str:
    return f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n{headers}\r\n{body}"


def test_d1_a_head_byte_by_byte_has_one_clock() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def script(connection: Connection) -> None:
            await connection.request()
            await connection.send(ANSWER)
            await connection.until_closed()

        async with (
            released(),
            playing(script) as server,
            FaultProxy(server.url, Slicer(1, delay=1.0)) as proxy,
            adapter(proxy.url, clock=loop.time, timeouts=Timeouts(first_token=10.0)) as made,
        ):
            outcome = await ask(made, task())
            failed(
                outcome,
                PoolUnavailable,
                "header_timeout",
                phase="head",
                processed="unknown",
                retriable=True,
            )
            assert outcome.seconds == pytest.approx(10.0, abs=0.5)
            assert len(server.received()) == 1
            await until_sockets(proxy.url, 0)

    run_virtually(main())


def test_d2_no_head_at_all() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def script(connection: Connection) -> None:
            await connection.request()
            await connection.until_closed()

        async with (
            released(),
            playing(script) as server,
            adapter(server.url, clock=loop.time, timeouts=Timeouts(first_token=10.0)) as made,
        ):
            outcome = await ask(made, task())
            failed(
                outcome,
                DecodeTimeout,
                "first_token",
                phase="head",
                processed="unknown",
                retriable=True,
            )
            assert outcome.seconds == pytest.approx(10.0, abs=0.5)
            assert len(server.received()) == 1
            await server.connections[0].over()
            await until_sockets(server.url, 0)

    run_virtually(main())


NO_HEADS = {
    "fields": "HTTP/1.1 200 OK\r\n" + "x: 1\r\n" * 101 + "\r\n",
    "size": f"HTTP/1.1 200 OK\r\nx: {'y' * (65 << 10)}\r\n\r\n",
    "nul": "HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n",
    "status": "HTTP/1.1 20 OK\r\n\r\n",
    "no status": "HTTP/1.1 OK\r\n\r\n",
    "http 0.9": "hello, who is there?\r\n\r\n",
    "http 2": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "upgrade": "HTTP/1.1 101 Switching Protocols\r\n\r\n",
}


@pytest.mark.parametrize("head", NO_HEADS.values(), ids=NO_HEADS.keys())
async def test_d3_what_is_no_head_is_refused(head: str) -> None:
    async with answering() as engine:
        await engine.refuses(
            head, AdapterError, "protocol", processed="unknown", retriable=False, kept=False
        )


LENIENT_HEADS = {
    "bare LF": "HTTP/1.1 200 OK\nx: y\ncontent-length: 0\ncontent-type: text/event-stream\n\n",
    "folded": (
        "HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 0\r\n"
        "content-type: text/event-stream\r\n\r\n"
    ),
}


@on_native
@pytest.mark.parametrize("head", LENIENT_HEADS.values(), ids=LENIENT_HEADS.keys())
async def test_d3_line_ends_and_folds_are_not_guessed(head: str) -> None:
    async with answering() as engine:
        await engine.refuses(
            head, AdapterError, "protocol", processed="unknown", retriable=False, kept=False
        )


@on_httpx
@pytest.mark.parametrize("head", LENIENT_HEADS.values(), ids=LENIENT_HEADS.keys())
async def test_d3_h11_takes_bare_line_feeds_and_folds(head: str) -> None:
    async with answering() as engine:
        await engine.refuses(
            head,
            WorkerReset,
            "truncated",
            phase="first_token",
            processed="unknown",
            retriable=True,
            kept=True,
        )


async def test_d4_a_refusal_is_told_by_its_status_and_keeps_the_connection() -> None:
    said = f"{KEY} may not ask: {PROMPT}"
    async with answering() as engine:
        for status, detail in (
            (400, "invalid_request"),
            (401, "unauthorized"),
            (403, "forbidden"),
            (404, "not_found"),
            (405, "invalid_request"),
            (409, "invalid_request"),
            (413, "invalid_request"),
            (422, "invalid_request"),
        ):
            error = await engine.refuses(
                refusal(status, said),
                AdapterError,
                detail,
                processed="no",
                retriable=False,
                kept=True,
                status=status,
            )
            assert "may not ask" in error.message
            assert len(error.message.encode()) <= 512
        assert len(engine.server.connections) == 1


async def test_d4_an_endless_refusal_is_not_read_to_its_end() -> None:
    async with answering() as engine:
        error = await engine.refuses(
            refusal(400, "no " * 100_000),
            AdapterError,
            "invalid_request",
            processed="no",
            retriable=False,
            kept=False,
            status=400,
        )
        assert len(error.message.encode()) <= 512


@pytest.mark.parametrize("status", [408, 425])
async def test_d5_not_now(status: int, transport: Transport) -> None:
    async with answering() as engine:
        await engine.refuses(
            refusal(status),
            PoolUnavailable,
            "not_ready",
            processed="unknown",
            retriable=True,
            kept=transport == "httpx",
            status=status,
        )


def test_d5_a_question_is_asked_again() -> None:
    run_virtually(_asked_again(408, 4))


async def _asked_again(status: int, times: int) -> None:
    loop = asyncio.get_running_loop()
    async with answering(clock=loop.time, retries=RetryPolicy()) as engine:
        engine.answer = refusal(status).encode()
        engine.adapter._identity = None
        with pytest.raises(WorkerError):
            await engine.adapter.engine_version()
        assert len(engine.server.received("/version")) == times


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("", None),
        ("retry-after: 0", 0),
        ("retry-after: 5", 5_000),
        ("retry-after: 1000000000", 60_000),
        (f"retry-after: {10**30}", 60_000),
        ("retry-after: -1", None),
        ("retry-after: soon", None),
        ("retry-after: 1.5", None),
        ("retry-after-ms: 250", 250),
        (
            "date: Sun, 06 Nov 1994 08:49:37 GMT\r\nretry-after: Sun, 06 Nov 1994 08:49:44 GMT",
            7_000,
        ),
        ("retry-after: Sun, 06 Nov 1994 08:49:44 GMT", 0),
    ],
)
async def test_d6_the_pause_that_is_asked_for_is_told(asked: str, told: int | None) -> None:
    headers = f"{asked}\r\n" if asked else ""
    async with answering() as engine:
        await engine.refuses(
            refusal(429, headers=headers),
            PoolUnavailable,
            "rate_limited",
            processed="no",
            retriable=True,
            kept=True,
            status=429,
            code="ADMISSION_REJECT",
            retry_after_ms=told,
        )


async def test_d6_no_pause_is_longer_than_the_task_has() -> None:
    async with answering() as engine:
        engine.answer = refusal(429, headers="retry-after: 50\r\n").encode()
        outcome = await ask(engine.adapter, task(engine="vllm", deadline_ms=20_000))
        assert outcome.error is not None
        assert 15_000 < (outcome.error.retry_after_ms or 0) <= 20_000


def test_d6_a_question_is_asked_again_after_the_pause() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        times = []

        async def script(connection: Connection) -> None:
            while True:
                await connection.request()
                times.append(loop.time())
                await connection.send(refusal(429, headers="retry-after: 3\r\n").encode())

        async with (
            playing(script) as server,
            adapter(server.url, clock=loop.time, retries=RetryPolicy()) as made,
        ):
            made._identity = None
            with pytest.raises(PoolUnavailable):
                await made.engine_version()
        pauses = [later - sooner for sooner, later in pairwise(times)]
        assert pauses == [pytest.approx(3.0, abs=0.1)] * 3

    run_virtually(main())


async def test_d7_the_engine_has_failed() -> None:
    async with answering(retries=RetryPolicy()) as engine:
        await engine.refuses(
            refusal(500),
            WorkerReset,
            "engine_error",
            processed="unknown",
            retriable=True,
            kept=True,
            status=500,
        )
        await engine.refuses(
            refusal(501),
            AdapterError,
            "unsupported",
            processed="no",
            retriable=False,
            kept=True,
            status=501,
        )


@pytest.mark.parametrize(
    ("status", "cls", "detail", "processed"),
    [
        (502, PoolUnavailable, "unavailable", "unknown"),
        (503, PoolUnavailable, "unavailable", "unknown"),
        (504, DecodeTimeout, "gateway_timeout", "unknown"),
    ],
)
async def test_d8_nobody_behind_the_gateway(
    status: int, cls: type[WorkerError], detail: str, processed: str
) -> None:
    async with answering(retries=RetryPolicy()) as engine:
        await engine.refuses(
            refusal(status),
            cls,
            detail,
            processed=processed,
            retriable=True,
            kept=True,
            status=status,
        )


def test_d8_a_submit_is_repeated_where_the_engine_says_not_queued() -> None:
    loading = '{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}'

    async def main() -> None:
        loop = asyncio.get_running_loop()
        asked = []

        async def script(connection: Connection) -> None:
            while True:
                asked.append((await connection.request()).path)
                await connection.send(ANSWER if len(asked) > 3 else refusal(503, loading).encode())

        async with (
            released(),
            playing(script) as server,
            adapter(server.url, clock=loop.time, retries=RetryPolicy()) as made,
        ):
            finished(await ask(made, task()))
        assert asked.count("/completion") > 1

    run_virtually(main())


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
async def test_d9_redirect_is_not_followed(status: int, transport: Transport) -> None:
    async with answering() as engine:
        for location in (
            "http://elsewhere.test/",
            "http://169.254.169.254/latest/meta-data/",
            f"https://user:{KEY}@elsewhere.test/path?q=1",
            "/completion",
            "//",
            "",
        ):
            error = await engine.refuses(
                refusal(status, "", f"location: {location}\r\n"),
                AdapterError,
                "redirect",
                processed="no",
                retriable=False,
                kept=transport == "httpx",
                status=status,
            )
            for shown in ("latest", "user", "path"):
                assert shown not in error.message


@pytest.mark.parametrize(
    "kind", ["content-type: application/json\r\n", "content-type: text/html\r\n", ""]
)
async def test_d10_what_is_no_event_stream_is_refused(kind: str) -> None:
    async with answering() as engine:
        await engine.refuses(
            refusal(200, '{"content":"Quixotania"}', kind),
            AdapterError,
            "content_type",
            phase="first_token",
            processed="unknown",
            retriable=False,
            kept=False,
        )


@pytest.mark.parametrize(
    "kind", ["text/event-stream;", "text/event-stream;charset=x", "Text/Event-Stream"]
)
async def test_d10_an_event_stream_may_have_parameters(kind: str) -> None:
    async with answering() as engine:
        engine.answer = RESTING_ANSWER.replace(b"text/event-stream", kind.encode())
        finished(await ask(engine.adapter, task(engine="vllm")))
        await until_sockets(engine.server.url, 1)


@pytest.mark.parametrize("status", [201, 202, 203, 204, 205, 206, 210, 226, 299])
async def test_d11_another_success_is_none(status: int, transport: Transport) -> None:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: text/event-stream\r\n"
    body = "\r\n" if status == 204 else "content-length: 2\r\n\r\nno"
    async with answering() as engine:
        await engine.refuses(
            head + body,
            AdapterError,
            "status",
            processed="unknown",
            retriable=False,
            kept=transport == "httpx",
            status=status,
        )


TWO_FRAMINGS = "content-length: 5\r\ntransfer-encoding: chunked\r\n"
FRAMINGS = (
    "content-length: 5\r\ncontent-length: 6\r\n",
    "transfer-encoding: identity\r\n",
    "transfer-encoding: gzip, chunked\r\n",
    "content-length: -1\r\n",
    "content-length: +5\r\n",
    "content-length: 0x5\r\n",
    "content-length: 100000000000000000000\r\n",
)


def framed(headers: str) -> str:
    return f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n{headers}\r\n"


@on_native
@pytest.mark.parametrize("headers", [TWO_FRAMINGS, *FRAMINGS])
async def test_d12_ambiguous_framing_is_refused(headers: str) -> None:
    async with answering() as engine:
        await engine.refuses(
            framed(headers),
            AdapterError,
            "framing",
            processed="unknown",
            retriable=False,
            kept=False,
        )


@on_httpx
@pytest.mark.parametrize("headers", FRAMINGS)
async def test_d12_h11_refuses_the_head(headers: str) -> None:
    async with answering() as engine:
        await engine.refuses(
            framed(headers),
            AdapterError,
            "protocol",
            processed="unknown",
            retriable=False,
            kept=False,
        )


@on_httpx
async def test_d12_h11_takes_two_framings_for_chunks() -> None:
    async with answering() as engine:
        body = RESTING_ANSWER.partition(b"\r\n\r\n")[2]
        engine.answer = framed(TWO_FRAMINGS).encode() + body
        finished(await ask(engine.adapter, task(engine="vllm")))


async def test_d13_a_proxy_that_wants_a_password() -> None:
    async with answering() as engine:
        await engine.refuses(
            refusal(407),
            AdapterError,
            "proxy_auth",
            processed="no",
            retriable=False,
            kept=True,
            status=407,
        )


async def test_d13_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(_: Connection) -> None:
        raise AssertionError("the proxy was called")

    async with RawServer(script) as proxy, answering() as engine:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        engine.answer = RESTING_ANSWER
        finished(await ask(engine.adapter, task(engine="vllm")))
        assert not proxy.connections


@on_httpx
@pytest.mark.parametrize("status", [407, 403, 502])
async def test_d13_a_proxy_that_was_asked_for_and_refuses(status: int) -> None:
    async def script(connection: Connection) -> None:
        assert (await connection.request()).method == "CONNECT"
        await connection.send(refusal(status).encode())
        connection.close()

    async with RawServer(script) as proxy, httpx.AsyncClient(proxy=proxy.url) as client:
        async with adapter("https://engine.test", http_client=client, transport="httpx") as made:
            failed(
                await ask(made, task()),
                AdapterError,
                "proxy_auth",
                phase="connect",
                processed="no",
                retriable=False,
            )
        assert len(proxy.connections) == 1
