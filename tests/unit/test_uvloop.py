"""The suite of the token stream once more, on uvloop."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

import uvloop

from tests.transports import both_transports
from tests.unit import test_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

pytestmark = both_transports

NOT_HERE = {
    "test_a_timer_is_stopped_in_its_own_loop",  # looks at asyncio's own timers
    "test_what_arrived_before_a_reader_that_blocked_the_loop",  # and sockets
}


def on_uvloop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Return the same test, with a loop of uvloop's."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(test(**fixtures))

    return run


# Those that are no coroutines run on a loop of their own, whose time is virtual.
globals().update(
    {
        name: on_uvloop(test)
        for name, test in vars(test_stream).items()
        if name.startswith("test_") and asyncio.iscoroutinefunction(test) and name not in NOT_HERE
    }
)


@on_uvloop
async def test_it_is_uvloop() -> None:
    assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
