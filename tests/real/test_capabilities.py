"""What the adapter says it can do, beside what the engine says and does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.real.support import task
from tests.transports import both_transports
from worker_adapters import (
    AdapterCapabilities,
    AdapterError,
    ExpectedModel,
    LlamaCppAdapter,
    PoolUnavailable,
)
from worker_adapters.testing.llamacpp import LlamaCppServer

if TYPE_CHECKING:
    from tests.real.support import Engine

pytestmark = [pytest.mark.real, both_transports]


async def test_capabilities_are_what_the_engine_says(
    adapter: LlamaCppAdapter, engine: Engine
) -> None:
    found = await adapter.capabilities()
    props = await engine.get("/props")
    assert found.engine_version == props["build_info"]
    assert found.ctx_max == props["default_generation_settings"]["n_ctx"] == 1024
    assert found.slots_total == props["total_slots"] == 4
    assert found.sampler_profile_versions == ("wander-1",)
    assert found.features["messages.image"].value is props["modalities"]["vision"] is False
    assert found.features["metrics"].value is props["endpoint_metrics"] is True
    assert found.features["metrics"].source == "engine"
    assert found.features["cancel"].value == "close"
    assert set(found.sources.values()) == {"engine"}
    assert AdapterCapabilities.model_validate_json(found.model_dump_json()) == found


async def test_capabilities_of_an_engine_that_is_away(unused_tcp_port: int) -> None:
    async with LlamaCppAdapter(f"http://127.0.0.1:{unused_tcp_port}") as adapter:
        with pytest.raises(PoolUnavailable):
            await adapter.capabilities()


async def test_the_expected_model_and_another(server: LlamaCppServer) -> None:
    async with LlamaCppAdapter(server.url) as adapter:
        identity = await adapter.identity()
    assert identity.model is not None
    assert identity.model_path is not None
    for right in (
        ExpectedModel(name=identity.model),
        ExpectedModel(path=identity.model_path),
        # The server has no digest of its model, and so cannot contradict one.
        ExpectedModel(name=identity.model, path=identity.model_path, digest="sha256:00ff"),
    ):
        async with LlamaCppAdapter(server.url, expect=right) as adapter:
            assert (await adapter.health()).ready
            assert (await (await adapter.submit(task(max_tokens=2))).collect()).tokens_out == 2
    for wrong in (
        ExpectedModel(name="another"),
        ExpectedModel(path=identity.model_path + ".other"),
        ExpectedModel(name=identity.model, path="/elsewhere/" + identity.model),
    ):
        async with LlamaCppAdapter(server.url, expect=wrong) as adapter:
            health = await adapter.health()
            assert (health.live, health.ready, health.reason) == (True, False, "wrong_model")
            with pytest.raises(AdapterError) as caught:
                await adapter.submit(task())
            assert (caught.value.detail, caught.value.processed) == ("wrong_model", "no")
