"""Adapters and streams for tasks of trio: what is awaited there runs in the loop of a portal."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, Final

from worker_adapters._core import TokenEvent
from worker_adapters._portal import Portal, in_trio
from worker_adapters.contract import CancelReceipt, Collected
from worker_adapters.stream import TokenStream

__all__ = ["Anywhere"]

_METHODS: Final = (
    "health",
    "props",
    "submit",
    "cancel",
    "engine_version",
    "identity",
    "capabilities",
    "aclose",
)
"""What can be awaited of an adapter; the rest is made of these."""


class Anywhere:
    """What lets the methods of a subclass be awaited in asyncio and in trio alike."""

    _portal: Portal | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in _METHODS:
            if name in cls.__dict__:
                setattr(cls, name, _anywhere(cls.__dict__[name]))

    async def _from_trio(self, name: str, work: Coroutine[Any, Any, Any]) -> Any:
        portal = self._portal
        if portal is None or portal.is_closed or not portal.is_of_this_process:
            portal = self._portal = Portal()
        outcome = await portal.call_from_trio(work, shield=name in {"cancel", "aclose"})
        if name == "aclose":
            portal.close()
        return TrioStream(outcome, portal) if isinstance(outcome, TokenStream) else outcome


def _anywhere(method: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    @functools.wraps(method)
    async def awaited(self: Anywhere, *arguments: Any, **options: Any) -> Any:
        if asyncio._get_running_loop() is None and in_trio():
            return await self._from_trio(method.__name__, method(self, *arguments, **options))
        return await method(self, *arguments, **options)

    return awaited


class TrioStream(TokenStream):
    """A stream of the loop of ``portal``, for a task of trio."""

    __slots__ = ("_inner", "_portal")

    def __init__(self, inner: TokenStream, portal: Portal) -> None:
        self._inner = inner
        self._portal = portal
        self._task_id = inner._task_id
        # What has been taken out of the stream already needs no loop.
        self._ready = inner._ready

    async def __anext__(self) -> TokenEvent:
        try:
            return self._ready.popleft()
        except IndexError:
            return await self._portal.call_from_trio(self._inner.__anext__())

    async def _next_batch(self, most: int | None, wait: float) -> list[TokenEvent]:
        return await self._portal.call_from_trio(self._inner._next_batch(most, wait))

    async def _next_sse(self, wait: float) -> bytes:
        return await self._portal.call_from_trio(self._inner._next_sse(wait))

    async def collect(self) -> Collected:
        """Read the rest and return it as one answer. See `TokenStream.collect`."""
        return await self._portal.call_from_trio(self._inner.collect())

    async def cancel(self, *, confirm_within_ms: float = 0) -> CancelReceipt:
        """Cancel the task, in whatever state the caller is. See `TokenStream.cancel`."""
        work = self._inner.cancel(confirm_within_ms=confirm_within_ms)
        return await self._portal.call_from_trio(work, shield=True)

    async def aclose(self) -> None:
        """Leave the stream, in whatever state the caller is. See `TokenStream.aclose`."""
        if not self._inner._closed and not self._portal.is_closed:
            await self._portal.call_from_trio(self._inner.aclose(), shield=True)

    def __repr__(self) -> str:
        return repr(self._inner)

    @property
    def cancelled(self) -> bool:
        """Whether the stream was cancelled or left before its end."""
        return self._inner.cancelled

    @property
    def is_terminal(self) -> bool:
        """Whether the terminal event exists, delivered or not."""
        return self._inner.is_terminal

    @property
    def tokens_emitted(self) -> int:
        """How many tokens the events so far stand for."""
        return self._inner.tokens_emitted

    @property
    def metrics_dropped(self) -> int:
        """How many ``metrics`` events gave way to a later one before anybody had taken them."""
        return self._inner.metrics_dropped

    # The stream inside has what these are for.

    @property
    def _phase(self) -> str:
        return self._inner._phase

    @property
    def _pending(self) -> int:
        return self._inner._pending

    def _take(self, most: int | None = None) -> list[TokenEvent]:
        return self._inner._take(most)

    def _take_sse(self) -> bytes:
        return self._inner._take_sse()

    async def _read(self, until: float | None) -> None:
        await self._portal.call_from_trio(self._inner._read(until))

    def _end(self) -> bool:
        return self._inner._end()

    def _sever(self) -> None:
        self._inner._sever()

    async def _stop(self) -> None:
        await self._portal.call_from_trio(self._inner._stop())

    async def _release(self) -> None:
        await self._portal.call_from_trio(self._inner._release())
