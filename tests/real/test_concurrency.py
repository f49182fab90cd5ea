"""More tasks than slots: all complete, and no stream gets another's text."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.real.support import cycle_text, task
from tests.transports import both_transports

if TYPE_CHECKING:
    from tests.real.support import Engine
    from worker_adapters import LlamaCppAdapter

pytestmark = [pytest.mark.real, both_transports]

WORDS = (" there", " was", " tiny", " model", " name", " it", " every", " word", " text", " one")


async def test_every_stream_is_exact_with_more_tasks_than_slots(
    adapter: LlamaCppAdapter, engine: Engine
) -> None:
    async def run(word: str, tokens: int) -> str:
        wanted = task(word, max_tokens=tokens, determinism="strict")
        async with await adapter.submit(wanted) as stream:
            reply = await stream.collect()
        assert reply.tokens_out == tokens
        return reply.text

    wanted = [(word, 20 + index) for index, word in enumerate(WORDS * 2)]
    texts = await asyncio.gather(*(run(word, tokens) for word, tokens in wanted))
    assert texts == [cycle_text(word, tokens) for word, tokens in wanted]
    await engine.idle()


async def test_one_slow_reader_does_not_hold_the_others_up(
    adapter: LlamaCppAdapter, engine: Engine
) -> None:
    slow = await adapter.submit(task(max_tokens=900, determinism="strict"))
    await anext(slow)
    for word in WORDS[:3]:
        reply = await (await adapter.submit(task(word, determinism="strict"))).collect()
        assert reply.text == cycle_text(word, 40)
    reply = await slow.collect()
    assert reply.tokens_out == 900
    assert reply.text == cycle_text(" time", 900)
    await engine.idle()
