"""K: a whole replica that comes and goes, or fails now and then."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from tests.faults.outcomes import Outcome, ask, released
from tests.faults.pools import Pool
from tests.transports import both_transports
from tests.unit.tasks import task
from tests.unit.virtual_time import run as run_virtually
from tests.unit.wire import LAST_CHUNK, STREAM_HEAD, answer, final, frame, playing
from worker_adapters.host import PoolPolicy, ProbePolicy
from worker_adapters.testing.wire import RawServer

if TYPE_CHECKING:
    from tests.unit.wire import Connection

CLIENTS = 30
UP, DOWN, CYCLES = 3.0, 1.5, 2
PAUSE = 0.25
"""What a client waits after an error, in seconds."""
PACE = 0.5
"""Between two tokens, in seconds."""
INTERVAL = ProbePolicy().interval
TURN = PAUSE + 0.1
"""How late a client may come by after a probe, and what a busy machine adds in its steps."""


async def telling(connection: Connection) -> None:
    """Be well, and give three tokens at their pace."""
    while True:
        request = await connection.request()
        if request.path != "/completion":
            await connection.send(answer("{}"))
            continue
        await connection.send(STREAM_HEAD)
        for number in range(1, 4):
            await connection.send(frame("x", number))
            await connection.rest(PACE)
        await connection.send(final(3), LAST_CHUNK)


def test_k1_a_replica_that_dies_again_and_again_meets_no_storm_and_is_found_back() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        first = RawServer(telling)
        await first.start()
        url = first.url
        outcomes: list[Outcome] = []
        over = asyncio.Event()
        ups = [loop.time()]

        async def flap() -> None:
            server = first
            for _ in range(CYCLES):
                await asyncio.sleep(UP)
                await server.stop()
                await asyncio.sleep(DOWN)
                server = RawServer(telling, port=int(url.rpartition(":")[2]))
                await server.start()
                ups.append(loop.time())
            await asyncio.sleep(UP)
            over.set()
            await server.stop()

        async def client(pool: Pool) -> None:
            while not over.is_set():
                outcome = await ask(pool.made, task())
                outcomes.append(outcome)
                if outcome.error is not None:
                    await asyncio.sleep(PAUSE)

        async with released(), Pool(url) as pool:
            times: dict[str, list[float]] = {"submit": [], "start": []}

            def note(event: object) -> None:
                action = getattr(event, "action", "")
                if action in times:
                    times[action].append(loop.time())

            pool.host.observe(note)
            flapping = asyncio.create_task(flap())
            await asyncio.gather(*(client(pool) for _ in range(CLIENTS)))
            await flapping
            policy = PoolPolicy().retries
            seconds = loop.time() - ups[0]
            bound = (1 + policy.budget) * len(outcomes) + policy.floor * (seconds + 1)
            assert len(times["submit"]) <= bound
            details = {one.error.detail for one in outcomes if one.error is not None}
            assert "circuit_open" in details or "unavailable" in details
            assert details <= {"reset", "truncated", "connect", "circuit_open", "unavailable"}
            for up in ups[1:]:
                back = min(start for start in times["start"] if start >= up)
                assert back - up <= INTERVAL + TURN, f"{back - up:.2f} s"
            # A client that is refused sends nothing: what is sent is what the replica could take.
            down = [
                sent
                for sent in times["submit"]
                if not any(up <= sent <= up + UP + 0.01 for up in ups)
            ]
            assert len(down) <= CYCLES * (CLIENTS + 5)
            ended = [one for one in outcomes if one.error is None]
            assert ended
            assert all(one.tokens == ["x", "x", "x"] for one in ended)

    run_virtually(main())


@both_transports
async def test_k2_a_fifth_of_errors_opens_no_breaker() -> None:
    draws = random.Random(11)
    refusals = 0

    async def failing(connection: Connection) -> None:
        nonlocal refusals
        while True:
            request = await connection.request()
            if request.path != "/completion":
                await connection.send(answer("{}"))
            elif draws.random() < 0.2:
                refusals += 1
                await connection.send(
                    answer('{"error":{"code":500,"message":"boom"}}', "500 Internal Server Error")
                )
            else:
                await connection.send(STREAM_HEAD + frame("x", 1) + final(1) + LAST_CHUNK)

    async with released(), playing(failing) as server, Pool(server.url) as pool:
        failures = 0
        for _ in range(300):
            outcome = await ask(pool.made, task())
            failures += outcome.error is not None
            if outcome.error is not None:
                assert outcome.error.detail == "engine_error"
        assert pool.breaker().trips == 0
        assert pool.log.actions("breaker") == []
        # A 500 leaves open what happened, so none of them was sent again.
        assert failures == refusals
        assert 40 <= refusals <= 80
        assert len(server.requests("/completion")) == 300
