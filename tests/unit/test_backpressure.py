"""A reader that is slow, or has stopped: what waits for it, and what it is told in the end."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
import tracemalloc
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.transports import both_transports, on_httpx
from tests.unit.tasks import adapter, task
from tests.unit.wire import LAST_CHUNK, PROPS, STREAM_HEAD, final, frame
from worker_adapters.testing.wire import response

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = both_transports

WITHIN = 20.0
PER_STREAM = 128 << 10

TOKENS = 60_000
TEXTS = [f"token {number} " for number in range(1, TOKENS + 1)]


class Torrent(threading.Thread):
    """An engine in a thread of its own that sends each stream what its socket takes.

    ``is_stuck`` is set once none takes any more; what is left is sent when it does.
    """

    def __init__(self, streams: int, body: bytes, piece: int) -> None:
        super().__init__(daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(WITHIN)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._streams, self._body, self._piece = streams, memoryview(body), piece
        self.sent: list[int] = [0] * streams
        self.is_stuck = threading.Event()

    def run(self) -> None:
        while len(self._open) < self._streams:
            connection, _ = self._listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(WITHIN)
            if connection.recv(65536).startswith(b"POST"):
                connection.sendall(STREAM_HEAD)
                self._open.append(connection)
            else:
                # It closes, and says so: a task would meet the closed connection otherwise.
                connection.sendall(response(PROPS, headers=(("Connection", "close"),)))
                connection.close()
        for patience in (0.3, WITHIN):
            for number in range(self._streams):
                self._send(number, patience)
            self.is_stuck.set()

    def _send(self, number: int, patience: float) -> None:
        connection = self._open[number]
        try:
            connection.settimeout(patience)
            while piece := self._body[self.sent[number] : self.sent[number] + self._piece]:
                self.sent[number] += connection.send(piece)
        except OSError:
            return  # no room, or nobody there any more

    def close(self) -> None:
        for connection in (*self._open, self._listener):
            connection.close()
        self.join(WITHIN)


@contextmanager
def torrent(streams: int, body: bytes, piece: int = 1 << 20) -> Iterator[Torrent]:
    made = Torrent(streams, body, piece)
    made.start()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def body() -> bytes:
    """Return a stream of some megabytes, which no buffer on the way holds."""
    frames = (frame(text, number) for number, text in enumerate(TEXTS, 1))
    return b"".join((*frames, final(TOKENS), LAST_CHUNK))


@on_httpx
@pytest.mark.parametrize("is_blocked", [True, False], ids=["floods", "drips"])
async def test_what_waits_for_a_reader_that_has_stopped_is_bounded(
    body: bytes, is_blocked: bool
) -> None:
    # Over native sockets rust/net/tests/scale.rs counts it.
    count = 4
    with torrent(count, body, 1 << 20 if is_blocked else 48) as server:
        async with adapter(server.url) as engine:
            streams = [await engine.submit(task()) for _ in range(count)]
            tracemalloc.start()
            try:
                # Either one read brings all that the kernel had room for, or each brings a piece.
                if is_blocked:
                    assert server.is_stuck.wait(WITHIN)
                else:
                    assert await asyncio.to_thread(server.is_stuck.wait, WITHIN)
                for _ in range(50):
                    await asyncio.sleep(0)
                held, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert 32 << 10 <= held / count <= PER_STREAM, held / count
            for stream in streams:
                await stream.cancel()


async def test_a_reader_that_stopped_holds_the_engine_back_and_then_gets_every_token(
    body: bytes,
) -> None:
    with torrent(1, body) as server:
        async with adapter(server.url) as engine:
            stream = await engine.submit(task(max_tokens=TOKENS))
            events = aiter(stream)
            assert (await anext(events)).kind == "started"
            assert await asyncio.to_thread(server.is_stuck.wait, WITHIN)
            # The kernel's buffers, and a bounded rest of ours: the engine still has most of it.
            assert server.sent[0] < len(body)
            before = server.sent[0]
            for _ in range(200):
                await asyncio.sleep(0)
            assert server.sent[0] == before
            digest, number = hashlib.sha256(), 0
            async for event in events:
                if event.kind == "token":
                    assert event.i == number
                    number += 1
                    digest.update((event.t or "").encode())
                else:
                    assert (event.kind, event.finish_reason) == ("end", "length")
    assert number == TOKENS
    assert digest.digest() == hashlib.sha256("".join(TEXTS).encode()).digest()
