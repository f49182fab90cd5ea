"""The stream of events that a submit returns.

`TokenStream` is what every stream has in common: its readers, how it is cancelled and left, and
what follows from its terminal event. Where the bytes come from is a subclass's: `_pulled` reads
them when events are asked for.
"""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Final, Literal, Self
from uuid import UUID

from worker_adapters._abort import Abort
from worker_adapters._core import TokenEvent
from worker_adapters.contract import CancelReceipt, Collected, RerankScore
from worker_adapters.errors import WorkerError

__all__ = ["TokenStream"]

ELSEWHERE_SECONDS: Final = 5.0
"""How long a cancel waits for the stream's own loop, where it is called in another."""


class TokenStream(ABC):
    """The events of one task: ``started``, any ``token``, then one ``end`` or ``error``.

    Iterate over it, over `batches`, or `collect` it; the terminal event is delivered like any
    other and iteration stops after it. Use it as an async context manager, or close it: leaving
    early closes the connection, which frees the engine's slot. A stream that is dropped does the
    same. Cancelling the task that reads ends the stream, because part of a read would be lost:
    do not poll with `asyncio.wait_for`.

    Adapters make streams. A stream belongs to the event loop that made it.
    """

    __slots__ = (
        "__weakref__",
        "_abort",
        "_cancelled",
        "_clock",
        "_closed",
        "_loop",
        "_on_terminal",
        "_reading",
        "_ready",
        "_task_id",
    )

    def __init__(
        self,
        task_id: UUID,
        *,
        clock: Callable[[], float],
        on_terminal: Callable[[TokenEvent], None] | None = None,
        abort: Abort | None = None,
    ) -> None:
        """Make a stream of the running loop.

        ``on_terminal`` is called with the terminal event, and not at all for a stream that is
        dropped before it. ``abort`` is started when the stream is left or given up.
        """
        self._task_id = task_id
        self._clock = clock
        self._on_terminal = on_terminal
        self._abort = abort
        self._loop = asyncio.get_running_loop()
        self._ready: deque[TokenEvent] = deque()
        self._reading = False
        self._closed = False
        self._cancelled = False

    # What a subclass says and does.

    @property
    @abstractmethod
    def is_terminal(self) -> bool:
        """Whether the terminal event exists, delivered or not."""

    @property
    @abstractmethod
    def tokens_emitted(self) -> int:
        """How many tokens the events so far stand for."""

    @property
    @abstractmethod
    def _phase(self) -> str:
        """Where the stream is, in a word."""

    @abstractmethod
    async def _read(self) -> None:
        """Wait for what comes next and hand it to `_produced`, which may be nothing.

        Whoever is cancelled meanwhile cancels the stream by `_cancel_now`.
        """

    @abstractmethod
    def _end(self) -> list[TokenEvent]:
        """Cancel the task; the events of that, none where the terminal event exists.

        What was there and is not in ``_ready`` yet is taken back. Never waits.
        """

    @abstractmethod
    def _sever(self) -> None:
        """Close the connection at once, in whatever thread."""

    @abstractmethod
    async def _stop(self) -> None:
        """Wait, a little, until the connection of a stream that has ended is closed."""

    @abstractmethod
    async def _release(self) -> None:
        """Let the connection of a stream that has ended go: back to its pool, or closed.

        Idempotent. While somebody reads, that one comes by here on the way out.
        """

    # What everybody sees.

    @property
    def task_id(self) -> UUID:
        """The task this is the stream of."""
        return self._task_id

    @property
    def cancelled(self) -> bool:
        """Whether the stream was cancelled or left before its end."""
        return self._cancelled

    def __repr__(self) -> str:
        state = "closed" if self._closed else self._phase
        return f"<TokenStream {self._task_id} {state}>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenEvent:
        if not self._ready:
            await self._fill()
        return self._ready.popleft()

    def batches(self) -> AsyncIterator[list[TokenEvent]]:
        """Iterate over non-empty lists of events: all that one network read completed."""
        return _Batches(self)

    async def collect(self) -> Collected:
        """Read the rest of the stream and return it as one answer, then close it.

        Raises the WorkerError of an ``error`` event; what came before it is not returned. Raises
        RuntimeError where there is no terminal event to come: the stream was read to its end
        before, or is left meanwhile.
        """
        if self._reading:
            raise _second_reader()
        was_closed = self._closed
        events: list[TokenEvent] = []
        async with self:
            async for batch in self.batches():
                events += batch
        if not events or not events[-1].is_terminal:
            raise RuntimeError(
                "nothing is left to collect: the stream had been read to its end, or left"
                if was_closed or not self._cancelled
                else "the stream was left while it was being collected"
            )
        return _collected(events)

    async def cancel(self) -> CancelReceipt:
        """Cancel the task. Idempotent; after it returns only a terminal event can still come.

        Where the engine has an abort of its own, its answer is waited for, 2 s at most. May be
        called from any loop; where the stream's own does not answer, the connection is closed
        from here after `ELSEWHERE_SECONDS`.
        """
        began = self._clock()
        if asyncio.get_running_loop() is not self._loop:
            return await self._cancel_elsewhere(began)
        if not self._cancel_now():
            return self._receipt("none", None, began)
        await self._stop()
        if self._abort is None:
            return self._receipt("close", None, began)
        return self._receipt("close+abort", await self._abort.taken(), began)

    async def _cancel_elsewhere(self, began: float) -> CancelReceipt:
        """Cancel in the stream's own loop, or past it where it does not run."""
        if self._loop.is_running():
            work = self.cancel()
            try:
                there = asyncio.run_coroutine_threadsafe(work, self._loop)
            except RuntimeError:  # it has just been closed
                work.close()
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ELSEWHERE_SECONDS):
                        # Should the loop go on one day, the cancel still has to take place.
                        return await asyncio.shield(asyncio.wrap_future(there))
        if self.is_terminal:
            return self._receipt("none", None, began)
        if not self._loop.is_running():
            self._cancel_now()
        self._sever()
        return self._receipt("close" if self._abort is None else "close+abort", None, began)

    def _receipt(
        self,
        method: Literal["none", "close", "close+abort"],
        confirmed: bool | None,
        began: float,
    ) -> CancelReceipt:
        return CancelReceipt(
            method=method,
            sent=method != "none",
            confirmed=confirmed,
            elapsed_ms=round((self._clock() - began) * 1000, 3),
        )

    async def aclose(self) -> None:
        """Leave the stream: nothing more is delivered. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if not self.is_terminal:
            self._cancel_now()
        self._ready.clear()
        await self._release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    # What subclasses are given.

    def _produced(self, events: list[TokenEvent]) -> None:
        """Take over what has come, and act on a terminal event."""
        self._ready.extend(events)
        if not events or not (terminal := events[-1]).is_terminal:
            return
        if self._abort is not None and _leaves_work(terminal):
            self._abort.start()
        on_terminal, self._on_terminal = self._on_terminal, None
        if on_terminal is not None:
            on_terminal(terminal)

    def _cancel_now(self) -> bool:
        """End the stream here and now; whether there was anything to end."""
        produced = self._end()
        # Tokens nobody has taken yet are taken back; a terminal event that was there stands.
        standing = [event for event in self._ready if event.is_terminal]
        self._ready.clear()
        if not produced:
            self._ready.extend(standing)
            return False
        self._cancelled = True
        self._produced(produced)
        return True

    async def _fill(self) -> None:
        """Read until there is an event to deliver. Raises StopAsyncIteration when none is left."""
        if self._reading:
            raise _second_reader()
        self._reading = True
        try:
            while not self._ready:
                if self.is_terminal:
                    self._closed = True
                    self._reading = False
                    await self._release()
                    raise StopAsyncIteration
                await self._read()
        finally:
            self._reading = False

    async def _next_batch(self) -> list[TokenEvent]:
        if not self._ready:
            await self._fill()
        batch = list(self._ready)
        self._ready.clear()
        return batch


def _second_reader() -> RuntimeError:
    return RuntimeError("another task is reading this stream; a stream has one reader")


def _leaves_work(terminal: TokenEvent) -> bool:
    """Whether the engine may still work on a task whose stream ended so."""
    error = terminal.error
    if isinstance(error, WorkerError):
        # After a reset there is nothing left to abort, or nobody to tell.
        return error.kind != "WorkerReset"
    return terminal.finish_reason == "cancelled"


class _Batches:
    """What `TokenStream.batches` returns; a class, so that leaving it needs no clean-up."""

    __slots__ = ("_stream",)

    def __init__(self, stream: TokenStream) -> None:
        self._stream = stream

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[TokenEvent]:
        return await self._stream._next_batch()


def _collected(events: list[TokenEvent]) -> Collected:
    terminal = events[-1]
    if terminal.kind == "error" and (error := terminal.error) is not None:
        raise error
    started = next((event for event in events if event.kind == "started"), None)
    text: list[str] = []
    reasoning: list[str] = []
    for event in events:
        if event.kind == "token":
            piece = event.t or ""
            match event.channel:
                case "content":
                    text.append(piece)
                case "reasoning":
                    reasoning.append(piece)
    scores = terminal.scores
    return Collected(
        text="".join(text),
        reasoning="".join(reasoning),
        finish_reason=terminal.finish_reason,
        tokens_in=terminal.tokens_in,
        tokens_out=terminal.tokens_out or 0,
        usage_source=terminal.usage_source,
        decode_ms=terminal.decode_ms or 0,
        latency_first_token_ms=terminal.latency_first_token_ms,
        seed=terminal.seed,
        model=None if started is None else started.model,
        engine_version=terminal.engine_version,
        embeddings=terminal.embeddings,
        scores=None if scores is None else [RerankScore(**score) for score in scores],
        events=tuple(events),
    )
