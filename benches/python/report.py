"""Run every benchmark and write benches/RESULTS.md: the machine, the versions, the tables.

``make bench`` calls it, ``make bench-full`` with ``--full``. Rust figures come from criterion's own
files, from the counting allocator's output and from callgrind, Python figures from decode.py,
queued.py, host.py, metrics.py and endtoend.py, each run as its own process. What fails leaves a
gap in the report. The long form goes on where it was broken off.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benches.python.endtoend import PACKAGES, Measured
from benches.python.targets import Row, growth_rows, section, spread, target_row, target_rows

ROOT = Path(__file__).resolve().parent.parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
RESULTS = ROOT / "benches" / "RESULTS.md"
CARGO = os.environ.get("CARGO", "cargo")
PACKAGE = "worker-adapters-benches"


def output(command: Sequence[str]) -> str:
    """Run a command in the repository and return what it prints; its stderr passes through."""
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table, the first column left, the others right."""
    return [
        "| " + " | ".join(head) + " |",
        "|---|" + "---:|" * (len(head) - 1),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def machine(command: str) -> list[str]:
    """Describe what the figures were measured on and with."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    kernel = ".".join(platform.release().split(".")[:2])
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    peers = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return [
        f"Written by `{command}` on {datetime.now(UTC):%Y-%m-%d}.",
        "",
        (
            f"- machine: {os.cpu_count()} cores of {cpu}, {platform.system()} "
            f"{kernel}; load average when it began: {load}"
        ),
        (
            f"- {platform.python_implementation()} {platform.python_version()}, "
            f"{output(['rustc', '--version']).strip()}"
        ),
        f"- worker-adapters {version('worker-adapters')}, {peers}",
        "",
    ]


def python_section(found: Mapping[str, Any] | None) -> list[str]:
    """Render the tables of decode.py."""
    if found is None:
        return ["## Into Python, beside peers", "", "Not measured: its run failed.", ""]
    lines = [
        "## Into Python, beside peers",
        "",
        (
            f"CPU time of the thread, {found['events']:,} token events decoded from memory, "
            f"{found['rounds']} interleaved rounds in one process. Before timing, every contender "
            "that does the whole job has produced exactly the texts that went in. *ratio* is the "
            "median over the first row's. `vllm_chat` is a vLLM chat stream, `llamacpp` one of "
            "llama.cpp's `/completion`. The decoder first compares an event with the one before, "
            "which it resembles in every engine's streams; `vllm_chat_unlike` denies it that, by "
            "turning the keys of every other event round. Rows in italics do a part of the job."
        ),
        "",
    ]
    rows: list[dict[str, Any]] = found["rows"]
    for stream, size in found["bytes_per_event"].items():
        for reads in dict.fromkeys(row["reads"] for row in rows):
            here = [row for row in rows if (row["stream"], row["reads"]) == (stream, reads)]
            lines += [f"### {stream}, {size:.0f} bytes per event, {reads}", ""]
            lines += table(
                ["", "ns per event", "min … max", "ratio"],
                [
                    (
                        row["contender"] if row["whole_job"] else f"*{row['contender']}*",
                        f"{row['median_ns']:,.0f}",
                        f"{row['min_ns']:,.0f} … {row['max_ns']:,.0f}",
                        f"{row['ratio']:.2f}",
                    )
                    for row in here
                ],
            )
    return lines


def criterion() -> Iterator[tuple[str, float, float, float, dict[str, int]]]:
    """Yield id, median, 95 % interval (ns per iteration) and throughput of what has run."""
    for file in sorted((TARGET / "criterion").glob("**/new/benchmark.json")):
        about = json.loads(file.read_text(encoding="utf-8"))
        estimates = json.loads(file.with_name("estimates.json").read_text(encoding="utf-8"))
        median = estimates["median"]
        interval = median["confidence_interval"]
        throughput: dict[str, int] = about["throughput"] or {}
        yield (
            about["full_id"],
            median["point_estimate"],
            interval["lower_bound"],
            interval["upper_bound"],
            throughput,
        )


@dataclass
class InMemory:
    """What was measured without a network, or with one but beside it; None for what failed."""

    python: Mapping[str, Any] | None
    queued: Mapping[str, Sequence[float]] | None
    host: Mapping[str, Sequence[float]] | None
    metrics: Mapping[str, Any] | None
    accounting: Mapping[str, Sequence[float]] | None
    timed: bool
    allocations: Sequence[Mapping[str, Any]] | None
    instructions: Mapping[str, float] | None

    @classmethod
    def measure(cls, *, full: bool) -> "InMemory":
        """Run everything."""
        python = attempt([sys.executable, "-m", "benches.python.decode"])
        queued = attempt([sys.executable, "-m", "benches.python.queued"])
        host = attempt([sys.executable, "-m", "benches.python.host"])
        metrics = attempt([sys.executable, "-m", "benches.python.metrics"])
        run = [CARGO, "run", "--quiet", "--release", "--locked", "--package", PACKAGE]
        accounting = attempt([*run, "--example", "accounting"])
        shutil.rmtree(TARGET / "criterion", ignore_errors=True)
        bench = [CARGO, "bench", "--quiet", "--locked", "--package", PACKAGE, "--bench"]
        short = [] if full else ["--", "--warm-up-time", "1", "--measurement-time", "2"]
        timed = attempt([*bench, "decode", *short])
        counted = attempt([*bench, "allocations"])
        with tempfile.TemporaryDirectory() as folder:
            kept = Path(folder) / "instructions.json"
            module = "benches.python.instructions"
            attempt([sys.executable, "-m", module, "--cargo", CARGO, "--keep", str(kept)])
            instructions = json.loads(kept.read_bytes()) if kept.exists() else None
        return cls(
            python=json.loads(python) if python else None,
            queued=json.loads(queued) if queued else None,
            host=json.loads(host) if host else None,
            metrics=json.loads(metrics) if metrics else None,
            accounting=json.loads(accounting) if accounting else None,
            timed=timed is not None,
            allocations=[json.loads(line) for line in counted.splitlines()] if counted else None,
            instructions=instructions,
        )

    def per_event(self, *streams: str) -> float | None:
        """Return the most that criterion says decoding takes, in ns per event."""
        if not self.timed:
            return None
        found = [
            median / throughput.get("Elements", 1)
            for name, median, _, _, throughput in criterion()
            if name.partition("/")[0] in streams
        ]
        return max(found, default=None)

    def allocated(self, *streams: str) -> float | None:
        """Return the most that decoding allocates per token."""
        found = [row["per_token"] for row in self.allocations or () if row["body"] in streams]
        return max(found, default=None)

    def instructed(self, *streams: str) -> float | None:
        """Return the most instructions that decoding an event takes."""
        found = [
            count
            for name, count in (self.instructions or {}).items()
            if name.partition("/")[0] in streams
        ]
        return max(found, default=None)


def attempt(command: Sequence[str]) -> str | None:
    """Run a part of the benchmarks; None where it fails, which its own stderr explains."""
    try:
        return output(command)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"left out of the report: {error}", file=sys.stderr)
        return None


def rust_section(found: InMemory) -> list[str]:
    """Render the tables of criterion, the counting allocator and callgrind."""
    lines = ["## In Rust", ""]
    if found.timed:
        rows = []
        for name, median, low, high, throughput in criterion():
            events = throughput.get("Elements", 1)
            figures = (median / events, low / events, high / events)
            told = [f"{figure:,.1f}" for figure in figures]
            rows.append((f"`{name}`", told[0], f"{told[1]} … {told[2]}"))
        lines += ["Wall time by criterion, decoded from memory: median and its 95 % interval.", ""]
        lines += table(["", "ns per event", "95 % interval"], rows)
    else:
        lines += ["Decoding was not timed: criterion's run failed.", ""]
    if found.instructions is not None:
        counts = [(f"`{name}`", f"{count:,.0f}") for name, count in found.instructions.items()]
        lines += ["Instructions, counted by callgrind: they repeat on any machine.", ""]
        lines += table(["", "per event"], counts)
    else:
        lines += ["Instructions were not counted: that needs valgrind.", ""]
    if found.allocations is None:
        return [*lines, "Allocations were not counted: the counting run failed.", ""]
    streams = [
        name.removeprefix("allocations_") for name in found.allocations[0] if "allocations_" in name
    ]
    return [
        *lines,
        (
            "Heap allocations on the Rust side, counted by the allocator itself: those of a stream "
            f"of {int(streams[0]):,} tokens, of one of {int(streams[1]):,}, and the difference "
            "per token."
        ),
        "",
        *table(
            ["", *(f"{int(stream):,} tokens" for stream in streams), "per token"],
            [
                (
                    f"`{row['body']}/{row['reads']}`",
                    *(f"{row[f'allocations_{stream}']:,}" for stream in streams),
                    f"{row['per_token']:.3f}",
                )
                for row in found.allocations
            ],
        ),
    ]


def targets(measured: Measured, found: InMemory) -> list[str]:
    """Render what was aimed at, and whether it was met."""
    rows = [
        *decoding_rows(found),
        *target_rows(measured),
        accounting_row(found),
        lookup_row(found),
        scrape_row(found),
        *growth_rows(measured),
    ]
    return [
        "## Targets",
        "",
        (
            "CPU of the whole client process, under uvloop where nothing else is said, medians. "
            "Instructions and allocations are those per event of the dearer way of reading."
        ),
        "",
        *table(("", "target", "measured", "met"), rows),
    ]


def decoding_rows(found: InMemory) -> Iterator[Row]:
    """Yield the targets of decoding in memory and of handing over."""
    for what, streams, bound, bound_on_allocations in (
        ("decode in Rust, vLLM chat chunk, validated JSON", ("vllm_chat",), 150, True),
        ("decode in Rust, llama.cpp and TGI frames", ("llamacpp", "tgi"), 100, False),
    ):
        spent, allocated = found.per_event(*streams), found.allocated(*streams)
        instructed = found.instructed(*streams)
        each = [(name, found.per_event(name)) for name in streams]
        told = None if spent is None else f"{spent:,.0f} ns"
        if told and len(streams) > 1:
            told = ", ".join(f"{name} {figure:,.0f} ns" for name, figure in each if figure)
        if told and allocated is not None:
            told += f", {allocated:.3f} allocations per token"
        if told and instructed is not None:
            told += f", {instructed:,.0f} instructions"
        met = None if spent is None else spent <= bound
        if bound_on_allocations:
            met = None if met is None or allocated is None else met and not round(allocated, 3)
        target = f"≤ {bound} ns" + (", 0 allocations per token" if bound_on_allocations else "")
        yield target_row(what, target, told, met=met)
    yield _into_python(found)
    yield _async_for(found)
    yield _forwarded(found)


def _handed_over(found: InMemory, way: str) -> float | None:
    return statistics.median(found.queued[way]) if found.queued else None


def _into_python(found: InMemory) -> Row:
    what, target = "into Python, `batches()`, every text read", "≤ 300 ns per event"
    decoding, taking = found.per_event("vllm_chat"), _handed_over(found, "batches()")
    if decoding is None or taking is None:
        return target_row(what, target, None, met=None)
    told = (
        f"{taking + decoding:,.0f} ns: {taking:,.0f} to take and read it, "
        f"{decoding:,.0f} to decode it"
    )
    medians = {
        row["reads"]: row["median_ns"]
        for row in (found.python or {"rows": ()})["rows"]
        if (row["stream"], row["contender"]) == ("vllm_chat", "worker-adapters, every text read")
    }
    for reads, median in medians.items():
        told += f"; by `StreamDecoder.feed`, {reads}: {median:,.0f} ns"
    worst = max(taking + decoding, *medians.values()) if medians else taking + decoding
    return target_row(what, target, told, met=worst <= 300)


def _async_for(found: InMemory) -> Row:
    what, target = "into Python, `async for`, event already there", "≤ 450 ns per event"
    decoding, taking = found.per_event("vllm_chat"), _handed_over(found, "async for")
    if decoding is None or taking is None:
        return target_row(what, target, None, met=None)
    told = (
        f"{taking + decoding:,.0f} ns: {taking:,.0f} to take and read it, "
        f"{decoding:,.0f} to decode it"
    )
    return target_row(what, target, told, met=taking + decoding <= 450)


def _forwarded(found: InMemory) -> Row:
    taking = _handed_over(found, "sse()")
    return target_row(
        "forwarding by `sse()`, on top of decoding",
        "≤ 60 ns per event",
        None if taking is None else f"{taking:,.0f} ns",
        met=None if taking is None else taking <= 60,
    )


def accounting_row(found: InMemory) -> Row:
    """Return the row of what metrics add to decoding."""
    if found.accounting is None:
        return target_row("accounting per token", "≤ 10 ns", None, met=None)
    without, with_metrics = (
        statistics.median(found.accounting[way]) for way in ("without", "with")
    )
    spent = with_metrics - without
    told = f"{spent:,.1f} ns: {with_metrics:,.1f} with metrics, {without:,.1f} without"
    return target_row("accounting per token", "≤ 10 ns", told, met=spent <= 10)


def scrape_row(found: InMemory) -> Row:
    """Return the row of a scrape."""
    rounds = (found.metrics or {}).get("render(), OpenMetrics")
    spent = None if rounds is None else statistics.median(rounds)
    return target_row(
        "a native scrape of 100 replicas",
        "≤ 1 ms",
        None if spent is None else f"{spent / 1e6:,.2f} ms",
        met=None if spent is None else spent <= 1e6,
    )


def lookup_row(found: InMemory) -> Row:
    """Return the row of the host's registry."""
    rounds = (found.host or {}).get("lookup")
    spent = None if rounds is None else statistics.median(rounds)
    return target_row(
        "pool lookups a second, one thread",
        "≥ 1,000,000",
        None if spent is None else f"{1e9 / spent:,.0f}; {spent:,.0f} ns each",
        met=None if spent is None else spent <= 1000,
    )


def queued_section(found: InMemory) -> list[str]:
    """Render what handing over takes."""
    lines = ["## Events already there", ""]
    if found.queued is None:
        return [*lines, "Not measured: its run failed.", ""]
    return [
        *lines,
        (
            "One native stream, sent flat out; the reader waits until its queue of 256 events is "
            "full, then takes all of it. CPU time of the thread for the taking alone, per event: "
            "reading from the socket and decoding came before. Every text is read, except by "
            "`sse()`, which makes bytes of all events at once. Medians of a round each, in "
            "brackets the least and the most."
        ),
        "",
        *table(
            ["", "ns per event"],
            [(f"`{way}`", spread(medians)) for way, medians in found.queued.items()],
        ),
    ]


def host_section(found: InMemory) -> list[str]:
    """Render what the adapter host takes."""
    lines = ["## The adapter host", ""]
    if found.host is None:
        return [*lines, "Not measured: its run failed.", ""]
    return [
        *lines,
        (
            "1,000 pools of one replica and one of 16, whose adapters answer from memory. CPU time "
            "of the thread; `submit` includes closing the stream. Medians of the rounds, in "
            "brackets the least and the most."
        ),
        "",
        *table(
            ["", "ns", "a second"],
            [
                (what, spread(rounds), f"{1e9 / statistics.median(rounds):,.0f}")
                for what, rounds in found.host.items()
            ],
        ),
    ]


def metrics_section(found: InMemory) -> list[str]:
    """Render what metrics take."""
    lines = ["## Metrics", ""]
    if found.metrics is None:
        return [*lines, "Not measured: its run failed.", ""]
    facts = found.metrics["facts"]
    return [
        *lines,
        (
            "100 replicas in 10 pools, of which every series holds something: "
            f"{facts['series']:,} series, a histogram with all of its buckets being one, of "
            f"{facts['samples']:,} samples; {facts['bytes of a scrape']:,} bytes a scrape; "
            f"{facts['bytes per series']:,} bytes of memory per series, "
            f"{facts['bytes per sample']:,} per sample. CPU time of the thread, per call. Medians "
            "of the rounds, in brackets the least and the most."
        ),
        "",
        *table(
            ["", "µs"],
            [
                (what, spread([nanos / 1e3 for nanos in rounds]))
                for what, rounds in found.metrics.items()
                if what != "facts"
            ],
        ),
    ]


def main() -> None:
    """Run the benchmarks and rewrite RESULTS.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="every scenario, more rounds")
    parser.add_argument("--fresh", action="store_true", help="measure again what has been")
    parser.add_argument("--rounds", type=int, help="of the end-to-end part")
    arguments = parser.parse_args()
    lines = [
        "# Benchmark results",
        "",
        *machine("make bench-full" if arguments.full else "make bench"),
    ]
    rounds = arguments.rounds or (5 if arguments.full else 3)
    measured = Measured(full=arguments.full, rounds=rounds, fresh=arguments.fresh)
    # Before the others, which leave the machine warm.
    measured.measure([])
    found = InMemory.measure(full=arguments.full)
    lines += targets(measured, found)
    lines += section(measured, ROOT, table)
    lines += queued_section(found)
    lines += host_section(found)
    lines += metrics_section(found)
    lines += python_section(found.python)
    lines += rust_section(found)
    RESULTS.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    measured.done()
    print(f"wrote {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
