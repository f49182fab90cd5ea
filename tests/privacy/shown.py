"""What somebody who watches would see, and the canaries that must not be in it."""

from __future__ import annotations

import asyncio
import json
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from worker_adapters import Metrics, WorkerError
from worker_adapters.observe.formatter import JsonFormatter
from worker_adapters.observe.logs import Logs
from worker_adapters.observe.otel import OpenTelemetry

if TYPE_CHECKING:
    import pytest

KEY: Final = "canary-key-0123456789"
PROMPT: Final = "Zephyrina told nobody, naïvely, on page one"
SAID: Final = "Quixotania"
"""What the engine says, one token of it at a time."""
CANARIES: Final = (KEY, "Zephyrina", "told nobody", "page one", SAID)

OWN: Final = (str(Path(__file__).parent), "/worker_adapters/testing/")
"""Whose frames hold canaries because they wrote them."""


class Shown:
    """Everything that somebody who watches would see."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        self._parts: list[str] = []
        self.errors = 0
        self.logs = Logs()
        """Where the adapters' own lines go."""
        self.metrics = Metrics()
        self._spans, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracing = TracerProvider(shutdown_on_exit=False)
        self.tracing.add_span_processor(SimpleSpanProcessor(self._spans))
        self.metering = MeterProvider([self._reader], shutdown_on_exit=False)
        self.telemetry = OpenTelemetry(tracer_provider=self.tracing, meter_provider=self.metering)

    def add(self, *things: object) -> None:
        for thing in things:
            self._parts += [repr(thing), str(thing), f"{thing}"]

    def add_error(self, error: BaseException) -> None:
        self.errors += 1
        looked = traceback.TracebackException.from_exception(error, capture_locals=True)
        _without_the_test_s_own(looked)
        self._parts += ["".join(looked.format()), repr(error), str(error), repr(error.args)]
        if isinstance(error, WorkerError):
            self._parts.append(json.dumps(error.fields(), ensure_ascii=False))

    def add_tasks(self) -> None:
        """What a debugger lists while something runs."""
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                self._parts.append(repr(task))

    def actions(self) -> set[str]:
        """What the adapters' lines so far are of."""
        assert self.logs.flush()
        return {getattr(row, "action", "") for row in self._caplog.records}

    def spans(self) -> list[str]:
        """Each span that has ended, with its attributes, events and status."""
        ended = self._spans.get_finished_spans()
        return [json.dumps(json.loads(span.to_json()), ensure_ascii=False) for span in ended]

    def measured(self) -> list[str]:
        """What is scraped, in both formats, and what OpenTelemetry exports."""
        data = self._reader.get_metrics_data()
        return [
            self.metrics.render(),
            self.metrics.render(openmetrics=False),
            repr(self.metrics.snapshot()),
            "" if data is None else data.to_json(),
        ]

    def close(self) -> None:
        self.logs.close()
        self.tracing.shutdown()
        self.metering.shutdown()

    def check(self) -> None:
        assert self.logs.flush()
        assert not self.logs.dropped
        # Formatted, with the text of exceptions and the values of all attributes.
        records = [
            f"{self._caplog.handler.format(row)} {row.__dict__} {JsonFormatter().format(row)}"
            for row in self._caplog.records
        ]
        for part in (*self._parts, *records, *self.spans(), *self.measured()):
            for canary in CANARIES:
                assert canary not in part, f"{canary} shows: {part[:2000]}"


def _without_the_test_s_own(looked: traceback.TracebackException | None) -> None:
    """Forget the variables of frames that hold the canaries because a test here wrote them."""
    while looked is not None:
        for frame in looked.stack:
            if any(folder in frame.filename for folder in OWN):
                frame.locals = None
        for below in (*(looked.exceptions or ()), looked.__cause__):
            _without_the_test_s_own(below)
        looked = looked.__context__
