"""What the errors of OpenAI-shaped servers mean.

One table for all of them, because a server of this shape is often another than the one it is taken
for: vLLM, llama.cpp, SGLang and TGI all stand behind the same routes. Where no row matches, the
status decides, which is right for most of what such servers say; a row is here because the status
alone would mislead.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from worker_adapters._core import ErrorRules
from worker_adapters.engines.llamacpp import RULES as LLAMACPP_RULES

__all__ = ["ERROR_RULES", "RULES"]

_INVALID: Final = {"kind": "Adapter", "error_code": "INVALID_PARAMS"}
_OVERFLOW: Final = {**_INVALID, "detail": "context_overflow"}
_UNAVAILABLE: Final = {"kind": "PoolUnavailable", "error_code": "POOL_UNAVAILABLE"}
_RESET: Final = {"kind": "WorkerReset", "error_code": "WORKER_RESET", "detail": "engine_error"}
_FULL: Final = {
    "kind": "PoolUnavailable",
    "error_code": "REPLICA_EXHAUSTED",
    "detail": "queue_full",
    "processed": "no",
}

RULES: Final[Sequence[Mapping[str, Any]]] = (
    # vLLM's engine process is dead. Up to 0.10.2 a stream says so with code 400.
    {"message": "EngineCore encountered an issue", **_RESET},
    {"message": "Engine loop is not running", **_RESET},
    {"message": "Background loop has errored", **_RESET},
    # Full queues: vLLM's, Ollama's.
    {"status": 503, "message": "currently busy and cannot accept new requests", **_FULL},
    {"status": 503, "message": "maximum pending requests exceeded", **_FULL},
    # TGI's 429, which it also sends inside a 200.
    {
        "type": "overloaded",
        "kind": "PoolUnavailable",
        "error_code": "ADMISSION_REJECT",
        "detail": "rate_limited",
        "processed": "no",
    },
    # vLLM while its data-parallel engines are added or taken away.
    {
        "status": 503,
        "message": "currently scaling",
        "kind": "PoolUnavailable",
        "error_code": "POOL_UNREADY",
        "detail": "draining",
        "processed": "no",
    },
    # Prompt and answer do not fit: OpenAI, vLLM (its wordings by version), SGLang, TGI.
    {"code": "context_length_exceeded", **_OVERFLOW},
    {"status": 400, "message": "maximum context length", **_OVERFLOW},
    {"status": 400, "message": "context length is only", **_OVERFLOW},
    {"status": 400, "message": "cannot be greater than max_model_len", **_OVERFLOW},
    {"status": 400, "message": "longer than the model's context length", **_OVERFLOW},
    {"type": "validation", "message": "`inputs` tokens + `max_new_tokens`", **_OVERFLOW},
    {"type": "validation", "message": "`inputs` must have less than", **_OVERFLOW},
    # Paying later does not help a task now, though it is said with the status of a rate limit.
    {
        "code": "insufficient_quota",
        "kind": "PoolUnavailable",
        "error_code": "ADMISSION_REJECT",
        "detail": "rate_limited",
        "retriable": False,
    },
    {
        "status": 404,
        "message": "has been deprecated",
        "kind": "Adapter",
        "error_code": "MODEL_DEPRECATED",
        "detail": "model_deprecated",
    },
    # These statuses say more than the types they come with.
    {"status": 401, **_INVALID, "detail": "unauthorized"},
    {"status": 403, **_INVALID, "detail": "forbidden"},
    {"status": 404, **_INVALID, "detail": "not_found"},
    {
        "status": 429,
        "kind": "PoolUnavailable",
        "error_code": "ADMISSION_REJECT",
        "detail": "rate_limited",
    },
    {"status": 503, "type": "server_error", **_UNAVAILABLE, "detail": "unavailable"},
    # TGI's types.
    {"type": "validation", **_INVALID, "detail": "invalid_request"},
    {"type": "generation", **_RESET},
    {"type": "incomplete_generation", **_RESET},
    *LLAMACPP_RULES,
)
"""What each error means; the first row that matches decides."""

ERROR_RULES: Final = ErrorRules(RULES)
