"""Two replicas for one task."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.host.scripted import Log, Scripted, failed, host_of, settled, task
from tests.unit.virtual_time import run
from worker_adapters import WorkerReset
from worker_adapters.host import HedgePolicy, PoolPolicy

ALWAYS = PoolPolicy(hedge=HedgePolicy(delay=1.0, budget=1.0))


def left_open(_: object) -> None:
    return None


def test_nothing_is_hedged_by_default() -> None:
    async def main() -> None:
        replicas = [Scripted(name) for name in "ab"]
        for replica in replicas:
            replica.gate = asyncio.Event()
        async with host_of(*replicas) as host:
            submit = asyncio.create_task(host.submit("pool", task()))
            await asyncio.sleep(100.0)
            assert sum(len(replica.tasks) for replica in replicas) == 1
            submit.cancel()

    run(main())


def test_who_is_slow_to_answer_loses() -> None:
    async def main() -> None:
        log, replicas = Log(), [Scripted(name) for name in "ab"]
        for replica in replicas:
            replica.gate = asyncio.Event()
        async with host_of(*replicas, policy=ALWAYS, observers=[log]) as host:
            submit = asyncio.create_task(host.submit("pool", task()))
            await settled()
            slow, quick = replicas if replicas[0].tasks else reversed(replicas)
            assert quick.gate is not None
            quick.gate.set()
            await asyncio.sleep(0.9)
            assert not quick.tasks
            stream = await submit
            assert len(quick.tasks) == len(slow.tasks) == 1
            # The loser is over when the winner is handed out.
            assert slow.submitting == {}
            assert (await host.health("pool")).in_flight <= 1
            assert (await stream.collect()).tokens_out == 2
            assert log.actions("hedge") == [("hedge", quick.replica_id, None)]
            assert host._dispatcher.tickets == {}

    run(main())


def test_who_has_answered_and_sends_no_token_loses_too() -> None:
    async def main() -> None:
        replicas = [Scripted(name, play=left_open) for name in "ab"]
        async with host_of(*replicas, policy=ALWAYS) as host:
            given = task()
            submit = asyncio.create_task(host.submit("pool", given))
            await settled()
            slow, quick = replicas if replicas[0].tasks else reversed(replicas)
            quick.play = lambda _: 3
            stream = await submit
            assert slow.bodies[given.task_id].is_closed
            assert [event.kind async for event in stream] == [
                "started", "token", "token", "token", "end",
            ]  # fmt: skip
            assert (await host.health("pool")).in_flight == 0

    run(main())


def test_after_the_first_token_nothing_is_hedged() -> None:
    async def main() -> None:
        replicas = [Scripted(name, play=left_open) for name in "ab"]
        async with host_of(*replicas, policy=ALWAYS) as host:
            given = task()
            submit = asyncio.create_task(host.submit("pool", given))
            await settled()
            (body,) = [one.bodies[given.task_id] for one in replicas if one.bodies]
            await asyncio.sleep(0.5)
            body.say("x")
            stream = await submit
            await asyncio.sleep(60.0)
            assert sum(len(replica.tasks) for replica in replicas) == 1
            body.finish()
            assert (await stream.collect()).text == "x"

    run(main())


def test_hedges_are_within_their_budget() -> None:
    async def main() -> None:
        policy = PoolPolicy(hedge=HedgePolicy(delay=1.0, budget=0.05))
        log, replicas = Log(), [Scripted(name) for name in "abc"]
        async with host_of(*replicas, policy=policy, observers=[log]) as host:
            for number in range(100):
                for replica in replicas:
                    replica.gate = asyncio.Event()
                submit = asyncio.create_task(host.submit("pool", task()))
                await asyncio.sleep(2.0)
                for replica in replicas:
                    assert replica.gate is not None
                    replica.gate.set()
                await (await submit).collect()
                assert len(log.actions("hedge")) <= 0.05 * (number + 1)
            assert len(log.actions("hedge")) == 5

    run(main())


def test_where_both_fail_the_first_one_s_failure_is_told() -> None:
    async def main() -> None:
        replicas = [Scripted(name, play=left_open) for name in "ab"]
        async with host_of(*replicas, policy=ALWAYS) as host:
            given = task()
            submit = asyncio.create_task(host.submit("pool", given))
            await settled()
            first, second = replicas if replicas[0].tasks else reversed(replicas)
            second.play = lambda _: failed("engine_error", processed="unknown", status=500)
            await asyncio.sleep(2.0)
            assert not submit.done()
            first.bodies[given.task_id].cut()
            stream = await submit
            with pytest.raises(WorkerReset) as caught:
                await stream.collect()
            assert caught.value.detail == "reset"

    run(main())


def test_cancelling_ends_both() -> None:
    async def main() -> None:
        replicas = [Scripted(name) for name in "ab"]
        for replica in replicas:
            replica.gate = asyncio.Event()
        async with host_of(*replicas, policy=ALWAYS) as host:
            given = task()
            submit = asyncio.create_task(host.submit("pool", given))
            await asyncio.sleep(2.0)
            assert [len(replica.submitting) for replica in replicas] == [1, 1]
            assert (await host.cancel("pool", given.task_id)).sent
            (event,) = [event async for event in await submit]
            assert event.finish_reason == "cancelled"
            again = asyncio.create_task(host.submit("pool", task()))
            await asyncio.sleep(2.0)
            again.cancel()
            with pytest.raises(asyncio.CancelledError):
                await again
            await settled()
            assert [len(replica.submitting) for replica in replicas] == [0, 0]
            assert (await host.health("pool")).in_flight == 0
            assert host._dispatcher.tickets == {}

    run(main())
