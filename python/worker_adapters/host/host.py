"""The in-process adapter host: pools of replicas behind one facade."""

import asyncio
import contextlib
import os
import random
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Final, Self, TypeVar
from uuid import UUID

from worker_adapters._abort import patience
from worker_adapters._core import Metrics
from worker_adapters.adapter import WorkerAdapter
from worker_adapters.contract import CancelReceipt, SubmitContext, TaskRequest, Timeouts
from worker_adapters.errors import AdapterError, WorkerError
from worker_adapters.host.admission import Admission, Decision
from worker_adapters.host.counts import Counts
from worker_adapters.host.dispatch import Dispatcher
from worker_adapters.host.drain import drained
from worker_adapters.host.events import Action, HostEvent, Observer, Observers
from worker_adapters.host.lease import Ticket
from worker_adapters.host.lines import Lines
from worker_adapters.host.placement import Misplaced, Route, route
from worker_adapters.host.policy import HedgePolicy, PoolPolicy, ProbePolicy
from worker_adapters.host.prober import Prober
from worker_adapters.host.refusal import refused
from worker_adapters.host.registry import Pool, Registry
from worker_adapters.host.replica import Replica, Report
from worker_adapters.host.reports import (
    DrainReceipt,
    HostCapabilities,
    PoolHealth,
    PoolProps,
    ReplicaCapabilities,
    ReplicaHealth,
)
from worker_adapters.observe.logs import Logs
from worker_adapters.retry import Retries, RetryPolicy
from worker_adapters.stream import TokenStream

__all__ = ["AdapterHost"]

CAPABILITIES_SECONDS: Final = 30.0
"""How long all replicas together may take to tell what they can do."""

CLOSE_SECONDS: Final = 10.0
"""How long the adapters may take to close when the host does."""

MAX_DRAIN_MS: Final = 86_400_000

MAX_RETRY_AFTER_MS: Final = 86_400_000


class AdapterHost:
    """Adapters by pool and replica, in the process of the orchestrator: no hop of its own.

    Bind adapters once, then submit by pool. The host chooses the replica, keeps a circuit breaker
    for each, tries another one where a task was provably not taken up, and reports what it sees. It
    owns what is bound to it: adapters are closed when they are replaced, unbound or left.

    A host is an async context manager and belongs to the event loop that it is first used in; every
    method is called there, and raises RuntimeError elsewhere. `registry` may be read from any
    thread.

    Args:
        policy: What holds for pools that have no policy of their own.
        pools: Policies by pool; these pools exist though nothing be bound yet.
        probes: How often replicas are asked whether they are ready.
        observers: Who is told what happens; see `HostEvent`.
        logs: Where lines about breakers, retries and refusals go; give it to the adapters, too.
        metrics: Where breakers, retries and refusals are counted; give it to the adapters, too.
        clock: Monotonic seconds; for tests.
        rng: Draws replicas, probe times and correlation ids; for tests.

    Raises ValueError for an argument of another type.
    """

    def __init__(
        self,
        *,
        policy: PoolPolicy | None = None,
        pools: Mapping[str, PoolPolicy] | None = None,
        probes: ProbePolicy | None = None,
        observers: Iterable[Observer] = (),
        logs: Logs | None = None,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.registry = Registry()
        self._policy = PoolPolicy() if policy is None else _a(PoolPolicy, "policy", policy)
        self._probes = ProbePolicy() if probes is None else _a(ProbePolicy, "probes", probes)
        self._observers = Observers(observers)
        if logs is not None:
            self._observers.add(Lines(_a(Logs, "logs", logs), clock))
        if metrics is not None:
            self._observers.add(Counts(_a(Metrics, "metrics", metrics)))
        self._clock = clock
        # Correlation ids must not be guessable, nor repeat in a fork; the seed is the system's.
        self._rng = random.Random(os.urandom(32)) if rng is None else rng  # noqa: S311
        self._dispatcher = Dispatcher(
            self.registry,
            self._observers,
            clock=clock,
            rng=self._rng,
            interval=self._probes.interval,
            vacated=self._vacated,
        )
        self._prober: Prober | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._retired: set[Replica] = set()
        # By id, because adapters of other packages need not be hashable.
        self._owned: weakref.WeakValueDictionary[int, WorkerAdapter] = weakref.WeakValueDictionary()
        self._closed = False
        for pool_id, own in (pools or {}).items():
            self.configure(pool_id, own)

    def __repr__(self) -> str:
        pools = self.registry.snapshot
        return f"<AdapterHost {len(pools)} pools, {sum(len(p.replicas) for p in pools.values())}>"

    async def __aenter__(self) -> Self:
        self._attend()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed, or is about to be."""
        return self._closed

    def observe(self, observer: Observer) -> None:
        """Have ``observer`` told what happens from now on. See `HostEvent`.

        Raises ValueError for what cannot be called, and where there are too many.
        """
        self._check_here()
        self._observers.add(observer)

    # The registry.

    def configure(self, pool_id: str, policy: PoolPolicy) -> None:
        """Give a pool a policy of its own, now or before anything is bound to it.

        What is in flight stays; breakers keep the policy that they were made with. Raises
        ValueError for an empty name.
        """
        self._check_here()
        _check_name("pool_id", pool_id)
        _a(PoolPolicy, "policy", policy)
        known = self.registry.pool(pool_id)
        if known is None:
            self.registry.put(_new_pool(pool_id, policy))
            return
        self.registry.put(
            replace(known, policy=policy, retries=_retries(policy), hedges=_hedges(policy))
        )
        known.admission.wake_all()

    def set_probes(self, policy: ProbePolicy) -> None:
        """Probe as this policy says from now on, every replica at once for the first time.

        Raises ValueError for what is no policy.
        """
        self._check_open()
        self._check_here()
        self._probes = _a(ProbePolicy, "policy", policy)
        self._dispatcher.interval = policy.interval
        if self._prober is not None:
            self._prober = self._new_prober()
            for replica in self.registry.replicas():
                self._prober.take_over(replica)

    def bind(self, adapter: WorkerAdapter, *, device_mask: str | None = None) -> None:
        """Have an adapter take tasks, as the replica that its ``pool_id`` and ``replica_id`` say.

        The host closes it from now on. Raises ValueError where there is such a replica: `rebind`;
        and for an adapter that this host has had before, because that one is closed or will be.
        """
        self._check_open()
        self._check_here()
        _check_name("pool_id", adapter.pool_id)
        _check_name("replica_id", adapter.replica_id)
        pool = self._known_or_new(adapter.pool_id)
        if pool.replica(adapter.replica_id) is not None:
            raise ValueError(
                f"{adapter.pool_id}/{adapter.replica_id} is bound already; rebind replaces it"
            )
        self._check_new(adapter)
        self._swapped("bind", pool, None, self._replica(pool, adapter, device_mask))

    def rebind(self, adapter: WorkerAdapter, *, device_mask: str | None = None) -> None:
        """Put an adapter in the place of the one that is bound there, between two tasks.

        New tasks go to the new one from the moment this returns; those in flight finish on the old
        one, which is closed when the last of them has been read or left. Raises ValueError where
        nothing is bound, and for an adapter that this host has, or has had.
        """
        self._check_open()
        self._check_here()
        self._check_new(adapter)
        pool, old = self._bound(adapter.pool_id, adapter.replica_id)
        self._swapped("rebind", pool, old, self._replica(pool, adapter, device_mask))
        self._retire(old)

    def unbind(self, pool_id: str, replica_id: str) -> None:
        """Take a replica out at once.

        Tasks that its engine has not answered yet fail now, with a retriable error; streams finish,
        and the adapter is closed when the last of them has been read or left. `drain` before it
        waits for both. The pool stays known. Raises ValueError where nothing is bound.
        """
        self._check_here()
        pool, old = self._bound(pool_id, replica_id)
        self._swapped("unbind", pool, old, None)
        self._dispatcher.expel(old)
        self._retire(old)

    def forget(self, pool_id: str) -> None:
        """Forget a pool that has no replicas. Raises ValueError for one that has."""
        self._check_here()
        pool = self._pool_of(pool_id)
        if pool.replicas:
            raise ValueError(f"pool {pool_id!r} has replicas: unbind them first")
        self.registry.forget(pool_id)
        pool.admission.wake_all()

    def set_admission(
        self, pool_id: str, decision: Decision, *, retry_after_ms: int | None = None
    ) -> None:
        """Decide for a pool: ``admit`` tasks, ``shed`` or ``drain`` them; what runs goes on.

        Those that are refused hear ADMISSION_REJECT or POOL_UNREADY, with ``retry_after_ms``; those
        that wait for a place do so at once. Raises ValueError for an unknown pool or decision, and
        for a time that is no whole number of milliseconds from 0 to a day.
        """
        self._check_here()
        if decision not in ("admit", "shed", "drain"):
            raise ValueError(f"decision must be admit, shed or drain, not {decision!r}")
        if retry_after_ms is not None and not (
            type(retry_after_ms) is int and 0 <= retry_after_ms <= MAX_RETRY_AFTER_MS
        ):
            raise ValueError(
                f"retry_after_ms must be a whole number from 0 to {MAX_RETRY_AFTER_MS}"
            )
        pool = self._pool_of(pool_id)
        pool.admission.decision = decision
        pool.admission.retry_after_ms = None if decision == "admit" else retry_after_ms
        pool.admission.wake_all()
        self._observers.tell(HostEvent("admission", pool_id, detail=decision))

    async def drain(
        self, pool_id: str, replica_id: str | None = None, *, deadline_ms: float
    ) -> DrainReceipt:
        """Have a replica, or all of a pool, take no new tasks, and wait until it has none.

        After ``deadline_ms`` what is left is ended: streams by ``end`` with
        ``finish_reason="cancelled"``, submits without an answer by a retriable error. Tasks that
        wait for a place fail at once where nothing is left that could take them. A drained replica
        stays so: `unbind` or `rebind` it. Raises ValueError for what is not bound, or a time that
        is none; InternalError, when all is over, where an adapter broke while it ended a task.
        """
        if not 0 <= deadline_ms <= MAX_DRAIN_MS:
            raise ValueError(f"deadline_ms must be from 0 to {MAX_DRAIN_MS}, not {deadline_ms}")
        self._attend()
        if replica_id is None:
            pool = self._pool_of(pool_id)
            replicas = pool.replicas
        else:
            pool, one = self._bound(pool_id, replica_id)
            replicas = (one,)
        for replica in replicas:
            replica.is_draining = True
            self._tell("drain", replica)
        pool.admission.wake_all()
        return await drained(
            replicas,
            deadline_ms / 1000,
            dispatcher=self._dispatcher,
            observers=self._observers,
            clock=self._clock,
        )

    # The facade.

    async def submit(
        self,
        pool_id: str,
        task: TaskRequest,
        *,
        context: SubmitContext | None = None,
        timeouts: Timeouts | None = None,
    ) -> TokenStream:
        """Give a task to a replica of a pool and return its stream.

        What the task's ``placement`` says goes before ``pool_id``: a pin decides, preferred pools
        come first. Raises WorkerError as `WorkerAdapter.submit` does, and for what the pool refuses
        before anything is sent: then ``processed`` is ``no``.
        """
        ticket = Ticket(pool_id, task, self._correlated(context), timeouts, self._clock())
        try:
            if self._closed:
                raise refused(ticket, "closed", "the host has been closed", phase="validate")
            self._attend()
            chosen = self._route(ticket)
        except WorkerError as error:
            self._observers.tell(
                HostEvent(
                    "reject",
                    pool_id,
                    engine=task.engine,
                    detail=error.detail,
                    task=task,
                    context=ticket.context,
                    error=error,
                )
            )
            raise
        return await self._dispatcher.run(ticket, chosen)

    async def cancel(
        self, pool_id: str, task_id: UUID | str, confirm_within_ms: float = 0
    ) -> CancelReceipt:
        """Cancel a task in whatever phase, waiting for a place included.

        Idempotent; a task that is unknown in that pool, or has ended, is no error. No token is
        emitted after it returns. Raises InternalError where the adapter breaks. See
        `WorkerAdapter.cancel`.
        """
        self._check_here()
        patience(confirm_within_ms)
        try:
            key = task_id if isinstance(task_id, UUID) else UUID(task_id)
        except ValueError:  # no task's id, then
            ticket = None
        else:
            ticket = self._dispatcher.tickets.get(key)
        if ticket is None or pool_id not in {ticket.asked_pool, ticket.pool_id}:
            return CancelReceipt(method="none", sent=False, elapsed_ms=0.0)
        return await self._dispatcher.cancel(ticket, confirm_within_ms)

    async def health(self, pool_id: str) -> PoolHealth:
        """Tell how a pool is, from the last probes; replicas that were never probed are, now.

        Raises AdapterError for an unknown pool.
        """
        pool = self._asked(pool_id)
        await self._probed(replica for replica in pool.replicas if replica.report is None)
        now = self._clock()
        replicas = tuple(_health(replica, now) for replica in pool.replicas)
        is_ready = pool.admission.decision == "admit" and any(
            one.ready and one.breaker == "closed" for one in replicas
        )
        return PoolHealth(
            live=any(one.live for one in replicas),
            ready=is_ready,
            reason=None if is_ready else _why(pool, replicas),
            decision=pool.admission.decision,
            in_flight=len(pool.admission.leases),
            waiting=len(pool.admission.waiting),
            replicas=replicas,
        )

    async def props(self, pool_id: str) -> PoolProps:
        """Tell how many slots the ready replicas of a pool have, from the last probes.

        Raises AdapterError for an unknown pool.
        """
        pool = self._asked(pool_id)
        await self._probed(replica for replica in pool.replicas if replica.report is None)
        reports = [replica.report for replica in pool.replicas if replica.is_ready]
        told = [report for report in reports if report is not None]
        if not told:
            return PoolProps()
        now = self._clock()
        totals = [None if one.props is None else one.props.slots_total for one in told]
        frees = [None if one.props is None else one.props.slots_free for one in told]
        sources = {one.props.source for one in told if one.props is not None and one.props.source}
        return PoolProps(
            slots_total=_sum(totals),
            slots_free=_sum(frees),
            source=", ".join(sorted(sources)) or None,
            age_ms=max(round((now - one.at) * 1000) for one in told),
        )

    async def capabilities(self) -> HostCapabilities:
        """Tell what every replica can do, as its adapter does; see `WorkerAdapter.capabilities`.

        Those that cannot be asked, or not in time, are named in ``silent``.
        """
        self._attend()
        replicas = [replica for replica in self.registry.replicas() if not replica.is_draining]
        found = await asyncio.gather(*(_capabilities(replica) for replica in replicas))
        return HostCapabilities(
            adapters=tuple(one for one in found if one is not None),
            silent=tuple(
                f"{replica.pool_id}/{replica.replica_id}"
                for replica, one in zip(replicas, found, strict=True)
                if one is None
            ),
        )

    async def probe(self, pool_id: str | None = None) -> None:
        """Probe every replica, or those of a pool, now. Raises AdapterError for an unknown pool."""
        self._attend()
        await self._probed(
            self.registry.replicas() if pool_id is None else self._asked(pool_id).replicas
        )

    async def aclose(self) -> None:
        """Take nothing more, end what is in flight, close every adapter. Idempotent."""
        if self._closed:
            return
        self._check_here()
        self._closed = True
        replicas = [*self.registry.replicas(), *self._retired]
        probing = [replica.probing for replica in replicas if replica.probing is not None]
        for task in probing:
            task.cancel()
        for replica in replicas:
            replica.is_draining = True
            self._dispatcher.expel(replica)
        for pool in self.registry.snapshot.values():
            pool.admission.wake_all()
        closing = [self._closing(replica) for replica in replicas]
        await asyncio.gather(*probing, *closing, return_exceptions=True)

    # What is behind it.

    def _attend(self) -> None:
        """Belong to the running loop, and probe what is bound."""
        self._check_open()
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._prober = self._new_prober()
            for replica in self.registry.replicas():
                self._prober.start(replica)
        self._check_here()

    def _new_prober(self) -> Prober:
        return Prober(self._probes, clock=self._clock, rng=self._rng, changed=self._on_report)

    def _check_here(self) -> None:
        """Raise RuntimeError outside of the loop that the host belongs to, once it has one."""
        if self._loop is not None and self._loop is not asyncio._get_running_loop():
            raise RuntimeError("this host belongs to another event loop")

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the host has been closed")

    def _check_new(self, adapter: WorkerAdapter) -> None:
        if self._owned.get(id(adapter)) is adapter:
            raise ValueError(
                f"{adapter.pool_id}/{adapter.replica_id} has been given to this host already: "
                "make another adapter"
            )

    def _pool_of(self, pool_id: str) -> Pool:
        pool = self.registry.pool(pool_id)
        if pool is None:
            raise ValueError(f"there is no pool {pool_id!r}")
        return pool

    def _bound(self, pool_id: str, replica_id: str) -> tuple[Pool, Replica]:
        pool = self.registry.pool(pool_id)
        replica = None if pool is None else pool.replica(replica_id)
        if pool is None or replica is None:
            raise ValueError(f"nothing is bound as {pool_id}/{replica_id}")
        return pool, replica

    def _known_or_new(self, pool_id: str) -> Pool:
        return self.registry.pool(pool_id) or _new_pool(pool_id, self._policy)

    def _asked(self, pool_id: str) -> Pool:
        self._attend()
        pool = self.registry.pool(pool_id)
        if pool is None:
            raise AdapterError(
                message="there is no pool of that name", detail="not_found", processed="no"
            )
        return pool

    def _replica(self, pool: Pool, adapter: WorkerAdapter, device_mask: str | None) -> Replica:
        return Replica(adapter, device_mask, pool.policy.breaker)

    def _swapped(
        self, action: Action, pool: Pool, old: Replica | None, new: Replica | None
    ) -> None:
        pool = self.registry.swap(pool, old, new)
        if new is not None:
            self._owned[id(new.adapter)] = new.adapter
        if new is not None and self._prober is not None:
            self._prober.start(new)
        pool.admission.wake_all()
        shown = old if new is None else new
        if shown is not None:
            self._tell(action, shown)

    def _tell(self, action: Action, replica: Replica, detail: str | None = None) -> None:
        self._observers.tell(
            HostEvent(
                action,
                replica.pool_id,
                replica.replica_id,
                engine=replica.adapter.engine,
                detail=detail,
                in_flight=replica.in_flight,
            )
        )

    def _retire(self, replica: Replica) -> None:
        replica.is_draining = replica.is_retired = True
        self._retired.add(replica)
        if self._prober is not None:
            self._prober.stop(replica)
        if not replica.leases and not replica.tenants:
            self._vacated(replica)

    def _vacated(self, replica: Replica) -> None:
        """Close the adapter of a replica that nobody needs any more."""
        if not self._closed and self._loop is not None:
            replica.closing = self._closing(replica)

    def _closing(self, replica: Replica) -> "asyncio.Task[None]":
        if replica.closing is None:
            replica.closing = asyncio.get_running_loop().create_task(self._close(replica))
        return replica.closing

    async def _close(self, replica: Replica) -> None:
        problem = None
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await replica.adapter.aclose()
        except Exception as error:  # noqa: BLE001 - nobody is there to whom it could be raised
            problem = type(error).__name__
        finally:
            self._retired.discard(replica)
            self._tell("closed", replica, problem)

    def _correlated(self, context: SubmitContext | None) -> SubmitContext:
        if context is not None and context.correlation_id is not None:
            return context
        drawn = str(UUID(int=self._rng.getrandbits(128), version=4))
        return (context or SubmitContext()).model_copy(update={"correlation_id": drawn})

    def _route(self, ticket: Ticket) -> Route:
        """Return where the task may go. Raises WorkerError for one that may go nowhere."""
        if ticket.task_id in self._dispatcher.tickets:
            raise refused(
                ticket, "duplicate_id", "a task with this task_id is in flight", phase="validate"
            )
        if ticket.task.deadline_ms <= 0:
            raise refused(
                ticket, "deadline", "the task's deadline had passed when it was submitted"
            )
        try:
            return route(self.registry.pool, ticket.asked_pool, ticket.task)
        except Misplaced as misplaced:
            detail, why = misplaced.detail, misplaced.why
        raise refused(ticket, detail, why, phase="validate")

    async def _probed(self, replicas: Iterable[Replica]) -> None:
        prober = self._prober
        if prober is not None:
            await asyncio.gather(*(prober.probe(replica) for replica in replicas))

    def _on_report(self, replica: Replica, before: Report | None) -> None:
        """Act on what a probe found."""
        report = replica.report
        if report is None:
            return
        now, health = self._clock(), report.health
        state = replica.breaker.state
        was_ready = before is not None and before.health.ready
        if health.ready:
            replica.breaker.probed(True, now)
            if before is not None and not was_ready:
                replica.breaker.came_back(now)
        elif not health.live and not replica.astray:
            replica.breaker.probed(False, now)
        self._dispatcher.note_breaker(replica, state)
        if health.ready != was_ready or before is None:
            self._tell("ready" if health.ready else "unready", replica, health.reason)
            pool = self.registry.pool(replica.pool_id)
            if pool is not None:
                pool.admission.wake_all()


_Wanted = TypeVar("_Wanted")


def _a(kind: type[_Wanted], name: str, value: object) -> _Wanted:
    """Return the value, which has to be of that kind."""
    if not isinstance(value, kind):
        raise ValueError(  # noqa: TRY004 - misuse is a ValueError throughout
            f"{name} must be a {kind.__name__}, not {type(value).__name__}"
        )
    return value


def _check_name(name: str, value: object) -> None:
    if not _a(str, name, value):
        raise ValueError(f"{name} must not be empty")


def _new_pool(pool_id: str, policy: PoolPolicy) -> Pool:
    return Pool(pool_id, policy, Admission(), _retries(policy), _hedges(policy))


def _retries(policy: PoolPolicy) -> Retries:
    return Retries(policy.retries, _no_pause)


def _hedges(policy: PoolPolicy) -> Retries:
    """Return the budget of hedges: a share of the submits, and nothing beside it."""
    hedge = policy.hedge or HedgePolicy(delay=1.0, budget=0.0)
    return Retries(RetryPolicy(budget=hedge.budget, floor=0), _no_pause)


def _no_pause(low: float, high: float) -> float:
    del high
    return low


def _health(replica: Replica, now: float) -> ReplicaHealth:
    report = replica.report
    health = None if report is None else report.health
    props = None if report is None else report.props
    return ReplicaHealth(
        replica_id=replica.replica_id,
        live=health is not None and health.live,
        ready=health is not None and health.ready and not replica.is_draining,
        reason="draining" if replica.is_draining else None if health is None else health.reason,
        breaker=replica.breaker.state,
        in_flight=replica.in_flight,
        slots_total=None if props is None else props.slots_total,
        slots_free=None if props is None else props.slots_free,
        age_ms=None if report is None else round((now - report.at) * 1000),
    )


def _why(pool: Pool, replicas: Sequence[ReplicaHealth]) -> str:
    """Say in a word why a pool is not ready."""
    if pool.admission.decision != "admit":
        return pool.admission.decision
    if not replicas:
        return "unbound"
    if any(one.ready for one in replicas):
        return "circuit_open"
    reasons = [one.reason for one in replicas if one.reason is not None]
    for first in ("loading", "draining"):
        if first in reasons:
            return first
    return reasons[0] if reasons else "unknown"


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


async def _capabilities(replica: Replica) -> ReplicaCapabilities | None:
    # Whatever one of them raises, the others are told of.
    with contextlib.suppress(Exception):
        async with asyncio.timeout(CAPABILITIES_SECONDS):
            told = await replica.adapter.capabilities()
            return ReplicaCapabilities(
                pool_id=replica.pool_id, replica_id=replica.replica_id, **dict(told)
            )
    return None
