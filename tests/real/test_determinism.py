"""Same prompt, parameters and seed: the same stream, on one replica and on the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.real.support import WANDER, cycle_text, task
from tests.transports import both_transports
from worker_adapters import LlamaCppAdapter

if TYPE_CHECKING:
    from worker_adapters.testing.llamacpp import LlamaCppServer

pytestmark = [pytest.mark.real, both_transports]

SEEDS = range(64)


async def _stream(adapter: LlamaCppAdapter, seed: int) -> bytes:
    """All token events as they would be forwarded."""
    wanted = task(
        max_tokens=48, seed=seed, determinism="strict", sampler_profile_version=WANDER.version
    )
    async with await adapter.submit(wanted) as stream:
        return b"".join([event.to_sse() async for event in stream if event.kind == "token"])


async def test_64_seeds_give_the_same_streams_on_two_replicas(
    server: LlamaCppServer, replica: LlamaCppServer
) -> None:
    async with (
        LlamaCppAdapter(server.url, sampler_profiles=[WANDER]) as first,
        LlamaCppAdapter(replica.url, sampler_profiles=[WANDER]) as second,
    ):
        for_first = [await _stream(first, seed) for seed in SEEDS]
        for_second = [await _stream(second, seed) for seed in reversed(SEEDS)][::-1]
    assert for_first == for_second
    assert len(set(for_first)) == len(SEEDS)


async def test_strict_does_not_depend_on_what_ran_before(adapter: LlamaCppAdapter) -> None:
    async def run(prompt: str, seed: int) -> str:
        wanted = task(prompt, seed=seed, determinism="strict")
        async with await adapter.submit(wanted) as stream:
            return (await stream.collect()).text

    texts = []
    for seed, before in enumerate(["say hello", "Once upon a", "Once upon a time there was"]):
        await run(before, seed)
        texts.append(await run("Once upon a time", seed))
    assert texts == [cycle_text(" time", 40)] * 3
