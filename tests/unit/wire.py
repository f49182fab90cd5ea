"""A server that plays a script on a raw socket, and the words llama.cpp says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from worker_adapters.testing.wire import (
    LAST_CHUNK,
    Connection,
    RawServer,
    Received,
    Script,
    chunk,
    response,
)

if TYPE_CHECKING:
    import ssl

__all__ = [
    "LAST_CHUNK",
    "PROPS",
    "STREAM_HEAD",
    "WITHIN",
    "Connection",
    "Received",
    "Script",
    "Server",
    "answer",
    "chunk",
    "engine",
    "eventually",
    "final",
    "frame",
    "playing",
]

WITHIN = 20.0
"""How long anything here may take before the test fails instead of hanging: none comes near."""


class Server(RawServer):
    """Where the script is played, and what it has seen."""

    async def start(self) -> None:
        """Listen; a test that means TLS says so in the URL itself."""
        await super().start()
        self.url = self.url.replace("https:", "http:")

    def requests(self, path: str) -> list[Received]:
        """Return what has come in for ``path``, connection by connection."""
        return self.received(path)

    async def asked(self, path: str) -> None:
        """Wait for the first request for ``path``."""
        await eventually(lambda: bool(self.requests(path)), path)


def playing(script: Script, *, tls: ssl.SSLContext | None = None) -> Server:
    """Play ``script`` on every connection. An exception in it fails the test."""
    return Server(script, tls=tls)


def answer(body: bytes | str, status: str = "200 OK", kind: str = "application/json") -> bytes:
    """Return a whole response."""
    return response(body, status, kind)


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)


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
