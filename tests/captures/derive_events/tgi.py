"""TGI's frames: one per token, the last one has `generated_text`. There is no [DONE]."""

import json
from typing import Any

from tests.captures.derive_events.errors import EngineWords
from tests.captures.derive_events.law import Stream
from tests.captures.derive_events.wire import frames


def derive(body: bytes, *, with_details: bool = False) -> Stream:
    """The events of a body of POST /generate_stream."""
    stream = Stream("tgi", with_details)
    for text in frames(body):
        if stream.terminal:
            stream.dropped_after_end += 1
            continue
        frame = json.loads(text)
        if "error" in frame:
            stream.engine_error(EngineWords(message=frame["error"]))
            continue
        stream.start()
        token = frame["token"]
        stream.count(1)
        stream.detail([token["id"]], [logprob(token, frame.get("top_tokens", []))])
        if not token["special"]:
            stream.text(token["text"])
        if frame["generated_text"] is not None:
            if details := frame["details"]:
                stream.usage(details.get("input_length"), details["generated_tokens"])
                stream.finish_reason(details["finish_reason"])
            stream.end()
    stream.body_ended()
    return stream


def logprob(token: dict[str, Any], rivals: list[dict[str, Any]]) -> dict[str, Any]:
    """`{id, text, logprob}` in the library's shape."""
    told = {"token": token["text"], "id": token["id"], "logprob": token["logprob"]}
    return told | ({"top": [logprob(rival, []) for rival in rivals]} if rivals else {})
