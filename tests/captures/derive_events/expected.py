"""The committed files: deriving, writing and checking them."""

import json
from collections.abc import Iterator
from pathlib import Path

from tests.captures.derive_events import llamacpp, openai, sglang, tgi, triton, witnesses
from tests.captures.derive_events.errors import by_status, in_body
from tests.captures.derive_events.law import Stream
from tests.captures.derive_events.wire import CAPTURES, ENGINES, Capture, load, names


def derive(capture: Capture, *, with_details: bool = False) -> Stream:
    """The expected events of a capture, read by the dialect of its route."""
    body = capture.body
    match capture.dialect:
        case _ if capture.is_refusal:
            stream = refusal(capture)
        case "llamacpp":
            stream = llamacpp.derive(body, with_details=with_details)
        case "openai":
            stream = openai.derive(body, with_details=with_details)
        case "sglang":
            incremental = "--incremental-streaming-output" in capture.facts["flags"]
            stream = sglang.derive(body, incremental=incremental, with_details=with_details)
        case "tgi":
            stream = tgi.derive(body, with_details=with_details)
        case "triton":
            text = capture.options["text"]
            complete = capture.complete
            stream = triton.derive(body, text=text, complete=complete, with_details=with_details)
        case dialect:
            raise AssertionError(dialect)
    assert stream.terminal
    assert [e["kind"] for e in stream.events].count("started") == stream.started
    return stream


def refusal(capture: Capture) -> Stream:
    """The one error of an answer with an error status, as far as the status decides it."""
    stream = Stream(capture.dialect)
    what = by_status(in_body(capture.status, capture.body))
    stream.emit("error", **{key: value for key, value in what.items() if key != "processed"})
    stream.terminal = True
    return stream


def asked_for_details(capture: Capture) -> bool:
    """Whether the request asked for token ids or log probabilities, or the engine sends them."""
    asked = capture.asked
    if capture.dialect in ("tgi", "sglang") or not isinstance(asked, dict):
        return capture.dialect in ("tgi", "sglang")
    keys = {
        "return_tokens", "n_probs", "logprobs", "return_token_ids", "return_log_probs",
    }  # fmt: skip
    return bool(asked.keys() & keys)


def render(stream: Stream) -> str:
    """Events as JSON lines, data keys sorted, text readable."""
    lines = []
    for event in stream.events:
        data = dict(sorted(event["data"].items()))
        lines.append(json.dumps({"kind": event["kind"], "data": data}, ensure_ascii=False) + "\n")
    return "".join(lines)


def events_path(name: str) -> Path:
    """The file of a capture's expected events."""
    return CAPTURES / f"{name}.events.jsonl"


def details_path(name: str) -> Path:
    """The file of the events with token ids and log probabilities; not every capture has one."""
    return CAPTURES / f"{name}.details.jsonl"


def files() -> dict[Path, str]:
    """Every file there must be, and what must be in it."""
    wanted = {}
    for name in names():
        capture = load(name)
        plain = render(derive(capture))
        wanted[events_path(name)] = plain
        if capture.is_stream and asked_for_details(capture):
            detailed = render(derive(capture, with_details=True))
            if detailed != plain:
                wanted[details_path(name)] = detailed
    return wanted


def write() -> None:
    """Write the files, and remove those of no capture."""
    wanted = files()
    for path, content in wanted.items():
        path.write_bytes(content.encode())
    for path in committed() - wanted.keys():
        path.unlink()


def committed() -> set[Path]:
    """Every file there is."""
    folders = [CAPTURES / engine for engine in ENGINES]
    return {path for folder in folders for path in folder.glob("*.jsonl")}


def check() -> Iterator[str]:
    """Everything wrong with the committed files, one line each."""
    wanted = files()
    for path, content in wanted.items():
        if not path.exists():
            yield f"{path.name}: missing"
        elif path.read_bytes() != content.encode():
            yield f"{path.name}: differs from what the rules give"
    yield from (f"{path.name}: no such capture" for path in committed() - wanted.keys())
    streams = {}
    for name in names():
        capture = load(name)
        if capture.is_stream:
            streams[name] = (capture, derive(capture))
    yield from witnesses.disagreements(streams)
