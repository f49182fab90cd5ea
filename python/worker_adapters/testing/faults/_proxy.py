"""The proxy that toxics work in."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

from worker_adapters.testing.faults._toxics import Cut, Direction, Toxic
from worker_adapters.testing.wire import Connection, RawServer, connect

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = ["FaultProxy"]

_PIECE_BYTES: Final = 1 << 16
_PORTS: Final = {"http": 80, "https": 443}


class FaultProxy(RawServer):
    """Passes bytes on to an engine and back, as far as its toxics let them.

    ``upstream`` is the engine's base URL; that of the proxy is `url`, with the same scheme and
    path: TLS is passed through, so a certificate must be for the proxy's ``host`` as well. Like
    every `RawServer` it is an asynchronous context manager, and a plain one that runs in a thread
    of its own. An engine that cannot be connected to is a reset.

    Raises ValueError for an ``upstream`` without a scheme, a host or a valid port, TypeError for
    toxics that are none.
    """

    def __init__(
        self, upstream: str, *toxics: Toxic, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        super().__init__(host=host, port=port)
        parts = urlsplit(upstream)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ValueError("upstream must be a URL such as http://127.0.0.1:8080")
        if not all(isinstance(toxic, Toxic) for toxic in toxics):
            raise TypeError("toxics must be of the class Toxic")
        self._scheme = parts.scheme
        self._path = parts.path
        self._upstream = (parts.hostname, parts.port or _PORTS[parts.scheme])
        self.toxics: tuple[Toxic, ...] = toxics
        """For connections to come; may be set at any time."""
        self.passed: dict[Direction, int] = {"down": 0, "up": 0}
        """How many bytes have come through, all connections together."""

    async def start(self) -> None:
        """Listen. Raises OSError when the port is taken."""
        await super().start()
        self.url = self.url.replace("http", self._scheme, 1) + self._path

    async def play(self, connection: Connection) -> None:
        """Serve one client."""
        toxics = self.toxics
        try:
            engine = await connect(*self._upstream)
        except OSError:
            connection.reset()
            return
        pumps = {
            asyncio.create_task(self._pump(connection, engine, "up", toxics)),
            asyncio.create_task(self._pump(engine, connection, "down", toxics)),
        }
        how = "close"
        try:
            how = await _ended(pumps)
        finally:
            for pump in pumps:
                pump.cancel()
            try:
                await asyncio.gather(*pumps, return_exceptions=True)
            finally:  # the proxy may be stopped while this waits
                for end in (connection, engine):
                    if how == "reset":
                        end.reset()
                    else:
                        end.close()

    async def _pump(
        self,
        source: Connection,
        sink: Connection,
        direction: Direction,
        toxics: tuple[Toxic, ...],
    ) -> None:
        """Pass on what comes from ``source``, to its end. Raises Cut."""
        async with AsyncExitStack() as stages:
            pieces = await stages.enter_async_context(aclosing(_pieces(source)))
            for toxic in toxics:
                if toxic.direction == direction:
                    pieces = await stages.enter_async_context(aclosing(toxic.apply(pieces)))
            try:
                async for piece in pieces:
                    await sink.send(piece)
                    self.passed[direction] += len(piece)
                sink.half_close()
            except ConnectionError:
                raise Cut("reset") from None


async def _pieces(source: Connection) -> AsyncGenerator[bytes, None]:
    while True:
        try:
            piece = await source.read(_PIECE_BYTES)
        except ConnectionError:
            raise Cut("reset") from None
        if not piece:
            return
        yield piece


async def _ended(pumps: set[asyncio.Task[None]]) -> Literal["close", "reset"]:
    """Wait until one breaks off or all have come to their ends; how to end the connections."""
    done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
    for pump in done:
        try:
            pump.result()
        except Cut as cut:
            return cut.how
    return "close"
