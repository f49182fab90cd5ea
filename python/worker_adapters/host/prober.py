"""Who asks replicas, again and again, whether they are ready and how many slots are free."""

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Final

from worker_adapters.contract import Timeouts, WorkerHealth, WorkerProps
from worker_adapters.errors import WorkerError
from worker_adapters.host.policy import ProbePolicy
from worker_adapters.host.replica import Replica, Report

__all__ = ["Prober"]

ASTRAY: Final = frozenset(("unary_timeout", "timeout"))
"""What an engine that is busy with a long prompt may do to a probe."""

MAX_ASTRAY: Final = 3
"""How many probes in a row may go astray on a replica that has tasks, before it is believed."""

SPACING: Final = 0.1
"""The share of the interval after which a replica is probed again at the earliest."""


class Prober:
    """Probes each replica by a task of its own, a few at a time. Belongs to one event loop.

    ``changed`` is told of what a probe found, with the report before it.
    """

    def __init__(
        self,
        policy: ProbePolicy,
        *,
        clock: Callable[[], float],
        rng: random.Random,
        changed: Callable[[Replica, Report | None], None],
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._rng = rng
        self._changed = changed
        self._at_once = asyncio.Semaphore(policy.at_once)
        self._timeouts = Timeouts(connect=policy.timeout, tls=policy.timeout, unary=policy.timeout)

    def start(self, replica: Replica) -> None:
        """Probe a replica until `stop`, for the first time at once."""
        if replica.probing is None:
            replica.probing = asyncio.get_running_loop().create_task(self._go_on(replica))

    def stop(self, replica: Replica) -> None:
        """Probe it no longer."""
        if replica.probing is not None:
            replica.probing.cancel()

    def take_over(self, replica: Replica) -> None:
        """Probe a replica that another one has probed so far."""
        self.stop(replica)
        replica.probing = None
        self.start(replica)

    async def probe(self, replica: Replica) -> Report:
        """Probe a replica now, within the policy's time. Never raises for what it finds."""
        async with self._at_once:
            health, props = await self._asked(replica)
        in_flight, before = replica.in_flight, replica.report
        if self._is_astray(replica, health):
            health = before.health if before is not None else health
        report = Report(health, props, self._clock(), in_flight)
        replica.report = report
        self._changed(replica, before)
        return report

    def _is_astray(self, replica: Replica, health: WorkerHealth) -> bool:
        """Whether a probe without an answer is not believed yet, for what the replica is doing."""
        before = replica.report
        if health.live or health.reason not in ASTRAY or not replica.in_flight:
            replica.astray = 0
            return False
        replica.astray += 1
        return before is not None and before.health.ready and replica.astray < MAX_ASTRAY

    async def _asked(self, replica: Replica) -> tuple[WorkerHealth, WorkerProps | None]:
        health = WorkerHealth(live=False, ready=False, reason="timeout")
        props = None
        adapter = replica.adapter
        try:
            # The adapter bounds its own time; this is for one that does not.
            async with asyncio.timeout(self._policy.timeout):
                health = await adapter.health(timeouts=self._timeouts)
                if health.ready:
                    props = await adapter.props(timeouts=self._timeouts)
        except (TimeoutError, WorkerError):
            pass  # what has been told so far, counts
        except Exception:  # noqa: BLE001 - an adapter that raises this is not fit for tasks
            health = WorkerHealth(live=False, ready=False, reason="internal")
        return health, props

    async def _go_on(self, replica: Replica) -> None:
        interval = self._policy.interval
        while True:
            await self.probe(replica)
            # Not in step with the others, nor later than the interval.
            pause = interval * (1.0 - 0.1 * self._rng.random())
            await asyncio.sleep(interval * SPACING)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause - interval * SPACING):
                    await replica.wake_prober.wait()
            replica.wake_prober.clear()
