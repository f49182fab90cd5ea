"""One exchange with an engine that somebody waits for."""

import asyncio
import contextlib
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from worker_adapters._abort import Abort, Stopped
from worker_adapters._core import TaskMetrics
from worker_adapters.contract import Timeouts
from worker_adapters.transport import CancelledInFlightError, Progress

if TYPE_CHECKING:
    from worker_adapters.observe.watching import TaskWatcher

__all__ = ["Call", "CancelledInFlightError", "Shared"]

_T = TypeVar("_T")


@dataclass(eq=False)
class Call:
    """One exchange that somebody waits for: how far it is, and how to stop the waiting."""

    clock: Callable[[], float]
    timeouts: Timeouts
    correlation_id: str
    deadline: float | None = None
    """Instant at which the task's time is up."""
    progress: Progress = field(default_factory=Progress)
    until: float | None = None
    """Instant by which all that this call asks has to be answered."""
    patience: float | None = None
    """Instant after which nobody waits for an answer any more; no pause ends later."""
    repeats: bool = True
    """Whether what it asks may be asked again when it fails."""
    answered: bool = False
    """Whether a request without a stream got an answer, whatever it said, and no later one found
    the engine gone."""
    private: tuple[str, ...] = field(default=(), repr=False)
    """Texts of the task that no error may repeat."""
    abort: Abort | None = None
    """The engine's own abort, once a submit that was given up has started it."""
    stopped: Stopped | None = None
    """Waits for the engine to say that it no longer works on the task, where it can say so."""
    narration: "TaskWatcher | None" = None
    """Who tells how the call's task fares, where somebody listens."""
    metrics: TaskMetrics | None = None
    """Where the task of this call is counted, once that is known."""
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
        except asyncio.CancelledError as cancelled:
            # Below, in the HTTP library, variables hold the request as it is sent: key and prompt.
            raise cancelled.with_traceback(None)  # noqa: B904 - it is the same one
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
        ends = (None if unary is None else self.clock() + unary, self.until, self.deadline)
        return min((end for end in ends if end is not None), default=None)

    def pause_end(self, until: float | None) -> float | None:
        """Return the instant before which a pause has to end, in a call that ends at ``until``."""
        return min((end for end in (until, self.patience) if end is not None), default=None)

    @property
    def deadline_passed(self) -> bool:
        # A loop may ring a hair early; a call that ended at its deadline ended because of it.
        return self.deadline is not None and self.deadline - self.clock() <= 1e-3


class Shared(Generic[_T]):
    """Work that several wait for: done once, and given up when the last of them has left.

    ``call`` tells how far it is. Belongs to the running loop.
    """

    def __init__(self, work: Coroutine[Any, Any, _T], call: Call) -> None:
        self.call = call
        self.given_up = False
        self._task = asyncio.create_task(work)
        self._waiting: list[float] = []

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to wait for any more."""
        return self.given_up or self._task.done()

    async def result(self, until: float | None) -> _T:
        """Wait for the work, as somebody who leaves at ``until``; raises what it raised."""
        leaves = math.inf if until is None else until
        self._waiting.append(leaves)
        self._note_patience()
        try:
            await asyncio.wait((self._task,))
        finally:
            self._waiting.remove(leaves)
            self._note_patience()
            if not self._waiting and not self._task.done():
                self.given_up = True
                self._task.cancel()
        return self._task.result()

    def _note_patience(self) -> None:
        last = max(self._waiting, default=math.inf)
        self.call.patience = None if last == math.inf else last
