"""What holds for the events of any stream, of any engine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from worker_adapters._core import TokenEvent, error_codes, error_details, error_kinds, error_phases
from worker_adapters.testing.conformance._subject import expect

__all__ = ["check_error", "check_events", "check_rendering", "comparable"]

_KINDS = frozenset(("started", "token", "metrics", "end", "error"))
_FINISH = frozenset(
    ("stop", "length", "cancelled", "content_filter", "tool_calls", "unknown", None)
)
_TIMED = frozenset(("decode_ms", "decode_time_ms", "latency_first_token_ms"))


def check_events(events: Sequence[TokenEvent], engine: str) -> None:
    """Check order, numbering, counts and fields of a whole stream's events."""
    kinds = [event.kind for event in events]
    expect(events, "the stream had no event")
    expect(set(kinds) <= _KINDS, f"unknown kinds of event: {sorted(set(kinds) - _KINDS)}")
    expect(events[-1].is_terminal, f"the last event is {kinds[-1]}, not a terminal one")
    terminals = sum(event.is_terminal for event in events)
    expect(terminals == 1, f"{terminals} terminal events")
    starts = kinds.count("started")
    expect(starts <= 1, f"{starts} events started")
    if starts:
        expect(kinds[0] == "started", "started is not the first event")
        expect(events[0].engine == engine, f"started names the engine {events[0].engine}")
        expect(events[0].correlation_id, "started has no correlation_id")
    tokens = [event for event in events if event.kind == "token"]
    expect(starts or not tokens, "tokens without started")
    for at, event in enumerate(tokens):
        expect(event.i == at, f"token {at} has the number {event.i}")
        expect(event.t, f"token {at} has no text")
        expect((event.n or 0) >= 0, f"token {at} stands for {event.n} tokens")
    emitted = sum(event.n or 0 for event in tokens)
    last = events[-1]
    if last.kind == "error":
        check_error(last.data, engine)
        counted = last.data["tokens_emitted"]
        expect(counted == emitted, f"the error counts {counted} tokens, the events {emitted}")
        return
    data = last.data
    expect(data["decode_ms"] == data["decode_time_ms"] >= 0, "decode_ms and its alias differ")
    expect(data["finish_reason"] in _FINISH, f"finish_reason {data['finish_reason']!r}")
    cancelled = data["finish_reason"] == "cancelled"
    expect(starts or cancelled, "an end without started")
    expect(data["usage_source"] in {"engine", "counted"}, f"source {data['usage_source']!r}")
    if not cancelled:
        total = data["tokens_out"]
        expect(total >= emitted, f"{total} tokens in the end, {emitted} in the events")
        if tokens:
            expect("latency_first_token_ms" in data, "no latency of the first token")


def check_error(data: Mapping[str, Any], engine: str) -> None:
    """Check that an error has every field, with values of the contract."""
    expect(data.get("kind") in error_kinds(), f"kind {data.get('kind')!r}")
    expect(data.get("code") in error_codes(), f"code {data.get('code')!r}")
    expect(data.get("detail") in error_details(), f"detail {data.get('detail')!r}")
    expect(data.get("phase") in error_phases(), f"phase {data.get('phase')!r}")
    expect(data.get("processed") in {"no", "unknown", "yes"}, f"{data.get('processed')!r}")
    expect(isinstance(data.get("retriable"), bool), "retriable is not told")
    expect(data.get("message"), "no message")
    expect(data.get("engine") == engine, f"the error names the engine {data.get('engine')}")


def check_rendering(events: Sequence[TokenEvent]) -> None:
    """Check that every event can be sent on: sound UTF-8, one frame of one line of JSON each."""
    for event in events:
        if event.t is not None:
            expect(_is_sound(event.t), f"token {event.i} holds half a character")
        lines = event.to_sse().decode("utf-8").split("\n")
        expect(lines[0] == f"event: {event.kind}", "the frame does not name its event")
        expect(len(lines) == 4 and lines[2:] == ["", ""], "a frame of more than one line of data")
        expect(json.loads(lines[1].removeprefix("data: ")) == event.data, "the frame differs")
        expect(json.loads(event.to_json())["data"] == event.data, "the JSON differs")
    for before, after in pairwise(event for event in events if event.kind == "token"):
        halves = (before.t or "")[-1:] + (after.t or "")[:1]
        expect(_is_sound(halves), "a character is cut in two")


def _is_sound(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def comparable(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of an event depends on the engine's bytes alone."""
    data = {name: value for name, value in event["data"].items() if name not in _TIMED}
    match event["kind"]:
        case "started":
            data = {name: data[name] for name in ("tokens_in",) if name in data}
        case "end":
            for ours in ("seed", "engine_version"):
                data.pop(ours, None)
        case "error":
            # What kind of error it is depends on the adapter's rules.
            data = {name: data[name] for name in ("status", "tokens_emitted") if name in data}
    return {"kind": event["kind"], "data": data}
