"""What the adapter says about an engine that is away, loading, ready, busy or locked."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import pytest

from tests.real.support import eventually, task
from tests.transports import both_transports
from worker_adapters import AdapterError, LlamaCppAdapter, PoolUnavailable, RetryPolicy
from worker_adapters.testing.llamacpp import LlamaCppServer, tiny_model

if TYPE_CHECKING:
    from tests.real.support import Engine

pytestmark = [pytest.mark.real, both_transports]

KEY = "sk-real-engine-0123456789"


async def test_health_of_a_ready_engine(adapter: LlamaCppAdapter) -> None:
    health = await adapter.health()
    assert (health.live, health.ready) == (True, True)


async def test_health_of_a_refused_port_is_quick_and_false(
    unused_tcp_port: int,
) -> None:
    async with LlamaCppAdapter(f"http://127.0.0.1:{unused_tcp_port}") as adapter:
        started = time.monotonic()
        health = await adapter.health()
        assert (health.live, health.ready) == (False, False)
        assert time.monotonic() - started < 5.0
        with pytest.raises(PoolUnavailable) as caught:
            await adapter.submit(task())
    assert caught.value.code == "POOL_UNAVAILABLE"
    assert caught.value.phase == "connect"
    assert caught.value.processed == "no"
    assert caught.value.retriable


async def test_a_loading_engine_lives_and_is_not_ready() -> None:
    model = tiny_model(layers=512)
    async with (
        LlamaCppServer(["-np", "1"], model=model, wait=False) as server,
        LlamaCppAdapter(server.url, retries=RetryPolicy(attempts=1)) as adapter,
    ):
        seen: list[tuple[bool, bool]] = []
        refusal: PoolUnavailable | None = None

        async def ready() -> bool:
            nonlocal refusal
            health = await adapter.health()
            state = (health.live, health.ready)
            if state == (True, False) and refusal is None:
                with pytest.raises(PoolUnavailable) as caught:
                    await adapter.submit(task())
                refusal = caught.value
            if not seen or seen[-1] != state:
                seen.append(state)
            return health.ready

        await eventually(ready, "the model is loaded", within=30.0)
        reply = await (await adapter.submit(task(max_tokens=1))).collect()

    assert [state for state in seen if state != (False, False)] == [(True, False), (True, True)]
    assert refusal is not None
    assert (refusal.code, refusal.detail) == ("POOL_UNREADY", "loading")
    assert (refusal.retriable, refusal.processed, refusal.status) == (True, "no", 503)
    assert reply.tokens_out == 1


async def test_a_submit_waits_for_an_engine_that_comes_up() -> None:
    class Longest(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return max(a, b)

    policy = RetryPolicy(attempts=10, base=0.5)
    async with (
        LlamaCppServer(["-np", "1"], model=tiny_model(layers=512), wait=False) as server,
        LlamaCppAdapter(server.url, retries=policy, rng=Longest(7)) as adapter,
    ):
        reply = await (await adapter.submit(task(max_tokens=1))).collect()
    assert reply.tokens_out == 1


async def test_props_count_the_slots(slow_adapter: LlamaCppAdapter, slow_engine: Engine) -> None:
    props = await slow_adapter.props()
    assert (props.slots_total, props.slots_free) == (2, 2)
    async with await slow_adapter.submit(task(max_tokens=5000)) as stream:
        await anext(stream)
        props = await slow_adapter.props()
        assert (props.slots_total, props.slots_free) == (2, 1)
    await slow_engine.idle()


async def test_props_without_the_slots_route_still_know_the_total() -> None:
    async with (
        LlamaCppServer(["-np", "3", "--no-slots"]) as server,
        LlamaCppAdapter(server.url) as adapter,
    ):
        props = await adapter.props()
        assert props.slots_total == 3


async def test_the_version_is_what_the_engine_says(
    adapter: LlamaCppAdapter, engine: Engine
) -> None:
    version = await adapter.engine_version()
    assert version == (await engine.get("/props"))["build_info"]
    assert await adapter.engine_version() == version


async def test_a_key_opens_and_a_wrong_one_is_refused_without_being_told() -> None:
    wrong = "sk-wrong-key-9876543210"
    async with LlamaCppServer(api_key=KEY) as server:
        async with LlamaCppAdapter(server.url, api_key=KEY) as adapter:
            assert (await adapter.health()).ready
            assert (await adapter.props()).slots_total == 4
            reply = await (await adapter.submit(task(max_tokens=2))).collect()
            assert reply.tokens_out == 2
            assert KEY not in repr(adapter)
        for key in (wrong, None):
            async with LlamaCppAdapter(server.url, api_key=key) as adapter:
                with pytest.raises(AdapterError) as caught:
                    await adapter.submit(task())
                error = caught.value
                assert (error.code, error.detail) == ("INVALID_PARAMS", "unauthorized")
                assert (error.status, error.retriable) == (401, False)
                assert wrong not in f"{error!r} {error} {error.__dict__}"
        assert KEY not in server.log_tail(500)
