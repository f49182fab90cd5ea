"""Real llama.cpp servers, one per configuration, for the whole run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from tests.real.support import WANDER, Engine
from worker_adapters import LlamaCppAdapter
from worker_adapters.testing.llamacpp import LlamaCppServer, tiny_model

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture(scope="session")
def server() -> Iterator[LlamaCppServer]:
    """Four slots of 1024 tokens, metrics, the quick model."""
    with LlamaCppServer(["-np", "4", "-c", "4096"]) as running:
        yield running


@pytest.fixture(scope="session")
def replica() -> Iterator[LlamaCppServer]:
    """A second engine configured as ``server`` is."""
    with LlamaCppServer(["-np", "4", "-c", "4096"]) as running:
        yield running


@pytest.fixture(scope="session")
def slow_server() -> Iterator[LlamaCppServer]:
    """Two slots and a model of about 1 ms a token, with room for 10 s of text."""
    model = tiny_model(layers=32, n_ctx_train=16384)
    with LlamaCppServer(["-np", "2", "-c", "32768"], model=model) as running:
        yield running


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """A client for asking the engine directly."""
    async with httpx.AsyncClient(timeout=10.0, trust_env=False) as client:
        yield client


@pytest.fixture
async def adapter(server: LlamaCppServer) -> AsyncIterator[LlamaCppAdapter]:
    """An adapter for ``server`` that knows the profile ``wander-1``."""
    async with LlamaCppAdapter(server.url, sampler_profiles=[WANDER]) as made:
        yield made


@pytest.fixture
async def engine(server: LlamaCppServer, http: httpx.AsyncClient) -> Engine:
    """The engine behind ``adapter``, idle at the beginning."""
    described = Engine(server.url, http)
    await described.idle()
    return described


@pytest.fixture
async def slow_adapter(slow_server: LlamaCppServer) -> AsyncIterator[LlamaCppAdapter]:
    """An adapter for ``slow_server``."""
    async with LlamaCppAdapter(slow_server.url) as made:
        yield made


@pytest.fixture
async def slow_engine(slow_server: LlamaCppServer, http: httpx.AsyncClient) -> Engine:
    """The engine behind ``slow_adapter``, idle at the beginning."""
    described = Engine(slow_server.url, http)
    await described.idle()
    return described
