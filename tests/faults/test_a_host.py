"""A11: a replica whose circuit breaker is open."""

from __future__ import annotations

import time

from tests.faults.outcomes import ask, failed, released
from tests.faults.pools import Pool
from tests.transports import both_transports
from tests.unit.tasks import task
from tests.unit.wire import Connection, Received, answer, playing
from worker_adapters import PoolUnavailable

pytestmark = both_transports

TRIES = 50
GUARD = 0.010
"""Ten times what one refusal may take, in seconds; the quickest of them is held to it."""


async def breaking(connection: Connection) -> None:
    """Be well, and break every completion."""
    while True:
        request: Received = await connection.request()
        if request.path == "/completion":
            return
        await connection.send(answer("{}"))


async def test_a11_an_open_circuit_refuses_at_once_and_sends_nothing() -> None:
    async with released(), playing(breaking) as server, Pool(server.url) as pool:
        for _ in range(5):
            outcome = await ask(pool.made, task())
            assert outcome.error is not None
            assert outcome.error.detail == "reset"
        assert pool.breaker().state == "open"
        sent, connections = len(server.requests("/completion")), len(server.connections)
        assert sent == 5
        quickest = 1.0
        for _ in range(TRIES):
            began = time.perf_counter()
            try:
                await pool.submit(task())
            except PoolUnavailable:
                quickest = min(quickest, time.perf_counter() - began)
        assert quickest < GUARD
        assert len(server.requests("/completion")) == sent
        # What may be new is a probe's.
        asked = {
            request.path
            for connection in server.connections[connections:]
            for request in connection.received
        }
        assert asked <= {"/health", "/slots", "/props"}
        error = failed(
            await ask(pool.made, task()),
            PoolUnavailable,
            "circuit_open",
            phase="queue",
            processed="no",
            retriable=True,
            code="POOL_UNAVAILABLE",
        )
        assert error.retry_after_ms is not None
        assert 0 < error.retry_after_ms <= 2000
        assert (await pool.host.health("pool")).reason == "circuit_open"
