"""The capability document: what every replica can do, as it answers, kept for a while."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from worker_adapters.capabilities import API_VERSION
from worker_adapters.host.reports import HostCapabilities

__all__ = ["Capabilities", "capabilities_schema"]

TTL_SECONDS: Final = 10.0

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def capabilities_schema() -> dict[str, Any]:
    """Return the JSON Schema of the document; docs/schemas/capabilities-v1.json is this."""
    described = HostCapabilities.model_json_schema()
    described["title"] = f"worker-adapters capabilities, version {API_VERSION}"
    return {
        "$schema": DIALECT,
        "$id": f"urn:worker-adapters:capabilities:v{API_VERSION}",
        **described,
    }


class Capabilities:
    """The document behind ``/v1/capabilities``. Belongs to one event loop.

    Args:
        ask: What asks all replicas, such as ``host.capabilities``.
        ttl: How old a document may be that is served, in seconds; after that the next one who
            wants it has it asked for, and whoever comes meanwhile waits for the same.
        clock: Monotonic seconds; for tests.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[HostCapabilities]],
        *,
        ttl: float = TTL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 < ttl <= 3600:
            raise ValueError(f"ttl must be above 0 and up to 3600 seconds, not {ttl}")
        self._ask = ask
        self._ttl = ttl
        self._clock = clock
        self._known: HostCapabilities | None = None
        self._known_at = 0.0
        self._asking: asyncio.Task[HostCapabilities] | None = None

    async def document(self) -> HostCapabilities:
        """Return the document, ``age_ms`` of each replica counted up to now."""
        known = self._known
        if known is None or self._clock() - self._known_at >= self._ttl:
            if self._asking is None:
                self._asking = asyncio.create_task(self._refresh())
            # Whoever leaves does not take it from the others.
            known = await asyncio.shield(self._asking)
        age = max(0, round((self._clock() - self._known_at) * 1000))
        if not age:
            return known
        aged = tuple(one.model_copy(update={"age_ms": one.age_ms + age}) for one in known.adapters)
        return known.model_copy(update={"adapters": aged})

    async def json(self) -> bytes:
        """Return the document as the body of an answer."""
        return (await self.document()).model_dump_json().encode()

    def forget(self) -> None:
        """Have the next one asked for afresh, as after a replica has come or gone."""
        self._known = None

    async def _refresh(self) -> HostCapabilities:
        try:
            self._known = await self._ask()
            self._known_at = self._clock()
        finally:
            self._asking = None
        return self._known
