"""D: what is wrong with the response head, or with what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.outcomes import adapter, ask, failed, released, until_sockets
from tests.transports import both_transports
from tests.unit.tasks import task
from tests.unit.wire import playing
from worker_adapters import AdapterError

if TYPE_CHECKING:
    from worker_adapters.testing.wire import Connection, Script

pytestmark = both_transports


def answering(answer: bytes) -> Script:
    """Give every request this answer."""

    async def script(connection: Connection) -> None:
        while True:
            await connection.request()
            await connection.send(answer)

    return script


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
async def test_d9_redirect_is_not_followed(status: int) -> None:
    for location in (
        "http://elsewhere.test/",
        "http://169.254.169.254/latest/meta-data/",
        "https://user:canary-key-0123456789@elsewhere.test/path?q=1",
        "/completion",
        "//",
        "",
    ):
        await redirected(status, location)


async def redirected(status: int, location: str) -> None:
    answer = f"HTTP/1.1 {status} X\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n"
    async with (
        released(),
        playing(answering(answer.encode())) as server,
        adapter(server.url) as made,
    ):
        outcome = await ask(made, task())
        error = failed(
            outcome,
            AdapterError,
            "redirect",
            phase="head",
            processed="no",
            retriable=False,
            status=status,
        )
        assert "latest" not in error.message
        assert "user" not in error.message
        await until_sockets(server.url, 0)
        assert len(server.received()) == 1
