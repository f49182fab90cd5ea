"""An engine that answers what was recorded: one answer per route, byte for byte."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tests.conftest import CAPTURES
from tests.unit.wire import Connection, Received, Server, answer, playing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    Answering = bytes | Callable[[Connection, Received], Awaitable[None]]

NOT_FOUND = answer('{"detail":"Not Found"}', status="404 Not Found")


def capture(name: str) -> bytes:
    """Return the recorded bytes of ``engine/capture``, head and framing included."""
    return (CAPTURES / f"{name}.http").read_bytes()


@asynccontextmanager
async def engine(routes: Mapping[str, Answering]) -> AsyncIterator[Server]:
    """Answer each ``METHOD /path`` with its bytes, or play its script; 404 to everything else."""

    async def script(connection: Connection) -> None:
        while True:
            request = await connection.request()
            route = routes.get(f"{request.method} {request.path}", NOT_FOUND)
            if isinstance(route, bytes):
                await connection.send(route)
                if route.startswith(b"HTTP/1.1 ") and b"connection: close" in route.lower():
                    return
            else:
                await route(connection, request)

    async with playing(script) as server:
        yield server
