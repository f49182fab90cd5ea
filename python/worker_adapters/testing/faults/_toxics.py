"""What may become of the bytes between a client and its engine, one thing at a time."""

from __future__ import annotations

import asyncio
import math
import random
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

__all__ = [
    "Bandwidth",
    "Blackhole",
    "Coalescer",
    "Cut",
    "Direction",
    "HalfClose",
    "Latency",
    "LimitData",
    "Reset",
    "Slicer",
    "Toxic",
]

Direction: TypeAlias = Literal["down", "up"]
"""``down`` is from the engine to the client, ``up`` from the client to the engine."""

_UNDERWAY: Final = 256
"""How many pieces a late network may hold."""
_RATE_SECONDS: Final = 0.02
"""How much of a slow line's time one piece takes."""


class Cut(Exception):  # noqa: N818 - what happens, on purpose
    """Ends both connections: by a FIN (``close``) or by a RST (``reset``)."""

    def __init__(self, how: Literal["close", "reset"]) -> None:
        super().__init__(how)
        self.how = how


@dataclass(frozen=True, kw_only=True)
class Toxic(ABC):
    """What becomes of the bytes of one direction, ``down`` unless told otherwise.

    A toxic says nothing of one connection: it may serve many at a time. Raises ValueError for
    another direction.
    """

    direction: Direction = "down"

    def __post_init__(self) -> None:
        # Whoever has no type checker learns it here.
        if str(self.direction) not in ("down", "up"):
            raise ValueError("direction must be 'down' or 'up'")

    @abstractmethod
    def apply(self, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Yield what becomes of ``pieces``; ends where they end, or raises `Cut`.

        ``pieces`` are not empty; they end where the sender has closed its side, and raise `Cut`
        where it has broken off.
        """


@dataclass(frozen=True)
class Latency(Toxic):
    """Every byte comes ``seconds`` later, or up to ``jitter`` more or less; the order is kept."""

    seconds: float
    jitter: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.jitter <= self.seconds < math.inf:
            raise ValueError("jitter must be from 0 to the latency itself, which is finite")

    async def apply(self, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        loop = asyncio.get_running_loop()
        rng = random.Random(self.seed)  # noqa: S311 - the same each time is what is wanted
        underway: asyncio.Queue[tuple[float, bytes | Cut | None]] = asyncio.Queue(_UNDERWAY)

        def due() -> float:
            return loop.time() + self.seconds + rng.uniform(-self.jitter, self.jitter)

        async def receive() -> None:
            try:
                async for piece in pieces:
                    await underway.put((due(), piece))
            except Cut as cut:
                await underway.put((due(), cut))
            else:
                await underway.put((due(), None))

        receiving = loop.create_task(receive())
        try:
            while True:
                when, piece = await underway.get()
                await asyncio.sleep(when - loop.time())
                if piece is None:
                    return
                if isinstance(piece, Cut):
                    raise piece
                yield piece
        finally:
            receiving.cancel()
            with suppress(asyncio.CancelledError):
                await receiving


@dataclass(frozen=True)
class Bandwidth(Toxic):
    """No more than so many bytes come in a second, evenly."""

    bytes_per_second: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.bytes_per_second < math.inf:
            raise ValueError("bytes_per_second must be finite, more than 0; none is a Blackhole")

    async def apply(self, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        loop = asyncio.get_running_loop()
        most = max(1, int(self.bytes_per_second * _RATE_SECONDS))
        free = loop.time()
        async for piece in pieces:
            for part in _parts(piece, most):
                free = max(free, loop.time()) + len(part) / self.bytes_per_second
                await asyncio.sleep(free - loop.time())
                yield part


@dataclass(frozen=True)
class Slicer(Toxic):
    """The bytes come in pieces of ``size``, give or take ``variation``, ``delay`` seconds apart.

    Without a delay the kernel may put pieces together again.
    """

    size: int = 1
    variation: int = 0
    delay: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.variation < self.size:
            raise ValueError("size must be 1 or more, variation less than that")
        if not 0 <= self.delay < math.inf:
            raise ValueError("delay must be 0 or more seconds")

    async def apply(self, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        rng = random.Random(self.seed)  # noqa: S311 - the same each time is what is wanted
        async for piece in pieces:
            left = piece
            while left:
                size = self.size + rng.randint(-self.variation, self.variation)
                yield left[:size]
                left = left[size:]
                # Without a delay others get their turn all the same.
                await asyncio.sleep(self.delay)


@dataclass(frozen=True)
class Coalescer(Toxic):
    """The bytes come in pieces of ``size``, or all at once at the end, as from a proxy's buffer."""

    size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size is not None and self.size < 1:
            raise ValueError("size must be 1 or more, or None")

    async def apply(self, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        held = bytearray()
        async for piece in pieces:
            held += piece
            while self.size is not None and len(held) >= self.size:
                yield bytes(held[: self.size])
                del held[: self.size]
        if held:
            yield bytes(held)


@dataclass(frozen=True)
class _After(Toxic):
    """Something happens once ``after`` bytes have come through: at once where it is 0."""

    after: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.after < 0:
            raise ValueError("after must be 0 or more bytes")


@dataclass(frozen=True)
class Blackhole(_After):
    """Once ``after`` bytes have come through, nothing does any more, not even the end.

    What is sent on is taken and lost; with ``reads=False`` it is not taken, so that the sender,
    when the buffers between are full, can send no more. After ``timeout`` seconds of that, if
    given, both connections are closed.
    """

    reads: bool = field(default=True, kw_only=True)
    timeout: float | None = field(default=None, kw_only=True)

    async def apply(self, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for piece in _first(pieces, self.after):
            yield piece
        with suppress(TimeoutError):
            async with asyncio.timeout(self.timeout):
                if self.reads:
                    async for _ in pieces:
                        pass
                await asyncio.Event().wait()
        raise Cut("close")


@dataclass(frozen=True)
class LimitData(_After):
    """Both connections are closed once ``after`` bytes have come through."""

    async def apply(self, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for piece in _first(pieces, self.after):
            yield piece
        raise Cut("close")


@dataclass(frozen=True)
class Reset(_After):
    """Both connections are reset once ``after`` bytes have come through."""

    async def apply(self, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for piece in _first(pieces, self.after):
            yield piece
        raise Cut("reset")


@dataclass(frozen=True)
class HalfClose(_After):
    """This direction ends once ``after`` bytes have come through; the other one goes on.

    What is sent on is taken and lost.
    """

    async def apply(self, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for piece in _first(pieces, self.after):
            yield piece


async def _first(pieces: AsyncIterator[bytes], count: int) -> AsyncGenerator[bytes, None]:
    """Yield the first ``count`` bytes, losing the rest of the piece they end in."""
    while count > 0:
        piece = await anext(pieces, b"")
        if not piece:
            return
        yield piece[:count]
        count -= len(piece)


def _parts(piece: bytes, most: int) -> list[bytes]:
    return [piece[at : at + most] for at in range(0, len(piece), most)]
