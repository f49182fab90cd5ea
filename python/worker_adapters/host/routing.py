"""Which replica of a pool a task goes to."""

import math
import random
from collections.abc import Callable, Sequence
from hashlib import blake2b

from worker_adapters.host.replica import Replica

__all__ = ["Router"]


class Router:
    """Chooses among the replicas that fit a task. ``rng`` draws those that are compared."""

    __slots__ = ("_rng",)

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def pick(
        self, replicas: Sequence[Replica], fits: Callable[[Replica], bool], now: float
    ) -> Replica | None:
        """Return the less loaded of two that are drawn among those that fit; None for none.

        Two choices spread tasks nearly as well as looking at all of them, and those who choose at
        the same moment do not all choose the same one.
        """
        count = len(replicas)
        if count > 1:
            one = int(self._rng.random() * count)
            two = int(self._rng.random() * (count - 1))
            first, second = replicas[one], replicas[two + (two >= one)]
            if fits(first) and fits(second):
                return _lighter(first, second, now)
        fitting = [replica for replica in replicas if fits(replica)]
        if len(fitting) > 2:
            fitting = self._rng.sample(fitting, 2)
        if len(fitting) == 2:
            # Drawn in their order, of which a tie should not make anything.
            first, second = fitting if self._rng.random() < 0.5 else reversed(fitting)
            return _lighter(first, second, now)
        return fitting[0] if fitting else None

    def keep(
        self,
        key: str,
        replicas: Sequence[Replica],
        fits: Callable[[Replica], bool],
        slack: float,
    ) -> Replica | None:
        """Return the replica that a key leads to; None where none fits.

        Rendezvous hashing: the one that ranks highest for the key among all that are bound, so that
        a replica that comes or goes moves only its own keys. One that is not fit, or has more than
        ``slack`` times the mean of those that are, is passed over for the next; the first one to
        have room again gets the key back.
        """
        fitting = [replica for replica in replicas if fits(replica)]
        if not fitting:
            return None
        total = sum(replica.in_flight for replica in fitting) + 1
        bound = math.ceil(slack * total / len(fitting))
        # There always is one: not all of them can be above the mean.
        roomy = (replica for replica in fitting if replica.in_flight < bound)
        return max(roomy, key=lambda replica: _rank(key, replica))


def _lighter(first: Replica, second: Replica, now: float) -> Replica:
    """Return the one with the smaller share of its slots in use, or with less in use."""
    one, two = first.busy(now), second.busy(now)
    slots, others = first.slots_total, second.slots_total
    if slots and others:
        one, two = one / slots, two / others
    return second if two < one else first


def _rank(key: str, replica: Replica) -> bytes:
    # The key's length keeps key and name apart, whatever they hold.
    name = f"{len(key)}:{key}{replica.replica_id}"
    return blake2b(name.encode(), digest_size=8).digest()
