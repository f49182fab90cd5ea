"""SGLang's native frames: `text`, `output_ids`, `meta_info`, finished by the frame [DONE].

Cumulative unless the server was started with --incremental-streaming-output.
"""

import json
from typing import Any

from tests.captures.derive_events.errors import EngineWords, in_frame
from tests.captures.derive_events.law import GrowingText, Stream
from tests.captures.derive_events.wire import frames


def derive(body: bytes, *, incremental: bool, with_details: bool = False) -> Stream:
    """The events of a body of POST /generate."""
    stream = Stream("sglang", with_details)
    growing = GrowingText()
    known = {"ids": 0, "logprobs": 0}  # how many of them earlier frames have told
    for text in frames(body):
        if stream.terminal:
            stream.dropped_after_end += 1
            continue
        if text == "[DONE]":
            stream.start()
            stream.text(growing.rest())
            stream.end()
            continue
        frame = json.loads(text)
        if "error" in frame:
            stream.engine_error(in_frame(frame))
            continue
        if frame.get("index", 0) != 0:
            stream.dropped_choices += 1
            continue
        meta = frame["meta_info"]
        finish = meta["finish_reason"]
        if finish and finish["type"] == "abort":
            # Whatever text comes with it: after a bad grammar it is a token of nothing.
            stream.aborted(EngineWords(finish["status_code"], finish["message"]))
            continue
        stream.start(tokens_in=meta["prompt_tokens"])
        stream.usage(meta["prompt_tokens"], meta["completion_tokens"], meta["cached_tokens"])
        stream.count_to(meta["completion_tokens"])
        ids, entries = frame["output_ids"], logprobs(meta)
        if not incremental:
            fresh = ids[known["ids"] :], entries[known["logprobs"] :]
            known = {"ids": len(ids), "logprobs": len(entries)}
            ids, entries = fresh
        stream.detail(ids, entries)
        if incremental:
            stream.text(frame["text"])
        else:
            stream.text(growing.extend(frame["text"], is_last=finish is not None))
        if finish:
            stream.finish_reason(finish["type"])
            if "matched" in finish:
                stream.ending["stop_reason"] = str(finish["matched"])
    stream.body_ended()
    return stream


def logprobs(meta: dict[str, Any]) -> list[dict[str, Any]]:
    """`[[logprob, id, text | null]]` and the rivals' lists, in the library's shape."""
    entries = [entry(row) for row in meta.get("output_token_logprobs", [])]
    for told, rivals in zip(entries, meta.get("output_top_logprobs", []), strict=False):
        if rivals:
            told["top"] = [entry(row) for row in rivals]
    return entries


def entry(row: list[Any]) -> dict[str, Any]:
    """One `[logprob, id, text | null]`."""
    value, token_id, token = row
    return {"token": token or "", "id": token_id, "logprob": value}
