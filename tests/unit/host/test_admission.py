"""Who is let in: the orchestrator's decision, the limits, and waiting for a place."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.unit.host.scripted import Log, Scripted, failed, host_of, settled, task
from tests.unit.virtual_time import run
from worker_adapters import DeadlineUnmet, PoolUnavailable, TokenStream
from worker_adapters.host import AdapterHost, PoolPolicy


def left_open(_: object) -> None:
    return None


def narrow(**fields: object) -> PoolPolicy:
    return PoolPolicy.model_validate(
        {"max_in_flight_per_replica": 1, "max_waiting": 8, "max_wait": 5.0, **fields}
    )


async def refused(host: AdapterHost, pool_id: str = "pool") -> PoolUnavailable:
    with pytest.raises(PoolUnavailable) as caught:
        await host.submit(pool_id, task())
    assert caught.value.processed == "no"
    assert caught.value.retriable
    return caught.value


def test_what_the_orchestrator_decides() -> None:
    async def main() -> None:
        one = Scripted("a", play=left_open)
        log = Log()
        async with host_of(one, observers=[log]) as host:
            running = await host.submit("pool", task())
            host.set_admission("pool", "shed", retry_after_ms=1500)
            error = await refused(host)
            assert (error.code, error.detail) == ("ADMISSION_REJECT", "shed")
            assert error.retry_after_ms == 1500
            health = await host.health("pool")
            assert (health.ready, health.reason, health.decision) == (False, "shed", "shed")
            host.set_admission("pool", "drain")
            error = await refused(host)
            assert (error.code, error.detail) == ("POOL_UNREADY", "draining")
            assert error.retry_after_ms is None
            host.set_admission("pool", "admit")
            await (await host.submit("pool", task())).aclose()
            assert len(one.tasks) == 2
            assert not running.is_terminal
            assert log.actions("admission", "reject") == [
                ("admission", None, "shed"),
                ("reject", None, "shed"),
                ("admission", None, "drain"),
                ("reject", None, "draining"),
                ("admission", None, "admit"),
            ]
            with pytest.raises(ValueError, match="admit, shed or drain"):
                host.set_admission("pool", "maybe")  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="no pool"):
                host.set_admission("other", "shed")

    run(main())


@pytest.mark.parametrize(
    "time", [-5, 86_400_001, 10**30, float("nan"), 1.5, "x", True], ids=lambda one: str(one)[:9]
)
def test_a_time_to_wait_that_is_none_is_refused_and_changes_nothing(time: Any) -> None:
    async def main() -> None:
        async with host_of(Scripted("a")) as host:
            with pytest.raises(ValueError, match="retry_after_ms must be a whole number"):
                host.set_admission("pool", "shed", retry_after_ms=time)
            await (await host.submit("pool", task())).collect()
            host.set_admission("pool", "shed", retry_after_ms=86_400_000)
            assert (await refused(host)).retry_after_ms == 86_400_000

    run(main())


def test_a_full_replica_is_passed_over_and_a_full_pool_refuses_at_once() -> None:
    async def main() -> None:
        replicas = [Scripted(name, play=left_open) for name in "ab"]
        policy = narrow(max_waiting=0)
        async with host_of(*replicas, policy=policy) as host:
            streams = [await host.submit("pool", task()) for _ in range(2)]
            assert [len(replica.tasks) for replica in replicas] == [1, 1]
            began = asyncio.get_running_loop().time()
            error = await refused(host)
            assert asyncio.get_running_loop().time() == began
            assert (error.code, error.detail) == ("REPLICA_EXHAUSTED", "saturated")
            await streams[0].aclose()
            await host.submit("pool", task())

    run(main())


def test_a_pool_has_a_limit_of_its_own() -> None:
    async def main() -> None:
        policy = PoolPolicy(max_in_flight=2)
        replicas = [Scripted(name, play=left_open) for name in "abc"]
        async with host_of(*replicas, policy=policy) as host:
            streams = [await host.submit("pool", task()) for _ in range(2)]
            error = await refused(host)
            assert (error.code, error.detail) == ("ADMISSION_REJECT", "saturated")
            host.configure("pool", PoolPolicy(max_in_flight=3))
            streams.append(await host.submit("pool", task()))
            assert (await refused(host)).code == "ADMISSION_REJECT"

    run(main())


def test_those_who_wait_come_in_their_order_and_a_dropped_stream_makes_room() -> None:
    async def main() -> None:
        one = Scripted("a", play=left_open)
        async with host_of(one, policy=narrow()) as host:
            running: TokenStream | None = await host.submit("pool", first := task())
            assert running is not None
            tasks = [task() for _ in range(3)]
            waiting = [asyncio.create_task(host.submit("pool", each)) for each in tasks]
            await settled()
            assert (await host.health("pool")).waiting == 3
            one.drop(first.task_id)
            running = None
            for number, submit in enumerate(waiting):
                stream = await submit
                assert [each.task_id for each in one.tasks[1:]] == [
                    each.task_id for each in tasks[: number + 1]
                ]
                await stream.aclose()
            assert (await host.health("pool")).waiting == 0

    run(main())


def test_waiting_is_bounded_by_count_by_time_and_by_the_deadline() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        one = Scripted("a", play=left_open)
        async with host_of(one, policy=narrow(max_waiting=2)) as host:
            await host.submit("pool", task())
            began = loop.time()
            long = asyncio.create_task(host.submit("pool", task()))
            short = asyncio.create_task(host.submit("pool", task(deadline_ms=1000)))
            await settled()
            assert (await refused(host)).detail == "saturated"
            assert loop.time() == began
            with pytest.raises(DeadlineUnmet) as late:
                await short
            assert (late.value.phase, late.value.processed) == ("queue", "no")
            assert loop.time() - began == pytest.approx(1.0, abs=0.01)
            with pytest.raises(PoolUnavailable) as waited:
                await long
            assert (waited.value.code, waited.value.detail) == ("REPLICA_EXHAUSTED", "saturated")
            assert loop.time() - began == pytest.approx(5.0, abs=0.01)
            assert (await host.health("pool")).waiting == 0
            assert len(one.tasks) == 1

    run(main())


def test_who_waited_gets_what_is_left_of_its_time() -> None:
    async def main() -> None:
        one = Scripted("a", play=left_open)
        async with host_of(one, policy=narrow()) as host:
            stream = await host.submit("pool", task())
            waiting = asyncio.create_task(host.submit("pool", task(deadline_ms=8000)))
            await asyncio.sleep(3.0)
            await stream.aclose()
            await waiting
            assert 4900 <= one.tasks[1].deadline_ms <= 5000

    run(main())


@pytest.mark.parametrize("way", ["drain", "unbind", "shed", "open", "close"])
def test_those_who_wait_for_what_leaves_fail_at_once(way: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        one = Scripted("a", play=left_open)
        async with host_of(one, policy=narrow(max_in_flight_per_replica=5)) as host:
            given = [task() for _ in range(5)]
            streams = [await host.submit("pool", each) for each in given]
            waiting = [asyncio.create_task(host.submit("pool", task())) for _ in range(3)]
            await settled()
            began = loop.time()
            ending: asyncio.Task[Any] | None = None
            match way:
                case "drain":
                    ending = asyncio.create_task(host.drain("pool", deadline_ms=3000))
                case "unbind":
                    host.unbind("pool", "a")
                case "shed":
                    host.set_admission("pool", "shed")
                case "close":
                    ending = asyncio.create_task(host.aclose())
                case "open":
                    # Those that break make room; who gets it breaks, too, and then it is open.
                    one.play = lambda _: failed("reset", processed="unknown")
                    for each, stream in zip(given, streams, strict=True):
                        one.bodies[each.task_id].cut()
                        await stream.aclose()
                        del stream
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            assert loop.time() == began
            for outcome in outcomes:
                assert isinstance(outcome, Exception)
            if way != "open":
                codes = {outcome.code for outcome in outcomes}  # type: ignore[union-attr]
                assert codes == {"ADMISSION_REJECT" if way == "shed" else "POOL_UNREADY"}
                assert len(one.tasks) == 5
            if ending is not None:
                await ending

    run(main())


def test_a_new_replica_takes_those_who_wait() -> None:
    async def main() -> None:
        one, two = Scripted("a", play=left_open), Scripted("b", play=left_open)
        async with host_of(one, policy=narrow()) as host:
            await host.submit("pool", task())
            waiting = [asyncio.create_task(host.submit("pool", task())) for _ in range(2)]
            await settled()
            host.bind(two)
            await waiting[0]
            assert len(two.tasks) == 1
            host.rebind(Scripted("a", play=left_open))
            await waiting[1]

    run(main())


def test_one_who_waits_is_cancelled() -> None:
    async def main() -> None:
        one = Scripted("a", play=left_open)
        async with host_of(one, policy=narrow()) as host:
            stream = await host.submit("pool", task())
            given, other = task(), task()
            by_id = asyncio.create_task(host.submit("pool", given))
            by_task = asyncio.create_task(host.submit("pool", other))
            last = asyncio.create_task(host.submit("pool", task()))
            await settled()
            assert (await host.cancel("pool", given.task_id)).sent
            (event,) = [event async for event in await by_id]
            assert (event.kind, event.finish_reason) == ("end", "cancelled")
            by_task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await by_task
            assert len(host._dispatcher.tickets) == 2
            await stream.aclose()
            await last
            assert len(one.tasks) == 2

    run(main())


def test_a_thousand_come_through_a_narrow_door() -> None:
    async def main() -> None:
        replicas = [Scripted(str(number)) for number in range(3)]
        policy = narrow(max_waiting=1000, max_wait=3600.0)
        async with host_of(*replicas, policy=policy) as host:

            async def one() -> None:
                await (await host.submit("pool", task())).collect()

            await asyncio.gather(*(one() for _ in range(1000)))
            assert sum(len(replica.tasks) for replica in replicas) == 1000
            health = await host.health("pool")
            assert (health.in_flight, health.waiting) == (0, 0)

    run(main())
