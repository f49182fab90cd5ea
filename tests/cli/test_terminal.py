"""What a person at a terminal sees, on a pseudo-terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import environment

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Command, ScriptedEngine

pty = pytest.importorskip("pty", reason="pseudo-terminals are a Unix thing")

FRAMES = (
    b'data: {"index":0,"content":"a\\u001b[31mb\\u0007\\tc\\nd","tokens":[1],"stop":false,'
    b'"tokens_predicted":1,"tokens_evaluated":3}\n\n'
    b'data: {"index":0,"content":"","tokens":[],"stop":true,"tokens_predicted":1,'
    b'"tokens_evaluated":3,"stop_type":"limit"}\n\n'
)
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%b" % (
    len(FRAMES),
    FRAMES,
)


def _on_a_terminal(url: str, **env: str) -> tuple[str, str]:
    """Run generate with stdout and stderr each on a terminal; what they showed."""
    screens = [pty.openpty(), pty.openpty()]
    try:
        process = subprocess.run(
            [sys.executable, "-m", "worker_adapters.cli", "generate", "--url", url, "-p", "x"],
            stdin=subprocess.DEVNULL,
            stdout=screens[0][1],
            stderr=screens[1][1],
            timeout=30,
            check=False,
            env=environment(TERM="xterm-256color", **env),
        )
        assert process.returncode == 0
        out, err = (os.read(ours, 65536).decode() for ours, _ in screens)
    finally:
        for pair in screens:
            for end in pair:
                os.close(end)
    return out.replace("\r\n", "\n"), err


def test_control_characters_are_shown_not_obeyed(
    scripted: Callable[..., ScriptedEngine],
) -> None:
    out, err = _on_a_terminal(scripted({"/completion": RESPONSE}).url)
    assert out == "a␛[31mb␇\tc\nd\n"
    assert "\x1b[" in err


def test_no_color_sends_no_escape_sequence(scripted: Callable[..., ScriptedEngine]) -> None:
    _, err = _on_a_terminal(scripted({"/completion": RESPONSE}).url, NO_COLOR="1")
    assert "1 tokens out" in err
    assert "\x1b" not in err


def test_a_pipe_gets_the_text_as_it_is(
    scripted: Callable[..., ScriptedEngine],
    command: Command,
) -> None:
    engine = scripted({"/completion": RESPONSE})
    result = command("generate", "--url", engine.url, "-p", "x")
    assert result.stdout == b"a\x1b[31mb\x07\tc\nd"
