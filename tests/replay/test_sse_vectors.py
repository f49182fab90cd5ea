"""Every conformance vector of the event stream format, in every chunking."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.replay.chunking import SseResult, chunkings, decode_sse, reads_of
from tests.replay.reference_sse import parse

VECTORS = Path(__file__).parents[1] / "vectors" / "sse.jsonl"
ROWS: list[dict[str, Any]] = [json.loads(line) for line in VECTORS.read_text("ascii").splitlines()]

ANY = "*"  # of a vector: do not compare


def expected(row: dict[str, Any], got: SseResult) -> SseResult:
    """What the vector expects, with what it does not compare taken from `got`."""

    def settle(want: Any, have: Any) -> Any:
        return have if want == ANY else want

    events = []
    for at, event in enumerate(row["expect"]):
        have = got[0][at] if at < len(got[0]) else (None, None, None, None)
        want = (event["event"], event["data"], event["id"], event["retry"])
        events.append(tuple(settle(w, h) for w, h in zip(want, have, strict=True)))
    fields = ("end_id", "end_retry", "eof_pending", "eof_partial", "unknown_lines")
    rest = [settle(row[name], have) for name, have in zip(fields, got[1:], strict=True)]
    return (events, *rest)


def test_all_vectors_are_here() -> None:
    assert len(ROWS) == 135
    assert len({row["name"] for row in ROWS}) == len(ROWS)
    assert {row["chunks"] for row in ROWS} == {"any"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_vector_in_every_chunking(row: dict[str, Any]) -> None:
    data = base64.b64decode(row["input_b64"])
    for reads in chunkings(data, seed=len(data)):
        got = decode_sse(reads)
        assert got == expected(row, got), f"{data[:200]!r} in {reads_of(reads)}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_the_reference_agrees_with_the_vector(row: dict[str, Any]) -> None:
    parsed = parse(base64.b64decode(row["input_b64"]))
    got = (
        parsed.events,
        parsed.last_event_id,
        parsed.retry,
        parsed.eof_pending,
        parsed.eof_partial,
        parsed.unknown_lines,
    )
    assert got == expected(row, got)
