"""vLLM: what it is sent by version, and what recorded servers of each version come to."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import CAPTURES
from tests.transports import both_transports
from tests.unit.engines.played import NOT_FOUND, capture, engine
from tests.unit.engines.tasking import HELLO, dispatch, payload, task
from tests.unit.tasks import ONCE
from tests.unit.wire import STREAM_HEAD, Connection, Received, Server, answer, chunk, eventually
from worker_adapters import AdapterError, PoolUnavailable, SamplerProfile, WorkerProps, WorkerReset
from worker_adapters.capabilities import Feature
from worker_adapters.engines._dispatch import Unsupported
from worker_adapters.engines.vllm import ABORT_PATH, NEWEST, EngineLoad, VllmAdapter, _parsed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tests.unit.engines.played import Answering
    from worker_adapters import TaskRequest

pytestmark = both_transports

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
COMPLETIONS = "POST /v1/completions"
CHAT = "POST /v1/chat/completions"
# Version and listing of each recorded server; what was not recorded is another's.
IDENTITIES: Mapping[str, tuple[bytes, bytes]] = {
    "vllm0102": (capture("vllm/vllm0102-get-version"), capture("vllm/vllm0102-get-models")),
    "vllm0171": (capture("vllm/vllm0171-get-version"), capture("vllm/vllm0171-get-models")),
    "vllm032": (capture("vllm/vllm032-get-version"), capture("vllm/vllm032-get-models")),
    "vllm032rust": (capture("vllm/vllm032-get-version"), capture("vllm/vllm032rust-get-models")),
}


@asynccontextmanager
async def serving(
    tag: str, routes: Mapping[str, Answering] | None = None
) -> AsyncIterator[tuple[VllmAdapter, Server]]:
    """Run an adapter against the recorded server of that tag."""
    version, models = IDENTITIES[tag]
    base: dict[str, Answering] = {"GET /version": version, "GET /v1/models": models}
    if tag == "vllm032":
        base[f"POST {ABORT_PATH}"] = capture("vllm/vllm032-inference-abort-unknown")
    async with (
        engine({**base, **(routes or {})}) as server,
        VllmAdapter(server.url, retries=ONCE) as adapter,
    ):
        yield adapter, server


def vllm(extensions: Mapping[str, Any] | None = None, **changes: Any) -> TaskRequest:
    return task("vllm", extensions, **changes)


@pytest.fixture
async def adapter() -> AsyncIterator[VllmAdapter]:
    async with VllmAdapter("http://engine") as made:
        yield made


# What it is sent.


async def test_a_plain_task(adapter: VllmAdapter) -> None:
    path, sent = payload(adapter, dispatch(vllm(max_tokens=5)))
    assert path == "/v1/completions"
    assert sent == {
        "model": "tiny",
        "prompt": "a canary prompt nobody may see",
        "max_tokens": 5,
        "seed": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert (b"X-Request-Id", b"r-1") in adapter._submit_headers(dispatch(vllm()))


async def test_sampling_has_vllm_s_names(adapter: VllmAdapter) -> None:
    profile = SamplerProfile(
        name="a",
        version="a-1",
        temperature=0.7,
        top_k=0,
        top_p=0.9,
        min_p=0.05,
        repeat_penalty=1.1,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        stop=("END",),
    )
    asked = vllm({"sampling": {"temperature": 0.2}, "stop": ["\n"]})
    _, sent = payload(adapter, dispatch(asked, profile=profile))
    assert {name: sent[name] for name in sent if name not in {"model", "prompt", "seed"}} == {
        "max_tokens": 16,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.2,
        "top_k": -1,
        "top_p": 0.9,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "stop": ["END", "\n"],
    }


async def test_strict_is_greedy_and_uses_no_other_request_s_cache(adapter: VllmAdapter) -> None:
    _, sent = payload(adapter, dispatch(vllm(determinism="strict")))
    assert (sent["temperature"], sent["cache_salt"]) == (0.0, "r-1")
    _, sent = payload(adapter, dispatch(vllm(kv_hint="cold")))
    assert sent["cache_salt"] == "r-1"
    for asked, version in (
        (vllm(determinism="strict"), "0.8.5"),
        (vllm(kv_hint="reuse"), "0.32.0"),
        (vllm(), "0.32.0"),
    ):
        _, sent = payload(adapter, dispatch(asked, version=version))
        assert "cache_salt" not in sent


@pytest.mark.parametrize(
    ("constraint", "name", "value"),
    [
        ({"json_schema": SCHEMA}, "json", SCHEMA),
        ({"regex": "a+"}, "regex", "a+"),
        ({"grammar": "root ::= 'a'"}, "grammar", "root ::= 'a'"),
        ({"choice": ["yes", "no"]}, "choice", ["yes", "no"]),
    ],
)
@pytest.mark.parametrize("messages", [None, [HELLO]])
async def test_constraints_by_version(
    adapter: VllmAdapter,
    constraint: dict[str, Any],
    name: str,
    value: Any,
    messages: list[Any] | None,
) -> None:
    extensions = {"constraint": constraint} | ({"messages": messages} if messages else {})
    for version in ("0.9.0", "0.10.2.post2"):
        _, sent = payload(adapter, dispatch(vllm(extensions), version=version))
        assert sent[f"guided_{name}"] == value
        assert not sent.keys() & {"structured_outputs", "response_format"}
    for version in ("0.11.0", "0.12.0", "0.32.0", "0.1.dev20175+g2573878a3.d20260821"):
        _, sent = payload(adapter, dispatch(vllm(extensions), version=version))
        assert sent["structured_outputs"] == {name: value}
        assert not any(key.startswith("guided_") for key in sent)


@pytest.mark.parametrize("kind", ["regex", "grammar"])
async def test_what_could_end_a_whole_old_engine_is_refused(
    adapter: VllmAdapter, kind: str
) -> None:
    asked = vllm({"constraint": {kind: "(((("}})
    with pytest.raises(Unsupported) as caught:
        payload(adapter, dispatch(asked, version="0.8.5"))
    assert caught.value.field == f"constraint.{kind}"


async def test_token_ids_by_version(adapter: VllmAdapter) -> None:
    asked = vllm({"token_ids": True})
    for version in ("0.10.2", "0.10.2.post2", "0.32.0"):
        _, sent = payload(adapter, dispatch(asked, version=version))
        assert sent["return_token_ids"] is True
    for version in ("0.8.5", "0.10.1.1"):
        with pytest.raises(Unsupported) as caught:
            payload(adapter, dispatch(asked, version=version))
        assert caught.value.field == "token_ids"
    _, sent = payload(adapter, dispatch(vllm({"token_ids": False})))
    assert "return_token_ids" not in sent


async def test_log_probabilities_by_route(adapter: VllmAdapter) -> None:
    _, sent = payload(adapter, dispatch(vllm({"logprobs": 0})))
    assert sent["logprobs"] == 0
    _, sent = payload(adapter, dispatch(vllm({"logprobs": 3, "messages": [HELLO]})))
    assert (sent["logprobs"], sent["top_logprobs"]) == (True, 3)


async def test_a_conversation(adapter: VllmAdapter) -> None:
    asked = vllm(
        {
            "messages": [
                {"role": "system", "content": "be brief"},
                {
                    "role": "user",
                    "name": "ann",
                    "content": [
                        {"type": "text", "text": "what is it?"},
                        {"type": "image", "url": "data:image/png;base64,AAAA"},
                    ],
                },
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "c1", "name": "look", "arguments": '{"at": 1}'}],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "a cat"},
            ],
            "tools": [{"name": "look", "description": "Looks.", "parameters": SCHEMA}],
            "tool_choice": "look",
        }
    )
    path, sent = payload(adapter, dispatch(asked))
    assert path == "/v1/chat/completions"
    assert "prompt" not in sent
    assert sent["messages"] == [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "name": "ann",
            "content": [
                {"type": "text", "text": "what is it?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "look", "arguments": '{"at": 1}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "a cat"},
    ]
    function = {"name": "look", "description": "Looks.", "parameters": SCHEMA}
    assert sent["tools"] == [{"type": "function", "function": function}]
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "look"}}
    for word in ("auto", "none", "required"):
        extensions = {"messages": [HELLO], "tools": [{"name": "look"}], "tool_choice": word}
        assert payload(adapter, dispatch(vllm(extensions)))[1]["tool_choice"] == word


async def test_lora_priority_and_affinity(adapter: VllmAdapter) -> None:
    asked = vllm({"lora": "poet", "priority": 3, "affinity_key": "session-9"})
    _, sent = payload(adapter, dispatch(asked, details={"loras": 1}))
    assert (sent["model"], sent["priority"]) == ("poet", -3)
    with pytest.raises(Unsupported, match="lora"):
        payload(adapter, dispatch(asked))
    assert (b"X-Session-Token", b"session-9") in adapter._submit_headers(dispatch(asked))


async def test_the_data_parallel_rank_by_version(adapter: VllmAdapter) -> None:
    asked = vllm({"data_parallel_rank": 1})
    header = (b"X-data-parallel-rank", b"1")
    assert header in adapter._submit_headers(dispatch(asked, version="0.11.1"))
    for refused in (
        dispatch(asked, version="0.11.0"),
        dispatch(asked, details={"front_end": "rust"}),
    ):
        with pytest.raises(Unsupported) as caught:
            adapter._submit_headers(refused)
        assert caught.value.field == "data_parallel_rank"


async def test_a_refusal_names_engine_version_and_field() -> None:
    async with serving("vllm0171") as (adapter, server):
        adapter._identity = dispatch(vllm(), version="0.10.1").identity
        with pytest.raises(AdapterError) as caught:
            await adapter.submit(vllm({"token_ids": True}))
        assert (caught.value.code, caught.value.detail) == ("INVALID_PARAMS", "unsupported")
        for part in ("vllm", "0.10.1", "token_ids"):
            assert part in caught.value.message
        assert not server.requests("/v1/completions")


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("0.8.5", (0, 8, 5)),
        ("0.10.2.post2", (0, 10, 2)),
        ("0.32.0", (0, 32, 0)),
        ("0.11.1rc2.dev3+gabc", (0, 11, 1)),
    ],
)
def test_versions(version: str, release: tuple[int, ...]) -> None:
    assert _parsed(version) == release


@pytest.mark.parametrize("version", ["0.1.dev20175+g2573878a3.d20260821", "dev"])
def test_a_build_that_says_it_is_of_no_release_counts_as_the_newest(version: str) -> None:
    assert _parsed(version) == NEWEST


@pytest.mark.parametrize("version", ["unknown", "", "of mine"])
def test_what_is_no_version_is_not_known(version: str) -> None:
    assert _parsed(version) is None


BY_VERSION: Mapping[str, Any] = {
    "constraint.json_schema": {"constraint": {"json_schema": SCHEMA}},
    "constraint.regex": {"constraint": {"regex": "a+"}},
    "constraint.grammar": {"constraint": {"grammar": "root ::= 'a'"}},
    "constraint.choice": {"constraint": {"choice": ["a", "b"]}},
    "token_ids": {"token_ids": True},
    "data_parallel_rank": {"data_parallel_rank": 1},
}


@pytest.mark.parametrize(
    "told",
    [NOT_FOUND, answer("no", status="403 Forbidden"), answer("{}"), answer("no")],
)
async def test_a_server_that_hides_its_version(told: bytes) -> None:
    routes: dict[str, Answering] = {
        "GET /version": told,
        COMPLETIONS: capture("vllm/vllm032-comp-seed-stream"),
    }
    async with serving("vllm032", routes) as (adapter, server):
        identity = await adapter.identity()
        assert (identity.engine_version, identity.model, identity.ctx_max) == (
            *("unknown", "tiny", 512),
        )
        features = (await adapter.capabilities()).features
        for field, extensions in BY_VERSION.items():
            with pytest.raises(AdapterError, match=field) as caught:
                await adapter.submit(vllm(extensions))
            assert (caught.value.detail, caught.value.processed) == ("unsupported", "no")
            assert features[field] == Feature(value=False, source="adapter")
        (asked,) = server.requests("/v1/completions")
        assert asked.json == {}  # by the capabilities, whether there is the route
        assert server.requests(ABORT_PATH) == []
        # A hint is not refused, and what every version takes is sent.
        await (await adapter.submit(vllm(kv_hint="cold"))).collect()
        sent = server.requests("/v1/completions")[-1]
    assert sent.json["model"] == "tiny"
    assert "cache_salt" not in sent.json


async def test_without_an_identity_nothing_depends_on_a_version(adapter: VllmAdapter) -> None:
    features = adapter._describe(None, WorkerProps()).features
    for field, extensions in BY_VERSION.items():
        unknown = replace(dispatch(vllm(extensions)), identity=None)
        built: Any = adapter._completion
        if field == "data_parallel_rank":
            built = adapter._submit_headers
        with pytest.raises(Unsupported) as caught:
            built(unknown)
        assert caught.value.field == field
        assert not features[field].value


async def test_priority_is_said_of_no_server_because_none_tells() -> None:
    async with serving("vllm032") as (adapter, _):
        assert "priority" not in (await adapter.capabilities()).features


async def test_lora_where_the_server_lists_one() -> None:
    rows = [{"id": "tiny"}, {"id": "poet", "parent": "tiny"}]
    for listed, has in ((rows, True), (rows[:1], False)):
        routes: dict[str, Answering] = {
            "GET /v1/models": answer(json.dumps({"object": "list", "data": listed}))
        }
        async with serving("vllm032", routes) as (adapter, _):
            told = await adapter.capabilities()
        assert told.features["lora"] == Feature(value=has, source="engine")


# What recorded servers come to.


@pytest.mark.parametrize(
    ("tag", "version", "front_end", "path"),
    [
        ("vllm0102", "0.10.2.post2", "python", "models/tiny-llama-t451"),
        ("vllm0171", "0.17.1", "python", "models/tiny-llama-t451"),
        ("vllm032", "0.32.0", "python", "models/tiny-llama"),
        ("vllm032rust", "0.32.0", "rust", "models/tiny-llama"),
    ],
)
async def test_identities(tag: str, version: str, front_end: str, path: str) -> None:
    async with serving(tag) as (adapter, server):
        identity = await adapter.identity()
        assert await adapter.engine_version() == version
    assert (identity.engine_version, identity.model, identity.ctx_max) == (version, "tiny", 512)
    assert identity.model_path == path
    assert identity.details["front_end"] == front_end
    assert identity.details["aborts"] is False
    # 0.10.2 is not asked for a route that it cannot have.
    assert bool(server.requests(ABORT_PATH)) == (version != "0.10.2.post2")


async def test_a_lora_adapter_is_not_taken_for_the_model() -> None:
    listing = {
        "data": [
            {"id": "poet", "root": "/loras/poet", "parent": "base"},
            {"id": "base", "root": "/models/base", "parent": None, "max_model_len": 4096},
            {"id": "alias", "root": "/models/base", "parent": None, "max_model_len": 4096},
        ]
    }
    async with serving("vllm0171", {"GET /v1/models": answer(json.dumps(listing))}) as (adapter, _):
        identity = await adapter.identity()
    assert (identity.model, identity.model_path) == ("base", "/models/base")
    assert identity.ctx_max == 4096


def expected(name: str) -> list[dict[str, Any]]:
    """Return the committed events of a recorded stream."""
    lines = (CAPTURES / f"{name}.events.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    "name",
    [
        "vllm0102-comp-eos-stream",
        "vllm0102-comp-stopstr-stream",
        "vllm0171-comp-usage-stream",
        "vllm032-comp-usage-stream",
        "vllm032-comp-cutinside-stream",
        "vllm032-comp-long-stream",
        "vllm032rust-comp-usage-stream",
        "vllm0171-chat-usage-stream",
        "vllm032-chat-usage-stream",
        "vllm032-chat-tools-named-stream",
        "vllm032dev-reasoning-stream",
        "vllm032rust-chat-usage-stream",
    ],
)
async def test_streams(name: str) -> None:
    tag = name.partition("-")[0].replace("dev", "")
    is_chat = "-comp-" not in name
    routes = {CHAT if is_chat else COMPLETIONS: capture(f"vllm/{name}")}
    async with serving(tag, routes) as (adapter, _):
        stream = await adapter.submit(vllm({"messages": [HELLO]} if is_chat else None, seed=3))
        reply = await stream.collect()
    told = expected(f"vllm/{name}")
    tokens = [event for event in told if event["kind"] == "token"]
    assert [(event.t, event.channel) for event in reply.events if event.kind == "token"] == [
        (token["data"]["t"], token["data"].get("channel", "content")) for token in tokens
    ]
    end = told[-1]["data"]
    assert reply.tokens_out == end["tokens_out"]
    assert reply.tokens_in == end.get("tokens_in")
    assert reply.finish_reason == end["finish_reason"]
    assert reply.usage_source == end["usage_source"]
    assert (reply.model, reply.seed) == ("tiny", 3)


@pytest.mark.parametrize("tag", ["vllm0102", "vllm032", "vllm032rust"])
async def test_token_ids_of_a_chat(tag: str) -> None:
    routes = {CHAT: capture(f"vllm/{tag}-chat-tokenids-stream")}
    async with serving(tag, routes) as (adapter, _):
        stream = await adapter.submit(vllm({"messages": [HELLO], "token_ids": True}))
        reply = await stream.collect()
    ids = [event.token_ids for event in reply.events if event.kind == "token"]
    assert ids == [[75], [90], [326]]


async def test_log_probabilities_of_a_completion() -> None:
    routes = {COMPLETIONS: capture("vllm/vllm032-comp-logprobs-stream")}
    async with serving("vllm032", routes) as (adapter, _):
        reply = await (await adapter.submit(vllm({"logprobs": 2}))).collect()
    told = [row for event in reply.events for row in event.logprobs or ()]
    # The last token has no text, so there is no event to tell of it.
    assert len(told) == reply.tokens_out - 1 == 5
    assert all(row["logprob"] <= 0 and len(row["top"]) >= 2 for row in told)


async def test_a_dead_engine_of_0_10_2_is_a_reset_though_it_says_400() -> None:
    routes = {COMPLETIONS: capture("vllm/vllm0102-kill-core-stream")}
    async with serving("vllm0102", routes) as (adapter, _):
        stream = await adapter.submit(vllm())
        with pytest.raises(WorkerReset) as caught:
            await stream.collect()
    error = caught.value
    assert (error.code, error.detail, error.processed) == ("WORKER_RESET", "engine_error", "yes")
    assert error.tokens_emitted == 25


async def test_an_engine_that_stops_gives_its_requests_up() -> None:
    routes = {COMPLETIONS: capture("vllm/vllm032-sigterm-stream")}
    async with serving("vllm032", routes) as (adapter, _):
        stream = await adapter.submit(vllm())
        with pytest.raises(WorkerReset) as caught:
            await stream.collect()
    assert caught.value.detail == "aborted"


async def test_a_full_queue_and_a_wrong_key_are_raised() -> None:
    routes = {COMPLETIONS: capture("vllm/vllm032-overload-503-stream")}
    async with serving("vllm032", routes) as (adapter, server):
        with pytest.raises(PoolUnavailable) as full:
            await adapter.submit(vllm())
        assert len(server.requests("/v1/completions")) == 1
    assert (full.value.code, full.value.processed) == ("REPLICA_EXHAUSTED", "no")
    routes = {"GET /v1/models": capture("vllm/vllm032dev-auth-none")}
    async with serving("vllm032", routes) as (adapter, _):
        with pytest.raises(AdapterError) as refused:
            await adapter.submit(vllm())
    assert (refused.value.detail, refused.value.status) == ("unauthorized", 401)


async def test_more_context_than_the_engine_has_is_refused_unsent() -> None:
    async with serving("vllm032") as (adapter, server):
        with pytest.raises(AdapterError) as caught:
            await adapter.submit(vllm(ctx=513))
        assert not server.requests("/v1/completions")
    assert caught.value.detail == "context_overflow"


async def test_embeddings_in_input_order() -> None:
    routes = {"POST /v1/embeddings": capture("vllm/vllm032-embed-batch")}
    async with serving("vllm032", routes) as (adapter, server):
        asked = vllm(workload="embedding", prompt=..., inputs=["hello", "the sea"])
        vectors = await adapter.embed(asked)
        sent = server.requests("/v1/embeddings")[0].json
    assert [len(vector) for vector in vectors] == [64, 64]
    assert vectors[0][0] == pytest.approx(-0.0520417094)
    assert sent == {"model": "tiny", "input": ["hello", "the sea"]}


async def test_scores_in_input_order() -> None:
    routes = {"POST /v1/rerank": capture("vllm/vllm032-rank-rerank")}
    documents = ["the sea", "hello there", "a dog"]
    async with serving("vllm032", routes) as (adapter, server):
        scores = await adapter.rerank(vllm(workload="rerank", prompt="hello", inputs=documents))
        sent = server.requests("/v1/rerank")[0].json
    assert [score.index for score in scores] == [0, 1, 2]
    assert [score.score for score in scores] == pytest.approx([0.07975958, 0.08225789, 0.04335776])
    assert sent == {"model": "tiny", "query": "hello", "documents": documents}


@pytest.mark.parametrize("refusal", ["vllm0102-rerank-on-generate", "vllm032-rerank-on-generate"])
async def test_scores_of_a_server_that_scores_and_does_not_rerank(refusal: str) -> None:
    routes = {
        "POST /v1/rerank": capture(f"vllm/{refusal}"),
        "POST /v1/score": capture("vllm/vllm032-rank-score"),
    }
    documents = ["the sea", "hello"]
    async with serving("vllm032", routes) as (adapter, server):
        for _ in range(2):
            asked = vllm(workload="rerank", prompt="hello", inputs=documents)
            scores = await adapter.rerank(asked)
            assert [score.score for score in scores] == pytest.approx([0.07975958, 0.0666066])
        assert len(server.requests("/v1/rerank")) == 1
        sent = server.requests("/v1/score")[0].json
    assert sent == {"model": "tiny", "text_1": "hello", "text_2": documents}


async def test_a_server_that_neither_reranks_nor_scores_says_so_itself() -> None:
    routes = {"POST /v1/rerank": capture("vllm/vllm0102-rerank-on-generate")}
    async with serving("vllm0102", routes) as (adapter, server):
        for _ in range(2):
            with pytest.raises(AdapterError, match="does not support Rerank") as caught:
                await adapter.rerank(vllm(workload="rerank", prompt="hello", inputs=["a"]))
            # Its status is 200, that of the error inside 400.
            assert (caught.value.code, caught.value.status) == ("INVALID_PARAMS", 400)
        assert len(server.requests("/v1/rerank")) == 2


async def test_a_workload_that_the_model_has_not() -> None:
    routes = {"POST /v1/embeddings": capture("vllm/vllm032-embeddings-on-generate")}
    async with serving("vllm032", routes) as (adapter, _):
        with pytest.raises(AdapterError) as caught:
            await adapter.embed(vllm(workload="embedding"))
    assert (caught.value.code, caught.value.detail) == ("INVALID_PARAMS", "not_found")


# Whether it is ready, and how busy.


async def test_health_needs_a_live_engine_and_a_key_that_fits() -> None:
    ok = capture("vllm/vllm032-get-health")
    cases: list[tuple[dict[str, Answering], bool, str | None]] = [
        ({"GET /health": ok}, True, None),
        ({"GET /health": capture("vllm/vllm032-kill-core-health-0")}, False, "unavailable"),
        ({"GET /health": capture("vllm/vllm0102-kill-core-health-0")}, False, "engine_error"),
        (
            {"GET /health": ok, "GET /v1/models": capture("vllm/vllm032dev-auth-none")},
            False,
            "unauthorized",
        ),
        # A listing alone means nothing.
        ({}, False, "unsupported"),
    ]
    for routes, ready, reason in cases:
        async with serving("vllm032", routes) as (adapter, _):
            health = await adapter.health()
        assert (health.live, health.ready, health.reason) == (True, ready, reason)


async def test_another_model_is_not_ready() -> None:
    version, models = IDENTITIES["vllm032"]
    routes = {
        "GET /health": capture("vllm/vllm032-get-health"),
        "GET /version": version,
        "GET /v1/models": models,
    }
    async with engine(routes) as server, VllmAdapter(server.url, model="other") as adapter:
        health = await adapter.health()
    assert (health.live, health.ready, health.reason) == (True, False, "wrong_model")


@pytest.mark.parametrize(
    ("name", "running", "waiting"),
    [
        ("vllm0102-get-metrics-after", 0, 0),
        ("vllm0171-get-metrics-busy", 4, 2),
        ("vllm032-get-metrics-busy", 4, 2),
        ("vllm032rust-get-metrics", 0, 0),
    ],
)
async def test_gauges_of_every_version(name: str, running: int, waiting: int) -> None:
    async with serving("vllm032", {"GET /metrics": capture(f"vllm/{name}")}) as (adapter, _):
        load = await adapter.load()
    assert (load.running, load.waiting, load.engines) == (running, waiting, 1)
    assert load.kv_cache_usage is not None
    assert 0 <= load.kv_cache_usage < 1


def test_gauges_are_summed_over_engines_and_absent_where_they_are_not_told() -> None:
    text = (
        "# HELP vllm:num_requests_running Running.\n"
        'vllm:num_requests_running{engine="0",model_name="a"} 3.0\n'
        'vllm:num_requests_running{engine="1",model_name="a"} 2\n'
        'vllm:gpu_cache_usage_perc{engine="0",model_name="a"} 0.5\n'
        'vllm:gpu_cache_usage_perc{engine="1",model_name="a"} 1e-1\n'
    )
    load = EngineLoad.from_metrics(text)
    assert (load.running, load.waiting, load.engines) == (5, None, 2)
    assert load.kv_cache_usage == pytest.approx(0.3)
    assert EngineLoad.from_metrics("") == EngineLoad()
    assert EngineLoad.from_metrics("<html>").running is None


async def test_slots_where_the_server_tells_them() -> None:
    info = {"vllm_config": {"scheduler_config": {"max_num_seqs": 8}}, "vllm_env": {}}
    routes = {
        "GET /server_info?config_format=json": answer(json.dumps(info)),
        "GET /metrics": capture("vllm/vllm032-get-metrics-busy"),
    }
    async with serving("vllm032", routes) as (adapter, _):
        props = await adapter.props()
    assert (props.slots_total, props.slots_free) == (8, 4)
    assert props.source == "server_info+metrics"


@pytest.mark.parametrize("config", ["a text", {"scheduler_config": {"max_num_seqs": 0}}, {}])
async def test_slots_are_unknown_where_it_does_not(config: Any) -> None:
    routes = {
        "GET /server_info?config_format=json": answer(json.dumps({"vllm_config": config})),
        "GET /metrics": capture("vllm/vllm032-get-metrics-busy"),
    }
    async with serving("vllm032", routes) as (adapter, _):
        props = await adapter.props()
    assert (props.slots_total, props.slots_free, props.source) == (None, None, None)


async def test_what_a_server_of_embeddings_can_do() -> None:
    routes: dict[str, Answering] = {
        "POST /v1/embeddings": capture("vllm/vllm032-embed-missing-input"),
        "POST /v1/completions": capture("vllm/vllm032-embed-completions"),
        "GET /metrics": capture("vllm/vllm032-embed-metrics"),
    }
    async with serving("vllm032", routes) as (adapter, server):
        told = await adapter.capabilities()
        again = await adapter.capabilities()
        (asked,) = server.requests("/v1/embeddings")
    assert again.features == told.features
    assert asked.json == {}
    features = {name: feature.value for name, feature in told.features.items()}
    assert (told.engine_version, told.ctx_max, told.slots_total) == ("0.32.0", 512, None)
    assert (features["embeddings"], features["rerank"]) == (True, False)
    assert told.features["rerank"].source == "engine"
    assert told.supported_workloads == ("embedding",)
    assert (features["metrics"], features["cancel"]) == (True, "close")
    assert (features["token_ids"], features["data_parallel_rank"]) == (True, True)


async def test_features_by_version_and_front_end() -> None:
    async with serving("vllm032rust") as (adapter, _):
        rust = (await adapter.capabilities()).features
    assert not rust["data_parallel_rank"].value
    routes = {"GET /version": answer('{"version":"0.8.5"}')}
    async with serving("vllm0102", routes) as (adapter, _):
        old = (await adapter.capabilities()).features
    for name in ("constraint.regex", "constraint.grammar", "token_ids", "data_parallel_rank"):
        assert not old[name].value
    assert old["constraint.choice"].value


# Aborting.


@pytest.mark.parametrize(
    ("extensions", "route", "prefix", "suffix"),
    [(None, COMPLETIONS, "cmpl-", "-0"), ({"messages": [HELLO]}, CHAT, "chatcmpl-", "")],
)
async def test_a_cancel_aborts_by_id_where_the_server_can(
    extensions: dict[str, Any] | None, route: str, prefix: str, suffix: str
) -> None:
    async def endless(connection: Connection, _: Received) -> None:
        frame = {"choices": [{"index": 0, "text": "a", "delta": {"content": "a"}}]}
        await connection.send(STREAM_HEAD, chunk(b"data: %s\n\n" % json.dumps(frame).encode()))
        await connection.until_closed()

    routes: dict[str, Answering] = {
        route: endless,
        f"POST {ABORT_PATH}": capture("vllm/vllm032dev-abort-inference-call"),
    }
    async with serving("vllm032", routes) as (adapter, server):
        stream = await adapter.submit(vllm(extensions))
        await anext(stream)
        await anext(stream)
        receipt = await adapter.cancel(stream.task_id, confirm_within_ms=5000)
        await eventually(lambda: len(server.requests(ABORT_PATH)) == 2, "the abort")
        probe, abort = server.requests(ABORT_PATH)
        submitted = server.requests(route.removeprefix("POST "))[0]
    assert (receipt.method, receipt.sent, receipt.confirmed) == ("close+abort", True, True)
    assert probe.json["request_ids"][0].startswith("cmpl-probe-")
    own = submitted.headers["x-request-id"]
    assert abort.json == {"request_ids": [f"{prefix}{own}{suffix}"]}


async def test_no_abort_is_sent_where_the_route_is_switched_off() -> None:
    async with serving("vllm032") as (adapter, server):
        identity = await adapter.identity()
        assert adapter._abort_request(dispatch(vllm(), details=identity.details)) is None
        # The one request is the probe, and it names an id.
        (probe,) = server.requests(ABORT_PATH)
        assert probe.json["request_ids"]


async def test_a_probe_of_the_abort_route_that_fails_harms_no_task() -> None:
    answers = [answer("{}", status="503 Busy"), answer("{}")]

    async def flaky(connection: Connection, _: Received) -> None:
        await connection.send(answers.pop(0))

    routes: dict[str, Answering] = {
        f"POST {ABORT_PATH}": flaky,
        COMPLETIONS: capture("vllm/vllm032-comp-seed-stream"),
    }
    async with serving("vllm032", routes) as (adapter, _):
        await (await adapter.submit(vllm())).collect()
        assert adapter._identity is not None
        assert adapter._identity.details["aborts"] is False
        # That was no answer: it is asked again, and then it is known.
        for _ in range(2):
            assert (await adapter.identity()).details["aborts"] is True
    assert answers == []


async def test_another_build_is_asked_again_for_its_abort_route() -> None:
    versions = ["0.32.0", "0.33.0"]

    async def upgraded(connection: Connection, _: Received) -> None:
        await connection.send(answer(json.dumps({"version": versions.pop(0)})))

    async with serving("vllm032", {"GET /version": upgraded}) as (adapter, server):
        for _ in range(2):
            await adapter.identity()
        assert len(server.requests(ABORT_PATH)) == 2


async def test_an_abort_without_an_id_is_never_sent(adapter: VllmAdapter) -> None:
    able = dispatch(vllm(), details={"aborts": True})
    assert adapter._abort_request(able) is not None
    assert adapter._abort_request(replace(able, request_id="")) is None
