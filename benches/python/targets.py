"""What was measured end to end, beside what it should be: tables and plots for RESULTS.md."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benches.python.clients import CONTENDERS
from benches.python.endtoend import (
    CONTROL,
    FLOOR,
    GROWING_STREAMS,
    GROWING_TOKENS,
    LOOPS,
    OURS,
    Measured,
    Result,
    bare_of,
)
from benches.python.plots import bars, lines

Row = tuple[str, str, str, str]

PLOTS = Path("benches") / "plots"

NAMES = {
    "aiohttp": "aiohttp + hand split + msgspec",
    "httpx-sse": "httpx-sse + json",
    "openai": "openai SDK",
}

_PAST = "–"

DISCERNIBLE = 0.1
"""The share of a request's cost that its tokens have to be, to be told from its variation."""


def label(name: str) -> str:
    """Say what a contender is."""
    if name in NAMES or name in {FLOOR, CONTROL}:
        return NAMES.get(name, name)
    transport, _, way = name.partition(" ")
    ways = {
        "": "`async for`",
        "batches": "`batches()`",
        "sse": "`sse()`",
        "gather": "`async for`, 1 ms gather window",
        "threaded": "`async for`, read by an I/O thread",
    }
    return f"worker-adapters, {transport}, {ways[way]}"


def spread(values: Sequence[float], *, unit: float = 1.0, digits: int = 0) -> str:
    """Format the median and, where there are several, the least and the most."""
    if not values:
        return _PAST
    told = [f"{value / unit:,.{digits}f}" for value in (min(values), max(values))]
    median = f"{statistics.median(values) / unit:,.{digits}f}"
    return f"{median} ({told[0]} … {told[1]})" if len(values) > 1 else median


def target_row(what: str, target: str, found: str | None, *, met: bool | None) -> Row:
    """Return a row of the target table; without a figure it says so."""
    if found is None or met is None:
        return what, target, found or "not measured: its runs failed", _PAST
    return what, target, found, "yes" if met else "**no**"


def target_rows(measured: Measured) -> Iterator[Row]:
    """Yield what was aimed at end to end, what was measured, and whether it was met."""
    yield from _per_token_rows(measured)
    yield _setup_row(measured)
    yield _memory_row(measured)
    yield _held_row(measured)
    yield _first_row(measured)


def _per_token_rows(measured: Measured) -> Iterator[Row]:
    one = measured.ns_per_token("1 flat out", OURS)
    yield target_row(
        "1 stream, one event per write, `async for`",
        "≤ 1.5 µs per token",
        f"{spread(one, unit=1000, digits=2)} µs, {_over_floor(measured, '1 flat out', OURS)}"
        if one
        else None,
        met=statistics.median(one) <= 1500 if one else None,
    )
    gather = f"{OURS} gather"
    for what, scenario, name, bound in (
        ("1,000 streams flat out", "1,000 flat out", OURS, 2.0),
        ("1,000 streams × 20 tok/s", "1,000 × 20/s", OURS, 1.4),
        ("1,000 streams × 20 tok/s, 1 ms gather window", "1,000 × 20/s", gather, 1.0),
        ("100 streams × 20 tok/s", "100 × 20/s", OURS, 2.0),
    ):
        floor = measured.median(scenario, FLOOR)
        ours = measured.median(scenario, name)
        told = None
        if floor and ours:
            told = _over_floor(measured, scenario, name)
            for loop in LOOPS[1:]:
                if measured.ns_per_token(scenario, name, loop):
                    told += f"; {loop}: {_over_floor(measured, scenario, name, loop)}"
        yield target_row(
            what,
            f"≤ {bound:g} × C floor",
            told,
            met=ours <= bound * floor if floor and ours else None,
        )


def _over_floor(measured: Measured, scenario: str, name: str, loop: str | None = None) -> str:
    floor, ours = measured.median(scenario, FLOOR), measured.median(scenario, name, loop)
    if not floor or not ours:
        return "the floor's runs failed"
    return f"{ours / floor:.2f} × C floor ({ours / 1000:,.1f} µs over {floor / 1000:,.1f} µs)"


def _setup_row(measured: Measured) -> Row:
    setup = measured.ns_per_token("request set-up", OURS)
    return target_row(
        "request set-up, CPU, 100 streams",
        "≤ 0.15 ms",
        f"{spread(setup, unit=1e6, digits=3)} ms" if setup else None,
        met=statistics.median(setup) <= 150_000 if setup else None,
    )


def _memory_row(measured: Measured) -> Row:
    what, target = "memory per open stream at 1,000, without the consumer's task", "≤ 16 KiB"
    held, control = (_memory(measured, name) for name in (OURS, CONTROL))
    if not held or not control:
        return target_row(what, target, None, met=None)
    own = [value - statistics.median(control) for value in held]
    told = f"{spread(own, unit=1024, digits=1)} KiB"
    return target_row(what, target, told, met=statistics.median(own) <= 16 * 1024)


def _held_row(measured: Measured) -> Row:
    late = _figure(measured, "10,000 × 5/s", OURS, "late_us_p99")
    own = _figure(measured, "10,000 × 5/s", OURS, "server_late_us_p99")
    told = f"{spread(late, unit=1000, digits=1)} ms" if late else None
    if told and own:
        told += f"; the server was {spread(own, unit=1000, digits=1)} ms late itself"
    return target_row(
        "10,000 × 5 tok/s held by one process, p99 from sent to in the consumer's hands",
        "≤ 50 ms",
        told,
        met=statistics.median(late) <= 50_000 if late else None,
    )


def _first_row(measured: Measured) -> Row:
    what, target = "added time to first token, p99, 100 streams", "< 1 ms over the C client"
    first = _figure(measured, "first token", OURS, "first_us_p99")
    floor = _figure(measured, "first token", FLOOR, "first_us_p99")
    if not first or not floor:
        return target_row(what, target, None, met=None)
    added = statistics.median(first) - statistics.median(floor)
    told = (
        f"{added / 1000:,.2f} ms: {spread(first, unit=1000, digits=2)} ms, the C client "
        f"{spread(floor, unit=1000, digits=2)} ms"
    )
    return target_row(what, target, told, met=added < 1000)


def growth_rows(measured: Measured) -> Iterator[Row]:
    """Yield how the cost of a token grows with the number of streams and with their length."""
    for what, growth, every in (
        ("cost per token as streams go 1 → 10,000", growth_over_streams, GROWING_STREAMS),
        (
            "cost per token as a stream grows 10 → 100,000 tokens",
            growth_over_tokens,
            GROWING_TOKENS,
        ),
    ):
        points, floor = growth(measured, OURS), growth_over_streams(measured, FLOOR)
        if len(points) < 2:
            yield target_row(what, "≤ 1.3 ×", None, met=None)
            continue
        most = max(points.values()) / points[min(points)]
        told = f"{most:.2f} ×: " + ", ".join(
            f"{points[at]:,.0f} ns at {at:,}" if at in points else f"not discernible at {at:,}"
            for at in every
        )
        if growth is growth_over_streams and floor:
            told += f"; the C floor {max(floor.values()) / floor[min(floor)]:.2f} ×"
        yield target_row(what, "≤ 1.3 ×", told, met=most <= 1.3)


def growth_over_streams(measured: Measured, name: str) -> dict[float, float]:
    """Return ns per token by the number of streams."""
    found = {
        streams: measured.median(f"grows to {streams:,} streams", name)
        for streams in GROWING_STREAMS
    }
    return {float(streams): cost for streams, cost in found.items() if cost}


def growth_over_tokens(measured: Measured, name: str) -> dict[float, float]:
    """Return ns per token by the length of the stream, the cost of a request taken off.

    Where what is left is too little of what a request costs, there is no figure.
    """
    found: dict[float, float] = {}
    for tokens in GROWING_TOKENS:
        whole = measured.median(f"grows to {tokens:,} tokens", name)
        bare = measured.median(bare_of(tokens), name)
        if whole and bare and (of_tokens := whole * tokens - bare) > bare * DISCERNIBLE:
            found[float(tokens)] = of_tokens / (tokens - 1)
    return found


def _figure(measured: Measured, scenario: str, name: str, key: str) -> list[float]:
    loop = "C" if name == FLOOR else LOOPS[0]
    return measured.figures(scenario, name, loop, lambda run: run.get(key))


def _memory(measured: Measured, name: str) -> list[float]:
    return _figure(measured, "memory", name, "bytes_per_stream")


def section(
    measured: Measured,
    root: Path,
    table: Callable[[Sequence[str], Sequence[Sequence[str]]], list[str]],
) -> list[str]:
    """Render everything that was measured end to end."""
    lines_out = [
        "## End to end",
        "",
        (
            "CPU of the whole client process, threads included, per token; the client pinned to "
            "one core, the replay server to another. Every token is an event, a chunk and a write "
            f"of its own. Medians of {measured.rounds} interleaved rounds or fewer, in brackets "
            "the least and the most; without brackets there was one. *over floor* is the ratio to "
            "the C floor of the same run. Counting begins once every stream has begun."
        ),
        "",
    ]
    for scenario in measured.scenarios.values():
        if scenario.kind in {"flat", "paced"} and not scenario.name.startswith("grows"):
            lines_out += _per_token_table(measured, scenario.name, table)
    lines_out += _other_tables(measured, table)
    lines_out += _plots(measured, root)
    lines_out += _failures(measured)
    return lines_out


def _failures(measured: Measured) -> list[str]:
    """Say which runs failed, and with what; the medians are those of the others."""
    told = []
    for scenario in measured.scenarios.values():
        for name, loop in measured.contenders(scenario):
            runs = measured.runs(scenario.name, name, loop)
            failed = [run["failed"] for run in runs if "failed" in run]
            if failed:
                count = f"{len(failed)} of {len(runs)}"
                told.append(f"- {scenario.name}, {label(name)}, {loop}: {count}, `{failed[0]}`")
    return ["### Runs that failed", "", *told, ""] if told else []


def _per_token_table(measured: Measured, scenario: str, table: Any) -> list[str]:
    floor = measured.median(scenario, FLOOR)
    rows = []
    about = measured.scenarios[scenario]
    for name, loop in measured.contenders(about):
        runs = measured.runs(scenario, name, loop)
        found = measured.ns_per_token(scenario, name, loop)
        if not runs:
            continue
        if not found:
            rows.append((label(name), loop, "failed", _PAST, _PAST))
            continue
        behind = _fell_behind(measured, scenario, runs)
        median = statistics.median(found)
        ratio = f"{median / floor:.2f}" if floor else _PAST
        rows.append((label(name), loop, spread(found), ratio, behind))
    if not rows:
        return []
    head = ("", "loop", "ns per token", "over floor", "kept up")
    return [f"### {_title(scenario)}", "", *table(head, rows)]


def _title(scenario: str) -> str:
    return (
        scenario
        if "streams" in scenario
        else scenario.replace(" ", " streams ", 1).replace("1 streams", "1 stream")
    )


def _fell_behind(measured: Measured, scenario: str, runs: Sequence[Result]) -> str:
    """Say whether as many tokens were read as were sent, at a pace."""
    about = measured.scenarios[scenario]
    if about.kind != "paced":
        return _PAST
    numbers = about.numbers
    shares = [
        run["tokens"] / (numbers["streams"] * numbers["rate"] * run["wall_s"])
        for run in runs
        if "tokens" in run
    ]
    if not shares:
        return _PAST
    share = statistics.median(shares)
    return "yes" if share > 0.98 else f"{share:.0%}"


def _other_tables(measured: Measured, table: Any) -> Iterator[str]:
    def rows(scenario: str, *columns: tuple[str, float, int]) -> list[tuple[str, ...]]:
        about = measured.scenarios.get(scenario)
        found = []
        for name, loop in measured.contenders(about) if about else ():
            cells = [
                spread(_figure(measured, scenario, name, key), unit=unit, digits=digits)
                for key, unit, digits in columns
            ]
            if measured.runs(scenario, name, loop):
                found.append((label(name), *cells))
        return found

    setup = [
        (label(name), spread(measured.ns_per_token("request set-up", name), unit=1000, digits=0))
        for name in (FLOOR, *CONTENDERS)
        if measured.runs("request set-up", name, "C" if name == FLOOR else LOOPS[0])
    ]
    if setup:
        yield "### Request set-up"
        yield ""
        yield "CPU per request of one token, 100 at a time on connections that are kept."
        yield ""
        yield from table(("", "µs"), setup)
    if held := rows("memory", ("bytes_per_stream", 1024, 1)):
        yield "### Memory per open stream, 1,000 open"
        yield ""
        yield "Growth of the resident set from one stream to 1,000, the consumer's task included."
        yield ""
        yield from table(("", "KiB"), held)
    keys = [(f"late_us_{cut}", 1000.0, 1) for cut in ("p50", "p99")]
    if late := rows("10,000 × 5/s", *keys):
        yield "### 10,000 streams × 5/s, held by one process"
        yield ""
        yield "From when a token was sent until it is in the consumer's hands."
        yield ""
        yield from table(("", "p50, ms", "p99, ms"), late)
    keys = [(f"first_us_{cut}", 1000.0, 2) for cut in ("p50", "p99")]
    if first := rows("first token", *keys):
        yield "### Time to first token, 100 streams × 20/s"
        yield ""
        yield from table(("", "p50, ms", "p99, ms"), first)


def _plots(measured: Measured, root: Path) -> Iterator[str]:
    groups: dict[str, Mapping[str, float]] = {}
    for name in ("1 flat out", "1,000 flat out", "100 × 20/s", "1,000 × 20/s"):
        medians = {who: measured.median(name, who) for who in (FLOOR, *CONTENDERS)}
        found = {who: value / 1000 for who, value in medians.items() if value}
        if found:
            groups[_title(name)] = found
    if groups:
        bars(root / PLOTS / "per_token.svg", "CPU per token, µs", groups)
        yield "![CPU per token](plots/per_token.svg)"
        yield ""
    for file, title, below, growth in (
        ("streams", "CPU per token over the number of streams, ns", "streams", growth_over_streams),
        ("length", "CPU per token over the stream's length, ns", "tokens", growth_over_tokens),
    ):
        series = {
            name: points
            for name in (FLOOR, *CONTENDERS)
            if len(points := growth(measured, name)) > 1
        }
        if series:
            lines(root / PLOTS / f"{file}.svg", title, series, below=below)
            yield f"![{title}](plots/{file}.svg)"
            yield ""
