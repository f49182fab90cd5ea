"""What every recorded error of an OpenAI-shaped server means, as an answer and inside a 200.

``openai_errors.tsv`` was written down from the contract and the fault matrix, row by row.
"""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.engines.recorded import Recorded, recorded
from worker_adapters import StreamDecoder, WorkerError, _core
from worker_adapters.engines._openai_errors import ERROR_RULES, RULES

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Outcome:
    """What a caller is told."""

    kind: str
    code: str
    detail: str
    retriable: bool
    processed: str


def _table() -> dict[str, Outcome]:
    rows: dict[str, Outcome] = {}
    text = Path(__file__).with_name("openai_errors.tsv").read_text(encoding="utf-8")
    for line in text.splitlines():
        name, kind, code, detail, retriable, processed = line.split("\t")
        assert name not in rows
        rows[name] = Outcome(kind, code, detail, retriable == "yes", processed)
    return rows


EXPECTED = _table()


def _answers() -> dict[str, Recorded]:
    """Return what OpenAI's routes have answered; every route of vLLM."""
    answers = {**recorded("vllm"), **recorded("llamacpp"), **recorded("sglang")}
    return {
        name: answer
        for name, answer in answers.items()
        if (name.startswith("vllm/") or answer.path.startswith("/v1"))
        and (answer.status == 200 or answer.status >= 400)
    }


ANSWERS = _answers()

# Several answers in one stream, which this library never asks for, and streams of other APIs.
_FOREIGN = ("-n2", "-prompts2", "_n2", "-messages-", "-responses-", "v1_messages", "v1_responses")


def _error(answer: Recorded) -> WorkerError | None:
    """Return the error that an answer is or ends with; None where it is none."""
    if answer.status != 200:
        error = _core.classify_response(
            "openai", answer.status, answer.headers, answer.body, rules=ERROR_RULES
        )
        assert isinstance(error, WorkerError)
        assert error.status == answer.status
        return error
    if not answer.is_stream or any(part in answer.name for part in _FOREIGN):
        return None
    decoder = StreamDecoder("openai", rules=ERROR_RULES)
    decoder.dispatched(0.0)
    events = decoder.head(200, answer.headers, 0.0)
    events += decoder.feed(answer.body, 0.0)
    if not decoder.is_terminal:
        events += decoder.finish(0.0, answer.complete)
    failure = events[-1].error
    assert failure is None or isinstance(failure, WorkerError)
    return failure


def _outcome(error: WorkerError) -> Outcome:
    return Outcome(error.kind, error.code, error.detail, error.retriable, error.processed)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_recorded_error_has_its_meaning(name: str) -> None:
    error = _error(ANSWERS[name])
    assert error is not None
    assert astuple(_outcome(error)) == astuple(EXPECTED[name])


def test_no_recorded_error_is_left_out() -> None:
    assert {name for name, answer in ANSWERS.items() if _error(answer) is not None} == set(EXPECTED)


INVALID = Outcome("Adapter", "INVALID_PARAMS", "invalid_request", False, "no")
OVERFLOW = Outcome("Adapter", "INVALID_PARAMS", "context_overflow", False, "no")
NOT_FOUND = Outcome("Adapter", "INVALID_PARAMS", "not_found", False, "no")
UNAUTHORIZED = Outcome("Adapter", "INVALID_PARAMS", "unauthorized", False, "no")
FORBIDDEN = Outcome("Adapter", "INVALID_PARAMS", "forbidden", False, "no")
RATE_LIMITED = Outcome("PoolUnavailable", "ADMISSION_REJECT", "rate_limited", True, "no")
NO_QUOTA = Outcome("PoolUnavailable", "ADMISSION_REJECT", "rate_limited", False, "no")
FULL = Outcome("PoolUnavailable", "REPLICA_EXHAUSTED", "queue_full", True, "no")
DRAINING = Outcome("PoolUnavailable", "POOL_UNREADY", "draining", True, "no")
UNAVAILABLE = Outcome("PoolUnavailable", "POOL_UNAVAILABLE", "unavailable", True, "unknown")
RESET = Outcome("WorkerReset", "WORKER_RESET", "engine_error", True, "unknown")
DEPRECATED = Outcome("Adapter", "MODEL_DEPRECATED", "model_deprecated", False, "unknown")


def _openai(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


# Told by the servers' sources and documentation, not recorded: (status, body, meaning).
DOCUMENTED: list[tuple[int, Mapping[str, Any], Outcome]] = [
    # OpenAI itself.
    (401, _openai("Incorrect API key", "invalid_request_error", "invalid_api_key"), UNAUTHORIZED),
    (403, _openai("Country not supported", "request_forbidden"), FORBIDDEN),
    (404, _openai("No such model", "invalid_request_error", "model_not_found"), NOT_FOUND),
    (
        404,
        _openai("The model `a` has been deprecated", "invalid_request_error", "model_not_found"),
        DEPRECATED,
    ),
    (
        400,
        _openai("Too long.", "invalid_request_error", "context_length_exceeded"),
        OVERFLOW,
    ),
    (400, _openai("Unknown parameter", "invalid_request_error"), INVALID),
    (429, _openai("Rate limit reached", "requests", "rate_limit_exceeded"), RATE_LIMITED),
    (429, _openai("Out of quota", "insufficient_quota", "insufficient_quota"), NO_QUOTA),
    (503, _openai("Overloaded", "server_error"), UNAVAILABLE),
    (500, _openai("The server had an error", "server_error"), RESET),
    # vLLM 0.8: flat errors, the V0 engine, and engines being added.
    (
        400,
        {"object": "error", "message": "maximum context length is 512", "type": "BadRequestError"},
        OVERFLOW,
    ),
    (
        200,
        {"error": {"object": "error", "message": "Engine loop is not running.", "code": 400}},
        RESET,
    ),
    (
        200,
        {"error": {"object": "error", "message": "Background loop has errored already."}},
        RESET,
    ),
    (503, {"error": "The model is currently scaling. Please try again later."}, DRAINING),
    # Triton's OpenAI frontend.
    (400, {"detail": "Unknown model: nope"}, INVALID),
    (401, {"detail": "Unauthorized"}, UNAUTHORIZED),
    (413, {"detail": "Request too large"}, INVALID),
    (422, {"detail": [{"loc": ["body", "model"], "msg": "field required"}]}, INVALID),
    (500, {"detail": "Internal"}, RESET),
    # TGI.
    (429, {"error": "Model is overloaded", "error_type": "overloaded"}, RATE_LIMITED),
    (422, {"error": "`top_p` must be > 0.0", "error_type": "validation"}, INVALID),
    (
        422,
        {"error": "`inputs` tokens + `max_new_tokens` must be <= 9", "error_type": "validation"},
        OVERFLOW,
    ),
    (422, {"error": "`inputs` must have less than 9 tokens", "error_type": "validation"}, OVERFLOW),
    (424, {"error": "Request failed", "error_type": "generation"}, RESET),
    (500, {"error": "Incomplete generation", "error_type": "incomplete_generation"}, RESET),
    # Ollama.
    (404, _openai('model "a" not found, try pulling it first', "api_error"), NOT_FOUND),
    (
        503,
        _openai("server busy, please try again.  maximum pending requests exceeded", "api_error"),
        FULL,
    ),
]


@pytest.mark.parametrize(("status", "body", "expected"), DOCUMENTED)
def test_documented_errors(status: int, body: Mapping[str, Any], expected: Outcome) -> None:
    data = json.dumps(body).encode()
    if status == 200:
        data = b"data: " + data + b"\n\ndata: [DONE]\n\n"
    kind = b"text/event-stream" if status == 200 else b"application/json"
    answer = Recorded("", status, ((b"content-type", kind),), data, complete=True, request=b"")
    error = _error(answer)
    assert error is not None
    assert _outcome(error) == expected


def test_every_rule_is_used() -> None:
    answers = [(ANSWERS[name].status, ANSWERS[name].body.decode()) for name in EXPECTED]
    answers += [(status, json.dumps(body)) for status, body, _ in DOCUMENTED]
    # llama.cpp's own rows are held to its native routes.
    own = [rule for rule in RULES if "error" not in rule.get("type", "")]
    for rule in own:
        told = [
            text
            for status, text in answers
            if rule.get("status", status) in {status, 400 if status == 200 else status}
        ]
        words = [json.dumps(rule[key])[1:-1] for key in ("type", "code", "message") if key in rule]
        assert any(all(word in text for word in words) for text in told), rule
