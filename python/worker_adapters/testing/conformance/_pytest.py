"""A check as a test calls it."""

from __future__ import annotations

import asyncio

from worker_adapters.testing.conformance._subject import Check, Result, Subject

__all__ = ["ConformanceCheck"]


class ConformanceCheck:
    """One check of the suite as a test calls it, without an event loop of its own."""

    def __init__(self, check: Check) -> None:
        self.check = check

    def __call__(self, subject: Subject) -> None:
        """Run the check. Fails the test, or skips it where the server lacks what it is about."""
        __tracebackhide__ = True
        _conclude(asyncio.run(self.check.run(subject)))

    async def on(self, subject: Subject) -> None:
        """Run the check in the loop at hand; as calling it does."""
        __tracebackhide__ = True
        _conclude(await self.check.run(subject))


def _conclude(result: Result) -> None:
    """Make a test's outcome of a check's result."""
    # Only ever called by a test.
    import pytest

    __tracebackhide__ = True
    match result.status:
        case "failed":
            pytest.fail(f"{result.area}.{result.check}: {result.detail}", pytrace=False)
        case "lacking" | "skipped":
            pytest.skip(f"{result.status}: {result.detail}")
