"""What is put to the test, and what a check can find."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NoReturn, TypeAlias
from uuid import uuid4

from worker_adapters.adapter import TokenStream, WorkerAdapter
from worker_adapters.contract import SubmitContext, TaskRequest
from worker_adapters.errors import WorkerError
from worker_adapters.extensions import Extensions, TaskExtensions

__all__ = [
    "Area",
    "Check",
    "CheckFailed",
    "CheckLacking",
    "CheckSkipped",
    "Connect",
    "Result",
    "Status",
    "Subject",
    "expect",
    "lacking",
    "skip",
]

Area: TypeAlias = Literal[
    "trait", "ordering", "terminal", "errors", "cancel", "counting", "utf8", "capabilities"
]
Status: TypeAlias = Literal["passed", "failed", "lacking", "skipped"]
"""``lacking``: the adapter keeps to the contract, the server cannot do it as it was started."""

Connect: TypeAlias = Callable[[str], WorkerAdapter]
"""Makes a fresh adapter for a base URL."""


class CheckFailed(AssertionError):  # noqa: N818 - it says what, not that
    """The contract is broken."""


class CheckLacking(Exception):  # noqa: N818
    """The server does not do, as it was started, what the check is about."""

    def __init__(self, feature: str, why: str) -> None:
        super().__init__(why)
        self.feature = feature


class CheckSkipped(Exception):  # noqa: N818
    """The check says nothing about this engine."""


def expect(condition: object, message: str) -> None:
    """Fail the check unless the condition holds."""
    if not condition:
        raise CheckFailed(message)


def lacking(feature: str, why: str) -> NoReturn:
    """End the check: the server lacks what it is about."""
    raise CheckLacking(feature, why)


def skip(why: str) -> NoReturn:
    """End the check without a finding."""
    raise CheckSkipped(why)


@dataclass(frozen=True, slots=True)
class Result:
    """What one check has found."""

    check: str
    area: Area
    status: Status
    detail: str = ""
    """Why, unless it passed; never a prompt, generated text or a secret."""
    feature: str | None = None
    """What is lacking."""
    seconds: float = 0.0


@dataclass(slots=True)
class Subject:
    """An engine that is up, how to make an adapter for it, and what it can be asked.

    The prompt should be answered with at least ``max_tokens`` tokens, as most models do.
    """

    engine: str
    url: str
    connect: Connect
    prompt: str = field(default="Once upon a time", repr=False)
    max_tokens: int = 16
    long_tokens: int = 1000
    """How many tokens a task asks for that is going to be cancelled; less where the context is
    too small for that."""
    chat: bool = False
    """Ask by conversations, for servers that have nothing else."""
    model_ref: str = "loaded"
    deadline_ms: int = 60_000
    _is_settled: bool = False

    def task(self, **fields: Any) -> TaskRequest:
        """Return a completion; any field can be set, and Ellipsis leaves one out."""
        extensions = fields.get("extensions")
        if self.chat and fields.get("workload", "completion") == "completion":
            said = {"role": "user", "content": fields.get("prompt", self.prompt)}
            extensions = {"messages": [said], **(extensions or {})}
            fields["prompt"] = ...
        if isinstance(extensions, dict):
            fields["extensions"] = TaskExtensions.model_validate(extensions)
            if "messages" in extensions:
                fields.setdefault("prompt", ...)
        base: dict[str, Any] = {
            "task_id": uuid4(),
            "session_id": uuid4(),
            "workload": "completion",
            "model_ref": self.model_ref,
            "engine": self.engine,
            "ctx": 0,
            "priority": "interactive",
            "max_tokens": self.max_tokens,
            "deadline_ms": self.deadline_ms,
            "prompt": self.prompt,
        }
        given = {name: value for name, value in (base | fields).items() if value is not ...}
        return Extensions.all(self.engine).task_request(**given)

    async def settle(self) -> None:
        """Fit the long tasks into the engine's context, where it tells it."""
        if self._is_settled:
            return
        self._is_settled = True
        with contextlib.suppress(WorkerError):
            async with self.adapter() as adapter:
                ctx_max = (await adapter.identity()).ctx_max
            if ctx_max is not None:
                self.long_tokens = min(self.long_tokens, max(1, ctx_max // 2))

    @asynccontextmanager
    async def adapter(self) -> AsyncIterator[WorkerAdapter]:
        """Open a fresh adapter."""
        async with self.connect(self.url) as adapter:
            yield adapter

    @asynccontextmanager
    async def nowhere(self) -> AsyncIterator[WorkerAdapter]:
        """Open an adapter for an address where nothing listens."""
        with _closed_port() as port:
            async with self.connect(f"http://127.0.0.1:{port}") as adapter:
                yield adapter

    async def run(
        self, adapter: WorkerAdapter, context: SubmitContext | None = None, **fields: Any
    ) -> TokenStream:
        """Submit a task and return its stream."""
        return await adapter.submit(self.task(**fields), context=context)


@contextlib.contextmanager
def _closed_port() -> Iterator[int]:
    # Bound and never listened to: nobody else can take it meanwhile.
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield int(closed.getsockname()[1])


CheckFunction: TypeAlias = Callable[[Subject], Awaitable[None]]

CHECK_SECONDS: Final = 120.0
"""How long one check may take; one that takes longer has found an await without bounds."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that holds for every engine.

    Await it with a `Subject`: it raises `CheckFailed`, `CheckLacking` or `CheckSkipped`. `run`
    makes a `Result` of that.
    """

    name: str
    area: Area
    function: CheckFunction = field(repr=False)

    def __str__(self) -> str:
        return f"{self.area}.{self.name}"

    @property
    def purpose(self) -> str:
        """What it checks, in one line."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]

    async def __call__(self, subject: Subject) -> None:
        """Run it; returns when it passes.

        Raises CheckFailed, CheckLacking or CheckSkipped.
        """
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await subject.settle()
                await self.function(subject)
        except WorkerError as error:
            raise CheckFailed(f"unexpected {describe(error)}") from error
        except TimeoutError as error:
            raise CheckFailed(f"not over after {CHECK_SECONDS:.0f} s") from error

    async def run(self, subject: Subject) -> Result:
        """Run it and tell what it has found; raises nothing that a check can raise."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        status: Status = "passed"
        detail, feature = "", None
        try:
            await self(subject)
        except CheckFailed as failed:
            status, detail = "failed", str(failed)
        except CheckLacking as missing:
            status, detail, feature = "lacking", str(missing), missing.feature
        except CheckSkipped as skipped:
            status, detail = "skipped", str(skipped)
        except Exception as error:  # noqa: BLE001 - whatever an adapter raises is its failure
            # Not its text, which may hold anything.
            status, detail = "failed", f"unexpected {type(error).__name__}"
        return Result(self.name, self.area, status, detail, feature, loop.time() - began)


def describe(error: WorkerError) -> str:
    """Return an error in one line."""
    return f"{error.code} ({error.detail}, {error.phase}): {error.message}"
