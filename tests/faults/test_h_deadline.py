"""H: the task's time is up, in whatever phase, and no other clock has a say in it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from tests.faults.outcomes import ANSWER, adapter, ask
from tests.faults.playing import HELLO, SPOKE, as_told, left, saying, task_of, told
from tests.transports import both_transports, on_httpx
from tests.unit.test_abort import engine as aborting_engine
from tests.unit.test_abort import saying as abortable
from tests.unit.test_abort import silence
from tests.unit.test_abort import started as begun
from tests.unit.virtual_time import run as run_virtually
from tests.unit.wire import STREAM_HEAD, Connection, Received, answer, chunk, engine, frame, playing
from worker_adapters import DeadlineUnmet, PoolUnavailable, RetryPolicy, Timeouts
from worker_adapters.testing.wire import RawServer
from worker_adapters.transport import _httpx

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.faults.playing import Told

pytestmark = both_transports

SECONDS = 9
UNBOUNDED = Timeouts(connect=None, tls=None, first_token=None, token_gap=None, idle=None)


@contextlib.contextmanager
def deaf() -> Iterator[str]:
    """Have a place that takes no more connections: SYNs to it are dropped."""
    with contextlib.ExitStack() as held:
        listener = held.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = held.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


async def late(url: str, **options: Any) -> Told:
    """Submit a task with `SECONDS` to go to an engine that is known already."""
    clock = asyncio.get_running_loop().time
    prompt = options.pop("prompt", "x")
    async with adapter(url, clock=clock, timeouts=UNBOUNDED, **options) as made:
        asked = task_of("llamacpp", deadline_ms=SECONDS * 1000, prompt=prompt)
        return as_told(await ask(made, asked))


def is_unmet(outcome: Told, phase: str, processed: str) -> None:
    assert outcome.outcome == ("DeadlineUnmet", "deadline")
    assert outcome.seconds == pytest.approx(SECONDS, abs=0.3)
    fault = outcome.fault
    assert (fault.phase, fault.processed, fault.retriable) == (phase, processed, False)
    assert outcome.is_raised is (phase not in {"first_token", "stream"})


def silent(*pieces: bytes, reads: bool = True) -> RawServer:
    """Return a server that says so much and nothing more."""

    async def play(connection: Connection) -> None:
        if not reads:
            connection._writer.transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.Event().wait()
        await connection.request()
        await connection.send(*pieces)
        await connection.until_closed()

    return RawServer(play)


@on_httpx
def test_h1_while_a_name_is_looked_up(monkeypatch: Any) -> None:
    async def main() -> None:
        async def getaddrinfo(*_: Any, **__: Any) -> Any:
            await asyncio.Event().wait()

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
        # Native lookups have threads of their own; a test in Rust has them hang.
        is_unmet(await late("http://engine.test:8080"), "connect", "no")

    run_virtually(main())


def test_h1_while_connecting() -> None:
    with deaf() as url:
        is_unmet(run_virtually(late(url)), "connect", "no")


def test_h1_in_the_handshake() -> None:
    async def main() -> None:
        async def play(connection: Connection) -> None:
            await connection.until_closed()

        async with RawServer(play) as server:
            outcome = await late(server.url.replace("http:", "https:"))
            is_unmet(outcome, "tls", "no")
            for connection in server.connections:
                await connection.over()

    run_virtually(main())


def test_h1_while_the_request_is_sent() -> None:
    async def main() -> None:
        async with silent(reads=False) as server:
            is_unmet(await late(server.url, prompt="x" * (32 << 20)), "write", "unknown")

    run_virtually(main())


@pytest.mark.parametrize("part", [b"", b"HTTP/1.1 2"])
def test_h1_before_the_head(part: bytes) -> None:
    async def main() -> None:
        async with silent(part) as server:
            is_unmet(await late(server.url), "head", "unknown")
            await left(server)

    run_virtually(main())


def test_h1_before_the_first_token() -> None:
    async def main() -> None:
        async with silent(STREAM_HEAD, chunk(b": ping\n\n")) as server:
            is_unmet(await late(server.url), "first_token", "unknown")
            await left(server)

    run_virtually(main())


def test_h1_between_tokens() -> None:
    async def main() -> None:
        async with silent(STREAM_HEAD, *HELLO) as server:
            outcome = await late(server.url)
            is_unmet(outcome, "stream", "yes")
            assert outcome.tokens == list(SPOKE)
            await left(server)

    run_virtually(main())


def test_h1_while_waiting_for_a_place(monkeypatch: Any) -> None:
    # Longer than the deadline: the wait for a place has a clock of its own.
    monkeypatch.setattr(_httpx, "POOL_WAIT_SECONDS", 60.0)
    monkeypatch.setattr(_httpx, "MAX_REQUESTS", 1)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        options: dict[str, Any] = {"max_streams": 1, "timeouts": UNBOUNDED}
        async with (
            silent(STREAM_HEAD, *HELLO) as server,
            adapter(server.url, clock=loop.time, **options) as made,
        ):
            stream = await made.submit(task_of("llamacpp", deadline_ms=600_000))
            # The native wait is 5 s, whatever the deadline.
            outcome = as_told(await ask(made, task_of("llamacpp", deadline_ms=4000)))
            assert outcome.outcome == ("DeadlineUnmet", "deadline")
            assert outcome.seconds == pytest.approx(4.0, abs=0.3)
            assert (outcome.fault.phase, outcome.fault.processed) == ("queue", "no")
            await stream.aclose()

    run_virtually(main())


def test_h1_a_pause_that_does_not_fit_is_not_begun() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        asked = 0

        async def loading(connection: Connection, _: Received) -> None:
            nonlocal asked
            asked += 1
            error = b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}'
            await connection.send(answer(error, "503 Service Unavailable\r\nRetry-After: 4"))

        async with (
            playing(engine(loading)) as server,
            adapter(server.url, clock=loop.time, retries=RetryPolicy()) as made,
        ):
            began = loop.time()
            with pytest.raises(PoolUnavailable) as caught:
                await made.submit(task_of("llamacpp", deadline_ms=SECONDS * 1000))
            # At 0, 4 and 8 s; another pause would end at 12 s. What is told is why it failed.
            assert loop.time() - began == pytest.approx(8.0, abs=0.3)
            assert asked == 3
            error = caught.value
            assert (error.detail, error.processed, error.retriable) == ("loading", "no", True)
            assert error.retry_after_ms is not None
            assert error.retry_after_ms <= 1100

    run_virtually(main())


def test_h1_while_it_is_cancelled() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        saying_hello = abortable(STREAM_HEAD, *HELLO)
        async with aborting_engine(saying_hello, silence, timeouts=UNBOUNDED) as (made, _):
            stream = await begun(made, task_of("llamacpp", deadline_ms=1000))
            await asyncio.sleep(0.5)
            began = loop.time()
            receipt = await stream.cancel(confirm_within_ms=5000)
            # It had ended before: the deadline has nothing left to end.
            assert 0.6 < loop.time() - began < 2.2
            assert receipt.confirmed is False
            [end] = [event async for event in stream]
            assert (end.kind, end.finish_reason) == ("end", "cancelled")

    run_virtually(main())


def test_h2_the_wall_clock_steps(monkeypatch: Any) -> None:
    steps = [0.0, 3600.0, -3600.0, 60.0]
    now = time.time()
    taken: list[float] = []

    def wall_clock() -> float:
        taken.append(steps[len(taken) % len(steps)])
        return now + taken[-1]

    monkeypatch.setattr(time, "time", wall_clock)

    async def main() -> None:
        async def trickle(connection: Connection, _: Received) -> None:
            await connection.send(STREAM_HEAD)
            for number in range(1, 100):
                time.time()
                await connection.send(frame("x", number))
                await connection.rest(2.0)

        for gap, detail, seconds in ((3.0, "deadline", 9.0), (1.5, "token_gap", 1.5)):
            asked = task_of("llamacpp", deadline_ms=9000)
            options = {"wall_clock": wall_clock, "timeouts": Timeouts(token_gap=gap)}
            outcome = await told(playing(engine(trickle)), asked, None, **options)
            assert outcome.fault.detail == detail
            assert outcome.seconds == pytest.approx(seconds, abs=0.3)
        assert set(taken) == set(steps)

    run_virtually(main())


def test_h2_nothing_else_asks_the_wall_clock(repository: Path) -> None:
    package = repository / "python" / "worker_adapters"
    sources = [
        *repository.glob("rust/[cn]*/src/**/*.rs"),
        *package.glob("*.py"),
        *(package / "engines").rglob("*.py"),
        *(package / "transport").rglob("*.py"),
    ]
    assert len(sources) > 50
    asking = re.compile(
        r"SystemTime::now|time\.time(_ns)?\b|datetime\.(now|utcnow)|localtime|gmtime"
    )
    found = {
        str(source.relative_to(repository))
        for source in sources
        if asking.search(source.read_text("utf-8"))
    }
    # The default of what an adapter asks when a Retry-After is a date.
    assert found == {"python/worker_adapters/engines/_http.py"}


@pytest.mark.parametrize("deadline_ms", [0, -1, -(2**63)])
async def test_h3_a_deadline_that_has_passed(deadline_ms: int) -> None:
    async with silent(ANSWER) as server, adapter(server.url) as made:
        with pytest.raises(DeadlineUnmet) as caught:
            made.submit(task_of("llamacpp", deadline_ms=deadline_ms)).send(
                None
            )  # waits for nothing
        error = caught.value
        assert (error.phase, error.processed, error.retriable) == ("validate", "no", False)
        assert server.connections == []


@pytest.mark.parametrize("deadline_ms", [float("nan"), float("inf"), 2**63, "soon", None])
def test_h3_a_deadline_that_is_none(deadline_ms: Any) -> None:
    with pytest.raises(ValidationError, match="deadline_ms"):
        task_of("llamacpp", deadline_ms=deadline_ms)


@pytest.mark.parametrize("deadline_ms", [10**12, 2**63 - 1])
async def test_h3_a_deadline_in_ages(deadline_ms: int) -> None:
    async with saying(ANSWER) as server, adapter(server.url) as made:
        outcome = as_told(await ask(made, task_of("llamacpp", deadline_ms=deadline_ms)))
        assert outcome.kinds[-1] == "end"
