"""Every JSON vector as the frame of an OpenAI stream, in several chunkings."""

import base64
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.replay.chunking import (
    byte_by_byte,
    decode_stream,
    every_split,
    log_of,
    plain,
    random_cuts,
    reads_of,
)
from worker_adapters import TokenEvent

VECTORS = Path(__file__).parents[1] / "vectors" / "json_fields.jsonl"
ROWS: list[dict[str, Any]] = [json.loads(line) for line in VECTORS.read_text("ascii").splitlines()]

# Every split of a longer frame would cost time and show nothing new: the document is read whole,
# once its event is complete, and the SSE vectors cut long lines everywhere.
EVERY_SPLIT_BELOW = 4096


def frame(document: bytes) -> bytes:
    """The document as one server-sent event, a data line for each of its lines."""
    lines = re.split(b"\r\n|\r|\n", document)
    return b"".join(b"data: " + line + b"\n" for line in lines) + b"\n"


def outcomes(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The accepted outcomes behind the event stream decoder, which has replaced broken UTF-8."""
    wanted = [row["expect"], *row.get("also_ok", [])]
    if {"error": "utf8"} not in wanted:
        return wanted
    text = base64.b64decode(row["doc_b64"]).decode("utf-8", "replace")
    try:
        return [{"value": json.loads(text)["choices"][0]["text"]}]
    except ValueError:
        return [{"error": "syntax"}]


def outcome(events: list[TokenEvent]) -> dict[str, Any]:
    """What the frame came to: a value, nothing, or an error and its detail."""
    texts = [event.t for event in events if event.kind == "token"]
    last = events[-1]
    if last.kind == "error":
        assert not texts, "no token from a document that is an error"
        return {"error": last.data["detail"]}
    assert last.kind == "end"
    assert len(texts) <= 1
    return {"value": texts[0]} if texts else {"missing": True}


def accepts(want: dict[str, Any], got: dict[str, Any]) -> bool:
    if "error" in want:
        return got == {"error": "bad_json"}
    if want.get("value"):
        return got == {"value": want["value"]}
    return got == {"missing": True}  # missing, null and empty text: no token, no error


def chunkings(stream: bytes, rng: random.Random) -> Iterator[list[bytes]]:
    yield [stream]
    if len(stream) <= EVERY_SPLIT_BELOW:
        yield from every_split(stream)
    if len(stream) <= 1 << 16:
        yield byte_by_byte(stream)
    yield from random_cuts(stream, rng, 12)


def test_all_vectors_are_here() -> None:
    assert len(ROWS) == 143
    assert {row["path"] for row in ROWS} == {"choices[0].text"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_vector_as_a_frame_in_every_chunking(row: dict[str, Any]) -> None:
    document = base64.b64decode(row["doc_b64"])
    stream = frame(document) + b"data: [DONE]\n\n"
    wanted = outcomes(row)
    first: list[TokenEvent] | None = None
    for reads in chunkings(stream, random.Random(len(stream))):
        events, decoder = decode_stream("openai", reads)
        where = f"{document[:120]!r} in {reads_of(reads)} gave\n{log_of(events)}"
        assert decoder.is_terminal, where
        got = outcome(events)
        if row["name"] == "error_body":
            # The field is missing because the frame is an error, and that comes first.
            assert got["error"] not in ("bad_json", "truncated"), where
            assert [event.kind for event in events] == ["error"], where
        else:
            assert any(accepts(want, got) for want in wanted), f"expected {wanted}: {where}"
        if first is None:
            first = events
        assert events == first, f"differs from the whole input: {where}"
    assert first is not None
    for event in map(plain, first):
        json.dumps(event, ensure_ascii=False).encode()  # no lone surrogate anywhere


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_a_bad_document_keeps_what_came_before(row: dict[str, Any]) -> None:
    document = base64.b64decode(row["doc_b64"])
    before = b'data: {"model":"m","choices":[{"index":0,"text":"before"}]}\n\n'
    events, _ = decode_stream("openai", [before + frame(document)])
    kinds = [event.kind for event in events]
    assert kinds[:2] == ["started", "token"], log_of(events)
    assert events[1].t == "before"
    assert kinds[-1] == "error", log_of(events)  # there was no [DONE]
    assert kinds.count("error") == 1
    if "error" in row["expect"] and "also_ok" not in row and outcomes(row) == [row["expect"]]:
        error = events[-1].data
        assert error["detail"] == "bad_json", log_of(events)
        assert (error["kind"], error["code"], error["retriable"]) == ("Adapter", "INTERNAL", False)
        assert error["tokens_emitted"] == 1
