"""llama.cpp's server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final

from worker_adapters.testing.engines._base import (
    CONTEXT,
    Generation,
    Refusal,
    body_of,
    compact,
    example_of,
    sse,
    stops_of,
    token_id,
)
from worker_adapters.testing.engines._openai_routes import OpenAiRoutes
from worker_adapters.testing.wire import Connection, Received, response

__all__ = ["LlamaCppEngine"]

_HEADERS: Final = (("Server", "llama.cpp"), ("Access-Control-Allow-Origin", ""))
_JSON: Final = "application/json; charset=utf-8"
_STATUSES: Final[Mapping[int, tuple[str, str]]] = {
    400: ("Bad Request", "invalid_request_error"),
    401: ("Unauthorized", "authentication_error"),
    404: ("Not Found", "not_found_error"),
    429: ("Too Many Requests", "unavailable_error"),
    500: ("Internal Server Error", "server_error"),
    501: ("Not Implemented", "not_supported_error"),
    503: ("Service Unavailable", "unavailable_error"),
}


class LlamaCppEngine(OpenAiRoutes):
    """As ``llama-server`` of 2026 with ``-np 4 --metrics --embeddings --reranking``."""

    dialect = "llamacpp"
    model = "tiny.gguf"
    keeps_after_stream = False
    stream_headers = (
        *_HEADERS,
        ("X-Accel-Buffering", "no"),
        ("Content-Type", "text/event-stream"),
        ("Transfer-Encoding", "chunked"),
        ("Keep-Alive", "timeout=5, max=100"),
    )
    workloads: ClassVar[frozenset[str]] = frozenset({"embedding", "rerank"})

    async def answer(self, connection: Connection, request: Received) -> bool:
        """Answer one request. Raises Refusal."""
        ready = self.behaviour.ready
        if request.route in {"GET /health", "GET /v1/health"}:
            loading = self.refusal(Refusal(503, "Loading model", "loading"))
            return await self.health(connection, self.json({"status": "ok"}), loading)
        if not ready:
            raise Refusal(503, "Loading model", "loading")
        match request.route:
            case "GET /props":
                await connection.send(self.json(self._props()))
            case "GET /slots":
                slots = [
                    {"id": at, "n_ctx": CONTEXT, "is_processing": at < self.busy}
                    for at in range(self.slots)
                ]
                await connection.send(self.json(slots))
            case "GET /metrics":
                text = "llamacpp:requests_processing " + str(self.busy) + "\n"
                await connection.send(response(text, content_type="text/plain; version=0.0.4"))
            case "GET /v1/models":
                row = {"id": self.model, "object": "model", "owned_by": "llamacpp"}
                meta = {"n_ctx_train": CONTEXT, "n_embd": 4, "n_params": 1, "size": 1}
                listing = {"object": "list", "data": [row | {"meta": meta}]}
                await connection.send(self.json(listing))
            case "POST /completion":
                return await self._completion(connection, request)
            case _:
                answered = await self.openai(connection, request)
                if answered is None:
                    raise Refusal(404, "File Not Found", "route")
                return answered
        return True

    def _props(self) -> dict[str, Any]:
        return {
            "default_generation_settings": {"n_ctx": CONTEXT},
            "total_slots": self.slots,
            "model_alias": self.model,
            "model_path": f"/models/{self.model}",
            "endpoint_slots": True,
            "endpoint_metrics": True,
            "build_info": "b9999-0c1e570",
        }

    async def _completion(self, connection: Connection, request: Received) -> bool:
        asked = body_of(request)
        prompt = asked.get("prompt")
        if not isinstance(prompt, str):
            raise Refusal(400, '"prompt" must be a string', "missing")
        generation = self.new_generation(
            request,
            asked,
            max(1, asked.get("n_predict", 16)),
            prompt,
            stop=stops_of(asked),
            pieces=_constrained(asked),
        )
        return await self.stream(connection, generation)

    def constrained(self, asked: Mapping[str, Any]) -> tuple[str, ...] | None:
        """Return what a constraint makes it say."""
        return _constrained(asked) or super().constrained(asked)

    def too_long(self, tokens: int) -> str:
        """Return what it says to a prompt of so many tokens."""
        return (
            f"request ({tokens} tokens) exceeds the available context size ({CONTEXT} tokens), "
            "try increasing it"
        )

    def frame(self, generation: Generation, number: int, text: str) -> bytes:
        """Return the frame of one token."""
        if not _is_native(generation):
            return super().frame(generation, number, text)
        fields: dict[str, Any] = {
            "index": 0,
            "content": text,
            "tokens": [token_id(text)],
            "stop": False,
            "id_slot": -1,
            "tokens_predicted": number + 1,
            "tokens_evaluated": generation.prompt_tokens,
        }
        if generation.asked.get("n_probs"):
            row = {"id": token_id(text), "token": text, "bytes": list(text.encode())}
            top = [{**row, "logprob": -0.5}]
            fields["completion_probabilities"] = [{**row, "logprob": -0.5, "top_logprobs": top}]
        return sse(fields)

    def ending(self, generation: Generation, reason: str) -> Iterable[bytes]:
        """Return the frame that says that it is the last."""
        if not _is_native(generation):
            yield from super().ending(generation, reason)
            return
        word = generation.stopped_by
        kinds = {"length": "limit", "stop": "eos" if word is None else "word"}
        yield sse(
            {
                "index": 0,
                "content": "",
                "tokens": [],
                "id_slot": 0,
                "stop": True,
                "model": self.model,
                "tokens_predicted": generation.sent,
                "tokens_evaluated": generation.prompt_tokens,
                "has_new_line": False,
                "truncated": False,
                "stop_type": kinds.get(reason, "none"),
                "stopping_word": word or "",
                "tokens_cached": generation.prompt_tokens + generation.sent - 1,
                "timings": {
                    "cache_n": 0,
                    "prompt_n": generation.prompt_tokens,
                    "predicted_n": generation.sent,
                },
            }
        )

    def failure(self, refusal: Refusal) -> Iterable[bytes]:
        """Return the error as a frame; no marker follows it."""
        yield sse(self.error(refusal))

    def error(self, refusal: Refusal) -> dict[str, Any]:
        """Return what an error looks like."""
        kind = _STATUSES.get(refusal.status, ("", "server_error"))[1]
        if refusal.kind == "too_long":
            kind = "exceed_context_size_error"
        return {"error": {"code": refusal.status, "message": refusal.message, "type": kind}}

    def refusal(self, refusal: Refusal) -> bytes:
        """Return the response that refuses a request."""
        phrase = _STATUSES.get(refusal.status, ("Error", ""))[0]
        return self.json(self.error(refusal), f"{refusal.status} {phrase}")

    def json(self, answer: Any, status: str = "200 OK") -> bytes:
        """Return a whole answer."""
        headers = (*_HEADERS, ("Keep-Alive", "timeout=5, max=100"))
        return response(compact(answer), status, _JSON, headers)


def _is_native(generation: Generation) -> bool:
    return generation.request.path.startswith("/completion")


def _constrained(asked: Mapping[str, Any]) -> tuple[str, ...] | None:
    if asked.get("json_schema"):
        return (compact(example_of(asked["json_schema"])),)
    grammar = asked.get("grammar", "")
    if grammar.startswith('root ::= "'):
        # The first of the words that a choice was made into.
        return (grammar.split('"')[1],)
    return None
