"""A completion task from what a command line says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

from worker_adapters.cli._console import fail_invalid

if TYPE_CHECKING:
    from worker_adapters import TaskRequest

__all__ = ["completion_task"]


def completion_task(engine: str, prompt: str, **fields: Any) -> TaskRequest:
    """A task of its own session for whatever model the engine has loaded.

    Engines beyond the contract's are allowed: whoever types a name has opted in. A value outside
    the contract ends the command.
    """
    from worker_adapters import Extensions

    given: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    try:
        return Extensions.all(engine).task_request(
            task_id=uuid4(),
            session_id=uuid4(),
            workload="completion",
            engine=engine,
            # The one that is loaded: a command line does not choose another.
            model_ref="loaded",
            ctx=0,
            priority="interactive",
            prompt=prompt,
            **given,
        )
    except ValueError as error:
        fail_invalid(error)
