"""OpenTelemetry: a client span and the client metrics of each task, by the GenAI conventions.

    from worker_adapters.observe.otel import OpenTelemetry

    telemetry = OpenTelemetry()
    adapter = LlamaCppAdapter(url, telemetry=telemetry)

Needs the extra ``worker-adapters[otel]``, which is the API alone: without an SDK that the program
configures it does nothing. The names are those of the `semantic conventions for GenAI
<https://github.com/open-telemetry/semantic-conventions-genai>`_ (status: development). Prompts and
generated text are recorded nowhere. What an SDK raises reaches no task: it is counted.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

try:
    from opentelemetry import trace
    from opentelemetry.metrics import Histogram, MeterProvider, get_meter
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    from opentelemetry.util.types import AttributeValue
except ImportError as missing:
    raise ImportError(
        "OpenTelemetry needs its API: pip install 'worker-adapters[otel]'"
    ) from missing

from worker_adapters._core import Redactor, TokenEvent, __version__
from worker_adapters.contract import SamplerProfile, SubmitContext, TaskRequest
from worker_adapters.errors import WorkerError

__all__ = ["OpenTelemetry", "TaskSpan"]

SCOPE: Final = "worker_adapters"

DURATION_BUCKETS: Final = tuple(0.01 * 2**n for n in range(14))
"""Seconds, as the conventions want them: 0.01, 0.02, … 81.92."""

PACE_BUCKETS: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
"""Seconds between two tokens."""

TOKEN_BUCKETS: Final = tuple(4**n for n in range(14))
"""Tokens: 1, 4, 16, … 67108864."""

_OPERATIONS: Final = {
    "completion": "text_completion",
    "embedding": "embeddings",
    "rerank": "rerank",
}

_SAMPLING: Final = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
}

_PROPAGATOR: Final = TraceContextTextMapPropagator()
_REDACTOR: Final = Redactor()

Attributes = dict[str, AttributeValue]


class OpenTelemetry:
    """Makes spans and metrics of tasks. One serves any number of adapters; thread-safe.

    The global providers are used where none is given.
    """

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self.failures = 0
        """How many calls of the SDK have raised; what they were to record is lost."""
        # A task may be given up in a collection of garbage, in whatever thread it comes.
        self._lock = threading.RLock()
        self._tracer = trace.get_tracer(SCOPE, __version__, tracer_provider)
        meter = get_meter(SCOPE, __version__, meter_provider)

        def histogram(name: str, unit: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return meter.create_histogram(
                name, unit, what, explicit_bucket_boundaries_advisory=buckets
            )

        self._duration = histogram(
            "gen_ai.client.operation.duration", "s", "GenAI operation duration.", DURATION_BUCKETS
        )
        self._first_chunk = histogram(
            "gen_ai.client.operation.time_to_first_chunk",
            "s",
            "Time to receive the first chunk.",
            DURATION_BUCKETS,
        )
        # Not `gen_ai.client.operation.time_per_output_chunk`: that is "recorded for each chunk
        # received after the first one", and nothing here runs per token.
        self._pace = histogram(
            "worker_adapters.time_per_output_token",
            "s",
            "Mean time per output token after the first, once per operation.",
            PACE_BUCKETS,
        )
        self._tokens = histogram(
            "gen_ai.client.token.usage",
            "{token}",
            "Number of input and output tokens used.",
            TOKEN_BUCKETS,
        )

    def task(
        self,
        task: TaskRequest,
        context: SubmitContext,
        *,
        engine: str,
        pool_id: str,
        replica_id: str,
        base_url: str,
        profile: SamplerProfile | None,
        clock: Callable[[], float],
    ) -> "TaskSpan":
        """Begin the span of ``task``, below that of ``context`` or else the current one."""
        common = _common(engine, task, base_url)
        attributes: Attributes = {
            "gen_ai.conversation.id": str(task.session_id),
            "worker_adapters.pool_id": pool_id,
            "worker_adapters.replica_id": replica_id,
            **_requested(task, profile),
        }
        span: Span = trace.INVALID_SPAN
        with self._counted():
            parent = None
            if context.traceparent is not None:
                parent = _PROPAGATOR.extract(_carrier(context))
            span = self._tracer.start_span(
                " ".join(
                    str(common[f"gen_ai.{one}"]) for one in ("operation.name", "request.model")
                ),
                context=parent,
                kind=SpanKind.CLIENT,
                attributes={**common, **attributes},
            )
        return TaskSpan(self, span, common, clock, is_streaming=task.workload == "completion")

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Pass over what one call of the SDK raises, and count it."""
        try:
            yield
        except Exception:  # noqa: BLE001 - no telemetry may harm a task
            with self._lock:
                self.failures += 1


class TaskSpan:
    """The span of one task, which ends once, however the task does."""

    __slots__ = (
        "_began",
        "_clock",
        "_common",
        "_first",
        "_is_over",
        "_is_streaming",
        "_span",
        "_telemetry",
    )

    def __init__(
        self,
        telemetry: OpenTelemetry,
        span: Span,
        common: Attributes,
        clock: Callable[[], float],
        *,
        is_streaming: bool,
    ) -> None:
        self._telemetry = telemetry
        self._span = span
        self._common = common
        self._clock = clock
        self._began = clock()
        self._is_streaming = is_streaming
        self._first: float | None = None
        self._is_over = False

    def within(self, context: SubmitContext) -> SubmitContext:
        """Return ``context`` with this span in the place of the one it came with."""
        carrier: dict[str, str] = {}
        with self._telemetry._counted():
            _PROPAGATOR.inject(carrier, trace.set_span_in_context(self._span))
        return context.model_copy(
            update={
                "traceparent": carrier.get("traceparent", context.traceparent),
                "tracestate": carrier.get("tracestate", context.tracestate),
            }
        )

    @property
    def has_text(self) -> bool:
        """No: texts are recorded nowhere."""
        return False

    def heard(self, events: Iterable[TokenEvent]) -> None:
        """Take no note."""

    def served_by(self, engine_version: str | None) -> None:
        """Note which build of the engine it is."""
        if engine_version is not None:
            self._set({"worker_adapters.engine_version": engine_version})

    def submitted(self, request_id: str | None = None) -> None:
        """Take no note: the span has begun."""

    def retried(self, error: WorkerError, attempt: int, pause: float) -> None:
        """Note that the task is sent once more after that pause, in seconds."""
        attributes: Attributes = {
            "error.type": error.detail,
            "worker_adapters.retry.attempt": attempt,
            "worker_adapters.retry.pause": pause,
        }
        with self._telemetry._counted():
            self._span.add_event("retry", attributes)

    def started(self) -> None:
        """Note that the first chunk has come."""
        if self._first is None and self._is_streaming:
            self._first = self._clock() - self._began
            self._set({"gen_ai.response.time_to_first_chunk": self._first})

    def ended(self, terminal: TokenEvent) -> None:
        """End with the stream's terminal event."""
        if isinstance(error := terminal.error, WorkerError):
            self.failed(error)
            return
        if self._is_over:
            return
        attributes: Attributes = {}
        if terminal.finish_reason is not None:
            attributes["gen_ai.response.finish_reasons"] = [terminal.finish_reason]
        if terminal.tokens_in is not None:
            attributes["gen_ai.usage.input_tokens"] = terminal.tokens_in
        if terminal.tokens_out is not None and self._is_streaming:
            attributes["gen_ai.usage.output_tokens"] = terminal.tokens_out
        if terminal.cached_tokens_in is not None:
            attributes["gen_ai.usage.cache_read.input_tokens"] = terminal.cached_tokens_in
        self.served_by(terminal.engine_version)
        self._set(attributes)
        self._count_tokens(terminal)
        self._finish(None)

    def failed(self, error: WorkerError) -> None:
        """End with an error of the contract; its stable word is ``error.type``."""
        if self._is_over:
            return
        self._set(
            {
                "worker_adapters.error.code": error.code,
                "worker_adapters.error.phase": error.phase,
                "gen_ai.usage.output_tokens": error.tokens_emitted,
            }
        )
        self._finish(error.detail, error.message)

    def broke(self) -> None:
        """End with an exception that is none of the contract's."""
        self._finish("internal")

    def dropped(self, tokens: int = 0) -> None:
        """End because nobody waits for the task any more."""
        if self._is_over:
            return
        self._set({"gen_ai.response.finish_reasons": ["cancelled"]})
        if self._is_streaming:
            self._set({"gen_ai.usage.output_tokens": tokens})
        self._finish(None)

    def _count_tokens(self, terminal: TokenEvent) -> None:
        counts = {"input": terminal.tokens_in}
        if self._is_streaming:
            counts["output"] = terminal.tokens_out
        for kind, count in counts.items():
            if count is not None:
                attributes = {**self._common, "gen_ai.token.type": kind}
                self._record(self._telemetry._tokens, count, attributes)
        tokens, took = terminal.tokens_out or 0, terminal.decode_ms
        if self._is_streaming and tokens > 1 and took is not None:
            seconds = took / 1000 / (tokens - 1)
            self._record(self._telemetry._pace, seconds, self._common)

    def _finish(self, error_type: str | None, message: str | None = None) -> None:
        if self._is_over:
            return
        self._is_over = True
        attributes = self._common
        if error_type is not None:
            attributes = {**attributes, "error.type": error_type}
            self._set({"error.type": error_type})
            with self._telemetry._counted():
                self._span.set_status(Status(StatusCode.ERROR, message))
        if self._first is not None:
            self._record(self._telemetry._first_chunk, self._first, attributes)
        self._record(self._telemetry._duration, self._clock() - self._began, attributes)
        with self._telemetry._counted():
            self._span.end()

    def _set(self, attributes: Attributes) -> None:
        with self._telemetry._counted():
            self._span.set_attributes(attributes)

    def _record(self, histogram: Histogram, value: float, attributes: Attributes) -> None:
        with self._telemetry._counted():
            histogram.record(value, attributes)


def _common(engine: str, task: TaskRequest, base_url: str) -> Attributes:
    """Return what metrics and span both have."""
    operation = _OPERATIONS[task.workload]
    if task.extensions is not None and task.extensions.messages is not None:
        operation = "chat"
    address = urlsplit(base_url)
    common: Attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": engine,
        # A reference may be a URL, and hold a key.
        "gen_ai.request.model": _REDACTOR.redact(task.model_ref),
    }
    if address.hostname is not None:
        common["server.address"] = address.hostname
        common["server.port"] = address.port or (443 if address.scheme == "https" else 80)
    return common


def _requested(task: TaskRequest, profile: SamplerProfile | None) -> Attributes:
    """Return what was asked for of a completion."""
    if task.workload != "completion":
        return {}
    attributes: Attributes = {
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": task.max_tokens,
    }
    if task.seed is not None:
        attributes["gen_ai.request.seed"] = task.seed
    parameters: dict[str, object] = {} if profile is None else profile.parameters()
    if task.extensions is not None and task.extensions.sampling is not None:
        parameters = {**parameters, **task.extensions.sampling.parameters()}
    for name, attribute in _SAMPLING.items():
        if isinstance(value := parameters.get(name), int | float):
            attributes[attribute] = value
    return attributes


def _carrier(context: SubmitContext) -> Mapping[str, str]:
    pairs = {"traceparent": context.traceparent, "tracestate": context.tracestate}
    return {name: value for name, value in pairs.items() if value is not None}
