"""``generate`` against an engine that answers with recorded bytes."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.conftest import GREEDY
from tests.transports import both_transports
from worker_adapters.testing.engines import PIECES, SCRIPTED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Command, FakeEngine, ScriptedEngine

    Running = Callable[..., subprocess.Popen[bytes]]
    Scripted = Callable[..., ScriptedEngine]
    Recorded = Callable[[str], bytes]

pytestmark = both_transports

KEY = "sk-command-line-0123456789"


def _sent(engine: ScriptedEngine) -> tuple[dict[str, str], dict[str, Any]]:
    """Headers and body of the completion request that the engine got."""
    [request] = engine.received("/completion")
    return request.headers, request.json


def test_text_goes_to_stdout_and_figures_to_stderr(command: Command, scripted: Scripted) -> None:
    result = command("generate", "--url", scripted().url, "--prompt", "Once upon a time")
    assert result.returncode == 0
    assert result.stdout.decode().startswith(GREEDY)
    figures = result.stderr.decode()
    for part in ("8 tokens in", "32 tokens out", "first token after", "length (limit)", "seed "):
        assert part in figures
    assert "\x1b" not in figures
    assert "Once upon" not in figures


def test_json_prints_the_events(command: Command, scripted: Scripted) -> None:
    result = command("generate", "--url", scripted().url, "-p", "Once upon a time", "--json")
    assert result.returncode == 0
    events = [json.loads(line) for line in result.stdout.decode().splitlines()]
    assert [event["kind"] for event in events[:2]] == ["started", "token"]
    assert events[-1]["kind"] == "end"
    text = "".join(event["data"]["t"] for event in events if event["kind"] == "token")
    assert text.startswith(GREEDY)


def test_options_reach_the_engine(command: Command, scripted: Scripted) -> None:
    engine = scripted()
    options = ("--max-tokens", "7", "--seed", "42", "--temperature", "0.5", "--top-k", "3")
    sampling = ("--top-p", "0.5", "--min-p", "0.25", "--stop", "one", "--stop", "two")
    result = command("generate", "--url", engine.url, "-p", "café 🙂", *options, *sampling)
    assert result.returncode == 0
    _, body = _sent(engine)
    expected = {"prompt": "café 🙂", "n_predict": 7, "seed": 42, "stream": True}
    sampled = {"temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.25, "stop": ["one", "two"]}
    assert {name: body.get(name) for name in expected | sampled} == expected | sampled


def test_deterministic_is_greedy(command: Command, scripted: Scripted) -> None:
    engine = scripted()
    assert command("generate", "--url", engine.url, "-p", "x", "--deterministic").returncode == 0
    assert _sent(engine)[1]["temperature"] == 0


@pytest.mark.parametrize("given", [b"a prompt", b"a prompt\n", b"a prompt\r\n"])
def test_the_prompt_may_come_from_stdin(command: Command, scripted: Scripted, given: bytes) -> None:
    engine = scripted()
    assert command("generate", "--url", engine.url, stdin=given).returncode == 0
    assert _sent(engine)[1]["prompt"] == "a prompt"


def test_the_url_may_come_from_the_environment(command: Command, scripted: Scripted) -> None:
    result = command("generate", "-p", "x", env={"WORKER_ADAPTERS_URL": scripted().url})
    assert result.returncode == 0


def test_the_key_comes_from_the_environment_and_is_never_shown(
    command: Command, scripted: Scripted, recorded: Recorded
) -> None:
    engine = scripted({"/completion": recorded("auth_wrong")})
    result = command(
        "generate", "--url", engine.url, "-p", "x", env={"WORKER_ADAPTERS_API_KEY": KEY}
    )
    assert result.returncode == 1
    assert _sent(engine)[0]["authorization"] == f"Bearer {KEY}"
    assert KEY.encode() not in result.stdout + result.stderr
    assert b"unauthorized" in result.stderr


def test_the_key_may_come_from_a_file(command: Command, scripted: Scripted, tmp_path: Path) -> None:
    engine = scripted()
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    arguments = ("--url", engine.url, "-p", "x", "--api-key-file", str(path))
    result = command("generate", *arguments, env={"WORKER_ADAPTERS_API_KEY": "another-key"})
    assert result.returncode == 0
    assert _sent(engine)[0]["authorization"] == f"Bearer {KEY}"


def test_a_refused_connection_is_unreachable(command: Command, unused_tcp_port: int) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    result = command("generate", "--url", url, "-p", "x")
    assert result.returncode == 3
    assert result.stdout == b""
    assert url.encode() in result.stderr
    assert b"POOL_UNAVAILABLE" in result.stderr
    assert b"Traceback" not in result.stderr


def test_an_unknown_host_is_unreachable(command: Command) -> None:
    result = command("generate", "--url", "http://nonesuch.invalid:8080", "-p", "x")
    assert result.returncode == 3
    assert b"Traceback" not in result.stderr


def test_a_loading_engine_is_a_failure(
    command: Command, scripted: Scripted, recorded: Recorded
) -> None:
    loading = recorded("completion_loading")
    engine = scripted({"/completion": loading, "/props": loading})
    result = command("generate", "--url", engine.url, "-p", "x")
    assert result.returncode == 1
    assert b"POOL_UNREADY (loading)" in result.stderr


@pytest.mark.parametrize("as_json", [False, True])
def test_a_cut_stream_fails_after_all_it_had(
    command: Command, scripted: Scripted, recorded: Recorded, as_json: bool
) -> None:
    whole = recorded("completion_stream_greedy")
    engine = scripted({"/completion": whole[: whole.index(b'" comes"')]})
    arguments = ("--json",) if as_json else ()
    result = command("generate", "--url", engine.url, "-p", "x", *arguments)
    assert result.returncode == 1
    assert b"WORKER_RESET" in result.stderr
    assert b"Traceback" not in result.stderr
    if as_json:
        assert json.loads(result.stdout.splitlines()[-1])["kind"] == "error"
    else:
        assert result.stdout.decode().startswith(GREEDY)
        assert result.stdout.decode().endswith(" text")


def test_an_error_inside_the_stream_fails(
    command: Command, scripted: Scripted, recorded: Recorded
) -> None:
    engine = scripted({"/completion": recorded("mid_stream_error_0")})
    result = command("generate", "--url", engine.url, "-p", "x")
    assert result.returncode == 1
    assert b"WORKER_RESET (engine_error)" in result.stderr


def test_interrupted_it_closes_the_stream(
    running: Running, scripted: Scripted, recorded: Recorded
) -> None:
    whole = recorded("completion_stream_greedy")
    part = whole[: whole.index(b'" comes"')]
    part = part[: part.rindex(b"\r\n", 0, part.rindex(b"data:") - 2) + 2]
    engine = scripted({"/completion": part}, held={"/completion"})
    process = running("generate", "--url", engine.url, "-p", "x")
    assert process.stdout is not None
    assert process.stdout.read(6) == b" there"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert engine.left.wait(30)


@pytest.mark.parametrize("name", ["generate", "decode"])
def test_a_closed_stdout_ends_it_quietly(
    running: Running, scripted: Scripted, captures: Path, name: str
) -> None:
    source = str(captures / "llamacpp" / "completion_stream_greedy.http")
    arguments = {"generate": ("--url", scripted().url, "-p", "x"), "decode": (source,)}
    process = running(name, *arguments[name])
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=30) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""


def test_stdout_is_utf8_whatever_the_locale(spawned: Command, scripted: Scripted) -> None:
    result = spawned(
        "generate", "--url", scripted().url, "-p", "x", env={"PYTHONIOENCODING": "ascii"}
    )
    assert result.returncode == 0
    assert "🙂" in result.stdout.decode("utf-8")


@pytest.mark.parametrize("engine", SCRIPTED)
def test_every_engine_by_its_name(command: Command, fake_engine: FakeEngine, engine: str) -> None:
    scripted = fake_engine(engine)
    result = command("generate", "-e", engine, "-u", scripted.url, "-p", "hello", "-n", "10")
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode() == "".join(PIECES[:10])
    assert b"10 tokens out" in result.stderr


@pytest.mark.parametrize("engine", SCRIPTED)
def test_every_engine_as_events(command: Command, fake_engine: FakeEngine, engine: str) -> None:
    scripted = fake_engine(engine, error="stream", status=500, after=2)
    result = command("generate", "-e", engine, "-u", scripted.url, "-p", "hello", "--json")
    assert result.returncode == 1
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["kind"] for event in events] == ["started", "token", "token", "error"]
    assert {events[0]["data"]["engine"], events[-1]["data"]["engine"]} == {engine}
    assert events[-1]["data"]["code"] == "WORKER_RESET"


def test_the_model_that_is_asked(command: Command, fake_engine: FakeEngine) -> None:
    triton = fake_engine("triton", models=["tensorrt_llm", "tensorrt_llm_bls_accum", "mine"])
    arguments = ("generate", "-e", "triton", "-u", triton.url, "-p", "hello", "-n", "3")
    result = command(*arguments, "--model", "tensorrt_llm_bls_accum")
    assert result.stdout.decode() == "".join(PIECES[:3])
    [path] = {row.request.path for row in triton.generations}
    assert path == "/v2/models/tensorrt_llm_bls_accum/generate_stream"


def test_an_engine_that_there_is_not(command: Command) -> None:
    result = command("generate", "-e", "nothing", "-p", "x")
    assert result.returncode == 2
    assert b"unknown engine 'nothing'" in result.stderr
    assert all(name.encode() in result.stderr for name in SCRIPTED)
