"""Refusals and failures of the engine, as they reach the caller."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.real.support import cycle_text, task
from tests.transports import both_transports
from worker_adapters import AdapterError, LlamaCppAdapter, WorkerReset
from worker_adapters.testing.llamacpp import LlamaCppServer, tiny_model

if TYPE_CHECKING:
    from tests.real.support import Engine
    from worker_adapters import TokenEvent, TokenStream

pytestmark = [pytest.mark.real, both_transports]


async def test_a_prompt_beyond_the_context_is_refused(adapter: LlamaCppAdapter) -> None:
    with pytest.raises(AdapterError) as caught:
        await adapter.submit(task("every word of text " * 400))
    error = caught.value
    assert (error.code, error.detail) == ("INVALID_PARAMS", "context_overflow")
    assert (error.retriable, error.status) == (False, 400)
    assert "every word" not in f"{error} {error!r}"
    reply = await (await adapter.submit(task(max_tokens=3))).collect()
    assert reply.tokens_out == 3


async def test_a_context_larger_than_the_engine_has_is_refused(adapter: LlamaCppAdapter) -> None:
    with pytest.raises(AdapterError) as caught:
        await adapter.submit(task(ctx=1_000_000))
    assert caught.value.code == "INVALID_PARAMS"


async def test_a_shared_cache_that_runs_full_ends_every_stream_with_an_error() -> None:
    model = tiny_model(layers=8)
    async with (
        LlamaCppServer(["--kv-unified", "-np", "4", "-c", "1024"], model=model) as server,
        LlamaCppAdapter(server.url) as adapter,
    ):
        streams = await asyncio.gather(
            *(adapter.submit(task(max_tokens=2000, determinism="strict")) for _ in range(4))
        )
        runs = await asyncio.gather(*(_events(stream) for stream in streams))
        failed = [events for events in runs if events[-1].kind == "error"]
        assert failed
        for events in failed:
            error = events[-1].error
            assert isinstance(error, WorkerReset)
            assert (error.code, error.detail) == ("WORKER_RESET", "engine_error")
            assert error.phase == "stream"
            assert error.retriable
            tokens = [event for event in events if event.kind == "token"]
            counted = sum(event.n or 0 for event in tokens)
            assert error.tokens_emitted == counted > 0
            assert "".join(event.t or "" for event in tokens) == cycle_text(" time", counted)
        reply = await (await adapter.submit(task(max_tokens=3))).collect()
        assert reply.tokens_out == 3


async def test_a_killed_engine_is_a_reset_after_every_token_it_had_sent() -> None:
    model = tiny_model(layers=32, n_ctx_train=16384)
    async with (
        LlamaCppServer(["-np", "1", "-c", "16384"], model=model) as server,
        LlamaCppAdapter(server.url) as adapter,
    ):
        stream = await adapter.submit(task(max_tokens=10_000, determinism="strict"))
        events = []
        async with stream:
            async for event in stream:
                events.append(event)
                if event.i == 100:
                    server.kill()
        assert not (await adapter.health()).live

    tokens = [event for event in events if event.kind == "token"]
    assert [event.i for event in tokens] == list(range(len(tokens)))
    assert len(tokens) > 100
    counted = sum(event.n or 0 for event in tokens)
    assert "".join(event.t or "" for event in tokens) == cycle_text(" time", counted)
    assert [event.kind for event in events].count("error") == 1
    error = events[-1].error
    assert isinstance(error, WorkerReset)
    assert (error.code, error.phase) == ("WORKER_RESET", "stream")
    assert (error.tokens_emitted, error.processed, error.retriable) == (counted, "yes", True)


async def test_collect_raises_the_error_of_a_killed_engine() -> None:
    model = tiny_model(layers=32, n_ctx_train=16384)
    async with (
        LlamaCppServer(["-np", "1", "-c", "16384"], model=model) as server,
        LlamaCppAdapter(server.url) as adapter,
    ):
        stream = await adapter.submit(task(max_tokens=10_000))
        await anext(stream)
        server.kill()
        with pytest.raises(WorkerReset):
            await stream.collect()


async def test_the_engine_goes_on_after_a_refusal(adapter: LlamaCppAdapter, engine: Engine) -> None:
    for _ in range(8):
        with pytest.raises(AdapterError):
            await adapter.submit(task("every word of text " * 400))
    assert await engine.busy() == 0


async def _events(stream: TokenStream) -> list[TokenEvent]:
    async with stream:
        return [event async for event in stream]
