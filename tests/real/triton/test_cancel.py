"""What a cancel does on the real server. The stand-ins note what they see of it."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING

import pytest

from tests.real.triton.support import adapter, eventually, task
from tests.transports import both_transports

if TYPE_CHECKING:
    from worker_adapters import TokenStream
    from worker_adapters.engines.triton import TritonAdapter
    from worker_adapters.testing.triton import TritonServer

# The first test installs and starts the server.
pytestmark = [pytest.mark.real, pytest.mark.timeout(300), both_transports]

LONG = "loop=1 delay_ms=10"
SEES = {
    # model: what the stand-in that generates notes
    "tensorrt_llm_bls": ("tensorrt_llm_bls", {"cancelled"}),
    "ensemble": ("tensorrt_llm", {"stopped"}),
    # Whichever comes first.
    "llmapi": ("llmapi", {"cancelled", "stopped"}),
}


async def begun(made: TritonAdapter) -> TokenStream:
    """A stream of which some tokens have come."""
    stream = await made.submit(task(LONG, max_tokens=2000))
    async for event in stream:
        if event.i == 2:
            break
    return stream


def ends(server: TritonServer, model: str, task_id: str) -> list[str]:
    """How the stand-in says that this task ended."""
    generator, _ = SEES[model]
    return [
        note["event"]
        for note in server.observations(model=generator)
        if note["event"] not in {"start", "stop"} and note["id"].startswith(task_id)
    ]


@pytest.mark.parametrize("model", SEES)
async def test_a_cancel_ends_the_generation(server: TritonServer, model: str) -> None:
    async with adapter(server, model, bls_checks_cancel=True) as made:
        stream = await begun(made)
        receipt = await made.cancel(stream.task_id)
        rest = [event async for event in stream]
        method = "close" if model == "tensorrt_llm_bls" else "close+abort"
        assert (receipt.method, receipt.sent, receipt.confirmed) == (method, True, None)
        assert [(event.kind, event.finish_reason) for event in rest] == [("end", "cancelled")]
        key = stream.task_id.hex
        took = await eventually(lambda: ends(server, model, key), "the engine is free")
        assert set(ends(server, model, key)) <= SEES[model][1]
        assert (await made.cancel(stream.task_id)).method == "none"
    print(f"{model}: {took * 1000:.0f} ms")


@pytest.mark.parametrize("model", SEES)
async def test_a_dropped_stream_ends_the_generation(server: TritonServer, model: str) -> None:
    async with adapter(server, model) as made:
        stream = await begun(made)
        key = stream.task_id.hex
        del stream
        gc.collect()
        await eventually(lambda: ends(server, model, key), "the engine is free")
        assert set(ends(server, model, key)) <= SEES[model][1]


@pytest.mark.parametrize("model", ["ensemble", "llmapi"])
async def test_a_cancel_before_the_first_token(server: TritonServer, model: str) -> None:
    # Triton sends no head until then, and does not notice that the client has left: only the
    # request to stop does anything.
    generator, _ = SEES[model]
    async with adapter(server, model) as made:
        asked = task(f"{LONG} first_ms=500", max_tokens=2000)
        key = asked.task_id.hex
        submitting = asyncio.create_task(made.submit(asked))
        await eventually(
            lambda: [
                note
                for note in server.observations(model=generator, event="start")
                if note["id"].startswith(key)
            ],
            "the engine has begun",
        )
        assert (await made.cancel(asked.task_id)).sent
        [event] = [event async for event in await submitting]
        assert event.finish_reason == "cancelled"
        await eventually(lambda: ends(server, model, key), "the engine is free")
    assert ends(server, model, key) == ["stopped"]


async def test_a_stop_request_ends_nobody_elses_task(server: TritonServer) -> None:
    async with adapter(server, "ensemble") as made, adapter(server, "ensemble") as other:
        kept = await other.submit(task("delay_ms=20"))
        stream = await begun(made)
        await made.cancel(stream.task_id)
        assert (await kept.collect()).tokens_out == 17


async def test_what_frees_the_engine_is_told(server: TritonServer) -> None:
    for model, kind in {
        "ensemble": "abort",
        "llmapi": "close+abort",
        # NVIDIA's never looks whether the client is there; nobody can tell them apart.
        "tensorrt_llm_bls": "none",
        "tensorrt_llm_bls_sync": "none",
        "llmapi_sync": "none",
        "ensemble_limited": "none",
    }.items():
        async with adapter(server, model) as made:
            assert (await made.capabilities()).features["cancel"].value == kind, model
    async with adapter(server, "tensorrt_llm_bls", bls_checks_cancel=True) as made:
        assert (await made.capabilities()).features["cancel"].value == "close"


async def test_a_model_that_hears_nothing_delays_no_cancel(server: TritonServer) -> None:
    async with adapter(server, "tensorrt_llm_bls") as made:
        stream = await made.submit(task(f"{LONG} deaf=1", max_tokens=30))
        receipt = await made.cancel(stream.task_id)
        assert [event.kind async for event in stream] == ["end"]
    assert receipt.elapsed_ms < 1000
    key = stream.task_id.hex
    await eventually(lambda: ends(server, "tensorrt_llm_bls", key), "it has run to its end")
    assert ends(server, "tensorrt_llm_bls", key) == ["done"]
