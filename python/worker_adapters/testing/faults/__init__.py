"""A network that misbehaves on request, to be put in front of an engine.

    async with FaultProxy("http://127.0.0.1:8080", Latency(0.2), LimitData(1000)) as proxy:
        async with LlamaCppAdapter(proxy.url) as adapter:
            ...

Toxics say what becomes of the bytes; those of one direction are applied in the order given, and
one more is a subclass of `Toxic` with one method. `LocalCa` makes the certificates that TLS fails
with. docs/testing.md has the list.
"""

from worker_adapters.testing.faults._certificates import LocalCa
from worker_adapters.testing.faults._proxy import FaultProxy
from worker_adapters.testing.faults._toxics import (
    Bandwidth,
    Blackhole,
    Coalescer,
    Cut,
    Direction,
    HalfClose,
    Latency,
    LimitData,
    Reset,
    Slicer,
    Toxic,
)

__all__ = [
    "Bandwidth",
    "Blackhole",
    "Coalescer",
    "Cut",
    "Direction",
    "FaultProxy",
    "HalfClose",
    "Latency",
    "LimitData",
    "LocalCa",
    "Reset",
    "Slicer",
    "Toxic",
]
