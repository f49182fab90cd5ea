"""The engine's own abort of one task, and how it is known that the engine has stopped."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Final, TypeAlias

__all__ = ["MAX_CONFIRM_MS", "Abort", "Aborts", "Stopped", "confirmed", "patience"]

MAX_CONFIRM_MS: Final = 600_000
"""For how long a cancel may wait for the engine to confirm it."""

GIVE_UP_SECONDS: Final = 1.0
"""How long the connections of aborts that are given up may take to be closed."""

Send: TypeAlias = Callable[[], Coroutine[Any, Any, bool | None]]
"""Sends an abort; see `Abort`."""

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


class Aborts:
    """The aborts of one adapter, in whatever loops."""

    def __init__(self) -> None:
        self.pending: set[Abort] = set()
        """Those that are on their way."""
        self._senders: dict[asyncio.AbstractEventLoop, _Sender] = {}

    def prepared(self, send: Send) -> "Abort":
        """Return an abort that is sent by ``send``, in the running loop, once it is started."""
        loop = asyncio.get_running_loop()
        sender = self._senders.get(loop)
        if sender is None:
            for other in [other for other in self._senders if other.is_closed()]:
                del self._senders[other]
            sender = self._senders[loop] = _Sender(loop)
        return Abort(send, self.pending, sender)

    async def taken(self) -> None:
        """Wait for what the engine says to those that are on their way in the running loop."""
        await asyncio.gather(*(abort.taken() for abort in list(self.pending)))

    async def aclose(self) -> None:
        """Give up those of the running loop and send no more there; other loops' are let go."""
        own = self._senders.pop(asyncio.get_running_loop(), None)
        self._senders.clear()
        if own is not None:
            await own.aclose()


class _Sender:
    """Runs aborts in one loop for as long as that goes on.

    An asynchronous generator, suspended for as long as the sender lives, is what the loop finalises
    when it shuts down. An abort that is under way then is given up, and none is begun any more:
    nothing would be left to see it to its end.
    """

    __slots__ = ("_guard", "_over", "_tasks", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._over = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._guard = _ended_with_the_loop(self._tasks, self._over)
        with contextlib.suppress(StopIteration):
            self._guard.__anext__().send(None)

    def run(self, abort: "Abort") -> None:
        if self._over.is_set():
            abort._end()
            return
        task = self.loop.create_task(abort._run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Not by the task itself: one that is cancelled before it has begun does nothing.
        task.add_done_callback(abort._end)

    async def aclose(self) -> None:
        await self._guard.aclose()


async def _ended_with_the_loop(
    tasks: "set[asyncio.Task[None]]", over: asyncio.Event
) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        over.set()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(set(tasks), timeout=GIVE_UP_SECONDS)


class Abort:
    """An abort that is sent at most once, by whoever ends the task early.

    ``send`` returns whether the engine took it, None where its answer does not say so; it bounds
    its own time and raises nothing, but RuntimeError where the client has been closed.
    ``pending`` holds this while it is on its way. `Aborts` makes them.
    """

    __slots__ = ("_over", "_pending", "_send", "_sender", "_started", "_taken")

    def __init__(self, send: Send, pending: "set[Abort]", sender: _Sender) -> None:
        self._send = send
        self._pending = pending
        self._sender = sender
        self._started = False
        self._over = asyncio.Event()
        self._taken: bool | None = False

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
        loop = self._sender.loop
        if asyncio._get_running_loop() is loop:
            self._sender.run(self)
            return
        try:
            loop.call_soon_threadsafe(self._sender.run, self)
        except RuntimeError:  # the loop is closed
            self._end()

    async def taken(self) -> bool | None:
        """Wait for the engine's answer; None where it says nothing, or in another loop."""
        if not self._started or asyncio.get_running_loop() is not self._sender.loop:
            return None
        await self._over.wait()
        return self._taken

    async def _run(self) -> None:
        # Whoever closes the client of an adapter has nothing sent any more.
        with contextlib.suppress(RuntimeError):
            self._taken = await self._send()

    def _end(self, _task: "asyncio.Task[None] | None" = None) -> None:
        self._over.set()
        self._pending.discard(self)
