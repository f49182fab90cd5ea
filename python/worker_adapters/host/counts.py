"""What the host counts: breakers, tasks that go elsewhere or are refused, replicas that are gone.

What becomes of a task on a replica is counted by its adapter, if it has the same `Metrics`; where
the adapter itself broke, here.
"""

from typing import TYPE_CHECKING

from worker_adapters.host.events import HostEvent

if TYPE_CHECKING:
    from worker_adapters._core import Metrics, ReplicaMetrics

__all__ = ["Counts"]


class Counts:
    """An observer that writes through the handles of `Metrics`. See docs/metrics.md."""

    def __init__(self, metrics: "Metrics") -> None:
        self._metrics = metrics
        self._bound: dict[tuple[str, str], ReplicaMetrics] = {}
        self._trips: dict[tuple[str, str], int] = {}

    def __call__(self, event: HostEvent) -> None:
        """Count it, if it is anything that is counted."""
        key = event.pool_id, event.replica_id or ""
        match event.action:
            case "bind" | "rebind":
                handle = self._metrics.replica(event.engine or "", *key)
                handle.set_breaker("closed")
                self._bound[key] = handle
                self._trips[key] = 0
            case "breaker" if event.detail is not None and key in self._bound:
                self._bound[key].set_breaker(event.detail)
                if (trips := event.trips or 0) > self._trips[key]:
                    self._trips[key] = trips
                    self._bound[key].breaker_tripped()
            case "retry" if event.error is not None and key in self._bound:
                self._bound[key].retried(event.error.code)
            case "error" if event.detail == "fault" and key in self._bound:
                if event.error is not None and event.task is not None:
                    counted = self._bound[key].task(event.task.priority)
                    counted.refused(event.error.kind, event.error.phase, event.error.code)
            case "reject" if event.error is not None:
                self._metrics.rejected(event.engine or "", event.error.code)
            case "unbind" if key in self._bound:
                del self._trips[key]
                self._bound.pop(key).retire()
