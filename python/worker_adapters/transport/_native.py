"""The native data plane: sockets read and decoded in Rust, Python woken once for all that came.

Every event loop that submits has a `Reactor` of its own, whose descriptor it watches as it watches
any socket: no thread is between the network and the task that reads. Clocks, limits and errors are
those of the decoder, which the reactor feeds.
"""

import asyncio
import contextlib
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Final

from worker_adapters._core import (
    EgressPolicy,
    NativeEvents,
    NativeStream,
    NativeTarget,
    Reactor,
    TokenEvent,
    __version__,
)
from worker_adapters.errors import DeadlineUnmet, DecodeTimeout
from worker_adapters.stream import TokenStream, second_reader
from worker_adapters.transport import CancelledInFlightError, Headers, Progress, Submission
from worker_adapters.transport._tls import TlsSetup

__all__ = ["NativeTransport"]

MAX_STREAMS: Final = 1024
"""How many streams may be under way at a time, unless an adapter is told otherwise."""

MAX_WAITING: Final = 1024
"""How many more may wait for a place among them."""

MAX_GATHER_SECONDS: Final = 0.1
"""The widest gather window."""

_HEADERS: Final[Headers] = (
    (b"User-Agent", f"worker-adapters/{__version__}".encode("ascii")),
    (b"Accept", b"*/*"),
    (b"Accept-Encoding", b"identity"),
)


class NativeTransport:
    """Sends tasks to ``base_url`` over sockets of the reactor's.

    ``tls`` returns whom to trust and who we are.
    ``gather_window`` is how long, in seconds, further streams may be waited for once something has
    come for one: fewer wake-ups, for that much latency. At most ``max_streams`` are under way at a
    time. With ``threaded`` a thread of the reactor's reads and decodes, and rings one descriptor of
    each event loop: the other way of waking, which costs more and is kept to be measured.
    """

    def __init__(
        self,
        base_url: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        egress: EgressPolicy | None = None,
        tls: Callable[[], TlsSetup],
        gather_window: float = 0.0,
        max_streams: int = MAX_STREAMS,
        threaded: bool = False,
    ) -> None:
        if not 0 <= gather_window <= MAX_GATHER_SECONDS:
            raise ValueError(
                f"gather_window must be from 0 to {MAX_GATHER_SECONDS:g} seconds, "
                f"not {gather_window}"
            )
        if max_streams < 1:
            raise ValueError(f"max_streams must be 1 or more, not {max_streams}")
        self._base_url = base_url
        verdict = None if egress is None else egress.check_url(base_url)
        self._denied = None if verdict is None or verdict else verdict.message
        self._is_secure = base_url.startswith("https:")
        self._clock = clock
        self._egress = egress
        self._tls = tls
        self._gather_window = gather_window
        self._max_streams = max_streams
        self._threaded = threaded
        self._sessions: dict[asyncio.AbstractEventLoop, _Session] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._base_url!r})"

    async def submit(self, submission: Submission) -> TokenStream:
        """Send a task and return its stream. See `StreamTransport.submit`."""
        if self._denied is not None:
            # Before the name is asked for: that is a packet, too.
            events = submission.decoder.fail(
                "egress_denied",
                "resolve",
                submission.clock(),
                message=self._denied,
                processed="no",
            )
            raise _error_of(events[-1])
        session = self._session()
        call, request = submission.call, submission.request
        unattended = _Unattended()
        try:
            native = session.target.submit(
                request.method,
                request.path,
                [*_HEADERS, *request.headers],
                request.body or None,
                submission.decoder,
                unattended,
                connect_timeout=call.timeouts.connect,
                tls_timeout=call.timeouts.tls,
            )
        except ValueError:
            events = submission.decoder.fail(
                "invalid_request", "validate", submission.clock(), processed="no"
            )
            raise _error_of(events[-1]) from None
        call.progress = progress = Progress()
        try:
            await call.wait(_head(native, session.loop), None)
        except (CancelledInFlightError, asyncio.CancelledError):
            _note(progress, native)
            native.cancel()
            native.close()
            submission.given_up()
            raise
        _note(progress, native)
        terminal = native.terminal
        if native.status == 200:
            stream = _NativeTokenStream(submission, native, session)
            unattended.stream = weakref.ref(stream)
            stream.look()
            return stream
        native.close()
        error = _error_of(terminal)
        if isinstance(error, DeadlineUnmet | DecodeTimeout):
            submission.given_up()
        raise error

    async def aclose(self) -> None:
        """Close what was opened in the running loop; other loops' is let go."""
        own = self._sessions.pop(asyncio.get_running_loop(), None)
        self._sessions.clear()
        if own is not None:
            await own.aclose()

    def _session(self) -> "_Session":
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            for other in [other for other in self._sessions if other.is_closed()]:
                del self._sessions[other]
            session = self._sessions[loop] = self._attached(loop)
        return session

    def _attached(self, loop: asyncio.AbstractEventLoop) -> "_Session":
        rearm = _Rearm(loop)
        reactor = Reactor(
            rearm,
            clock=None if self._clock is time.monotonic else self._clock,
            threaded=self._threaded,
        )
        tls = self._tls() if self._is_secure else None
        target = NativeTarget(
            reactor,
            self._base_url,
            roots_pem=None if tls is None else tls.roots,
            client_cert_pem=None if tls is None else tls.client_cert,
            client_key_pem=None if tls is None else tls.client_key,
            egress=self._egress,
            max_streams=self._max_streams,
            max_waiting=MAX_WAITING,
        )
        rearm.reactor = weakref.ref(reactor)
        return _Session(loop, reactor, target, self._gather_window)


class _Rearm:
    """Has a loop turn its reactor in time. Keeps neither alive."""

    __slots__ = ("_loop", "_timer", "reactor")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._timer: asyncio.TimerHandle | None = None
        self.reactor: weakref.ref[Reactor] | None = None

    def __call__(self, delay: float) -> None:
        loop = self._loop()
        if loop is None or loop.is_closed():
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(delay, self._ring)

    def _ring(self) -> None:
        self._timer = None
        reactor = None if self.reactor is None else self.reactor()
        if reactor is not None:
            reactor.ring()


class _Session:
    """What belongs to one event loop: its reactor, and the streams it moves.

    An asynchronous generator, suspended for as long as the session lives, is what the loop
    finalises when it shuts down: `asyncio.run` therefore never ends with a connection open, and a
    session nobody refers to any more closes itself.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        reactor: Reactor,
        target: NativeTarget,
        gather_window: float,
    ) -> None:
        self.loop = loop
        self.reactor = reactor
        self.target = target
        self.streams: weakref.WeakSet[_NativeTokenStream] = weakref.WeakSet()
        watch = reactor.turn if not gather_window else _Gathering(loop, reactor, gather_window)
        loop.add_reader(reactor.fileno(), watch)
        self._guard = _closed_with_the_loop(loop, reactor, self.streams)
        with contextlib.suppress(StopIteration):
            self._guard.__anext__().send(None)

    async def aclose(self) -> None:
        await self._guard.aclose()


async def _closed_with_the_loop(
    loop: asyncio.AbstractEventLoop,
    reactor: Reactor,
    streams: "weakref.WeakSet[_NativeTokenStream]",
) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        # In a forked process the loop's descriptors and the streams are the parent's.
        if not reactor.is_forked:
            loop.remove_reader(reactor.fileno())
            for stream in list(streams):
                stream._cancel_now()
            # Whoever waits for one of them is told, though the loop does not watch any more.
            reactor.settle()
            reactor.close()


class _Gathering:
    """Turns the reactor at once, and then no more often than once in a window while there is work.

    The descriptor is watched only while nothing comes: under load a timer costs less than a
    wake-up for each stream.
    """

    __slots__ = ("_loop", "_reactor", "_window")

    def __init__(self, loop: asyncio.AbstractEventLoop, reactor: Reactor, window: float) -> None:
        self._loop = loop
        self._reactor = weakref.ref(reactor)
        self._window = window

    def __call__(self) -> None:
        reactor = self._reactor()
        if reactor is not None:
            self._loop.remove_reader(reactor.fileno())
            try:
                reactor.turn()
            finally:
                self._loop.call_later(self._window, self._again)

    def _again(self) -> None:
        reactor = self._reactor()
        if reactor is None or reactor.is_closed:
            return
        is_busy = True
        try:
            is_busy = reactor.turn()
        finally:
            if is_busy:
                self._loop.call_later(self._window, self._again)
            else:
                self._loop.add_reader(reactor.fileno(), self)


class _Unattended:
    """Called when something has come for a stream that nobody reads."""

    __slots__ = ("stream",)

    def __init__(self) -> None:
        self.stream: weakref.ref[_NativeTokenStream] | None = None

    def __call__(self) -> None:
        stream = None if self.stream is None else self.stream()
        if stream is not None:
            stream.look()


class _NativeTokenStream(TokenStream):
    """The events of a `NativeStream`."""

    __slots__ = ("_has_ended", "_native")

    def __init__(self, submission: Submission, native: NativeStream, session: _Session) -> None:
        self._native = native
        super().__init__(
            submission.task_id,
            clock=submission.clock,
            on_terminal=submission.on_terminal,
            abort=submission.abort,
            narration=submission.narration,
        )
        self._has_ended = False
        session.streams.add(self)

    def __del__(self) -> None:
        native = getattr(self, "_native", None)
        if native is not None and not self._is_forked:
            if self._abort is not None and not native.is_terminal:
                self._abort.start()
            if self._narration is not None and not self._has_ended:
                if (terminal := native.terminal) is None:
                    self._narration.dropped(native.tokens_emitted)
                else:
                    self._narration.ended(terminal)
            native.close()

    @property
    def is_terminal(self) -> bool:
        """Whether the terminal event exists, delivered or not."""
        return self._native.is_terminal

    @property
    def tokens_emitted(self) -> int:
        """How many tokens the events so far stand for."""
        return self._native.tokens_emitted

    @property
    def metrics_dropped(self) -> int:
        """How many ``metrics`` events gave way to a later one before anybody had taken them."""
        return self._native.metrics_dropped

    @property
    def _phase(self) -> str:
        return self._native.phase

    @property
    def _pending(self) -> int:
        return self._native.pending

    @property
    def _is_full(self) -> bool:
        return self._native.is_full

    def _take(self, most: int | None = None) -> list[TokenEvent]:
        return self._hear(self._native.take(most))

    def _take_sse(self) -> bytes:
        if self._overheard:
            return b"".join(event.to_sse() for event in self._take())
        return self._native.take_sse()

    def __aiter__(self) -> AsyncIterator[TokenEvent]:
        if self._overheard:
            return self
        return NativeEvents(self, self._native, self._loop, "events")

    async def __anext__(self) -> TokenEvent:
        if self._ready:
            return self._ready.popleft()
        if self._reading:
            raise second_reader()
        if self._overheard:
            return await super().__anext__()
        event: TokenEvent = await NativeEvents(self, self._native, self._loop, "events")
        return event

    def batches(
        self, max_events: int | None = None, max_wait: float | None = None
    ) -> AsyncIterator[list[TokenEvent]]:
        """Iterate over lists of events. See `TokenStream.batches`."""
        if max_events is None and not max_wait and not self._ready and not self._overheard:
            return NativeEvents(self, self._native, self._loop, "batches")
        return super().batches(max_events, max_wait)

    def sse(self, max_wait: float | None = None) -> AsyncIterator[bytes]:
        """Iterate over the events as server-sent ones. See `TokenStream.sse`."""
        if not max_wait and not self._ready and not self._overheard:
            return NativeEvents(self, self._native, self._loop, "sse")
        return super().sse(max_wait)

    @property
    def _reading(self) -> bool:
        return self._native.is_awaited

    @_reading.setter
    def _reading(self, reading: bool) -> None:
        self._native.is_filling = reading

    def _left(self) -> None:
        """Let go of a stream that has been read to its end."""
        self._leave()
        self._native.close()

    def _given_up(self) -> None:
        """Cancel the task: who was reading is gone."""
        self._give_up()

    async def _read(self, until: float | None) -> None:
        native = self._native
        future = self._loop.create_future()
        if not native.wait(future, 0 if until is None else native.pending):
            try:
                if until is None:
                    await future
                else:
                    delay = max(0.0, until - self._clock())
                    await asyncio.wait((future,), timeout=delay)
            except asyncio.CancelledError:
                self._give_up()
                raise
        if not self._has_ended:
            self.look()

    def look(self) -> None:
        """Act on the engine's having begun to answer, and on the terminal event."""
        if self._unstarted is not None and self._native.has_started:
            self._began()
        if self._has_ended or not self._native.is_terminal:
            return
        self._has_ended = True
        if (terminal := self._native.terminal) is not None:
            self._ended(terminal)

    def _end(self) -> bool:
        was_running = self._native.cancel()
        self.look()
        return was_running

    def _sever(self) -> None:
        self._cancelled |= self._native.cancel()

    async def _stop(self) -> None:
        """Do nothing: the connection was closed by ending the stream."""

    async def _release(self) -> None:
        if self._reading:
            # The reader, who has been told, comes by here on the way out.
            self._native.cancel()
        else:
            self._native.close()


async def _head(native: NativeStream, loop: asyncio.AbstractEventLoop) -> None:
    future = loop.create_future()
    if not native.head(future):
        await future


def _note(progress: Progress, native: NativeStream) -> None:
    """Keep how far the request has come."""
    progress.phase = "head" if native.is_sent else "connect"
    progress.status = native.status


def _error_of(terminal: TokenEvent | None) -> Exception:
    """Return the error that ended a stream before anybody had it."""
    error = None if terminal is None else terminal.error
    if error is None:
        raise AssertionError("a stream that has no answer ended without an error")
    return error
