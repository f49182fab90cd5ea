"""A Triton server in a child process, for the length of a ``with`` block.

Between it and this process stands `supervise.py`, which holds the read end of a pipe whose write
end only this process has: the server and its models end with this process, however that ends.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Self

from worker_adapters.testing.llamacpp import EngineStartError
from worker_adapters.testing.triton.install import Installation, install
from worker_adapters.testing.triton.stand_ins import STAND_INS, write_repository

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["EngineStartError", "TritonServer"]

_LOG_LINES: Final = 500
_POLL_SECONDS: Final = 0.05


class TritonServer:
    """A real Triton server on free loopback ports, serving stand-ins for TensorRT-LLM's models.

    ``models`` names the `STAND_INS` to serve, or maps the names to serve them under to theirs; by
    default all of them. ``repository`` is a model repository to serve instead. ``flags`` follow the
    server's own. ``start_timeout`` (seconds) bounds the time until every model is loaded, which
    takes some seconds; installing the server, on the first use, comes on top.

    A context manager, plain and async, restartable::

        with TritonServer(["ensemble"]) as server:
            print(server.url)

    With ``wait=False`` entering returns while the models still load; `wait_ready()` then waits.
    """

    def __init__(
        self,
        models: Iterable[str] | Mapping[str, str] = tuple(STAND_INS),
        *,
        repository: str | os.PathLike[str] | None = None,
        flags: Sequence[str] = (),
        wait: bool = True,
        start_timeout: float = 60.0,
    ) -> None:
        self._models = dict(models) if isinstance(models, Mapping) else {m: m for m in models}
        self._repository = None if repository is None else Path(repository)
        self._flags = tuple(flags)
        self._wait = wait
        self._start_timeout = start_timeout
        self._child: subprocess.Popen[str] | None = None
        self._pid: int | None = None
        self._ports = (0, 0, 0)
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._log: collections.deque[str] = collections.deque(maxlen=_LOG_LINES)
        self._reader: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Base URL, ``http://127.0.0.1:PORT``. Raises RuntimeError before the start."""
        self._running()
        return f"http://127.0.0.1:{self._ports[0]}"

    @property
    def metrics_url(self) -> str:
        """Where Prometheus would scrape it. Raises RuntimeError before the start."""
        self._running()
        return f"http://127.0.0.1:{self._ports[2]}/metrics"

    @property
    def pid(self) -> int:
        """Process id of the server. Raises RuntimeError before the start."""
        self._running()
        if self._pid is None:
            raise RuntimeError("the server has not been started")
        return self._pid

    @property
    def returncode(self) -> int | None:
        """How the server ended (128 and more: by that signal); None while it runs."""
        return self._running().poll()

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of the server's own log."""
        return "\n".join(list(self._log)[-lines:])

    def observations(self, **equal: object) -> list[dict[str, Any]]:
        """What the stand-ins have noted since the start, in order: ``{model, event, id, sent?}``.

        Events are start, done, cancelled (the client left), stop (a request to stop another),
        stopped, error. Keyword arguments filter, as in ``observations(event="cancelled")``.
        """
        try:
            lines = self._path("observations").read_text("utf-8").splitlines()
        except FileNotFoundError:
            return []
        noted = [json.loads(line) for line in lines]
        return [note for note in noted if equal.items() <= note.items()]

    def start(self) -> None:
        """Start the server and, unless ``wait=False``, wait until every model is loaded.

        Raises EngineNotInstalledError, EngineStartError, or RuntimeError when it runs already.
        """
        self._spawn(install())
        if self._wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until every model is loaded; on failure stop the server, raise EngineStartError."""
        child = self._running()
        until = time.monotonic() + self._start_timeout
        while not _answers(f"{self.url}/v2/health/ready"):
            if child.poll() is not None:
                self._fail(f"ended with {child.returncode}")
            if time.monotonic() > until:
                self._fail("not ready")
            time.sleep(_POLL_SECONDS)

    def kill(self) -> None:
        """End the server at once (SIGKILL), open streams cut off, and wait for its end."""
        child = self._running()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        child.wait()

    def kill_backend(self, model: str) -> None:
        """End the process that a python model runs in (SIGKILL), as an engine's crash would.

        Raises RuntimeError when there is none.
        """
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = process.joinpath("cmdline").read_bytes().decode(errors="replace")
                parent = process.joinpath("stat").read_text().rpartition(")")[2].split()[1]
                if f"/{model}/1/model.py" in command and int(parent) == self.pid:
                    os.kill(int(process.name), signal.SIGKILL)
                    return
        raise RuntimeError(f"no process runs the model {model}")

    def terminate(self) -> None:
        """Ask the server to end (SIGTERM); returns without waiting."""
        self._running()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def stop(self) -> None:
        """End the server if it still runs and release everything. Idempotent."""
        child, self._child, self._pid = self._child, None, None
        if child is not None:
            # Its supervisor ends what it has started, then itself.
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
            child.wait()
            if self._reader is not None:
                self._reader.join()
            if child.stderr is not None:
                child.stderr.close()
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

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
            installation = await asyncio.to_thread(install)
            self._spawn(installation)
            if self._wait:
                await asyncio.to_thread(self.wait_ready)
        except BaseException:
            await asyncio.to_thread(self.stop)
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.to_thread(self.stop)

    def _running(self) -> subprocess.Popen[str]:
        if self._child is None:
            raise RuntimeError("the server has not been started")
        return self._child

    def _path(self, name: str) -> Path:
        if self._directory is None:
            raise RuntimeError("the server has not been started")
        return Path(self._directory.name) / name

    def _fail(self, state: str) -> None:
        self.stop()
        # At the end it says little, after a table of its settings.
        lines = [line for line in self._log if line and not line.startswith(("|", "+-"))]
        said = "\n".join(lines[-25:])
        raise EngineStartError(f"Triton server {state}; its log ends:\n{said}")

    def _spawn(self, installation: Installation) -> None:
        if self._child is not None:
            raise RuntimeError("the server is running already")
        self._directory = tempfile.TemporaryDirectory(prefix="triton-")
        repository = self._repository
        if repository is None:
            repository = self._path("models")
            write_repository(repository, self._models)
        self._ports = _free_ports()
        prefix = f"triton_{os.getpid()}_{id(self):x}_"
        self._log.clear()
        self._child = subprocess.Popen(  # noqa: S603 - this interpreter, our own script
            [
                *(sys.executable, "-P", str(Path(__file__).with_name("supervise.py")), prefix),
                *self._command(installation, repository, prefix),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={
                **os.environ,
                **installation.environment(),
                "STAND_IN_LOG": str(self._path("observations")),
            },
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(
            target=self._read_log, args=(self._child.stderr,), daemon=True
        )
        self._reader.start()
        first = "" if self._child.stdout is None else self._child.stdout.readline()
        if not first:
            self._fail("could not be run")
        self._pid = int(first)

    def _command(self, installation: Installation, repository: Path, prefix: str) -> list[str]:
        http, grpc, metrics = self._ports
        return [
            str(installation.server),
            f"--model-repository={repository}",
            f"--backend-directory={installation.backends}",
            *("--http-address=127.0.0.1", f"--http-port={http}"),
            *("--grpc-address=127.0.0.1", f"--grpc-port={grpc}"),
            *("--metrics-address=127.0.0.1", f"--metrics-port={metrics}"),
            "--allow-gpu-metrics=false",
            f"--backend-config=python,shm-region-prefix-name={prefix}",
            "--exit-timeout-secs=10",
            *self._flags,
        ]

    def _read_log(self, pipe: IO[str]) -> None:
        for line in pipe:
            self._log.append(line.rstrip())


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own server
            return bool(answer.status == 200)
    except (OSError, urllib.error.HTTPError):
        return False


def _free_ports() -> tuple[int, int, int]:
    """Return ports that are free now, all open at once so that they differ."""
    with contextlib.ExitStack() as sockets:
        ports: list[int] = []
        for _ in range(3):
            probe = sockets.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    return ports[0], ports[1], ports[2]
