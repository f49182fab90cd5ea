"""TGI, from its documents and source: what it is sent by version, what its frames come to."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import CAPTURES
from tests.transports import both_transports
from tests.unit.engines.played import capture, engine
from tests.unit.engines.tasking import HELLO, dispatch, task
from tests.unit.tasks import PROMPT
from tests.unit.wire import LAST_CHUNK, STREAM_HEAD, Connection, Received, Server, answer, chunk
from worker_adapters import AdapterError, SamplerProfile, WorkerError
from worker_adapters.engines._http import Unsupported
from worker_adapters.engines.tgi import RULES, TgiAdapter
from worker_adapters.testing.engines import TgiEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from tests.unit.engines.played import Answering
    from worker_adapters import TaskRequest

pytestmark = both_transports

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
STREAM = "POST /generate_stream"

# The documented answer of 3.x; older ones have max_input_length and further limits.
INFO: dict[str, Any] = {
    "model_id": "bigscience/bloom-560m",
    "model_sha": "e985a63cdc139290c5f700ff1929f0b5942cced2",
    "model_pipeline_tag": "text-generation",
    "max_concurrent_requests": 128,
    "max_best_of": 2,
    "max_stop_sequences": 4,
    "max_input_tokens": 1024,
    "max_total_tokens": 2048,
    "validation_workers": 2,
    "max_client_batch_size": 32,
    "router": "text-generation-router",
    "version": "3.3.7",
    "sha": "24ab9e5d6b1c4e3f8a7d",
    "docker_label": None,
}
UNHEALTHY = answer(
    '{"error":"unhealthy","error_type":"healthcheck"}', status="503 Service Unavailable"
)


def token(index: int, text: str, *, special: bool = False, **more: Any) -> dict[str, Any]:
    """Return one `StreamResponse`, as lib.rs has it."""
    said = {"id": 100 + index, "text": text, "logprob": -0.5, "special": special}
    return {"index": index, "token": said, "generated_text": None, "details": None, **more}


def stream(frames: Iterable[Mapping[str, Any]], prefix: str = "data: ") -> bytes:
    """Return a whole response of one chunk per frame, keep-alives between them."""
    said = b"".join(
        chunk(f"{prefix}{json.dumps(frame)}\n\n".encode()) + chunk(b":\n\n") for frame in frames
    )
    return STREAM_HEAD + said + LAST_CHUNK


LAST: dict[str, Any] = {
    "generated_text": "hello there",
    "details": {
        "finish_reason": "eos_token",
        "generated_tokens": 3,
        "seed": 7,
        "input_length": 2,
    },
}
FRAMES = [token(1, "hello"), token(2, " there"), token(3, "</s>", special=True, **LAST)]


@asynccontextmanager
async def serving(
    routes: Mapping[str, Answering] | None = None, /, *, lora: Iterable[str] = (), **info: Any
) -> AsyncIterator[tuple[TgiAdapter, Server]]:
    """Run an adapter against a server of 3.3.7, with changes to its routes and its account."""
    base: dict[str, Answering] = {
        "GET /info": answer(json.dumps({**INFO, **info})),
        "GET /health": answer(""),
        STREAM: stream(FRAMES),
    }
    async with (
        engine({**base, **(routes or {})}) as server,
        TgiAdapter(server.url, lora_adapters=lora) as adapter,
    ):
        yield adapter, server


def tgi(extensions: Mapping[str, Any] | None = None, **changes: Any) -> TaskRequest:
    return task("tgi", extensions, **changes)


@pytest.fixture
async def adapter() -> AsyncIterator[TgiAdapter]:
    async with TgiAdapter("http://engine", lora_adapters=["style"]) as made:
        yield made


def sent(
    adapter: TgiAdapter,
    asked: TaskRequest,
    *,
    version: str = "3.3.7",
    profile: SamplerProfile | None = None,
    **details: Any,
) -> dict[str, Any]:
    """Return the parameters of a generation, or the payload of a conversation."""
    path, payload = adapter._completion(
        dispatch(asked, version=version, profile=profile, details=details)
    )
    if path == "/v1/chat/completions":
        return dict(payload)
    assert path == "/generate_stream"
    assert payload["inputs"] == PROMPT
    parameters: dict[str, Any] = payload["parameters"]
    return parameters


# What it is sent.


async def test_a_plain_task(adapter: TgiAdapter) -> None:
    assert sent(adapter, tgi(max_tokens=5)) == {
        "max_new_tokens": 5,
        "seed": 7,
        "details": True,
        "return_full_text": False,
        "stop": [],
    }


DRAWN: list[tuple[dict[str, Any], dict[str, Any]]] = [
    # Greedy: a temperature of 0 is refused, and any of the others would make it draw.
    ({"temperature": 0}, {"do_sample": False}),
    ({"temperature": 0, "top_k": 5, "top_p": 0.5}, {"do_sample": False}),
    # What stands for no effect is refused as well.
    ({"temperature": 1, "top_k": 0, "top_p": 1}, {"temperature": 1, "do_sample": True}),
    ({"top_p": 1, "top_k": 0}, {}),
    ({"top_p": 0.5}, {"top_p": 0.5, "do_sample": True}),
    ({"top_k": 5}, {"top_k": 5, "do_sample": True}),
    ({"temperature": 0.7}, {"temperature": 0.7, "do_sample": True}),
    ({"presence_penalty": 0, "min_p": 0}, {}),
    (
        {"repeat_penalty": 1.1, "frequency_penalty": 0.5},
        {"repetition_penalty": 1.1, "frequency_penalty": 0.5},
    ),
]


@pytest.mark.parametrize(("sampling", "expected"), DRAWN)
async def test_sampling(
    adapter: TgiAdapter, sampling: dict[str, Any], expected: dict[str, Any]
) -> None:
    plain = sent(adapter, tgi())
    assert sent(adapter, tgi({"sampling": sampling})) == plain | expected


async def test_strict_is_greedy_unless_the_profile_says_otherwise(adapter: TgiAdapter) -> None:
    strict = tgi(determinism="strict")
    assert sent(adapter, strict)["do_sample"] is False
    drawing = SamplerProfile(name="a", version="a-1", temperature=0.5, stop=("END",))
    parameters = sent(adapter, strict, profile=drawing)
    assert (parameters["temperature"], parameters["do_sample"]) == (0.5, True)
    assert parameters["stop"] == ["END"]


async def test_a_conversation_at_temperature_0_is_greedy(adapter: TgiAdapter) -> None:
    sampling = {"temperature": 0, "top_p": 0.5, "top_k": 5}
    payload = sent(adapter, tgi({"messages": [HELLO], "sampling": sampling}))
    assert payload["temperature"] == 0
    assert not {"top_p", "top_k"} & payload.keys()
    sampling["temperature"] = 0.5
    with pytest.raises(Unsupported, match="top_k"):
        sent(adapter, tgi({"messages": [HELLO], "sampling": sampling}))
    strict = tgi({"messages": [HELLO], "sampling": {"top_p": 0.5}}, determinism="strict")
    assert "top_p" not in sent(adapter, strict)


async def test_extensions(adapter: TgiAdapter) -> None:
    asked = tgi({"stop": ["\n"], "logprobs": 2, "token_ids": True, "lora": "style"})
    parameters = sent(adapter, asked)
    assert parameters["stop"] == ["\n"]
    assert (parameters["top_n_tokens"], parameters["adapter_id"]) == (2, "style")
    # The token's own log probability comes without being asked for.
    assert "top_n_tokens" not in sent(adapter, tgi({"logprobs": 0}), version="1.0.0")


CONSTRAINTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"json_schema": SCHEMA}, {"type": "json", "value": SCHEMA}),
    ({"regex": "[a-z]+"}, {"type": "regex", "value": "[a-z]+"}),
    ({"choice": ["yes", "no."]}, {"type": "regex", "value": "(yes|no\\.)"}),
]


@pytest.mark.parametrize(("constraint", "grammar"), CONSTRAINTS)
async def test_constraints(
    adapter: TgiAdapter, constraint: dict[str, Any], grammar: dict[str, Any]
) -> None:
    assert sent(adapter, tgi({"constraint": constraint}))["grammar"] == grammar
    chat = sent(adapter, tgi({"constraint": constraint, "messages": [HELLO]}))
    assert chat["response_format"] == grammar


async def test_a_conversation(adapter: TgiAdapter) -> None:
    asked = tgi({"messages": [HELLO], "sampling": {"temperature": 0, "top_p": 1}, "logprobs": 0})
    assert sent(adapter, asked) == {
        # Any other name would be taken for a LoRA adapter's.
        "model": "tgi",
        "messages": [HELLO],
        "max_tokens": 16,
        "seed": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
        "stop": [],
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 0,
    }
    assert sent(adapter, tgi({"messages": [HELLO], "lora": "style"}))["model"] == "style"
    image = {"role": "user", "content": [{"type": "image", "url": "https://a/b.png"}]}
    [message] = sent(adapter, tgi({"messages": [image]}), images=True)["messages"]
    assert message["content"][0]["type"] == "image_url"


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"lora": "other"}, "3.3.7", "lora"),
    ({"lora": "style"}, "2.0.4", "lora"),
    ({"constraint": {"regex": "a"}}, "1.4.0", "constraint"),
    ({"constraint": {"regex": "a"}}, "dev", "constraint"),
    ({"logprobs": 1}, "1.0.0", "logprobs"),
    ({"sampling": {"frequency_penalty": 1}}, "1.1.0", "sampling.frequency_penalty"),
    ({"sampling": {"presence_penalty": 1}}, "3.3.7", "sampling.presence_penalty"),
    ({"sampling": {"min_p": 0.1}}, "3.3.7", "sampling.min_p"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "3.3.7", "stop"),
    ({"messages": [HELLO]}, "2.4.0", "messages"),
    ({"messages": [HELLO], "token_ids": True}, "3.3.7", "token_ids"),
    ({"messages": [HELLO], "sampling": {"top_k": 1}}, "3.3.7", "sampling.top_k"),
    ({"messages": [HELLO], "sampling": {"repeat_penalty": 2}}, "3.3.7", "sampling.repeat_penalty"),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "url": "https://host/a.png"}]}
            ]
        },
        "3.3.7",
        "messages.image",
    ),
]


@pytest.mark.parametrize(("extensions", "version", "field"), REFUSED)
async def test_what_the_server_would_ignore_is_refused(
    adapter: TgiAdapter, extensions: dict[str, Any], version: str, field: str
) -> None:
    with pytest.raises(Unsupported) as refusal:
        sent(adapter, tgi(extensions), version=version)
    assert refusal.value.field == field


@pytest.mark.parametrize(
    "extensions",
    [{"priority": 1}, {"constraint": {"grammar": "a"}}, {"data_parallel_rank": 0}],
)
async def test_what_it_has_not_at_all(extensions: dict[str, Any]) -> None:
    async with serving() as (adapter, server):
        with pytest.raises(
            AdapterError, match=r"tgi 3\.3\.7\+24ab9e5d does not support"
        ) as refusal:
            await adapter.submit(tgi(extensions))
        assert not server.requests("/generate_stream")
    assert (refusal.value.code, refusal.value.detail) == ("INVALID_PARAMS", "unsupported")


@pytest.mark.parametrize("workload", ["embedding", "rerank"])
async def test_it_generates_text_only(workload: str) -> None:
    async with serving() as (adapter, _):
        with pytest.raises(AdapterError, match=f"workload {workload}") as refusal:
            await adapter.submit(tgi(workload=workload, inputs=["a"]))
    assert (refusal.value.code, refusal.value.detail) == ("INVALID_PARAMS", "unsupported")


async def test_as_many_stop_texts_as_the_server_takes() -> None:
    words = ["a", "b", "c", "d", "e"]
    async with serving(max_stop_sequences=5) as (adapter, server):
        await (await adapter.submit(tgi({"stop": words}))).collect()
        [request] = server.requests("/generate_stream")
    assert request.json["parameters"]["stop"] == words


# What the server says of itself.


async def test_identity() -> None:
    async with serving() as (adapter, _):
        identity = await adapter.identity()
    assert identity.engine_version == "3.3.7+24ab9e5d"
    assert (identity.model, identity.model_path) == ("bigscience/bloom-560m", None)
    assert identity.model_meta == {"revision": INFO["model_sha"]}
    assert identity.ctx_max == 2048
    assert identity.details == {"slots": 128, "stop": 4, "max_input": 1024, "images": False}


async def test_identity_of_0_9() -> None:
    old = {
        "model_id": "/data/bloom",
        "model_sha": None,
        "max_concurrent_requests": 2,
        "max_input_length": 100,
        "max_total_tokens": 200,
        "version": "0.9.4",
        "sha": None,
    }
    async with serving({"GET /info": answer(json.dumps(old))}) as (adapter, _):
        identity = await adapter.identity()
    assert (identity.engine_version, identity.model_path) == ("0.9.4", "/data/bloom")
    assert (identity.ctx_max, identity.model_meta) == (200, None)
    assert identity.details == {"slots": 2, "max_input": 100, "images": False}


async def test_slots() -> None:
    metrics = answer(
        "# TYPE tgi_queue_size gauge\ntgi_queue_size 3\ntgi_batch_current_size 5\n",
        kind="text/plain",
    )
    async with serving({"GET /metrics": metrics}) as (adapter, _):
        props = await adapter.props()
    assert (props.slots_total, props.slots_free, props.source) == (128, 120, "info+metrics")
    # Before its first request the server has no such gauge.
    async with serving({"GET /metrics": answer("", kind="text/plain")}) as (adapter, _):
        props = await adapter.props()
    assert (props.slots_total, props.slots_free, props.source) == (128, None, "info")
    async with serving() as (adapter, _):
        assert (await adapter.props()).slots_free is None


async def test_health() -> None:
    async with serving() as (adapter, _):
        assert (await adapter.health()).ready
    async with serving({"GET /health": UNHEALTHY}) as (adapter, _):
        health = await adapter.health()
    assert (health.live, health.ready, health.reason) == (True, False, "not_ready")
    assert health.state == "failed"


async def test_capabilities_follow_the_version() -> None:
    async with serving(lora=["style"]) as (adapter, _):
        capabilities = await adapter.capabilities()
    value = {name: feature.value for name, feature in capabilities.features.items()}
    assert capabilities.supported_workloads == ("completion",)
    assert (capabilities.ctx_max, capabilities.slots_total) == (2048, 128)
    assert (value["cancel"], value["determinism"]) == ("close", "best_effort")
    assert (value["chat"], value["tools"], value["constraint.json_schema"]) == (True, False, True)
    assert (value["constraint.grammar"], value["embeddings"], value["metrics"]) == (
        False,
        False,
        True,
    )
    assert (value["lora"], capabilities.features["lora"].source) == (True, "configuration")
    async with serving(version="1.4.0") as (adapter, _):
        value = {
            name: feature.value for name, feature in (await adapter.capabilities()).features.items()
        }
    assert (value["chat"], value["constraint.json_schema"], value["lora"]) == (False, False, False)


# What its frames come to.


@pytest.mark.parametrize("prefix", ["data: ", "data:"])
async def test_a_stream(prefix: str) -> None:
    """With the space since 2.1.0, without it before."""
    async with serving({STREAM: stream(FRAMES, prefix)}) as (adapter, _):
        answered = await (await adapter.submit(tgi(seed=7))).collect()
    assert answered.text == "hello there"
    assert (answered.tokens_in, answered.tokens_out) == (2, 3)
    assert (answered.finish_reason, answered.usage_source) == ("stop", "engine")
    assert (answered.seed, answered.engine_version) == (7, "3.3.7+24ab9e5d")


async def test_a_stream_of_0_9_with_ids_and_log_probabilities() -> None:
    """No ``index``, no ``top_tokens``, no ``input_length``."""
    said = {**LAST, "details": {"finish_reason": "length", "generated_tokens": 2, "seed": None}}
    frames = [token(1, "hello"), token(2, " there", **said)]
    for frame in frames:
        del frame["index"]
    async with serving({STREAM: stream(frames, "data:")}, version="0.9.4") as (adapter, _):
        asked = tgi({"logprobs": 0, "token_ids": True})
        answered = await (await adapter.submit(asked)).collect()
    ids = [at for event in answered.events for at in event.token_ids or ()]
    logprobs = [entry["logprob"] for event in answered.events for entry in event.logprobs or ()]
    assert (ids, logprobs) == ([101, 102], [-0.5, -0.5])
    assert (answered.finish_reason, answered.tokens_in, answered.tokens_out) == ("length", None, 2)


async def test_rivals_of_a_token() -> None:
    rivals = [
        {"id": 101, "text": "hello", "logprob": -0.5, "special": False},
        {"id": 9, "text": "bye", "logprob": -1.5, "special": False},
    ]
    frames = [token(1, "hello", top_tokens=rivals, **LAST)]
    async with serving({STREAM: stream(frames)}) as (adapter, _):
        answered = await (await adapter.submit(tgi({"logprobs": 2}))).collect()
    [entry] = [entry for event in answered.events for entry in event.logprobs or ()]
    assert [top["token"] for top in entry["top"]] == ["hello", "bye"]


async def test_a_body_that_ends_without_the_last_frame() -> None:
    async with serving({STREAM: stream(FRAMES[:2])}) as (adapter, _):
        with pytest.raises(WorkerError) as lost:
            await (await adapter.submit(tgi())).collect()
    assert (lost.value.code, lost.value.detail) == ("WORKER_RESET", "truncated")
    assert (lost.value.tokens_emitted, lost.value.retriable) == (2, True)


async def test_a_conversation_s_stream() -> None:
    """As chat.rs writes it: a role in every chunk, usage in one of its own, then the marker."""

    def chunked(**more: Any) -> bytes:
        fields = {"object": "chat.completion.chunk", "id": "", "model": "m", **more}
        return chunk(b"data: " + json.dumps(fields).encode() + b"\n\n")

    def delta(text: str, reason: str | None = None) -> bytes:
        said = {"role": "assistant", "content": text}
        choice = {"index": 0, "delta": said, "logprobs": None, "finish_reason": reason}
        return chunked(choices=[choice], usage=None)

    usage = {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
    body = (
        STREAM_HEAD
        + delta("hello")
        + delta(" there")
        + delta("", "stop")
        + chunked(choices=[], usage=usage)
        + chunk(b"data: [DONE]\n\n")
        + LAST_CHUNK
    )
    async with serving({"POST /v1/chat/completions": body}) as (adapter, _):
        answered = await (await adapter.submit(tgi({"messages": [HELLO]}))).collect()
    assert (answered.text, answered.finish_reason) == ("hello there", "stop")
    assert (answered.tokens_in, answered.tokens_out) == (4, 3)
    assert answered.events[0].engine == "tgi"


async def test_cancelling_closes_the_connection() -> None:
    async def endless(connection: Connection, _: Received) -> None:
        await connection.send(STREAM_HEAD + chunk(b'data: {"token":{"id":1,"text":"a"}}\n\n'))
        await connection.until_closed()

    async with serving({STREAM: endless}) as (adapter, server):
        asked = tgi()
        running = await adapter.submit(asked)
        assert (await anext(running)).kind == "started"
        receipt = await adapter.cancel(asked.task_id)
        assert (receipt.method, receipt.confirmed) == ("close", None)
        await server.connections[-1].over()


# Errors. None is recorded: types and words are those of infer/mod.rs and validation.rs.


@dataclass(frozen=True)
class Outcome:
    """What a caller is told."""

    kind: str
    code: str
    detail: str
    retriable: bool = False
    processed: str = "no"


INVALID = Outcome("Adapter", "INVALID_PARAMS", "invalid_request")
OVERFLOW = Outcome("Adapter", "INVALID_PARAMS", "context_overflow")
UNSUPPORTED = Outcome("Adapter", "INVALID_PARAMS", "unsupported")
OVERLOADED = Outcome("PoolUnavailable", "ADMISSION_REJECT", "rate_limited", retriable=True)
RESET = Outcome("WorkerReset", "WORKER_RESET", "engine_error", True, "unknown")

VALIDATION: list[tuple[str, Outcome]] = [
    ("`best_of` must be > 0 and <= 2. Given: 3", INVALID),
    ("`top_n_tokens` must be >= 0 and <= 5. Given: 9", INVALID),
    ("`temperature` must be strictly positive", INVALID),
    ("`top_p` must be > 0.0 and < 1.0", INVALID),
    ("`top_k` must be strictly positive", INVALID),
    ("`inputs` cannot be empty", INVALID),
    ("`stop` supports up to 4 stop sequences. Given: 5", INVALID),
    ("tokenizer error x", INVALID),
    ("grammar is not valid: Grammar must have a 'properties' field", INVALID),
    ("cannot compile regex from schema: x", INVALID),
    ("grammar is not supported", UNSUPPORTED),
    ("audio modality is not supported", UNSUPPORTED),
    (
        "`inputs` tokens + `max_new_tokens` must be <= 9. Given: 9 `inputs` tokens and 1 ...",
        OVERFLOW,
    ),
    ("`inputs` must have less than 1024 tokens. Given: 2000", OVERFLOW),
]

ERRORS: list[tuple[str, str, int, Outcome]] = [
    *(
        ("validation", f"Input validation error: {words}", 422, expected)
        for words, expected in VALIDATION
    ),
    ("overloaded", "Model is overloaded", 429, OVERLOADED),
    ("generation", "Request failed during generation: CUDA out of memory", 424, RESET),
    ("incomplete_generation", "Incomplete generation", 500, RESET),
    ("incomplete_generation_stream", "Incomplete generation stream", 500, RESET),
    ("stream_serialization_error", "Stream event serialization error", 500, RESET),
    ("template_error", "Template error: template not found", 422, INVALID),
    ("missing_template_variable", "Missing template vatiable: a", 422, INVALID),
    ("tool_error", "Tool error: a", 422, INVALID),
]


async def told(asked: TaskRequest, routes: Mapping[str, Answering]) -> Outcome:
    async with serving(routes) as (adapter, _):
        with pytest.raises(WorkerError) as caught:
            await (await adapter.submit(asked)).collect()
    error = caught.value
    assert error.engine == "tgi"
    return Outcome(error.kind, error.code, error.detail, error.retriable, error.processed)


@pytest.mark.parametrize(("kind", "words", "status", "expected"), ERRORS)
async def test_an_error_is_the_same_inside_a_200_and_with_its_status(
    kind: str, words: str, status: int, expected: Outcome
) -> None:
    body = {"error": words, "error_type": kind}
    assert await told(tgi(), {STREAM: stream([body])}) == expected
    with_status = answer(json.dumps(body), status=f"{status} X")
    assert await told(tgi(), {STREAM: with_status}) == expected
    # The chat route has the words alone inside a 200, and always says 422.
    chat = {"error": {"message": words, "http_status_code": 422}}
    route = {"POST /v1/chat/completions": stream([chat])}
    assert await told(tgi({"messages": [HELLO]}), route) == expected


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        ("400 Bad Request", "Failed to parse the request body as JSON", INVALID),
        ("415 Unsupported Media Type", "Expected request with `Content-Type`", INVALID),
        ("422 Unprocessable Entity", "Failed to deserialize the JSON body: missing field", INVALID),
        ("401 Unauthorized", "", Outcome("Adapter", "INVALID_PARAMS", "unauthorized")),
        ("424 Failed Dependency", "", RESET),
    ],
)
async def test_errors_in_plain_text(status: str, body: str, expected: Outcome) -> None:
    refused = answer(body, status=status, kind="text/plain; charset=utf-8")
    assert await told(tgi(), {STREAM: refused}) == expected


async def test_an_error_in_the_middle_of_a_stream() -> None:
    failed = {"error": "Request failed during generation: x", "error_type": "generation"}
    async with serving({STREAM: stream([*FRAMES[:2], failed])}) as (adapter, _):
        events = [event async for event in await adapter.submit(tgi())]
    assert [event.kind for event in events] == ["started", "token", "token", "error"]
    error = events[-1].error
    assert isinstance(error, WorkerError)
    assert (error.code, error.processed, error.tokens_emitted) == ("WORKER_RESET", "yes", 2)


# The documented frames, byte for byte: tests/captures/tgi.

WRITTEN: list[tuple[str, str]] = [
    (path.stem, "messages" if "-v1-chat" in path.stem else "prompt")
    for path in sorted((CAPTURES / "tgi").glob("*.http"))
    if ("-stream-" in path.stem or "-v1-chat" in path.stem) and "error" not in path.stem
]
REFUSALS: dict[str, Outcome] = {
    "tgi204-err-validation": INVALID,
    "tgi337-err-bad-json": INVALID,
    "tgi337-err-generation-first": RESET,
    "tgi337-err-generation-mid": Outcome(
        "WorkerReset", "WORKER_RESET", "engine_error", True, "yes"
    ),
    "tgi337-err-incomplete-mid": Outcome(
        "WorkerReset", "WORKER_RESET", "engine_error", True, "yes"
    ),
    "tgi337-err-missing-inputs": INVALID,
    "tgi337-err-overloaded": OVERLOADED,
    "tgi337-err-unauthorized": Outcome("Adapter", "INVALID_PARAMS", "unauthorized"),
    "tgi337-err-validation": INVALID,
    "tgi337-generate-generation": RESET,
    "tgi337-generate-incomplete": RESET,
    "tgi337-generate-overloaded": OVERLOADED,
    "tgi337-generate-validation": INVALID,
    "tgi337-no-last-frame": Outcome("WorkerReset", "WORKER_RESET", "truncated", True, "yes"),
    "tgi337-truncated": Outcome("WorkerReset", "WORKER_RESET", "truncated", True, "yes"),
}


def of_version(name: str) -> Answering:
    return capture("tgi/tgi204-info" if name.startswith("tgi204") else "tgi/tgi337-info")


@pytest.mark.parametrize(("name", "kind"), WRITTEN)
async def test_documented_streams(name: str, kind: str) -> None:
    route = "POST /v1/chat/completions" if kind == "messages" else STREAM
    asked = tgi({"messages": [HELLO]}) if kind == "messages" else tgi()
    routes: dict[str, Answering] = {
        route: capture(f"tgi/{name}"),
        "GET /info": of_version("tgi337" if kind == "messages" else name),
    }
    async with serving(routes) as (adapter, _):
        answered = await (await adapter.submit(asked)).collect()
    lines = (CAPTURES / "tgi" / f"{name}.events.jsonl").read_text("utf-8").splitlines()
    expected = [json.loads(line) for line in lines]
    tokens = [row["data"]["t"] for row in expected if row["kind"] == "token"]
    assert [event.t for event in answered.events if event.kind == "token"] == tokens
    end = expected[-1]["data"]
    assert answered.finish_reason == end["finish_reason"]
    assert (answered.tokens_in, answered.tokens_out) == (end.get("tokens_in"), end["tokens_out"])


@pytest.mark.parametrize("name", REFUSALS)
async def test_documented_refusals(name: str) -> None:
    async def written(connection: Connection, _: Received) -> None:
        await connection.send(capture(f"tgi/{name}"))
        connection.close()

    assert await told(tgi(), {STREAM: written, "GET /info": of_version(name)}) == REFUSALS[name]


async def test_a_documented_refusal_of_a_conversation() -> None:
    routes: dict[str, Answering] = {
        "POST /v1/chat/completions": capture("tgi/tgi337-v1-chat-error"),
        "GET /info": of_version("tgi337"),
    }
    assert await told(tgi({"messages": [HELLO]}), routes) == OVERLOADED


async def test_documented_accounts() -> None:
    async with serving({"GET /info": capture("tgi/tgi204-info")}) as (adapter, _):
        identity = await adapter.identity()
    assert (identity.engine_version, identity.ctx_max) == ("2.0.4+a3b5e7f", 2048)
    assert identity.details == {"slots": 128, "stop": 4, "max_input": 1024, "images": False}
    async with serving({"GET /health": capture("tgi/tgi337-health-unhealthy")}) as (adapter, _):
        assert (await adapter.health()).reason == "not_ready"


def test_every_rule_is_used() -> None:
    kinds = {kind for kind, _, _, _ in ERRORS} | {"healthcheck"}
    words = [said for _, said, _, _ in ERRORS]
    for rule in RULES:
        if "type" in rule:
            assert rule["type"] in kinds, rule
        if "message" in rule:
            assert any(rule["message"] in said for said in words), rule


@pytest.mark.parametrize("pieces", [("a", "b", "STOP", "c"), ("a", "bST", "OP", "c")])
@pytest.mark.parametrize("route", [{}, {"messages": [HELLO]}])
async def test_a_stop_text_is_no_part_of_the_answer(
    route: dict[str, Any], pieces: tuple[str, ...]
) -> None:
    asked = tgi({"stop": ["STOP"], **route}, ctx=16, max_tokens=8)
    with TgiEngine(pieces=pieces) as engine:
        async with TgiAdapter(engine.url) as adapter:
            answer = await (await adapter.submit(asked)).collect()
    assert (answer.text, answer.finish_reason) == ("ab", "stop")
    assert answer.events[-1].finish_reason_raw == "stop_sequence"
    assert answer.tokens_out == 3
