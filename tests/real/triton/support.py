"""What the tests on the real Triton server share: tasks, the stand-ins' text, the adapters."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from worker_adapters.engines.triton import TritonAdapter
from worker_adapters.extensions import Extensions
from worker_adapters.testing.triton.models import mock_llm

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker_adapters.contract import TaskRequest
    from worker_adapters.testing.triton import TritonServer

TEXT = b"".join(mock_llm.PIECES).decode()
"""What every stand-in says, undisturbed."""
TOKENS = len(mock_llm.PIECES)
STREAMING = ("ensemble", "tensorrt_llm_bls", "tensorrt_llm_bls_accum", "llmapi")
"""Every way of streaming: an ensemble, deltas, all text so far, the LLM API."""


def task(directives: str = "delay_ms=1", **fields: Any) -> TaskRequest:
    """A completion task whose prompt begins with directives; any field can be set."""
    base: dict[str, Any] = {
        "task_id": uuid4(),
        "session_id": uuid4(),
        "workload": "completion",
        "model_ref": "hf:org/model",
        "engine": "triton",
        "ctx": 512,
        "priority": "interactive",
        "max_tokens": 64,
        "deadline_ms": 30_000,
        "prompt": f"[[{directives}]] What is it?",
    }
    return Extensions.all().task_request(**(base | fields))


def adapter(server: TritonServer, model: str, **options: Any) -> TritonAdapter:
    """An adapter for one model of the server."""
    return TritonAdapter(server.url, model=model, **options)


async def eventually(condition: Callable[[], object], what: str, *, within: float = 10.0) -> float:
    """Seconds until the condition held; fails the test after ``within`` seconds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < within, f"not within {within} s: {what}"
        await asyncio.sleep(0.005)
    return time.monotonic() - started
