"""The facade for code without an event loop."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.transports import both_transports
from tests.unit.tasks import adapter, task
from tests.unit.test_stream import shape
from tests.unit.wire import WITHIN
from worker_adapters import PoolUnavailable, WorkerReset
from worker_adapters.sync import SyncTokenStream, SyncWorkerAdapter
from worker_adapters.testing.engines import scripted_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from worker_adapters.testing.engines import ScriptedEngine

pytestmark = both_transports


@pytest.fixture
def engine() -> Iterator[ScriptedEngine]:
    with scripted_engine("llamacpp", tokens=8) as running:
        yield running


@pytest.fixture
def made(engine: ScriptedEngine) -> Iterator[SyncWorkerAdapter]:
    with SyncWorkerAdapter(adapter(engine.url)) as facade:
        yield facade


def eventually(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + WITHIN
    while not condition():
        assert time.monotonic() < until
        threading.Event().wait(0.005)


def said(events: list[Any]) -> str:
    return "".join(event.t for event in events if event.kind == "token")


def test_every_call(made: SyncWorkerAdapter) -> None:
    assert made.health().ready
    assert made.props().slots_total == 4
    assert made.engine_version() == made.identity().engine_version
    assert made.capabilities().engine == "llamacpp"
    inputs = task(workload="embedding", prompt=..., max_tokens=0, inputs=["one", "two"])
    assert [len(vector) for vector in made.embed(inputs)] == [4, 4]
    asked = task(workload="rerank", prompt="q", max_tokens=0, inputs=["a", "b"])
    assert [score.index for score in made.rerank(asked)] == [0, 1]
    assert not made.cancel(asked.task_id).sent
    assert repr(made) == f"SyncWorkerAdapter({made._adapter!r})"


def test_a_stream_in_every_way(made: SyncWorkerAdapter) -> None:
    whole = made.submit(task()).collect()
    assert whole.tokens_out == 8
    with made.submit(task()) as stream:
        events = list(stream)
        assert next(stream, None) is None
    assert said(events) == whole.text
    batches = list(made.submit(task()).batches(max_events=2, max_wait=0.5))
    assert all(1 <= len(batch) <= 2 for batch in batches)
    assert said([event for batch in batches for event in batch]) == whole.text
    rendered = b"".join(made.submit(task()).sse(max_wait=0.01))
    assert rendered.count(b"event: token\n") == sum(event.kind == "token" for event in events)
    with pytest.raises(ValueError, match="max_wait"):
        stream.sse(max_wait=-1)
    assert stream.is_terminal
    assert (stream.cancelled, stream.tokens_emitted) == (False, 8)
    assert str(stream.task_id) in repr(stream)


def test_errors_are_the_same(engine: ScriptedEngine, made: SyncWorkerAdapter) -> None:
    engine.behave(truncate="close")
    with pytest.raises(WorkerReset):
        made.submit(task()).collect()
    with (
        SyncWorkerAdapter(adapter("http://127.0.0.1:1")) as nowhere,
        pytest.raises(PoolUnavailable),
    ):
        nowhere.submit(task())


def test_cancel_from_another_thread(engine: ScriptedEngine, made: SyncWorkerAdapter) -> None:
    engine.behave(hang="stream")
    stream = made.submit(task())
    seen: list[Any] = []
    reader = threading.Thread(target=lambda: seen.extend(stream))
    reader.start()
    eventually(lambda: stream.tokens_emitted == 3)
    assert made.cancel(stream.task_id).sent
    reader.join(WITHIN)
    assert shape(seen)[-1] == "end:cancelled"
    assert not stream.cancel().sent
    assert list(stream) == []


def test_leaving_a_stream(engine: ScriptedEngine, made: SyncWorkerAdapter) -> None:
    engine.behave(hang="stream")
    with made.submit(task()) as stream:
        next(stream)
    stream.close()
    assert stream.cancelled
    assert list(stream) == []


@pytest.mark.parametrize("waits_for", ["head", "stream"])
def test_ctrl_c(engine: ScriptedEngine, made: SyncWorkerAdapter, waits_for: Any) -> None:
    engine.behave(hang=waits_for)
    pressed = 0.0

    def press() -> None:
        nonlocal pressed
        eventually(lambda: bool(engine.generations))
        eventually(lambda: waits_for == "head" or bool(streams))
        eventually(lambda: waits_for == "head" or streams[0].tokens_emitted == 3)
        pressed = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)

    streams: list[SyncTokenStream] = []
    pressing = threading.Thread(target=press)
    pressing.start()

    def read() -> None:
        streams.append(made.submit(task()))
        list(streams[0])

    with pytest.raises(KeyboardInterrupt):
        read()
    assert time.monotonic() - pressed < WITHIN
    pressing.join()
    [generation] = engine.generations
    eventually(lambda: generation.outcome == "left")


def test_many_threads(made: SyncWorkerAdapter) -> None:
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: made.submit(task()).collect().tokens_out, range(32)))
    assert answers == [8] * 32


def test_closing_ends_what_others_wait_for(engine: ScriptedEngine) -> None:
    engine.behave(hang="head")
    facade = SyncWorkerAdapter(adapter(engine.url))
    outcome: list[Any] = []
    waiting = threading.Thread(target=lambda: outcome.extend(facade.submit(task())))
    waiting.start()
    eventually(lambda: bool(engine.received("/completion")))
    facade.close()
    facade.close()
    waiting.join(WITHIN)
    assert shape(outcome) == ["end:cancelled"]
    assert not facade._portal._thread.is_alive()
    with pytest.raises(RuntimeError, match="has been closed"):
        facade.health()


def test_a_dropped_facade_ends_its_thread(engine: ScriptedEngine) -> None:
    facade = SyncWorkerAdapter(adapter(engine.url))
    stream = facade.submit(task())
    thread = facade._portal._thread
    del facade, stream
    gc.collect()
    thread.join(WITHIN)
    assert not thread.is_alive()


def test_a_forked_process_is_told(made: SyncWorkerAdapter) -> None:
    assert made.health().ready
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        code = 1
        try:
            made.health()
        except RuntimeError as error:
            code = 0 if "forked" in str(error) else 2
        finally:
            made.close()
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert made.health().ready


def test_it_cannot_wait_for_itself(made: SyncWorkerAdapter) -> None:
    async def inside() -> None:
        made.health()

    with pytest.raises(RuntimeError, match="own thread"):
        made._portal.call(inside())
