"""SGLang's server, by its native ``/generate`` route; conversations by its chat route.

Why native: the request's own id, token ids, log probabilities with ids and what the prefix cache
did come with every frame. The chat route is used for messages only, because the native one applies
no chat template. What the server is able to do differs by version and by flag, and most of what it
does not know it ignores silently: so everything is decided by what ``/server_info`` answers.
``docs/engines/sglang.md`` tells the deviations.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeGuard, TypeVar

from worker_adapters._core import ErrorRules, StreamDecoder
from worker_adapters.capabilities import AdapterCapabilities, Feature
from worker_adapters.contract import (
    SubmitContext,
    TaskRequest,
    Timeouts,
    WorkerIdentity,
    WorkerProps,
    Workload,
)
from worker_adapters.engines import _chat, _openai_answers
from worker_adapters.engines._http import Answer, Call, Dispatch, HttpAdapter, Unsupported
from worker_adapters.engines._pattern import one_of
from worker_adapters.errors import AdapterError, PoolUnavailable
from worker_adapters.extensions import Constraint
from worker_adapters.transport import Request

__all__ = ["ERROR_RULES", "RULES", "SglangAdapter"]

_T = TypeVar("_T")

_INVALID: Final = {"kind": "Adapter", "error_code": "INVALID_PARAMS"}
_OVERFLOW: Final = {**_INVALID, "detail": "context_overflow"}
_UNSUPPORTED: Final = {**_INVALID, "detail": "unsupported"}
_REQUEST: Final = {**_INVALID, "detail": "invalid_request"}
_RESET: Final = {"kind": "WorkerReset", "error_code": "WORKER_RESET", "detail": "engine_error"}
_FULL: Final = {
    "kind": "PoolUnavailable",
    "error_code": "REPLICA_EXHAUSTED",
    "detail": "queue_full",
    "processed": "no",
}

RULES: Final[Sequence[Mapping[str, Any]]] = (
    # The server's own words are all there is to tell these apart: the type is the same for each.
    {"message": "longer than the model's context length", **_OVERFLOW},
    {"message": "exceeds the model's maximum context length", **_OVERFLOW},
    {"status": 503, "message": "The request queue is full", **_FULL},
    {"status": 503, "message": "aborted by a higher priority request", **_FULL},
    {"status": 503, "message": "Request waiting timeout reached", **_FULL},
    {
        "status": 503,
        "message": "Request running timeout reached",
        "kind": "DecodeTimeout",
        "error_code": "DECODE_TIMEOUT",
        "detail": "gateway_timeout",
        "processed": "yes",
    },
    {"status": 503, "message": "Using priority is disabled", **_UNSUPPORTED},
    {"message": "Duplicate request ID", **_INVALID, "detail": "duplicate_id"},
    {"message": "does not appear to be an embedding model", **_UNSUPPORTED},
    {"message": "LoRA is not enabled", **_UNSUPPORTED},
    {"message": "LoRA adapter that has never been loaded", **_INVALID, "detail": "not_found"},
    {"status": 500, **_RESET},
    {"type": "abort", "status": 400, **_REQUEST},
    # Up to 0.4 an abort has no status; a grammar is what the scheduler refuses in this way.
    {"type": "abort", "message": "grammar", **_REQUEST},
    {"type": "invalid_request_error", **_REQUEST},
    # Up to 0.5 an error inside a stream is words only; these are the validator's.
    {"message": " must be ", **_REQUEST},
    {"message": " should be provided", **_REQUEST},
)
"""What each of the server's errors means; the first row that matches decides, else the status."""

ERROR_RULES: Final = ErrorRules(RULES)

_SAMPLING: Final = {"repeat_penalty": "repetition_penalty"}
"""Sampling parameters whose name is another here."""


_UNKNOWN: Final = "unknown"
"""The version of a server that tells none."""


class SglangAdapter(HttpAdapter):
    """An SGLang server. Arguments as `HttpAdapter` has them.

    A task's id is the server's request id (``rid``), so that ending a stream early also aborts the
    request by its route; the connection is closed in any case.
    """

    engine = "sglang"
    dialect = "sglang"
    rules = ERROR_RULES
    health_path = "/health"
    workloads = ("completion", "embedding", "rerank")
    cancel_kind = "close+abort"
    cancel_in_prefill = "yes"
    translates = frozenset(
        (
            "messages",
            "messages.image",
            "tools",
            "tool_choice",
            "constraint.json_schema",
            "constraint.regex",
            "constraint.grammar",
            "constraint.choice",
            "stop",
            "sampling",
            "logprobs",
            "token_ids",
            "lora",
            "priority",
            "data_parallel_rank",
        )
    )

    def __init__(self, base_url: str, **options: Any) -> None:
        super().__init__(base_url, **options)
        self._has_ready_route = True

    # What the server is.

    async def _probe_health(self, call: Call) -> None:
        """Ask whether a task would be taken up now. Raises WorkerError where not."""
        try:
            await self._ask_ready(call)
        except PoolUnavailable as error:
            if error.status != 503:
                raise
            # It does not say whether it starts, drains, is paused or has failed.
            raise self._error(call, "not_ready", phase="head", processed="no") from None

    async def _ask_ready(self, call: Call) -> None:
        """Ask ``/ready``, which answers at once.

        Servers without it have ``/health``, which generates a token and takes a second when idle,
        up to 20 when the scheduler hangs.
        """
        if self._has_ready_route:
            try:
                await self._get("/ready", call)
            except AdapterError as error:
                if not _not_offered(error):
                    raise
                self._has_ready_route = False
            else:
                return
        await self._get("/health", call)

    async def _ask_identity(self, call: Call) -> WorkerIdentity:
        info = await self._first(
            ("/server_info", "/get_server_info", "/get_server_args"), call, _mapping
        )
        model = await self._first(("/model_info", "/get_model_info"), call, _mapping) or {}
        if info is None:
            info = {}
        ctx_max = info.get("context_length")
        if not _is_count(ctx_max):
            ctx_max = await self._first(("/v1/models",), call, _max_model_len)
        version = info.get("version")
        return WorkerIdentity(
            engine_version=version if isinstance(version, str) and version else _UNKNOWN,
            model=_text(model.get("served_model_name")) or _text(info.get("served_model_name")),
            model_path=_text(model.get("model_path")) or _text(info.get("model_path")),
            ctx_max=ctx_max,
            details=_details(info, model),
        )

    async def _first(
        self, paths: Iterable[str], call: Call, read: Callable[[Any], _T]
    ) -> _T | None:
        """Return what ``read`` makes of the first of the routes that there is."""
        for path in paths:
            try:
                return await self._get_json(path, call, read)
            except AdapterError as error:
                if not _not_offered(error):
                    raise
        return None

    async def props(self, *, timeouts: Timeouts | None = None) -> WorkerProps:
        """Ask for what runs and how much may. See `WorkerAdapter.props`.

        ``/v1/loads`` tells both; older servers have ``/get_load`` for what runs, and tell in
        ``/server_info`` how much may.
        """
        call = self._call(timeouts)
        loads = await self._first(("/v1/loads",), call, _loads)
        if loads is not None:
            total, free = loads
            return WorkerProps(slots_total=total, slots_free=free, source="loads")
        identity = await self._refresh_identity(call)
        slots = identity.details.get("max_running")
        if not _is_count(slots):
            return WorkerProps()
        busy = await self._first(("/get_load",), call, _requests)
        if busy is None:
            return WorkerProps(slots_total=slots, source="server_info")
        return WorkerProps(
            slots_total=slots, slots_free=max(0, slots - busy), source="server_info+get_load"
        )

    def _features(self, identity: WorkerIdentity | None) -> Mapping[str, Feature]:
        """Tell what this server, by its version and flags, can do of what the class declares."""
        details = {} if identity is None else identity.details
        deterministic = details.get("deterministic") is True
        has_chat = _can(identity, "chat")
        embeds = details.get("is_generation") is False
        # What the flag that decides is called here; what no flag decides, the version does.
        found: dict[str, tuple[bool | str, str | None]] = {
            "seed": (deterministic, "deterministic"),
            "determinism": ("strict" if deterministic else "best_effort", "deterministic"),
            "tools": (has_chat and _has_tools(identity), "tools"),
            "tool_choice": (has_chat and _has_tools(identity), "tools"),
            "messages.image": (has_chat and details.get("images") is True, "images"),
            "lora": (details.get("lora") is True, "lora"),
            "priority": (details.get("priority") is True, "priority"),
            "data_parallel_rank": (_rank_known(identity, 0), "dp_size"),
            "metrics": (details.get("metrics") is True, "metrics"),
            "incremental_streaming_output": (details.get("incremental") is True, "incremental"),
            "embeddings": (embeds, "is_generation"),
            "cancel": ("close+abort" if _can(identity, "abort") else "close", None),
            "chat": (has_chat, None),
            # Some models that generate can rerank, too, but none says that it can.
            "rerank": (embeds and _can(identity, "rerank"), "is_generation"),
            "token_ids": (_can(identity, "token_ids"), None),
            "constraint.grammar": (_can(identity, "grammar"), None),
        }
        return {
            name: Feature(value=value, source="engine" if flag in details else "adapter")
            for name, (value, flag) in found.items()
        }

    def _describe(self, identity: WorkerIdentity | None, props: WorkerProps) -> AdapterCapabilities:
        described = super()._describe(identity, props)
        generates = None if identity is None else identity.details.get("is_generation")
        if generates is None:
            return described
        # One server has one model, and one model does the one or the other.
        workloads: tuple[Workload, ...] = ("completion",)
        if not generates:
            reranks = described.features["rerank"].value is True
            workloads = ("embedding", "rerank") if reranks else ("embedding",)
        return described.model_copy(update={"supported_workloads": workloads})

    # What a task is sent as.

    def _dialect(self, dispatch: Dispatch) -> str:
        return self.dialect if dispatch.extensions.messages is None else "openai"

    def _dialect_options(self, dispatch: Dispatch) -> dict[str, str]:
        identity = dispatch.identity
        if dispatch.extensions.messages is not None or identity is None:
            return {}
        incremental = identity.details.get("incremental")
        if incremental is None and identity.engine_version == _UNKNOWN:
            # Nobody told; the frames will.
            return {}
        # Before there was the flag all text was repeated.
        return {"text": "delta" if incremental else "cumulative"}

    def _completion(self, dispatch: Dispatch) -> tuple[str, Mapping[str, Any]]:
        if dispatch.extensions.messages is not None:
            return "/v1/chat/completions", self._chat_payload(dispatch)
        return "/generate", self._payload(dispatch)

    def _payload(self, dispatch: Dispatch) -> dict[str, Any]:
        """Return the body of a native generation."""
        extensions = dispatch.extensions
        sampling = _sampling(dispatch) | {"max_new_tokens": dispatch.task.max_tokens}
        if (seed := self._seed(dispatch)) is not None:
            sampling["sampling_seed"] = seed
        if extensions.constraint is not None:
            sampling |= _constraint(extensions.constraint, dispatch.identity)
        payload: dict[str, Any] = {
            "text": dispatch.task.prompt,
            "sampling_params": sampling,
            "stream": True,
            **self._common(dispatch),
        }
        if extensions.logprobs is not None:
            payload |= {
                "return_logprob": True,
                "top_logprobs_num": extensions.logprobs,
                "return_text_in_logprobs": True,
            }
        if extensions.token_ids and not _can(dispatch.identity, "token_ids"):
            raise Unsupported("token_ids")
        return payload

    def _chat_payload(self, dispatch: Dispatch) -> dict[str, Any]:
        """Return the body of a chat completion."""
        extensions, identity = dispatch.extensions, dispatch.identity
        if not _can(identity, "chat"):
            raise Unsupported("messages")
        details = {} if identity is None else identity.details
        if "messages.image" in extensions.used() and not details.get("images"):
            # Images for a model without eyes are dropped without a word.
            raise Unsupported("messages.image", "the model takes text only")
        if extensions.token_ids:
            raise Unsupported("token_ids", "the chat route streams none")
        payload: dict[str, Any] = {
            "model": _model(dispatch),
            "messages": _chat.message_list(extensions.messages or ()),
            "max_tokens": dispatch.task.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            **_sampling(dispatch),
            **self._common(dispatch),
        }
        if (seed := self._seed(dispatch)) is not None:
            payload["seed"] = seed
        if extensions.tools is not None:
            if not _has_tools(identity):
                raise Unsupported("tools", "the server tells of no --tool-call-parser")
            payload["tools"] = _chat.tool_list(extensions.tools)
        if extensions.tool_choice is not None:
            payload["tool_choice"] = _chat.tool_choice(extensions.tool_choice)
        constraint = extensions.constraint
        if constraint is not None and constraint.json_schema is not None:
            payload["response_format"] = _chat.json_schema_format(constraint.json_schema)
        elif constraint is not None:
            payload |= _constraint(constraint, identity)
        if extensions.logprobs is not None:
            payload |= {"logprobs": True, "top_logprobs": extensions.logprobs}
        return payload

    def _common(self, dispatch: Dispatch) -> dict[str, Any]:
        """Return what both routes take by the same name."""
        task, extensions, identity = dispatch.task, dispatch.extensions, dispatch.identity
        details = {} if identity is None else identity.details
        fields: dict[str, Any] = {"rid": dispatch.request_id}
        if (task.kv_hint == "cold" or task.determinism == "strict") and _can(identity, "extra_key"):
            # Only what was cached under the same key is used again.
            fields["extra_key"] = dispatch.request_id
        if extensions.lora is not None:
            if not details.get("lora"):
                raise Unsupported("lora", "the server runs without --enable-lora")
            fields["lora_path"] = extensions.lora
        if extensions.priority is not None:
            if not details.get("priority"):
                raise Unsupported(
                    "priority", "the server runs without --enable-priority-scheduling"
                )
            low_first = details.get("low_priority_first")
            fields["priority"] = -extensions.priority if low_first else extensions.priority
        if extensions.data_parallel_rank is not None:
            rank = extensions.data_parallel_rank
            # Some versions end with the scheduler when a rank is out of range.
            if not _rank_known(identity, rank):
                raise Unsupported("data_parallel_rank", "the server has no such rank")
            name = "routed_dp_rank" if _can(identity, "routed_dp_rank") else "data_parallel_rank"
            fields[name] = rank
        return fields

    def _decoder(self, dispatch: Dispatch, context: SubmitContext, call: Call) -> StreamDecoder:
        # A seed that is not sent is not reported either.
        dispatch = replace(dispatch, seed=self._seed(dispatch))
        return super()._decoder(dispatch, context, call)

    def _seed(self, dispatch: Dispatch) -> int | None:
        """Return the seed where the server has a field for one; 500 is what it says elsewhere.

        Raises Unsupported there for a seed of the task's own.
        """
        identity = dispatch.identity
        if identity is not None and "deterministic" in identity.details:
            return dispatch.seed
        if dispatch.task.seed is not None:
            raise Unsupported("seed", "the server has no field for one")
        return None

    def _abort_request(self, dispatch: Dispatch) -> Request | None:
        """Return the request that aborts this one, and no other: ids are never a prefix of one."""
        if not dispatch.request_id or not _can(dispatch.identity, "abort"):
            return None
        body = json.dumps({"rid": dispatch.request_id}).encode()
        return Request("POST", "/abort_request", ((b"Content-Type", b"application/json"),), body)

    # Embeddings and reranking.

    def _unary_request(self, dispatch: Dispatch) -> tuple[str, Mapping[str, Any]]:
        task, identity = dispatch.task, dispatch.identity
        inputs = list(task.inputs or ())
        if task.workload == "rerank":
            if not _can(identity, "rerank"):
                raise Unsupported("workload rerank")
            return "/v1/rerank", {
                "query": task.prompt,
                "documents": inputs,
                "return_documents": False,
            }
        return "/v1/embeddings", {
            "model": _model(dispatch),
            "input": inputs or [task.prompt],
            "encoding_format": "float",
        }

    def _unary_answer(self, task: TaskRequest, answer: Any) -> Answer:
        wanted = len(task.inputs or ()) or 1
        if task.workload == "rerank":
            return _openai_answers.rerank_answer(answer, wanted)
        return _openai_answers.embedding_answer(answer, wanted)


_SINCE: Final[Mapping[str, tuple[int, ...]]] = {
    "abort": (0, 4, 6),
    "chat": (0, 4, 6),
    "grammar": (0, 4, 6),
    "data_parallel_rank": (0, 4, 10),
    "rerank": (0, 4, 10),
    "token_ids": (0, 5, 2),
    "extra_key": (0, 5, 3),
    "routed_dp_rank": (0, 5, 12),
}
"""The first release whose source was read and has it, for what no answer tells.

The release that brought it may be an earlier one.
"""

_RELEASE: Final = re.compile(r"v?([0-9]+(?:\.[0-9]+)+)")


def _can(identity: WorkerIdentity | None, name: str) -> bool:
    """Whether the server's version is known to have it."""
    release = None if identity is None else _RELEASE.match(identity.engine_version)
    if release is None or identity is None:
        return False
    if name == "token_ids" and identity.details.get("stream_output"):
        # Ids since the last frame beside all the text so far, up to 0.5.8.
        return False
    return tuple(int(part) for part in release[1].split(".")) >= _SINCE[name]


def _has_tools(identity: WorkerIdentity | None) -> bool:
    """Whether the server says that it reads tool calls: else they would come as plain text."""
    return identity is not None and identity.details.get("tools") is True


def _details(info: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, bool | int]:
    """Keep what decides how a task is sent; the rest of the answer holds keys and paths."""
    details: dict[str, bool | int] = {}

    def keep(name: str, value: Any) -> None:
        if isinstance(value, bool | int):
            details[name] = value

    keep("incremental", info.get("incremental_streaming_output"))
    keep("stream_output", info.get("stream_output"))
    keep("deterministic", info.get("enable_deterministic_inference"))
    keep("priority", info.get("enable_priority_scheduling"))
    keep("low_priority_first", info.get("schedule_low_priority_values_first"))
    keep("metrics", info.get("enable_metrics"))
    keep("dp_size", info.get("dp_size"))
    keep("is_generation", model.get("is_generation"))
    keep("images", model.get("has_image_understanding"))
    if "lora_paths" in info:
        details["lora"] = bool(info.get("enable_lora") or info["lora_paths"])
    if "tool_call_parser" in info:
        details["tools"] = info["tool_call_parser"] is not None
    per_rank = [
        state.get("effective_max_running_requests_per_dp")
        for state in info.get("internal_states") or ()
        if isinstance(state, Mapping)
    ]
    counts = [slots for slots in per_rank if _is_count(slots)]
    if counts and len(counts) == len(per_rank):
        details["max_running"] = sum(counts)
    elif _is_count(slots := info.get("max_running_requests")):
        details["max_running"] = slots
    return details


def _sampling(dispatch: Dispatch) -> dict[str, Any]:
    """Return sampling parameters and stop words as both routes take them."""
    given = dispatch.sampling()
    parameters = {_SAMPLING.get(name, name): value for name, value in given.items()}
    if parameters.get("top_k") == 0:
        parameters["top_k"] = -1
    if stop := dispatch.stop():
        parameters["stop"] = stop
    return parameters


def _constraint(constraint: Constraint, identity: WorkerIdentity | None) -> dict[str, Any]:
    if constraint.json_schema is not None:
        return {"json_schema": json.dumps(constraint.json_schema, ensure_ascii=False)}
    if constraint.regex is not None:
        return {"regex": constraint.regex}
    if constraint.choice is not None:
        return {"regex": one_of(constraint.choice)}
    if not _can(identity, "grammar"):
        raise Unsupported("constraint.grammar")
    return {"ebnf": constraint.grammar}


def _model(dispatch: Dispatch) -> str:
    """Return the name to ask for: any is taken and sent back, but there has to be one."""
    served = None if dispatch.identity is None else dispatch.identity.model
    return dispatch.model or served or "default"


def _rank_known(identity: WorkerIdentity | None, rank: int) -> bool:
    """Whether a task can be sent to this data-parallel rank."""
    if identity is None or not _can(identity, "data_parallel_rank"):
        return False
    ranks = identity.details.get("dp_size")
    return isinstance(ranks, int) and rank < ranks


def _not_offered(error: AdapterError) -> bool:
    """Whether the server answered that it has no such route."""
    return error.detail == "not_found"


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and value >= 0


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _mapping(answer: Any) -> Mapping[str, Any]:
    if not isinstance(answer, dict):
        raise TypeError("not an object")
    return answer


def _max_model_len(models: Any) -> int | None:
    length = models["data"][0].get("max_model_len")
    return length if _is_count(length) else None


def _loads(answer: Any) -> tuple[int, int]:
    """Return slots and free slots, over all data-parallel ranks."""
    total = free = 0
    for rank in answer["loads"]:
        slots, running, waiting = (
            _count(rank[name])
            for name in ("max_running_requests", "num_running_reqs", "num_waiting_reqs")
        )
        total += slots
        # Who comes now waits behind those who wait, whatever they wait for.
        free += 0 if waiting else max(0, slots - running)
    return total, free


def _requests(answer: Any) -> int:
    """Return how many requests run or wait, over all data-parallel ranks."""
    return sum(_count(rank["num_reqs"]) for rank in answer)


def _count(value: Any) -> int:
    if not _is_count(value):
        raise TypeError("not a count")
    return value
