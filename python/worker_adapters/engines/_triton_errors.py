"""What Triton's errors mean.

Its status says little: whatever a model fails with before its first answer is a 400 (the error is
freed before its code is read), an ensemble whose queue is full included, and a request that is not
JSON is a 500. What it says in words decides, in the answer of a status and inside a 200 alike.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from worker_adapters._core import ErrorRules

__all__ = ["ERROR_RULES", "RULES"]

_INVALID: Final = {"kind": "Adapter", "error_code": "INVALID_PARAMS", "detail": "invalid_request"}
_OVERFLOW: Final = {
    "kind": "Adapter",
    "error_code": "INVALID_PARAMS",
    "detail": "context_overflow",
}
_UNSUPPORTED: Final = {
    "kind": "Adapter",
    "error_code": "INVALID_PARAMS",
    "detail": "unsupported",
}
_NOT_FOUND: Final = {"kind": "Adapter", "error_code": "INVALID_PARAMS", "detail": "not_found"}
_FULL: Final = {
    "kind": "PoolUnavailable",
    "error_code": "REPLICA_EXHAUSTED",
    "detail": "queue_full",
    "processed": "no",
}
_EXPIRED: Final = {
    "kind": "DecodeTimeout",
    "error_code": "DECODE_TIMEOUT",
    "detail": "gateway_timeout",
    "processed": "no",
}
_NOT_READY: Final = {
    "kind": "PoolUnavailable",
    "error_code": "POOL_UNREADY",
    "detail": "not_ready",
    "processed": "no",
}
_ABORTED: Final = {"kind": "WorkerReset", "error_code": "WORKER_RESET", "detail": "aborted"}
_RESET: Final = {"kind": "WorkerReset", "error_code": "WORKER_RESET", "detail": "engine_error"}


def _messages(outcome: Mapping[str, Any], parts: Iterable[str]) -> list[Mapping[str, Any]]:
    return [{"message": part, **outcome} for part in parts]


RULES: Final[Sequence[Mapping[str, Any]]] = (
    # A queue, the model's own (503) or that of an ensemble's step (400).
    *_messages(_FULL, ["Exceeds maximum queue size"]),
    # What a queue's own timeout says of those it has kept waiting too long.
    *_messages(_EXPIRED, ["Request timeout expired"]),
    # Triton's words about models. One that failed to load, or is being unloaded, has no versions.
    *_messages(
        _NOT_READY,
        ["has no available versions", "Model version not ready"],
    ),
    *_messages(_NOT_FOUND, ["Request for unknown model"]),
    # Triton's words about requests.
    *_messages(
        _INVALID,
        [
            "missing required input(s)",
            "expected number of inputs between",
            "unexpected inference input",
            "unexpected inference output",
            "already exists in request",
            "has invalid type. It should be",
            "failed to parse the request JSON buffer",
            "attempt to access JSON",
            "attempt to get members for non-object",
            "batch size does not match other inputs",
            "inference request batch-size must be",
            "unexpected shape for input",
            "Unsupported content-encoding",
        ],
    ),
    *_messages(
        _UNSUPPORTED,
        [
            "doesn't support models with decoupled transaction policy",
            "generate expects model to produce exactly 1 response",
            "Streaming is only supported in decoupled mode",
        ],
    ),
    # TensorRT-LLM's words about requests.
    *_messages(
        _INVALID,
        [
            "max_tokens must be a single value > 0",
            "Trying to stop a request but request ID is not provided",
            "A request id must be provided for request cancellation",
        ],
    ),
    *_messages(
        _OVERFLOW,
        [
            "exceeds maximum input length",
            "should not exceed max_num_tokens",
            "should not exceed max_seq_len",
        ],
    ),
    # Somebody else has stopped the request by its id.
    *_messages(_ABORTED, ["Request cancelled by client"]),
    # The engine's words, or a model's traceback: none of them blames the request.
    *_messages(
        _RESET,
        [
            "Stub process",
            "Executor failed process requestId",
            "Error encountered while populating response",
            "Error generating request",
            "Failed to process the request(s) for model",
            "Traceback (most recent call last)",
            "in ensemble '",
        ],
    ),
    # What is left of the 400s can be anything, and the request has passed every check of ours.
    {"status": 400, **_RESET},
)
"""What each error means; the first row that matches decides, where none does the status."""

ERROR_RULES: Final = ErrorRules(RULES)
