"""The metrics as a collector of prometheus-client's."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client.core import Exemplar, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from worker_adapters._core import Metrics

__all__ = ["MetricsCollector"]


class MetricsCollector(Collector):
    """What `Metrics.collector` returns: one snapshot for each scrape.

        registry = CollectorRegistry()
        registry.register(metrics.collector())

    It takes part in one registry or several. In a setup of several processes every process has a
    `Metrics` of its own, and prometheus-client's multiprocess mode, which keeps its values in
    files, does not know them: docs/metrics.md tells how to scrape those.
    """

    def __init__(self, metrics: "Metrics") -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """Return every family, as it is now."""
        for name, kind, help_text, samples in self._metrics.snapshot():
            yield _metric(name, kind, help_text, samples)

    def describe(self) -> Iterable[Metric]:
        """Return the families' names, which registering looks at."""
        for name, kind, help_text, _ in self._metrics.snapshot():
            yield _metric(name, kind, help_text, [])


def _metric(
    name: str,
    kind: str,
    help_text: str,
    samples: list[tuple[str, dict[str, str], float, tuple[str, float] | None]],
) -> Metric:
    base = name.removesuffix("_total") if kind == "counter" else name
    metric = Metric(base, help_text, kind)
    for suffix, labels, value, seen in samples:
        exemplar = None if seen is None else Exemplar({"trace_id": seen[0]}, seen[1])
        metric.add_sample(base + suffix, labels, value, exemplar=exemplar)
    return metric
