"""K: what befalls what is around the streams."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import statistics
import threading
import time
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import pytest

from tests.faults.outcomes import ANSWER, adapter, ask, finished
from tests.transports import both_transports
from tests.unit.tasks import task
from tests.unit.wire import engine, playing
from worker_adapters import JsonHandler, Logs, Metrics, StreamDecoder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker_adapters.testing.wire import Connection, Received

STREAMS: Final = 40
WITHIN: Final = 20.0


class Full(io.StringIO):
    """A file on a disk that is full."""

    def write(self, _text: str, /) -> int:
        raise OSError(28, "No space left on device")


class Raising(logging.Handler):
    """A handler with a fault in it."""

    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError(record.name)


class Blocking(logging.Handler):
    """A handler whose sink takes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.let_go = threading.Event()
        self.handled = 0

    def emit(self, _record: logging.LogRecord) -> None:
        self.entered.set()
        self.let_go.wait(WITHIN)
        self.handled += 1


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    own = logging.getLogger(f"worker_adapters.test.{uuid4().hex}")
    own.setLevel(logging.DEBUG)
    own.propagate = False
    yield own
    own.handlers.clear()


async def stream_all(logs: Logs) -> None:
    """Have tasks done, many at a time; each comes to its whole answer."""

    async def answering(connection: Connection, _request: Received) -> None:
        await connection.send(ANSWER)

    async with playing(engine(answering)) as server, adapter(server.url, logs=logs) as made:
        for outcome in await asyncio.gather(*(ask(made, task()) for _ in range(STREAMS))):
            finished(outcome)


@both_transports
async def test_k3_a_log_sink_that_blocks(logger: logging.Logger) -> None:
    sink = Blocking()
    logger.addHandler(sink)
    logs = Logs(logger, capacity=8)
    await stream_all(logs)
    assert sink.entered.is_set()
    assert not sink.let_go.is_set()  # nothing waited for it
    # A submit, a start and an end each: one is with the sink, eight at most wait for it.
    assert logs.dropped >= 3 * STREAMS - 9
    sink.let_go.set()
    assert logs.flush(WITHIN)
    assert sink.handled + logs.dropped == 3 * STREAMS
    logs.close()


@both_transports
@pytest.mark.parametrize("sink", [JsonHandler(Full()), Raising()], ids=["disk-full", "raises"])
async def test_k3_a_log_sink_that_fails(logger: logging.Logger, sink: logging.Handler) -> None:
    logger.addHandler(sink)
    logs = Logs(logger)
    await stream_all(logs)
    assert logs.flush(WITHIN)
    assert logs.dropped == 3 * STREAMS
    # Once it can, it gets lines again.
    written = io.StringIO()
    logger.handlers[:] = [JsonHandler(written)]
    await stream_all(logs)
    assert logs.flush(WITHIN)
    assert len([json.loads(line) for line in written.getvalue().splitlines()]) == 3 * STREAMS
    assert logs.dropped == 3 * STREAMS
    logs.close()


def test_k4_metrics_are_scraped_while_ten_thousand_streams_run() -> None:
    metrics = Metrics()
    replicas = [metrics.replica("llamacpp", "chat", str(number)) for number in range(100)]
    decoders = []
    for number in range(10_000):
        counted = replicas[number % len(replicas)].task("interactive")
        decoder = StreamDecoder("llamacpp", metrics=counted)
        decoder.dispatched(0.0)
        decoder.head(200, ((b"content-type", b"text/event-stream"),), 0.0)
        decoders.append(decoder)
    over = threading.Event()
    took: list[float] = []
    seen: list[float] = []

    def scrape() -> None:
        while not over.is_set():
            began = time.monotonic()
            text = metrics.render()
            took.append(time.monotonic() - began)
            seen.append(total(text, "tokens_out_total"))

    scraping = threading.Thread(target=scrape)
    scraping.start()
    try:
        for count in range(1, 5):
            said = (
                f'data: {{"content":"a","tokens":[1],"stop":false,"tokens_predicted":{count}}}\n\n'
            )
            for decoder in decoders:
                decoder.feed(said.encode(), float(count))
    finally:
        over.set()
        scraping.join()
    assert total(metrics.render(), "tokens_out_total") == 4 * len(decoders)
    assert total(metrics.render(), "tasks_in_flight") == len(decoders)
    assert seen == sorted(seen)
    # The aim is 50 ms, on a machine with nothing else to do.
    assert statistics.median(took) < 0.5


def total(text: str, name: str) -> float:
    """Return the sum of a metric's samples in an exposition."""
    lines = [line for line in text.splitlines() if line.startswith(f"{name}{{")]
    assert lines
    return sum(float(line.rpartition("} ")[2].split()[0]) for line in lines)
