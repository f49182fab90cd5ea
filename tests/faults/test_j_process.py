"""J: callbacks, forks, exits, signals, locks, and memory: what befalls the process."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import pty
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.playing import followed, task_of
from tests.faults.processes import command, outcome, program
from tests.faults.test_h_deadline import deaf
from tests.transports import both_transports, on_native
from tests.unit.tasks import adapter as plain_adapter
from tests.unit.test_lifecycle import begun, settled, text_of
from tests.unit.wire import (
    LAST_CHUNK,
    STREAM_HEAD,
    WITHIN,
    Connection,
    Received,
    answer,
    chunk,
    engine,
    eventually,
    final,
    frame,
    playing,
)
from worker_adapters import AdapterError, Timeouts
from worker_adapters.testing.engines import scripted_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.faults.playing import Told
    from tests.transports import Transport
    from worker_adapters.testing.engines import ScriptedEngine

pytestmark = both_transports

SOON = WITHIN
"""How long an interrupt may take to be heard: far more than the 0.1 s that are aimed at."""


@pytest.fixture
def endless() -> Iterator[ScriptedEngine]:
    """An engine that goes on until it is left, in a thread of its own."""
    with scripted_engine("llamacpp", delay_ms=1) as running:
        yield running


# J2: what the caller's own functions do.

SECRET = "hunter2-hunter2"


def raises() -> str:
    raise LookupError(SECRET)


def returns_a_number() -> Any:
    return 7


def returns_what_cannot_be_sent() -> str:
    return f"{SECRET}\r\nX-Injected: 1"


@pytest.mark.parametrize("function", [raises, returns_a_number, returns_what_cannot_be_sent])
async def test_j2_a_key_function_that_fails(
    endless: ScriptedEngine, function: Callable[[], str]
) -> None:
    keys: list[Callable[[], str]] = [lambda: "a-key-that-is-fine"]

    def key() -> str:
        return keys[-1]()

    async with plain_adapter(endless.url, api_key=key) as made:
        other = await begun(made)
        keys.append(function)
        with pytest.raises(AdapterError) as caught:
            await made.submit(task_of("llamacpp"))
        error = caught.value
        assert (error.detail, error.processed, error.retriable) == ("unauthorized", "no", False)
        assert SECRET not in repr(error)
        # That task alone.
        for _ in range(50):
            assert (await anext(other)).kind == "token"
        keys.pop()
        assert await text_of(made)
        await other.aclose()


async def test_j2_a_function_that_blocks_loses_nothing(endless: ScriptedEngine) -> None:
    reading: list[asyncio.Task[Told]] = []

    def blocks() -> str:
        time.sleep(0.5 * len(reading))
        return "a-key-that-is-fine"

    patient = Timeouts(token_gap=0.3, first_token=20.0, idle=None)
    async with plain_adapter(endless.url, api_key=blocks, timeouts=patient) as made:
        stream = await made.submit(task_of("llamacpp", max_tokens=1000))
        reading.append(asyncio.create_task(followed(stream)))
        await eventually(lambda: stream.tokens_emitted > 10, "it streams")
        # It runs in the loop, which it holds up; what has come meanwhile has come in time.
        assert await text_of(made)
        told = await reading[0]
        assert told.kinds[-1] == "end"
        assert len(told.tokens) == 1000


# J3: forks.

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
            began = time.monotonic()
            try:
                asyncio.run(use(stream))
            except RuntimeError as error:
                print(error, flush=True)
            assert time.monotonic() - began < 20
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


def test_j3_a_fork_leaves_the_parents_streams_alone(
    endless: ScriptedEngine, transport: Transport
) -> None:
    status, out, err = outcome(program(endless.url, transport, FORK))
    assert (status, err) == (0, "")
    *refused, childs, parents = out.splitlines()
    assert refused == ["forked: this stream belongs to the parent process"] * 2
    assert childs == parents
    settled(lambda: endless.busy == 0)


@on_native
def test_j3_the_parents_loop_does_not_serve_a_fork(
    endless: ScriptedEngine, transport: Transport
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
    status, out, err = outcome(program(endless.url, transport, code))
    assert (status, err) == (0, "")
    assert out.startswith("forked: ")


def work(url: str, transport: Transport, told: Any) -> None:
    """Use an adapter in a process of its own, as a worker does."""
    from worker_adapters import LlamaCppAdapter

    told.put(asyncio.run(text_of(LlamaCppAdapter(url, transport=transport))))


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
# That a process with threads is forked is what is tested.
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_j3_workers_of_multiprocessing(
    endless: ScriptedEngine, transport: Transport, method: str
) -> None:
    context: Any = multiprocessing.get_context(method)

    async def main() -> None:
        async with plain_adapter(endless.url) as made:
            stream = await begun(made)
            told: multiprocessing.Queue[str] = context.Queue()
            worker = context.Process(target=work, args=(endless.url, transport, told))
            worker.start()
            said = asyncio.create_task(asyncio.to_thread(told.get, timeout=2 * WITHIN))
            while not said.done():
                await anext(stream)
            worker.join(2 * WITHIN)
            assert worker.exitcode == 0
            assert await said == await text_of(made)
            for _ in range(100):
                assert (await anext(stream)).kind == "token"
            told.close()
            told.join_thread()

    asyncio.run(main())


def test_j3_an_adapter_made_before_its_workers(
    endless: ScriptedEngine, transport: Transport
) -> None:
    # As a server does that loads the application and then forks its workers.
    code = """
    made = connect()
    pids = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            began = time.monotonic()
            text = asyncio.run(text_of(made))
            assert time.monotonic() - began < 20
            os.write(1, f"{text}\\n".encode())
            os._exit(0)
        pids.append(pid)
    os.write(1, f"{asyncio.run(text_of(made))}\\n".encode())
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0
    """
    status, out, err = outcome(program(endless.url, transport, code))
    assert (status, err) == (0, "")
    assert len(out.splitlines()) == 5
    assert len(set(out.splitlines())) == 1


# J4: the interpreter stops.

EXITS = {
    "the end of the run": ("return", 0),
    "the end of the program": ("kept.append(streams); return", 0),
    "sys.exit in a callback": (
        "asyncio.get_running_loop().call_soon(sys.exit, 3); await asyncio.Event().wait()",
        3,
    ),
    "os._exit": ("os._exit(4)", 4),
    "an exit handler that cancels": (
        "atexit.register(lambda: [asyncio.run(stream.cancel()) for stream in streams[:3]]); return",
        0,
    ),
}

DAEMON = """
async def main():
    made = connect()
    streams = await asyncio.gather(*(begun(made) for _ in range(100)))
    print("open", flush=True)
    ready.set()
    for stream in streams:
        async for _ in stream:
            pass

ready = threading.Event()
threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
ready.wait()
"""

REPEATS = int(os.environ.get("WORKER_ADAPTERS_EXITS", "1"))
"""How often an interpreter stops in each way; 200 by hand."""


@pytest.mark.timeout(max(60, 10 * REPEATS))
@pytest.mark.parametrize("how", [*EXITS, "a daemon thread reads"])
def test_j4_an_interpreter_that_stops_with_streams_open(
    endless: ScriptedEngine, transport: Transport, how: str
) -> None:
    code, expected = EXITS.get(how, ("", 0))
    text = f"""
    kept = []

    async def main():
        made = connect()
        streams = await asyncio.gather(*(begun(made) for _ in range(100)))
        print("open", flush=True)
        {code}

    asyncio.run(main())
    """
    for _ in range(REPEATS):
        running = program(endless.url, transport, text if how in EXITS else DAEMON)
        assert running.stdout is not None
        assert running.stdout.readline() == "open\n"
        began = time.monotonic()
        status, _, err = outcome(running)
        assert (status, err) == (expected, "")
        assert time.monotonic() - began < WITHIN
        settled(lambda: endless.busy == 0)


# J5: Ctrl-C and SIGTERM.

WAITING: dict[str, tuple[str, str]] = {
    # What is done, and what the engine does meanwhile.
    "connect": ("made.submit(task())", ""),
    "head": ("made.submit(task())", "head"),
    "read": ("list(made.submit(task()))", "stream"),
    "backoff": ("made.submit(task())", "loading"),
}

SYNC = """
made = SyncWorkerAdapter(connect(retries=RetryPolicy(), timeouts=Timeouts(connect=60.0)))
print("begins", flush=True)
try:
    {waiting}
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


async def loads(connection: Connection, _: Received) -> None:
    busy = '{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}'
    await connection.send(answer(busy, "503 Service Unavailable\r\nRetry-After: 50"))


class Terminal:
    """A program whose terminal is ours."""

    def __init__(self, arguments: list[str]) -> None:
        ours, theirs = pty.openpty()
        self._keys = ours
        self.running = subprocess.Popen(
            [sys.executable, "-c", LEADER, *arguments],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(theirs)

    def says(self) -> str:
        assert self.running.stdout is not None
        return self.running.stdout.readline().strip()

    def press(self, key: bytes) -> None:
        os.write(self._keys, key)

    def close(self) -> None:
        self.running.kill()
        self.running.communicate()
        os.close(self._keys)


LEADER = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Makes its stdin the terminal it is controlled by, and becomes the program."""


@pytest.mark.parametrize("phase", WAITING)
def test_j5_ctrl_c_in_a_terminal(endless: ScriptedEngine, transport: Transport, phase: str) -> None:
    waiting, behaviour = WAITING[phase]
    code = SYNC.format(waiting=waiting)
    with contextlib.ExitStack() as held:
        url = endless.url
        if phase == "connect":
            url = held.enter_context(deaf())
        elif phase == "backoff":
            url = held.enter_context(playing(engine(loads))).url
        else:
            endless.behave(hang=behaviour)
        terminal = Terminal(command(url, transport, code))
        held.callback(terminal.close)
        assert terminal.says() == "begins"
        if behaviour in {"head", "stream"}:
            settled(lambda: bool(endless.generations))
        # Until it waits, in a process that tells nothing of it.
        time.sleep(0.3)
        assert terminal.running.poll() is None
        pressed = time.monotonic()
        terminal.press(b"\x03")
        assert terminal.says() == "interrupted"
        assert time.monotonic() - pressed < SOON
        status, _, err = outcome(terminal.running)
        assert (status, err) == (0, "")
        settled(lambda: endless.busy == 0)


def test_j5_sigterm(endless: ScriptedEngine, transport: Transport) -> None:
    endless.behave(hang="stream")
    running = program(endless.url, transport, SYNC.format(waiting="list(made.submit(task()))"))
    assert running.stdout is not None
    assert running.stdout.readline() == "begins\n"
    settled(lambda: bool(endless.generations))
    running.terminate()
    assert outcome(running)[::2] == (-signal.SIGTERM, "")
    settled(lambda: endless.busy == 0)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_j5_ctrl_c_while_a_stream_is_read(
    endless: ScriptedEngine, transport: Transport, loop: str
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
    running = program(endless.url, transport, code)
    assert running.stdout is not None
    assert running.stdout.readline() == "open\n"
    began = time.monotonic()
    os.kill(running.pid, signal.SIGINT)
    status, out, err = outcome(running)
    assert (status, out, err) == (0, "interrupted\n", "")
    assert time.monotonic() - began < WITHIN
    settled(lambda: endless.busy == 0)


# J6: the lock of the interpreter, threads without it, and a second interpreter.


GIL = """
import ctypes
from functools import partial
from worker_adapters.transport import _native
from worker_adapters.transport._tls import TlsSetup

async def main():
    made = connect(timeouts=Timeouts(token_gap=0.5, first_token=20.0, idle=None))
    if {threaded}:
        made._data_plane = _native.NativeTransport(
            sys.argv[1], tls=partial(TlsSetup.of, None), threaded=True
        )
    stream = await made.submit(task(1200))
    while (event := await anext(stream)).kind != "token":
        pass
    holder = threading.Thread(target=ctypes.PyDLL(None).usleep, args=(1_000_000,))
    began = time.monotonic()
    holder.start()
    texts = [event.data["t"]]
    async for event in stream:
        if event.kind == "token":
            texts.append(event.data["t"])
    assert time.monotonic() - began >= 1.0
    print(len(texts), stream.is_terminal, flush=True)
    await made.aclose()

asyncio.run(main())
"""


@pytest.mark.parametrize("reads", ["loop", "thread"])
def test_j6_the_gil_is_held_for_a_second(
    endless: ScriptedEngine, transport: Transport, reads: str
) -> None:
    if (transport, reads) == ("httpx", "thread"):
        pytest.skip("only native sockets can have a thread of their own")
    code = GIL.format(threaded=reads == "thread")
    assert outcome(program(endless.url, transport, code)) == (0, "1200 True\n", "")


SECOND = """
import sys
import worker_adapters._core
if sys.version_info >= (3, 13):
    import _interpreters as interpreters
    run = interpreters.exec
else:
    import _xxsubinterpreters as interpreters
    run = interpreters.run_string
run(interpreters.create(), '''
try:
    import worker_adapters._core
except ImportError as error:
    print(error, flush=True)
''')
import worker_adapters._core
"""


@on_native
def test_j6_a_second_interpreter_is_refused() -> None:
    told = subprocess.run(
        [sys.executable, "-c", SECOND], capture_output=True, text=True, check=True
    )
    assert "interpreter" in told.stdout


# J7: little memory.

SHORT = """
async def main():
    made = connect(retries=RetryPolicy(attempts=1))
    await text_of(made)
    with open("/proc/self/statm") as told:
        pages = int(told.read().split()[0])
    limit = pages * resource.getpagesize() + (64 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    stopped = [await begun(made) for _ in range(50)]
    for _ in range(5):
        stream = await made.submit(task(max_tokens=2_000_000))
        events = [event async for event in stream]
        assert events[-1].error.detail == "frame_too_large", events[-1].error
    assert not any(stream.is_terminal for stream in stopped)
    await asyncio.gather(*(stream.aclose() for stream in stopped))
    await made.aclose()
    print("over")

asyncio.run(main())
"""


async def without_end(connection: Connection, request: Received) -> None:
    """Say more than anybody has memory for, as an endless event or as endless tokens."""
    wanted = request.json["n_predict"]
    await connection.send(STREAM_HEAD)
    if wanted == 4:
        await connection.send(frame("x", 1), final(1), LAST_CHUNK)
    elif wanted == 1_000_000:
        piece = b"".join(frame("x" * 1000, number) for number in range(1, 100))
        while True:
            await connection.send(piece)
            await asyncio.sleep(0)
    else:
        await connection.send(chunk(b"data: "))
        piece = chunk(b"x" * (1 << 20))
        while True:
            await connection.send(piece)
            await asyncio.sleep(0)


@pytest.mark.skipif(
    sys.platform != "linux", reason="the limit is on address space, as Linux has it"
)
def test_j7_little_memory_is_enough(transport: Transport) -> None:
    with playing(engine(without_end)) as server:
        assert outcome(program(server.url, transport, SHORT)) == (0, "over\n", "")
