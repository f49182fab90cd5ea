"""When a request is sent once more: which one, after what pause, and how often in all.

Nothing here reads a clock, sleeps or draws a number by itself: instants are arguments, monotonic
seconds, and the randomness is injected.
"""

from collections.abc import Callable
from enum import Enum
from typing import Annotated, Final

from pydantic import Field

from worker_adapters._model import Contract
from worker_adapters.errors import WorkerError

__all__ = ["Attempts", "Repeat", "Retries", "RetryPolicy"]

MAX_SAVED: Final = 100.0
"""How many retries a long calm saves up for at most."""

ROUNDING: Final = 1e-3
"""To how many seconds an engine's pause is told: with less than that left it does not fit."""

_NEVER: Final = frozenset(
    ("saturated", "circuit_open", "unary_timeout", "first_token", "header_timeout", "write_timeout")
)
"""What waiting longer on our side would not help, or has waited long enough already."""

_Factor = Annotated[float, Field(ge=1.0, le=10.0, allow_inf_nan=False)]
_Pause = Annotated[float, Field(gt=0.0, le=60.0, allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


class RetryPolicy(Contract):
    """How often, and after what pauses, an adapter repeats a request by itself.

    The n-th pause, counted from 0, is drawn evenly from 0 to ``min(cap, base * factor**n)``
    seconds; one that the engine asks for (``Retry-After``) is waited for instead, 60 s at most. A
    pause that does not end before the deadline is not begun. ``RetryPolicy(attempts=1)`` repeats
    nothing.
    """

    attempts: Annotated[int, Field(strict=True, ge=1, le=10)] = 4
    """How often a request is sent at most, the first time included."""
    base: _Pause = 0.1
    factor: _Factor = 2.0
    cap: _Pause = 2.0
    budget: _Share = 0.1
    """How many retries each request pays for."""
    floor: Annotated[int, Field(strict=True, ge=0, le=1000)] = 10
    """How many retries a second, and at once, there are beside those."""


class Repeat(Enum):
    """What it would mean to send a request once more."""

    HARMLESS = "harmless"
    """It asks and changes nothing, or what it changes can be said twice."""
    WASTEFUL = "wasteful"
    """The engine would work twice, so not once it has answered with a result."""
    HARMFUL = "harmful"
    """Only where the engine has provably not taken it up."""

    def is_fit(self, error: WorkerError) -> bool:
        """Whether a request that failed so may be sent once more."""
        if not error.retriable or error.detail in _NEVER:
            return False
        match self:
            case Repeat.HARMLESS:
                return True
            case Repeat.WASTEFUL:
                return error.processed != "yes"
        # 429 is for whoever sends too much to mind, not for us to hide.
        return error.processed == "no" and error.status != 429


class Retries:
    """The retries of one adapter: a policy and the budget that all its requests share.

    Out of n requests in t seconds come at most ``budget * n + floor * (t + 1)`` retries, whatever
    fails: an outage is not made worse by a multiple of its load. ``uniform(a, b)`` draws the
    pauses.
    """

    def __init__(self, policy: RetryPolicy, uniform: Callable[[float, float], float]) -> None:
        self.policy = policy
        self._uniform = uniform
        self._left = float(policy.floor)
        self._counted_at: float | None = None

    def begin(self, most: int | None = None) -> "Attempts":
        """Count a request; it may be sent as often as the policy says, or as ``most`` does."""
        self._left = max(self._left, min(MAX_SAVED, self._left + self.policy.budget))
        attempts = self.policy.attempts
        return Attempts(self, attempts if most is None else min(attempts, most))

    def pause(self, number: int) -> float:
        """Draw the pause after the attempt of that number, counted from 0."""
        policy = self.policy
        return self._uniform(0.0, min(policy.cap, policy.base * policy.factor**number))

    def spend(self, now: float) -> bool:
        """Take one retry out of the budget; whether there was one."""
        floor = self.policy.floor
        if self._counted_at is not None and self._left < floor:
            gained = floor * max(0.0, now - self._counted_at)
            self._left = min(floor, self._left + gained)
        self._counted_at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Attempts:
    """How often one request has been sent."""

    def __init__(self, retries: Retries, most: int) -> None:
        self._retries = retries
        self._most = most
        self.made = 0
        """How often it has been sent."""

    def pause_after(
        self, error: WorkerError, repeat: Repeat, now: float, until: float | None
    ) -> float | None:
        """Return how long to wait before the request is sent once more; None for not at all.

        ``until`` is the instant by which everything has to be over.
        """
        self.made += 1
        if self.made >= self._most or not repeat.is_fit(error):
            return None
        if error.retry_after_ms is None:
            pause = self._retries.pause(self.made - 1)
        else:
            pause = error.retry_after_ms / 1000
        if until is not None and until - now - pause < ROUNDING:
            return None
        return pause if self._retries.spend(now) else None
