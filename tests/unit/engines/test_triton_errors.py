"""What every recorded error of a Triton server means, as an answer and inside a 200.

The outcomes were written down from the contract and the fault matrix, not from the code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from tests.unit.engines.recorded import Recorded, recorded
from worker_adapters import StreamDecoder, WorkerError, _core
from worker_adapters.engines.triton import ERROR_RULES, RULES


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
NOT_FOUND = Outcome("Adapter", "INVALID_PARAMS", "not_found")
UNSUPPORTED = Outcome("Adapter", "INVALID_PARAMS", "unsupported")
NOT_READY = Outcome("PoolUnavailable", "POOL_UNREADY", "not_ready", retriable=True)
FULL = Outcome("PoolUnavailable", "REPLICA_EXHAUSTED", "queue_full", retriable=True)
FAILED = Outcome("WorkerReset", "WORKER_RESET", "engine_error", True, "unknown")
FAILED_LATER = Outcome("WorkerReset", "WORKER_RESET", "engine_error", True, "yes")
EXPIRED = Outcome("DecodeTimeout", "DECODE_TIMEOUT", "gateway_timeout", retriable=True)
ABORTED = Outcome("WorkerReset", "WORKER_RESET", "aborted", True, "unknown")
TRUNCATED = Outcome("WorkerReset", "WORKER_RESET", "truncated", True, "unknown")
CUT = Outcome("WorkerReset", "WORKER_RESET", "truncated", True, "yes")

EXPECTED = {
    "crash_after_stream_tensorrt_llm_bls": FAILED,
    "degraded_model_config_broken": NOT_READY,
    "degraded_model_metadata_broken": NOT_READY,
    "degraded_model_ready_broken": NOT_READY,
    "ensemble_sync_infer_missing": INVALID,
    "err_bad_version_tensorrt_llm_bls": NOT_FOUND,
    "err_json_array_tensorrt_llm_bls": INVALID,
    "err_malformed_json_ensemble": INVALID,
    "err_malformed_json_generate_tensorrt_llm_bls": INVALID,
    "err_missing_text_count_ensemble": INVALID,
    "err_missing_text_count_tensorrt_llm_bls": INVALID,
    "err_negative_seed_tensorrt_llm_bls": INVALID,
    "err_no_inputs_ensemble": INVALID,
    "err_no_inputs_tensorrt_llm_bls": INVALID,
    "err_null_temperature_tensorrt_llm_bls": INVALID,
    "err_type_max_tokens_float_ensemble": INVALID,
    "err_type_max_tokens_float_tensorrt_llm_bls": INVALID,
    "err_type_max_tokens_string_ensemble": INVALID,
    "err_type_max_tokens_string_tensorrt_llm_bls": INVALID,
    "err_type_stream_int_ensemble": INVALID,
    "err_type_stream_int_tensorrt_llm_bls": INVALID,
    "err_type_stream_string_ensemble": INVALID,
    "err_type_stream_string_tensorrt_llm_bls": INVALID,
    "err_type_temperature_string_ensemble": INVALID,
    "err_type_text_number_ensemble": INVALID,
    "err_type_text_number_tensorrt_llm_bls": INVALID,
    "err_unknown_input_array_ensemble": INVALID,
    "err_unknown_input_null_ensemble": INVALID,
    "err_unknown_input_null_tensorrt_llm_bls": INVALID,
    "err_unknown_input_object_ensemble": INVALID,
    "err_unknown_model_generate": NOT_FOUND,
    "err_unknown_model_infer": NOT_FOUND,
    "err_unknown_model_stream": NOT_FOUND,
    "err_version_text_ensemble": NOT_FOUND,
    "explicit_loading_model_ready": NOT_READY,
    "explicit_unloaded_generate": NOT_FOUND,
    "explicit_unloaded_model_ready": NOT_READY,
    "extra_batch_two": INVALID,
    "extra_deep_json": INVALID,
    "extra_duplicate_keys": INVALID,
    "extra_gzip_request": INVALID,
    "extra_id_number": INVALID,
    "extra_lone_surrogate": INVALID,
    "extra_params_nested_object": INVALID,
    "extra_trailing_garbage": INVALID,
    "generate_error_tensorrt_llm_bls": FAILED,
    "generate_wrong_method": INVALID,
    "llmapi_generate_error": FAILED,
    # Triton's answer to a request to stop another, which nobody reads; and what the other gets.
    "llmapi_stop_by_id_request": ABORTED,
    "llmapi_stop_unknown_id": ABORTED,
    "llmapi_stop_no_id": INVALID,
    "llmapi_stream_error_first": FAILED,
    "model_metadata_bad_version": NOT_FOUND,
    "model_metadata_unknown": NOT_FOUND,
    "model_ready_unknown": NOT_READY,
    "not_found_root": NOT_FOUND,
    "queue_full_2": FULL,
    "queue_full_3": FULL,
    "queue_full_4": FULL,
    "queue_full_ensemble_generate_2": FULL,
    "queue_full_infer_3": FULL,
    "queue_full_stream_3": FULL,
    "repository_index_get": INVALID,
    "stream_error_first_ensemble": FAILED,
    "stream_error_first_not_found": FAILED,
    "stream_error_first_unsupported": FAILED,
    "stream_max_tokens_zero": INVALID,
    "stream_raise_in_execute": FAILED,
    "sync_generate_error": FAILED,
    "sync_infer_malformed": INVALID,
    "sync_infer_unknown_output": INVALID,
    "sync_infer_wrong_name": INVALID,
    "tensorrt_llm_direct_stop_no_id": INVALID,
    # Requests that this library never sends: what fails is a stand-in's own Python code.
    "err_invalid_utf8_tensorrt_llm_bls": FAILED,
    "err_missing_max_tokens_tensorrt_llm_bls": FAILED,
    "err_wrong_name_text_tensorrt_llm_bls": FAILED,
    # Of routes that are not asked: any unknown 400 counts as the engine's fault.
    "degraded_model_stats_broken": FAILED,
    "degraded_ready": FAILED,
    "explicit_after_broken_ready": FAILED,
    "explicit_load_unknown": FAILED,
    # Inside a 200.
    "crash_mid_stream_tensorrt_llm_bls": CUT,
    "disconnect_stream_mid_rst_ensemble": CUT,
    "disconnect_stream_mid_rst_tensorrt_llm_bls": CUT,
    "disconnect_stream_mid_tensorrt_llm_bls": CUT,
    "err_wrong_name_text_ensemble": TRUNCATED,
    "halfclose_stream_ensemble": CUT,
    "halfclose_stream_tensorrt_llm_bls": TRUNCATED,
    "shutdown_stream_long": CUT,
    "stream_error_mid_tensorrt_llm_bls": FAILED_LATER,
}

# Not recorded: TensorRT-LLM's own words, and what a proxy in between says.
DOCUMENTED = [
    (
        400,
        "Error generating request: The prompt length (9) should not exceed max_num_tokens (8)",
        OVERFLOW,
    ),
    (400, "Error generating request: 9 tokens should not exceed max_seq_len", OVERFLOW),
    (
        400,
        "Executor failed process requestId 7: Prompt length (9) exceeds maximum input length (8).",
        OVERFLOW,
    ),
    (400, "Error encountered while populating response: x", FAILED),
    (501, "HTTP end point doesn't support models with decoupled transaction policy", UNSUPPORTED),
    (400, "Error generating request: Streaming is only supported in decoupled mode.", UNSUPPORTED),
    (400, "inference request batch-size must be <= 8 for 'embedding'", INVALID),
    (400, "unexpected shape for input 'max_tokens' for model 'ensemble'", INVALID),
    (400, "Request timeout expired", EXPIRED),
    (503, "Request timeout expired", EXPIRED),
    (401, "no", Outcome("Adapter", "INVALID_PARAMS", "unauthorized")),
    (
        503,
        "no healthy upstream",
        Outcome("PoolUnavailable", "POOL_UNAVAILABLE", "unavailable", True),
    ),
]

ANSWERS = {
    name.partition("/")[2]: answer
    for name, answer in recorded("triton").items()
    if answer.status >= 200  # two begin with an interim answer, which no decoder sees
}


def outcome_of(answer: Recorded) -> Outcome | None:
    """What an answer becomes; None for one that is no error."""
    if answer.status != 200:
        error = _core.classify_response(
            "triton", answer.status, answer.headers, answer.body, rules=ERROR_RULES
        )
        return told(error)
    if not answer.is_stream:
        return None
    decoder = StreamDecoder("triton", rules=ERROR_RULES)
    decoder.dispatched(0.0)
    events = decoder.head(200, answer.headers, 0.0)
    events += decoder.feed(answer.body, 0.0)
    if not decoder.is_terminal:
        events += decoder.finish(0.0, answer.complete)
    ended_by = events[-1].error
    return None if ended_by is None else told(ended_by)


def told(error: Exception) -> Outcome:
    assert isinstance(error, WorkerError)
    return Outcome(error.kind, error.code, error.detail, error.retriable, error.processed)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_recorded_error_has_its_meaning(name: str) -> None:
    assert outcome_of(ANSWERS[name]) == EXPECTED[name]


def test_no_recorded_error_is_left_out() -> None:
    failed = {name for name, answer in ANSWERS.items() if outcome_of(answer) is not None}
    assert failed == EXPECTED.keys()


@pytest.mark.parametrize(("status", "message", "expected"), DOCUMENTED)
def test_documented_errors(status: int, message: str, expected: Outcome) -> None:
    body = json.dumps({"error": message}).encode()
    error = _core.classify_response("triton", status, [], body, rules=ERROR_RULES)
    found = told(error)
    assert (found.kind, found.code, found.detail) == (
        expected.kind,
        expected.code,
        expected.detail,
    )


@pytest.mark.parametrize(
    "message",
    [
        "Executor failed process requestId 1 due to the following error: x",
        "Stub process 'm_0_0' is not healthy.",
        "Traceback (most recent call last):\n  IndexError: list index out of range",
    ],
)
def test_an_error_means_the_same_before_and_inside_a_stream(message: str) -> None:
    body = json.dumps({"error": message}).encode()
    answered = _core.classify_response("triton", 400, [], body, rules=ERROR_RULES)
    decoder = StreamDecoder("triton", rules=ERROR_RULES)
    decoder.dispatched(0.0)
    decoder.head(200, [(b"Content-Type", b"text/event-stream")], 0.0)
    events = decoder.feed(b'data: {"text_output":"a"}\n\ndata: ' + body + b"\n\n", 0.0)
    error = events[-1].error
    assert error is not None
    assert told(answered).detail == told(error).detail == "engine_error"


def test_every_rule_is_used() -> None:
    said = [message for _, message, _ in DOCUMENTED]
    for answer in ANSWERS.values():
        text = answer.body.decode("utf-8", "replace").replace("\\'", "'")
        said.append(text)
    for rule in RULES:
        part = rule.get("message")
        assert part is None or any(part in text for text in said), rule
