"""Ways to cut a byte string into reads, and running a decoder over them."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from worker_adapters import SseDecoder, StreamDecoder, TokenEvent

# Up to this length a vector or document is cut at every single place.
ALL_SPLITS_BELOW = 4096


def every_split(data: bytes) -> Iterator[list[bytes]]:
    """All ways to cut once, the empty ends included."""
    for at in range(len(data) + 1):
        yield [data[:at], data[at:]]


def near_line_ends(data: bytes, reach: int = 2) -> list[int]:
    """Places within `reach` bytes of a line end or of either end of the data."""
    marks = {0, len(data)} | {at for at, byte in enumerate(data) if byte in b"\r\n"}
    places = {mark + step for mark in marks for step in range(-reach, reach + 1)}
    return sorted(place for place in places if 0 <= place <= len(data))


def sampled_splits(data: bytes, rng: random.Random, count: int = 400) -> Iterator[list[bytes]]:
    """For data too long for every split: around line ends, where states change, and at random."""
    marks = near_line_ends(data)
    places = {*rng.sample(marks, min(count // 2, len(marks)))}
    places |= {rng.randrange(len(data) + 1) for _ in range(count // 2)}
    for at in sorted(places):
        yield [data[:at], data[at:]]


def byte_by_byte(data: bytes) -> list[bytes]:
    """Reads of one byte each."""
    return [data[at : at + 1] for at in range(len(data))]


def random_cuts(data: bytes, rng: random.Random, times: int) -> Iterator[list[bytes]]:
    """Several cuts at random places, empty reads now and then."""
    for _ in range(times):
        count = rng.choice((1, 2, 3, 8, 64))
        cuts = sorted(rng.randrange(len(data) + 1) for _ in range(count))
        yield [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def chunkings(
    data: bytes, *, seed: int, full_below: int = ALL_SPLITS_BELOW
) -> Iterator[list[bytes]]:
    """Whole, byte by byte, every two-way split (sampled for long data), random cuts."""
    rng = random.Random(seed)
    yield [data]
    yield byte_by_byte(data)
    yield from every_split(data) if len(data) <= full_below else sampled_splits(data, rng)
    yield from random_cuts(data, rng, 30)


def decode_stream(
    engine: str,
    reads: Iterable[bytes],
    *,
    options: Mapping[str, str] | None = None,
    complete: bool = True,
    now: float = 0.0,
) -> tuple[list[TokenEvent], StreamDecoder]:
    """Feed the reads to a fresh decoder, all at the same instant, and finish it."""
    decoder = StreamDecoder(engine, options=options)
    decoder.dispatched(now)
    events = decoder.head(200, [(b"Content-Type", b"text/event-stream")], now)
    for read in reads:
        events += decoder.feed(read, now)
    events += decoder.finish(now, complete)
    return events, decoder


SseResult = tuple[
    list[tuple[str, str, str, int | None]], str, int | None, str | None, str | None, list[str]
]


def decode_sse(reads: Iterable[bytes]) -> SseResult:
    """Everything an `SseDecoder` says about the reads."""
    decoder = SseDecoder()
    events = []
    for read in reads:
        events += [(e.event, e.data, e.id, e.retry) for e in decoder.feed(read)]
    decoder.finish()
    return (
        events,
        decoder.last_event_id,
        decoder.retry,
        decoder.eof_pending,
        decoder.eof_partial,
        decoder.unknown_lines,
    )


def plain(event: TokenEvent) -> dict[str, Any]:
    """An event as `{kind, data}`."""
    return {"kind": event.kind, "data": event.data}


def log_of(events: Sequence[TokenEvent]) -> str:
    """The event log, one JSON object a line, for a failure message."""
    return "\n".join(f"  {event.to_json()}" for event in events) or "  (no events)"


def reads_of(reads: Sequence[bytes]) -> str:
    """The reads' sizes, for a failure message."""
    sizes = ", ".join(str(len(read)) for read in reads[:12])
    return f"{len(reads)} reads of {sizes}{' …' if len(reads) > 12 else ''} bytes"
