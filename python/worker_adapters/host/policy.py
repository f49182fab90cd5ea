"""What an operator decides about a pool: its limits, its patience, what is sent once more."""

from typing import Annotated

from pydantic import Field

from worker_adapters._model import Contract
from worker_adapters.retry import RetryPolicy

__all__ = ["BreakerPolicy", "HedgePolicy", "PoolPolicy", "ProbePolicy"]

_Count = Annotated[int, Field(strict=True, ge=0, le=1_000_000)]
_Limit = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
_Seconds = Annotated[float, Field(gt=0.0, le=3600.0, allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


class BreakerPolicy(Contract):
    """When a replica gets no more tasks, and for how long. Times are seconds."""

    failures: Annotated[int, Field(strict=True, ge=1, le=1000)] = 5
    """How many failures in a row open it."""
    cooldown: _Seconds = 2.0
    """How long it stays open the first time; twice as long after each trial that failed."""
    cooldown_cap: _Seconds = 30.0
    stall: _Seconds = 5.0
    """A deadline that passes before the first token is the replica's failure if the task had been
    with it for that long."""


class HedgePolicy(Contract):
    """When a task that nothing has come for is given to a second replica as well."""

    delay: _Seconds
    """How long the first token is waited for before, in seconds."""
    budget: _Share = 0.05
    """How many hedges each submit pays for; there are none beside those."""


class PoolPolicy(Contract):
    """What holds for one pool."""

    max_in_flight: _Limit | None = 4096
    """How many tasks the pool has at a time; None for no limit but that of its replicas."""
    max_in_flight_per_replica: _Limit = 1024
    max_waiting: _Count = 0
    """How many tasks may wait for a place while the pool is full; by default they are refused."""
    max_wait: _Seconds = 5.0
    """How long one of them may wait, its own deadline aside."""
    breaker: BreakerPolicy = BreakerPolicy()
    retries: RetryPolicy = RetryPolicy(attempts=3)
    """On how many replicas a task is tried, and what that may cost; its pauses are not used,
    because another replica is tried at once."""
    hedge: HedgePolicy | None = None
    pinnable: bool = True
    """Whether a task may be pinned to this pool."""
    affinity_slack: Annotated[float, Field(ge=1.0, le=100.0, allow_inf_nan=False)] = 1.25
    """How far above the mean the load of a replica may be that an affinity key leads to."""


class ProbePolicy(Contract):
    """How often replicas are asked whether they are ready. Times are seconds."""

    interval: _Seconds = 2.0
    """From the end of one probe of a replica to the next; a tenth of it at random is left out."""
    timeout: _Seconds = 2.0
    """How long one may take, health and slots together."""
    at_once: _Limit = 16
    """How many replicas are probed at a time."""
