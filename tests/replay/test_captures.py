"""Every recorded stream, cut in many ways, gives exactly the events committed beside it.

The expected events come from tests/captures/derive_events.py, which shares no code with the
decoder. docs/captures.md tells what each class of capture is expected to give, and why.
"""

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.captures import derive_events
from tests.captures.derive_events import TIMED, Capture, expected_path, load, streaming_names
from tests.replay.chunking import (
    byte_by_byte,
    decode_stream,
    every_split,
    log_of,
    near_line_ends,
    plain,
    random_cuts,
    reads_of,
    sampled_splits,
)
from worker_adapters import StreamDecoder, TokenEvent

NAMES = streaming_names()
EVERY_SPLIT_UP_TO = 25_000  # bytes of body; larger ones are sampled around line ends

each_capture = pytest.mark.parametrize("name", NAMES)


def expected(name: str) -> list[dict[str, Any]]:
    lines = expected_path(name).read_text("utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def comparable(event: TokenEvent, want: dict[str, Any] | None) -> dict[str, Any]:
    """The event without what no expectation holds: times, and messages that the library words."""
    data = {key: value for key, value in event.data.items() if key not in TIMED}
    if event.kind == "error":
        message = data.pop("message")
        assert message
        quoted = want["data"].get("message") if want else None
        if quoted is not None and quoted in message:
            data["message"] = quoted
    return {"kind": event.kind, "data": data}


def check(name: str, events: list[TokenEvent], how: str) -> None:
    """Compare an event log with the committed one, and the laws that no file needs to state."""
    want = expected(name)
    padded = [*want, *[None] * (len(events) - len(want))]
    got = [comparable(event, w) for event, w in zip(events, padded, strict=False)]
    for at, (have, should) in enumerate(zip(got, want, strict=False)):
        assert have == should, f"{name}, {how}: event {at} differs; got\n{log_of(events)}"
    assert len(got) == len(want), f"{name}, {how}: got\n{log_of(events)}"
    for event in events:
        if event.kind == "end":
            assert event.data["decode_ms"] == event.data["decode_time_ms"] >= 0


def whole(capture: Capture) -> list[TokenEvent]:
    return decode_stream(capture.engine, [capture.body], complete=capture.complete)[0]


def chunkings(capture: Capture) -> Iterator[tuple[str, list[bytes]]]:
    body, rng = capture.body, random.Random(capture.name)
    yield "as the server chunked it", capture.chunks
    yield "byte by byte", byte_by_byte(body)
    splits = every_split(body) if len(body) <= EVERY_SPLIT_UP_TO else sampled_splits(body, rng, 60)
    for reads in splits:
        yield f"cut at {len(reads[0])}", reads
    for reads in random_cuts(body, rng, 20):
        yield reads_of(reads), reads


def test_every_streaming_capture_is_here() -> None:
    assert len(NAMES) == 71


def test_committed_events_are_what_the_script_derives_and_the_answers_agree() -> None:
    assert list(derive_events.check()) == []


@each_capture
def test_capture_whole(name: str) -> None:
    capture = load(name)
    events, decoder = decode_stream(capture.engine, [capture.body], complete=capture.complete)
    check(name, events, "whole")
    assert decoder.is_terminal
    derived = derive_events.derive(capture)
    assert decoder.tokens_emitted == derived.tokens_emitted
    assert decoder.dropped_choices == derived.dropped_choices
    assert decoder.dropped_after_end == derived.dropped_after_end


@each_capture
def test_capture_after_its_recorded_head(name: str) -> None:
    capture = load(name)
    decoder = StreamDecoder(capture.engine)
    decoder.dispatched(1.0)
    events = decoder.head(capture.status, capture.headers, 1.5)
    assert events == []
    for at, chunk in enumerate(capture.chunks):
        events += decoder.feed(chunk, 2.0 + at / 1000)
    events += decoder.finish(100.0, capture.complete)
    check(name, events, "with head, chunk by chunk, the clock running")
    first = next((e for e in events if e.kind == "token"), None)
    end = events[-1]
    if end.kind == "end":
        spent = round(1000 * 0.001 * (len(capture.chunks) + 1))
        assert 0 <= end.data["decode_ms"] <= spent
        if first is not None:
            assert 1000 <= end.data["latency_first_token_ms"] <= 1000 + spent


@each_capture
def test_feed_and_finish_alone_are_enough(name: str) -> None:
    capture = load(name)
    decoder = StreamDecoder(capture.engine)
    events = decoder.feed(capture.body, 0.0) + decoder.finish(0.0, capture.complete)
    check(name, events, "nothing but feed and finish")


@each_capture
def test_capture_in_every_chunking(name: str) -> None:
    capture = load(name)
    reference = whole(capture)
    check(name, reference, "whole")
    for how, reads in chunkings(capture):
        events, _ = decode_stream(capture.engine, reads, complete=capture.complete)
        if events != reference:
            check(name, events, how)
            pytest.fail(f"{name}, {how}: not equal to the whole\n{log_of(events)}")


@each_capture
def test_token_text_is_sound_and_numbered_without_gaps(name: str) -> None:
    events = whole(load(name))
    tokens = [event for event in events if event.kind == "token"]
    assert [event.i for event in tokens] == list(range(len(tokens)))
    for event in tokens:
        assert event.t
        event.t.encode("utf-8")  # a lone surrogate would raise
        rendered = event.to_sse()
        assert rendered.count(b"\n") == 3
        assert rendered.endswith(b"\n\n")
        head, data = rendered.decode("utf-8").rstrip("\n").split("\n")
        assert head == "event: token"
        assert json.loads(data.removeprefix("data: ")) == event.data
    assert [e.kind for e in events].count("started") <= 1
    assert [e.is_terminal for e in events] == [False] * (len(events) - 1) + [True]


@each_capture
def test_nothing_follows_the_terminal(name: str) -> None:
    capture = load(name)
    _, decoder = decode_stream(capture.engine, [capture.body], complete=capture.complete)
    assert decoder.feed(capture.body, 1.0) == []
    assert decoder.finish(1.0) == []
    assert decoder.cancel(1.0) == []
    assert decoder.tick(1e9) == []
    assert decoder.next_wakeup() is None


# --- cut off at every byte ------------------------------------------------------------------------

FINISH_SIGNAL = {"llamacpp": b'"stop":true', "openai": b"data: [DONE]"}
GOLDEN = ("completion_stream_greedy", "completion_stream_stop_word_near_miss",
          "v1_chat_stream_usage", "v1_completions_stream")  # fmt: skip


def first_ended(capture: Capture) -> tuple[int, int]:
    """How many bytes must have come for `end`: at the latest, and at the earliest.

    At the latest the blank line after the frame of the finish signal. `[DONE]` counts from its
    last byte on when the body ends there, for some servers leave out the blank line.
    """
    body = capture.body
    signal = FINISH_SIGNAL[capture.engine]
    at = body.index(signal)
    latest = body.index(b"\n\n", at) + 2
    return (latest, at + len(signal)) if capture.engine == "openai" else (latest, latest)


@pytest.mark.parametrize("complete", [True, False], ids=["framing-whole", "framing-cut"])
@pytest.mark.parametrize("name", GOLDEN)
def test_cut_off_at_every_byte(name: str, complete: bool) -> None:
    capture = load(name)
    body = capture.body
    full = whole(capture)
    assert full[-1].kind == "end"
    latest, earliest = first_ended(capture)
    frames = 0
    for length in range(len(body) + 1):
        events, decoder = decode_stream(capture.engine, [body[:length]], complete=complete)
        where = f"{name} cut at {length}, complete={complete}; got\n{log_of(events)}"
        assert events, where
        *before, last = events
        assert before == full[: len(before)], where
        assert last.is_terminal, where
        assert len(before) >= frames, where  # more bytes never mean fewer events
        frames = len(before)
        if length >= latest or (complete and length >= earliest):
            assert last == full[-1], where
            continue
        if length >= earliest:
            # [DONE] came whole, its blank line did not, and the framing was cut: both are sound.
            assert last.kind in ("end", "error"), where
            continue
        assert last.kind == "error", where
        error = last.data
        emitted = sum(1 if e.n is None else e.n for e in before if e.kind == "token")
        assert (error["kind"], error["code"]) == ("WorkerReset", "WORKER_RESET"), where
        assert error["detail"] == "truncated", where
        assert error["tokens_emitted"] == emitted == decoder.tokens_emitted, where
        assert error["processed"] == ("yes" if before else "unknown"), where
        assert error["retriable"] is True, where
        tokens = any(e.kind == "token" for e in before)
        assert error["phase"] == ("stream" if tokens else "first_token"), where


@pytest.mark.parametrize("name", GOLDEN)
def test_cut_off_near_line_ends_in_two_reads(name: str) -> None:
    capture = load(name)
    for length in near_line_ends(capture.body, reach=3):
        part = capture.body[:length]
        one, _ = decode_stream(capture.engine, [part])
        for at in (1, length // 2, length - 1):
            two, _ = decode_stream(capture.engine, [part[:at], part[at:]])
            assert two == one, f"{name} cut at {length} and {at}; got\n{log_of(two)}"


@each_capture
def test_cut_off_anywhere_it_never_ends_well_without_its_signal(name: str) -> None:
    capture = load(name)
    full = whole(capture)
    step = 1 if len(capture.body) <= 8192 else 101
    for length in range(0, len(capture.body) + 1, step):
        events, _ = decode_stream(capture.engine, [capture.body[:length]])
        *before, last = events
        if before != full[: len(before)] or (last != full[-1] and last.kind != "error"):
            pytest.fail(f"{name} cut at {length}; got\n{log_of(events)}")
        assert not any(event.is_terminal for event in before)
        assert last.is_terminal


def test_events_are_equal_by_what_they_say() -> None:
    """The comparisons above are worth nothing if everything is equal."""
    events = whole(load("completion_stream_greedy"))
    again = whole(load("completion_stream_greedy_cached"))
    assert events == whole(load("completion_stream_greedy"))
    assert events[:-1] == again[:-1]
    assert events[-1].cached_tokens_in != again[-1].cached_tokens_in
    assert events[-1] != again[-1]
    assert all(a != b for at, a in enumerate(events) for b in events[at + 1 :])
    for event in events:
        assert json.loads(event.to_json()) == plain(event)
