"""What the benchmark of metrics counts."""

from __future__ import annotations

from benches.python.metrics import filled, series_of
from worker_adapters import Metrics


def test_a_histogram_is_one_series_of_many_samples() -> None:
    metrics = Metrics(clock=lambda: 0.0)
    replicas = filled(metrics)
    samples = [
        (family, labels)
        for family, kind, _, samples in metrics.snapshot()
        for suffix, labels, _, _ in samples
        if kind != "histogram" or suffix == "_count"
    ]
    assert series_of(metrics) == len(samples)
    assert series_of(metrics) < metrics.series
    assert len(replicas) == 100
