"""What the tests on the real Triton server share: tasks, the stand-ins' text, the adapters."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from worker_adapters.engines.triton import TritonAdapter
from worker_adapters.extensions import Extensions
from worker_adapters.testing.triton import EngineNotInstalledError, install, why_unavailable
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


def ensure_installed() -> None:
    """Install the server, with what the system lacks of it where that is allowed.

    A machine that cannot run it skips, or fails where ``REQUIRE_TRITON=1`` says that it has to; one
    that can and fails to install it fails.
    """
    reason = why_unavailable(system_packages=True)
    if reason is not None:
        if os.environ.get("REQUIRE_TRITON") == "1":
            pytest.fail(f"REQUIRE_TRITON=1, but: {reason}")
        pytest.skip(reason)
    try:
        install(system_packages=True)
    except EngineNotInstalledError as error:
        pytest.fail(str(error))


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
