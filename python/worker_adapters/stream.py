"""The stream of events that a submit returns.

`TokenStream` is what every stream has in common: its readers, how it is cancelled and left, and
what follows from its terminal event. Where the bytes come from is a subclass's: `_pulled` reads
them when events are asked for.
"""

import asyncio
import contextlib
import math
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self
from uuid import UUID

from worker_adapters._abort import Abort, Stopped, confirmed, patience
from worker_adapters._core import TaskMetrics, TokenEvent
from worker_adapters.contract import CancelReceipt, Collected, RerankScore
from worker_adapters.errors import WorkerError

if TYPE_CHECKING:
    from worker_adapters.observe.watching import TaskWatcher

__all__ = ["TokenStream"]

ELSEWHERE_SECONDS: Final = 5.0
"""How long a cancel waits for the stream's own loop, where it is called in another."""

MAX_WAIT_SECONDS: Final = 10.0
"""How long a batch may be held back at most."""


class TokenStream(ABC):
    """The events of one task: ``started``, any ``token`` and ``metrics``, one ``end`` or ``error``.

    Iterate over it, over `batches` or `sse`, or `collect` it; the terminal event is delivered like
    any other and iteration stops after it. Use it as an async context manager, or close it:
    leaving early closes the connection, which frees the engine's slot. A stream that is dropped
    does the same. Cancelling the task that reads ends the stream, because part of a read would be
    lost: do not poll with `asyncio.wait_for`.

    Adapters make streams. A stream belongs to the event loop that made it. In a process forked
    meanwhile it is still the parent's: reading on, past the events that were there already, and
    cancelling raise RuntimeError, and leaving or dropping it does nothing.
    """

    __slots__ = (
        "__weakref__",
        "_abort",
        "_cancelled",
        "_clock",
        "_closed",
        "_loop",
        "_metrics",
        "_narration",
        "_on_left",
        "_on_terminal",
        "_overheard",
        "_process",
        "_reading",
        "_ready",
        "_stopped",
        "_task_id",
        "_terminal",
        "_unstarted",
    )

    def __init__(
        self,
        task_id: UUID,
        *,
        clock: Callable[[], float],
        on_terminal: Callable[[TokenEvent], None] | None = None,
        abort: Abort | None = None,
        narration: "TaskWatcher | None" = None,
    ) -> None:
        """Make a stream of the running loop.

        ``on_terminal`` is called with the terminal event, and not at all for a stream that is
        dropped before it. ``abort`` is started when the stream is left or given up. ``narration``
        is told how the task fares.
        """
        self._task_id = task_id
        self._clock = clock
        self._on_terminal = on_terminal
        self._on_left: Callable[[], None] | None = None
        self._terminal: TokenEvent | None = None
        self._abort = abort
        self._narration = narration
        self._unstarted = narration
        """Who is still to be told that the engine has begun to answer."""
        self._overheard = narration is not None and narration.has_text
        """Whether every event has to pass `_hear`, because its text is logged."""
        self._metrics: TaskMetrics | None = None
        self._stopped: Stopped | None = None
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
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
    def metrics_dropped(self) -> int:
        """How many ``metrics`` events gave way to a later one before anybody had taken them."""

    @property
    @abstractmethod
    def _phase(self) -> str:
        """Where the stream is, in a word."""

    @property
    @abstractmethod
    def _pending(self) -> int:
        """How many events there are beside those in ``_ready``."""

    @property
    def _is_full(self) -> bool:
        """Whether nothing more comes before some of them are taken."""
        return False

    @abstractmethod
    def _take(self, most: int | None = None) -> list[TokenEvent]:
        """Hand over the oldest of them; all, or as many as that."""

    @abstractmethod
    def _take_sse(self) -> bytes:
        """Hand over all of them, rendered."""

    @abstractmethod
    async def _read(self, until: float | None) -> None:
        """Wait for what comes next, which may be no event, or for that instant of the clock.

        Whoever is cancelled meanwhile cancels the stream by `_give_up`.
        """

    @abstractmethod
    def _end(self) -> bool:
        """Cancel the task, without waiting; whether there was anything to cancel.

        What is pending is taken back, but for a terminal event.
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

    def __aiter__(self) -> AsyncIterator[TokenEvent]:
        return self

    async def __anext__(self) -> TokenEvent:
        if not self._ready:
            await self._fill()
            self._ready.extend(self._take())
        return self._ready.popleft()

    def batches(
        self, max_events: int | None = None, max_wait: float | None = None
    ) -> AsyncIterator[list[TokenEvent]]:
        """Iterate over non-empty lists of events: all that one network read completed.

        ``max_events`` bounds a list; what is beyond it comes next. With ``max_wait``, seconds up to
        `MAX_WAIT_SECONDS`, a list is held back from its first event on until that time has passed
        or it is full; the terminal event is never held back. Raises ValueError for bounds that are
        none.
        """
        if max_events is not None and max_events < 1:
            raise ValueError(f"max_events must be 1 or more, not {max_events}")
        return _Batches(self, max_events, _checked_wait(max_wait))

    def sse(self, max_wait: float | None = None) -> AsyncIterator[bytes]:
        """Iterate over the events as server-sent ones, ready to be forwarded.

        Each piece holds whole events, ``event: KIND`` and ``data: JSON``, all that one network read
        completed; no object is made per token. ``max_wait`` is that of `batches`.
        """
        return _Rendered(self, _checked_wait(max_wait))

    async def collect(self) -> Collected:
        """Read the rest of the stream and return it as one answer, then close it.

        Raises the WorkerError of an ``error`` event; what came before it is not returned. Raises
        RuntimeError where there is no terminal event to come: the stream was read to its end
        before, or is left meanwhile.
        """
        if self._reading:
            raise second_reader()
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

    async def cancel(self, *, confirm_within_ms: float = 0) -> CancelReceipt:
        """Cancel the task. Idempotent; after it returns only a terminal event can still come.

        With ``confirm_within_ms`` the engine is waited for that long, 10 minutes at most, to
        confirm that it has stopped. May be called from any loop; where the stream's own does not
        answer, the connection is closed from here after `ELSEWHERE_SECONDS`. Raises ValueError for
        a time that is none.
        """
        self._check_process()
        seconds = patience(confirm_within_ms)
        began = self._clock()
        if asyncio.get_running_loop() is not self._loop:
            return await self._cancel_elsewhere(began, confirm_within_ms)
        # What waits for the reader is taken back, and not counted any more.
        has_token = self.tokens_emitted > 0
        if not self._cancel_now():
            return self._receipt("none", None, began)
        await self._stop()
        has_stopped = await confirmed(self._abort, self._stopped, seconds, has_token=has_token)
        return self._receipt(self._cancel_method, has_stopped, began)

    def _give_up(self) -> None:
        """Cancel the task, because whoever read it has left."""
        if self._metrics is not None:
            self._metrics.give_reason("left")
        self._cancel_now()

    @property
    def _cancel_method(self) -> Literal["close", "close+abort"]:
        return "close" if self._abort is None else "close+abort"

    async def _cancel_elsewhere(self, began: float, confirm_within_ms: float) -> CancelReceipt:
        """Cancel in the stream's own loop, or past it where it does not run."""
        if self._loop.is_running():
            work = self.cancel(confirm_within_ms=confirm_within_ms)
            try:
                there = asyncio.run_coroutine_threadsafe(work, self._loop)
            except RuntimeError:  # it has just been closed
                work.close()
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ELSEWHERE_SECONDS + confirm_within_ms / 1000):
                        # Should the loop go on one day, the cancel still has to take place.
                        return await asyncio.shield(asyncio.wrap_future(there))
        if self.is_terminal:
            return self._receipt("none", None, began)
        if not self._loop.is_running():
            self._cancel_now()
        self._sever()
        return self._receipt(self._cancel_method, None, began)

    def _receipt(
        self,
        method: Literal["none", "close", "close+abort"],
        confirmed: bool | None,
        began: float,
    ) -> CancelReceipt:
        took = max(0.0, self._clock() - began)
        if self._metrics is not None and method != "none":
            self._metrics.stopped(confirmed, took)
        return CancelReceipt(
            method=method,
            sent=method != "none",
            confirmed=confirmed,
            elapsed_ms=round(took * 1000, 3),
        )

    async def aclose(self) -> None:
        """Leave the stream: nothing more is delivered. Idempotent."""
        if self._closed:
            return
        if self._is_forked:
            self._closed = True
            return
        if not self.is_terminal:
            self._give_up()
        self._ready.clear()
        self._take()
        self._leave()
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

    @property
    def _is_forked(self) -> bool:
        """Whether this process is a fork of the one whose stream it is, and shares its socket."""
        return self._process != os.getpid()

    def _check_process(self) -> None:
        if self._is_forked:
            raise RuntimeError("forked: this stream belongs to the parent process")

    def _watch(self, ended: Callable[[TokenEvent], None], left: Callable[[], None]) -> None:
        """Have it told when the stream ends, and when nobody reads it any more.

        ``ended`` gets the terminal event as soon as it exists, at once where it does; ``left``
        comes when the last event has been read or the stream is left. For one that is dropped
        before, neither comes. They may be called in whatever thread reads or cancels.
        """
        self._on_left = left
        if self._terminal is not None:
            ended(self._terminal)
            return
        before = self._on_terminal

        def both(terminal: TokenEvent) -> None:
            if before is not None:
                before(terminal)
            ended(terminal)

        self._on_terminal = both

    def _leave(self) -> None:
        """Note that nothing more is read."""
        self._closed = True
        on_left, self._on_left = self._on_left, None
        if on_left is not None:
            on_left()

    def _began(self) -> None:
        """Tell that the engine has begun to answer, once."""
        narration, self._unstarted = self._unstarted, None
        if narration is not None:
            narration.started()

    def _hear(self, events: list[TokenEvent]) -> list[TokenEvent]:
        """Keep the text of what a reader takes, in development; returns the same."""
        if self._overheard and self._narration is not None:
            self._narration.heard(events)
        return events

    def _ended(self, terminal: TokenEvent) -> None:
        """Act on the terminal event, as soon as it exists; called once."""
        self._terminal = terminal
        if self._abort is not None and _leaves_work(terminal):
            self._abort.start()
        if self._narration is not None:
            self._narration.ended(terminal)
        on_terminal, self._on_terminal = self._on_terminal, None
        if on_terminal is not None:
            on_terminal(terminal)

    def _cancel_now(self) -> bool:
        """End the stream here and now; whether there was anything to end."""
        # Tokens nobody has taken yet are taken back; a terminal event that was there stands.
        with contextlib.suppress(IndexError):  # a reader in another thread may be taking them
            for _ in range(len(self._ready)):
                if (event := self._ready.popleft()).is_terminal:
                    self._ready.append(event)
        if not self._end():
            return False
        self._cancelled = True
        return True

    async def _fill(self, most: float = 1, until: float | None = None) -> None:
        """Read until there are that many events to deliver, or it is that late.

        The terminal event ends it with as many as there are. Raises StopAsyncIteration when none
        is left.
        """
        if self._reading:
            raise second_reader()
        self._reading = True
        try:
            while (count := len(self._ready) + self._pending) < most:
                if self.is_terminal:
                    if count:
                        return
                    self._check_process()
                    self._leave()
                    self._reading = False
                    await self._release()
                    raise StopAsyncIteration
                if until is not None and (self._clock() >= until or self._is_full):
                    return
                await self._read(until)
        finally:
            self._reading = False

    async def _gather(self, most: float, wait: float) -> None:
        """Read until there is an event, and go on as long as a batch may wait."""
        if not self._ready:
            await self._fill()
        if wait:
            await self._fill(most, self._clock() + wait)

    async def _next_batch(self, most: int | None, wait: float) -> list[TokenEvent]:
        await self._gather(math.inf if most is None else most, wait)
        if not self._ready:
            return self._take(most)
        if most is None:
            most = len(self._ready) + self._pending
        batch = [self._ready.popleft() for _ in range(min(most, len(self._ready)))]
        return batch + self._take(most - len(batch))

    async def _next_sse(self, wait: float) -> bytes:
        await self._gather(math.inf, wait)
        if not self._ready:
            return self._take_sse()
        taken = b"".join(event.to_sse() for event in self._ready)
        self._ready.clear()
        return taken + self._take_sse()


def second_reader() -> RuntimeError:
    return RuntimeError("another task is reading this stream; a stream has one reader")


def _leaves_work(terminal: TokenEvent) -> bool:
    """Whether the engine may still work on a task whose stream ended so."""
    error = terminal.error
    if isinstance(error, WorkerError):
        # After a reset there is nothing left to abort, or nobody to tell.
        return error.kind != "WorkerReset"
    return terminal.finish_reason == "cancelled"


def _checked_wait(max_wait: float | None) -> float:
    if max_wait is None:
        return 0.0
    if not 0 <= max_wait <= MAX_WAIT_SECONDS:
        raise ValueError(f"max_wait must be from 0 to {MAX_WAIT_SECONDS:g} seconds, not {max_wait}")
    return float(max_wait)


class _Batches:
    """What `TokenStream.batches` returns; a class, so that leaving it needs no clean-up."""

    __slots__ = ("_max_events", "_max_wait", "_stream")

    def __init__(self, stream: TokenStream, max_events: int | None, max_wait: float) -> None:
        self._stream = stream
        self._max_events = max_events
        self._max_wait = max_wait

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, list[TokenEvent]]:
        return self._stream._next_batch(self._max_events, self._max_wait)


class _Rendered:
    """What `TokenStream.sse` returns."""

    __slots__ = ("_max_wait", "_stream")

    def __init__(self, stream: TokenStream, max_wait: float) -> None:
        self._stream = stream
        self._max_wait = max_wait

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, bytes]:
        return self._stream._next_sse(self._max_wait)


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
