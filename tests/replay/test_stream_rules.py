"""The rules of a stream that no capture shows: each row of stream_rules.jsonl in every chunking."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.captures.derive_events import TIMED
from tests.replay.chunking import chunkings, decode_stream, log_of, reads_of
from worker_adapters import TokenEvent

VECTORS = Path(__file__).parents[1] / "vectors" / "stream_rules.jsonl"
ROWS: list[dict[str, Any]] = [json.loads(line) for line in VECTORS.read_text("ascii").splitlines()]


def as_given(event: TokenEvent, want: dict[str, Any]) -> dict[str, Any]:
    """The event without times; of an error, the fields that the row gives."""
    data = {key: value for key, value in event.data.items() if key not in TIMED}
    if event.kind == "error":
        data = {key: data.get(key) for key in want["data"]}
    return {"kind": event.kind, "data": data}


def test_names_are_unique_and_every_row_tells_why() -> None:
    assert len({row["name"] for row in ROWS}) == len(ROWS)
    assert all(row["why"] for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_rule_in_every_chunking(row: dict[str, Any]) -> None:
    body = row["body"].encode()
    complete = row.get("complete", True)
    first: list[TokenEvent] | None = None
    for reads in chunkings(body, seed=len(body)):
        options = row.get("options")
        events, decoder = decode_stream(row["engine"], reads, options=options, complete=complete)
        if first is None:
            first = events
            want = row["events"]
            got = [as_given(event, w) for event, w in zip(events, want, strict=False)]
            assert got == want, f"{row['why']}; got\n{log_of(events)}"
            assert len(events) == len(want), f"{row['why']}; got\n{log_of(events)}"
        where = f"in {reads_of(reads)}; got\n{log_of(events)}"
        assert events == first, where
        assert decoder.dropped_after_end == row.get("dropped_after_end", 0), where
        assert decoder.dropped_choices == row.get("dropped_choices", 0), where
