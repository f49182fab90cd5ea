"""Who is let into a pool: the orchestrator's decision, the limits, and who waits for a place."""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from worker_adapters.host.lease import Lease

__all__ = ["Admission", "Decision", "Waiter"]

Decision: TypeAlias = Literal["admit", "shed", "drain"]
"""``shed``: refuse with ADMISSION_REJECT; ``drain``: with POOL_UNREADY. What runs goes on."""


class Waiter:
    """One task that waits for a place; it is told to look again, and looks for itself."""

    __slots__ = ("_told",)

    def __init__(self) -> None:
        self._told = asyncio.Event()

    def tell(self) -> None:
        """Have it look again."""
        self._told.set()

    async def told(self) -> None:
        """Wait until there is something to look at."""
        await self._told.wait()
        self._told.clear()


class Admission:
    """What changes about who is let into one pool. Belongs to the host's loop."""

    __slots__ = ("decision", "leases", "retry_after_ms", "waiting")

    def __init__(self) -> None:
        self.decision: Decision = "admit"
        self.retry_after_ms: int | None = None
        """What those who are refused by that decision are told to wait."""
        self.leases: set[Lease] = set()
        """What the pool has in flight, on whatever replica."""
        self.waiting: deque[Waiter] = deque()
        """Who waits, the first in front; nobody overtakes."""

    def wake(self) -> None:
        """Have the first look for the place that may have become free."""
        if self.waiting:
            self.waiting[0].tell()

    def wake_all(self) -> None:
        """Have everybody look whether there is anything left to wait for."""
        for waiter in self.waiting:
            waiter.tell()
