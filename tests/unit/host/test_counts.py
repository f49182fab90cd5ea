"""What the host counts."""

from __future__ import annotations

import asyncio
import random
import re

import pytest

from tests.unit.host.scripted import QUIET, Scripted, failed, task
from tests.unit.virtual_time import run
from worker_adapters import WorkerError
from worker_adapters._core import Metrics
from worker_adapters.host import AdapterHost


def samples(metrics: Metrics, wanted: str) -> dict[tuple[str, ...], float]:
    """Return what was counted under a name that holds that, by the values of some labels."""
    found = {}
    for line in metrics.render().splitlines():
        matched = re.match(r"([a-z_]+)\{(.*)\} ([0-9.]+)", line)
        if matched is None or wanted not in matched[1]:
            continue
        labels = dict(re.findall(r'(\w+)="([^"]*)"', matched[2]))
        key = tuple(labels[name] for name in ("replica_id", "reason") if name in labels)
        if float(matched[3]) or "state" in wanted:
            found[key] = float(matched[3])
    return found


def test_breakers_retries_and_refusals_are_counted() -> None:
    async def main() -> None:
        metrics = Metrics()
        clock = asyncio.get_running_loop().time
        host = AdapterHost(metrics=metrics, probes=QUIET, clock=clock, rng=random.Random(1))
        async with host:
            broken = failed("connect")
            one = Scripted("a", play=lambda _: broken)
            host.bind(one)
            host.bind(Scripted("b"))
            assert samples(metrics, "breaker_state") == {("a",): 0.0, ("b",): 0.0}
            while samples(metrics, "breaker_state")["a",] == 0.0:
                await (await host.submit("pool", task())).collect()
            assert samples(metrics, "breaker_state") == {("a",): 1.0, ("b",): 0.0}
            assert samples(metrics, "breaker_trips_total") == {("a",): 1.0}
            assert samples(metrics, "task_retries_total") == {("a", "POOL_UNAVAILABLE"): 5.0}
            host.unbind("pool", "b")
            with pytest.raises(WorkerError):
                await host.submit("pool", task())
            host.set_admission("pool", "shed")
            with pytest.raises(WorkerError):
                await host.submit("pool", task())
            assert samples(metrics, "tasks_rejected_total") == {
                ("POOL_UNAVAILABLE",): 1.0,
                ("ADMISSION_REJECT",): 1.0,
            }
            host.set_admission("pool", "admit")
            await asyncio.sleep(2.0)
            # A trial that is given up leaves it open, which is no other trip.
            one.gate = asyncio.Event()
            trial = asyncio.create_task(host.submit("pool", task()))
            await asyncio.sleep(0.01)
            assert samples(metrics, "breaker_state")["a",] == 2.0
            trial.cancel()
            await asyncio.gather(trial, return_exceptions=True)
            assert samples(metrics, "breaker_state")["a",] == 1.0
            assert samples(metrics, "breaker_trips_total") == {("a",): 1.0}
            one.gate, one.play = None, lambda _: 1
            await (await host.submit("pool", task())).collect()
            assert samples(metrics, "breaker_state")["a",] == 0.0
            # A replica that is gone is seen once more at most.
            samples(metrics, "breaker_state")
            assert set(samples(metrics, "breaker_state")) == {("a",)}

    run(main())


def test_a_replica_that_was_replaced_says_nothing_of_the_one_in_its_place() -> None:
    async def main() -> None:
        metrics = Metrics()
        clock = asyncio.get_running_loop().time
        async with AdapterHost(metrics=metrics, probes=QUIET, clock=clock) as host:
            old = Scripted("a", play=lambda _: None)
            host.bind(old)
            streams = [await host.submit("pool", task()) for _ in range(5)]
            host.rebind(Scripted("a"))
            for body in old.bodies.values():
                body.cut()
            for stream in streams:
                with pytest.raises(WorkerError):
                    await stream.collect()
            assert samples(metrics, "breaker_state") == {("a",): 0.0}
            assert samples(metrics, "breaker_trips_total") == {}

    run(main())
