"""Callers without an asyncio loop: plain threads, and trio."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.real.support import cycle_text, task
from tests.transports import both_transports
from worker_adapters import LlamaCppAdapter
from worker_adapters.sync import SyncWorkerAdapter

if TYPE_CHECKING:
    from worker_adapters.testing.llamacpp import LlamaCppServer

pytestmark = [pytest.mark.real, both_transports]


def test_a_thread_reads_and_cancels(server: LlamaCppServer, slow_server: LlamaCppServer) -> None:
    with SyncWorkerAdapter(LlamaCppAdapter(server.url)) as adapter:
        assert adapter.health().ready
        asked = task(max_tokens=36, determinism="strict", seed=7)
        assert "".join(event.t or "" for event in adapter.submit(asked)) == cycle_text(" time", 36)
    with (
        SyncWorkerAdapter(LlamaCppAdapter(slow_server.url)) as adapter,
        adapter.submit(task(max_tokens=15_000, ctx=16_000)) as stream,
    ):
        next(stream)
        assert adapter.cancel(stream.task_id).sent
        assert [event.finish_reason for event in stream] == ["cancelled"]


def test_trio_reads_and_cancels(server: LlamaCppServer, slow_server: LlamaCppServer) -> None:
    async def main() -> None:
        async with LlamaCppAdapter(server.url) as adapter:
            assert (await adapter.health()).ready
            asked = task(max_tokens=36, determinism="strict", seed=7)
            whole = await (await adapter.submit(asked)).collect()
            assert whole.text == cycle_text(" time", 36)
        async with LlamaCppAdapter(slow_server.url) as adapter:
            stream = await adapter.submit(task(max_tokens=15_000, ctx=16_000))
            with trio.CancelScope() as scope:
                async for event in stream:
                    if event.kind == "token":
                        scope.cancel()
            assert scope.cancelled_caught
            assert [event.finish_reason async for event in stream] == ["cancelled"]

    trio.run(main)
