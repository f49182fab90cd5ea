"""Readiness records: what a pool manager keeps of each replica, all of it seen."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Annotated, Final

from pydantic import Field

from worker_adapters._core import TokenEvent, __version__
from worker_adapters._model import Contract, Count32
from worker_adapters.discovery.document import Capabilities
from worker_adapters.errors import WorkerError
from worker_adapters.host.events import HostEvent
from worker_adapters.host.host import AdapterHost
from worker_adapters.host.reports import ReplicaHealth

__all__ = ["Health", "PerfHints", "Readiness", "ReadinessRecord"]

KEPT_STREAMS: Final = 32
"""Of how many streams, the latest ones, a replica's figures are the median."""

_Figure = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Health(Contract):
    """Whether a replica lives and would be given a task now."""

    live: bool
    ready: bool


class PerfHints(Contract):
    """How fast a replica's latest streams were; absent until there was one to measure."""

    perf_tokens_per_s: _Figure | None = None
    """Tokens after the first, per second of decoding: the median of streams."""
    first_token_ms: _Figure | None = None
    """From dispatch to the first token, in milliseconds: the median of streams."""


class ReadinessRecord(Contract):
    """One replica at one moment. What nobody knows is absent."""

    pool_id: str
    replica_id: str
    health: Health
    last_heartbeat_ms: Annotated[int, Field(ge=0)]
    """When this was found, in milliseconds since 1970."""
    engine: str
    engine_version: str | None = None
    engine_digest: str | None = None
    device_mask: str | None = None
    slots_total: Count32 | None = None
    slots_free: Count32 | None = None
    active_leases: Count32
    """How many tasks we have there."""
    last_error: str | None = None
    """The last failure that was the replica's, in stable words: ``WORKER_RESET (truncated)``."""
    perf_hints: PerfHints = PerfHints()
    version: str = __version__
    """Of this library."""


class _Seen:
    """What has been seen of one replica."""

    __slots__ = ("first_token_ms", "last_error", "tokens_per_s")

    def __init__(self) -> None:
        self.tokens_per_s: deque[float] = deque(maxlen=KEPT_STREAMS)
        self.first_token_ms: deque[float] = deque(maxlen=KEPT_STREAMS)
        self.last_error: str | None = None

    def hints(self) -> PerfHints:
        return PerfHints(
            perf_tokens_per_s=_median(self.tokens_per_s),
            first_token_ms=_median(self.first_token_ms),
        )

    def note(self, terminal: TokenEvent) -> None:
        """Measure a stream by its end."""
        if isinstance(error := terminal.error, WorkerError):
            self.fault(error)
            return
        tokens, spent = terminal.tokens_out, terminal.decode_ms
        if terminal.latency_first_token_ms is not None:
            self.first_token_ms.append(terminal.latency_first_token_ms)
        # What came within the first millisecond says how we read, not how fast the engine is.
        if tokens is not None and tokens >= 2 and spent:
            self.tokens_per_s.append((tokens - 1) * 1000 / spent)

    def fault(self, error: WorkerError) -> None:
        self.last_error = f"{error.code} ({error.detail})"


class Readiness:
    """Makes the records of a host's replicas. Belongs to the host's loop.

    It observes the host from now on, for the figures of streams and the last error.

    Args:
        host: Whose replicas.
        capabilities: Where versions come from; one of the host's own when unset.
        engine_digests: The digest of an engine's build, by pool, where whoever staged it knows it.
        wall_clock: Seconds since 1970.
    """

    def __init__(
        self,
        host: AdapterHost,
        *,
        capabilities: Capabilities | None = None,
        engine_digests: Callable[[str, str], str | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._host = host
        self._capabilities = (
            Capabilities(host.capabilities, clock=clock) if capabilities is None else capabilities
        )
        self._digest_of = engine_digests
        self._wall_clock = wall_clock
        self._seen: dict[tuple[str, str], _Seen] = {}
        host.observe(self._observe)

    async def records(self) -> tuple[ReadinessRecord, ...]:
        """Return a record of every replica that is bound, from the last probes."""
        host = self._host
        pools = list(host.registry.snapshot)
        told = await self._capabilities.document()
        healths = await asyncio.gather(*(_health(host, pool_id) for pool_id in pools))
        versions = {(one.pool_id, one.replica_id): one.engine_version for one in told.adapters}
        now = round(self._wall_clock() * 1000)
        records = []
        for pool_id, replicas in zip(pools, healths, strict=True):
            by_id = {replica.replica_id: replica for replica in replicas}
            pool = host.registry.pool(pool_id)
            for replica in () if pool is None else pool.replicas:
                found = by_id.get(replica.replica_id)
                if found is None:  # bound meanwhile
                    continue
                key = (pool_id, replica.replica_id)
                seen = self._seen.get(key)
                digest = None if self._digest_of is None else self._digest_of(*key)
                records.append(
                    ReadinessRecord(
                        pool_id=pool_id,
                        replica_id=replica.replica_id,
                        health=Health(
                            live=found.live, ready=found.ready and found.breaker == "closed"
                        ),
                        last_heartbeat_ms=now - (found.age_ms or 0),
                        engine=replica.adapter.engine,
                        engine_version=versions.get(key),
                        engine_digest=digest,
                        device_mask=replica.device_mask,
                        slots_total=found.slots_total,
                        slots_free=found.slots_free,
                        active_leases=found.in_flight,
                        last_error=None if seen is None else seen.last_error,
                        perf_hints=PerfHints() if seen is None else seen.hints(),
                    )
                )
        return tuple(records)

    def _observe(self, event: HostEvent) -> None:
        if event.replica_id is None:
            return
        key = (event.pool_id, event.replica_id)
        match event.action:
            case "bind" | "rebind":
                # Another adapter, perhaps of another engine: nothing that was seen is of it.
                self._seen[key] = _Seen()
                self._capabilities.forget()
            case "unbind":
                self._seen.pop(key, None)
                self._capabilities.forget()
            case "end" | "error" | "retry":
                seen = self._seen_of(key)
                if seen is None:
                    return
                if event.terminal is not None:
                    seen.note(event.terminal)
                elif event.error is not None:
                    seen.fault(event.error)

    def _seen_of(self, key: tuple[str, str]) -> _Seen | None:
        """Return what was seen of a replica that is bound."""
        seen = self._seen.get(key)
        if seen is None:
            pool = self._host.registry.pool(key[0])
            if pool is None or pool.replica(key[1]) is None:
                return None
            seen = self._seen[key] = _Seen()
        return seen


async def _health(host: AdapterHost, pool_id: str) -> tuple[ReplicaHealth, ...]:
    try:
        return (await host.health(pool_id)).replicas
    except WorkerError:  # forgotten meanwhile
        return ()


def _median(figures: "deque[float]") -> float | None:
    return round(median(figures), 3) if figures else None
