"""The engine's own abort of one task, and how it is known that the engine has stopped."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeAlias

__all__ = ["MAX_CONFIRM_MS", "Abort", "Stopped", "confirmed", "patience"]

MAX_CONFIRM_MS: Final = 600_000
"""For how long a cancel may wait for the engine to confirm it."""

Stopped: TypeAlias = Callable[[bool], Coroutine[Any, Any, bool | None]]
"""Waits for an engine without an abort to say that it has stopped; see `confirmed`."""


def patience(confirm_within_ms: float) -> float:
    """Return it in seconds. Raises ValueError."""
    if not 0 <= confirm_within_ms <= MAX_CONFIRM_MS:
        raise ValueError(
            f"confirm_within_ms must be from 0 to {MAX_CONFIRM_MS}, not {confirm_within_ms}"
        )
    return confirm_within_ms / 1000


async def confirmed(
    abort: "Abort | None", stopped: Stopped | None, seconds: float, *, has_token: bool
) -> bool | None:
    """Wait for the engine to say that it works on a task no longer.

    By the answer to its abort, or, where it has none, by ``stopped``, which is told whether the
    task had a token. None where nobody waits or the engine has no way to say so, False where it has
    and did not in time.
    """
    if not seconds or (abort is None and stopped is None):
        return None
    try:
        async with asyncio.timeout(seconds):
            if abort is not None:
                return await abort.taken()
            return None if stopped is None else await stopped(has_token)
    except TimeoutError:
        return False


class Abort:
    """An abort that is sent at most once, by whoever ends the task early.

    ``send`` returns whether the engine took it, None where its answer does not say so; it bounds
    its own time and raises nothing.
    ``pending`` holds this while it is on its way. Made in the loop that sends it.
    """

    __slots__ = ("_loop", "_over", "_pending", "_send", "_started", "_taken", "_task")

    def __init__(
        self, send: Callable[[], Coroutine[Any, Any, bool | None]], pending: "set[Abort]"
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._send = send
        self._pending = pending
        self._started = False
        self._over = asyncio.Event()
        self._taken: bool | None = False
        self._task: asyncio.Task[None] | None = None

    @property
    def started(self) -> bool:
        """Whether it has been sent, or will be as soon as its loop gets to it."""
        return self._started

    def start(self) -> None:
        """Send it, unless that was done before. Never blocks and never raises, in any thread."""
        if self._started:
            return
        self._started = True
        self._pending.add(self)
        if asyncio._get_running_loop() is self._loop:
            self._begin()
            return
        try:
            self._loop.call_soon_threadsafe(self._begin)
        except RuntimeError:  # the loop is closed
            self._end()

    async def taken(self) -> bool | None:
        """Wait for the engine's answer; None where it says nothing, or in another loop."""
        if not self._started or asyncio.get_running_loop() is not self._loop:
            return None
        await self._over.wait()
        return self._taken

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._run())

    async def _run(self) -> None:
        try:
            self._taken = await self._send()
        finally:
            self._end()

    def _end(self) -> None:
        self._over.set()
        self._pending.discard(self)
