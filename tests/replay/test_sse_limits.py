"""What `SseDecoder` does with an event that is too large, and after the end."""

import pytest

from worker_adapters import AdapterError, SseDecoder


def test_events_before_one_that_is_too_large_are_not_lost() -> None:
    decoder = SseDecoder(max_event_bytes=16)
    read = b"data: one\n\ndata: two\n\ndata: much too large\n\n"
    assert [event.data for event in decoder.feed(read)] == ["one", "two"]
    for _ in range(2):
        with pytest.raises(AdapterError) as caught:
            decoder.feed(b"data: x\n\n")
        assert caught.value.detail == "frame_too_large"


def test_an_event_that_is_too_large_is_told_at_the_end_at_the_latest() -> None:
    decoder = SseDecoder(max_event_bytes=16)
    assert len(decoder.feed(b"data: one\n\ndata: much too large")) == 1
    with pytest.raises(AdapterError):
        decoder.finish()
    decoder.finish()


def test_feeding_after_the_end_is_refused() -> None:
    decoder = SseDecoder()
    decoder.finish()
    with pytest.raises(ValueError, match="after the end"):
        decoder.feed(b"data: x\n\n")
