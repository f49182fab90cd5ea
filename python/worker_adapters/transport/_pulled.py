"""Streams read from a transport's bodies.

A `PulledStream` joins three things that know nothing of each other: a `StreamDecoder`, which holds
every rule of a stream but no clock and no socket; a `ByteStream`, which is the socket; and the
event loop's clock. It is pull-driven: bytes are read when events are asked for, so a slow reader
slows the engine down, and an idle stream costs one timer and no task.
"""

import asyncio
import contextlib
import time
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final
from uuid import UUID

from worker_adapters._abort import Abort
from worker_adapters._core import StreamDecoder, TokenEvent
from worker_adapters.stream import TokenStream
from worker_adapters.transport import ByteStream, TransportError

if TYPE_CHECKING:
    from worker_adapters.observe.watching import TaskWatcher

__all__ = ["PulledStream"]

DRAIN_BYTES: Final = 64 << 10
DRAIN_SECONDS: Final = 0.25
"""How much is read, and for how long, after the terminal event, to use the connection again."""

LINGER_SECONDS: Final = 1.0
"""How long a stream that has ended keeps its connection while nobody comes to finish it."""

CLOSE_SECONDS: Final = 1.0
"""How long closing a connection may take before its socket is simply left to the loop."""

CLOCK_SLACK: Final = 1e-3
"""How much earlier than asked, in seconds, a loop may ring."""

JUST_BEFORE: Final = 1e-6
"""How long before a clock struck, in seconds, what had arrived by then is taken to have come."""

READER_TURNS: Final = 3
"""How many turns of the loop a read that is due has to take up what had come by then."""


class PulledStream(TokenStream):
    """The events that ``decoder`` makes of ``body``; without one, those it has made so far."""

    __slots__ = (
        "_body",
        "_decoder",
        "_over",
        "_read_on",
        "_reusable",
        "_timer",
        "_timer_due",
        "_turns_given",
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
        narration: "TaskWatcher | None" = None,
    ) -> None:
        """Go on where ``decoder`` is; ``events`` is what it has produced so far."""
        super().__init__(
            task_id, clock=clock, on_terminal=on_terminal, abort=abort, narration=narration
        )
        self._body = body
        self._decoder = decoder
        self._over = False
        self._read_on: asyncio.Task[bytes] | None = None
        self._reusable = False
        self._timer: asyncio.Handle | None = None
        self._timer_due = 0.0
        self._turns_given = 0
        decoder.reader(True, clock())
        self._ready.extend(self._hear(list(events)))
        decoder.hold()
        self._decoded()

    def __del__(self) -> None:
        body = getattr(self, "_body", None)
        if body is not None and not self._is_forked:
            self._drop_timer()
            body.abort()
            if not self._decoder.is_terminal:
                if self._abort is not None:
                    self._abort.start()
                if self._narration is not None:
                    self._narration.dropped(self._decoder.tokens_emitted)

    @property
    def is_terminal(self) -> bool:
        """Whether the terminal event exists, delivered or not."""
        return self._decoder.is_terminal

    @property
    def tokens_emitted(self) -> int:
        """How many tokens the events so far stand for."""
        return self._decoder.tokens_emitted

    @property
    def metrics_dropped(self) -> int:
        """How many ``metrics`` events gave way to a later one before anybody had taken them."""
        return self._decoder.metrics_dropped

    @property
    def _phase(self) -> str:
        return self._decoder.phase

    @property
    def _pending(self) -> int:
        return self._decoder.pending

    def _take(self, most: int | None = None) -> list[TokenEvent]:
        events = self._decoder.take(most)
        return self._hear(events) if self._overheard else events

    def _take_sse(self) -> bytes:
        if self._overheard:
            return b"".join(event.to_sse() for event in self._take())
        return self._decoder.take_sse()

    async def _read(self, until: float | None) -> None:
        decoder, body = self._decoder, self._body
        if body is None:
            return
        self._check_process()
        now = self._clock()
        if (due := self._due(now)) is not None:
            # The loop had no time to ring.
            self._strike(body, due, now)
            return
        decoder.reader(False, now)
        self._set_timer()
        try:
            data = await self._arriving(body, until)
        except TransportError as error:
            # What woke the read may be what ended the stream.
            if not decoder.is_terminal:
                now = self._clock()
                if error.detail == "truncated":
                    decoder.finish(now, complete=False)
                else:
                    decoder.fail(error.detail, decoder.phase, now)
                self._decoded()
            return
        except asyncio.CancelledError:
            self._give_up()
            raise
        if decoder.is_terminal:
            return
        now = self._clock()
        if data:
            decoder.feed(data, now)
        elif data is not None:
            decoder.finish(now)
        decoder.reader(True, now)
        self._decoded()

    async def _arriving(self, body: ByteStream, until: float | None) -> bytes | None:
        """Return what arrives, or None when it is that late: the read then goes on by itself."""
        if self._read_on is None:
            if until is None:
                return await body.read()
            # It knows the body alone: nothing but its readers keeps a stream alive.
            self._read_on = self._loop.create_task(_read_of(body))
            self._read_on.add_done_callback(_look_at)
        delay = None if until is None else max(0.0, until - self._clock())
        await asyncio.wait((self._read_on,), timeout=delay)
        return self._read_meanwhile()

    def _read_meanwhile(self) -> bytes | None:
        """Return what a read that went on by itself has brought, if it has."""
        if self._read_on is None or not self._read_on.done():
            return None
        done, self._read_on = self._read_on, None
        return done.result()

    def _decoded(self) -> None:
        """Act on what the decoder made of an input: a timer to set, or the terminal event."""
        if self._unstarted is not None and self._has_started:
            self._began()
        if not self._decoder.is_terminal:
            self._set_timer()
            return
        terminal = self._decoder.terminal
        if self._over or terminal is None:
            return
        self._over = True
        self._stop_timer()
        self._reusable = terminal.kind == "end" and terminal.finish_reason != "cancelled"
        if self._body is not None:
            if self._reusable:
                self._timer = self._loop.call_later(LINGER_SECONDS, _ring, weakref.ref(self))
            else:
                self._body.abort()
        self._ended(terminal)

    @property
    def _has_started(self) -> bool:
        # Of a stream that has not, nothing comes but its terminal event.
        events = len(self._ready) + self._decoder.pending
        return events > int(self._decoder.is_terminal)

    def _end(self) -> bool:
        running = not self._decoder.is_terminal
        self._decoder.cancel(self._clock())
        self._decoded()
        return running

    def _sever(self) -> None:
        if (body := self._body) is not None:
            body.abort()

    async def _stop(self) -> None:
        if (body := self._body) is not None:
            await self._close(body)

    async def _release(self) -> None:
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
            self._turns_given = 0
            self._set_timer()
        elif self._reading and self._turns_given < READER_TURNS:
            # In a loop that was held up a clock rings in the very turn that wakes the reader.
            self._turns_given += 1
            self._timer = self._loop.call_soon(_ring, weakref.ref(self))
        else:
            self._turns_given = 0
            self._strike(None if self._reading else self._body, due, now)

    def _strike(self, unread: ByteStream | None, due: float, now: float) -> None:
        """Let a clock run out, after what came in time and waited for the reader."""
        decoder = self._decoder
        if unread is not None and (data := self._arrived(unread)):
            decoder.feed(data, due - JUST_BEFORE)
        if not decoder.is_terminal and (still := self._due(now)) is not None:
            decoder.tick(max(now, still))
        self._decoded()

    def _arrived(self, body: ByteStream) -> bytes:
        """Return what waits for the reader."""
        try:
            return self._read_meanwhile() or body.read_nowait()
        except TransportError:
            return b""

    def _due(self, now: float) -> float | None:
        """Return the instant of a clock that has run out, if one has."""
        due = self._decoder.next_wakeup()
        return due if due is not None and due - now <= CLOCK_SLACK else None


async def _read_of(body: ByteStream) -> bytes:
    return await body.read()


def _look_at(read: asyncio.Task[bytes]) -> None:
    # The body says it again to whoever reads on.
    if not read.cancelled():
        read.exception()


def _ring(stream: weakref.ref[PulledStream]) -> None:
    # The loop's timers must not keep a stream alive that nobody else refers to.
    alive = stream()
    if alive is not None:
        alive._on_ring()
