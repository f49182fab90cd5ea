"""Where lines go: never in the way, never lost without being counted."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import io
import json
import logging
import math
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import weakref
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from tests.unit.observe.lines import Heard, heard
from worker_adapters.observe.formatter import JsonFormatter, JsonHandler
from worker_adapters.observe.logs import LOGGER, Logs
from worker_adapters.observe.narration import Narrator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WITHIN = 20.0


class Gate(logging.Handler):
    """Blocks until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.open = threading.Event()
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.entered.set()
        assert self.open.wait(WITHIN)
        self.seen.append(record.getMessage())


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    own = logging.getLogger(f"worker_adapters.test.{uuid4().hex}")
    own.setLevel(logging.DEBUG)
    own.propagate = False
    yield own
    own.handlers.clear()


def say(logs: Logs, *texts: str) -> None:
    for text in texts:
        logs.emit(logging.INFO, text, {})


def test_a_handler_that_blocks_costs_lines_and_no_time(logger: logging.Logger) -> None:
    gate = Gate()
    logger.addHandler(gate)
    logs = Logs(logger, capacity=3)
    say(logs, "zero")
    assert gate.entered.wait(WITHIN)
    say(logs, "one", "two", "three", "four", "five")
    assert logs.dropped == 2
    assert not logs.flush(0.01)
    gate.open.set()
    assert logs.flush(WITHIN)
    assert gate.seen == ["zero", "one", "two", "three"]
    say(logs, "six")
    assert logs.flush(WITHIN)
    assert gate.seen[-1] == "six"
    assert logs.dropped == 2
    logs.close()


class Broken(io.StringIO):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def write(self, _text: str, /) -> int:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("boom"),
        KeyboardInterrupt(),
        SystemExit(1),
    ],
)
def test_a_line_that_cannot_be_written_is_counted(
    logger: logging.Logger, error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    logger.addHandler(JsonHandler(Broken(error)))
    logs = Logs(logger)
    say(logs, "one", "two")
    assert logs.flush(WITHIN)
    assert logs.dropped == 2
    assert capsys.readouterr().err == ""
    logs.close()


def test_a_filter_that_raises_is_counted(logger: logging.Logger) -> None:
    def refuse(record: logging.LogRecord) -> bool:
        raise ValueError(record.getMessage())

    logger.addHandler(JsonHandler(io.StringIO()))
    logger.addFilter(refuse)
    logs = Logs(logger)
    say(logs, "one")
    assert logs.flush(WITHIN)
    assert logs.dropped == 1
    logs.close()


def test_nothing_is_configured() -> None:
    assert all(
        isinstance(handler, logging.NullHandler) for handler in logging.getLogger(LOGGER).handlers
    )
    assert logging.getLogger(LOGGER).level == logging.NOTSET


def test_importing_starts_no_thread() -> None:
    code = """
        import logging, threading
        before = logging.root.handlers[:], logging.root.level
        import worker_adapters.observe.logs, worker_adapters.engines.llamacpp
        assert (logging.root.handlers, logging.root.level) == before
        assert threading.active_count() == 1
    """
    _python(code)


def test_lines_are_out_when_the_process_ends() -> None:
    code = """
        import logging, sys
        from worker_adapters.observe.formatter import JsonHandler
        from worker_adapters.observe.logs import Logs
        logging.getLogger("worker_adapters").addHandler(JsonHandler(sys.stdout))
        logs = Logs()
        for number in range(500):
            logs.emit(logging.ERROR, f"line {number}", {})
    """
    lines = _python(code).splitlines()
    assert [json.loads(line)["human"] for line in lines] == [f"line {n}" for n in range(500)]


def test_a_handler_that_blocks_does_not_keep_the_process() -> None:
    code = """
        import logging, threading
        from worker_adapters.observe.logs import Logs
        class Stuck(logging.Handler):
            def handle(self, record):  # without the handler's lock, which logging wants at exit
                threading.Event().wait()
        logging.getLogger("worker_adapters").addHandler(Stuck())
        logs = Logs()
        logs.emit(logging.ERROR, "never", {})
    """
    _python(code)


def _python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=WITHIN * 2,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_logs_for_itself(logger: logging.Logger) -> None:
    reads, writes = os.pipe()
    gate = Gate()
    logger.addHandler(gate)
    logs = Logs(logger)
    say(logs, "of the parent")
    assert gate.entered.wait(WITHIN)
    say(logs, "of the parent, too")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reads)
            logger.handlers[:] = [JsonHandler(os.fdopen(writes, "w"))]
            say(logs, "of the child")
            status = 0 if logs.flush(WITHIN) and logs.dropped == 0 else 1
        finally:
            os._exit(status)
    os.close(writes)
    with os.fdopen(reads) as told:
        assert [json.loads(line)["human"] for line in told] == ["of the child"]
    assert os.waitpid(child, 0)[1] == 0
    gate.open.set()
    assert logs.flush(WITHIN)
    assert gate.seen == ["of the parent", "of the parent, too"]
    logs.close()


def test_the_thread_goes_with_its_logs(logger: logging.Logger) -> None:
    stream = io.StringIO()
    logger.addHandler(JsonHandler(stream))
    logs = Logs(logger)
    say(logs, "one")
    thread = logs._pump._thread
    assert thread is not None
    gone = weakref.ref(logs)
    del logs
    gc.collect()
    assert gone() is None
    thread.join(WITHIN)
    assert not thread.is_alive()
    assert json.loads(stream.getvalue())["human"] == "one"


def test_lines_after_the_end_are_counted(logger: logging.Logger) -> None:
    logger.addHandler(JsonHandler(io.StringIO()))
    logs = Logs(logger)
    say(logs, "one")
    logs.close()
    logs.close()
    say(logs, "two")
    assert logs.dropped == 1
    assert logs.flush(WITHIN)


def test_many_threads_lose_nothing_uncounted(logger: logging.Logger) -> None:
    stream = io.StringIO()
    logger.addHandler(JsonHandler(stream))
    logs = Logs(logger, capacity=50)

    def shout() -> None:
        say(logs, *("x" for _ in range(500)))

    threads = [threading.Thread(target=shout) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert logs.flush(WITHIN)
    assert len(stream.getvalue().splitlines()) + logs.dropped == 2000
    logs.close()


def test_handlers_see_the_context_of_whoever_logs(logger: logging.Logger) -> None:
    span: contextvars.ContextVar[str] = contextvars.ContextVar("span", default="none")
    seen: list[str] = []

    class Spans(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(f"{record.getMessage()} in {span.get()}")

    logger.addHandler(Spans())
    logs = Logs(logger)

    async def work(name: str) -> None:
        span.set(name)
        say(logs, "a line")

    async def both() -> None:
        await asyncio.gather(work("one"), work("two"))

    asyncio.run(both())
    assert logs.flush(WITHIN)
    assert seen == ["a line in one", "a line in two"]
    logs.close()


def test_a_logger_that_nobody_listens_to(logger: logging.Logger) -> None:
    logger.handlers.clear()  # pytest listens to every logger there is
    logs = Logs(logger)
    assert not logs.is_enabled()
    logger.addHandler(logging.NullHandler())
    assert not logs.is_enabled()
    logger.addHandler(JsonHandler(io.StringIO()))
    assert logs.is_enabled()
    logger.setLevel(logging.CRITICAL)
    assert not logs.is_enabled()


@pytest.mark.parametrize("capacity", [0, -1, math.nan, 1.5, "many"])
def test_a_capacity_that_is_none(capacity: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="capacity"):
        Logs(capacity=capacity)


def test_a_text_policy_that_is_none() -> None:
    text: Any = "dev"
    with pytest.raises(TypeError, match="TextPolicy"):
        Logs(text=text)


def test_fields_that_make_no_record_are_counted(logger: logging.Logger) -> None:
    out = io.StringIO()
    logger.addHandler(JsonHandler(out))
    logs = Logs(logger)
    logs.emit(logging.INFO, "one", {"name": 1})
    say(logs, "two")
    assert logs.flush(WITHIN)
    assert [json.loads(line)["human"] for line in out.getvalue().splitlines()] == ["two"]
    assert logs.dropped == 1
    logs.close()


def test_a_line_is_json_whatever_its_fields_are() -> None:
    fields = {
        "actor": "adapter-host",
        "decode_time_ms": math.nan,
        "pause_ms": -math.inf,
        "retriable": False,
        "tokens_out": 3,
        "detail": ["a", math.nan],
    }
    line = json.loads(
        JsonFormatter().format(logging.makeLogRecord({"msg": "m", **fields})),
        parse_constant=pytest.fail,
    )
    assert line.keys() & fields.keys() == {"actor", "retriable", "tokens_out", "detail"}
    assert (line["retriable"], line["tokens_out"], line["detail"]) == (False, 3, "['a', nan]")


def test_a_line_is_one_line_of_ascii() -> None:
    with heard() as ears:
        fields = {
            "action": "submit",
            "actor": "adapter-host",
            "target": "a/b",
            "engine": "llamacpp",
            "pool_id": "a",
            "replica_id": "b",
            "job_id": 'two\nlines\u2028"é',
        }
        ears.logs.emit(logging.INFO, "Sending a task.", fields)
        (line,) = ears.lines()
        assert line["job_id"] == fields["job_id"]


SECRET = "sk-0123456789abcdef0123"

FORGED = {
    "actor": "adapter-host",
    "action": "end",
    "target": f"chat/{SECRET}",
    "session_id": SECRET,
    "pathname": "(worker_adapters)",
    "name": "worker_adapters.adapter",
}
"""What anybody's record may have, and those of a narrator do."""


def handed_to_logs(ears: Heard) -> None:
    told = {name: value for name, value in FORGED.items() if name not in {"pathname", "name"}}
    ears.logs.emit(logging.INFO, f"The key is {SECRET}.", told)


def made_by_hand(ears: Heard) -> None:
    ears.handler.handle(logging.makeLogRecord({"msg": f"The key is {SECRET}.", **FORGED}))


@pytest.mark.parametrize("told", [handed_to_logs, made_by_hand])
def test_a_record_is_none_of_ours_for_its_attributes(told: Callable[[Heard], None]) -> None:
    ears = Heard()
    told(ears)
    (line,) = ears.lines()
    ears.logs.close()
    assert (line["actor"], line["action"]) == ("adapter-host", "end")
    assert SECRET not in str(line)
    assert line["human"].startswith("The key is ****")


def narrated() -> logging.LogRecord:
    """A line of a narrator, with an id that could be taken for a key."""
    records: list[logging.LogRecord] = []
    ears = Heard()

    def keep(record: logging.LogRecord) -> bool:
        records.append(record)
        return False

    ears.logger.addFilter(keep)
    narrator = Narrator(
        ears.logs, engine="llamacpp", pool_id=SECRET, replica_id="0", clock=lambda: 0.0
    )
    narrator.breaker("closed")
    ears.lines()
    ears.logs.close()
    (record,) = records
    return record


def test_a_line_of_ours_keeps_its_ids_on_its_way_through_queues() -> None:
    record = narrated()
    for one in (record, copy.copy(record)):
        assert json.loads(JsonFormatter().format(one))["pool_id"] == SECRET


def test_nobody_vouches_for_a_line_from_another_process() -> None:
    record = pickle.loads(pickle.dumps(narrated()))
    assert type(record.pathname) is str
    assert record.pathname == FORGED["pathname"]
    assert SECRET not in JsonFormatter().format(record)


def test_records_of_others_are_redacted() -> None:
    formatter = JsonFormatter()
    try:
        int("Authorization: Bearer abcdef0123456789abcdef")
    except ValueError:
        record = logging.makeLogRecord(
            {
                "name": "other",
                "msg": "token=%s",
                "args": ("hunter2-hunter2",),
                "exc_info": sys.exc_info(),
                "error": "Authorization: Bearer sk-0123456789abcdef",
                "detail": {"headers": ["Authorization: Bearer sk-0123456789abcdef"]},
                "attempt": 2,
            }
        )
    line = formatter.format(record)
    assert "hunter2" not in line
    assert "abcdef0123456789" not in line
    assert "0123456789abcdef" not in line
    assert "\n" not in line
    parsed = json.loads(line)
    assert parsed["logger"] == "other"
    assert parsed["error"].startswith("Authorization: Bearer ****")
    assert parsed["attempt"] == 2
    assert "ValueError" in parsed["exception"]
    assert parsed["ts"].endswith("Z")
