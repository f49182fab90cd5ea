"""The circuit breaker of one replica: whether a request may be sent to it.

Nothing here reads a clock: instants are arguments, monotonic seconds.
"""

import math
from typing import Final, Literal, TypeAlias

from worker_adapters.errors import WorkerError
from worker_adapters.host.policy import BreakerPolicy

__all__ = ["Breaker", "BreakerState", "is_failure"]

BreakerState: TypeAlias = Literal["closed", "open", "half_open"]

CHANCE: Final = 1e-6
"""How unlikely a run of failures has to be for a replica that fails now and then."""

ENOUGH_SEEN: Final = 20
"""How many outcomes, weighed, tell how often a replica fails."""

FORGETTING: Final = 0.998
"""What an outcome still weighs after the next one."""

LONGEST_RUN: Final = 4
"""How many times `BreakerPolicy.failures` in a row open any breaker."""

_OURS: Final = frozenset(("local", "fd", "saturated", "circuit_open", "closed"))
"""What says something of this process."""

_BUSY: Final = frozenset(("rate_limited", "queue_full"))
"""What a replica says that is well and has too much to do."""

_NONSENSE: Final = frozenset(
    ("status", "protocol", "framing", "content_type", "content_encoding", "bad_json", "bomb")
)
"""What no request can make a server of this kind say."""

_UNANSWERED: Final = frozenset(("resolve", "connect", "tls", "write", "head", "first_token"))


def is_failure(error: WorkerError, waited: float, stall: float) -> bool:
    """Whether an error tells against the replica that it came from, after ``waited`` seconds.

    Broken and refused connections, 5xx, cut-off streams, nonsense and stalls do, and so does one
    that says it is loading: tasks are sent only to those that have said they were ready. What the
    task or the configuration got wrong does not, nor what is busy, nor what happened on our side.
    """
    match error.kind:
        case "PoolUnavailable":
            return error.detail not in _OURS and error.detail not in _BUSY
        case "WorkerReset" | "DecodeTimeout":
            return True
        case "DeadlineUnmet":
            return error.phase in _UNANSWERED and waited >= stall
        case "Adapter":
            return error.detail in _NONSENSE
    return False


class Breaker:
    """Closed until so many failures come in a row, then open, then half-open for one request.

    Whoever sends takes a permit before and tells what became of it; each counts for the time it was
    taken in, so what ends late changes nothing. A permit taken while it is half-open is the
    trial, and there is no other until it is settled.

    Some replicas fail now and then. Once one has been seen to, by `ENOUGH_SEEN` outcomes, it takes
    as long a run as chance alone would bring once in a million requests: at 20 % nine, and never
    more than `LONGEST_RUN` times the usual number.
    """

    __slots__ = (
        "_failed",
        "_generation",
        "_policy",
        "_probe_run",
        "_run",
        "_seen",
        "_state",
        "_streak",
        "_until",
        "_vouched",
        "trips",
    )

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._state: BreakerState = "closed"
        self._generation = 0
        self._until = 0.0
        self._run = 0
        self._probe_run = 0
        self._streak = 0
        """How many times it has opened since something last went well."""
        self._vouched = True
        """Whether something has gone well to its end since it was last open."""
        self._seen = 0.0
        self._failed = 0.0
        self.trips = 0
        """How often it has opened."""

    @property
    def state(self) -> BreakerState:
        """The state it is in; it is open until the trial is taken."""
        return self._state

    def retry_after(self, now: float) -> float | None:
        """Return for how many seconds nothing is let through; None when a request may go."""
        if self._state == "closed" or (self._state == "open" and now >= self._until):
            return None
        # While a trial is out, nobody knows; the shortest time that it could take.
        return self._until - now if self._state == "open" else self._policy.cooldown

    def acquire(self, now: float) -> int | None:
        """Take a permit to send one request; None when none may be sent."""
        if self._state == "open" and now >= self._until:
            self._state = "half_open"
            self._generation += 1
        elif self._state != "closed":
            return None
        return self._generation

    def answered(self, permit: int) -> None:
        """Note that the replica has taken the request up.

        A trial closes the breaker with that, so that nobody waits for the end of a long stream; but
        until something ends well, one failure opens it again.
        """
        if self._is_trial(permit):
            self._state = "closed"
            self._vouched = False

    def succeeded(self, permit: int) -> None:
        """Note that a request has gone well to its end."""
        if permit != self._generation or self._state == "open":
            return
        self._state = "closed"
        self._vouched = True
        self._streak = 0
        for outcome in (*([1.0] * self._run), 0.0):
            self._seen = self._seen * FORGETTING + 1.0
            self._failed = self._failed * FORGETTING + outcome
        self._run = self._probe_run = 0

    def failed(self, permit: int, now: float) -> bool:
        """Note that a request has failed; whether that opens the breaker."""
        if permit != self._generation or self._state == "open":
            return False
        if self._state == "half_open":
            self._open(now)
            return True
        self._run += 1
        return self._open_if_due(now)

    def abandoned(self, permit: int) -> None:
        """Note that nothing can be told from a request; another may be the trial."""
        if self._is_trial(permit):
            self._state = "open"

    def probed(self, well: bool, now: float) -> bool:
        """Note what a probe found; whether that opens the breaker.

        Probes that go well clear only the record of those that did not: a replica that says it is
        well and fails every task is not.
        """
        if self._state != "closed":
            return False
        if well:
            self._probe_run = 0
            return False
        self._probe_run += 1
        return self._open_if_due(now)

    def came_back(self, now: float) -> None:
        """Note that the replica was not ready and is again: a trial may be made at once."""
        if self._state == "open":
            self._until = min(self._until, now)
            self._streak = 0

    def _is_trial(self, permit: int) -> bool:
        return self._state == "half_open" and permit == self._generation

    def _open_if_due(self, now: float) -> bool:
        if self._run + self._probe_run < self._needed():
            return False
        self._open(now)
        return True

    def _needed(self) -> int:
        """Return how many failures in a row open it."""
        usual = self._policy.failures
        if not self._vouched:
            return 1
        if self._seen < ENOUGH_SEEN or not self._failed:
            return usual
        # Below 1, because what is recorded last is a success.
        share = self._failed / self._seen
        unlikely = math.ceil(math.log(CHANCE) / math.log(share))
        return min(max(usual, unlikely), LONGEST_RUN * usual)

    def _open(self, now: float) -> None:
        policy = self._policy
        self._state = "open"
        self._generation += 1
        self._until = now + min(policy.cooldown_cap, policy.cooldown * 2.0 ** min(self._streak, 32))
        self._streak += 1
        self._run = self._probe_run = 0
        self._vouched = True
        self._seen = self._failed = 0.0
        self.trips += 1
