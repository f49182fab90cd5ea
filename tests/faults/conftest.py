"""Every failing test here shows what its streams did."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.outcomes import LOG

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


@pytest.fixture(autouse=True, scope="package")
def _swift_collections() -> Iterator[None]:
    """Spare every collection of garbage, of which `released` makes many, what was there before."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _fresh_log() -> None:
    LOG.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,  # noqa: ARG001 - pytest's name
    call: pytest.CallInfo[Any],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "call" and report.failed:
        report.sections.append(("what the streams did", LOG.text()))
    return report
