"""Streams that are cut off: whatever came stays, and nothing ends well without its signal."""

import pytest

from tests.captures.derive_events import Capture, load, names
from tests.replay.chunking import decode_stream, log_of, near_line_ends
from worker_adapters import TokenEvent

STREAMS = [capture.name for capture in map(load, names()) if capture.is_stream]

# One golden stream per dialect and way to end, cut at every byte.
GOLDEN = (
    "llamacpp/completion_stream_greedy",
    "llamacpp/completion_stream_stop_word_near_miss",
    "llamacpp/v1_chat_stream_usage",
    "llamacpp/v1_completions_stream",
    "vllm/vllm032-chat-contusage-stream",
    "vllm/vllm032rust-comp-greedy-stream",
    "sglang/sglang0520-generate-regex-utf8-cut-stream",
    "sglang/sglang0520inc-generate-stop-stream",
    "tgi/tgi204-stream-plain",
    "tgi/tgi337-stream-keep-alive",
    "triton/stream_ok_tensorrt_llm_bls",
    "triton/llmapi_stream_split_utf8",
)


def decode(capture: Capture, reads: list[bytes], *, complete: bool = True) -> list[TokenEvent]:
    events, _ = decode_stream(capture.dialect, reads, options=capture.options, complete=complete)
    return events


def whole(capture: Capture) -> list[TokenEvent]:
    return decode(capture, [capture.body], complete=capture.complete)


def first_ended(capture: Capture) -> tuple[int, int]:
    """How many bytes must have come for `end`: at the latest, and at the earliest.

    At the latest the blank line after the frame of the finish signal. `[DONE]` counts from its
    last byte on when the body ends there, for some servers leave out the blank line.
    """
    body = capture.body
    done = b"data: [DONE]"
    if done in body:
        at = body.index(done)
        return at + len(done) + 2, at + len(done)
    signal = {"llamacpp": b'"stop":true', "tgi": b'"generated_text":"'}[capture.dialect]
    latest = body.index(b"\n\n", body.index(signal)) + 2
    return latest, latest


@pytest.mark.parametrize("complete", [True, False], ids=["framing-whole", "framing-cut"])
@pytest.mark.parametrize("name", [n for n in GOLDEN if not n.startswith("triton/")])
def test_cut_off_at_every_byte(name: str, complete: bool) -> None:
    capture = load(name)
    body = capture.body
    full = whole(capture)
    assert full[-1].kind == "end"
    latest, earliest = first_ended(capture)
    frames = 0
    for length in range(len(body) + 1):
        events, decoder = decode_stream(
            capture.dialect, [body[:length]], options=capture.options, complete=complete
        )
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
        check_truncated(before, last, decoder.tokens_emitted, where)


def check_truncated(before: list[TokenEvent], last: TokenEvent, emitted: int, where: str) -> None:
    """`last` must be the error of a stream that was cut off after the events `before`."""
    assert last.kind == "error", where
    error = last.data
    told = sum(1 if e.n is None else e.n for e in before if e.kind == "token")
    assert (error["kind"], error["code"]) == ("WorkerReset", "WORKER_RESET"), where
    assert error["detail"] == "truncated", where
    assert error["tokens_emitted"] == told == emitted, where
    assert error["processed"] == ("yes" if before else "unknown"), where
    assert error["retriable"] is True, where
    if any(e.kind == "token" for e in before):
        assert error["phase"] == "stream", where


@pytest.mark.parametrize("name", [n for n in GOLDEN if n.startswith("triton/")])
def test_a_body_that_is_its_own_end_cut_off_at_every_byte(name: str) -> None:
    capture = load(name)
    body = capture.body
    full = whole(capture)
    assert full[-1].kind == "end"
    for length in range(len(body) + 1):
        events, decoder = decode_stream(
            "triton", [body[:length]], options=capture.options, complete=False
        )
        *before, last = events
        where = f"{name} cut at {length}; got\n{log_of(events)}"
        assert before == full[: len(before)], where
        check_truncated(before, last, decoder.tokens_emitted, where)
        # The body ended, whole: it is the end where a frame has come and none is left in pieces.
        *before, last = decode(capture, [body[:length]])
        is_between = length > 0 and body[:length].endswith(b"\n\n")
        assert last.kind == ("end" if is_between else "error"), where
        if last.kind == "end":
            tokens = [event for event in before if event.kind == "token"]
            assert last.data["tokens_out"] >= len(tokens) > 0, where


@pytest.mark.parametrize("name", GOLDEN)
def test_cut_off_near_line_ends_in_two_reads(name: str) -> None:
    capture = load(name)
    for length in near_line_ends(capture.body, reach=3):
        part = capture.body[:length]
        one = decode(capture, [part])
        for at in (1, length // 2, length - 1):
            two = decode(capture, [part[:at], part[at:]])
            assert two == one, f"{name} cut at {length} and {at}; got\n{log_of(two)}"


@pytest.mark.parametrize("name", STREAMS)
def test_cut_off_anywhere_it_never_ends_well_without_its_signal(name: str) -> None:
    capture = load(name)
    full = whole(capture)
    step = 1 if len(capture.body) <= 1024 else 41 if len(capture.body) <= 8192 else 401
    for length in range(0, len(capture.body) + 1, step):
        # Where the end of the body is the signal, it has not come.
        complete = capture.dialect != "triton"
        events = decode(capture, [capture.body[:length]], complete=complete)
        *before, last = events
        if before != full[: len(before)] or (last != full[-1] and last.kind != "error"):
            pytest.fail(f"{name} cut at {length}; got\n{log_of(events)}")
        assert not any(event.is_terminal for event in before)
        assert last.is_terminal
