"""A llama.cpp server in a child process, for the length of a ``with`` block.

The child ends with its parent, however that ends: it holds the read end of a pipe whose write
end only the parent has, and leaves at its end of file. (Linux's ``PR_SET_PDEATHSIG`` would
fire when the *thread* that started the child ends, which a test runner's worker thread does.)
The child has a session of its own, so Ctrl-C reaches the parent alone, which may then still
cancel what it has running before the engine goes.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Self

from worker_adapters.testing.llamacpp.tiny_gguf import tiny_model

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["EngineNotInstalledError", "EngineStartError", "LlamaCppServer"]

DEFAULT_FLAGS: Final = ("-np", "4", "-c", "4096", "--metrics")
"""Four slots of 1024 tokens each, and the metrics route."""

_LOG_LINES: Final = 500

_END_SECONDS: Final = 10.0
"""How long a process that has closed its stdout may take to end, on a busy machine."""


class EngineNotInstalledError(ImportError):
    """A package of the extra ``[demo]`` is missing."""


class EngineStartError(RuntimeError):
    """The server ended, or was not ready in time; the message holds the tail of its log."""


class LlamaCppServer:
    """A real llama.cpp server on a free loopback port, serving the tiny model.

    ``flags`` follow `DEFAULT_FLAGS` and win over them (see ``server.py --help``); ``model`` is
    a GGUF file, by default `tiny_model()`. ``api_key`` travels in the environment, not on the
    command line. ``start_timeout`` (seconds) bounds the time until the model is loaded.

    A context manager, plain and async, restartable::

        with LlamaCppServer(["-np", "2"]) as server:
            print(server.url)

    With ``wait=False`` entering returns while the model still loads; `wait_ready()` then waits.
    """

    def __init__(
        self,
        flags: Sequence[str] = (),
        *,
        model: str | os.PathLike[str] | None = None,
        api_key: str | None = None,
        wait: bool = True,
        start_timeout: float = 30.0,
    ) -> None:
        self._flags = tuple(flags)
        self._model = None if model is None else Path(model)
        self._api_key = api_key
        self._wait = wait
        self._start_timeout = start_timeout
        self._child: subprocess.Popen[str] | None = None
        self._url: str | None = None
        self._said = threading.Event()
        self._log: collections.deque[str] = collections.deque(maxlen=_LOG_LINES)
        self._readers: list[threading.Thread] = []

    @property
    def url(self) -> str:
        """Base URL, ``http://127.0.0.1:PORT``. Raises RuntimeError before there is one."""
        if self._url is None:
            raise RuntimeError("the server has not been started")
        return self._url

    @property
    def pid(self) -> int:
        """Process id of the server. Raises RuntimeError before the start."""
        return self._running().pid

    @property
    def returncode(self) -> int | None:
        """How the process ended (negative: by that signal); None while it runs."""
        return self._running().poll()

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of the engine's own log."""
        return "\n".join(list(self._log)[-lines:])

    def start(self) -> None:
        """Start the server and, unless ``wait=False``, wait until the model is loaded.

        Raises EngineNotInstalledError, EngineStartError, or RuntimeError when it runs already.
        """
        self._spawn()
        if self._wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until the model is loaded; on failure stop the server and raise EngineStartError."""
        self._said.wait(self._start_timeout)
        child = self._running()
        if self._said.is_set() and self._url is not None and child.poll() is None:
            return
        if self._said.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_END_SECONDS)
        state = "not ready" if child.poll() is None else f"ended with {child.returncode}"
        self.stop()
        raise EngineStartError(f"llama.cpp server {state}; its log ends:\n{self.log_tail(15)}")

    def kill(self) -> None:
        """End the process at once (SIGKILL), open streams cut off, and wait for its end."""
        child = self._running()
        child.kill()
        child.wait()

    def terminate(self) -> None:
        """Ask the process to end (SIGTERM); returns without waiting."""
        self._running().terminate()

    def stop(self) -> None:
        """End the process if it still runs and release everything. Idempotent."""
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for reader in self._readers:
            reader.join()
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        try:
            self._spawn()
            if self._wait:
                await asyncio.to_thread(self.wait_ready)
        except BaseException:
            self.stop()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.stop()

    def _running(self) -> subprocess.Popen[str]:
        if self._child is None:
            raise RuntimeError("the server has not been started")
        return self._child

    def _spawn(self) -> None:
        if self._child is not None:
            raise RuntimeError("the server is running already")
        _require("xllamacpp")
        # The engine names its port only once the model is loaded; whoever wants to talk to it
        # before that needs a port chosen here.
        port = 0 if self._wait else _free_port()
        self._url = None if self._wait else f"http://127.0.0.1:{port}"
        environment = {k: v for k, v in os.environ.items() if k != "LLAMA_API_KEY"}
        if self._api_key is not None:
            environment["LLAMA_API_KEY"] = self._api_key
        command = [
            *(sys.executable, "-P", str(Path(__file__).with_name("server.py"))),
            *("--exit-with-stdin", "-m", str(self._model or _tiny_model()), "--port", str(port)),
            *DEFAULT_FLAGS,
            *self._flags,
        ]
        self._said.clear()
        self._log.clear()
        self._child = subprocess.Popen(  # noqa: S603 - this interpreter, our own script
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=target, args=(pipe,), daemon=True)
            for target, pipe in (
                (self._read_stdout, self._child.stdout),
                (self._read_stderr, self._child.stderr),
            )
        ]
        for reader in self._readers:
            reader.start()

    def _read_stdout(self, pipe: IO[str]) -> None:
        for line in pipe:
            word, _, address = line.rstrip().partition(" ")
            if word == "listening":
                self._url = address
                self._said.set()
        self._said.set()

    def _read_stderr(self, pipe: IO[str]) -> None:
        for line in pipe:
            self._log.append(line.rstrip())


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise EngineNotInstalledError(
            f"{package} is not installed; pip install 'worker-adapters[demo]' brings the engine"
        )


def _tiny_model() -> Path:
    try:
        return tiny_model()
    except ImportError:
        for package in ("gguf", "numpy"):
            _require(package)
        raise


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
