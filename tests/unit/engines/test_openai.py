"""Servers with OpenAI's routes: what is asked, what is sent, what is refused."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.transports import both_transports
from tests.unit.engines.played import NOT_FOUND, capture, engine
from tests.unit.engines.tasking import HELLO, dispatch, payload, task
from tests.unit.virtual_time import run as run_virtually
from tests.unit.wire import LAST_CHUNK, STREAM_HEAD, Connection, Received, answer, chunk
from worker_adapters import AdapterError, ExpectedModel, SamplerProfile, WorkerProps
from worker_adapters.capabilities import Feature
from worker_adapters.engines._dispatch import Unsupported
from worker_adapters.engines._identity import CAPABILITIES_SECONDS
from worker_adapters.engines._openai_answers import embedding_answer, rerank_answer
from worker_adapters.engines.openai import OpenAiAdapter
from worker_adapters.testing.engines import TgiEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tests.unit.engines.played import Answering
    from worker_adapters import TaskRequest

pytestmark = both_transports

SCHEMA = {"type": "object"}
COMPLETIONS = "POST /v1/completions"
CHAT = "POST /v1/chat/completions"
OK = answer("{}")
DOWN = answer('{"detail":"Not ready"}', status="400 Bad Request")


def openai(extensions: Mapping[str, Any] | None = None, **changes: Any) -> TaskRequest:
    return task("openai", extensions, **changes)


def listing(*names: str, **fields: Any) -> bytes:
    return answer(json.dumps({"data": [{"id": name, **fields} for name in names]}))


def streamed(*texts: str, chat: bool = False) -> bytes:
    """Return a whole streamed answer of one token each."""
    frames = []
    for text in texts:
        said = {"delta": {"content": text}} if chat else {"text": text}
        frames.append({"model": "m", "choices": [{"index": 0, **said}]})
    end = {"choices": [{"index": 0, "text": "", "delta": {}, "finish_reason": "stop"}]}
    lines = [f"data: {json.dumps(frame)}\n\n" for frame in [*frames, end]]
    return STREAM_HEAD + chunk("".join([*lines, "data: [DONE]\n\n"]).encode()) + LAST_CHUNK


@pytest.fixture
async def adapter() -> AsyncIterator[OpenAiAdapter]:
    async with OpenAiAdapter("http://engine") as made:
        yield made


# Where it is.


@pytest.mark.parametrize(
    ("url", "prefix", "base", "path"),
    [
        ("http://h:1", "/v1", "http://h:1", "/v1/completions"),
        ("http://h:1/v1", "/v1", "http://h:1", "/v1/completions"),
        ("http://h:1/v1/", "/v1", "http://h:1", "/v1/completions"),
        ("https://h/openai/v1", "/v1", "https://h/openai", "/v1/completions"),
        ("https://h/api", "", "https://h/api", "/completions"),
        ("https://h/beta/openai", "/openai", "https://h/beta", "/openai/completions"),
    ],
)
async def test_base_urls(url: str, prefix: str, base: str, path: str) -> None:
    async with OpenAiAdapter(url, api_prefix=prefix) as adapter:
        assert adapter.base_url == base
        assert payload(adapter, dispatch(openai()))[0] == path


def test_a_sampling_field_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="sampling_fields has no top_q"):
        OpenAiAdapter("http://engine", sampling_fields={"top_q": "top_q"})


# What it is sent.


async def test_a_plain_task(adapter: OpenAiAdapter) -> None:
    _, sent = payload(adapter, dispatch(openai(max_tokens=5)))
    assert sent == {
        "model": "tiny",
        "prompt": "a canary prompt nobody may see",
        "max_tokens": 5,
        "seed": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert adapter._submit_headers(dispatch(openai())) == ()


async def test_max_tokens_by_its_other_name() -> None:
    async with OpenAiAdapter("http://h", max_tokens_field="max_completion_tokens") as adapter:
        _, sent = payload(adapter, dispatch(openai({"messages": [HELLO]}, max_tokens=5)))
    assert sent["max_completion_tokens"] == 5
    assert "max_tokens" not in sent


async def test_sampling_that_every_server_has(adapter: OpenAiAdapter) -> None:
    sampling = {
        "temperature": 0.5,
        "top_p": 0.9,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
    }
    _, sent = payload(adapter, dispatch(openai({"sampling": sampling, "stop": ["x"]})))
    assert sampling.items() <= sent.items()
    assert sent["stop"] == ["x"]


@pytest.mark.parametrize("name", ["top_k", "min_p", "repeat_penalty"])
async def test_sampling_that_the_server_may_not_have_is_refused(
    adapter: OpenAiAdapter, name: str
) -> None:
    with pytest.raises(Unsupported) as caught:
        payload(adapter, dispatch(openai({"sampling": {name: 1}})))
    assert caught.value.field == f"sampling.{name}"
    profile = SamplerProfile.model_validate({"name": "a", "version": "a-1", name: 1})
    with pytest.raises(Unsupported):
        payload(adapter, dispatch(openai(), profile=profile))


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("llamacpp", {"top_k": 0, "min_p": 0.1, "repeat_penalty": 1.1}),
        ("vllm", {"top_k": -1, "min_p": 0.1, "repetition_penalty": 1.1}),
        ("sglang", {"top_k": -1, "min_p": 0.1, "repetition_penalty": 1.1}),
    ],
)
async def test_sampling_of_a_server_that_says_who_it_is(
    adapter: OpenAiAdapter, server: str, expected: dict[str, Any]
) -> None:
    asked = openai({"sampling": {"top_k": 0, "min_p": 0.1, "repeat_penalty": 1.1}})
    _, sent = payload(adapter, dispatch(asked, details={"server": server}))
    assert expected.items() <= sent.items()


SEEN = {
    "role": "user",
    "content": [{"type": "image", "url": "data:image/png;base64,AAAA"}],
}


@pytest.mark.parametrize(
    ("server", "field", "extensions"),
    [
        ("sglang", "messages.image", {"messages": [SEEN]}),
        ("tgi", "messages.image", {"messages": [SEEN]}),
        ("tgi", "sampling.presence_penalty", {"sampling": {"presence_penalty": 0.5}}),
    ],
)
async def test_what_a_server_is_known_to_lose_is_refused(
    adapter: OpenAiAdapter, server: str, field: str, extensions: dict[str, Any]
) -> None:
    lossy = dispatch(openai(extensions), details={"server": server})
    with pytest.raises(Unsupported) as caught:
        payload(adapter, lossy)
    assert caught.value.field == field
    described = adapter._describe(lossy.identity, WorkerProps()).features
    assert described[field] == Feature(value=False, source="adapter")
    # Of any other it is not known.
    payload(adapter, dispatch(openai(extensions), details={"server": "someone"}))


TOOL = {"name": "look", "parameters": {"type": "object"}}


@pytest.mark.parametrize(
    ("field", "extensions"),
    [
        ("tool_choice", {"tool_choice": "look"}),
        ("constraint.json_schema", {"constraint": {"json_schema": SCHEMA}}),
    ],
)
async def test_what_llama_cpp_loses_beside_tools_is_refused(
    adapter: OpenAiAdapter, field: str, extensions: dict[str, Any]
) -> None:
    asked = openai({"messages": [HELLO], "tools": [TOOL], **extensions})
    with pytest.raises(Unsupported) as caught:
        payload(adapter, dispatch(asked, details={"server": "llamacpp"}))
    assert caught.value.field == field
    payload(adapter, dispatch(asked, details={"server": "someone"}))
    for choice in ("auto", "none", "required"):
        said = openai({"messages": [HELLO], "tools": [TOOL], "tool_choice": choice})
        payload(adapter, dispatch(said, details={"server": "llamacpp"}))


async def test_no_penalty_is_none_for_a_server_that_misreads_it(adapter: OpenAiAdapter) -> None:
    asked = openai({"sampling": {"presence_penalty": 0}})
    _, sent = payload(adapter, dispatch(asked, details={"server": "tgi"}))
    assert "presence_penalty" not in sent


async def test_tgi_is_known_by_its_route() -> None:
    routes: dict[str, Answering] = {
        "GET /v1/models": listing("a", owned_by="a"),
        "GET /info": capture("tgi/tgi337-info"),
        CHAT: answer("missing field `messages`", status="422 Unprocessable Entity"),
    }
    async with engine(routes) as server, OpenAiAdapter(server.url) as adapter:
        identity = await adapter.identity()
        features = (await adapter.capabilities()).features
    assert (identity.engine_version, identity.details["server"]) == ("3.3.7", "tgi")
    assert features["messages.image"] == Feature(value=False, source="adapter")
    assert features["chat"] == Feature(value=True, source="engine")
    assert features["logprobs"] == Feature(value=True, source="adapter")


@pytest.mark.parametrize("route", [{}, {"messages": [HELLO]}])
async def test_a_stop_text_that_tgi_leaves_in_its_answer_is_no_part_of_it(
    route: dict[str, Any],
) -> None:
    asked = openai({"stop": ["STOP"], **route}, ctx=16, max_tokens=8)
    with TgiEngine(pieces=("a", "bST", "OP", "c")) as server:
        async with OpenAiAdapter(server.url) as adapter:
            answer = await (await adapter.submit(asked)).collect()
    assert (answer.text, answer.finish_reason, answer.tokens_out) == ("ab", "stop", 3)


async def test_sampling_as_configured() -> None:
    fields = {"top_k": "topK"}
    async with OpenAiAdapter("http://engine", sampling_fields=fields) as adapter:
        _, sent = payload(adapter, dispatch(openai({"sampling": {"top_k": 4}})))
        assert sent["topK"] == 4
        with pytest.raises(Unsupported):
            payload(adapter, dispatch(openai({"sampling": {"min_p": 0.1}})))


async def test_a_schema_is_for_chats(adapter: OpenAiAdapter) -> None:
    constraint = {"constraint": {"json_schema": SCHEMA}}
    _, sent = payload(adapter, dispatch(openai({**constraint, "messages": [HELLO]})))
    assert sent["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
    }
    with pytest.raises(Unsupported, match=r"constraint\.json_schema"):
        payload(adapter, dispatch(openai(constraint)))


async def test_log_probabilities(adapter: OpenAiAdapter) -> None:
    for asked, told in ((0, 1), (1, 1), (5, 5)):
        _, sent = payload(adapter, dispatch(openai({"logprobs": asked})))
        assert sent["logprobs"] == told
        _, sent = payload(adapter, dispatch(openai({"logprobs": asked, "messages": [HELLO]})))
        assert (sent["logprobs"], sent["top_logprobs"]) == (True, told)


async def test_the_affinity_key_is_a_header(adapter: OpenAiAdapter) -> None:
    headers = adapter._submit_headers(dispatch(openai({"affinity_key": "session-9"})))
    assert headers == ((b"X-Session-Token", b"session-9"),)


@pytest.mark.parametrize(
    "extensions",
    [
        {"token_ids": True},
        {"lora": "poet"},
        {"priority": 1},
        {"data_parallel_rank": 0},
        {"constraint": {"regex": "a"}},
        {"constraint": {"grammar": "a"}},
        {"constraint": {"choice": ["a"]}},
    ],
)
async def test_what_such_servers_do_not_share_is_refused_unsent(
    extensions: dict[str, Any],
) -> None:
    async with engine({}) as server, OpenAiAdapter(server.url) as adapter:
        with pytest.raises(AdapterError) as caught:
            await adapter.submit(openai(extensions))
        assert not server.requests("/v1/completions")
    assert (caught.value.code, caught.value.detail) == ("INVALID_PARAMS", "unsupported")
    assert "openai" in caught.value.message
    assert next(iter(extensions)) in caught.value.message


async def test_seeds_that_some_server_would_truncate_are_refused(adapter: OpenAiAdapter) -> None:
    with pytest.raises(AdapterError) as caught:
        await adapter.submit(openai(seed=2**31))
    assert caught.value.detail == "invalid_request"


@pytest.mark.parametrize(
    ("ref", "model", "listed", "expected"),
    [
        ("hf:org/repo", "chosen", "listed", "chosen"),
        ("hf:org/repo", None, "listed", "listed"),
        ("hf:org/repo", None, None, "org/repo"),
        ("gpt-x", None, None, "gpt-x"),
    ],
)
async def test_the_name_to_ask_for(
    ref: str, model: str | None, listed: str | None, expected: str
) -> None:
    async with OpenAiAdapter("http://engine", model=model) as adapter:
        sent_to = replace(dispatch(openai(model_ref=ref), model=listed), model=model)
        _, sent = payload(adapter, sent_to)
    assert sent["model"] == expected


# Usage.


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("400 Bad Request", "Unrecognized request argument supplied: stream_options"),
        ("422 Unprocessable Entity", "stream_options.include_usage: extra fields not permitted"),
    ],
)
async def test_a_server_that_refuses_the_usage_field_is_asked_once_without(
    status: str, message: str
) -> None:
    async def completions(connection: Connection, request: Received) -> None:
        if "stream_options" in request.json:
            refusal = json.dumps({"error": {"message": message, "type": "x", "code": None}})
            await connection.send(answer(refusal, status=status))
        else:
            await connection.send(streamed("a", "b"))

    routes: dict[str, Answering] = {COMPLETIONS: completions}
    async with engine(routes) as server, OpenAiAdapter(server.url) as adapter:
        for _ in range(2):
            reply = await (await adapter.submit(openai())).collect()
            assert (reply.text, reply.tokens_out, reply.usage_source) == ("ab", 2, "counted")
        sent = [request.json for request in server.requests("/v1/completions")]
    assert ["stream_options" in request for request in sent] == [True, False, False]
    assert {**sent[0], "seed": 0} == {
        **sent[1],
        "seed": 0,
        "stream_options": {"include_usage": True},
    }
    assert sent[0]["seed"] == sent[1]["seed"]


async def test_tasks_at_the_same_time_all_learn_of_the_refusal() -> None:
    both = asyncio.Barrier(2)

    async def completions(connection: Connection, request: Received) -> None:
        if "stream_options" in request.json:
            await both.wait()
            refusal = '{"error":{"message":"stream_options: unknown"}}'
            await connection.send(answer(refusal, status="400 Bad Request"))
        else:
            await connection.send(streamed("a"))

    async def run(adapter: OpenAiAdapter) -> str:
        return (await (await adapter.submit(openai())).collect()).text

    async with engine({COMPLETIONS: completions}) as server, OpenAiAdapter(server.url) as adapter:
        texts = await asyncio.gather(run(adapter), run(adapter))
    assert list(texts) == ["a", "a"]


@pytest.mark.parametrize("status", ["400 Bad Request", "500 Internal Server Error"])
async def test_no_other_refusal_is_repeated(status: str) -> None:
    named = "stream_options is broken" if status.startswith("500") else "temperature is broken"
    refusal = answer(json.dumps({"error": {"message": named}}), status=status)
    async with engine({COMPLETIONS: refusal}) as server, OpenAiAdapter(server.url) as adapter:
        with pytest.raises(Exception, match="broken"):
            await adapter.submit(openai())
        assert len(server.requests("/v1/completions")) == 1


async def test_a_refusal_without_the_field_is_final() -> None:
    refusal = answer('{"error":{"message":"stream_options"}}', status="400 Bad Request")
    async with engine({COMPLETIONS: refusal}) as server, OpenAiAdapter(server.url) as adapter:
        for expected in (2, 3):
            with pytest.raises(AdapterError):
                await adapter.submit(openai())
            assert len(server.requests("/v1/completions")) == expected


# What the server is.


@pytest.mark.parametrize(
    ("path", "told", "version"),
    [
        ("/version", {"version": "0.32.0"}, "0.32.0"),
        ("/props", {"build_info": "b1-0c1e570"}, "b1-0c1e570"),
        ("/info", {"version": "3.0.0", "sha": "x"}, "3.0.0"),
        ("/api/version", {"version": "0.12.1"}, "0.12.1"),
        ("/server_info", {"version": "0.5.20"}, "0.5.20"),
        ("/nowhere", {}, "unknown"),
        ("/version", {"version": None}, "unknown"),
        ("/version", [], "unknown"),
    ],
)
async def test_versions(path: str, told: Any, version: str) -> None:
    routes: dict[str, Answering] = {f"GET {path}": answer(json.dumps(told))}
    async with engine(routes) as server, OpenAiAdapter(server.url) as adapter:
        assert await adapter.engine_version() == version


@pytest.mark.parametrize("name", ["max_model_len", "context_length", "context_window"])
async def test_an_identity(name: str) -> None:
    routes: dict[str, Answering] = {
        "GET /v1/models": listing("a", owned_by="someone", root="/models/a", **{name: 4096})
    }
    async with engine(routes) as server, OpenAiAdapter(server.url) as adapter:
        identity = await adapter.identity()
    assert (identity.model, identity.model_path, identity.ctx_max) == ("a", "/models/a", 4096)
    assert identity.details["server"] == "someone"


async def test_one_of_several_models_is_not_guessed() -> None:
    routes: dict[str, Answering] = {"GET /v1/models": listing("a", "b")}
    async with engine(routes) as server:
        async with OpenAiAdapter(server.url) as adapter:
            assert (await adapter.identity()).model is None
        async with OpenAiAdapter(server.url, model="b") as adapter:
            assert (await adapter.identity()).model == "b"


async def test_what_the_server_is_is_asked_once() -> None:
    routes: dict[str, Answering] = {COMPLETIONS: streamed("a")}
    async with engine(routes) as server, OpenAiAdapter(server.url) as adapter:
        for _ in range(2):
            await (await adapter.submit(openai())).collect()
        assert len(server.requests("/v1/models")) == 1
        props = await adapter.props()
    assert (props.slots_total, props.slots_free) == (None, None)


async def test_workloads_are_asked_for() -> None:
    refusal = answer('{"error":{"message":"input is missing"}}', status="400 Bad Request")
    off = answer('{"error":{"message":"off"}}', status="501 Not Implemented")
    hidden = answer('{"error":{"message":"no"}}', status="403 Forbidden")
    for embeddings, rerank, expected in (
        (refusal, off, (True, False)),
        (NOT_FOUND, hidden, (False, None)),
    ):
        routes: dict[str, Answering] = {
            "POST /v1/embeddings": embeddings,
            "POST /v1/rerank": rerank,
        }
        async with engine(routes) as server, OpenAiAdapter(server.url) as adapter:
            told = await adapter.capabilities()
        claimed = {"embedding", "rerank"} & set(told.supported_workloads)
        assert claimed == ({"embedding"} if expected[0] else set())
        for name, value in zip(("embeddings", "rerank"), expected, strict=True):
            has = None if value is None else Feature(value=value, source="engine")
            assert told.features.get(name) == has


async def test_completions_are_offered_unless_there_is_no_route_for_them() -> None:
    refusal = answer('{"error":{"message":"prompt is missing"}}', status="400 Bad Request")
    no_model = answer('{"error":{"message":"model \'\' not found"}}', status="404 Not Found")
    for chat, completions, offered in (
        (NOT_FOUND, NOT_FOUND, False),
        (NOT_FOUND, refusal, True),
        (NOT_FOUND, no_model, True),
        (refusal, NOT_FOUND, True),
    ):
        async with (
            engine({CHAT: chat, COMPLETIONS: completions}) as server,
            OpenAiAdapter(server.url) as adapter,
        ):
            told = await adapter.capabilities()
        assert ("completion" in told.supported_workloads) is offered
        assert "completions" not in told.features


async def test_what_nobody_can_tell_of_a_server_is_left_out() -> None:
    refusal = answer('{"error":{"message":"messages is missing"}}', status="400 Bad Request")
    routes: dict[str, Answering] = {"GET /v1/models": listing("a", owned_by="someone")}
    async with engine({**routes, CHAT: refusal}) as server, OpenAiAdapter(server.url) as adapter:
        told = (await adapter.capabilities()).features
    assert told["chat"] == Feature(value=True, source="engine")
    claimed = {name for name, feature in told.items() if feature.value is True}
    assert claimed == {"streaming", "chat"}
    asked = {"tools", "tool_choice", "messages.image", "constraint.json_schema", "logprobs"}
    asked |= {"seed", "stop", "sampling", "affinity_key", "metrics"}
    assert not asked & told.keys()
    # What is refused is known all the same.
    assert told["token_ids"] == told["lora"] == Feature(value=False, source="adapter")
    async with engine(routes) as server, OpenAiAdapter(server.url) as adapter:
        told = (await adapter.capabilities()).features
    without = {told[name] for name in ("chat", "tools", "tool_choice", "messages.image")}
    assert without == {Feature(value=False, source="engine")}


async def test_what_llama_cpp_says_and_what_is_known_of_it() -> None:
    routes: dict[str, Answering] = {
        "GET /v1/models": capture("llamacpp/v1_models"),
        "GET /props": capture("llamacpp/props"),
        CHAT: answer('{"error":{"message":"messages"}}', status="400 Bad Request"),
    }
    async with engine(routes) as server, OpenAiAdapter(server.url) as adapter:
        told = (await adapter.capabilities()).features
        with pytest.raises(AdapterError, match=r"messages\.image: the model takes text only"):
            await adapter.submit(openai({"messages": [SEEN]}))
    assert told["messages.image"] == Feature(value=False, source="engine")
    for name in ("seed", "stop", "sampling", "logprobs", "constraint.json_schema", "tools"):
        assert told[name] == Feature(value=True, source="adapter"), name
    assert "tool_choice" not in told


def test_workloads_are_asked_for_again_when_the_answer_is_old() -> None:
    embeddings = [NOT_FOUND, answer("{}", status="400 Bad Request")]

    async def reloaded(connection: Connection, _: Received) -> None:
        await connection.send(embeddings.pop(0))

    async def main() -> None:
        clock = asyncio.get_running_loop().time
        async with (
            engine({"POST /v1/embeddings": reloaded}) as server,
            OpenAiAdapter(server.url, clock=clock) as adapter,
        ):
            told = []
            for _ in range(4):
                found = await adapter.capabilities()
                told.append(found.features["embeddings"].value)
                assert ("embedding" in found.supported_workloads) is told[-1]
                await asyncio.sleep(CAPABILITIES_SECONDS / 2)
            assert told == [False, False, True, True]

    run_virtually(main())


async def test_the_expected_model_among_several() -> None:
    routes: dict[str, Answering] = {"GET /health": OK, "GET /v1/models": listing("a", "b")}
    async with engine(routes) as server:
        async with OpenAiAdapter(server.url, expect=ExpectedModel(name="b")) as adapter:
            assert (await adapter.identity()).model == "b"
            assert (await adapter.health()).ready
        async with OpenAiAdapter(server.url, expect=ExpectedModel(name="c")) as adapter:
            health = await adapter.health()
            assert (health.live, health.ready, health.reason) == (True, False, "wrong_model")
            with pytest.raises(AdapterError) as caught:
                await adapter.submit(openai())
    assert caught.value.detail == "wrong_model"


# Whether it is ready.

NO_TEMPLATE = answer('{"error":{"message":"no chat template"}}', status="400 Bad Request")


@pytest.mark.parametrize(
    ("routes", "probe", "ready", "reason"),
    [
        ({"GET /health": OK, "GET /v1/models": listing("m")}, "auto", True, None),
        ({"GET /health": OK}, "auto", True, None),
        ({"GET /health/ready": OK}, "auto", True, None),
        ({"GET /health/ready": DOWN}, "auto", False, "not_ready"),
        ({"GET /v1/health/ready": OK}, "auto", True, None),
        ({"GET /health": answer("", status="503 Busy")}, "auto", False, "unavailable"),
        # The route answers whatever the key; the listing does not.
        (
            {
                "GET /health": OK,
                "GET /v1/models": answer('{"error":"no"}', status="401 Unauthorized"),
            },
            "auto",
            False,
            "unauthorized",
        ),
        # A listing alone is no readiness, and without a completion there is no proof.
        ({"GET /v1/models": listing("m")}, "route", False, "unsupported"),
        ({"GET /v1/models": listing("m")}, "auto", False, "not_found"),
        ({"GET /v1/models": listing("m"), CHAT: OK}, "auto", True, None),
        # A base model has no chat template.
        ({CHAT: NO_TEMPLATE, COMPLETIONS: OK}, "auto", True, None),
        (
            {"GET /health": OK, CHAT: answer("{}", status="503 Busy")},
            "completion",
            False,
            "unavailable",
        ),
        ({"GET /health": OK, CHAT: OK}, "completion", True, None),
    ],
)
async def test_readiness(
    routes: dict[str, Answering], probe: Any, ready: bool, reason: str | None
) -> None:
    async with engine(routes) as server, OpenAiAdapter(server.url, probe=probe) as adapter:
        health = await adapter.health()
    assert (health.live, health.ready, health.reason) == (True, ready, reason)


async def test_a_model_that_is_not_listed_is_not_ready() -> None:
    routes: dict[str, Answering] = {"GET /health": OK, "GET /v1/models": listing("a", "b")}
    async with engine(routes) as server:
        async with OpenAiAdapter(server.url, model="c") as adapter:
            health = await adapter.health()
            assert (health.ready, health.reason) == (False, "wrong_model")
        async with OpenAiAdapter(server.url, model="b") as adapter:
            assert (await adapter.health()).ready


async def test_the_proof_is_one_token_and_holds_for_a_while() -> None:
    now = 100.0
    routes: dict[str, Answering] = {"GET /v1/models": listing("m"), CHAT: OK}
    async with (
        engine(routes) as server,
        OpenAiAdapter(server.url, clock=lambda: now) as adapter,
    ):
        for _ in range(3):
            assert (await adapter.health()).ready
        (asked,) = server.requests("/v1/chat/completions")
        assert (asked.json["model"], asked.json["max_tokens"]) == ("m", 1)
        now += 31.0
        assert (await adapter.health()).ready
        assert len(server.requests("/v1/chat/completions")) == 2


async def test_a_task_that_was_answered_is_proof_enough() -> None:
    routes: dict[str, Answering] = {COMPLETIONS: streamed("a")}
    async with engine(routes) as server, OpenAiAdapter(server.url) as adapter:
        await (await adapter.submit(openai())).collect()
        assert (await adapter.health()).ready
        assert not server.requests("/v1/chat/completions")
        assert len(server.requests("/v1/completions")) == 1


# What it answers.


async def test_a_chat_of_llama_cpp() -> None:
    routes: dict[str, Answering] = {CHAT: capture("llamacpp/v1_chat_stream_usage")}
    async with engine(routes) as server, OpenAiAdapter(server.url) as adapter:
        reply = await (await adapter.submit(openai({"messages": [HELLO]}))).collect()
    assert reply.text == " hello world! this reply ends here."
    assert (reply.finish_reason, reply.usage_source) == ("stop", "engine")
    assert reply.model == "tiny.gguf"


def test_scores_in_every_spelling() -> None:
    rows: list[dict[str, float]] = [{"index": 1, "score": 0.5}, {"index": 0, "score": 1}]
    jina = [{"index": row["index"], "relevance_score": row["score"]} for row in rows]
    usage = {"prompt_tokens": 7}
    spellings: list[tuple[Any, int | None]] = [
        ({"results": jina, "usage": usage}, 7),
        ({"results": jina, "usage": None}, None),
        ({"data": rows, "usage": usage}, 7),
        (rows, None),
    ]
    for told, tokens_in in spellings:
        read = rerank_answer(told, 2)
        assert (read.scores, read.tokens_in) == ([(0, 1.0), (1, 0.5)], tokens_in)


@pytest.mark.parametrize(
    "told",
    [
        {},
        [],
        {"results": []},
        {"results": [{"index": 0, "relevance_score": 1.0}] * 2},
        {"results": [{"index": 0, "relevance_score": "1"}, {"index": 1, "relevance_score": 1.0}]},
        {"results": [{"index": "0", "score": 1.0}, {"index": 1, "score": 1.0}]},
        {"results": [{"index": 0, "score": True}, {"index": 1, "score": 1.0}]},
        {"results": [{"index": 0, "score": 1.0}, {"index": 2, "score": 1.0}]},
        {
            "data": [{"index": 0, "score": 1.0}, {"index": 1, "score": 1}],
            "usage": {"prompt_tokens": "1"},
        },
    ],
)
def test_scores_of_another_shape(told: Any) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, IndexError)):
        rerank_answer(told, 2)


def test_vectors_in_input_order() -> None:
    told = {
        "data": [{"index": 1, "embedding": [1, 2.5]}, {"index": 0, "embedding": [0.5, 0]}],
        "usage": {"prompt_tokens": 4},
    }
    read = embedding_answer(told, 2)
    assert (read.embeddings, read.tokens_in) == ([[0.5, 0.0], [1.0, 2.5]], 4)


@pytest.mark.parametrize(
    "told",
    [
        {"data": [{"index": 0, "embedding": "AAAA"}]},
        {"data": [{"index": 0, "embedding": [None]}]},
        {"data": [{"index": 0}]},
        {"data": None},
        [],
    ],
)
def test_vectors_of_another_shape(told: Any) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, IndexError)):
        embedding_answer(told, 1)
