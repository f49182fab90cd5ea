"""The laws find every way in which a stream can break them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from worker_adapters import StreamDecoder, TokenEvent
from worker_adapters.testing.conformance import CheckFailed, check_events, check_rendering

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FRAMES = (
    b'data: {"index":0,"content":" a","stop":false,"tokens_predicted":1,"tokens_evaluated":3}\n\n'
    b'data: {"index":0,"content":" b","stop":false,"tokens_predicted":2,"tokens_evaluated":3}\n\n'
    b'data: {"index":0,"content":"","stop":true,"stop_type":"limit","tokens_predicted":2}\n\n'
)


def events(data: bytes = FRAMES) -> list[TokenEvent]:
    decoder = StreamDecoder("llamacpp", started={"correlation_id": "c"})
    decoder.dispatched(0.0)
    head = decoder.head(200, [(b"content-type", b"text/event-stream")], 0.0)
    return head + decoder.feed(data, 0.0) + decoder.finish(0.0)


def test_a_good_stream_passes() -> None:
    check_events(events(), "llamacpp")
    check_rendering(events())


def test_a_stream_that_ends_in_an_error_passes() -> None:
    cut = events(FRAMES[: FRAMES.rindex(b"data")])
    assert cut[-1].kind == "error"
    check_events(cut, "llamacpp")


@pytest.mark.parametrize(
    "break_it",
    [
        lambda good: good[:0],
        lambda good: good[:-1],
        lambda good: [*good, good[-1]],
        lambda good: [*good[:-1], good[1]],
        lambda good: good[1:],
        lambda good: [good[1], good[0], *good[2:]],
        lambda good: [good[0], *good],
        lambda good: [good[0], *good[2:]],
        lambda good: [good[0], good[1], good[1], *good[2:]],
        lambda good: [*good[:1], good[2], good[1], good[3]],
        lambda good: [*good, *good[1:2]],
    ],
    ids=[
        "empty",
        "no terminal",
        "two terminals",
        "a token last",
        "no start",
        "a token first",
        "two starts",
        "a number left out",
        "a number twice",
        "out of order",
        "a token after the end",
    ],
)
def test_a_broken_stream_fails(
    break_it: Callable[[Sequence[TokenEvent]], list[TokenEvent]],
) -> None:
    with pytest.raises(CheckFailed):
        check_events(break_it(events()), "llamacpp")


def test_another_engines_events_fail() -> None:
    with pytest.raises(CheckFailed, match="engine"):
        check_events(events(), "vllm")
