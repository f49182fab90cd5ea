"""``fake-engine``: a scripted engine as a process of its own."""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from worker_adapters.testing.engines import PIECES, SCRIPTED

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Command

    Running = Callable[..., subprocess.Popen[bytes]]


def url_of(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def test_it_serves_until_ctrl_c(running: Running, command: Command) -> None:
    process = running("fake-engine", "vllm", "--tokens", "5", "--split", "1")
    url = url_of(process)
    result = command("generate", "-e", "vllm", "-u", url, "-p", "hello")
    assert result.stdout.decode() == "".join(PIECES[:5])
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == b""
    assert b"Traceback" not in errors
    assert b"hello" not in errors


def test_switches(running: Running, command: Command) -> None:
    process = running("fake-engine", "tgi", "--error", "stream", "--status", "500", "--after", "1")
    url = url_of(process)
    result = command("generate", "-e", "tgi", "-u", url, "-p", "hello")
    assert result.returncode == 1
    assert result.stdout.decode() == PIECES[0]
    assert b"WORKER_RESET (engine_error)" in result.stderr


def test_a_port_that_is_taken(running: Running, command: Command) -> None:
    port = url_of(running("fake-engine", "llamacpp")).rpartition(":")[2]
    result = command("fake-engine", "llamacpp", "--port", port)
    assert result.returncode == 1
    assert b"cannot listen" in result.stderr


def test_a_dialect_that_there_is_not(command: Command) -> None:
    result = command("fake-engine", "nothing")
    assert result.returncode == 2
    assert all(name.encode() in result.stderr for name in SCRIPTED)


@pytest.mark.parametrize(
    "arguments", [("--error", "luck"), ("--split", "0"), ("--status", "200"), ("--port", "70000")]
)
def test_wrong_values(command: Command, arguments: tuple[str, ...]) -> None:
    assert command("fake-engine", "vllm", *arguments).returncode == 2
