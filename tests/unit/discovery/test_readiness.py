"""What is told of replicas: all of it from answers and streams."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.unit.discovery.orchestrator import Orchestrator
from tests.unit.schemas import essence
from tests.unit.tasks import adapter, task
from worker_adapters import WorkerError
from worker_adapters.discovery import (
    Capabilities,
    PerfHints,
    Readiness,
    capabilities_schema,
)
from worker_adapters.host import AdapterHost, HostCapabilities
from worker_adapters.testing.engines import scripted_engine
from worker_adapters.transport import Progress, Request, read_body
from worker_adapters.transport._httpx import HttpxTransport

SCHEMA = Path(__file__).resolve().parents[3] / "docs" / "schemas" / "capabilities-v1.json"


def test_the_published_schema_is_this_one() -> None:
    published = json.loads(SCHEMA.read_text("utf-8"))
    assert essence(published) == essence(capabilities_schema())
    jsonschema.Draft202012Validator.check_schema(published)
    for broken in (
        {},
        {"adapters": [{"engine": "llamacpp"}]},
        {"adapters": [], "more": 1},
        {"api_version": "2", "adapters": []},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, published)
    jsonschema.validate({"adapters": []}, published)


async def test_a_document_is_served_as_its_schema_says() -> None:
    async with scripted_engine("llamacpp") as server, AdapterHost() as host:
        host.bind(adapter(server.url, pool_id="chat", replica_id="a"))
        host.bind(adapter("http://127.0.0.1:9", pool_id="chat", replica_id="b"))
        async with Orchestrator(Capabilities(host.capabilities)) as orchestrator:
            transport = HttpxTransport(orchestrator.url)
            request = Request("GET", "/v1/capabilities")
            answer = await transport.open(request, Progress(), connect=5, tls=5)
            body, _ = await read_body(answer, 1 << 20)
            await answer.aclose()
            await transport.aclose()
    document = json.loads(body)
    jsonschema.validate(document, capabilities_schema())
    assert document["api_version"] == "1"
    (told,) = document["adapters"]
    assert (told["pool_id"], told["replica_id"], told["engine"]) == ("chat", "a", "llamacpp")
    assert told["slots_total"] == 4
    assert told["features"]["streaming"]["value"] is True
    assert document["silent"] == ["chat/b"]


class Asked:
    """A document that is asked for, on a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.count = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.capabilities = Capabilities(self.ask, ttl=10.0, clock=lambda: self.now)

    async def ask(self) -> HostCapabilities:
        self.count += 1
        await self.gate.wait()
        replica: dict[str, Any] = {
            "pool_id": "chat",
            "replica_id": "a",
            "engine": "llamacpp",
            "supported_workloads": ("completion",),
            "features": {},
            "age_ms": 5,
        }
        return HostCapabilities.model_validate({"adapters": (replica,)})


async def test_a_document_is_kept_and_ages() -> None:
    asked = Asked()
    assert (await asked.capabilities.document()).adapters[0].age_ms == 5
    asked.now = 9.9
    assert (await asked.capabilities.document()).adapters[0].age_ms == 9905
    assert asked.count == 1
    asked.now = 10.0
    assert (await asked.capabilities.document()).adapters[0].age_ms == 5
    assert asked.count == 2
    asked.capabilities.forget()
    await asked.capabilities.document()
    assert asked.count == 3


async def test_whoever_comes_meanwhile_waits_for_the_same() -> None:
    asked = Asked()
    asked.gate.clear()
    waiting = [asyncio.create_task(asked.capabilities.document()) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    asked.gate.set()
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(done[0], asyncio.CancelledError)
    assert all(isinstance(one, HostCapabilities) for one in done[1:])
    assert asked.count == 1


@pytest.mark.parametrize("ttl", [0, -1, 3601])
def test_a_ttl_that_is_none(ttl: float) -> None:
    with pytest.raises(ValueError, match="ttl"):
        Capabilities(Asked().ask, ttl=ttl)


async def test_records() -> None:
    async with (
        scripted_engine("llamacpp", pieces=("said",), delay_ms=2) as server,
        AdapterHost() as host,
    ):
        readiness = Readiness(
            host,
            wall_clock=lambda: 1_700_000_000.0,
            engine_digests=lambda pool, replica: f"sha256:{pool}-{replica}",
        )
        host.bind(adapter(server.url, pool_id="chat", replica_id="a"), device_mask="gpu:0")
        (before,) = await readiness.records()
        assert before.health.model_dump() == {"live": True, "ready": True}
        assert before.perf_hints == PerfHints()  # nothing has been measured
        assert 1_699_999_990_000 < before.last_heartbeat_ms <= 1_700_000_000_000
        assert (before.slots_total, before.slots_free, before.active_leases) == (4, 4, 0)
        assert before.engine_version is not None
        assert before.engine_digest == "sha256:chat-a"
        assert before.device_mask == "gpu:0"
        assert before.last_error is None

        ends = []
        for _ in range(3):
            stream = await host.submit("chat", task(max_tokens=20))
            ends.append((await stream.collect()).events[-1])
        (after,) = await readiness.records()
        rates = sorted(
            1000 * ((end.tokens_out or 0) - 1) / end.decode_ms for end in ends if end.decode_ms
        )
        assert after.perf_hints.perf_tokens_per_s == pytest.approx(rates[1], abs=0.001)
        firsts = sorted(end.latency_first_token_ms or 0 for end in ends)
        assert after.perf_hints.first_token_ms == firsts[1]


async def test_the_last_error_is_told_in_stable_words() -> None:
    async with scripted_engine("llamacpp", pieces=("said",)) as server, AdapterHost() as host:
        readiness = Readiness(host)
        host.bind(adapter(server.url, pool_id="chat", replica_id="a"))
        await host.submit("chat", task())
        server.behave(truncate="reset", pieces=("secret text",))
        stream = await host.submit("chat", task())
        with pytest.raises(WorkerError):
            await stream.collect()
        (told,) = await readiness.records()
        assert told.last_error == "WORKER_RESET (reset)"
        assert "secret" not in told.model_dump_json()
        # What was seen of another adapter is not this one's.
        host.rebind(adapter(server.url, pool_id="chat", replica_id="a"))
        (told,) = await readiness.records()
        assert told.last_error is None
        host.unbind("chat", "a")
        assert await readiness.records() == ()
        assert readiness._seen == {}


async def test_an_engine_that_is_not_there() -> None:
    async with AdapterHost() as host:
        readiness = Readiness(host)
        host.bind(adapter("http://127.0.0.1:9", pool_id="chat", replica_id="a"))
        (told,) = await readiness.records()
        assert told.health.model_dump() == {"live": False, "ready": False}
        assert (told.slots_total, told.slots_free, told.engine_version) == (None, None, None)
        assert "slots_total" not in told.model_dump(mode="json")
