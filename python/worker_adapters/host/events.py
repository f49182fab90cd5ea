"""What the host tells whoever observes it: the one seam for logs and metrics.

An event is told at once, in the event loop, and never per token. An observer that raises is passed
over and the next one is told.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from worker_adapters._core import TokenEvent
from worker_adapters.contract import SubmitContext, TaskRequest
from worker_adapters.errors import WorkerError

__all__ = ["HostEvent", "Observer", "Observers"]

Action: TypeAlias = Literal[
    "bind",
    "rebind",
    "drain",
    "drained",
    "unbind",
    "closed",
    "admission",
    "ready",
    "unready",
    "breaker",
    "submit",
    "start",
    "retry",
    "hedge",
    "cancel",
    "reject",
    "error",
    "end",
]


@dataclass(frozen=True, slots=True)
class HostEvent:
    """Something that the host has done or seen.

    ====================  =====================================================================
    ``bind``, ``rebind``  an adapter takes tasks now, in the place of another one with ``rebind``
    ``drain``             a replica takes no new tasks; ``drained``: and has none left
    ``unbind``            a replica is gone; ``closed``: and so is its adapter, which raised a
                          ``detail`` if there is one
    ``admission``         the pool's decision is ``detail`` now
    ``ready``, ``unready``  what a probe found has changed; ``detail`` says why it is not ready
    ``breaker``           the breaker went to the state ``detail``, because of ``error`` if there
                          was one
    ``submit``            a task was given to a replica, the ``attempt``-th one
    ``start``             the engine has taken it up
    ``retry``             it had not, with ``error``, and another replica is tried
    ``hedge``             it is given to a second replica as well
    ``cancel``            a task was cancelled by the facade
    ``reject``            a task was refused before anything was sent, with ``error``
    ``error``             a submit failed for good, with ``error``; ``detail`` is ``fault`` where
                          the adapter raised what is no WorkerError
    ``end``               a stream ended with ``terminal``, or was dropped without one
    ====================  =====================================================================
    """

    action: Action
    pool_id: str
    replica_id: str | None = None
    engine: str | None = None
    detail: str | None = None
    task: TaskRequest | None = None
    context: SubmitContext | None = None
    error: WorkerError | None = None
    terminal: TokenEvent | None = None
    attempt: int | None = None
    in_flight: int | None = None
    """How many tasks the replica has, this one included where it has just been given it."""
    trips: int | None = None
    """How often the breaker has opened."""


Observer: TypeAlias = Callable[[HostEvent], object]

MAX_OBSERVERS: Final = 64


class Observers:
    """Everybody who is told."""

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers: tuple[Observer, ...] = ()
        self.failures = 0
        """How often an observer has raised."""
        for observer in observers:
            self.add(observer)

    def add(self, observer: Observer) -> None:
        """Have it told from now on. Raises ValueError for what is none, or where there are many."""
        if not callable(observer):
            raise ValueError("an observer must be callable")  # noqa: TRY004 - as all misuse
        if len(self._observers) >= MAX_OBSERVERS:
            raise ValueError(f"a host has at most {MAX_OBSERVERS} observers")
        self._observers = (*self._observers, observer)

    @property
    def are_there(self) -> bool:
        """Whether anybody is told."""
        return bool(self._observers)

    def tell(self, event: HostEvent) -> None:
        """Tell everybody."""
        for observer in self._observers:
            try:
                observer(event)
            except Exception:  # noqa: BLE001 - no observer may harm a task
                self.failures += 1
