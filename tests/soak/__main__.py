"""Runs the scenarios, each in a process of its own, and prints what came of them.

python -m tests.soak [--long] [--peers] [--transport native|httpx] [--cancels N] [SCENARIO ...]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tests.soak import broken, leaving, load
from tests.soak.measure import Report
from tests.transports import TRANSPORTS

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

PEERS = ("httpx-sse", "openai")


@dataclass(frozen=True)
class Scenario:
    """What is run, with what in minutes and in the long form."""

    run: Callable[..., Coroutine[Any, Any, Report]]
    short: Mapping[str, Any]
    long: Mapping[str, Any]
    has_peers: bool = False
    transports: Sequence[str] = TRANSPORTS


SCENARIOS: Mapping[str, Scenario] = {
    "streams": Scenario(
        load.streams,
        {"count": 2000, "seconds": 60.0, "interval_ms": 50},
        {"count": 10_000, "seconds": 600.0, "interval_ms": 500},
        has_peers=True,
    ),
    "requests": Scenario(load.requests, {"count": 50_000}, {"count": 1_000_000}, has_peers=True),
    "faults": Scenario(broken.faults, {"count": 20_000}, {"count": 1_000_000}),
    "cancels": Scenario(leaving.cancels, {"count": 20_000}, {"count": 1_000_000}),
    "slow": Scenario(
        load.slow_readers, {"count": 100, "tokens": 40_000}, {"count": 1000, "tokens": 40_000}
    ),
    "fairness": Scenario(
        load.fairness, {"count": 499, "burst_mb": 50}, {"count": 999, "burst_mb": 50}
    ),
    "reset": Scenario(broken.mass_reset, {"count": 2000}, {"count": 8000}),
    "flapping": Scenario(broken.flapping, {"seconds": 15.0}, {"seconds": 600.0}),
    # Calls without a stream come over httpx whatever the transport.
    "amplification": Scenario(
        broken.amplification, {"count": 10_000}, {"count": 100_000}, transports=("httpx",)
    ),
    "exits": Scenario(leaving.exits, {"repeats": 21}, {"repeats": 201}),
}


def main() -> int:
    """Run what was asked for; 1 where anything failed."""
    arguments = _parsed()
    if arguments.child:
        return _child(arguments)
    failed = 0
    for name in arguments.scenarios or SCENARIOS:
        scenario = SCENARIOS[name]
        peers = PEERS if arguments.peers and scenario.has_peers else ()
        ours = [one for one in arguments.transport if one in scenario.transports]
        for contender in (*ours, *peers):
            failed += not _ran(name, contender, arguments)
    return 1 if failed else 0


def _ran(name: str, contender: str, arguments: argparse.Namespace) -> bool:
    command = [sys.executable, "-m", "tests.soak", name, "--child", "--transport", contender]
    if arguments.long:
        command.append("--long")
    if arguments.cancels:
        command += ["--cancels", str(arguments.cancels)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    try:
        report = Report(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        report = Report(failures=[f"it ended with status {done.returncode}"])
    # A peer is there to be compared with.
    is_well = contender in PEERS or not report.failures
    verdict = "ok" if not report.failures else "peer" if is_well else "FAILED"
    print(f"\n{name}, {contender}: {verdict}")
    for label, figure in report.figures.items():
        print(
            f"  {label:<24}{figure:>14,}" if not isinstance(figure, str) else f"  {label} {figure}"
        )
    for failure in report.failures:
        print(f"  ! {failure}")
    sys.stdout.flush()
    return is_well


def _child(arguments: argparse.Namespace) -> int:
    [name], [contender] = arguments.scenarios, arguments.transport
    scenario = SCENARIOS[name]
    options = dict(scenario.long if arguments.long else scenario.short)
    if name == "cancels" and arguments.cancels:
        options["count"] = arguments.cancels
    report = asyncio.run(scenario.run(contender, **options))
    print(json.dumps(asdict(report)))
    return 0


def _parsed(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.soak", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--long", action="store_true", help="hours instead of minutes")
    parser.add_argument("--peers", action="store_true", help="beside httpx-sse and openai")
    parser.add_argument("--transport", action="append", help="native or httpx; both by default")
    parser.add_argument("--cancels", type=int, help="how many, whatever the form")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    if unknown := set(arguments.scenarios) - set(SCENARIOS):
        parser.error(f"no scenario {', '.join(sorted(unknown))}")
    arguments.transport = arguments.transport or list(TRANSPORTS)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
