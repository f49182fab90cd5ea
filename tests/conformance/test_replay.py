"""The replay server sends what was recorded, byte for byte, and chooses as it is told."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from tests.conftest import CAPTURES
from worker_adapters.testing.replay import (
    Recording,
    ReplayServer,
    load_recording,
    load_recordings,
    pieces_of,
)
from worker_adapters.testing.wire import Connection, Received, response

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker_adapters.testing.replay import Chunking

ALL = [
    row
    for folder in sorted(CAPTURES.iterdir())
    if any(folder.glob("*.http"))
    for row in load_recordings(folder)
]
GREEDY = load_recording(CAPTURES / "llamacpp" / "completion_stream_greedy.http")
HEALTH = load_recording(CAPTURES / "llamacpp" / "health.http")
VERSION = load_recording(CAPTURES / "vllm" / "vllm032-get-version.http")


async def exchange(
    url: str,
    method: str = "GET",
    path: str = "/",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    size: int | None = None,
) -> bytes:
    """Send one request, and return so many bytes, or all that come until the server hangs up."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    lines = [f"{method} {path} HTTP/1.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)
    if size is None:
        # To the server this is the client's farewell, after the answer.
        writer.write_eof()
    async with asyncio.timeout(10):
        data = await (reader.read() if size is None else reader.readexactly(size))
    writer.close()
    await writer.wait_closed()
    return data


async def test_every_recording_is_sent_as_it_was_recorded() -> None:
    async with ReplayServer(ALL, routes={"GET *": ALL[0]}, chunking="whole") as server:
        for recording in ALL:
            got = await exchange(server.url, headers={"X-Replay": recording.name})
            assert got == recording.raw, recording.name


@pytest.mark.parametrize("chunking", ["recorded", "whole", 1, 7, 1000, lambda raw: [raw[:3], raw]])
def test_pieces(chunking: Chunking) -> None:
    pieces = list(pieces_of(GREEDY, chunking))
    if not callable(chunking):
        assert b"".join(pieces) == GREEDY.raw
    assert all(pieces)
    if chunking == "recorded":
        assert [len(piece) for piece in pieces] == [size for _, size in GREEDY.arrivals]


def test_a_piece_has_a_size() -> None:
    with pytest.raises(ValueError, match="one byte"):
        list(pieces_of(GREEDY, 0))


async def test_times_are_kept_or_scaled() -> None:
    took = GREEDY.arrivals[-1][0]
    for speed in (0.1, 1.0):
        async with ReplayServer([GREEDY], routes={"GET *": GREEDY}, speed=speed) as server:
            began = time.monotonic()
            assert await exchange(server.url, size=len(GREEDY.raw)) == GREEDY.raw
            assert time.monotonic() - began >= took / speed


async def test_what_is_chosen() -> None:
    short = Recording("short", response("short"), "POST", "/completion", b'{"n":1}')
    rows = [GREEDY, short, HEALTH]
    async with ReplayServer(rows, routes={"PUT /x": "short", "PUT *": HEALTH}) as server:
        url = server.url
        assert await exchange(url, "GET", "/health?x=1") == HEALTH.raw
        # The request that was recorded, else the first of its route, else the name that it gives.
        assert await exchange(url, "POST", "/completion", body=b'{"n":1}') == short.raw
        assert await exchange(url, "POST", "/completion", body=b'{"n":2}') == GREEDY.raw
        named = {"X-Replay": "short"}
        assert await exchange(url, "POST", "/other", headers=named) == short.raw
        assert await exchange(url, "PUT", "/x") == short.raw
        assert await exchange(url, "PUT", "/y") == HEALTH.raw
        assert (await exchange(url, "GET", "/none")).startswith(b"HTTP/1.1 404 ")
        assert [row.path for row in server.unanswered] == ["/none"]


def test_a_name_that_there_is_not() -> None:
    with pytest.raises(KeyError):
        ReplayServer([GREEDY], routes={"GET /": "nothing"})


async def test_the_rest_goes_to_the_fallback() -> None:
    async def answer(connection: Connection, request: Received) -> bool:
        await connection.send(response(request.path))
        return False

    async with ReplayServer([VERSION], fallback=answer) as server:
        assert await exchange(server.url, path="/version") == VERSION.raw
        assert (await exchange(server.url, path="/else")).endswith(b"/else")
        assert server.unanswered == []


def test_what_a_recording_tells() -> None:
    assert (GREEDY.method, GREEDY.path, GREEDY.status) == ("POST", "/completion", 200)
    assert GREEDY.is_event_stream
    assert GREEDY.is_whole
    assert not GREEDY.closes
    assert GREEDY.headers["server"] == "llama.cpp"
    assert GREEDY.expected is not None
    assert [row["kind"] for row in GREEDY.expected][:2] == ["started", "token"]
    assert not HEALTH.is_event_stream
    assert HEALTH.expected is None
    assert VERSION.arrivals
    cut = Recording("cut", GREEDY.raw[:-2])
    assert not cut.is_whole
    assert cut.closes
    expected = load_recording(CAPTURES / "triton" / "stream_expect_continue_ensemble.http")
    assert expected.status == 200
    assert expected.is_event_stream
    assert "prompt" not in repr(GREEDY)


def test_a_folder_that_there_is_not() -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_recordings("nowhere")
