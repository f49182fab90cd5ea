"""What all engines behind HTTP have in common: calls, clocks, errors and the tasks in flight.

An engine's own module says where its routes are, what a request looks like and what an answer
means; nothing of it is parsed twice and no stream is parsed here at all.
"""

import asyncio
import contextlib
import json
import random
import time
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, NoReturn, TypeVar
from uuid import UUID, uuid4
from weakref import WeakValueDictionary

from pydantic import SecretStr

from worker_adapters._core import (
    ErrorRules,
    Redactor,
    StreamDecoder,
    TokenEvent,
    classify_response,
    make_error,
)
from worker_adapters.adapter import TokenStream, WorkerAdapter
from worker_adapters.contract import (
    CancelReceipt,
    SamplerProfile,
    SubmitContext,
    TaskRequest,
    Timeouts,
    WorkerHealth,
    WorkerIdentity,
)
from worker_adapters.errors import WorkerError
from worker_adapters.transport import (
    MAX_ANSWER_BYTES,
    MAX_ERROR_BYTES,
    ByteStream,
    Headers,
    Progress,
    Request,
    Response,
    Transport,
    TransportError,
    read_body,
    validate_base_url,
)
from worker_adapters.transport._httpx import Client, HttpxTransport

__all__ = ["Answer", "Dispatch", "HttpAdapter"]

ERROR_BODY_SECONDS: Final = 2.0
"""How long the body of an error answer may take once its head is there."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a unary workload produced: vectors or scores in input order, and the tokens it read."""

    tokens_in: int | None = None
    embeddings: list[list[float]] | None = None
    scores: list[tuple[int, float]] | None = None


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A task as it is about to be sent: what the request says beyond the task itself."""

    task: TaskRequest
    seed: int | None
    profile: SamplerProfile | None


class _CancelledInFlightError(Exception):
    """The task was cancelled while its submit was waiting."""


@dataclass(eq=False)
class _Call:
    """One exchange that somebody waits for: how far it is, and how to stop the waiting."""

    clock: Callable[[], float]
    timeouts: Timeouts
    correlation_id: str
    deadline: float | None = None
    """Instant at which the task's time is up."""
    progress: Progress = field(default_factory=Progress)
    cancelled: bool = False
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    _waiting: asyncio.Timeout | None = None

    async def wait(self, work: Coroutine[Any, Any, _T], until: float | None) -> _T:
        """Await ``work`` until that instant.

        Raises TimeoutError, or _CancelledInFlightError once `cancel` is called.
        """
        if self.cancelled:
            work.close()
            raise _CancelledInFlightError
        delay = None if until is None else max(0.0, until - self.clock())
        try:
            async with asyncio.timeout(delay) as self._waiting:
                return await work
        except TimeoutError:
            if self.cancelled:
                raise _CancelledInFlightError from None
            raise
        finally:
            self._waiting = None

    def cancel(self) -> None:
        """End the waiting; may be called from any loop."""
        self.cancelled = True
        if asyncio.get_running_loop() is self.loop:
            self._stop_waiting()
        else:
            with contextlib.suppress(RuntimeError):  # a loop that is closed waits for nothing
                self.loop.call_soon_threadsafe(self._stop_waiting)

    def _stop_waiting(self) -> None:
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(self.loop.time())

    def unary_end(self) -> float | None:
        """Return the instant at which a call without a stream has to be over."""
        unary = self.timeouts.unary
        ends = (None if unary is None else self.clock() + unary, self.deadline)
        return min((end for end in ends if end is not None), default=None)

    @property
    def deadline_passed(self) -> bool:
        # A loop may ring a hair early; a call that ended at its deadline ended because of it.
        return self.deadline is not None and self.deadline - self.clock() <= 1e-3


class HttpAdapter(WorkerAdapter):
    """An engine behind HTTP. Subclasses say what is particular to theirs.

    Args:
        base_url: ``http[s]://host[:port][/prefix]`` of the engine.
        api_key: Sent as ``Authorization: Bearer``; shows in no repr, error or log.
        pool_id: The pool this engine belongs to.
        replica_id: Which replica of the pool it is.
        sampler_profiles: What ``TaskRequest.sampler_profile_version`` may name.
        timeouts: Clocks for every call; a call's own ``timeouts`` replace them.
        http_client: An ``httpx.AsyncClient`` to use instead of the adapter's own; it is never
            closed here, and belongs to one event loop.
        clock: Monotonic seconds; for tests.
        rng: Where seeds come from when a task has none.

    Raises ValueError for a base URL, key or profile that cannot be used, saying why.
    """

    dialect: ClassVar[str]
    rules: ClassVar[ErrorRules]
    health_path: ClassVar[str]
    default_timeouts: ClassVar[Timeouts] = Timeouts()
    max_seed: ClassVar[int] = 2**63 - 1
    """The largest seed the engine takes as it is."""
    translates: ClassVar[frozenset[str]] = frozenset()
    """Which of `TaskExtensions.used` the engine is told; the others are refused."""
    keeps_after_stream: ClassVar[bool] = True
    """Whether the engine keeps a connection open after a stream, so that it can be used again."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | SecretStr | None = None,
        pool_id: str = "default",
        replica_id: str = "0",
        sampler_profiles: Iterable[SamplerProfile] = (),
        timeouts: Timeouts | None = None,
        http_client: Client | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.base_url = validate_base_url(base_url)
        self.pool_id = pool_id
        self.replica_id = replica_id
        self._timeouts = self.default_timeouts if timeouts is None else timeouts
        self._profiles = _by_version(sampler_profiles)
        self._redactor, headers = _credentials(api_key)
        self._transport: Transport = HttpxTransport(
            self.base_url, headers=headers, client=http_client
        )
        self._clock = clock
        self._rng = random.SystemRandom() if rng is None else rng
        self._identity: WorkerIdentity | None = None
        self._submits: dict[UUID, _Call] = {}
        self._streams: WeakValueDictionary[UUID, TokenStream] = WeakValueDictionary()
        self._closed = False

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.base_url!r}, pool_id={self.pool_id!r}, "
            f"replica_id={self.replica_id!r})"
        )

    # What an engine's own module says.

    @abstractmethod
    async def _ask_identity(self, call: _Call) -> WorkerIdentity:
        """Ask for what a submit needs to know of the engine, in one request."""

    @abstractmethod
    def _completion(self, dispatch: Dispatch) -> tuple[str, Mapping[str, Any]]:
        """Return path and payload of a streamed completion."""

    @abstractmethod
    def _unary_request(self, task: TaskRequest) -> tuple[str, Mapping[str, Any]]:
        """Return path and payload of an embedding or a rerank."""

    @abstractmethod
    def _unary_answer(self, task: TaskRequest, answer: Any) -> Answer:
        """Read the JSON of an embedding or a rerank.

        Raises KeyError, TypeError, ValueError or IndexError for one of another shape.
        """

    # The contract.

    async def health(self, *, timeouts: Timeouts | None = None) -> WorkerHealth:
        """Ask the engine's health route. See `WorkerAdapter.health`."""
        try:
            await self._get(self.health_path, self._call(timeouts))
        except WorkerError as error:
            return WorkerHealth(live=error.status is not None, ready=False, reason=error.detail)
        return WorkerHealth(live=True, ready=True)

    async def engine_version(self, *, timeouts: Timeouts | None = None) -> str:
        """Ask the engine which build it is. See `WorkerAdapter.engine_version`."""
        return (await self._refresh_identity(self._call(timeouts))).engine_version

    async def submit(
        self,
        task: TaskRequest,
        *,
        context: SubmitContext | None = None,
        timeouts: Timeouts | None = None,
    ) -> TokenStream:
        """Send ``task`` and return its stream. See `WorkerAdapter.submit`."""
        context = SubmitContext() if context is None else context
        call = self._call(timeouts, context.correlation_id, task.deadline_ms / 1000)
        dispatch = self._checked(task, call)
        self._submits[task.task_id] = call
        try:
            stream = await self._dispatched(dispatch, context, call)
        except WorkerError as error:
            self._forget_identity(error.kind)
            raise
        finally:
            del self._submits[task.task_id]
            call.over.set()
        if not stream.is_terminal:
            self._streams[task.task_id] = stream
        return stream

    async def cancel(self, task_id: UUID | str) -> CancelReceipt:
        """Cancel a task by closing its connection. See `WorkerAdapter.cancel`."""
        began = self._clock()
        key = task_id if isinstance(task_id, UUID) else UUID(task_id)
        stream = self._streams.get(key)
        if stream is not None:
            return await stream.cancel()
        call = self._submits.get(key)
        if call is None:
            return CancelReceipt(method="none", sent=False, elapsed_ms=0.0)
        call.cancel()
        if call.loop is asyncio.get_running_loop():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await call.over.wait()
        elapsed_ms = round((self._clock() - began) * 1000, 3)
        return CancelReceipt(method="close", sent=True, elapsed_ms=elapsed_ms)

    async def aclose(self) -> None:
        """Cancel what is in flight and close every connection. See `WorkerAdapter.aclose`."""
        self._closed = True
        for call in list(self._submits.values()):
            call.cancel()
        for stream in list(self._streams.values()):
            await stream.cancel()
        await self._transport.aclose()

    # A submit, step by step.

    def _checked(self, task: TaskRequest, call: _Call) -> Dispatch:
        """Refuse what needs no engine to be refused."""
        if self._closed:
            raise self._error(call, "closed", "the adapter has been closed")
        if task.engine != self.engine:
            raise self._error(
                call, "invalid_request", f"the task is for {task.engine}, this is {self.engine}"
            )
        used = frozenset() if task.extensions is None else task.extensions.used()
        if unknown := sorted(used - self.translates):
            raise self._error(
                call, "unsupported", f"{self.engine} is not told of {', '.join(unknown)}"
            )
        inflight = self._streams.get(task.task_id)
        if task.task_id in self._submits or (inflight is not None and not inflight.is_terminal):
            raise self._error(call, "duplicate_id", "a task with this task_id is in flight")
        if task.deadline_ms <= 0:
            raise self._error(
                call, "deadline", "the task's deadline had passed when it was submitted"
            )
        profile = None
        if task.sampler_profile_version is not None:
            profile = self._profiles.get(task.sampler_profile_version)
            if profile is None:
                raise self._error(call, "invalid_request", "no sampler profile has this version")
        if task.workload != "completion":
            return Dispatch(task, None, profile)
        seed = task.seed
        if seed is None:
            seed = self._rng.randrange(self.max_seed + 1)
        elif not 0 <= seed <= self.max_seed:
            raise self._error(call, "invalid_request", f"seed must be from 0 to {self.max_seed}")
        return Dispatch(task, seed, profile)

    async def _dispatched(
        self, dispatch: Dispatch, context: SubmitContext, call: _Call
    ) -> TokenStream:
        task = dispatch.task
        identity: WorkerIdentity | None = None
        try:
            identity = await self._known_identity(call)
            if identity is not None and task.ctx > (identity.ctx_max or task.ctx):
                raise self._error(
                    call,
                    "context_overflow",
                    f"ctx {task.ctx} exceeds the engine's context of {identity.ctx_max} tokens",
                )
            decoder = self._decoder(dispatch, context, call, identity)
            if task.workload == "completion":
                return await self._stream(dispatch, context, call, decoder)
            return await self._unary_stream(task, context, call, decoder)
        except _CancelledInFlightError:
            decoder = self._decoder(dispatch, context, call, identity)
            events = decoder.cancel(self._clock())
            return TokenStream(task.task_id, decoder, None, events=events, clock=self._clock)

    async def _known_identity(self, call: _Call) -> WorkerIdentity | None:
        """Return the engine's identity, asked for once; None where it will not tell."""
        if self._identity is None:
            try:
                await self._refresh_identity(call)
            except WorkerError as error:
                # One that answers but does not tell is still worth a try.
                if error.detail not in {"not_found", "unsupported", "bad_json"}:
                    raise
            call.progress.phase = "queue"
        return self._identity

    async def _refresh_identity(self, call: _Call) -> WorkerIdentity:
        try:
            self._identity = await self._ask_identity(call)
        except WorkerError as error:
            self._forget_identity(error.kind)
            raise
        return self._identity

    def _forget_identity(self, kind: str) -> None:
        """Whatever answers after a reset or an outage may be another build or another model."""
        if kind in {"WorkerReset", "PoolUnavailable"}:
            self._identity = None

    def _decoder(
        self,
        dispatch: Dispatch,
        context: SubmitContext,
        call: _Call,
        identity: WorkerIdentity | None,
    ) -> StreamDecoder:
        timeouts = call.timeouts
        profile = dispatch.profile
        return StreamDecoder(
            self.dialect,
            started={
                "queue_position": context.queue_position,
                "predicted_start_ms": context.predicted_start_ms,
                "engine_version": None if identity is None else identity.engine_version,
                "model": None if identity is None else identity.model,
                "model_digest": None if identity is None else identity.model_digest,
                "seed": dispatch.seed,
                "sampler_profile_version": None if profile is None else profile.version,
                "correlation_id": call.correlation_id,
            },
            rules=self.rules,
            redactor=self._redactor,
            first_token_timeout=timeouts.first_token,
            token_gap_timeout=timeouts.token_gap,
            idle_timeout=timeouts.idle,
            deadline=call.deadline,
        )

    async def _stream(
        self, dispatch: Dispatch, context: SubmitContext, call: _Call, decoder: StreamDecoder
    ) -> TokenStream:
        path, payload = self._completion(dispatch)
        headers = self._headers(call, context)
        if not self.keeps_after_stream:
            headers = (*headers, (b"Connection", b"close"))
        request = Request("POST", path, headers, _json(payload))
        decoder.dispatched(self._clock())
        body = await self._head(request, call, decoder)
        if call.cancelled:
            # The head came in the same turn of the loop.
            body.abort()
            raise _CancelledInFlightError
        events = decoder.head(body.status, body.headers, self._clock())
        if body.status != 200:
            events += await self._error_body(body, call, decoder)
            raise _error_of(events)
        return TokenStream(
            dispatch.task.task_id,
            decoder,
            body,
            events=events,
            clock=self._clock,
            on_terminal=self._on_terminal,
        )

    async def _head(self, request: Request, call: _Call, decoder: StreamDecoder) -> ByteStream:
        opening = self._open(request, call)
        try:
            return await call.wait(opening, decoder.next_wakeup())
        except TransportError as error:
            now = self._clock()
            events = decoder.fail(error.detail, error.phase, now, processed=error.processed)
        except TimeoutError:
            phase, processed = call.progress.phase, call.progress.processed
            now = max(self._clock(), decoder.next_wakeup() or 0.0)
            if call.deadline_passed:
                events = decoder.fail("deadline", phase, now, processed=processed)
            elif phase == "write":
                events = decoder.fail("write_timeout", phase, now, processed=processed)
            else:
                events = decoder.tick(now)
        raise _error_of(events)

    async def _error_body(
        self, body: ByteStream, call: _Call, decoder: StreamDecoder
    ) -> list[TokenEvent]:
        """Read what an error answer says, as far as it says it soon."""
        data, complete = b"", False
        try:
            with contextlib.suppress(TimeoutError, TransportError):
                until = self._clock() + ERROR_BODY_SECONDS
                data, complete = await call.wait(read_body(body, MAX_ERROR_BYTES), until)
        finally:
            await body.aclose()
        now = self._clock()
        return [*decoder.feed(data, now), *decoder.finish(now, complete)]

    async def _unary_stream(
        self, task: TaskRequest, context: SubmitContext, call: _Call, decoder: StreamDecoder
    ) -> TokenStream:
        path, payload = self._unary_request(task)
        request = Request("POST", path, self._headers(call, context), _json(payload))
        decoder.dispatched(self._clock())
        answer = self._parsed(
            await self._exchange(request, call), call, lambda data: self._unary_answer(task, data)
        )
        events = decoder.complete(
            self._clock(),
            tokens_in=answer.tokens_in,
            embeddings=answer.embeddings,
            scores=answer.scores,
        )
        return TokenStream(task.task_id, decoder, None, events=events, clock=self._clock)

    def _on_terminal(self, event: TokenEvent) -> None:
        if event.kind == "error" and isinstance(event.error, WorkerError):
            self._forget_identity(event.error.kind)

    # Calls without a stream.

    def _call(
        self,
        timeouts: Timeouts | None,
        correlation_id: str | None = None,
        budget: float | None = None,
    ) -> _Call:
        return _Call(
            clock=self._clock,
            timeouts=self._timeouts if timeouts is None else timeouts,
            correlation_id=str(uuid4()) if correlation_id is None else correlation_id,
            deadline=None if budget is None else self._clock() + budget,
        )

    async def _get(self, path: str, call: _Call) -> bytes:
        """Return the body of a 200. Raises WorkerError."""
        return await self._exchange(Request("GET", path, self._headers(call)), call)

    async def _get_json(self, path: str, call: _Call, read: Callable[[Any], _T]) -> _T:
        """Return what ``read`` makes of the JSON at ``path``. Raises WorkerError."""
        return self._parsed(await self._get(path, call), call, read)

    async def _exchange(self, request: Request, call: _Call) -> bytes:
        if self._closed:
            raise self._error(call, "closed", "the adapter has been closed")
        try:
            response = await call.wait(self._answer(request, call), call.unary_end())
        except TransportError as error:
            raise self._error(
                call, error.detail, phase=error.phase, processed=error.processed
            ) from None
        except TimeoutError:
            detail = "deadline" if call.deadline_passed else "unary_timeout"
            progress = call.progress
            raise self._error(
                call, detail, phase=progress.phase, processed=progress.processed
            ) from None
        if call.cancelled:
            raise _CancelledInFlightError
        if response.status != 200:
            raise classify_response(
                self.engine,
                response.status,
                response.headers,
                response.body[:MAX_ERROR_BYTES],
                rules=self.rules,
                redactor=self._redactor,
                correlation_id=call.correlation_id,
            )
        return response.body

    async def _answer(self, request: Request, call: _Call) -> Response:
        body = await self._open(request, call)
        try:
            limit = MAX_ANSWER_BYTES if body.status == 200 else MAX_ERROR_BYTES
            data, complete = await read_body(body, limit)
        finally:
            await body.aclose()
        if not complete and body.status == 200:
            raise TransportError("body_too_large", "stream", "yes")
        return Response(body.status, body.headers, data)

    async def _open(self, request: Request, call: _Call) -> ByteStream:
        timeouts = call.timeouts
        return await self._transport.open(
            request, call.progress, connect=timeouts.connect, tls=timeouts.tls
        )

    def _parsed(self, body: bytes, call: _Call, read: Callable[[Any], _T]) -> _T:
        try:
            return read(json.loads(body, parse_constant=_no_constant))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            # What went wrong in detail would quote the answer, which may quote a prompt.
            raise self._error(call, "bad_json", phase="stream", processed="yes") from None

    def _headers(self, call: _Call, context: SubmitContext | None = None) -> Headers:
        headers = [
            (b"Content-Type", b"application/json"),
            (b"X-Correlation-Id", call.correlation_id.encode("ascii")),
        ]
        if context is not None and context.traceparent is not None:
            headers.append((b"traceparent", context.traceparent.encode("ascii")))
        return headers

    def _error(
        self,
        call: _Call,
        detail: str,
        message: str = "",
        *,
        phase: str = "validate",
        processed: str | None = None,
    ) -> Exception:
        return make_error(
            self.engine,
            detail,
            phase,
            message=message,
            redactor=self._redactor,
            correlation_id=call.correlation_id,
            processed=processed,
        )


def _error_of(events: Iterable[TokenEvent]) -> Exception:
    """Return the error that ended a stream before anybody had it."""
    errors = (event.error for event in events)
    return next(error for error in errors if error is not None)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and Infinity are no JSON, whatever Python thinks


def _json(payload: Mapping[str, Any]) -> bytes:
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()


def _by_version(profiles: Iterable[SamplerProfile]) -> dict[str, SamplerProfile]:
    by_version: dict[str, SamplerProfile] = {}
    for profile in profiles:
        if profile.version in by_version:
            raise ValueError(f"two sampler profiles have the version {profile.version!r}")
        by_version[profile.version] = profile
    return by_version


def _credentials(api_key: str | SecretStr | None) -> tuple[Redactor, Headers]:
    if api_key is None:
        return Redactor(), ()
    secret = api_key.get_secret_value() if isinstance(api_key, SecretStr) else api_key
    if not secret.isascii() or not secret.isprintable() or secret != secret.strip():
        raise ValueError("api_key must be printable ASCII without spaces around it")
    if len(secret) < 6:
        raise ValueError("api_key must have at least 6 characters, or it cannot be redacted")
    return Redactor([secret]), ((b"Authorization", b"Bearer " + secret.encode("ascii")),)
