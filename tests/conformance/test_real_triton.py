"""The suite on a real Triton server, for every way of streaming that its stand-in models have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.real.triton.support import ensure_installed
from tests.transports import both_transports
from worker_adapters.engines.triton import EmbeddingTensors, TritonAdapter
from worker_adapters.testing.conformance import CHECKS, Check, Subject
from worker_adapters.testing.triton import TritonServer

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.real, both_transports]

MODELS = ("ensemble", "tensorrt_llm_bls", "tensorrt_llm_bls_accum", "llmapi")

LACKING = {
    "slots_are_consistent": "Triton does not tell",
    "identity_names_the_model": "Triton does not tell the context",
    "overlong_prompt": "the context is not known",
    "slots_are_freed": "Triton does not tell, or the model runs on",
    "counts_agree": "these models do not count",
    "cached_prompt_tokens_are_told": "nor do they know what was cached",
    "rerank": "no such model",
    "chat": "the route has no conversations",
    "tools": "the route has no conversations",
    "token_ids": "no output of these models",
    "constrained_to_a_choice": "no input of these models",
    "constrained_to_a_schema": "no input of these models",
}
"""What these models lack; anything else that is missing is a failure."""

SOMETIMES = {"logprobs": "llmapi"}


@pytest.fixture(scope="module")
def server() -> Iterator[TritonServer]:
    """Every stand-in on one server; skips a machine that cannot run it, and says why."""
    ensure_installed()
    with TritonServer() as running:
        yield running


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("check", CHECKS, ids=str)
async def test_check(check: Check, model: str, server: TritonServer) -> None:
    if check.name == "stop":
        pytest.skip("the stand-ins say their text whatever they were to stop at")

    def connect(url: str) -> TritonAdapter:
        tensors = EmbeddingTensors(model="embedding", input="TEXT", output="EMBEDDING")
        return TritonAdapter(url, model=model, slots=4, embedding=tensors)

    prompt = "[[delay_ms=1 loop=1]] Once upon a time"
    result = await check.run(Subject("triton", server.url, connect, prompt=prompt))
    if check.name in LACKING or SOMETIMES.get(check.name) == model:
        assert result.status in {"lacking", "skipped"}, result
        return
    assert result.status == "passed", result
