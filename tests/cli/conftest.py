"""A scripted engine on a socket, and the command as people run it."""

from __future__ import annotations

import contextlib
import io
import os
import select
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol

import pytest

from worker_adapters.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

GREEDY = " there was a tiny model, its name is café and it likes 🙂;"


class ScriptedEngine:
    """Answers each path with recorded bytes.

    A path whose answer is in ``held`` stays open after its bytes until the client goes away,
    which sets ``left``. ``requests`` holds the raw bytes of every request, in order.
    """

    def __init__(self, answers: Mapping[str, bytes], held: frozenset[str] = frozenset()) -> None:
        self.answers = dict(answers)
        self.held = held
        self.requests: list[bytes] = []
        self.left = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            socket.create_connection(self._listener.getsockname()).close()
        for thread in self._threads:
            thread.join(5.0)
        self._listener.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            connection, _ = self._listener.accept()
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            reader = connection.makefile("rb")
            # As the real one: a stream ends its connection, every other answer keeps it.
            while (path := self._answer(reader, connection)) is not None:
                if path in self.held:
                    self._wait_for_the_end(connection)
                if path in self.held or b"text/event-stream" in self.answers.get(path, b""):
                    return

    def _answer(self, reader: BinaryIO, connection: socket.socket) -> str | None:
        lines = []
        while (line := reader.readline()) not in {b"\r\n", b""}:
            lines.append(line)
        if not lines:
            return None
        length = sum(
            int(line.partition(b":")[2])
            for line in lines
            if line.lower().startswith(b"content-length:")
        )
        self.requests.append(b"".join(lines) + b"\r\n" + reader.read(length))
        path = lines[0].split(b" ")[1].decode().partition("?")[0]
        missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        connection.sendall(self.answers.get(path, missing))
        return path

    def _wait_for_the_end(self, connection: socket.socket) -> None:
        while not self._closing.is_set():
            if select.select([connection], [], [], 0.05)[0] and not connection.recv(1):
                self.left.set()
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
    engines: list[ScriptedEngine] = []
    ready = {
        "/health": recorded("health"),
        "/props": recorded("props"),
        "/slots": recorded("slots_idle_fresh"),
        "/v1/models": recorded("v1_models"),
        "/models": recorded("v1_models"),
        "/completion": recorded("completion_stream_greedy"),
    }

    def start(
        answers: Mapping[str, bytes] | None = None, held: frozenset[str] = frozenset()
    ) -> ScriptedEngine:
        engine = ScriptedEngine(ready | dict(answers or {}), frozenset(held))
        engines.append(engine)
        return engine

    yield start
    for engine in engines:
        engine.close()


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


@pytest.fixture
def spawned() -> Command:
    """Run the command in a process of its own."""

    def run(*arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> Done:
        ended = subprocess.run(
            [sys.executable, "-m", "worker_adapters.cli", *arguments],
            input=stdin,
            capture_output=True,
            timeout=30,
            check=False,
            env=environment(**(env or {})),
        )
        return Done(ended.returncode, ended.stdout, ended.stderr)

    return run


@pytest.fixture
def running() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start ``worker-adapters`` and leave it running; ended with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "worker_adapters.cli", *arguments],
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
