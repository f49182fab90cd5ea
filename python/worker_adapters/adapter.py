"""The adapter contract, and the stream of events that a submit returns.

`TokenStream` joins three things that know nothing of each other: a `StreamDecoder`, which holds
every rule of a stream but no clock and no socket; a `ByteStream`, which is the socket; and the
event loop's clock. It is pull-driven: bytes are read when events are asked for, so a slow reader
slows the engine down, and an idle stream costs one timer and no task.
"""

import asyncio
import contextlib
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, ClassVar, Final, Literal, Self
from uuid import UUID

from worker_adapters._abort import Abort
from worker_adapters._core import ErrorRules, StreamDecoder, TokenEvent
from worker_adapters.capabilities import AdapterCapabilities, Feature, Source
from worker_adapters.contract import (
    CancelReceipt,
    Collected,
    RerankScore,
    SubmitContext,
    TaskRequest,
    Timeouts,
    WorkerHealth,
    WorkerIdentity,
    WorkerProps,
    Workload,
)
from worker_adapters.errors import WorkerError
from worker_adapters.extensions import FEATURES, Constraint
from worker_adapters.transport import ByteStream, TransportError

__all__ = ["TokenStream", "WorkerAdapter"]

DRAIN_BYTES: Final = 64 << 10
DRAIN_SECONDS: Final = 0.25
"""How much is read, and for how long, after the terminal event, to use the connection again."""

LINGER_SECONDS: Final = 1.0
"""How long a stream that has ended keeps its connection while nobody comes to finish it."""

CLOSE_SECONDS: Final = 1.0
"""How long closing a connection may take before its socket is simply left to the loop."""

ELSEWHERE_SECONDS: Final = 5.0
"""How long a cancel waits for the stream's own loop, where it is called in another."""

CLOCK_SLACK: Final = 1e-3
"""How much earlier than asked, in seconds, a loop may ring."""

JUST_BEFORE: Final = 1e-6
"""How long before a clock struck, in seconds, what had arrived by then is taken to have come."""

_EXTENSIONS: Final = sorted(
    (FEATURES - {"constraint", "messages"})
    | {f"constraint.{kind}" for kind in Constraint.model_fields}
    | {"messages.image"}
)
"""What a capability document says of the extensions beside ``chat``, one feature each."""


class WorkerAdapter(ABC):
    """One engine at one address: what an orchestrator sees of it.

    An adapter is an async context manager and owns its connections and its streams: leaving it
    cancels what is in flight. One adapter may be used in any number of `asyncio.run` calls, one
    after the other; a stream belongs to the loop that made it.
    """

    engine: ClassVar[str]
    """The engine's name: of its module, its metrics and its captures."""

    dialect: ClassVar[str]
    """The wire dialect of its streams; `worker_adapters.StreamDecoder` decodes it."""

    rules: ClassVar[ErrorRules] = ErrorRules()
    """What its errors mean; without a row the HTTP status decides."""

    workloads: ClassVar[tuple[Workload, ...]] = ("completion",)
    """What the engine can be asked for; what it has loaded may still refuse."""

    translates: ClassVar[frozenset[str]] = frozenset()
    """Which of `TaskExtensions.used` a completion takes to the engine; the others are refused."""

    translates_unary: ClassVar[frozenset[str]] = frozenset()
    """As ``translates``, for embeddings and reranking."""

    cancel_kind: ClassVar[Literal["close", "abort", "close+abort", "none"]] = "close"
    """What frees the engine when a task is cancelled."""

    cancel_in_prefill: ClassVar[Literal["yes", "no", "unknown"]] = "unknown"
    """Whether cancelling frees the engine while it still reads the prompt."""

    determinism: ClassVar[Literal["strict", "best_effort", "none"]] = "best_effort"
    """What ``determinism="strict"`` can promise."""

    pool_id: str
    replica_id: str

    @abstractmethod
    async def health(self, *, timeouts: Timeouts | None = None) -> WorkerHealth:
        """Ask whether the engine lives and is ready. Never raises for one that is unreachable."""

    @abstractmethod
    async def props(self, *, timeouts: Timeouts | None = None) -> WorkerProps:
        """Ask for the engine's slots. Raises WorkerError when the engine cannot be asked."""

    @abstractmethod
    async def submit(
        self,
        task: TaskRequest,
        *,
        context: SubmitContext | None = None,
        timeouts: Timeouts | None = None,
    ) -> "TokenStream":
        """Send ``task`` and return its stream once the engine has answered 200.

        Raises WorkerError for everything that fails before; afterwards a failure is the stream's
        terminal ``error`` event. A submit that is cancelled meanwhile returns a stream of the one
        event ``end`` with ``finish_reason="cancelled"``. Nothing is sent twice.
        """

    @abstractmethod
    async def cancel(self, task_id: UUID | str) -> CancelReceipt:
        """Cancel a task in whatever phase. Idempotent; an unknown id is no error.

        No token is emitted after it returns.
        """

    @abstractmethod
    async def engine_version(self, *, timeouts: Timeouts | None = None) -> str:
        """Ask the engine which build it is. Raises WorkerError."""

    async def identity(self, *, timeouts: Timeouts | None = None) -> WorkerIdentity:
        """Ask the engine what it is and which model it has loaded. Raises WorkerError."""
        return WorkerIdentity(engine_version=await self.engine_version(timeouts=timeouts))

    async def capabilities(self, *, timeouts: Timeouts | None = None) -> AdapterCapabilities:
        """Tell what this adapter and the engine behind it can do. Raises WorkerError."""
        identity = await self.identity(timeouts=timeouts)
        return self._describe(identity, await self.props(timeouts=timeouts))

    def _features(self, identity: WorkerIdentity | None) -> Mapping[str, Feature]:
        """Return features beside those that follow from the class, or in their place."""
        del identity
        return {}

    def _describe(self, identity: WorkerIdentity | None, props: WorkerProps) -> AdapterCapabilities:
        """Put together what the class knows and what the engine told; None where it would not."""
        told: dict[str, Any] = {"slots_total": props.slots_total}
        if identity is not None:
            told |= {
                "engine_version": identity.engine_version,
                "model": identity.model,
                "ctx_max": identity.ctx_max,
                "max_tokens_out": identity.max_tokens_out,
            }
        sources: dict[str, Source] = {
            name: "engine" for name, value in told.items() if value is not None
        }
        if props.slots_total is not None and props.source == "configuration":
            sources["slots_total"] = "configuration"
        facts: dict[str, bool | str] = {
            "streaming": True,
            "seed": True,
            "cancel": self.cancel_kind,
            "cancel_in_prefill": self.cancel_in_prefill,
            "determinism": self.determinism,
            "chat": "messages" in self.translates,
            "embeddings": "embedding" in self.workloads,
            "rerank": "rerank" in self.workloads,
            "metrics": False,
        }
        for name in _EXTENSIONS:
            facts[name] = name in self.translates
        features = {name: Feature(value=value, source="adapter") for name, value in facts.items()}
        return AdapterCapabilities(
            engine=self.engine,
            supported_workloads=self.workloads,
            features=features | dict(self._features(identity)),
            sources=sources,
            **told,
        )

    async def embed(
        self,
        task: TaskRequest,
        *,
        context: SubmitContext | None = None,
        timeouts: Timeouts | None = None,
    ) -> list[list[float]]:
        """Return one vector per input, in input order.

        Raises WorkerError, and ValueError for a task of another workload.
        """
        answer = await self._unary("embedding", task, context, timeouts)
        return answer.embeddings or []

    async def rerank(
        self,
        task: TaskRequest,
        *,
        context: SubmitContext | None = None,
        timeouts: Timeouts | None = None,
    ) -> list[RerankScore]:
        """Return one score per document, in input order.

        Raises WorkerError, and ValueError for a task of another workload.
        """
        answer = await self._unary("rerank", task, context, timeouts)
        return answer.scores or []

    async def _unary(
        self,
        workload: str,
        task: TaskRequest,
        context: SubmitContext | None,
        timeouts: Timeouts | None,
    ) -> Collected:
        if task.workload != workload:
            raise ValueError(f"the task's workload is {task.workload!r}, not {workload!r}")
        stream = await self.submit(task, context=context, timeouts=timeouts)
        return await stream.collect()

    @abstractmethod
    async def aclose(self) -> None:
        """Cancel what is in flight and close every connection. Idempotent."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


class TokenStream:
    """The events of one task: ``started``, any ``token``, then one ``end`` or ``error``.

    Iterate over it, over `batches`, or `collect` it; the terminal event is delivered like any
    other and iteration stops after it. Use it as an async context manager, or close it: leaving
    early closes the connection, which frees the engine's slot. A stream that is dropped does the
    same. Cancelling the task that reads ends the stream, because part of a read would be lost:
    do not poll with `asyncio.wait_for`.
    """

    __slots__ = (
        "__weakref__",
        "_abort",
        "_body",
        "_cancelled",
        "_clock",
        "_closed",
        "_decoder",
        "_loop",
        "_on_terminal",
        "_reading",
        "_ready",
        "_reusable",
        "_task_id",
        "_timer",
        "_timer_due",
    )

    def __init__(
        self,
        task_id: UUID,
        decoder: StreamDecoder,
        body: ByteStream | None,
        *,
        events: Iterable[TokenEvent] = (),
        clock: Callable[[], float] = time.monotonic,
        on_terminal: Callable[[TokenEvent], None] | None = None,
        abort: Abort | None = None,
    ) -> None:
        """Adapters make streams. ``events`` is what ``decoder`` has produced so far.

        ``on_terminal`` is called with the terminal event, and not at all for a stream that is
        dropped before it. ``abort`` is started when the stream is left or given up.
        """
        self._abort = abort
        self._body = body
        self._task_id = task_id
        self._decoder = decoder
        self._clock = clock
        self._on_terminal = on_terminal
        self._loop = asyncio.get_running_loop()
        self._ready: deque[TokenEvent] = deque()
        self._reading = False
        self._closed = False
        self._cancelled = False
        self._reusable = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        decoder.reader(True, clock())
        self._produced(list(events))

    @property
    def task_id(self) -> UUID:
        """The task this is the stream of."""
        return self._task_id

    @property
    def cancelled(self) -> bool:
        """Whether the stream was cancelled or left before its end."""
        return self._cancelled

    @property
    def is_terminal(self) -> bool:
        """Whether the terminal event exists, delivered or not."""
        return self._decoder.is_terminal

    @property
    def tokens_emitted(self) -> int:
        """How many tokens the events so far stand for."""
        return self._decoder.tokens_emitted

    def __repr__(self) -> str:
        state = "closed" if self._closed else self._decoder.phase
        return f"<{type(self).__name__} {self._task_id} {state}>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenEvent:
        if not self._ready:
            await self._fill()
        return self._ready.popleft()

    def batches(self) -> AsyncIterator[list[TokenEvent]]:
        """Iterate over non-empty lists of events: all that one network read completed."""
        return _Batches(self)

    async def _next_batch(self) -> list[TokenEvent]:
        if not self._ready:
            await self._fill()
        batch = list(self._ready)
        self._ready.clear()
        return batch

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
        body = self._body
        method: Literal["none", "close", "close+abort"] = "none"
        confirmed = None
        if self._cancel_now() and body is not None:
            method = "close"
            await self._close(body)
            if self._abort is not None:
                method = "close+abort"
                confirmed = await self._abort.taken()
        return self._receipt(method, confirmed, began)

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
        body = self._body
        if self._decoder.is_terminal or body is None:
            return self._receipt("none", None, began)
        if not self._loop.is_running():
            self._cancel_now()
        body.abort()
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
        if not self._decoder.is_terminal:
            self._cancel_now()
        self._ready.clear()
        await self._finish()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        body = getattr(self, "_body", None)
        if body is not None:
            self._drop_timer()
            body.abort()
            if self._abort is not None and not self._decoder.is_terminal:
                self._abort.start()

    def _cancel_now(self) -> bool:
        """End the stream here and now; whether there was anything to end."""
        produced = self._decoder.cancel(self._clock())
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
                body = self._body
                if body is None or self._decoder.is_terminal:
                    self._closed = True
                    self._reading = False
                    await self._finish()
                    raise StopAsyncIteration
                await self._read(body)
        finally:
            self._reading = False

    async def _read(self, body: ByteStream) -> None:
        decoder = self._decoder
        now = self._clock()
        if (due := self._due(now)) is not None:
            # The loop had no time to ring.
            self._strike(body, due, now)
            return
        decoder.reader(False, now)
        self._set_timer()
        try:
            data = await body.read()
        except TransportError as error:
            # What woke the read may be what ended the stream.
            if not decoder.is_terminal:
                now = self._clock()
                if error.detail == "truncated":
                    self._produced(decoder.finish(now, complete=False))
                else:
                    self._produced(decoder.fail(error.detail, decoder.phase, now))
            return
        except asyncio.CancelledError:
            self._cancel_now()
            raise
        if decoder.is_terminal:
            return
        now = self._clock()
        events = decoder.feed(data, now) if data else decoder.finish(now)
        decoder.reader(True, now)
        self._produced(events)

    def _produced(self, events: list[TokenEvent]) -> None:
        """Take over what the decoder produced, and act on a terminal event."""
        self._ready.extend(events)
        if not self._decoder.is_terminal:
            self._set_timer()
            return
        self._stop_timer()
        if not events:
            return
        terminal = events[-1]
        self._reusable = terminal.kind == "end" and terminal.finish_reason != "cancelled"
        if self._body is not None:
            if self._reusable:
                self._timer = self._loop.call_later(LINGER_SECONDS, _ring, weakref.ref(self))
            else:
                self._body.abort()
        if self._abort is not None and _leaves_work(terminal):
            self._abort.start()
        on_terminal, self._on_terminal = self._on_terminal, None
        if on_terminal is not None:
            on_terminal(terminal)

    async def _finish(self) -> None:
        """Let the connection go: back to the pool if the body's end is near, else closed."""
        body = self._body
        if body is None:
            return
        if self._reading:
            # The reader is on its way out and comes by here.
            body.abort()
            return
        self._body = None
        self._stop_timer()
        try:
            if self._reusable:
                await self._drain(body)
        finally:
            await self._close(body)

    async def _drain(self, body: ByteStream) -> None:
        size = 0
        with contextlib.suppress(TimeoutError, TransportError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while data := await body.read():
                    self._decoder.feed(data, self._clock())
                    size += len(data)
                    if size > DRAIN_BYTES or self._decoder.dropped_after_end:
                        return

    async def _close(self, body: ByteStream) -> None:
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await body.aclose()
        except TimeoutError:
            body.abort()

    def _set_timer(self) -> None:
        """Have the loop ring no later than the decoder's next clock runs out.

        A timer that rings too early costs less than one moved at every read.
        """
        due = self._decoder.next_wakeup()
        if due is None:
            return
        if self._timer is not None:
            if self._timer_due <= due:
                return
            self._timer.cancel()
        delay = max(0.0, due - self._clock())
        self._timer = self._loop.call_later(delay, _ring, weakref.ref(self))
        self._timer_due = due

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _drop_timer(self) -> None:
        """Stop the timer from whatever thread the stream is dropped in."""
        if self._timer is None or asyncio._get_running_loop() is self._loop:
            self._stop_timer()
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._timer.cancel)

    def _on_ring(self) -> None:
        self._timer = None
        if self._decoder.is_terminal:
            if self._body is not None:
                self._body.abort()
            return
        now = self._clock()
        due = self._due(now)
        if due is None:
            self._set_timer()
        else:
            self._strike(None if self._reading else self._body, due, now)

    def _strike(self, unread: ByteStream | None, due: float, now: float) -> None:
        """Let a clock run out, after what came in time and waited for the reader."""
        decoder = self._decoder
        data = b"" if unread is None else unread.read_nowait()
        events = decoder.feed(data, due - JUST_BEFORE) if data else []
        if not decoder.is_terminal and (still := self._due(now)) is not None:
            events += decoder.tick(max(now, still))
        self._produced(events)

    def _due(self, now: float) -> float | None:
        """Return the instant of a clock that has run out, if one has."""
        due = self._decoder.next_wakeup()
        return due if due is not None and due - now <= CLOCK_SLACK else None


def _second_reader() -> RuntimeError:
    return RuntimeError("another task is reading this stream; a stream has one reader")


def _leaves_work(terminal: TokenEvent) -> bool:
    """Whether the engine may still work on a task whose stream ended so."""
    error = terminal.error
    if isinstance(error, WorkerError):
        # After a reset there is nothing left to abort, or nobody to tell.
        return error.kind != "WorkerReset"
    return terminal.finish_reason == "cancelled"


def _ring(stream: "weakref.ref[TokenStream]") -> None:
    # The loop's timers must not keep a stream alive that nobody else refers to.
    alive = stream()
    if alive is not None:
        alive._on_ring()


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
