"""The server process and the model that every other test here stands on."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.real.support import eventually
from worker_adapters.testing.llamacpp import EngineStartError, LlamaCppServer, tiny_model
from worker_adapters.testing.llamacpp.tiny_gguf import cache_dir, write_model

pytestmark = pytest.mark.real


def _recorded_digests(captures: Path) -> set[str]:
    recorded = (json.loads(path.read_text()) for path in (captures / "llamacpp").glob("*.json"))
    return {entry["model_sha256"] for entry in recorded if "model_sha256" in entry}


@pytest.mark.parametrize("kind", ["generate", "rerank"])
def test_the_model_is_the_one_the_captures_were_made_with(
    kind: str, captures: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    assert write_model(path, kind="rerank" if kind == "rerank" else "generate") == 561
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    expected = {
        "generate": "cc004206785b71c1bd3838003c00e4052944be48bd3403172c646806119bbf6a",
        "rerank": "d80d23bfd25ddbf1c85afe85a3869c382cfce17e6554f1ea8479af9acda9b8ba",
    }[kind]
    assert digest == expected
    assert digest in _recorded_digests(captures)


def test_the_model_is_written_once_and_without_leftovers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = tiny_model()
    written = first.stat().st_mtime_ns
    assert first.parent == cache_dir()
    assert tiny_model() == first
    assert first.stat().st_mtime_ns == written
    assert list(first.parent.iterdir()) == [first]


def test_an_unusable_cache_falls_back_to_a_private_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    directory = cache_dir()
    assert directory.parent == tmp_path
    assert directory.stat().st_mode & 0o077 == 0


def test_a_server_that_cannot_load_says_why() -> None:
    server = LlamaCppServer(model="/no/such/model.gguf")
    with pytest.raises(EngineStartError, match=r"No such file or directory"):
        server.start()
    server.stop()


def test_a_server_starts_stops_and_starts_again() -> None:
    server = LlamaCppServer()
    with pytest.raises(RuntimeError, match="not been started"):
        _ = server.url
    for _ in range(2):
        with server:
            assert server.returncode is None
            with urllib.request.urlopen(server.url + "/health", timeout=5) as answer:
                assert answer.status == 200
        assert "build_info" in server.log_tail()


async def test_a_cancelled_start_leaves_no_process() -> None:
    server = LlamaCppServer(model=tiny_model(layers=512))

    async def enter() -> None:
        async with server:
            raise AssertionError("cancelled before it is ready")

    starting = asyncio.create_task(enter())
    await asyncio.sleep(0)
    pid = server.pid
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")
def test_the_server_ends_with_its_parent_even_when_that_is_killed() -> None:
    program = (
        "from worker_adapters.testing.llamacpp import LlamaCppServer\n"
        "server = LlamaCppServer(); server.start(); print(server.pid, flush=True); input()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        child = Path(f"/proc/{int(parent.stdout.readline())}")
        assert child.exists()
        parent.kill()
        parent.wait()
    _gone(child)


def _gone(process: Path) -> None:
    """Wait until the process has ended; whoever adopts it may take a moment to reap it."""

    async def probe() -> bool:
        try:
            return process.joinpath("stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    asyncio.run(eventually(probe, "the engine has ended", within=5.0))
