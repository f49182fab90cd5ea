"""The suite as pytest runs it on the servers and the recordings that it is given as options.

``pytest --pyargs worker_adapters.testing.conformance --certify ENGINE=URL --captures DIR``
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from worker_adapters.engines import adapter_class
from worker_adapters.testing.conformance import CheckSkipped, Subject, check_recording

if TYPE_CHECKING:
    from worker_adapters.testing.conformance import ConformanceCheck
    from worker_adapters.testing.replay import Recording


def test_server(certified_server: tuple[str, str], conformance_check: ConformanceCheck) -> None:
    """A server given with ``--certify`` passes every check, or lacks what it is about."""
    engine, url = certified_server
    conformance_check(Subject(engine, url, adapter_class(engine)))


@pytest.mark.parametrize("chunking", ["recorded", "whole", 7])
def test_capture(captured: tuple[str, Recording], chunking: str | int) -> None:
    """A recording given with ``--captures`` becomes what the contract says."""
    engine, recording = captured
    try:
        asyncio.run(
            check_recording(recording, engine, adapter_class(engine), chunking=chunking)  # type: ignore[arg-type]
        )
    except CheckSkipped as skipped:
        pytest.skip(str(skipped))
