"""Programs that use an adapter: processes of their own, where warnings are errors."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent
from typing import TYPE_CHECKING

from tests.unit.wire import WITHIN

if TYPE_CHECKING:
    from tests.transports import Transport

PROGRAM = """
import asyncio, atexit, multiprocessing, os, resource, signal, sys, threading, time
from uuid import uuid4
from worker_adapters import LlamaCppAdapter, RetryPolicy, TaskRequest, Timeouts, WorkerError
from worker_adapters.sync import SyncWorkerAdapter

def task(max_tokens=1_000_000):
    return TaskRequest(
        task_id=uuid4(), session_id=uuid4(), workload="completion", model_ref="m",
        engine="llamacpp", ctx=0, priority="interactive", max_tokens=max_tokens,
        deadline_ms=600_000, prompt="Once upon a time",
    )

def connect(**options):
    # A hundred connections at once may be more than a listener has room for at a time.
    options = {"timeouts": Timeouts(connect=30.0), **options}
    return LlamaCppAdapter(sys.argv[1], transport=sys.argv[2], **options)

async def begun(made):
    stream = await made.submit(task())
    for _ in range(2):
        await anext(stream)
    return stream

async def text_of(made):
    return (await (await made.submit(task(4))).collect()).text
"""


def command(url: str, transport: Transport, code: str) -> list[str]:
    """Return what runs ``code`` behind `PROGRAM`."""
    return [sys.executable, "-W", "error", "-c", PROGRAM + dedent(code), url, transport]


def program(url: str, transport: Transport, code: str) -> subprocess.Popen[str]:
    """Start it; what happens is told on stdout."""
    return subprocess.Popen(
        command(url, transport, code), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def outcome(running: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for its end; return its status and what it said."""
    try:
        out, err = running.communicate(timeout=2 * WITHIN)
    finally:
        running.kill()
    return running.returncode, out, err
