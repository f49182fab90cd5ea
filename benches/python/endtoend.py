"""Measure clients end to end beside each other: from the socket to the consumer's hands.

Every run is a process of its own, pinned to one core, the replay server on the other. Runs are
interleaved: a round goes through every contender before the next begins, so that a machine that
slows down slows everybody down. What has been measured is kept under the build folder after every
run, so that a run that was broken off goes on where it stopped; ``--fresh`` begins anew.

    endtoend.py [--full] [--fresh] [--rounds N] [--only SCENARIO ...]
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import worker_adapters._core
from benches.python.clients import CONTENDERS, HAS_UVLOOP
from benches.python.replay import (
    CLIENT_CORE,
    ROOT,
    WORK,
    ReplayServer,
    build,
    pinned,
    replay_server,
)

PACKAGES = ("uvloop", "msgspec", "aiohttp", "httpx", "httpx-sse", "openai")
FLOOR = "C floor"
CONTROL = "bare tasks"
OURS = next(iter(CONTENDERS))
"""The way of reading that the targets are about."""

SLOWER = {"openai": 8, "httpx-sse": 4}
"""Who gets so many times fewer tokens where they come as fast as they can be taken."""

TIMEOUT_SECONDS = 120

LOOPS = ("uvloop", "asyncio") if HAS_UVLOOP else ("asyncio",)

Result = dict[str, Any]


@dataclass(frozen=True)
class Scenario:
    """What is measured; ``numbers`` go to the client."""

    name: str
    kind: str
    numbers: Mapping[str, int]
    contenders: tuple[str, ...] = ()
    """Beside the floor; all of them where there are none."""
    has_floor: bool = True
    both_loops: bool = False
    floor_options: tuple[str, ...] = field(default=())
    most_rounds: int | None = None

    def tokens(self, result: Result) -> float:
        """How many tokens a result is about; the floor does not count them."""
        told = result.get("tokens")
        if told is not None:
            return float(told)
        numbers = self.numbers
        if self.kind == "flat":
            return numbers["streams"] * numbers["tokens"]
        if self.kind == "requests":
            return numbers["streams"] * numbers["requests"] * numbers["tokens"]
        return float(numbers["streams"] * numbers["rate"] * result["wall_s"])


def scenarios(*, full: bool) -> list[Scenario]:
    """Return what the form measures."""
    return list(_long_form() if full else _short_form())


def _flat(streams: int, total: int, *contenders: str, **options: Any) -> Scenario:
    numbers = {"streams": streams, "tokens": total // streams}
    name = options.pop("name", f"{streams:,} flat out")
    return Scenario(name, "flat", numbers, contenders, **options)


def _paced(streams: int, seconds: int, *contenders: str, **options: Any) -> Scenario:
    numbers = {"streams": streams, "rate": 20, "seconds": seconds}
    name = options.pop("name", f"{streams:,} × 20/s")
    return Scenario(name, "paced", numbers, contenders, **options)


def _requests(count: int, *contenders: str, **options: Any) -> Scenario:
    numbers = {"streams": 100, "requests": count, "tokens": 1}
    return Scenario("request set-up", "requests", numbers, contenders, **options)


def _memory(*contenders: str, **options: Any) -> Scenario:
    return Scenario("memory", "memory", {"streams": 1000}, contenders, has_floor=False, **options)


def _first(*contenders: str, requests: int, **options: Any) -> Scenario:
    numbers = {"streams": 100, "requests": requests}
    return Scenario("first token", "first", numbers, contenders, **options)


def _held(seconds: int, *contenders: str, **options: Any) -> Scenario:
    numbers = {"streams": 10_000, "rate": 5, "seconds": seconds}
    return Scenario("10,000 × 5/s", "late", numbers, contenders, **options)


def _growing(*contenders: str, most_rounds: int | None = None) -> Iterator[Scenario]:
    for streams in GROWING_STREAMS:
        name = f"grows to {streams:,} streams"
        yield _flat(streams, 200_000, *contenders, name=name, most_rounds=most_rounds)
    for tokens in GROWING_TOKENS:
        count = max(1, 200_000 // tokens)
        for name, length in ((f"grows to {tokens:,} tokens", tokens), (bare_of(tokens), 1)):
            numbers = {"streams": 1, "requests": count, "tokens": length}
            # What a few tokens cost is a small difference of large numbers: never cut short.
            yield Scenario(name, "requests", numbers, contenders, has_floor=most_rounds is None)


def _short_form() -> Iterator[Scenario]:
    """Yield what the targets ask for, with the peers that tell most.

    At the pace of 1,000 × 20/s neither the SDK nor httpx comes to begin all streams.
    """
    ways = tuple(name for name in CONTENDERS if name.startswith(OURS))
    peers = ("httpx", "aiohttp", "openai")
    yield _flat(1, 100_000, *ways, "httpx", "aiohttp", "httpx-sse", "openai")
    yield _flat(1000, 200_000, *ways, *peers)
    yield _paced(1000, 3, *ways, "aiohttp")
    yield _paced(100, 3, OURS, f"{OURS} threaded", "aiohttp")
    yield _requests(10, OURS, *peers)
    yield _memory(OURS, *peers, CONTROL, most_rounds=2)
    yield _first(OURS, requests=5)
    yield _held(5, OURS, most_rounds=1)
    yield from _growing(OURS, most_rounds=1)


def _long_form() -> Iterator[Scenario]:
    few = (OURS, "httpx", "aiohttp", "openai")
    yield _flat(1, 1_000_000, both_loops=True)
    yield _flat(1000, 1_000_000, both_loops=True)
    yield _paced(1000, 6, both_loops=True)
    yield _requests(50)
    yield _memory(*few, CONTROL)
    yield _flat(100, 1_000_000, both_loops=True)
    yield _paced(100, 6, both_loops=True)
    yield _paced(
        1000,
        6,
        f"{OURS} gather",
        name="1,000 × 20/s, floor woken once in 1 ms",
        both_loops=True,
        floor_options=("gather=1000",),
    )
    yield _first(*few, requests=10)
    yield _held(10, OURS, "httpx", "aiohttp")
    yield from _growing(OURS, "httpx")


GROWING_STREAMS = (1, 10, 100, 1_000, 10_000)
GROWING_TOKENS = (10, 100, 1_000, 10_000, 100_000)


def bare_of(tokens: int) -> str:
    """Name the scenario that has as many requests, of one token each."""
    return f"{max(1, 200_000 // tokens)} bare"


class Measured:
    """What has been measured, kept in a file."""

    def __init__(self, *, full: bool, rounds: int, fresh: bool = False) -> None:
        self.rounds = rounds
        self.scenarios = {found.name: found for found in scenarios(full=full)}
        self._file = WORK / f"end-to-end-{'full' if full else 'short'}.json"
        self._runs: dict[str, list[Result]] = {}
        self._fingerprint = _fingerprint(self.scenarios)
        if not fresh and self._file.exists():
            kept = json.loads(self._file.read_text(encoding="utf-8"))
            if kept["fingerprint"] == self._fingerprint:
                self._runs = kept["runs"]

    def rounds_of(self, scenario: Scenario) -> int:
        """How often a scenario is run."""
        return min(self.rounds, scenario.most_rounds or self.rounds)

    def runs(self, scenario: str, contender: str, loop: str) -> list[Result]:
        """Return the results so far."""
        return self._runs.get(f"{scenario}|{contender}|{loop}", [])

    def has(self, number: int, scenario: str, contender: str, loop: str) -> bool:
        """Whether there are more results than ``number``."""
        return len(self.runs(scenario, contender, loop)) > number

    def add(self, scenario: str, contender: str, loop: str, result: Result) -> None:
        """Keep a result."""
        self._runs.setdefault(f"{scenario}|{contender}|{loop}", []).append(result)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._file.with_suffix(".new")
        fresh.write_text(
            json.dumps({"fingerprint": self._fingerprint, "runs": self._runs}), encoding="utf-8"
        )
        fresh.replace(self._file)

    def done(self) -> None:
        """Let the next run begin anew; what was measured stays beside."""
        if self._file.exists():
            self._file.replace(self._file.with_suffix(".done.json"))

    def contenders(self, scenario: Scenario) -> list[tuple[str, str]]:
        """Return who takes part, each with its loop, the floor first."""
        names = scenario.contenders or tuple(CONTENDERS)
        found = [(FLOOR, "C")] if scenario.has_floor else []
        for loop in LOOPS if scenario.both_loops else LOOPS[:1]:
            found += [(name, loop) for name in names]
        return found

    def figures(
        self, scenario: str, contender: str, loop: str, figure: Callable[[Result], float | None]
    ) -> list[float]:
        """Return that figure of every run that has it."""
        found = [figure(run) for run in self.runs(scenario, contender, loop) if "failed" not in run]
        return [value for value in found if value is not None]

    def ns_per_token(self, scenario: str, contender: str, loop: str | None = None) -> list[float]:
        """Return the CPU time of every run, in ns per token."""
        about = self.scenarios.get(scenario)
        if about is None:
            return []
        loop = loop or ("C" if contender == FLOOR else LOOPS[0])
        return self.figures(
            scenario, contender, loop, lambda run: run["cpu_s"] * 1e9 / about.tokens(run)
        )

    def median(self, scenario: str, contender: str, loop: str | None = None) -> float | None:
        """Return the median of the CPU time, in ns per token."""
        found = self.ns_per_token(scenario, contender, loop)
        return statistics.median(found) if found else None

    def measure(self, only: list[str]) -> None:
        """Run what is missing."""
        with replay_server() as server:
            for scenario in self.scenarios.values():
                if only and scenario.name not in only:
                    continue
                for number in range(self.rounds_of(scenario)):
                    for contender, loop in self.contenders(scenario):
                        if self.has(number, scenario.name, contender, loop):
                            continue
                        result = _run(server, scenario, contender, loop)
                        self.add(scenario.name, contender, loop, result)
                        print(f"{scenario.name} | {contender} | {loop} | {result}", file=sys.stderr)


def _fingerprint(of: Mapping[str, Scenario]) -> str:
    """Digest what has to be the same for runs to be comparable."""
    digest = hashlib.sha256(repr(of).encode())
    digest.update(Path(str(worker_adapters._core.__file__)).read_bytes())
    for folder in (ROOT / "python" / "worker_adapters", ROOT / "benches" / "floor"):
        for file in sorted(folder.rglob("*.[pc]*")):
            if file.suffix in {".py", ".c"}:
                digest.update(file.read_bytes())
    for name in ("client.py", "clients.py"):
        digest.update((ROOT / "benches" / "python" / name).read_bytes())
    for name in PACKAGES:
        try:
            digest.update(f"{name} {version(name)}".encode())
        except PackageNotFoundError:
            continue
    return digest.hexdigest()[:16]


def _run(server: ReplayServer, scenario: Scenario, contender: str, loop: str) -> Result:
    numbers = dict(scenario.numbers)
    if scenario.kind == "flat" and contender in SLOWER:
        numbers["tokens"] = max(10, numbers["tokens"] // SLOWER[contender])
    if contender == FLOOR:
        command: list[Any] = [
            build("floor"),
            server.port,
            *_floor(scenario),
            *scenario.floor_options,
        ]
    else:
        told = json.dumps({"kind": scenario.kind, **numbers})
        module = "benches.python.client"
        command = [sys.executable, "-m", module, contender, loop, server.port, told]
    if scenario.kind == "late":
        server.lateness()
    try:
        done = subprocess.run(
            pinned(CLIENT_CORE, command),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done within {TIMEOUT_SECONDS} s"}
    except subprocess.CalledProcessError as error:
        last = error.stderr.strip().splitlines() or ["no message"]
        return {"failed": last[-1][:200]}
    result: Result = json.loads(done.stdout)
    if scenario.kind == "late":
        result |= {f"server_{name}": figure for name, figure in server.lateness().items()}
    return result


def _floor(scenario: Scenario) -> list[str]:
    numbers = scenario.numbers
    streams = str(numbers["streams"])
    if scenario.kind == "flat":
        return [f"/t{streams}/{numbers['tokens']}/chat", streams]
    if scenario.kind == "requests":
        requests = f"requests={numbers['requests']}"
        return [f"/t1/{numbers['tokens']}/chat", streams, requests]
    if scenario.kind == "first":
        options = (f"requests={numbers['requests']}", "stagger=10000")
        return ["/n50000/20/chat", streams, *options]
    mode = "s" if scenario.kind == "late" else "p"
    path = f"/{mode}{1_000_000 // numbers['rate']}/100000/chat"
    stamped = ["stamped=1"] if scenario.kind == "late" else []
    return [path, streams, f"seconds={numbers['seconds']}", *stamped]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only", nargs="*", default=[])
    arguments = parser.parse_args()
    rounds = arguments.rounds or (5 if arguments.full else 3)
    Measured(full=arguments.full, rounds=rounds, fresh=arguments.fresh).measure(arguments.only)


if __name__ == "__main__":
    main()
