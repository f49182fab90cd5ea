"""The replay server and the C floor: built with ``cc``, pinned to a core, fed from streams.py."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benches.python.streams import llamacpp, stamped, vllm_chat

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = ROOT / "benches" / "floor"
WORK = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "bench"
CC = os.environ.get("CC", "cc")

_CORES = sorted(os.sched_getaffinity(0))
CLIENT_CORE = _CORES[0]
SERVER_CORE = _CORES[-1]
"""Server and client never share a core where there are two."""


def build(name: str) -> Path:
    """Compile a program of benches/floor, unless that has been done; return where it is."""
    source, program = SOURCES / f"{name}.c", WORK / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        if shutil.which(CC) is None:
            sys.exit(f"the replay server and the floor need a C compiler: no {CC} (set CC)")
        WORK.mkdir(parents=True, exist_ok=True)
        flags = ("-O2", "-std=gnu11", "-Wall", "-Wextra")
        subprocess.run([CC, *flags, "-o", program, source], check=True)
    return program


def pinned(core: int, command: Sequence[object]) -> list[str]:
    """Return the command that runs on that core only, where there is taskset."""
    words = [str(word) for word in command]
    return ["taskset", "-c", str(core), *words] if shutil.which("taskset") else words


@dataclass(frozen=True)
class ReplayServer:
    """A replay server that runs."""

    port: int

    def lateness(self) -> dict[str, Any]:
        """Tell how late its tokens were sent since this was asked last."""
        url = f"http://127.0.0.1:{self.port}/stats"
        with urllib.request.urlopen(url, timeout=10) as answer:
            told: dict[str, Any] = json.load(answer)
        return told


@contextmanager
def replay_server() -> Iterator[ReplayServer]:
    """Run the replay server on its core until the end of the block."""
    program = build("server")
    data = WORK / "streams"
    data.mkdir(parents=True, exist_ok=True)
    for stream in (vllm_chat(), llamacpp(), stamped()):
        for part, content in stream.parts().items():
            (data / f"{stream.name}.{part}").write_bytes(content)
    command = pinned(SERVER_CORE, [program, data])
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield ReplayServer(int(process.stdout.readline()))
        finally:
            process.terminate()
