"""What every error recorded from a real SGLang means, and those that only its source tells.

The outcomes were written down from the contract and the fault matrix, not from the code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import CAPTURES
from tests.transports import both_transports
from tests.unit.engines.played import capture, engine
from tests.unit.engines.tasking import task
from tests.unit.tasks import PROMPT
from tests.unit.wire import LAST_CHUNK, STREAM_HEAD, answer, chunk
from worker_adapters import WorkerError
from worker_adapters.engines.sglang import RULES, SglangAdapter

if TYPE_CHECKING:
    from tests.unit.engines.played import Answering
    from tests.unit.wire import Connection, Received

pytestmark = both_transports

FOLDER = CAPTURES / "sglang"


@dataclass(frozen=True)
class Outcome:
    """What a caller is told."""

    kind: str
    code: str
    detail: str
    retriable: bool = False
    processed: str = "no"


INVALID = Outcome("Adapter", "INVALID_PARAMS", "invalid_request")
OVERFLOW = Outcome("Adapter", "INVALID_PARAMS", "context_overflow")
UNSUPPORTED = Outcome("Adapter", "INVALID_PARAMS", "unsupported")
NOT_FOUND = Outcome("Adapter", "INVALID_PARAMS", "not_found")
UNAUTHORIZED = Outcome("Adapter", "INVALID_PARAMS", "unauthorized")
DUPLICATE = Outcome("Adapter", "INVALID_PARAMS", "duplicate_id")
FULL = Outcome("PoolUnavailable", "REPLICA_EXHAUSTED", "queue_full", retriable=True)
TIMED_OUT = Outcome("DecodeTimeout", "DECODE_TIMEOUT", "gateway_timeout", True, "yes")


def reset(detail: str, processed: str) -> Outcome:
    return Outcome("WorkerReset", "WORKER_RESET", detail, retriable=True, processed=processed)


EXPECTED = {
    "sglang0520-abort-all-stream": reset("aborted", "yes"),
    "sglang0520-err-404": NOT_FOUND,
    "sglang0520-err-405": INVALID,
    "sglang0520-err-bad-regex-stream": INVALID,
    "sglang0520-err-badjson": INVALID,
    "sglang0520-err-empty": INVALID,
    "sglang0520-err-maxtokens-over-stream": OVERFLOW,
    "sglang0520-err-missing-text": INVALID,
    "sglang0520-err-missing-text-stream": INVALID,
    "sglang0520-err-oai-badjson": INVALID,
    "sglang0520-err-oai-content-type": INVALID,
    "sglang0520-err-oai-missing": INVALID,
    "sglang0520-err-oai-temp": INVALID,
    "sglang0520-err-oai-too-long-stream": OVERFLOW,
    "sglang0520-err-temp": INVALID,
    "sglang0520-err-temp-stream": INVALID,
    "sglang0520-err-too-long": OVERFLOW,
    "sglang0520-err-too-long-stream": OVERFLOW,
    "sglang0520-err-wrongtype": reset("engine_error", "unknown"),
    "sglang0520-get-notfound": NOT_FOUND,
    "sglang0520-get-version": NOT_FOUND,
    "sglang0520inc-auth-none": UNAUTHORIZED,
    "sglang0520inc-auth-none-stream": UNAUTHORIZED,
    "sglang0520inc-kill-stream": reset("truncated", "yes"),
    "sglang0520inc-noauth-abort": UNAUTHORIZED,
    "sglang0520inc-noauth-models": UNAUTHORIZED,
}

# Recorded as attempts at an error; the server takes them silently.
ACCEPTED = {"sglang0520-err-oai-unknown-model", "sglang0520-err-unknown-field"}


def abort(message: str, status: int | None) -> dict[str, Any]:
    """Return a frame that ends in an abort; its text is no part of an answer."""
    finish = {"type": "abort", "message": message, "status_code": status}
    meta = {"finish_reason": finish, "prompt_tokens": 1, "completion_tokens": 1}
    return {"text": "x", "output_ids": [1], "meta_info": meta}


# Told by the source of 0.3.6 to 0.5.20, not recorded.
DOCUMENTED: list[tuple[dict[str, Any], Outcome]] = [
    (abort("The request queue is full.", 503), FULL),
    (abort("The request is aborted by a higher priority request.", 503), FULL),
    (abort("Request waiting timeout reached.", 503), FULL),
    (abort("Request running timeout reached.", 503), TIMED_OUT),
    (
        abort("Using priority is disabled for this server. Please send a new request.", 503),
        UNSUPPORTED,
    ),
    (abort("Failed to load the image", 500), reset("engine_error", "unknown")),
    (abort("Failed to compile ebnf grammar: 1:2", 400), INVALID),
    (abort("Invalid grammar request with cache hit", None), INVALID),
    (abort("Aborted", None), reset("aborted", "unknown")),
    ({"error": {"message": "Duplicate request ID detected: 1"}}, DUPLICATE),
    (
        {
            "error": {
                "message": "LoRA adapter 'a' was requested, but LoRA is not enabled.",
                "type": "invalid_request_error",
                "code": 400,
            }
        },
        UNSUPPORTED,
    ),
    (
        {
            "error": {
                "message": "Got LoRA adapter that has never been loaded: a",
                "type": "invalid_request_error",
                "code": 400,
            }
        },
        NOT_FOUND,
    ),
    # As 0.3 and 0.4 put it: words only.
    ({"error": {"message": "temperature must be non-negative, got -1."}}, INVALID),
    ({"error": {"message": "Either text or input_ids should be provided."}}, INVALID),
    (
        {
            "error": {
                "message": "The input (1202 tokens) is longer than the model's context length (512)"
            }
        },
        OVERFLOW,
    ),
]


def outcome(error: WorkerError) -> Outcome:
    return Outcome(error.kind, error.code, error.detail, error.retriable, error.processed)


async def told(generate: Answering) -> WorkerError:
    """Return the error that a caller gets when that is what ``/generate`` answers."""
    async with (
        engine({"POST /generate": generate}) as server,
        SglangAdapter(server.url) as adapter,
    ):
        with pytest.raises(WorkerError) as caught:
            await (await adapter.submit(task("sglang"))).collect()
    error = caught.value
    assert error.engine == "sglang"
    assert PROMPT not in f"{error!r} {error}"
    return error


@pytest.mark.parametrize("name", EXPECTED)
async def test_every_recorded_error_has_its_meaning(name: str) -> None:
    async def recorded(connection: Connection, _: Received) -> None:
        await connection.send(capture(f"sglang/{name}"))
        connection.close()

    error = await told(recorded)
    assert outcome(error) == EXPECTED[name]


@pytest.mark.parametrize(("frame", "expected"), DOCUMENTED)
async def test_documented_errors_inside_a_200(frame: dict[str, Any], expected: Outcome) -> None:
    data = f"data: {json.dumps(frame)}\n\ndata: [DONE]\n\n".encode()
    error = await told(STREAM_HEAD + chunk(data) + LAST_CHUNK)
    assert outcome(error) == expected
    assert error.tokens_emitted == 0


async def test_a_server_that_starts_or_stops() -> None:
    error = await told(answer("", status="503 Service Unavailable"))
    assert (error.kind, error.code, error.detail) == (
        "PoolUnavailable",
        "POOL_UNAVAILABLE",
        "unavailable",
    )


async def test_an_embedding_for_a_model_that_generates() -> None:
    words = (
        "This model does not appear to be an embedding model by default. "
        "Please add `--is-embedding` when launching the server or try another model."
    )
    flat = {"object": "error", "message": words, "type": "BadRequestError", "code": 400}
    refused = answer(json.dumps(flat), status="400 Bad Request")
    async with (
        engine({"POST /v1/embeddings": refused}) as server,
        SglangAdapter(server.url) as adapter,
    ):
        with pytest.raises(WorkerError) as caught:
            await adapter.embed(task("sglang", workload="embedding"))
    assert outcome(caught.value) == UNSUPPORTED


def test_no_recorded_error_is_left_out() -> None:
    refused, attempts = set(), set()
    for path in FOLDER.glob("*.http"):
        head = path.read_bytes().partition(b"\r\n")[0]
        if int(head.split()[1]) >= 400:
            refused.add(path.stem)
        elif "-err-" in path.stem and path.stem not in EXPECTED:
            attempts.add(path.stem)
    assert refused <= EXPECTED.keys()
    assert attempts == ACCEPTED


def test_every_rule_is_used() -> None:
    answers = [(FOLDER / f"{name}.http").read_text("utf-8", "replace") for name in EXPECTED]
    answers += [json.dumps(frame, ensure_ascii=False) for frame, _ in DOCUMENTED]
    answers.append("This model does not appear to be an embedding model by default.")
    for rule in RULES:
        if "message" in rule:
            assert any(rule["message"] in text for text in answers), rule
