"""What a scrape takes, what a handle does, and what a series weighs.

100 replicas in 10 pools, of which every series holds something. CPU time of the thread. Results go
to stdout as JSON, by what was done: nanoseconds each, one figure per round; what weighs or counts
stands beside them under ``facts``.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from worker_adapters import Metrics
from worker_adapters._core import ReplicaMetrics

POOLS = 10
REPLICAS = 100


def filled(metrics: Metrics) -> list[ReplicaMetrics]:
    """Return the handles of replicas that have done something of everything."""
    handles = []
    for number in range(REPLICAS):
        replica = metrics.replica("llamacpp", f"pool-{number % POOLS}", f"replica-{number}")
        replica.set_engine_version("b6500-0c1e570")
        for priority in ("interactive", "batch"):
            task = replica.task(priority)
            task.started()
            task.cancelled("requested")
        replica.set_breaker("closed")
        for name in ("queue_depth", "requests_running", "slots", "slots_free"):
            replica.set_gauge(name, 3, source="metrics")
        handles.append(replica)
    return handles


def series_of(metrics: Metrics) -> int:
    """Return how many sets of labels there are; the buckets of a histogram are of one."""
    return len(
        {
            (family, tuple(sorted((name, at) for name, at in labels.items() if name != "le")))
            for family, _, _, samples in metrics.snapshot()
            for _, labels, _, _ in samples
        }
    )


def timed(rounds: int, count: int, work: Callable[[], object]) -> list[float]:
    """Return ns of thread time for each of ``count`` calls, per round."""
    found = []
    for _ in range(rounds):
        gc.collect()
        gc.disable()
        began = time.thread_time_ns()
        for _ in range(count):
            work()
        found.append((time.thread_time_ns() - began) / count)
        gc.enable()
    return found


def resident() -> int:
    """Return how many bytes of memory the process has."""
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no private memory")


def measure(rounds: int) -> dict[str, Any]:
    """Return ns by what was done, and the facts."""
    kept = []
    before = resident()
    for _ in range(20):
        metrics = Metrics(clock=lambda: 0.0)
        kept.append((metrics, filled(metrics)))
    metrics, replicas = kept[-1]
    weight = (resident() - before) / 20
    series, samples = series_of(metrics), metrics.series
    registry = CollectorRegistry()
    registry.register(metrics.collector())
    text = metrics.render()
    return {
        "render(), OpenMetrics": timed(rounds, 20, metrics.render),
        "render(), Prometheus' text": timed(rounds, 20, lambda: metrics.render(openmetrics=False)),
        "snapshot() into Python": timed(rounds, 3, metrics.snapshot),
        "collector and generate_latest": timed(rounds, 3, lambda: generate_latest(registry)),
        "a task's handle": timed(rounds, 10_000, lambda: replicas[0].task("batch")),
        "facts": {
            "series": series,
            "samples": samples,
            "bytes of a scrape": len(text),
            "bytes per series": round(weight / series),
            "bytes per sample": round(weight / samples),
        },
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    json.dump(measure(parser.parse_args().rounds), sys.stdout)


if __name__ == "__main__":
    main()
