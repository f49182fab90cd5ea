"""Why a pool takes no task at the moment, as the contract's errors say it."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from worker_adapters._core import make_error
from worker_adapters.errors import InternalError, WorkerError
from worker_adapters.host.lease import Ticket
from worker_adapters.host.registry import Pool
from worker_adapters.host.replica import Replica

__all__ = ["Refusal", "draining", "refusal", "refused"]

_UNREADY = "POOL_UNREADY"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reason, and whether a place may become free by waiting."""

    detail: str
    message: str
    code: str | None = None
    """The ErrorKind, where it is not that of the detail."""
    retry_after_ms: int | None = None
    is_full: bool = False


def refused(
    ticket: Ticket,
    detail: str,
    message: str,
    *,
    code: str | None = None,
    phase: str = "queue",
    processed: str = "no",
    retry_after_ms: int | None = None,
) -> WorkerError:
    """Return the error for a task that the host itself refuses."""
    error = make_error(
        ticket.task.engine,
        detail,
        phase,
        message=message,
        correlation_id=ticket.context.correlation_id,
        processed=processed,
        retry_after_ms=retry_after_ms,
    )
    if not isinstance(error, WorkerError):
        return InternalError(message="not an error of a worker", detail="internal")
    if code is not None:
        error.code = code
    return error


def draining(ticket: Ticket, *, processed: str) -> WorkerError:
    """Return the error for a task that waits on a replica which leaves."""
    return refused(ticket, "draining", "the replica is leaving", phase="drain", processed=processed)


def refusal(
    pool: Pool, fits: Callable[[Replica], bool], now: float, interval: float, *, is_pinned: bool
) -> Refusal:
    """Return why none of the pool's replicas takes a task that ``fits`` them.

    ``interval`` is how often they are probed. Whichever of them could take a task the soonest gives
    the reason: one that is full, then one that is cooling down, loading, draining, gone.
    """
    admission, policy = pool.admission, pool.policy
    if admission.decision == "drain":
        return Refusal(
            "draining", "the pool takes no new tasks", retry_after_ms=admission.retry_after_ms
        )
    if admission.decision == "shed":
        return Refusal("shed", "the pool sheds load", retry_after_ms=admission.retry_after_ms)
    if policy.max_in_flight is not None and len(admission.leases) >= policy.max_in_flight:
        return Refusal(
            "saturated",
            f"the pool has {policy.max_in_flight} tasks in flight",
            code="ADMISSION_REJECT",
            is_full=True,
        )
    replicas = [replica for replica in pool.replicas if fits(replica)]
    if not replicas:
        return Refusal("unavailable", "no replica is bound that could take it", code=_UNREADY)
    if any(replica.is_ready and _may_send(replica, now) for replica in replicas):
        return Refusal(
            "saturated",
            f"every replica has {policy.max_in_flight_per_replica} tasks in flight",
            code="REPLICA_EXHAUSTED",
            is_full=True,
        )
    if (seconds := _cooling(replicas, now)) is not None:
        return Refusal(
            "circuit_open",
            "the circuit breaker of every replica that could take it is open",
            retry_after_ms=max(1, math.ceil(seconds * 1000)),
        )
    soon = max(1, math.ceil(interval * 1000))
    reasons = {
        None if replica.report is None else replica.report.health.reason
        for replica in replicas
        if not replica.is_draining
    }
    if "loading" in reasons:
        return Refusal("loading", "the model is being loaded", retry_after_ms=soon)
    if not reasons or "draining" in reasons:
        return Refusal("draining", "the replicas are draining")
    if "wrong_model" in reasons:
        return Refusal("unavailable", "the engine has another model loaded", code=_UNREADY)
    return Refusal(
        "unavailable",
        "no replica is ready",
        code=_UNREADY if is_pinned else None,
        retry_after_ms=soon,
    )


def _may_send(replica: Replica, now: float) -> bool:
    return replica.breaker.retry_after(now) is None


def _cooling(replicas: Iterable[Replica], now: float) -> float | None:
    """Return when the first open breaker of a replica that stays lets a trial through."""
    waits = (replica.breaker.retry_after(now) for replica in replicas if not replica.is_draining)
    return min((wait for wait in waits if wait is not None), default=None)
