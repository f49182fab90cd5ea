"""Every name, type, label and bucket is the contract's, in both ways out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from worker_adapters import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.core import Metric

CONTRACT: dict[str, Any] = json.loads(Path(__file__).with_name("metrics.json").read_text())
GROUPS = ("contract", "project", "seconds", "orchestrator")
PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def everything() -> Metrics:
    """Return metrics in which every family has a series."""
    metrics = Metrics(seconds=True, budgets={"pool_id": 1})
    replica = metrics.replica("llamacpp", "pool", "0")
    metrics.replica("llamacpp", "one too many", "0")
    task = replica.task("batch")
    task.started()
    task.stopped(True, 0.25)
    task.cancelled("requested")
    replica.task("interactive").refused("Adapter", "validate", "INVALID_PARAMS")
    replica.retried("POOL_UNAVAILABLE")
    replica.set_breaker("half_open")
    replica.breaker_tripped()
    for name in ("queue_depth", "requests_running", "slots", "slots_free", "kv_cache_usage_ratio"):
        replica.set_gauge(name, 0.5, source="metrics")
    for name, row in CONTRACT["orchestrator"].items():
        own = metrics.orchestrator(name, **dict.fromkeys(row["labels"], "x"))
        KEPT.append(own)
        own.inc()
        own.set(1)
    KEPT.append(replica)
    return metrics


KEPT: list[object] = []


def shapes(families: Iterable[Metric]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {tuple(sorted(set(sample.labels) - {"le"})) for sample in family.samples}
        assert len(labels) == 1, name
        shape: dict[str, Any] = {"type": family.type, "labels": sorted(labels.pop())}
        bounds = {float(sample.labels["le"]) for sample in family.samples if "le" in sample.labels}
        if bounds:
            shape["buckets"] = sorted(bounds - {math.inf})
            assert math.inf in bounds
        found[name] = shape
    return found


EXPECTED = {
    name: {**row, "labels": sorted(row["labels"])}
    for group in GROUPS
    for name, row in CONTRACT[group].items()
}


@pytest.mark.parametrize("way", ["render", "collector"])
def test_every_name_label_and_bucket(way: str) -> None:
    metrics = everything()
    if way == "render":
        families = text_string_to_metric_families(metrics.render())  # type: ignore[no-untyped-call]
    else:
        registry = CollectorRegistry()
        registry.register(metrics.collector())
        families = registry.collect()
    assert shapes(families) == EXPECTED
    KEPT.clear()


def test_what_is_there_from_the_start() -> None:
    families = {name for name, *_ in Metrics().snapshot()}
    assert families == {*CONTRACT["contract"], *CONTRACT["project"]}


@pytest.mark.parametrize("label", CONTRACT["budgets"])
def test_the_budget_of(label: str) -> None:
    budget = CONTRACT["budgets"][label]
    # So many replicas have more series than there may be in all.
    metrics = Metrics(max_series=100_000)
    kept = []
    for number in range(budget + 1):
        value = f"v{number}"
        match label:
            case "engine" | "pool_id" | "replica_id":
                own = {"engine": "e", "pool_id": "p", "replica_id": "r", label: value}
                kept.append(metrics.replica(**own))
            case "engine_version":
                replica = metrics.replica("e", "p", value)
                replica.set_engine_version(value)
                kept.append(replica)
            case "priority":
                replica = metrics.replica("e", "p", "r")
                replica.task(value).started()
                kept.append(replica)
            case "reason":
                metrics.rejected("e", value)
            case _:
                metrics.orchestrator("model_state", model_id=value, state="ready")
    overflow = [
        sample
        for name, _, _, samples in metrics.snapshot()
        if name == "label_overflow_total"
        for sample in samples
    ]
    # An engine's version is unknown before it is known.
    assert [(sample[1]["label"], sample[2]) for sample in overflow] == [
        (label, 2 if label == "engine_version" else 1)
    ]


def test_the_page_has_every_metric_and_no_other() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text().splitlines()
        if line.startswith("| `")
    ]
    told: dict[str, dict[str, Any]] = {}
    for names, kind, labels, _ in rows:
        for name in names.split(", "):
            told[name.strip("`")] = {"type": kind, "labels": sorted(labels.strip("`").split(", "))}
    assert told == {
        name: {"type": row["type"], "labels": row["labels"]} for name, row in EXPECTED.items()
    }
