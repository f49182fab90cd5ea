"""A server that plays a script on a raw socket, and the words it says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

WITHIN = 5.0
"""How long anything here may take before the test fails instead of hanging."""


@dataclass(frozen=True)
class Received:
    """One request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._over = asyncio.Event()
        self.received: list[Received] = []

    async def request(self) -> Received:
        """Read one request. Raises asyncio.IncompleteReadError when the client has left."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        request = Received(method, path, headers, body)
        self.received.append(request)
        return request

    async def send(self, *pieces: bytes) -> None:
        """Send each piece by itself."""
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()

    async def until_closed(self) -> None:
        """Stay until the client leaves; for scripts."""
        with contextlib.suppress(ConnectionResetError):
            await self._reader.read()

    async def over(self) -> None:
        """Wait until the client has left; for tests. Fails if it does not."""
        await asyncio.wait_for(self._over.wait(), WITHIN)

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    def end(self) -> None:
        """The script is through."""
        self._over.set()

    def reset(self) -> None:
        """Break the connection off with a RST."""
        raw: socket.socket = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def close(self) -> None:
        self._writer.close()


Script = Callable[[Connection], Awaitable[None]]


@dataclass
class Server:
    """Where the script is played, and what it has seen."""

    url: str
    connections: list[Connection] = field(default_factory=list)

    def requests(self, path: str) -> list[Received]:
        """Return what has come in for ``path``, connection by connection."""
        return [
            request
            for connection in self.connections
            for request in connection.received
            if request.path == path
        ]

    async def asked(self, path: str) -> None:
        """Wait for the first request for ``path``."""
        await eventually(lambda: bool(self.requests(path)), path)


@asynccontextmanager
async def playing(script: Script, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """Play ``script`` on every connection. An exception in it fails the test."""
    server = Server("")
    failures: list[BaseException] = []
    tasks: set[asyncio.Task[None]] = set()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        connection = Connection(reader, writer)
        server.connections.append(connection)
        try:
            await script(connection)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client left, or the test is over
        except BaseException as failure:  # noqa: BLE001 - kept for the test
            failures.append(failure)
        finally:
            tasks.discard(task)
            connection.end()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    listener = await asyncio.start_server(play, "127.0.0.1", 0, ssl=tls)
    host, port = listener.sockets[0].getsockname()[:2]
    server.url = f"http://{host}:{port}"
    try:
        yield server
    finally:
        listener.close()
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(set(tasks), timeout=WITHIN)
        await listener.wait_closed()
    if failures:
        raise failures[0]


def answer(body: bytes | str, status: str = "200 OK", kind: str = "application/json") -> bytes:
    """Return a whole response."""
    data = body.encode() if isinstance(body, str) else body
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """Return ``data`` as one HTTP chunk."""
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def frame(content: str, predicted: int, **more: Any) -> bytes:
    """Return a frame of llama.cpp's native stream, as one HTTP chunk."""
    fields = {
        "index": 0,
        "content": content,
        "tokens": [predicted],
        "stop": False,
        "id_slot": -1,
        "tokens_predicted": predicted,
        "tokens_evaluated": 8,
    }
    return chunk(b"data: " + json.dumps(fields | more).encode() + b"\n\n")


def final(predicted: int, stop_type: str = "limit") -> bytes:
    """Return the last frame of llama.cpp's native stream, as one HTTP chunk."""
    return frame("", predicted, stop=True, stop_type=stop_type, tokens=[])


PROPS = json.dumps(
    {
        "default_generation_settings": {"n_ctx": 1024},
        "total_slots": 4,
        "model_alias": "tiny",
        "model_path": "/models/tiny.gguf",
        "build_info": "b1-0c1e570",
    }
)


def engine(script: Callable[[Connection, Received], Awaitable[None]]) -> Script:
    """Return a script that answers ``/props`` and leaves every other request to ``script``."""

    async def play(connection: Connection) -> None:
        while True:
            request = await connection.request()
            if request.path == "/props":
                await connection.send(answer(PROPS))
            else:
                await script(connection, request)

    return play


async def eventually(condition: Callable[[], bool], what: str) -> None:
    """Let the loop run until ``condition`` holds; fail the test if it never does."""
    loop = asyncio.get_running_loop()
    until = loop.time() + WITHIN
    while not condition():
        assert loop.time() < until, f"never: {what}"
        await asyncio.sleep(0.001)
