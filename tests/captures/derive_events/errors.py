"""What engines say went wrong, and what it is by its status where no rule of an engine knows it.

The replay uses no rule table: CONTRACT "status decides only where the engine's rule table has no
rule".
"""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class EngineWords:
    """An error as the engine tells it."""

    status: int | None = None
    message: str | None = None


# (detail, kind, code, retriable, processed unless a frame has come)
NO_STATUS = {
    "truncated": ("WorkerReset", "WORKER_RESET", True, "unknown"),
    "aborted": ("WorkerReset", "WORKER_RESET", True, "unknown"),
    "engine_rejected": ("Adapter", "INTERNAL", False, "unknown"),
}
REFUSED = ("Adapter", "INVALID_PARAMS", False, "no")
BY_STATUS = {
    400: ("invalid_request", *REFUSED),
    401: ("unauthorized", *REFUSED),
    403: ("forbidden", *REFUSED),
    404: ("not_found", *REFUSED),
    405: ("invalid_request", *REFUSED),
    422: ("invalid_request", *REFUSED),
    429: ("rate_limited", "PoolUnavailable", "ADMISSION_REJECT", True, "no"),
    500: ("engine_error", "WorkerReset", "WORKER_RESET", True, "unknown"),
    501: ("unsupported", *REFUSED),
    503: ("unavailable", "PoolUnavailable", "POOL_UNAVAILABLE", True, "unknown"),
}


def fields(
    detail: str, kind: str, code: str, retriable: bool, processed: str, words: EngineWords
) -> dict[str, Any]:
    """The data of an error event, as far as the error decides it."""
    data = {
        "detail": detail,
        "kind": kind,
        "code": code,
        "retriable": retriable,
        "processed": processed,
    }
    if words.status:
        data["status"] = words.status
    if quoted := quotable(words.message):
        data["message"] = quoted
    return data


def by_status(words: EngineWords) -> dict[str, Any]:
    """What an error is whose status is known."""
    assert words.status
    detail, kind, code, retriable, processed = BY_STATUS[words.status]
    return fields(detail, kind, code, retriable, processed, words)


def without_status(words: EngineWords, detail: str) -> dict[str, Any]:
    """What an error is that has no status."""
    kind, code, retriable, processed = NO_STATUS[detail]
    return fields(detail, kind, code, retriable, processed, words)


def quotable(message: str | None) -> str:
    """The part of a message that must come through: control characters are escaped, ends cut."""
    text = (message or "").strip()
    at = next((at for at, sign in enumerate(text) if not sign.isprintable()), len(text))
    return text[: min(at, 200)]


def in_frame(frame: dict[str, Any]) -> EngineWords:
    """The error that a frame or a JSON body holds, in any of the engines' shapes."""
    told = frame.get("error", frame)
    if isinstance(told, str):
        return EngineWords(message=told)
    code = told.get("code")
    status = code if isinstance(code, int) and 400 <= code < 600 else None
    detail = told.get("detail")
    if isinstance(detail, list):
        detail = detail[0]["msg"]
    return EngineWords(status, told.get("message", detail))


def in_body(status: int, body: bytes) -> EngineWords:
    """The error that the body of an answer with this status tells: JSON, one event of it, text."""
    text = body.decode("utf-8")
    try:
        told = json.loads(text.removeprefix("data: "))
    except ValueError:
        return EngineWords(status, text)
    return EngineWords(status, in_frame(told).message)
