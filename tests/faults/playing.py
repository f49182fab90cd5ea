"""One task, an engine that says what a test wants it to, and all that comes of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.faults.outcomes import Outcome, ask, read
from tests.unit.tasks import ONCE, task
from tests.unit.wire import STREAM_HEAD, WITHIN, Connection, Received, engine, frame, playing
from worker_adapters import Extensions, Metrics, TaskRequest, WorkerError
from worker_adapters.engines import adapter_class
from worker_adapters.testing.conformance import check_events
from worker_adapters.testing.engines import SCRIPTED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tests.unit.wire import Server
    from worker_adapters import TokenStream, WorkerAdapter
    from worker_adapters.testing.engines import Generation, ScriptedEngine
    from worker_adapters.testing.wire import RawServer

    Then = Callable[[Connection], Awaitable[None]]

SPOKE = ("Quixotania", " Zephyrina")
"""What an engine says before something happens to it; in no error may it show."""

HELLO = tuple(frame(text, number) for number, text in enumerate(SPOKE, 1))
"""The same as llama.cpp frames it, in HTTP chunks."""


@dataclass(slots=True)
class Told(Outcome):
    """What a task came to."""

    connections: list[Connection] = field(default_factory=list)
    """Those that a completion was asked for over."""

    counted: Metrics | None = None

    def count(self, name: str) -> float:
        """What a counter says."""
        assert self.counted is not None
        return sum(value for _, value in samples_of(self.counted, name))

    @property
    def fault(self) -> WorkerError:
        """The error it ended in."""
        assert self.error is not None, self.kinds
        return self.error

    @property
    def outcome(self) -> tuple[str, str]:
        """Kind and detail of the error it ended in."""
        return self.fault.kind, self.fault.detail or ""


async def half_close(connection: Connection) -> None:
    """Say that nothing more comes, and stay until the client has closed as well."""
    connection._writer.write_eof()
    await connection.until_closed()


def saying(*pieces: bytes, then: Then = Connection.until_closed) -> Server:
    """Return a llama.cpp that answers a completion so, each piece sent by itself."""

    async def script(connection: Connection, _: Received) -> None:
        await connection.send(*pieces)
        await then(connection)

    return playing(engine(script))


def spoken(
    name: str, *pieces: bytes, then: Then = Connection.until_closed, head: bytes = STREAM_HEAD
) -> ScriptedEngine:
    """Return an engine of that dialect that answers a completion so."""
    kind: Any = SCRIPTED[name]

    async def stream(self: Any, connection: Connection, generation: object) -> bool:
        del generation
        self.streamed.append(connection)
        await connection.send(head, *pieces)
        await then(connection)
        return False

    members = {"stream": stream, "streamed": []}
    made: ScriptedEngine = type(f"Spoken{kind.__name__}", (kind,), members)()
    return made


def adapter_of(name: str, url: str, **options: Any) -> WorkerAdapter:
    """Return an adapter for an engine of that dialect that sends nothing twice."""
    make: Any = adapter_class(name)
    made: WorkerAdapter = make(url, **{"retries": ONCE, **options})
    return made


def task_of(name: str, **changes: Any) -> TaskRequest:
    """Return a completion for an engine of that dialect."""
    given = task(**{"ctx": 0, **changes}).model_dump(exclude_unset=True)
    return Extensions.all(name).task_request(**{**given, "engine": name})


async def told(
    server: RawServer,
    asked: TaskRequest | None = None,
    make: Callable[..., WorkerAdapter] | None = None,
    **options: Any,
) -> Told:
    """Submit a task to an engine; see what it comes to, and that it is let go of.

    The laws of a stream hold for whatever comes, an error is counted once, and a connection that it
    came over is closed by us: its script is through only when the client has left.
    """
    options.setdefault("clock", asyncio.get_running_loop().time)
    counted = Metrics()
    options.setdefault("metrics", counted)
    dialect: str = getattr(server, "dialect", "llamacpp")
    asked = task_of(dialect) if asked is None else asked
    async with server:
        made = adapter_of(dialect, server.url, **options) if make is None else make(server.url)
        async with made:
            outcome = await ask(made, asked)
            if outcome.events:
                check_events(outcome.events, asked.engine)
            told_of = samples_of(counted, "task_errors_total")
            errors = [(labels["kind"], labels["phase"]) for labels, value in told_of if value]
            assert errors == errors_of(outcome)
            assert sum(value for _, value in told_of) == len(errors)
            posted = await left(server) if outcome.error is not None else completions(server)
            return as_told(outcome, posted, counted)


def samples_of(counted: Metrics, name: str) -> list[tuple[dict[str, str], float]]:
    """Return labels and values of one family."""
    [samples] = [samples for family, *_, samples in counted.snapshot() if family == name]
    return [(labels, value) for _, labels, value, *_ in samples]


def errors_of(outcome: Outcome) -> list[tuple[str, str]]:
    """Return what must have been counted."""
    error = outcome.error
    return [] if error is None else [(error.kind, error.phase or "")]


def as_told(
    outcome: Outcome, posted: Sequence[Connection] = (), counted: Metrics | None = None
) -> Told:
    """Return an outcome as one that can be asked for its fault."""
    known = (outcome.events, outcome.error, outcome.is_raised, outcome.seconds)
    return Told(*known, list(posted), counted)


async def followed(stream: TokenStream) -> Told:
    """Read a stream to its end; see what it comes to."""
    return as_told(await read(stream))


def completions(server: RawServer) -> list[Connection]:
    """Return the connections that a completion was asked for over."""
    streamed: list[Connection] | None = getattr(server, "streamed", None)
    if streamed is not None:
        return streamed
    generations: Sequence[Generation] = getattr(server, "generations", ())
    asked = [id(generation.request) for generation in generations]
    return [
        connection
        for connection in server.connections
        for request in connection.received
        if request.path == "/completion" or id(request) in asked
    ]


async def left(server: RawServer) -> list[Connection]:
    """Wait until we have closed the connections that a completion was asked for over."""
    posted = completions(server)
    for connection in posted:
        await connection.over(WITHIN)
    return posted
