"""Run every benchmark and write benches/RESULTS.md: the machine, the versions, the tables.

``make bench`` calls it, ``make bench-full`` with ``--full``. Rust figures come from criterion's own
files and from the counting allocator's output, Python figures from decode.py and endtoend.py, each
run as its own process. The long form goes on where it was broken off.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benches.python.endtoend import PACKAGES, Measured
from benches.python.targets import section, target_rows

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


def python_section(found: Mapping[str, Any]) -> list[str]:
    """Render the tables of decode.py."""
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


def rust_section() -> list[str]:
    """Run the criterion benchmarks and the counting allocator, and render their tables."""
    shutil.rmtree(TARGET / "criterion", ignore_errors=True)
    of_package = ["--locked", "--package", PACKAGE]
    output([CARGO, "bench", "--quiet", *of_package, "--bench", "decode"])
    lines = [
        "## In Rust",
        "",
        "Wall time by criterion, decoded from memory: median and its 95 % interval.",
        "",
    ]
    rows = []
    for name, median, low, high, throughput in criterion():
        events = throughput.get("Elements", 1)
        rows.append(
            (
                f"`{name}`",
                f"{median / events:,.1f}",
                f"{low / events:,.1f} … {high / events:,.1f}",
            )
        )
    lines += table(["", "ns per event", "95 % interval"], rows)
    counted = output([CARGO, "bench", "--quiet", *of_package, "--bench", "allocations"])
    found = [json.loads(line) for line in counted.splitlines()]
    streams = [name.removeprefix("allocations_") for name in found[0] if "allocations_" in name]
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
                for row in found
            ],
        ),
    ]


def targets(measured: Measured, decoding: Sequence[tuple[str, ...]]) -> list[str]:
    """Render what was aimed at, and whether it was met."""
    rows = [*decoding, *target_rows(measured)]
    return ["## Targets", "", *table(("", "target", "measured", "met"), rows)]


def decoding_rows(python: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the targets of decoding in memory; criterion has run."""
    per_event = {name: median / n.get("Elements", 1) for name, median, _, _, n in criterion()}
    for what, streams, bound in (
        ("decode in Rust, vLLM chat", ("vllm_chat",), 150),
        ("decode in Rust, llama.cpp and TGI frames", ("llamacpp", "tgi"), 100),
    ):
        found = [per_event[name] for name in per_event if name.partition("/")[0] in streams]
        if found:
            yield what, f"≤ {bound} ns", f"{max(found):,.0f} ns", _met(max(found), bound)
    for what, contender, bound in (
        ("into Python, every text read", "worker-adapters, every text read", 300),
    ):
        medians = {
            row["reads"]: row["median_ns"]
            for row in python["rows"]
            if (row["stream"], row["contender"]) == ("vllm_chat", contender)
        }
        told = ", ".join(f"{median:,.0f} ns ({reads})" for reads, median in medians.items())
        yield what, f"≤ {bound} ns", told, _met(max(medians.values()), bound)


def _met(figure: float, bound: float) -> str:
    return "yes" if figure <= bound else "**no**"


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
    decoded: dict[str, Any] = json.loads(output([sys.executable, "-m", "benches.python.decode"]))
    rust = rust_section()
    lines += targets(measured, list(decoding_rows(decoded)))
    lines += section(measured, ROOT, table)
    lines += python_section(decoded)
    lines += rust
    RESULTS.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    measured.done()
    print(f"wrote {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
