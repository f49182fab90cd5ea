"""The pytest plugin: engines that misbehave on request, replayed recordings, and the suite.

It is found by its entry point, and imports nothing of this library before a test asks for it::

    def test_mine(fake_engine):
        engine = fake_engine("vllm", error="stream")
        ...

    def test_conformance(conformance_check, my_subject):
        conformance_check(my_subject)

``pytest --pyargs worker_adapters.testing.conformance --certify ENGINE=URL --captures DIR`` runs the
suite as it is. See docs/testing.md and docs/conformance.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from worker_adapters.testing.conformance import Check, Subject
    from worker_adapters.testing.engines import ScriptedEngine
    from worker_adapters.testing.replay import ReplayServer

__all__ = [
    "ConformanceCheck",
    "conformance_check",
    "fake_engine",
    "replay_server",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the suite."""
    group = parser.getgroup("worker-adapters", "worker-adapters: engines and their conformance")
    group.addoption(
        "--certify",
        action="append",
        default=[],
        metavar="ENGINE=URL",
        help="run the conformance suite on this server; repeatable",
    )
    group.addoption(
        "--captures",
        action="append",
        default=[],
        metavar="DIR",
        help="replay the recordings of this folder, one folder per engine in it; repeatable",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each check, and of each recording and server given as an option."""
    wanted = set(metafunc.fixturenames)
    if "conformance_check" in wanted:
        from worker_adapters.testing.conformance import CHECKS

        metafunc.parametrize("conformance_check", CHECKS, ids=str, indirect=True)
    if "certified_server" in wanted:
        given = [_engine_and_url(text) for text in metafunc.config.getoption("certify")]
        names = [engine for engine, _ in given]
        metafunc.parametrize("certified_server", given, ids=names, scope="session")
    if "captured" in wanted:
        from worker_adapters.testing.conformance import find_recordings
        from worker_adapters.testing.engines import SCRIPTED

        found = [
            (engine, recording)
            for folder in metafunc.config.getoption("captures")
            for engine in SCRIPTED
            if (metafunc.config.invocation_params.dir / folder / engine).is_dir()
            for recording in find_recordings(metafunc.config.invocation_params.dir / folder, engine)
        ]
        ids = [f"{engine}/{recording.name}" for engine, recording in found]
        metafunc.parametrize("captured", found, ids=ids)


def _engine_and_url(text: str) -> tuple[str, str]:
    engine, equals, url = text.partition("=")
    if not (engine and equals and url):
        raise pytest.UsageError(f"--certify {text}: expected ENGINE=URL")
    return engine, url


@pytest.fixture
def fake_engine() -> Iterator[Callable[..., ScriptedEngine]]:
    """Start scripted engines: ``fake_engine("tgi", delay_ms=5)``, as `scripted_engine` has it.

    Each runs in a thread of its own until the test is over, so tests need no event loop for it.
    """
    from contextlib import ExitStack

    from worker_adapters.testing.engines import scripted_engine

    with ExitStack() as stack:

        def start(dialect: str, **options: Any) -> ScriptedEngine:
            return stack.enter_context(scripted_engine(dialect, **options))

        yield start


@pytest.fixture
def replay_server() -> Iterator[Callable[..., ReplayServer]]:
    """Start replay servers: ``replay_server(recordings, chunking=7)``, as `ReplayServer` has it."""
    from contextlib import ExitStack

    from worker_adapters.testing.replay import ReplayServer

    with ExitStack() as stack:

        def start(*args: Any, **options: Any) -> ReplayServer:
            return stack.enter_context(ReplayServer(*args, **options))

        yield start


class ConformanceCheck:
    """One check of the suite as a test calls it, without an event loop of its own."""

    def __init__(self, check: Check) -> None:
        self.check = check

    def __call__(self, subject: Subject) -> None:
        """Run the check. Fails the test, or skips it where the server lacks what it is about."""
        import asyncio

        report(asyncio.run(self.check.run(subject)))

    async def on(self, subject: Subject) -> None:
        """Run the check in the loop at hand; as calling it does."""
        report(await self.check.run(subject))


def report(result: Any) -> None:
    """Make a test's outcome of a check's result."""
    __tracebackhide__ = True
    match result.status:
        case "failed":
            pytest.fail(f"{result.area}.{result.check}: {result.detail}", pytrace=False)
        case "lacking" | "skipped":
            pytest.skip(f"{result.status}: {result.detail}")


@pytest.fixture
def conformance_check(request: pytest.FixtureRequest) -> ConformanceCheck:
    """One check of the conformance suite; a test that asks for it is run for each.

    Call it with a `Subject`, or await its ``on``.
    """
    return ConformanceCheck(request.param)
