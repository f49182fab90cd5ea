"""Ten thousand cancels at random moments; ``make soak`` has as many as one likes."""

from __future__ import annotations

import asyncio
import random
import shutil
from typing import TYPE_CHECKING

import pytest

from benches.python.replay import CC, replay_server
from tests.soak.cancels import WAYS, storm
from tests.transports import both_transports

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.transports import Transport

pytestmark = [
    both_transports,
    pytest.mark.skipif(shutil.which(CC) is None, reason="the server of the storm is in C"),
]

CANCELS = 5_000
"""Over each transport."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with replay_server() as server:
        yield f"http://127.0.0.1:{server.port}/p2000/100000"


def test_cancels_at_random_moments(url: str, transport: Transport) -> None:
    seed = random.randrange(2**32)
    outcome = asyncio.run(storm(url, CANCELS, random.Random(seed), transport))
    tally, before, after = outcome.tally, outcome.before, outcome.after
    assert tally.cancels == CANCELS, seed
    assert tally.late_tokens == 0, seed
    # Each stream that was there to be read had one terminal event, and it says what happened.
    assert set(tally.terminals) == {1}, (seed, tally.terminals)
    assert set(tally.reasons) == {"cancelled"}, (seed, tally.reasons)
    assert outcome.still_open == 0, seed
    # An earlier test may have left something that goes meanwhile.
    assert after.descriptors <= before.descriptors, seed
    assert after.threads <= before.threads, seed
    assert after.tasks == before.tasks, seed
    assert after.objects - before.objects < 1000, (seed, before, after)
    # It was a storm: every way, some of each before the answer and some amid the tokens.
    assert set(tally.ways) == set(WAYS)
    assert tally.tokens > CANCELS / 10
    assert tally.terminals[1] > CANCELS / 10
