"""What goes beyond the contract's tasks, on the real engine."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest

from tests.real.support import FREED, ONCE, cycle_text, task
from tests.transports import both_transports
from worker_adapters import AdapterError, Extensions, LlamaCppAdapter, SamplerProfile

if TYPE_CHECKING:
    from tests.real.support import Engine
    from worker_adapters import Collected, TaskRequest, TokenEvent
    from worker_adapters.engines._dispatch import Dispatch
    from worker_adapters.testing.llamacpp import LlamaCppServer

pytestmark = [pytest.mark.real, both_transports]

# Of every conversation the tiny model makes the same.
SAID = " hello world! this reply ends here."
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
TOOLS = [
    {
        "name": name,
        "description": "Looks at a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    }
    for name in ("look", "walk")
]


def extended(extensions: dict[str, Any], **fields: Any) -> TaskRequest:
    """Return a strict task that may carry everything."""
    prompt = None if "messages" in extensions else ONCE
    base = task("x", determinism="strict", **fields).model_dump(exclude={"prompt"})
    return Extensions.all().task_request(
        **base, extensions=extensions, **({} if prompt is None else {"prompt": prompt})
    )


async def collected(
    adapter: LlamaCppAdapter, extensions: dict[str, Any], **fields: Any
) -> Collected:
    return await (await adapter.submit(extended(extensions, **fields))).collect()


def tokens(reply: Collected, channel: str = "content") -> list[TokenEvent]:
    return [event for event in reply.events if event.kind == "token" and event.channel == channel]


# Conversations.


async def test_a_conversation(adapter: LlamaCppAdapter) -> None:
    reply = await collected(adapter, ASK, seed=7)
    assert reply.text == SAID
    assert (reply.finish_reason, reply.usage_source) == ("stop", "engine")
    assert reply.tokens_in is not None
    assert reply.tokens_out > 5
    started, *_, end = reply.events
    assert (started.kind, started.engine, started.seed) == ("started", "llamacpp", 7)
    assert (end.tokens_in, end.seed) == (reply.tokens_in, 7)
    assert [event.i for event in tokens(reply)] == list(range(len(tokens(reply))))


async def test_a_conversation_of_every_role(adapter: LlamaCppAdapter) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "hi"}, {"type": "text", "text": "!"}],
        },
        {
            "role": "assistant",
            "tool_calls": [{"id": "c1", "name": "look", "arguments": '{"city":"Rome"}'}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    reply = await collected(adapter, {"messages": messages, "tools": TOOLS})
    assert reply.text.strip() == SAID.strip()
    alone = await collected(adapter, ASK)
    assert reply.tokens_in is not None
    assert alone.tokens_in is not None
    assert reply.tokens_in > alone.tokens_in + 20


async def test_a_conversation_is_bounded_by_max_tokens(adapter: LlamaCppAdapter) -> None:
    reply = await collected(adapter, ASK, max_tokens=3)
    assert (reply.text, reply.finish_reason, reply.tokens_out) == (" hello world!", "length", 3)


async def test_a_cancelled_conversation_frees_its_slot(
    slow_adapter: LlamaCppAdapter, slow_engine: Engine
) -> None:
    asked = extended(ASK | {"constraint": {"grammar": 'root ::= "a"+'}}, max_tokens=15_000)
    async with await slow_adapter.submit(asked) as stream:
        async for event in stream:
            if event.kind == "token":
                break
        assert await slow_engine.busy() == 1
        receipt = await slow_adapter.cancel(asked.task_id)
        assert (receipt.method, receipt.confirmed) == ("close", None)
        await slow_engine.idle(within=FREED)


async def test_an_image_for_a_model_without_eyes(adapter: LlamaCppAdapter) -> None:
    image = {"type": "image", "url": "data:image/png;base64,iVBORw0KGgo="}
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": [image]}]}
    version = await adapter.engine_version()
    with pytest.raises(AdapterError) as caught:
        await collected(adapter, asked)
    error = caught.value
    assert (error.code, error.detail, error.processed) == ("INVALID_PARAMS", "unsupported", "no")
    assert error.message.startswith(f"llamacpp {version} does not support messages.image")
    # The server says the same when it is asked all the same.
    adapter._identity = adapter._identity and adapter._identity.model_copy(update={"details": {}})
    with pytest.raises(AdapterError) as caught:
        await collected(adapter, asked)
    assert (caught.value.code, caught.value.detail) == ("INVALID_PARAMS", "unsupported")
    assert caught.value.status == 500


# Tools.


class Leaning(LlamaCppAdapter):
    """Leans the tiny model towards calling a tool, which it would not think of by itself."""

    def _completion(self, dispatch: Dispatch) -> tuple[str, dict[str, Any]]:
        path, payload = super()._completion(dispatch)
        return path, {**payload, "logit_bias": [["<tool_call>", 9], [2, 11]]}


@pytest.mark.parametrize("choice", ["required", "look", "walk"])
async def test_a_tool_that_has_to_be_called(server: LlamaCppServer, choice: str) -> None:
    async with Leaning(server.url) as adapter:
        reply = await collected(
            adapter, {**ASK, "tools": TOOLS, "tool_choice": choice}, max_tokens=200, seed=1
        )
    called = tokens(reply, "tool")
    assert called, reply.text
    names = [
        call["function"]["name"]
        for event in called
        for call in json.loads(event.t or "[]")
        if call["function"].get("name")
    ]
    assert names[0] in ({"look", "walk"} if choice == "required" else {choice})
    if reply.finish_reason == "tool_calls":
        arguments = "".join(
            call["function"].get("arguments", "")
            for event in called
            for call in json.loads(event.t or "[]")
        )
        assert set(json.loads(arguments)) == {"city"}


async def test_a_tool_that_has_to_be_called_is_not_talked_around(
    adapter: LlamaCppAdapter,
) -> None:
    free = await collected(adapter, {**ASK, "tools": TOOLS, "tool_choice": "none"})
    assert (free.finish_reason, free.text.strip()) == ("stop", SAID.strip())
    for choice in ("required", "walk"):
        forced = {**ASK, "tools": TOOLS, "tool_choice": choice}
        reply = await collected(adapter, forced, max_tokens=30)
        # No end of the reply before the call.
        assert reply.finish_reason in {"length", "tool_calls"}


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"logprobs": 1}, "logprobs"),
        ({"constraint": {"choice": ["a"]}}, "constraint.choice"),
        ({"constraint": {"json_schema": {"type": "object"}}}, "constraint.json_schema"),
    ],
)
async def test_what_does_not_go_with_tools(
    adapter: LlamaCppAdapter, more: dict[str, Any], field: str
) -> None:
    with pytest.raises(AdapterError, match=f"does not support {field}: not together with tools"):
        await collected(adapter, {**ASK, "tools": TOOLS, **more})


# Constraints.

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "size": {"enum": [1, 22, 333]}},
    "required": ["ok", "size"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("base", [{}, ASK], ids=["prompt", "messages"])
async def test_json_of_a_schema(adapter: LlamaCppAdapter, base: dict[str, Any]) -> None:
    # Greedily the tiny model would put spaces between the tokens of JSON, and never stop.
    wandering = {"temperature": 1.0, "top_k": 0, "min_p": 0.0}
    asked = {**base, "constraint": {"json_schema": SCHEMA}, "sampling": wandering}
    reply = await collected(adapter, asked, max_tokens=300, seed=3)
    assert reply.finish_reason == "stop"
    answer = json.loads(reply.text)
    assert set(answer) == {"ok", "size"}
    assert isinstance(answer["ok"], bool)
    assert answer["size"] in {1, 22, 333}


@pytest.mark.parametrize("base", [{}, ASK], ids=["prompt", "messages"])
@pytest.mark.parametrize(
    "choice", [["yes", "no"], ['say "hi"', "back\\slash"], ["two\nlines", "tab\there"], ["中文 🙂"]]
)
async def test_one_of_these(
    adapter: LlamaCppAdapter, base: dict[str, Any], choice: list[str]
) -> None:
    reply = await collected(adapter, {**base, "constraint": {"choice": choice}})
    assert reply.text in choice
    assert reply.finish_reason == "stop"


async def test_a_grammar(adapter: LlamaCppAdapter) -> None:
    reply = await collected(adapter, {"constraint": {"grammar": 'root ::= "ab" [0-9] "c"'}})
    assert reply.text[:2] + reply.text[3:] == "abc"
    assert reply.text[2].isdigit()


async def test_a_grammar_that_is_none_is_the_request_s_fault(adapter: LlamaCppAdapter) -> None:
    with pytest.raises(AdapterError) as caught:
        await collected(adapter, {"constraint": {"grammar": "root ::= nonsense("}})
    assert (caught.value.code, caught.value.detail) == ("INVALID_PARAMS", "invalid_request")


# Sampling and stop words.


async def test_a_stop_word_of_the_task_s_own(adapter: LlamaCppAdapter) -> None:
    reply = await collected(adapter, {"stop": [" model"]})
    assert (reply.text, reply.finish_reason) == (" there was a tiny", "stop")
    reply = await collected(adapter, ASK | {"stop": ["reply"]})
    assert (reply.text, reply.finish_reason) == (" hello world! this ", "stop")


async def test_stop_words_of_profile_and_task_add_up(server: LlamaCppServer) -> None:
    profile = SamplerProfile(name="stop", version="s-1", temperature=0.0, stop=("never said",))
    async with LlamaCppAdapter(server.url, sampler_profiles=[profile]) as adapter:
        reply = await collected(adapter, {"stop": [" model"]}, sampler_profile_version="s-1")
        assert reply.text == " there was a tiny"


async def test_the_task_s_sampling_wins_over_the_profile(server: LlamaCppServer) -> None:
    wild = SamplerProfile(name="wild", version="w-1", temperature=5.0, top_k=0, min_p=0.0)
    async with LlamaCppAdapter(server.url, sampler_profiles=[wild]) as adapter:
        named = {"sampler_profile_version": "w-1", "seed": 3}
        assert (await collected(adapter, {}, **named)).text != cycle_text(" time", 40)
        tame = await collected(adapter, {"sampling": {"temperature": 0}}, **named)
        assert tame.text == cycle_text(" time", 40)


# What is reported of tokens.


@pytest.mark.parametrize("base", [{}, ASK], ids=["prompt", "messages"])
@pytest.mark.parametrize("wanted", [0, 1, 3])
async def test_log_probabilities(
    adapter: LlamaCppAdapter, base: dict[str, Any], wanted: int
) -> None:
    reply = await collected(adapter, {**base, "logprobs": wanted}, max_tokens=5)
    entries = [entry for event in tokens(reply) for entry in event.logprobs or ()]
    assert len(entries) == reply.tokens_out == 5
    assert "".join(entry["token"] for entry in entries) == reply.text
    for entry in entries:
        assert entry["logprob"] <= 0
        assert len(entry["top"]) == max(1, wanted)
        # Greedy: the likeliest is the one that was taken.
        assert entry["top"][0]["token"] == entry["token"]
        assert math.isclose(entry["top"][0]["logprob"], entry["logprob"], abs_tol=1e-4)
        values = [alternative["logprob"] for alternative in entry["top"]]
        assert values == sorted(values, reverse=True)
    plain = await collected(adapter, base, max_tokens=5)
    assert all(event.logprobs is None for event in tokens(plain))
    assert plain.text == reply.text


async def test_token_ids(adapter: LlamaCppAdapter, engine: Engine) -> None:
    reply = await collected(adapter, {"token_ids": True}, max_tokens=8)
    ids = [number for event in tokens(reply) for number in event.token_ids or ()]
    assert len(ids) == 8
    assert (await engine.post("/detokenize", {"tokens": ids}))["content"] == reply.text
    plain = await collected(adapter, {}, max_tokens=8)
    assert all(event.token_ids is None for event in tokens(plain))


# What it cannot do.


@pytest.mark.parametrize(
    ("extensions", "field"),
    [
        ({"constraint": {"regex": "a+"}}, "constraint.regex"),
        ({"lora": "adapter"}, "lora"),
        ({"priority": 1}, "priority"),
        ({"data_parallel_rank": 0}, "data_parallel_rank"),
        ({"affinity_key": "key"}, "affinity_key"),
        ({**ASK, "token_ids": True}, "token_ids"),
    ],
)
async def test_what_is_refused(
    adapter: LlamaCppAdapter, engine: Engine, extensions: dict[str, Any], field: str
) -> None:
    version = await adapter.engine_version()
    before = (await engine.counters())["prompt_tokens_total"]
    with pytest.raises(AdapterError) as caught:
        await collected(adapter, extensions)
    error = caught.value
    assert error.message.startswith(f"llamacpp {version} does not support {field}")
    assert (error.code, error.detail, error.phase) == ("INVALID_PARAMS", "unsupported", "validate")
    assert (await engine.counters())["prompt_tokens_total"] == before


async def test_an_embedding_takes_none_of_it(adapter: LlamaCppAdapter) -> None:
    asked = Extensions.all().task_request(
        **task("x", workload="embedding").model_dump(), extensions={"stop": ["x"]}
    )
    with pytest.raises(AdapterError, match="does not support stop: not for the workload embedding"):
        await adapter.embed(asked)
