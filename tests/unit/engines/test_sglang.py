"""SGLang: what it is sent by version and flag, and what recorded servers come to."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import CAPTURES
from tests.transports import both_transports
from tests.unit.engines.played import capture, engine
from tests.unit.engines.tasking import HELLO, dispatch, task
from tests.unit.wire import STREAM_HEAD, Connection, Received, Server, answer, chunk
from worker_adapters import AdapterError, Extensions, PoolUnavailable, SamplerProfile, WorkerReset
from worker_adapters.engines._http import Unsupported
from worker_adapters.engines.sglang import SglangAdapter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tests.unit.engines.played import Answering
    from worker_adapters import Collected, TaskRequest
    from worker_adapters.engines._http import Dispatch

pytestmark = both_transports

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}

# What 0.5.20 answers at /server_info, less the 33 KB that nothing here reads. Not recorded.
SERVER_INFO: dict[str, Any] = {
    "model_path": "models/tiny-llama",
    "served_model_name": "tiny",
    "api_key": "sk-canary",
    "context_length": None,
    "dp_size": 1,
    "max_running_requests": None,
    "enable_lora": None,
    "lora_paths": None,
    "enable_metrics": True,
    "enable_priority_scheduling": False,
    "schedule_low_priority_values_first": False,
    "enable_deterministic_inference": False,
    "incremental_streaming_output": False,
    "tool_call_parser": None,
    "internal_states": [{"effective_max_running_requests_per_dp": 4}],
    "version": "0.5.20",
}
MODELS = capture("sglang/sglang0520-get-models")
MODEL_INFO = capture("sglang/sglang0520-get-model-info")

DETAILS: dict[str, Any] = {
    "incremental": False,
    "deterministic": False,
    "priority": False,
    "low_priority_first": False,
    "metrics": True,
    "dp_size": 1,
    "is_generation": True,
    "images": False,
    "lora": False,
    "tools": False,
    "max_running": 4,
}


@asynccontextmanager
async def serving(
    routes: Mapping[str, Answering] | None = None, /, **info: Any
) -> AsyncIterator[tuple[SglangAdapter, Server]]:
    """Run an adapter against the recorded 0.5.20, with changes to its routes and settings."""
    base: dict[str, Answering] = {
        "GET /server_info": answer(json.dumps({**SERVER_INFO, **info})),
        "GET /model_info": MODEL_INFO,
        "GET /v1/models": MODELS,
        "GET /ready": answer(""),
        "GET /v1/loads": capture("sglang/sglang0520-get-v1-loads"),
        "POST /abort_request": capture("sglang/sglang0520-abort-rid-call"),
    }
    async with engine({**base, **(routes or {})}) as server, SglangAdapter(server.url) as adapter:
        yield adapter, server


def sglang(extensions: Mapping[str, Any] | None = None, **changes: Any) -> TaskRequest:
    return task("sglang", extensions, **changes)


def sent(
    adapter: SglangAdapter,
    asked: TaskRequest,
    *,
    version: str = "0.5.20",
    profile: SamplerProfile | None = None,
    **details: Any,
) -> tuple[str, dict[str, Any]]:
    """Return path and payload for a server of that version, with changes to its flags."""
    path, payload = adapter._completion(
        dispatch(asked, version=version, profile=profile, details={**DETAILS, **details})
    )
    return path, dict(payload)


@pytest.fixture
async def adapter() -> AsyncIterator[SglangAdapter]:
    async with SglangAdapter("http://engine") as made:
        yield made


# What it is sent.


async def test_a_plain_task(adapter: SglangAdapter) -> None:
    assert sent(adapter, sglang(max_tokens=5)) == (
        "/generate",
        {
            "text": "a canary prompt nobody may see",
            "sampling_params": {"max_new_tokens": 5, "sampling_seed": 7},
            "stream": True,
            "rid": "r-1",
        },
    )


async def test_sampling_has_sglang_s_names(adapter: SglangAdapter) -> None:
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
    asked = sglang({"sampling": {"temperature": 0.2}, "stop": ["\n"]})
    expected = {
        "temperature": 0.2,
        "top_k": -1,
        "top_p": 0.9,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "stop": ["END", "\n"],
    }
    _, payload = sent(adapter, asked, profile=profile)
    assert payload["sampling_params"] == expected | {"max_new_tokens": 16, "sampling_seed": 7}
    chat = sglang({"messages": [HELLO], "sampling": {"temperature": 0.2}, "stop": ["\n"]})
    _, payload = sent(adapter, chat, profile=profile)
    assert payload.items() >= expected.items()


async def test_strict_is_greedy_and_uses_no_other_task_s_cache(adapter: SglangAdapter) -> None:
    _, payload = sent(adapter, sglang(determinism="strict"))
    assert payload["sampling_params"]["temperature"] == 0.0
    assert payload["extra_key"] == "r-1"
    assert sent(adapter, sglang(kv_hint="cold"))[1]["extra_key"] == "r-1"
    for asked, version in (
        (sglang(), "0.5.20"),
        (sglang(kv_hint="reuse"), "0.5.20"),
        (sglang(determinism="strict"), "0.5.2"),
    ):
        assert "extra_key" not in sent(adapter, asked, version=version)[1]


async def test_a_seed_goes_only_where_there_is_a_field_for_it(adapter: SglangAdapter) -> None:
    chat = sglang({"messages": [HELLO]})
    assert sent(adapter, chat)[1]["seed"] == 7
    old = {name: value for name, value in DETAILS.items() if name != "deterministic"}
    for asked in (sglang(), chat):
        _, payload = adapter._completion(dispatch(asked, version="0.4.10.post2", details=old))
        assert "seed" not in payload
        assert "sampling_seed" not in payload.get("sampling_params", {})


async def test_a_seed_of_the_task_s_own_is_not_dropped(adapter: SglangAdapter) -> None:
    old = {name: value for name, value in DETAILS.items() if name != "deterministic"}
    for asked in (sglang(seed=7), sglang({"messages": [HELLO]}, seed=7)):
        with pytest.raises(Unsupported) as refusal:
            adapter._completion(dispatch(asked, version="0.4.10.post2", details=old))
        assert refusal.value.field == "seed"
    # The server's flag decides what it is worth, not whether it is sent.
    assert sent(adapter, sglang(seed=7))[1]["sampling_params"]["sampling_seed"] == 7


async def test_tools_need_a_server_that_says_it_has_them(adapter: SglangAdapter) -> None:
    asked = sglang({"messages": [HELLO], "tools": [{"name": "a"}]})
    untold = {name: value for name, value in DETAILS.items() if name != "tools"}
    for details, has in (
        (untold, False),
        ({**untold, "tools": False}, False),
        ({**untold, "tools": True}, True),
    ):
        made = dispatch(asked, version="0.5.20", details=details)
        features = adapter._features(made.identity)
        assert (features["tools"].value, features["tool_choice"].value) == (has, has)
        if has:
            assert adapter._completion(made)[1]["tools"]
        else:
            with pytest.raises(Unsupported, match="tools"):
                adapter._completion(made)


CONSTRAINTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"json_schema": SCHEMA}, {"json_schema": json.dumps(SCHEMA)}),
    ({"regex": "[a-z]+"}, {"regex": "[a-z]+"}),
    ({"grammar": 'root ::= "a"'}, {"ebnf": 'root ::= "a"'}),
    ({"choice": ["yes", "no way", "a|b", "(é)\n"]}, {"regex": "(yes|no way|a\\|b|\\(é\\)\n)"}),
]


@pytest.mark.parametrize(("constraint", "expected"), CONSTRAINTS)
async def test_constraints(
    adapter: SglangAdapter, constraint: dict[str, Any], expected: dict[str, Any]
) -> None:
    _, payload = sent(adapter, sglang({"constraint": constraint}))
    assert payload["sampling_params"].items() >= expected.items()
    _, payload = sent(adapter, sglang({"constraint": constraint, "messages": [HELLO]}))
    if "json_schema" in constraint:
        assert payload["response_format"]["json_schema"]["schema"] == SCHEMA
    else:
        assert payload.items() >= expected.items()


async def test_details_of_tokens(adapter: SglangAdapter) -> None:
    _, payload = sent(adapter, sglang({"logprobs": 2, "token_ids": True}))
    assert payload["return_logprob"] is True
    assert payload["top_logprobs_num"] == 2
    assert payload["return_text_in_logprobs"] is True
    _, payload = sent(adapter, sglang({"logprobs": 2, "messages": [HELLO]}))
    assert (payload["logprobs"], payload["top_logprobs"]) == (True, 2)


async def test_a_conversation(adapter: SglangAdapter) -> None:
    tool = {"name": "get_weather", "parameters": SCHEMA}
    asked = sglang({"messages": [HELLO], "tools": [tool], "tool_choice": "required"})
    path, payload = sent(adapter, asked, tools=True)
    assert path == "/v1/chat/completions"
    assert payload == {
        "model": "tiny",
        "messages": [HELLO],
        "max_tokens": 16,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "rid": "r-1",
        "seed": 7,
        "tools": [{"type": "function", "function": tool}],
        "tool_choice": "required",
    }


async def test_priority_is_higher_for_sooner_whatever_the_server_s_sign(
    adapter: SglangAdapter,
) -> None:
    asked = sglang({"priority": 3})
    assert sent(adapter, asked, priority=True)[1]["priority"] == 3
    low_first = sent(adapter, asked, priority=True, low_priority_first=True)
    assert low_first[1]["priority"] == -3


async def test_a_rank_and_a_lora(adapter: SglangAdapter) -> None:
    asked = sglang({"data_parallel_rank": 1, "lora": "style"})
    _, payload = sent(adapter, asked, dp_size=2, lora=True)
    assert (payload["routed_dp_rank"], payload["lora_path"]) == (1, "style")
    _, payload = sent(adapter, asked, version="0.5.8", dp_size=2, lora=True)
    assert payload["data_parallel_rank"] == 1


REFUSED: list[tuple[dict[str, Any], str, dict[str, Any], str]] = [
    ({"lora": "style"}, "0.5.20", {}, "lora"),
    ({"priority": 1}, "0.5.20", {}, "priority"),
    ({"data_parallel_rank": 1}, "0.5.20", {}, "data_parallel_rank"),
    ({"data_parallel_rank": 0}, "0.4.6.post5", {}, "data_parallel_rank"),
    ({"token_ids": True}, "0.4.10.post2", {}, "token_ids"),
    ({"token_ids": True}, "0.5.8", {"stream_output": True}, "token_ids"),
    ({"token_ids": True, "messages": [HELLO]}, "0.5.20", {}, "token_ids"),
    ({"constraint": {"grammar": "a"}}, "0.4.1", {}, "constraint.grammar"),
    ({"messages": [HELLO]}, "0.4.1", {}, "messages"),
    ({"messages": [HELLO]}, "unknown", {}, "messages"),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "url": "https://host/a.png"}]}
            ]
        },
        "0.5.20",
        {},
        "messages.image",
    ),
    ({"messages": [HELLO], "tools": [{"name": "a"}]}, "0.5.20", {}, "tools"),
]


@pytest.mark.parametrize(("extensions", "version", "details", "field"), REFUSED)
async def test_what_the_server_would_ignore_is_refused(
    adapter: SglangAdapter,
    extensions: dict[str, Any],
    version: str,
    details: dict[str, Any],
    field: str,
) -> None:
    with pytest.raises(Unsupported) as refusal:
        sent(adapter, sglang(extensions), version=version, **details)
    assert refusal.value.field == field


async def test_a_refusal_names_engine_version_and_field() -> None:
    async with serving() as (adapter, server):
        with pytest.raises(AdapterError) as refusal:
            await adapter.submit(sglang({"lora": "style"}))
        assert not server.requests("/generate")
    error = refusal.value
    assert (error.code, error.detail, error.processed) == ("INVALID_PARAMS", "unsupported", "no")
    assert "sglang 0.5.20 does not support lora" in error.message


# What the server says of itself.


async def test_identity() -> None:
    async with serving() as (adapter, _):
        assert await adapter.engine_version() == "0.5.20"
        identity = await adapter.identity()
    assert (identity.model, identity.model_path) == ("tiny", "models/tiny-llama")
    assert identity.ctx_max == 512
    assert identity.details == DETAILS
    assert "sk-canary" not in repr(identity)


async def test_identity_of_older_servers() -> None:
    old = {"model_path": "m", "served_model_name": "m", "dp_size": 2, "lora_paths": ["a"]}
    nothing = answer("{}", status="404 Not Found")
    for route, info, version in (
        ("GET /get_server_info", {**old, "version": "0.4.6.post5"}, "0.4.6.post5"),
        ("GET /get_server_args", {**old, "context_length": 100}, "unknown"),
    ):
        routes: dict[str, Answering] = {
            "GET /server_info": nothing,
            "GET /model_info": nothing,
            "GET /get_model_info": answer('{"model_path":"m","is_generation":true}'),
            route: answer(json.dumps(info)),
        }
        async with serving(routes) as (adapter, _):
            identity = await adapter.identity()
        assert (identity.engine_version, identity.model) == (version, "m")
        assert identity.ctx_max == info.get("context_length", 512)
        assert identity.details == {"dp_size": 2, "is_generation": True, "lora": True}


async def test_slots() -> None:
    async with serving() as (adapter, _):
        props = await adapter.props()
    assert (props.slots_total, props.slots_free, props.source) == (4, 4, "loads")


async def test_slots_over_ranks_with_a_queue() -> None:
    ranks = [
        {"max_running_requests": 4, "num_running_reqs": 1, "num_waiting_reqs": 0},
        {"max_running_requests": 4, "num_running_reqs": 2, "num_waiting_reqs": 1},
    ]
    loads = answer(json.dumps({"loads": ranks}))
    async with serving({"GET /v1/loads": loads}) as (adapter, _):
        props = await adapter.props()
    assert (props.slots_total, props.slots_free) == (8, 3)


async def test_slots_of_servers_without_loads() -> None:
    gone = answer("{}", status="404 Not Found")
    load = capture("sglang/sglang0520-get-get-load")
    async with serving({"GET /v1/loads": gone, "GET /get_load": load}) as (adapter, _):
        props = await adapter.props()
        assert (props.slots_total, props.slots_free) == (4, 4)
        assert props.source == "server_info+get_load"
    async with serving({"GET /v1/loads": gone}) as (adapter, _):
        props = await adapter.props()
        assert (props.slots_total, props.slots_free, props.source) == (4, None, "server_info")
    async with serving({"GET /v1/loads": gone}, internal_states=[]) as (adapter, _):
        props = await adapter.props()
        assert (props.slots_total, props.slots_free, props.source) == (None, None, None)


async def test_health_asks_the_route_that_answers_at_once() -> None:
    async with serving() as (adapter, server):
        health = await adapter.health()
        assert (health.live, health.ready) == (True, True)
        assert not server.requests("/health")
    starting = answer("", status="503 Service Unavailable")
    async with serving({"GET /ready": starting}) as (adapter, server):
        health = await adapter.health()
        assert (health.live, health.ready, health.reason) == (True, False, "not_ready")
        assert not server.requests("/health")


async def test_health_of_servers_without_that_route() -> None:
    routes: dict[str, Answering] = {
        "GET /ready": capture("sglang/sglang0520-get-notfound"),
        "GET /health": capture("sglang/sglang0520-get-health"),
    }
    async with serving(routes) as (adapter, server):
        for _ in range(2):
            assert (await adapter.health()).ready
        # It has learnt that there is none.
        assert (len(server.requests("/ready")), len(server.requests("/health"))) == (1, 2)


async def test_capabilities_follow_the_flags() -> None:
    async with serving() as (adapter, _):
        capabilities = await adapter.capabilities()
    assert capabilities.supported_workloads == ("completion",)
    assert (capabilities.ctx_max, capabilities.slots_total) == (512, 4)
    features = capabilities.features
    value = {name: feature.value for name, feature in features.items()}
    assert value["cancel"] == "close+abort"
    assert (value["seed"], value["determinism"]) == (False, "best_effort")
    assert (value["chat"], value["tools"], value["lora"], value["priority"]) == (
        True,
        False,
        False,
        False,
    )
    assert (value["embeddings"], value["token_ids"], value["metrics"]) == (False, True, True)
    assert features["determinism"].source == "engine"
    async with serving(
        enable_deterministic_inference=True,
        enable_priority_scheduling=True,
        enable_lora=True,
        tool_call_parser="qwen25",
        version="0.4.1",
    ) as (adapter, _):
        features = (await adapter.capabilities()).features
    value = {name: feature.value for name, feature in features.items()}
    assert (value["seed"], value["determinism"]) == (True, "strict")
    assert (value["lora"], value["priority"]) == (True, True)
    assert (value["cancel"], value["chat"], value["token_ids"]) == ("close", False, False)


async def test_what_an_embedding_model_is_for() -> None:
    model = answer('{"model_path":"m","served_model_name":"m","is_generation":false}')
    for version, workloads in (("0.5.20", ("embedding", "rerank")), ("0.4.6", ("embedding",))):
        async with serving({"GET /model_info": model}, version=version) as (adapter, _):
            capabilities = await adapter.capabilities()
        assert capabilities.supported_workloads == workloads
        assert capabilities.features["embeddings"].value is True


# What recorded streams come to.


async def collected(name: str, asked: TaskRequest | None = None, /, **info: Any) -> Collected:
    async with serving({"POST /generate": capture(f"sglang/{name}")}, **info) as (adapter, _):
        return await (await adapter.submit(asked or sglang())).collect()


@pytest.mark.parametrize(
    ("tag", "incremental"),
    [("sglang0520", False), ("sglang0520inc", True), ("sglang0520inc", None)],
)
async def test_recorded_streams_are_the_answers_they_stream(
    tag: str, incremental: bool | None
) -> None:
    whole = json.loads(capture(f"sglang/{tag}-generate").partition(b"\r\n\r\n")[2])
    info: dict[str, Any] = {"incremental_streaming_output": incremental}
    if incremental is None:
        # A server that tells nothing: the frames have to.
        info["version"] = None
    answered = await collected(f"{tag}-generate-stream", **info)
    assert answered.text == whole["text"]
    assert answered.tokens_in == whole["meta_info"]["prompt_tokens"]
    assert answered.tokens_out == whole["meta_info"]["completion_tokens"]
    assert (answered.finish_reason, answered.usage_source) == ("length", "engine")


@pytest.mark.parametrize("tag", ["sglang0520", "sglang0520inc"])
async def test_a_character_that_is_cut_by_the_length(tag: str) -> None:
    incremental = tag == "sglang0520inc"
    answered = await collected(
        f"{tag}-generate-regex-utf8-cut-stream", incremental_streaming_output=incremental
    )
    assert answered.text == "é\ufffd"
    assert answered.tokens_out == 5


async def test_ids_and_log_probabilities() -> None:
    name = "sglang0520inc-generate-logprob-stream"
    asked = sglang({"logprobs": 2, "token_ids": True})
    answered = await collected(name, asked, incremental_streaming_output=True)
    whole = json.loads(capture("sglang/sglang0520inc-generate-logprob").partition(b"\r\n\r\n")[2])
    ids = [at for event in answered.events for at in event.token_ids or ()]
    # The answer in one piece was asked for one token less.
    known = len(whole["output_ids"])
    assert len(ids) == answered.tokens_out == known + 1
    assert ids[:known] == whole["output_ids"]
    logprobs = [
        (entry["logprob"], entry["id"])
        for event in answered.events
        for entry in event.logprobs or ()
    ]
    told = whole["meta_info"]["output_token_logprobs"]
    assert logprobs[:known] == [(pytest.approx(value), at) for value, at, _ in told]


async def test_a_recorded_conversation() -> None:
    routes: dict[str, Answering] = {
        "POST /v1/chat/completions": capture("sglang/sglang0520-chat-usage-stream")
    }
    async with serving(routes) as (adapter, server):
        stream = await adapter.submit(sglang({"messages": [HELLO]}))
        answered = await stream.collect()
        [request] = server.requests("/v1/chat/completions")
    assert request.json["messages"] == [HELLO]
    expected = [
        json.loads(line)
        for line in (CAPTURES / "sglang" / "sglang0520-chat-usage-stream.events.jsonl")
        .read_text("utf-8")
        .splitlines()
    ]
    text = [row["data"]["t"] for row in expected if row["kind"] == "token"]
    assert answered.text == "".join(text)
    assert answered.tokens_out == expected[-1]["data"]["tokens_out"]
    assert answered.events[0].engine == "sglang"


async def test_a_seed_that_was_not_sent_is_not_reported() -> None:
    routes: dict[str, Answering] = {
        "GET /server_info": answer('{"version":"0.4.10","served_model_name":"tiny"}'),
        "POST /generate": capture("sglang/sglang0520-generate-stream"),
    }
    async with serving(routes) as (adapter, server):
        answered = await (await adapter.submit(sglang())).collect()
        [request] = server.requests("/generate")
        with pytest.raises(AdapterError, match=r"sglang 0\.4\.10 does not support seed"):
            await adapter.submit(sglang(seed=7))
    assert "sampling_seed" not in request.json["sampling_params"]
    assert answered.seed is None


# Ending early.


def saying(text: str) -> bytes:
    meta = {"finish_reason": None, "prompt_tokens": 1, "completion_tokens": 1}
    frame = {"text": text, "output_ids": [1], "meta_info": meta}
    return STREAM_HEAD + chunk(b"data: " + json.dumps(frame).encode() + b"\n\n")


async def endless(connection: Connection, _: Received) -> None:
    await connection.send(saying("a"))
    await connection.until_closed()


async def test_cancelling_aborts_by_the_task_s_own_id() -> None:
    async with serving({"POST /generate": endless}) as (adapter, server):
        asked = sglang()
        stream = await adapter.submit(asked)
        assert (await anext(stream)).kind == "started"
        receipt = await adapter.cancel(asked.task_id, confirm_within_ms=5000)
        assert (receipt.method, receipt.sent, receipt.confirmed) == ("close+abort", True, True)
        await server.asked("/abort_request")
        [sent] = server.requests("/generate")
        [aborted] = server.requests("/abort_request")
    assert aborted.json == {"rid": sent.json["rid"]}
    assert sent.json["rid"].startswith(asked.task_id.hex)


async def test_cancelling_without_an_abort_route_is_closing() -> None:
    routes: dict[str, Answering] = {"POST /generate": endless}
    async with serving(routes, version="0.3.6") as (adapter, server):
        asked = sglang()
        stream = await adapter.submit(asked)
        assert (await anext(stream)).kind == "started"
        receipt = await adapter.cancel(asked.task_id)
        await server.connections[-1].over()
        assert not server.requests("/abort_request")
    assert (receipt.method, receipt.sent, receipt.confirmed) == ("close", True, None)


@pytest.mark.parametrize("request_id", ["", "r-1"])
async def test_an_abort_always_names_its_task(adapter: SglangAdapter, request_id: str) -> None:
    def asked(version: str) -> Dispatch:
        made = dispatch(sglang(), version=version)
        return type(made)(made.task, 1, None, made.identity, request_id=request_id)

    # An id that is empty is a prefix of every other's.
    request = adapter._abort_request(asked("0.5.20"))
    assert (request is None) == (request_id == "")
    assert adapter._abort_request(asked("0.3.6")) is None


async def test_a_killed_scheduler_takes_the_server_with_it() -> None:
    async def killed(connection: Connection, _: Received) -> None:
        await connection.send(capture("sglang/sglang0520inc-kill-stream"))
        connection.close()

    async with serving({"POST /generate": killed}, incremental_streaming_output=True) as (
        adapter,
        _,
    ):
        with pytest.raises(WorkerReset) as lost:
            await (await adapter.submit(sglang())).collect()
    assert lost.value.detail == "truncated"
    assert lost.value.tokens_emitted > 0


# Embeddings and reranking. The recorded server has a model that generates: not recorded.


async def test_embeddings() -> None:
    rows = [{"index": 1, "embedding": [0, 1.5]}, {"index": 0, "embedding": [2.0, 3.0]}]
    routes: dict[str, Answering] = {
        "POST /v1/embeddings": answer(json.dumps({"data": rows, "usage": {"prompt_tokens": 5}}))
    }
    async with serving(routes) as (adapter, server):
        vectors = await adapter.embed(sglang(workload="embedding", prompt=..., inputs=["a", "b"]))
        [request] = server.requests("/v1/embeddings")
    assert vectors == [[2.0, 3.0], [0.0, 1.5]]
    assert request.json == {"model": "tiny", "input": ["a", "b"], "encoding_format": "float"}


async def test_reranking() -> None:
    rows = [{"index": 1, "score": 0.9, "document": "b"}, {"index": 0, "score": 0.1}]
    routes: dict[str, Answering] = {"POST /v1/rerank": answer(json.dumps(rows))}
    asked = sglang(workload="rerank", prompt="q", inputs=["a", "b"])
    async with serving(routes) as (adapter, server):
        scores = await adapter.rerank(asked)
        [request] = server.requests("/v1/rerank")
    assert [(row.index, row.score) for row in scores] == [(0, 0.1), (1, 0.9)]
    assert request.json == {"query": "q", "documents": ["a", "b"], "return_documents": False}
    async with serving(version="0.4.6.post5") as (adapter, _):
        with pytest.raises(AdapterError, match="workload rerank"):
            await adapter.rerank(asked)


async def test_a_full_queue_is_told_as_such_with_its_status_too() -> None:
    full = answer('{"detail":"The request queue is full."}', status="503 Service Unavailable")
    async with serving({"POST /generate": full}) as (adapter, _):
        with pytest.raises(PoolUnavailable) as refused:
            await adapter.submit(sglang())
    assert (refused.value.code, refused.value.processed) == ("REPLICA_EXHAUSTED", "no")


def test_a_task_names_sglang_only_where_that_is_allowed() -> None:
    with pytest.raises(ValueError, match="extension of the contract"):
        Extensions().task_request(**sglang().model_dump())
