"""``demo``, on the real engine and on a given one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import GREEDY
from tests.transports import both_transports

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Command, ScriptedEngine

    Running = Callable[..., subprocess.Popen[bytes]]
    Scripted = Callable[..., ScriptedEngine]

pytestmark = both_transports

PROC = Path("/proc")


def _engine_process(text: str) -> Path:
    """Where /proc shows the engine that the demo named."""
    named = re.search(r"\(process (\d+)\)", text)
    assert named is not None
    return PROC / named[1]


@pytest.mark.real
def test_it_streams_reports_and_leaves_nothing_behind(spawned: Command) -> None:
    result = spawned("demo")
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.decode().startswith(GREEDY)
    report = result.stderr.decode()
    for name in ("version", "health", "slots", "tokens", "first token", "speed"):
        assert re.search(rf"^{name} ", report, re.MULTILINE), report
    assert "ready" in report
    assert "4 of 4 free" in report
    assert not _engine_process(report).exists()


@pytest.mark.real
def test_interrupted_it_leaves_nothing_behind(running: Running) -> None:
    process = running("demo", "--max-tokens", "1000")
    assert process.stderr is not None
    said = ""
    while "process" not in said:
        said = process.stderr.readline().decode()
    engine = _engine_process(said)
    # A stopped engine keeps the demo from ending by itself, wherever it has come to.
    os.kill(int(engine.name), signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert not engine.exists()


def test_a_given_engine_is_used(command: Command, scripted: Scripted) -> None:
    engine = scripted()
    result = command("demo", "--url", engine.url)
    assert result.returncode == 0
    assert result.stdout.decode().startswith(GREEDY)
    assert "process" not in result.stderr.decode()


def test_a_given_engine_that_is_not_there(command: Command, unused_tcp_port: int) -> None:
    result = command("demo", "--url", f"http://127.0.0.1:{unused_tcp_port}")
    assert result.returncode == 3
    assert b"Traceback" not in result.stderr


def test_without_the_engine_it_tells_how_to_install_it() -> None:
    program = (
        "import sys\nsys.modules['xllamacpp'] = None\nsys.argv = ['worker-adapters', 'demo']\n"
        "from worker_adapters.cli import main\nsys.exit(main())"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert result.returncode == 2
    assert "worker-adapters[demo]" in result.stderr
    assert "Traceback" not in result.stderr
