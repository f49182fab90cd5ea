"""Tasks with extensions, and what an adapter makes of them without an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.unit.tasks import fields
from worker_adapters import Extensions, TaskExtensions, TaskRequest
from worker_adapters.contract import WorkerIdentity
from worker_adapters.engines._dispatch import Dispatch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker_adapters import SamplerProfile
    from worker_adapters.engines.openai import OpenAiAdapter

HELLO = {"role": "user", "content": "hello"}


def task(engine: str, extensions: Mapping[str, Any] | None = None, **changes: Any) -> TaskRequest:
    """Return a task for ``engine`` that may carry everything."""
    if extensions is not None:
        changes["extensions"] = TaskExtensions.model_validate(extensions)
        if "messages" in extensions:
            changes["prompt"] = ...
    return Extensions.all().task_request(**fields(engine=engine, **changes))


def dispatch(
    asked: TaskRequest,
    *,
    version: str = "0.32.0",
    model: str | None = "tiny",
    details: Mapping[str, Any] | None = None,
    profile: SamplerProfile | None = None,
) -> Dispatch:
    """Return ``asked`` as it is about to be sent to an engine of that version."""
    identity = WorkerIdentity(
        engine_version=version, model=model, ctx_max=512, details=dict(details or {})
    )
    return Dispatch(task=asked, seed=7, profile=profile, identity=identity, request_id="r-1")


def payload(adapter: OpenAiAdapter, sent: Dispatch) -> tuple[str, dict[str, Any]]:
    """Return path and payload of the request for ``sent``."""
    path, asked = adapter._completion(sent)
    return path, dict(asked)
