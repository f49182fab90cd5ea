"""Every recording, byte for byte through a socket, becomes what was derived from it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from tests.conftest import CAPTURES
from tests.transports import both_transports
from worker_adapters.engines import ENGINES, adapter_class
from worker_adapters.testing.conformance import CheckFailed, check_recording, find_recordings
from worker_adapters.testing.replay import Recording, load_recordings

pytestmark = both_transports

FOLDERS = ("llamacpp", "sglang", "tgi", "triton", "vllm")
RECORDED = [(engine, row) for engine in FOLDERS for row in find_recordings(CAPTURES, engine)]
OPENAI = find_recordings(CAPTURES / "vllm", "openai")


def test_every_engine_has_recordings() -> None:
    assert set(FOLDERS) == {row.evidence.rpartition("/")[2] for row in ENGINES.values()}
    assert {engine for engine, _ in RECORDED} == set(FOLDERS)
    assert len(RECORDED) > 500


def of_the_same_run(engine: str, recording: Recording) -> list[Recording]:
    """What the same server was asked besides: its version, its models."""
    run = recording.name.partition("-")[0]
    return [row for row in QUESTIONS[engine] if row.name.startswith(f"{run}-get-")]


QUESTIONS = {
    engine: [
        row
        for row in load_recordings(CAPTURES / engine)
        if row.method == "GET" and "-get-" in row.name
    ]
    for engine in FOLDERS
}


@pytest.mark.parametrize(
    ("engine", "recording"), RECORDED, ids=[f"{engine}/{row.name}" for engine, row in RECORDED]
)
async def test_recording(engine: str, recording: Recording) -> None:
    others = of_the_same_run(engine, recording)
    answers = [
        await check_recording(
            recording, engine, adapter_class(engine), others=others, chunking=chunking
        )
        for chunking in ("recorded", "whole", 7)
    ]
    for events in answers[1:]:
        assert [event.kind for event in events] == [event.kind for event in answers[0]]


@pytest.mark.parametrize("recording", OPENAI, ids=lambda row: row.name)
async def test_the_openai_adapter_reads_the_same(recording: Recording) -> None:
    await check_recording(recording, "openai", adapter_class("openai"))


@pytest.mark.parametrize(
    ("engine", "name"),
    [
        ("llamacpp", "slow_stream_greedy"),
        ("sglang", "sglang0520-generate-stream"),
        ("triton", "stream_ok_tensorrt_llm_bls"),
        ("vllm", "vllm032-chat-usage-stream"),
    ],
)
async def test_recorded_times(engine: str, name: str) -> None:
    found = {row.name: row for row in find_recordings(CAPTURES, engine)}
    recording = found[name]
    began = time.monotonic()
    events = await check_recording(recording, engine, adapter_class(engine), speed=2.0)
    took = time.monotonic() - began
    assert took >= recording.arrivals[-1][0] / 2 * 0.9
    # Between the first frame and the last of a recording that takes its time, time passes.
    decoded = events[-1].decode_ms
    assert decoded is not None
    first, last = recording.arrivals[0][0], recording.arrivals[-1][0]
    assert decoded <= (last - first) * 500 + 2000


@pytest.mark.parametrize(
    "change",
    [
        lambda events: events[:-1],
        lambda events: [*events, events[-1]],
        lambda events: events[1:],
        lambda events: [*events[:2], *events[3:]],
        lambda events: [events[0], {"kind": "token", "data": {"t": "!", "i": 0}}, *events[2:]],
    ],
    ids=["too many", "too few", "no start", "a token more", "another text"],
)
async def test_another_expectation_is_not_met(change: Any) -> None:
    """A comparison that nothing fails is worth nothing."""
    recording = next(row for engine, row in RECORDED if row.name == "completion_stream_greedy")
    assert recording.expected is not None
    other = Recording(
        recording.name,
        recording.raw,
        recording.method,
        recording.path,
        expected=tuple(change(list(recording.expected))),
    )
    with pytest.raises(CheckFailed):
        await check_recording(other, "llamacpp", adapter_class("llamacpp"))


async def test_a_stream_that_is_cut_is_not_taken_for_whole() -> None:
    recording = next(row for engine, row in RECORDED if row.name == "completion_stream_greedy")
    cut = Recording(recording.name, recording.raw[:-400], "POST", "/completion")
    assert not cut.is_whole
    assert recording.is_whole
    wrong = Recording(
        recording.name, recording.raw[:-1700], "POST", "/completion", expected=recording.expected
    )
    with pytest.raises(CheckFailed):
        await asyncio.wait_for(
            check_recording(wrong, "llamacpp", adapter_class("llamacpp")), timeout=10
        )
