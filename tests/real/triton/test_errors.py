"""What goes wrong on the real server, and what a caller is told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.real.triton.support import STREAMING, TEXT, adapter, eventually, task
from tests.transports import both_transports
from tests.unit.metrics import values
from worker_adapters import (
    AdapterError,
    Metrics,
    PoolUnavailable,
    Timeouts,
    WorkerError,
    WorkerReset,
)
from worker_adapters.engines.triton import TritonAdapter

if TYPE_CHECKING:
    from worker_adapters.testing.triton import TritonServer

# The first test installs and starts the server.
pytestmark = [pytest.mark.real, pytest.mark.timeout(300), both_transports]


@pytest.mark.parametrize("model", STREAMING)
async def test_a_failure_before_the_first_token(server: TritonServer, model: str) -> None:
    async with adapter(server, model) as made:
        with pytest.raises(WorkerReset) as failed:
            await made.submit(task("delay_ms=1 error_at=0"))
    error = failed.value
    # The engine's own fault, though the status blames the request.
    assert (error.status, error.detail, error.code) == (400, "engine_error", "WORKER_RESET")
    assert error.retriable
    assert "mock engine failure" in error.message


@pytest.mark.parametrize("model", STREAMING)
async def test_a_failure_inside_a_stream(server: TritonServer, model: str) -> None:
    async with adapter(server, model) as made:
        stream = await made.submit(task("delay_ms=1 error_at=3"))
        events = [event async for event in stream]
    assert [event.kind for event in events] == ["started", *["token"] * 3, "error"]
    assert TEXT.startswith("".join(event.t or "" for event in events))
    error = events[-1].error
    assert isinstance(error, WorkerReset)
    assert (error.detail, error.tokens_emitted, error.processed) == ("engine_error", 3, "yes")


async def test_an_exception_out_of_a_model(server: TritonServer) -> None:
    async with adapter(server, "tensorrt_llm_bls") as made:
        with pytest.raises(WorkerReset, match="exception escaping"):
            await made.submit(task("raise=1"))
        assert (await (await made.submit(task(max_tokens=1))).collect()).text == "Hello"


@pytest.mark.parametrize(("model", "status"), [("queue_limited", 503), ("ensemble_limited", 400)])
async def test_a_full_queue(server: TritonServer, model: str, status: int) -> None:
    async with adapter(server, model) as made:

        async def outcome() -> WorkerError | str:
            try:
                return (await (await made.submit(task("delay_ms=50", max_tokens=4))).collect()).text
            except WorkerError as error:
                return error

        outcomes = await asyncio.gather(*(outcome() for _ in range(6)))
    refused = [outcome for outcome in outcomes if isinstance(outcome, WorkerError)]
    assert 0 < len(refused) < 6
    for error in refused:
        assert isinstance(error, PoolUnavailable)
        assert (error.code, error.detail) == ("REPLICA_EXHAUSTED", "queue_full")
        assert (error.status, error.processed, error.retriable) == (status, "no", True)


async def test_an_unknown_model(server: TritonServer) -> None:
    async with adapter(server, "nope") as made:
        with pytest.raises(AdapterError, match="unknown model") as refused:
            await made.submit(task())
        assert (refused.value.status, refused.value.detail) == (404, "not_found")
        health = await made.health()
    assert (health.live, health.ready, health.reason) == (True, False, "not_found")


async def test_a_model_that_is_no_language_model(server: TritonServer) -> None:
    async with adapter(server, "embedding") as made:
        with pytest.raises(AdapterError, match="completion") as refused:
            await made.submit(task())
        assert refused.value.detail == "unsupported"
        assert (await made.capabilities()).supported_workloads == ()


async def test_several_models_and_none_configured(server: TritonServer) -> None:
    async with TritonAdapter(server.url) as made:
        assert (await made.identity()).model == "ensemble"


async def test_a_200_without_an_event_is_a_failure(server: TritonServer) -> None:
    # A required input is missing and an optional one makes the count right: Triton lets the
    # ensemble begin, no step of it ever can, and the stream ends as a good one does.
    body = {"prompt": "hi", "max_tokens": 3, "stream": True}
    url = f"{server.url}/v2/models/ensemble/generate_stream"
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.post(url, json=body)
    assert (answer.status_code, answer.content) == (200, b"")

    class Misspelling(TritonAdapter):
        def _completion(self, dispatch):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            path, payload = super()._completion(dispatch)
            sent = dict(payload)
            sent["prompt"] = sent.pop("text_input")
            return path, sent

    async with Misspelling(server.url, model="ensemble") as made:
        stream = await made.submit(task())
        [event] = [event async for event in stream]
    error = event.error
    assert isinstance(error, WorkerReset)
    assert (error.detail, error.phase) == ("truncated", "first_token")


async def test_a_seed_beyond_its_input(server: TritonServer) -> None:
    # The inputs of these models are 64 bits wide and unsigned: every seed of a task fits.
    async with adapter(server, "ensemble") as made:
        answer = await (await made.submit(task(seed=2**63 - 1, max_tokens=1))).collect()
        assert answer.seed == 2**63 - 1
        with pytest.raises(AdapterError) as refused:
            await made.submit(task(seed=-1))
    assert refused.value.status is None


async def test_an_engine_that_says_nothing_more_is_found_by_its_silence(
    server: TritonServer,
) -> None:
    async with adapter(server, "tensorrt_llm_bls", timeouts=Timeouts(idle=0.5)) as made:
        stream = await made.submit(task("delay_ms=1 hang_at=3"))
        events = [event async for event in stream]
    assert [event.kind for event in events] == ["started", *["token"] * 3, "error"]
    error = events[-1].error
    assert isinstance(error, WorkerError)
    assert (error.kind, error.detail, error.tokens_emitted) == ("DecodeTimeout", "idle", 3)


async def test_a_model_whose_process_is_killed(fragile: TritonServer) -> None:
    async with adapter(fragile, "tensorrt_llm_bls", timeouts=Timeouts(idle=1.0)) as made:
        stream = await made.submit(task("loop=1 delay_ms=20", max_tokens=10_000))
        async for event in stream:
            if event.i == 2:
                break
        fragile.kill_backend("tensorrt_llm_bls")
        *_, last = [event async for event in stream]
        error = last.error
        assert isinstance(error, WorkerError)
        # Mostly silence; sometimes Triton notices, and sometimes it goes down with it.
        assert error.detail in {"idle", "engine_error", "truncated", "reset"}
        assert error.retriable
        if error.detail in {"idle", "engine_error"}:
            assert (await made.health()).ready  # as far as Triton is concerned
            with pytest.raises(WorkerReset, match="is not healthy") as refused:
                await made.submit(task())
            assert (refused.value.status, refused.value.detail) == (400, "engine_error")
        else:
            await eventually(lambda: fragile.returncode is not None, "Triton has ended")
            assert not (await made.health()).live
    print(error.detail)


async def test_a_killed_server(fragile: TritonServer) -> None:
    async with adapter(fragile, "tensorrt_llm_bls") as made:
        stream = await made.submit(task("loop=1 delay_ms=20", max_tokens=10_000))
        async for event in stream:
            if event.kind == "token":
                break
        await asyncio.to_thread(fragile.kill)
        *_, last = [event async for event in stream]
        assert isinstance(last.error, WorkerReset)
        with pytest.raises(PoolUnavailable) as refused:
            await made.submit(task())
        assert refused.value.detail == "connect"
        health = await made.health()
    assert (health.live, health.ready, health.reason) == (False, False, "connect")


async def test_the_server_counts_the_requests_that_were_sent(server: TritonServer) -> None:
    model = "tensorrt_llm_bls_accum"

    async def succeeded() -> int:
        async with httpx.AsyncClient(trust_env=False) as client:
            lines = (await client.get(server.metrics_url)).text.splitlines()
        prefix = f'nv_inference_request_success{{model="{model}"'
        [line] = [line for line in lines if line.startswith(prefix)]
        return int(line.rpartition(" ")[2])

    before = await succeeded()
    metrics = Metrics()
    async with adapter(server, model, metrics=metrics) as made:
        for _ in range(5):
            await (await made.submit(task(max_tokens=2))).collect()
    assert await succeeded() == before + 5
    assert values(metrics, "tasks_started_total", "replica_id") == {"0": 5}
    assert values(metrics, "tasks_finished_total", "outcome") == {"completed": 5}


async def test_a_server_that_shuts_down(fragile: TritonServer) -> None:
    async with adapter(fragile, "tensorrt_llm_bls") as made:
        stream = await made.submit(task("loop=1 delay_ms=20", max_tokens=100))
        assert (await made.health()).state == "ready"
        fragile.terminate()
        await eventually(lambda: "HTTP service connections" in fragile.log_tail(), "it shuts down")
        health = await made.health()
        assert (health.live, health.ready, health.state) == (True, False, "draining")
        # What runs is let finish.
        answer = await stream.collect()
        assert answer.tokens_out == 100
        # Nothing that the adapter has left open holds it up.
        await eventually(lambda: fragile.returncode is not None, "it has ended", within=5)
