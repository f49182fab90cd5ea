"""One real Triton server with every stand-in for the whole run; others where a test needs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.real.triton.support import ensure_installed
from worker_adapters.testing.triton import TritonServer

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def installed() -> None:
    """Install the server. See `ensure_installed`."""
    ensure_installed()


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
