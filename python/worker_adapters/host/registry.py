"""Which adapters there are: pools, and the replicas of each, as a snapshot that is swapped whole.

Readers take the snapshot of the moment, from whatever thread, and are never stopped; those who
change it make another one. They run in the host's event loop and await nothing on the way.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from worker_adapters.host.admission import Admission
from worker_adapters.host.policy import PoolPolicy
from worker_adapters.host.replica import Replica
from worker_adapters.retry import Retries

__all__ = ["Pool", "Registry"]

MAX_POOLS: Final = 65_536
MAX_REPLICAS: Final = 4096
"""How many replicas a pool has at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """One pool at one moment: its replicas do not change, what they are doing does."""

    pool_id: str
    policy: PoolPolicy
    admission: Admission
    retries: Retries
    """The budget of what is sent once more."""
    hedges: Retries
    """The budget of what is sent to two replicas."""
    replicas: tuple[Replica, ...] = ()

    def replica(self, replica_id: str) -> Replica | None:
        """Return the replica of that name."""
        for replica in self.replicas:
            if replica.replica_id == replica_id:
                return replica
        return None


class Registry:
    """Pools by their names. Looking one up is reading one mapping."""

    __slots__ = ("_pools",)

    def __init__(self) -> None:
        self._pools: Mapping[str, Pool] = MappingProxyType({})

    @property
    def snapshot(self) -> Mapping[str, Pool]:
        """All pools of this moment; it never changes."""
        return self._pools

    def pool(self, pool_id: str) -> Pool | None:
        """Return the pool of that name, as it is at this moment."""
        return self._pools.get(pool_id)

    def replicas(self) -> Iterator[Replica]:
        """Iterate over every replica of this moment."""
        for pool in self._pools.values():
            yield from pool.replicas

    def put(self, pool: Pool) -> None:
        """Swap the snapshot for one with that pool in it. Raises ValueError where it is full."""
        if pool.pool_id not in self._pools and len(self._pools) >= MAX_POOLS:
            raise ValueError(f"a host has at most {MAX_POOLS} pools")
        if len(pool.replicas) > MAX_REPLICAS:
            raise ValueError(f"a pool has at most {MAX_REPLICAS} replicas")
        self._pools = MappingProxyType({**self._pools, pool.pool_id: pool})

    def forget(self, pool_id: str) -> None:
        """Swap the snapshot for one without that pool."""
        self._pools = MappingProxyType(
            {known: pool for known, pool in self._pools.items() if known != pool_id}
        )

    def swap(self, pool: Pool, old: Replica | None, new: Replica | None) -> Pool:
        """Swap one replica of a pool for another; None for adding one, or for removing it."""
        if old is None:
            replicas = pool.replicas
        elif new is None:
            replicas = tuple(replica for replica in pool.replicas if replica is not old)
        else:
            replicas = tuple(new if replica is old else replica for replica in pool.replicas)
        if old is None and new is not None:
            replicas = (*replicas, new)
        changed = replace(pool, replicas=replicas)
        self.put(changed)
        return changed
