"""Events that the decoder keeps: whatever way they are taken, they are those it would return."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from worker_adapters import StreamDecoder

FRAMES = [{"content": text, "tokens_predicted": n} for n, text in enumerate("hällo\nworld", 1)]
END = {"content": "", "stop": True, "stop_type": "limit", "tokens_predicted": 11}
BODY = b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in (*FRAMES, END))


def fresh() -> StreamDecoder:
    decoder = StreamDecoder("llamacpp", started={"seed": 7})
    decoder.dispatched(0.0)
    decoder.head(200, [(b"content-type", b"text/event-stream")], 0.0)
    return decoder


@given(
    st.lists(st.integers(0, len(BODY)), max_size=20),
    st.lists(st.sampled_from((None, 0, 1, 2, 7, "sse")), min_size=1, max_size=5),
)
def test_what_is_taken_is_what_would_be_returned(
    cuts: list[int], ways: list[int | str | None]
) -> None:
    reads = [BODY[a:b] for a, b in pairwise([0, *sorted(cuts), len(BODY)])]
    plain, held = fresh(), fresh()
    held.hold()
    expected, taken = b"", b""
    for n, data in enumerate(reads):
        expected += b"".join(event.to_sse() for event in plain.feed(data, 0.0))
        assert held.feed(data, 0.0) == []
        way = ways[n % len(ways)]
        there = held.pending
        if isinstance(way, str):
            taken += held.take_sse()
            assert held.pending == 0
        else:
            events = held.take(way)
            assert len(events) == (there if way is None else min(way, there))
            assert held.pending == there - len(events)
            taken += b"".join(event.to_sse() for event in events)
    assert taken + held.take_sse() == expected
    assert held.take_sse() == b""
    assert held.take() == []
    assert held.terminal == plain.terminal
    assert held.terminal is not None
    assert held.terminal.kind == "end"


def test_cancel_takes_back_what_is_kept() -> None:
    decoder = fresh()
    decoder.hold()
    decoder.feed(BODY[:200], 0.0)
    assert decoder.pending > 1
    assert decoder.terminal is None
    assert decoder.cancel(0.0) == []
    [end] = decoder.take()
    assert end.finish_reason == "cancelled"
    assert decoder.terminal == end


def test_cancel_leaves_the_terminal_event() -> None:
    decoder = fresh()
    decoder.hold()
    decoder.feed(BODY, 0.0)
    decoder.cancel(0.0)
    [end] = decoder.take()
    assert end.finish_reason == "length"
