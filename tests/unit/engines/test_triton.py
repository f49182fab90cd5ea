"""The Triton adapter: what it reads from a model's configuration, and what it then sends."""

from __future__ import annotations

import json
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.real.triton import support
from tests.transports import both_transports
from tests.unit.engines.played import capture, engine
from tests.unit.engines.tasking import task
from tests.unit.tasks import PROMPT
from tests.unit.wire import LAST_CHUNK, STREAM_HEAD, Connection, Received, answer, chunk, eventually
from worker_adapters import AdapterError, PoolUnavailable, SamplerProfile, WorkerReset
from worker_adapters.engines._triton_model import TritonModel
from worker_adapters.engines.triton import EmbeddingTensors, TritonAdapter
from worker_adapters.testing.engines import TritonEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tests.unit.engines.played import Answering
    from tests.unit.wire import Server
    from worker_adapters import TaskRequest

pytestmark = both_transports

INFLIGHT = {
    "text_input": "TYPE_STRING",
    "max_tokens": "TYPE_INT32",
    "stream": "TYPE_BOOL",
    "exclude_input_in_output": "TYPE_BOOL",
    "seed": "TYPE_UINT64",
    "temperature": "TYPE_FP32",
    "top_k": "TYPE_INT32",
    "top_p": "TYPE_FP32",
    "repetition_penalty": "TYPE_FP32",
    "presence_penalty": "TYPE_FP32",
    "frequency_penalty": "TYPE_FP32",
    "stop_words": "TYPE_STRING",
    "return_log_probs": "TYPE_BOOL",
    "guided_decoding_guide_type": "TYPE_STRING",
    "guided_decoding_guide": "TYPE_STRING",
    "lora_task_id": "TYPE_UINT64",
}
"""Inputs of ``tensorrt_llm_bls``, as they are documented."""

REQUIRED = {"text_input", "max_tokens"}


def config(
    name: str = "tensorrt_llm_bls",
    inputs: Mapping[str, str] | None = None,
    *,
    without: str = "",
    decoupled: bool = True,
    parameters: Mapping[str, str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return a model's configuration as Triton renders it."""
    given = dict(INFLIGHT if inputs is None else inputs)
    given.pop(without, None)
    return {
        "name": name,
        "max_batch_size": 4,
        "input": [
            {"name": key, "data_type": kind, "dims": [1], "optional": key not in REQUIRED}
            for key, kind in given.items()
        ],
        "output": [{"name": "text_output", "data_type": "TYPE_STRING", "dims": [-1]}],
        "parameters": {key: {"string_value": value} for key, value in (parameters or {}).items()},
        "model_transaction_policy": {"decoupled": decoupled},
        **more,
    }


def body(recorded: str) -> Any:
    """Return the JSON of a recorded answer."""
    return json.loads(capture(f"triton/{recorded}").partition(b"\r\n\r\n")[2])


def event(text: str, **more: Any) -> bytes:
    data = json.dumps({"model_name": "m", "model_version": "1", "text_output": text, **more})
    return chunk(f"data: {data}\n\n".encode())


ANSWERED = STREAM_HEAD + event("a") + LAST_CHUNK
STOPPER: dict[str, Any] = {
    "name": "tensorrt_llm",
    "max_batch_size": 4,
    "input": [
        {"name": name, "data_type": kind, "dims": [1], "optional": optional}
        for name, kind, optional in (
            ("input_ids", "TYPE_INT32", False),
            ("input_lengths", "TYPE_INT32", False),
            ("request_output_len", "TYPE_INT32", False),
            ("stop", "TYPE_BOOL", True),
        )
    ],
    "output": [],
    "parameters": {"gpt_model_path": {"string_value": "/engines/llama"}},
    "model_transaction_policy": {"decoupled": True},
}


@asynccontextmanager
async def serving(
    *models: Mapping[str, Any],
    routes: Mapping[str, Answering] | None = None,
    **options: Any,
) -> AsyncIterator[tuple[TritonAdapter, Server]]:
    """Run an adapter against a server with these models, which answer "a"."""
    index = [{"name": model["name"], "version": "1", "state": "READY"} for model in models]
    all_routes: dict[str, Answering] = {
        "GET /v2": capture("triton/server_metadata"),
        "POST /v2/repository/index": answer(json.dumps(index)),
    }
    for model in models:
        path = f"/v2/models/{model['name']}"
        all_routes[f"GET {path}/config"] = answer(json.dumps(model))
        all_routes[f"GET {path}/ready"] = answer("")
        all_routes[f"POST {path}/generate_stream"] = ANSWERED
    async with (
        engine({**all_routes, **(routes or {})}) as server,
        TritonAdapter(server.url, **options) as adapter,
    ):
        yield adapter, server


def triton(extensions: Mapping[str, Any] | None = None, **changes: Any) -> TaskRequest:
    return task("triton", extensions, **changes)


async def sent(asked: TaskRequest, model: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Return what a task becomes, without its id."""
    async with serving(model, **options) as (adapter, server):
        await (await adapter.submit(asked)).collect()
        [request] = server.requests(f"/v2/models/{model['name']}/generate_stream")
    payload: dict[str, Any] = request.json
    assert payload.pop("id").startswith(asked.task_id.hex)
    return payload


LLMAPI = body("llmapi_config")
ENSEMBLE = body("model_config_ensemble")

PROFILE = SamplerProfile(
    name="creative",
    version="c-1",
    temperature=0.9,
    top_k=50,
    top_p=0.9,
    repeat_penalty=1.1,
    presence_penalty=0.1,
    frequency_penalty=0.2,
    stop=("END",),
)


# What a configuration says.


@pytest.mark.parametrize(
    ("given", "flavour", "text"),
    [
        (ENSEMBLE, "inflight", "delta"),
        (LLMAPI, "llmapi", "accumulated"),
        (config(), "inflight", "delta"),
        (config(parameters={"accumulate_tokens": "false"}), "inflight", "delta"),
        (config(parameters={"accumulate_tokens": "true"}), "inflight", "accumulated"),
        (config(parameters={"accumulate_tokens": "True"}), "inflight", "accumulated"),
        (config(parameters={"accumulate_tokens": "${accumulate_tokens}"}), "inflight", "delta"),
        (STOPPER, None, "delta"),
        (config(without="max_tokens"), None, "delta"),
    ],
)
def test_flavour_and_text(given: Any, flavour: str | None, text: str) -> None:
    model = TritonModel.read(given)
    assert (model.flavour, model.text) == (flavour, text)


def test_a_recorded_ensemble() -> None:
    model = TritonModel.read(ENSEMBLE)
    assert model.is_ensemble
    assert model.decoupled
    assert model.generator == "tensorrt_llm"
    assert model.required == {"text_input", "max_tokens"}
    assert not model.can_stop_by_id


@pytest.mark.parametrize(
    ("kind", "value", "holds"),
    [
        ("TYPE_INT32", 2**31 - 1, True),
        ("TYPE_INT32", 2**31, False),
        ("TYPE_INT32", -(2**31) - 1, False),
        ("TYPE_UINT64", 2**64 - 1, True),
        ("TYPE_UINT64", -1, False),
        ("TYPE_INT64", 2**63, False),
        ("TYPE_FP32", 0.5, True),
        ("TYPE_BOOL", True, True),
    ],
)
def test_integers_that_an_input_holds(kind: str, value: Any, holds: bool) -> None:
    assert TritonModel.read(config(inputs={"x": kind})).holds("x", value) is holds


async def test_identity_of_an_ensemble() -> None:
    async with serving(ENSEMBLE, STOPPER) as (adapter, _):
        identity = await adapter.identity()
        assert await adapter.engine_version() == "2.51.0"
    assert (identity.model, identity.model_path) == ("ensemble", "/engines/llama")
    assert identity.details == {
        "flavour": "inflight",
        "text": "delta",
        "decoupled": True,
        "stop_model": "tensorrt_llm",
        "trtllm_version": "0.14.0",
        "trtllm_version_source": "derived",
    }


async def test_a_configured_version_of_tensorrt_llm() -> None:
    async with serving(LLMAPI, trtllm_version="1.2.1") as (adapter, _):
        identity = await adapter.identity()
    assert identity.engine_version == "2.51.0+trtllm.1.2.1"
    assert identity.details["trtllm_version_source"] == "configuration"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["only"], "only"),
        (["postprocessing", "tensorrt_llm", "tensorrt_llm_bls", "ensemble"], "ensemble"),
        (["x", "tensorrt_llm_bls", "tensorrt_llm"], "tensorrt_llm_bls"),
        (["x", "tensorrt_llm"], "tensorrt_llm"),
    ],
)
async def test_the_model_that_is_asked(names: list[str], found: str) -> None:
    async with serving(*(config(name) for name in names)) as (adapter, _):
        assert (await adapter.identity()).model == found


async def test_several_models_without_a_name_to_go_by() -> None:
    async with serving(config("x"), config("y")) as (adapter, _):
        with pytest.raises(AdapterError, match="configure which") as refused:
            await adapter.submit(triton())
    assert refused.value.detail == "not_found"


async def test_a_name_is_quoted() -> None:
    async with serving(config("a"), model="a/../b") as (adapter, server):
        with pytest.raises(AdapterError):
            await adapter.submit(triton())
        assert server.requests("/v2/models/a%2F..%2Fb/config")


# What is sent.


async def test_a_plain_completion() -> None:
    assert await sent(triton(seed=7), config()) == {
        "text_input": PROMPT,
        "max_tokens": 16,
        "stream": True,
        "exclude_input_in_output": True,
        "seed": 7,
    }


async def test_a_plain_completion_of_the_llm_api() -> None:
    assert await sent(triton(seed=7), LLMAPI) == {
        "text_input": PROMPT,
        "sampling_param_max_tokens": 16,
        "streaming": True,
        "sampling_param_exclude_input_from_output": True,
        "sampling_param_seed": 7,
        "return_finish_reason": True,
        "return_stop_reason": True,
    }


async def test_a_profile_sets_its_parameters() -> None:
    asked = triton(seed=7, sampler_profile_version="c-1")
    payload = await sent(asked, config(), sampler_profiles=[PROFILE])
    assert payload == {
        "text_input": PROMPT,
        "max_tokens": 16,
        "stream": True,
        "exclude_input_in_output": True,
        "seed": 7,
        "temperature": 0.9,
        "top_k": 50,
        "top_p": 0.9,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "stop_words": ["END"],
    }


@pytest.mark.parametrize(
    ("model", "top_k"), [(config(), "top_k"), (LLMAPI, "sampling_param_top_k")]
)
async def test_strict_is_greedy(model: dict[str, Any], top_k: str) -> None:
    payload = await sent(triton(seed=7, determinism="strict"), model)
    assert payload[top_k] == 1
    assert not [name for name in payload if "temperature" in name or "top_p" in name]


async def test_zero_temperature_is_greedy_without_a_temperature() -> None:
    sampling = {"temperature": 0, "top_p": 0.5, "frequency_penalty": 0.5}
    payload = await sent(triton({"sampling": sampling}, seed=7), config())
    assert payload["top_k"] == 1
    assert "temperature" not in payload
    assert "top_p" not in payload
    assert payload["frequency_penalty"] == 0.5


async def test_older_models_call_the_seed_otherwise() -> None:
    older = {("random_seed" if k == "seed" else k): v for k, v in INFLIGHT.items()}
    payload = await sent(triton(seed=7), config(inputs=older))
    assert payload["random_seed"] == 7
    assert "seed" not in payload


async def test_newer_models_count_tokens() -> None:
    newer = {
        **INFLIGHT,
        "return_num_input_tokens": "TYPE_BOOL",
        "return_num_output_tokens": "TYPE_BOOL",
    }
    payload = await sent(triton(), config(inputs=newer))
    assert payload["return_num_input_tokens"] is True
    assert payload["return_num_output_tokens"] is True


async def test_a_model_without_streaming_is_not_asked_to() -> None:
    assert (await sent(triton(), config(decoupled=False)))["stream"] is False


async def test_a_model_without_a_seed() -> None:
    model = config(without="seed")
    assert "seed" not in await sent(triton(), model)
    async with serving(model) as (adapter, _):
        with pytest.raises(AdapterError, match=r"triton 2\.51\.0 does not support seed"):
            await adapter.submit(triton(seed=7))
        answer = await (await adapter.submit(triton())).collect()
        assert answer.seed is None
        assert (await adapter.capabilities()).features["seed"].value is False


@pytest.mark.parametrize(
    ("kind", "highest"),
    [("TYPE_INT32", 2**31 - 1), ("TYPE_UINT32", 2**32 - 1), ("TYPE_UINT64", 2**63 - 1)],
)
async def test_a_drawn_seed_fits_the_input_and_is_the_one_reported(kind: str, highest: int) -> None:
    model = config(inputs={**INFLIGHT, "seed": kind})
    async with serving(model, rng=random.Random(5)) as (adapter, server):
        answers = [await (await adapter.submit(triton())).collect() for _ in range(8)]
        requests = server.requests("/v2/models/tensorrt_llm_bls/generate_stream")
    seeds = [request.json["seed"] for request in requests]
    assert seeds == [answered.seed for answered in answers]
    assert len(set(seeds)) == 8
    assert highest // 16 < max(seeds) <= highest


async def test_a_seed_that_does_not_fit_is_refused_before_it_is_sent() -> None:
    model = config(inputs={**INFLIGHT, "seed": "TYPE_INT32"})
    async with serving(model) as (adapter, server):
        with pytest.raises(AdapterError, match="does not fit TYPE_INT32"):
            await adapter.submit(triton(seed=2**31))
        assert not server.requests("/v2/models/tensorrt_llm_bls/generate_stream")


@pytest.mark.parametrize(
    ("constraint", "kind", "guide"),
    [
        ({"json_schema": {"type": "object"}}, "json_schema", '{"type": "object"}'),
        ({"regex": "[0-9]+"}, "regex", "[0-9]+"),
        ({"grammar": 'root ::= "a"'}, "ebnf_grammar", 'root ::= "a"'),
    ],
)
async def test_constraints(constraint: dict[str, Any], kind: str, guide: str) -> None:
    payload = await sent(triton({"constraint": constraint}), config())
    assert payload["guided_decoding_guide_type"] == kind
    assert payload["guided_decoding_guide"] == guide


async def test_further_extensions() -> None:
    asked = {"stop": ["A", "B"], "logprobs": 0, "lora": "17"}
    payload = await sent(triton(asked), config())
    assert payload["stop_words"] == ["A", "B"]
    assert payload["return_log_probs"] is True
    assert payload["lora_task_id"] == 17


@pytest.mark.parametrize(
    ("extensions", "model", "field"),
    [
        ({"logprobs": 3}, config(), "logprobs"),
        ({"logprobs": 0}, LLMAPI, "logprobs"),
        ({"lora": "style"}, config(), "lora"),
        ({"lora": "17"}, LLMAPI, "lora"),
        ({"lora": str(2**64)}, config(), "lora"),
        ({"constraint": {"regex": "a"}}, LLMAPI, r"constraint\.regex"),
        ({"constraint": {"choice": ["a"]}}, config(), r"constraint\.choice"),
        ({"sampling": {"min_p": 0.1}}, config(), r"sampling\.min_p"),
        ({"sampling": {"repeat_penalty": 1.1}}, LLMAPI, r"sampling\.repeat_penalty"),
        ({"messages": [{"role": "user", "content": "x"}]}, config(), "messages"),
        ({"token_ids": True}, config(), "token_ids"),
        ({"priority": 1}, config(), "priority"),
        ({"stop": ["A"]}, config(without="stop_words"), "stop"),
    ],
)
async def test_what_a_model_has_no_input_for_is_refused(
    extensions: dict[str, Any], model: dict[str, Any], field: str
) -> None:
    async with serving(model) as (adapter, server):
        with pytest.raises(AdapterError, match=rf"triton 2\.51\.0 does not support {field}") as no:
            await adapter.submit(triton(extensions))
        assert (no.value.detail, no.value.code) == ("unsupported", "INVALID_PARAMS")
        assert PROMPT not in str(no.value)
        assert not server.requests(f"/v2/models/{model['name']}/generate_stream")


FROM_INPUTS = {
    "seed": "seed",
    "logprobs": "return_log_probs",
    "lora": "lora_task_id",
    "stop": "stop_words",
    "constraint.json_schema": "guided_decoding_guide",
    "constraint.regex": "guided_decoding_guide_type",
    "constraint.grammar": "guided_decoding_guide",
}


async def features(model: Mapping[str, Any]) -> dict[str, Any]:
    async with serving(model) as (adapter, _):
        told = (await adapter.capabilities()).features
    assert all(told[name].source == "engine" for name in FROM_INPUTS)
    return {name: feature.value for name, feature in told.items()}


async def test_capabilities_are_what_the_model_has_inputs_for() -> None:
    told = await features(config())
    assert all(told[name] is True for name in (*FROM_INPUTS, "sampling"))
    assert told["constraint.choice"] is False
    assert told["determinism"] == "best_effort"
    for name, without in FROM_INPUTS.items():
        assert (await features(config(without=without)))[name] is False
    assert (await features(config(without="top_k")))["determinism"] == "none"
    plain = await features(config(inputs={name: INFLIGHT[name] for name in sorted(REQUIRED)}))
    assert not any(plain[name] for name in (*FROM_INPUTS, "sampling"))
    llmapi = await features(LLMAPI)
    assert [name for name in FROM_INPUTS if llmapi[name]] == [
        name for name in ("seed", "stop") if TritonModel.read(LLMAPI).input(name)
    ]


async def test_a_prompt_that_comes_back_is_no_part_of_the_answer() -> None:
    asked = triton()
    echoed = STREAM_HEAD + event(f"{asked.prompt}a") + event("b") + LAST_CHUNK
    model = config(without="exclude_input_in_output")
    routes = {f"POST /v2/models/{model['name']}/generate_stream": echoed}
    async with serving(model, routes=routes) as (adapter, _):
        assert (await (await adapter.submit(asked)).collect()).text == "ab"


async def test_every_connection_is_asked_to_close() -> None:
    async with serving(config()) as (adapter, server):
        await (await adapter.submit(triton())).collect()
        assert (await adapter.health()).ready
    headers = [r.headers for c in server.connections for r in c.received]
    assert headers
    assert all(given["connection"] == "close" for given in headers)


# What comes back.


async def collected(recorded: str, model: Mapping[str, Any]) -> Any:
    stream = {f"POST /v2/models/{model['name']}/generate_stream": capture(f"triton/{recorded}")}
    async with serving(model, routes=stream) as (adapter, _):
        return await (await adapter.submit(triton())).collect()


async def test_recorded_deltas() -> None:
    answer = await collected("stream_ok_tensorrt_llm_bls", config())
    assert answer.text.startswith('Hello, wörld!\n"quoted" back\\slash\n\ndata: x你好 🚀')
    assert (answer.finish_reason, answer.usage_source) == (None, "counted")


async def test_recorded_accumulated_text() -> None:
    model = config(parameters={"accumulate_tokens": "true"})
    answer = await collected("stream_accumulate", model)
    assert answer.text.startswith("Hello, wörld")
    assert len(answer.events) - 2 == answer.tokens_out


async def test_recorded_llm_api() -> None:
    answer = await collected("llmapi_stream_ok", LLMAPI)
    assert "Hello, wörld" in answer.text
    assert answer.text.count("Hello") == 1


async def test_a_200_without_an_event_is_a_failure() -> None:
    with pytest.raises(WorkerReset) as failed:
        await collected("err_wrong_name_text_ensemble", config())
    assert (failed.value.detail, failed.value.phase) == ("truncated", "first_token")


async def test_counts_of_a_newer_model() -> None:
    frames = event("ab", num_input_tokens=5, num_output_tokens=2)
    frames += event("c", num_input_tokens=5, num_output_tokens=1)
    stream = STREAM_HEAD + frames + LAST_CHUNK
    routes = {"POST /v2/models/tensorrt_llm_bls/generate_stream": stream}
    async with serving(config(), routes=routes) as (adapter, _):
        answer = await (await adapter.submit(triton())).collect()
    assert (answer.text, answer.tokens_in, answer.tokens_out) == ("abc", 5, 3)


# Cancelling.


async def stopped(model: Mapping[str, Any], *others: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """Cancel a stream; return what frees the engine, and the requests to stop."""

    async def stream(connection: Connection, request: Received) -> None:
        assert request.json["id"]
        await connection.send(STREAM_HEAD + event("a"))
        await connection.until_closed()

    routes: dict[str, Answering] = {
        f"POST /v2/models/{model['name']}/generate_stream": stream,
        "POST /v2/models/tensorrt_llm/generate": capture("triton/stop_by_id_request"),
    }
    async with serving(model, *others, routes=routes, model=model["name"]) as (adapter, server):
        asked = triton()
        opened = await adapter.submit(asked)
        kind = (await adapter.capabilities()).features["cancel"].value
        assert (await adapter.cancel(asked.task_id)).sent
        if kind in {"abort", "close+abort"}:
            await server.asked("/v2/models/tensorrt_llm/generate")
        await opened.aclose()
        await eventually(lambda: server.connections[0].is_over, "the connection closes")
    generated = server.requests(f"/v2/models/{model['name']}/generate_stream")
    stops = [request.json for request in server.requests("/v2/models/tensorrt_llm/generate")]
    for stop in stops:
        assert stop.pop("id") == generated[0].json["id"]
    return kind, stops


async def test_an_ensemble_is_stopped_through_its_step() -> None:
    inner = {"input_ids": [0], "input_lengths": 1, "request_output_len": 0, "stop": True}
    assert await stopped(ENSEMBLE, STOPPER) == ("abort", [inner])


async def test_the_llm_api_is_stopped_by_id_and_by_closing() -> None:
    assert await stopped(LLMAPI) == ("close+abort", [{"text_input": "", "stop": True}])


async def test_a_step_that_cannot_be_stopped() -> None:
    needs_more = json.loads(json.dumps(STOPPER))
    needs_more["input"].append(
        {"name": "end_id", "data_type": "TYPE_INT32", "dims": [1], "optional": False}
    )
    assert await stopped(ENSEMBLE, needs_more) == ("none", [])
    assert await stopped(ENSEMBLE, {**STOPPER, "input": STOPPER["input"][:3]}) == ("none", [])


async def test_a_bls_model_frees_nothing_unless_it_is_known_to() -> None:
    assert await stopped(config()) == ("none", [])
    async with serving(config(), bls_checks_cancel=True) as (adapter, _):
        assert (await adapter.capabilities()).features["cancel"].value == "close"


# Health, slots, embeddings.


@pytest.mark.parametrize(
    ("index", "reason", "state"),
    [
        ('[{"name":"m","version":"1","state":"LOADING"}]', "loading", "loading"),
        ('[{"name":"m","version":"1","state":"UNAVAILABLE","reason":"x"}]', "not_ready", "failed"),
        ('[{"name":"m"}]', "not_ready", "failed"),
        ('[{"name":"other","version":"1","state":"READY"}]', "not_found", "failed"),
    ],
)
async def test_a_model_that_is_not_ready(index: str, reason: str, state: str) -> None:
    routes: dict[str, Answering] = {
        "GET /v2/models/m/ready": capture("triton/explicit_loading_model_ready"),
        "POST /v2/repository/index": answer(index),
    }
    async with serving(routes=routes, model="m") as (adapter, _):
        health = await adapter.health()
    assert (health.live, health.ready, health.reason) == (True, False, reason)
    assert health.state == state


async def test_other_models_do_not_make_a_ready_one_unready() -> None:
    routes: dict[str, Answering] = {
        "GET /v2/health/ready": capture("triton/degraded_ready"),
        "GET /v2/models/m/ready": capture("triton/degraded_model_ready_ok"),
    }
    async with serving(routes=routes, model="m") as (adapter, _):
        assert (await adapter.health()).ready


async def test_connections_that_are_closed_at_once_are_a_shutdown() -> None:
    async def close(connection: Connection, request: Received) -> None:
        del request
        connection.close()

    routes: dict[str, Answering] = {"GET /v2/models/m/ready": close}
    async with serving(routes=routes, model="m") as (adapter, _):
        health = await adapter.health()
    assert (health.live, health.ready, health.state) == (True, False, "draining")


async def test_a_server_that_refuses_connections() -> None:
    async with TritonAdapter("http://127.0.0.1:9", model="m") as adapter:
        health = await adapter.health()
        assert (health.live, health.ready, health.reason) == (False, False, "connect")
        with pytest.raises(PoolUnavailable):
            await adapter.submit(triton())


async def test_slots_are_what_was_configured() -> None:
    async with serving(config()) as (adapter, _):
        assert (await adapter.props()).slots_total is None
    async with serving(config(), slots=8) as (adapter, _):
        props = await adapter.props()
        assert (props.slots_total, props.slots_free, props.source) == (8, None, "configuration")
        described = await adapter.capabilities()
        assert (described.slots_total, described.sources["slots_total"]) == (8, "configuration")
    with pytest.raises(ValueError, match="slots"):
        TritonAdapter("http://engine", slots=0)


def embedder(dims: list[int], batch: int, kind: str = "TYPE_FP32") -> dict[str, Any]:
    """Return the configuration of a model that turns texts into vectors."""
    return {
        "name": "embedder",
        "max_batch_size": batch,
        "input": [{"name": "TEXT", "data_type": "TYPE_STRING", "dims": dims}],
        "output": [{"name": "EMBEDDING", "data_type": kind, "dims": [2]}],
    }


TENSORS = EmbeddingTensors("TEXT", "EMBEDDING")
VECTORS = '{"outputs":[{"name":"EMBEDDING","datatype":"FP32","shape":[2,2],"data":[1,2.5,3,4]}]}'


@pytest.mark.parametrize(
    ("dims", "batch", "shape"),
    [([1], 8, [2, 1]), ([-1], 8, [2, 1]), ([-1], 0, [2]), ([-1, 1], 0, [2, 1])],
)
async def test_embeddings(dims: list[int], batch: int, shape: list[int]) -> None:
    routes: dict[str, Answering] = {"POST /v2/models/embedder/infer": answer(VECTORS)}
    model = embedder(dims, batch)
    async with serving(model, routes=routes, embedding=TENSORS) as (adapter, server):
        asked = triton(workload="embedding", prompt=..., inputs=("a", "é"))
        assert await adapter.embed(asked) == [[1, 2.5], [3, 4]]
        [request] = server.requests("/v2/models/embedder/infer")
        assert (await adapter.capabilities()).supported_workloads == ("embedding",)
    assert request.json == {
        "inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": shape, "data": ["a", "é"]}],
        "outputs": [{"name": "EMBEDDING"}],
    }


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (embedder([1], 0), "one text at a time"),
        (embedder([1], 8, "TYPE_FP16"), "no such output"),
        ({**embedder([1], 8), "input": []}, "no such input"),
    ],
)
async def test_embeddings_that_a_model_cannot_give(model: dict[str, Any], why: str) -> None:
    async with serving(model, embedding=TENSORS) as (adapter, _):
        with pytest.raises(AdapterError, match=why):
            await adapter.embed(triton(workload="embedding", prompt=..., inputs=("a", "b")))


@pytest.mark.parametrize(
    "said",
    [
        '{"outputs":[]}',
        '{"outputs":[{"name":"EMBEDDING","shape":[3],"data":[1,2,3]}]}',
        '{"outputs":[{"name":"EMBEDDING","shape":[2,1],"data":["1","2"]}]}',
        '{"outputs":[{"name":"EMBEDDING","shape":[2,3,1],"data":[1,2,3,4,5,6]}]}',
        '{"outputs":[{"name":"EMBEDDING","shape":[0],"data":[]}]}',
    ],
)
async def test_vectors_of_another_shape(said: str) -> None:
    routes: dict[str, Answering] = {"POST /v2/models/embedder/infer": answer(said)}
    async with serving(embedder([1], 8), routes=routes, embedding=TENSORS) as (adapter, _):
        with pytest.raises(AdapterError) as failed:
            await adapter.embed(triton(workload="embedding", prompt=..., inputs=("a", "b")))
    assert failed.value.detail == "bad_json"


@pytest.mark.parametrize("workload", ["embedding", "rerank"])
async def test_workloads_that_are_not_configured(workload: str) -> None:
    async with serving(config()) as (adapter, _):
        with pytest.raises(AdapterError, match=f"workload {workload}") as refused:
            await adapter.submit(triton(workload=workload, inputs=("a",)))
    assert refused.value.detail == "unsupported"


# A machine that cannot run the real server.


@pytest.mark.parametrize(("required", "outcome"), [("1", "Failed"), ("", "Skipped")])
def test_a_missing_server_fails_where_it_is_required(
    monkeypatch: pytest.MonkeyPatch, required: str, outcome: str
) -> None:
    monkeypatch.setenv("REQUIRE_TRITON", required)
    monkeypatch.setattr(support, "why_unavailable", lambda **_: "no such machine")
    with pytest.raises(BaseException, match="no such machine") as caught:
        support.ensure_installed()
    assert caught.type.__name__ == outcome


INFLIGHT_MODELS = ("tensorrt_llm_bls", "tensorrt_llm_bls_accum")


@pytest.mark.parametrize(
    ("model", "pieces"),
    [
        *((model, ("a", "b", "STOP", "c")) for model in (*INFLIGHT_MODELS, "tensorrt_llm")),
        *((model, ("a", "bST", "OP", "c")) for model in INFLIGHT_MODELS),
    ],
)
async def test_a_stop_text_is_no_part_of_the_answer(model: str, pieces: tuple[str, ...]) -> None:
    asked = triton({"stop": ["STOP"]}, ctx=16, max_tokens=8)
    with TritonEngine(models=(model,), pieces=pieces) as server:
        async with TritonAdapter(server.url, model=model) as adapter:
            answer = await (await adapter.submit(asked)).collect()
    assert answer.text == "ab"
