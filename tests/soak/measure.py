"""What a scenario reports, and how growth is told from noise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.soak.gauges import CLOSE_WAIT, Gauges, sockets

if TYPE_CHECKING:
    from collections.abc import Sequence

WARM_UP = 0.1
"""Share of the work that is not looked at: what is made once is made in it."""

BYTES_PER_REQUEST = 10.0
"""How much memory a request may leave behind, by the slope over all that follow the warm-up."""

OBJECTS = 100
"""How many objects a whole run may leave behind."""


@dataclass
class Report:
    """Figures of a scenario, and what is wrong with them."""

    figures: dict[str, float | str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def require(self, condition: bool, failure: str) -> None:
        """Note a failure unless the condition holds."""
        if not condition:
            self.failures.append(failure)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return by how much y grows with x, by least squares; 0 for fewer than two points."""
    count = len(points)
    if count < 2:
        return 0.0
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def floor(points: Sequence[tuple[float, float]], windows: int = 10) -> list[tuple[float, float]]:
    """Return the lowest point of each stretch: what is under way for a moment is no growth."""
    size = max(1, len(points) // windows)
    return [
        min(points[at : at + size], key=lambda point: point[1])
        for at in range(0, len(points), size)
    ]


class Growth:
    """Looks at what a process holds while it works through a number of requests."""

    def __init__(self, total: int, port: int) -> None:
        self._first = int(total * WARM_UP)
        self._every = max(1, total // 50)
        self._total = total
        self._port = port
        # Numbers alone, which are no objects to the collector.
        self._seen: list[tuple[int, int, int, int, int]] = []
        self.done = 0

    def count(self) -> None:
        """Note that a request is over."""
        self.done += 1
        if self.done >= self._first and (self.done - self._first) % self._every == 0:
            now = Gauges.read()
            self._seen.append((self.done, now.rss, now.descriptors, now.threads, now.objects))

    def into(self, report: Report) -> None:
        """Report growth, and fail on it."""
        _, _, descriptors, threads, objects = self._seen[0]
        _, last_rss, last_descriptors, last_threads, last_objects = self._seen[-1]
        grown = slope(floor([(done, rss) for done, rss, *_ in self._seen]))
        waiting = sockets(self._port, of_server=False)[CLOSE_WAIT]
        report.figures |= {
            "RSS, B/request": round(grown, 2),
            "RSS, MiB": round(last_rss / 2**20, 1),
            "descriptors": last_descriptors - descriptors,
            "threads": last_threads - threads,
            "objects": last_objects - objects,
            "CLOSE_WAIT": waiting,
        }
        report.require(grown <= BYTES_PER_REQUEST, f"memory grows by {grown:.1f} B a request")
        report.require(last_threads <= threads, "threads are left behind")
        report.require(waiting == 0, "connections are left half closed")

    def settled(self, before: Gauges, after: Gauges, report: Report) -> None:
        """Report what is left when nothing is under way any more."""
        report.figures |= {
            "descriptors left": after.descriptors - before.descriptors,
            "tasks left": after.tasks - before.tasks,
            "objects left": after.objects - before.objects,
        }
        report.require(after.descriptors <= before.descriptors, "descriptors are left behind")
        report.require(after.tasks <= before.tasks, "tasks are left behind")
        report.require(after.objects - before.objects <= OBJECTS, "objects are left behind")


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that so large a share does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
