"""One real Triton server with every stand-in for the whole run; others where a test needs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from worker_adapters.testing.triton import (
    EngineNotInstalledError,
    TritonServer,
    install,
    why_unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def installed() -> None:
    """Install the server, with what the system lacks of it where that is allowed.

    A machine that cannot run it skips; one that can and fails to install it fails.
    """
    reason = why_unavailable(system_packages=True)
    if reason is not None:
        pytest.skip(reason)
    try:
        install(system_packages=True)
    except EngineNotInstalledError as error:
        pytest.fail(str(error))


@pytest.fixture(scope="session")
def server(installed: None) -> Iterator[TritonServer]:  # noqa: ARG001 - order
    """Every stand-in on one server."""
    with TritonServer() as running:
        yield running


@pytest.fixture
def fragile(installed: None) -> Iterator[TritonServer]:  # noqa: ARG001 - order
    """A server with one model, for a test that breaks it."""
    with TritonServer(["tensorrt_llm_bls"]) as running:
        yield running
