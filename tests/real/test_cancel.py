"""Every way of giving a stream up frees the engine's slot."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from tests.real.support import FREED, ONCE, eventually, task
from tests.transports import both_transports, on_native

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.real.support import Engine
    from worker_adapters import LlamaCppAdapter, TokenEvent, TokenStream

pytestmark = [pytest.mark.real, both_transports]


async def _running(adapter: LlamaCppAdapter, engine: Engine) -> TokenStream:
    """A stream that has given a token and has seconds to go, on the only busy slot."""
    stream = await adapter.submit(task(max_tokens=15_000, ctx=16_000))
    while (await anext(stream)).kind != "token":
        pass
    assert await engine.busy() == 1
    return stream


async def _freed(engine: Engine, given_up: Callable[[], Awaitable[None]]) -> None:
    """Give the stream up and measure until /slots shows every slot free (``pytest -rP``)."""
    started = time.monotonic()
    await given_up()
    await engine.idle(within=FREED)
    print(f"slot free after {(time.monotonic() - started) * 1000:.1f} ms")


async def test_cancel_frees_the_slot_and_no_token_comes_after_it(
    slow_adapter: LlamaCppAdapter,
    slow_engine: Engine,
) -> None:
    stream = await _running(slow_adapter, slow_engine)

    async def cancel() -> None:
        receipt = await slow_adapter.cancel(stream.task_id)
        assert receipt.sent
        assert receipt.elapsed_ms < FREED * 1000

    await _freed(slow_engine, cancel)
    rest = [event async for event in stream]
    assert [(event.kind, event.finish_reason) for event in rest] == [("end", "cancelled")]
    again = await slow_adapter.cancel(stream.task_id)
    assert not again.sent


async def test_cancel_while_the_prompt_is_read_frees_the_slot(
    slow_adapter: LlamaCppAdapter, slow_engine: Engine
) -> None:
    prompt = ONCE * 1500
    long = await slow_engine.tokenize(prompt)
    assert long > 10_000
    before = (await slow_engine.counters())["prompt_tokens_total"]
    stream = await slow_adapter.submit(task(prompt, ctx=16_000, kv_hint="cold"))

    async def read() -> list[TokenEvent]:
        return [event async for event in stream]

    async def reads() -> bool:
        return await slow_engine.busy() == 1

    reader = asyncio.create_task(read())
    await eventually(reads, "the prompt is being read")
    receipt = await slow_adapter.cancel(stream.task_id)
    assert receipt.sent
    assert receipt.elapsed_ms < FREED * 1000
    assert [(event.kind, event.finish_reason) for event in await reader] == [("end", "cancelled")]

    async def freed() -> bool:
        return await slow_engine.busy() == 0

    # Before the first token the server looks for a closed connection after a second in which it
    # had no answer for anybody, these here included.
    taken = await eventually(freed, "the slot is free", within=20.0, every=1.5)
    print(f"slot seen free after {taken * 1000:.0f} ms")
    assert (await slow_engine.counters())["prompt_tokens_total"] - before < long / 2
    again = await (await slow_adapter.submit(task(max_tokens=4))).collect()
    assert again.finish_reason == "length"


@on_native
async def test_waiting_for_the_slot_does_not_keep_it_at_the_prompt(
    slow_adapter: LlamaCppAdapter, slow_engine: Engine
) -> None:
    prompt = ONCE * 1500
    long = await slow_engine.tokenize(prompt)
    before = (await slow_engine.counters())["prompt_tokens_total"]
    asked = task(prompt, ctx=16_000, kv_hint="cold")
    submitting = asyncio.create_task(slow_adapter.submit(asked))

    async def reads() -> bool:
        return await slow_engine.busy() == 1

    await eventually(reads, "the prompt is being read")
    # With every answer to anybody the server puts off looking for who has left.
    receipt = await slow_adapter.cancel(asked.task_id, confirm_within_ms=50_000)
    assert (receipt.sent, receipt.confirmed) == (True, True)
    print(f"confirmed after {receipt.elapsed_ms:.0f} ms")
    assert (await slow_engine.counters())["prompt_tokens_total"] - before < long / 2
    assert (await (await submitting).collect()).finish_reason == "cancelled"


async def test_cancel_waits_until_the_slot_is_free(
    slow_adapter: LlamaCppAdapter,
    slow_engine: Engine,
) -> None:
    other = await _running(slow_adapter, slow_engine)
    stream = await slow_adapter.submit(task(max_tokens=15_000, ctx=16_000))
    while (await anext(stream)).kind != "token":
        pass
    receipt = await slow_adapter.cancel(stream.task_id, confirm_within_ms=FREED * 1000)
    assert (receipt.method, receipt.sent, receipt.confirmed) == ("close", True, True)
    # The other task goes on.
    assert await slow_engine.busy() == 1
    assert (await anext(other)).kind == "token"
    receipt = await other.cancel(confirm_within_ms=FREED * 1000)
    assert receipt.confirmed is True
    assert await slow_engine.busy() == 0


async def test_break_and_close_free_the_slot(
    slow_adapter: LlamaCppAdapter,
    slow_engine: Engine,
) -> None:
    stream = await _running(slow_adapter, slow_engine)

    async def leave() -> None:
        async for _ in stream:
            break
        await stream.aclose()

    await _freed(slow_engine, leave)


async def test_leaving_the_context_frees_the_slot(
    slow_adapter: LlamaCppAdapter,
    slow_engine: Engine,
) -> None:
    stream = await _running(slow_adapter, slow_engine)

    async def leave() -> None:
        with pytest.raises(LookupError):
            async with stream:
                raise LookupError

    await _freed(slow_engine, leave)


async def test_a_dropped_stream_frees_the_slot(
    slow_adapter: LlamaCppAdapter,
    slow_engine: Engine,
) -> None:
    streams = [await _running(slow_adapter, slow_engine)]

    async def drop() -> None:
        streams.clear()
        gc.collect()

    await _freed(slow_engine, drop)


async def test_a_cancelled_reader_frees_the_slot(
    slow_adapter: LlamaCppAdapter,
    slow_engine: Engine,
) -> None:
    stream = await _running(slow_adapter, slow_engine)

    async def read() -> None:
        async with stream:
            async for _ in stream:
                pass

    reader = asyncio.create_task(read())
    await asyncio.sleep(0)

    async def cancel() -> None:
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader

    await _freed(slow_engine, cancel)


async def test_closing_the_adapter_frees_its_slots(
    slow_adapter: LlamaCppAdapter,
    slow_engine: Engine,
) -> None:
    stream = await _running(slow_adapter, slow_engine)
    await _freed(slow_engine, slow_adapter.aclose)
    await stream.aclose()


async def test_cancel_while_another_task_reads(
    slow_adapter: LlamaCppAdapter, slow_engine: Engine
) -> None:
    stream = await _running(slow_adapter, slow_engine)
    seen: list[str] = []
    cancelled = False
    late: list[str] = []

    async def read() -> None:
        async for event in stream:
            seen.append(event.kind)
            if cancelled and event.kind == "token":
                late.append(event.t or "")

    async def some() -> bool:
        return len(seen) > 20

    reader = asyncio.create_task(read())
    await eventually(some, "tokens are being read")
    await slow_adapter.cancel(stream.task_id)
    cancelled = True
    await reader
    assert seen[-1] == "end"
    assert seen.count("end") == 1
    assert late == []
    await slow_engine.idle(within=FREED)


async def test_cancel_of_a_queued_task_ends_its_submit_with_one_event(
    slow_adapter: LlamaCppAdapter, slow_engine: Engine
) -> None:
    running = [await _running(slow_adapter, slow_engine)]
    running.append(await slow_adapter.submit(task(max_tokens=15_000, ctx=16_000)))
    queued = task(max_tokens=10)
    submitting = asyncio.create_task(slow_adapter.submit(queued))

    async def deferred() -> bool:
        return (await slow_engine.counters())["requests_deferred"] == 1

    await eventually(deferred, "the third task waits for a slot")
    started = time.monotonic()
    await slow_adapter.cancel(queued.task_id)
    stream = await submitting
    assert time.monotonic() - started < FREED
    events = [event async for event in stream]
    assert [(event.kind, event.finish_reason) for event in events] == [("end", "cancelled")]
    for other in running:
        await other.aclose()
    await slow_engine.idle()


async def test_cancel_of_an_unknown_task_is_no_error(slow_adapter: LlamaCppAdapter) -> None:
    receipt = await slow_adapter.cancel(uuid4())
    assert not receipt.sent
