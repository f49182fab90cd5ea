"""What all engines behind HTTP have in common: how a task is sent, and the tasks in flight.

An engine's own module says where its routes are, what a request looks like and what an answer
means; nothing of it is parsed twice and no stream is parsed here at all.
"""

import asyncio
import contextlib
import json
import random
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal
from uuid import UUID, uuid4
from weakref import WeakValueDictionary

from worker_adapters._abort import Abort, Aborts, confirmed, patience
from worker_adapters._core import EgressPolicy, Metrics, StreamDecoder, TaskMetrics, TokenEvent
from worker_adapters._secret import SecretBytes
from worker_adapters.capabilities import AdapterCapabilities
from worker_adapters.contract import (
    CancelReceipt,
    ExpectedModel,
    SamplerProfile,
    SubmitContext,
    TaskRequest,
    Timeouts,
    WorkerIdentity,
    WorkerProps,
)
from worker_adapters.engines._call import Call, CancelledInFlightError
from worker_adapters.engines._credentials import ApiKey, Credentials
from worker_adapters.engines._dispatch import Answer, Dispatch, Unsupported, private_texts
from worker_adapters.engines._identity import IdentifiedEngine
from worker_adapters.engines._load import EngineLoad
from worker_adapters.errors import AdapterError, WorkerError
from worker_adapters.observe.logs import Logs
from worker_adapters.observe.narration import Narrator, narrated
from worker_adapters.observe.watching import Watchers
from worker_adapters.retry import Repeat, Retries, RetryPolicy
from worker_adapters.stream import TokenStream
from worker_adapters.tls import TlsOptions
from worker_adapters.transport import (
    Headers,
    Progress,
    Request,
    StreamTransport,
    Submission,
    Transport,
    TransportError,
    validate_base_url,
)
from worker_adapters.transport._httpx import Client, HttpxTransport
from worker_adapters.transport._native import MAX_STREAMS, NativeTransport
from worker_adapters.transport._pulled import PulledStream
from worker_adapters.transport._submit import PulledTransport
from worker_adapters.transport._tls import TlsSetup

if TYPE_CHECKING:
    from worker_adapters.observe.otel import OpenTelemetry

__all__ = ["Answer", "Call", "Dispatch", "HttpAdapter", "Unsupported"]

ABORT_ATTEMPTS: Final = 3
ABORT_SECONDS: Final = 2.0
"""How long the engine's own abort may take; the stream has ended whatever comes of it."""

DEFAULT_TRANSPORT: Final[Literal["native", "httpx"]] = "native"
"""What streams come over unless an adapter is told otherwise."""

POLL_SECONDS: Final = 0.01
"""How long after a cancel an engine is first asked whether it has stopped; pauses double then."""

MAX_POLL_SECONDS: Final = 0.25
"""How long these pauses become."""

SUBMIT_SECONDS: Final = 1.0
"""How long a cancel waits for the submit it has ended to be over."""


class HttpAdapter(IdentifiedEngine):
    """An engine behind HTTP. Subclasses say what is particular to theirs.

    Args:
        base_url: ``http[s]://host[:port][/prefix]`` of the engine.
        api_key: Sent as ``Authorization: Bearer``; shows in no repr, error or log. A string or
            `SecretStr`; a path of a file that holds it; or a function that returns it.
        model: The name to ask the engine for, where it serves models by name; the one it serves
            when unset.
        expect: The model the pool expects; while the engine says that it has another, it is not
            ready and tasks are refused.
        pool_id: The pool this engine belongs to.
        replica_id: Which replica of the pool it is.
        sampler_profiles: What ``TaskRequest.sampler_profile_version`` may name.
        timeouts: Clocks for every call; a call's own ``timeouts`` replace them.
        metrics: Where its tasks are counted; nowhere when unset.
        retries: When a request is sent once more; ``RetryPolicy()`` when unset, and
            ``RetryPolicy(attempts=1)`` for never.
        http_client: An ``httpx.AsyncClient`` to use instead of the adapter's own; it is never
            closed here, and belongs to one event loop.
        transport: What streams come over: ``native`` sockets, read and decoded in Rust, or
            ``httpx``, which the calls without a stream always use. Native by default; ``httpx``
            where there is an ``http_client``.
        gather_window: How long, in seconds, the native transport may wait for further streams once
            something has come for one: fewer wake-ups, for that much latency.
        max_streams: How many tasks may be under way at a time over native sockets; over httpx 1024
            requests may, whatever they are.
        tls: Whom to trust over TLS, and the certificate to show; the public CAs and none when
            unset.
        egress: What may be connected to; scheme, host and port of the base URL when unset. Of an
            injected client's connections only the URL is checked.
        logs: Where the lines of the log contract go; the logger ``worker_adapters.adapter`` when
            unset, which says nothing until the program configures it. Give one to many adapters,
            and they share its thread.
        telemetry: Makes an OpenTelemetry span and metrics of each task; none when unset. See
            `worker_adapters.observe.otel`.
        clock: Monotonic seconds; for tests.
        wall_clock: Seconds since 1970, which only a ``Retry-After`` date asks for; for tests.
        rng: Where seeds come from when a task has none, and the pauses between retries.

    Raises ValueError for a base URL, key or profile that cannot be used, saying why.
    """

    default_timeouts: ClassVar[Timeouts] = Timeouts()
    max_seed: ClassVar[int] = 2**63 - 1
    """The largest seed the engine takes as it is."""
    keeps_after_stream: ClassVar[bool] = True
    """Whether the engine keeps a connection open after a stream, so that it can be used again."""

    confirms_abort: ClassVar[bool] = True
    """Whether the engine's answer to its own abort says that the abort was taken."""

    prefill_quiet: ClassVar[float | None] = None
    """How long, in seconds, an engine that has given no token of a cancelled task is left alone
    before each time it is asked whether it has stopped; None where asking delays nothing."""

    # An adapter that could not be made has a repr, too: tracebacks may show it.
    base_url = ""
    pool_id = "default"
    replica_id = "0"

    def __init__(
        self,
        base_url: str,
        *,
        api_key: ApiKey | None = None,
        model: str | None = None,
        expect: ExpectedModel | None = None,
        pool_id: str = "default",
        replica_id: str = "0",
        sampler_profiles: Iterable[SamplerProfile] = (),
        timeouts: Timeouts | None = None,
        metrics: Metrics | None = None,
        retries: RetryPolicy | None = None,
        http_client: Client | None = None,
        transport: Literal["native", "httpx"] | None = None,
        gather_window: float = 0.0,
        max_streams: int = MAX_STREAMS,
        tls: TlsOptions | None = None,
        egress: EgressPolicy | None = None,
        logs: Logs | None = None,
        telemetry: "OpenTelemetry | None" = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__()
        self._credentials = Credentials(api_key)
        del api_key  # what prints local variables would show it
        self.base_url = validate_base_url(base_url)
        self.pool_id = pool_id
        self.replica_id = replica_id
        if metrics is not None:
            self.metrics = metrics.replica(self.engine, pool_id, replica_id)
        self._timeouts = self.default_timeouts if timeouts is None else timeouts
        self._profiles = _by_version(sampler_profiles)
        if model is not None and not (model.isascii() and model.isprintable() and model.strip()):
            raise ValueError("model must be printable ASCII")
        self._model = model
        self._expect = expect
        trust: Callable[[], TlsSetup] = partial(TlsSetup.of, None)
        context = None
        if tls is not None:
            if http_client is not None:
                raise ValueError("an http_client brings its own TLS: give it no tls beside it")
            if not self.base_url.startswith("https:"):
                raise ValueError("tls is of no use without an https:// base_url")
            setup = TlsSetup.of(tls)
            trust, context = lambda: setup, setup.context
        self._transport: Transport = HttpxTransport(
            self.base_url, client=http_client, egress=egress, ssl_context=context
        )
        self._clock = clock
        self._wall_clock = wall_clock
        if transport is None:
            transport = "httpx" if http_client is not None else DEFAULT_TRANSPORT
        self._data_plane: StreamTransport
        if transport == "httpx":
            self._data_plane = PulledTransport(self._transport)
        elif transport != "native":
            raise ValueError(f"transport must be 'native' or 'httpx', not {transport!r}")
        elif http_client is not None:
            raise ValueError("streams over an http_client need transport='httpx'")
        else:
            self._data_plane = NativeTransport(
                self.base_url,
                clock=clock,
                egress=egress,
                tls=trust,
                gather_window=gather_window,
                max_streams=max_streams,
            )
        self._rng = random.SystemRandom() if rng is None else rng
        self._retries = Retries(RetryPolicy() if retries is None else retries, self._rng.uniform)
        self._telemetry = telemetry
        self._narrator = Narrator(
            Logs() if logs is None else logs,
            engine=self.engine,
            pool_id=pool_id,
            replica_id=replica_id,
            clock=clock,
            keys=self._credentials,
            uniform=self._rng.uniform,
        )
        self._aborts = Aborts()
        self._submits: dict[UUID, Call] = {}
        self._streams: WeakValueDictionary[UUID, TokenStream] = WeakValueDictionary()
        self._closed = False

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.base_url!r}, pool_id={self.pool_id!r}, "
            f"replica_id={self.replica_id!r})"
        )

    # What an engine's own module says.

    @abstractmethod
    def _completion(self, dispatch: Dispatch) -> tuple[str, Mapping[str, Any]]:
        """Return path and payload of a streamed completion."""

    @abstractmethod
    def _unary_request(self, dispatch: Dispatch) -> tuple[str, Mapping[str, Any]]:
        """Return path and payload of an embedding or a rerank."""

    @abstractmethod
    def _unary_answer(self, task: TaskRequest, answer: Any) -> Answer:
        """Read the JSON of an embedding or a rerank.

        Raises KeyError, TypeError, ValueError or IndexError for one of another shape.
        """

    def _dialect(self, dispatch: Dispatch) -> str:
        """Name the wire dialect that the answer to this task will have."""
        return self.dialect

    def _dialect_options(self, dispatch: Dispatch) -> Mapping[str, str]:
        """Return what the dialect has to be told beside what the task asks for."""
        return {}

    def _submit_headers(self, dispatch: Dispatch) -> Headers:
        """Return headers of this task's request beside those of every request."""
        return ()

    def _abort_request(self, dispatch: Dispatch) -> Request | None:
        """Return the engine's own abort of this task, if it has one, without headers of ours.

        It must name the task: an abort without an id would end other people's.
        """
        return None

    async def _has_stopped(self, dispatch: Dispatch, call: Call) -> bool | None:
        """Ask whether the engine no longer works on this task; None where it does not tell.

        Asked where the engine has no abort that it confirms. Raises WorkerError.
        """
        return None

    # The contract.

    async def load(self, *, timeouts: Timeouts | None = None) -> EngineLoad:
        """Ask ``/metrics`` how busy the engine is; all None where it does not tell there.

        Raises WorkerError.
        """
        return await self._load(self._call(timeouts))

    async def _load(self, call: Call) -> EngineLoad:
        try:
            exposition = await self._get("/metrics", call)
        except AdapterError as error:
            if error.detail not in {"not_found", "unsupported"}:
                raise
            return EngineLoad()
        return EngineLoad.from_metrics(exposition.decode("utf-8", "replace"), self.engine)

    def _describe(self, identity: WorkerIdentity | None, props: WorkerProps) -> AdapterCapabilities:
        described = super()._describe(identity, props)
        return described.model_copy(update={"sampler_profile_versions": tuple(self._profiles)})

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
        call.private = private_texts(task)
        call.narration = self._narrator.task(task, context, call.correlation_id)
        if self._telemetry is not None:
            span = self._telemetry.task(
                task,
                context,
                engine=self.engine,
                pool_id=self.pool_id,
                replica_id=self.replica_id,
                base_url=self.base_url,
                profile=self._profiles.get(task.sampler_profile_version or ""),
                clock=self._clock,
            )
            context = span.within(context)
            call.narration = span if call.narration is None else Watchers(call.narration, span)
        try:
            with narrated(call.narration):
                return await self._submitted(task, context, call)
        except WorkerError as error:
            if (counted := self._counted(task, context, call)) is not None:
                counted.refused(error.kind, error.phase, error.code)
            raise
        except asyncio.CancelledError:
            if (counted := self._counted(task, context, call)) is not None:
                counted.cancelled("left")
            raise

    async def _submitted(
        self, task: TaskRequest, context: SubmitContext, call: Call
    ) -> TokenStream:
        dispatch = self._checked(task, call)
        if call.narration is not None:
            call.narration.served_by(_version(self._last_identity))
            call.narration.submitted(dispatch.request_id)
        self._submits[task.task_id] = call
        try:
            stream = await self._dispatched(dispatch, context, call)
            stream._metrics = call.metrics
            # Before the call is forgotten: a cancel in another thread finds one or the other.
            self._streams[task.task_id] = stream
        except WorkerError as error:
            self._forget_identity(error)
            raise
        finally:
            del self._submits[task.task_id]
            call.over.set()
        if call.cancelled:
            # Just after the head, from another thread.
            await stream.cancel()
        return stream

    async def cancel(self, task_id: UUID | str, *, confirm_within_ms: float = 0) -> CancelReceipt:
        """Cancel a task by closing its connection. See `WorkerAdapter.cancel`.

        Where the engine has an abort of its own, that is sent, too, and confirms by its answer.
        Raises ValueError for a time to wait that is none.
        """
        seconds = patience(confirm_within_ms)
        try:
            key = task_id if isinstance(task_id, UUID) else UUID(task_id)
        except ValueError:  # no task's id, then
            return CancelReceipt(method="none", sent=False, elapsed_ms=0.0)
        receipt = CancelReceipt(method="none", sent=False, elapsed_ms=0.0)
        call = self._submits.get(key)
        if call is not None:
            receipt = await self._cancel_submit(call, seconds)
            if call.loop is asyncio.get_running_loop():
                return receipt
        # In another thread the submit may have been over before it could see that.
        stream = self._streams.get(key)
        if stream is not None:
            of_stream = await stream.cancel(confirm_within_ms=confirm_within_ms)
            return of_stream if of_stream.sent else receipt
        return receipt

    async def _cancel_submit(self, call: Call, seconds: float = 0.0) -> CancelReceipt:
        began = self._clock()
        call.cancel()
        has_stopped = None
        if call.loop is asyncio.get_running_loop():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SUBMIT_SECONDS):
                    await call.over.wait()
            if call.progress.processed != "no":
                has_stopped = await confirmed(call.abort, call.stopped, seconds, has_token=False)
        took = self._clock() - began
        if call.metrics is not None:
            call.metrics.stopped(has_stopped, took)
        return CancelReceipt(
            method="close" if call.abort is None else "close+abort",
            sent=True,
            confirmed=has_stopped,
            elapsed_ms=round(took * 1000, 3),
        )

    async def aclose(self) -> None:
        """Cancel what is in flight and close every connection. See `WorkerAdapter.aclose`."""
        self._closed = True
        counted = [call.metrics for call in self._submits.values()]
        counted += [stream._metrics for stream in list(self._streams.values())]
        for task in counted:
            if task is not None:
                task.give_reason("closed")
        try:
            await asyncio.gather(
                *(self._cancel_submit(call) for call in list(self._submits.values())),
                *(stream.cancel() for stream in list(self._streams.values())),
            )
            # Those of streams that were left or dropped just before.
            await self._aborts.taken()
        finally:
            await self._aborts.aclose()
            await self._data_plane.aclose()
            await self._transport.aclose()

    # A submit, step by step.

    def _checked(self, task: TaskRequest, call: Call) -> Dispatch:
        """Refuse what needs no engine to be refused."""
        if self._closed:
            raise self._error(call, "closed", "the adapter has been closed")
        if task.engine != self.engine:
            raise self._error(
                call, "invalid_request", f"the task is for {task.engine}, this is {self.engine}"
            )
        inflight = self._streams.get(task.task_id)
        if task.task_id in self._submits or (inflight is not None and not inflight.is_terminal):
            raise self._error(call, "duplicate_id", "a task with this task_id is in flight")
        if task.deadline_ms <= 0:
            raise self._error(
                call,
                "deadline",
                "the task's deadline had passed when it was submitted",
                processed="no",
            )
        profile = None
        if task.sampler_profile_version is not None:
            profile = self._profiles.get(task.sampler_profile_version)
            if profile is None:
                raise self._error(call, "invalid_request", "no sampler profile has this version")
        # Not the task's id alone: a task may be submitted again after it has ended.
        request_id = f"{task.task_id.hex}-{uuid4().hex[:8]}"
        if task.workload != "completion":
            return Dispatch(task, None, profile, request_id=request_id)
        seed = task.seed
        if seed is None:
            seed = self._rng.randrange(self.max_seed + 1)
        elif not 0 <= seed <= self.max_seed:
            raise self._error(call, "invalid_request", f"seed must be from 0 to {self.max_seed}")
        return Dispatch(task, seed, profile, request_id=request_id)

    async def _dispatched(
        self, dispatch: Dispatch, context: SubmitContext, call: Call
    ) -> TokenStream:
        try:
            try:
                dispatch = await self._informed(dispatch, call)
                if dispatch.task.workload != "completion":
                    return await self._unary_stream(dispatch, context, call)
                return await self._streamed(dispatch, context, call)
            except CancelledInFlightError:
                decoder = self._decoder(dispatch, context, call)
                events = decoder.cancel(self._clock())
                if call.metrics is not None:
                    call.metrics.cancelled("requested")
                return PulledStream(
                    dispatch.task.task_id,
                    decoder,
                    None,
                    events=events,
                    clock=self._clock,
                    narration=call.narration,
                )
        except Unsupported as refusal:
            field, why = refusal.field, refusal.why
        raise self._unsupported(dispatch, field, call, why)

    async def _informed(self, dispatch: Dispatch, call: Call) -> Dispatch:
        """Return the task for the engine as it is now. Raises WorkerError where they do not fit."""
        identity = await self._known_identity(call)
        if call.narration is not None:
            call.narration.served_by(_version(identity))
        dispatch = replace(dispatch, identity=identity, model=self._model)
        if self.metrics is not None and identity is not None:
            self.metrics.set_engine_version(
                identity.engine_version, trtllm_version=_trtllm_version(identity)
            )
        self._check_engine(dispatch, call)
        return dispatch

    async def _streamed(
        self, dispatch: Dispatch, context: SubmitContext, call: Call
    ) -> TokenStream:
        """Send a completion, again where the engine has provably not taken it up."""
        attempts = self._retries.begin()
        while True:
            try:
                return await self._stream(dispatch, context, call)
            except WorkerError as error:
                pause = attempts.pause_after(error, Repeat.HARMFUL, self._clock(), call.deadline)
                if pause is None:
                    raise
                is_another = error.status is None or error.detail == "loading"
                if is_another:
                    self._forget_identity(error)
                self._note_retry(call, error, attempts.made, pause)
            await call.wait(asyncio.sleep(pause), None)
            if is_another:
                # Who answers now may have another model.
                dispatch = await self._informed(dispatch, call)

    def _check_engine(self, dispatch: Dispatch, call: Call) -> None:
        """Refuse what this engine, as far as it tells, cannot do. Raises WorkerError."""
        task, identity = dispatch.task, dispatch.identity
        if task.workload not in self.workloads:
            raise self._unsupported(dispatch, f"workload {task.workload}", call)
        if task.workload == "completion":
            known, why = self.translates, ""
        else:
            known, why = self.translates_unary, f"not for the workload {task.workload}"
        if unknown := sorted(dispatch.extensions.used() - known):
            raise self._unsupported(dispatch, ", ".join(unknown), call, why)
        if identity is None:
            return
        if self._expect is not None and self._expect.differs_from(identity):
            # Another one may be loaded by the next time.
            self._identity = None
            raise self._error(call, "wrong_model", "the engine has another model loaded")
        if task.ctx > (identity.ctx_max or task.ctx):
            raise self._error(
                call,
                "context_overflow",
                f"ctx {task.ctx} exceeds the engine's context of {identity.ctx_max} tokens",
            )

    def _unsupported(self, dispatch: Dispatch, field: str, call: Call, why: str = "") -> Exception:
        identity = dispatch.identity
        version = "of unknown version" if identity is None else identity.engine_version
        because = f": {why}" if why else ""
        return self._error(
            call, "unsupported", f"{self.engine} {version} does not support {field}{because}"
        )

    def _decoder(self, dispatch: Dispatch, context: SubmitContext, call: Call) -> StreamDecoder:
        timeouts, identity, profile = call.timeouts, dispatch.identity, dispatch.profile
        options = dict(self._dialect_options(dispatch))
        if dispatch.extensions.token_ids:
            options["token_ids"] = "true"  # noqa: S105 - an option, not a password
        if dispatch.extensions.logprobs is not None:
            options["logprobs"] = "true"
        return StreamDecoder(
            self._dialect(dispatch),
            options=options,
            started={
                "engine": self.engine,
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
            redactor=self._redactor(call),
            first_token_timeout=timeouts.first_token,
            token_gap_timeout=timeouts.token_gap,
            idle_timeout=timeouts.idle,
            deadline=call.deadline,
            wall=(self._clock(), self._wall_clock()),
            metrics=self._counted(dispatch.task, context, call),
        )

    def _counted(self, task: TaskRequest, context: SubmitContext, call: Call) -> TaskMetrics | None:
        """Return where the task is counted: one place, however often it is sent."""
        if call.metrics is None and self.metrics is not None:
            call.metrics = self.metrics.task(task.priority, traceparent=context.traceparent)
        return call.metrics

    async def _stream(self, dispatch: Dispatch, context: SubmitContext, call: Call) -> TokenStream:
        # Before the decoder, which has to know the key that they carry.
        own = self._submit_headers(dispatch)
        headers = _overlaid(self._task_headers(dispatch, context, call), own)
        if not self.keeps_after_stream:
            headers = (*headers, (b"Connection", b"close"))
        request = _sealed(self._completion(dispatch), headers)
        self._require_sendable(request, call)
        call.stopped = partial(self._stopped, dispatch, call.correlation_id)
        submission = Submission(
            dispatch.task.task_id,
            request,
            self._decoder(dispatch, context, call),
            call,
            clock=self._clock,
            on_terminal=self._on_terminal,
            abort=self._prepared_abort(dispatch, call),
            narration=call.narration,
        )
        stream = await self._data_plane.submit(submission)
        stream._stopped = call.stopped
        return stream

    def _task_headers(self, dispatch: Dispatch, context: SubmitContext, call: Call) -> Headers:
        # Unique, unlike the correlation id: some engines take it for the request's own.
        request_id = (b"X-Request-Id", dispatch.request_id.encode())
        return (*self._headers(call, context), request_id)

    async def _unary_stream(
        self, dispatch: Dispatch, context: SubmitContext, call: Call
    ) -> TokenStream:
        task = dispatch.task
        headers = self._task_headers(dispatch, context, call)
        request = _sealed(self._unary_request(dispatch), headers)
        decoder = self._decoder(dispatch, context, call)
        decoder.dispatched(self._clock())
        # No variable holds the answer: it may quote the task.
        answer = self._parsed(
            await self._exchange(request, call, Repeat.WASTEFUL),
            call,
            lambda data: self._unary_answer(task, data),
        )
        events = decoder.complete(
            self._clock(),
            tokens_in=answer.tokens_in,
            embeddings=answer.embeddings,
            scores=answer.scores,
        )
        return PulledStream(
            task.task_id,
            decoder,
            None,
            events=events,
            clock=self._clock,
            narration=call.narration,
        )

    def _on_terminal(self, event: TokenEvent) -> None:
        """Act on the end of a stream; one that is dropped has none."""
        if isinstance(error := event.error, WorkerError):
            self._forget_identity(error)

    def _prepared_abort(self, dispatch: Dispatch, call: Call) -> Abort | None:
        request = self._abort_request(dispatch)
        if request is None:
            return None
        return self._aborts.prepared(partial(self._send_abort, request, call.correlation_id))

    async def _stopped(
        self, dispatch: Dispatch, correlation_id: str, has_token: bool
    ) -> bool | None:
        """Ask the engine until it says that it no longer works on the task; None if it cannot."""
        call = self._call(None, correlation_id)
        pause, longest = POLL_SECONDS, MAX_POLL_SECONDS
        if not has_token and self.prefill_quiet is not None:
            pause = longest = self.prefill_quiet
        try:
            while True:
                await asyncio.sleep(pause)
                stopped = await self._has_stopped(dispatch, call)
                if stopped is not False:
                    return stopped
                pause = min(2 * pause, longest)
        except WorkerError:
            return None

    async def _send_abort(self, request: Request, correlation_id: str) -> bool | None:
        """Send an abort; whether the engine took it, within `ABORT_SECONDS`."""
        # A call of its own: the task's is over.
        call = self._call(None, correlation_id)
        attempts = self._retries.begin(ABORT_ATTEMPTS)
        until = self._clock() + ABORT_SECONDS
        taken = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ABORT_SECONDS):
                while (refusal := await self._abort_refusal(request, call)) is not None:
                    now = self._clock()
                    pause = attempts.pause_after(refusal, Repeat.HARMLESS, now, until)
                    if pause is None:
                        break
                    self._note_retry(call, refusal, attempts.made, pause)
                    await asyncio.sleep(pause)
                else:
                    taken = True
        return taken if self.confirms_abort else None

    async def _abort_refusal(self, request: Request, call: Call) -> WorkerError | None:
        """Send an abort once; return what came in the way of it, if anything did."""
        call.progress = Progress()
        try:
            # The key of now, not that of the submit.
            headers = _overlaid(self._headers(call), request.headers)
            answer = await self._answer(replace(request, headers=headers), call)
        except TransportError as error:
            refusal = self._failed(error, call)
        except WorkerError as error:
            refusal = error
        else:
            if 200 <= answer.status < 300:
                return None
            refusal = self._classified(answer, call)
        return refusal if isinstance(refusal, WorkerError) else None


def _version(identity: WorkerIdentity | None) -> str | None:
    return None if identity is None else identity.engine_version


def _overlaid(headers: Headers, own: Headers) -> Headers:
    """Return ``headers`` with those of ``own`` added, or in their place."""
    names = {name.lower() for name, _ in own}
    return (*(header for header in headers if header[0].lower() not in names), *own)


def _sealed(built: tuple[str, Mapping[str, Any]], headers: Headers) -> Request:
    """Return the request of a task, so that whatever prints variables shows nothing of it."""
    path, payload = built
    text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
    return Request("POST", path, headers, SecretBytes(text, "utf-8"))


def _by_version(profiles: Iterable[SamplerProfile]) -> dict[str, SamplerProfile]:
    by_version: dict[str, SamplerProfile] = {}
    for profile in profiles:
        if profile.version in by_version:
            raise ValueError(f"two sampler profiles have the version {profile.version!r}")
        by_version[profile.version] = profile
    return by_version


def _trtllm_version(identity: WorkerIdentity) -> str | None:
    version = identity.details.get("trtllm_version")
    return version if isinstance(version, str) else None
