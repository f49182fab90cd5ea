"""Text Generation Inference, by its native ``/generate_stream``; conversations by its chat route.

Why native: every token comes with its id and log probability, and the last frame says why the
stream ended. What the server does not know in a request it ignores silently, so whatever its
version does not have is refused here. ``docs/engines/tgi.md`` tells the deviations.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final

from worker_adapters._core import ErrorRules
from worker_adapters.capabilities import Feature
from worker_adapters.contract import TaskRequest, Timeouts, WorkerIdentity, WorkerProps
from worker_adapters.engines import _chat
from worker_adapters.engines._http import Answer, Call, Dispatch, HttpAdapter, Unsupported
from worker_adapters.engines._pattern import one_of
from worker_adapters.extensions import Constraint

__all__ = ["ERROR_RULES", "RULES", "TgiAdapter"]

_INVALID: Final = {"kind": "Adapter", "error_code": "INVALID_PARAMS"}
_REQUEST: Final = {**_INVALID, "detail": "invalid_request"}
_OVERFLOW: Final = {**_INVALID, "detail": "context_overflow"}
_UNSUPPORTED: Final = {**_INVALID, "detail": "unsupported"}
_RESET: Final = {"kind": "WorkerReset", "error_code": "WORKER_RESET", "detail": "engine_error"}
_OVERLOADED: Final = {
    "kind": "PoolUnavailable",
    "error_code": "ADMISSION_REJECT",
    "detail": "rate_limited",
    "processed": "no",
}

RULES: Final[Sequence[Mapping[str, Any]]] = (
    {"message": "`inputs` tokens + `max_new_tokens` must be", **_OVERFLOW},
    {"message": "`inputs` must have less than", **_OVERFLOW},
    {"message": "Input validation error: grammar is not supported", **_UNSUPPORTED},
    {"message": "modality is not supported", **_UNSUPPORTED},
    {"type": "validation", **_REQUEST},
    # The semaphore of --max-concurrent-requests; 429 where it is a status.
    {"type": "overloaded", **_OVERLOADED},
    {"type": "generation", **_RESET},
    {"type": "incomplete_generation", **_RESET},
    {"type": "incomplete_generation_stream", **_RESET},
    {"type": "stream_serialization_error", **_RESET},
    {"type": "template_error", **_REQUEST},
    {"type": "missing_template_variable", **_REQUEST},
    {"type": "tool_error", **_REQUEST},
    {
        "type": "healthcheck",
        "kind": "PoolUnavailable",
        "error_code": "POOL_UNREADY",
        "detail": "not_ready",
        "processed": "no",
    },
    # Streams of the chat route have words only, and 422 whatever went wrong.
    {"message": "Input validation error", **_REQUEST},
    {"message": "Model is overloaded", **_OVERLOADED},
    {"message": "Request failed during generation", **_RESET},
    {"message": "Incomplete generation", **_RESET},
    {"message": "Stream event serialization error", **_RESET},
    {"message": "Template error", **_REQUEST},
    {"message": "Missing template va", **_REQUEST},
    {"message": "Tool error", **_REQUEST},
    # A failed generation, where its type did not come with it.
    {"status": 424, **_RESET},
)
"""What each of the server's errors means; the first row that matches decides, else the status."""

ERROR_RULES: Final = ErrorRules(RULES)


_BASE_MODEL: Final = "tgi"
"""What the chat route calls the model without an adapter; any other name is one."""


class TgiAdapter(HttpAdapter):
    """A Text Generation Inference server. Arguments as `HttpAdapter` has them, and one more.

    Args:
        lora_adapters: The adapters the server was started with (``--lora-adapters``). The server
            lists them nowhere and answers from the base model for one it does not have, so that
            any other is refused here.

    The server has no route to cancel a task: dropping the connection is what ends it.
    """

    engine = "tgi"
    dialect = "tgi"
    rules = ERROR_RULES
    health_path = "/health"
    # A comment every 15 s keeps a silent stream alive: after four missed ones there is nobody.
    default_timeouts: ClassVar[Timeouts] = Timeouts(idle=60.0)
    translates = frozenset(
        (
            "messages",
            "messages.image",
            "constraint.json_schema",
            "constraint.regex",
            "constraint.choice",
            "stop",
            "sampling",
            "logprobs",
            "token_ids",
            "lora",
        )
    )

    def __init__(self, base_url: str, *, lora_adapters: Iterable[str] = (), **options: Any) -> None:
        super().__init__(base_url, **options)
        self._lora_adapters = frozenset(lora_adapters)

    # What the server is.

    async def _ask_identity(self, call: Call) -> WorkerIdentity:
        return await self._get_json("/info", call, _identity)

    async def props(self, *, timeouts: Timeouts | None = None) -> WorkerProps:
        """Ask ``/info`` for the slots, ``/metrics`` for what runs and waits.

        See `WorkerAdapter.props`. A slot is one of ``--max-concurrent-requests``: whoever comes
        when all are taken is turned away, not queued.
        """
        call = self._call(timeouts)
        slots = (await self._refresh_identity(call)).details.get("slots")
        if not isinstance(slots, int):
            return WorkerProps()
        load = await self._load(call)
        if load.running is None or load.waiting is None:
            return WorkerProps(slots_total=slots, source="info")
        free = max(0, slots - load.running - load.waiting)
        return WorkerProps(slots_total=slots, slots_free=free, source="info+metrics")

    def _features(self, identity: WorkerIdentity | None) -> Mapping[str, Feature]:
        """Tell what this server's version can do of what the class declares."""
        known: dict[str, bool] = {
            "chat": _has(identity, "messages"),
            "messages.image": _has(identity, "messages") and _sees(identity),
            "metrics": True,
        }
        for kind in ("json_schema", "regex", "choice"):
            known[f"constraint.{kind}"] = _has(identity, "constraint")
        features = {name: Feature(value=value, source="adapter") for name, value in known.items()}
        features["lora"] = Feature(value=bool(self._lora_adapters), source="configuration")
        return features

    # What a task is sent as.

    def _dialect(self, dispatch: Dispatch) -> str:
        return self.dialect if dispatch.extensions.messages is None else "openai"

    def _dialect_options(self, dispatch: Dispatch) -> Mapping[str, str]:
        stop = dispatch.stop()
        # The server leaves a stop text in its answer, whichever route was asked.
        return {"stop": json.dumps(stop)} if stop else {}

    def _completion(self, dispatch: Dispatch) -> tuple[str, Mapping[str, Any]]:
        if dispatch.extensions.messages is not None:
            return "/v1/chat/completions", self._chat_payload(dispatch)
        parameters = self._parameters(dispatch)
        return "/generate_stream", {"inputs": dispatch.task.prompt, "parameters": parameters}

    def _parameters(self, dispatch: Dispatch) -> dict[str, Any]:
        """Return the parameters of a native generation."""
        identity, extensions = dispatch.identity, dispatch.extensions
        given = dispatch.sampling()
        parameters: dict[str, Any] = {
            "max_new_tokens": dispatch.task.max_tokens,
            "seed": dispatch.seed,
            # Else the last frame does not say why it is the last.
            "details": True,
            "return_full_text": False,
            "stop": self._stop(dispatch),
        }
        _refuse_without_effect(given, ("presence_penalty", "min_p"))
        if (penalty := given.get("repeat_penalty")) is not None:
            parameters["repetition_penalty"] = penalty
        if penalty := given.get("frequency_penalty"):
            _require(identity, "sampling.frequency_penalty")
            parameters["frequency_penalty"] = penalty
        parameters |= _drawing(given)
        if extensions.constraint is not None:
            _require(identity, "constraint")
            parameters["grammar"] = _grammar(extensions.constraint)
        if extensions.logprobs:
            # The token's own comes with every frame; this asks for its rivals.
            _require(identity, "logprobs")
            parameters["top_n_tokens"] = extensions.logprobs
        if extensions.lora is not None:
            _require(identity, "lora")
            parameters["adapter_id"] = self._lora(extensions.lora)
        return parameters

    def _chat_payload(self, dispatch: Dispatch) -> dict[str, Any]:
        """Return the body of a chat completion."""
        identity, extensions = dispatch.identity, dispatch.extensions
        _require(identity, "messages")
        if "messages.image" in extensions.used() and not _sees(identity):
            # To a model without eyes an image is a piece of Markdown in the prompt.
            raise Unsupported("messages.image", "the model takes text only")
        if extensions.token_ids:
            raise Unsupported("token_ids", "the chat route has none")
        given = dispatch.sampling()
        # The route takes presence_penalty, for something else: a repetition penalty less 2.
        _refuse_without_effect(given, ("presence_penalty", "min_p"))
        greedy = given.get("temperature") == 0
        if not greedy:
            _refuse_without_effect(given, ("top_k",))
        if given.get("repeat_penalty", 1) != 1:
            raise Unsupported("sampling.repeat_penalty", "the chat route has none")
        payload: dict[str, Any] = {
            "model": _BASE_MODEL if extensions.lora is None else self._lora(extensions.lora),
            "messages": _chat.message_list(extensions.messages or ()),
            "max_tokens": dispatch.task.max_tokens,
            "seed": dispatch.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
            "stop": self._stop(dispatch),
        }
        for name in ("temperature", "frequency_penalty"):
            if (value := given.get(name)) is not None:
                payload[name] = value
        # With a temperature of 0 the server would draw as soon as this is there.
        if (top_p := given.get("top_p")) is not None and top_p < 1 and not greedy:
            payload["top_p"] = top_p
        if extensions.constraint is not None:
            payload["response_format"] = _grammar(extensions.constraint)
        if extensions.logprobs is not None:
            payload |= {"logprobs": True, "top_logprobs": extensions.logprobs}
        return payload

    def _stop(self, dispatch: Dispatch) -> list[str]:
        stop = dispatch.stop()
        most = 4 if dispatch.identity is None else dispatch.identity.details.get("stop", 4)
        if isinstance(most, int) and len(stop) > most:
            raise Unsupported("stop", f"the server takes at most {most} texts, not {len(stop)}")
        return stop

    def _lora(self, name: str) -> str:
        if name not in self._lora_adapters:
            raise Unsupported("lora", "lora_adapters of this adapter does not list it")
        return name

    def _unary_request(self, dispatch: Dispatch) -> tuple[str, Mapping[str, Any]]:
        raise Unsupported(f"workload {dispatch.task.workload}", "the server generates text only")

    def _unary_answer(self, task: TaskRequest, answer: Any) -> Answer:
        raise TypeError(f"{task.workload}: {type(answer)}")


_SINCE: Final[Mapping[str, tuple[int, ...]]] = {
    "logprobs": (1, 4, 0),
    "constraint": (1, 4, 3),
    "sampling.frequency_penalty": (1, 4, 3),
    "lora": (2, 1, 0),
    "messages": (3, 0, 0),
}
"""The first version that is known to have it; the one that brought it may be an earlier one.

Chat is older, but its streams end in a marker and tell their usage only from here on.
"""

_RELEASE: Final = re.compile(r"v?([0-9]+(?:\.[0-9]+)+)")


def _has(identity: WorkerIdentity | None, field: str) -> bool:
    release = None if identity is None else _RELEASE.match(identity.engine_version)
    if release is None:
        return False
    return tuple(int(part) for part in release[1].split(".")) >= _SINCE[field]


def _sees(identity: WorkerIdentity | None) -> bool:
    """Whether the model that is loaded takes images."""
    return identity is not None and identity.details.get("images") is True


def _require(identity: WorkerIdentity | None, field: str) -> None:
    """Refuse what the server's version would ignore silently."""
    if not _has(identity, field):
        since = ".".join(map(str, _SINCE[field]))
        raise Unsupported(field, f"known of servers since {since}")


def _refuse_without_effect(given: Mapping[str, Any], names: Iterable[str]) -> None:
    for name in names:
        # 0 is what the server does anyway.
        if given.get(name):
            raise Unsupported(f"sampling.{name}", "the server has none")


def _drawing(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that decide how a token is drawn.

    The server refuses the values that stand for "no effect", and draws as soon as any of these is
    there; without any it is greedy, which is its default.
    """
    temperature = given.get("temperature")
    if temperature == 0:
        return {"do_sample": False}
    drawing: dict[str, Any] = {}
    if temperature is not None:
        drawing["temperature"] = temperature
    if given.get("top_k"):
        drawing["top_k"] = given["top_k"]
    if (top_p := given.get("top_p")) is not None and top_p < 1:
        drawing["top_p"] = top_p
    # A temperature of 1 alone would not be noticed.
    return {**drawing, "do_sample": True} if drawing else {}


def _grammar(constraint: Constraint) -> dict[str, Any]:
    if constraint.json_schema is not None:
        return {"type": "json", "value": constraint.json_schema}
    if constraint.regex is not None:
        return {"type": "regex", "value": constraint.regex}
    return {"type": "regex", "value": one_of(constraint.choice or ())}


def _identity(info: Any) -> WorkerIdentity:
    version, sha, model = info["version"], info.get("sha"), info["model_id"]
    details: dict[str, bool | int | float | str] = {
        "images": info.get("model_pipeline_tag") == "image-text-to-text"
    }
    for name, key in (
        ("slots", "max_concurrent_requests"),
        ("stop", "max_stop_sequences"),
        ("max_input", "max_input_tokens"),
        ("max_input", "max_input_length"),  # through 2.0
    ):
        if type(info.get(key)) is int:
            details.setdefault(name, info[key])
    revision = info.get("model_sha")
    return WorkerIdentity(
        engine_version=f"{version}+{sha[:8]}" if sha else version,
        model=model,
        model_path=model if model.startswith("/") else None,
        ctx_max=info.get("max_total_tokens"),
        # Of the repository it was loaded from, not of the file.
        model_meta={"revision": revision} if isinstance(revision, str) else None,
        details=details,
    )
