"""Triton with TensorRT-LLM's models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final

from worker_adapters.testing.engines._base import (
    Behaviour,
    Generation,
    Refusal,
    ScriptedEngine,
    body_of,
    compact,
    sse,
    stops_of,
    vector,
)
from worker_adapters.testing.engines._openai import PHRASES
from worker_adapters.testing.wire import Connection, Received, response

__all__ = ["TritonEngine"]

_INFLIGHT: Final[Mapping[str, str]] = {
    "text_input": "STRING",
    "max_tokens": "INT32",
    "stop_words": "STRING",
    "exclude_input_in_output": "BOOL",
    "top_k": "INT32",
    "top_p": "FP32",
    "temperature": "FP32",
    "seed": "UINT64",
    "return_log_probs": "BOOL",
    "stream": "BOOL",
}
_LLMAPI: Final[Mapping[str, str]] = {
    "text_input": "STRING",
    "streaming": "BOOL",
    "sampling_param_max_tokens": "INT32",
    "sampling_param_temperature": "FP32",
    "sampling_param_top_k": "INT32",
    "sampling_param_top_p": "FP32",
    "sampling_param_seed": "UINT64",
    "sampling_param_stop": "STRING",
    "sampling_param_exclude_input_from_output": "BOOL",
    "return_finish_reason": "BOOL",
    "stop": "BOOL",
}
_OUTPUTS: Final[Mapping[str, str]] = {"text_output": "STRING", "cum_log_probs": "FP32"}


class TritonEngine(ScriptedEngine):
    """As Triton 2.51 with one or more of TensorRT-LLM's models.

    Args:
        behaviour: As the others have it.
        models: Their names: ``tensorrt_llm_bls`` (the default) sends deltas,
            ``tensorrt_llm_bls_accum`` all text so far, ``tensorrt_llm`` is the LLM API's;
            ``embedding`` turns texts into vectors.
        options: As the others have them.
    """

    dialect = "triton"
    stream_headers = (
        ("Content-Type", "text/event-stream; charset=utf-8"),
        ("Transfer-Encoding", "chunked"),
    )
    version: ClassVar[str] = "2.51.0"

    def __init__(
        self,
        behaviour: Behaviour | None = None,
        *,
        models: Iterable[str] = ("tensorrt_llm_bls",),
        **options: Any,
    ) -> None:
        super().__init__(behaviour, **options)
        self.models = tuple(models)

    async def answer(self, connection: Connection, request: Received) -> bool:
        """Answer one request. Raises Refusal."""
        _, *parts = request.path.partition("?")[0].split("/")
        match request.method, *parts:
            case "GET", "v2":
                server = {"name": "triton", "version": self.version, "extensions": ["generate"]}
                await connection.send(self.json(server))
            case "GET", "v2", "health", _:
                return await self.health(connection, _plain(), _plain("400 Bad Request"))
            case "POST", "v2", "repository", "index":
                state = "READY" if self.behaviour.ready else "LOADING"
                rows = [{"name": name, "version": "1", "state": state} for name in self.models]
                await connection.send(self.json(rows))
            case "GET", "v2", "models", name, "ready":
                self._known(name)
                loading = self.refusal(Refusal(400, "Model version not ready"))
                return await self.health(connection, _plain(), loading)
            case "GET", "v2", "models", name, "config":
                self._known(name)
                await connection.send(self.json(_config(name)))
            case "POST", "v2", "models", name, "generate_stream":
                self._known(name)
                return await self._generate(connection, request)
            case "POST", "v2", "models", name, "generate":
                self._known(name)
                asked = body_of(request)
                if asked.get("stop"):
                    self.abort(str(asked.get("id", "")))
                await connection.send(self.json({"model_name": name, "text_output": ""}))
            case "POST", "v2", "models", "embedding", "infer":
                self._known("embedding")
                await connection.send(self.json(_embeddings(body_of(request))))
            case _:
                raise Refusal(404, "Not Found", "route")
        return True

    def _known(self, name: str) -> None:
        if name not in self.models:
            raise Refusal(404, f"Request for unknown model: '{name}' is not found")

    async def _generate(self, connection: Connection, request: Received) -> bool:
        asked = body_of(request)
        name = request.path.split("/")[3]
        prompt = asked.get("text_input")
        if not isinstance(prompt, str):
            raise Refusal(400, f"[request id: <id_unknown>] expected inputs for '{name}'")
        is_llmapi = name == "tensorrt_llm"
        limit = asked.get("sampling_param_max_tokens" if is_llmapi else "max_tokens", 16)
        generation = self.new_generation(
            request,
            asked,
            limit,
            prompt,
            id=str(asked.get("id", "")),
            stop=stops_of(asked, "sampling_param_stop" if is_llmapi else "stop_words"),
        )
        return await self.stream(connection, generation)

    def frame(self, generation: Generation, number: int, text: str) -> bytes:
        """Return the event of one token: new text, or all of it once more."""
        del number
        name = generation.request.path.split("/")[3]
        if name != "tensorrt_llm":
            # What it stops at stays in the text.
            text += generation.stopped_at
            generation.text += generation.stopped_at
        said = text if name == "tensorrt_llm_bls" else generation.text
        event: dict[str, Any] = {"model_name": name, "model_version": "1", "text_output": said}
        if generation.asked.get("return_finish_reason"):
            event["finish_reason"] = generation.ends or ""
        if generation.asked.get("return_log_probs"):
            event |= {"cum_log_probs": -0.5, "output_log_probs": -0.5}
        return sse(event)

    def ending(self, generation: Generation, reason: str) -> Iterable[bytes]:
        """Return nothing: the end of the body is the end."""
        name = generation.request.path.split("/")[3]
        if reason == "stop" and generation.ends is None and name == "tensorrt_llm":
            event = {"model_name": name, "model_version": "1", "text_output": generation.text}
            yield sse({**event, "finish_reason": "stop"})

    def failure(self, refusal: Refusal) -> Iterable[bytes]:
        """Return the error as an event."""
        yield sse({"error": _words(refusal)})

    def refusal(self, refusal: Refusal) -> bytes:
        """Return the response that refuses a request: 400, whatever it is."""
        if refusal.kind == "engine":
            # Of a stream that fails before it has begun.
            body = sse({"error": _words(refusal)})
            head = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
            return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        status = f"{refusal.status} {PHRASES.get(refusal.status, 'Error')}"
        return self.json({"error": refusal.message}, status)

    def too_long(self, tokens: int) -> str:
        """Return what it says to a prompt of so many tokens."""
        return (
            "Executor failed process requestId 1 due to the following error: Encountered an error "
            f"when fetching new request: Prompt length ({tokens}) exceeds maximum input length "
            "(4095). Set log level to info and check TRTGptModel logs for how maximum input "
            "length is set"
        )

    def json(self, answer: Any, status: str = "200 OK") -> bytes:
        """Return a whole answer."""
        return response(compact(answer), status)


def _words(refusal: Refusal) -> str:
    """Return how a failure is put: nothing but the words tell one from another."""
    if refusal.kind != "engine":
        return refusal.message
    if refusal.status in {429, 503}:
        return "in ensemble 'ensemble', Exceeds maximum queue size"
    failure = "Executor failed process requestId 1 due to the following error"
    return f"in ensemble 'ensemble', {failure}: {refusal.message}"


def _plain(status: str = "200 OK") -> bytes:
    return response("", status, "text/plain")


def _tensors(names: Mapping[str, str], optional: bool) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "data_type": f"TYPE_{kind}",
            "dims": [-1] if kind == "STRING" and name != "text_input" else [1],
            "optional": optional and name not in {"text_input", "max_tokens"},
        }
        for name, kind in names.items()
    ]


def _config(name: str) -> dict[str, Any]:
    config: dict[str, Any] = {"name": name, "backend": "python", "max_batch_size": 4}
    if name == "embedding":
        return config | {
            "input": [{"name": "text", "data_type": "TYPE_STRING", "dims": [1]}],
            "output": [{"name": "embedding", "data_type": "TYPE_FP32", "dims": [4]}],
            "model_transaction_policy": {"decoupled": False},
        }
    is_llmapi = name == "tensorrt_llm"
    repeats = "true" if name.endswith("accum") else "false"
    return config | {
        "max_batch_size": 0 if is_llmapi else 4,
        "input": _tensors(_LLMAPI if is_llmapi else _INFLIGHT, optional=True),
        "output": _tensors(_OUTPUTS, optional=False),
        "model_transaction_policy": {"decoupled": True},
        "parameters": {} if is_llmapi else {"accumulate_tokens": {"string_value": repeats}},
    }


def _embeddings(asked: Mapping[str, Any]) -> dict[str, Any]:
    texts = asked["inputs"][0]["data"]
    numbers = [number for text in texts for number in vector(text)]
    row = {"name": "embedding", "datatype": "FP32", "shape": [len(texts), 4], "data": numbers}
    return {"model_name": "embedding", "model_version": "1", "outputs": [row]}
