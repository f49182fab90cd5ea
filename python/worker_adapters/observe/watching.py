"""Whoever is told how a task fares: the log, a span, or both."""

from collections.abc import Iterable
from typing import Protocol

from worker_adapters._core import TokenEvent
from worker_adapters.errors import WorkerError

__all__ = ["TaskWatcher", "Watchers"]


class TaskWatcher(Protocol):
    """Told of one task, from its submit to its end, of which there is one; never per token."""

    @property
    def has_text(self) -> bool:
        """Whether it wants to hear every event."""

    def served_by(self, engine_version: str | None) -> None:
        """Keep what the engine says it is."""

    def submitted(self, request_id: str | None = None) -> None:
        """The task is on its way."""

    def retried(self, error: WorkerError, attempt: int, pause: float) -> None:
        """It is sent once more after that pause, in seconds."""

    def started(self) -> None:
        """The engine has begun to answer."""

    def ended(self, terminal: TokenEvent) -> None:
        """The stream has its terminal event."""

    def failed(self, error: WorkerError) -> None:
        """The task failed, before its stream or in it."""

    def broke(self) -> None:
        """An exception came that is none of the contract's."""

    def dropped(self, tokens: int = 0) -> None:
        """Nobody waits for the task any more."""

    def heard(self, events: Iterable[TokenEvent]) -> None:
        """Somebody reads these events; told only where ``has_text``."""


class Watchers:
    """Several of them, told one after the other."""

    __slots__ = ("_all",)

    def __init__(self, *watchers: TaskWatcher) -> None:
        self._all = watchers

    @property
    def has_text(self) -> bool:
        """Whether one of them wants to hear every event."""
        return any(one.has_text for one in self._all)

    def served_by(self, engine_version: str | None) -> None:
        """Keep what the engine says it is."""
        for one in self._all:
            one.served_by(engine_version)

    def submitted(self, request_id: str | None = None) -> None:
        """The task is on its way."""
        for one in self._all:
            one.submitted(request_id)

    def retried(self, error: WorkerError, attempt: int, pause: float) -> None:
        """It is sent once more after that pause, in seconds."""
        for one in self._all:
            one.retried(error, attempt, pause)

    def started(self) -> None:
        """The engine has begun to answer."""
        for one in self._all:
            one.started()

    def ended(self, terminal: TokenEvent) -> None:
        """The stream has its terminal event."""
        for one in self._all:
            one.ended(terminal)

    def failed(self, error: WorkerError) -> None:
        """The task failed, before its stream or in it."""
        for one in self._all:
            one.failed(error)

    def broke(self) -> None:
        """An exception came that is none of the contract's."""
        for one in self._all:
            one.broke()

    def dropped(self, tokens: int = 0) -> None:
        """Nobody waits for the task any more."""
        for one in self._all:
            one.dropped(tokens)

    def heard(self, events: Iterable[TokenEvent]) -> None:
        """Somebody reads these events."""
        for one in self._all:
            if one.has_text:
                one.heard(events)
