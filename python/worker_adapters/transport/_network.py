"""HTTP/1.1 to one origin: sockets on asyncio itself, framing by h11, and a pool of connections.

What an engine sends in many small HTTP chunks is handed on as it came over the network: one piece
for all that has arrived. There is one origin, so that finding a connection takes no search however
many there are, and whoever is cancelled - while connecting, in the TLS handshake, between two
steps - closes what was being opened and gives its place back, without having to await anything.
"""

import asyncio
import select
import ssl
import time
from collections import deque
from collections.abc import AsyncIterable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeAlias, cast

import h11

from worker_adapters._core import EgressPolicy
from worker_adapters._secret import SecretBytes
from worker_adapters.transport import Headers, TransportError
from worker_adapters.transport._connect import Dialer
from worker_adapters.transport._tls import is_refused_certificate

__all__ = ["Connection", "ConnectionPool", "OnStep", "PooledResponse"]

BUFFER_BYTES: Final = 64 << 10
"""How much may wait in a connection before its socket is no longer read."""

RESERVE_BYTES: Final = 4 << 10
"""How much a read may bring that could not be held back."""

HEAD_BYTES: Final = 64 << 10
"""How large the head of a response may be, and what else of it is held until it is whole."""

HEAD_FIELDS: Final = 100
"""How many headers it may have."""

INTERIM_RESPONSES: Final = 16
"""How many 1xx answers may come before the response."""

TLS_ALERT: Final = 21
"""How a record of TLS begins that holds an alert (RFC 8446, section 5.1)."""

SPEAKS_TLS: Final = "the server speaks TLS on this port; use https://"
REFUSED: Final = "the server refuses our client certificate, or the lack of one"

OnStep: TypeAlias = Callable[[str], None]
"""Told each step as it begins: ``connect``, ``tls``, ``write``, ``head`` and ``partial_head``."""


class ConnectionPool:
    """Connections to the origin of ``url``, the one used last first; for one event loop.

    They are made as far as ``egress`` allows.

    At most ``max_requests`` are under way at a time, ``max_waiting`` more wait for at most
    ``wait_seconds``. Up to ``max_idle`` connections are kept, each for ``idle_seconds``.
    """

    def __init__(
        self,
        url: str,
        egress: EgressPolicy,
        *,
        ssl_context: ssl.SSLContext | None,
        max_requests: int,
        max_waiting: int,
        wait_seconds: float,
        max_idle: int,
        idle_seconds: float,
    ) -> None:
        # What a loop reads is copied out before it reads on: one room serves all its sockets.
        self._dialer = Dialer(url, egress, partial(_Socket, memoryview(bytearray(BUFFER_BYTES))))
        self._ssl_context = ssl_context
        self._permits = asyncio.Semaphore(max_requests)
        self._max_waiting = max_waiting
        self._waiting = 0
        self._wait_seconds = wait_seconds
        self._max_idle = max_idle
        self._idle_seconds = idle_seconds
        self._idle: deque[Connection] = deque()
        self._busy: set[Connection] = set()
        self._closed = False

    async def open(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        content: AsyncIterable[bytes],
        on_step: OnStep,
    ) -> "PooledResponse":
        """Send a request and return when the head of its response is there.

        Raises TransportError; OSError where a connection could not be opened.
        """
        await self._permit()
        connection: Connection | None = None
        try:
            connection = self._pop_idle()
            if connection is None:
                connection = await self._connect(on_step)
            self._busy.add(connection)
            response = await connection.exchange(method, target, headers, content, on_step)
        except BaseException:
            self._permits.release()
            if connection is not None:
                self._busy.discard(connection)
                connection.abort()
            raise
        return PooledResponse(response, connection, self)

    async def aclose(self) -> None:
        """Close every connection, also those in use."""
        self._closed = True
        for connection in (*self._idle, *self._busy):
            connection.abort()
        self._idle.clear()
        # The loop closes aborted sockets in its next turn.
        await asyncio.sleep(0)

    def give_back(self, connection: "Connection") -> None:
        """Take back the connection of a response that has been closed."""
        self._permits.release()
        self._busy.discard(connection)
        reusable = connection.rest(self._idle_seconds)
        if reusable and not self._closed and len(self._idle) < self._max_idle:
            self._idle.append(connection)
        else:
            connection.abort()

    async def _permit(self) -> None:
        if not self._permits.locked():
            await self._permits.acquire()
            return
        if self._waiting >= self._max_waiting:
            raise TransportError("saturated", "queue", "no")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._permits.acquire()
        except TimeoutError:
            raise TransportError("saturated", "queue", "no") from None
        finally:
            self._waiting -= 1

    def _pop_idle(self) -> "Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if connection.is_alive():
                return connection
            connection.abort()
        return None

    async def _connect(self, on_step: OnStep) -> "Connection":
        on_step("connect")
        socket = await self._dialer.connect()
        if self._ssl_context is not None:
            on_step("tls")
            try:
                await socket.secure(self._ssl_context, self._dialer.host)
            except BaseException:
                socket.abort()
                raise
        return Connection(socket)


class PooledResponse:
    """A response and the connection it comes over, which `release` gives back or closes."""

    def __init__(self, head: h11.Response, connection: "Connection", pool: ConnectionPool) -> None:
        self.status: int = head.status_code
        self.headers: Headers = head.headers.raw_items()
        self._connection = connection
        self._pool: ConnectionPool | None = pool

    @property
    def socket(self) -> Any:
        """The socket, as the loop shows it."""
        return self._connection.socket.get_extra_info("socket")

    async def read(self) -> bytes:
        """Return all of the body that has arrived, waiting for some; ``b""`` at its end.

        Raises TransportError.
        """
        return await self._connection.read()

    def read_nowait(self) -> bytes:
        """Return what of the body has arrived; ``b""`` where nothing has. Never raises."""
        return self._connection.read_nowait()

    def release(self) -> None:
        """Let the connection go. Idempotent."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.give_back(self._connection)


class Connection:
    """One exchange after another over one socket."""

    def __init__(self, socket: "_Socket") -> None:
        self.socket = socket
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES)
        self._whole = False
        self._expires = 0.0

    async def exchange(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        content: AsyncIterable[bytes],
        on_step: OnStep,
    ) -> h11.Response:
        """Send a request and read the head of its response. Raises TransportError."""
        on_step("write")
        self._whole = False
        try:
            head = self._wire(h11.Request(method=method, target=target, headers=list(headers)))
            # A server may answer before it has read all; its answer says more than our failure.
            with suppress(ConnectionError):
                await self.socket.write(head)
                async for piece in content:
                    await self.socket.write(self._wire(h11.Data(data=piece)))
                await self.socket.write(self._wire(h11.EndOfMessage()))
        except h11.LocalProtocolError:
            raise TransportError("invalid_request", "validate", "no") from None
        on_step("head")
        return await self._head(on_step)

    def _wire(self, event: h11.Event) -> SecretBytes:
        """Return what an event is on the wire: a key, a prompt. h11's own events show theirs."""
        return SecretBytes(self._http.send(event) or b"")

    async def _head(self, on_step: OnStep) -> h11.Response:
        interim = received = before = 0
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError:
                raise TransportError("protocol", "head") from None
            if event is h11.NEED_DATA:
                data = await self._receive("head")
                if not data:
                    raise TransportError("reset", "head")
                if not received and data[0] == TLS_ALERT:
                    raise TransportError("tls", "head", "no", message=SPEAKS_TLS)
                received += len(data)
                on_step("partial_head")
                self._http.receive_data(data)
                continue
            is_interim = isinstance(event, h11.InformationalResponse)
            if is_interim or received - before > HEAD_BYTES:
                # h11 bounds what is not whole yet. What follows the head is no part of it.
                through = received - len(self._http.trailing_data[0])
                if through - before > HEAD_BYTES:
                    raise TransportError("protocol", "head")
                before = through
            if isinstance(event, h11.InformationalResponse):
                interim += 1
                if interim > INTERIM_RESPONSES or event.status_code == 101:
                    raise TransportError("protocol", "head")
            elif isinstance(event, h11.Response):
                # h11 bounds what is incomplete; a head that arrives whole may be of any size.
                size = sum(len(name) + len(value) for name, value in event.headers)
                if len(event.headers) > HEAD_FIELDS or size > HEAD_BYTES:
                    raise TransportError("protocol", "head")
                return event
            else:
                raise TransportError("reset", "head")

    async def read(self) -> bytes:
        """Return all of the body that has arrived, waiting for some. See `PooledResponse`."""
        while not (data := self._take()) and not self._whole:
            received = await self._receive("stream")
            # An empty piece tells h11 that there will be no more.
            self._http.receive_data(received)
        return data

    def read_nowait(self) -> bytes:
        """Return what of the body has arrived. See `PooledResponse`."""
        with suppress(TransportError):
            return self._take()
        return b""

    def _take(self) -> bytes:
        """Return the body's bytes that need no waiting. Raises TransportError."""
        parts: list[bytes] = []
        while not self._whole:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError:
                if parts:
                    break  # h11 says it again
                ended = self._http.trailing_data[1]
                raise TransportError("truncated" if ended else "framing", "stream", "yes") from None
            if isinstance(event, h11.Data):
                parts.append(bytes(event.data))
            elif event is h11.NEED_DATA:
                piece = self.socket.take()
                if not piece:
                    break
                self._http.receive_data(piece)
            else:
                self._whole = True
        return b"".join(parts)

    async def _receive(self, phase: str) -> bytes:
        try:
            return await self.socket.read()
        except ConnectionError as lost:
            if is_refused_certificate(lost.__cause__):
                raise TransportError("tls", phase, "no", message=REFUSED) from None
            raise TransportError(
                "reset", phase, "yes" if phase == "stream" else "unknown"
            ) from None

    def rest(self, seconds: float) -> bool:
        """Get ready for the next exchange; whether there can be one."""
        http = self._http
        # Bytes that came after a response would be taken for the answer to the next request.
        if (http.our_state, http.their_state) != (h11.DONE, h11.DONE) or http.trailing_data[0]:
            return False
        http.start_next_cycle()
        self._expires = time.monotonic() + seconds
        return True

    def is_alive(self) -> bool:
        """Whether it can be used again: not too old, and the peer has not closed it."""
        return time.monotonic() < self._expires and not self.socket.is_readable()

    def abort(self) -> None:
        """Close the socket in the loop's next turn, whatever is still to be sent."""
        self.socket.abort()


class _Socket(asyncio.BufferedProtocol):
    """One socket, read when asked: what arrives meanwhile waits, at most `BUFFER_BYTES`.

    ``room`` is where loops put what they read.
    """

    def __init__(self, room: memoryview) -> None:
        self._room = room
        self._transport: asyncio.Transport
        # In one piece, however small the pieces that came.
        self._held = bytearray()
        self._ended = False
        self._lost: Exception | None = None
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        del sizehint
        # A loop that was told to pause may still have something to hand over.
        return self._room[: max(BUFFER_BYTES - len(self._held), RESERVE_BYTES)]

    def buffer_updated(self, nbytes: int) -> None:
        self._held += self._room[:nbytes]
        if len(self._held) >= BUFFER_BYTES and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self._ended = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._lost = exc
        self._writable.set()
        self._wake()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def take(self) -> bytes:
        """Return all that has arrived."""
        if not self._held:
            return b""
        data = bytes(self._held)
        self._held.clear()
        if self._paused and not self._ended:
            self._paused = False
            self._transport.resume_reading()
        return data

    async def read(self) -> bytes:
        """Return all that has arrived, waiting for some; ``b""`` at the end.

        Raises ConnectionError when the connection was lost.
        """
        while not self._held:
            if self._lost is not None:
                raise ConnectionError from self._lost
            if self._ended:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self.take()

    async def write(self, data: bytes) -> None:
        """Send ``data``, waiting for the peer to take it. Raises ConnectionError."""
        if self._transport.is_closing():
            raise ConnectionError from self._lost
        self._transport.write(data)
        await self._writable.wait()
        if self._lost is not None:
            raise ConnectionError from self._lost

    async def secure(self, context: ssl.SSLContext, host: str) -> None:
        """Speak TLS from here on. Raises OSError."""
        secured = await asyncio.get_running_loop().start_tls(
            self._transport, self, context, server_hostname=host
        )
        if secured is None:
            raise ConnectionError
        self._transport = secured

    def abort(self) -> None:
        """Close the socket in the loop's next turn, whatever is still to be sent."""
        self._transport.abort()

    def get_extra_info(self, name: str) -> Any:
        """What the loop's transport tells."""
        return self._transport.get_extra_info(name)

    def is_readable(self) -> bool:
        """Whether anything has come, be it the end, seen by the loop or not yet."""
        if self._ended or self._held:
            return True
        descriptor = self._transport.get_extra_info("socket").fileno()
        if descriptor < 0:
            return True
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))
