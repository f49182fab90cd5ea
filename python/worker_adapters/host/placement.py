"""Which pools a task may go to, in which order: what `Placement` asks for, and no more."""

from collections.abc import Callable
from dataclasses import dataclass

from worker_adapters.contract import TaskRequest
from worker_adapters.host.registry import Pool

__all__ = ["Misplaced", "Route", "route"]


@dataclass(frozen=True, slots=True)
class Route:
    """Pools in the order they are asked in. Never empty."""

    pools: tuple[Pool, ...]
    is_pinned: bool = False


class Misplaced(Exception):  # noqa: N818 - it says what, not that
    """No pool can be meant by what a task asks for; the text says why."""

    def __init__(self, detail: str, why: str) -> None:
        super().__init__(why)
        self.detail = detail
        self.why = why


def route(lookup: Callable[[str], Pool | None], pool_id: str, task: TaskRequest) -> Route:
    """Return where a task that was submitted to ``pool_id`` may go. Raises Misplaced.

    A pin decides, over ``pool_id``, and nothing else is tried. Preferred pools come before
    ``pool_id``, in their order, and with ``allow_fallback=False`` in its place. A pool that is to
    be avoided is left out; ``pool_id`` itself is still the last resort, if fallback is allowed.
    """
    found = _route(lookup, pool_id, task)
    mask = None if task.placement is None else task.placement.require_device_mask
    if mask is None:
        return found
    pools = tuple(
        pool for pool in found.pools if any(one.device_mask == mask for one in pool.replicas)
    )
    if not pools:
        raise Misplaced("invalid_request", "no replica has the devices that the task requires")
    return Route(pools, found.is_pinned)


def _route(lookup: Callable[[str], Pool | None], pool_id: str, task: TaskRequest) -> Route:
    wanted = task.placement
    if wanted is not None and wanted.mode == "pin" and wanted.pin_pool_id is not None:
        pinned = lookup(wanted.pin_pool_id)
        if pinned is None:
            raise Misplaced("not_found", "the task is pinned to a pool that does not exist")
        if not pinned.policy.pinnable:
            raise Misplaced("invalid_request", "no task may be pinned to that pool")
        if wanted.pin_pool_id in (wanted.avoid_pools or ()):
            raise Misplaced("invalid_request", "the task is pinned to a pool that it avoids")
        return Route((pinned,), is_pinned=True)
    named = lookup(pool_id)
    if named is None:
        raise Misplaced("not_found", "there is no pool of that name")
    if wanted is None:
        return Route((named,))
    avoided = frozenset(wanted.avoid_pools or ())
    preferred = (wanted.prefer_pools or ()) if wanted.mode == "prefer" else ()
    order = dict.fromkeys(name for name in preferred if name not in avoided)
    if not order and pool_id not in avoided:
        # Nothing is preferred that is not avoided, too: then this is no fallback.
        order[pool_id] = None
    if wanted.allow_fallback:
        order.setdefault(pool_id)
    pools = tuple(pool for name in order if (pool := lookup(name)) is not None)
    if not pools:
        raise Misplaced(
            "invalid_request",
            "the task allows none of the pools there are: those it prefers do not exist, or it "
            "avoids them, and it allows no fallback",
        )
    return Route(pools)
