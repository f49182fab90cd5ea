"""What a fault comes out as, and what holds under each of them.

A test has a task done by `ask` and says by `failed` what it must come to. `ask` checks what holds
for every row: the law of events, that nothing told shows a key, a prompt or a token, that an error
is counted once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import traceback
from collections import Counter
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from tests.unit.tasks import ONCE, PROMPT
from tests.unit.tasks import adapter as plain_adapter
from tests.unit.wire import STREAM_HEAD, eventually, final, frame
from worker_adapters import Metrics, TokenEvent, VllmAdapter, WorkerError, WorkerIdentity
from worker_adapters.testing.wire import LAST_CHUNK, chunk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from worker_adapters import LlamaCppAdapter, TaskRequest, TokenStream, WorkerAdapter

__all__ = [
    "ANSWER",
    "KEY",
    "LOG",
    "RESTING_ANSWER",
    "SAID",
    "TOKENS",
    "Outcome",
    "adapter",
    "ask",
    "failed",
    "finished",
    "read",
    "released",
    "resting",
    "sockets_to",
    "until_sockets",
]

KEY: Final = "canary-key-0123456789"


def _vllm_frame(text: str, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
    fields = {"id": "cmpl-1", "object": "text_completion", "model": "m", "choices": [choice]}
    return chunk(b"data: " + json.dumps(fields).encode() + b"\n\n")


SAID: Final = ("Quixotania", " is", " näher", " 🙂 than", " Zephyrina", " said")
"""What the engine says, a token each."""
TOKENS: Final = b"".join(frame(text, count) for count, text in enumerate(SAID, 1))
ANSWER: Final = STREAM_HEAD + TOKENS + final(len(SAID)) + LAST_CHUNK
"""A whole response that says it and ends."""
RESTING_ANSWER: Final = b"".join(
    (
        STREAM_HEAD,
        *(_vllm_frame(text) for text in SAID),
        _vllm_frame("", "length"),
        chunk(b"data: [DONE]\n\n"),
        LAST_CHUNK,
    )
)
"""The same from vLLM, after which the connection may rest."""
_CANARIES: Final = (KEY, PROMPT, "Quixotania", "Zephyrina")
_EVENTS = {"started", "token", "metrics", "end", "error"}


class EventLog:
    """Kinds, counts, times and the fields of errors; never text."""

    def __init__(self) -> None:
        self._lines: list[tuple[float, str]] = []

    def clear(self) -> None:
        self._lines.clear()

    def note(self, what: str) -> None:
        try:
            now = asyncio.get_running_loop().time()
        except RuntimeError:
            now = float("nan")
        self._lines.append((now, what))

    def note_error(self, how: str, error: BaseException) -> None:
        if isinstance(error, WorkerError):
            told = {name: value for name, value in error.fields().items() if name != "message"}
            self.note(f"{how}: {json.dumps(told)}")
        else:
            self.note(f"{how}: {type(error).__name__}")

    def count(self, what: str) -> int:
        """Return how often that has happened."""
        return sum(line == what for _, line in self._lines)

    def text(self) -> str:
        shown = []
        for what, same in groupby(self._lines, key=lambda line: line[1]):
            times = [time for time, _ in same]
            span = f"{times[0]:.4f}" if len(times) == 1 else f"{times[0]:.4f} to {times[-1]:.4f}"
            shown.append(f"{span} s: {what}" + (f" x {len(times)}" if len(times) > 1 else ""))
        return "\n".join(shown) or "nothing was asked"


LOG: Final = EventLog()
"""Of the test that runs."""


@dataclass(slots=True)
class Outcome:
    """What became of one task."""

    events: list[TokenEvent] = field(default_factory=list)
    error: WorkerError | None = None
    is_raised: bool = False
    """Whether the error came out of `submit`, and not as the last event."""
    seconds: float = 0.0
    """From `submit` to the last event, on the loop's clock."""

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    @property
    def tokens(self) -> list[str]:
        return [event.data["t"] for event in self.events if event.kind == "token"]


class _Ledger:
    """The errors that an adapter's tasks were told of, beside those that its metrics count."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.told: Counter[tuple[str, str]] = Counter()
        self._open = 0

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Have a task under way."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    def check(self) -> None:
        """Assert that every error is counted once, unless another may be on its way."""
        if not self._open:
            counted = self._counted()
            assert counted == self.told, f"{counted} are counted, not {self.told}"

    def _counted(self) -> Counter[tuple[str, str]]:
        counted: Counter[tuple[str, str]] = Counter()
        for name, _, _, samples in self.metrics.snapshot():
            if name == "task_errors_total":
                for _, labels, value, _ in samples:
                    counted[labels["kind"], labels["phase"]] += int(value)
        return +counted


_LEDGERS: Final[WeakKeyDictionary[WorkerAdapter, _Ledger]] = WeakKeyDictionary()


def adapter(url: str, **options: Any) -> LlamaCppAdapter:
    """Return an adapter that knows its engine, so that the first thing it sends is the task."""
    ledger = _Ledger()
    made = plain_adapter(url, **{"api_key": KEY, "metrics": ledger.metrics, **options})
    made._identity = WorkerIdentity(engine_version="b1", ctx_max=1024)
    _LEDGERS[made] = ledger
    return made


def resting(url: str, **options: Any) -> VllmAdapter:
    """As `adapter`, of an engine that is asked again over the same connection; llama.cpp is not."""
    ledger = _Ledger()
    made = VllmAdapter(
        url, **{"api_key": KEY, "retries": ONCE, "metrics": ledger.metrics, **options}
    )
    made._identity = WorkerIdentity(engine_version="0.1", ctx_max=1024)
    _LEDGERS[made] = ledger
    return made


async def ask(made: WorkerAdapter, task: TaskRequest, **options: Any) -> Outcome:
    """Have ``task`` done and return what became of it, after checking what always holds."""
    ledger = _LEDGERS.get(made)
    if ledger is None:
        return await _asked(made, task, options)
    with ledger.open():
        outcome = await _asked(made, task, options)
        if outcome.error is not None:
            ledger.told[outcome.error.kind, outcome.error.phase] += 1
    ledger.check()
    return outcome


async def _asked(made: WorkerAdapter, task: TaskRequest, options: dict[str, Any]) -> Outcome:
    loop = asyncio.get_running_loop()
    began = loop.time()
    LOG.note("submit")
    try:
        stream = await made.submit(task, **options)
    except WorkerError as error:
        LOG.note_error("raised", error)
        outcome = Outcome(error=error, is_raised=True)
        _check_discreet(error)
        # Its frames would keep everything alive that `released` wants to see gone.
        error.__traceback__ = error.__context__ = None
    else:
        outcome = await read(stream)
    outcome.seconds = loop.time() - began
    return outcome


async def read(stream: TokenStream) -> Outcome:
    """Read a stream to its end and return what came, after checking what always holds."""
    outcome = Outcome()
    async for event in stream:
        LOG.note(event.kind)
        outcome.events.append(event)
    check_law(outcome.events)
    if outcome.events[-1].kind == "error":
        error = outcome.events[-1].error
        assert isinstance(error, WorkerError)
        LOG.note_error("ended", error)
        _check_discreet(error)
        outcome.error = error
    return outcome


def check_law(events: Sequence[TokenEvent]) -> None:
    """Assert `started? → token* → (end | error)`, with tokens counted from 0 without a gap."""
    kinds = [event.kind for event in events if event.kind != "metrics"]
    assert kinds, "a stream without an event"
    assert set(kinds) <= _EVENTS
    assert kinds[-1] in {"end", "error"}, kinds[-1]
    body = kinds[:-1]
    if body:
        assert body[0] == "started", body[0]
        assert set(body[1:]) <= {"token"}, set(body[1:])
    told = [event.data["i"] for event in events if event.kind == "token"]
    assert told == list(range(len(told)))


def _check_discreet(error: WorkerError) -> None:
    """Assert that nobody who reads of ``error`` reads a key, a prompt or a token."""
    shown = [str(error), repr(error), json.dumps(error.fields(), ensure_ascii=False)]
    shown += traceback.format_exception(error)
    for text in shown:
        for canary in _CANARIES:
            assert canary not in text, f"{canary} shows"


def failed(
    outcome: Outcome,
    cls: type[WorkerError],
    detail: str,
    *,
    phase: str,
    processed: str,
    retriable: bool,
    raised: bool | None = None,
    tokens: int = 0,
    said: Sequence[str] = SAID,
    **more: Any,
) -> WorkerError:
    """Assert how it failed and what had come by then; return the error.

    ``raised`` is whether out of `submit`: unless told, where nothing had come and the phase is not
    the stream's. ``more`` are further fields of the error.
    """
    error = outcome.error
    assert error is not None, f"no error: {outcome.kinds}"
    assert (type(error), error.detail) == (cls, detail), error
    wanted = {
        "phase": phase,
        "processed": processed,
        "retriable": retriable,
        "tokens_emitted": tokens,
        "engine": "llamacpp",
        **more,
    }
    told = {name: getattr(error, name) for name in wanted}
    assert told == wanted, f"{told}, not {wanted}"
    if raised is None:
        raised = phase not in {"first_token", "stream"}
    assert outcome.is_raised is raised, f"raised by submit: {outcome.is_raised}"
    assert outcome.tokens == list(said[:tokens])
    return error


def finished(outcome: Outcome, said: Sequence[str] = SAID) -> None:
    """Assert that it came to its end and that what was said came whole."""
    assert outcome.error is None, outcome.error
    assert (outcome.kinds[0], outcome.kinds[-1]) == ("started", "end")
    assert outcome.tokens == list(said)


def sockets_to(url: str) -> int:
    """Return how many sockets of this process are connected to ``url``'s port."""
    port = int(url.rsplit(":", 1)[1].split("/", maxsplit=1)[0])
    return sum(_peer_port(int(entry.name)) == port for entry in Path("/proc/self/fd").iterdir())


def _peer_port(descriptor: int) -> int | None:
    with contextlib.suppress(OSError):  # closed meanwhile, no socket, or not connected
        own = socket.socket(fileno=descriptor)
        try:
            if own.family in {socket.AF_INET, socket.AF_INET6}:
                return int(own.getpeername()[1])
        finally:
            own.detach()
    return None


async def until_sockets(url: str, count: int) -> None:
    """Wait until so many sockets to ``url`` are left: 0 where an error closes, 1 where it rests."""
    await eventually(lambda: sockets_to(url) == count, f"{count} sockets to the engine")


@contextlib.asynccontextmanager
async def released() -> AsyncIterator[None]:
    """Assert that what is done inside leaves neither a descriptor nor a task behind."""
    gc.collect()
    tasks = len(asyncio.all_tasks())
    descriptors = _descriptors()
    yield
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks, "all tasks are done")
    gc.collect()
    await eventually(lambda: _descriptors() <= descriptors, "all descriptors are closed")


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
