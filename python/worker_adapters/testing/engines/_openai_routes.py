"""The routes that most engines have beside their own: OpenAI's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from worker_adapters.testing.engines._base import (
    Generation,
    Refusal,
    ScriptedEngine,
    body_of,
    compact,
    conversation,
    count_tokens,
    example_of,
    score,
    sse,
    stops_of,
    texts_of,
    token_id,
    vector,
)
from worker_adapters.testing.wire import Connection, Received

__all__ = ["OpenAiRoutes"]

_CREATED = 1_795_384_193
_LOGPROB = -0.5


class OpenAiRoutes(ScriptedEngine):
    """Completions, chat completions, embeddings and reranking below ``/v1``."""

    model: ClassVar[str] = "tiny"
    checks_model: ClassVar[bool] = False
    """Whether a model it does not have is refused."""
    ends_with_token: ClassVar[bool] = False
    """Whether the finish reason comes with the last token instead of after it."""
    usage_details: ClassVar[bool] = False
    chat_extras: ClassVar[Mapping[str, Any]] = {}
    """What its chat deltas hold besides."""
    workloads: ClassVar[frozenset[str]] = frozenset({"embedding", "rerank"})

    async def openai(self, connection: Connection, request: Received) -> bool | None:
        """Answer one of OpenAI's routes; None where it is another. Raises Refusal."""
        match request.route:
            case "POST /v1/completions":
                asked = self._checked(body_of(request))
                prompt = asked.get("prompt")
                if not isinstance(prompt, str):
                    raise Refusal(400, "prompt is required", "missing")
            case "POST /v1/chat/completions":
                asked = self._checked(body_of(request))
                prompt = conversation(asked)
            case "POST /v1/embeddings" if "embedding" in self.workloads:
                await connection.send(self.json(self._embeddings(body_of(request))))
                return True
            case "POST /v1/rerank" if "rerank" in self.workloads:
                await connection.send(self.json(self._rerank(body_of(request))))
                return True
            case _:
                return None
        names = ("max_tokens", "max_completion_tokens", "n_predict")
        limit = next((asked[name] for name in names if asked.get(name)), 16)
        pieces = self.constrained(asked)
        if _tool(asked) is not None:
            pieces = ("", "{", "}")
        generation = self.new_generation(
            request,
            asked,
            limit,
            prompt,
            id=self.name(request),
            stop=stops_of(asked),
            pieces=pieces,
        )
        if not asked.get("stream"):
            return await self._whole(connection, generation)
        return await self.stream(connection, generation)

    def _checked(self, asked: dict[str, Any]) -> dict[str, Any]:
        model = asked.get("model")
        if self.checks_model and model is not None and model != self.model:
            message = f"The model `{model}` does not exist. Valid aliases: {self.model}."
            raise Refusal(404, message, "model")
        return asked

    def constrained(self, asked: Mapping[str, Any]) -> tuple[str, ...] | None:
        """Return what a constraint makes it say; None without one."""
        wanted = asked.get("response_format") or {}
        if wanted.get("type") == "json_schema":
            return (compact(example_of(wanted["json_schema"]["schema"])),)
        return None

    @abstractmethod
    def json(self, answer: Any, status: str = "200 OK") -> bytes:
        """Return a whole answer as this engine sends one."""

    def name(self, request: Received) -> str:
        """Return the id of a generation."""
        given = request.headers.get("x-request-id") or f"{len(self.generations):016x}"
        is_chat = request.path.startswith("/v1/chat")
        return f"chatcmpl-{given}" if is_chat else f"cmpl-{given}-0"

    async def _whole(self, connection: Connection, generation: Generation) -> bool:
        behaviour = self.behaviour
        reason = "stop"
        for piece in texts_of(generation, behaviour):
            if generation.sent == generation.limit:
                reason = "length"
                break
            generation.text += piece
            generation.sent += 1
        generation.outcome = "done"
        is_chat, text = _is_chat(generation), generation.text
        said = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        answer = {
            "id": generation.id,
            "object": "chat.completion" if is_chat else "text_completion",
            "created": _CREATED,
            "model": self.model,
            "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": reason}],
            "usage": self._usage(generation),
        }
        await connection.send(self.json(answer))
        return True

    def _usage(self, generation: Generation) -> dict[str, Any]:
        usage: dict[str, Any] = {
            "prompt_tokens": generation.prompt_tokens,
            "total_tokens": generation.prompt_tokens + generation.sent,
            "completion_tokens": generation.sent,
        }
        if self.usage_details:
            usage["prompt_tokens_details"] = None
        return usage

    def event(self, generation: Generation, choices: list[Any], **more: Any) -> bytes:
        """Return one chunk of a stream."""
        is_chat = _is_chat(generation)
        return sse(
            {
                "id": generation.id,
                "object": "chat.completion.chunk" if is_chat else "text_completion",
                "created": _CREATED,
                "model": self.model,
                "choices": choices,
                **more,
            }
        )

    def opening(self, generation: Generation) -> Iterable[bytes]:
        """Return the chunk that says whose turn it is."""
        if not _is_chat(generation):
            return
        delta = {"role": "assistant", "content": "", **self.chat_extras}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        yield self.event(generation, [choice])

    def frame(self, generation: Generation, number: int, text: str) -> bytes:
        """Return the chunk of one token."""
        asked = generation.asked
        choice: dict[str, Any] = {"index": 0}
        if (name := _tool(asked)) is not None:
            choice["delta"] = _tool_delta(generation, name, number, text)
        elif _is_chat(generation):
            choice["delta"] = {"content": text, **self.chat_extras}
        else:
            choice["text"] = text
        reason = generation.ends if self.ends_with_token else None
        choice |= {"logprobs": _logprobs(generation, text), "finish_reason": reason}
        if asked.get("return_token_ids"):
            choice["token_ids"] = [token_id(text)]
        return self.event(generation, [choice])

    def ending(self, generation: Generation, reason: str) -> Iterable[bytes]:
        """Return the chunk with the finish reason, the usage if asked for, and the marker."""
        is_chat = _is_chat(generation)
        said: dict[str, Any] = {"delta": dict(self.chat_extras)} if is_chat else {"text": ""}
        if reason == "stop" and _tool(generation.asked) is not None:
            reason = "tool_calls"
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
        if generation.ends is None or not self.ends_with_token:
            yield self.event(generation, [choice])
        options = generation.asked.get("stream_options") or {}
        if options.get("include_usage") and self.behaviour.usage:
            yield self.event(generation, [], usage=self._usage(generation))
        yield sse("[DONE]")

    def failure(self, refusal: Refusal) -> Iterable[bytes]:
        """Return the error as an event, and the marker that is none then."""
        yield sse(self.error(refusal))
        yield sse("[DONE]")

    def error(self, refusal: Refusal) -> dict[str, Any]:
        """Return what an error looks like."""
        kind = _KINDS.get(refusal.status, "BadRequestError")
        shown = {"message": refusal.message, "type": kind, "param": None, "code": refusal.status}
        return {"error": shown}

    def _embeddings(self, asked: dict[str, Any]) -> dict[str, Any]:
        given = asked.get("input")
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not texts:
            raise Refusal(400, "input is required", "missing")
        rows = [
            {"object": "embedding", "index": at, "embedding": vector(text)}
            for at, text in enumerate(texts)
        ]
        tokens = sum(count_tokens(text) for text in texts)
        return {
            "object": "list",
            "model": self.model,
            "data": rows,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    def _rerank(self, asked: dict[str, Any]) -> Any:
        query, documents = asked.get("query"), asked.get("documents")
        if not isinstance(query, str) or not isinstance(documents, list):
            raise Refusal(400, "query and documents are required", "missing")
        scored = [(at, score(query, text)) for at, text in enumerate(documents)]
        scored.sort(key=lambda row: -row[1])
        tokens = sum(count_tokens(text) for text in (query, *documents))
        return {
            "model": self.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "results": [{"index": at, "relevance_score": value} for at, value in scored],
        }


_KINDS: Mapping[int, str] = {
    401: "AuthenticationError",
    404: "NotFoundError",
    429: "RateLimitError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}


def _is_chat(generation: Generation) -> bool:
    return generation.request.path.startswith("/v1/chat")


def _tool(asked: Mapping[str, Any]) -> str | None:
    """Return the tool that is called: the one that is demanded, else none."""
    choice = asked.get("tool_choice")
    tools = asked.get("tools") or []
    if isinstance(choice, dict):
        name = choice["function"]["name"]
        return str(name)
    return str(tools[0]["function"]["name"]) if choice == "required" and tools else None


def _tool_delta(generation: Generation, name: str, number: int, text: str) -> dict[str, Any]:
    call: dict[str, Any] = {"index": 0}
    if number == 0:
        call |= {"id": f"call_{generation.id}", "type": "function"}
        call["function"] = {"name": name, "arguments": text}
    else:
        call["function"] = {"arguments": text}
    return {"tool_calls": [call]}


def _logprobs(generation: Generation, text: str) -> Any:
    asked = generation.asked
    wanted = asked.get("logprobs")
    if wanted is None or wanted is False:
        return None
    if not _is_chat(generation):
        return {
            "text_offset": [0],
            "token_logprobs": [_LOGPROB],
            "tokens": [text],
            "top_logprobs": [{text: _LOGPROB}],
        }
    row = {"token": text, "logprob": _LOGPROB, "bytes": list(text.encode())}
    top = [row] if asked.get("top_logprobs") else []
    return {"content": [{**row, "top_logprobs": top}]}
