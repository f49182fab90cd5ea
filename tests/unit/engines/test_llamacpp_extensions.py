"""What becomes of each extension on its way to llama.cpp."""

from __future__ import annotations

from typing import Any

import pytest

from tests.transports import both_transports
from tests.unit.engines.played import engine
from tests.unit.engines.tasking import HELLO, dispatch, task
from tests.unit.wire import answer
from worker_adapters import AdapterError, LlamaCppAdapter, WorkerIdentity
from worker_adapters.engines._dispatch import Unsupported

pytestmark = both_transports

TOOLS = [{"name": "look", "description": "looks"}, {"name": "walk"}]
IMAGE = {"role": "user", "content": [{"type": "image", "url": "data:image/png;base64,AAAA"}]}


def sent(extensions: dict[str, Any], **details: Any) -> tuple[str, dict[str, Any]]:
    """Return the path, and the payload without what every request has."""
    asked = dispatch(task("llamacpp", extensions), details=details)
    path, payload = LlamaCppAdapter("http://x")._completion(asked)
    common = ("stream", "n_predict", "seed", "prompt", "stream_options")
    return path, {name: value for name, value in payload.items() if name not in common}


@pytest.mark.parametrize(
    ("extensions", "expected"),
    [
        ({}, {}),
        ({"stop": ["END"]}, {"stop": ["END"]}),
        ({"sampling": {"temperature": 0.5, "top_k": 0}}, {"temperature": 0.5, "top_k": 0}),
        ({"token_ids": True}, {}),
        ({"logprobs": 0}, {"n_probs": 1}),
        ({"logprobs": 3}, {"n_probs": 3}),
        ({"constraint": {"json_schema": {"const": None}}}, {"json_schema": {"const": None}}),
        ({"constraint": {"grammar": 'root ::= "a"'}}, {"grammar": 'root ::= "a"'}),
        ({"constraint": {"choice": ["yes", "no"]}}, {"grammar": 'root ::= "yes" | "no"'}),
        (
            {"constraint": {"choice": ['"', "\\", "\n", "\b", "é 🙂"]}},
            {"grammar": r'root ::= "\x22" | "\x5C" | "\x0A" | "\x08" | "é 🙂"'},
        ),
    ],
)
def test_a_prompt_s_extensions(extensions: dict[str, Any], expected: dict[str, Any]) -> None:
    assert sent(extensions) == ("/completion", expected)


@pytest.mark.parametrize(
    ("extensions", "expected"),
    [
        ({}, {}),
        ({"logprobs": 0}, {"logprobs": True, "top_logprobs": 1}),
        ({"logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"constraint": {"choice": ["yes"]}}, {"grammar": 'root ::= "yes"'}),
        ({"stop": ["END"]}, {"stop": ["END"]}),
    ],
)
def test_a_conversation_s_extensions(extensions: dict[str, Any], expected: dict[str, Any]) -> None:
    path, payload = sent({"messages": [HELLO], **extensions})
    assert path == "/v1/chat/completions"
    assert payload == {"messages": [HELLO], **expected}


@pytest.mark.parametrize(
    ("choice", "names", "word"),
    [
        (None, ["look", "walk"], None),
        ("auto", ["look", "walk"], "auto"),
        ("none", ["look", "walk"], "none"),
        ("required", ["look", "walk"], "required"),
        # The server would take a name for "auto".
        ("walk", ["walk"], "required"),
    ],
)
def test_tools(choice: str | None, names: list[str], word: str | None) -> None:
    extensions: dict[str, Any] = {"messages": [HELLO], "tools": TOOLS}
    _, payload = sent(extensions | ({} if choice is None else {"tool_choice": choice}))
    assert [tool["function"]["name"] for tool in payload["tools"]] == names
    assert payload.get("tool_choice") == word


@pytest.mark.parametrize(
    ("extensions", "field"),
    [
        ({"constraint": {"regex": "a"}}, "constraint.regex"),
        ({"messages": [HELLO], "token_ids": True}, "token_ids"),
        ({"messages": [HELLO], "tools": TOOLS, "logprobs": 1}, "logprobs"),
        (
            {"messages": [HELLO], "tools": TOOLS, "constraint": {"grammar": "a"}},
            "constraint.grammar",
        ),
        (
            {"messages": [HELLO], "tools": TOOLS, "constraint": {"json_schema": {}}},
            "constraint.json_schema",
        ),
    ],
)
def test_what_it_cannot_do_is_refused(extensions: dict[str, Any], field: str) -> None:
    with pytest.raises(Unsupported) as caught:
        sent(extensions)
    assert caught.value.field == field


def test_images_are_refused_where_the_server_says_that_its_model_has_no_eyes() -> None:
    with pytest.raises(Unsupported) as caught:
        sent({"messages": [IMAGE]}, vision=False)
    assert caught.value.field == "messages.image"
    for details in ({"vision": True}, {}):
        _, payload = sent({"messages": [IMAGE]}, **details)
        [part] = payload["messages"][0]["content"]
        assert part == {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def test_the_dialect_follows_the_route() -> None:
    made = LlamaCppAdapter("http://x")
    assert made._dialect(dispatch(task("llamacpp"))) == "llamacpp"
    assert made._dialect(dispatch(task("llamacpp", {"messages": [HELLO]}))) == "openai"


async def test_what_the_server_tells_of_its_abilities() -> None:
    props = (
        '{"build_info":"b1","modalities":{"vision":false,"audio":false},"endpoint_metrics":true}'
    )
    routes = {"GET /props": answer(props), "GET /slots": answer("[]")}
    async with engine(routes) as server, LlamaCppAdapter(server.url) as made:
        identity = await made.identity()
        assert identity.details == {"vision": False, "metrics": True}
        features = (await made.capabilities()).features
        with pytest.raises(AdapterError) as caught:
            await made.submit(task("llamacpp", {"messages": [IMAGE]}))
    assert (features["messages.image"].value, features["messages.image"].source) == (
        False,
        "engine",
    )
    assert features["metrics"].value is True
    assert caught.value.message == (
        "llamacpp b1 does not support messages.image: the model takes text only"
    )


def test_an_older_server_that_tells_nothing_is_described_by_what_is_known() -> None:
    features = LlamaCppAdapter("http://x")._features(WorkerIdentity(engine_version="b1"))
    assert features == {}
