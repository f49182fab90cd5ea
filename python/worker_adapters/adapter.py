"""The adapter contract: what an orchestrator sees of an engine."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, ClassVar, Final, Literal, Self
from uuid import UUID

from worker_adapters._core import ErrorRules, ReplicaMetrics
from worker_adapters.capabilities import AdapterCapabilities, Feature, Source
from worker_adapters.contract import (
    CancelReceipt,
    Collected,
    RerankScore,
    SubmitContext,
    TaskRequest,
    Timeouts,
    WorkerHealth,
    WorkerIdentity,
    WorkerProps,
    Workload,
)
from worker_adapters.extensions import FEATURES, Constraint
from worker_adapters.stream import TokenStream

__all__ = ["TokenStream", "WorkerAdapter"]

_EXTENSIONS: Final = sorted(
    (FEATURES - {"constraint", "messages"})
    | {f"constraint.{kind}" for kind in Constraint.model_fields}
    | {"messages.image"}
)
"""What a capability document says of the extensions beside ``chat``, one feature each."""


class WorkerAdapter(ABC):
    """One engine at one address: what an orchestrator sees of it.

    An adapter is an async context manager and owns its connections and its streams: leaving it
    cancels what is in flight. One adapter may be used in any number of `asyncio.run` calls, one
    after the other; a stream belongs to the loop that made it.
    """

    engine: ClassVar[str]
    """The engine's name: of its module, its metrics and its captures."""

    dialect: ClassVar[str]
    """The wire dialect of its streams; `worker_adapters.StreamDecoder` decodes it."""

    rules: ClassVar[ErrorRules] = ErrorRules()
    """What its errors mean; without a row the HTTP status decides."""

    workloads: ClassVar[tuple[Workload, ...]] = ("completion",)
    """What the engine can be asked for; what it has loaded may still refuse."""

    translates: ClassVar[frozenset[str]] = frozenset()
    """Which of `TaskExtensions.used` a completion takes to the engine; the others are refused."""

    translates_unary: ClassVar[frozenset[str]] = frozenset()
    """As ``translates``, for embeddings and reranking."""

    cancel_kind: ClassVar[Literal["close", "abort", "close+abort", "none"]] = "close"
    """What frees the engine when a task is cancelled."""

    cancel_in_prefill: ClassVar[Literal["yes", "no", "unknown"]] = "unknown"
    """Whether cancelling frees the engine while it still reads the prompt."""

    determinism: ClassVar[Literal["strict", "best_effort", "none"]] = "best_effort"
    """What ``determinism="strict"`` can promise."""

    pool_id: str
    replica_id: str

    metrics: ReplicaMetrics | None = None
    """Where its tasks are counted, and what else is told of it; not at all when None."""

    @abstractmethod
    async def health(self, *, timeouts: Timeouts | None = None) -> WorkerHealth:
        """Ask whether the engine lives and is ready. Never raises for one that is unreachable."""

    @abstractmethod
    async def props(self, *, timeouts: Timeouts | None = None) -> WorkerProps:
        """Ask for the engine's slots. Raises WorkerError when the engine cannot be asked."""

    @abstractmethod
    async def submit(
        self,
        task: TaskRequest,
        *,
        context: SubmitContext | None = None,
        timeouts: Timeouts | None = None,
    ) -> TokenStream:
        """Send ``task`` and return its stream once the engine has answered 200.

        Raises WorkerError for everything that fails before; afterwards a failure is the stream's
        terminal ``error`` event. A submit that is cancelled meanwhile returns a stream of the one
        event ``end`` with ``finish_reason="cancelled"``. A task is sent again only where the engine
        has provably not taken it up.
        """

    @abstractmethod
    async def cancel(self, task_id: UUID | str, *, confirm_within_ms: float = 0) -> CancelReceipt:
        """Cancel a task in whatever phase. Idempotent; an unknown id is no error.

        No token is emitted after it returns. With ``confirm_within_ms`` the engine is waited for
        that long to confirm that it has stopped; what it said is the receipt's ``confirmed``.
        """

    @abstractmethod
    async def engine_version(self, *, timeouts: Timeouts | None = None) -> str:
        """Ask the engine which build it is. Raises WorkerError."""

    async def identity(self, *, timeouts: Timeouts | None = None) -> WorkerIdentity:
        """Ask the engine what it is and which model it has loaded. Raises WorkerError."""
        return WorkerIdentity(engine_version=await self.engine_version(timeouts=timeouts))

    async def capabilities(self, *, timeouts: Timeouts | None = None) -> AdapterCapabilities:
        """Tell what this adapter and the engine behind it can do. Raises WorkerError."""
        identity = await self.identity(timeouts=timeouts)
        return self._describe(identity, await self.props(timeouts=timeouts))

    def _features(self, identity: WorkerIdentity | None) -> Mapping[str, Feature]:
        """Return features beside those that follow from the class, or in their place."""
        del identity
        return {}

    def _describe(self, identity: WorkerIdentity | None, props: WorkerProps) -> AdapterCapabilities:
        """Put together what the class knows and what the engine told; None where it would not."""
        told: dict[str, Any] = {"slots_total": props.slots_total}
        if identity is not None:
            told |= {
                "engine_version": identity.engine_version,
                "model": identity.model,
                "ctx_max": identity.ctx_max,
                "max_tokens_out": identity.max_tokens_out,
            }
        sources: dict[str, Source] = {
            name: "engine" for name, value in told.items() if value is not None
        }
        if props.slots_total is not None and props.source == "configuration":
            sources["slots_total"] = "configuration"
        facts: dict[str, bool | str] = {
            "streaming": True,
            "seed": True,
            "cancel": self.cancel_kind,
            "cancel_in_prefill": self.cancel_in_prefill,
            "determinism": self.determinism,
            "chat": "messages" in self.translates,
            "embeddings": "embedding" in self.workloads,
            "rerank": "rerank" in self.workloads,
            "metrics": False,
        }
        for name in _EXTENSIONS:
            facts[name] = name in self.translates
        features = {name: Feature(value=value, source="adapter") for name, value in facts.items()}
        return AdapterCapabilities(
            engine=self.engine,
            supported_workloads=self.workloads,
            features=features | dict(self._features(identity)),
            sources=sources,
            **told,
        )

    async def embed(
        self,
        task: TaskRequest,
        *,
        context: SubmitContext | None = None,
        timeouts: Timeouts | None = None,
    ) -> list[list[float]]:
        """Return one vector per input, in input order.

        Raises WorkerError, and ValueError for a task of another workload.
        """
        answer = await self._unary("embedding", task, context, timeouts)
        return answer.embeddings or []

    async def rerank(
        self,
        task: TaskRequest,
        *,
        context: SubmitContext | None = None,
        timeouts: Timeouts | None = None,
    ) -> list[RerankScore]:
        """Return one score per document, in input order.

        Raises WorkerError, and ValueError for a task of another workload.
        """
        answer = await self._unary("rerank", task, context, timeouts)
        return answer.scores or []

    async def _unary(
        self,
        workload: str,
        task: TaskRequest,
        context: SubmitContext | None,
        timeouts: Timeouts | None,
    ) -> Collected:
        if task.workload != workload:
            raise ValueError(f"the task's workload is {task.workload!r}, not {workload!r}")
        stream = await self.submit(task, context=context, timeouts=timeouts)
        return await stream.collect()

    @abstractmethod
    async def aclose(self) -> None:
        """Cancel what is in flight and close every connection. Idempotent."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
