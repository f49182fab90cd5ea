"""One adapter as the host has it: what is under way on it, and what is known of it."""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from worker_adapters.adapter import WorkerAdapter
from worker_adapters.contract import WorkerHealth, WorkerProps
from worker_adapters.host.breaker import Breaker
from worker_adapters.host.policy import BreakerPolicy

if TYPE_CHECKING:
    from worker_adapters.host.lease import Lease

__all__ = ["Replica", "Report"]

FRESH_SECONDS: Final = 5.0
"""The age at which what a probe found counts half."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a probe found, and how many tasks we had there then."""

    health: WorkerHealth
    props: WorkerProps | None
    at: float
    in_flight: int


class Replica:
    """One adapter, bound to its place in a pool.

    Never moves: another adapter in the same place is another Replica.
    """

    __slots__ = (
        "_vacancies",
        "adapter",
        "astray",
        "breaker",
        "closing",
        "device_mask",
        "is_draining",
        "is_retired",
        "leases",
        "pool_id",
        "probing",
        "replica_id",
        "report",
        "tenants",
        "unanswered",
        "wake_prober",
    )

    def __init__(
        self, adapter: WorkerAdapter, device_mask: str | None, policy: BreakerPolicy
    ) -> None:
        self.adapter = adapter
        self.pool_id = adapter.pool_id
        self.replica_id = adapter.replica_id
        self.device_mask = device_mask
        self.breaker = Breaker(policy)
        self.report: Report | None = None
        """None until it has been probed."""
        self.astray = 0
        """How many probes in a row got no answer while it had tasks."""
        self.is_draining = False
        """Whether it takes no new tasks, for good."""
        self.is_retired = False
        """Whether it is bound no longer, so that its adapter is closed once nobody needs it."""
        self.leases: set[Lease] = set()
        """What is under way: submits, and streams without a terminal event."""
        self.unanswered: set[Lease] = set()
        """Those of them that the engine has not answered yet."""
        self.tenants: set[Lease] = set()
        """Streams that somebody may still read."""
        self.closing: asyncio.Task[None] | None = None
        self.probing: asyncio.Task[None] | None = None
        self.wake_prober = asyncio.Event()
        self._vacancies: set[asyncio.Future[None]] = set()

    def __repr__(self) -> str:
        return f"<Replica {self.pool_id}/{self.replica_id} {self.adapter.engine}>"

    @property
    def is_ready(self) -> bool:
        """Whether a task would be dispatched now, as far as is known: one never probed counts."""
        return not self.is_draining and (self.report is None or self.report.health.ready)

    @property
    def in_flight(self) -> int:
        """How many tasks are under way on it."""
        return len(self.leases)

    @property
    def slots_total(self) -> int | None:
        """How many slots it said it has."""
        report = self.report
        return None if report is None or report.props is None else report.props.slots_total

    def busy(self, now: float) -> float:
        """Estimate how many of its slots are in use, by us and by others.

        What the engine said is moved on by what we have begun and ended since, and weighs less the
        older it is; our own count is what remains. A task that it has not answered counts twice:
        it waits for a slot there, or for nothing.
        """
        own, late = float(len(self.leases)), len(self.unanswered)
        report = self.report
        if report is None or report.props is None:
            return own + late
        total, free = report.props.slots_total, report.props.slots_free
        if total is None or free is None:
            return own + late
        told = total - free + (own - report.in_flight)
        weight = FRESH_SECONDS / (FRESH_SECONDS + max(0.0, now - report.at))
        return max(own, weight * told + (1.0 - weight) * own) + late

    def released(self) -> None:
        """Tell whoever waits for it to be vacant, once it is."""
        if not self.leases:
            for waiting in self._vacancies:
                if not waiting.done():
                    waiting.set_result(None)
            self._vacancies.clear()

    async def vacant(self, seconds: float) -> bool:
        """Wait until nothing is under way; whether that was so in time."""
        if not self.leases:
            return True
        waiting = asyncio.get_running_loop().create_future()
        self._vacancies.add(waiting)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await waiting
        finally:
            self._vacancies.discard(waiting)
        return not self.leases
