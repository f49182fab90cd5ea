"""What a stream of the real server becomes: text, counts, reasons."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.real.triton.support import STREAMING, TEXT, TOKENS, adapter, task
from tests.transports import both_transports
from worker_adapters import AdapterError, SamplerProfile
from worker_adapters.engines.triton import EmbeddingTensors
from worker_adapters.extensions import Constraint, Sampling, TaskExtensions
from worker_adapters.testing.triton.models.mock_llm import PIECES

if TYPE_CHECKING:
    from worker_adapters.testing.triton import TritonServer

# The first test installs and starts the server.
pytestmark = [pytest.mark.real, pytest.mark.timeout(300), both_transports]

SPLIT = TEXT.replace("wörld!", "wörld🚀!")
"""The reply with one character that comes in four tokens."""


@pytest.mark.parametrize("model", STREAMING)
async def test_text_is_exact_and_every_token_counts(server: TritonServer, model: str) -> None:
    async with adapter(server, model) as made:
        stream = await made.submit(task(seed=7))
        events = [event async for event in stream]
    kinds = [event.kind for event in events]
    assert kinds == ["started", *["token"] * TOKENS, "end"]
    assert "".join(event.t or "" for event in events) == TEXT
    assert [event.i for event in events[1:-1]] == list(range(TOKENS))
    end = events[-1]
    assert (end.tokens_out, end.usage_source, end.seed) == (TOKENS, "counted", 7)
    assert events[0].model == model
    assert events[0].engine_version == "2.51.0"
    # Only the LLM API tells, and only when asked.
    assert (end.finish_reason, end.finish_reason_raw) == (
        ("stop", "stop") if model == "llmapi" else (None, None)
    )


@pytest.mark.parametrize("model", STREAMING)
async def test_the_limit_of_tokens_reaches_the_model(server: TritonServer, model: str) -> None:
    async with adapter(server, model) as made:
        answer = await (await made.submit(task(max_tokens=3))).collect()
    assert (answer.text, answer.tokens_out) == ("Hello, wörld", 3)
    assert answer.finish_reason == ("length" if model == "llmapi" else None)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        # Each token is decoded alone there: the character is lost before it is sent.
        ("ensemble", TEXT.replace("wörld!", "wörld\ufffd\ufffd\ufffd\ufffd!")),
        ("tensorrt_llm_bls", TEXT.replace("wörld!", "wörld\ufffd\ufffd\ufffd\ufffd!")),
        # Here it is only late.
        ("tensorrt_llm_bls_accum", SPLIT),
        ("llmapi", SPLIT),
    ],
)
async def test_a_character_in_four_tokens(server: TritonServer, model: str, text: str) -> None:
    async with adapter(server, model) as made:
        answer = await (await made.submit(task("delay_ms=1 split=1"))).collect()
    assert answer.text == text
    assert answer.tokens_out == TOKENS + 4


@pytest.mark.parametrize("model", ["tensorrt_llm_bls_accum", "llmapi"])
async def test_text_that_ends_inside_a_character_is_kept(server: TritonServer, model: str) -> None:
    async with adapter(server, model) as made:
        answer = await (await made.submit(task("delay_ms=1 split=1", max_tokens=5))).collect()
    assert answer.text == "Hello, wörld\ufffd"
    assert answer.tokens_out == 5


async def test_a_token_without_text_is_no_event(server: TritonServer) -> None:
    async with adapter(server, "tensorrt_llm_bls") as made:
        answer = await (await made.submit(task("delay_ms=1 empty=1"))).collect()
    assert answer.text == TEXT


@pytest.mark.parametrize("model", ["tensorrt_llm_bls_sync", "llmapi_sync", "ensemble_limited"])
async def test_a_model_that_cannot_stream_answers_at_once(server: TritonServer, model: str) -> None:
    async with adapter(server, model) as made:
        answer = await (await made.submit(task(max_tokens=3))).collect()
    assert answer.text == "Hello, wörld"
    assert [event.kind for event in answer.events] == ["started", "token", "end"]


async def test_text_goes_both_ways_unharmed(server: TritonServer) -> None:
    prompt = 'é 🙂 中 \u2028 " \\ \r\n \x01'
    async with adapter(server, "ensemble_limited") as made:
        answer = await (await made.submit(task(prompt=prompt, max_tokens=1))).collect()
    # This model has no input to keep the prompt out with: what comes back is removed only because
    # it equals what was sent to the byte.
    assert answer.text == "Hello"


async def test_many_streams_at_once_keep_apart(server: TritonServer) -> None:
    async with adapter(server, "tensorrt_llm_bls") as made:

        async def text(tokens: int) -> str:
            return (await (await made.submit(task(max_tokens=tokens))).collect()).text

        answers = await asyncio.gather(*(text(1 + number % TOKENS) for number in range(64)))
    for number, answer in enumerate(answers):
        assert TEXT.startswith(answer)
        assert len(answer) == len(b"".join(PIECES[: 1 + number % TOKENS]).decode())


async def test_log_probabilities_of_the_chosen_tokens(server: TritonServer) -> None:
    asked = task(max_tokens=3, extensions=TaskExtensions(logprobs=0))
    async with adapter(server, "ensemble") as made:
        events = [event async for event in await made.submit(asked)]
    told = [entry["logprob"] for event in events for entry in event.logprobs or ()]
    assert told == [-0.125, -0.25, -0.375]


@pytest.mark.parametrize("model", STREAMING)
async def test_every_parameter_is_one_that_the_model_has(server: TritonServer, model: str) -> None:
    profile = SamplerProfile(
        name="p", version="p-1", temperature=0.7, top_k=40, top_p=0.9, stop=("END", "THE END")
    )
    async with adapter(server, model, sampler_profiles=[profile]) as made:
        asked = task(max_tokens=3, sampler_profile_version="p-1", determinism="strict")
        assert (await (await made.submit(asked)).collect()).tokens_out == 3
        with pytest.raises(AdapterError, match=r"triton 2\.51\.0 .*sampling\.min_p") as refused:
            await made.submit(task(extensions=TaskExtensions(sampling=Sampling(min_p=0.1))))
        assert refused.value.detail == "unsupported"
        constraint = TaskExtensions(constraint=Constraint(regex="[0-9]+"))
        with pytest.raises(AdapterError, match=r"constraint\.regex"):
            await made.submit(task(extensions=constraint))


async def test_embeddings(server: TritonServer) -> None:
    tensors = EmbeddingTensors("TEXT", "EMBEDDING", model="embedding")
    async with adapter(server, "ensemble", embedding=tensors) as made:
        asked = task(workload="embedding", prompt=None, inputs=["ab", "hé x", ""])
        vectors = await made.embed(asked)
        assert (await (await made.submit(task(max_tokens=1))).collect()).text == "Hello"
        with pytest.raises(AdapterError, match="batch-size must be") as refused:
            await made.embed(task(workload="embedding", prompt=None, inputs=["x"] * 9))
    assert vectors == [[2, 2, 1, 0.5], [4, 5, 2, 0.5], [0, 0, 0, 0.5]]
    assert refused.value.detail == "invalid_request"
