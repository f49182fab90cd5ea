"""Two replicas for one task, until the first token of either."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from worker_adapters.stream import TokenStream

__all__ = ["first_of", "first_token"]


async def first_token(stream: TokenStream) -> None:
    """Wait until there is a token or a terminal event; nothing is taken from the stream.

    Whoever is cancelled meanwhile leaves the stream.
    """
    try:
        while not stream.tokens_emitted and not stream.is_terminal:
            await stream._fill(len(stream._ready) + stream._pending + 1)
    except BaseException:
        await stream.aclose()
        raise


async def first_of(
    first: Coroutine[Any, Any, TokenStream],
    second: Callable[[], asyncio.Task[TokenStream] | None],
    delay: float,
) -> TokenStream:
    """Return the stream that has a token first; ``second`` begins another one after ``delay``.

    A stream that fails leaves it to the other one; where both do, it is the first one's failure.
    Whoever comes second is cancelled, and over when this returns.
    """
    racers = [asyncio.create_task(first)]
    winner: asyncio.Task[TokenStream] | None = None
    try:
        await asyncio.wait(racers, timeout=delay)
        if not racers[0].done() and (hedge := second()) is not None:
            racers.append(hedge)
        running = set(racers)
        while running and winner is None:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            winner = next((racer for racer in racers if racer in done and _is_good(racer)), None)
        if winner is None:
            winner = racers[0]
        await _given_up([racer for racer in racers if racer is not winner])
        return winner.result()
    except BaseException:
        # Whoever waited is gone, or there is no stream at all.
        await _given_up(racers)
        raise


def _is_good(racer: asyncio.Task[TokenStream]) -> bool:
    if racer.cancelled() or racer.exception() is not None:
        return False
    terminal = racer.result()._terminal
    return terminal is None or terminal.error is None


async def _given_up(losers: list[asyncio.Task[TokenStream]]) -> None:
    for loser in losers:
        loser.cancel()
    for outcome in await asyncio.gather(*losers, return_exceptions=True):
        if isinstance(outcome, TokenStream):
            await outcome.cancel()
            await outcome.aclose()
