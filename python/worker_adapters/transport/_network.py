"""Connections to one origin: sockets on asyncio itself, HTTP/1.1 by httpcore, and a pool of them.

httpcore's own pool and sockets are built for many origins and any event loop. Here there is one
origin, so that finding a connection takes no search however many there are, and whoever is
cancelled - while connecting, in the TLS handshake, between two steps - closes what was being
opened and gives its place back, without having to await anything.
"""

import asyncio
import select
import ssl
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator
from ipaddress import ip_address
from typing import Any, Final, cast

import httpcore

# ruff: noqa: ASYNC109 - httpcore's interfaces take timeouts
__all__ = ["ConnectionPool", "PooledResponse"]

BUFFER_BYTES: Final = 64 << 10
"""How much may wait in a connection before its socket is no longer read."""

HAPPY_EYEBALLS_SECONDS: Final = 0.25
"""How long one address of a name may take before the next is tried beside it."""


class ConnectionPool:
    """Connections to ``origin``, the one used last first; for one event loop.

    At most ``max_requests`` are under way at a time, further ones wait for at most
    ``wait_seconds``. Up to ``max_idle`` connections are kept, each for ``idle_seconds``.
    """

    def __init__(
        self,
        origin: httpcore.Origin,
        *,
        ssl_context: ssl.SSLContext | None,
        max_requests: int,
        wait_seconds: float,
        max_idle: int,
        idle_seconds: float,
    ) -> None:
        self._origin = origin
        self._ssl_context = ssl_context
        self._permits = asyncio.Semaphore(max_requests)
        self._wait_seconds = wait_seconds
        self._max_idle = max_idle
        self._idle_seconds = idle_seconds
        self._idle: deque[_Connection] = deque()
        self._busy: set[_Connection] = set()
        self._closed = False

    async def open(self, request: httpcore.Request) -> "PooledResponse":
        """Send ``request`` and return when the head of its response is there.

        Raises httpcore's exceptions; PoolTimeout when there was no place for it.
        """
        await self._permit()
        connection: _Connection | None = None
        try:
            connection = self._pop_idle()
            if connection is None:
                connection = await self._connect(request)
            self._busy.add(connection)
            response = await connection.http.handle_async_request(request)
        except BaseException:
            self._permits.release()
            if connection is not None:
                self._busy.discard(connection)
                connection.stream.abort()
            raise
        return PooledResponse(response, connection, self)

    async def aclose(self) -> None:
        """Close every connection, also those in use."""
        self._closed = True
        for connection in (*self._idle, *self._busy):
            connection.stream.abort()
        self._idle.clear()
        # The loop closes aborted sockets in its next turn.
        await asyncio.sleep(0)

    def give_back(self, connection: "_Connection") -> None:
        """Take back the connection of a response that has been closed."""
        self._permits.release()
        self._busy.discard(connection)
        if not self._closed and len(self._idle) < self._max_idle and connection.is_reusable():
            self._idle.append(connection)
        else:
            connection.stream.abort()

    async def _permit(self) -> None:
        if not self._permits.locked():
            await self._permits.acquire()
            return
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._permits.acquire()
        except TimeoutError as error:
            raise httpcore.PoolTimeout from error

    def _pop_idle(self) -> "_Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if not connection.http.has_expired():
                return connection
            connection.stream.abort()
        return None

    async def _connect(self, request: httpcore.Request) -> "_Connection":
        trace = request.extensions["trace"]
        host = self._origin.host.decode("ascii")
        await trace("connection.connect_tcp.started", {})
        stream = await _connected(host, self._origin.port)
        if self._ssl_context is not None:
            await trace("connection.start_tls.started", {})
            try:
                await stream.secure(self._ssl_context, host)
            except BaseException:
                stream.abort()
                raise
        http = httpcore.AsyncHTTP11Connection(
            self._origin, stream, keepalive_expiry=self._idle_seconds
        )
        return _Connection(http, stream)


class PooledResponse:
    """A response and the connection it comes over, which `aclose` gives back or closes."""

    def __init__(
        self, response: httpcore.Response, connection: "_Connection", pool: ConnectionPool
    ) -> None:
        self.status = response.status
        self.headers = response.headers
        self.extensions = response.extensions
        self._response = response
        self._connection = connection
        self._pool: ConnectionPool | None = pool

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(cast("AsyncIterable[bytes]", self._response.stream))

    async def aclose(self) -> None:
        """Let the connection go. Idempotent; interrupted, it closes the connection."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            await self._response.aclose()
        finally:
            pool.give_back(self._connection)


class _Connection:
    __slots__ = ("http", "stream")

    def __init__(self, http: httpcore.AsyncHTTP11Connection, stream: "_Stream") -> None:
        self.http = http
        self.stream = stream

    def is_reusable(self) -> bool:
        # httpcore would take bytes that came after a response for the answer to the next request,
        # and has no public way to ask for them.
        return self.http.is_idle() and self.http._h11_state.trailing_data == (b"", False)


async def _connected(host: str, port: int) -> "_Stream":
    loop = asyncio.get_running_loop()
    options: dict[str, Any] = {}
    # Other loops, such as uvloop's, know no happy eyeballs.
    if isinstance(loop, asyncio.BaseEventLoop) and not _is_address(host):
        options["happy_eyeballs_delay"] = HAPPY_EYEBALLS_SECONDS
    try:
        _, stream = await loop.create_connection(_Stream, host, port, **options)
    except OSError as error:
        raise httpcore.ConnectError from error
    return stream


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


class _Stream(asyncio.Protocol, httpcore.AsyncNetworkStream):
    """One socket: the protocol asyncio feeds and the stream httpcore reads, in one.

    httpcore's timeouts are not used: every wait here is bounded by whoever awaits the request.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._lost: BaseException | None = None
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)
        if self._size >= BUFFER_BYTES and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self._ended = True
        self._wake()

    def connection_lost(self, exc: BaseException | None) -> None:
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

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        while not self._pieces:
            if self._lost is not None:
                raise httpcore.ReadError from self._lost
            if self._ended:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = self._pieces.popleft()
        if len(data) > max_bytes:
            self._pieces.appendleft(data[max_bytes:])
            data = data[:max_bytes]
        self._size -= len(data)
        if self._paused and self._size < BUFFER_BYTES and not self._ended:
            self._paused = False
            self._transport.resume_reading()
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        if self._transport.is_closing():
            raise httpcore.WriteError from self._lost
        self._transport.write(buffer)
        await self._writable.wait()
        if self._lost is not None:
            raise httpcore.WriteError from self._lost

    async def secure(self, context: ssl.SSLContext, host: str) -> None:
        """Speak TLS from here on. Raises httpcore.ConnectError."""
        try:
            secured = await asyncio.get_running_loop().start_tls(
                self._transport, self, context, server_hostname=host
            )
            if secured is None:
                raise httpcore.ConnectError
        except OSError as error:
            raise httpcore.ConnectError from error
        self._transport = secured

    def abort(self) -> None:
        """Close the socket in the loop's next turn, whatever is still to be sent."""
        self._transport.abort()

    async def aclose(self) -> None:
        self.abort()

    def get_extra_info(self, info: str) -> Any:
        match info:
            case "socket" | "ssl_object":
                return self._transport.get_extra_info(info)
            case "is_readable":
                return self._ended or bool(self._pieces) or _readable(self._transport)
        return None


def _readable(transport: asyncio.Transport) -> bool:
    """Whether the kernel has something the loop has not seen; of an idle connection, its end."""
    descriptor = transport.get_extra_info("socket").fileno()
    if descriptor < 0:
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
