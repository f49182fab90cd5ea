"""G5: an engine that says it is ready and refuses every task."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.faults.outcomes import ask
from tests.faults.pools import Pool
from tests.unit.host.scripted import QUIET
from tests.unit.tasks import task
from tests.unit.virtual_time import run as run_virtually
from tests.unit.wire import answer, playing
from worker_adapters.host import ProbePolicy

if TYPE_CHECKING:
    from tests.transports import Transport
    from tests.unit.wire import Connection

REFUSALS = {
    "loading": '{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}',
    "unavailable": "upstream connect error",
}
MINUTES = 1


@pytest.mark.parametrize(
    ("refusal", "interval"), [("unavailable", QUIET.interval), ("loading", 2.0)]
)
def test_g5_the_breaker_opens_from_submits_whatever_health_says(
    refusal: str, interval: float, transport: Transport
) -> None:
    refused = answer(REFUSALS[refusal], "503 Service Unavailable")

    async def lying(connection: Connection) -> None:
        while True:
            request = await connection.request()
            await connection.send(refused if request.path == "/completion" else answer("{}"))

    async def main() -> None:
        probes = ProbePolicy(interval=interval)
        async with playing(lying) as server, Pool(server.url, probes=probes) as pool:
            for number in range(5):
                assert pool.breaker().state == "closed", number
                # The probes in between, which go well, do not hide it.
                await pool.host.probe()
                outcome = await ask(pool.made, task())
                assert outcome.error is not None
                assert (outcome.error.detail, outcome.error.status) == (refusal, 503)
            health = await pool.host.health("pool")
            assert [one.ready for one in health.replicas] == [True]
            assert (health.live, health.ready, health.reason) == (True, False, "circuit_open")
            # From then on a trial now and then is all that it is asked, however long it lies.
            said = 0
            while said < MINUTES * 60_000:
                outcome = await ask(pool.made, task())
                assert outcome.error is not None
                if outcome.error.detail == "circuit_open":
                    assert outcome.error.retry_after_ms is not None
                    pause = outcome.error.retry_after_ms
                    said += pause
                    await asyncio.sleep(pause / 1000)
            trials = len(server.requests("/completion")) - 5
            assert 4 <= trials <= 4 + MINUTES * 60 / 30 + 1

    assert transport
    run_virtually(main())
