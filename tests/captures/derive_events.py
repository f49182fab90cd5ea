"""Expected events of every streaming capture, derived without the decoder.

This script is the second opinion that the replay tests hold the decoder against. It shares no
code with the library, sees each response whole, and follows the contract by the letter:
de-chunk the body, split it at blank lines, `json.loads` each frame, apply the rules. It is slow,
it supports only what the captures contain, and it stops with an assertion at anything else.

    python tests/captures/derive_events.py            # write NAME.events.jsonl beside each capture
    python tests/captures/derive_events.py --check    # compare with the committed files, and the
                                                      # streams with the non-streamed answers

Left out of the expected events is what the response does not decide: the times (`decode_ms`,
`decode_time_ms`, `latency_first_token_ms`) and the message of an error that the library words.
Why a capture is expected to end as it does is told in docs/captures.md.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CAPTURES = Path(__file__).parent / "llamacpp"

# Data keys that depend on the clock, and so are in no expectation.
TIMED = ("decode_ms", "decode_time_ms", "latency_first_token_ms")

# Which dialect reads which route. The adapter uses the first two; /v1/messages and /v1/responses
# have event formats of their own that no dialect here claims: under any dialect they must not end
# well.
DIALECT_OF_ROUTE = {
    "/completion": "llamacpp",
    "/v1/stream": "llamacpp",
    "/v1/completions": "openai",
    "/v1/chat/completions": "openai",
    "/v1/messages": "openai",
    "/v1/responses": "openai",
}

Event = dict[str, Any]


@dataclass(frozen=True)
class Capture:
    """One recorded exchange: the response's head, its body as it was chunked, how it ended."""

    name: str
    path: str
    status: int
    headers: list[tuple[bytes, bytes]]
    chunks: list[bytes]
    complete: bool

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def engine(self) -> str:
        return DIALECT_OF_ROUTE[self.path.partition("?")[0]]

    @property
    def is_stream(self) -> bool:
        types = [value for name, value in self.headers if name.lower() == b"content-type"]
        return self.status == 200 and types == [b"text/event-stream"]


def dechunk(raw: bytes) -> tuple[list[bytes], bool]:
    """Undo HTTP/1.1 chunked coding: the chunks, and whether the last-chunk came."""
    chunks: list[bytes] = []
    while raw:
        line, crlf, rest = raw.partition(b"\r\n")
        if not crlf:
            break  # cut off in a size line
        size = int(line, 16)
        if size == 0:
            assert rest == b"\r\n", "no trailers, nothing after the last chunk"
            return chunks, True
        chunks.append(rest[:size])
        if len(rest) < size + 2:
            break  # cut off in a chunk
        assert rest[size : size + 2] == b"\r\n"
        raw = rest[size + 2 :]
    return [chunk for chunk in chunks if chunk], False


def load(name: str) -> Capture:
    """Read a capture from its .http and .request files."""
    head, blank, raw = (CAPTURES / f"{name}.http").read_bytes().partition(b"\r\n\r\n")
    assert blank, f"{name}: no end of the response head"
    status_line, *lines = head.split(b"\r\n")
    headers = []
    for line in lines:
        field, _, value = line.partition(b":")
        headers.append((field, value.strip()))
    if (b"Transfer-Encoding", b"chunked") in headers:
        chunks, complete = dechunk(raw)
    else:
        length = next((int(v) for n, v in headers if n == b"Content-Length"), 0)
        chunks, complete = [raw[:length]], len(raw) >= length
    request_line = (CAPTURES / f"{name}.request").read_bytes().split(b"\r\n", 1)[0]
    path = request_line.split(b" ")[1].decode() if request_line.count(b" ") >= 2 else ""
    return Capture(name, path, int(status_line.split(b" ")[1]), headers, chunks, complete)


def is_stream_file(http: Path) -> bool:
    """Whether a .http file holds a 200 that streams."""
    head = http.read_bytes().partition(b"\r\n\r\n")[0]
    lines = head.split(b"\r\n")
    return b" 200 " in lines[0] and b"Content-Type: text/event-stream" in lines[1:]


def streaming_names() -> list[str]:
    """The names of all streaming captures, sorted."""
    return sorted(http.stem for http in CAPTURES.glob("*.http") if is_stream_file(http))


# --- server-sent events, as far as llama.cpp goes: LF only, at most one data line -----------------


def sse_frames(body: bytes) -> Iterator[str]:
    """The data of each event. Comment-only blocks have none; an unfinished last block is lost."""
    text = body.decode("utf-8")  # strict: the engine replaces stray bytes before it sends
    assert "\r" not in text
    *blocks, rest = text.split("\n\n")
    assert rest == "", "no capture here ends inside a block"
    for block in blocks:
        data = []
        for line in block.split("\n"):
            if line.startswith(":") or line == "":
                continue
            field, colon, value = line.partition(": ")
            assert colon, line
            assert field in ("data", "event"), line
            if field == "data":
                data.append(value)
        assert len(data) <= 1
        if data:
            yield data[0]


# --- what every dialect shares --------------------------------------------------------------------


class Stream:
    """The terminal law and the numbering, said in the plainest way."""

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.events: list[Event] = []
        self.started = False
        self.tokens = 0  # token events
        self.tokens_emitted = 0  # what they stand for
        self.terminal = False
        self.dropped_choices = 0
        self.dropped_after_end = 0

    def emit(self, kind: str, /, **data: object) -> None:
        assert not self.terminal, "nothing after the terminal"
        self.events.append({"kind": kind, "data": data})

    def start(self, **data: object) -> None:
        if not self.started:
            self.started = True
            self.emit("started", engine=self.engine, **data)

    def token(self, text: str, n: int, channel: str = "content") -> None:
        assert text
        data: dict[str, object] = {"t": text, "i": self.tokens}
        if n != 1:
            data["n"] = n
        if channel != "content":
            data["channel"] = channel
        self.emit("token", **data)
        self.tokens += 1
        self.tokens_emitted += n

    def end(self, **data: object) -> None:
        self.emit("end", **data)
        self.terminal = True

    def error(self, **data: object) -> None:
        self.emit(
            "error",
            **data,
            engine=self.engine,
            phase="stream" if self.tokens else "first_token",
            processed="yes" if self.started else "unknown",
            tokens_emitted=self.tokens_emitted,
        )
        self.terminal = True

    def engine_error(self, error: dict[str, Any]) -> None:
        # The only error frame in the captures: {"code":500,"message":…,"type":"server_error"}.
        # A 500 of the engine is WorkerReset, also inside a 200 (CONTRACT: status decides where
        # the engine's own rule table says nothing).
        assert (error["code"], error["type"]) == (500, "server_error")
        self.error(
            code="WORKER_RESET",
            kind="WorkerReset",
            detail="engine_error",
            retriable=True,
            status=500,
            message=error["message"],
        )

    def body_ended(self) -> None:
        # Without the dialect's finish signal the stream was cut off, however politely the
        # transfer ended.
        if not self.terminal:
            self.error(code="WORKER_RESET", kind="WorkerReset", detail="truncated", retriable=True)


# --- llama.cpp, native frames ---------------------------------------------------------------------

STOP_TYPES = {"eos": "stop", "word": "stop", "limit": "length"}


def derive_llamacpp(body: bytes) -> Stream:
    """Frames of POST /completion: `content`, `tokens_predicted`, and `stop: true` to finish."""
    stream = Stream("llamacpp")
    counted = 0  # tokens_predicted of the last frame that became a token event
    for text in sse_frames(body):
        if stream.terminal:
            stream.dropped_after_end += 1
            continue
        if text == "null":  # sent along with several prompts; no frame
            continue
        frame = json.loads(text)
        if "error" in frame:
            stream.engine_error(frame["error"])
            continue
        if frame.get("index", 0) != 0:
            # Another answer's frame: one stream has one answer. It does not start ours either,
            # for its tokens_evaluated is that of another prompt.
            stream.dropped_choices += 1
            continue
        if not stream.started:
            stream.start(tokens_in=frame["tokens_evaluated"])
        if frame["content"] != "":
            # The increase since the last event, so that tokens without text are not lost.
            predicted = frame["tokens_predicted"]
            stream.token(frame["content"], predicted - counted)
            counted = predicted
        if frame.get("stop") is True:
            # The word that was matched, if one was.
            stopped_by = {"stop_reason": word} if (word := frame["stopping_word"]) else {}
            stream.end(
                tokens_out=frame["tokens_predicted"],
                tokens_in=frame["tokens_evaluated"],
                cached_tokens_in=frame["timings"]["cache_n"],
                finish_reason=STOP_TYPES[frame["stop_type"]],
                finish_reason_raw=frame["stop_type"],
                usage_source="engine",
                **stopped_by,
            )
    stream.body_ended()
    return stream


# --- OpenAI chunks --------------------------------------------------------------------------------

FINISH_REASONS = ("stop", "length", "content_filter", "tool_calls")


def raw_value(text: str, key: str) -> str:
    """The JSON text of the value of `key`, exactly as sent. The key must occur once."""
    marker = f'"{key}":'
    assert text.count(marker) == 1
    start = text.index(marker) + len(marker)
    _, end = json.JSONDecoder().raw_decode(text, start)
    return text[start:end]


def derive_openai(body: bytes) -> Stream:
    """Chunks of completions and chat completions, finished by the frame [DONE]."""
    stream = Stream("openai")
    held = 0  # tokens that came without text
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    for text in sse_frames(body):
        if stream.terminal:
            stream.dropped_after_end += 1
            continue
        if text == "[DONE]":
            data: dict[str, Any] = {
                "finish_reason": None,
                "tokens_out": stream.tokens_emitted + held,
                "usage_source": "counted",
            }
            if usage is not None:
                data["tokens_out"] = usage["completion_tokens"]
                data["tokens_in"] = usage["prompt_tokens"]
                data["usage_source"] = "engine"
                details = usage.get("prompt_tokens_details")
                if details is not None:
                    data["cached_tokens_in"] = details["cached_tokens"]
            if finish_reason is not None:
                known = finish_reason in FINISH_REASONS
                data["finish_reason"] = finish_reason if known else "unknown"
                data["finish_reason_raw"] = finish_reason
            stream.end(**data)
            continue
        chunk = json.loads(text)
        if chunk.get("error") is not None:
            stream.engine_error(chunk["error"])
            continue
        choices = chunk.get("choices", [])
        if choices and all(choice["index"] != 0 for choice in choices):
            stream.dropped_choices += 1
            continue
        model = {"model": chunk["model"]} if "model" in chunk else {}
        stream.start(**model)
        if chunk.get("usage") is not None:
            assert not choices or choices[0]["finish_reason"], "no usage on chunks with text"
            usage = chunk["usage"]
        if not choices:
            continue
        (choice,) = choices
        if choice.get("finish_reason") is not None:
            finish_reason = choice["finish_reason"]
        delta = choice.get("delta", {})
        assert not delta.keys() - {"role", "content", "tool_calls"}, "no reasoning in the captures"
        content = (choice["text"] if "text" in choice else delta.get("content")) or ""
        if content:
            stream.token(content, 1 + held)
            held = 0
        if delta.get("tool_calls"):
            assert not content
            stream.token(raw_value(text, "tool_calls"), 1 + held, channel="tool")
            held = 0
        if not content and not delta.get("tool_calls"):
            # Role and finish chunks stand for no token; another one without text stands for one.
            held += "role" not in delta and choice.get("finish_reason") is None
    stream.body_ended()
    return stream


DERIVE: dict[str, Callable[[bytes], Stream]] = {
    "llamacpp": derive_llamacpp,
    "openai": derive_openai,
}


def derive(capture: Capture) -> Stream:
    """The expected events of a capture, read by the dialect of its route."""
    stream = DERIVE[capture.engine](capture.body)
    assert stream.terminal
    assert [e["kind"] for e in stream.events].count("started") == stream.started
    return stream


def render(stream: Stream) -> str:
    """Events as JSON lines, data keys sorted, text readable."""
    lines = []
    for event in stream.events:
        data = dict(sorted(event["data"].items()))
        lines.append(json.dumps({"kind": event["kind"], "data": data}, ensure_ascii=False) + "\n")
    return "".join(lines)


def expected_path(name: str) -> Path:
    return CAPTURES / f"{name}.events.jsonl"


# --- the non-streamed answers, as witnesses -------------------------------------------------------

# (stream, answer of the same exchange without streaming). The requests differ at most in fields
# that do not touch the text: stream, cache_prompt, return_tokens, n_probs, verbose,
# stream_options, id_slot, timings_per_token, a stop word that never occurs.
TWINS = (
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

# What the model says greedily after "Once upon a time", round and round.
GREEDY = (
    " there was a tiny model, its name is café and it likes 🙂; every word of中 text"
    " comes from one token at time"
)


def text_of(stream: Stream) -> str:
    return "".join(e["data"]["t"] for e in stream.events if e["kind"] == "token")


def check_twin(stream: Stream, answer: Any) -> None:
    """A stream must say and count what the non-streamed answer says and counts."""
    end = stream.events[-1]["data"]
    if stream.engine == "llamacpp":
        text, counts = answer["content"], (answer["tokens_evaluated"], answer["tokens_predicted"])
        reason = answer["stop_type"]
        # Cut inside a character the engine streams nothing for it, but answers with U+FFFD.
        text = text.removesuffix("\ufffd")
    else:
        (choice,) = answer["choices"]
        usage = answer["usage"]
        counts = (usage["prompt_tokens"], usage["completion_tokens"])
        reason = choice["finish_reason"]
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        calls = choice.get("message", {}).get("tool_calls", [])
        if calls:
            pieces: list[Any] = []
            for event in stream.events:
                if event["kind"] == "token":
                    assert event["data"]["channel"] == "tool"
                    pieces += json.loads(event["data"]["t"])
            (call,) = calls
            assert pieces[0]["function"]["name"] == call["function"]["name"]
            arguments = "".join(piece["function"]["arguments"] for piece in pieces)
            assert arguments == call["function"]["arguments"], arguments
            assert text == ""
            text = text_of(stream)
    assert text_of(stream) == text, (text_of(stream), text)
    assert end["finish_reason_raw"] == reason, (end, reason)
    if end["usage_source"] == "engine":
        assert (end["tokens_in"], end["tokens_out"]) == counts, (end, counts)
    else:
        # Without usage the end-of-sequence token, which has no frame, is not counted.
        assert end["tokens_out"] == counts[1] - (reason == "stop"), (end, counts)


def check_timings(capture: Capture, stream: Stream) -> None:
    """The engine's `timings` of the last frame must agree with the counts taken from elsewhere."""
    end = stream.events[-1]
    if capture.engine != "llamacpp" or end["kind"] != "end":
        return
    finals = [json.loads(t) for t in sse_frames(capture.body)]
    final = next(f for f in finals if f and f.get("index") == 0 and f["stop"])
    timings, data = final["timings"], end["data"]
    assert timings["predicted_n"] == data["tokens_out"]
    assert timings["cache_n"] + timings["prompt_n"] == data["tokens_in"], capture.name
    assert stream.tokens_emitted <= data["tokens_out"]


def check_greedy(capture: Capture, text: str) -> None:
    """Greedy text after the known prompt is the known text, however far it goes."""
    request = (CAPTURES / f"{capture.name}.request").read_bytes().partition(b"\r\n\r\n")[2]
    try:
        asked = json.loads(request)
    except ValueError:
        return
    plain = asked.keys() <= {
        "prompt", "temperature", "n_predict", "max_tokens", "model", "stream", "stream_options",
        "cache_prompt", "return_tokens", "n_probs", "verbose", "id_slot", "timings_per_token",
        "response_fields",
    }  # fmt: skip
    if plain and asked.get("temperature") == 0 and asked.get("prompt") == "Once upon a time":
        again = GREEDY * (len(text) // len(GREEDY) + 1)
        assert text == again[: len(text)], capture.name


def check() -> Iterator[str]:
    """Everything wrong with the committed files, one line each."""
    names = streaming_names()
    streams = {name: derive(load(name)) for name in names}
    for name in names:
        path = expected_path(name)
        if not path.exists():
            yield f"{path.name}: missing"
        elif path.read_bytes() != render(streams[name]).encode():
            yield f"{path.name}: differs from what the rules give"
    known = {expected_path(name) for name in names}
    yield from (f"{path.name}: no such capture" for path in CAPTURES.glob("*.events.jsonl")
                if path not in known)  # fmt: skip
    for name in names:
        capture = load(name)
        facts = json.loads((CAPTURES / f"{name}.json").read_bytes())
        assert (len(capture.body), len(capture.chunks)) == (
            facts["body_bytes"], facts["http_chunks"]), name  # fmt: skip
        assert capture.complete == (facts["ended"] == "last-chunk"), name
        check_timings(capture, streams[name])
        check_greedy(capture, text_of(streams[name]))
    for name, twin in TWINS:
        try:
            check_twin(streams[name], json.loads(load(twin).body))
        except AssertionError as error:
            yield f"{name} and {twin} disagree: {error}"
    # The same seed says the same; the two halves of the resumed stream make up the whole.
    seeded = [text_of(streams[f"completion_stream_seed_temp{x}"]) for x in ("", "_again")]
    if seeded[0] != seeded[1]:
        yield "completion_stream_seed_temp: the same seed gave two texts"
    halves = [streams["resumable_first_connection"], streams["resumable_get_from_offset"]]
    whole = "".join(text_of(half) for half in halves)
    if whole != (GREEDY * 20)[: len(whole)]:
        yield "resumable_get_from_offset: the halves do not make up the greedy text"


def main(argv: list[str]) -> int:
    """Write or check the expected events; 1 if the check finds anything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing, report differences")
    arguments = parser.parse_args(argv)
    if not __debug__:
        parser.error("this script is made of assertions: run it without -O")
    if arguments.check:
        wrong = list(check())
        for line in wrong:
            print(line)
        return 1 if wrong else 0
    for name in streaming_names():
        expected_path(name).write_bytes(render(derive(load(name))).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
