"""Every limit: what reaches it passes, what goes past it is the error that is documented.

Those that have no place in a response, or none in Python, have their tests where they are; the
table in docs/reliability.md says which, and is checked here.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import ssl
from contextlib import AsyncExitStack
from functools import cache
from typing import TYPE_CHECKING, Any

import pydantic
import pytest

from tests.conftest import REPOSITORY
from tests.transports import both_transports, on_httpx, on_native
from tests.unit.tasks import adapter, task
from tests.unit.wire import (
    LAST_CHUNK,
    PROPS,
    STREAM_HEAD,
    answer,
    chunk,
    engine,
    eventually,
    final,
    frame,
    playing,
)
from worker_adapters import Extensions, SubmitContext, TlsOptions, WorkerError
from worker_adapters._abort import MAX_CONFIRM_MS, patience
from worker_adapters._core import make_error
from worker_adapters._model import MAX_NAME_CHARS
from worker_adapters.contract import MAX_MODEL_REF_CHARS
from worker_adapters.transport import MAX_ANSWER_BYTES, MAX_ERROR_BYTES, _httpx, _network
from worker_adapters.transport._tls import MAX_PEM_BYTES, TlsSetup

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.unit.wire import Connection, Received
    from worker_adapters import LlamaCppAdapter, TokenStream

BODY = frame("hi", 1) + final(1) + LAST_CHUNK


async def outcome(response: bytes, **fields: Any) -> str:
    """Return ``end``, or the detail of the error, that an engine's answer to a submit comes to."""

    async def respond(connection: Connection, _: Received) -> None:
        # In two pieces, so that neither end of a limit depends on how it came.
        half = len(response) // 2
        await connection.send(response[:half], response[half:])
        await connection.until_closed()

    async with playing(engine(respond)) as server, adapter(server.url) as made:
        try:
            await (await made.submit(task(**fields))).collect()
        except WorkerError as error:
            return error.detail
        return "end"


def with_headers(lines: str) -> bytes:
    return STREAM_HEAD[:-2] + lines.encode() + b"\r\n"


def headers(count: int) -> bytes:
    own = STREAM_HEAD.count(b": ")
    return with_headers("".join(f"X-{n}: y\r\n" for n in range(count - own))) + BODY


def head(size: int) -> bytes:
    empty = with_headers("X: \r\n")
    return with_headers(f"X: {'y' * (size - len(empty))}\r\n") + BODY


def interims(count: int) -> bytes:
    return b"HTTP/1.1 103 Early Hints\r\n\r\n" * count + STREAM_HEAD + BODY


def event(size: int) -> bytes:
    line = len(b'data: {"content":"","tokens_predicted":1}')
    data = b'data: {"content":"%s","tokens_predicted":1}\n\n' % (b"x" * (size - line))
    return STREAM_HEAD + chunk(data) + final(1) + LAST_CHUNK


def depth(levels: int) -> bytes:
    nested = "[" * (levels - 1) + "]" * (levels - 1)
    data = b'data: {"content":"x","tokens_predicted":1,"nested":%s}\n\n' % nested.encode()
    return STREAM_HEAD + chunk(data) + final(1) + LAST_CHUNK


RESPONSES: dict[str, tuple[Callable[[int], bytes], int, str]] = {
    "headers": (headers, 100, "protocol"),
    "head": (head, 64 << 10, "protocol"),
    "interims": (interims, 16, "protocol"),
    "event": (event, 1 << 20, "frame_too_large"),
    "depth": (depth, 128, "bad_json"),
}


@both_transports
@pytest.mark.parametrize("name", RESPONSES)
async def test_a_response_at_its_limit_and_past_it(name: str) -> None:
    make, limit, detail = RESPONSES[name]
    assert await outcome(make(limit)) == "end"
    assert await outcome(make(limit + 1)) == detail


@both_transports
async def test_each_head_counts_for_itself() -> None:
    interim = head(64 << 10).removesuffix(BODY).replace(b"200 OK", b"103 OK")
    assert await outcome(interim * 2 + head(64 << 10)) == "end"


def extension(size: int) -> bytes:
    return STREAM_HEAD + b"1;" + b"e" * (size - 1) + b"\r\n \r\n" + BODY


def trailers(size: int) -> bytes:
    line = b"a:" + b"t" * (size - 4) + b"\r\n"
    return STREAM_HEAD + BODY.removesuffix(LAST_CHUNK) + b"0\r\n" + line + b"\r\n"


@both_transports
@on_native
async def test_chunk_extensions_and_trailers_at_their_limits_and_past_them() -> None:
    assert await outcome(extension(16 << 10)) == "end"
    assert await outcome(extension((16 << 10) + 1)) == "framing"
    # After the engine's finish signal: too many of them cost the connection alone.
    assert await outcome(trailers(16 << 10)) == "end"
    assert await outcome(trailers((16 << 10) + 1)) == "end"


@both_transports
@on_httpx
async def test_what_h11_has_to_hold_is_bounded_as_a_head_is() -> None:
    # All but the bytes that make it whole.
    held = extension(_network.HEAD_BYTES - 1).removesuffix(b"\n \r\n" + BODY)[len(STREAM_HEAD) :]
    assert len(held) == _network.HEAD_BYTES + 1
    assert await outcome(STREAM_HEAD + held) == "framing"
    assert await outcome(extension(_network.HEAD_BYTES - 8)) == "end"


@both_transports
async def test_an_error_s_body_is_read_so_far_and_no_further() -> None:
    def refusal(size: int) -> bytes:
        told = {"code": 400, "type": "exceed_context_size_error", "message": ""}
        empty = json.dumps({"error": told})
        told["message"] = "m" * (size - len(empty))
        body = json.dumps({"error": told})
        assert len(body) == size
        return answer(body, "400 Bad Request")

    assert await outcome(refusal(MAX_ERROR_BYTES)) == "context_overflow"
    # What is no JSON any more is told by its status.
    past = await outcome(refusal(MAX_ERROR_BYTES + 1))
    assert past not in {"end", "context_overflow"}


async def test_an_answer_at_its_limit_and_past_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_ANSWER_BYTES == 16 << 20
    limit = 2000
    monkeypatch.setattr("worker_adapters.engines._calls.MAX_ANSWER_BYTES", limit)

    async def ask(size: int) -> WorkerError | None:
        async def respond(connection: Connection) -> None:
            while True:
                await connection.request()
                await connection.send(answer(PROPS + " " * (size - len(PROPS))))

        async with playing(respond) as server, adapter(server.url) as made:
            try:
                await made.engine_version()
            except WorkerError as error:
                return error
            return None

    assert await ask(limit) is None
    past = await ask(limit + 1)
    assert past is not None
    assert (past.detail, past.processed) == ("body_too_large", "yes")


def pool_of(made: LlamaCppAdapter) -> _network.ConnectionPool:
    transport = made._transport
    assert isinstance(transport, _httpx.HttpxTransport)
    own = transport._session().client._transport
    assert isinstance(own, _httpx._Pool)
    return own._pool


@both_transports
@on_httpx
async def test_requests_and_those_that_wait_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    # Over native sockets rust/net/tests/clocks.rs counts them.
    monkeypatch.setattr(_httpx, "MAX_REQUESTS", 2)
    monkeypatch.setattr(_httpx, "MAX_WAITING", 3)

    async def hold(connection: Connection, _: Received) -> None:
        await connection.send(STREAM_HEAD, frame("a", 1))
        await connection.until_closed()

    async def begun(made: LlamaCppAdapter) -> TokenStream:
        return await made.submit(task())

    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(playing(engine(hold)))
        made = await stack.enter_async_context(adapter(server.url))
        streams = [await begun(made) for _ in range(2)]
        waiting = [asyncio.create_task(begun(made)) for _ in range(3)]
        pool = pool_of(made)
        await eventually(lambda: pool._waiting == 3, "three that wait")
        with pytest.raises(WorkerError) as caught:
            await begun(made)
        error = caught.value
        assert (error.detail, error.phase, error.processed) == ("saturated", "queue", "no")
        # A place that becomes free goes to one of them, and there is room for another to wait.
        await streams[0].aclose()
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert pool._waiting == 2
        waiting.append(asyncio.create_task(begun(made)))
        await eventually(lambda: pool._waiting == 3, "another")
        for waiter in waiting:
            waiter.cancel()
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert pool._waiting == 0
        for stream in (streams[1], *(one for one in ended if not isinstance(one, BaseException))):
            await stream.aclose()


@both_transports
@on_httpx
async def test_so_many_connections_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    # Over native sockets rust/net/tests/scale.rs counts them.
    monkeypatch.setattr(_httpx, "MAX_IDLE_CONNECTIONS", 2)

    async def respond(connection: Connection) -> None:
        while True:
            await connection.request()
            await connection.send(answer(PROPS))

    async with playing(respond) as server, adapter(server.url) as made:
        pool = pool_of(made)
        await asyncio.gather(*(made.engine_version() for _ in range(5)))
        assert len(server.connections) == 5
        assert len(pool._idle) == 2


def test_how_long_a_cancel_may_wait() -> None:
    assert patience(MAX_CONFIRM_MS) == MAX_CONFIRM_MS / 1000
    with pytest.raises(ValueError, match="from 0 to 600000"):
        patience(MAX_CONFIRM_MS + 1)


def test_a_file_of_certificates_at_its_limit_and_past_it(tmp_path: Path) -> None:
    certificate = ssl.DER_cert_to_PEM_cert(b"no certificate").encode()
    file = tmp_path / "ca.pem"

    def refusal(size: int) -> str:
        file.write_bytes(certificate + b"\n" * (size - len(certificate)))
        with pytest.raises(ValueError, match="ca_file") as caught:
            TlsSetup.of(TlsOptions(ca_file=file))
        return str(caught.value)

    assert "too large" not in refusal(MAX_PEM_BYTES)
    assert refusal(MAX_PEM_BYTES + 1) == "ca_file cannot be read: the file is too large"


def _context(text: str) -> object:
    return SubmitContext(job_id=text, correlation_id=text, traceparent=text)


def _affinity(text: str) -> object:
    allowed = Extensions(features=frozenset(("affinity_key",)))
    return allowed.task_request(**task().model_dump(), extensions={"affinity_key": text})


CALLERS: dict[str, tuple[Callable[[str], object], int]] = {
    "context": (_context, MAX_NAME_CHARS),
    "affinity_key": (_affinity, MAX_NAME_CHARS),
    "sampler_profile_version": (lambda text: task(sampler_profile_version=text), MAX_NAME_CHARS),
    "model_ref": (lambda text: task(model_ref=text), MAX_MODEL_REF_CHARS),
}


@pytest.mark.parametrize("name", CALLERS)
def test_what_the_caller_names_at_its_limit_and_past_it(name: str) -> None:
    make, limit = CALLERS[name]
    make("x" * limit)
    with pytest.raises(pydantic.ValidationError, match=f"at most {limit} characters"):
        make("x" * (limit + 1))


def test_a_message_at_its_limit_and_past_it() -> None:
    def quoted(text: str) -> str:
        return str(make_error("llamacpp", "engine_rejected", "head", message=text))

    assert quoted("m" * 512) == "m" * 512
    cut = quoted("m" * 513)
    assert len(cut.encode()) <= 512
    assert cut.startswith("mmm")
    assert cut != "m" * 512


# The table.

TABLE = REPOSITORY / "docs" / "reliability.md"
_ROW = re.compile(
    r"^\| (?P<what>.+) \| (?P<default>.+) \| (?P<names>`.+`) \| (?P<past>.+) \| (?P<tests>`.+`) \|$"
)
_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "B": 1, "s": 1, "ms": 1e-3}


def rows() -> list[re.Match[str]]:
    text = TABLE.read_text(encoding="utf-8")
    section = text.split("\n## Limits\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][2:]
    found = [_ROW.match(line) for line in lines if not line.startswith("| limit")]
    assert all(found), [line for line in lines if _ROW.match(line) is None]
    return [row for row in found if row is not None]


def _number(text: str) -> float:
    amount, _, unit = text.partition(" ")
    return float(amount.replace(",", "")) * _UNITS[unit or "B"]


@cache
def _rust(crate: str) -> str:
    sources = sorted((REPOSITORY / "rust" / crate / "src").rglob("*.rs"))
    return "\n".join(source.read_text(encoding="utf-8") for source in sources)


def _value(name: str) -> float:
    """Return the value of ``net::NAME`` or ``core::NAME``, Rust constants, or of a Python one."""
    crate, _, constant = name.partition("::")
    if constant:
        found = re.findall(rf"const {constant}: (?:usize|u\d+|Duration) =\s+([^;]+);", _rust(crate))
        assert len(found) == 1, f"{name} is defined {len(found)} times"
        [text] = found
        number = re.sub(r"Duration::from_\w+\(([^)]+)\)", r"\1", text).replace("_", "")
        left, _, right = number.partition("<<")
        value = int(left) << int(right or 0)
        return value * (1e-3 if "from_millis" in text else 1.0)
    owner, _, attribute = name.rpartition(".")
    module, _, model = owner.rpartition(".")
    if model[0].isupper():
        fields = getattr(importlib.import_module(module), model).model_fields
        return float(fields[attribute].default)
    return float(getattr(importlib.import_module(owner), attribute))


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["what"])
def test_the_table_tells_what_is(row: re.Match[str]) -> None:
    names = re.findall(r"`([^`]+)`", row["names"])
    assert names
    for name in names:
        assert _value(name) == _number(row["default"]), name


@cache
def _tests() -> str:
    folders = ("tests", "rust/core", "rust/net")
    sources = [
        source
        for folder in folders
        for pattern in ("*.py", "*.rs")
        for source in sorted((REPOSITORY / folder).rglob(pattern))
    ]
    return "\n".join(source.read_text(encoding="utf-8") for source in sources)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["what"])
def test_the_table_names_tests_that_there_are(row: re.Match[str]) -> None:
    for name in re.findall(r"`([^`]+)`", row["tests"]):
        assert re.search(rf"\b(?:def|fn) {name}\(", _tests()), name
