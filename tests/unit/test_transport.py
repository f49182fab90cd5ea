"""Bytes on the wire: what each fault is called, and that every connection is let go."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import shutil
import socket
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.unit.virtual_time import run as run_virtually
from tests.unit.wire import LAST_CHUNK, STREAM_HEAD, answer, chunk, eventually, playing
from worker_adapters._core import EgressPolicy, error_details, error_phases
from worker_adapters.transport import (
    Progress,
    Request,
    TransportError,
    read_body,
    validate_base_url,
)
from worker_adapters.transport import _httpx as module
from worker_adapters.transport._httpx import HttpxTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.unit.wire import Connection, Script, Server
    from worker_adapters.transport import ByteStream

GET = Request("GET", "/x")
POST = Request("POST", "/x", ((b"X-Test", b"1"),), b'{"a":1}')


@asynccontextmanager
async def transport_to(url: str, **options: Any) -> AsyncIterator[HttpxTransport]:
    made = HttpxTransport(url, **options)
    try:
        yield made
    finally:
        await made.aclose()


async def opened(transport: HttpxTransport, request: Request = GET) -> ByteStream:
    return await transport.open(request, Progress(), connect=5.0, tls=5.0)


async def failure(work: Awaitable[object]) -> TransportError:
    with pytest.raises(TransportError) as caught:
        await work
    assert caught.value.detail in error_details()
    assert caught.value.phase in error_phases()
    assert caught.value.__cause__ is None
    return caught.value


def raw(*pieces: bytes, then: Callable[[Connection], None] | None = None) -> Any:
    """Return a script that answers every request with these bytes."""

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(*pieces)
        if then is not None:
            then(connection)
        else:
            await connection.until_closed()

    return script


def closing(connection: Connection) -> None:
    connection.close()


async def test_a_request_arrives_as_it_was_meant() -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(answer("ok"))

    async with playing(script) as server:
        secret = (b"Authorization", b"Bearer hunter22")
        async with transport_to(server.url + "/prefix", headers=[secret]) as transport:
            body = await opened(transport, POST)
            assert body.status == 200
            assert await read_body(body, 100) == (b"ok", True)
            assert "hunter22" not in repr(transport)
    [received] = server.requests("/prefix/x")
    assert (received.method, received.path, received.body) == ("POST", "/prefix/x", b'{"a":1}')
    assert received.headers["accept-encoding"] == "identity"
    assert received.headers["authorization"] == "Bearer hunter22"
    assert received.headers["host"] == server.url.removeprefix("http://")
    assert received.headers["x-test"] == "1"
    assert received.headers["user-agent"].startswith("worker-adapters/")


async def test_a_whole_body_gives_the_connection_back() -> None:
    async def script(connection: Connection) -> None:
        while True:
            await connection.request()
            await connection.send(STREAM_HEAD, chunk(b"a"), chunk(b"b"), LAST_CHUNK)

    async with playing(script) as server, transport_to(server.url) as transport:
        for _ in range(3):
            body = await opened(transport)
            assert await read_body(body, 100) == (b"ab", True)
            assert await body.read() == b""
            await body.aclose()
            await body.aclose()
    assert len(server.connections) == 1


async def test_bytes_come_as_they_arrive() -> None:
    go = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(STREAM_HEAD, chunk(b"first"))
        await go.wait()
        await connection.send(chunk(b"second"), LAST_CHUNK)
        await connection.until_closed()

    async with playing(script) as server, transport_to(server.url) as transport:
        body = await opened(transport)
        assert await body.read() == b"first"
        go.set()
        assert await body.read() == b"second"
        assert await body.read() == b""


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "308 Permanent Redirect"])
async def test_redirects_are_not_followed(status: str) -> None:
    head = f"HTTP/1.1 {status}\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"
    async with playing(raw(head.encode())) as server, transport_to(server.url) as transport:
        body = await opened(transport)
        assert body.status == int(status[:3])
        await body.aclose()
    assert len(server.connections) == 1


async def test_a_redirect_that_makes_no_sense_is_a_redirect() -> None:
    head = b"HTTP/1.1 302 Found\r\nLocation: http://[::bad\r\nContent-Length: 0\r\n\r\n"
    async with playing(raw(head)) as server, transport_to(server.url) as transport:
        error = await failure(opened(transport))
    assert (error.detail, error.phase) == ("redirect", "head")


async def test_cookies_are_not_kept() -> None:
    async def script(connection: Connection) -> None:
        while True:
            await connection.request()
            head = (
                b"HTTP/1.1 200 OK\r\nSet-Cookie: who=someone; Path=/\r\nContent-Length: 0\r\n\r\n"
            )
            await connection.send(head)

    async with playing(script) as server, transport_to(server.url) as transport:
        for _ in range(2):
            await read_body(await opened(transport), 10)
    assert ["cookie" in request.headers for request in server.requests("/x")] == [False, False]


async def test_the_environment_s_proxy_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")
    async with playing(raw(answer("ok"))) as server, transport_to(server.url) as transport:
        assert (await opened(transport)).status == 200


async def test_a_compressed_body_is_handed_over_as_it_is() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"
    async with playing(raw(head)) as server, transport_to(server.url) as transport:
        assert await read_body(await opened(transport), 10) == (b"abc", True)


async def test_a_longer_body_than_allowed_is_cut() -> None:
    async with playing(raw(answer("x" * 100))) as server, transport_to(server.url) as transport:
        body = await opened(transport)
        assert await read_body(body, 99) == (b"x" * 99, False)
        await body.aclose()
        await server.connections[0].over()


# Faults, by the phase they strike in.


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_refused() -> None:
    async with transport_to(f"http://127.0.0.1:{closed_port()}") as transport:
        error = await failure(opened(transport))
    assert (error.detail, error.phase, error.processed) == ("connect", "connect", "no")


async def test_no_such_name(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()

    async def getaddrinfo(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    async with transport_to("http://engine.invalid") as transport:
        error = await failure(opened(transport))
    assert (error.detail, error.phase, error.processed) == ("resolve", "resolve", "no")


@pytest.mark.parametrize(
    ("number", "detail"),
    [
        (errno.ENETUNREACH, "local"),
        (errno.EHOSTUNREACH, "local"),
        (errno.EADDRNOTAVAIL, "local"),
        (errno.EMFILE, "fd"),
        (errno.ENFILE, "fd"),
        (errno.ECONNREFUSED, "connect"),
    ],
)
async def test_why_a_socket_could_not_be_opened(
    number: int, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()

    async def create_connection(*_: Any, **__: Any) -> Any:
        raise OSError(number, "no")

    monkeypatch.setattr(loop, "create_connection", create_connection)
    async with transport_to("http://127.0.0.1:1") as transport:
        error = await failure(opened(transport))
    assert (error.detail, error.phase, error.processed) == (detail, "connect", "no")


def test_connecting_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def create_connection(*_: Any, **__: Any) -> Any:
            await asyncio.Event().wait()

        monkeypatch.setattr(loop, "create_connection", create_connection)
        async with transport_to("http://127.0.0.1:1") as transport:
            began = loop.time()
            error = await failure(transport.open(GET, Progress(), connect=3.0, tls=9.0))
        assert (error.detail, error.phase, error.processed) == ("connect_timeout", "connect", "no")
        assert loop.time() - began == pytest.approx(3.0, abs=0.1)

    run_virtually(main())


def test_the_tls_handshake_takes_too_long() -> None:
    async def script(connection: Connection) -> None:
        await connection.until_closed()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with playing(script) as server:
            url = server.url.replace("http:", "https:")
            async with transport_to(url) as transport:
                began = loop.time()
                error = await failure(transport.open(GET, Progress(), connect=9.0, tls=3.0))
        assert (error.detail, error.phase, error.processed) == ("tls_timeout", "tls", "no")
        assert loop.time() - began == pytest.approx(3.0, abs=0.1)

    run_virtually(main())


async def test_plain_http_where_tls_is_spoken() -> None:
    async with playing(lambda connection: connection.send(answer("ok"))) as server:
        url = server.url.replace("http:", "https:")
        async with transport_to(url) as transport:
            error = await failure(opened(transport))
    assert (error.detail, error.phase, error.processed) == ("tls", "tls", "no")


async def test_the_certificate_does_not_verify() -> None:
    refused = ssl.SSLCertVerificationError(1, "self-signed certificate")
    chain = httpx.ConnectError("x")
    chain.__cause__ = refused
    error = module._before_the_head(chain, Progress(phase="tls"))
    assert (error.detail, error.phase, error.processed) == ("tls_verify", "tls", "no")


def test_all_connections_are_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REQUESTS", 1)

    async def main() -> None:
        async with playing(raw(STREAM_HEAD)) as server, transport_to(server.url) as transport:
            body = await opened(transport)
            error = await failure(opened(transport))
            assert (error.detail, error.phase, error.processed) == ("saturated", "queue", "no")
            await body.aclose()
            again = await opened(transport)
            await again.aclose()

    run_virtually(main())


async def test_closed_before_the_head() -> None:
    async with playing(raw(then=closing)) as server, transport_to(server.url) as transport:
        error = await failure(opened(transport, POST))
    assert (error.detail, error.phase, error.processed) == ("reset", "head", "unknown")


async def test_reset_before_the_head() -> None:
    def reset(connection: Connection) -> None:
        connection.reset()

    async with playing(raw(then=reset)) as server, transport_to(server.url) as transport:
        error = await failure(opened(transport, POST))
    assert (error.detail, error.phase, error.processed) == ("reset", "head", "unknown")


@pytest.mark.parametrize(
    "head",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 two hundred\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nBad\0Header: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    ],
    ids=["banner", "status", "nul", "huge", "two-lengths", "negative-length"],
)
async def test_what_is_no_http_head(head: bytes) -> None:
    async with playing(raw(head)) as server, transport_to(server.url) as transport:
        error = await failure(opened(transport))
    assert (error.detail, error.phase) == ("protocol", "head")


@pytest.mark.parametrize(
    ("tail", "detail"),
    [
        (b"", "truncated"),
        (b"5\r\nab", "truncated"),
        (b"5\r\nabcde\r\n", "truncated"),
        (b"zz\r\n", "framing"),
        (b"5\r\nabcdeX\r\n", "framing"),
        (b"fffffffffffffffffffff\r\n", "framing"),
    ],
)
async def test_a_body_breaks_off(tail: bytes, detail: str) -> None:
    script = raw(STREAM_HEAD, chunk(b"first"), tail, then=closing)
    async with playing(script) as server, transport_to(server.url) as transport:
        body = await opened(transport)
        assert (await body.read()).startswith(b"first")

        async def rest() -> None:
            while await body.read():
                pass

        error = await failure(rest())
        await body.aclose()
    assert (error.detail, error.phase, error.processed) == (detail, "stream", "yes")


async def test_a_body_is_reset() -> None:
    go = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(STREAM_HEAD, chunk(b"first"))
        await go.wait()
        connection.reset()

    async with playing(script) as server, transport_to(server.url) as transport:
        body = await opened(transport)
        assert await body.read() == b"first"
        go.set()
        error = await failure(body.read())
    assert (error.detail, error.processed) == ("reset", "yes")


async def test_two_framings_at_once_are_taken_as_chunked() -> None:
    head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n")
    script = raw(head, chunk(b"whole body"), LAST_CHUNK)
    async with playing(script) as server, transport_to(server.url) as transport:
        assert await read_body(await opened(transport), 100) == (b"whole body", True)


async def test_bytes_after_a_response_end_the_connection() -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(answer("ok") + answer("smuggled"))
        await connection.until_closed()

    async with playing(script) as server, transport_to(server.url) as transport:
        for _ in range(2):
            body = await opened(transport)
            assert await read_body(body, 100) == (b"ok", True)
            await body.aclose()
    assert len(server.connections) == 2


async def test_an_idle_connection_the_peer_closed_is_not_used() -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(answer("ok"))
        connection.close()

    async with playing(script) as server, transport_to(server.url) as transport:
        for _ in range(3):
            body = await opened(transport)
            assert await read_body(body, 100) == (b"ok", True)
            await body.aclose()
            await server.connections[-1].over()
    assert len(server.connections) == 3


async def test_what_has_arrived_is_one_piece() -> None:
    texts = [f"event {number}\n\n".encode() for number in range(31)]
    body_bytes = b"".join(chunk(text) for text in texts) + b"0\r\n\r\n"
    async with playing(raw(STREAM_HEAD + body_bytes)) as server, transport_to(server.url) as made:
        body = await opened(made)
        assert await body.read() == b"".join(texts)
        assert body.read_nowait() == b""
        assert await body.read() == b""
        await body.aclose()


async def test_what_has_arrived_needs_no_waiting() -> None:
    go_on = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(STREAM_HEAD, chunk(b"one"))
        await go_on.wait()
        await connection.send(chunk(b"two"))
        await connection.until_closed()

    async with playing(script) as server, transport_to(server.url) as made:
        body = await opened(made)
        assert await body.read() == b"one"
        assert body.read_nowait() == b""
        go_on.set()
        arrived = bytearray()

        def has_arrived() -> bool:
            arrived.extend(body.read_nowait())
            return bool(arrived)

        await eventually(has_arrived, "the second piece")
        assert arrived == b"two"
        body.abort()
        await body.aclose()
        assert body.read_nowait() == b""


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 17,
        b"HTTP/1.1 200 OK\r\n" + b"X-Field: x\r\n" * 101 + b"Content-Length: 0\r\n\r\n",
    ],
    ids=["interim", "fields"],
)
async def test_too_much_before_the_body(head: bytes) -> None:
    async with playing(raw(head + answer("ok"))) as server, transport_to(server.url) as made:
        error = await failure(opened(made))
    assert (error.detail, error.phase) == ("protocol", "head")


async def test_interim_answers_are_skipped() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" * 3
    async with playing(raw(interim + answer("ok"))) as server, transport_to(server.url) as made:
        body = await opened(made)
        assert (body.status, await read_body(body, 10)) == (200, (b"ok", True))


async def test_a_body_shorter_than_its_length() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"
    async with playing(raw(head, then=closing)) as server, transport_to(server.url) as transport:
        body = await opened(transport)
        assert await body.read() == b"abc"
        error = await failure(body.read())
    assert error.detail == "truncated"


# Letting go.


async def test_abort_tells_the_peer_before_the_loop_turns() -> None:
    async with playing(raw(STREAM_HEAD)) as server, transport_to(server.url) as transport:
        body = await opened(transport)
        body.abort()
        body.abort()
        await server.connections[0].over()
        error = await failure(body.read())
        assert error.detail == "reset"
        await body.aclose()


async def test_abort_wakes_a_pending_read() -> None:
    async with playing(raw(STREAM_HEAD)) as server, transport_to(server.url) as transport:
        body = await opened(transport)
        reader = asyncio.create_task(failure(body.read()))
        await asyncio.sleep(0)
        body.abort()
        assert (await reader).detail == "reset"
        await body.aclose()
        await server.connections[0].over()


async def test_abort_from_another_thread() -> None:
    async with playing(raw(STREAM_HEAD)) as server, transport_to(server.url) as transport:
        body = await opened(transport)
        reader = asyncio.create_task(failure(body.read()))
        await asyncio.sleep(0)
        await asyncio.to_thread(body.abort)
        await reader
        await body.aclose()
        await server.connections[0].over()


async def test_a_cancelled_read_is_cancelled_and_lets_go() -> None:
    async with playing(raw(STREAM_HEAD)) as server, transport_to(server.url) as transport:
        body = await opened(transport)
        reader = asyncio.create_task(body.read())
        await asyncio.sleep(0)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        await server.connections[0].over()
        await body.aclose()


async def test_a_cancelled_open_lets_go() -> None:
    async with playing(raw()) as server, transport_to(server.url) as transport:
        opening = asyncio.create_task(opened(transport))
        await eventually(lambda: bool(server.connections), "connected")
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await server.connections[0].over()


async def test_many_aborts_leave_the_pool_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REQUESTS", 4)
    async with (
        playing(raw(STREAM_HEAD, chunk(b"x"))) as server,
        transport_to(server.url) as transport,
    ):
        for turn in range(40):
            body = await opened(transport)
            if turn % 2:
                await body.read()
            if turn % 3:
                reader = asyncio.create_task(failure(body.read()))
                await asyncio.sleep(0)
                body.abort()
                await asyncio.wait([reader])
            body.abort()
        last = [await opened(transport) for _ in range(4)]
        for body in last:
            await body.aclose()


def test_one_transport_serves_one_loop_after_the_other() -> None:
    transports: list[HttpxTransport] = []

    async def main() -> None:
        async def script(connection: Connection) -> None:
            while True:
                await connection.request()
                await connection.send(answer("ok"))

        async with playing(script) as server:
            transport = HttpxTransport(server.url)
            transports.append(transport)
            await read_body(await opened(transport), 10)
            # Left open: the loop's end closes both the idle connection and the stream.
            await opened(transport)

    for _ in range(3):
        asyncio.run(main(), debug=True)
        gc.collect()

    async def again() -> None:
        async with playing(raw(answer("ok"))) as server:
            transport = transports[0]
            transport._base_url = server.url
            transport._egress = EgressPolicy.for_base_url(server.url)
            transport._urls.clear()
            assert await read_body(await opened(transport), 10) == (b"ok", True)
            assert len(transport._sessions) == 1
            await transport.aclose()

    asyncio.run(again(), debug=True)


async def test_a_transport_nobody_closed_closes_itself() -> None:
    async with playing(raw(answer("ok"))) as server:
        transport = HttpxTransport(server.url)
        await read_body(await opened(transport), 10)
        assert not server.connections[0].is_over
        del transport
        gc.collect()
        await server.connections[0].over()


async def test_closing_twice_and_closing_unused() -> None:
    transport = HttpxTransport("http://127.0.0.1:1")
    await transport.aclose()
    await transport.aclose()


# Injected clients.


async def test_an_injected_client_is_used_and_not_closed() -> None:
    async def script(connection: Connection) -> None:
        while True:
            await connection.request()
            await connection.send(answer("ok"))

    async with httpx.AsyncClient(headers={"X-Mine": "1"}) as client, playing(script) as server:
        async with transport_to(server.url, client=client) as transport:
            await read_body(await opened(transport), 10)
        assert not client.is_closed
        assert (await client.get(server.url)).status_code == 200
    assert server.requests("/x")[0].headers["x-mine"] == "1"
    assert server.requests("/x")[0].headers["accept-encoding"] == "identity"


class Endless(httpx.AsyncByteStream):
    """A body of a client that has no socket to show."""

    def __init__(self) -> None:
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b""
        yield b"first"
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        self.closed = True


async def test_abort_where_there_is_no_socket() -> None:
    endless = Endless()

    async def handle(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=endless)

    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(handle)) as client,
        transport_to("http://engine", client=client) as transport,
    ):
        body = await opened(transport)
        assert await body.read() == b"first"
        reader = asyncio.create_task(failure(body.read()))
        await asyncio.sleep(0)
        body.abort()
        await reader
        await body.aclose()
    assert endless.closed


async def test_an_injected_client_s_failures_do_not_claim_that_nothing_was_sent() -> None:
    async def handle(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("gone", request=request)

    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(handle)) as client,
        transport_to("http://engine", client=client) as transport,
    ):
        error = await failure(opened(transport, POST))
    assert (error.detail, error.processed) == ("reset", "unknown")


# What is said about it.


async def test_neither_headers_nor_bodies_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    request = Request("POST", "/x", ((b"X-Secret", b"hunter22"),), b'{"prompt":"hunter22"}')
    async with (
        playing(raw(answer("hunter22"))) as server,
        transport_to(server.url, headers=[(b"Authorization", b"hunter22")]) as transport,
    ):
        await read_body(await opened(transport, request), 100)
    assert caplog.records
    assert "hunter22" not in caplog.text
    assert "hunter22" not in repr(request)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://host", "http://host"),
        ("https://host:8443/prefix/", "https://host:8443/prefix"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_base_urls(url: str, expected: str) -> None:
    assert validate_base_url(url) == expected


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "printable ASCII"),
        ("http://ho st", "without spaces"),
        ("http://host\r\nX: 1", "printable ASCII"),
        ("http://höst", "printable ASCII"),
        ("host:8080", "must start with http"),
        ("127.0.0.1:8080", "must start with http"),
        ("ftp://host", "must start with http"),
        ("http://", "must name a host"),
        ("http://host:0", "must name a host"),
        ("http://host:99999", "malformed"),
        ("http://[::1", "malformed"),
        ("http://user:hunter22@host", "must not contain credentials"),
        ("http://host?key=hunter22", "must not have a query"),
        ("http://host/?", "must not have a query"),
        ("http://host#x", "must not have a query"),
        ("http://host\\@other", "backslash"),
    ],
)
def test_malformed_base_urls(url: str, why: str) -> None:
    with pytest.raises(ValueError, match="base_url") as caught:
        validate_base_url(url)
    assert why in str(caught.value)
    assert "hunter22" not in str(caught.value)


# TLS.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return a certificate for ``localhost`` that signs itself, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    paths = str(folder / "cert.pem"), str(folder / "key.pem")
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-nodes", "-days", "1"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-out", paths[0], "-keyout", paths[1]),
        ],
        check=True,
        capture_output=True,
    )
    return paths


@asynccontextmanager
async def secured(certificate: tuple[str, str], script: Script) -> AsyncIterator[Server]:
    """Play ``script`` behind TLS, under the name ``localhost``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    async with playing(script, tls=context) as server:
        server.url = f"https://localhost:{server.url.rpartition(':')[2]}"
        yield server


@pytest.fixture
def trusted(certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust the certificate as if a known authority had signed it."""
    context = ssl.create_default_context(cafile=certificate[0])
    monkeypatch.setattr(httpx, "create_ssl_context", lambda **_: context)


async def test_an_unknown_authority(certificate: tuple[str, str]) -> None:
    async with (
        secured(certificate, raw(answer("ok"))) as server,
        transport_to(server.url) as transport,
    ):
        error = await failure(opened(transport))
    assert (error.detail, error.phase, error.processed) == ("tls_verify", "tls", "no")


@pytest.mark.usefixtures("trusted")
async def test_a_wrong_name(certificate: tuple[str, str]) -> None:
    async with secured(certificate, raw(answer("ok"))) as server:
        url = server.url.replace("localhost", "127.0.0.1")
        async with transport_to(url) as transport:
            error = await failure(opened(transport))
    assert (error.detail, error.phase) == ("tls_verify", "tls")


@pytest.mark.usefixtures("trusted")
async def test_tls_all_the_way(certificate: tuple[str, str]) -> None:
    pad = b"x" * 100_000

    async def script(connection: Connection) -> None:
        while True:
            await connection.request()
            await connection.send(STREAM_HEAD, chunk(pad), chunk(pad), LAST_CHUNK)

    async with secured(certificate, script) as server, transport_to(server.url) as transport:
        for _ in range(3):
            body = await opened(transport, POST)
            assert await read_body(body, 1_000_000) == (pad + pad, True)
            await body.aclose()
    assert len(server.connections) == 1


@pytest.mark.usefixtures("trusted")
async def test_abort_and_truncation_over_tls(certificate: tuple[str, str]) -> None:
    async def script(connection: Connection) -> None:
        if (await connection.request()).body:
            await connection.send(STREAM_HEAD, chunk(b"first"))
            await connection.until_closed()
        else:
            await connection.send(STREAM_HEAD, chunk(b"first"))

    async with secured(certificate, script) as server, transport_to(server.url) as transport:
        body = await opened(transport, POST)
        assert await body.read() == b"first"
        reader = asyncio.create_task(failure(body.read()))
        await asyncio.sleep(0)
        body.abort()
        await reader
        await body.aclose()
        await server.connections[0].over()
        cut = await opened(transport)
        assert await cut.read() == b"first"
        assert (await failure(cut.read())).detail == "truncated"
        await cut.aclose()
