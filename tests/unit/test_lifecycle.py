"""Streams where loops end, threads and processes come and go, and interpreters stop."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from tests.transports import both_transports, on_native
from tests.unit.tasks import adapter, task
from tests.unit.wire import WITHIN, eventually
from worker_adapters._core import NativeTarget, Reactor, StreamDecoder
from worker_adapters.testing.engines import scripted_engine
from worker_adapters.transport import _native
from worker_adapters.transport._tls import TlsSetup

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.transports import Transport
    from worker_adapters import TokenStream
    from worker_adapters.engines.llamacpp import LlamaCppAdapter
    from worker_adapters.testing.engines import ScriptedEngine

pytestmark = both_transports


@pytest.fixture
def engine() -> Iterator[ScriptedEngine]:
    """An engine that goes on until it is left, in a thread of its own."""
    with scripted_engine("llamacpp", delay_ms=1) as running:
        yield running


def settled(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + WITHIN
    while not condition():
        assert time.monotonic() < until
        threading.Event().wait(0.002)


async def begun(made: LlamaCppAdapter) -> TokenStream:
    """Return a stream without an end of its own that has begun to come."""
    stream = await made.submit(task(ctx=0, max_tokens=1_000_000))
    for kind in ("started", "token"):
        assert (await anext(stream)).kind == kind
    return stream


async def text_of(made: LlamaCppAdapter) -> str:
    return (await (await made.submit(task(max_tokens=4))).collect()).text


# Loops.


def test_a_run_that_ends_with_streams_open(engine: ScriptedEngine) -> None:
    kept: list[object] = []

    async def main() -> None:
        made = adapter(engine.url)
        kept.extend([made, *[await begun(made) for _ in range(3)]])
        assert engine.busy == 3

    asyncio.run(main(), debug=True)
    settled(lambda: engine.busy == 0)
    kept.clear()
    gc.collect()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_is_closed_as_it_is(engine: ScriptedEngine) -> None:
    made = adapter(engine.url)
    loop = asyncio.new_event_loop()
    kept = [loop.run_until_complete(begun(made))]
    loop.close()
    assert engine.busy == 1
    kept.clear()
    gc.collect()
    settled(lambda: engine.busy == 0)
    # The adapter goes on in the next.
    assert asyncio.run(text_of(made))
    # The idle connection of its calls is found here, not in some later test.
    del made, loop
    gc.collect()


def test_several_runs_with_one_adapter(engine: ScriptedEngine) -> None:
    made = adapter(engine.url)
    texts = {asyncio.run(text_of(made)) for _ in range(3)}
    assert len(texts) == 1


@on_native
def test_a_loop_that_has_ended_leaves_nothing_behind(engine: ScriptedEngine) -> None:
    made = adapter(engine.url)
    plane = made._data_plane
    assert isinstance(plane, _native.NativeTransport)
    for _ in range(3):
        asyncio.run(text_of(made))
        assert len(plane._sessions) == 1


def test_two_loops_in_two_threads(engine: ScriptedEngine) -> None:
    made = adapter(engine.url)
    both = threading.Barrier(2, timeout=WITHIN)
    texts: list[str] = []

    async def talk() -> None:
        async with await begun(made) as stream:
            both.wait()
            for _ in range(20):
                assert (await anext(stream)).kind == "token"
            texts.append(await text_of(made))

    threads = [threading.Thread(target=asyncio.run, args=(talk(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN)
    assert len(texts) == 2
    settled(lambda: engine.busy == 0)


async def test_an_adapter_dropped_in_another_thread(engine: ScriptedEngine) -> None:
    made = adapter(engine.url)
    kept: list[object] = [made, await begun(made)]
    del made
    await asyncio.to_thread(kept.clear)
    gc.collect()
    await eventually(lambda: engine.busy == 0, "the engine is left")


@on_native
@pytest.mark.timeout(20)
async def test_a_reactor_can_be_used_by_whom_it_tells(engine: ScriptedEngine) -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    reactor = Reactor(lambda _: None, threaded=True)

    def unattended() -> None:
        assert reactor.fileno() >= 0
        told.set()

    loop.add_reader(reactor.fileno(), reactor.turn)
    native = NativeTarget(reactor, engine.url).submit(
        "POST",
        "/completion",
        [(b"Content-Type", b"application/json")],
        b'{"prompt":"x","stream":true,"n_predict":4}',
        StreamDecoder("llamacpp"),
        unattended,
    )
    head = loop.create_future()
    if not native.head(head):
        await head
    await told.wait()
    loop.remove_reader(reactor.fileno())
    native.close()
    reactor.close()


# Ways out.


async def by_break(stream: TokenStream) -> None:
    async with stream:
        async for _ in stream:
            break


async def by_task_cancel(stream: TokenStream) -> None:
    async def read() -> None:
        async for _ in stream:
            reading.set()

    reading = asyncio.Event()
    reader = asyncio.create_task(read())
    await reading.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader


async def by_timeout(stream: TokenStream) -> None:
    async def read() -> None:
        async with asyncio.timeout(0.05):
            async for _ in stream:
                pass

    with pytest.raises(TimeoutError):
        await read()


async def by_task_group(stream: TokenStream) -> None:
    async def read() -> None:
        async for _ in stream:
            reading.set()

    async def fail() -> None:
        await reading.wait()
        raise LookupError

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            group.create_task(fail())

    reading = asyncio.Event()
    with pytest.raises(ExceptionGroup):
        await both()


async def by_anyio_scope(stream: TokenStream) -> None:
    with anyio.CancelScope() as scope:
        async for _ in stream:
            scope.cancel()
    assert scope.cancelled_caught


@pytest.mark.parametrize(
    "leave", [by_break, by_task_cancel, by_timeout, by_task_group, by_anyio_scope]
)
async def test_every_way_out_lets_the_engine_go(
    engine: ScriptedEngine, leave: Callable[[TokenStream], Awaitable[None]]
) -> None:
    async with adapter(engine.url) as made:
        stream = await begun(made)
        await leave(stream)
        await eventually(lambda: engine.busy == 0, "the engine is left")
        assert stream.cancelled
        assert await text_of(made)


# Gathering, and bounds.


@pytest.mark.parametrize("window", [0.001, 0.1])
@on_native
async def test_a_gather_window_loses_nothing(engine: ScriptedEngine, window: float) -> None:
    async with adapter(engine.url, gather_window=window) as made:
        texts = await asyncio.gather(*(text_of(made) for _ in range(20)))
        assert len(set(texts)) == 1
        # Idle in between, then woken again.
        assert await text_of(made) == texts[0]


@on_native
async def test_a_gather_window_wakes_less_often(engine: ScriptedEngine) -> None:
    async def sizes(window: float) -> list[int]:
        async with adapter(engine.url, gather_window=window) as made:
            stream = await made.submit(task(max_tokens=200))
            return [len(batch) async for batch in stream.batches()]

    at_once, gathered = await sizes(0.0), await sizes(0.05)
    assert sum(at_once) == sum(gathered) == 202
    assert len(gathered) < len(at_once) / 2


@on_native
async def test_a_thread_that_reads_loses_nothing(engine: ScriptedEngine) -> None:
    async with adapter(engine.url) as made:
        made._data_plane = _native.NativeTransport(
            engine.url, tls=partial(TlsSetup.of, None), threaded=True
        )
        texts = await asyncio.gather(*(text_of(made) for _ in range(20)))
        assert len(set(texts)) == 1
        # Idle in between, then woken again; and let go of when it is left.
        assert await text_of(made) == texts[0]
        async with await begun(made):
            pass
        await eventually(lambda: engine.busy == 0, "the engine is left")


@pytest.mark.parametrize("window", [-0.001, 0.1001, float("nan"), float("inf")])
@on_native
def test_a_gather_window_has_bounds(window: float) -> None:
    with pytest.raises(ValueError, match=r"gather_window must be from 0 to 0\.1 seconds"):
        adapter("http://127.0.0.1:1", gather_window=window)


@on_native
async def test_as_many_streams_as_allowed(engine: ScriptedEngine) -> None:
    with pytest.raises(ValueError, match="max_streams must be 1 or more, not 0"):
        adapter(engine.url, max_streams=0)
    async with adapter(engine.url, max_streams=2) as made:
        first, second = [await begun(made) for _ in range(2)]
        third = asyncio.create_task(text_of(made))
        for _ in range(5):
            await anext(second)
        assert not third.done()
        assert len(engine.generations) == 2
        await first.aclose()
        assert await third
        await second.aclose()


# Processes. What happens is told on stdout by a child of its own, where warnings are errors.

PROGRAM = """
import asyncio, multiprocessing, os, signal, sys, threading
from uuid import uuid4
from worker_adapters import LlamaCppAdapter, TaskRequest

def task(max_tokens=1_000_000):
    return TaskRequest(
        task_id=uuid4(), session_id=uuid4(), workload="completion", model_ref="m",
        engine="llamacpp", ctx=0, priority="interactive", max_tokens=max_tokens,
        deadline_ms=600_000, prompt="Once upon a time",
    )

def connect():
    return LlamaCppAdapter(sys.argv[1], transport=sys.argv[2])

async def begun(made):
    stream = await made.submit(task())
    for _ in range(2):
        await anext(stream)
    return stream

async def text_of(made):
    return (await (await made.submit(task(4))).collect()).text
"""


def program(engine: ScriptedEngine, transport: Transport, code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM + dedent(code), engine.url, transport],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(running: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = running.communicate(timeout=4 * WITHIN)
    finally:
        running.kill()
    return running.returncode, out, err


FORK = """
async def read(stream):
    # What had come before the fork may still be there.
    async for event in stream:
        pass

async def cancel(stream):
    return await stream.cancel()

async def main():
    made = connect()
    stream = await begun(made)
    pid = os.fork()
    if pid == 0:
        for use in (read, cancel):
            try:
                asyncio.run(use(stream))
            except RuntimeError as error:
                print(error, flush=True)
        asyncio.run(stream.aclose())
        print(asyncio.run(text_of(made)), flush=True)
        os._exit(0)
    async with stream:
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            await anext(stream)
        for _ in range(100):
            assert (await anext(stream)).kind == "token"
    print(await text_of(made))
    await made.aclose()

asyncio.run(main())
"""


def test_a_fork_leaves_the_parents_streams_alone(
    engine: ScriptedEngine, transport: Transport
) -> None:
    began = time.monotonic()
    status, out, err = outcome(program(engine, transport, FORK))
    assert (status, err) == (0, "")
    *refused, childs, parents = out.splitlines()
    assert refused == ["forked: this stream belongs to the parent process"] * 2
    assert childs == parents
    assert time.monotonic() - began < WITHIN
    settled(lambda: engine.busy == 0)


@on_native
def test_the_parents_loop_does_not_serve_a_fork(
    engine: ScriptedEngine, transport: Transport
) -> None:
    code = """
    loop = asyncio.new_event_loop()
    made = connect()
    assert loop.run_until_complete(text_of(made))
    pid = os.fork()
    if pid == 0:
        try:
            loop.run_until_complete(text_of(made))
        except RuntimeError as error:
            print(error, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    assert loop.run_until_complete(text_of(made))
    loop.run_until_complete(made.aclose())
    loop.close()
    """
    status, out, err = outcome(program(engine, transport, code))
    assert (status, err) == (0, "")
    assert out.startswith("forked: ")


def work(url: str, transport: Transport, told: Any) -> None:
    """Use an adapter in a process of its own, as a worker does."""
    from worker_adapters import LlamaCppAdapter

    told.put(asyncio.run(text_of(LlamaCppAdapter(url, transport=transport))))


@pytest.mark.parametrize("method", ["fork", "spawn"])
# That a process with threads is forked is what is tested.
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_workers_of_multiprocessing(
    engine: ScriptedEngine, transport: Transport, method: str
) -> None:
    context: Any = multiprocessing.get_context(method)

    async def main() -> None:
        async with adapter(engine.url) as made:
            stream = await begun(made)
            told: multiprocessing.Queue[str] = context.Queue()
            worker = context.Process(target=work, args=(engine.url, transport, told))
            worker.start()
            said = asyncio.create_task(asyncio.to_thread(told.get, timeout=4 * WITHIN))
            while not said.done():
                await anext(stream)
            worker.join(WITHIN)
            assert worker.exitcode == 0
            assert await said == await text_of(made)
            for _ in range(100):
                assert (await anext(stream)).kind == "token"
            told.close()
            told.join_thread()

    asyncio.run(main())


EXITS = {
    "the end of the run": ("return", 0),
    "the end of the program": ("kept.append(streams); return", 0),
    "sys.exit in a callback": (
        "asyncio.get_running_loop().call_soon(sys.exit, 3); await asyncio.Event().wait()",
        3,
    ),
    "os._exit": ("os._exit(4)", 4),
}


@pytest.mark.parametrize("how", EXITS)
def test_an_interpreter_that_stops_with_streams_open(
    engine: ScriptedEngine, transport: Transport, how: str
) -> None:
    code, expected = EXITS[how]
    text = f"""
    kept = []

    async def main():
        made = connect()
        streams = await asyncio.gather(*(begun(made) for _ in range(100)))
        print("open", flush=True)
        {code}

    asyncio.run(main())
    """
    running = program(engine, transport, text)
    assert running.stdout is not None
    assert running.stdout.readline() == "open\n"
    began = time.monotonic()
    status, _, err = outcome(running)
    assert (status, err) == (expected, "")
    assert time.monotonic() - began < 2.0
    settled(lambda: engine.busy == 0)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_ctrl_c_while_a_stream_is_read(
    engine: ScriptedEngine, transport: Transport, loop: str
) -> None:
    factory = "None" if loop == "asyncio" else "__import__('uvloop').new_event_loop"
    code = f"""
    async def main():
        async with connect() as made:
            stream = await begun(made)
            print("open", flush=True)
            async for _ in stream:
                pass

    try:
        with asyncio.Runner(loop_factory={factory}) as runner:
            runner.run(main())
    except KeyboardInterrupt:
        print("interrupted")
    """
    running = program(engine, transport, code)
    assert running.stdout is not None
    assert running.stdout.readline() == "open\n"
    began = time.monotonic()
    os.kill(running.pid, signal.SIGINT)
    status, out, err = outcome(running)
    assert (status, out, err) == (0, "interrupted\n", "")
    assert time.monotonic() - began < 2.0
    settled(lambda: engine.busy == 0)
