"""The suite on a real vLLM, where one is installed: named by ``VLLM``, else on the path."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.transports import both_transports
from worker_adapters.engines import adapter_class
from worker_adapters.testing.conformance import CHECKS, Check, Subject

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.real, pytest.mark.timeout(600), both_transports]

START_SECONDS = 480.0

LACKING = {
    "unsupported_fields_are_refused_by_name": "it takes every field that is tried",
    "embedding": "it generates",
    "rerank": "it generates",
    "tools": "random weights call no tool",
}
"""What this server lacks as it is started; anything else that is missing is a failure."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of a vLLM on a CPU with a tiny model."""
    found = os.environ.get("VLLM") or shutil.which("vllm")
    if found is None:
        pytest.skip("no vLLM: neither VLLM nor a command of that name on the path")
    command = Path(found)
    home = tmp_path_factory.mktemp("tiny-llama")
    maker = Path(__file__).with_name("tiny_llama.py")
    python = command.with_name("python")
    subprocess.run([python, maker, home], check=True, capture_output=True, timeout=300)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    flags = [
        *("--served-model-name", "tiny", "--dtype", "float32", "--max-model-len", "2048"),
        *("--max-num-seqs", "4", "--enforce-eager", "--enable-scale-out"),
        *("--enable-prompt-tokens-details", "--host", "127.0.0.1", "--port", str(port)),
    ]
    settings = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    log = home / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [command, "serve", home, *flags],
            stdout=output,
            stderr=output,
            env={**os.environ, **settings},
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(process, url, log)
        yield url
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError, urllib.error.HTTPError):
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        ended = process.poll()
        if ended is not None or time.monotonic() > until:
            tail = log.read_text("utf-8", "replace")[-3000:]
            pytest.fail(f"vLLM did not start ({ended}); its log ends:\n{tail}")
        time.sleep(0.5)


@pytest.mark.parametrize("check", CHECKS, ids=str)
async def test_check(check: Check, server: str) -> None:
    result = await check.run(Subject("vllm", server, adapter_class("vllm")))
    if check.name in LACKING:
        assert result.status in {"lacking", "skipped"}, result
        return
    assert result.status == "passed", result
