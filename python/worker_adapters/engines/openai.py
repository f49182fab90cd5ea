"""Any server with OpenAI's routes: completions, chat completions, embeddings, reranking.

Such servers agree on the routes and on little else. What differs is asked for, never guessed: who
the server is (its listing says), which build it is, whether it has a health route. What cannot be
asked is configured, and what is neither is refused. ``docs/engines/openai.md`` tells the
deviations.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, Literal

from worker_adapters._core import TokenEvent, make_error
from worker_adapters.capabilities import AdapterCapabilities, Feature
from worker_adapters.contract import (
    SubmitContext,
    TaskRequest,
    Timeouts,
    WorkerIdentity,
    WorkerProps,
)
from worker_adapters.engines import _chat
from worker_adapters.engines._call import Call
from worker_adapters.engines._dispatch import Answer, Dispatch, Unsupported
from worker_adapters.engines._http import HttpAdapter
from worker_adapters.engines._identity import CAPABILITIES_SECONDS
from worker_adapters.engines._openai_answers import embedding_answer, rerank_answer, status_in_body
from worker_adapters.engines._openai_errors import ERROR_RULES, RULES
from worker_adapters.errors import AdapterError, WorkerError, WorkerReset
from worker_adapters.stream import TokenStream
from worker_adapters.transport import Headers, Request, Response

__all__ = ["ERROR_RULES", "RULES", "OpenAiAdapter"]

_STANDARD: Final = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
"""Sampling parameters that every such server takes, by these names."""


@dataclass(frozen=True, slots=True)
class Sampler:
    """How a server takes the sampling parameters that OpenAI does not have."""

    names: Mapping[str, str] = field(default_factory=dict)
    """Ours to its own; one that is missing here is refused."""
    every_token: int = 0
    """What it calls a ``top_k`` that considers every token."""

    def translated(self, sampling: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters by the server's names. Raises Unsupported."""
        payload: dict[str, Any] = {}
        for name, value in sampling.items():
            if name in _STANDARD:
                payload[name] = value
            elif name in self.names:
                is_all = name == "top_k" and value == 0
                payload[self.names[name]] = self.every_token if is_all else value
            else:
                raise Unsupported(f"sampling.{name}")
        return payload


_NATIVE: Final = {"top_k": "top_k", "min_p": "min_p", "repeat_penalty": "repeat_penalty"}
REPETITION: Final = {**_NATIVE, "repeat_penalty": "repetition_penalty"}

_SAMPLERS: Final[Mapping[str, Sampler]] = {
    "llamacpp": Sampler(_NATIVE),
    "vllm": Sampler(REPETITION, every_token=-1),
    "sglang": Sampler(REPETITION, every_token=-1),
}
"""By ``owned_by`` in the server's listing of models."""

_LOSES: Final[Mapping[str, Mapping[str, str]]] = {
    "sglang": {"messages.image": "a model that takes text only drops them without a word"},
    "tgi": {
        "messages.image": "for a model that takes text only they become Markdown in the prompt",
        "sampling.presence_penalty": "the server takes it for something else",
    },
}
"""By server, what it is known to lose or to misread rather than to refuse, and how."""

_HEEDS: Final[Mapping[str, frozenset[str]]] = {
    "llamacpp": frozenset(
        ("seed", "stop", "sampling", "logprobs", "constraint.json_schema", "tools")
    ),
    "vllm": frozenset(("seed", "stop", "sampling", "logprobs", "constraint.json_schema")),
    "sglang": frozenset(("stop", "sampling", "logprobs", "constraint.json_schema")),
    "tgi": frozenset(("seed", "stop", "sampling", "logprobs")),
}
"""By server, which fields it is known to heed; of any other nobody knows."""

_LEAVES_STOP_TEXTS: Final = frozenset(("tgi",))
"""Servers that leave the text they stopped at in their answer."""

_VERSION_ROUTES: Final = (
    ("/version", "version"),  # vLLM, trtllm-serve
    ("/props", "build_info"),  # llama.cpp
    ("/info", "version"),  # TGI
    ("/api/version", "version"),  # Ollama
    ("/server_info", "version"),  # SGLang
)

_HEALTH_ROUTES: Final = ("/health", "/health/ready", "/v1/health/ready")
"""Of most servers, of Triton's OpenAI frontend, of NIM."""

_CONTEXT_FIELDS: Final = ("max_model_len", "context_length", "context_window")
"""What a listing calls the context length."""

_WORKLOAD_ROUTES: Final = {
    "completion": "completions",
    "embedding": "embeddings",
    "rerank": "rerank",
}
"""The route without which a server does not have a workload."""

_ROUTES: Final = {"chat": "chat/completions", "embeddings": "embeddings", "rerank": "rerank"}
"""Features that are a route of their own."""

_OF_CHAT: Final = ("messages.image", "tools", "tool_choice")
"""Features that there are not without the route for conversations."""

_PROOF_SECONDS: Final = 30.0
"""How long a completed answer proves that the server is ready."""


class OpenAiAdapter(HttpAdapter):
    """A server with OpenAI's routes.

    Arguments as `HttpAdapter` has them, and these.

    Args:
        base_url: With or without the ``api_prefix`` at its end.
        api_prefix: What stands before ``/completions``; ``""`` for a server without any.
        max_tokens_field: ``max_completion_tokens`` for chat models that refuse ``max_tokens``.
        sampling_fields: Names under which the server takes the sampling parameters that OpenAI does
            not have (``top_k``, ``min_p``, ``repeat_penalty``); known of llama.cpp, vLLM, SGLang.
        probe: How `health` finds out whether the server is ready: by its health ``route``, by a
            ``completion`` of one token, or (``auto``) by the route where it has one.

    Raises ValueError for a sampling parameter that there is not.
    """

    engine = "openai"
    dialect = "openai"
    rules = ERROR_RULES
    health_path = "/health"
    # The least of what the servers take as it is; beyond it some truncate it and none tells.
    max_seed = 2**31 - 1
    # llama.cpp closes after a stream though its headers say otherwise.
    keeps_after_stream = False
    workloads = ("completion", "embedding", "rerank")
    translates: ClassVar[frozenset[str]] = frozenset(
        (
            "messages",
            "messages.image",
            "tools",
            "tool_choice",
            "constraint.json_schema",
            "stop",
            "sampling",
            "logprobs",
            "affinity_key",
        )
    )
    health_routes: ClassVar[Sequence[str]] = _HEALTH_ROUTES

    def __init__(
        self,
        base_url: str,
        *,
        api_prefix: str = "/v1",
        max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        sampling_fields: Mapping[str, str] | None = None,
        probe: Literal["auto", "route", "completion"] = "auto",
        **options: Any,
    ) -> None:
        if unknown := set(sampling_fields or ()) - set(_NATIVE):
            raise ValueError(f"sampling_fields has no {', '.join(sorted(unknown))}")
        if not re.fullmatch(r"(?:/[!-~]+)?", api_prefix):
            raise ValueError("api_prefix must be printable ASCII without spaces and begin with /")
        super().__init__(base_url.rstrip("/").removesuffix(api_prefix), **options)
        self._prefix = api_prefix
        self._max_tokens_field = max_tokens_field
        self._sampling_fields = sampling_fields
        self._probe = probe
        self._asks_for_usage = True
        self._proven_at: float | None = None
        self._routes: Mapping[str, bool] | None = None

    # What the server is.

    async def props(self, *, timeouts: Timeouts | None = None) -> WorkerProps:
        """Return nothing: no route that such servers share tells it. See `WorkerAdapter.props`."""
        del timeouts
        return WorkerProps()

    async def capabilities(self, *, timeouts: Timeouts | None = None) -> AdapterCapabilities:
        """Return what the server can do, its workloads included. See `HttpAdapter.capabilities`.

        Whether a route is there shows when it is asked for nothing: one that is refuses that. What
        cannot be asked, and is not known of this server, is left out.
        """
        if self._clock() - self._capabilities_at >= CAPABILITIES_SECONDS:
            self._capabilities = self._routes = None
        if self._routes is None:
            self._routes = await self._told_routes(self._call(timeouts))
        return await super().capabilities(timeouts=timeouts)

    async def _told_routes(self, call: Call) -> Mapping[str, bool]:
        """Ask which routes there are; one of which the server does not say is left out."""
        routes: dict[str, bool] = {}
        for name, route in _ROUTES.items():
            has = await self._has_route(f"{self._prefix}/{route}", call)
            if has is not None:
                routes[name] = has
        if routes.get("chat") is False:
            # It may be for prompts only, or for no completions at all.
            has = await self._has_route(f"{self._prefix}/completions", call)
            if has is not None:
                routes["completions"] = has
        return routes

    def _describe(self, identity: WorkerIdentity | None, props: WorkerProps) -> AdapterCapabilities:
        told = super()._describe(identity, props)
        features = {
            name: feature
            for name, feature in told.features.items()
            if feature.source != "adapter"
            or not self._is_untold(name, identity)
            or (feature.value is not True and name != "metrics")
        }
        routes = self._routes or {}
        # Completions are what such servers are for; of the rest they have to say that it is there.
        workloads = tuple(
            workload
            for workload in told.supported_workloads
            if routes.get(_WORKLOAD_ROUTES[workload], workload == "completion")
        )
        return told.model_copy(update={"features": features, "supported_workloads": workloads})

    def _is_untold(self, feature: str, identity: WorkerIdentity | None) -> bool:
        """Whether only the server could say that it has this, and it was not asked."""
        return feature != "streaming" and feature not in _HEEDS.get(_server(identity), ())

    async def _has_route(self, path: str, call: Call) -> bool | None:
        """Return whether there is a route; None where the server does not say.

        Raises WorkerError.
        """
        try:
            await self._exchange(Request("POST", path, self._headers(call), b"{}"), call)
        except AdapterError as error:
            if error.status in {400, 422}:
                return True
            # Some look for the model first, and miss that.
            return False if _is_missing(error) and "model" not in error.message.lower() else None
        except WorkerReset:
            return None
        return True

    def _features(self, identity: WorkerIdentity | None) -> Mapping[str, Feature]:
        told = self._routes or {}
        features = {
            name: Feature(value=has, source="engine")
            for name, has in told.items()
            if name in _ROUTES
        }
        sees = _sees(identity)
        if sees is not None:
            features["messages.image"] = Feature(value=sees, source="engine")
        for name in _LOSES.get(_server(identity), ()):
            features[name] = Feature(value=False, source="adapter")
        if told.get("chat") is False:
            features |= {name: Feature(value=False, source="engine") for name in _OF_CHAT}
        return features

    def _forget_identity(self, error: WorkerError) -> None:
        super()._forget_identity(error)
        if self._identity is None:
            self._routes = None

    async def _ask_identity(self, call: Call) -> WorkerIdentity:
        listing = await self._optional(f"{self._prefix}/models", call, _listing)
        version, details = await self._version(call)
        identity = self._described(version, listing or [])
        return identity.model_copy(update={"details": {**identity.details, **details}})

    def _described(
        self, version: str, listing: Sequence[Mapping[str, Any]], **details: bool | int | str | None
    ) -> WorkerIdentity:
        """Put together what the server said of itself."""
        row = self._chosen(listing)
        root, owner = row.get("root"), row.get("owned_by")
        if isinstance(owner, str):
            details["server"] = owner
        return WorkerIdentity(
            engine_version=version,
            model=row.get("id"),
            model_path=root if isinstance(root, str) else None,
            ctx_max=next((row[name] for name in _CONTEXT_FIELDS if _is_count(row.get(name))), None),
            details={name: told for name, told in details.items() if told is not None},
        )

    def _chosen(self, listing: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """Return the row of the model this adapter is for: the configured one, or the only one."""
        expected = None if self._expect is None else self._expect.name
        wanted = self._model or expected
        if wanted is not None:
            named = next((row for row in listing if row["id"] == wanted), None)
            if named is not None or expected is None:
                return named or {}
            # What it has instead shows that it has another.
            return listing[0] if listing else {}
        return listing[0] if len(listing) == 1 else {}

    async def _version(self, call: Call) -> tuple[str, dict[str, bool | str]]:
        """Return the version, and what else was told beside it. Raises WorkerError."""
        for path, key in _VERSION_ROUTES:
            told = await self._optional(path, call, dict) or {}
            version = told.get(key)
            if isinstance(version, str) and version:
                return version, _told_beside(path, told)
        return "unknown", {}

    async def _optional(self, path: str, call: Call, read: Callable[[Any], Any]) -> Any:
        """Return what ``read`` makes of the JSON at ``path``; None where the server has none."""
        try:
            return await self._get_json(path, call, read)
        except AdapterError as error:
            if not _is_missing(error) and error.detail != "bad_json":
                raise
            return None

    async def _answer(self, request: Request, call: Call) -> Response:
        response = await super()._answer(request, call)
        status = status_in_body(response.body) if response.status == 200 else None
        return response if status is None else replace(response, status=status)

    # Whether it is ready.

    async def _probe_health(self, call: Call) -> None:
        """Raise the WorkerError that says why the server is not ready.

        A listing of models answers long before a model is loaded, and a health route answers
        whatever the key: so the route has to say that the server is ready, and the listing, asked
        with the key, that it has the model. A server without such a route has to prove it.
        """
        if self._probe == "completion" or not await self._route_says_ready(call):
            await self._prove_by_completion(call)
            return
        listing = await self._optional(f"{self._prefix}/models", call, _listing)
        if listing and self._model not in {None, *(row["id"] for row in listing)}:
            raise self._unready("wrong_model", 200, "the server does not list the model", call)

    async def _route_says_ready(self, call: Call) -> bool:
        """Ask the health route; False where there is none. Raises WorkerError."""
        for path in self.health_routes:
            try:
                await self._get(path, call)
            except AdapterError as error:
                if _is_missing(error):
                    continue
                if error.status == 400:  # how Triton's frontend says that it is not ready
                    raise self._unready("not_ready", 400, error.message, call) from None
                raise
            return True
        if self._probe == "route":
            raise self._unready("unsupported", 404, "the server has no health route", call)
        return False

    def _unready(self, detail: str, status: int, message: str, call: Call) -> Exception:
        """Return the error of a server that answered, and what it answered is not good."""
        return make_error(
            self.engine,
            detail,
            "head",
            message=message,
            redactor=self._credentials.redactor,
            correlation_id=call.correlation_id,
            status=status,
        )

    async def _prove_by_completion(self, call: Call) -> None:
        """Have one token generated, unless an answer was just completed. Raises WorkerError."""
        if self._proven_at is not None and self._clock() - self._proven_at < _PROOF_SECONDS:
            return
        identity = self._identity or await self._refresh_identity(call)
        model = self._model or identity.model
        named = {} if model is None else {"model": model}
        message = {"role": "user", "content": "."}
        try:
            await self._post("chat/completions", {**named, "messages": [message]}, call)
        except AdapterError as error:
            # A base model has no chat template.
            if not _is_missing(error) and error.detail != "invalid_request":
                raise
            await self._post("completions", {**named, "prompt": "."}, call)
        self._proven_at = self._clock()

    async def _post(self, route: str, payload: Mapping[str, Any], call: Call) -> None:
        body = json.dumps({**payload, self._max_tokens_field: 1}).encode()
        path = f"{self._prefix}/{route}"
        await self._exchange(Request("POST", path, self._headers(call), body), call)

    def _on_terminal(self, event: TokenEvent) -> None:
        super()._on_terminal(event)
        if event.finish_reason != "cancelled":
            self._proven_at = self._clock() if event.kind == "end" else None

    # What it is sent.

    async def _dispatched(
        self, dispatch: Dispatch, context: SubmitContext, call: Call
    ) -> TokenStream:
        asks_for_usage = self._asks_for_usage  # others may learn better meanwhile
        try:
            return await super()._dispatched(dispatch, context, call)
        except AdapterError as error:
            if not asks_for_usage or not _refuses_usage(error):
                raise
        # Refused for a field it does not know: nothing was generated, and it never will with it.
        self._asks_for_usage = False
        return await super()._dispatched(dispatch, context, call)

    def _dialect_options(self, dispatch: Dispatch) -> Mapping[str, str]:
        stop = dispatch.stop() if _server(dispatch.identity) in _LEAVES_STOP_TEXTS else None
        return {"stop": json.dumps(stop)} if stop else {}

    def _completion(self, dispatch: Dispatch) -> tuple[str, Mapping[str, Any]]:
        task, extensions = dispatch.task, dispatch.extensions
        sampling = dispatch.sampling()
        for name, why in _LOSES.get(_server(dispatch.identity), {}).items():
            kind, _, parameter = name.partition(".")
            if kind != "sampling":
                if name in extensions.used():
                    raise Unsupported(name, why)
            elif sampling.pop(parameter, None):  # 0 is none
                raise Unsupported(name, why)
        if _server(dispatch.identity) == "llamacpp" and extensions.tools is not None:
            if extensions.tool_choice not in {None, "auto", "none", "required"}:
                raise Unsupported("tool_choice", "the server takes a tool's name for auto")
            if extensions.constraint is not None:
                kind = extensions.constraint.kind
                raise Unsupported(f"constraint.{kind}", "the server forgets the tools over it")
        if "messages.image" in extensions.used() and _sees(dispatch.identity) is False:
            raise Unsupported("messages.image", "the model takes text only")
        payload: dict[str, Any] = {
            "model": self._model_name(dispatch),
            "stream": True,
            self._max_tokens_field: task.max_tokens,
            "seed": dispatch.seed,
            **self._sampler(dispatch).translated(sampling),
        }
        if self._asks_for_usage:
            payload["stream_options"] = {"include_usage": True}
        if stop := dispatch.stop():
            payload["stop"] = stop
        if extensions.constraint is not None:
            payload |= self._constraint(dispatch)
        if extensions.messages is None:
            payload["prompt"] = task.prompt
            if extensions.logprobs is not None:
                payload["logprobs"] = self._alternatives(extensions.logprobs)
            return f"{self._prefix}/completions", payload
        payload["messages"] = _chat.message_list(extensions.messages)
        if extensions.tools is not None:
            payload["tools"] = _chat.tool_list(extensions.tools)
            if extensions.tool_choice is not None:
                payload["tool_choice"] = _chat.tool_choice(extensions.tool_choice)
        if extensions.logprobs is not None:
            payload["logprobs"] = True
            payload["top_logprobs"] = self._alternatives(extensions.logprobs)
        return f"{self._prefix}/chat/completions", payload

    def _model_name(self, dispatch: Dispatch) -> str:
        """Return what the server calls the task's model."""
        if dispatch.model is not None:
            return dispatch.model
        if dispatch.identity is not None and dispatch.identity.model is not None:
            return dispatch.identity.model
        scheme, _, rest = dispatch.task.model_ref.partition(":")
        return rest or scheme

    def _sampler(self, dispatch: Dispatch) -> Sampler:
        known = _SAMPLERS.get(_server(dispatch.identity), Sampler())
        if self._sampling_fields is None:
            return known
        return Sampler({**known.names, **self._sampling_fields}, known.every_token)

    def _constraint(self, dispatch: Dispatch) -> dict[str, Any]:
        constraint = dispatch.extensions.constraint
        if constraint is None or constraint.json_schema is None:
            return {}
        if dispatch.extensions.messages is None:
            # Many servers ignore it on the route for prompts.
            raise Unsupported("constraint.json_schema", "it has it for messages only")
        return {"response_format": _chat.json_schema_format(constraint.json_schema)}

    def _alternatives(self, wanted: int) -> int:
        # For some servers none is none at all, not even of the token itself.
        return max(1, wanted)

    def _submit_headers(self, dispatch: Dispatch) -> Headers:
        key = dispatch.extensions.affinity_key
        return () if key is None else ((b"X-Session-Token", key.encode()),)

    def _unary_request(self, dispatch: Dispatch) -> tuple[str, Mapping[str, Any]]:
        task = dispatch.task
        inputs = list(task.inputs or ())
        model = self._model_name(dispatch)
        if task.workload == "rerank":
            payload = {"model": model, "query": task.prompt, "documents": inputs}
            return f"{self._prefix}/rerank", payload
        return f"{self._prefix}/embeddings", {"model": model, "input": inputs or [task.prompt]}

    def _unary_answer(self, task: TaskRequest, answer: Any) -> Answer:
        wanted = len(task.inputs or ())
        if task.workload == "rerank":
            return rerank_answer(answer, wanted)
        return embedding_answer(answer, wanted or 1)


def _server(identity: WorkerIdentity | None) -> str:
    """Return who the server says it is; empty where it does not say."""
    server = None if identity is None else identity.details.get("server")
    return server if isinstance(server, str) else ""


def _sees(identity: WorkerIdentity | None) -> bool | None:
    """Return whether the model takes images; None where the server does not say."""
    sees = None if identity is None else identity.details.get("vision")
    return sees if isinstance(sees, bool) else None


def _told_beside(path: str, told: Mapping[str, Any]) -> dict[str, bool | str]:
    """Return what a server says of itself beside its version."""
    if path == "/info" and "model_id" in told:
        # TGI; its listing says that the model is owned by itself.
        return {"server": "tgi"}
    modalities = told.get("modalities")  # llama.cpp
    sees = modalities.get("vision") if isinstance(modalities, dict) else None
    return {"vision": sees} if isinstance(sees, bool) else {}


def _listing(answer: Any) -> list[dict[str, Any]]:
    """Read a listing of models: rows that have an id."""
    rows = answer["data"]
    if not isinstance(rows, list) or not all(isinstance(row["id"], str) for row in rows):
        raise TypeError("data")
    return rows


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def _is_missing(error: AdapterError) -> bool:
    """Whether the server answered that it has no such route."""
    return error.status in {404, 405, 501}


def _refuses_usage(error: AdapterError) -> bool:
    """Whether a request was refused for the field that asks for usage, and for nothing else."""
    return error.status in {400, 422} and any(
        field in error.message for field in ("stream_options", "include_usage")
    )
