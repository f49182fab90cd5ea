"""The event stream decoder against a slow literal reading of the standard, on hostile input."""

import random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.replay.chunking import byte_by_byte, decode_sse, random_cuts, reads_of
from tests.replay.reference_sse import UNKNOWN_LINES_BYTES, parse
from worker_adapters import SseDecoder

# What decides anything: line ends, colons, spaces, field names and near misses of them, byte order
# marks, NUL, digits, and UTF-8 sound, cut off, overlong and out of range.
PIECES = st.sampled_from(
    [
        b"\n", b"\n", b"\n\n", b"\r", b"\r", b"\r\n", b"\r\n\r\n", b"\r\r",
        b":", b": ", b" ", b"  ",
        b"data", b"data:", b"data: ", b"data: x\n", b"data: x\n\n", b"data:\n",
        b"event: e\n", b"event", b"event:", b"id: 7\n", b"id", b"id\n", b"id: a\0b\n",
        b"retry: 10\n", b"retry", b"retry: 1x\n", b"retry:0\n",
        b"dat", b"Data: y\n", b"datax: y\n", b"error: {}\n", b"[DONE]", b"{}",
        b": comment\n", b"\0", b"0", b"9",
        b"\xef\xbb\xbf", b"\xef", b"\xef\xbb", b"\xbb\xbf",
        "é".encode(), "🙂".encode(), b"\xf0\x9f", b"\xe2\x82", b"\x80", b"\xff", b"\xc0\x8a",
        b"\xed\xa0\x80", b"\xf4\x90\x80\x80", "\u2028".encode(), "\x85".encode(),
    ]
)  # fmt: skip
STREAMS = st.lists(PIECES | st.binary(max_size=4), max_size=40).map(b"".join)


@settings(max_examples=1500, deadline=None)
@example(stream=b"\xef\xbb\xbf\xef\xbb\xbfdata: x\n\n", seed=1)
@example(stream=b"\xef\xbb", seed=1)
@example(stream=b"data: a\r\ndata: b\r\r\n\n", seed=1)
@example(stream=b"id: 1\n\nid: 2\ndata: x", seed=1)
@given(stream=STREAMS, seed=st.integers(0, 2**32))
def test_decoder_equals_the_reference_in_any_chunking(stream: bytes, seed: int) -> None:
    parsed = parse(stream)
    want = (
        parsed.events,
        parsed.last_event_id,
        parsed.retry,
        parsed.eof_pending,
        parsed.eof_partial,
        parsed.unknown_lines,
    )
    assert sum(map(len, parsed.unknown_lines)) < UNKNOWN_LINES_BYTES // 4
    assert decode_sse([stream]) == want
    assert decode_sse(byte_by_byte(stream)) == want
    for reads in random_cuts(stream, random.Random(seed), 6):
        assert decode_sse(reads) == want, reads_of(reads)


@settings(max_examples=300, deadline=None)
@given(stream=STREAMS, seed=st.integers(0, 2**32))
def test_replacements_are_counted_alike_in_any_chunking(stream: bytes, seed: int) -> None:
    counts = set()
    for reads in [[stream], byte_by_byte(stream), *random_cuts(stream, random.Random(seed), 4)]:
        decoder = SseDecoder()
        for read in reads:
            decoder.feed(read)
        decoder.finish()
        counts.add(decoder.utf8_replaced)
    assert len(counts) == 1


@settings(max_examples=300, deadline=None)
@given(stream=STREAMS, seed=st.integers(0, 2**32))
def test_an_event_is_handed_out_by_the_read_that_completes_it(stream: bytes, seed: int) -> None:
    for reads in random_cuts(stream, random.Random(seed), 4):
        decoder = SseDecoder()
        seen = 0
        fed = b""
        for read in reads:
            fed += read
            seen += len(decoder.feed(read))
            assert seen == len(parse(fed).events), f"after {fed!r}"
