"""What an adapter can do: where each value comes from, and how long it is believed."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.transports import both_transports
from tests.unit.tasks import adapter, task
from tests.unit.virtual_time import run as run_virtually
from tests.unit.wire import PROPS, answer, playing
from worker_adapters import (
    AdapterCapabilities,
    PoolUnavailable,
    SamplerProfile,
    TokenStream,
    WorkerAdapter,
    WorkerHealth,
    WorkerIdentity,
    WorkerProps,
)
from worker_adapters.capabilities import Feature
from worker_adapters.engines import ENGINES, adapter_class
from worker_adapters.engines._identity import CAPABILITIES_SECONDS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from tests.unit.wire import Connection, Server
    from worker_adapters import CancelReceipt, SubmitContext, TaskRequest, Timeouts

pytestmark = both_transports

PROMISED = {
    *("streaming", "seed", "cancel", "cancel_in_prefill", "determinism", "chat", "tools"),
    *("logprobs", "token_ids", "embeddings", "rerank", "metrics"),
}
KNOWN_OF_ANY = {"streaming", "cancel", "cancel_in_prefill", "determinism"}
SLOT = {"is_processing": False}


async def engine(connection: Connection) -> None:
    while True:
        request = await connection.request()
        match request.path:
            case "/props":
                await connection.send(answer(PROPS))
            case "/slots":
                await connection.send(answer(json.dumps([SLOT] * 4)))
            case _:
                await connection.send(answer("no", "404 Not Found"))


async def test_what_the_engine_told_and_what_the_adapter_knows() -> None:
    profile = SamplerProfile(name="greedy", version="g-1", temperature=0)
    async with (
        playing(engine) as server,
        adapter(server.url, sampler_profiles=[profile]) as made,
    ):
        found = await made.capabilities()
    assert (found.engine, found.engine_version, found.model) == ("llamacpp", "b1-0c1e570", "tiny")
    assert (found.ctx_max, found.slots_total, found.max_tokens_out) == (1024, 4, None)
    assert found.sampler_profile_versions == ("g-1",)
    assert found.supported_workloads == ("completion", "embedding", "rerank")
    assert found.sources == dict.fromkeys(
        ("engine_version", "model", "ctx_max", "slots_total"), "engine"
    )
    assert set(found.features) >= PROMISED
    values = {name: feature.value for name, feature in found.features.items()}
    assert values["cancel"] == "close"
    assert values["chat"] is values["constraint.grammar"] is values["logprobs"] is True
    assert values["lora"] is values["priority"] is False
    assert found.age_ms == 0
    data = json.loads(found.model_dump_json())
    assert "max_tokens_out" not in data
    assert AdapterCapabilities.model_validate(data) == found


@pytest.mark.parametrize("name", ENGINES)
def test_every_adapter_can_be_described_without_an_engine(name: str) -> None:
    make: Any = adapter_class(name)
    found = make("http://127.0.0.1:1")._describe(None, WorkerProps())
    assert set(found.features) >= (KNOWN_OF_ANY if name == "openai" else PROMISED)
    assert found.engine == name
    assert found.sources == {}
    assert found.features["cancel"].value in {"close", "abort", "close+abort", "none"}
    assert found.features["cancel_in_prefill"].value in {"yes", "no", "unknown"}
    assert found.features["determinism"].value in {"strict", "best_effort", "none"}


def asked(server: Server) -> int:
    return len(server.requests("/props"))


def test_answers_are_kept_for_a_while() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with playing(engine) as server, adapter(server.url, clock=loop.time) as made:
            first = await made.capabilities()
            await asyncio.sleep(CAPABILITIES_SECONDS - 1)
            kept = await made.capabilities()
            assert asked(server) == 1
            assert kept.age_ms == pytest.approx((CAPABILITIES_SECONDS - 1) * 1000, abs=50)
            assert kept == first.model_copy(update={"age_ms": kept.age_ms})
            await asyncio.sleep(1)
            assert (await made.capabilities()).age_ms == 0
            assert asked(server) == 2

    run_virtually(main())


@pytest.mark.parametrize(
    ("detail", "times"),
    # What is short on our side says nothing of the engine, and asking would take more of it.
    [("connect", 2), ("unavailable", 2), ("saturated", 1), ("fd", 1), ("local", 1)],
)
async def test_an_outage_makes_them_old(detail: str, times: int) -> None:
    async with playing(engine) as server, adapter(server.url) as made:
        await made.capabilities()
        made._forget_identity(PoolUnavailable(message="", detail=detail))
        await made.capabilities()
        assert asked(server) == times


async def test_an_engine_that_cannot_be_asked_is_an_error() -> None:
    async with adapter("http://127.0.0.1:1") as made:
        with pytest.raises(PoolUnavailable):
            await made.capabilities()


async def test_an_engine_that_does_not_tell_is_described_by_what_is_known() -> None:
    async def silent(connection: Connection) -> None:
        while True:
            request = await connection.request()
            known = request.path == "/slots"
            said = answer(json.dumps([SLOT])) if known else answer("no", "404 Not Found")
            await connection.send(said)

    async with playing(silent) as server, adapter(server.url) as made:
        found = await made.capabilities()
    assert (found.engine_version, found.slots_total) == (None, 1)
    assert found.sources == {"slots_total": "engine"}


class Bare(WorkerAdapter):
    """An adapter of its own making, with no more than there has to be."""

    engine = "bare"
    dialect = "openai"
    pool_id = "default"
    replica_id = "0"

    async def health(self, *, timeouts: Timeouts | None = None) -> WorkerHealth:
        del timeouts
        return WorkerHealth(live=True, ready=True)

    async def props(self, *, timeouts: Timeouts | None = None) -> WorkerProps:
        del timeouts
        return WorkerProps(slots_total=2, source="configuration")

    async def submit(
        self,
        task: TaskRequest,
        *,
        context: SubmitContext | None = None,
        timeouts: Timeouts | None = None,
    ) -> TokenStream:
        raise NotImplementedError

    async def cancel(self, task_id: UUID | str, *, confirm_within_ms: float = 0) -> CancelReceipt:
        raise NotImplementedError

    async def engine_version(self, *, timeouts: Timeouts | None = None) -> str:
        del timeouts
        return "1.0"

    async def aclose(self) -> None:
        pass

    def _features(self, identity: WorkerIdentity | None) -> Mapping[str, Feature]:
        assert identity is not None
        return {"seed": Feature(value=False, source="engine")}


async def test_an_adapter_that_only_does_what_it_must_has_them_too() -> None:
    async with Bare() as made:
        found = await made.capabilities()
        assert (found.engine_version, found.slots_total) == ("1.0", 2)
        assert found.sources == {"engine_version": "engine", "slots_total": "configuration"}
        assert set(found.features) >= PROMISED
        assert found.features["seed"] == Feature(value=False, source="engine")
        assert found.features["chat"] == Feature(value=False, source="adapter")
        assert len(made.rules) == 0
        with pytest.raises(NotImplementedError):
            await made.submit(task())
