"""The adapter for OpenAI-compatible servers, on the /v1 routes of a real llama.cpp."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.real.support import FINITE, FREED, ONCE, Engine, cycle_text, eventually
from tests.transports import both_transports
from tests.unit.engines.tasking import task
from worker_adapters import AdapterError
from worker_adapters.engines.openai import OpenAiAdapter
from worker_adapters.testing.llamacpp import LlamaCppServer, tiny_model

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from worker_adapters import TaskRequest

pytestmark = [pytest.mark.real, both_transports]

HELLO = {"role": "user", "content": "hello"}
TEXTS = ["every word of text", "café 🙂", "one token at a time"]


def openai(extensions: dict[str, Any] | None = None, **changes: Any) -> TaskRequest:
    """A task for the adapter; greedy, 40 tokens, unless it says otherwise."""
    asked = {"prompt": ONCE, "max_tokens": 40, "determinism": "strict", **changes}
    return task("openai", extensions, **asked)


@pytest.fixture
async def openai_adapter(server: LlamaCppServer) -> AsyncIterator[OpenAiAdapter]:
    """An adapter for the /v1 routes of ``server``."""
    async with OpenAiAdapter(f"{server.url}/v1") as made:
        yield made


async def test_it_says_what_the_server_is(openai_adapter: OpenAiAdapter, engine: Engine) -> None:
    assert (await openai_adapter.health()).ready
    identity = await openai_adapter.identity()
    assert identity.engine_version == (await engine.get("/props"))["build_info"]
    assert identity.model == (await engine.get("/v1/models"))["data"][0]["id"]
    assert identity.details["server"] == "llamacpp"


async def test_a_completion(openai_adapter: OpenAiAdapter, engine: Engine) -> None:
    reply = await (await openai_adapter.submit(openai())).collect()
    assert reply.text == cycle_text(" time", 40)
    assert (reply.tokens_out, reply.finish_reason) == (40, "length")
    assert (reply.tokens_in, reply.usage_source) == (await engine.tokenize(ONCE), "engine")


async def test_a_chat(openai_adapter: OpenAiAdapter) -> None:
    reply = await (await openai_adapter.submit(openai({"messages": [HELLO]}))).collect()
    assert reply.text == " hello" + FINITE
    assert (reply.finish_reason, reply.usage_source) == ("stop", "engine")


async def test_stop_words(openai_adapter: OpenAiAdapter) -> None:
    chat = {"messages": [HELLO]}
    for word, route, whole in (
        ("model", {}, cycle_text(" time", 40)),
        ("reply", chat, " hello" + FINITE),
    ):
        reply = await (await openai_adapter.submit(openai({"stop": [word], **route}))).collect()
        assert reply.finish_reason == "stop"
        assert reply.text + word == whole[: len(reply.text) + len(word)]
        assert word not in reply.text


async def test_sampling_by_the_names_this_server_has(openai_adapter: OpenAiAdapter) -> None:
    sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}
    asked = {"sampling": sampling}
    texts = set()
    for seed in (1, 1, 2):
        stream = await openai_adapter.submit(openai(asked, seed=seed, kv_hint="cold"))
        texts.add((await stream.collect()).text)
    assert len(texts) == 2
    greedy = {"sampling": {"temperature": 1.0, "top_k": 1}}
    reply = await (await openai_adapter.submit(openai(greedy))).collect()
    assert reply.text == cycle_text(" time", 40)


@pytest.mark.parametrize("wanted", [0, 3])
@pytest.mark.parametrize("messages", [None, [HELLO]])
async def test_log_probabilities(
    openai_adapter: OpenAiAdapter, wanted: int, messages: list[Any] | None
) -> None:
    extensions = {"logprobs": wanted} | ({"messages": messages} if messages else {})
    reply = await (await openai_adapter.submit(openai(extensions, max_tokens=5))).collect()
    told = [row for event in reply.events for row in event.logprobs or ()]
    assert len(told) == 5
    for row in told:
        assert row["logprob"] <= 0
        assert len(row["top"]) == max(1, wanted)


async def test_a_schema(openai_adapter: OpenAiAdapter) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["yes"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    asked = {"messages": [HELLO], "constraint": {"json_schema": schema}}
    reply = await (await openai_adapter.submit(openai(asked, max_tokens=200))).collect()
    assert "".join(reply.text.split()).startswith('{"a":"yes"')


async def test_a_prompt_beyond_the_context_is_refused(openai_adapter: OpenAiAdapter) -> None:
    with pytest.raises(AdapterError) as caught:
        await openai_adapter.submit(openai(prompt="every word of text " * 400))
    assert (caught.value.code, caught.value.detail) == ("INVALID_PARAMS", "context_overflow")
    assert "every word" not in f"{caught.value} {caught.value!r}"


async def test_a_workload_that_the_server_was_not_started_for(
    openai_adapter: OpenAiAdapter,
) -> None:
    with pytest.raises(AdapterError) as caught:
        await openai_adapter.embed(openai(workload="embedding", prompt=..., inputs=TEXTS))
    assert (caught.value.code, caught.value.detail) == ("INVALID_PARAMS", "unsupported")


async def test_a_cancel_frees_the_slot(slow_server: LlamaCppServer, slow_engine: Engine) -> None:
    async with OpenAiAdapter(slow_server.url) as adapter:
        stream = await adapter.submit(openai(max_tokens=15_000, ctx=16_384))
        async for event in stream:
            if event.i == 10:
                break
        assert await slow_engine.busy() == 1
        receipt = await adapter.cancel(stream.task_id)
        assert (receipt.method, receipt.sent) == ("close", True)
        await slow_engine.idle(within=FREED)


async def test_a_wrong_key_and_the_right_one() -> None:
    with LlamaCppServer(["--api-key", "sk-right-key"]) as server:
        async with OpenAiAdapter(server.url, api_key="sk-wrong-key") as adapter:
            with pytest.raises(AdapterError) as caught:
                await adapter.submit(openai())
            assert (caught.value.detail, caught.value.status) == ("unauthorized", 401)
            assert "sk-wrong-key" not in f"{caught.value!r} {caught.value}"
            health = await adapter.health()
            # The health route needs no key; a task does.
            assert (health.live, health.ready, health.reason) == (True, False, "unauthorized")
        async with OpenAiAdapter(server.url, api_key="sk-right-key") as adapter:
            assert (await adapter.health()).ready
            reply = await (await adapter.submit(openai(max_tokens=3))).collect()
            assert reply.tokens_out == 3


async def test_embeddings() -> None:
    with LlamaCppServer(["--embeddings", "--pooling", "mean", "--kv-unified"]) as server:
        async with OpenAiAdapter(server.url) as adapter:
            asked, turned = (
                openai(workload="embedding", prompt=..., inputs=inputs)
                for inputs in (TEXTS, TEXTS[::-1])
            )
            vectors = await adapter.embed(asked)
            backwards = await adapter.embed(turned)
    assert [len(vector) for vector in vectors] == [64, 64, 64]
    for vector, other in zip(vectors, backwards[::-1], strict=True):
        assert vector == pytest.approx(other, abs=1e-5)


async def test_scores() -> None:
    model = tiny_model("rerank")
    with LlamaCppServer(["--embeddings", "--pooling", "rank"], model=model) as server:
        async with OpenAiAdapter(server.url) as adapter:
            asked = openai(workload="rerank", prompt="a question", inputs=TEXTS)
            scores = await adapter.rerank(asked)
    assert [score.index for score in scores] == [0, 1, 2]


async def test_a_stream_that_is_left_frees_the_slot(
    slow_server: LlamaCppServer, slow_engine: Engine
) -> None:
    async with OpenAiAdapter(slow_server.url) as adapter:
        chat = {"messages": [{"role": "user", "content": ONCE}]}
        async with await adapter.submit(openai(chat, max_tokens=15_000, ctx=16_384)) as stream:
            await anext(stream)

        async def is_free() -> bool:
            return await slow_engine.busy() == 0

        await eventually(is_free, "the slot is free", within=FREED)
