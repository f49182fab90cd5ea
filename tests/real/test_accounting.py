"""Our counts are the engine's own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.real.support import ONCE, WANDER, Engine, task
from tests.transports import both_transports
from tests.unit.metrics import values
from worker_adapters import LlamaCppAdapter, Metrics
from worker_adapters.testing.llamacpp import LlamaCppServer

if TYPE_CHECKING:
    import httpx

    from worker_adapters import TaskRequest

pytestmark = [pytest.mark.real, both_transports]


async def test_token_counts_equal_the_engine_s_counters(http: httpx.AsyncClient) -> None:
    """On an engine of its own, whose counters have seen nothing but these tasks."""
    tasks = [
        *(task(max_tokens=n, determinism="strict") for n in (1, 11, 12, 19, 36)),
        *(task(prompt, kv_hint="reuse") for prompt in (ONCE, ONCE, "say hello", "say end")),
        *(task(max_tokens=60, seed=s, sampler_profile_version=WANDER.version) for s in range(8)),
        task("every word of text " * 40, kv_hint="reuse"),
        task("every word of text " * 40 + "comes", kv_hint="reuse"),
    ]
    metrics = Metrics()
    async with (
        LlamaCppServer() as server,
        LlamaCppAdapter(server.url, sampler_profiles=[WANDER], metrics=metrics) as adapter,
    ):
        engine = Engine(server.url, http)

        async def run(wanted: TaskRequest) -> tuple[int, int]:
            async with await adapter.submit(wanted) as stream:
                end = (await stream.collect()).events[-1]
            assert end.usage_source == "engine"
            return end.tokens_in or 0, end.tokens_out or 0

        one_by_one = [await run(wanted) for wanted in tasks]
        copies = [wanted.model_copy(update={"task_id": task().task_id}) for wanted in tasks]
        at_once = await asyncio.gather(*(run(wanted) for wanted in copies))
        await engine.idle()
        counters = await engine.counters()
        load = await adapter.load()

    tokens_in, tokens_out = map(sum, zip(*one_by_one, *at_once, strict=True))
    processed, cached = counters["prompt_tokens_total"], counters["prompt_tokens_cached_total"]
    assert tokens_in == processed + cached < 1_000_000
    assert cached > 0
    assert tokens_out == counters["tokens_predicted_total"] < 1_000_000

    counted = {
        name: sum(values(metrics, name, "replica_id").values())
        for name in ("tokens_in_total", "tokens_out_total", "tasks_started_total")
    }
    assert counted == {
        "tokens_in_total": processed + cached,
        "tokens_out_total": counters["tokens_predicted_total"],
        "tasks_started_total": 2 * len(tasks),
    }
    assert values(metrics, "tasks_finished_total", "outcome") == {"completed": 2 * len(tasks)}
    assert (load.running, load.waiting, load.kv_cache_usage) == (0, 0, None)
