"""Every recorded answer, cut in many ways, gives exactly the events committed beside it.

The expected events come from tests/captures/derive_events, which shares no code with the decoder.
docs/captures.md tells what each class of capture is expected to give, and why.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.captures import derive_events, tgi_frames
from tests.captures.derive_events import (
    TIMED,
    Capture,
    details_path,
    events_path,
    load,
    names,
)
from tests.replay.chunking import (
    byte_by_byte,
    decode_stream,
    every_split,
    log_of,
    plain,
    random_cuts,
    reads_of,
    sampled_splits,
)
from worker_adapters import StreamDecoder, TokenEvent

capture_of = cache(load)
STREAMS = [name for name in names() if capture_of(name).is_stream]
REFUSALS = [name for name in names() if capture_of(name).is_refusal]
DETAILED = [name for name in STREAMS if details_path(name).exists()]
DETAILS = {"token_ids": "true", "logprobs": "true"}

# Bodies of up to so many bytes are cut at every place, larger ones around line ends and at random.
EVERY_SPLIT_UP_TO = 25_000

each_stream = pytest.mark.parametrize("name", STREAMS)


def expected(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text("utf-8").split("\n")
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


def check(name: str, events: list[TokenEvent], how: str, path: Path | None = None) -> None:
    """Compare an event log with the committed one, and the laws that no file needs to state."""
    want = expected(path or events_path(name))
    padded = [*want, *[None] * (len(events) - len(want))]
    got = [comparable(event, w) for event, w in zip(events, padded, strict=False)]
    for at, (have, should) in enumerate(zip(got, want, strict=False)):
        assert have == should, f"{name}, {how}: event {at} differs; got\n{log_of(events)}"
    assert len(got) == len(want), f"{name}, {how}: got\n{log_of(events)}"
    for event in events:
        if event.kind == "end":
            assert event.data["decode_ms"] == event.data["decode_time_ms"] >= 0


def decode(
    capture: Capture, reads: list[bytes] | None = None, options: Mapping[str, str] | None = None
) -> tuple[list[TokenEvent], StreamDecoder]:
    """Decode a capture's body, whole unless reads are given."""
    return decode_stream(
        capture.dialect,
        [capture.body] if reads is None else reads,
        options={**capture.options, **(options or {})},
        complete=capture.complete,
    )


def chunkings(capture: Capture) -> Iterator[tuple[str, list[bytes]]]:
    body, rng = capture.body, random.Random(capture.name)
    yield "as the server chunked it", capture.chunks
    yield "byte by byte", byte_by_byte(body)
    splits = every_split(body) if len(body) <= EVERY_SPLIT_UP_TO else sampled_splits(body, rng, 60)
    for reads in splits:
        yield f"cut at {len(reads[0])}", reads
    for reads in random_cuts(body, rng, 20):
        yield reads_of(reads), reads


def test_every_capture_is_here() -> None:
    def per_engine(found: list[str]) -> dict[str, int]:
        return dict(Counter(name.partition("/")[0] for name in found))

    assert per_engine(STREAMS) == {
        "llamacpp": 71,
        "sglang": 35,
        "tgi": 27,
        "triton": 59,
        "vllm": 171,
    }
    assert per_engine(REFUSALS) == {
        "llamacpp": 26,
        "sglang": 13,
        "tgi": 3,
        "triton": 44,
        "vllm": 97,
    }
    assert per_engine(DETAILED) == {"llamacpp": 6, "sglang": 25, "tgi": 18, "triton": 2, "vllm": 33}


def test_committed_events_are_what_the_script_derives_and_the_witnesses_agree() -> None:
    assert list(derive_events.check()) == []
    assert list(tgi_frames.check()) == []


@each_stream
def test_capture_whole(name: str) -> None:
    capture = capture_of(name)
    events, decoder = decode(capture)
    check(name, events, "whole")
    assert decoder.is_terminal
    derived = derive_events.derive(capture)
    assert decoder.tokens_emitted == derived.tokens_emitted
    assert decoder.dropped_choices == derived.dropped_choices
    assert decoder.dropped_after_end == derived.dropped_after_end


@pytest.mark.parametrize("name", DETAILED)
def test_details_of_tokens(name: str) -> None:
    capture = capture_of(name)
    events, _ = decode(capture, options=DETAILS)
    check(name, events, "with details", details_path(name))
    same, _ = decode(capture, byte_by_byte(capture.body), DETAILS)
    assert same == events
    # Each of the two alone, and neither: the other fields are the same.
    for options in ({"token_ids": "true"}, {"logprobs": "true"}, {"token_ids": "false"}):
        some, _ = decode(capture, options=options)
        for full, event in zip(events, some, strict=True):
            data = full.data
            if "token_ids" not in options or options["token_ids"] == "false":
                data.pop("token_ids", None)
            if "logprobs" not in options:
                data.pop("logprobs", None)
            assert event.data == data
    for event in events:
        assert event.token_ids == event.data.get("token_ids")
        assert event.logprobs == event.data.get("logprobs")


@each_stream
def test_capture_after_its_recorded_head(name: str) -> None:
    capture = capture_of(name)
    decoder = StreamDecoder(capture.dialect, options=capture.options)
    decoder.dispatched(1.0)
    events = decoder.head(capture.status, capture.headers, 1.5)
    assert events == []
    for at, chunk in enumerate(capture.chunks):
        events += decoder.feed(chunk, 2.0 + at / 1000)
    events += decoder.finish(100.0, capture.complete)
    check(name, events, "with head, chunk by chunk, the clock running")
    end = events[-1]
    if end.kind == "end" and any(event.kind == "token" for event in events):
        # A stream whose end is the end of its body is decoded until then.
        last = 100.0 if capture.dialect == "triton" else 2.0 + len(capture.chunks) / 1000
        assert 0 <= end.data["decode_ms"] <= round(1000 * (last - 2.0)) + 1
        spent = round(1000 * (2.0 - 1.0) + len(capture.chunks))
        assert 1000 <= end.data["latency_first_token_ms"] <= spent


@pytest.mark.parametrize("name", REFUSALS)
def test_an_answer_with_an_error_status_is_one_error(name: str) -> None:
    capture = capture_of(name)
    (want,) = expected(events_path(name))
    for reads in (capture.chunks, byte_by_byte(capture.body)):
        decoder = StreamDecoder(capture.dialect, options=capture.options)
        decoder.dispatched(0.0)
        events = decoder.head(capture.status, capture.headers, 0.0)
        for read in reads:
            events += decoder.feed(read, 0.0)
        events += decoder.finish(0.0, capture.complete)
        (event,) = events
        got = comparable(event, want)
        got["data"] = {key: got["data"].get(key) for key in want["data"]}
        assert got == want, log_of(events)
        assert event.data["tokens_emitted"] == 0
        assert event.data["status"] == capture.status


@each_stream
def test_feed_and_finish_alone_are_enough(name: str) -> None:
    capture = capture_of(name)
    decoder = StreamDecoder(capture.dialect, options=capture.options)
    events = decoder.feed(capture.body, 0.0) + decoder.finish(0.0, capture.complete)
    check(name, events, "nothing but feed and finish")


@each_stream
def test_capture_in_every_chunking(name: str) -> None:
    capture = capture_of(name)
    reference, _ = decode(capture)
    check(name, reference, "whole")
    for how, reads in chunkings(capture):
        events, _ = decode(capture, reads)
        if events != reference:
            check(name, events, how)
            pytest.fail(f"{name}, {how}: not equal to the whole\n{log_of(events)}")


@each_stream
def test_token_text_is_sound_and_numbered_without_gaps(name: str) -> None:
    events, _ = decode(capture_of(name))
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


@each_stream
def test_nothing_follows_the_terminal(name: str) -> None:
    capture = capture_of(name)
    _, decoder = decode(capture)
    assert decoder.feed(capture.body, 1.0) == []
    assert decoder.finish(1.0) == []
    assert decoder.cancel(1.0) == []
    assert decoder.tick(1e9) == []
    assert decoder.next_wakeup() is None


# --- one server in two modes ----------------------------------------------------------------------

SGLANG = [name for name in STREAMS if capture_of(name).dialect == "sglang"]


@pytest.mark.parametrize("name", SGLANG)
def test_sglang_finds_its_mode_out_as_if_it_had_been_told(name: str) -> None:
    capture = capture_of(name)
    is_delta = "--incremental-streaming-output" in capture.facts["flags"]
    mode = "delta" if is_delta else "cumulative"
    for details in ({}, DETAILS):
        told, _ = decode(capture, options={"text": mode, **details})
        for options in (details, {"text": "auto", **details}):
            found, _ = decode(capture, options=options)
            assert found == told, f"{mode}; got\n{log_of(found)}"


def test_a_mode_that_is_not_the_servers_is_not_believed() -> None:
    # What the option says is taken for true: deltas read as cumulative contradict one another.
    deltas = capture_of("sglang/sglang0520inc-generate-stream")
    events, _ = decode(deltas, options={"text": "cumulative"})
    assert events[-1].error is not None
    assert events[-1].data["detail"] == "bad_json"


def test_triton_accumulated_text_read_as_deltas_repeats_itself() -> None:
    capture = capture_of("triton/stream_accumulate")
    whole, _ = decode(capture)
    repeated, _ = decode_stream("triton", [capture.body])
    texts = ["".join(e.t or "" for e in events) for events in (whole, repeated)]
    assert len(texts[1]) > len(texts[0])
    assert texts[1].endswith(texts[0])


def test_events_are_equal_by_what_they_say() -> None:
    """The comparisons above are worth nothing if everything is equal."""
    greedy = "llamacpp/completion_stream_greedy"
    events, _ = decode(capture_of(greedy))
    again, _ = decode(capture_of(f"{greedy}_cached"))
    assert events == decode(capture_of(greedy))[0]
    assert events[:-1] == again[:-1]
    assert events[-1].cached_tokens_in != again[-1].cached_tokens_in
    assert events[-1] != again[-1]
    assert all(a != b for at, a in enumerate(events) for b in events[at + 1 :])
    for event in events:
        assert json.loads(event.to_json()) == plain(event)
    ids, _ = decode(capture_of(greedy), options=DETAILS)
    assert ids[1].token_ids
    assert ids[1] != events[1]
