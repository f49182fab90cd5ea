"""Every failing test here shows what its streams did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.outcomes import LOG

if TYPE_CHECKING:
    from collections.abc import Generator


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
