"""The adapter host: pools of replicas in the process of the orchestrator.

    from worker_adapters.host import AdapterHost

    async with AdapterHost() as host:
        host.bind(LlamaCppAdapter(url, pool_id="chat", replica_id="0"))
        stream = await host.submit("chat", task)

docs/host.md tells what it does by itself.
"""

from worker_adapters.host.events import HostEvent, Observer
from worker_adapters.host.host import AdapterHost
from worker_adapters.host.policy import BreakerPolicy, HedgePolicy, PoolPolicy, ProbePolicy
from worker_adapters.host.reports import (
    DrainReceipt,
    HostCapabilities,
    PoolHealth,
    PoolProps,
    ReplicaCapabilities,
    ReplicaHealth,
)

__all__ = [
    "AdapterHost",
    "BreakerPolicy",
    "DrainReceipt",
    "HedgePolicy",
    "HostCapabilities",
    "HostEvent",
    "Observer",
    "PoolHealth",
    "PoolPolicy",
    "PoolProps",
    "ProbePolicy",
    "ReplicaCapabilities",
    "ReplicaHealth",
]
