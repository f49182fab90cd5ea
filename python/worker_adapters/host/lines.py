"""What the host itself logs: breakers, tasks that go elsewhere, tasks that are refused.

The submit, start and end of a task are told by the adapter that has it, if it has the same `Logs`.
"""

from collections.abc import Callable

from worker_adapters.errors import WorkerError
from worker_adapters.host.events import HostEvent
from worker_adapters.observe.logs import Logs
from worker_adapters.observe.narration import Narrator

__all__ = ["Lines"]

NOWHERE = "-"
"""The replica of a line about a task that no replica has had."""


class Lines:
    """An observer that makes log lines of events. See docs/logs.md for their fields."""

    def __init__(self, logs: Logs, clock: Callable[[], float]) -> None:
        self._logs = logs
        self._clock = clock

    def __call__(self, event: HostEvent) -> None:
        """Log it, if there is a line for it and somebody listens."""
        if event.action not in {"breaker", "retry", "reject"} or not self._logs.is_enabled():
            return
        narrator = self._narrator(event)
        if event.action == "breaker" and event.detail is not None:
            error = event.error
            narrator.breaker(event.detail, None if error is None else error.detail)
            return
        error, task, context = event.error, event.task, event.context
        if error is None or task is None or context is None:
            return
        if event.action == "retry":
            narration = narrator.task(task, context, context.correlation_id or "")
            if narration is not None:
                narration.retried(error, event.attempt or 1, 0.0)
            return
        narrator.tell("error", f"A task was refused ({_cause(error)}).", _of(event, error))

    def _narrator(self, event: HostEvent) -> Narrator:
        return Narrator(
            self._logs,
            engine=event.engine or "",
            pool_id=event.pool_id,
            replica_id=event.replica_id or NOWHERE,
            clock=self._clock,
        )


def _cause(error: WorkerError) -> str:
    return error.detail.replace("_", " ")


def _of(event: HostEvent, error: WorkerError) -> dict[str, object]:
    task, context = event.task, event.context
    return {
        "job_id": None if context is None else context.job_id,
        "session_id": None if task is None else str(task.session_id),
        "task_id": None if task is None else str(task.task_id),
        "correlation_id": error.correlation_id,
        "queue_position": None if context is None else context.queue_position,
        "predicted_start_ms": None if context is None else context.predicted_start_ms,
        "code": error.code,
        "detail": error.detail,
        "phase": error.phase,
        "retriable": error.retriable,
        "error": error.message or None,
    }
