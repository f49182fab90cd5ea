"""The suite as pytest runs it on the servers and the recordings that it is given as options.

``pytest --pyargs worker_adapters.testing.conformance --certify ENGINE=URL --captures DIR``
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from worker_adapters.engines import adapter_class
from worker_adapters.testing.conformance import CheckSkipped, Subject, check_recording

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker_adapters.adapter import WorkerAdapter
    from worker_adapters.testing.conformance import ConformanceCheck, Connect
    from worker_adapters.testing.replay import Recording


@pytest.fixture
def connect(request: pytest.FixtureRequest) -> Callable[[str], Connect]:
    """Return how adapters are made for an engine: as themselves, or over ``--transport``."""
    transport = request.config.getoption("transport")
    options: dict[str, Any] = {} if transport is None else {"transport": transport}

    def of(engine: str) -> Connect:
        cls: type[WorkerAdapter] = adapter_class(engine)
        return partial(cls, **options)

    return of


def test_server(
    certified_server: tuple[str, str],
    conformance_check: ConformanceCheck,
    connect: Callable[[str], Connect],
) -> None:
    """A server given with ``--certify`` passes every check, or lacks what it is about."""
    engine, url = certified_server
    conformance_check(Subject(engine, url, connect(engine)))


@pytest.mark.parametrize("chunking", ["recorded", "whole", 7])
def test_capture(
    captured: tuple[str, Recording], chunking: str | int, connect: Callable[[str], Connect]
) -> None:
    """A recording given with ``--captures`` becomes what the contract says."""
    engine, recording = captured
    try:
        asyncio.run(
            check_recording(recording, engine, connect(engine), chunking=chunking)  # type: ignore[arg-type]
        )
    except CheckSkipped as skipped:
        pytest.skip(str(skipped))
