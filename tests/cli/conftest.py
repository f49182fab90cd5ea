"""A scripted engine on a socket, and the command as people run it."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import pytest

from worker_adapters.cli import main
from worker_adapters.testing.wire import Connection, RawServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from worker_adapters.testing import engines

    FakeEngine = Callable[..., engines.ScriptedEngine]

STREAMING = ("generate", "certify", "demo")
"""The commands that make streams."""

GREEDY = " there was a tiny model, its name is café and it likes 🙂;"


class ScriptedEngine(RawServer):
    """Answers each path with recorded bytes, in a thread of its own.

    A path whose answer is in ``held`` stays open after its bytes until the client goes away,
    which sets ``left``.
    """

    def __init__(self, answers: Mapping[str, bytes], held: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.answers = dict(answers)
        self.held = held
        self.left = threading.Event()

    async def play(self, connection: Connection) -> None:
        while True:
            path = (await connection.request()).path.partition("?")[0]
            missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
            await connection.send(self.answers.get(path, missing))
            if path in self.held:
                await connection.until_closed()
                self.left.set()
            # As the real one: a stream ends its connection, every other answer keeps it.
            if path in self.held or b"text/event-stream" in self.answers.get(path, b""):
                return


@pytest.fixture
def recorded(captures: Path) -> Callable[[str], bytes]:
    """Bytes of a recorded llama.cpp response."""
    return lambda name: (captures / "llamacpp" / f"{name}.http").read_bytes()


@pytest.fixture
def scripted(
    recorded: Callable[[str], bytes],
) -> Iterator[Callable[..., ScriptedEngine]]:
    """Start scripted engines: ``scripted({path: bytes}, held={path})`` over a ready llama.cpp."""
    ready = {
        "/health": recorded("health"),
        "/props": recorded("props"),
        "/slots": recorded("slots_idle_fresh"),
        "/v1/models": recorded("v1_models"),
        "/models": recorded("v1_models"),
        "/completion": recorded("completion_stream_greedy"),
    }

    with contextlib.ExitStack() as stack:

        def start(
            answers: Mapping[str, bytes] | None = None, held: frozenset[str] = frozenset()
        ) -> ScriptedEngine:
            engine = ScriptedEngine(ready | dict(answers or {}), frozenset(held))
            return stack.enter_context(engine)

        yield start


def environment(**extra: str) -> dict[str, str]:
    """The environment of a child: ours without what would change the command's behaviour."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WORKER_ADAPTERS_", "NO_COLOR", "FORCE_COLOR"))
    }
    return kept | extra


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    returncode: int
    stdout: bytes
    stderr: bytes


class Command(Protocol):
    """Runs ``worker-adapters`` to its end; stdin is empty unless given."""

    def __call__(
        self, *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> Done: ...


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command here: quick, and what it leaves open fails the test."""

    def run(*arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> Done:
        out, err = io.BytesIO(), io.BytesIO()
        with monkeypatch.context() as patch:
            for name in os.environ.keys() - environment().keys():
                patch.delenv(name)
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            for name, stream in (("stdin", io.BytesIO(stdin)), ("stdout", out), ("stderr", err)):
                text = io.TextIOWrapper(stream, encoding="utf-8", write_through=True)
                patch.setattr(sys, name, text)
            patch.setattr(sys, "argv", ["worker-adapters", *arguments])
            try:
                status = main()
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
            return Done(status, out.getvalue(), err.getvalue())

    return run


def over(request: pytest.FixtureRequest, arguments: tuple[str, ...]) -> tuple[str, ...]:
    """Return the arguments for a child, which streams over the transport that the test is for."""
    if "transport" not in request.fixturenames or arguments[0] not in STREAMING:
        return arguments
    return (*arguments, "--transport", request.getfixturevalue("transport"))


@pytest.fixture
def spawned(request: pytest.FixtureRequest) -> Command:
    """Run the command in a process of its own."""

    def run(*arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> Done:
        ended = subprocess.run(
            [sys.executable, "-m", "worker_adapters.cli", *over(request, arguments)],
            input=stdin,
            capture_output=True,
            timeout=30,
            check=False,
            env=environment(**(env or {})),
        )
        return Done(ended.returncode, ended.stdout, ended.stderr)

    return run


@pytest.fixture
def running(
    request: pytest.FixtureRequest,
) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start ``worker-adapters`` and leave it running; ended with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker_adapters.cli", *over(request, arguments)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            process.kill()
