"""Tasks and adapters as the unit tests need them."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from worker_adapters import LlamaCppAdapter, RetryPolicy, TaskRequest

ONCE = RetryPolicy(attempts=1)

PROMPT = "a canary prompt nobody may see"


def fields(**changes: Any) -> dict[str, Any]:
    """Return the fields of a completion task, with changes; a change to ... leaves one out."""
    given: dict[str, Any] = {
        "task_id": uuid4(),
        "session_id": uuid4(),
        "workload": "completion",
        "model_ref": "models/tiny.gguf",
        "engine": "llamacpp",
        "ctx": 512,
        "priority": "interactive",
        "max_tokens": 16,
        "deadline_ms": 60_000,
        "prompt": PROMPT,
        **changes,
    }
    return {name: value for name, value in given.items() if value is not ...}


def task(**changes: Any) -> TaskRequest:
    """Return a completion task, with changes."""
    return TaskRequest(**fields(**changes))


def adapter(url: str, **options: Any) -> LlamaCppAdapter:
    """Return a llama.cpp adapter for ``url`` that sends nothing twice unless it is told to."""
    return LlamaCppAdapter(url, **{"retries": ONCE, **options})
