"""Spans and metrics of OpenTelemetry, by the semantic conventions for GenAI."""

from __future__ import annotations

import asyncio
import gc
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from tests.unit.observe.lines import heard
from tests.unit.tasks import PROMPT, adapter, task
from tests.unit.wire import eventually
from worker_adapters import RetryPolicy, SubmitContext, WorkerError
from worker_adapters.observe.otel import (
    DURATION_BUCKETS,
    PACE_BUCKETS,
    TOKEN_BUCKETS,
    OpenTelemetry,
)
from worker_adapters.testing.engines import scripted_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from opentelemetry.sdk.trace import ReadableSpan

    from worker_adapters.testing.engines import ScriptedEngine

pytestmark = pytest.mark.usefixtures("transport")

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@dataclass
class Collected:
    """An SDK that keeps what it is given."""

    spans: InMemorySpanExporter
    reader: InMemoryMetricReader
    telemetry: OpenTelemetry

    def span(self) -> ReadableSpan:
        """Return the one span that has ended."""
        (span,) = self.spans.get_finished_spans()
        return span

    def metrics(self) -> dict[str, list[Any]]:
        """Return every data point by the name of its metric."""
        found: dict[str, list[Any]] = {}
        data: Any = self.reader.get_metrics_data()
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    found[metric.name] = list(metric.data.data_points)
        return found


@pytest.fixture
def collected() -> Collected:
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracing, metering = TracerProvider(), MeterProvider([reader])
    tracing.add_span_processor(SimpleSpanProcessor(spans))
    made = OpenTelemetry(tracer_provider=tracing, meter_provider=metering)
    return Collected(spans, reader, made)


@pytest.fixture
async def server() -> AsyncIterator[ScriptedEngine]:
    async with scripted_engine("llamacpp", pieces=("said",)) as engine:
        yield engine


async def test_a_task_that_ends(server: ScriptedEngine, collected: Collected) -> None:
    request = task(max_tokens=3, seed=7)
    made = adapter(server.url, pool_id="chat", replica_id="a", telemetry=collected.telemetry)
    async with made, await made.submit(request) as stream:
        answer = await stream.collect()
    span = collected.span()
    assert (span.name, span.kind) == (f"text_completion {request.model_ref}", SpanKind.CLIENT)
    assert span.status.status_code is StatusCode.UNSET
    attributes: dict[str, Any] = dict(span.attributes or {})
    host, _, port = server.url.removeprefix("http://").partition(":")
    assert attributes.pop("gen_ai.response.time_to_first_chunk") >= 0
    assert attributes.pop("worker_adapters.engine_version")
    assert attributes == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "llamacpp",
        "gen_ai.request.model": request.model_ref,
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 3,
        "gen_ai.request.seed": 7,
        "gen_ai.conversation.id": str(request.session_id),
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": answer.tokens_in,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "server.address": host,
        "server.port": int(port),
        "worker_adapters.pool_id": "chat",
        "worker_adapters.replica_id": "a",
    }
    points = collected.metrics()
    (duration,) = points["gen_ai.client.operation.duration"]
    assert duration.count == 1
    assert duration.explicit_bounds == DURATION_BUCKETS
    assert duration.attributes["gen_ai.operation.name"] == "text_completion"
    assert "error.type" not in duration.attributes
    (first,) = points["gen_ai.client.operation.time_to_first_chunk"]
    assert (first.count, first.explicit_bounds) == (1, DURATION_BUCKETS)
    # By the conventions that has a point for every chunk; ours has one for every task.
    assert "gen_ai.client.operation.time_per_output_chunk" not in points
    (pace,) = points["worker_adapters.time_per_output_token"]
    assert (pace.count, pace.explicit_bounds) == (1, PACE_BUCKETS)
    usage = {
        point.attributes["gen_ai.token.type"]: (point.sum, point.explicit_bounds)
        for point in points["gen_ai.client.token.usage"]
    }
    assert usage == {"input": (answer.tokens_in, TOKEN_BUCKETS), "output": (3, TOKEN_BUCKETS)}


async def test_the_trace_goes_on_to_the_engine(
    server: ScriptedEngine, collected: Collected
) -> None:
    context = SubmitContext(traceparent=PARENT, tracestate="vendor=1")
    async with adapter(server.url, telemetry=collected.telemetry) as made:
        await (await made.submit(task(), context=context)).collect()
    span = collected.span()
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}" == TRACE
    (request,) = server.received("/completion")
    version, trace, sent, _ = request.headers["traceparent"].split("-")
    assert (version, trace) == ("00", TRACE)
    assert span.context is not None
    assert sent == f"{span.context.span_id:016x}"
    assert request.headers["tracestate"] == "vendor=1"


async def test_a_submit_that_fails(collected: Collected) -> None:
    nobody = socket.create_server(("127.0.0.1", 0))
    port = nobody.getsockname()[1]
    nobody.close()
    retries = RetryPolicy(attempts=1)
    made = adapter(f"http://127.0.0.1:{port}", telemetry=collected.telemetry, retries=retries)
    async with made:
        with pytest.raises(WorkerError) as failure:
            await made.submit(task())
    span = collected.span()
    attributes = dict(span.attributes or {})
    assert span.status.status_code is StatusCode.ERROR
    assert attributes["error.type"] == failure.value.detail == "connect"
    assert attributes["worker_adapters.error.phase"] == "connect"
    (duration,) = collected.metrics()["gen_ai.client.operation.duration"]
    assert duration.attributes["error.type"] == "connect"


async def test_a_stream_that_is_cancelled(server: ScriptedEngine, collected: Collected) -> None:
    server.behave(hang="stream")
    async with adapter(server.url, telemetry=collected.telemetry) as made:
        stream = await made.submit(task())
        await anext(stream)
        await stream.cancel()
    attributes = dict(collected.span().attributes or {})
    assert attributes["gen_ai.response.finish_reasons"] == ("cancelled",)
    assert "error.type" not in attributes


async def test_a_stream_that_is_dropped(server: ScriptedEngine, collected: Collected) -> None:
    server.behave(hang="stream")
    async with adapter(server.url, telemetry=collected.telemetry) as made:
        stream = await made.submit(task())
        await anext(stream)
        del stream
        gc.collect()
        await eventually(lambda: bool(collected.spans.get_finished_spans()), "the span ends")
    attributes = dict(collected.span().attributes or {})
    assert attributes["gen_ai.response.finish_reasons"] == ("cancelled",)


async def test_a_submit_that_is_cancelled(server: ScriptedEngine, collected: Collected) -> None:
    server.behave(hang="head")
    async with adapter(server.url, telemetry=collected.telemetry) as made:
        submitting = asyncio.create_task(made.submit(task()))
        await eventually(lambda: bool(server.received("/completion")), "the engine has it")
        submitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submitting
    attributes = dict(collected.span().attributes or {})
    assert attributes["gen_ai.response.finish_reasons"] == ("cancelled",)


async def test_no_text_and_no_key(server: ScriptedEngine, collected: Collected) -> None:
    request = task(
        model_ref="https://models.example/m.gguf?token=hf_abcdefghijklmnopqrstuvwxyzABCDEFGH"
    )
    made = adapter(server.url, telemetry=collected.telemetry, api_key="sk-canary-key-0123456789")
    async with made:
        await (await made.submit(request)).collect()
    shown = collected.span().to_json() + repr(collected.metrics())
    for secret in (PROMPT, "said", "sk-canary-key-0123456789", "hf_abcdefghijklmnop"):
        assert secret not in shown


async def test_beside_the_log(server: ScriptedEngine, collected: Collected) -> None:
    with heard() as ears:
        made = adapter(server.url, telemetry=collected.telemetry, logs=ears.logs)
        async with made:
            await (await made.submit(task())).collect()
        assert ears.actions() == ["submit", "start", "end"]
    assert collected.span().end_time is not None


class Broken:
    """An SDK that raises wherever it is called, or as soon as there is a span."""

    def __init__(self, *, has_span: bool) -> None:
        self.calls = 0
        self._has_span = has_span

    def get_tracer(self, *_: object, **__: object) -> Broken:
        return self

    get_meter = get_tracer

    def create_histogram(self, *_: object, **__: object) -> Broken:
        return self

    def start_span(self, *_: object, **__: object) -> Broken:
        return self if self._has_span else self._fail()

    def _fail(self, *_: object, **__: object) -> Any:
        self.calls += 1
        raise RuntimeError("the exporter's disk is full")

    record = set_attribute = set_attributes = add_event = set_status = end = _fail
    get_span_context = _fail


@pytest.mark.parametrize("has_span", [True, False])
async def test_an_sdk_that_raises_harms_no_task(server: ScriptedEngine, has_span: bool) -> None:
    sdk: Any = Broken(has_span=has_span)
    telemetry = OpenTelemetry(tracer_provider=sdk, meter_provider=sdk)
    context = SubmitContext(traceparent=PARENT)
    once = RetryPolicy(attempts=1)
    async with adapter(server.url, telemetry=telemetry, retries=once) as made:
        answer = await (await made.submit(task(max_tokens=3), context=context)).collect()
        assert answer.tokens_out == 3
        assert server.received("/completion")[0].headers["traceparent"] == PARENT
        server.behave(hang="stream")
        stream = await made.submit(task())
        await anext(stream)
        assert (await made.cancel(stream.task_id)).sent
        server.behave(error="status")
        with pytest.raises(WorkerError):
            await made.submit(task())
    assert telemetry.failures == sdk.calls > 0


async def test_a_span_processor_that_raises_is_counted(server: ScriptedEngine) -> None:
    class Raising(SpanProcessor):
        def on_start(self, *_: object, **__: object) -> None:
            raise OSError("no room")

        def on_end(self, *_: object, **__: object) -> None:
            raise OSError("no room")

    tracing = TracerProvider()
    tracing.add_span_processor(Raising())
    telemetry = OpenTelemetry(tracer_provider=tracing, meter_provider=MeterProvider())
    async with adapter(server.url, telemetry=telemetry) as made:
        answer = await (await made.submit(task(max_tokens=3))).collect()
    assert answer.tokens_out == 3
    assert telemetry.failures == 1


def test_without_the_extra() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "import worker_adapters, worker_adapters.engines\n"
        "try:\n    import worker_adapters.observe.otel\n"
        "except ImportError as error:\n    print(error)\n"
    )
    said = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == (
        "OpenTelemetry needs its API: pip install 'worker-adapters[otel]'"
    )
