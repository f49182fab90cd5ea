"""What every error answer recorded from a real llama.cpp server means.

The outcomes were written down from the contract and the fault matrix, not from the code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import pytest

from tests.conftest import CAPTURES
from worker_adapters import WorkerError, _core
from worker_adapters.engines.llamacpp import ERROR_RULES, RULES

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = CAPTURES / "llamacpp"


@dataclass(frozen=True)
class Outcome:
    """What a caller is told."""

    kind: str
    code: str
    detail: str
    retriable: bool = False
    processed: str = "no"


UNAUTHORIZED = Outcome("Adapter", "INVALID_PARAMS", "unauthorized")
INVALID = Outcome("Adapter", "INVALID_PARAMS", "invalid_request")
OVERFLOW = Outcome("Adapter", "INVALID_PARAMS", "context_overflow")
NOT_FOUND = Outcome("Adapter", "INVALID_PARAMS", "not_found")
UNSUPPORTED = Outcome("Adapter", "INVALID_PARAMS", "unsupported")
LOADING = Outcome("PoolUnavailable", "POOL_UNREADY", "loading", retriable=True)
QUEUE_FULL = Outcome("PoolUnavailable", "REPLICA_EXHAUSTED", "queue_full", retriable=True)

EXPECTED = {
    "auth_none": UNAUTHORIZED,
    "auth_none_get_metrics": UNAUTHORIZED,
    "auth_none_get_models": UNAUTHORIZED,
    "auth_none_get_nothing": UNAUTHORIZED,
    "auth_none_get_props": UNAUTHORIZED,
    "auth_none_get_slots": UNAUTHORIZED,
    "auth_none_get_v1_models": UNAUTHORIZED,
    "auth_none_stream": UNAUTHORIZED,
    "auth_wrong": UNAUTHORIZED,
    "completion_loading": LOADING,
    "err_bad_grammar": INVALID,
    "err_bad_grammar_stream": INVALID,
    "err_context_overflow": OVERFLOW,
    "err_context_overflow_chat_stream": OVERFLOW,
    "err_context_overflow_stream": OVERFLOW,
    "err_control_unknown_action": INVALID,
    "err_delete_on_post_path": NOT_FOUND,
    "err_embedding_disabled": UNSUPPORTED,
    "err_embeddings_disabled": UNSUPPORTED,
    "err_embeddings_missing_input": INVALID,
    "err_embeddings_too_long": OVERFLOW,
    "err_empty_body": INVALID,
    "err_get_on_post_path": NOT_FOUND,
    "err_infill_unsupported": UNSUPPORTED,
    "err_json_array_body": INVALID,
    "err_malformed_json": INVALID,
    "err_malformed_json_chat": INVALID,
    "err_message_without_role": INVALID,
    "err_messages_not_array": INVALID,
    "err_metrics_disabled": UNSUPPORTED,
    "err_missing_messages": INVALID,
    "err_missing_prompt": INVALID,
    "err_missing_prompt_v1": INVALID,
    "err_n_predict_string": INVALID,
    "err_post_on_get_path": NOT_FOUND,
    "err_prompt_null": INVALID,
    "err_prompt_number": INVALID,
    "err_prompt_token_out_of_range": INVALID,
    "err_props_post_disabled": UNSUPPORTED,
    "err_rerank_disabled": UNSUPPORTED,
    "err_rerank_missing_documents": INVALID,
    "err_rerank_missing_query": INVALID,
    "err_rerank_wrong_pooling": UNSUPPORTED,
    "err_slot_action_disabled": UNSUPPORTED,
    "err_slots_disabled": UNSUPPORTED,
    "err_stream_string": INVALID,
    "err_temperature_string": INVALID,
    "err_tools_bad_choice": INVALID,
    "err_unknown_path_get": NOT_FOUND,
    "err_unknown_path_post": NOT_FOUND,
    "err_v1_embeddings_pooling_none": INVALID,
    "health_loading": LOADING,
    "keepalive_error": INVALID,
    "keepalive_not_found": NOT_FOUND,
    "request_garbage": INVALID,
    "request_http2_preface": INVALID,
    "resumable_get_no_id": INVALID,
    "resumable_get_unknown": NOT_FOUND,
    "slot_bad_action": INVALID,
    "slot_erase_while_busy": UNSUPPORTED,
    "slot_id_not_number": INVALID,
    "slot_restore_missing": INVALID,
    "slot_save_bad_name": INVALID,
    "slots_fail_on_no_slot_busy": QUEUE_FULL,
    "v1_models_loading": LOADING,
}

# Recorded as attempts at an error; the server takes them silently.
ACCEPTED = {
    "err_bad_json_schema",
    "err_chat_on_embedding_server_stream",
    "err_completion_on_embedding_server",
    "err_control_unknown_id",
    "err_embeddings_empty_input",
    "err_id_slot_out_of_range",
    "err_n_probs_negative",
    "err_prompt_empty",
    "err_seed_negative_ok",
    "err_stop_number",
    "err_unknown_field_ok",
}

UNSUPPORTED = Outcome("Adapter", "INVALID_PARAMS", "unsupported")

# Told by the server's source and by another build of it, not recorded.
DOCUMENTED = [
    (
        500,
        "server_error",
        "image input is not supported - hint: you may need to provide the mmproj",
        UNSUPPORTED,
    ),
    (500, "server_error", "tools param requires --jinja flag", UNSUPPORTED),
    (500, "server_error", "[json.exception.parse_error.101] parse error at line 1", INVALID),
    (403, "permission_error", "not allowed", Outcome("Adapter", "INVALID_PARAMS", "forbidden")),
    (
        500,
        "server_error",
        "Context size has been exceeded.",
        Outcome("WorkerReset", "WORKER_RESET", "engine_error", True, "unknown"),
    ),
]


@cache
def recorded(path: Path) -> tuple[int, tuple[tuple[bytes, bytes], ...], bytes] | None:
    """Return status, headers and body of a recorded answer; None where nothing came back."""
    head, _, body = path.read_bytes().partition(b"\r\n\r\n")
    if not head:
        return None
    first, *lines = head.split(b"\r\n")
    pairs = [line.partition(b":") for line in lines]
    headers = tuple((name, value.strip()) for name, _, value in pairs)
    return int(first.split()[1]), headers, body


def outcome(error: Exception) -> Outcome:
    assert isinstance(error, WorkerError)
    return Outcome(error.kind, error.code, error.detail, error.retriable, error.processed)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_recorded_error_has_its_meaning(name: str) -> None:
    answer = recorded(FOLDER / f"{name}.http")
    assert answer is not None
    status, headers, body = answer
    error = _core.classify_response(
        "llamacpp", status, headers, body, rules=ERROR_RULES, correlation_id="c-1"
    )
    assert outcome(error) == EXPECTED[name]
    assert isinstance(error, WorkerError)
    assert (error.status, error.phase, error.correlation_id) == (status, "head", "c-1")
    if body:
        assert error.message == json.loads(body)["error"]["message"].strip()


@pytest.mark.parametrize(("status", "kind", "message", "expected"), DOCUMENTED)
def test_documented_errors(status: int, kind: str, message: str, expected: Outcome) -> None:
    body = json.dumps({"error": {"code": status, "message": message, "type": kind}}).encode()
    error = _core.classify_response("llamacpp", status, [], body, rules=ERROR_RULES)
    assert outcome(error) == expected


def test_no_recorded_error_is_left_out() -> None:
    refused, attempts = set(), set()
    for path in FOLDER.glob("*.http"):
        answer = recorded(path)
        if answer is not None and answer[0] >= 400:
            refused.add(path.stem)
        elif path.stem.startswith("err_"):
            attempts.add(path.stem)
    assert refused == EXPECTED.keys()
    assert attempts == ACCEPTED


def test_every_rule_is_used() -> None:
    bodies = [
        answer[2] for name in EXPECTED if (answer := recorded(FOLDER / f"{name}.http")) is not None
    ]
    errors = [json.loads(body)["error"] for body in bodies if body]
    errors += [{"type": kind, "message": message} for _, kind, message, _ in DOCUMENTED]
    for rule in RULES:
        assert any(
            rule["type"] == error["type"] and rule.get("message", "") in error["message"]
            for error in errors
        ), rule
