"""What is counted of a task, over both transports, and how it is read."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tests.transports import both_transports
from tests.unit.metrics import POOL, REPLICA, value, values
from tests.unit.tasks import adapter, task
from tests.unit.test_stream import saying
from tests.unit.wire import LAST_CHUNK, answer, engine, eventually, final, frame, playing
from worker_adapters import Metrics, RetryPolicy, SubmitContext, WorkerError

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from prometheus_client.samples import Sample

    from tests.unit.wire import Connection, Received

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
ALL = {**POOL, "priority": "all"}


@both_transports
async def test_a_task_is_counted() -> None:
    metrics = Metrics()
    seen = asyncio.Event()

    async def rest(connection: Connection) -> None:
        await seen.wait()
        await connection.send(frame("b", 2), final(2), LAST_CHUNK)

    async with (
        playing(saying(frame("a", 1), then=rest)) as server,
        adapter(server.url, metrics=metrics) as worker,
    ):
        assert worker.metrics is not None
        assert worker.metrics.engine_version == "unknown"
        context = SubmitContext(traceparent=f"00-{TRACE}-00f067aa0ba902b7-01")
        stream = await worker.submit(task(), context=context)
        assert value(metrics, "tasks_in_flight", REPLICA) == 1
        seen.set()
        answered = await stream.collect()
    assert value(metrics, "tasks_started_total", {**REPLICA, "priority": "interactive"}) == 1
    assert value(metrics, "tokens_out_total", REPLICA) == answered.tokens_out == 2
    assert value(metrics, "tokens_in_total", REPLICA) == answered.tokens_in == 8
    assert value(metrics, "latency_first_token_ms_count", POOL) == 1
    assert value(metrics, "latency_decode_ms_count", POOL) == 1
    assert value(metrics, "tasks_in_flight", REPLICA) == 0
    assert (value(metrics, "decode_bytes_total", REPLICA) or 0) > 100
    assert values(metrics, "tasks_finished_total", "outcome") == {"completed": 1}
    assert values(metrics, "task_errors_total", "kind") == {}
    assert f'# {{trace_id="{TRACE}"}}' in metrics.render()


@both_transports
async def test_an_error_of_the_stream_is_counted_by_kind_and_phase() -> None:
    metrics = Metrics()

    async def cut(connection: Connection) -> None:
        connection.reset()

    async with (
        playing(saying(frame("a", 1), then=cut)) as server,
        adapter(server.url, metrics=metrics) as worker,
    ):
        stream = await worker.submit(task())
        with pytest.raises(WorkerError) as caught:
            await stream.collect()
    error = caught.value
    labels = {**REPLICA, "kind": error.kind, "phase": error.phase}
    assert value(metrics, "task_errors_total", labels) == 1
    assert values(metrics, "tasks_finished_total", "outcome") == {"failed": 1}
    assert value(metrics, "tokens_out_total", REPLICA) == 1
    assert value(metrics, "latency_decode_ms_count", POOL) == 0


@both_transports
async def test_what_submit_raises_is_rejected_and_its_retries_are_counted() -> None:
    metrics = Metrics()

    async def busy(connection: Connection, _: Received) -> None:
        await connection.send(answer('{"error":{"code":503,"message":"busy"}}', "503 Busy"))

    retries = RetryPolicy(attempts=3, base=1e-3, cap=1e-3)
    async with (
        playing(engine(busy)) as server,
        adapter(server.url, metrics=metrics, retries=retries) as worker,
    ):
        with pytest.raises(WorkerError) as caught:
            await worker.submit(task())
        with pytest.raises(WorkerError):
            await worker.submit(task(engine="vllm"))
    code = caught.value.code
    assert values(metrics, "tasks_rejected_total", "reason") == {code: 1, "INVALID_PARAMS": 1}
    assert values(metrics, "tasks_finished_total", "outcome") == {"rejected": 2}
    assert values(metrics, "task_errors_total", "phase") == {"head": 1, "validate": 1}
    assert value(metrics, "tasks_started_total", {**REPLICA, "priority": "interactive"}) == 1
    sent = len(server.requests("/completion"))
    assert values(metrics, "task_retries_total", "reason") == ({code: sent - 1} if sent > 1 else {})


@both_transports
@pytest.mark.parametrize("how", ["requested", "left", "closed", "dropped", "reader"])
async def test_a_cancel_is_counted_with_its_reason(how: str) -> None:
    metrics = Metrics()
    async with (
        playing(saying(frame("a", 1))) as server,
        adapter(server.url, metrics=metrics) as worker,
    ):
        stream = await worker.submit(task())
        await anext(aiter(stream))
        match how:
            case "requested":
                await worker.cancel(stream.task_id)
                await worker.cancel(stream.task_id)
            case "left":
                await stream.aclose()
            case "closed":
                await worker.aclose()
            case "dropped":
                del stream
            case _:
                reading = asyncio.ensure_future(stream.collect())
                await eventually(lambda: stream._reading, "a reader")
                reading.cancel()
                await asyncio.wait((reading,))
                del reading
    reason = "left" if how == "reader" else how
    assert values(metrics, "tasks_canceled_total", "reason") == {reason: 1}
    assert values(metrics, "tasks_finished_total", "outcome") == {"cancelled": 1}
    cancels = values(metrics, "task_cancels_total", "confirmed")
    assert cancels == ({"unknown": 1} if how in {"requested", "closed"} else {})
    assert value(metrics, "tasks_in_flight", REPLICA) == 0


@both_transports
@pytest.mark.parametrize("how", ["requested", "left"])
async def test_a_submit_given_up_before_the_answer_is_a_cancel(how: str) -> None:
    metrics = Metrics()

    async def nothing(connection: Connection, _: Received) -> None:
        await connection.until_closed()

    async with (
        playing(engine(nothing)) as server,
        adapter(server.url, metrics=metrics) as worker,
    ):
        wanted = task()
        submitting = asyncio.ensure_future(worker.submit(wanted))
        await server.asked("/completion")
        if how == "requested":
            await worker.cancel(wanted.task_id)
            assert [event.kind async for event in await submitting] == ["end"]
        else:
            submitting.cancel()
            await asyncio.wait((submitting,))
    assert values(metrics, "tasks_canceled_total", "reason") == {how: 1}
    assert values(metrics, "tasks_finished_total", "outcome") == {"cancelled": 1}
    assert value(metrics, "tasks_in_flight", REPLICA) == 0


async def test_a_new_build_of_the_engine_takes_the_place_of_the_old_one() -> None:
    metrics = Metrics()
    replica = metrics.replica("llamacpp", "default", "0")
    replica.set_breaker("open")
    replica.set_engine_version("b1-0c1e570")
    replica.task("interactive").started()
    replica.set_engine_version("b2")
    new = {**REPLICA, "engine_version": "b2"}
    assert value(metrics, "breaker_state", new) == 1
    assert value(metrics, "breaker_state", REPLICA) is None
    assert "b1-0c1e570" not in metrics.render()


def filled(*, seconds: bool = False) -> Metrics:
    """Return metrics in which there is something of everything."""
    metrics = Metrics(seconds=seconds)
    replica = metrics.replica("llamacpp", 'p"\\\n', "0")
    replica.set_engine_version("b1")
    counted = replica.task("batch", traceparent=f"00-{TRACE}-00f067aa0ba902b7-01")
    counted.started()
    counted.stopped(True, 0.25)
    counted.cancelled("requested")
    replica.task("interactive").refused("Adapter", "validate", "INVALID_PARAMS")
    replica.retried("POOL_UNAVAILABLE")
    replica.rejected("POOL_UNAVAILABLE")
    replica.set_breaker("half_open")
    replica.breaker_tripped()
    for name in ("queue_depth", "requests_running", "slots", "slots_free"):
        replica.set_gauge(name, 3, source="metrics")
    replica.set_gauge("kv_cache_usage_ratio", 0.25, source="metrics")
    metrics.orchestrator("model_state", model_id="m", state="ready").set(1)
    return metrics


@pytest.mark.parametrize("seconds", [False, True])
def test_both_ways_out_say_the_same(seconds: bool) -> None:
    metrics = filled(seconds=seconds)
    registry = CollectorRegistry()
    registry.register(metrics.collector())
    collected = [
        sample for metric in registry.collect() for sample in metric.samples if not _is_age(sample)
    ]
    for families in (
        read_openmetrics(metrics.render()),
        text_string_to_metric_families(metrics.render(openmetrics=False)),
        text_string_to_metric_families(generate_latest(registry).decode()),
    ):
        rendered = [sample for metric in families for sample in metric.samples]
        told = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for sample in rendered
            if not _is_age(sample)
        }
        assert told == {
            (sample.name, *sorted(sample.labels.items())): sample.value for sample in collected
        }
        assert len(told) == len(collected)


def read_openmetrics(text: str) -> list[Metric]:
    """Read OpenMetrics as prometheus-client does."""
    return list(openmetrics.text_string_to_metric_families(text))  # type: ignore[no-untyped-call]


def _is_age(sample: Sample) -> bool:
    return sample.name == "engine_gauge_age_seconds"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=80), min_size=4, max_size=4))
def test_any_label_survives_both_formats(texts: list[str]) -> None:
    pool, replica, version, reason = texts
    metrics = Metrics()
    handle = metrics.replica("llamacpp", pool, replica)
    handle.set_engine_version(version)
    handle.task("batch").cancelled(reason)
    labels = {
        "engine": "llamacpp",
        "pool_id": _cut(pool),
        "replica_id": _cut(replica),
        "engine_version": _cut(version),
        "reason": _cut(reason),
    }
    for families in (
        read_openmetrics(metrics.render()),
        text_string_to_metric_families(metrics.render(openmetrics=False)),
    ):
        found = [
            sample.labels
            for metric in families
            for sample in metric.samples
            if sample.name == "tasks_canceled_total"
        ]
        assert found == [labels]


def _cut(text: str) -> str:
    return text.encode()[:64].decode(errors="ignore") or "unknown"


def test_a_label_is_never_longer_than_64_bytes() -> None:
    metrics = Metrics()
    assert metrics.replica("llamacpp", "p", "é" * 100).replica_id == "é" * 32


def test_hostile_ids_leave_memory_flat() -> None:
    metrics = Metrics(max_series=2_000)
    sizes = []
    for number in range(100_000):
        replica = metrics.replica("llamacpp", f"p{number}", f"r{number}")
        replica.task("batch").cancelled(f"because of {number}")
        if number in {20_000, 99_999}:
            sizes.append((metrics.series, len(metrics.render())))
    assert sizes[0][0] == sizes[1][0] < 3_000
    assert sizes[1][1] < sizes[0][1] + 1_000
    assert (value(metrics, "label_overflow_total", {"label": "series"}) or 0) > 90_000
    assert sum(values(metrics, "tasks_canceled_total", "pool_id").values()) == 100_000


def test_the_budgets_are_the_contract_s() -> None:
    metrics = Metrics(budgets={"pool_id": 1})
    assert metrics.replica("llamacpp", "a", "0").pool_id == "a"
    kept = metrics.replica("llamacpp", "a", "0")
    assert metrics.replica("llamacpp", "b", "0").pool_id == "other"
    assert value(metrics, "label_overflow_total", {"label": "pool_id"}) == 1
    assert kept.replica_id == "0"
    reasons = [f"r{number}" for number in range(17)]
    for reason in reasons:
        metrics.rejected("llamacpp", reason)
    assert len(values(metrics, "tasks_rejected_total", "reason")) == 17
    assert values(metrics, "tasks_rejected_total", "reason")["other"] == 1
    with pytest.raises(ValueError, match="label"):
        Metrics(budgets={"prompt": 1})


def test_what_is_not_known_is_absent() -> None:
    now = [10.0]
    metrics = Metrics(clock=lambda: now[0])
    replicas = [metrics.replica("llamacpp", "default", number) for number in "01"]
    for replica in replicas:
        replica.set_engine_version("b1-0c1e570")
    assert value(metrics, "queue_depth", ALL) is None
    replicas[0].set_gauge("queue_depth", 0, source="metrics")
    assert value(metrics, "queue_depth", ALL) == 0
    replicas[1].set_gauge("queue_depth", 2, source="metrics")
    assert value(metrics, "queue_depth", ALL) == 2
    now[0] = 12.5
    age = {**REPLICA, "gauge": "queue_depth", "source": "metrics"}
    assert value(metrics, "engine_gauge_age_seconds", age) == 2.5
    assert replicas[0].gauges() == {"queue_depth": (0, "metrics", 2.5)}
    replicas[0].set_gauge("queue_depth", None, source="metrics")
    assert value(metrics, "engine_gauge_age_seconds", age) is None
    assert value(metrics, "queue_depth", ALL) == 2


def test_a_gauge_that_is_no_number_is_not_known() -> None:
    metrics = Metrics()
    replica = metrics.replica("llamacpp", "default", "0")
    replica.set_gauge("slots", float("nan"), source="props")
    assert value(metrics, "slots", {**REPLICA, "engine_version": "unknown"}) is None
    with pytest.raises(ValueError, match="name"):
        replica.set_gauge("temperature", 1.0, source="props")


def test_the_orchestrator_s_own_appear_when_it_asks() -> None:
    metrics = Metrics()
    assert "tasks_enqueued" not in metrics.render()
    series = metrics.orchestrator(
        "admission_backpressure_events_total", engine="llamacpp", policy="drop-lru"
    )
    series.inc()
    labels = {"engine": "llamacpp", "policy": "drop-lru"}
    assert value(metrics, "admission_backpressure_events_total", labels) == 1
    with pytest.raises(ValueError, match="labels of"):
        metrics.orchestrator("admission_backpressure_events_total", engine="llamacpp")
    with pytest.raises(ValueError, match="not the orchestrator's"):
        metrics.orchestrator("tokens_in_total")


def test_counting_while_it_is_scraped_loses_nothing() -> None:
    metrics = Metrics()
    replicas = [metrics.replica("llamacpp", "default", str(number)) for number in range(4)]
    over = threading.Event()
    scrapes = []

    def scrape() -> None:
        while not over.is_set():
            scrapes.append(len(metrics.render()))

    def count(number: int) -> None:
        for round_ in range(500):
            replicas[number].set_engine_version(f"b{number}")
            replicas[number].task("batch").cancelled(f"reason {round_ % 3}")

    scraping = threading.Thread(target=scrape)
    counting = [threading.Thread(target=count, args=(number,)) for number in range(4)]
    for thread in (scraping, *counting):
        thread.start()
    for thread in counting:
        thread.join()
    over.set()
    scraping.join()
    assert scrapes
    assert sum(values(metrics, "tasks_canceled_total", "reason").values()) == 2_000


def test_what_is_rendered_says_what_it_is() -> None:
    assert Metrics.content_type().startswith("application/openmetrics-text; version=1.0.0")
    assert Metrics.content_type(openmetrics=False).startswith("text/plain; version=0.0.4")
