"""Triton's generate_stream: `text_output` per event, finished by the whole HTTP body."""

import json

from tests.captures.derive_events.errors import in_frame
from tests.captures.derive_events.law import GrowingText, Stream
from tests.captures.derive_events.wire import frames


def derive(body: bytes, *, text: str, complete: bool, with_details: bool = False) -> Stream:
    """The events of a body of POST /v2/models/M/generate_stream.

    `text` says whether the model's text is a "delta" or "accumulated".
    """
    stream = Stream("triton", with_details)
    growing = GrowingText()
    for data in frames(body):
        if stream.terminal:
            stream.dropped_after_end += 1
            continue
        frame = json.loads(data)
        if "error" in frame:
            stream.engine_error(in_frame(frame))
            continue
        stream.start()
        assert not frame.keys() & {"num_output_tokens", "finish_reason"}, "in no capture"
        stream.count(1 if frame["text_output"] else 0)
        told = frame.get("output_log_probs", [])
        # A tensor of one element is written as that element.
        values = told if isinstance(told, list) else [told]
        stream.detail([], [{"token": "", "logprob": value} for value in values])
        output = frame["text_output"]
        stream.text(growing.extend(output) if text == "accumulated" else output)
    if complete and stream.started and not stream.terminal:
        stream.text(growing.rest())
        stream.end()
    stream.body_ended()
    return stream
