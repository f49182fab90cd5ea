"""llama.cpp's native frames: `content`, `tokens_predicted`, and `stop: true` to finish."""

import json
import math
from typing import Any

from tests.captures.derive_events.errors import in_frame
from tests.captures.derive_events.law import Stream
from tests.captures.derive_events.wire import frames


def derive(body: bytes, *, with_details: bool = False) -> Stream:
    """The events of a body of POST /completion."""
    stream = Stream("llamacpp", with_details)
    for text in frames(body):
        if text == "null":  # sent along with several prompts; no frame
            continue
        if stream.terminal:
            stream.dropped_after_end += 1
            continue
        frame = json.loads(text)
        if "error" in frame:
            stream.engine_error(in_frame(frame))
            continue
        if frame.get("index", 0) != 0:
            # Another answer's frame: one stream has one answer. It does not start ours either,
            # for its tokens_evaluated is that of another prompt.
            stream.dropped_choices += 1
            continue
        if not stream.started:
            stream.start(tokens_in=frame["tokens_evaluated"])
        # A frame that shows progress is no token; one whose fields were picked may count nothing.
        if "prompt_progress" not in frame and "tokens_predicted" in frame:
            # The increase since the last event, so that tokens without text are not lost.
            stream.count_to(frame["tokens_predicted"])
            stream.detail(frame.get("tokens"), list(map(logprob, probabilities(frame))))
        stream.text(frame["content"])
        if frame.get("stop") is True:
            cached = frame["timings"]["cache_n"]
            stream.usage(frame["tokens_evaluated"], frame["tokens_predicted"], cached)
            stream.finish_reason(frame["stop_type"])
            if frame["stopping_word"]:
                stream.ending["stop_reason"] = frame["stopping_word"]
            stream.end()
    stream.body_ended()
    return stream


def probabilities(frame: dict[str, Any]) -> list[dict[str, Any]]:
    """What a frame tells of its tokens' probabilities. The last frame repeats those of all."""
    told: list[dict[str, Any]] = frame.get("completion_probabilities", [])
    return [] if frame.get("stop") is True else told


def logprob(entry: dict[str, Any]) -> dict[str, Any]:
    """`{id, token, logprob | prob, top_logprobs | top_probs}` in the library's shape."""
    value = entry["logprob"] if "logprob" in entry else math.log(entry["prob"])
    told = {"token": entry["token"], "id": entry["id"], "logprob": value}
    top = [logprob(rival) for rival in entry.get("top_logprobs", entry.get("top_probs", []))]
    return told | ({"top": top} if top else {})
