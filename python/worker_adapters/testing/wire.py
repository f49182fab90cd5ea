"""An HTTP/1 server on a raw socket: what it sends is up to the last byte what a script says.

For tests of clients that have to cope with what engines really send: a real HTTP server would frame
the bytes its own way, and could neither hang nor break off.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Self

__all__ = [
    "LAST_CHUNK",
    "Connection",
    "RawServer",
    "Received",
    "Script",
    "chunk",
    "connect",
    "response",
]

LAST_CHUNK: Final = b"0\r\n\r\n"
_HEAD_BYTES: Final = 1 << 16
_STOP_SECONDS: Final = 5.0


def chunk(data: bytes) -> bytes:
    """Return ``data`` as one HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def response(
    body: bytes | str = b"",
    status: str = "200 OK",
    content_type: str = "application/json",
    headers: tuple[tuple[str, str], ...] = (),
) -> bytes:
    """Return a whole response with a length."""
    data = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers)]
    lines += [f"Content-Type: {content_type}", f"Content-Length: {len(data)}", "", ""]
    return "\r\n".join(lines).encode("latin-1") + data


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it came in; header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def route(self) -> str:
        """``METHOD /path``, without the query."""
        return f"{self.method} {self.path.partition('?')[0]}"

    @property
    def json(self) -> Any:
        """The body as JSON. Raises ValueError."""
        return json.loads(self.body)


class _Reader(asyncio.StreamReader):
    """Tells when the client leaves, without reading."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=_HEAD_BYTES, loop=loop)
        self.left = asyncio.Event()

    def feed_eof(self) -> None:
        super().feed_eof()
        self.left.set()

    def set_exception(self, exc: Exception) -> None:
        super().set_exception(exc)
        self.left.set()


class Connection:
    """One end of a connection, as a rule the server's."""

    def __init__(self, reader: _Reader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._over = asyncio.Event()
        self.received: list[Received] = []

    async def request(self) -> Received:
        """Read one request.

        Raises asyncio.IncompleteReadError when the client has left, and ValueError for bytes that
        are no request.
        """
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip("\r\n").split("\r\n")
        method, path, _ = first.split(" ")
        pairs = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        if headers.get("expect", "").lower() == "100-continue":
            await self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = await self._chunked()
        else:
            body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        request = Received(method, path, headers, body)
        self.received.append(request)
        return request

    async def _chunked(self) -> bytes:
        body = b""
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            body += (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readuntil(b"\r\n")
        return body

    async def send(self, *pieces: bytes) -> None:
        """Send each piece by itself. Raises ConnectionError when the client has left."""
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()

    async def read(self, most: int) -> bytes:
        """Return up to ``most`` bytes of what comes, ``b""`` at the end.

        Raises ConnectionError when the connection has broken.
        """
        return await self._reader.read(most)

    async def until_closed(self) -> None:
        """Stay until the client leaves; for scripts."""
        await self._reader.left.wait()

    async def rest(self, seconds: float) -> None:
        """Let time pass. Raises ConnectionResetError as soon as the client leaves."""
        if not self.is_left:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._reader.left.wait()
        if self.is_left:
            raise ConnectionResetError

    async def over(self, within: float = 5.0) -> None:
        """Wait until the script is through, as when the client leaves. Raises TimeoutError."""
        await asyncio.wait_for(self._over.wait(), within)

    @property
    def is_left(self) -> bool:
        """Whether the client has closed its end."""
        return self._reader.left.is_set()

    @property
    def is_over(self) -> bool:
        """Whether the script is through."""
        return self._over.is_set()

    def end(self) -> None:
        """Say that the script is through."""
        self._over.set()

    def reset(self) -> None:
        """Break the connection off with a RST."""
        raw: socket.socket = self._writer.get_extra_info("socket")
        with contextlib.suppress(OSError):  # it has gone by itself
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def cut(self) -> None:
        """Close the connection at once: over TLS without the close_notify that is due.

        What has not gone to the kernel yet is lost.
        """
        self._writer.transport.abort()

    def half_close(self) -> None:
        """Say that nothing more will be sent; what comes can still be read. Not over TLS."""
        with contextlib.suppress(OSError):  # it has gone by itself
            self._writer.write_eof()

    def close(self) -> None:
        """Close the connection once what was sent has gone."""
        self._writer.close()

    async def closed(self) -> None:
        """Wait until it is, once `close` has been called. Raises ConnectionError, ssl.SSLError."""
        await self._writer.wait_closed()


async def connect(host: str, port: int) -> Connection:
    """Return the client's end of a new connection. Raises OSError."""
    loop = asyncio.get_running_loop()
    reader = _Reader(loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.create_connection(lambda: protocol, host, port)
    return Connection(reader, asyncio.StreamWriter(transport, protocol, reader, loop))


Script = Callable[[Connection], Awaitable[None]]


class RawServer:
    """Plays a script on every connection.

    An asynchronous context manager runs it in the loop at hand, a plain one in a thread of its own,
    for callers that have no loop or block theirs. Leaving it ends every connection and raises what
    a script has raised; a client that leaves is no failure.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._script = script
        self._address = (host, port)
        self._tls = tls
        self._listener: asyncio.Server | None = None
        self._is_stopped = False
        self._playing: set[asyncio.Task[None]] = set()
        self._failures: list[BaseException] = []
        self._problems: list[BaseException] = []
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leave: asyncio.Event | None = None
        self.connections: list[Connection] = []
        self.url = ""
        """Base URL, once it has been entered."""

    async def play(self, connection: Connection) -> None:
        """Serve one connection; the script, unless a subclass has something better."""
        if self._script is None:
            raise TypeError("a RawServer needs a script, or a subclass with a play of its own")
        await self._script(connection)

    def received(self, path: str | None = None) -> list[Received]:
        """Return what has come in, for one path or all, connection by connection."""
        return [
            request
            for connection in self.connections
            for request in connection.received
            if path is None or request.path == path
        ]

    async def start(self) -> None:
        """Listen. Raises OSError when the port is taken."""
        loop = asyncio.get_running_loop()

        def protocol() -> asyncio.StreamReaderProtocol:
            return asyncio.StreamReaderProtocol(_Reader(loop), self._accept, loop=loop)

        host, port = self._address
        self._listener = await loop.create_server(protocol, host, port, ssl=self._tls)
        self._is_stopped = False
        port = self._listener.sockets[0].getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        self.url = f"{'http' if self._tls is None else 'https'}://{shown}:{port}"

    async def stop(self) -> None:
        """End every connection. Raises what a script has raised."""
        if self._listener is None:
            return
        loop = asyncio.get_running_loop()
        for listening in self._listener.sockets:
            loop.remove_reader(listening.fileno())
        # asyncio loses what it has accepted in this turn of the loop, were it closed at once.
        await asyncio.sleep(0)
        self._listener.close()
        self._is_stopped = True
        while self._playing:
            for task in self._playing:
                task.cancel()
            await asyncio.wait(set(self._playing), timeout=_STOP_SECONDS)
        await self._listener.wait_closed()
        self._listener = None
        failures, self._failures = self._failures, []
        if failures:
            raise failures[0]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    def __enter__(self) -> Self:
        started = threading.Event()
        problems: list[BaseException] = []

        async def serve() -> None:
            self._loop, self._leave = asyncio.get_running_loop(), asyncio.Event()
            try:
                await self.start()
            except OSError as problem:
                problems.append(problem)
                return
            finally:
                started.set()
            await self._leave.wait()
            try:
                await self.stop()
            except BaseException as failure:  # noqa: BLE001 - raised again where it is left
                problems.append(failure)

        self._problems = problems
        self._thread = threading.Thread(
            target=asyncio.run, args=(serve(),), name="raw-server", daemon=True
        )
        self._thread.start()
        started.wait()
        if problems:
            self._thread.join()
            raise problems.pop()
        return self

    def __exit__(self, *exc_info: object) -> None:
        thread, self._thread = self._thread, None
        if thread is None or self._loop is None or self._leave is None:
            return
        self._loop.call_soon_threadsafe(self._leave.set)
        thread.join()
        if self._problems:
            raise self._problems.pop()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not isinstance(reader, _Reader):
            raise TypeError("not as it was set up")
        if self._is_stopped:
            writer.transport.abort()
            return
        connection = Connection(reader, writer)
        self.connections.append(connection)
        task = asyncio.get_running_loop().create_task(self._serve(connection))
        self._playing.add(task)
        task.add_done_callback(self._playing.discard)
        # A task that is cancelled before its first step runs nothing of its own.
        task.add_done_callback(lambda _: connection.close())

    async def _serve(self, connection: Connection) -> None:
        try:
            await self.play(connection)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client has left, or the server ends
        except BaseException as failure:  # noqa: BLE001 - raised by whoever leaves the server
            self._failures.append(failure)
        finally:
            connection.end()
            connection.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await connection.closed()
