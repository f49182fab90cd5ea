"""The llama.cpp adapter: what it asks, and what it makes of the answers."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.transports import both_transports, on_httpx
from tests.unit.tasks import PROMPT, adapter, task
from tests.unit.virtual_time import run as run_virtually
from tests.unit.wire import (
    LAST_CHUNK,
    PROPS,
    STREAM_HEAD,
    answer,
    final,
    frame,
    playing,
)
from worker_adapters import (
    AdapterError,
    LlamaCppAdapter,
    PoolUnavailable,
    SamplerProfile,
    Timeouts,
    WorkerReset,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from tests.unit.wire import Connection, Server
    from worker_adapters import TokenStream

pytestmark = both_transports

PROFILE = SamplerProfile(
    name="creative",
    version="c-1",
    temperature=0.9,
    top_k=50,
    top_p=0.9,
    min_p=0.1,
    repeat_penalty=1.1,
    presence_penalty=0.1,
    frequency_penalty=0.2,
    stop=("END",),
)
NOT_FOUND = '{"error":{"message":"File Not Found","type":"not_found_error","code":404}}'


@asynccontextmanager
async def answering(
    routes: Mapping[str, bytes], **options: Any
) -> AsyncIterator[tuple[LlamaCppAdapter, Server]]:
    """An adapter and a server that answers these paths, and 404 elsewhere."""

    async def script(connection: Connection) -> None:
        while True:
            request = await connection.request()
            await connection.send(routes.get(request.path, answer(NOT_FOUND, "404 Not Found")))

    async with playing(script) as server, adapter(server.url, **options) as made:
        yield made, server


@pytest.fixture
def recorded_answer(captures: Path) -> Any:
    """Return a recorded answer by name."""

    def load(name: str) -> bytes:
        return (captures / "llamacpp" / f"{name}.http").read_bytes()

    return load


async def payload(**changes: Any) -> dict[str, Any]:
    """Return what is sent for a completion."""
    routes = {"/completion": STREAM_HEAD + final(0) + LAST_CHUNK}
    async with answering(routes, sampler_profiles=[PROFILE]) as (made, server):
        await (await made.submit(task(**changes))).collect()
    [request] = server.requests("/completion")
    assert request.method == "POST"
    sent: dict[str, Any] = request.json
    return sent


# Completions.


async def test_a_plain_completion() -> None:
    assert await payload(seed=7) == {
        "prompt": PROMPT,
        "stream": True,
        "n_predict": 16,
        "seed": 7,
    }


async def test_text_is_sent_as_it_is() -> None:
    text = 'é 🙂 中 \u2028 \0 " \\ \r\n'
    assert (await payload(prompt=text))["prompt"] == text


@pytest.mark.parametrize(("hint", "cached"), [("reuse", True), ("cold", False)])
async def test_the_kv_hint_is_about_the_prompt_cache(hint: str, cached: bool) -> None:
    assert (await payload(kv_hint=hint))["cache_prompt"] is cached


async def test_a_profile_sets_its_parameters() -> None:
    sent = await payload(sampler_profile_version="c-1", seed=7)
    assert sent == {
        "prompt": PROMPT,
        "stream": True,
        "n_predict": 16,
        "seed": 7,
        "temperature": 0.9,
        "top_k": 50,
        "top_p": 0.9,
        "min_p": 0.1,
        "repeat_penalty": 1.1,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "stop": ["END"],
    }


async def test_strict_is_greedy_without_the_cache() -> None:
    sent = await payload(determinism="strict", kv_hint="reuse")
    assert (sent["temperature"], sent["cache_prompt"]) == (0.0, False)
    assert isinstance(sent["seed"], int)


async def test_strict_leaves_a_profile_s_temperature() -> None:
    sent = await payload(determinism="strict", sampler_profile_version="c-1")
    assert (sent["temperature"], sent["cache_prompt"]) == (0.9, False)


async def test_best_effort_sets_nothing() -> None:
    assert (await payload(determinism="best_effort", seed=7)).keys() == {
        "prompt",
        "stream",
        "n_predict",
        "seed",
    }


async def test_every_seed_the_engine_can_take() -> None:
    for seed in (0, 2**32 - 2):
        assert (await payload(seed=seed))["seed"] == seed


# Health, slots, identity.


@pytest.mark.parametrize(
    ("capture", "expected"),
    [
        ("health", {"live": True, "ready": True}),
        ("health_busy", {"live": True, "ready": True}),
        ("health_loading", {"live": True, "ready": False, "reason": "loading"}),
        ("auth_none", {"live": True, "ready": False, "reason": "unauthorized"}),
        ("err_unknown_path_get", {"live": True, "ready": False, "reason": "not_found"}),
    ],
)
async def test_health(recorded_answer: Any, capture: str, expected: dict[str, Any]) -> None:
    async with answering({"/health": recorded_answer(capture)}) as (made, _):
        assert (await made.health()).model_dump() == expected


async def test_health_of_what_does_not_answer() -> None:
    async with adapter("http://127.0.0.1:1") as made:
        health = await made.health()
    assert health.model_dump() == {"live": False, "ready": False, "reason": "connect"}


async def test_health_is_bounded() -> None:
    async def silent(connection: Connection) -> None:
        await connection.until_closed()

    async with playing(silent) as server, adapter(server.url) as made:
        health = await made.health(timeouts=Timeouts(unary=0.05))
        await server.connections[0].over()
    assert health.model_dump() == {"live": False, "ready": False, "reason": "unary_timeout"}


async def test_slots_of_the_slots_route(recorded_answer: Any) -> None:
    async with answering({"/slots": recorded_answer("slots_idle_fresh")}) as (made, server):
        props = await made.props()
        assert (props.slots_total, props.slots_free, props.source) == (4, 4, "slots")
        assert not server.requests("/props")
    async with answering({"/slots": recorded_answer("slots_busy")}) as (made, _):
        busy = await made.props()
    assert busy.slots_total == len(json.loads(recorded_answer("slots_busy").split(b"\r\n\r\n")[1]))
    assert busy.slots_free is not None
    assert busy.slots_free < (busy.slots_total or 0)


@pytest.mark.parametrize("why", ["err_slots_disabled", "err_unknown_path_get"])
async def test_slots_where_the_slots_route_is_off(recorded_answer: Any, why: str) -> None:
    routes = {
        "/slots": recorded_answer(why),
        "/props": recorded_answer("props"),
        "/metrics": recorded_answer("metrics_busy_deferred"),
    }
    async with answering(routes) as (made, _):
        props = await made.props()
    assert (props.slots_total, props.slots_free, props.source) == (4, 0, "props+metrics")


async def test_slots_without_metrics(recorded_answer: Any) -> None:
    routes = {
        "/props": recorded_answer("props"),
        "/metrics": recorded_answer("err_metrics_disabled"),
    }
    async with answering(routes) as (made, _):
        assert (await made.props()).model_dump() == {"slots_total": 4, "source": "props"}


async def test_slots_nobody_tells() -> None:
    async with answering({}) as (made, _):
        assert (await made.props()).model_dump() == {}


async def test_slots_with_a_wrong_key(recorded_answer: Any) -> None:
    async with answering({"/slots": recorded_answer("auth_wrong")}) as (made, _):
        with pytest.raises(AdapterError) as caught:
            await made.props()
    assert caught.value.detail == "unauthorized"


async def test_slots_while_the_model_loads(recorded_answer: Any) -> None:
    async with answering({"/slots": recorded_answer("completion_loading")}) as (made, _):
        with pytest.raises(PoolUnavailable) as caught:
            await made.props()
    assert caught.value.code == "POOL_UNREADY"


async def test_what_slots_say_of_prompts_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    slots = answer(json.dumps([{"is_processing": True, "prompt": PROMPT}]))
    async with answering({"/slots": slots}) as (made, _):
        props = await made.props()
    assert props.model_dump() == {"slots_total": 1, "slots_free": 0, "source": "slots"}
    assert PROMPT not in caplog.text


@pytest.mark.parametrize(
    "body", ["", "[", "{}", "[1]", '[{"is":1}]', "null", "[" * 100_000, '"text"']
)
async def test_nonsense_is_bad_json(body: str) -> None:
    async with answering({"/slots": answer(body)}) as (made, _):
        with pytest.raises(AdapterError) as caught:
            await made.props()
    assert (caught.value.code, caught.value.detail) == ("INTERNAL", "bad_json")
    assert caught.value.__cause__ is None


async def test_an_answer_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker_adapters.engines._calls.MAX_ANSWER_BYTES", 1000)
    async with answering({"/slots": answer("[" + "1," * 1000 + "1]")}) as (made, server):
        with pytest.raises(AdapterError) as caught:
            await made.props()
        await server.connections[0].over()
    assert caught.value.detail == "body_too_large"


async def test_identity(recorded_answer: Any) -> None:
    routes = {
        "/props": recorded_answer("alias_props"),
        "/v1/models": recorded_answer("alias_models"),
    }
    async with answering(routes) as (made, _):
        assert await made.engine_version() == "b0-unknown"
        identity = await made.identity()
    assert (identity.engine_version, identity.model) == ("b0-unknown", "my-alias")
    assert (identity.model_path, identity.ctx_max) == ("tiny.gguf", 512)
    assert identity.model_digest is None
    assert identity.model_meta is not None
    assert identity.model_meta["n_params"] == 145856


@pytest.mark.parametrize(
    ("props", "model"),
    [
        ({"model_path": "/models/a/tiny.gguf"}, "tiny.gguf"),
        ({"model_path": r"C:\models\tiny.gguf"}, "tiny.gguf"),
        ({"model_path": "/m/t.gguf", "model_alias": "name"}, "name"),
        ({"model_path": ""}, None),
        ({}, None),
    ],
)
async def test_the_model_s_name(props: dict[str, str], model: str | None) -> None:
    body = answer(json.dumps({"build_info": "b1", **props}))
    async with answering({"/props": body}) as (made, _):
        assert (await made.identity()).model == model


async def test_the_version_is_not_made_up() -> None:
    async with answering({"/props": answer("{}")}) as (made, _):
        with pytest.raises(AdapterError) as caught:
            await made.engine_version()
    assert caught.value.detail == "bad_json"


# Embeddings and reranking.


def embedding(**changes: Any) -> Any:
    return task(workload="embedding", prompt=..., max_tokens=0, **changes)


async def test_embeddings(recorded_answer: Any) -> None:
    async with answering({"/v1/embeddings": recorded_answer("v1_embeddings_batch")}) as (
        made,
        server,
    ):
        vectors = await made.embed(embedding(inputs=["say hello", "say end"]))
        stream = await made.submit(embedding(inputs=["say hello", "say end"]))
        started, end = [event async for event in stream]
    assert [len(vector) for vector in vectors] == [64, 64]
    assert server.requests("/v1/embeddings")[0].json == {"input": ["say hello", "say end"]}
    assert (started.kind, end.kind) == ("started", "end")
    assert end.embeddings == vectors
    assert (end.tokens_in, end.tokens_out) == (10, 0)


async def test_an_embedding_of_the_prompt(recorded_answer: Any) -> None:
    async with answering({"/v1/embeddings": recorded_answer("v1_embeddings")}) as (made, server):
        [vector] = await made.embed(task(workload="embedding", prompt="say hello"))
    assert len(vector) == 64
    assert server.requests("/v1/embeddings")[0].json == {"input": ["say hello"]}


async def test_embeddings_come_in_input_order() -> None:
    rows = [{"index": 1, "embedding": [1.5]}, {"index": 0, "embedding": [0]}]
    async with answering({"/v1/embeddings": answer(json.dumps({"data": rows}))}) as (made, _):
        assert await made.embed(embedding(inputs=["a", "b"])) == [[0.0], [1.5]]


@pytest.mark.parametrize(
    "body",
    [
        {"data": []},
        {"data": [{"index": 0, "embedding": [1]}]},
        {"data": [{"index": 0, "embedding": [1]}, {"index": 2, "embedding": [1]}]},
        {"data": [{"index": 0, "embedding": "AAAA"}, {"index": 1, "embedding": [1]}]},
        {"data": [{"index": 0, "embedding": [1]}] * 2},
        {"data": [{"index": i, "embedding": ["1"]} for i in (0, 1)]},
        {"data": [{"index": i, "embedding": [float("nan")]} for i in (0, 1)]},
        {"data": [{"index": i, "embedding": [1]} for i in (0, 1)], "usage": {"prompt_tokens": "x"}},
        [],
    ],
)
async def test_embeddings_of_another_shape(body: Any) -> None:
    async with answering({"/v1/embeddings": answer(json.dumps(body))}) as (made, _):
        with pytest.raises(AdapterError) as caught:
            await made.embed(embedding(inputs=["a", "b"]))
    assert caught.value.detail == "bad_json"


async def test_rerank(recorded_answer: Any) -> None:
    documents = ["say hello", "the weather in the city", "a tiny model"]
    request = task(workload="rerank", prompt="what weather", inputs=documents)
    async with answering({"/v1/rerank": recorded_answer("rerank")}) as (made, server):
        scores = await made.rerank(request)
    assert server.requests("/v1/rerank")[0].json == {
        "query": "what weather",
        "documents": documents,
    }
    assert [(score.index, round(score.score, 3)) for score in scores] == [
        (0, 0.82),
        (1, 0.744),
        (2, 0.459),
    ]


async def test_scores_come_in_input_order() -> None:
    rows = [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": -1}]
    body = {"results": rows, "usage": {"prompt_tokens": 5}}
    async with answering({"/v1/rerank": answer(json.dumps(body))}) as (made, _):
        stream = await made.submit(task(workload="rerank", prompt="q", inputs=["a", "b"]))
        whole = await stream.collect()
    assert [(score.index, score.score) for score in whole.scores or []] == [(0, -1.0), (1, 0.9)]
    assert whole.tokens_in == 5


async def test_a_workload_the_server_was_not_started_for(recorded_answer: Any) -> None:
    routes = {
        "/v1/embeddings": recorded_answer("err_embeddings_disabled"),
        "/v1/rerank": recorded_answer("err_rerank_disabled"),
    }
    async with answering(routes) as (made, _):
        for work in (
            made.embed(embedding(inputs=["a"])),
            made.rerank(task(workload="rerank", prompt="q", inputs=["a"])),
        ):
            with pytest.raises(AdapterError) as caught:
                await work
            assert (caught.value.detail, caught.value.status) == ("unsupported", 501)


async def test_a_task_of_another_workload() -> None:
    async with adapter("http://127.0.0.1:1") as made:
        with pytest.raises(ValueError, match="'completion', not 'embedding'"):
            await made.embed(task())
        with pytest.raises(ValueError, match="'completion', not 'rerank'"):
            await made.rerank(task())


async def test_an_engine_that_dies_over_an_embedding() -> None:
    async def script(connection: Connection) -> None:
        request = await connection.request()
        if request.path == "/props":
            await connection.send(answer(NOT_FOUND, "404 Not Found"))
            await connection.request()
        connection.close()

    async with playing(script) as server, adapter(server.url) as made:
        with pytest.raises(WorkerReset) as caught:
            await made.embed(embedding(inputs=["a"]))
    assert (caught.value.detail, caught.value.processed) == ("reset", "unknown")


# Whether it has stopped.

SEED = 7


def slot(seed: int | None, *, busy: bool = True) -> dict[str, Any]:
    params = {} if seed is None else {"params": {"seed": seed}}
    return {"id": 0, "is_processing": busy, "id_task": 1, **params}


@asynccontextmanager
async def generating(*slots: Any, **options: Any) -> AsyncIterator[tuple[LlamaCppAdapter, Server]]:
    """An engine that never ends, and what it says of its slots, the last answer for ever."""
    left = [given if isinstance(given, bytes) else answer(json.dumps(given)) for given in slots]

    async def script(connection: Connection) -> None:
        while True:
            match (await connection.request()).path:
                case "/props":
                    await connection.send(answer(PROPS))
                case "/slots":
                    await connection.send(left.pop(0) if len(left) > 1 else left[0])
                case _:
                    await connection.send(STREAM_HEAD, frame("a", 1))
                    await connection.until_closed()

    async with playing(script) as server, adapter(server.url, **options) as made:
        yield made, server


async def speaking(made: LlamaCppAdapter) -> TokenStream:
    """A stream that has given a token."""
    stream = await made.submit(task(seed=SEED))
    while (await anext(stream)).kind != "token":
        pass
    return stream


@pytest.mark.parametrize(
    ("slots", "asked"),
    [
        ([[]], 1),
        ([[slot(SEED), slot(1)], [slot(SEED, busy=False), slot(1)]], 2),
        ([[slot(SEED)], [slot(SEED)], [slot(8)]], 3),
        ([[slot(None)], [slot(None, busy=False)]], 2),
    ],
)
async def test_a_free_slot_confirms_a_cancel(slots: list[Any], asked: int) -> None:
    async with generating(*slots) as (made, server):
        stream = await speaking(made)
        receipt = await made.cancel(stream.task_id, confirm_within_ms=5000)
        assert (receipt.method, receipt.sent, receipt.confirmed) == ("close", True, True)
        assert len(server.requests("/slots")) == asked
        again = await made.cancel(stream.task_id, confirm_within_ms=5000)
        assert (again.method, again.sent, again.confirmed) == ("none", False, None)


async def test_a_slot_that_stays_busy_confirms_nothing() -> None:
    async with generating([slot(SEED)]) as (made, server):
        stream = await speaking(made)
        receipt = await stream.cancel(confirm_within_ms=500)
        assert (receipt.method, receipt.confirmed) == ("close", False)
        assert receipt.elapsed_ms >= 500
        assert 1 < len(server.requests("/slots")) < 8


@pytest.mark.parametrize(
    "refusal", [answer("{}", "501 Off"), answer("{}", "500 Oops"), answer("{"), answer("[{}]")]
)
async def test_an_engine_that_tells_nothing_of_slots_confirms_nothing(refusal: bytes) -> None:
    async with generating(refusal) as (made, server):
        stream = await speaking(made)
        receipt = await stream.cancel(confirm_within_ms=5000)
        assert (receipt.method, receipt.confirmed) == ("close", None)
        assert len(server.requests("/slots")) == 1


async def test_nobody_asks_for_slots_unless_told_to() -> None:
    async with generating([]) as (made, server):
        stream = await made.submit(task(seed=SEED))
        assert (await stream.cancel()).confirmed is None
        assert not server.requests("/slots")


@on_httpx
@pytest.mark.parametrize("by", ["adapter", "stream"])
@pytest.mark.parametrize(
    ("has_token", "patience", "asked"),
    [
        (True, 1200, [0.01, 0.03, 0.07, 0.15, 0.31, 0.56, 0.81, 1.06]),
        # A server that reads a prompt looks for who has left once it had a second of peace.
        (False, 5000, [1.5, 3.0, 4.5]),
        (False, 1400, []),
    ],
)
def test_an_engine_is_asked_ever_less_often(
    has_token: bool, patience: float, asked: list[float], by: str
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        times: list[float] = []

        async def script(connection: Connection) -> None:
            while True:
                match (await connection.request()).path:
                    case "/props":
                        await connection.send(answer(PROPS))
                    case "/slots":
                        times.append(loop.time())
                        await connection.send(answer(json.dumps([slot(SEED)])))
                    case _:
                        await connection.send(STREAM_HEAD, frame("a", 1) if has_token else b"")
                        await connection.until_closed()

        async with playing(script) as server, adapter(server.url) as made:
            stream = await (speaking(made) if has_token else made.submit(task(seed=SEED)))
            began = loop.time()
            leaving = (
                made.cancel(stream.task_id, confirm_within_ms=patience)
                if by == "adapter"
                else stream.cancel(confirm_within_ms=patience)
            )
            assert (await leaving).confirmed is False
        assert [time - began for time in times] == pytest.approx(asked, abs=0.002)

    run_virtually(main())


async def test_a_submit_that_waits_for_its_head_is_confirmed_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LlamaCppAdapter, "prefill_quiet", 0.05)

    async def script(connection: Connection) -> None:
        while True:
            match (await connection.request()).path:
                case "/props":
                    await connection.send(answer(PROPS))
                case "/slots":
                    await connection.send(answer(json.dumps([slot(SEED, busy=False)])))
                case _:
                    await connection.until_closed()

    asked = task(seed=SEED)
    async with playing(script) as server, adapter(server.url) as made:
        submitting = asyncio.create_task(made.submit(asked))
        await server.asked("/completion")
        receipt = await made.cancel(asked.task_id, confirm_within_ms=5000)
        assert (receipt.method, receipt.confirmed) == ("close", True)
        assert [event.kind async for event in await submitting] == ["end"]
