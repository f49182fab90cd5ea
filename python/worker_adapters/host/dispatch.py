"""How a task gets from the host to a replica: let in, given a place, tried, tried elsewhere."""

import asyncio
import contextlib
import random
import weakref
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, TypeVar, cast
from uuid import UUID

from worker_adapters._core import StreamDecoder, TokenEvent
from worker_adapters.contract import CancelReceipt
from worker_adapters.errors import InternalError, WorkerError
from worker_adapters.host.admission import Waiter
from worker_adapters.host.breaker import is_failure
from worker_adapters.host.events import Action, HostEvent, Observers
from worker_adapters.host.hedging import first_of, first_token
from worker_adapters.host.lease import Lease, Ticket
from worker_adapters.host.placement import Route
from worker_adapters.host.refusal import Refusal, draining, refusal, refused
from worker_adapters.host.registry import Pool, Registry
from worker_adapters.host.replica import Replica
from worker_adapters.host.routing import Router
from worker_adapters.stream import TokenStream
from worker_adapters.transport._pulled import PulledStream

__all__ = ["CancelledInQueueError", "Dispatcher", "settled"]

_T = TypeVar("_T")

CANCEL_SECONDS: Final = 5.0
"""How long an adapter may take to end a task that its replica leaves with."""


class CancelledInQueueError(Exception):
    """The task was cancelled before it had reached a replica."""


class Dispatcher:
    """Gives tasks to replicas and keeps the books of what is under way.

    Belongs to one event loop. ``vacated`` is told of a replica that nobody needs any more.
    """

    def __init__(
        self,
        registry: Registry,
        observers: Observers,
        *,
        clock: Callable[[], float],
        rng: random.Random,
        interval: float,
        vacated: Callable[[Replica], None],
    ) -> None:
        self._registry = registry
        self._observers = observers
        self._clock = clock
        self._router = Router(rng)
        self.interval = interval
        """How often replicas are probed, in seconds."""
        self._vacated = vacated
        self.tickets: dict[UUID, Ticket] = {}
        """Every task that is under way, by its id."""

    async def run(self, ticket: Ticket, route: Route) -> TokenStream:
        """Bring a task to a replica and return its stream. Raises WorkerError."""
        self.tickets[ticket.task_id] = ticket
        try:
            lease = await self._admitted(ticket, route)
            lease.pool.retries.begin()
            hedge = lease.pool.policy.hedge
            if hedge is None:
                return await self._tried(ticket, lease)
            lease.pool.hedges.begin()
            return await first_of(
                self._started(ticket, lease), lambda: self._hedged(ticket, lease.pool), hedge.delay
            )
        except CancelledInQueueError:
            return _cancelled_stream(ticket, self._clock)
        finally:
            ticket.is_submitting = False
            self._forget(ticket)

    def _forget(self, ticket: Ticket) -> None:
        """Let go of a task that is over."""
        if ticket.is_submitting or ticket.leases:
            return
        # A task of the same id may have been submitted meanwhile.
        if self.tickets.get(ticket.task_id) is ticket:
            del self.tickets[ticket.task_id]

    # A place.

    async def _admitted(self, ticket: Ticket, route: Route) -> Lease:
        """Take a place in the first pool that has one, or wait for it. Raises WorkerError."""
        reasons: list[tuple[Pool, Refusal]] = []
        for pool in route.pools:
            if not pool.admission.waiting and (lease := self._take(ticket, pool)) is not None:
                return lease
            reasons.append((pool, self._refusal(ticket, pool, route)))
        for pool, reason in reasons:
            if reason.is_full and len(pool.admission.waiting) < pool.policy.max_waiting:
                return await self._waited(ticket, pool, route)
        pool, reason = reasons[0]
        raise self._refuse(ticket, pool, reason)

    async def _waited(self, ticket: Ticket, pool: Pool, route: Route) -> Lease:
        """Wait for a place in a full pool, in turn. Raises WorkerError."""
        admission = pool.admission
        waiter = ticket.waiter = Waiter()
        admission.waiting.append(waiter)
        began = self._clock()
        until = min(ticket.until, began + pool.policy.max_wait)
        try:
            async with asyncio.timeout(max(0.0, until - began)):
                # Whoever is alone looks once, in case that what was full is not.
                admission.wake()
                while True:
                    await waiter.told()
                    if ticket.cancelled:
                        raise CancelledInQueueError
                    now = self._registry.pool(pool.pool_id) or pool
                    is_first = admission.waiting[0] is waiter
                    if is_first and (lease := self._take(ticket, now)) is not None:
                        return lease
                    reason = self._refusal(ticket, now, route)
                    if not reason.is_full:
                        raise self._refuse(ticket, now, reason)
        except TimeoutError:
            if self._clock() >= ticket.until - 1e-3:
                late = refused(ticket, "deadline", "the task's deadline passed while it waited")
                raise self._told_refusal(ticket, pool, late) from None
            raise self._refuse(ticket, pool, self._refusal(ticket, pool, route)) from None
        finally:
            ticket.waiter = None
            admission.waiting.remove(waiter)
            admission.wake()

    def _has_place(self, ticket: Ticket, pool: Pool) -> bool:
        fits = self._fits(ticket, pool)
        return any(fits(replica) for replica in pool.replicas)

    def _take(self, ticket: Ticket, pool: Pool) -> Lease | None:
        """Take a place on a replica of the pool, if there is one."""
        admission, policy = pool.admission, pool.policy
        if admission.decision != "admit":
            return None
        if policy.max_in_flight is not None and len(admission.leases) >= policy.max_in_flight:
            return None
        now = self._clock()
        fits, key = self._fits(ticket, pool), ticket.affinity_key
        if key is None:
            replica = self._router.pick(pool.replicas, fits, now)
        else:
            replica = self._router.keep(key, pool.replicas, fits, policy.affinity_slack)
        return None if replica is None else self._leased(ticket, pool, replica, now)

    def _fits(self, ticket: Ticket, pool: Pool) -> Callable[[Replica], bool]:
        now, most = self._clock(), pool.policy.max_in_flight_per_replica
        mask, tried = ticket.device_mask, ticket.tried

        def fits(replica: Replica) -> bool:
            return (
                replica.is_ready
                and len(replica.leases) < most
                and replica.breaker.retry_after(now) is None
                and (mask is None or replica.device_mask == mask)
                and replica not in tried
            )

        return fits

    def _leased(self, ticket: Ticket, pool: Pool, replica: Replica, now: float) -> Lease | None:
        before = replica.breaker.state
        permit = replica.breaker.acquire(now)
        if permit is None:
            return None
        lease = Lease(ticket, pool, replica, permit, now, self._settle, self._vacate)
        replica.leases.add(lease)
        replica.unanswered.add(lease)
        pool.admission.leases.add(lease)
        ticket.leases.add(lease)
        ticket.tried.add(replica)
        ticket.pool_id = pool.pool_id
        self.note_breaker(replica, before)
        return lease

    def _refusal(self, ticket: Ticket, pool: Pool, route: Route) -> Refusal:
        mask = ticket.device_mask
        return refusal(
            pool,
            lambda replica: mask is None or replica.device_mask == mask,
            self._clock(),
            self.interval,
            is_pinned=route.is_pinned,
        )

    def _refuse(self, ticket: Ticket, pool: Pool, reason: Refusal) -> WorkerError:
        error = refused(
            ticket,
            reason.detail,
            reason.message,
            code=reason.code,
            retry_after_ms=reason.retry_after_ms,
        )
        return self._told_refusal(ticket, pool, error)

    def _told_refusal(self, ticket: Ticket, pool: Pool, error: WorkerError) -> WorkerError:
        self._tell("reject", ticket, pool.pool_id, error=error, detail=error.detail)
        return error

    # A replica.

    async def _tried(self, ticket: Ticket, lease: Lease) -> TokenStream:
        """Submit where the place is, and elsewhere where that provably came to nothing."""
        pool = lease.pool
        made = 0
        while True:
            made += 1
            try:
                return await self._sent(ticket, lease, made)
            except WorkerError as error:
                if ticket.cancelled:
                    raise CancelledInQueueError from None
                other = self._elsewhere(ticket, pool, error, made)
                if other is None:
                    detail = "fault" if error is lease.fault else None
                    self._tell(
                        "error", ticket, pool.pool_id, lease.replica, detail=detail, error=error
                    )
                    raise
                self._tell("retry", ticket, pool.pool_id, lease.replica, error=error, attempt=made)
                lease = other

    def _elsewhere(self, ticket: Ticket, pool: Pool, error: WorkerError, made: int) -> Lease | None:
        """Take a place on another replica, where the task may be sent once more."""
        # 429 is for whoever sends too much to mind, not for us to hide.
        if not error.retriable or error.processed != "no" or error.status == 429:
            return None
        now = self._clock()
        if made >= pool.policy.retries.attempts or now >= ticket.until:
            return None
        pool = self._registry.pool(pool.pool_id) or pool
        if not self._has_place(ticket, pool) or not pool.retries.spend(now):
            return None
        return self._take(ticket, pool)

    async def _sent(self, ticket: Ticket, lease: Lease, attempt: int) -> TokenStream:
        """Submit to one replica. Raises WorkerError."""
        replica, pool_id = lease.replica, lease.pool.pool_id
        if ticket.cancelled:
            self._settle(lease, None)
            self._vacate(lease)
            raise CancelledInQueueError
        self._tell("submit", ticket, pool_id, replica, attempt=attempt)
        try:
            stream = await self._asked(ticket, lease)
        except BaseException as error:
            if isinstance(error, WorkerError) and error is not lease.expelled:
                self._judge(lease, error)
            self._settle(lease, None)
            self._vacate(lease)
            raise
        terminal = stream._terminal
        if terminal is None or terminal.finish_reason != "cancelled":
            # One that was cancelled on its way has a stream, too, and no answer.
            before = replica.breaker.state
            replica.breaker.answered(lease.permit)
            self.note_breaker(replica, before)
            self._tell("start", ticket, pool_id, replica, attempt=attempt)
        replica.unanswered.discard(lease)
        replica.tenants.add(lease)
        stream._watch(lease.ended, lease.left)
        weakref.finalize(stream, lease.dropped).atexit = False
        return stream

    async def _asked(self, ticket: Ticket, lease: Lease) -> TokenStream:
        """Have the adapter submit the task. Raises WorkerError, whatever the adapter does."""
        adapter = lease.replica.adapter
        try:
            stream = await lease.answered(
                adapter.submit(
                    ticket.remaining(self._clock()),
                    context=ticket.context,
                    timeouts=ticket.timeouts,
                )
            )
            if not isinstance(stream, TokenStream):
                raise TypeError("submit returned no stream")  # noqa: TRY301 - as if it had raised it
        except WorkerError:
            raise
        except Exception as cause:
            if lease.expelled is not None:
                raise lease.expelled from None
            lease.fault = _broken(lease, cause, "head")
            raise lease.fault from cause
        return stream

    # Two replicas.

    async def _started(self, ticket: Ticket, lease: Lease) -> TokenStream:
        stream = await self._tried(ticket, lease)
        await first_token(stream)
        return stream

    def _hedged(self, ticket: Ticket, pool: Pool) -> "asyncio.Task[TokenStream] | None":
        """Begin it on a second replica, if there is one and the budget allows it."""
        pool = self._registry.pool(pool.pool_id) or pool
        if ticket.cancelled or not self._has_place(ticket, pool):
            return None
        if not pool.hedges.spend(self._clock()):
            return None
        lease = self._take(ticket, pool)
        if lease is None:
            return None
        self._tell("hedge", ticket, pool.pool_id, lease.replica)
        return asyncio.create_task(self._started(ticket, lease))

    # The books.

    def _settle(self, lease: Lease, terminal: TokenEvent | None) -> None:
        """Free the place of a submit that failed or a stream that has ended."""
        if lease.is_over:
            return
        lease.is_over = True
        ticket, pool, replica = lease.ticket, lease.pool, lease.replica
        replica.leases.discard(lease)
        replica.unanswered.discard(lease)
        pool.admission.leases.discard(lease)
        ticket.leases.discard(lease)
        self._forget(ticket)
        if lease in replica.tenants:
            self._judge_end(lease, terminal)
            self._tell("end", ticket, pool.pool_id, replica, terminal=terminal)
        else:
            self._abandon(lease)
        replica.released()
        pool.admission.wake()

    def _vacate(self, lease: Lease) -> None:
        """Note that nobody reads a stream any more."""
        if lease.is_vacated:
            return
        lease.is_vacated = True
        replica = lease.replica
        replica.tenants.discard(lease)
        if replica.is_retired and not replica.leases and not replica.tenants:
            self._vacated(replica)

    def _judge_end(self, lease: Lease, terminal: TokenEvent | None) -> None:
        error = None if terminal is None else terminal.error
        if isinstance(error, WorkerError):
            self._judge(lease, error)
        if terminal is None or error is not None or terminal.finish_reason == "cancelled":
            self._abandon(lease)
            return
        before = lease.replica.breaker.state
        lease.replica.breaker.succeeded(lease.permit)
        self.note_breaker(lease.replica, before)

    def _judge(self, lease: Lease, error: WorkerError) -> None:
        """Have an error count against its replica, if it does."""
        replica, now = lease.replica, self._clock()
        before = replica.breaker.state
        stall = lease.pool.policy.breaker.stall
        if error is lease.fault or is_failure(error, now - lease.began, stall):
            replica.breaker.failed(lease.permit, now)
            # What it says of itself may be out of date.
            replica.wake_prober.set()
        elif error.status is not None and error.kind == "Adapter":
            replica.breaker.answered(lease.permit)
        self.note_breaker(replica, before, error)

    def _abandon(self, lease: Lease) -> None:
        before = lease.replica.breaker.state
        lease.replica.breaker.abandoned(lease.permit)
        self.note_breaker(lease.replica, before)

    def note_breaker(self, replica: Replica, before: str, error: WorkerError | None = None) -> None:
        """Tell of a breaker that has changed its state; ``error`` is what made it do so."""
        state = replica.breaker.state
        # That of a replica whose place is another's is of interest to nobody.
        if state == before or replica.is_retired:
            return
        pool = self._registry.pool(replica.pool_id)
        if pool is not None:
            pool.admission.wake_all()
        self._observers.tell(
            HostEvent(
                "breaker",
                replica.pool_id,
                replica.replica_id,
                engine=replica.adapter.engine,
                detail=state,
                error=error,
                trips=replica.breaker.trips,
            )
        )

    def _tell(
        self,
        action: Action,
        ticket: Ticket,
        pool_id: str,
        replica: Replica | None = None,
        *,
        detail: str | None = None,
        error: WorkerError | None = None,
        terminal: TokenEvent | None = None,
        attempt: int | None = None,
    ) -> None:
        if not self._observers.are_there:
            return
        self._observers.tell(
            HostEvent(
                action,
                pool_id,
                None if replica is None else replica.replica_id,
                ticket.task.engine if replica is None else replica.adapter.engine,
                detail,
                ticket.task,
                ticket.context,
                error,
                terminal,
                attempt,
                None if replica is None else replica.in_flight,
            )
        )

    # Those who have to leave.

    def expel(self, replica: Replica) -> None:
        """Fail every task at once that the engine of a replica has not answered."""
        for lease in list(replica.leases):
            lease.expel(draining(lease.ticket, processed="unknown"))

    async def abort(self, replica: Replica) -> int:
        """End everything that is under way on a replica; how much that was.

        Raises WorkerError, once all of it has been tried.
        """
        leases = list(replica.leases)
        self.expel(replica)
        await settled(self._end(lease) for lease in leases)
        return len(leases)

    async def _end(self, lease: Lease) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CANCEL_SECONDS):
                await self._cancelled(lease, 0.0)

    async def cancel(self, ticket: Ticket, confirm_within_ms: float) -> CancelReceipt:
        """Cancel a task wherever it is. Raises WorkerError, once that has been tried everywhere."""
        began = self._clock()
        leases = list(ticket.leases)
        ticket.cancel()
        try:
            receipts = await settled(self._cancelled(lease, confirm_within_ms) for lease in leases)
        finally:
            self._tell("cancel", ticket, ticket.pool_id, leases[0].replica if leases else None)
        if receipts:
            return _joined(receipts)
        return CancelReceipt(
            method="close", sent=True, elapsed_ms=round((self._clock() - began) * 1000, 3)
        )

    async def _cancelled(self, lease: Lease, confirm_within_ms: float) -> CancelReceipt:
        """Have the adapter cancel the task. Raises WorkerError, whatever the adapter does."""
        adapter, task_id = lease.replica.adapter, lease.ticket.task_id
        try:
            receipt = await adapter.cancel(task_id, confirm_within_ms=confirm_within_ms)
            if not isinstance(receipt, CancelReceipt):
                raise TypeError("cancel returned no receipt")  # noqa: TRY301 - as if it had raised it
        except WorkerError:
            raise
        except Exception as cause:
            raise _broken(lease, cause, "cancel") from cause
        return receipt


async def settled(works: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Do all of it at once and return what came of it; when all is over, raise the first error."""
    results = await asyncio.gather(*works, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast("list[_T]", results)


def _broken(lease: Lease, cause: Exception, phase: str) -> InternalError:
    """Return the error for what an adapter raised that is none, without any of its text."""
    return InternalError(
        message=f"the adapter broke: {type(cause).__name__}",
        detail="internal",
        phase=phase,
        engine=lease.replica.adapter.engine,
        correlation_id=lease.ticket.context.correlation_id,
    )


def _joined(receipts: list[CancelReceipt]) -> CancelReceipt:
    """Return what was done on all replicas together; a hedged task has two."""
    sent = [receipt for receipt in receipts if receipt.sent]
    if not sent:
        return receipts[0]
    told = [receipt.confirmed for receipt in sent]
    return CancelReceipt(
        method="close+abort" if any(one.method == "close+abort" for one in sent) else "close",
        sent=True,
        confirmed=None if None in told else all(told),
        elapsed_ms=max(receipt.elapsed_ms for receipt in receipts),
    )


def _cancelled_stream(ticket: Ticket, clock: Callable[[], float]) -> TokenStream:
    """Return the stream of a task that no replica has had: the one event ``end``."""
    decoder = StreamDecoder(
        "openai",
        started={"engine": ticket.task.engine, "correlation_id": ticket.context.correlation_id},
    )
    events = decoder.cancel(clock())
    return PulledStream(ticket.task_id, decoder, None, events=events, clock=clock)
