"""The most verbose run there is, on every engine and every error path: no canary in what it shows.

Logging at DEBUG on every logger, asyncio's debug mode, every warning, repr and str of everything
public, tracebacks with the variables of each frame of this library, metrics as they are scraped,
spans and data points of OpenTelemetry, and what a host says of its replicas.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from uuid import uuid4

import pytest
from pydantic import ValidationError

from tests.privacy.shown import KEY, PROMPT, SAID, Shown
from worker_adapters import Redactor, SubmitContext, TaskRequest, Timeouts, WorkerError
from worker_adapters.engines import ENGINES, adapter_class
from worker_adapters.extensions import Extensions
from worker_adapters.host import AdapterHost
from worker_adapters.testing.engines import scripted_engine
from worker_adapters.testing.wire import RawServer, response

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker_adapters.adapter import TokenStream, WorkerAdapter
    from worker_adapters.host import HostEvent
    from worker_adapters.testing.engines import ScriptedEngine
    from worker_adapters.testing.wire import Connection

Connect: TypeAlias = "Callable[..., WorkerAdapter]"


def task(engine: str, **changes: Any) -> TaskRequest:
    fields: dict[str, Any] = {
        "task_id": uuid4(),
        "session_id": uuid4(),
        "workload": "completion",
        "model_ref": "loaded",
        "engine": engine,
        "ctx": 0,
        "priority": "interactive",
        "max_tokens": 6,
        "deadline_ms": 20_000,
        "prompt": PROMPT,
        **changes,
    }
    if fields["workload"] != "completion":
        fields["inputs"] = (PROMPT, PROMPT + "!")
    return Extensions.all().task_request(**fields)


def playing(engine: str, **behaviour: Any) -> ScriptedEngine:
    return scripted_engine(engine, api_key=KEY, pieces=(SAID, " " + SAID), **behaviour)


@pytest.fixture(params=["httpx", "native"])
def connected(request: pytest.FixtureRequest, shown: Shown) -> Connect:
    """Make adapters over each transport, whose lines are watched."""

    def make(engine: str, url: str, **options: Any) -> WorkerAdapter:
        cls: Any = adapter_class(engine)
        made: WorkerAdapter = cls(
            url,
            api_key=KEY,
            transport=request.param,
            logs=shown.logs,
            metrics=shown.metrics,
            telemetry=shown.telemetry,
            **options,
        )
        return made

    return make


async def read(stream: TokenStream, shown: Shown, begun: asyncio.Event | None = None) -> str:
    """Read a stream to its end, showing each step; return what it said."""
    text = ""
    async for event in stream:
        if begun is not None:
            begun.set()
        shown.add(event, stream)
        shown.add_tasks()
        if event.kind == "token":
            text += event.t or ""
        elif event.error is not None:
            shown.add(event.data, event.to_json())
            shown.add_error(event.error)
    return text


async def tried(adapter: WorkerAdapter, request: TaskRequest, shown: Shown) -> None:
    """Submit a task that need not succeed, and read what there is."""
    try:
        stream = await adapter.submit(request)
    except WorkerError as error:
        shown.add_error(error)
    else:
        await read(stream, shown)


@pytest.mark.parametrize("engine", ENGINES)
async def test_success(engine: str, connected: Connect, shown: Shown) -> None:
    async with playing(engine) as server, connected(engine, server.url) as adapter:
        request = task(engine)
        context = SubmitContext(job_id="job", queue_position=1)
        shown.add(adapter, request, context, request.model_dump_json(exclude={"prompt"}))
        stream = await adapter.submit(request, context=context)
        shown.add(stream)
        assert SAID in await read(stream, shown)
        collected = await (await adapter.submit(task(engine))).collect()
        assert SAID in collected.text
        shown.add(collected, await adapter.health(), await adapter.props())
        shown.add(await adapter.capabilities(), await adapter.engine_version())
        shown.add(await adapter.cancel(request.task_id))
        for workload in ("embedding", "rerank"):
            await tried(adapter, task(engine, workload=workload), shown)
    shown.add(adapter)
    assert shown.actions() >= {"submit", "start", "end"}
    assert len(shown.spans()) >= 2
    scraped, *_, exported = shown.measured()
    assert "tokens_out_total{" in scraped
    assert "gen_ai.client.operation.duration" in exported


@pytest.mark.parametrize("engine", ENGINES)
async def test_given_up(engine: str, connected: Connect, shown: Shown) -> None:
    async with playing(engine, delay_ms=1) as server, connected(engine, server.url) as adapter:
        for way in ("cancel", "close", "task"):
            stream = await adapter.submit(task(engine, max_tokens=1000))
            shown.add(await anext(stream), await anext(stream))
            if way == "cancel":
                shown.add(await stream.cancel())
            elif way == "close":
                await stream.aclose()
            else:
                begun = asyncio.Event()
                reading = asyncio.create_task(read(stream, shown, begun))
                await begun.wait()
                reading.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await reading
            shown.add(stream)


ERRORS: Final[dict[str, dict[str, Any]]] = {
    "status": {"error": "status"},
    "refused": {"error": "status", "status": 400},
    "crashed": {"error": "status", "status": 500},
    "overloaded": {"error": "status", "status": 429},
    "first": {"error": "first"},
    "stream": {"error": "stream"},
    "closed": {"truncate": "close"},
    "reset": {"truncate": "reset"},
    "polite": {"truncate": "polite"},
    "silent-head": {"hang": "head"},
    "silent-first": {"hang": "first"},
    "silent-stream": {"hang": "stream"},
    "loading": {"ready": False},
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("how", ERRORS)
async def test_error(engine: str, how: str, connected: Connect, shown: Shown) -> None:
    timeouts = Timeouts(unary=0.3, first_token=0.3, token_gap=0.3)
    async with (
        playing(engine) as server,
        connected(engine, server.url, timeouts=timeouts) as adapter,
    ):
        await adapter.engine_version()
        server.behave(**ERRORS[how])
        shown.add(await adapter.health())
        await tried(adapter, task(engine), shown)
        try:
            shown.add(await (await adapter.submit(task(engine))).collect())
        except WorkerError as error:
            shown.add_error(error)
    # Who loads a model may answer all the same; Triton has no finish signal but the body's end.
    assert shown.errors == 2 or how == "loading" or (how, engine) == ("polite", "triton")


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_wrong_key(engine: str, connected: Connect, shown: Shown) -> None:
    async with (
        scripted_engine(engine, api_key="another-key-0") as server,
        connected(engine, server.url) as adapter,
    ):
        await tried(adapter, task(engine), shown)
    assert shown.errors == 1


@pytest.mark.parametrize("engine", ENGINES)
async def test_an_unreachable_engine(engine: str, connected: Connect, shown: Shown) -> None:
    async with connected(engine, "http://127.0.0.1:9") as adapter:
        shown.add(await adapter.health())
        for workload in ("completion", "embedding", "rerank"):
            await tried(adapter, task(engine, workload=workload), shown)
    assert shown.errors == 3


QUOTES: Final[dict[str, Callable[[bytes], bytes]]] = {
    "json": lambda body: response(
        json.dumps({"error": {"message": f"bad: {body.decode()} {KEY}", "code": 400}}),
        "400 Bad Request",
        "application/json",
    ),
    "page": lambda body: response(
        b"<h1>502</h1>" + body + KEY.encode(), "502 Bad Gateway", "text/html"
    ),
    "headers": lambda body: response(
        b"Authorization: Bearer " + KEY.encode() + b"\n\n" + body, "500 Error", "text/plain"
    ),
    "nonsense": lambda body: body + KEY.encode(),
    "no-stream": lambda body: response(body, "200 OK", "application/json"),
    "stream": lambda body: response(
        b"data: " + json.dumps({"error": body.decode() + KEY}).encode() + b"\n\n",
        "200 OK",
        "text/event-stream",
    ),
    "broken-stream": lambda body: response(
        b"data: {" + body + KEY.encode() + b"\n\n", "200 OK", "text/event-stream"
    ),
}
"""Engines and gateways that quote the request they did not like."""


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("how", QUOTES)
async def test_an_engine_that_quotes(
    engine: str, how: str, connected: Connect, shown: Shown
) -> None:
    async def quote(connection: Connection) -> None:
        while True:
            request = await connection.request()
            await connection.send(QUOTES[how](request.body))
            if how == "nonsense":
                connection.close()
                return

    timeouts = Timeouts(unary=1, first_token=1)
    async with (
        RawServer(quote) as server,
        connected(engine, server.url, timeouts=timeouts) as adapter,
    ):
        shown.add(await adapter.health())
        for workload in ("completion", "embedding", "rerank"):
            await tried(adapter, task(engine, workload=workload), shown)
    assert shown.errors == 3


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_host(engine: str, connected: Connect, shown: Shown) -> None:
    async def quote(connection: Connection) -> None:
        while True:
            request = await connection.request()
            await connection.send(QUOTES["page"](request.body))

    events: list[HostEvent] = []
    async with (
        playing(engine) as well,
        RawServer(quote) as ill,
        AdapterHost(observers=[events.append], logs=shown.logs, metrics=shown.metrics) as host,
    ):
        for pool_id, url in (("well", well.url), ("ill", ill.url), ("gone", "http://127.0.0.1:9")):
            for replica_id in ("a", "b"):
                host.bind(connected(engine, url, pool_id=pool_id, replica_id=replica_id))
        shown.add(host, host.registry, host.registry.snapshot)
        stream = await host.submit("well", task(engine), context=SubmitContext(job_id="job"))
        assert SAID in await read(stream, shown)
        for pool_id in ("ill", "gone", "gone", "none"):
            try:
                await read(await host.submit(pool_id, task(engine)), shown)
            except WorkerError as error:
                shown.add_error(error)
        host.set_admission("well", "shed")
        with pytest.raises(WorkerError) as refused:
            await host.submit("well", task(engine))
        shown.add_error(refused.value)
        await host.probe()
        for pool_id in ("well", "ill", "gone"):
            shown.add(await host.health(pool_id), await host.props(pool_id))
        shown.add(await host.capabilities(), await host.cancel("well", uuid4()))
    shown.add(host, *events)
    assert shown.errors == 5
    actions = {event.action for event in events}
    assert {"bind", "submit", "reject", "admission"} <= actions, actions


@pytest.mark.parametrize("engine", ENGINES)
async def test_refused_before_it_is_sent(engine: str, connected: Connect, shown: Shown) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    beyond = Extensions.all().task_request(
        **task(engine).model_dump(exclude_none=True, exclude={"prompt"}),
        extensions={"messages": messages, "stop": [PROMPT], "lora": "none-such"},
    )
    shown.add(beyond, beyond.extensions)
    async with playing(engine) as server, connected(engine, server.url) as adapter:
        await tried(adapter, beyond, shown)
        await tried(adapter, task("tgi" if engine == "vllm" else "vllm"), shown)
        for changes in ({"deadline_ms": 0}, {"ctx": 10**6}, {"seed": -1}):
            await tried(adapter, task(engine, **changes), shown)
    assert shown.errors >= 3


@pytest.mark.parametrize(
    "changes",
    [{"max_tokens": PROMPT}, {"prompt": [PROMPT]}, {"surprise": PROMPT}, {"inputs": PROMPT}],
)
def test_a_task_that_is_none(changes: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    watched = Shown(caplog)
    with pytest.raises(ValidationError) as caught:
        task("vllm", **changes)
    watched.add(caught.value)
    watched.check()


def test_the_redactor(caplog: pytest.LogCaptureFixture) -> None:
    watched = Shown(caplog)
    redactor = Redactor([KEY]).with_private_texts([PROMPT])
    watched.add(redactor, redactor.redact(KEY))
    watched.check()


def test_a_canary_that_shows_is_found(caplog: pytest.LogCaptureFixture) -> None:
    for show in (
        lambda watched: watched.add([PROMPT]),
        lambda watched: watched.add_error(ValueError(SAID)),
        lambda _: logging.getLogger("any").error("with %s", KEY),
        lambda watched: watched.tracing.get_tracer("any").start_span(PROMPT).end(),
        lambda watched: watched.metering.get_meter("any").create_counter("c").add(1, {"k": KEY}),
        lambda watched: watched.metrics.rejected("vllm", KEY),
    ):
        caplog.clear()
        watched = Shown(caplog)
        show(watched)
        with pytest.raises(AssertionError, match="shows"):
            watched.check()
