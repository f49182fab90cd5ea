"""Which replica gets a task."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.host.scripted import READY, Scripted, host_of, keyed, task
from tests.unit.virtual_time import run
from worker_adapters import TokenStream, WorkerProps
from worker_adapters.host import BreakerPolicy, PoolPolicy
from worker_adapters.host.replica import FRESH_SECONDS, Replica, Report
from worker_adapters.host.routing import Router

if TYPE_CHECKING:
    from collections.abc import Sequence


def left_open(_: object) -> None:
    return None


def replicas_of(count: int) -> list[Replica]:
    return [Replica(Scripted(str(number)), None, BreakerPolicy()) for number in range(count)]


def every(_: Replica) -> bool:
    return True


def loaded(replica: Replica, in_flight: int) -> Replica:
    replica.leases = {object() for _ in range(in_flight)}  # type: ignore[misc]
    return replica


def reported(replica: Replica, total: int, free: int, at: float, in_flight: int = 0) -> Replica:
    props = WorkerProps(slots_total=total, slots_free=free)
    replica.report = Report(READY, props, at, in_flight)
    return replica


def picked(router: Router, replicas: Sequence[Replica], now: float = 0.0) -> str:
    replica = router.pick(replicas, every, now)
    assert replica is not None
    return replica.replica_id


def test_the_less_loaded_of_two() -> None:
    replicas = replicas_of(2)
    loaded(replicas[0], 3)
    router = Router(random.Random(1))
    assert {picked(router, replicas) for _ in range(50)} == {"1"}


def test_a_tie_is_drawn() -> None:
    router = Router(random.Random(1))
    for count in (2, 3):
        counts = Counter(picked(router, replicas_of(count)) for _ in range(3000))
        assert min(counts.values()) > 0.8 * 3000 / count


def test_slots_make_the_same_load_weigh_less() -> None:
    large, small = replicas_of(2)
    reported(loaded(large, 4), 16, 12, 0.0, in_flight=4)
    reported(loaded(small, 2), 4, 2, 0.0, in_flight=2)
    assert {picked(Router(random.Random(1)), [large, small]) for _ in range(50)} == {"0"}


def test_what_others_do_on_an_engine_counts_the_less_the_older_it_is() -> None:
    replica = reported(replicas_of(1)[0], 8, 2, 100.0)
    assert replica.busy(100.0) == 6.0
    assert replica.busy(100.0 + FRESH_SECONDS) == 3.0
    assert replica.busy(100.0 + 99 * FRESH_SECONDS) < 0.1
    # What we have begun since comes on top.
    loaded(replica, 2)
    assert replica.busy(100.0) == 8.0
    assert replica.busy(1e9) >= 2.0


def test_only_what_fits_is_chosen() -> None:
    router, replicas = Router(random.Random(1)), replicas_of(5)
    for fit in range(5):
        chosen = {router.pick(replicas, lambda one, fit=fit: one is replicas[fit], 0.0)}  # type: ignore[misc]
        assert chosen == {replicas[fit]}
    assert router.pick(replicas, lambda _: False, 0.0) is None
    assert router.pick([], every, 0.0) is None


def test_two_choices_keep_a_burst_level() -> None:
    async def main() -> None:
        replicas = [Scripted(str(number), play=left_open) for number in range(8)]
        async with host_of(*replicas) as host:
            streams = [await host.submit("pool", task()) for _ in range(800)]
            counts = [len(replica.tasks) for replica in replicas]
            assert max(counts) - min(counts) <= 8
            assert len(streams) == 800

    run(main())


# Affinity.


def kept(router: Router, key: str, replicas: Sequence[Replica], slack: float = 1.25) -> str:
    replica = router.keep(key, replicas, every, slack)
    assert replica is not None
    return replica.replica_id


def test_a_key_leads_to_one_replica_and_keys_are_spread() -> None:
    router, replicas = Router(random.Random(1)), replicas_of(8)
    homes = {key: kept(router, key, replicas) for key in map(str, range(2000))}
    assert homes == {key: kept(router, key, replicas) for key in homes}
    counts = Counter(homes.values())
    assert len(counts) == 8
    assert max(counts.values()) < 1.4 * 250


def test_a_replica_that_goes_moves_its_own_keys_alone() -> None:
    router, replicas = Router(random.Random(1)), replicas_of(8)
    keys = [str(number) for number in range(1000)]
    before = {key: kept(router, key, replicas) for key in keys}
    gone = replicas.pop(3).replica_id
    after = {key: kept(router, key, replicas) for key in keys}
    assert all((before[key] != after[key]) == (before[key] == gone) for key in keys)


@given(
    loads=st.lists(st.integers(min_value=0, max_value=40), min_size=1, max_size=8),
    key=st.text(max_size=8),
    slack=st.floats(min_value=1.0, max_value=4.0),
)
def test_no_key_loads_a_replica_far_above_the_mean(
    loads: list[int], key: str, slack: float
) -> None:
    replicas = replicas_of(len(loads))
    for replica, load in zip(replicas, loads, strict=True):
        loaded(replica, load)
    chosen = Router(random.Random(1)).keep(key, replicas, every, slack)
    assert chosen is not None
    assert chosen.in_flight < slack * (sum(loads) + 1) / len(loads) + 1


def test_a_hot_key_spills_over_and_comes_back() -> None:
    async def main() -> None:
        replicas = [Scripted(str(number), play=left_open) for number in range(4)]
        async with host_of(*replicas, policy=PoolPolicy(affinity_slack=1.25)) as host:
            streams: list[TokenStream] = [
                await host.submit("pool", keyed("hot")) for _ in range(40)
            ]
            counts = sorted(len(replica.tasks) for replica in replicas)
            assert counts[-1] <= 1.25 * 10 + 1
            home = max(replicas, key=lambda one: len(one.tasks))
            for stream in streams:
                await stream.aclose()
            before = len(home.tasks)
            for _ in range(5):
                await (await host.submit("pool", keyed("hot"))).aclose()
            assert len(home.tasks) == before + 5

    run(main())


# One that swallows everything.


def test_a_replica_that_never_answers_costs_no_more_than_its_share() -> None:
    async def main() -> None:
        hole, *well = [Scripted(str(number)) for number in range(4)]
        hole.gate = asyncio.Event()
        async with host_of(hole, *well) as host:
            done = 0

            async def client(tasks: int) -> None:
                nonlocal done
                for _ in range(tasks):
                    stream = await host.submit("pool", task())
                    await asyncio.sleep(0.05)
                    await stream.collect()
                    done += 1

            clients = [asyncio.create_task(client(15)) for _ in range(40)]
            finished, stuck = await asyncio.wait(clients, timeout=30.0)
            for each in stuck:
                each.cancel()
            await asyncio.gather(*stuck, return_exceptions=True)
            # No more tasks hang than its share of what is in flight at a time; the others end.
            assert 0 < len(stuck) == len(hole.tasks) <= 40 / 4
            assert done >= 15 * len(finished)

    run(main())
