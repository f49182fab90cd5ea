"""The clients that are measured end to end: each turns one request into the texts of its tokens.

A client hands every token to the `Tally`, which is all that they have in common: what they read
with and what they make of it is what is measured.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal
from uuid import uuid4

from worker_adapters import Extensions, TaskRequest, TokenStream, VllmAdapter
from worker_adapters.transport._native import NativeTransport
from worker_adapters.transport._tls import TlsSetup

STREAMS_PER_ADAPTER = 1000
"""An adapter is one engine, and no engine serves more at a time."""

TIMEOUT_SECONDS = 7200.0

PAYLOAD: Mapping[str, Any] = {
    "model": "bench",
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 100_000,
    "stream": True,
    "stream_options": {"include_usage": True},
}


class Slot(ABC):
    """Where one stream reports: whatever measures decides what becomes of it."""

    @abstractmethod
    def begin(self) -> None:
        """The response has begun."""

    tokens: int
    """How many have come; counted up by the client."""

    on_text: Callable[[str], None] | None
    """What wants every text, if anything does."""


class Client(ABC):
    """One way to read streams."""

    @abstractmethod
    async def stream(self, number: int, slot: Slot) -> None:
        """Send the request of stream ``number`` and read its response to the end."""


Way = Literal["events", "batches", "sse"]


class OursClient(Client):
    """worker-adapters, read in one of the ways that a stream can be."""

    def __init__(self, adapters: list[VllmAdapter], way: Way) -> None:
        self.adapters = adapters
        self._read = {"events": self._events, "batches": self._batches, "sse": self._sse}[way]

    async def stream(self, number: int, slot: Slot) -> None:
        """See `Client.stream`."""
        adapter = self.adapters[number // STREAMS_PER_ADAPTER]
        await self._read(await adapter.submit(chat_task()), slot)

    async def _events(self, stream: TokenStream, slot: Slot) -> None:
        await anext(stream)
        slot.begin()
        if (on_text := slot.on_text) is not None:
            async for event in stream:
                if (text := event.t) is not None:
                    on_text(text)
            return
        last = None
        async for event in stream:
            if event.t is not None:
                slot.tokens += 1
            else:
                last = event
        _check(last)

    async def _batches(self, stream: TokenStream, slot: Slot) -> None:
        last = None
        has_begun = False
        async for batch in stream.batches():
            if not has_begun:
                has_begun = True
                slot.begin()
            for event in batch:
                if event.t is not None:
                    slot.tokens += 1
                else:
                    last = event
        _check(last)

    async def _sse(self, stream: TokenStream, slot: Slot) -> None:
        piece = b""
        has_begun = False
        async for piece in stream.sse():
            if not has_begun:
                has_begun = True
                slot.begin()
            slot.tokens += piece.count(b"event: token\n")
        if b"event: end" not in piece:
            raise RuntimeError("a stream did not end")


def _check(last: Any) -> None:
    if last is None or last.kind != "end":
        raise RuntimeError(f"a stream did not end: {last}")


def chat_task() -> TaskRequest:
    """Return a chat of more tokens than any scenario has."""
    return _ALLOWED.task_request(
        task_id=uuid4(),
        session_id=uuid4(),
        workload="completion",
        model_ref="models/bench",
        engine="vllm",
        ctx=512,
        priority="interactive",
        max_tokens=100_000,
        deadline_ms=int(TIMEOUT_SECONDS * 1000),
        extensions={"messages": PAYLOAD["messages"]},
    )


_ALLOWED = Extensions(features=("messages",))


class MsgspecClient(Client):
    """aiohttp, events split by hand and decoded by msgspec into typed structs."""

    def __init__(self, session: Any, url: str) -> None:
        import msgspec

        class Delta(msgspec.Struct):
            content: str | None = None

        class Choice(msgspec.Struct):
            delta: Delta

        class Chunk(msgspec.Struct):
            choices: list[Choice]

        self._session, self._url = session, url
        self._decode = msgspec.json.Decoder(Chunk).decode
        self._body = json.dumps(PAYLOAD).encode()

    async def stream(self, number: int, slot: Slot) -> None:
        """See `Client.stream`."""
        del number
        decode, on_text = self._decode, slot.on_text
        rest = b""
        has_begun = is_done = False
        headers = {"content-type": "application/json"}
        async with self._session.post(self._url, data=self._body, headers=headers) as response:
            async for piece in response.content.iter_any():
                if not has_begun:
                    has_begun = True
                    slot.begin()
                events = (rest + piece).split(b"\n\n")
                rest = events.pop()
                for event in events:
                    if event == b"data: [DONE]":
                        is_done = True
                        continue
                    choices = decode(event[6:]).choices
                    if choices and (text := choices[0].delta.content):
                        slot.tokens += 1
                        if on_text is not None:
                            on_text(text)
        if not is_done:
            raise RuntimeError("a stream did not end")


class HttpxSseClient(Client):
    """httpx with httpx-sse, each event read by the json module."""

    def __init__(self, client: Any, url: str) -> None:
        self._client, self._url = client, url

    async def stream(self, number: int, slot: Slot) -> None:
        """See `Client.stream`."""
        from httpx_sse import aconnect_sse

        del number
        on_text = slot.on_text
        async with aconnect_sse(self._client, "POST", self._url, json=PAYLOAD) as source:
            events = source.aiter_sse()
            await anext(events)
            slot.begin()
            async for event in events:
                if event.data == "[DONE]":
                    break
                choices = json.loads(event.data)["choices"]
                if choices and (text := choices[0]["delta"].get("content")):
                    slot.tokens += 1
                    if on_text is not None:
                        on_text(text)
            else:
                raise RuntimeError("a stream did not end")


class OpenAiSdkClient(Client):
    """The openai SDK."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def stream(self, number: int, slot: Slot) -> None:
        """See `Client.stream`."""
        del number
        on_text = slot.on_text
        response = await self._client.chat.completions.create(**PAYLOAD)
        async with response:
            chunks = aiter(response)
            await anext(chunks)
            slot.begin()
            async for chunk in chunks:
                if chunk.choices and (text := chunk.choices[0].delta.content):
                    slot.tokens += 1
                    if on_text is not None:
                        on_text(text)


Make = Callable[[str, int], Any]


def _ours(way: Way, *, threaded: bool = False, **options: Any) -> Make:
    @asynccontextmanager
    async def make(url: str, streams: int) -> AsyncIterator[Client]:
        async with AsyncExitStack() as stack:
            adapters = [
                await stack.enter_async_context(VllmAdapter(url, **options))
                for _ in range(-(-streams // STREAMS_PER_ADAPTER))
            ]
            for adapter in adapters:
                if threaded:  # no option of the adapter's: it is here to be measured
                    adapter._data_plane = NativeTransport(
                        url, tls=partial(TlsSetup.of, None), threaded=True
                    )
                await adapter.identity()
            yield OursClient(adapters, way)

    return make


@asynccontextmanager
async def _aiohttp(url: str, streams: int) -> AsyncIterator[Client]:
    import aiohttp

    connector = aiohttp.TCPConnector(limit=streams)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield MsgspecClient(session, f"{url}/v1/chat/completions")


@asynccontextmanager
async def _httpx_sse(url: str, streams: int) -> AsyncIterator[Client]:
    import httpx

    limits = httpx.Limits(max_connections=streams, max_keepalive_connections=streams)
    async with httpx.AsyncClient(limits=limits, timeout=None, trust_env=False) as client:
        yield HttpxSseClient(client, f"{url}/v1/chat/completions")


@asynccontextmanager
async def _openai(url: str, streams: int) -> AsyncIterator[Client]:
    import openai

    del streams  # its own limits suffice
    async with openai.AsyncOpenAI(
        api_key="none", base_url=f"{url}/v1", max_retries=0, timeout=TIMEOUT_SECONDS
    ) as client:
        yield OpenAiSdkClient(client)


CONTENDERS: Mapping[str, Make] = {
    "native": _ours("events", transport="native"),
    "native batches": _ours("batches", transport="native"),
    "native sse": _ours("sse", transport="native"),
    "native gather": _ours("events", transport="native", gather_window=0.001),
    "native threaded": _ours("events", transport="native", threaded=True),
    "httpx": _ours("events", transport="httpx"),
    "aiohttp": _aiohttp,
    "httpx-sse": _httpx_sse,
    "openai": _openai,
}
"""By name; what starts with ``native`` or ``httpx`` (but httpx-sse) is worker-adapters."""

HAS_UVLOOP = find_spec("uvloop") is not None
