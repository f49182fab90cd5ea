"""A task that the host has been given, and each replica's part in it."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any
from uuid import UUID

from worker_adapters._core import TokenEvent
from worker_adapters.contract import SubmitContext, TaskRequest, Timeouts
from worker_adapters.errors import WorkerError
from worker_adapters.host.admission import Waiter
from worker_adapters.stream import TokenStream

if TYPE_CHECKING:
    from worker_adapters.host.registry import Pool
    from worker_adapters.host.replica import Replica

__all__ = ["Lease", "Ticket"]


class Ticket:
    """One task from its submit to the end of its stream."""

    __slots__ = (
        "asked_pool",
        "began",
        "cancelled",
        "context",
        "is_submitting",
        "leases",
        "pool_id",
        "task",
        "timeouts",
        "tried",
        "until",
        "waiter",
    )

    def __init__(
        self,
        asked_pool: str,
        task: TaskRequest,
        context: SubmitContext,
        timeouts: Timeouts | None,
        now: float,
    ) -> None:
        self.asked_pool = asked_pool
        self.pool_id = asked_pool
        """Where it was placed."""
        self.task = task
        self.context = context
        self.timeouts = timeouts
        self.began = now
        self.until = now + task.deadline_ms / 1000
        """When its time is up."""
        self.is_submitting = True
        self.cancelled = False
        self.waiter: Waiter | None = None
        self.leases: set[Lease] = set()
        self.tried: set[Replica] = set()
        """Where it has been, or is."""

    @property
    def task_id(self) -> UUID:
        """The task's own id."""
        return self.task.task_id

    @property
    def affinity_key(self) -> str | None:
        """What leads it to the same replica as others."""
        extensions = self.task.extensions
        return None if extensions is None else extensions.affinity_key

    @property
    def device_mask(self) -> str | None:
        """The devices it has to run on."""
        placement = self.task.placement
        return None if placement is None else placement.require_device_mask

    def remaining(self, now: float) -> TaskRequest:
        """Return the task with what is left of its time."""
        left = max(0, round((self.until - now) * 1000))
        if left >= self.task.deadline_ms:
            return self.task
        return self.task.model_copy(update={"deadline_ms": left})

    def cancel(self) -> None:
        """Have it end where it waits for a place."""
        self.cancelled = True
        if self.waiter is not None:
            self.waiter.tell()


class Lease:
    """A place on one replica, held from before the submit to the stream's terminal event.

    ``settle`` is called once, in the host's loop, with the terminal event or None; ``vacate`` once
    more when nobody reads the stream any more.
    """

    __slots__ = (
        "_loop",
        "_scope",
        "_settle",
        "_vacate",
        "began",
        "expelled",
        "fault",
        "is_over",
        "is_vacated",
        "permit",
        "pool",
        "replica",
        "ticket",
    )

    def __init__(
        self,
        ticket: Ticket,
        pool: "Pool",
        replica: "Replica",
        permit: int,
        now: float,
        settle: "Callable[[Lease, TokenEvent | None], None]",
        vacate: "Callable[[Lease], None]",
    ) -> None:
        self.ticket = ticket
        self.pool = pool
        self.replica = replica
        self.permit = permit
        self.began = now
        self.expelled: WorkerError | None = None
        """Why the submit was given up on its way, if it was."""
        self.fault: WorkerError | None = None
        """What stands for an exception of the adapter that is none of the contract's."""
        self.is_over = False
        self.is_vacated = False
        self._loop = asyncio.get_running_loop()
        self._scope: asyncio.Timeout | None = None
        self._settle = settle
        self._vacate = vacate

    async def answered(self, submit: Coroutine[Any, Any, TokenStream]) -> TokenStream:
        """Await the submit; raise what `expel` was given, should that come first."""
        try:
            async with asyncio.timeout(None) as self._scope:
                stream = await submit
        except (TimeoutError, WorkerError):
            if self.expelled is None:
                raise
            raise self.expelled from None
        finally:
            self._scope = None
        if self.expelled is not None:
            # It was answered in the same turn of the loop.
            await stream.aclose()
            raise self.expelled
        return stream

    @property
    def is_submitting(self) -> bool:
        """Whether the engine has not answered yet."""
        return self._scope is not None

    def expel(self, error: WorkerError) -> None:
        """Give up a submit that the engine has not answered; it raises that error."""
        if self._scope is not None and self.expelled is None:
            self.expelled = error
            self._scope.reschedule(self._loop.time())

    def ended(self, terminal: TokenEvent) -> None:
        """Take note of the stream's terminal event, in whatever thread."""
        if asyncio._get_running_loop() is self._loop:
            self._settle(self, terminal)
        else:
            self._later(self._settle, self, terminal)

    def left(self) -> None:
        """Take note that nobody reads the stream any more, in whatever thread."""
        if asyncio._get_running_loop() is self._loop:
            self._vacate(self)
        else:
            self._later(self._vacate, self)

    def dropped(self) -> None:
        """Take note that the stream is gone; may be called from anywhere, at any time."""
        if not self.is_over:
            self._later(self._settle, self, None)
        if not self.is_vacated:
            self._later(self._vacate, self)

    def _later(self, call: Callable[..., None], *arguments: object) -> None:
        # A loop that is closed counts nothing any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *arguments)
