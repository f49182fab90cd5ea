"""Completions: every character, every token, the right end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.real.support import FINITE, ONCE, WANDER, cycle_text, task
from tests.transports import both_transports
from worker_adapters import LlamaCppAdapter, SamplerProfile

if TYPE_CHECKING:
    from tests.real.support import Engine
    from worker_adapters.testing.llamacpp import LlamaCppServer

pytestmark = [pytest.mark.real, both_transports]

KNOWN = (
    " there was a tiny model, its name is café and it likes 🙂; every word of中 text comes from"
    " one token at time there was"
)


async def test_greedy_text_is_the_known_text(adapter: LlamaCppAdapter, engine: Engine) -> None:
    async with await adapter.submit(task(max_tokens=36, determinism="strict", seed=7)) as stream:
        events = [event async for event in stream]

    started, *tokens, end = events
    assert "".join(event.t or "" for event in tokens) == KNOWN
    assert cycle_text(" time", 36) == KNOWN
    assert [event.kind for event in tokens] == ["token"] * len(tokens)
    assert [event.i for event in tokens] == list(range(len(tokens)))
    assert [(event.t, event.n) for event in tokens if event.n != 1] == [
        ("é", 2),
        ("🙂", 4),
        ("中", 3),
    ]
    assert started.kind == "started"
    assert started.tokens_in == await engine.tokenize(ONCE)
    assert started.engine == "llamacpp"
    assert started.seed == 7
    assert end.kind == "end"
    assert end.tokens_out == 36 == sum(event.n or 0 for event in tokens)
    assert end.tokens_in == started.tokens_in
    assert (end.finish_reason, end.finish_reason_raw) == ("length", "limit")
    assert end.usage_source == "engine"
    assert end.decode_ms is not None
    assert end.latency_first_token_ms is not None
    assert end.seed == 7


async def test_a_finite_reply_ends_with_stop(adapter: LlamaCppAdapter) -> None:
    async with await adapter.submit(task("say hello", determinism="strict")) as stream:
        reply = await stream.collect()
    assert reply.text == FINITE
    assert reply.finish_reason == "stop"
    assert reply.tokens_out == 8  # seven with text, and the end of sequence


async def test_end_of_sequence_at_once_is_an_empty_reply(adapter: LlamaCppAdapter) -> None:
    async with await adapter.submit(task("say end", determinism="strict")) as stream:
        events = [event async for event in stream]
    assert [event.kind for event in events] == ["started", "end"]
    assert (events[-1].finish_reason, events[-1].finish_reason_raw) == ("stop", "eos")
    assert events[-1].tokens_out == 1


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (" model", " there was a tiny"),
        ("model, its", " there was a tiny "),
        ("é and", " there was a tiny model, its name is caf"),
        ("🙂", " there was a tiny model, its name is café and it likes "),
    ],
)
async def test_a_stop_word_ends_the_text_before_it(
    server: LlamaCppServer, stop: str, text: str
) -> None:
    profile = SamplerProfile(name="stop", version="stop-1", temperature=0.0, stop=(stop,))
    async with (
        LlamaCppAdapter(server.url, sampler_profiles=[profile]) as adapter,
        await adapter.submit(task(sampler_profile_version="stop-1")) as stream,
    ):
        events = [event async for event in stream]
    assert "".join(event.t or "" for event in events) == text
    assert (events[-1].finish_reason, events[-1].finish_reason_raw) == ("stop", "word")


@pytest.mark.parametrize("max_tokens", [11, 12, 18, 19, 27])
async def test_a_limit_inside_a_character_loses_only_that_character(
    adapter: LlamaCppAdapter, max_tokens: int
) -> None:
    wanted = task(max_tokens=max_tokens, determinism="strict")
    async with await adapter.submit(wanted) as stream:
        events = [event async for event in stream]
    text = "".join(event.t or "" for event in events)
    assert text == cycle_text(" time", max_tokens)
    assert "\ufffd" not in text
    assert events[-1].finish_reason == "length"
    assert events[-1].tokens_out == max_tokens


async def test_a_full_context_ends_with_length(adapter: LlamaCppAdapter) -> None:
    async with await adapter.submit(task(max_tokens=4000, determinism="strict")) as stream:
        reply = await stream.collect()
    assert reply.finish_reason == "length"
    assert 1000 < reply.tokens_out < 1024
    assert reply.text == cycle_text(" time", reply.tokens_out)


async def test_invalid_bytes_of_the_model_arrive_as_replacement_characters(
    adapter: LlamaCppAdapter, engine: Engine
) -> None:
    wanted = task(max_tokens=200, seed=3, sampler_profile_version=WANDER.version)
    async with await adapter.submit(wanted) as stream:
        reply = await stream.collect()
    assert "\ufffd" in reply.text
    assert any(ord(character) < 0x20 for character in reply.text)
    body = {"prompt": ONCE, "n_predict": 200, "seed": 3, "temperature": 1.0, "cache_prompt": False}
    settings = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
    assert (await engine.post("/completion", body | settings))["content"] == reply.text


async def test_an_unset_seed_is_chosen_reported_and_repeatable(adapter: LlamaCppAdapter) -> None:
    async def run(seed: int | None) -> tuple[str, int | None]:
        wanted = task(seed=seed, sampler_profile_version=WANDER.version)
        async with await adapter.submit(wanted) as stream:
            reply = await stream.collect()
        assert reply.events[0].seed == reply.events[-1].seed
        return reply.text, reply.events[0].seed

    first, seed = await run(None)
    other, other_seed = await run(None)
    assert seed is not None
    assert (seed, first) != (other_seed, other)
    assert await run(seed) == (first, seed)


async def test_batches_hold_the_same_events(adapter: LlamaCppAdapter) -> None:
    wanted = task(max_tokens=36, determinism="strict")
    async with await adapter.submit(wanted) as stream:
        batches = [batch async for batch in stream.batches()]
    assert all(batches)
    assert "".join(event.t or "" for batch in batches for event in batch) == KNOWN
    assert batches[-1][-1].is_terminal
