"""`metrics` events on their way to a reader: the newest one, beside every token."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from tests.transports import both_transports
from tests.unit.tasks import adapter, task
from tests.unit.wire import STREAM_HEAD, engine, eventually, final, frame, playing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.unit.wire import Connection, Received, Server
    from worker_adapters import LlamaCppAdapter, TokenEvent

pytestmark = both_transports

TOKENS = 200


def reporting(number: int) -> bytes:
    timings = {"cache_n": 2, "prompt_n": 6, "predicted_n": number, "predicted_ms": number * 1.5}
    return frame(f"t{number}", number, timings=timings)


def progress(read: int) -> bytes:
    told = {"total": 8, "cache": 2, "processed": read, "time_ms": 1}
    return frame("", 0, prompt_progress=told)


BODY = b"".join(
    (progress(4), progress(8), *(reporting(n) for n in range(1, TOKENS + 1)), final(TOKENS))
)
REPORTS = TOKENS + 2


async def all_at_once(connection: Connection, _: Received) -> None:
    await connection.send(STREAM_HEAD, BODY, b"0\r\n\r\n")


def only(kind: str, events: list[TokenEvent]) -> list[dict[str, Any]]:
    return [event.data for event in events if event.kind == kind]


@asynccontextmanager
async def reporting_engine() -> AsyncIterator[tuple[Server, LlamaCppAdapter]]:
    async with (
        playing(engine(all_at_once)) as server,
        adapter(server.url, stream_metrics=True) as asking,
    ):
        yield server, asking


async def test_an_engine_is_asked_to_report_and_its_reports_are_events() -> None:
    async with reporting_engine() as (server, engine_):
        stream = await engine_.submit(task(max_tokens=TOKENS))
        events = [event async for event in stream]
        assert stream.metrics_dropped + len(only("metrics", events)) == REPORTS
    [asked] = server.requests("/completion")
    payload = json.loads(asked.body)
    assert payload["return_progress"] is True
    assert payload["timings_per_token"] is True
    assert [data["t"] for data in only("token", events)] == [f"t{n}" for n in range(1, TOKENS + 1)]
    assert events[0].kind == "started"
    assert events[-1].kind == "end"
    newest = [event for event in events if event.kind == "metrics"][-1]
    assert newest.tokens_out == TOKENS
    assert (newest.tokens_in, newest.cached_tokens_in) == (8, 2)
    assert newest.data["kv_warmth"] == 0.25
    assert newest.data["latency_decode_ms"] == 300
    assert newest.latency_first_token_ms is not None
    assert newest.finish_reason is None
    assert newest.to_json().startswith('{"kind":"metrics","data":{"tokens_in":8,')


async def test_a_reader_that_comes_late_gets_the_newest_and_every_token() -> None:
    async with reporting_engine() as (_, engine_):
        stream = await engine_.submit(task(max_tokens=TOKENS))
        delivered = dropped = 0
        tokens: list[str] = []
        async for batch in stream.batches():
            waiting = only("metrics", batch)
            # What one read completed has waited for this reader: one of them at the most.
            assert len(waiting) <= 1
            delivered += len(waiting)
            tokens += [data["t"] for data in only("token", batch)]
            assert stream.metrics_dropped >= dropped
            dropped = stream.metrics_dropped
        await eventually(lambda: stream.is_terminal, "the end")
    assert tokens == [f"t{n}" for n in range(1, TOKENS + 1)]
    assert delivered + stream.metrics_dropped == REPORTS
    assert stream.metrics_dropped > TOKENS / 2


async def test_the_number_of_those_dropped_stays_when_the_stream_is_left() -> None:
    async with reporting_engine() as (_, engine_):
        stream = await engine_.submit(task(max_tokens=TOKENS))
        await anext(aiter(stream.batches()))
        before = stream.metrics_dropped
        await stream.aclose()
        assert stream.metrics_dropped >= before


async def test_nobody_is_sent_what_he_did_not_ask_for() -> None:
    async with playing(engine(all_at_once)) as server, adapter(server.url) as engine_:
        stream = await engine_.submit(task(max_tokens=TOKENS))
        events = [event async for event in stream]
        assert stream.metrics_dropped == 0
    [asked] = server.requests("/completion")
    assert not {"return_progress", "timings_per_token"} & set(json.loads(asked.body))
    assert {event.kind for event in events} == {"started", "token", "end"}
