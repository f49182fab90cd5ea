"""The suite on a real llama.cpp server, by its native routes and by OpenAI's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.transports import both_transports
from worker_adapters.engines import adapter_class
from worker_adapters.testing.conformance import CHECKS, Check, Subject
from worker_adapters.testing.llamacpp import LlamaCppServer, tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.real, both_transports]

LACKING = {
    "llamacpp": {
        "embedding": "started for generating",
        "rerank": "started for generating",
        "tools": "random weights call no tool",
    },
    "openai": {
        "slots_are_consistent": "no route of OpenAI's tells",
        "identity_names_the_model": "no route of OpenAI's tells the context",
        "overlong_prompt": "the context is not known",
        "slots_are_freed": "no route of OpenAI's tells",
        "embedding": "started for generating",
        "rerank": "started for generating",
        "tools": "random weights call no tool",
        "token_ids": "no field of OpenAI's has them",
        "constrained_to_a_choice": "no field of OpenAI's",
    },
}
"""What this server, started like this, lacks; anything else that is missing is a failure."""


@pytest.fixture(scope="module")
def server() -> Iterator[LlamaCppServer]:
    """A model of some hundred tokens a second, so that there is something to cancel."""
    model = tiny_model(layers=16, n_ctx_train=2048)
    with LlamaCppServer(["-np", "4", "-c", "8192", "--metrics"], model=model) as running:
        yield running


@pytest.fixture(scope="module")
def embedder() -> Iterator[LlamaCppServer]:
    flags = ["-np", "1", "-c", "2048", "--embeddings", "--pooling", "mean", "--kv-unified"]
    with LlamaCppServer(flags) as running:
        yield running


@pytest.fixture(scope="module")
def reranker() -> Iterator[LlamaCppServer]:
    flags = ["-np", "1", "-c", "2048", "--embeddings", "--pooling", "rank"]
    with LlamaCppServer(flags, model=tiny_model("rerank")) as running:
        yield running


@pytest.mark.parametrize("engine", ["llamacpp", "openai"])
@pytest.mark.parametrize("check", CHECKS, ids=str)
async def test_check(check: Check, engine: str, server: LlamaCppServer) -> None:
    result = await check.run(Subject(engine, server.url, adapter_class(engine)))
    if check.name in LACKING[engine]:
        assert result.status in {"lacking", "skipped"}, result
        return
    assert result.status == "passed", result


async def test_embedding(embedder: LlamaCppServer) -> None:
    await check_of("embedding")(Subject("llamacpp", embedder.url, adapter_class("llamacpp")))


async def test_rerank(reranker: LlamaCppServer) -> None:
    await check_of("rerank")(Subject("llamacpp", reranker.url, adapter_class("llamacpp")))


def check_of(name: str) -> Check:
    return next(check for check in CHECKS if check.name == name)
