"""Embeddings and reranking."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.real.support import Engine, task
from tests.transports import both_transports
from worker_adapters import AdapterError, LlamaCppAdapter
from worker_adapters.testing.llamacpp import LlamaCppServer, tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

pytestmark = [pytest.mark.real, both_transports]

TEXTS = ["every word of text", "café 🙂", "one token at a time"]


@pytest.fixture(scope="module")
def embedder() -> Iterator[LlamaCppServer]:
    """An embedding server.

    With a cache per slot, which is what ``-np`` gives, the engine's mean pooling is wrong for
    inputs of different lengths that share a batch; with one cache for all it is right.
    """
    with LlamaCppServer(["--embeddings", "--pooling", "mean", "--kv-unified"]) as running:
        yield running


@pytest.fixture(scope="module")
def reranker() -> Iterator[LlamaCppServer]:
    """A reranking server."""
    model = tiny_model("rerank")
    with LlamaCppServer(["--embeddings", "--pooling", "rank"], model=model) as running:
        yield running


async def test_embeddings_are_the_engine_s_own_in_input_order(
    embedder: LlamaCppServer, http: httpx.AsyncClient
) -> None:
    engine = Engine(embedder.url, http)
    async with LlamaCppAdapter(embedder.url) as adapter:
        vectors = await adapter.embed(task(None, workload="embedding", inputs=TEXTS))
        backwards = await adapter.embed(task(None, workload="embedding", inputs=TEXTS[::-1]))
        alone = await adapter.embed(task(TEXTS[1], workload="embedding"))
    assert [len(vector) for vector in vectors] == [64, 64, 64]
    assert vectors[0] != vectors[1]
    for vector, other in zip(vectors, backwards[::-1], strict=True):
        assert vector == pytest.approx(other, abs=1e-5)
    assert alone[0] == pytest.approx(vectors[1], abs=1e-5)
    for text, vector in zip(TEXTS, vectors, strict=True):
        answer = await engine.post("/v1/embeddings", {"input": text})
        assert vector == pytest.approx(answer["data"][0]["embedding"], abs=1e-5)


async def test_an_embedding_stream_is_started_then_end(
    embedder: LlamaCppServer, http: httpx.AsyncClient
) -> None:
    engine = Engine(embedder.url, http)
    async with LlamaCppAdapter(embedder.url) as adapter:
        stream = await adapter.submit(task(None, workload="embedding", inputs=TEXTS))
        events = [event async for event in stream]
    assert [event.kind for event in events] == ["started", "end"]
    vectors = events[-1].embeddings
    assert vectors is not None
    assert [len(vector) for vector in vectors] == [64, 64, 64]
    counted = [await engine.tokenize(text) for text in TEXTS]
    assert events[-1].tokens_in == sum(counted)
    assert events[-1].tokens_out == 0


async def test_scores_are_the_engine_s_own_in_input_order(
    reranker: LlamaCppServer, http: httpx.AsyncClient
) -> None:
    engine = Engine(reranker.url, http)
    async with LlamaCppAdapter(reranker.url) as adapter:
        scores = await adapter.rerank(task("a question", workload="rerank", inputs=TEXTS))
        stream = await adapter.submit(task("a question", workload="rerank", inputs=TEXTS))
        events = [event async for event in stream]
    answer = await engine.post("/v1/rerank", {"query": "a question", "documents": TEXTS})
    expected = {row["index"]: row["relevance_score"] for row in answer["results"]}
    assert [score.index for score in scores] == [0, 1, 2]
    assert [score.score for score in scores] == pytest.approx([expected[i] for i in range(3)])
    assert [event.kind for event in events] == ["started", "end"]
    in_end = events[-1].scores
    assert in_end is not None
    assert [row["index"] for row in in_end] == [0, 1, 2]
    assert [row["score"] for row in in_end] == pytest.approx([expected[i] for i in range(3)])


async def test_a_workload_that_the_engine_was_not_started_for_is_refused(
    adapter: LlamaCppAdapter,
) -> None:
    with pytest.raises(AdapterError) as caught:
        await adapter.embed(task(None, workload="embedding", inputs=TEXTS))
    assert (caught.value.code, caught.value.detail) == ("INVALID_PARAMS", "unsupported")
    assert caught.value.status == 501
    with pytest.raises(AdapterError) as caught:
        await adapter.rerank(task("a question", workload="rerank", inputs=TEXTS))
    assert (caught.value.code, caught.value.detail) == ("INVALID_PARAMS", "unsupported")
