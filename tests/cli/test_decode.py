"""``decode``: recorded bytes in, events out."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.conftest import GREEDY
from worker_adapters.cli._http import Body, Head, HttpResponse, NotHttpError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Command

    Running = Callable[..., subprocess.Popen[bytes]]
    Recorded = Callable[[str], bytes]


def _events(output: bytes) -> list[dict[str, Any]]:
    # Bytes, because text also ends its lines at U+2028.
    return [json.loads(line) for line in output.splitlines()]


def _body(response: bytes) -> bytes:
    """The body without its framing, by the book of chunks."""
    head, _, rest = response.partition(b"\r\n\r\n")
    assert b"chunked" in head
    body = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if not int(size, 16):
            return body
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]


def test_a_whole_response(command: Command, captures: Path) -> None:
    result = command("decode", str(captures / "llamacpp" / "completion_stream_greedy.http"))
    assert result.returncode == 0
    assert result.stderr == b""
    events = _events(result.stdout)
    assert [event["kind"] for event in (*events[:2], events[-1])] == ["started", "token", "end"]
    text = "".join(event["data"]["t"] for event in events if event["kind"] == "token")
    assert text.startswith(GREEDY)
    assert events[-1]["data"]["decode_ms"] == 0


def test_body_and_response_file_and_stdin_give_the_same(
    command: Command, recorded: Recorded, tmp_path: Path
) -> None:
    whole = recorded("completion_stream_greedy")
    path = tmp_path / "body.sse"
    path.write_bytes(_body(whole))
    outputs = {
        command("decode", "--engine", "llamacpp", str(path)).stdout,
        command("decode", "-", stdin=_body(whole)).stdout,
        command("decode", stdin=whole).stdout,
    }
    assert len(outputs) == 1
    assert outputs.pop().count(b"\n") > 20


def test_another_dialect(command: Command, recorded: Recorded) -> None:
    result = command("decode", "--engine", "openai", stdin=recorded("v1_chat_stream"))
    assert result.returncode == 0
    assert _events(result.stdout)[-1]["data"]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("mid_stream_error_0", "WORKER_RESET"),
        ("server_sigkill_mid_stream", "WORKER_RESET"),
        ("err_context_overflow_stream", "INVALID_PARAMS"),
        ("auth_wrong", "INVALID_PARAMS"),
        ("completion_loading", "POOL_UNREADY"),
    ],
)
def test_an_error_is_exit_status_1(
    command: Command, recorded: Recorded, name: str, code: str
) -> None:
    result = command("decode", stdin=recorded(name))
    assert result.returncode == 1
    last = _events(result.stdout)[-1]
    assert (last["kind"], last["data"]["code"]) == ("error", code)
    assert b"Traceback" not in result.stderr


def test_cut_framing_is_a_reset_even_in_a_body_that_looks_whole(
    command: Command, recorded: Recorded
) -> None:
    whole = recorded("v1_chat_stream")
    cut = whole[: whole.index(b"data: [DONE]")]
    result = command("decode", "--engine", "openai", stdin=cut)
    assert result.returncode == 1
    assert _events(result.stdout)[-1]["data"]["detail"] == "truncated"


def test_broken_framing_is_a_reset(command: Command, recorded: Recorded) -> None:
    whole = recorded("completion_stream_greedy")
    at = whole.index(b"\r\n77\r\n")
    result = command("decode", stdin=whole[:at] + b"\r\nzz\r\n" + whole[at + 6 :])
    assert result.returncode == 1
    assert _events(result.stdout)[-1]["data"]["code"] == "WORKER_RESET"


def test_nothing_at_all_is_a_reset(command: Command) -> None:
    result = command("decode", stdin=b"")
    assert result.returncode == 1
    assert _events(result.stdout)[-1]["data"]["code"] == "WORKER_RESET"


def test_what_follows_the_response_is_told(command: Command, recorded: Recorded) -> None:
    whole = recorded("completion_stream_greedy")
    result = command("decode", stdin=whole + b"HTTP/1.1 200 OK\r\n\r\n")
    assert result.returncode == 0
    assert b"19 bytes after the response" in result.stderr


@pytest.mark.parametrize("text", [b"HTTP/1.1 what\r\n\r\n", b"HTTP/1.1 200 OK\r\nServer: x"])
def test_no_response_head(command: Command, text: bytes) -> None:
    result = command("decode", stdin=text)
    assert result.returncode == 1
    assert b"not an HTTP response" in result.stderr
    assert b"Traceback" not in result.stderr


def test_a_missing_file_is_wrong_usage(command: Command, tmp_path: Path) -> None:
    result = command("decode", str(tmp_path / "nonesuch"))
    assert result.returncode == 2
    assert b"nonesuch: No such file" in result.stderr
    assert command("decode", str(tmp_path)).returncode == 2


def test_a_pipe_is_decoded_while_it_flows(running: Running, recorded: Recorded) -> None:
    process = running("decode", "-", stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    body = _body(recorded("completion_stream_greedy"))
    first = body.index(b"\n\n") + 2
    process.stdin.write(body[:first])
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["kind"] == "started"
    assert json.loads(process.stdout.readline())["data"]["t"] == " there"
    process.stdin.write(body[first:])
    process.stdin.close()
    assert json.loads(process.stdout.read().splitlines()[-1])["kind"] == "end"
    assert process.wait(timeout=30) == 0


def test_every_recorded_framing_is_taken_apart_as_it_was_measured(captures: Path) -> None:
    """Against what the recorder wrote down: status, bytes of body, how it ended."""
    checked = 0
    for path in sorted((captures / "llamacpp").glob("*.http")):
        measured = json.loads(path.with_suffix(".json").read_text())
        if not measured.get("status") or measured["status"] < 200:
            continue
        if path.stem == "request_pipelined_pair":
            continue  # two responses
        if path.stem == "request_head":
            continue  # a length without a body, which only the request explains
        response = HttpResponse()
        recorded = path.read_bytes()
        pieces = (recorded[at : at + 13] for at in range(0, len(recorded), 13))
        parts = [part for piece in pieces for part in response.feed(piece)]
        parts += response.feed(b"")
        assert isinstance(parts[0], Head)
        assert parts[0].status == measured["status"], path.stem
        body = sum(len(part.data) for part in parts if isinstance(part, Body))
        assert body == measured["body_bytes"], path.stem
        whole = measured["ended"] in {"last-chunk", "content-length", "no-body"}
        assert response.complete == whole, path.stem
        checked += 1
    assert checked > 200


def test_a_head_that_never_ends_is_refused() -> None:
    response = HttpResponse()
    response.feed(b"HTTP/1.1 200 OK\r\n")
    with pytest.raises(NotHttpError):
        response.feed(b"x" * (2 << 20))


def text_of(output: bytes) -> str:
    return "".join(row["data"].get("t", "") for row in _events(output) if row["kind"] == "token")


def test_what_the_engine_would_have_told(command: Command, captures: Path) -> None:
    file = str(captures / "triton" / "stream_accumulate.http")
    told = command("decode", "-e", "triton", "--option", "text=accumulated", file)
    assert told.returncode == 0
    assert text_of(told.stdout).startswith("Hello, wörld!")
    assert text_of(told.stdout).count("Hello") == 1
    untold = command("decode", "-e", "triton", "--option", "text=delta", file)
    assert text_of(untold.stdout).count("Hello") > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--option", "text"], "expected KEY=VALUE"),
        (["--option", "=x"], "expected KEY=VALUE"),
        (["--option", "text=delta", "--option", "text=delta"], "given twice"),
        (["--option", "colour=red"], "no option"),
        (["--option", "text=red"], "takes"),
    ],
)
def test_wrong_options(command: Command, options: list[str], message: str) -> None:
    result = command("decode", "-e", "triton", *options)
    assert result.returncode == 2
    assert message.encode() in result.stderr
    assert result.stdout == b""


def test_an_engine_whose_dialect_has_another_name(command: Command, captures: Path) -> None:
    file = str(captures / "vllm" / "vllm032-chat-tools-named-stream.http")
    result = command("decode", "-e", "vllm", file)
    assert result.returncode == 0
    started, *tokens = [row["data"] for row in _events(result.stdout)[:-1]]
    assert started["engine"] == "vllm"
    # A channel is named when it is not that of the content.
    assert {token.get("channel") for token in tokens} == {"tool"}
    assert json.loads(tokens[0]["t"])[0]["function"]["name"] == "get_weather"


@pytest.mark.parametrize(
    ("engine", "file"),
    [
        ("vllm", "vllm/vllm032-comp-greedy-stream"),
        ("openai", "vllm/vllm032rust-comp-greedy-stream"),
        ("sglang", "sglang/sglang0520-generate-stream"),
        ("tgi", "tgi/tgi337-stream-details"),
        ("triton", "triton/stream_ok_tensorrt_llm_bls"),
        ("llamacpp", "llamacpp/completion_stream_eos"),
    ],
)
def test_every_engine(command: Command, captures: Path, engine: str, file: str) -> None:
    result = command("decode", "-e", engine, str(captures / f"{file}.http"))
    assert result.returncode == 0, result.stderr
    assert _events(result.stdout)[-1]["kind"] == "end"
