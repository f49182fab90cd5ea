"""The orchestrator in Rust, ``rust/net/examples/orchestrator``, before a real engine."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import httpx
import pytest

from tests.real.support import FREED, ONCE, task
from worker_adapters import LlamaCppAdapter, SseDecoder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.real.support import Engine
    from worker_adapters import TaskRequest
    from worker_adapters.testing.llamacpp import LlamaCppServer

# The first test waits for the build.
pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(600)]

REPOSITORY = Path(__file__).parents[2]
CARGO = os.environ.get("CARGO", "cargo")

# What differs from run to run, or is not asked for by the example.
NOT_COMPARED = {
    "correlation_id",
    "decode_ms",
    "decode_time_ms",
    "latency_first_token_ms",
    "model",
}

Event = tuple[str, dict[str, Any]]


@pytest.fixture(scope="session")
def program() -> Path:
    """The built example, of what the Rust tests have compiled."""
    command = [CARGO, "build", "--quiet", "--locked", "--workspace"]
    command += ["--example", "orchestrator", "--message-format", "json"]
    built = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)
    artefacts = (json.loads(line) for line in built.stdout.splitlines())
    found = [line["executable"] for line in artefacts if line.get("executable")]
    assert len(found) == 1
    return Path(found[0])


@contextlib.contextmanager
def orchestrator(program: Path, engine_url: str) -> Iterator[str]:
    """Run it for this engine; where it listens."""
    with subprocess.Popen([program, engine_url], stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            word, _, url = running.stdout.readline().partition(" ")
            assert word == "listening"
            yield url.strip()
        finally:
            running.kill()


@pytest.fixture
async def front(program: Path, slow_server: LlamaCppServer) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the orchestrator before ``slow_server``."""
    with orchestrator(program, slow_server.url) as url:
        async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
            yield client


async def events_of(answer: httpx.Response) -> AsyncIterator[Event]:
    """The events of an answer as they come; that the body is whole httpx sees to."""
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream"
    decoder = SseDecoder()
    async for data in answer.aiter_bytes():
        for event in decoder.feed(data):
            yield event.event, json.loads(event.data)
    decoder.finish()
    assert decoder.eof_pending is None


async def submitted(front: httpx.AsyncClient, sent: TaskRequest) -> list[Event]:
    async with front.stream("POST", "/v1/tasks", content=sent.model_dump_json()) as answer:
        return [event async for event in events_of(answer)]


def comparable(events: list[Event]) -> list[Event]:
    return [
        (kind, {name: value for name, value in data.items() if name not in NOT_COMPARED})
        for kind, data in events
    ]


async def test_what_is_forwarded_is_what_an_adapter_in_python_gives(
    front: httpx.AsyncClient, slow_adapter: LlamaCppAdapter
) -> None:
    sent = task(determinism="strict", seed=7)
    forwarded = await submitted(front, sent)
    async with await slow_adapter.submit(sent) as stream:
        expected: list[Event] = [(event.kind, event.data) async for event in stream]
    assert comparable(forwarded) == comparable(expected)
    kinds = [kind for kind, _ in forwarded]
    assert kinds == ["started", *["token"] * (len(kinds) - 2), "end"]
    assert [data["i"] for kind, data in forwarded if kind == "token"] == list(range(len(kinds) - 2))
    assert UUID(forwarded[0][1]["correlation_id"]).version == 4
    # An answer that came in one piece took no millisecond.
    assert forwarded[-1][1]["decode_ms"] >= 0


async def test_the_correlation_id_goes_through(front: httpx.AsyncClient) -> None:
    body = task(max_tokens=1).model_dump_json()
    headers = {"x-correlation-id": "from-the-client"}
    async with front.stream("POST", "/v1/tasks", content=body, headers=headers) as answer:
        events = [event async for event in events_of(answer)]
    assert events[0][1]["correlation_id"] == "from-the-client"


async def test_cancel_frees_the_engine_and_ends_the_stream(
    front: httpx.AsyncClient, slow_engine: Engine
) -> None:
    sent = task(max_tokens=15_000, ctx=16_000)
    async with front.stream("POST", "/v1/tasks", content=sent.model_dump_json()) as answer:
        events = events_of(answer)
        while (await anext(events))[0] != "token":
            pass
        assert await slow_engine.busy() == 1
        receipt = await front.delete(f"/v1/tasks/{sent.task_id}")
        await slow_engine.idle(within=FREED)
        rest = [event async for event in events]
    assert receipt.json()["method"] == "close"
    assert receipt.json()["sent"] is True
    # What was on its way before the cancel comes before its end, and nothing after it.
    kind, end = rest[-1]
    assert (kind, end["finish_reason"]) == ("end", "cancelled")
    assert {kind for kind, _ in rest[:-1]} <= {"token"}
    again = await front.delete(f"/v1/tasks/{sent.task_id}")
    assert again.json()["sent"] is False
    unknown = await front.delete(f"/v1/tasks/{uuid4()}")
    assert unknown.json()["method"] == "none"


async def test_a_client_that_hangs_up_frees_the_engine(
    front: httpx.AsyncClient, slow_engine: Engine
) -> None:
    sent = task(max_tokens=15_000, ctx=16_000)
    async with front.stream("POST", "/v1/tasks", content=sent.model_dump_json()) as answer:
        # Held: a generator that nobody holds closes the response.
        events = events_of(answer)
        while (await anext(events))[0] != "token":
            pass
        assert await slow_engine.busy() == 1
    await slow_engine.idle(within=FREED)


async def test_an_id_in_flight_is_refused_and_its_task_goes_on(
    front: httpx.AsyncClient, slow_engine: Engine
) -> None:
    sent = task(max_tokens=15_000, ctx=16_000)
    body = sent.model_dump_json()
    async with front.stream("POST", "/v1/tasks", content=body) as answer:
        events = events_of(answer)
        while (await anext(events))[0] != "token":
            pass
        refused = await front.post("/v1/tasks", content=body)
        assert (refused.status_code, refused.json()["detail"]) == (400, "duplicate_id")
        assert (await anext(events))[0] == "token"
        assert await slow_engine.busy() == 1
    await slow_engine.idle(within=FREED)


async def test_the_reports_are_those_of_the_adapter_in_python(
    front: httpx.AsyncClient, slow_adapter: LlamaCppAdapter, slow_engine: Engine
) -> None:
    assert slow_engine.url
    reports = {
        "/v1/health": (await slow_adapter.health()).model_dump(),
        "/v1/props": (await slow_adapter.props()).model_dump(),
        "/v1/version": await slow_adapter.engine_version(),
    }
    for path, expected in reports.items():
        assert (await front.get(path)).json() == expected


async def test_refusals_before_the_stream(front: httpx.AsyncClient) -> None:
    fields = json.loads(task().model_dump_json())
    for changes, detail, word in (
        ({"ctx": -1}, "invalid_request", "ctx"),
        ({"extensions": {"stop": ["x"]}}, "invalid_request", "extensions.stop"),
        ({"seed": 2**32}, "invalid_request", "seed"),
        ({"engine": "vllm"}, "invalid_request", "engine"),
        ({"workload": "embedding"}, "unsupported", "completions"),
        # The engine's own word: the prompt is longer than its context.
        ({"prompt": ONCE * 9000}, "context_overflow", "context"),
    ):
        answer = await front.post("/v1/tasks", json=fields | changes)
        assert answer.status_code == 400
        error = answer.json()
        assert (error["code"], error["detail"]) == ("INVALID_PARAMS", detail)
        assert word in error["message"]
        assert ONCE not in error["message"]
    assert (await front.post("/v1/tasks", content=b"{")).json()["detail"] == "invalid_request"
    assert (await front.get("/elsewhere")).status_code == 404


async def test_an_engine_that_is_not_there(program: Path) -> None:
    with orchestrator(program, "http://127.0.0.1:1") as url:
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            refused = await client.post("/v1/tasks", content=task().model_dump_json())
            health = await client.get("/v1/health")
    assert refused.status_code == 503
    assert refused.json()["code"] == "POOL_UNAVAILABLE"
    assert refused.json()["processed"] == "no"
    assert health.json() == {"live": False, "ready": False, "reason": "connect"}
