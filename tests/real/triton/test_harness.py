"""The server process that every other test here stands on."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import CAPTURES
from worker_adapters import Timeouts
from worker_adapters.engines.triton import TritonAdapter
from worker_adapters.testing.triton import EngineStartError, TritonServer, install

if TYPE_CHECKING:
    from collections.abc import Iterable

# The first test installs the server.
pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(300),
    pytest.mark.usefixtures("installed"),
]


SILENT = """
class TritonPythonModel:
    def execute(self, requests):
        return []
"""


def test_installing_again_is_quick() -> None:
    began = time.monotonic()
    assert install().server.exists()
    assert time.monotonic() - began < 2


def test_a_server_starts_stops_and_starts_again() -> None:
    server = TritonServer(["embedding"])
    with pytest.raises(RuntimeError, match="not been started"):
        _ = server.url
    for _ in range(2):
        with server:
            assert server.returncode is None
            with urllib.request.urlopen(server.url + "/v2", timeout=5) as answer:
                assert json.load(answer)["version"] == "2.51.0"
        assert "Started HTTPService" in server.log_tail()


def test_a_server_that_cannot_load_says_why(tmp_path: Path) -> None:
    model = tmp_path / "broken"
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.py").write_text("raise RuntimeError('broken on purpose')\n")
    (model / "config.pbtxt").write_text('name: "broken" backend: "python"\n')
    with pytest.raises(EngineStartError, match="broken on purpose"):
        TritonServer(repository=tmp_path).start()


async def test_health_while_a_model_loads_and_after_one_has_failed(tmp_path: Path) -> None:
    for name, code in {
        "slow": "import time\ntime.sleep(1.5)\n",
        "broken": "raise RuntimeError('broken on purpose')\n",
    }.items():
        version = tmp_path / name / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(f"{code}{SILENT}")
        (tmp_path / name / "config.pbtxt").write_text(f'name: "{name}" backend: "python"\n')
    flags = ["--model-control-mode=explicit", "--exit-on-error=false"]
    async with TritonServer(repository=tmp_path, flags=flags) as server:
        # The thread of the server that loads a model serves an eighth of the connections, then.
        timeouts = Timeouts(unary=0.2)
        async with TritonAdapter(server.url, model="slow", timeouts=timeouts) as adapter:
            assert (await adapter.health()).state == "failed"  # there is no such model yet
            loading = asyncio.create_task(asyncio.to_thread(_load, server.url, "slow"))
            states: list[str] = []
            while not states or states[-1] != "ready":
                states.append((await adapter.health()).state)
                assert len(states) < 2500, Counter(states)
                await asyncio.sleep(0.02)
            await loading
            assert "loading" in states
            assert set(states) <= {"failed", "loading", "ready", "unreachable"}
            with pytest.raises(urllib.error.HTTPError):
                await asyncio.to_thread(_load, server.url, "broken")
            # The server as a whole is not ready now; this model still is.
            with pytest.raises(urllib.error.HTTPError):
                await asyncio.to_thread(_get, f"{server.url}/v2/health/ready")
            assert (await adapter.health()).ready
        async with TritonAdapter(server.url, model="broken") as adapter:
            health = await adapter.health()
            assert (health.live, health.ready, health.reason) == (True, False, "not_ready")


async def test_no_port_is_open_before_every_model_is_loaded(tmp_path: Path) -> None:
    version = tmp_path / "slow" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(f"import time\ntime.sleep(1)\n{SILENT}")
    (tmp_path / "slow" / "config.pbtxt").write_text('name: "slow" backend: "python"\n')
    server = TritonServer(repository=tmp_path, wait=False)
    async with server, TritonAdapter(server.url, model="slow") as adapter:
        health = await adapter.health()
        assert (health.live, health.ready, health.reason) == (False, False, "connect")
        await asyncio.to_thread(server.wait_ready)
        assert (await adapter.health()).ready


async def test_a_cancelled_start_leaves_no_process() -> None:
    server = TritonServer(["tensorrt_llm_bls"])

    async def enter() -> None:
        async with server:
            raise AssertionError("cancelled before it is ready")

    starting = asyncio.create_task(enter())
    while True:
        try:
            pid = server.pid
            break
        except RuntimeError:
            await asyncio.sleep(0.01)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_server_and_its_models_end_with_their_parent_even_when_that_is_killed() -> None:
    program = (
        "from worker_adapters.testing.triton import TritonServer\n"
        "server = TritonServer(['embedding']); server.start(); print(server.pid, flush=True)\n"
        "input()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        group = set(_group(pid))
        assert len(group) >= 2
        parent.kill()
        parent.wait()
    until = time.monotonic() + 10
    while any(_alive(member) for member in group):
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("capture", "model"),
    [
        ("stream_one_token_ensemble", "ensemble"),
        ("stream_one_token_tensorrt_llm_bls", "tensorrt_llm_bls"),
        ("stream_accumulate", "tensorrt_llm_bls_accum"),
        ("stream_error_first_ensemble", "ensemble"),
        ("stream_bulk_tensorrt_llm_bls", "tensorrt_llm_bls"),
        ("err_wrong_name_text_ensemble", "ensemble"),
        ("err_malformed_json_ensemble", "ensemble"),
        ("llmapi_stream_ok", "llmapi"),
    ],
)
def test_the_server_says_what_the_captures_say(
    server: TritonServer, capture: str, model: str
) -> None:
    request = (CAPTURES / "triton" / f"{capture}.request").read_bytes().partition(b"\r\n\r\n")[2]
    recorded = (CAPTURES / "triton" / f"{capture}.http").read_bytes().partition(b"\r\n\r\n")
    url = f"{server.url}/v2/models/{model}/generate_stream"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, request), timeout=20) as answer:
            status, said = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, said = error.code, error.read()
    assert int(recorded[0].split()[1]) == status
    expected = recorded[2]
    if b"chunked" in recorded[0]:
        expected = b"".join(_chunks(expected))
    # The stand-in of the LLM API has another name among the others.
    named = b'"model_name":"tensorrt_llm",', b'"model_name":"llmapi",'
    assert said == (expected.replace(*named) if model == "llmapi" else expected)


def _chunks(body: bytes) -> Iterable[bytes]:
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        yield body[:length]
        body = body[length + 2 :]


def _get(url: str) -> None:
    with urllib.request.urlopen(url, timeout=10):
        pass


def _load(url: str, model: str) -> None:
    request = urllib.request.Request(f"{url}/v2/repository/models/{model}/load", b"")
    with urllib.request.urlopen(request, timeout=20):
        pass


def _group(pid: int) -> list[Path]:
    """The processes of the group that this one leads."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = process.joinpath("stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == pid:
            found.append(process)
    return found


def _alive(process: Path) -> bool:
    try:
        return process.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
