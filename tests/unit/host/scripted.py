"""Adapters whose engine does what a test says, on the test's own clock."""

from __future__ import annotations

import asyncio
import json
import random
from collections import deque
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from worker_adapters import (
    CancelReceipt,
    StreamDecoder,
    SubmitContext,
    TaskExtensions,
    TaskRequest,
    Timeouts,
    TokenStream,
    WorkerAdapter,
    WorkerError,
    WorkerHealth,
    WorkerProps,
)
from worker_adapters.errors import from_fields
from worker_adapters.extensions import Extensions
from worker_adapters.host import AdapterHost, HostEvent, PoolPolicy, ProbePolicy
from worker_adapters.transport import Headers, TransportError
from worker_adapters.transport._pulled import PulledStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from worker_adapters._core import Metrics

READY = WorkerHealth(live=True, ready=True)
LOADING = WorkerHealth(live=True, ready=False, reason="loading")
GONE = WorkerHealth(live=False, ready=False, reason="connect")

QUIET = ProbePolicy(interval=3600.0)
"""Probes once, at the beginning."""


def task(**changes: Any) -> TaskRequest:
    fields: dict[str, Any] = {
        "task_id": uuid4(),
        "session_id": uuid4(),
        "workload": "completion",
        "model_ref": "models/tiny.gguf",
        "engine": "llamacpp",
        "ctx": 512,
        "priority": "interactive",
        "max_tokens": 16,
        "deadline_ms": 60_000,
        "prompt": "a canary prompt nobody may see",
    }
    return Extensions.all().task_request(**(fields | changes))


def keyed(key: str, **changes: Any) -> TaskRequest:
    return task(extensions=TaskExtensions(affinity_key=key), **changes)


def failed(detail: str = "connect", **fields: Any) -> WorkerError:
    kinds = {
        "reset": "WorkerReset",
        "engine_error": "WorkerReset",
        "first_token": "DecodeTimeout",
        "deadline": "DeadlineUnmet",
        "invalid_request": "Adapter",
        "duplicate_id": "Adapter",
        "bad_json": "Adapter",
    }
    kind = kinds.get(detail, "PoolUnavailable")
    given = {"kind": kind, "message": "", "retriable": True, "processed": "no"}
    return from_fields({**given, "detail": detail, **fields})


class Body:
    """A response body that a test fills."""

    status = 200
    headers: Headers = ()

    def __init__(self) -> None:
        self._arrived: deque[bytes] = deque()
        self._over = False
        self._cut = False
        self._wake = asyncio.Event()
        self.said = 0
        self.is_closed = False

    def say(self, *texts: str) -> None:
        """Send a token for each."""
        for text in texts:
            self.said += 1
            self._send({"content": text, "stop": False, "tokens": [self.said]})

    def finish(self) -> None:
        """End the stream as an engine does."""
        self._send({"content": "", "stop": True, "stop_type": "eos", "tokens": []})
        self._over = True
        self._wake.set()

    def cut(self) -> None:
        """Break the connection."""
        self._cut = True
        self._wake.set()

    def _send(self, fields: dict[str, Any]) -> None:
        fields |= {"index": 0, "id_slot": 0, "tokens_predicted": self.said, "tokens_evaluated": 8}
        self._arrived.append(b"data: " + json.dumps(fields).encode() + b"\n\n")
        self._wake.set()

    async def read(self) -> bytes:
        while not self._arrived:
            if self.is_closed or self._cut:
                raise TransportError("reset", "stream")
            if self._over:
                return b""
            self._wake.clear()
            await self._wake.wait()
        return self._arrived.popleft()

    def read_nowait(self) -> bytes:
        return self._arrived.popleft() if self._arrived else b""

    def abort(self) -> None:
        self.is_closed = True
        self._wake.set()

    async def aclose(self) -> None:
        self.abort()


class Scripted(WorkerAdapter):
    """An adapter that answers every submit by what `play` says at that moment.

    ``play`` is called with the task and returns an error to raise, a number of tokens to send and
    end with, or None for a stream that is left to the test. With ``gate`` set, a submit waits for
    it before its head.
    """

    engine = "llamacpp"
    dialect = "llamacpp"

    def __init__(
        self,
        replica_id: str = "0",
        pool_id: str = "pool",
        *,
        play: Callable[[TaskRequest], WorkerError | int | None] = lambda _: 2,
        slots: int | None = None,
    ) -> None:
        self.pool_id = pool_id
        self.replica_id = replica_id
        self.play = play
        self.gate: asyncio.Event | None = None
        self.state = READY
        self.slots_total = slots
        self.slots_free = slots
        self.probes = 0
        self.stalls = False
        self.tasks: list[TaskRequest] = []
        self.contexts: list[SubmitContext] = []
        self.bodies: dict[UUID, Body] = {}
        self.cancelled: list[UUID] = []
        self.submitting: dict[UUID, asyncio.Event] = {}
        self.is_closed = False
        self._streams: dict[UUID, TokenStream] = {}

    def __repr__(self) -> str:
        return f"<Scripted {self.pool_id}/{self.replica_id}>"

    async def health(self, *, timeouts: Timeouts | None = None) -> WorkerHealth:
        del timeouts
        self.probes += 1
        if self.stalls:
            await asyncio.Event().wait()
        return self.state

    async def props(self, *, timeouts: Timeouts | None = None) -> WorkerProps:
        del timeouts
        source = None if self.slots_total is None else "/props"
        return WorkerProps(slots_total=self.slots_total, slots_free=self.slots_free, source=source)

    async def engine_version(self, *, timeouts: Timeouts | None = None) -> str:
        del timeouts
        if not self.state.live:
            raise failed()
        return "b1-scripted"

    async def submit(
        self,
        task: TaskRequest,
        *,
        context: SubmitContext | None = None,
        timeouts: Timeouts | None = None,
    ) -> TokenStream:
        del timeouts
        assert not self.is_closed
        self.tasks.append(task)
        self.contexts.append(context or SubmitContext())
        given_up = self.submitting[task.task_id] = asyncio.Event()
        try:
            if self.gate is not None:
                await self._at_the_gate(self.gate, given_up)
            return self._answered(task, given_up.is_set())
        finally:
            del self.submitting[task.task_id]

    async def _at_the_gate(self, gate: asyncio.Event, given_up: asyncio.Event) -> None:
        waits = [asyncio.create_task(event.wait()) for event in (gate, given_up)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    def _answered(self, task: TaskRequest, is_cancelled: bool) -> TokenStream:
        clock = asyncio.get_running_loop().time
        decoder = StreamDecoder("llamacpp", started={"seed": 1}, deadline=None)
        decoder.dispatched(clock())
        if is_cancelled:
            events = decoder.cancel(clock())
            return PulledStream(task.task_id, decoder, None, events=events, clock=clock)
        outcome = self.play(task)
        if isinstance(outcome, WorkerError):
            raise outcome
        body = self.bodies[task.task_id] = Body()
        if outcome is not None:
            body.say(*("x" for _ in range(outcome)))
            body.finish()
        decoder.head(200, [(b"Content-Type", b"text/event-stream")], clock())
        stream = PulledStream(task.task_id, decoder, body, clock=clock)
        self._streams[task.task_id] = stream
        return stream

    def drop(self, task_id: UUID) -> None:
        """Refer to a stream no longer, as adapters do not."""
        self._streams.pop(task_id, None)

    async def cancel(self, task_id: UUID | str, *, confirm_within_ms: float = 0) -> CancelReceipt:
        del confirm_within_ms
        key = task_id if isinstance(task_id, UUID) else UUID(task_id)
        self.cancelled.append(key)
        if (given_up := self.submitting.get(key)) is not None:
            given_up.set()
            return CancelReceipt(method="close", sent=True, elapsed_ms=0.0)
        stream = self._streams.pop(key, None)
        if stream is None:
            return CancelReceipt(method="none", sent=False, elapsed_ms=0.0)
        return await stream.cancel()

    async def aclose(self) -> None:
        self.is_closed = True
        for given_up in self.submitting.values():
            given_up.set()
        await asyncio.gather(*(stream.cancel() for stream in self._streams.values()))


class Log:
    """What a host has told."""

    def __init__(self) -> None:
        self.events: list[HostEvent] = []

    def __call__(self, event: HostEvent) -> None:
        self.events.append(event)

    def actions(self, *wanted: str) -> list[tuple[str, str | None, str | None]]:
        """Return action, replica and detail of those that are wanted, in their order."""
        return [
            (event.action, event.replica_id, event.detail)
            for event in self.events
            if event.action in wanted
        ]


def host_of(
    *adapters: Scripted,
    policy: PoolPolicy | None = None,
    probes: ProbePolicy = QUIET,
    seed: int = 1,
    observers: Iterable[Log] = (),
    metrics: Metrics | None = None,
) -> AdapterHost:
    """Return a host on the loop's clock with these bound."""
    host = AdapterHost(
        policy=policy,
        probes=probes,
        clock=asyncio.get_running_loop().time,
        rng=random.Random(seed),
        observers=observers,
        metrics=metrics,
    )
    for adapter in adapters:
        host.bind(adapter)
    return host


async def settled() -> None:
    """Let everything run that need not wait."""
    for _ in range(10):
        await asyncio.sleep(0)
