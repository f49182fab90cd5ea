"""What embeddings and rerank routes answer: the one shape that everybody copied, in its spellings.

Each function raises KeyError, TypeError, ValueError or IndexError for an answer of another shape.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from worker_adapters.engines._dispatch import Answer

__all__ = ["embedding_answer", "rerank_answer", "status_in_body"]

_ERRORS: Final = (b'{"error":', b'{"object":"error"')
"""How an answer begins that is an error, whatever its status."""


def embedding_answer(answer: Any, wanted: int) -> Answer:
    """Read ``data[].embedding``: one vector for each of ``wanted`` inputs."""
    vectors = {
        _index(row): [_number(number) for number in row["embedding"]] for row in answer["data"]
    }
    _require_each(vectors, wanted)
    return Answer(
        tokens_in=_tokens_in(answer), embeddings=[vectors[index] for index in range(wanted)]
    )


def rerank_answer(answer: Any, wanted: int) -> Answer:
    """Read one score for each of ``wanted`` documents, sorted by score or not.

    ``results[].relevance_score`` (Jina's and Cohere's), ``data[].score`` (vLLM's ``/score``), or a
    bare list of ``score`` (SGLang).
    """
    if isinstance(answer, list):
        rows, tokens_in = answer, None
    else:
        rows = answer["results"] if "results" in answer else answer["data"]
        tokens_in = _tokens_in(answer)
    scores = {
        _index(row): _number(row["relevance_score"] if "relevance_score" in row else row["score"])
        for row in rows
    }
    _require_each(scores, wanted)
    return Answer(tokens_in=tokens_in, scores=sorted(scores.items()))


def status_in_body(body: bytes) -> int | None:
    """Return the status of an error that came with a 200, as vLLM up to 0.10 sends some.

    None for any other answer, and for an error that does not tell its status.
    """
    if not body.startswith(_ERRORS):
        return None
    try:
        told = json.loads(body)
        error = told.get("error", told)
        status = error.get("code")
    except (ValueError, AttributeError, RecursionError):
        return None
    return status if type(status) is int and 400 <= status < 600 else None


def _index(row: Any) -> int:
    index = row["index"]
    if type(index) is not int:
        raise TypeError("index")
    return index


def _number(value: Any) -> float:
    if type(value) not in {int, float}:
        raise TypeError("not a number")
    return float(value)


def _tokens_in(answer: Mapping[str, Any]) -> int | None:
    usage = answer.get("usage") or {}
    tokens = usage.get("prompt_tokens")
    if tokens is not None and type(tokens) is not int:
        raise TypeError("usage.prompt_tokens")
    return tokens


def _require_each(found: Mapping[int, Any], wanted: int) -> None:
    if found.keys() != set(range(wanted)):
        raise ValueError("the answer does not have one row per input")
