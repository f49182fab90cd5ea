"""One exchange with an engine that somebody waits for."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from worker_adapters._abort import Abort
from worker_adapters.contract import Timeouts
from worker_adapters.transport import Progress

__all__ = ["Call", "CancelledInFlightError"]

_T = TypeVar("_T")


class CancelledInFlightError(Exception):
    """The task was cancelled while its submit was waiting."""


@dataclass(eq=False)
class Call:
    """One exchange that somebody waits for: how far it is, and how to stop the waiting."""

    clock: Callable[[], float]
    timeouts: Timeouts
    correlation_id: str
    deadline: float | None = None
    """Instant at which the task's time is up."""
    progress: Progress = field(default_factory=Progress)
    answered: bool = False
    """Whether the last request without a stream got an answer, whatever it said."""
    abort: Abort | None = None
    """The engine's own abort, once a submit that was given up has started it."""
    cancelled: bool = False
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    _waiting: asyncio.Timeout | None = None

    async def wait(self, work: Coroutine[Any, Any, _T], until: float | None) -> _T:
        """Await ``work`` until that instant.

        Raises TimeoutError, or CancelledInFlightError once `cancel` is called.
        """
        if self.cancelled:
            work.close()
            raise CancelledInFlightError
        delay = None if until is None else max(0.0, until - self.clock())
        try:
            async with asyncio.timeout(delay) as self._waiting:
                return await work
        except TimeoutError:
            if self.cancelled:
                raise CancelledInFlightError from None
            raise
        finally:
            self._waiting = None

    def cancel(self) -> None:
        """End the waiting; may be called from any loop."""
        self.cancelled = True
        if asyncio.get_running_loop() is self.loop:
            self._stop_waiting()
        else:
            with contextlib.suppress(RuntimeError):  # a loop that is closed waits for nothing
                self.loop.call_soon_threadsafe(self._stop_waiting)

    def _stop_waiting(self) -> None:
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(self.loop.time())

    def unary_end(self) -> float | None:
        """Return the instant at which a call without a stream has to be over."""
        unary = self.timeouts.unary
        ends = (None if unary is None else self.clock() + unary, self.deadline)
        return min((end for end in ends if end is not None), default=None)

    @property
    def deadline_passed(self) -> bool:
        # A loop may ring a hair early; a call that ended at its deadline ended because of it.
        return self.deadline is not None and self.deadline - self.clock() <= 1e-3
