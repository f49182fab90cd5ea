"""The pytest plugin: engines that misbehave on request, replayed recordings, and the suite.

It is found by its entry point in every run of pytest, and lies outside of the package so that a run
that does not use it pays for nothing: what it needs is imported by the fixtures::

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

    from worker_adapters.testing.conformance import ConformanceCheck
    from worker_adapters.testing.engines import ScriptedEngine
    from worker_adapters.testing.replay import Recording, ReplayServer

__all__ = ["conformance_check", "fake_engine", "replay_server"]


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
    group.addoption(
        "--transport",
        choices=["native", "httpx"],
        help="what streams come over in the suite; else as each adapter has it",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each check, and of each recording and server given as an option."""
    wanted = set(metafunc.fixturenames)
    servers = metafunc.config.getoption("certify")
    if "certified_server" in wanted:
        given = [_engine_and_url(text) for text in servers]
        names = [engine for engine, _ in given]
        metafunc.parametrize("certified_server", given, ids=names, scope="session")
    if "conformance_check" in wanted:
        from worker_adapters.testing.conformance import CHECKS

        # Without a server there is one test that says so, not one per check.
        idle = "certified_server" in wanted and not servers
        checks = CHECKS[:1] if idle else CHECKS
        metafunc.parametrize("conformance_check", checks, ids=str, indirect=True)
    if "captured" in wanted:
        found = list(_captured(metafunc.config))
        ids = [f"{engine}/{recording.name}" for engine, recording in found]
        metafunc.parametrize("captured", found, ids=ids)


def _captured(config: pytest.Config) -> Iterator[tuple[str, Recording]]:
    """Return the recordings in the folders given, each with its engine."""
    from worker_adapters.testing.conformance import find_recordings
    from worker_adapters.testing.engines import SCRIPTED

    for given in config.getoption("captures"):
        folder = config.invocation_params.dir / given
        engines = [engine for engine in SCRIPTED if (folder / engine).is_dir()]
        if not engines:
            known = ", ".join(SCRIPTED)
            raise pytest.UsageError(f"--captures {given}: no folder in it is called {known}")
        for engine in engines:
            for recording in find_recordings(folder / engine, engine):
                yield engine, recording


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


@pytest.fixture
def conformance_check(request: pytest.FixtureRequest) -> ConformanceCheck:
    """One check of the conformance suite; a test that asks for it is run for each.

    Call it with a `Subject`, or await its ``on``.
    """
    from worker_adapters.testing.conformance import ConformanceCheck

    return ConformanceCheck(request.param)
