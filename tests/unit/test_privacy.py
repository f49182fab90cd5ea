"""What a task says and what opens the engine: in no error, however it is looked at."""

from __future__ import annotations

import asyncio
import json
import traceback
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import pytest
from pydantic import SecretStr

from tests.transports import both_transports
from tests.unit.tasks import adapter, fields, task
from tests.unit.wire import (
    LAST_CHUNK,
    PROPS,
    STREAM_HEAD,
    answer,
    chunk,
    engine,
    frame,
    playing,
)
from worker_adapters import Extensions, TaskRequest, Timeouts, WorkerError
from worker_adapters._secret import SecretBytes
from worker_adapters.engines._credentials import Credentials
from worker_adapters.engines._dispatch import private_texts
from worker_adapters.transport import validate_base_url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.unit.wire import Connection, Received, Script
    from worker_adapters.engines.llamacpp import LlamaCppAdapter

pytestmark = both_transports

KEY = "sk-canary-0123456789"
PROMPT = 'Zephyrina\'s "quoted" diary:\n page one, naïvely 漢字漢字漢字 told to nobody at all'
WORDS = ("Zephyrina", "page one", "told to nobody", "漢字漢字", "\\u6f22\\u5b57")
"""What would show of the prompt, whichever way an engine quotes it."""


def asked(workload: str = "completion", **changes: Any) -> TaskRequest:
    """Return a task whose every text is the canary."""
    texts: dict[str, Any] = {"prompt": PROMPT}
    if workload != "completion":
        texts["inputs"] = (PROMPT, PROMPT + "!")
    return task(**{"workload": workload, **texts, **changes})


def seen(error: BaseException) -> str:
    """Return everything that a logger of errors may print."""
    looked = traceback.TracebackException.from_exception(error, capture_locals=True)
    shown = ["".join(looked.format()), repr(error), str(error), repr(error.args)]
    if isinstance(error, WorkerError):
        shown.append(json.dumps(error.fields(), ensure_ascii=False))
    return "\n".join(shown)


def check(error: BaseException) -> None:
    text = seen(error)
    # Our own frames are there to be looked at.
    assert "worker_adapters" in text
    for word in (*WORDS, KEY):
        assert word not in text, f"{word} shows"


async def failed(work: Awaitable[object]) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        await work
    check(caught.value)
    return caught.value


async def nothing(connection: Connection, _: Received) -> None:
    await connection.until_closed()


def refusing(status: str, quoted: str, kind: str = "application/json") -> Script:
    async def script(connection: Connection, _: Received) -> None:
        await connection.send(answer(quoted, status, kind))

    return engine(script)


def submitting(made: LlamaCppAdapter, request: TaskRequest) -> Awaitable[object]:
    match request.workload:
        case "embedding":
            return made.embed(request)
        case "rerank":
            return made.rerank(request)
    return made.submit(request)


# What an engine says.

QUOTES = [
    json.dumps({"error": {"message": f"cannot read: {PROMPT}", "type": "invalid_request_error"}}),
    json.dumps(
        {"error": {"message": f"cannot read: {PROMPT}", "type": "invalid_request_error"}},
        ensure_ascii=False,
    ),
    json.dumps({"detail": [{"loc": ["body"], "input": {"prompt": PROMPT}, "msg": PROMPT}]}),
    json.dumps({"error": json.dumps({"prompt": PROMPT})}),
]


@pytest.mark.parametrize("workload", ["completion", "embedding", "rerank"])
@pytest.mark.parametrize("quote", QUOTES, ids=range(4))
async def test_a_400_that_quotes_the_task(workload: str, quote: str) -> None:
    async with (
        playing(refusing("400 Bad Request", quote)) as server,
        adapter(server.url, api_key=KEY) as made,
    ):
        error = await failed(submitting(made, asked(workload)))
    assert error.status == 400


@pytest.mark.parametrize("workload", ["completion", "embedding"])
async def test_a_gateway_s_text_that_quotes_the_request(workload: str) -> None:
    page = f"<h1>502</h1> upstream choked on {json.dumps({'prompt': PROMPT})} with {KEY}"
    async with (
        playing(refusing("502 Bad Gateway", page, "text/plain")) as server,
        adapter(server.url, api_key=KEY) as made,
    ):
        error = await failed(submitting(made, asked(workload)))
    assert error.status == 502


async def test_an_error_in_mid_stream_that_quotes_the_task() -> None:
    said = {"error": {"code": 500, "message": f"lost {PROMPT}", "type": "server_error"}}
    broken = chunk(b"data: " + json.dumps(said).encode() + b"\n\n")

    async def script(connection: Connection, _: Received) -> None:
        await connection.send(STREAM_HEAD, frame("a", 1), broken, LAST_CHUNK)

    async with playing(engine(script)) as server, adapter(server.url, api_key=KEY) as made:
        events = [event async for event in await made.submit(asked())]
        last = events[-1]
        assert last.error is not None
        check_event = f"{last!r} {last.to_json()} {last.to_sse().decode()} {last.data}"
        assert not [word for word in WORDS if word in check_event]
        assert "lost […]" in (last.message or "")
        await failed((await made.submit(asked())).collect())


async def test_messages_are_texts_of_the_task() -> None:
    conversation = [
        {"role": "system", "content": "A system prompt of some length"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What does this picture show?"},
                {"type": "image", "url": "data:image/png;base64,c2VjcmV0"},
            ],
        },
        {
            "role": "assistant",
            "tool_calls": [{"id": "c", "name": "look", "arguments": '{"at": "my diary"}'}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "a page"},
    ]
    request = Extensions.all().task_request(
        **fields(prompt=..., extensions={"messages": conversation})
    )
    assert private_texts(request) == (
        "A system prompt of some length",
        "What does this picture show?",
        "data:image/png;base64,c2VjcmV0",
        '{"at": "my diary"}',
        "a page",
    )
    quote = json.dumps({"error": {"message": "no: A system prompt of some length, in vain"}})
    async with playing(refusing("400 X", quote)) as server, adapter(server.url) as made:
        with pytest.raises(WorkerError) as caught:
            await made.submit(request)
    assert caught.value.message == "no: […], in vain"


def test_all_that_a_task_says_is_private() -> None:
    schema = {
        "type": "object",
        "properties": {"day": {"type": "string", "description": "The day of the meeting"}},
        "anyOf": [{"description": "A kind of meeting"}],
    }
    tool = {"name": "meet", "description": "Arranges what nobody may know", "parameters": schema}
    told: list[dict[str, Any]] = [
        {"tools": [tool], "messages": [{"role": "user", "content": "When?"}], "stop": ["<secret>"]},
        {"constraint": {"json_schema": schema}},
        {"constraint": {"regex": "(Alice|Bob) knows"}},
        {"constraint": {"grammar": 'root ::= "Alice"'}},
        {"constraint": {"choice": ["Alice knows", "Bob knows"]}},
    ]
    requests = [
        Extensions.all().task_request(
            **fields(prompt=... if "messages" in one else "Whom?", extensions=one)
        )
        for one in told
    ]
    said = [set(private_texts(request)) - {"Whom?"} for request in requests]
    assert said == [
        {
            "Arranges what nobody may know",
            "The day of the meeting",
            "A kind of meeting",
            "When?",
            "<secret>",
        },
        {"The day of the meeting", "A kind of meeting"},
        {"(Alice|Bob) knows"},
        {'root ::= "Alice"'},
        {"Alice knows", "Bob knows"},
    ]


# What a traceback shows of variables.


@pytest.mark.parametrize("workload", ["completion", "embedding", "rerank"])
async def test_refused(workload: str) -> None:
    async with adapter("http://127.0.0.1:1", api_key=KEY) as made:
        error = await failed(submitting(made, asked(workload)))
    assert error.detail == "connect"


@pytest.mark.parametrize("workload", ["completion", "embedding", "rerank"])
@pytest.mark.parametrize(
    ("answered", "detail"),
    [
        (answer('{"error":{"message":"no"}}', "401 Unauthorized"), "unauthorized"),
        (answer("", "302 Found"), "redirect"),
        (b"nonsense\r\n\r\n", "protocol"),
        (b"", "reset"),
    ],
)
async def test_answered_badly(workload: str, answered: bytes, detail: str) -> None:
    async def script(connection: Connection, _: Received) -> None:
        await connection.send(answered)
        connection.close()

    async with playing(engine(script)) as server, adapter(server.url, api_key=KEY) as made:
        error = await failed(submitting(made, asked(workload)))
    assert error.detail == detail


@pytest.mark.parametrize("workload", ["embedding", "rerank"])
async def test_an_answer_that_is_none_and_quotes_the_task(workload: str) -> None:
    quote = json.dumps({"echo": PROMPT})
    async with (
        playing(refusing("200 OK", quote)) as server,
        adapter(server.url, api_key=KEY) as made,
    ):
        error = await failed(submitting(made, asked(workload)))
    assert error.detail == "bad_json"


@pytest.mark.parametrize("workload", ["completion", "embedding", "rerank"])
@pytest.mark.parametrize("clock", ["deadline", "unary", "first_token"])
async def test_out_of_time(workload: str, clock: str) -> None:
    timeouts = Timeouts(unary=0.2, first_token=0.2)
    async with (
        playing(engine(nothing)) as server,
        adapter(server.url, api_key=KEY, timeouts=timeouts) as made,
    ):
        deadline = 100 if clock == "deadline" else 60_000
        error = await failed(submitting(made, asked(workload, deadline_ms=deadline)))
    assert error.detail == (
        "deadline"
        if clock == "deadline"
        else "first_token"
        if workload == "completion"
        else "unary_timeout"
    )


@pytest.mark.parametrize("workload", ["completion", "embedding", "rerank"])
async def test_the_caller_s_own_clock(workload: str) -> None:
    async with playing(engine(nothing)) as server, adapter(server.url, api_key=KEY) as made:
        await made.engine_version()
        with pytest.raises(TimeoutError) as caught:
            await asyncio.wait_for(submitting(made, asked(workload)), 0.1)
        check(caught.value)


async def test_refused_before_anything_is_sent() -> None:
    async with playing(engine(nothing)) as server, adapter(server.url, api_key=KEY) as made:
        for changes in ({"ctx": 5000}, {"engine": "vllm"}, {"deadline_ms": 0}, {"seed": -1}):
            await failed(made.submit(asked(**changes)))
        beyond = Extensions.all().task_request(**fields(prompt=PROMPT, extensions={"lora": "l"}))
        await failed(made.submit(beyond))


async def test_a_client_that_raises_what_it_likes() -> None:
    async def refuse(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/props":
            return httpx.Response(200, content=PROPS)
        raise LookupError("no such thing")

    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(refuse)) as client,
        adapter("http://engine", api_key=KEY, http_client=client) as made,
    ):
        for workload in ("completion", "embedding"):
            with pytest.raises((LookupError, WorkerError)) as caught:
                await submitting(made, asked(workload))
            check(caught.value)


@pytest.mark.parametrize("make", [lambda key: key, SecretStr, lambda key: lambda: key])
def test_an_adapter_that_cannot_be_made(make: Callable[[str], Any]) -> None:
    given = [make(KEY)]
    with pytest.raises(ValueError, match="base_url") as caught:
        adapter("ftp://host", api_key=given.pop())
    innermost = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    ours = [row for row in innermost.stack if "engines" in row.filename]
    assert ours
    assert KEY not in f"{[row.locals for row in ours]}"


@pytest.mark.parametrize("key", [KEY + "\n", SecretStr(KEY + "\n")])
def test_a_key_that_cannot_be_used(key: Any) -> None:
    with pytest.raises(ValueError, match="printable") as caught:
        Credentials(key)
    ours = traceback.TracebackException.from_exception(caught.value, capture_locals=True).stack[1:]
    assert ours
    assert KEY not in f"{[row.locals for row in ours]}"


@pytest.mark.parametrize(
    "url",
    ["http://user:hunter2/x@host", "http://host:hunter2", "http://[hunter2", "http://a]hunter2"],
)
def test_a_malformed_url_is_not_quoted(url: str) -> None:
    with pytest.raises(ValueError, match="base_url") as caught:
        validate_base_url(url)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_secret_bytes_are_bytes_that_do_not_show() -> None:
    secret = SecretBytes(b"Bearer " + KEY.encode())
    assert secret == b"Bearer " + KEY.encode()
    assert (
        f"{secret} {secret!r} {(b'Authorization', secret)}" == "**** **** (b'Authorization', ****)"
    )
    assert type(bytes(secret)) is bytes
    assert uuid4().bytes + SecretBytes(b"") != b""
