"""Standard streams that are closed, full or left, and Ctrl-C before a command has begun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import environment

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Command, ScriptedEngine

FULL = Path("/dev/full")


def redirected(redirection: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command in a shell that redirects its streams so."""
    return subprocess.run(
        [
            *("/bin/sh", "-c", f'exec "$@" {redirection}', "sh"),
            *(sys.executable, "-m", "worker_adapters.cli", *arguments),
        ],
        capture_output=True,
        timeout=30,
        check=False,
        env=environment(**env),
    )


def one_line(said: bytes) -> bytes:
    assert said.count(b"\n") == 1, said.decode()
    assert b"Traceback" not in said
    return said


@pytest.fixture
def recording(captures: Path) -> str:
    return str(captures / "llamacpp" / "completion_stream_greedy.http")


@pytest.mark.parametrize("arguments", [("decode",), ("decode", "-"), ("generate",)])
def test_stdin_is_closed(arguments: tuple[str, ...]) -> None:
    result = redirected("<&-", *arguments)
    assert result.returncode == 2
    assert b"stdin: it is closed" in one_line(result.stderr)


@pytest.mark.parametrize("arguments", [("decode",), ("generate",)])
def test_stdin_cannot_be_read(arguments: tuple[str, ...]) -> None:
    result = redirected("0>/dev/null", *arguments)
    assert result.returncode == 2
    assert b"cannot read" in one_line(result.stderr)


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
@pytest.mark.parametrize("what", ["decode", "probe", "--help", "--version"])
@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_stdout_cannot_be_written(redirection: str, what: str, recording: str) -> None:
    more = {"decode": (recording,), "probe": ("http://127.0.0.1:1",)}.get(what, ())
    result = redirected(redirection, what, *more)
    assert result.returncode == 1
    assert b"cannot write" in one_line(result.stderr)


def test_stderr_is_closed(recording: str) -> None:
    done = redirected("2>&-", "decode", recording)
    assert done.returncode == 0
    assert done.stdout.count(b"\n") > 10
    failed = redirected("2>&-", "probe", "http://127.0.0.1:1")
    assert failed.returncode == 3


@pytest.mark.parametrize("what", ["decode", "probe", "--help", "--version"])
def test_nobody_reads_stdout(what: str, recording: str) -> None:
    more = {"decode": (recording,), "probe": ("http://127.0.0.1:1",)}.get(what, ())
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "worker_adapters.cli", what, *more],
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=30,
            check=False,
            env=environment(),
        )
    finally:
        os.close(writing)
    assert result.returncode == 141
    assert result.stderr == b""


@pytest.mark.parametrize(
    "module", ["typer", "rich", "worker_adapters.cli._app", "worker_adapters._core", "httpx"]
)
def test_interrupted_while_it_is_imported(module: str) -> None:
    program = (
        "import sys\n"
        "class Pressed:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Pressed())\n"
        "sys.argv = ['worker-adapters', 'probe', 'http://127.0.0.1:1']\n"
        "from worker_adapters.cli import main\n"
        "sys.exit(main())"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        timeout=30,
        check=False,
        env=environment(),
    )
    assert result.returncode == 130
    assert one_line(result.stderr) == b"interrupted\n"


def test_until_the_command_is_there_nothing_heavy_is_imported() -> None:
    program = (
        "import sys\nimport worker_adapters.cli\n"
        "print([name for name in ('pydantic', 'asyncio', 'typer') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=30, check=True
    )
    assert result.stdout == b"[]\n"


@pytest.mark.parametrize("arguments", [("--help",), ("probe", "--help"), ("probe",), ("nonesuch",)])
def test_no_color_leaves_no_escape_sequence(arguments: tuple[str, ...]) -> None:
    pty = pytest.importorskip("pty", reason="pseudo-terminals are a Unix thing")
    shown = {}
    for no_color in ("", "1"):
        screen, terminal = pty.openpty()
        try:
            subprocess.run(
                [sys.executable, "-m", "worker_adapters.cli", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=terminal,
                stderr=terminal,
                timeout=30,
                check=False,
                env=environment(NO_COLOR=no_color, TERM="xterm-256color"),
            )
            shown[no_color] = os.read(screen, 1 << 16)
        finally:
            os.close(terminal)
            os.close(screen)
    assert b"\x1b" in shown[""]
    assert b"\x1b" not in shown["1"]
    assert b"sage:" in shown["1"]


def test_the_demo_s_text_ends_its_line(
    command: Command, scripted: Callable[..., ScriptedEngine]
) -> None:
    result = command("demo", "--url", scripted().url)
    assert result.returncode == 0
    assert result.stdout.endswith(b"\n")


def test_a_dialect_that_needs_options_names_them(command: Command, recording: str) -> None:
    result = command("decode", "--engine", "field_map", recording)
    assert result.returncode == 2
    assert b"text_pointer" in one_line(result.stderr)
