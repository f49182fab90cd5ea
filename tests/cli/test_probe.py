"""``probe`` against an engine that answers with recorded bytes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from worker_adapters.testing.engines import SCRIPTED

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Command, FakeEngine, ScriptedEngine

    Scripted = Callable[..., ScriptedEngine]
    Recorded = Callable[[str], bytes]


def test_a_ready_engine(command: Command, scripted: Scripted) -> None:
    engine = scripted()
    result = command("probe", engine.url)
    assert result.returncode == 0
    lines = dict(line.split(None, 1) for line in result.stdout.decode().splitlines())
    assert lines["url"] == engine.url
    assert lines["engine"] == "llamacpp"
    assert lines["version"] == "b0-unknown"
    assert lines["health"] == "ready"
    assert lines["slots"] == "4 of 4 free"
    assert "tiny.gguf" in lines["model"]
    assert result.stderr == b""


def test_json_is_one_document(command: Command, scripted: Scripted) -> None:
    result = command("probe", scripted().url, "--json")
    assert result.returncode == 0
    found = json.loads(result.stdout)
    assert found["health"] == {"live": True, "ready": True}
    assert found["slots"] == {"total": 4, "free": 4}
    assert found["engine_version"] == "b0-unknown"


def test_a_loading_engine_lives_and_fails(
    command: Command, scripted: Scripted, recorded: Recorded
) -> None:
    loading = recorded("health_loading")
    engine = scripted(dict.fromkeys(("/health", "/props", "/slots", "/v1/models"), loading))
    result = command("probe", engine.url)
    assert result.returncode == 1
    assert b"live, not ready (loading)" in result.stdout
    assert b"Traceback" not in result.stderr


def test_nothing_there_is_unreachable(command: Command, unused_tcp_port: int) -> None:
    result = command("probe", f"http://127.0.0.1:{unused_tcp_port}")
    assert result.returncode == 3
    assert b"unreachable" in result.stdout
    assert b"nothing answers" in result.stderr
    assert b"Traceback" not in result.stderr


def test_unreachable_as_json(command: Command, unused_tcp_port: int) -> None:
    result = command("probe", f"http://127.0.0.1:{unused_tcp_port}", "--json")
    assert result.returncode == 3
    assert json.loads(result.stdout)["health"]["live"] is False


def test_a_locked_engine_says_what_it_would_not_tell(
    command: Command, scripted: Scripted, recorded: Recorded
) -> None:
    locked = recorded("auth_none_get_props")
    engine = scripted(dict.fromkeys(("/props", "/slots", "/v1/models", "/metrics"), locked))
    result = command("probe", engine.url)
    assert result.returncode == 1
    assert b"Invalid API Key" in result.stderr
    assert b"Traceback" not in result.stderr


@pytest.mark.parametrize("engine", SCRIPTED)
def test_every_engine(command: Command, fake_engine: FakeEngine, engine: str) -> None:
    scripted = fake_engine(engine)
    result = command("probe", "-e", engine, scripted.url, "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["engine"] == engine
    assert found["health"] == {"live": True, "ready": True}
    assert found["engine_version"]
    assert found["model"]["model"]
    assert "errors" not in found


def test_what_only_one_engine_tells(command: Command, fake_engine: FakeEngine) -> None:
    result = command("probe", "-e", "triton", fake_engine("triton").url, "--json")
    assert json.loads(result.stdout)["details"]["text"] == "delta"
