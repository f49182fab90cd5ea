"""Captures as they were on the wire: HTTP/1.1 framing and server-sent events."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

CAPTURES = Path(__file__).parents[1]

# The folders, by engine.
ENGINES = ("llamacpp", "sglang", "tgi", "triton", "vllm")

# Triton: what `text_output` is depends on the model, as its configuration tells.
TRITON_TEXT = {
    "ensemble": "delta",
    "ensemble_limited": "delta",
    "queue_limited": "delta",
    "tensorrt_llm_bls": "delta",
    "tensorrt_llm_bls_sync": "delta",
    "tensorrt_llm_bls_accum": "accumulated",
    "tensorrt_llm": "accumulated",  # the LLM API's model
}

# llama.cpp's /v1/messages and /v1/responses have event formats of their own that no dialect here
# claims: under any dialect they must not end well.
OPENAI_ROUTES = ("/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses")


@dataclass(frozen=True)
class Capture:
    """One recorded exchange: the request, the response, how it ended.

    `name` is "ENGINE/NAME"; `chunks` is the body as it was chunked (one piece where it was not);
    `complete` says whether its framing was whole.
    """

    name: str
    method: str
    path: str
    request_body: bytes
    status: int
    headers: list[tuple[bytes, bytes]]
    chunks: list[bytes]
    complete: bool

    @cached_property
    def body(self) -> bytes:
        """The body without its chunk framing."""
        return b"".join(self.chunks)

    @property
    def engine(self) -> str:
        """The folder: whose server it was."""
        return self.name.partition("/")[0]

    @property
    def dialect(self) -> str:
        """Which dialect reads the route; empty where none does."""
        route = self.path.partition("?")[0]
        if route in OPENAI_ROUTES:
            return "openai"
        if self.engine == "llamacpp" and route in ("/completion", "/v1/stream"):
            return "llamacpp"
        if self.engine == "sglang" and route == "/generate":
            return "sglang"
        if self.engine == "tgi" and route == "/generate_stream":
            return "tgi"
        if self.engine == "triton" and route.endswith("/generate_stream"):
            return "triton"
        return ""

    @property
    def options(self) -> dict[str, str]:
        """What an adapter would have learnt from the engine, as options of the dialect."""
        if self.dialect == "triton":
            model = self.path.split("/")[3]
            # An unknown model has no text.
            return {"text": TRITON_TEXT.get(model, "delta")}
        return {}

    @property
    def is_stream(self) -> bool:
        """Whether the answer is a 200 that streams events a dialect reads."""
        types = [value for name, value in self.headers if name.lower() == b"content-type"]
        is_events = bool(types) and types[0].split(b";")[0] == b"text/event-stream"
        return self.status == 200 and is_events and self.dialect != ""

    @property
    def is_refusal(self) -> bool:
        """Whether the answer is the error status of a route that a dialect reads."""
        return self.status != 200 and self.method == "POST" and self.dialect != ""

    @property
    def asked(self) -> Any:
        """The request's body as JSON; None where it is none."""
        try:
            return json.loads(self.request_body)
        except ValueError:
            return None

    @property
    def facts(self) -> dict[str, Any]:
        """What was recorded about the exchange at the time."""
        facts: dict[str, Any] = json.loads((CAPTURES / f"{self.name}.json").read_bytes())
        return facts


def dechunk(raw: bytes) -> tuple[list[bytes], bool]:
    """Undo HTTP/1.1 chunked coding: the chunks, and whether the last-chunk came."""
    chunks: list[bytes] = []
    while raw:
        line, crlf, rest = raw.partition(b"\r\n")
        if not crlf:
            break  # cut off in a size line
        size = int(line, 16)
        if size == 0:
            assert rest == b"\r\n", "no trailers, nothing after the last chunk"
            return chunks, True
        chunks.append(rest[:size])
        if len(rest) < size + 2:
            break  # cut off in a chunk
        assert rest[size : size + 2] == b"\r\n"
        raw = rest[size + 2 :]
    return [chunk for chunk in chunks if chunk], False


def response_head(raw: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status and headers of the final response, and what follows."""
    status = 100
    while status < 200:  # interim answers come first
        head, blank, raw = raw.partition(b"\r\n\r\n")
        assert blank, "no end of the response head"
        status_line, *lines = head.split(b"\r\n")
        status = int(status_line.split(b" ")[1])
    pairs = [line.partition(b":") for line in lines]
    return status, [(name, value.strip()) for name, _, value in pairs], raw


def load(name: str) -> Capture:
    """Read a capture from its .http and .request files."""
    status, headers, raw = response_head((CAPTURES / f"{name}.http").read_bytes())
    fields = {field.lower(): value for field, value in headers}
    if fields.get(b"transfer-encoding") == b"chunked":
        chunks, complete = dechunk(raw)
    else:
        length = int(fields.get(b"content-length", b"0"))
        chunks, complete = [raw[:length]], len(raw) >= length
    request = (CAPTURES / f"{name}.request").read_bytes()
    head, _, request_body = request.partition(b"\r\n\r\n")
    line = head.split(b"\r\n")[0].split(b" ")
    method, path = (line[0].decode(), line[1].decode()) if len(line) >= 3 else ("", "")
    if re.search(rb"(?mi)^transfer-encoding: *chunked", head):
        request_body = b"".join(dechunk(request_body)[0])
    return Capture(name, method, path, request_body, status, headers, chunks, complete)


def answered(engine: str) -> Iterator[Capture]:
    """All captures of an engine in which an answer came, sorted by name."""
    for http in sorted((CAPTURES / engine).glob("*.http")):
        if b"\r\n\r\n" in http.read_bytes():
            yield load(f"{engine}/{http.stem}")


@cache
def names() -> list[str]:
    """The names of all captures that have expected events, sorted."""
    captures = (capture for engine in ENGINES for capture in answered(engine))
    return [capture.name for capture in captures if capture.is_stream or capture.is_refusal]


def frames(body: bytes) -> Iterator[str]:
    """The data of each server-sent event, as far as the captures go.

    LF only, at most one data line. Comment-only blocks have none; an unfinished last block is
    lost.
    """
    text = body.decode("utf-8")  # strict: the engines replace stray bytes before they send
    assert "\r" not in text
    *blocks, _ = text.split("\n\n")
    for block in blocks:
        data = []
        for line in block.split("\n"):
            if line.startswith(":") or line == "":
                continue
            field, colon, value = line.partition(":")
            assert colon, line
            assert field in ("data", "event"), line
            if field == "data":
                data.append(value.removeprefix(" "))
        assert len(data) <= 1
        if data:
            yield data[0]
