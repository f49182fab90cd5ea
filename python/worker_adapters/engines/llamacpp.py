"""llama.cpp's HTTP server (``llama-server``), by its native routes.

Why native: ``/completion`` counts tokens in every frame, says how a stream ended, and takes the
sampling parameters as they are; the OpenAI-compatible routes of the same server do none of it.
What the server does on the wire, and what this adapter makes of it, is told in
``docs/engines/llamacpp.md``.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, ClassVar, Final

from worker_adapters._core import ErrorRules
from worker_adapters.capabilities import Feature
from worker_adapters.contract import TaskRequest, Timeouts, WorkerIdentity, WorkerProps, Workload
from worker_adapters.engines._call import Call
from worker_adapters.engines._chat import message_list, tool_list
from worker_adapters.engines._credentials import seal_key
from worker_adapters.engines._dispatch import Answer, Dispatch, Unsupported
from worker_adapters.engines._http import HttpAdapter
from worker_adapters.errors import AdapterError
from worker_adapters.extensions import Constraint, TaskExtensions

__all__ = ["ERROR_RULES", "LlamaCppAdapter"]

_INVALID: Final = {"kind": "Adapter", "error_code": "INVALID_PARAMS"}

RULES: Final[Sequence[Mapping[str, Any]]] = (
    # Two things share one status and one type; only the first goes with a free engine.
    {
        "type": "unavailable_error",
        "message": "no slot available",
        "kind": "PoolUnavailable",
        "error_code": "REPLICA_EXHAUSTED",
        "detail": "queue_full",
        "processed": "no",
    },
    {
        "type": "unavailable_error",
        "kind": "PoolUnavailable",
        "error_code": "POOL_UNREADY",
        "detail": "loading",
        "processed": "no",
    },
    {"type": "exceed_context_size_error", **_INVALID, "detail": "context_overflow"},
    {"type": "authentication_error", **_INVALID, "detail": "unauthorized"},
    {"type": "permission_error", **_INVALID, "detail": "forbidden"},
    {"type": "not_found_error", **_INVALID, "detail": "not_found"},
    {"type": "not_supported_error", **_INVALID, "detail": "unsupported"},
    {"type": "invalid_request_error", **_INVALID, "detail": "invalid_request"},
    # Faults of the request that the server reports as its own (500 server_error).
    {
        "type": "server_error",
        "message": "is too large to process",
        **_INVALID,
        "detail": "context_overflow",
    },
    {
        "type": "server_error",
        "message": "[json.exception.",
        **_INVALID,
        "detail": "invalid_request",
    },
    {
        "type": "server_error",
        "message": "Failed to parse messages",
        **_INVALID,
        "detail": "invalid_request",
    },
    # Of images and sound, for a model that has no sense for them.
    {
        "type": "server_error",
        "message": "input is not supported",
        **_INVALID,
        "detail": "unsupported",
    },
    # Of tools, for a server that is not to apply the model's own template.
    {
        "type": "server_error",
        "message": "requires --jinja flag",
        **_INVALID,
        "detail": "unsupported",
    },
    {
        "type": "server_error",
        "kind": "WorkerReset",
        "error_code": "WORKER_RESET",
        "detail": "engine_error",
    },
)
"""What each of the server's errors means; the first row that matches decides."""

ERROR_RULES: Final = ErrorRules(RULES)

_ESCAPED: Final = re.compile(r'[\x00-\x1f"\\\x7f]')


class LlamaCppAdapter(HttpAdapter):
    """A llama.cpp server. Arguments as `HttpAdapter` has them, and one more.

    With ``stream_metrics`` the server is asked to report how its work goes, and streams of prompts
    have ``metrics`` events: while it reads the prompt, and with every token.

    The server has no route to cancel a task: closing its connection is what frees the slot, within
    milliseconds while it generates, after the current batch while it reads the prompt.
    """

    engine = "llamacpp"
    dialect = "llamacpp"
    rules = ERROR_RULES
    health_path = "/health"
    # The server pings every 30 s while it reads a prompt, so 75 s without a byte is a dead one.
    default_timeouts: ClassVar[Timeouts] = Timeouts(idle=75.0)
    # Seeds are 32 bits wide, and the last one asks for a random seed that is never reported.
    max_seed = 2**32 - 2
    # It closes right after the last chunk though its headers say otherwise: the next request on
    # the same connection would be lost.
    keeps_after_stream = False
    workloads: ClassVar[tuple[Workload, ...]] = ("completion", "embedding", "rerank")
    translates = frozenset(
        {
            "messages",
            "messages.image",
            "tools",
            "tool_choice",
            "constraint.json_schema",
            "constraint.grammar",
            "constraint.choice",
            "stop",
            "sampling",
            "logprobs",
            "token_ids",
        }
    )
    # Closing is noticed within a second, and ends with the current batch.
    cancel_in_prefill = "yes"
    # That second begins anew with every answer it gives to anybody.
    prefill_quiet = 1.5
    # Alone on its replica a strict task repeats to the byte; beside others its batches differ.
    determinism = "best_effort"

    def __init__(self, base_url: str, *, stream_metrics: bool = False, **options: Any) -> None:
        seal_key(options)
        super().__init__(base_url, **options)
        self._stream_metrics = stream_metrics

    async def props(self, *, timeouts: Timeouts | None = None) -> WorkerProps:
        """Ask for the slots: ``/slots``, else ``/props`` with ``/metrics`` for the free ones.

        See `WorkerAdapter.props`. What ``/slots`` says of running prompts is not kept.
        """
        call = self._call(timeouts)
        try:
            total, free = await self._get_json("/slots", call, _count_slots)
        except AdapterError as error:
            if not _not_offered(error):
                raise
        else:
            return WorkerProps(slots_total=total, slots_free=free, source="slots")
        try:
            slots_total = await self._get_json("/props", call, _total_slots)
        except AdapterError as error:
            if not _not_offered(error):
                raise
            slots_total = None
        busy = (await self._load(call)).running
        if slots_total is None:
            return WorkerProps()
        if busy is None:
            return WorkerProps(slots_total=slots_total, source="props")
        return WorkerProps(
            slots_total=slots_total, slots_free=max(0, slots_total - busy), source="props+metrics"
        )

    async def identity(self, *, timeouts: Timeouts | None = None) -> WorkerIdentity:
        """Ask for the build and the model. See `WorkerAdapter.identity`.

        The server has no digest of its model; ``model_meta`` (size, parameters, vocabulary) is
        the closest to one.
        """
        call = self._call(timeouts)
        identity = await self._refresh_identity(call)
        try:
            meta = await self._get_json("/v1/models", call, _model_meta)
        except AdapterError as error:
            if not _not_offered(error):
                raise
            return identity
        return identity.model_copy(update={"model_meta": meta})

    async def _has_stopped(self, dispatch: Dispatch, call: Call) -> bool | None:
        try:
            return await self._get_json("/slots", call, partial(_works_not_with, dispatch.seed))
        except AdapterError as error:
            if not _not_offered(error):
                raise
            return None

    async def _ask_identity(self, call: Call) -> WorkerIdentity:
        return await self._get_json("/props", call, _identity)

    def _features(self, identity: WorkerIdentity | None) -> Mapping[str, Feature]:
        details = {} if identity is None else identity.details
        features = {"messages.image": "vision", "metrics": "metrics"}
        return {
            feature: Feature(value=details[name] is True, source="engine")
            for feature, name in features.items()
            if name in details
        }

    def _dialect(self, dispatch: Dispatch) -> str:
        return "llamacpp" if dispatch.extensions.messages is None else "openai"

    def _dialect_options(self, dispatch: Dispatch) -> Mapping[str, str]:
        is_told = self._stream_metrics and dispatch.extensions.messages is None
        return {"metrics": "true"} if is_told else {}

    def _completion(self, dispatch: Dispatch) -> tuple[str, Mapping[str, Any]]:
        task, extensions = dispatch.task, dispatch.extensions
        payload: dict[str, Any] = {
            "stream": True,
            "n_predict": task.max_tokens,
            "seed": dispatch.seed,
            **dispatch.sampling(),
        }
        if stop := dispatch.stop():
            payload["stop"] = stop
        if task.kv_hint is not None:
            payload["cache_prompt"] = task.kv_hint == "reuse"
        if task.determinism == "strict":
            # What a cached prefix computed in another batch shape differs in its last bits.
            payload["cache_prompt"] = False
        if extensions.constraint is not None:
            payload |= _constraint(extensions.constraint)
        if extensions.messages is not None:
            return "/v1/chat/completions", payload | _chat(dispatch)
        payload["prompt"] = task.prompt
        if extensions.logprobs is not None:
            payload["n_probs"] = _alternatives(extensions.logprobs)
        if self._stream_metrics:
            payload |= {"return_progress": True, "timings_per_token": True}
        return "/completion", payload

    def _unary_request(self, dispatch: Dispatch) -> tuple[str, Mapping[str, Any]]:
        task = dispatch.task
        inputs = list(task.inputs or ())
        if task.workload == "rerank":
            return "/v1/rerank", {"query": task.prompt, "documents": inputs}
        return "/v1/embeddings", {"input": inputs or [task.prompt]}

    def _unary_answer(self, task: TaskRequest, answer: Any) -> Answer:
        tokens_in = answer.get("usage", {}).get("prompt_tokens")
        if tokens_in is not None and type(tokens_in) is not int:
            raise TypeError("usage.prompt_tokens")
        if task.workload == "rerank":
            scores = {int(row["index"]): float(row["relevance_score"]) for row in answer["results"]}
            _require_each(scores, len(task.inputs or ()))
            return Answer(tokens_in=tokens_in, scores=sorted(scores.items()))
        vectors = {
            int(row["index"]): [_number(number) for number in row["embedding"]]
            for row in answer["data"]
        }
        _require_each(vectors, len(task.inputs or ()) or 1)
        return Answer(
            tokens_in=tokens_in, embeddings=[vectors[index] for index in range(len(vectors))]
        )


def _chat(dispatch: Dispatch) -> dict[str, Any]:
    """Return what a conversation adds to the chat route's payload. Raises Unsupported."""
    extensions = dispatch.extensions
    details = {} if dispatch.identity is None else dispatch.identity.details
    if "messages.image" in extensions.used() and details.get("vision") is False:
        raise Unsupported("messages.image", "the model takes text only")
    if extensions.token_ids:
        raise Unsupported("token_ids", "the chat route lists none")
    payload: dict[str, Any] = {
        "messages": message_list(extensions.messages or ()),
        "stream_options": {"include_usage": True},
    }
    if extensions.logprobs is not None:
        payload |= {"logprobs": True, "top_logprobs": _alternatives(extensions.logprobs)}
    return payload if extensions.tools is None else payload | _tools(extensions)


def _tools(extensions: TaskExtensions) -> dict[str, Any]:
    """Return the tools and which of them to call. Raises Unsupported."""
    # With a grammar or with log probabilities the server refuses them, by a schema it forgets them.
    for field in sorted(extensions.used()):
        if field == "logprobs" or field.startswith("constraint."):
            raise Unsupported(field, "not together with tools")
    tools, choice = extensions.tools or (), extensions.tool_choice
    if choice not in {None, "auto", "none", "required"}:
        # The server takes a name for "auto", so the others are kept from the model.
        tools, choice = tuple(tool for tool in tools if tool.name == choice), "required"
    payload: dict[str, Any] = {"tools": tool_list(tools)}
    return payload if choice is None else {**payload, "tool_choice": choice}


def _alternatives(wanted: int) -> int:
    # None of them, for the server, is not even the token itself.
    return max(1, wanted)


def _constraint(constraint: Constraint) -> dict[str, Any]:
    match constraint.kind:
        case "json_schema":
            return {"json_schema": constraint.json_schema}
        case "grammar":
            return {"grammar": constraint.grammar}
        case "choice":
            words = (_literal(word) for word in constraint.choice or ())
            return {"grammar": "root ::= " + " | ".join(words)}
    raise Unsupported(f"constraint.{constraint.kind}")


def _literal(text: str) -> str:
    """Return ``text`` as a string of GBNF."""
    return '"' + _ESCAPED.sub(lambda found: f"\\x{ord(found[0]):02X}", text) + '"'


def _number(value: Any) -> float:
    if type(value) not in {int, float}:
        raise TypeError("not a number")
    return float(value)


def _require_each(found: Mapping[int, Any], wanted: int) -> None:
    if found.keys() != set(range(wanted)):
        raise ValueError("the answer does not have one row per input")


def _not_offered(error: AdapterError) -> bool:
    """Whether the server answered that it has no such route, or has it switched off."""
    return error.detail in {"unsupported", "not_found"}


def _count_slots(slots: Any) -> tuple[int, int]:
    if not isinstance(slots, list):
        raise TypeError("slots")
    return len(slots), sum(not slot["is_processing"] for slot in slots)


def _works_not_with(seed: int | None, slots: Any) -> bool:
    """Whether no slot is at work with this seed, the one thing of a task that a slot tells.

    A slot that does not tell may be the one.
    """
    if not isinstance(slots, list):
        raise TypeError("slots")
    return not any(
        slot["is_processing"] and slot.get("params", {}).get("seed", seed) == seed for slot in slots
    )


def _total_slots(props: Any) -> int | None:
    total = props.get("total_slots")
    return None if total is None else int(total)


def _identity(props: Any) -> WorkerIdentity:
    path = props.get("model_path")
    settings = props.get("default_generation_settings", {})
    alias = props.get("model_alias")
    if not alias or alias == path:
        # Without an alias of its own the server names the model by the whole path.
        alias = _file_name(path) if path else None
    return WorkerIdentity(
        engine_version=props["build_info"],
        model=alias,
        model_path=path or None,
        ctx_max=settings.get("n_ctx"),
        details=_details(props),
    )


def _details(props: Any) -> dict[str, bool | int | float | str]:
    """Return what the server tells of its abilities; older ones tell nothing of them."""
    told = {
        "vision": props.get("modalities", {}).get("vision"),
        "metrics": props.get("endpoint_metrics"),
    }
    return {name: value for name, value in told.items() if isinstance(value, bool)}


def _file_name(path: str) -> str:
    flavour = PureWindowsPath if "\\" in path else PurePosixPath
    return flavour(path).name


def _model_meta(models: Any) -> dict[str, int | float | str] | None:
    meta = models["data"][0].get("meta")
    if meta is None:
        return None
    return {str(key): value for key, value in meta.items() if isinstance(value, int | float | str)}
