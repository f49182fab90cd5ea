"""SGLang's server."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from worker_adapters.testing.engines._base import (
    CONTEXT,
    Behaviour,
    Generation,
    Refusal,
    body_of,
    compact,
    example_of,
    sse,
    stops_of,
    token_id,
)
from worker_adapters.testing.engines._openai import PHRASES, UVICORN
from worker_adapters.testing.engines._openai_routes import OpenAiRoutes
from worker_adapters.testing.wire import Connection, Received, response

__all__ = ["SglangEngine"]


class SglangEngine(OpenAiRoutes):
    """As SGLang 0.5.20.

    Args:
        behaviour: As the others have it.
        incremental: As with ``--incremental-streaming-output``: frames hold new text only.
        is_embedding: As with ``--is-embedding``: it embeds and reranks, and generates nothing.
        options: As the others have them.
    """

    dialect = "sglang"
    version: ClassVar[str] = "0.5.20"
    chat_extras: ClassVar[Mapping[str, Any]] = {"reasoning_content": None}
    stream_headers = (
        *UVICORN,
        ("content-type", "text/event-stream; charset=utf-8"),
        ("Transfer-Encoding", "chunked"),
    )

    def __init__(
        self,
        behaviour: Behaviour | None = None,
        *,
        incremental: bool = False,
        is_embedding: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(behaviour, **options)
        self.incremental = incremental
        self.is_embedding = is_embedding

    async def answer(self, connection: Connection, request: Received) -> bool:
        """Answer one request. Raises Refusal."""
        match request.route:
            case "GET /health" | "GET /health_generate" | "GET /ready":
                loading = self.refusal(Refusal(503, "", "loading"))
                return await self.health(connection, self.json(None), loading)
            case "GET /server_info" | "GET /get_server_info":
                await connection.send(self.json(self._server_info()))
            case "GET /model_info" | "GET /get_model_info":
                await connection.send(self.json(self._model_info()))
            case "GET /v1/models":
                row = {"id": self.model, "owned_by": "sglang", "max_model_len": CONTEXT}
                await connection.send(self.json({"object": "list", "data": [row]}))
            case "GET /v1/loads":
                load = {
                    "dp_rank": 0,
                    "num_running_reqs": self.busy,
                    "num_waiting_reqs": 0,
                    "max_running_requests": self.slots,
                }
                await connection.send(self.json({"version": self.version, "loads": [load]}))
            case "GET /metrics":
                text = f"sglang:num_running_reqs {float(self.busy)}\n"
                await connection.send(response(text, content_type="text/plain"))
            case "POST /abort_request":
                asked = body_of(request)
                wanted = [asked["rid"]] if asked.get("rid") else []
                if asked.get("abort_all"):
                    wanted = [row.id for row in self.generations]
                for name in wanted:
                    self.abort(name)
                await connection.send(self.json(None))
            case "POST /v1/embeddings" | "POST /v1/rerank" if not self.is_embedding:
                raise Refusal(400, "This model does not appear to be an embedding model")
            case "POST /generate":
                return await self._generate(connection, request)
            case _:
                answered = await self.openai(connection, request)
                if answered is None:
                    raise Refusal(404, "Not Found", "route")
                return answered
        return True

    def name(self, request: Received) -> str:
        """Return the id of a generation: the one it was given."""
        return body_of(request).get("rid") or f"{len(self.generations):032x}"

    def _server_info(self) -> dict[str, Any]:
        return {
            "model_path": f"models/{self.model}",
            "served_model_name": self.model,
            "context_length": CONTEXT,
            "max_running_requests": self.slots,
            "incremental_streaming_output": self.incremental,
            "enable_metrics": True,
            "enable_lora": False,
            "lora_paths": None,
            "enable_priority_scheduling": True,
            "schedule_low_priority_values_first": False,
            "enable_deterministic_inference": True,
            "tool_call_parser": "qwen25",
            "dp_size": 1,
            "internal_states": [{"effective_max_running_requests_per_dp": self.slots}],
            "version": self.version,
        }

    def _model_info(self) -> dict[str, Any]:
        return {
            "model_path": f"models/{self.model}",
            "served_model_name": self.model,
            "is_generation": not self.is_embedding,
            "has_image_understanding": False,
        }

    async def _generate(self, connection: Connection, request: Received) -> bool:
        asked = body_of(request)
        prompt = asked.get("text")
        if not isinstance(prompt, str):
            raise Refusal(400, "Either text, input_ids or input_embeds should be provided.")
        sampling = asked.get("sampling_params") or {}
        try:
            generation = self.new_generation(
                request,
                asked,
                sampling.get("max_new_tokens", 128),
                prompt,
                id=self.name(request),
                stop=stops_of(sampling),
                pieces=_constrained(sampling),
            )
        except Refusal as refusal:
            # Once it is asked to stream, even a refusal is one.
            await connection.send(self.stream_head())
            await self._send(connection, self.behaviour, self.failure(refusal))
            await connection.send(b"0\r\n\r\n")
            return True
        return await self.stream(connection, generation)

    def constrained(self, asked: Mapping[str, Any]) -> tuple[str, ...] | None:
        """Return what a constraint makes it say."""
        return _constrained(asked) or super().constrained(asked)

    def too_long(self, tokens: int) -> str:
        """Return what it says to a prompt of so many tokens."""
        return (
            f"The input ({tokens} tokens) is longer than the model's context length "
            f"({CONTEXT} tokens)."
        )

    def frame(self, generation: Generation, number: int, text: str) -> bytes:
        """Return the frame of one token: new text, or all of it once more."""
        if not _is_native(generation):
            return super().frame(generation, number, text)
        return self._frame(generation, text, self._reason(generation, generation.ends))

    def _frame(self, generation: Generation, text: str, reason: Any) -> bytes:
        ids = [token_id(text)] if text else []
        if not self.incremental:
            said, ids = generation.text, [7] * generation.sent
        else:
            said = text
        meta: dict[str, Any] = {
            "id": generation.id,
            "finish_reason": reason,
            "prompt_tokens": generation.prompt_tokens,
            "weight_version": "default",
            "reasoning_tokens": 0,
            "completion_tokens": generation.sent,
            "cached_tokens": 0,
            "dp_rank": None,
        }
        if generation.asked.get("return_logprob"):
            rows = [[-0.5, one, None] for one in ids]
            meta |= {"output_token_logprobs": rows, "output_top_logprobs": [[row] for row in rows]}
        return sse({"text": said, "output_ids": ids, "meta_info": meta})

    def _reason(self, generation: Generation, reason: str | None) -> dict[str, Any] | None:
        match reason:
            case None:
                return None
            case "length":
                return {"type": "length", "length": generation.sent}
            case "stop":
                return {"type": "stop", "matched": generation.stopped_by or 2}
        return {"type": "abort", "message": "Aborted", "status_code": None}

    def ending(self, generation: Generation, reason: str) -> Iterable[bytes]:
        """Return the frame that says why it ends, unless the last token did, and the marker."""
        if not _is_native(generation):
            yield from super().ending(generation, reason)
            return
        if generation.ends is None or reason == "abort":
            yield self._frame(generation, "", self._reason(generation, reason))
        yield sse("[DONE]")

    def error(self, refusal: Refusal) -> dict[str, Any]:
        """Return what an error looks like in a stream."""
        kind = "invalid_request_error" if refusal.status < 500 else "internal_error"
        shown = {"message": refusal.message, "type": kind, "code": refusal.status}
        return {"error": {**shown, "retryable": False}}

    def refusal(self, refusal: Refusal) -> bytes:
        """Return the response that refuses a request."""
        status = f"{refusal.status} {PHRASES.get(refusal.status, 'Error')}"
        if refusal.kind == "route":
            return self.json({"detail": refusal.message}, status)
        if refusal.kind == "key":
            return self.json({"error": "Unauthorized"}, status)
        flat = {
            "object": "error",
            "message": refusal.message,
            "type": PHRASES.get(refusal.status, "Error"),
            "param": None,
            "code": refusal.status,
        }
        return self.json(flat, status)

    def json(self, answer: Any, status: str = "200 OK") -> bytes:
        """Return a whole answer; None is an empty one."""
        body = "" if answer is None else compact(answer)
        return response(body, status, headers=UVICORN)


def _is_native(generation: Generation) -> bool:
    return generation.request.path.startswith("/generate")


def _constrained(asked: Mapping[str, Any]) -> tuple[str, ...] | None:
    if asked.get("json_schema"):
        return (compact(example_of(json.loads(asked["json_schema"]))),)
    if asked.get("regex", "").startswith("("):
        # The first of the words that a choice was made into.
        return (asked["regex"].strip("()").split("|")[0],)
    return None
