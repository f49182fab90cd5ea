"""The pytest plugin as somebody else's tests use it, in a run of its own."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import CAPTURES
from tests.transports import TRANSPORTS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from worker_adapters.testing.engines import ScriptedEngine
    from worker_adapters.testing.replay import ReplayServer

MINE = """
import asyncio
import urllib.request

import pytest

from worker_adapters import VllmAdapter
from worker_adapters.testing.conformance import Subject


def test_without_a_loop(fake_engine, replay_server):
    engine = fake_engine("vllm", error="status", status=503)
    with urllib.request.urlopen(engine.url + "/version") as answer:
        assert b"0.32" in answer.read()
    assert replay_server([]).url != engine.url


@pytest.fixture
def subject(fake_engine):
    return Subject("vllm", fake_engine("vllm", delay_ms=0.2).url, VllmAdapter)


def test_conformance(conformance_check, subject):
    conformance_check(subject)


class Broken(VllmAdapter):
    async def engine_version(self, **_):
        return ""


def test_broken(conformance_check, fake_engine):
    conformance_check(Subject("vllm", fake_engine("vllm").url, Broken))
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rfs"]
        return subprocess.run(
            [*command, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )

    return call


def test_somebody_elses_tests(
    run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "test_mine.py").write_text(MINE)
    done = run("test_mine.py", "-k", "trait or errors or without")
    print(done.stdout)
    assert "trait.version_is_stable: " in done.stdout
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 1
    assert "test_broken[trait.version_is_stable]" in failed[0]
    # Of what an adapter raises nothing but the finding is shown.
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_suite_as_it_is(
    run: Callable[..., subprocess.CompletedProcess[str]],
    fake_engine: Callable[..., ScriptedEngine],
    tmp_path: Path,
    transport: str,
) -> None:
    home = tmp_path / "captures" / "tgi"
    home.mkdir(parents=True)
    names = ("tgi337-stream-details", "tgi337-info")
    for name in names:
        for path in (CAPTURES / "tgi").glob(f"{name}.*"):
            (home / path.name).write_bytes(path.read_bytes())
    engine = fake_engine("sglang", delay_ms=0.2)
    suite = ("--pyargs", "worker_adapters.testing.conformance", "--transport", transport)
    done = run(*suite, "--certify", f"sglang={engine.url}", "--captures", "captures")
    print(done.stdout)
    assert done.returncode == 0
    assert "failed" not in done.stdout
    # Three chunkings of one recording, and the checks.
    assert " passed" in done.stdout.splitlines()[-1]
    assert len(engine.generations) > 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--certify", "vllm"), "expected ENGINE=URL"),
        (("--captures", "nowhere"), "no folder in it is called"),
        (("--transport", "pigeon"), "invalid choice: 'pigeon'"),
    ],
)
def test_wrong_options(
    run: Callable[..., subprocess.CompletedProcess[str]], arguments: tuple[str, ...], message: str
) -> None:
    done = run("--pyargs", "worker_adapters.testing.conformance", *arguments)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr


def test_a_run_that_does_not_use_it_imports_nothing() -> None:
    program = "import sys, _worker_adapters_pytest\nprint('worker_adapters' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "False"


def test_fixtures(
    fake_engine: Callable[..., ScriptedEngine], replay_server: Callable[..., ReplayServer]
) -> None:
    engines = [fake_engine("tgi"), fake_engine("tgi", split=3)]
    assert len({engine.url for engine in engines}) == 2
    assert engines[1].behaviour.split == 3
    assert replay_server([], chunking=1).url.startswith("http://127.0.0.1:")
