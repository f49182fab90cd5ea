"""F: what is inside the body is not what it should be, or more than that."""

from __future__ import annotations

import asyncio
import json
import resource
from pathlib import Path
from typing import Any

import pytest

from tests.faults.outcomes import KEY
from tests.faults.playing import HELLO, SPOKE, Told, saying, spoken, task_of, told
from tests.transports import both_transports
from tests.unit.engines.tasking import task as task_for
from tests.unit.virtual_time import run as run_virtually
from tests.unit.wire import (
    LAST_CHUNK,
    STREAM_HEAD,
    Connection,
    Received,
    chunk,
    engine,
    final,
    frame,
    playing,
)
from worker_adapters import Timeouts

pytestmark = both_transports

LINE_LIMIT = 1 << 20
"""How long an event may be."""


def ended(outcome: Told, *tokens: str) -> None:
    assert outcome.error is None, outcome.error
    assert outcome.tokens == list(tokens)


def sse(document: object) -> bytes:
    text = document if isinstance(document, str) else json.dumps(document)
    return chunk(f"data: {text}\n\n".encode())


async def test_f1_invalid_utf8_is_replaced() -> None:
    spoiled = chunk(b'data: {"content":"a\xffb\xf0\x9fc","stop":false,"tokens_predicted":3}\n\n')
    outcome = await told(saying(STREAM_HEAD, *HELLO, spoiled, final(3), LAST_CHUNK))
    ended(outcome, *SPOKE, "a\ufffdb\ufffdc")
    assert outcome.count("sse_replacements_total") == 2


CANARY = "Rosinante-was-not-to-be-seen"


@pytest.mark.parametrize(
    "text",
    [
        f'{{"content":"{CANARY}',
        f'{{"content":"{CANARY}"}} trailing',
        f'["{CANARY}"]',
        f"{CANARY}",
        f'{{"content":{{"x":"{CANARY}"}}}}',
        f'{{"content":"{CANARY}","stop":"no"}}',
    ],
)
async def test_f2_an_event_that_is_no_json(text: str) -> None:
    outcome = await told(saying(STREAM_HEAD, *HELLO, sse(text), final(3), LAST_CHUNK))
    assert outcome.outcome == ("Adapter", "bad_json")
    assert outcome.tokens == list(SPOKE)
    fault = outcome.fault
    assert (fault.retriable, fault.tokens_emitted, fault.phase) == (False, 2, "stream")
    assert CANARY not in repr(fault)
    assert "at byte" in fault.message


@pytest.mark.parametrize(
    "opening", [b"data: ", b'data: {"content":"', b"data: x\ndata: "], ids=["data", "json", "lines"]
)
async def test_f3_an_event_has_a_limit(opening: bytes) -> None:
    outcome = await told(
        saying(STREAM_HEAD, *HELLO, chunk(opening), *endless(b"x", 2 * LINE_LIMIT))
    )
    assert outcome.outcome == ("Adapter", "frame_too_large")
    assert outcome.tokens == list(SPOKE)
    assert not outcome.fault.retriable


def endless(byte: bytes, count: int) -> list[bytes]:
    piece = chunk(byte * (64 << 10))
    return [piece] * (count >> 16)


async def test_f3_an_event_up_to_the_limit_is_one() -> None:
    text = "x" * (LINE_LIMIT - 200)
    outcome = await told(saying(STREAM_HEAD, frame(text, 1), final(1), LAST_CHUNK))
    ended(outcome, text)


def resident() -> int:
    """How many bytes of memory this process has."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * resource.getpagesize()


@pytest.mark.parametrize(
    ("opening", "piece"),
    [
        (b"", b": nothing in particular\n" * 2500),
        (b":", b"x" * (64 << 10)),
        (b"note: ", b"x" * (64 << 10)),
        (b"", b"note: of no use to anybody\n\n" * 2500),
    ],
    ids=["comments", "an endless comment", "an endless field", "fields"],
)
async def test_f3_what_says_nothing_is_passed_over_unbuffered(opening: bytes, piece: bytes) -> None:
    sent = 0
    largest = 0

    async def script(connection: Connection, _: Received) -> None:
        nonlocal sent, largest
        await connection.send(STREAM_HEAD, *HELLO, chunk(opening + b"x"))
        framed = chunk(piece)
        before = resident()
        while True:
            await connection.send(framed)
            sent += len(piece)
            largest = max(largest, resident() - before)
            # As sending never waits where the reader keeps up.
            await asyncio.sleep(0)

    outcome = await told(playing(engine(script)), timeouts=Timeouts(token_gap=0.7))
    # It is no progress, either.
    assert outcome.outcome == ("DecodeTimeout", "token_gap")
    assert outcome.tokens == list(SPOKE)
    assert sent > 4 << 20
    assert largest < 8 << 20


@pytest.mark.parametrize("ping", [b":\n\n", b": ping\n", b"data:\n\n", b"data: null\n\n", b"\n\n"])
def test_f4_keep_alives_are_no_progress(ping: bytes) -> None:
    async def main() -> None:
        timeouts = Timeouts(token_gap=30.0, idle=5.0)
        outcome = await told(pinging(ping), timeouts=timeouts)
        assert outcome.outcome == ("DecodeTimeout", "token_gap")
        assert outcome.seconds == pytest.approx(30.0, abs=0.5)
        assert outcome.tokens == list(SPOKE)
        assert (outcome.fault.retriable, outcome.fault.processed) == (True, "yes")

    run_virtually(main())


def test_f4_whoever_counts_them_as_progress_sets_the_idle_clock_alone() -> None:
    async def main() -> None:
        timeouts = Timeouts(token_gap=None, idle=5.0)
        outcome = await told(
            pinging(b":\n\n"), task_of("llamacpp", deadline_ms=90_000), timeouts=timeouts
        )
        assert outcome.outcome == ("DeadlineUnmet", "deadline")
        assert outcome.seconds == pytest.approx(90.0, abs=0.5)

    run_virtually(main())


def pinging(ping: bytes) -> Any:
    async def script(connection: Connection, _: Received) -> None:
        await connection.send(STREAM_HEAD, *HELLO)
        while True:
            await connection.rest(4.0)
            await connection.send(chunk(ping))

    return playing(engine(script))


async def test_f5_any_way_of_writing_events() -> None:
    one = b'data: {"content":"one","stop":false,"tokens_predicted":1}'
    two = b'data:{"content":"two",\rdata:"stop":false,"tokens_predicted":2}'
    body = (
        *(b"\xef\xbb\xbf: a comment\r\n\r\n", one, b"\r\r"),
        *(b"event: message\n\n", b"id: 7\r\n", two, b"\n\r\n", b"retry: 10\r\r"),
    )
    pieces = (chunk(piece) for piece in body)
    ended(await told(saying(STREAM_HEAD, *pieces, final(2), LAST_CHUNK)), "one", "two")


DONE = sse("[DONE]")


def said(text: str, reason: str | None = None, index: int = 0) -> bytes:
    choice = {"index": index, "text": text, "finish_reason": reason}
    return sse({"model": "tiny", "choices": [choice]})


async def test_f6_what_follows_the_end_is_dropped() -> None:
    late = frame("late", 3) + final(3)
    outcome = await told(saying(STREAM_HEAD, *HELLO, final(2) + late, LAST_CHUNK))
    ended(outcome, *SPOKE)
    [connection] = outcome.connections
    await connection.over()
    assert outcome.count("frames_after_end_total") == 2


async def test_f6_an_error_behind_the_end_changes_nothing() -> None:
    behind = said("late") + sse({"error": {"message": "late", "code": 500}}) + DONE
    outcome = await told(spoken("openai", said("hi"), said("", "stop"), DONE + behind, LAST_CHUNK))
    ended(outcome, "hi")


@pytest.mark.parametrize("together", [False, True])
async def test_f7_the_first_finish_signal_counts(together: bool) -> None:
    pieces = (*HELLO, final(2, "eos"), frame("late", 3), final(3, "limit"))
    body = (b"".join(pieces),) if together else pieces
    outcome = await told(saying(STREAM_HEAD, *body, LAST_CHUNK))
    ended(outcome, *SPOKE)
    assert outcome.events[-1].finish_reason == "stop"
    assert outcome.events[-1].tokens_out == 2


async def test_f7_a_finish_reason_is_no_finish_signal() -> None:
    # There are servers that name a reason in every chunk: what has text is still a token.
    pieces = (said("a", "stop"), said("b", "stop"), said("", "length"), DONE, said("late"), DONE)
    outcome = await told(spoken("openai", *pieces, LAST_CHUNK))
    ended(outcome, "a", "b")
    assert outcome.events[-1].finish_reason == "length"


async def test_f7_other_choices_are_dropped() -> None:
    pieces = (said("other", index=1), said("hi"), said("other", "stop", 1), said("", "length"))
    outcome = await told(spoken("openai", *pieces, DONE, LAST_CHUNK))
    ended(outcome, "hi")
    assert outcome.events[-1].finish_reason == "length"


async def test_f7_chunks_without_text_are_no_tokens() -> None:
    pieces = (
        sse({"choices": [{"index": 0, "delta": {"role": "assistant"}}]}),
        sse({"choices": [{"index": 0, "delta": {"content": ""}}]}),
        sse({"choices": [{"index": 0, "delta": {"content": "hi"}}]}),
        sse({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
        sse({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}),
    )
    asked = task_for("openai", {"messages": [{"role": "user", "content": "x"}]})
    outcome = await told(spoken("openai", *pieces, DONE, LAST_CHUNK), asked)
    ended(outcome, "hi")
    assert (outcome.events[-1].tokens_in, outcome.events[-1].tokens_out) == (3, 2)


async def test_f7_tokens_are_numbered_by_their_order() -> None:
    def token(index: int, text: str, whole: str | None = None) -> bytes:
        told_of = {"id": index, "text": text, "logprob": -0.1, "special": False}
        return sse({"index": index, "token": told_of, "generated_text": whole, "details": None})

    pieces = (token(2, "b"), token(1, "a"), token(9, "c", "bac"))
    ended(await told(spoken("tgi", *pieces, LAST_CHUNK)), "b", "a", "c")


def by_field(**error: Any) -> bytes:
    return sse({"error": error})


OOM = "CUDA error: out of memory"
ERRORS: dict[str, tuple[str, bytes, str, str]] = {
    "llama.cpp, loading": (
        "llamacpp",
        by_field(code=503, message="Loading model", type="unavailable_error"),
        *("PoolUnavailable", "loading"),
    ),
    "llama.cpp, full": (
        "llamacpp",
        by_field(code=503, message="no slot available", type="unavailable_error"),
        *("PoolUnavailable", "queue_full"),
    ),
    "llama.cpp, broken": (
        "llamacpp",
        by_field(code=500, message=OOM, type="server_error"),
        *("WorkerReset", "engine_error"),
    ),
    "llama.cpp, bad input": (
        "llamacpp",
        by_field(code=400, message="no", type="invalid_request_error"),
        *("Adapter", "invalid_request"),
    ),
    "llama.cpp, unknown": ("llamacpp", by_field(message="hm"), "Adapter", "engine_rejected"),
    "an event of that name": (
        "llamacpp",
        chunk(b'event: error\ndata: {"code":500,"message":"it broke","type":"server_error"}\n\n'),
        *("WorkerReset", "engine_error"),
    ),
    "a field of that name": (
        "llamacpp",
        chunk(b'error: {"code":500,"message":"it broke","type":"server_error"}\n\n'),
        *("WorkerReset", "engine_error"),
    ),
    "vLLM, full": (
        "vllm",
        by_field(code=503, message="currently busy and cannot accept new requests"),
        *("PoolUnavailable", "queue_full"),
    ),
    "vLLM, dead": (
        "vllm",
        by_field(code=400, message="EngineCore encountered an issue. See stack trace", type="x"),
        *("WorkerReset", "engine_error"),
    ),
    "vLLM, by object": (
        "vllm",
        sse({"object": "error", "code": 500, "message": OOM, "type": "InternalServerError"}),
        *("WorkerReset", "engine_error"),
    ),
    "vLLM, bad input": (
        "vllm",
        sse({"object": "error", "code": 400, "message": "no", "type": "BadRequestError"}),
        *("Adapter", "invalid_request"),
    ),
    "OpenAI, timeout": (
        "openai",
        by_field(code=504, message="the engine did not answer", type="timeout"),
        *("DecodeTimeout", "gateway_timeout"),
    ),
    "OpenAI, unknown": ("openai", by_field(message="hm"), "Adapter", "engine_rejected"),
    "OpenAI, words": ("openai", sse({"error": "hm"}), "Adapter", "engine_rejected"),
    "TGI, overloaded": (
        "tgi",
        sse({"error": "Model is overloaded", "error_type": "overloaded"}),
        *("PoolUnavailable", "rate_limited"),
    ),
    "TGI, broken": (
        "tgi",
        sse({"error": f"Request failed during generation: {OOM}", "error_type": "generation"}),
        *("WorkerReset", "engine_error"),
    ),
    "TGI, bad input": (
        "tgi",
        sse({"error": "Input validation error: no", "error_type": "validation"}),
        *("Adapter", "invalid_request"),
    ),
    "TGI, unknown": (
        "tgi",
        sse({"error": "hm", "error_type": "of its own"}),
        *("Adapter", "engine_rejected"),
    ),
    "Triton, full": (
        "triton",
        sse({"error": "in ensemble 'ensemble', Exceeds maximum queue size"}),
        *("PoolUnavailable", "queue_full"),
    ),
    "Triton, timeout": (
        "triton",
        sse({"error": "Request timeout expired"}),
        *("DecodeTimeout", "gateway_timeout"),
    ),
    "Triton, broken": (
        "triton",
        sse({"error": f"Executor failed process requestId 7 due to: {OOM}"}),
        *("WorkerReset", "engine_error"),
    ),
    "Triton, bad input": (
        "triton",
        sse({"error": "expected number of inputs between 1 and 3 but got 4"}),
        *("Adapter", "invalid_request"),
    ),
    "Triton, unknown": ("triton", sse({"error": "hm"}), "Adapter", "engine_rejected"),
    "SGLang, full": (
        "sglang",
        by_field(code=503, message="The request queue is full.", type="abort"),
        *("PoolUnavailable", "queue_full"),
    ),
    "SGLang, timeout": (
        "sglang",
        by_field(code=503, message="Request running timeout reached", type="abort"),
        *("DecodeTimeout", "gateway_timeout"),
    ),
    "SGLang, broken": (
        "sglang",
        by_field(code=500, message=OOM, type="InternalServerError"),
        *("WorkerReset", "engine_error"),
    ),
    "SGLang, bad input": (
        "sglang",
        by_field(code=400, message="no", type="BadRequestError"),
        *("Adapter", "invalid_request"),
    ),
    "SGLang, unknown": ("sglang", by_field(message="hm"), "Adapter", "engine_rejected"),
}


@pytest.mark.parametrize("what", ERRORS)
async def test_f8_an_error_in_the_place_of_a_frame(what: str) -> None:
    name, error, *expected = ERRORS[what]
    server = spoken(name, error, LAST_CHUNK)
    outcome = await told(server)
    assert list(outcome.outcome) == expected
    # A refusal that comes before anything else is no start.
    assert (outcome.kinds, outcome.is_raised) == (["error"], False)
    assert outcome.fault.retriable is (expected[0] != "Adapter")
    assert outcome.fault.engine == name
    # It is said inside a 200: nothing is sent again.
    assert len(outcome.connections) == 1


FIRST = {
    "llamacpp": frame("hi", 1),
    "openai": said("hi"),
    "vllm": said("hi"),
    "sglang": sse({"text": "hi", "output_ids": [1], "meta_info": {"completion_tokens": 1}}),
    "tgi": sse({"index": 1, "token": {"id": 1, "text": "hi", "special": False}}),
    "triton": sse({"text_output": "hi"}),
}


@pytest.mark.parametrize("what", ERRORS)
async def test_f8_an_error_in_mid_stream(what: str) -> None:
    name, error, *expected = ERRORS[what]
    outcome = await told(spoken(name, FIRST[name], error, LAST_CHUNK))
    assert list(outcome.outcome) == expected
    assert outcome.kinds == ["started", "token", "error"]
    assert (outcome.fault.processed, outcome.fault.tokens_emitted) == ("yes", 1)
    assert len(outcome.connections) == 1


async def test_f9_what_an_engine_says_is_made_safe_to_show() -> None:
    words = f"key {KEY} \x1b[31mred\x1b[0m\r\nInjected: header\x00 " + "long " * 500
    error = by_field(code=500, message=words, type="server_error")
    server = saying(STREAM_HEAD, *HELLO, error, LAST_CHUNK)
    outcome = await told(server, api_key=KEY)
    message = outcome.fault.message
    assert KEY not in message
    assert message.isprintable()
    assert "****" in message
    assert "red" in message
    assert len(message.encode()) <= 512


BARE = {"error": {"code": 500, "message": f"it broke over {KEY}", "type": "server_error"}}


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    "text", [json.dumps(BARE), json.dumps(BARE) + "\n", json.dumps(BARE, indent=2)]
)
async def test_f10_a_bare_error_in_an_event_stream(text: str, begun: bool) -> None:
    before = HELLO if begun else ()
    body = (STREAM_HEAD, *before, chunk(text.encode()), LAST_CHUNK)
    outcome = await told(saying(*body), api_key=KEY)
    assert outcome.outcome == ("WorkerReset", "engine_error")
    assert outcome.tokens == [*(SPOKE if begun else ())]
    assert "it broke over ****" in outcome.fault.message


async def test_f10_a_bare_error_that_nobody_knows() -> None:
    body = (STREAM_HEAD, chunk(b'{"error":{"message":"hm"}}'), LAST_CHUNK)
    outcome = await told(saying(*body))
    assert outcome.outcome == ("Adapter", "engine_rejected")


async def test_f11_empty_frames_are_passed_over() -> None:
    nothing = chunk(b"data:\n\ndata: \n\ndata: null\n\ndata\n\n")
    pieces = (nothing, HELLO[0], nothing, HELLO[1], nothing, final(2), LAST_CHUNK)
    ended(await told(saying(STREAM_HEAD, *pieces)), *SPOKE)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("name", ["llamacpp", "openai", "vllm"])
async def test_f12_an_error_line_and_then_the_marker(name: str, begun: bool) -> None:
    line = b'error: {"code":500,"message":"it broke","type":"server_error"}\n\n'
    before = [FIRST[name]] if begun else []
    outcome = await told(spoken(name, *before, chunk(line), DONE, LAST_CHUNK))
    assert outcome.outcome == ("WorkerReset", "engine_error")
    assert outcome.tokens == ["hi"] * begun
