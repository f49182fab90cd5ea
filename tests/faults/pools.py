"""A pool behind a host, as `ask` wants it."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, Final, Self, cast

from tests.faults.outcomes import adapter
from tests.unit.host.scripted import Log
from worker_adapters.host import AdapterHost, PoolPolicy, ProbePolicy

if TYPE_CHECKING:
    from types import TracebackType

    from worker_adapters import TaskRequest, TokenStream, WorkerAdapter
    from worker_adapters.host.breaker import Breaker

POOL: Final = "pool"


class Pool:
    """One pool of one replica per URL, on the loop's clock; ``submit`` is the host's."""

    def __init__(
        self,
        *urls: str,
        policy: PoolPolicy | None = None,
        probes: ProbePolicy | None = None,
        **options: Any,
    ) -> None:
        clock = asyncio.get_running_loop().time
        self.log = Log()
        self.host = AdapterHost(
            policy=policy,
            probes=probes,
            observers=[self.log],
            clock=clock,
            rng=random.Random(1),
        )
        for number, url in enumerate(urls):
            self.host.bind(
                adapter(url, pool_id=POOL, replica_id=str(number), clock=clock, **options)
            )

    @property
    def made(self) -> WorkerAdapter:
        """What `ask` takes."""
        return cast("WorkerAdapter", self)

    async def submit(self, task: TaskRequest, **options: Any) -> TokenStream:
        return await self.host.submit(POOL, task, **options)

    def breaker(self, number: int = 0) -> Breaker:
        """Return the breaker of a replica."""
        pool = self.host.registry.pool(POOL)
        assert pool is not None
        return pool.replicas[number].breaker

    async def __aenter__(self) -> Self:
        await self.host.__aenter__()
        await self.host.probe()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.host.aclose()
