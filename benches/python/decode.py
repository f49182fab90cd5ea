"""Decode streams in memory beside the peers: CPU time per event, all in one run.

Every contender turns the same network reads into the text of every token. Before anything is
timed, each has to produce exactly the texts that went in. Rounds are interleaved, so that a
machine that slows down slows everybody down; the figure is the thread's CPU time, the garbage
collector paused as ``timeit`` does. Results go to stdout as JSON, times in nanoseconds per event.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import httpx
import msgspec
from httpx_sse import EventSource

from benches.python.streams import EVENTS, STREAMS, Stream
from worker_adapters import SseDecoder, StreamDecoder

READ_SIZES: dict[str, int | None] = {"one event per read": None, "64 KiB reads": 65_536}

Reads: TypeAlias = Sequence[bytes]
Decode: TypeAlias = Callable[[Reads], list[str]]


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta


class _ChatChunk(msgspec.Struct):
    choices: list[_Choice]


class _LlamaFrame(msgspec.Struct):
    content: str


class _TgiToken(msgspec.Struct):
    text: str


class _TgiFrame(msgspec.Struct):
    token: _TgiToken


def ours(dialect: str) -> Decode:
    """Decode with StreamDecoder and read the text of every token."""

    def decode(reads: Reads) -> list[str]:
        decoder = StreamDecoder(dialect)
        found: list[str] = []
        for number, read in enumerate(reads):
            for event in decoder.feed(read, float(number)):
                text = event.t
                if text is not None:
                    found.append(text)
        return found

    return decode


def ours_unread(dialect: str) -> Decode:
    """Decode with StreamDecoder and leave the texts where they are."""

    def decode(reads: Reads) -> list[str]:
        decoder = StreamDecoder(dialect)
        for number, read in enumerate(reads):
            decoder.feed(read, float(number))
        return []

    return decode


def ours_forwarded(dialect: str) -> Decode:
    """Decode with StreamDecoder and render every event as SSE towards a client."""

    def decode(reads: Reads) -> list[str]:
        decoder = StreamDecoder(dialect)
        for number, read in enumerate(reads):
            for event in decoder.feed(read, float(number)):
                event.to_sse()
        return []

    return decode


def ours_forwarded_at_once(dialect: str) -> Decode:
    """Decode with StreamDecoder and render each read's events as SSE in one piece."""

    def decode(reads: Reads) -> list[str]:
        decoder = StreamDecoder(dialect)
        decoder.hold()
        for number, read in enumerate(reads):
            decoder.feed(read, float(number))
            decoder.take_sse()
        return []

    return decode


def ours_sse(_dialect: str) -> Decode:
    """Decode the event stream only, and read the data of every event."""

    def decode(reads: Reads) -> list[str]:
        decoder = SseDecoder()
        return [event.data for read in reads for event in decoder.feed(read)]

    return decode


def _split_by_hand(reads: Reads) -> Iterator[bytes]:
    """Yield the data of every event, if it is one line and a blank line ends it."""
    rest = b""
    for read in reads:
        events = (rest + read).split(b"\n\n")
        rest = events.pop()
        for event in events:
            # TGI sends no space behind the colon; JSON does not mind one.
            if event.startswith(b"data:"):
                yield event[5:]


def msgspec_by_hand(dialect: str) -> Decode:
    """Split by hand and decode only the fields needed into typed structs."""
    if dialect == "openai":
        decode_chunk = msgspec.json.Decoder(_ChatChunk).decode

        def decode_chat(reads: Reads) -> list[str]:
            found = []
            for data in _split_by_hand(reads):
                if data == b" [DONE]":
                    break
                choices = decode_chunk(data).choices
                if choices:
                    text = choices[0].delta.content
                    if text:
                        found.append(text)
            return found

        return decode_chat

    if dialect == "tgi":
        decode_token = msgspec.json.Decoder(_TgiFrame).decode

        def decode_tgi(reads: Reads) -> list[str]:
            return [decode_token(data).token.text for data in _split_by_hand(reads)]

        return decode_tgi

    decode_frame = msgspec.json.Decoder(_LlamaFrame).decode

    def decode_llama(reads: Reads) -> list[str]:
        found = []
        for data in _split_by_hand(reads):
            text = decode_frame(data).content
            if text:
                found.append(text)
        return found

    return decode_llama


def httpx_sse_json(dialect: str) -> Decode:
    """Decode with httpx-sse over an httpx response, and each event with the json module."""

    def decode(reads: Reads) -> list[str]:
        response = httpx.Response(
            200, headers={"content-type": "text/event-stream"}, content=iter(reads)
        )
        found = []
        for event in EventSource(response).iter_sse():
            if event.data == "[DONE]":
                break
            frame = json.loads(event.data)
            if dialect == "openai":
                choices = frame["choices"]
                text = choices[0]["delta"].get("content") if choices else None
            elif dialect == "tgi":
                text = frame["token"]["text"]
            else:
                text = frame["content"]
            if text:
                found.append(text)
        return found

    return decode


CONTENDERS: dict[str, Callable[[str], Decode]] = {
    "worker-adapters, every text read": ours,
    "worker-adapters, no text read": ours_unread,
    "worker-adapters, forwarded with to_sse()": ours_forwarded,
    "worker-adapters, forwarded with take_sse()": ours_forwarded_at_once,
    "worker-adapters, SseDecoder only, data read": ours_sse,
    "hand split + msgspec typed": msgspec_by_hand,
    "httpx-sse + json": httpx_sse_json,
}
REFERENCE = "worker-adapters, every text read"
# These must find every text; the others are parts of the job, shown to tell where time goes.
WHOLE_JOB = {REFERENCE, "hand split + msgspec typed", "httpx-sse + json"}


def check(stream: Stream) -> None:
    """Stop the program unless every contender finds exactly the texts that went in."""
    for label, size in READ_SIZES.items():
        for name in WHOLE_JOB:
            found = CONTENDERS[name](stream.dialect)(stream.reads(size))
            if tuple(found) != stream.texts:
                sys.exit(f"{name} lost text of the {stream.name} stream ({label})")


def measure(stream: Stream, rounds: int) -> list[dict[str, object]]:
    """Time every contender ``rounds`` times on ``stream``; one row per read size and contender."""
    rows: list[dict[str, object]] = []
    for label, size in READ_SIZES.items():
        reads = stream.reads(size)
        decoders = {name: make(stream.dialect) for name, make in CONTENDERS.items()}
        times: dict[str, list[float]] = {name: [] for name in decoders}
        for _ in range(rounds):
            for name, decode in decoders.items():
                gc.collect()
                gc.disable()
                started = time.thread_time_ns()
                decode(reads)
                times[name].append((time.thread_time_ns() - started) / len(stream.events))
                gc.enable()
        reference = statistics.median(times[REFERENCE])
        rows.extend(
            {
                "stream": stream.name,
                "reads": label,
                "contender": name,
                "whole_job": name in WHOLE_JOB,
                "median_ns": statistics.median(taken),
                "min_ns": min(taken),
                "max_ns": max(taken),
                "ratio": statistics.median(taken) / reference,
            }
            for name, taken in times.items()
        )
    return rows


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--events", type=int, default=EVENTS)
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    sizes: dict[str, float] = {}
    for make in STREAMS.values():
        stream = make(arguments.events)
        check(stream)
        sizes[stream.name] = stream.bytes_per_event
        rows.extend(measure(stream, arguments.rounds))
    json.dump(
        {
            "rounds": arguments.rounds,
            "events": arguments.events,
            "bytes_per_event": sizes,
            "rows": rows,
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
