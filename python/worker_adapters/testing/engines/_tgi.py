"""Text Generation Inference."""

from __future__ import annotations

import json
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
from worker_adapters.testing.engines._openai import PHRASES
from worker_adapters.testing.engines._openai_routes import OpenAiRoutes
from worker_adapters.testing.wire import Connection, Received, response

__all__ = ["TgiEngine"]

_TYPES: Final[Mapping[str, str]] = {
    "too_long": "validation",
    "invalid": "validation",
    "engine": "generation",
    "loading": "healthcheck",
}


class TgiEngine(OpenAiRoutes):
    """As Text Generation Inference 3.3.7, whose source its frames are made after."""

    dialect = "tgi"
    model = "org/tiny"
    has_status_errors = False
    workloads: ClassVar[frozenset[str]] = frozenset()
    slots: ClassVar[int] = 128
    stream_headers = (
        ("content-type", "text/event-stream"),
        ("cache-control", "no-cache"),
        ("x-compute-type", "cpu"),
        ("x-accel-buffering", "no"),
        ("transfer-encoding", "chunked"),
    )

    def is_open(self, path: str) -> bool:
        """Whether a path needs no key."""
        return not path.startswith(("/generate", "/v1/chat", "/v1/completions"))

    async def answer(self, connection: Connection, request: Received) -> bool:
        """Answer one request. Raises Refusal."""
        match request.route:
            case "GET /health" | "GET /ping":
                loading = self.refusal(Refusal(503, "unhealthy", "loading"))
                return await self.health(connection, self.json(None), loading)
            case "GET /info":
                await connection.send(self.json(self._info()))
            case "GET /metrics":
                text = f"tgi_batch_current_size {self.busy}\ntgi_queue_size 0\n"
                await connection.send(response(text, content_type="text/plain"))
            case "GET /v1/models":
                row = {"id": self.model, "object": "model", "owned_by": self.model}
                await connection.send(self.json({"object": "list", "data": [row]}))
            case "POST /generate_stream":
                return await self._generate(connection, request)
            case _:
                answered = await self.openai(connection, request)
                if answered is None:
                    raise Refusal(404, "", "route")
                return answered
        return True

    def _info(self) -> dict[str, Any]:
        return {
            "model_id": self.model,
            "model_sha": "e985a63cdc139290c5f700ff1929f0b5942cced2",
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": self.slots,
            "max_best_of": 2,
            "max_stop_sequences": 4,
            "max_input_tokens": CONTEXT - 1,
            "max_total_tokens": CONTEXT,
            "validation_workers": 2,
            "max_client_batch_size": 32,
            "router": "text-generation-router",
            "version": "3.3.7",
            "sha": "a3b5e7f",
            "docker_label": "sha-a3b5e7f",
        }

    async def _generate(self, connection: Connection, request: Received) -> bool:
        asked = body_of(request)
        prompt = asked.get("inputs")
        parameters = asked.get("parameters") or {}
        if not isinstance(prompt, str):
            raise Refusal(422, "missing field `inputs`", "json")
        try:
            _validate(parameters)
            generation = self.new_generation(
                request,
                asked,
                parameters.get("max_new_tokens", 100),
                prompt,
                stop=stops_of(parameters),
                pieces=_constrained(parameters),
            )
        except Refusal as refusal:
            # The head of a stream is sent before anything is looked at.
            await connection.send(self.stream_head())
            await self._send(connection, self.behaviour, self.failure(refusal))
            await connection.send(b"0\r\n\r\n")
            return True
        return await self.stream(connection, generation)

    def constrained(self, asked: Mapping[str, Any]) -> tuple[str, ...] | None:
        """Return what a constraint makes it say."""
        wanted = asked.get("response_format") or {}
        return _constrained({"grammar": wanted}) if wanted else None

    def too_long(self, tokens: int) -> str:
        """Return what it says to a prompt of so many tokens."""
        return (
            f"Input validation error: `inputs` must have less than {CONTEXT - 1} tokens. "
            f"Given: {tokens}"
        )

    def frame(self, generation: Generation, number: int, text: str) -> bytes:
        """Return the frame of one token; the last has the whole text, too."""
        # What it stops at stays in the text.
        text += generation.stopped_at
        generation.text += generation.stopped_at
        if not _is_native(generation):
            return super().frame(generation, number, text)
        return self._frame(generation, token_id(text), text, generation.ends)

    def _frame(
        self, generation: Generation, token: int, text: str, ends: str | None, special: bool = False
    ) -> bytes:
        details: dict[str, Any] | None = None
        if ends is not None and generation.asked["parameters"].get("details"):
            details = {
                "finish_reason": ends if special or ends == "length" else "stop_sequence",
                "generated_tokens": generation.sent,
                "seed": generation.asked["parameters"].get("seed"),
                "input_length": generation.prompt_tokens,
            }
        row = {"id": token, "text": text, "logprob": -0.5, "special": special}
        frame: dict[str, Any] = {"index": generation.sent, "token": row}
        if generation.asked["parameters"].get("top_n_tokens"):
            frame["top_tokens"] = [row]
        frame["generated_text"] = None if ends is None else generation.text
        return sse({**frame, "details": details})

    def ending(self, generation: Generation, reason: str) -> Iterable[bytes]:
        """Return the end-of-sequence token where nothing else has ended it."""
        if not _is_native(generation):
            told = "stop_sequence" if generation.stopped_by is not None else reason
            yield from super().ending(generation, told)
        elif generation.ends is None:
            generation.sent += 1
            yield self._frame(generation, 2, "</s>", "eos_token", special=True)

    def failure(self, refusal: Refusal) -> Iterable[bytes]:
        """Return the error as an event."""
        kind = _TYPES.get(refusal.kind, "validation")
        if refusal.kind == "engine" and refusal.status in {429, 503}:
            yield sse({"error": "Model is overloaded", "error_type": "overloaded"})
            return
        words = refusal.message
        if refusal.kind == "engine":
            words = f"Request failed during generation: Server error: {words}"
        yield sse({"error": words, "error_type": kind})

    def refusal(self, refusal: Refusal) -> bytes:
        """Return the response that refuses a request."""
        status = f"{refusal.status} {PHRASES.get(refusal.status, 'Error')}"
        if refusal.kind == "key":
            return response("", status)
        if refusal.kind == "json":
            return response(refusal.message, status, "text/plain; charset=utf-8")
        kind = _TYPES.get(refusal.kind, "validation")
        return self.json({"error": refusal.message, "error_type": kind}, status)

    def json(self, answer: Any, status: str = "200 OK") -> bytes:
        """Return a whole answer; None is an empty one."""
        return response("" if answer is None else compact(answer), status)


def _is_native(generation: Generation) -> bool:
    return generation.request.path.startswith("/generate_stream")


def _validate(parameters: Mapping[str, Any]) -> None:
    """Raise Refusal for what the server takes no value of."""
    if parameters.get("temperature") == 0:
        raise Refusal(422, "Input validation error: `temperature` must be strictly positive")
    top_p = parameters.get("top_p")
    if top_p is not None and not 0 < top_p < 1:
        raise Refusal(422, "Input validation error: `top_p` must be > 0.0 and < 1.0")


def _constrained(parameters: Mapping[str, Any]) -> tuple[str, ...] | None:
    grammar = parameters.get("grammar") or {}
    match grammar.get("type"):
        case "json":
            return (compact(example_of(grammar["value"])),)
        case "json_schema":
            return (compact(example_of(grammar["json_schema"]["schema"])),)
        case "regex" if grammar["value"].startswith("("):
            return (grammar["value"].strip("()").split("|")[0],)
        case None:
            return None
    return (json.dumps(grammar),)
