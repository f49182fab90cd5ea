"""E: the answer breaks off, is framed wrongly, or comes in an odd way."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import random
import socket
import struct
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.netns import Far, far_end
from tests.faults.playing import (
    HELLO,
    SPOKE,
    Told,
    adapter_of,
    completions,
    followed,
    half_close,
    saying,
    spoken,
    task_of,
    told,
)
from tests.transports import both_transports
from tests.unit.wire import (
    LAST_CHUNK,
    STREAM_HEAD,
    WITHIN,
    Connection,
    Received,
    Server,
    chunk,
    engine,
    eventually,
    final,
    frame,
    playing,
)
from worker_adapters import LlamaCppAdapter, Timeouts, WorkerReset

if TYPE_CHECKING:
    from tests.transports import Transport

pytestmark = both_transports

CLOSED_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def event(content: str, predicted: int, **more: Any) -> bytes:
    """Return a frame of llama.cpp's native stream as it is inside a chunk."""
    framed = frame(content, predicted, **more)
    return framed[framed.index(b"\r\n") + 2 : -2]


BODY = event(SPOKE[0], 1) + event(SPOKE[1], 2)
STOP = event("", 2, stop=True, stop_type="limit", tokens=[])


def sized(length: int) -> bytes:
    return STREAM_HEAD.replace(b"Transfer-Encoding: chunked", b"Content-Length: %d" % length)


def is_cut_off(outcome: Told, *tokens: str) -> None:
    """It is as E1 says: truncated, and what came stays."""
    assert outcome.outcome == ("WorkerReset", "truncated")
    assert outcome.tokens == list(tokens)
    error = outcome.fault
    assert (error.phase, error.processed, error.retriable) == ("stream", "yes", True)
    assert error.tokens_emitted == len(tokens)
    # Nothing was sent a second time.
    assert len(outcome.connections) == 1


# How it ends.


async def test_e1_the_body_ends_before_the_finish_signal() -> None:
    pieces = (CLOSED_HEAD, BODY)
    is_cut_off(await told(saying(*pieces, then=half_close)), *SPOKE)


SAID = b"".join(
    b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"
    for choice in (
        {"index": 0, "text": "hi", "finish_reason": None},
        {"index": 0, "text": "", "finish_reason": "stop"},
    )
)


@pytest.mark.parametrize("marker", [b"data: [DONE]\n", b"data: [DONE]", b"data:[DONE]"])
async def test_e1_a_marker_without_its_blank_line_is_one(marker: bytes) -> None:
    outcome = await told(spoken("openai", SAID, marker, head=CLOSED_HEAD, then=half_close))
    assert (outcome.tokens, outcome.kinds[-1]) == (["hi"], "end")


@pytest.mark.parametrize("rest", [b"", b"data: [DON", b"data: [DONE] ", b'data: "[DONE]"'])
async def test_e1_what_is_no_marker_is_no_end(rest: bytes) -> None:
    is_cut_off(await told(spoken("openai", SAID, rest, head=CLOSED_HEAD, then=half_close)), "hi")


@pytest.mark.parametrize(
    "rest",
    [
        b"data: ",
        b'data: {"index":0,"conte',
        b'data: {"index":0,"content":"\xf0\x9f',
        event("more", 3)[:-3],
        event("more", 3)[:-1],
    ],
    ids=["field", "json", "utf-8", "frame", "blank line"],
)
async def test_e2_the_body_ends_in_the_middle_of_an_event(rest: bytes) -> None:
    pieces = (CLOSED_HEAD, BODY, rest)
    is_cut_off(await told(saying(*pieces, then=half_close)), *SPOKE)


@pytest.mark.parametrize(
    "rest", [b"", b"f", b"ff\r\n", b"ff\r\ndata: ", frame("more", 3)[:-1], b"0", b"0\r\n"]
)
async def test_e3_a_chunk_or_the_last_of_them_is_missing(rest: bytes) -> None:
    tokens = [*SPOKE, "more"] if rest.endswith(b"\n\n\r") else [*SPOKE]
    is_cut_off(await told(saying(STREAM_HEAD, *HELLO, rest, then=half_close)), *tokens)


BAD_CHUNKS = {
    "no size": b"\r\ndata\r\n",
    "no number": b"xyz\r\ndata\r\n",
    "negative": b"-4\r\ndata\r\n",
    "with a prefix": b"0x4\r\ndata\r\n",
    "2^64": b"10000000000000000\r\ndata\r\n",
    "no line end behind it": b"4\r\ndataXX5\r\n",
}


@pytest.mark.parametrize("fault", BAD_CHUNKS)
async def test_e3_a_chunk_is_malformed(fault: str, transport: Transport) -> None:
    outcome = await told(saying(STREAM_HEAD, *HELLO, BAD_CHUNKS[fault], then=half_close))
    if (transport, fault) == ("httpx", "2^64"):
        # h11 takes any number of up to 20 digits, and waits for as many bytes.
        is_cut_off(outcome, *SPOKE)
        return
    assert outcome.outcome == ("Adapter", "framing")
    assert (outcome.tokens, outcome.fault.retriable) == ([*SPOKE], False)


@pytest.mark.parametrize("length", [16, 17 << 10, 200 << 10])
async def test_e3_a_chunk_extension_has_a_limit(length: int, transport: Transport) -> None:
    # In pieces: h11 counts only what does not yet make a whole line.
    pieces = (b"3;", *[b"x" * (length // 4)] * 4, b"\r\n:\n\n\r\n")

    async def script(connection: Connection, _: Received) -> None:
        await connection.send(STREAM_HEAD, *HELLO)
        for piece in pieces:
            await connection.send(piece)
            await asyncio.sleep(0.02)
        await connection.send(final(2), LAST_CHUNK)
        await connection.until_closed()

    outcome = await told(playing(engine(script)))
    assert outcome.tokens == [*SPOKE]
    if length < 16 << 10 or (transport == "httpx" and length < 100 << 10):
        assert outcome.kinds[-1] == "end"
    else:
        assert outcome.outcome == ("Adapter", "framing")


@pytest.mark.parametrize("missing", [1, 1000])
async def test_e4_the_body_is_shorter_than_its_length(missing: int) -> None:
    is_cut_off(await told(saying(sized(len(BODY) + missing), BODY, then=half_close)), *SPOKE)


async def test_e4_the_body_is_longer_than_its_length() -> None:
    is_cut_off(await told(saying(sized(len(BODY)), BODY + STOP)), *SPOKE)


class Keeping(LlamaCppAdapter):
    """One whose engine keeps its connections."""

    keeps_after_stream = True


async def test_e4_what_follows_the_body_answers_nobody() -> None:
    body = event("hel", 1) + STOP
    smuggled = sized(len(body)) + body.replace(b"hel", b"bad")
    surplus = [smuggled, b""]

    async def script(connection: Connection, _: Received) -> None:
        await connection.send(sized(len(body)) + body + surplus.pop(0))

    async with playing(engine(script)) as server, Keeping(server.url) as made:
        for _ in range(2):
            assert (await (await made.submit(task_of("llamacpp"))).collect()).text == "hel"
        first, second = completions(server)
        await first.over()
        assert not second.is_left


def unsent(connection: Connection) -> int:
    """How many bytes the client's kernel has not got yet."""
    raw: socket.socket = connection._writer.get_extra_info("socket")
    return int(struct.unpack("i", fcntl.ioctl(raw.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0])


@pytest.mark.parametrize("count", [1, 100, 1000])
async def test_e5_what_came_before_a_reset_is_delivered(count: int) -> None:
    async def reset(connection: Connection) -> None:
        await eventually(lambda: unsent(connection) == 0, "the client's kernel has it all")
        connection.reset()

    frames = b"".join(frame(f"{n} ", n) for n in range(1, count + 1))
    outcome = await told(saying(STREAM_HEAD, frames, then=reset))
    assert outcome.outcome == ("WorkerReset", "reset")
    assert outcome.tokens == [f"{n} " for n in range(1, count + 1)]
    error = outcome.fault
    assert (error.tokens_emitted, error.processed, error.retriable) == (count, "yes", True)


async def test_e5_a_hundred_resets_at_once() -> None:
    go = asyncio.Event()

    async def reset(connection: Connection) -> None:
        await go.wait()
        connection.reset()

    async with (
        saying(STREAM_HEAD, *HELLO, then=reset) as server,
        adapter_of("llamacpp", server.url) as made,
    ):
        tasks = [task_of("llamacpp") for _ in range(100)]
        streams = await asyncio.gather(*map(made.submit, tasks))
        reading = [asyncio.create_task(followed(stream)) for stream in streams]
        await eventually(lambda: all(stream.tokens_emitted == 2 for stream in streams), "tokens")
        began = time.monotonic()
        go.set()
        for outcome in await asyncio.gather(*reading):
            assert outcome.outcome == ("WorkerReset", "reset")
            assert outcome.tokens == [*SPOKE]
        assert time.monotonic() - began < WITHIN
        assert len(held("127.0.0.1", int(server.url.rpartition(":")[2]))) <= 1


class FarServer(Server):
    """One at the far end of a cable."""

    def __init__(self, far: Far, script: Any) -> None:
        super().__init__(script, host=far.address)
        self._far = far

    async def start(self) -> None:
        """Listen there."""
        with self._far.inside():
            await super().start()


async def test_e6_the_cable_is_pulled() -> None:
    with far_end() as far:

        async def script(connection: Connection, _: Received) -> None:
            await connection.send(STREAM_HEAD, *HELLO)
            await eventually(lambda: unsent(connection) == 0, "the tokens have arrived")
            far.cut()
            await asyncio.Event().wait()

        patient = Timeouts(token_gap=0.5)
        async with (
            FarServer(far, engine(script)) as server,
            adapter_of("llamacpp", server.url, timeouts=patient) as made,
        ):
            await made.engine_version()
            before = held(far.address)
            stream = await made.submit(task_of("llamacpp"))
            outcome = await followed(stream)
            assert outcome.outcome == ("DecodeTimeout", "token_gap")
            assert outcome.tokens == [*SPOKE]
            error = outcome.fault
            assert (error.processed, error.retriable) == ("yes", True)
            await eventually(lambda: len(held(far.address)) <= len(before), "it is given back")


def held(address: str, port: int | None = None) -> list[int]:
    """Return this process's descriptors of connections to that address."""
    peer = socket.inet_aton(address)[::-1].hex().upper()
    peer += ":" if port is None else f":{port:04X}"
    rows = [row.split() for row in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[2].startswith(peer)}
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(link.readlink()) in sockets:
                found.append(int(link.name))
    return found


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the kernel is not Linux")
async def test_e6_the_kernel_looks_after_silent_peers() -> None:
    async with (
        saying(STREAM_HEAD, *HELLO) as server,
        adapter_of("llamacpp", server.url) as made,
    ):
        stream = await made.submit(task_of("llamacpp"))
        assert (await anext(stream)).kind == "started"
        open_now = held("127.0.0.1", int(server.url.rpartition(":")[2]))
        assert open_now
        for number in open_now:
            with socket.socket(fileno=os.dup(number)) as one:
                assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert [
                    one.getsockopt(socket.IPPROTO_TCP, option)
                    for option in (
                        socket.TCP_KEEPIDLE,
                        socket.TCP_KEEPINTVL,
                        socket.TCP_KEEPCNT,
                        socket.TCP_USER_TIMEOUT,
                    )
                ] == [15, 5, 3, 30_000]


# Odd ways.

CODINGS = ["gzip", "deflate", "br", "zstd", "x-nobody-knows"]


@pytest.mark.parametrize("coding", CODINGS)
async def test_e8_a_compressed_stream_is_refused(coding: str) -> None:
    head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: %b\r\n\r\n" % coding.encode())
    server = saying(head, chunk(b"\x1f\x8b\x08\x00\x00\x00\x00\x00"))
    outcome = await told(server)
    [request] = server.requests("/completion")
    assert request.headers["accept-encoding"] == "identity"
    assert outcome.outcome == ("Adapter", "content_encoding")
    assert (outcome.kinds, outcome.fault.retriable) == (["error"], False)


TRAILERS = {
    "valid": b"x-usage: 5\r\nx-more: y\r\n",
    "a length inside": b"content-length: 5\r\n",
    "too large": b"x: " + b"y" * (17 << 10) + b"\r\n",
}


@pytest.mark.parametrize("what", TRAILERS)
async def test_e9_trailers_change_nothing_behind_the_end(what: str) -> None:
    trailers = b"0\r\n" + TRAILERS[what] + b"\r\n"
    outcome = await told(saying(STREAM_HEAD, *HELLO, final(2), trailers))
    assert (outcome.tokens, outcome.kinds[-1]) == ([*SPOKE], "end")


@pytest.mark.parametrize("what", TRAILERS)
async def test_e9_trailers_where_the_whole_body_is_the_finish_signal(
    what: str, transport: Transport
) -> None:
    said = chunk(b'data: {"text_output":"hi"}\n\n')
    outcome = await told(spoken("triton", said, b"0\r\n" + TRAILERS[what] + b"\r\n"))
    assert outcome.tokens == ["hi"]
    if what == "too large" and transport == "native":
        assert outcome.outcome == ("Adapter", "framing")
    else:
        assert outcome.kinds[-1] == "end"


def flood(count: int) -> list[bytes]:
    return [frame(f"{n} ", n) for n in range(1, count + 1)]


def is_flood(outcome: Told, count: int) -> None:
    assert outcome.kinds[-1] == "end"
    assert outcome.tokens == [f"{n} " for n in range(1, count + 1)]


@pytest.mark.parametrize("size", [1 << 30, 64 << 10])
async def test_e10_a_proxy_holds_the_events_back(size: int) -> None:
    whole = b"".join([STREAM_HEAD, *flood(5000), final(5000), LAST_CHUNK])
    blocks = [whole[at : at + size] for at in range(0, len(whole), size)]
    assert len(blocks) > 8 or size > len(whole)
    is_flood(await told(saying(*blocks)), 5000)


async def test_e11_one_byte_at_a_time() -> None:
    whole = b"".join([STREAM_HEAD, frame("é🙂", 1), *flood(3)[1:], final(3), LAST_CHUNK])
    pause = random.Random(11)

    async def script(connection: Connection, _: Received) -> None:
        for byte in whole:
            await connection.send(bytes((byte,)))
            await asyncio.sleep(0.001 * (pause.random() < 0.1))
        await connection.until_closed()

    outcome = await told(playing(engine(script)))
    assert (outcome.tokens, outcome.kinds[-1]) == (["é🙂", "2 ", "3 "], "end")


async def test_e11_ten_thousand_events_at_once() -> None:
    body = b"".join(event(f"{n} ", n) for n in range(1, 10_001))
    is_flood(await told(saying(STREAM_HEAD + chunk(body), final(10_000), LAST_CHUNK)), 10_000)


@pytest.mark.timeout(120)
async def test_e12_a_poor_line() -> None:
    with far_end() as far:
        impair(far)
        whole = b"".join([STREAM_HEAD, *flood(20), final(20), LAST_CHUNK])
        async with (
            FarServer(far, saying_script(whole)) as server,
            adapter_of("llamacpp", server.url) as made,
        ):
            stream = await made.submit(task_of("llamacpp"))
            is_flood(await followed(stream), 20)


def saying_script(whole: bytes) -> Any:
    async def script(connection: Connection, _: Received) -> None:
        await connection.send(whole)
        await connection.until_closed()

    return engine(script)


def impair(far: Far) -> None:
    """Have it slow, late, and losing, as far as the kernel can; skip where it cannot at all."""
    slow = ("tbf", "rate", "8kbit", "burst", "2kb", "latency", "900ms")
    poor = (
        *("netem", "rate", "8kbit", "delay", "500ms", "400ms"),
        *("loss", "5%", "duplicate", "5%", "reorder", "25%"),
    )
    try:
        try:
            far.impair(*poor)
        except OSError:
            far.impair(*slow)
    except OSError as error:
        pytest.skip(f"no impaired line can be had here: {error}")


# The golden response, cut after every byte of it.

WORDS = ("Once", " upon", " a", " time", " é", " 🙂", "\n", " end")
GOLDEN = b"".join(
    [STREAM_HEAD, *(frame(word, n) for n, word in enumerate(WORDS, 1)), final(8), LAST_CHUNK]
)
ENDS = [
    len(STREAM_HEAD) + sum(len(frame(word, n)) for n, word in enumerate(WORDS[:count], 1)) - 2
    for count in range(1, len(WORDS) + 1)
]
"""After how many bytes each token's event is whole; the line end of its chunk does not matter."""
FINISHED = len(GOLDEN) - len(LAST_CHUNK) - 2


async def test_e13_cut_at_every_byte() -> None:
    async def script(connection: Connection, request: Received) -> None:
        await connection.send(GOLDEN[: int(request.json["prompt"])])
        await half_close(connection)

    async def cut(made: Any, at: int) -> None:
        expected = [word for word, end in zip(WORDS, ENDS, strict=True) if end <= at]
        submitting = made.submit(task_of("llamacpp", prompt=str(at)))
        if at < len(STREAM_HEAD):
            with pytest.raises(WorkerReset) as caught:
                await submitting
            error = caught.value
            assert (error.detail, error.phase, error.processed) == ("reset", "head", "unknown")
            return
        outcome = await followed(await submitting)
        assert outcome.tokens == expected, at
        if at >= FINISHED:
            assert outcome.kinds[-1] == "end", at
            return
        assert outcome.outcome == ("WorkerReset", "truncated"), at
        assert outcome.fault.tokens_emitted == len(expected), at

    async with playing(engine(script)) as server, adapter_of("llamacpp", server.url) as made:
        cuts = iter(range(len(GOLDEN) + 1))

        async def work() -> None:
            for at in cuts:
                await cut(made, at)

        await asyncio.gather(*(work() for _ in range(16)))
        posted = completions(server)
        assert len(posted) == len(GOLDEN) + 1
        for connection in posted:
            await connection.over()
