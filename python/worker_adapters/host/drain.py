"""Taking replicas out: no new tasks, then waiting, then ending what is left."""

from collections.abc import Callable, Sequence

from worker_adapters.host.dispatch import Dispatcher, settled
from worker_adapters.host.events import HostEvent, Observers
from worker_adapters.host.replica import Replica
from worker_adapters.host.reports import DrainReceipt

__all__ = ["drained"]


async def drained(
    replicas: Sequence[Replica],
    seconds: float,
    *,
    dispatcher: Dispatcher,
    observers: Observers,
    clock: Callable[[], float],
) -> DrainReceipt:
    """Wait until the replicas, which take no new tasks any more, have none; then end what is left.

    They stay as they are should the caller be cancelled meanwhile. Raises WorkerError, when all of
    it is over, for what an adapter could not end.
    """
    began = clock()
    before = sum(replica.in_flight for replica in replicas)
    aborted = await settled(
        _one_drained(replica, seconds, dispatcher, observers) for replica in replicas
    )
    return DrainReceipt(
        replicas=tuple(replica.replica_id for replica in replicas),
        finished=max(0, before - sum(aborted)),
        aborted=sum(aborted),
        elapsed_ms=round((clock() - began) * 1000, 3),
    )


async def _one_drained(
    replica: Replica, seconds: float, dispatcher: Dispatcher, observers: Observers
) -> int:
    aborted = 0 if await replica.vacant(seconds) else await dispatcher.abort(replica)
    observers.tell(
        HostEvent(
            "drained",
            replica.pool_id,
            replica.replica_id,
            engine=replica.adapter.engine,
            in_flight=replica.in_flight,
        )
    )
    return aborted
