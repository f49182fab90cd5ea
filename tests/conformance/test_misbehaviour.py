"""What goes wrong in an engine means the same whichever engine it is."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from tests.transports import both_transports
from worker_adapters import Timeouts, TokenEvent, WorkerError
from worker_adapters.engines import adapter_class
from worker_adapters.testing.conformance import Subject, check_events
from worker_adapters.testing.engines import PIECES, SCRIPTED, scripted_engine

pytestmark = both_transports

QUICK = Timeouts(first_token=0.3, token_gap=0.3, idle=None)
PATIENT = Timeouts(first_token=20.0, token_gap=20.0, idle=None)

# What happens, and the kind and the code it is, for every engine but those named.
FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "overloaded before the stream": ({"error": "status", "status": 503}, "PoolUnavailable", ""),
    "broken before the stream": ({"error": "status", "status": 500}, "WorkerReset", "WORKER_RESET"),
    "broken in the first frame": ({"error": "first", "status": 500}, "WorkerReset", "WORKER_RESET"),
    "broken in mid-stream": ({"error": "stream", "status": 500}, "WorkerReset", "WORKER_RESET"),
    "silent before the head": ({"hang": "head"}, "DecodeTimeout", "DECODE_TIMEOUT"),
    "silent before the first token": ({"hang": "first"}, "DecodeTimeout", "DECODE_TIMEOUT"),
    "silent in mid-stream": ({"hang": "stream"}, "DecodeTimeout", "DECODE_TIMEOUT"),
    "closed in mid-stream": ({"truncate": "close"}, "WorkerReset", "WORKER_RESET"),
    "reset in mid-stream": ({"truncate": "reset"}, "WorkerReset", "WORKER_RESET"),
    "ended in mid-stream": ({"truncate": "polite"}, "WorkerReset", "WORKER_RESET"),
}

OTHERWISE = {
    # Its body ends without a marker when all is well, too.
    ("triton", "ended in mid-stream"): ("", ""),
}


async def outcome(dialect: str, **options: Any) -> tuple[list[TokenEvent], WorkerError | None]:
    """Events and error of one task, the error whether raised or in the stream."""
    timeouts = QUICK if "hang" in options else PATIENT
    async with scripted_engine(dialect, **options) as engine:
        made = Subject(dialect, engine.url, adapter_class(dialect))
        async with made.adapter() as adapter:
            await adapter.identity()
            try:
                stream = await adapter.submit(made.task(), timeouts=timeouts)
            except WorkerError as error:
                return [], error
            events = [event async for event in stream]
    check_events(events, dialect)
    failure = events[-1].error
    return events, failure if isinstance(failure, WorkerError) else None


@pytest.mark.parametrize("dialect", SCRIPTED)
@pytest.mark.parametrize("fault", FAULTS)
async def test_fault(dialect: str, fault: str) -> None:
    options, kind, code = FAULTS[fault]
    kind, code = OTHERWISE.get((dialect, fault), (kind, code))
    events, error = await outcome(dialect, **options)
    text = "".join(event.t or "" for event in events)
    assert text == "".join(PIECES[:3] if text else [])
    if not kind:
        assert error is None
        return
    assert error is not None
    assert error.kind == kind
    assert code in {"", error.code}
    assert error.tokens_emitted == (3 if text else 0)
    if kind != "Adapter":
        assert error.retriable
    if "mid-stream" in fault:
        assert text
        assert error.processed == "yes"


@pytest.mark.parametrize("dialect", SCRIPTED)
async def test_an_engine_that_loads_is_alive_and_not_ready(dialect: str) -> None:
    make: Any = adapter_class(dialect)
    async with scripted_engine(dialect, ready=False) as engine, make(engine.url) as adapter:
        health = await adapter.health()
        assert (health.live, health.ready) == (True, False)
        assert health.reason in {"loading", "not_ready", "unavailable"}
        engine.behave()
        assert (await adapter.health()).ready


@pytest.mark.parametrize("dialect", SCRIPTED)
async def test_a_probe_that_hangs_is_bounded(dialect: str) -> None:
    make: Any = adapter_class(dialect)
    async with scripted_engine(dialect, hang="health") as engine, make(engine.url) as adapter:
        async with asyncio.timeout(5):
            health = await adapter.health(timeouts=Timeouts(unary=0.2))
    assert not health.ready


@pytest.mark.parametrize("dialect", SCRIPTED)
async def test_a_wrong_key_is_the_configurations_fault(dialect: str) -> None:
    make: Any = adapter_class(dialect)
    key = "sk-right-0123456789"
    async with scripted_engine(dialect, api_key=key) as engine:
        right = Subject(dialect, engine.url, lambda url: make(url, api_key=key))
        async with right.adapter() as adapter:
            collected = await (await right.run(adapter)).collect()
            assert collected.tokens_out == right.max_tokens
        wrong = Subject(dialect, engine.url, lambda url: make(url, api_key="sk-wrong-987"))
        async with wrong.adapter() as adapter:
            with pytest.raises(WorkerError) as caught:
                await wrong.run(adapter)
    assert caught.value.kind == "Adapter"
    assert caught.value.code == "INVALID_PARAMS"
    assert "sk-wrong" not in f"{caught.value!r}{caught.value}"


@pytest.mark.parametrize("dialect", SCRIPTED)
async def test_delays_are_kept(dialect: str) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with scripted_engine(dialect, delay_ms=5, first_delay_ms=40) as engine:
        made = Subject(dialect, engine.url, adapter_class(dialect))
        async with made.adapter() as adapter:
            collected = await (await made.run(adapter, max_tokens=10)).collect()
    assert loop.time() - began >= 0.09
    assert collected.latency_first_token_ms is not None
    assert collected.latency_first_token_ms >= 40
    assert collected.decode_ms >= 40


@pytest.mark.parametrize("dialect", SCRIPTED)
async def test_it_stops_by_itself(dialect: str) -> None:
    events, error = await outcome(dialect, tokens=4)
    assert error is None
    assert "".join(event.t or "" for event in events) == "".join(PIECES[:4])
    finish = events[-1].finish_reason
    assert finish == ("stop" if dialect != "triton" else None)


def test_behaviour_is_checked() -> None:
    with pytest.raises(ValueError, match="split"):
        scripted_engine("vllm", split=0)
    with pytest.raises(ValueError, match="pieces"):
        scripted_engine("vllm", pieces=())
    with pytest.raises(ValueError, match="unknown dialect"):
        scripted_engine("nothing")


def test_in_a_thread_of_its_own() -> None:
    """A caller without a loop, or one that blocks it, is served all the same."""
    with scripted_engine("vllm") as engine:

        async def ask() -> str:
            made = Subject("vllm", engine.url, adapter_class("vllm"))
            async with made.adapter() as adapter:
                return (await (await made.run(adapter)).collect()).text

        assert asyncio.run(ask()) == "".join(PIECES[:16])
        until = time.monotonic() + 10.0
        # The client has its last byte before the engine has noted that it was sent.
        while [row.outcome for row in engine.generations] != ["done"]:
            assert time.monotonic() < until, engine.generations
            time.sleep(0.001)


def test_a_port_that_is_taken() -> None:
    with scripted_engine("vllm") as engine:
        port = int(engine.url.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"), scripted_engine("vllm", port=port):
            pass
