"""What would end a header or a path and begin another is refused before anything is sent."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.transports import both_transports
from tests.unit.tasks import adapter, task
from tests.unit.test_stream import saying
from tests.unit.wire import LAST_CHUNK, final, playing
from worker_adapters import (
    AdapterError,
    LlamaCppAdapter,
    OpenAiAdapter,
    SubmitContext,
    TaskExtensions,
    TritonAdapter,
    WorkerIdentity,
)
from worker_adapters.engines import ENGINES, adapter_class
from worker_adapters.transport import Progress, Request, TransportError, flaw_of
from worker_adapters.transport._httpx import HttpxTransport

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker_adapters.engines._dispatch import Dispatch
    from worker_adapters.transport import Headers

pytestmark = both_transports

BAD = {
    "CR": "a\rb",
    "LF": "a\nb",
    "CRLF": "a\r\nX-Injected: b",
    "NUL": "a\0b",
    "DEL": "a\x7fb",
    "latin": "naïve",
    "wide": "漢字",
    "separator": "a\u2028b",
}
bad = pytest.mark.parametrize("value", BAD.values(), ids=BAD.keys())


@bad
def test_in_what_an_adapter_is_made_with(value: str) -> None:
    with pytest.raises(ValueError, match="api_key must be printable ASCII"):
        adapter("http://127.0.0.1:1", api_key=f"sk-{value}-long-enough")
    with pytest.raises(ValueError, match="base_url must be printable ASCII"):
        adapter(f"http://127.0.0.1:1/{value}")
    for made in (LlamaCppAdapter, OpenAiAdapter, TritonAdapter):
        with pytest.raises(ValueError, match="model must be printable ASCII"):
            made("http://127.0.0.1:1", model=value)


@bad
def test_in_every_text_that_makes_an_adapter(value: str) -> None:
    tried = 0
    for name in ENGINES:
        made = adapter_class(name)
        for parameter in inspect.signature(made).parameters.values():
            if parameter.annotation not in (str, "str", str | None):
                continue
            if parameter.name == "trtllm_version":
                continue  # it is told, and sent to nobody
            tried += 1
            given = {"base_url": "http://127.0.0.1:1", parameter.name: f"/{value}"}
            with pytest.raises(ValueError, match="printable ASCII"):
                made(**given)
    assert tried > len(ENGINES)


@bad
async def test_in_a_request_to_the_transport_alone(value: str) -> None:
    raw = value.encode()
    async with playing(saying(final(0), LAST_CHUNK)) as server:
        transport = HttpxTransport(server.url)
        for request in (
            Request("GET", "/x", ((b"X-Test", raw),)),
            Request("GET", "/x", ((raw, b"1"),)),
            Request("GET", f"/{value}"),
        ):
            with pytest.raises(TransportError) as caught:
                await transport.open(request, Progress(), connect=5.0, tls=5.0)
            assert (caught.value.detail, caught.value.processed) == ("invalid_request", "no")
            assert value not in f"{caught.value} {caught.value.message}"
        await transport.aclose()
        assert not server.connections


@bad
def test_in_what_goes_with_a_task(value: str) -> None:
    for field in ("correlation_id", "traceparent", "tracestate"):
        with pytest.raises(ValidationError, match="must be printable ASCII"):
            SubmitContext(**{field: value})
    with pytest.raises(ValidationError, match="must be printable ASCII"):
        TaskExtensions(affinity_key=value)


async def sent_nothing(made_by: Any, context: SubmitContext | None = None) -> AdapterError:
    """Have a task refused by an adapter that knows its engine; no connection is opened."""
    async with playing(saying(final(0), LAST_CHUNK)) as server, made_by(server.url) as made:
        made._identity = WorkerIdentity(engine_version="b1", ctx_max=1024)
        with pytest.raises(AdapterError) as caught:
            await made.submit(task(), context=context)
        assert not server.connections
    error = caught.value
    assert (error.code, error.phase, error.processed) == ("INVALID_PARAMS", "validate", "no")
    assert error.retriable is False
    return error


@bad
async def test_in_a_key_that_is_asked_for_later(value: str) -> None:
    def made(url: str) -> LlamaCppAdapter:
        return adapter(url, api_key=lambda: f"sk-{value}-long-enough")

    error = await sent_nothing(made)
    assert error.detail == "unauthorized"
    assert value not in f"{error!r} {error}"


@bad
@pytest.mark.parametrize("field", ["correlation_id", "traceparent", "tracestate"])
async def test_in_a_context_that_nobody_has_validated(field: str, value: str) -> None:
    values: dict[str, Any] = {"traceparent": "00-1-2-01", field: value}
    context = SubmitContext.model_construct(None, **values)
    error = await sent_nothing(adapter, context)
    assert error.detail == "invalid_request"
    assert "printable ASCII" in error.message


class Careless(LlamaCppAdapter):
    """An engine's adapter that looks at nothing it passes on."""

    header: tuple[bytes, bytes] | None = None
    path = "/completion"

    def _submit_headers(self, dispatch: Dispatch) -> Headers:
        own = super()._submit_headers(dispatch)
        return own if self.header is None else (*own, self.header)

    def _completion(self, dispatch: Dispatch) -> tuple[str, Mapping[str, Any]]:
        return self.path, super()._completion(dispatch)[1]


@bad
@pytest.mark.parametrize("place", ["path", "name", "value"])
async def test_in_what_an_adapter_makes_of_a_task(place: str, value: str) -> None:
    def made(url: str) -> Careless:
        careless = Careless(url)
        match place:
            case "path":
                careless.path = f"/completion/{value}"
            case "name":
                careless.header = (value.encode(), b"1")
            case _:
                careless.header = (b"X-Request-Id", value.encode())
        return careless

    error = await sent_nothing(made)
    assert error.detail == "invalid_request"
    assert value not in error.message


@bad
async def test_a_model_of_an_engine_s_own_cannot_change_a_path(value: str) -> None:
    made = TritonAdapter("http://127.0.0.1:1")
    from worker_adapters.engines.triton import _path

    assert flaw_of(Request("GET", _path(value))) == ""
    assert _path("a/../b?c#d").count("/") == _path("a").count("/")
    await made.aclose()


@given(st.binary(max_size=12), st.binary(min_size=1, max_size=6))
def test_what_may_be_sent_stays_one_line(value: bytes, name: bytes) -> None:
    if not flaw_of(Request("GET", "/", ((name, value),))):
        assert value.isascii()
        assert name.isascii()
        assert not set(value) & {*range(9), *range(10, 32), 127}
        assert not set(name) & {*range(33), *b':()<>@,;"/[]?={}', 0x5C, 127}


@given(st.text(max_size=12))
def test_what_a_path_may_be(path: str) -> None:
    allowed = bool(path) and path.isascii() and path.isprintable() and " " not in path
    assert (flaw_of(Request("GET", path)) == "") is allowed
