"""What the host tells of pools: how they are, what they have free, what was drained."""

from typing import Annotated, Literal

from pydantic import Field

from worker_adapters._model import Contract, Count32
from worker_adapters.capabilities import API_VERSION, AdapterCapabilities
from worker_adapters.contract import WorkerHealth, WorkerProps
from worker_adapters.host.admission import Decision
from worker_adapters.host.breaker import BreakerState

__all__ = [
    "DrainReceipt",
    "HostCapabilities",
    "PoolHealth",
    "PoolProps",
    "ReplicaCapabilities",
    "ReplicaHealth",
]

_Age = Annotated[int, Field(ge=0)]


class ReplicaHealth(WorkerHealth):
    """How one replica is, as the last probe found it."""

    replica_id: str
    breaker: BreakerState
    in_flight: Count32
    slots_total: Count32 | None = None
    slots_free: Count32 | None = None
    age_ms: _Age | None = None
    """How old that is; None where it has not been probed."""


class PoolHealth(WorkerHealth):
    """How a pool is: ready where a task submitted now would be given to a replica."""

    decision: Decision
    in_flight: Count32
    waiting: Count32
    """How many tasks wait for a place."""
    replicas: tuple[ReplicaHealth, ...]


class PoolProps(WorkerProps):
    """The slots of a pool: the sum over the replicas that are ready.

    None where one of them does not tell, because a sum without it would be wrong.
    """

    age_ms: _Age | None = None
    """How old the oldest of the figures is."""


class DrainReceipt(Contract):
    """What became of the tasks of replicas that were drained."""

    replicas: tuple[str, ...]
    """Which they were."""
    finished: Count32
    """How many tasks had ended by themselves when the time was over."""
    aborted: Count32
    """How many were ended: streams by ``end`` with ``finish_reason="cancelled"``, submits without
    an answer by a retriable error."""
    elapsed_ms: float


class ReplicaCapabilities(AdapterCapabilities):
    """What one replica can do."""

    pool_id: str
    replica_id: str


class HostCapabilities(Contract):
    """The capability document of all replicas that told what they can do."""

    api_version: Literal["1"] = API_VERSION
    adapters: tuple[ReplicaCapabilities, ...]
    silent: tuple[str, ...] = ()
    """Replicas that could not be asked, as ``pool_id/replica_id``."""
