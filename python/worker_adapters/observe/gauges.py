"""The engines' own gauges, read in the background: a scrape never waits for an engine.

    async with GaugeRefresher(lambda: adapters):
        ...

What an engine does not tell is absent, and so is what it told too long ago.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Final, Self

from worker_adapters._core import ReplicaMetrics
from worker_adapters.adapter import WorkerAdapter
from worker_adapters.contract import Timeouts
from worker_adapters.engines._http import HttpAdapter

__all__ = ["GaugeRefresher"]

METRICS: Final = "metrics"
"""What the source is called of what comes from an engine's own metrics."""

UNKNOWN: Final = "unknown"


class GaugeRefresher:
    """Reads slots, queue, KV cache and running requests of adapters with metrics, over and over.

    Args:
        adapters: Returns those to ask; called before each round, in the event loop. Where it
            raises, that round asks those of the last one.
        interval: Seconds from one round to the next.
        timeout: Seconds that one engine may take to answer; the others do not wait for it.
        stale_after: Seconds after which a value that could not be read again is no longer known;
            six intervals when unset.

    An async context manager. Raises ValueError for times that are none, TypeError for what is no
    number.
    """

    def __init__(
        self,
        adapters: Callable[[], Iterable[WorkerAdapter]],
        *,
        interval: float = 5.0,
        timeout: float = 2.0,
        stale_after: float | None = None,
    ) -> None:
        if not (0 < interval <= 3600 and 0 < timeout <= 60):
            raise ValueError("interval and timeout must be positive, at most 1 h and 60 s")
        if stale_after is not None and not 0 < stale_after < math.inf:
            raise ValueError("stale_after must be positive and finite")
        self._adapters = adapters
        self._interval = interval
        self._timeout = timeout
        self._stale_after = 6 * interval if stale_after is None else stale_after
        self._last: tuple[WorkerAdapter, ...] = ()
        self._task: asyncio.Task[None] | None = None
        self._asked: dict[int, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="gauges")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ask no more. Idempotent; the last values stay."""
        tasks = [*self._asked.values()]
        if self._task is not None:
            tasks.append(self._task)
            self._task = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._asked.clear()

    async def refresh(self) -> None:
        """Ask every engine once, all at the same time, and wait for their answers."""
        self._begin()
        if self._asked:
            await asyncio.wait(list(self._asked.values()))

    async def _run(self) -> None:
        while True:
            self._begin()
            await asyncio.sleep(self._interval)

    def _begin(self) -> None:
        """Ask each engine, but for those that have not answered yet."""
        with contextlib.suppress(Exception):  # the caller's; what is known grows old all the same
            self._last = tuple(self._adapters())
        for adapter in self._last:
            key = id(adapter)
            if adapter.metrics is not None and key not in self._asked:
                task = asyncio.create_task(self._ask(adapter, adapter.metrics))
                self._asked[key] = task
                task.add_done_callback(partial(self._answered, key))

    def _answered(self, key: int, _: asyncio.Task[None]) -> None:
        self._asked.pop(key, None)

    async def _ask(self, adapter: WorkerAdapter, metrics: ReplicaMetrics) -> None:
        timeouts = Timeouts(unary=self._timeout)
        # Whatever an engine answers, or an adapter of somebody else's raises: it is not known then.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(self._timeout):
                if metrics.engine_version == UNKNOWN:
                    metrics.set_engine_version(await adapter.engine_version(timeouts=timeouts))
                props = await adapter.props(timeouts=timeouts)
                source = props.source or UNKNOWN
                metrics.set_gauge("slots", props.slots_total, source=source)
                metrics.set_gauge("slots_free", props.slots_free, source=source)
                if isinstance(adapter, HttpAdapter):
                    load = await adapter.load(timeouts=timeouts)
                    metrics.set_gauge("queue_depth", load.waiting, source=METRICS)
                    metrics.set_gauge("requests_running", load.running, source=METRICS)
                    metrics.set_gauge("kv_cache_usage_ratio", load.kv_cache_usage, source=METRICS)
        for key, (_, source, age) in metrics.gauges().items():
            if age > self._stale_after:
                name, _, priority = key.partition(":")
                metrics.set_gauge(name, None, source=source, priority=priority or None)
