"""What the host does with a breaker: who is turned away, who makes the trial, who comes after."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.host.scripted import (
    GONE,
    READY,
    Log,
    Scripted,
    failed,
    host_of,
    settled,
    task,
)
from tests.unit.virtual_time import run
from worker_adapters import PoolUnavailable, TokenStream, WorkerError
from worker_adapters.host import AdapterHost, BreakerPolicy, PoolPolicy, ProbePolicy

BROKEN = failed("engine_error", processed="unknown", status=500)


async def broken(host: AdapterHost, one: Scripted) -> None:
    """Have the breaker of the only replica open."""
    one.play = lambda _: BROKEN
    for _ in range(5):
        with pytest.raises(WorkerError) as caught:
            await host.submit("pool", task())
        assert caught.value.detail == "engine_error"
    one.tasks.clear()


async def come(host: AdapterHost, count: int) -> list[TokenStream | BaseException]:
    """Have so many tasks come at once."""
    return await asyncio.gather(
        *(host.submit("pool", task()) for _ in range(count)), return_exceptions=True
    )


def test_ten_thousand_at_a_half_open_breaker_make_one_trial() -> None:
    async def main() -> None:
        # Where each of so many tasks was created need not be kept.
        asyncio.get_running_loop().set_debug(False)
        one, log = Scripted("a"), Log()
        async with host_of(one, observers=[log]) as host:
            await broken(host, one)
            await come(host, 100)
            assert one.tasks == []
            await asyncio.sleep(2.0)
            one.gate = asyncio.Event()
            one.play = lambda _: 1
            waiting = asyncio.create_task(come(host, 10_000))
            await settled()
            assert len(one.tasks) == 1
            one.gate.set()
            outcomes = await waiting
            assert sum(isinstance(outcome, TokenStream) for outcome in outcomes) == 1
            for outcome in outcomes:
                if not isinstance(outcome, TokenStream):
                    assert isinstance(outcome, PoolUnavailable)
                    assert outcome.detail == "circuit_open"
            assert [state for _, _, state in log.actions("breaker")] == [
                "open", "half_open", "closed",
            ]  # fmt: skip

    run(main())


@settings(deadline=None, max_examples=15)
@given(
    trials=st.lists(
        st.tuples(st.sampled_from(["fails", "cancelled", "dropped"]), st.integers(1, 60)),
        max_size=5,
    )
)
def test_whatever_becomes_of_a_trial_there_is_one_at_a_time(trials: list[tuple[str, int]]) -> None:
    async def main() -> None:
        one = Scripted("a")
        async with host_of(one, policy=PoolPolicy(breaker=BreakerPolicy(cooldown=1.0))) as host:
            await broken(host, one)
            await asyncio.sleep(1.0)
            for what, count in trials:
                one.tasks.clear()
                one.gate = asyncio.Event()
                one.play = lambda _: BROKEN
                waiting = [asyncio.create_task(host.submit("pool", task())) for _ in range(count)]
                await settled()
                assert len(one.tasks) == 1
                match what:
                    case "fails":
                        one.gate.set()
                    case "cancelled":
                        assert (await host.cancel("pool", one.tasks[0].task_id)).sent
                    case "dropped":
                        for each in waiting:
                            each.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)
                if what == "fails":
                    assert len(one.tasks) == 1
                    await asyncio.sleep(60.0)
            one.gate = None
            one.play = lambda _: 1
            await (await host.submit("pool", task())).collect()
            assert (await host.health("pool")).replicas[0].breaker == "closed"

    run(main())


def test_a_replica_that_was_gone_is_tried_as_soon_as_a_probe_finds_it() -> None:
    async def main() -> None:
        one = Scripted("a")
        policy = PoolPolicy(breaker=BreakerPolicy(cooldown=3600.0, cooldown_cap=3600.0))
        probes = ProbePolicy(interval=2.0)
        async with host_of(one, policy=policy, probes=probes) as host:
            await settled()
            await broken(host, one)
            one.state = GONE
            await asyncio.sleep(2.0)
            one.play, one.state = (lambda _: 1), READY
            await asyncio.sleep(2.0)
            await (await host.submit("pool", task())).collect()

    run(main())


def test_a_failure_has_the_replica_probed_at_once() -> None:
    async def main() -> None:
        one = Scripted("a")
        async with host_of(one, probes=ProbePolicy(interval=100.0)) as host:
            await asyncio.sleep(50.0)
            one.state = GONE
            one.play = lambda _: failed("connect")
            with pytest.raises(PoolUnavailable):
                await host.submit("pool", task())
            await settled()
            assert not (await host.health("pool")).live

    run(main())


def test_streams_that_break_open_it_as_submits_do() -> None:
    async def main() -> None:
        one = Scripted("a", play=lambda _: None)
        async with host_of(one) as host:
            for _ in range(5):
                given = task()
                stream = await host.submit("pool", given)
                one.bodies[given.task_id].say("x")
                one.bodies[given.task_id].cut()
                with pytest.raises(WorkerError):
                    await stream.collect()
            with pytest.raises(PoolUnavailable) as caught:
                await host.submit("pool", task())
            assert caught.value.detail == "circuit_open"

    run(main())


def test_what_clients_get_wrong_or_give_up_opens_nothing() -> None:
    async def main() -> None:
        one = Scripted("a", play=lambda _: failed("invalid_request", retriable=False, status=400))
        async with host_of(one) as host:
            for _ in range(20):
                with pytest.raises(WorkerError):
                    await host.submit("pool", task())
            one.play = lambda _: None
            for _ in range(20):
                await (await host.submit("pool", task())).cancel()
            for _ in range(20):
                await (await host.submit("pool", task())).aclose()
            assert (await host.health("pool")).replicas[0].breaker == "closed"

    run(main())
