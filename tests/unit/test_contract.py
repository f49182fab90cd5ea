"""The models of the contract: what they take, refuse, omit and hide."""

from __future__ import annotations

import json
import pickle
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import ValidationError

from tests.unit.tasks import PROMPT, fields, task
from worker_adapters import (
    Collected,
    Extensions,
    Placement,
    SamplerProfile,
    SubmitContext,
    TaskRequest,
    Timeouts,
    WorkerHealth,
)


def refusal(**changes: Any) -> str:
    """Return why a task with these changes is refused."""
    with pytest.raises(ValidationError) as caught:
        task(**changes)
    return str(caught.value)


def test_a_task_with_every_field_survives_json() -> None:
    full = task(
        seed=-1,
        determinism="strict",
        sampler_profile_version="v1",
        inputs=["a", "b"],
        expected_tokens=3,
        kv_hint="cold",
        placement={
            "mode": "pin",
            "pin_pool_id": "p",
            "prefer_pools": ["a"],
            "avoid_pools": ["b"],
            "require_device_mask": "GPU0",
            "allow_fallback": False,
        },
    )
    assert TaskRequest.model_validate_json(full.model_dump_json()) == full
    assert TaskRequest.model_validate(full.model_dump()) == full
    assert pickle.loads(pickle.dumps(full)) == full


def test_unset_optionals_are_omitted() -> None:
    required = {
        "task_id",
        "session_id",
        "workload",
        "model_ref",
        "engine",
        "ctx",
        "priority",
        "max_tokens",
        "deadline_ms",
    }
    assert set(task().model_dump()) == required | {"prompt"}
    assert set(json.loads(task().model_dump_json())) == required | {"prompt"}
    placed = task(placement=Placement(mode="auto")).model_dump()
    assert placed["placement"] == {"mode": "auto", "allow_fallback": True}


@pytest.mark.parametrize(
    "name",
    [
        "task_id",
        "session_id",
        "workload",
        "model_ref",
        "engine",
        "ctx",
        "priority",
        "max_tokens",
        "deadline_ms",
    ],
)
def test_required_fields_are_required(name: str) -> None:
    assert f"{name}\n  Field required" in refusal(**{name: ...})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task_id", "not-a-uuid"),
        ("workload", "chat"),
        ("priority", "high"),
        ("determinism", "loose"),
        ("kv_hint", "warm"),
        ("engine", "ollama"),
        ("ctx", "512"),
        ("ctx", 512.0),
        ("ctx", True),
        ("ctx", 2**31),
        ("ctx", -1),
        ("max_tokens", 2**31),
        ("max_tokens", -1),
        ("deadline_ms", 2**63),
        ("deadline_ms", -(2**63) - 1),
        ("seed", 2**63),
        ("seed", 0.5),
        ("expected_tokens", -1),
        ("prompt", 7),
        ("prompt", "\ud83d"),
        ("inputs", ["\ud83d"]),
        ("inputs", "text"),
        ("inputs", [7]),
        ("placement", {"mode": "pin"}),
        ("placement", {"mode": "near"}),
        ("placement", {"mode": "auto", "allow_fallback": "yes"}),
        ("sampler_profile_version", ""),
        ("priorty", "batch"),
    ],
)
def test_what_is_outside_the_contract_is_refused(name: str, value: Any) -> None:
    assert name in refusal(**{name: value})


@pytest.mark.parametrize("value", [-(2**63), -1, 0, 2**63 - 1])
def test_integers_reach_to_their_ends(value: int) -> None:
    assert task(seed=value, deadline_ms=value).seed == value


def test_a_uuid_may_be_text() -> None:
    value = uuid4()
    assert task(task_id=str(value)).task_id == value
    assert isinstance(task(task_id=str(value)).task_id, UUID)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"prompt": ...}, "needs a prompt"),
        ({"max_tokens": 0}, "max_tokens of at least 1"),
        ({"workload": "embedding", "prompt": ...}, "needs inputs or a prompt"),
        ({"workload": "embedding", "prompt": ..., "inputs": []}, "needs inputs or a prompt"),
        ({"workload": "rerank", "inputs": ["a"], "prompt": ...}, "the documents"),
        ({"workload": "rerank"}, "the documents"),
    ],
)
def test_a_workload_needs_its_text(changes: dict[str, Any], why: str) -> None:
    assert why in refusal(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": ""},
        {"workload": "embedding", "max_tokens": 0},
        {"workload": "embedding", "prompt": ..., "inputs": [""]},
        {"workload": "rerank", "inputs": ["a"], "max_tokens": 0},
    ],
)
def test_a_workload_with_its_text_is_taken(changes: dict[str, Any]) -> None:
    task(**changes)


@pytest.mark.parametrize(
    "ref",
    [
        "hf:org/repo",
        "hf:org/repo/path/file.gguf",
        "file:/abs/model.gguf",
        "file:///abs/model.gguf",
        "model.gguf",
        "../models/model.gguf",
        "models/with:colon.gguf",
        "https://host/model.gguf",
        "https://host:8443/model.gguf?x=1",
        "s3://bucket/key/of/it",
        "oci://registry:5000/repo/name:tag",
        "oci://registry/repo@sha256:abc",
    ],
)
def test_model_references(ref: str) -> None:
    assert task(model_ref=ref).model_ref == ref


@pytest.mark.parametrize(
    ("ref", "why"),
    [
        ("", "at least 1 character"),
        ("hf:repo", "hf:org/repo"),
        ("hf:org//x", "hf:org/repo"),
        ("file:model.gguf", "file:/absolute/path"),
        ("/models/m.gguf", "file:/absolute/path"),
        ("http://host/m", "unknown scheme 'http'"),
        ("gs://bucket/m", "unknown scheme 'gs'"),
        ("https://user:hunter22@host/m", "without credentials"),
        ("https:///m", "https://host/path"),
        ("s3://bucket", "s3://bucket/key"),
        ("oci://registry/repo", "oci://registry/repo:tag"),
        ("model\r\nX-Injected: 1", "control characters"),
        ("model\0", "control characters"),
    ],
)
def test_malformed_model_references(ref: str, why: str) -> None:
    said = refusal(model_ref=ref)
    assert why in said
    assert "hunter22" not in said


@pytest.mark.parametrize("engine", ["llamacpp", "vllm", "tgi", "triton"])
def test_the_contract_s_engines_are_known(engine: str) -> None:
    assert task(engine=engine).engine == engine


@pytest.mark.parametrize("engine", ["openai", "sglang"])
def test_extension_engines_are_gated(engine: str) -> None:
    assert f"Extensions(engines=['{engine}'])" in refusal(engine=engine)
    extensions = Extensions(engines=frozenset({engine}))
    assert extensions.task_request(**fields(engine=engine)).engine == engine
    assert TaskRequest.model_validate(fields(engine=engine), context=extensions).engine == engine
    with pytest.raises(ValidationError):
        Extensions().task_request(**fields(engine=engine))


def test_nothing_of_the_text_shows() -> None:
    shown = task(workload="rerank", inputs=[PROMPT])
    assert PROMPT not in repr(shown)
    assert PROMPT not in str(shown)
    for changes in ({"ctx": "x"}, {"max_tokens": 0}, {"inputs": PROMPT}, {"prompt": [PROMPT]}):
        assert PROMPT not in refusal(**changes)


def test_models_are_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        task().prompt = "other"  # type: ignore[misc]
    assert isinstance(task(inputs=["a"]).inputs, tuple)


@pytest.mark.parametrize("bad", ["a\r\nX-Injected: 1", "a\0", "é", "", "x" * 257])
@pytest.mark.parametrize("name", ["correlation_id", "traceparent", "tracestate"])
def test_what_becomes_a_header_is_safe(name: str, bad: str) -> None:
    with pytest.raises(ValidationError, match=name):
        SubmitContext(**{name: bad})


@pytest.mark.parametrize("name", ["connect", "tls", "unary", "first_token", "token_gap", "idle"])
@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), "soon"])
def test_a_clock_is_positive_or_off(name: str, bad: Any) -> None:
    assert getattr(Timeouts(**{name: None}), name) is None
    with pytest.raises(ValidationError, match=name):
        Timeouts(**{name: bad})


def test_the_clocks_defaults_are_the_contract_s() -> None:
    assert Timeouts().model_dump() == {
        "connect": 5.0,
        "tls": 5.0,
        "unary": 30.0,
        "first_token": 120.0,
        "token_gap": 30.0,
        "idle": None,
    }


def test_a_profile_tells_only_what_is_set() -> None:
    profile = SamplerProfile(name="n", version="v", temperature=0, top_k=0, stop=("a",))
    assert profile.parameters() == {"temperature": 0.0, "top_k": 0, "stop": ["a"]}
    assert SamplerProfile(name="n", version="v").parameters() == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repeat_penalty", 0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("stop", [""]),
        ("stop", ["\ud83d"]),
        ("stop", "word"),
        ("temprature", 1),
        ("name", ""),
        ("version", "a\nb"),
    ],
)
def test_a_profile_refuses_what_no_engine_takes(name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=name):
        SamplerProfile(**({"name": "n", "version": "v"} | {name: value}))


def test_a_reason_is_left_out_when_there_is_none() -> None:
    assert WorkerHealth(live=True, ready=True).model_dump() == {"live": True, "ready": True}


def test_a_whole_answer_hides_its_text() -> None:
    whole = Collected(
        text=PROMPT,
        reasoning=PROMPT,
        finish_reason="stop",
        tokens_in=1,
        tokens_out=2,
        usage_source="engine",
        decode_ms=3,
        latency_first_token_ms=4,
        seed=5,
        model="m",
        engine_version="v",
        embeddings=None,
        scores=None,
        events=(),
    )
    assert PROMPT not in repr(whole)
