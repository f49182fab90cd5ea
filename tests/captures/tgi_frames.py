"""Text Generation Inference's answers as its source writes them, for no server was at hand.

    python -m tests.captures.tgi_frames            # write tests/captures/tgi/
    python -m tests.captures.tgi_frames --check    # report what differs

Nothing here was captured. Frames are put together from the router's data types and from its HTTP
library, at the releases named; each NAME.json says which source its exchange documents. The text is
made up. What is known only from the source is so marked in docs/captures.md.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "tgi"

AXUM_06 = "axum 0.6.20 response/sse.rs `fn field`: no space after the colon; no index before 1.4"
AXUM_07 = "axum 0.7.5 response/sse.rs `fn field`: a space after the colon"
TYPES = "router/src/lib.rs StreamResponse, Token, StreamDetails"
ERRORS = "router/src/infer/mod.rs InferError; server.rs sends it inside the 200 of a stream"
OPENAI = "router/src/lib.rs Chunk, ChatCompletionChunk; server.rs"
EXTRACTORS = "axum's Json extractor and the router's api_key check, before any handler"

STREAM_HEADERS = (
    ("content-type", "text/event-stream"),
    ("cache-control", "no-cache"),
    ("x-compute-type", "cpu"),
    ("x-compute-characters", "16"),
    ("x-accel-buffering", "no"),
)
PROMPT = "Once upon a time"


@dataclass(frozen=True)
class Exchange:
    """One documented exchange. A body of pieces is chunked, one of bytes has a length."""

    name: str
    version: str
    source: str
    body: list[bytes] | bytes
    path: str = "/generate_stream"
    asked: dict[str, Any] | bytes | None = field(default_factory=dict)
    status: str = "200 OK"
    headers: tuple[tuple[str, str], ...] = STREAM_HEADERS
    complete: bool = True

    def request(self) -> bytes:
        """The request as a client would send it."""
        host = "Host: 127.0.0.1:8080\r\n"
        if self.asked is None:
            return f"GET {self.path} HTTP/1.1\r\n{host}Accept: */*\r\n\r\n".encode()
        body = self.asked if isinstance(self.asked, bytes) else json.dumps(self.asked).encode()
        return (
            f"POST {self.path} HTTP/1.1\r\n{host}Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    def http(self) -> bytes:
        """The answer with its framing."""
        is_chunked = isinstance(self.body, list)
        framing = ("transfer-encoding", "chunked")
        if isinstance(self.body, bytes):
            framing = ("content-length", str(len(self.body)))
        head = "".join(f"{name}: {value}\r\n" for name, value in (*self.headers, framing))
        answer = f"HTTP/1.1 {self.status}\r\n{head}\r\n".encode()
        if not isinstance(self.body, list):
            return answer + self.body
        for piece in self.body:
            answer += f"{len(piece):X}\r\n".encode() + piece + b"\r\n"
        return answer + (b"0\r\n\r\n" if self.complete and is_chunked else b"")

    def facts(self) -> dict[str, Any]:
        """What NAME.json says."""
        return {
            "name": self.name,
            "captured": False,
            "server": f"text-generation-inference {self.version}, not run",
            "documents": self.source,
            "flags": "",
            "path": self.path,
            "body": self.asked if isinstance(self.asked, dict) else None,
            "response_bytes": len(self.http()),
            "framing": "chunked" if isinstance(self.body, list) else "content-length",
            "complete": self.complete,
        }


def document(value: object) -> bytes:
    """JSON as serde writes it: compact, nothing but ASCII control characters escaped."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def sse(value: object, *, space: bool = True) -> bytes:
    """One event."""
    return b"data:" + (b" " if space else b"") + document(value) + b"\n\n"


def token(token_id: int, text: str, logprob: float, *, special: bool = False) -> dict[str, Any]:
    """A `Token`."""
    return {"id": token_id, "text": text, "logprob": logprob, "special": special}


# A character of three tokens: the server decodes nothing until it is whole.
TOKENS = (
    token(390, " there", -0.25),
    token(294, " was", -1.5),
    token(183, "", -0.125),
    token(264, "", -0.0625),
    token(110, " 🙂", -0.0),
    token(493, ' caf"é"\n', -2.75),
)
EOS = token(2, "</s>", -0.5, special=True)
KEEP_ALIVE = b":\n\n"


def frames(
    tokens: tuple[dict[str, Any], ...],
    *,
    details: dict[str, Any] | None = None,
    index: bool = True,
    top: int = 0,
    text: str | None = None,
) -> list[dict[str, Any]]:
    """The `StreamResponse` of each token; the last one has the whole text."""
    whole = "".join(t["text"] for t in tokens if not t["special"]) if text is None else text
    out = []
    for at, one in enumerate(tokens, 1):
        is_last = at == len(tokens)
        frame: dict[str, Any] = {"index": at} if index else {}
        frame["token"] = one
        if top:
            rivals = [token(one["id"] + rank, f"r{rank}", -3.5 - rank) for rank in range(1, top)]
            frame["top_tokens"] = [one, *rivals]
        frame["generated_text"] = whole if is_last else None
        frame["details"] = details if is_last else None
        out.append(frame)
    return out


def details(reason: str, count: int, **more: int | None) -> dict[str, Any]:
    """A `StreamDetails`; `input_length` since 3.0."""
    return {"finish_reason": reason, "generated_tokens": count, "seed": None} | more


def asked(**parameters: Any) -> dict[str, Any]:
    """A `GenerateRequest`."""
    return {"inputs": PROMPT, "parameters": {"max_new_tokens": 20, **parameters}}


def streams() -> Iterator[Exchange]:
    """The native stream, release by release."""
    old = f"{AXUM_06}; {TYPES}"
    new = f"{AXUM_07}; {TYPES}"
    ended = (*TOKENS, EOS)
    for tag, version, index in (("tgi094", "0.9.4", False), ("tgi204", "2.0.4", True)):
        with_details = details("eos_token", 7)
        for name, last in (("details", with_details), ("plain", None)):
            said = frames(ended, details=last, index=index)
            body = [sse(frame, space=False) for frame in said]
            request = asked(details=True) if last else asked()
            yield Exchange(f"{tag}-stream-{name}", version, old, body, asked=request)
    body = [sse(f) for f in frames(ended, details=details("eos_token", 7))]
    yield Exchange("tgi210-stream-details", "2.1.0", new, body, asked=asked(details=True))

    def current(name: str, body: list[bytes], **more: Any) -> Exchange:
        return Exchange(f"tgi337-{name}", "3.3.7", new, body, **{"asked": asked(), **more})

    full = {"asked": asked(details=True)}
    said = frames(ended, details=details("eos_token", 7, input_length=5))
    yield current("stream-details", [sse(f) for f in said], **full)
    yield current("stream-plain", [sse(f) for f in frames(ended)])
    said = frames(TOKENS, details=details("length", 6, input_length=5) | {"seed": 42})
    seeded = asked(details=True, do_sample=True, seed=42)
    yield current("stream-length-seed", [sse(f) for f in said], asked=seeded)
    # Cut inside the character: the tokens count, their text never comes.
    said = frames(TOKENS[:4], details=details("length", 4, input_length=5))
    yield current("stream-cut-in-character", [sse(f) for f in said], **full)
    said = frames(TOKENS[:2], details=details("stop_sequence", 2, input_length=5))
    yield current("stream-stop", [sse(f) for f in said], asked=asked(details=True, stop=[" was"]))
    said = frames(ended, details=details("eos_token", 7, input_length=5), top=3)
    topped = asked(details=True, top_n_tokens=3)
    yield current("stream-top-tokens", [sse(f) for f in said], asked=topped)
    said = frames((EOS,), details=details("eos_token", 1, input_length=5))
    yield current("stream-eos-at-once", [sse(f) for f in said], **full)
    # A special token in the middle, as models with tool marks send them.
    special = (TOKENS[0], token(32, "<|mark|>", -1.0, special=True), *TOKENS[1:], EOS)
    said = frames(special, details=details("eos_token", 8, input_length=5))
    yield current("stream-special", [sse(f) for f in said], **full)
    # The prompt stands before the whole text, not before the deltas.
    whole = PROMPT + "".join(one["text"] for one in TOKENS)
    said = frames(ended, details=details("eos_token", 7, input_length=5), text=whole)
    returned = asked(details=True, return_full_text=True)
    yield current("stream-full-text", [sse(f) for f in said], asked=returned)
    # Comments every 15 s: before the first token, and between two.
    said = frames(ended, details=details("eos_token", 7, input_length=5))
    pieces = [KEEP_ALIVE, KEEP_ALIVE, *(sse(f) for f in said)]
    pieces.insert(5, KEEP_ALIVE)
    yield current("stream-keep-alive", pieces, **full)
    yield current("truncated", [sse(f) for f in said[:3]], complete=False, **full)
    # All frames but the last, and the transfer is whole: nothing that a server should do.
    yield current("no-last-frame", [sse(f) for f in said[:-1]], **full)


def errors() -> Iterator[Exchange]:
    """Errors of streams, all inside a 200."""
    old, new = f"{AXUM_06}; {ERRORS}", f"{AXUM_07}; {ERRORS}"
    validation = {
        "error": "Input validation error: `temperature` must be strictly positive",
        "error_type": "validation",
    }
    overloaded = {"error": "Model is overloaded", "error_type": "overloaded"}
    generation = {
        "error": "Request failed during generation: Server error: CUDA out of memory",
        "error_type": "generation",
    }
    incomplete = {"error": "Incomplete generation", "error_type": "incomplete_generation"}
    cold = asked(temperature=0)
    yield Exchange(
        "tgi204-err-validation", "2.0.4", old, [sse(validation, space=False)], asked=cold
    )
    yield Exchange("tgi337-err-validation", "3.3.7", new, [sse(validation)], asked=cold)
    yield Exchange("tgi337-err-overloaded", "3.3.7", new, [sse(overloaded)], asked=asked())
    yield Exchange("tgi337-err-generation-first", "3.3.7", new, [sse(generation)], asked=asked())
    begun = [sse(frame) for frame in frames(TOKENS)[:3]]
    for name, error in (("generation", generation), ("incomplete", incomplete)):
        body = [*begun, sse(error)]
        yield Exchange(f"tgi337-err-{name}-mid", "3.3.7", new, body, asked=asked())


def openai() -> Iterator[Exchange]:
    """The OpenAI routes, read by the dialect openai."""
    shared = {"id": "", "created": 1795384205, "model": "tiny"}
    stamp = {"system_fingerprint": "3.3.7-native"}
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}

    def completion(text: str, finish: str, **more: Any) -> bytes:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
        chunk = {"object": "text_completion", **shared, "choices": [choice], **stamp}
        return sse(chunk | more)

    def chat(content: str, finish: str | None) -> bytes:
        delta = {"role": "assistant", "content": content}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        chunk = {"object": "chat.completion.chunk", **shared, **stamp, "choices": [choice]}
        return sse(chunk | {"usage": None})

    done = b"data: [DONE]\n\n"
    body = [
        completion(" there", ""),
        completion(" was", ""),
        completion("", "eos_token", usage=usage),
        done,
    ]
    request = {"model": "tiny", "prompt": PROMPT, "max_tokens": 20, "stream": True}
    route = "/v1/completions"
    yield Exchange("tgi337-v1-completions", "3.3.7", OPENAI, body, route, request)
    message = {"role": "user", "content": "hello"}
    request = {"model": "tiny", "messages": [message], "max_tokens": 20, "stream": True}
    route = "/v1/chat/completions"
    for name, finish in (("chat", "stop"), ("chat-stop-sequence", "stop_sequence")):
        body = [chat(" there", None), chat(" was", None), chat("", finish), done]
        yield Exchange(f"tgi337-v1-{name}", "3.3.7", OPENAI, body, route, request)
    error = {"error": {"message": "Model is overloaded", "http_status_code": 422}}
    yield Exchange("tgi337-v1-chat-error", "3.3.7", OPENAI, [sse(error), done], route, request)


def unary() -> Iterator[Exchange]:
    """Answers that are no streams: information, health, refusals, a generation."""
    as_json = (("content-type", "application/json"),)
    as_text = (("content-type", "text/plain; charset=utf-8"),)
    info = {
        "model_id": "bigscience/blomm-560m",
        "model_sha": "e985a63cdc139290c5f700ff1929f0b5942cced2",
        "model_pipeline_tag": "text-generation",
    }
    limits = {"max_concurrent_requests": 128, "max_best_of": 2, "max_stop_sequences": 4}
    build = {"version": "3.3.7", "sha": "a3b5e7f", "docker_label": "sha-a3b5e7f"}
    now = limits | {
        "max_input_tokens": 1024, "max_total_tokens": 2048, "validation_workers": 2,
        "max_client_batch_size": 32, "router": "text-generation-router",
    }  # fmt: skip
    then = {"model_dtype": "torch.float16", "model_device_type": "cuda"} | limits | {
        "max_input_length": 1024, "max_total_tokens": 2048, "waiting_served_ratio": 1.2,
        "max_batch_total_tokens": 32000, "max_waiting_tokens": 20, "max_batch_size": None,
        "validation_workers": 2, "max_client_batch_size": 32,
    }  # fmt: skip
    infos = "router/src/lib.rs Info"
    for tag, version, fields in (("tgi337", "3.3.7", now), ("tgi204", "2.0.4", then)):
        body = document(info | fields | build | {"version": version})
        yield Exchange(f"{tag}-info", version, infos, body, "/info", None, headers=as_json)
    health = "router/src/server.rs health"
    sick = document({"error": "unhealthy", "error_type": "healthcheck"})
    yield Exchange("tgi337-health", "3.3.7", health, b"", "/health", None, headers=())
    yield Exchange(
        "tgi337-health-unhealthy", "3.3.7", health, sick, "/health", None,
        "503 Service Unavailable", as_json,
    )  # fmt: skip
    text = "".join(one["text"] for one in TOKENS)
    told = details("eos_token", 7) | {"prefill": [], "tokens": [*TOKENS, EOS]}
    body = document({"generated_text": text, "details": told})
    kind = "router/src/lib.rs GenerateResponse"
    full = asked(details=True)
    yield Exchange("tgi337-generate", "3.3.7", kind, body, "/generate", full, headers=as_json)
    refused = "router/src/server.rs From<InferError>"
    for name, status, error, error_type in (
        ("overloaded", "429 Too Many Requests", "Model is overloaded", "overloaded"),
        ("generation", "424 Failed Dependency", "Request failed during generation: x",
         "generation"),
        ("validation", "422 Unprocessable Entity", "Input validation error: x", "validation"),
        ("incomplete", "500 Internal Server Error", "Incomplete generation",
         "incomplete_generation"),
    ):  # fmt: skip
        body = document({"error": error, "error_type": error_type})
        yield Exchange(
            f"tgi337-generate-{name}", "3.3.7", refused, body, "/generate", asked(), status,
            as_json,
        )  # fmt: skip
    words = (
        ("bad-json", "400 Bad Request", b'{"inputs":', as_text,
         b"Failed to parse the request body as JSON: EOF while parsing a value"),
        ("missing-inputs", "422 Unprocessable Entity", b"{}", as_text,
         b"Failed to deserialize the JSON body into the target type: missing field `inputs`"),
        ("unauthorized", "401 Unauthorized", document(asked()), (), b""),
    )  # fmt: skip
    for name, status, request, headers, body in words:
        yield Exchange(
            f"tgi337-err-{name}", "3.3.7", EXTRACTORS, body, asked=request, status=status,
            headers=headers,
        )  # fmt: skip


def files() -> dict[str, bytes]:
    """Every file of the folder, by name."""
    out = {}
    for exchange in (*streams(), *errors(), *openai(), *unary()):
        out[f"{exchange.name}.http"] = exchange.http()
        out[f"{exchange.name}.request"] = exchange.request()
        facts = json.dumps(exchange.facts(), ensure_ascii=False, indent=1)
        out[f"{exchange.name}.json"] = facts.encode() + b"\n"
    return out


def check() -> Iterator[str]:
    """Everything wrong with the committed files, one line each."""
    wanted = files()
    for name, content in wanted.items():
        path = FOLDER / name
        if not path.exists() or path.read_bytes() != content:
            yield f"{name}: differs from what the source documents"
    for path in FOLDER.iterdir():
        if path.suffix != ".jsonl" and path.name not in wanted:
            yield f"{path.name}: documented by nothing"


def main(argv: list[str]) -> int:
    """Write or check the files; 1 if the check finds anything."""
    parser = argparse.ArgumentParser(prog="python -m tests.captures.tgi_frames")
    parser.add_argument("--check", action="store_true", help="change nothing, report differences")
    if parser.parse_args(argv).check:
        wrong = list(check())
        sys.stdout.write("".join(f"{line}\n" for line in wrong))
        return 1 if wrong else 0
    FOLDER.mkdir(exist_ok=True)
    for name, content in files().items():
        (FOLDER / name).write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
