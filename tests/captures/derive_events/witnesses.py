"""Cross-checks of the derived events with witnesses that are not this project's.

Non-streamed answers to the same requests, the engines' own totals, the same exchange in another
mode of the server, the text that a model is built to say, and what was recorded at the time.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tests.captures.derive_events.law import Stream
from tests.captures.derive_events.wire import CAPTURES, Capture, answered, frames, load

Streams = dict[str, tuple[Capture, Stream]]

# (stream, answer of the same exchange without streaming), where the requests differ in fields that
# do not touch the text: stream, cache_prompt, return_tokens, n_probs, verbose, stream_options,
# id_slot, timings_per_token, a stop word that never occurs. Requests that are the same but for
# `stream` and `stream_options` find each other.
LLAMACPP_TWINS = (
    ("completion_stream_greedy", "completion_plain"),
    ("completion_stream_greedy_cached", "completion_plain"),
    ("completion_stream_cache_prompt_false", "completion_plain"),
    ("completion_stream_return_tokens", "completion_plain"),
    ("completion_stream_cut_in_character", "completion_plain_cut_in_character"),
    ("completion_stream_n_probs", "completion_plain_n_probs"),
    ("completion_stream_stop_word", "completion_plain_stop_word"),
    ("completion_stream_verbose", "queued_plain"),
    ("queued_stream", "queued_plain"),
    ("request_accept_encoding_gzip_stream", "queued_plain"),
    ("request_connection_close_stream", "queued_plain"),
    ("request_http10_stream", "queued_plain"),
    ("sleep_completion_wakes", "auth_bearer"),
    ("v1_completions_stream", "v1_completions_plain"),
    ("v1_completions_stream_usage", "v1_completions_plain"),
    ("v1_chat_stream", "v1_chat_plain"),
    ("v1_chat_stream_usage", "v1_chat_plain"),
    ("slow_chat_stream", "v1_chat_plain"),
    ("v1_chat_stream_tools", "v1_chat_plain_tools"),
)

# Streams that say something else than the answer without streaming, and so for good reason.
ODD = {
    # A call that max_tokens cut off is parsed in the stream; else it stays the text it is.
    "vllm/vllm032-chat-tools-named-stream",
    # The stream finishes with "tool_calls", the answer with "stop".
    "vllm/vllm0102-chat-tools-named-stream",
}

# What llama.cpp's model says greedily after "Once upon a time", round and round.
GREEDY = (
    " there was a tiny model, its name is café and it likes 🙂; every word of中 text"
    " comes from one token at time"
)


def disagreements(streams: Streams) -> Iterator[str]:
    """Every cross-check that fails, one line each."""
    checks: list[tuple[str, Callable[[], None]]] = []
    for name, (capture, stream) in streams.items():
        checks += [
            (f"{name} and its record", partial(recorded, capture)),
            (f"{name} and the engine's totals", partial(totals, capture, stream)),
        ]
        if capture.engine == "llamacpp":
            checks.append((f"{name} and its model", partial(greedy, capture, stream)))
    for name, twin in twins(streams):
        stream = streams[name][1]
        compare = differs_from_answer if name in ODD else same_as_answer
        checks.append((f"{name} and {twin}", partial(compare, stream, load(twin))))
    for one, other in same_exchanges(streams):
        checks.append((f"{one} and {other}", partial(same_text, streams, one, other)))
    checks.append(("resumable_*", partial(halves, streams)))
    checks.append(("the number of witnesses", partial(enough, streams)))
    for what, run in checks:
        try:
            run()
        except (AssertionError, LookupError) as error:
            yield f"{what} disagree: {error}"


def text_of(stream: Stream) -> str:
    """All text of a stream."""
    return "".join(event["data"]["t"] for event in stream.events if event["kind"] == "token")


def channel_of(stream: Stream, channel: str) -> str:
    """The text of one channel."""
    tokens = (event["data"] for event in stream.events if event["kind"] == "token")
    return "".join(data["t"] for data in tokens if data.get("channel", "content") == channel)


# --- what was recorded at the time ----------------------------------------------------------------


def recorded(capture: Capture) -> None:
    """Sizes, chunks and how the transfer ended must be what was noted during the capture."""
    facts = capture.facts
    match capture.engine:
        case "llamacpp":
            sizes = (len(capture.body), len(capture.chunks))
            assert sizes == (facts["body_bytes"], facts["http_chunks"])
            assert capture.complete == (facts["ended"] == "last-chunk")
        case "triton":
            if "body_bytes" in facts:
                assert len(capture.body) == facts["body_bytes"]
                chunks = [size for size in facts["chunk_sizes"] if size]
                assert list(map(len, capture.chunks)) == chunks
                assert capture.complete == (0 in facts["chunk_sizes"])
        case _:
            assert (CAPTURES / f"{capture.name}.http").stat().st_size == facts["response_bytes"]
            assert capture.complete == facts["complete"]


# --- the engine's own totals ----------------------------------------------------------------------


def totals(capture: Capture, stream: Stream) -> None:
    """Counts that the engine gives elsewhere in the body must agree with those of `end`."""
    end = stream.events[-1]
    if end["kind"] != "end":
        return
    data = end["data"]
    assert stream.tokens_emitted <= stream.tokens_seen
    told = [json.loads(text) for text in frames(capture.body) if text not in ("[DONE]", "null")]
    if capture.dialect == "llamacpp":
        final = next(f for f in told if f.get("index") == 0 and f["stop"])
        timings = final["timings"]
        assert timings["predicted_n"] == data["tokens_out"]
        assert timings["cache_n"] + timings["prompt_n"] == data["tokens_in"]
    elif capture.dialect == "sglang" and not stream.dropped_choices:
        listed = sum(len(f["output_ids"]) for f in told)
        cumulative = len(told[-1]["output_ids"])
        assert data["tokens_out"] in (listed, cumulative), (data, listed, cumulative)
    elif capture.dialect == "openai" and not stream.dropped_choices:
        ids = [c.get("token_ids") for f in told for c in f.get("choices", [])]
        if any(ids):
            # Tokens are listed one by one: counting them is what the engine's usage must be.
            assert data["tokens_out"] == sum(len(listed or []) for listed in ids), data


# --- the same exchange without streaming ----------------------------------------------------------


def twins(streams: Streams) -> Iterator[tuple[str, str]]:
    """Pairs of a stream and a good answer without streaming to the same request."""
    yield from ((f"llamacpp/{name}", f"llamacpp/{twin}") for name, twin in LLAMACPP_TWINS)
    answers = {}
    for engine in ("vllm", "sglang", "triton"):
        for capture in answered(engine):
            if capture.status == 200 and not capture.is_stream and (key := exchange(capture)):
                answers[key] = capture.name
    for name, (capture, stream) in streams.items():
        ended = stream.events[-1]["kind"] == "end"
        if ended and (key := exchange(capture)) in answers:
            yield name, answers[key]


def exchange(capture: Capture) -> tuple[str, ...] | None:
    """What decides the text of an answer; None where chance does, or another's kill."""
    asked = capture.asked
    name = capture.name.partition("/")[2]
    if not isinstance(asked, dict) or any(
        word in name for word in ("kill", "abort", "sigterm", "disconnect", "halfclose")
    ):
        return None
    asked = {k: v for k, v in asked.items() if k not in ("stream", "stream_options")}
    parameters = asked.get("sampling_params", asked)
    is_sure = isinstance(parameters, dict) and parameters.get("temperature") == 0
    if capture.engine == "triton":
        asked.pop("parameters", None)
        is_sure = True  # the stand-in has no dice
    # The version, for the vLLM captures: another one has another answer.
    server = name.partition("-")[0] if capture.engine != "triton" else ""
    route = capture.path.removesuffix("_stream").replace("/versions/1", "")
    return (server, route, json.dumps(asked, sort_keys=True)) if is_sure else None


def same_as_answer(stream: Stream, twin: Capture) -> None:
    """A stream must say and count what the non-streamed answer says and counts."""
    answer = json.loads(twin.body)
    end = stream.events[-1]["data"]
    if stream.dialect == "llamacpp":
        # Cut inside a character the engine streams nothing for it, but answers with U+FFFD.
        assert text_of(stream) == answer["content"].removesuffix("\ufffd")
        assert end["finish_reason_raw"] == answer["stop_type"]
        counts = (answer["tokens_evaluated"], answer["tokens_predicted"])
        assert (end["tokens_in"], end["tokens_out"]) == counts
    elif stream.dialect == "sglang":
        answer = answer[0] if isinstance(answer, list) else answer
        meta = answer["meta_info"]
        assert text_of(stream) == answer["text"], (text_of(stream), answer["text"])
        assert end["finish_reason_raw"] == meta["finish_reason"]["type"]
        counts = (meta["prompt_tokens"], meta["completion_tokens"])
        assert (end["tokens_in"], end["tokens_out"]) == counts
    elif stream.dialect == "triton":
        # Where nothing is to be streamed, the prompt stands before the answer.
        prompt = twin.asked["text_input"]
        whole = answer["text_output"]
        assert text_of(stream) in (whole, whole.removeprefix(prompt)), answer
    else:
        same_as_completion(stream, answer)


def differs_from_answer(stream: Stream, twin: Capture) -> None:
    """A pair in ODD must still be odd."""
    try:
        same_as_answer(stream, twin)
    except (AssertionError, LookupError):
        return
    raise AssertionError("the same after all")


def same_as_completion(stream: Stream, answer: dict[str, Any]) -> None:
    """The same for OpenAI's routes."""
    end = stream.events[-1]["data"]
    choice = answer["choices"][0]
    message = choice.get("message", {})
    text = choice["text"] if "text" in choice else message["content"] or ""
    calls = message.get("tool_calls") or []
    if calls:
        pieces: list[Any] = []
        for event in stream.events:
            if event["kind"] == "token":
                assert event["data"]["channel"] == "tool"
                pieces += json.loads(event["data"]["t"])
        (call,) = calls
        assert pieces[0]["function"]["name"] == call["function"]["name"]
        arguments = "".join(piece["function"].get("arguments", "") for piece in pieces)
        assert arguments == call["function"]["arguments"], arguments
    assert channel_of(stream, "content") == text, (text_of(stream), text)
    assert end["finish_reason_raw"] == choice["finish_reason"], (end, choice["finish_reason"])
    usage = answer["usage"]
    if len(answer["choices"]) > 1:
        return  # the usage is that of all
    if end["usage_source"] == "engine":
        counts = (usage["prompt_tokens"], usage["completion_tokens"])
        assert (end["tokens_in"], end["tokens_out"]) == counts, (end, counts)
    else:
        # Counted by chunks: several tokens may have come in one, and a last one in none.
        assert end["tokens_out"] <= usage["completion_tokens"], (end, usage)


# --- the same exchange, streamed twice ------------------------------------------------------------


def same_exchanges(streams: Streams) -> Iterator[tuple[str, str]]:
    """Pairs of streams of the same request: again, in another mode, in chunks with usage."""
    first: dict[tuple[str, ...], str] = {}
    for name, (capture, stream) in streams.items():
        key = exchange(capture)
        if key is None or stream.events[-1]["kind"] != "end":
            continue
        # SGLang's two modes are one server and one model.
        key = (key[0].replace("sglang0520inc", "sglang0520"), *key[1:])
        if key in first:
            yield first[key], name
        else:
            first[key] = name
    yield "llamacpp/completion_stream_seed_temp", "llamacpp/completion_stream_seed_temp_again"
    for tag in ("vllm0171", "vllm032rust"):
        yield f"vllm/{tag}-comp-seed-stream", f"vllm/{tag}-comp-seed-stream-again"


def same_text(streams: Streams, one: str, other: str) -> None:
    """The two must say the same."""
    texts = [text_of(streams[name][1]) for name in (one, other)]
    assert texts[0] == texts[1], texts


# --- llama.cpp's model, and its resumed stream ----------------------------------------------------


def greedy(capture: Capture, stream: Stream) -> None:
    """Greedy text after the known prompt is the known text, however far it goes."""
    asked = capture.asked or {}
    plain = asked.keys() <= {
        "prompt", "temperature", "n_predict", "max_tokens", "model", "stream", "stream_options",
        "cache_prompt", "return_tokens", "n_probs", "verbose", "id_slot", "timings_per_token",
        "response_fields",
    }  # fmt: skip
    if plain and asked.get("temperature") == 0 and asked.get("prompt") == "Once upon a time":
        text = text_of(stream)
        assert text == (GREEDY * (len(text) // len(GREEDY) + 1))[: len(text)]


def halves(streams: Streams) -> None:
    """The two halves of the resumed stream must make up the whole."""
    parts = ("resumable_first_connection", "resumable_get_from_offset")
    whole = "".join(text_of(streams[f"llamacpp/{part}"][1]) for part in parts)
    assert whole == (GREEDY * 20)[: len(whole)]


def enough(streams: Streams) -> None:
    """Pairs are found by their requests: none may get lost unnoticed."""
    found = Counter(name.partition("/")[0] for name, _ in twins(streams))
    again = Counter(name.partition("/")[0] for name, _ in same_exchanges(streams))
    assert found == {"llamacpp": 19, "sglang": 7, "triton": 3, "vllm": 26}, found
    assert again == {"llamacpp": 1, "sglang": 8, "triton": 10, "vllm": 13}, again
