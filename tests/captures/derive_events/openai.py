"""OpenAI's chunks of completions and chat completions, finished by the frame [DONE]."""

import json
from typing import Any

from tests.captures.derive_events.errors import EngineWords, in_frame
from tests.captures.derive_events.law import Stream
from tests.captures.derive_events.wire import frames

# In `choices`, what tells nothing about the stream.
IGNORED = {"prompt_token_ids"}
KNOWN = {
    "index", "text", "delta", "finish_reason", "stop_reason", "matched_stop", "token_ids",
    "logprobs", *IGNORED,
}  # fmt: skip
DELTA = {"role", "content", "reasoning", "reasoning_content", "tool_calls"}


def derive(body: bytes, *, with_details: bool = False) -> Stream:
    """The events of a body of /v1/completions or /v1/chat/completions."""
    stream = Stream("openai", with_details)
    for text in frames(body):
        if stream.terminal:
            stream.dropped_after_end += 1
        elif text == "[DONE]":
            stream.start()
            stream.end()
        else:
            take_chunk(stream, text, json.loads(text))
    stream.body_ended()
    return stream


def take_chunk(stream: Stream, text: str, chunk: dict[str, Any]) -> None:
    """Apply one chunk; `text` is how it was written."""
    # TGI's error has a status of its own, of no meaning: it is 422 whatever happened.
    if chunk.get("error") is not None or chunk.get("object") == "error":
        stream.engine_error(in_frame(chunk))
        return
    choices = chunk.get("choices", [])
    ours = [choice for choice in choices if choice["index"] == 0]
    stream.dropped_choices += len(choices) - len(ours)
    if choices and not ours:
        return
    stream.start(**({"model": chunk["model"]} if "model" in chunk else {}))
    usage = chunk.get("usage")
    if usage is not None:
        details = usage.get("prompt_tokens_details") or {}
        # Under other names in the events of /v1/messages, which count for nothing here.
        counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
        stream.usage(*counts, details.get("cached_tokens"))
    if ours:
        (choice,) = ours
        take_choice(stream, text, choice, usage)


def take_choice(
    stream: Stream, text: str, choice: dict[str, Any], usage: dict[str, Any] | None
) -> None:
    """Apply our choice of a chunk."""
    assert not choice.keys() - KNOWN, choice
    delta = choice.get("delta", {})
    assert not delta.keys() - DELTA, delta
    content = choice.get("text") or delta.get("content")
    reasoning = delta.get("reasoning") or delta.get("reasoning_content")
    tool_calls = delta.get("tool_calls")
    finish = choice.get("finish_reason") or None  # TGI says "" until there is one
    ids = choice.get("token_ids")
    entries = logprobs(choice.get("logprobs"))

    # How many tokens it stands for: the best witness there is.
    if usage is not None:
        stream.count_to(usage["completion_tokens"])
    elif ids is not None:
        stream.count(len(ids))
    elif entries:
        stream.count(len(entries))
    elif content or reasoning or tool_calls or (finish is None and delta.get("role") is None):
        # A chunk without text is a token, too, unless it announces the role or the finish.
        stream.count(1)

    stream.detail(ids, entries)
    stream.text(reasoning or "", "reasoning")
    stream.text(content or "")
    if tool_calls:
        stream.text(raw_value(text, "tool_calls"), "tool")
    matched = choice.get("stop_reason", choice.get("matched_stop"))
    if matched is not None:
        stream.ending["stop_reason"] = str(matched)
    if finish in ("abort", "error"):
        stream.aborted(EngineWords())
    elif finish is not None:
        stream.finish_reason(finish)


def raw_value(text: str, key: str) -> str:
    """The JSON text of the value of `key`, exactly as sent. The key must occur once."""
    marker = f'"{key}":'
    assert text.count(marker) == 1
    start = text.index(marker) + len(marker)
    _, end = json.JSONDecoder().raw_decode(text, start)
    return text[start:end]


def logprobs(told: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Chat's `content` list or completions' parallel lists, in the library's shape."""
    if told is None:
        return []
    if "content" in told:
        return [entry_of_chat(entry) for entry in told["content"]]
    tops = told["top_logprobs"] or [None] * len(told["tokens"])
    rows = zip(told["tokens"], told["token_logprobs"], tops, strict=True)
    return [
        {"token": token, "logprob": value}
        | ({"top": [{"token": t, "logprob": v} for t, v in top.items()]} if top else {})
        for token, value, top in rows
    ]


def entry_of_chat(entry: dict[str, Any]) -> dict[str, Any]:
    """`{token, id?, logprob, bytes, top_logprobs}` in the library's shape."""
    told = {key: entry[key] for key in ("token", "id", "logprob") if key in entry}
    top = [entry_of_chat(rival) for rival in entry.get("top_logprobs", [])]
    return told | ({"top": top} if top else {})
