"""B: TLS, in the handshake and in mid-stream."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

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
    until_sockets,
)
from tests.transports import Transport, both_transports
from tests.unit.tasks import task
from tests.unit.virtual_time import run as run_virtually
from tests.unit.wire import STREAM_HEAD, engine, eventually
from worker_adapters import AdapterError, PoolUnavailable, RetryPolicy, Timeouts, WorkerReset
from worker_adapters.testing.faults import Blackhole, FaultProxy, LocalCa, Toxic
from worker_adapters.testing.wire import RawServer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from worker_adapters.testing.wire import Connection, Received

pytestmark = both_transports


both_versions = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])


@pytest.fixture(scope="module")
def ca() -> LocalCa:
    return LocalCa()


async def says(connection: Connection) -> None:
    await connection.request()
    await connection.send(ANSWER)


async def speaks(connection: Connection, _: Received) -> None:
    await connection.send(ANSWER)


async def refused(url: str, detail: str, **options: Any) -> None:
    """Assert that a task is refused in the handshake, for good, and nothing left behind."""
    async with released(), adapter(url, retries=RetryPolicy(), **options) as made:
        failed(
            await ask(made, task()),
            AdapterError,
            detail,
            phase="tls",
            processed="no",
            retriable=False,
        )
        await until_sockets(url, 0)


@pytest.mark.parametrize("wrong", ["ca", "expired", "name", "self-signed"])
async def test_b1_a_certificate_that_does_not_verify(ca: LocalCa, wrong: str) -> None:
    context = {
        "ca": lambda: LocalCa().serving(),
        "expired": lambda: ca.serving(expired=True),
        "name": lambda: ca.serving("localhost", "127.0.0.2", "*.example.org"),
        "self-signed": lambda: LocalCa().self_signed(),
    }[wrong]()
    async with RawServer(says, tls=context) as server:
        await refused(server.url, "tls_verify", tls=ca.trusted)
        assert not server.received()


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_b2_a_version_that_is_too_old(ca: LocalCa, newest: ssl.TLSVersion) -> None:
    async with RawServer(says, tls=ca.serving(newest=newest)) as server:
        await refused(server.url, "tls", tls=ca.trusted)


async def test_b2_no_cipher_in_common(ca: LocalCa) -> None:
    context = ca.serving(newest=ssl.TLSVersion.TLSv1_2, ciphers="AES128-SHA")

    async def script(_: Connection) -> None:
        raise AssertionError("there was a handshake")

    async with RawServer(script, tls=context) as server:
        await refused(server.url, "tls", tls=ca.trusted)


async def test_b2_plain_http_where_tls_is_meant(ca: LocalCa) -> None:
    async def script(connection: Connection) -> None:
        await connection.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await connection.until_closed()

    async with RawServer(script) as server:
        await refused(server.url.replace("http:", "https:"), "tls", tls=ca.trusted)


async def test_b2_tls_where_plain_http_is_meant() -> None:
    async def script(connection: Connection) -> None:
        await connection.request()
        # Fatal, unexpected_message: what rustls and Go's TLS say to "POST / HTTP/1.1".
        await connection.send(bytes([21, 3, 1, 0, 2, 2, 10]))
        connection.close()

    async with released(), RawServer(script) as server, adapter(server.url) as made:
        failed(
            await ask(made, task()),
            AdapterError,
            "tls",
            phase="head",
            processed="no",
            retriable=False,
        )
        await until_sockets(server.url, 0)


async def test_b2_openssl_says_nothing_to_plain_http(ca: LocalCa) -> None:
    # A connection that is closed without a byte: nobody can tell why.
    async with released(), RawServer(says, tls=ca.serving()) as server:
        url = server.url.replace("https:", "http:")
        async with adapter(url) as made:
            failed(
                await ask(made, task()),
                WorkerReset,
                "reset",
                phase="head",
                processed="unknown",
                retriable=True,
            )
            await until_sockets(url, 0)


@pytest.mark.parametrize("after", [0, 1, 100])
def test_b3_a_handshake_that_stalls(ca: LocalCa, after: int) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with (
            released(),
            RawServer(says, tls=ca.serving()) as server,
            FaultProxy(server.url, Blackhole(after)) as proxy,
            adapter(proxy.url, tls=ca.trusted, clock=loop.time, timeouts=Timeouts(tls=3.0)) as made,
        ):
            outcome = await ask(made, task())
            failed(
                outcome,
                PoolUnavailable,
                "tls_timeout",
                phase="tls",
                processed="no",
                retriable=True,
            )
            assert outcome.seconds == pytest.approx(3.0, abs=0.5)
            await until_sockets(proxy.url, 0)

    run_virtually(main())


def test_b3_a_submit_that_met_a_stalled_handshake_is_sent_again(ca: LocalCa) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with (
            RawServer(engine(speaks), tls=ca.serving()) as server,
            FaultProxy(server.url, Blackhole(1)) as proxy,
            adapter(proxy.url, tls=ca.trusted, clock=loop.time, retries=RetryPolicy()) as made,
        ):
            asked = asyncio.create_task(ask(made, task()))
            await asyncio.sleep(1.0)
            proxy.toxics = ()
            finished(await asked)
            assert len(proxy.connections) > 1
            assert [one.path for one in server.received()].count("/completion") == 1

    run_virtually(main())


@pytest.mark.parametrize("framing", ["chunks", "close"])
async def test_b4_a_close_without_goodbye_is_no_end(ca: LocalCa, framing: str) -> None:
    head, body = STREAM_HEAD, TOKENS
    if framing == "close":
        head = head.replace(b"Transfer-Encoding: chunked\r\n", b"")
        body = unchunked(TOKENS)

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(head + body)
        connection.cut()

    async with (
        released(),
        RawServer(script, tls=ca.serving()) as server,
        adapter(server.url, tls=ca.trusted) as made,
    ):
        failed(
            await ask(made, task()),
            WorkerReset,
            "truncated",
            phase="stream",
            processed="yes",
            retriable=True,
            tokens=len(SAID),
        )
        await until_sockets(server.url, 0)


def unchunked(chunks: bytes) -> bytes:
    body = b""
    while chunks:
        size, _, chunks = chunks.partition(b"\r\n")
        body += chunks[: int(size, 16)]
        chunks = chunks[int(size, 16) + 2 :]
    return body


@dataclass(frozen=True)
class Spoiled(Toxic):
    """Every byte from that one on has a bit turned over."""

    sound: list[int]

    async def apply(self, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for piece in pieces:
            sound = self.sound[0]
            self.sound[0] = max(0, sound - len(piece))
            yield piece[:sound] + bytes(byte ^ 1 for byte in piece[sound:])


@both_versions
async def test_b5_what_came_before_a_spoiled_record_counts(
    ca: LocalCa, version: ssl.TLSVersion
) -> None:
    sound = [1 << 30]
    spoil = asyncio.Event()

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(STREAM_HEAD + TOKENS)
        await spoil.wait()
        await connection.send(TOKENS)
        await connection.until_closed()

    async with (
        released(),
        RawServer(script, tls=ca.serving(newest=version)) as server,
        FaultProxy(server.url, Spoiled(sound)) as proxy,
        adapter(proxy.url, tls=ca.trusted) as made,
    ):
        asked = asyncio.create_task(ask(made, task()))
        await eventually(lambda: LOG.count("token") == len(SAID), "all that was said has come")
        sound[0] = 0
        spoil.set()
        failed(
            await asked,
            WorkerReset,
            "reset",
            phase="stream",
            processed="yes",
            retriable=True,
            tokens=len(SAID),
        )
        await until_sockets(proxy.url, 0)


class ByHand:
    """The server's side of TLS, for what no library says by itself."""

    def __init__(self, connection: Connection, context: ssl.SSLContext) -> None:
        self._connection = connection
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def _until_done(self, step: Callable[[], object]) -> None:
        while True:
            try:
                step()
            except ssl.SSLWantReadError:
                await self._flush()
                self._incoming.write(await self._connection.read(1 << 16))
            else:
                return

    async def _flush(self) -> None:
        await self._connection.send(self._outgoing.read())

    async def hear(self) -> None:
        """Shake hands and read the beginning of a request."""
        await self._until_done(self._tls.do_handshake)
        await self._flush()
        await self._until_done(lambda: self._tls.read(1 << 16))

    async def send(self, data: bytes) -> None:
        self._tls.write(data)
        await self._flush()

    async def alert(self, after: bytes = b"") -> None:
        """Send ``after`` and, with it, what is due to a record that cannot be: bad_record_mac."""
        if after:
            self._tls.write(after)
        self._incoming.write(b"\x17\x03\x03\x00\x20" + bytes(32))
        with pytest.raises(ssl.SSLError, match=r"(?i)bad record mac"):
            list(iter(lambda: self._tls.read(1 << 16), b""))
        await self._flush()


@both_versions
async def test_b5_an_alert_in_midstream(ca: LocalCa, version: ssl.TLSVersion) -> None:
    context = ca.serving(newest=version)
    go_on = asyncio.Event()

    async def script(connection: Connection) -> None:
        tls = ByHand(connection, context)
        await tls.hear()
        await tls.send(STREAM_HEAD + TOKENS)
        await go_on.wait()
        await tls.alert()
        await connection.until_closed()

    async with released(), RawServer(script) as server:
        url = server.url.replace("http:", "https:")
        async with adapter(url, tls=ca.trusted) as made:
            asked = asyncio.create_task(ask(made, task()))
            await eventually(lambda: LOG.count("token") == len(SAID), "all that was said has come")
            go_on.set()
            failed(
                await asked,
                WorkerReset,
                "reset",
                phase="stream",
                processed="yes",
                retriable=True,
                tokens=len(SAID),
            )
            await until_sockets(url, 0)


@both_versions
async def test_b5_an_alert_right_behind_what_was_said(
    ca: LocalCa, version: ssl.TLSVersion, transport: Transport
) -> None:
    context = ca.serving(newest=version)

    async def script(connection: Connection) -> None:
        tls = ByHand(connection, context)
        await tls.hear()
        await tls.alert(STREAM_HEAD + TOKENS)
        await connection.until_closed()

    async with released(), RawServer(script) as server:
        url = server.url.replace("http:", "https:")
        async with adapter(url, tls=ca.trusted) as made:
            outcome = await ask(made, task())
            # asyncio loses what came in one read with an alert.
            came = transport == "native"
            failed(
                outcome,
                WorkerReset,
                "reset",
                phase="stream" if came else "head",
                processed="yes" if came else "unknown",
                retriable=True,
                tokens=len(SAID) if came else 0,
            )
            await until_sockets(url, 0)


async def test_b5_a_flood_of_tickets_is_let_pass(ca: LocalCa) -> None:
    context = ca.serving(newest=ssl.TLSVersion.TLSv1_3)
    context.num_tickets = 200
    async with (
        released(),
        RawServer(says, tls=context) as server,
        adapter(server.url, tls=ca.trusted) as made,
    ):
        for _ in range(2):
            finished(await ask(made, task()))
