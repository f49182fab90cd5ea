"""An engine that does each thing wrong that the fault table knows of HTTP, as a program.

``python -m tests.soak.faulty [PORT]`` writes its port and ends with its standard input. The last
part of the path of a POST names what becomes of it, or ``any``; ``GET /counts`` tells how many
requests came by each method.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter
from typing import TYPE_CHECKING

from tests.unit.wire import LAST_CHUNK, PROPS, STREAM_HEAD, answer, chunk, final, frame

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TWO = frame("a", 1) + frame("b", 2)
WHOLE = STREAM_HEAD + TWO + final(2) + LAST_CHUNK

_ERROR = '{"error":{"code":%d,"message":"m","type":"%s"}}'


def _status(code: int, kind: str) -> bytes:
    return answer(_ERROR % (code, kind), f"{code} Whatever")


CLOSE, RESET, KEEP = "close", "reset", "keep"

FAULTS: Mapping[str, tuple[bytes, str]] = {
    "whole": (WHOLE, KEEP),
    "closed_before_the_head": (b"", CLOSE),
    "reset_before_the_head": (b"", RESET),
    "half_a_head": (STREAM_HEAD[:30], CLOSE),
    "no_head": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", KEEP),
    "large_head": (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000, KEEP),
    "many_headers": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 101 + b"\r\n", KEEP),
    "interim": (b"HTTP/1.1 103 Early Hints\r\n\r\n" * 17, KEEP),
    "two_lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", KEEP),
    "redirect": (b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", KEEP),
    "no_stream": (answer("<html>", kind="text/html"), KEEP),
    "gzip": (STREAM_HEAD[:-2] + b"Content-Encoding: gzip\r\n\r\n" + LAST_CHUNK, KEEP),
    "400": (_status(400, "invalid_request_error"), KEEP),
    "401": (_status(401, "authentication_error"), KEEP),
    "429": (_status(429, "rate_limit_error"), KEEP),
    "500": (_status(500, "server_error"), KEEP),
    "503": (_status(503, "unavailable_error"), KEEP),
    "large_error": (answer("x" * 100_000, "500 Oops"), KEEP),
    "cut_between_events": (STREAM_HEAD + TWO, CLOSE),
    "cut_in_an_event": (STREAM_HEAD + TWO[:-20], CLOSE),
    "reset_in_an_event": (STREAM_HEAD + TWO[:-20], RESET),
    "no_finish": (STREAM_HEAD + TWO + LAST_CHUNK, KEEP),
    "bad_chunk": (STREAM_HEAD + TWO + b"zz\r\n", KEEP),
    "bad_json": (STREAM_HEAD + chunk(b'data: {"content":\n\n'), KEEP),
    "large_event": (STREAM_HEAD + chunk(b"data: " + b"x" * (1 << 20) + b"\n\n"), KEEP),
    "error_in_a_200": (
        STREAM_HEAD + chunk(b"data: " + (_ERROR % (500, "x")).encode() + b"\n\n"),
        KEEP,
    ),
    "after_the_end": (STREAM_HEAD + TWO + final(2) + TWO + LAST_CHUNK, KEEP),
    "silence": (STREAM_HEAD + TWO, KEEP),
}


class Engine(asyncio.Protocol):
    """One connection."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._held = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._held += data
        while (end := self._held.find(b"\r\n\r\n")) >= 0:
            head = self._held[:end].decode("latin-1").lower().split("\r\n")
            lengths = (line[16:] for line in head if line.startswith("content-length: "))
            size = end + 4 + int(next(lengths, "0"))
            if len(self._held) < size:
                return
            self._held = self._held[size:]
            method, path, _ = head[0].split(" ")
            self._counts[method] += 1
            self._answer(method, path)

    def _answer(self, method: str, path: str) -> None:
        if path == "/counts":
            self._transport.write(answer(json.dumps(self._counts)))
            return
        name = path.split("/")[1]
        if method == "get" and name != "503":
            self._transport.write(answer(PROPS))
            return
        told, then = FAULTS[random.choice(list(FAULTS)) if name == "any" else name]
        self._transport.write(told)
        if then == CLOSE:
            self._transport.close()
        elif then == RESET:
            self._transport.abort()


async def serve(port: int) -> None:
    counts: Counter[str] = Counter()
    loop = asyncio.get_running_loop()
    make: Callable[[], Engine] = lambda: Engine(counts)  # noqa: E731
    server = await loop.create_server(make, "127.0.0.1", port, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
