"""The flows of features/orchestratord.feature, by the example of docs/embedding.md."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from tests.embedding.orchestration import (
    POOL,
    WITHIN,
    Orchestration,
    Reading,
    eventually,
    slots_are_free,
    task,
)
from worker_adapters.testing.llamacpp import LlamaCppServer, tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    import httpx

    from worker_adapters.host import DrainReceipt

pytestmark = pytest.mark.real

scenarios("features/orchestratord.feature")

CORRELATION_ID: Final = "3f1c8a6e-6f5b-4c0e-9a55-0d3f0d1c2b7a"


@pytest.fixture(scope="module")
def servers() -> Iterator[list[LlamaCppServer]]:
    """Two engines of two slots, at about 1 ms a token, so that something can happen meanwhile."""
    model = tiny_model(layers=32, n_ctx_train=16384)
    with (
        LlamaCppServer(["-np", "2", "-c", "32768"], model=model) as one,
        LlamaCppServer(["-np", "2", "-c", "32768"], model=model) as other,
    ):
        yield [one, other]


@given("an orchestrator over two replicas", target_fixture="orchestration")
def _(servers: list[LlamaCppServer]) -> Iterator[Orchestration]:
    for server in servers:
        if server.returncode is not None:
            server.stop()
            server.start()
    with Orchestration(servers) as orchestration:
        yield orchestration


# What clients do.


@when(parsers.parse("a client submits a task of {tokens:d} tokens"), target_fixture="reading")
def _(orchestration: Orchestration, tokens: int) -> Reading:
    return orchestration.submit(tokens, **{"X-Correlation-Id": CORRELATION_ID})


@when(parsers.parse("it reads {tokens:d} tokens"))
def _(orchestration: Orchestration, reading: Reading, tokens: int) -> None:
    reading.open(orchestration.client)
    reading.read(tokens)


@when("it reads the stream to its end")
def _(orchestration: Orchestration, reading: Reading) -> None:
    reading.open(orchestration.client)
    reading.read()


@when("the client cancels the task", target_fixture="receipt")
def _(orchestration: Orchestration, reading: Reading) -> httpx.Response:
    return orchestration.client.post(f"/v1/tasks/{reading.task_id}/cancel")


@when("the client hangs up")
def _(reading: Reading) -> None:
    reading.hang_up()


# What happens to replicas.


@when("the replica that serves it is killed")
def _(servers: list[LlamaCppServer], reading: Reading) -> None:
    servers[int(reading.replica_id)].kill()


@when("the replica that serves it is drained", target_fixture="draining")
def _(orchestration: Orchestration, reading: Reading) -> Future[DrainReceipt]:
    drain = orchestration.host.drain(POOL, reading.replica_id, deadline_ms=60_000)
    return orchestration.begin(drain)


@when(parsers.parse("the pool sheds load for {seconds:d} seconds"))
def _(orchestration: Orchestration, seconds: int) -> None:
    shed = partial(orchestration.host.set_admission, POOL, "shed", retry_after_ms=seconds * 1000)
    orchestration.call(shed)


# What comes of it.


@then("it is accepted, under the client's correlation id")
def _(reading: Reading) -> None:
    assert reading.accepted.json() == {"task_id": reading.task_id, "pool_id": POOL}
    assert reading.accepted.headers["X-Correlation-Id"] == CORRELATION_ID


@then(parsers.parse("its stream is started, {tokens:d} tokens, then end"))
def _(orchestration: Orchestration, reading: Reading, tokens: int) -> None:
    reading.open(orchestration.client)
    reading.read()
    (kind, started), *between, (last, end) = reading.events
    assert (kind, last) == ("started", "end")
    assert {kind for kind, _ in between} <= {"token", "metrics"}
    assert reading.tokens == tokens
    assert started["engine"] == "llamacpp"
    assert started["correlation_id"] == CORRELATION_ID
    assert (end["tokens_out"], end["finish_reason"]) == (tokens, "length")
    assert orchestration.client.get(f"/v1/tasks/{reading.task_id}/stream").status_code == 404


@then("its stream ends as cancelled")
def _(reading: Reading) -> None:
    reading.read()
    kind, end = reading.events[-1]
    assert (kind, end["finish_reason"]) == ("end", "cancelled")


@then("no token came after the cancel was answered")
def _(reading: Reading, receipt: httpx.Response) -> None:
    assert receipt.status_code == 200
    assert receipt.json()["sent"]
    # What had been forwarded before is on its way; the engine was far from the end.
    assert reading.tokens <= reading.tokens_out < 8000


@then("the engines are idle")
def _(orchestration: Orchestration, servers: list[LlamaCppServer]) -> None:
    eventually("every slot is free", lambda: all(slots_are_free(one.url) for one in servers))
    eventually("no task is left", lambda: not any(orchestration.in_flight().values()))


@then(parsers.parse("its stream ends with the error {code}"))
def _(reading: Reading, code: str) -> None:
    reading.read()
    kind, error = reading.events[-1]
    assert (kind, error["code"], error["retriable"]) == ("error", code, True)


@then(parsers.parse("{count:d} further tasks are all served by the other replica"))
def _(orchestration: Orchestration, reading: Reading, count: int) -> None:
    served = {orchestration.served() for _ in range(count)}
    assert served == {"1" if reading.replica_id == "0" else "0"}


@then("the pool is healthy, with one replica that is not")
def _(orchestration: Orchestration, reading: Reading) -> None:
    def replicas() -> dict[str, bool]:
        health = orchestration.health()
        assert health["ready"]
        return {one["replica_id"]: one["ready"] for one in health["replicas"]}

    dead = reading.replica_id
    eventually("a probe has found it dead", lambda: not replicas()[dead])
    assert sum(replicas().values()) == 1


@then("a task comes back to the replica when it has been started again")
def _(orchestration: Orchestration, servers: list[LlamaCppServer], reading: Reading) -> None:
    server = servers[int(reading.replica_id)]
    server.stop()
    server.start()
    made = orchestration.adapter(server.url, reading.replica_id)
    orchestration.call(lambda: orchestration.host.rebind(made))
    eventually("it serves", lambda: orchestration.served() == reading.replica_id)


@then("the first task ends by itself")
def _(reading: Reading, draining: Future[DrainReceipt]) -> None:
    reading.read()
    assert reading.events[-1][0] == "end"
    # Tokens at its end that make no text are counted, and have no event.
    assert reading.tokens_out == 400 >= reading.tokens
    receipt = draining.result(WITHIN)
    assert (receipt.finished, receipt.aborted) == (1, 0)


@then("the replica serves tasks again when it is rebound")
def _(orchestration: Orchestration, servers: list[LlamaCppServer], reading: Reading) -> None:
    url = servers[int(reading.replica_id)].url
    made = orchestration.adapter(url, reading.replica_id)
    orchestration.call(lambda: orchestration.host.rebind(made))
    eventually("it serves", lambda: orchestration.served() == reading.replica_id)


@then(
    parsers.parse(
        "a task is refused with {status:d} and {code}, to be tried again in {seconds:d} seconds"
    )
)
def _(orchestration: Orchestration, status: int, code: str, seconds: int) -> None:
    refusal = orchestration.client.post("/v1/tasks", json=task(4))
    assert (refusal.status_code, refusal.json()["code"]) == (status, code)
    assert refusal.headers["Retry-After"] == str(seconds)
    assert refusal.json()["retry_after_ms"] == seconds * 1000


@then("tasks are accepted when the pool admits them again")
def _(orchestration: Orchestration) -> None:
    orchestration.call(lambda: orchestration.host.set_admission(POOL, "admit"))
    assert orchestration.served() in {"0", "1"}


@then(parsers.parse("a task without a prompt is refused with {status:d} and {code}"))
def _(orchestration: Orchestration, status: int, code: str) -> None:
    body = task(4)
    del body["prompt"]
    refusal = orchestration.client.post("/v1/tasks", json=body)
    assert (refusal.status_code, refusal.json()["code"]) == (status, code)
    assert "prompt" in refusal.json()["message"]


@then(parsers.parse("a task for a pool that does not exist is refused with {status:d} and {code}"))
def _(orchestration: Orchestration, status: int, code: str) -> None:
    refusal = orchestration.client.post("/v1/tasks?pool_id=none", json=task(4))
    assert (refusal.status_code, refusal.json()["code"]) == (status, code)


@then(
    parsers.parse("the stream of a task that does not exist is refused with {status:d} and {code}")
)
def _(orchestration: Orchestration, status: int, code: str) -> None:
    refusal = orchestration.client.get(f"/v1/tasks/{uuid4()}/stream")
    assert (refusal.status_code, refusal.json()["code"]) == (status, code)


@then("cancelling a task that does not exist is no error")
def _(orchestration: Orchestration) -> None:
    answer = orchestration.client.post(f"/v1/tasks/{uuid4()}/cancel")
    assert (answer.status_code, answer.json()["method"]) == (200, "none")


@then("the metrics count what clients were given")
def _(orchestration: Orchestration) -> None:
    readings = orchestration.readings
    assert sum(orchestration.started().values()) == len(readings)
    given_out = sum(reading.tokens_out for reading in readings)
    assert sum(orchestration.by_replica("tokens_out_total").values()) == given_out
    assert sum(orchestration.by_replica("tasks_canceled_total").values()) == 1
    outcomes = {
        labels["outcome"]: value
        for labels, value in orchestration.samples("tasks_finished_total")
        if value
    }
    assert outcomes == {"completed": 1, "cancelled": 1}


@then("the capabilities tell of both replicas")
def _(orchestration: Orchestration) -> None:
    document = orchestration.client.get("/v1/capabilities").json()
    told = {(one["pool_id"], one["replica_id"]): one for one in document["adapters"]}
    assert set(told) == {(POOL, "0"), (POOL, "1")}
    assert all(one["slots_total"] == 2 and one["engine_version"] for one in told.values())


@then("the metrics tell the slots of both engines")
def _(orchestration: Orchestration) -> None:
    def told(name: str) -> dict[str, float]:
        return orchestration.by_replica(name)

    eventually("both have told their slots", lambda: told("slots") == {"0": 2, "1": 2})
    eventually("and that they are free", lambda: told("slots_free") == {"0": 2, "1": 2})
