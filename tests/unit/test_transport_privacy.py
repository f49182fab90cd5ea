"""The transport used alone, by someone who has no exception of ours between it and a logger."""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING

import pytest

from tests.unit.test_privacy import KEY, PROMPT, WORDS
from tests.unit.wire import eventually, playing
from worker_adapters.transport import Progress, Request, TransportError
from worker_adapters.transport._httpx import HttpxTransport

if TYPE_CHECKING:
    from tests.unit.wire import Connection


def everything_behind(error: BaseException) -> str:
    """Return what a collector shows that follows every exception, also the suppressed ones."""
    shown, waiting, met = [], [error], set()
    while waiting:
        current = waiting.pop()
        if id(current) in met:
            continue
        met.add(id(current))
        waiting += [other for other in (current.__cause__, current.__context__) if other]
        looked = traceback.TracebackException(
            type(current), current, current.__traceback__, capture_locals=True
        )
        shown += [
            f"{row.filename} {row.name} {row.locals}"
            for row in looked.stack
            if row.filename != __file__
        ]
        shown.append(f"{current!r}")
    return "\n".join(shown)


async def opened_alone(url: str, body: bytes, progress: Progress) -> None:
    key = KEY.encode()
    transport = HttpxTransport(url, headers=((b"X-Api-Key", key),))
    request = Request("POST", "/x", ((b"Authorization", b"Bearer " + key),), body)
    try:
        await transport.open(request, progress, connect=5.0, tls=5.0)
    finally:
        await transport.aclose()


@pytest.mark.parametrize("how", ["refused", "reset", "waiting", "writing", "nonsense"])
async def test_a_transport_used_alone(how: str) -> None:
    async def script(connection: Connection) -> None:
        if how == "writing":
            await asyncio.Event().wait()  # nothing is read: the rest of the body must wait
        await connection.request()
        match how:
            case "waiting":
                await connection.until_closed()
            case "nonsense":
                await connection.send(b"nonsense\r\n\r\n")
                await connection.until_closed()
            case _:
                connection.close()

    body = PROMPT.encode() * (1 + (how == "writing") * 200_000)
    async with playing(script) as server:
        url = "http://127.0.0.1:1" if how == "refused" else server.url
        progress = Progress()
        opening = asyncio.create_task(opened_alone(url, body, progress))
        if phase := {"waiting": "head", "writing": "write"}.get(how):
            await eventually(lambda: progress.phase == phase, phase)
            opening.cancel()
        with pytest.raises((TransportError, asyncio.CancelledError)) as caught:
            await opening
    text = everything_behind(caught.value)
    assert "_httpx.py" in text
    if how in {"waiting", "writing"}:
        assert "_network.py exchange" in text
    for word in (*WORDS, KEY):
        assert word not in text, f"{word} shows"
