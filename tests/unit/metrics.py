"""Metrics as tests read them."""

from __future__ import annotations

from typing import Final

from worker_adapters import Metrics

REPLICA: Final = {
    "engine": "llamacpp",
    "engine_version": "b1-0c1e570",
    "pool_id": "default",
    "replica_id": "0",
}
POOL: Final = {
    "engine": "llamacpp",
    "engine_version": "b1-0c1e570",
    "pool_id": "default",
    "priority": "interactive",
}


def value(metrics: Metrics, name: str, labels: dict[str, str]) -> float | None:
    """Return the value of one series, by all of its labels; None where there is none."""
    for family, kind, _, samples in metrics.snapshot():
        base = family.removesuffix("_total") if kind == "counter" else family
        for suffix, own, number, _ in samples:
            if base + suffix == name and own == labels:
                return number
    return None


def values(metrics: Metrics, name: str, label: str) -> dict[str, float]:
    """Return what a family's series hold that hold anything, by one of their labels."""
    found: dict[str, float] = {}
    for family, _, _, samples in metrics.snapshot():
        if family == name:
            for _, labels, number, _ in samples:
                if number:
                    found[labels[label]] = found.get(labels[label], 0) + number
    return found
