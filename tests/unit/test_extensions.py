"""What goes beyond the contract's tasks: the gate, the rules, and what becomes of each field."""

from __future__ import annotations

import json
import pickle
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from tests.unit.tasks import PROMPT, adapter, fields
from worker_adapters import (
    AdapterError,
    Extensions,
    SamplerProfile,
    TaskExtensions,
    TaskRequest,
    WorkerIdentity,
)
from worker_adapters.engines._dispatch import Dispatch
from worker_adapters.engines.llamacpp import LlamaCppAdapter
from worker_adapters.extensions import FEATURES, Feature

MESSAGES = [{"role": "user", "content": PROMPT}]
TOOL = {"name": "look", "description": PROMPT, "parameters": {"type": "object"}}
CALL = {"id": "c1", "name": "look", "arguments": PROMPT}
IMAGE = {"type": "image", "url": "https://images.example/secret.png"}

# One task for each field; with what else it needs.
EACH: dict[str, dict[str, Any]] = {
    "messages": {"messages": MESSAGES},
    "tools": {"messages": MESSAGES, "tools": [TOOL]},
    "tool_choice": {"messages": MESSAGES, "tools": [TOOL], "tool_choice": "look"},
    "constraint": {"constraint": {"choice": ["yes", "no"]}},
    "stop": {"stop": ["END"]},
    "sampling": {"sampling": {"temperature": 0.5}},
    "logprobs": {"logprobs": 0},
    "token_ids": {"token_ids": True},
    "lora": {"lora": "adapter-1"},
    "priority": {"priority": -3},
    "data_parallel_rank": {"data_parallel_rank": 0},
    "affinity_key": {"affinity_key": "session-1"},
}


def with_extensions(extensions: dict[str, Any], **changes: Any) -> dict[str, Any]:
    prompt = {"prompt": ...} if "messages" in extensions else {}
    return fields(extensions=extensions, **prompt, **changes)


def everything(extensions: dict[str, Any], **changes: Any) -> TaskRequest:
    return Extensions.all().task_request(**with_extensions(extensions, **changes))


def refusal(extensions: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        everything(extensions, **changes)
    assert PROMPT not in str(caught.value)
    return str(caught.value)


# The gate.


def test_every_field_is_a_feature() -> None:
    assert set(EACH) == set(FEATURES) == set(get_args(Feature))
    assert set(TaskExtensions.model_fields) == set(FEATURES)


@pytest.mark.parametrize("name", EACH)
def test_a_field_is_refused_unless_it_is_allowed(name: str) -> None:
    given = with_extensions(EACH[name])
    for refusing in (None, Extensions(), Extensions(features=FEATURES - {name})):
        with pytest.raises(ValidationError, match=r"Extensions\(features=\[") as caught:
            TaskRequest.model_validate(given, context=refusing)
        assert f"'{name}'" in str(caught.value)
        assert PROMPT not in str(caught.value)
    allowed = Extensions(features=frozenset(EACH[name]))
    made = TaskRequest.model_validate(given, context=allowed)
    assert made.extensions is not None
    assert {used.partition(".")[0] for used in made.extensions.used()} == set(EACH[name])
    assert made == Extensions.all().task_request(**given)


def test_the_constructor_allows_nothing() -> None:
    with pytest.raises(ValidationError, match="stop is an extension of the contract"):
        TaskRequest(**with_extensions(EACH["stop"]))


def test_extensions_without_any_field_need_no_leave() -> None:
    assert TaskRequest(**with_extensions({})).extensions == TaskExtensions()


def test_a_feature_there_is_not_cannot_be_allowed() -> None:
    with pytest.raises(ValidationError):
        Extensions(features=("beam_search",))
    with pytest.raises(ValidationError):
        Extensions(feature=("stop",))  # type: ignore[call-arg]


def test_other_packages_engines_are_allowed_by_name() -> None:
    allowed = Extensions.all("acme")
    assert allowed.task_request(**fields(engine="acme")).engine == "acme"
    assert allowed.task_request(**fields(engine="sglang")).engine == "sglang"
    with pytest.raises(ValidationError):
        Extensions.all().task_request(**fields(engine="acme"))


# What is written and read back.


@pytest.mark.parametrize("name", EACH)
def test_a_task_survives_json_and_pickle(name: str) -> None:
    made = everything(EACH[name])
    text = made.model_dump_json()
    assert TaskRequest.model_validate_json(text, context=Extensions.all()) == made
    assert set(json.loads(text)["extensions"]) == set(EACH[name])
    assert pickle.loads(pickle.dumps(made)) == made


def test_unset_fields_are_left_out_at_every_depth() -> None:
    made = everything(
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
            "sampling": {"top_k": 0},
            "constraint": {"json_schema": {"const": None, "enum": [None]}},
        }
    )
    assert made.model_dump()["extensions"] == {
        "messages": ({"role": "user", "content": ({"type": "text", "text": "hi"},)},),
        "sampling": {"top_k": 0},
        # A null of the caller's own schema is a value.
        "constraint": {"json_schema": {"const": None, "enum": [None]}},
    }
    assert "extensions" not in TaskRequest(**fields()).model_dump()


def test_nothing_of_the_text_shows() -> None:
    made = everything(
        {
            "messages": [
                *MESSAGES,
                {"role": "assistant", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c1", "content": PROMPT},
                {"role": "user", "content": [{"type": "text", "text": PROMPT}, IMAGE]},
            ],
            "tools": [TOOL],
            "stop": [PROMPT],
            "constraint": {"choice": [PROMPT]},
        }
    )
    assert made.extensions is not None
    parts = [made, made.extensions, *(made.extensions.tools or ())]
    shown = "".join(map(repr, [*parts, *(made.extensions.messages or ())]))
    assert PROMPT not in shown
    assert "secret.png" not in shown


# The rules.


@pytest.mark.parametrize(
    ("extensions", "why"),
    [
        ({"messages": []}, "at least 1"),
        ({"messages": [{"role": "user"}]}, "content or tool_calls"),
        ({"messages": [{"role": "user", "content": []}]}, "at least 1"),
        ({"messages": [{"role": "robot", "content": PROMPT}]}, "role"),
        ({"messages": [{"role": "user", "content": PROMPT, "tool_calls": [CALL]}]}, "assistant"),
        ({"messages": [{"role": "tool", "content": PROMPT}]}, "tool_call_id"),
        ({"messages": [{"role": "user", "content": PROMPT, "tool_call_id": "c"}]}, "tool_call_id"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "url": "file:///etc/passwd"}]}
                ]
            },
            "https:// or a data: URL",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio", "url": "data:,"}]}]},
            "type",
        ),
        ({"tools": [TOOL]}, "tools need messages"),
        ({"messages": MESSAGES, "tools": []}, "at least 1"),
        ({"messages": MESSAGES, "tools": [TOOL, TOOL]}, "name of its own"),
        ({"messages": MESSAGES, "tools": [{"name": "none"}]}, "name of its own"),
        ({"messages": MESSAGES, "tools": [{"name": "no spaces"}]}, "name"),
        ({"messages": MESSAGES, "tool_choice": "auto"}, "tool_choice needs tools"),
        ({"messages": MESSAGES, "tools": [TOOL], "tool_choice": "other"}, "one of the tools"),
        ({"constraint": {}}, "exactly one of"),
        ({"constraint": {"regex": "a", "grammar": "b"}}, "exactly one of"),
        ({"constraint": {"choice": []}}, "at least 1"),
        ({"constraint": {"regex": ""}}, "at least 1"),
        ({"stop": []}, "at least 1"),
        ({"stop": [""]}, "at least 1"),
        ({"stop": ["\ud800"]}, "Unicode"),
        ({"sampling": {"temperature": -1}}, "temperature"),
        ({"sampling": {"temperature": float("nan")}}, "temperature"),
        ({"sampling": {"beams": 2}}, "beams"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"token_ids": 1}, "token_ids"),
        ({"priority": -(2**31)}, "priority"),
        ({"data_parallel_rank": -1}, "data_parallel_rank"),
        ({"affinity_key": "two\r\nlines"}, "affinity_key"),
        ({"lora": ""}, "lora"),
        ({"beam_search": True}, "beam_search"),
    ],
)
def test_what_no_engine_could_mean_is_refused(extensions: dict[str, Any], why: str) -> None:
    assert why in refusal(extensions)


def test_a_completion_has_a_prompt_or_messages() -> None:
    with pytest.raises(ValidationError, match="not both"):
        Extensions.all().task_request(**fields(extensions=EACH["messages"]))
    with pytest.raises(ValidationError, match="needs a prompt"):
        Extensions.all().task_request(**fields(extensions=EACH["stop"], prompt=...))


def test_what_is_used_is_named_as_adapters_declare_it() -> None:
    made = everything(
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE]}],
            "constraint": {"regex": "a+"},
            "logprobs": 0,
        }
    )
    assert made.extensions is not None
    used = {"messages", "messages.image", "constraint.regex", "logprobs"}
    assert made.extensions.used() == used


# What an adapter refuses.


class Narrow(LlamaCppAdapter):
    """An engine that can do some of it."""

    translates = frozenset({"messages", "stop", "constraint.choice"})
    translates_unary = frozenset({"lora"})


async def refused(asked: TaskRequest, version: str | None = "b1234") -> AdapterError:
    async with Narrow("http://127.0.0.1:1") as made:
        if version is not None:
            made._identity = WorkerIdentity(engine_version=version)
        with pytest.raises(AdapterError) as caught:
            await made.submit(asked)
    error = caught.value
    assert (error.code, error.detail, error.phase) == ("INVALID_PARAMS", "unsupported", "validate")
    assert (error.processed, error.retriable) == ("no", False)
    assert PROMPT not in f"{error!r} {error}"
    return error


@pytest.mark.parametrize(
    ("extensions", "field"),
    [
        ({"lora": "l"}, "lora"),
        ({"stop": ["x"], "token_ids": True, "logprobs": 1}, "logprobs, token_ids"),
        ({"constraint": {"regex": "a"}}, "constraint.regex"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages.image"),
    ],
)
async def test_a_field_the_adapter_does_not_translate(
    extensions: dict[str, Any], field: str
) -> None:
    error = await refused(everything(extensions))
    assert error.message == f"llamacpp b1234 does not support {field}"


@pytest.mark.parametrize(
    "workload",
    [
        {"workload": "embedding", "inputs": ["a"], "prompt": ...},
        {"workload": "rerank", "inputs": ["a"]},
    ],
)
async def test_what_is_for_completions_is_refused_elsewhere(workload: dict[str, Any]) -> None:
    asked = Extensions.all().task_request(
        **fields(extensions={"stop": ["x"], "lora": "l"}, **workload)
    )
    error = await refused(asked)
    assert error.message == (
        "llamacpp b1234 does not support stop: not for the workload " + workload["workload"]
    )


async def test_a_workload_the_adapter_does_not_have() -> None:
    class Completions(Narrow):
        workloads = ("completion",)

    async with Completions("http://127.0.0.1:1") as made:
        made._identity = WorkerIdentity(engine_version="b1")
        with pytest.raises(AdapterError) as caught:
            await made.embed(TaskRequest(**fields(workload="embedding")))
    assert caught.value.message == "llamacpp b1 does not support workload embedding"


async def test_an_engine_of_unknown_version_is_called_that() -> None:
    class Silent(Narrow):
        async def _known_identity(self, call: Any) -> None:
            del call

    async with Silent("http://127.0.0.1:1") as made:
        with pytest.raises(AdapterError) as caught:
            await made.submit(everything({"lora": "l"}))
    assert caught.value.message == "llamacpp of unknown version does not support lora"


# What a request is built from.

PROFILE = SamplerProfile(name="p", version="p-1", temperature=0.7, top_k=40, stop=("END", "STOP"))


def dispatch(
    extensions: dict[str, Any] | None = None,
    profile: SamplerProfile | None = None,
    **changes: Any,
) -> Dispatch:
    return Dispatch(everything(extensions or {}, **changes), seed=7, profile=profile)


@pytest.mark.parametrize(
    ("strict", "profile", "own", "sampling"),
    [
        (False, None, None, {}),
        (True, None, None, {"temperature": 0.0}),
        (False, PROFILE, None, {"temperature": 0.7, "top_k": 40}),
        (True, PROFILE, None, {"temperature": 0.7, "top_k": 40}),
        (True, None, {"top_p": 0.9}, {"temperature": 0.0, "top_p": 0.9}),
        (True, None, {"temperature": 0.2}, {"temperature": 0.2}),
        (
            False,
            PROFILE,
            {"temperature": 0.2, "min_p": 0.1},
            {"temperature": 0.2, "top_k": 40, "min_p": 0.1},
        ),
        # 0 is a value, and wins like any other.
        (False, PROFILE, {"temperature": 0, "top_k": 0}, {"temperature": 0, "top_k": 0}),
    ],
)
def test_the_task_wins_over_the_profile_and_both_over_strict(
    strict: bool,
    profile: SamplerProfile | None,
    own: dict[str, Any] | None,
    sampling: dict[str, Any],
) -> None:
    determinism = {"determinism": "strict"} if strict else {}
    made = dispatch({} if own is None else {"sampling": own}, profile, **determinism)
    assert made.sampling() == sampling


@pytest.mark.parametrize(
    ("profile", "own", "words"),
    [
        (None, None, []),
        (PROFILE, None, ["END", "STOP"]),
        (None, ["x"], ["x"]),
        (PROFILE, ["x", "END"], ["END", "STOP", "x"]),
    ],
)
def test_stop_words_add_up(
    profile: SamplerProfile | None, own: list[str] | None, words: list[str]
) -> None:
    assert dispatch({} if own is None else {"stop": own}, profile).stop() == words


def test_a_profile_keeps_its_stop_words_to_itself() -> None:
    # An engine hands sampling() on by name; what is no sampling parameter must not be in it.
    assert "stop" not in dispatch(profile=PROFILE).sampling()
    _, payload = adapter("http://x")._completion(dispatch(profile=PROFILE))
    assert payload["stop"] == ["END", "STOP"]
