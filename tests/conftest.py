"""Fixtures and paths that several suites share."""

import gc
import signal
from pathlib import Path

import pytest

from tests.transports import TRANSPORTS, Transport
from worker_adapters.engines import _http

REPOSITORY = Path(__file__).resolve().parent.parent
CAPTURES = REPOSITORY / "tests" / "captures"
VECTORS = REPOSITORY / "tests" / "vectors"


def pytest_configure() -> None:
    """Have Ctrl-C mean something, also to the programs that tests start.

    Whatever a shell runs in the background ignores it, and so does all that this starts.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def _swift_collections() -> None:
    """Spare every collection of garbage, of which many tests make some, what is there by now."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Show what was frozen again: plugins ask, at the end, what refers to what."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def captures() -> Path:
    """Return the folder of recorded engine answers, one folder per engine."""
    return CAPTURES


@pytest.fixture(scope="session")
def vectors() -> Path:
    """Return the folder of decoder vectors that Rust and Python share."""
    return VECTORS


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Transport:
    """Have streams come over this one, in adapters that are not told otherwise."""
    chosen: Transport = request.param
    monkeypatch.setattr(_http, "DEFAULT_TRANSPORT", chosen)
    return chosen
