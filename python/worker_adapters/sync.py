"""An adapter for code without an event loop.

    from worker_adapters.sync import SyncWorkerAdapter

    with SyncWorkerAdapter(LlamaCppAdapter("http://127.0.0.1:8080")) as adapter:
        for event in adapter.submit(TaskRequest(...)):
            ...

The adapter runs in a thread that belongs to the facade; every call waits for it. Calls may come
from any thread, a stream has one reader. Ctrl-C while a call waits cancels it, and a stream that is
being read.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID

from worker_adapters._core import TokenEvent
from worker_adapters._portal import Portal
from worker_adapters.adapter import WorkerAdapter
from worker_adapters.capabilities import AdapterCapabilities
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
)
from worker_adapters.stream import TokenStream

__all__ = ["SyncTokenStream", "SyncWorkerAdapter"]

_T = TypeVar("_T")


class SyncWorkerAdapter:
    """``adapter`` without ``await``: same names, same results, same exceptions.

    It owns the adapter and a thread: close it, or use it as a context manager. Not to be used in a
    process forked after it was made, where every call raises RuntimeError, and not in the thread of
    an event loop, which every call would hold up.
    """

    def __init__(self, adapter: WorkerAdapter) -> None:
        self._adapter = adapter
        self._portal = Portal(adapter.aclose)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._adapter!r})"

    def health(self, *, timeouts: Timeouts | None = None) -> WorkerHealth:
        """Ask whether the engine is ready. See `WorkerAdapter.health`."""
        return self._portal.call(self._adapter.health(timeouts=timeouts))

    def props(self, *, timeouts: Timeouts | None = None) -> WorkerProps:
        """Ask for the engine's slots. See `WorkerAdapter.props`."""
        return self._portal.call(self._adapter.props(timeouts=timeouts))

    def engine_version(self, *, timeouts: Timeouts | None = None) -> str:
        """Ask the engine which build it is. See `WorkerAdapter.engine_version`."""
        return self._portal.call(self._adapter.engine_version(timeouts=timeouts))

    def identity(self, *, timeouts: Timeouts | None = None) -> WorkerIdentity:
        """Ask the engine what it is. See `WorkerAdapter.identity`."""
        return self._portal.call(self._adapter.identity(timeouts=timeouts))

    def capabilities(self, *, timeouts: Timeouts | None = None) -> AdapterCapabilities:
        """Tell what adapter and engine can do. See `WorkerAdapter.capabilities`."""
        return self._portal.call(self._adapter.capabilities(timeouts=timeouts))

    def submit(
        self,
        task: TaskRequest,
        *,
        context: SubmitContext | None = None,
        timeouts: Timeouts | None = None,
    ) -> "SyncTokenStream":
        """Send ``task`` and return its stream. See `WorkerAdapter.submit`."""
        work = self._adapter.submit(task, context=context, timeouts=timeouts)
        return SyncTokenStream(self._portal.call(work), self._portal)

    def cancel(self, task_id: UUID | str, *, confirm_within_ms: float = 0) -> CancelReceipt:
        """Cancel a task in whatever phase. See `WorkerAdapter.cancel`."""
        return self._portal.call(self._adapter.cancel(task_id, confirm_within_ms=confirm_within_ms))

    def embed(
        self,
        task: TaskRequest,
        *,
        context: SubmitContext | None = None,
        timeouts: Timeouts | None = None,
    ) -> list[list[float]]:
        """Return one vector per input. See `WorkerAdapter.embed`."""
        return self._portal.call(self._adapter.embed(task, context=context, timeouts=timeouts))

    def rerank(
        self,
        task: TaskRequest,
        *,
        context: SubmitContext | None = None,
        timeouts: Timeouts | None = None,
    ) -> list[RerankScore]:
        """Return one score per document. See `WorkerAdapter.rerank`."""
        return self._portal.call(self._adapter.rerank(task, context=context, timeouts=timeouts))

    def close(self) -> None:
        """Cancel what is in flight and close every connection and the thread. Idempotent."""
        if self._portal.is_closed or not self._portal.is_of_this_process:
            return
        try:
            self._portal.call(self._adapter.aclose())
        finally:
            self._portal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class SyncTokenStream:
    """A `TokenStream` to be read without ``await``. A stream has one reader at a time.

    `cancel` and `close` may be called from any thread, also while another one reads.
    """

    def __init__(self, stream: TokenStream, portal: Portal) -> None:
        self._stream = stream
        self._portal = portal

    def __repr__(self) -> str:
        return repr(self._stream)

    @property
    def task_id(self) -> UUID:
        """The task this is the stream of."""
        return self._stream.task_id

    @property
    def cancelled(self) -> bool:
        """Whether the stream was cancelled or left before its end."""
        return self._stream.cancelled

    @property
    def is_terminal(self) -> bool:
        """Whether the terminal event exists, delivered or not."""
        return self._stream.is_terminal

    @property
    def tokens_emitted(self) -> int:
        """How many tokens the events so far stand for."""
        return self._stream.tokens_emitted

    @property
    def metrics_dropped(self) -> int:
        """How many ``metrics`` events gave way to a later one before anybody had taken them."""
        return self._stream.metrics_dropped

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TokenEvent:
        try:
            # What one read completed needs the other thread once.
            return self._stream._ready.popleft()
        except IndexError:
            return self._next(self._stream.__anext__)

    def batches(
        self, max_events: int | None = None, max_wait: float | None = None
    ) -> Iterator[list[TokenEvent]]:
        """Iterate over lists of events. See `TokenStream.batches`."""
        return _Each(self, self._stream.batches(max_events, max_wait))

    def sse(self, max_wait: float | None = None) -> Iterator[bytes]:
        """Iterate over the events as server-sent ones. See `TokenStream.sse`."""
        return _Each(self, self._stream.sse(max_wait))

    def collect(self) -> Collected:
        """Read the rest and return it as one answer. See `TokenStream.collect`."""
        return self._read(self._stream.collect())

    def cancel(self, *, confirm_within_ms: float = 0) -> CancelReceipt:
        """Cancel the task. See `TokenStream.cancel`."""
        return self._portal.call(self._stream.cancel(confirm_within_ms=confirm_within_ms))

    def close(self) -> None:
        """Leave the stream: nothing more is delivered. Idempotent."""
        if not self._stream._closed and not self._portal.is_closed:
            self._portal.call(self._stream.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _next(self, following: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        try:
            return self._read(following())
        except StopAsyncIteration:
            raise StopIteration from None
        except RuntimeError:
            # Closed with the adapter, by another thread; the terminal event has been delivered.
            if self._portal.is_closed and self._is_read_out:
                raise StopIteration from None
            raise

    @property
    def _is_read_out(self) -> bool:
        stream = self._stream
        return stream.is_terminal and not stream._ready and not stream._pending

    def _read(self, work: Coroutine[Any, Any, _T]) -> _T:
        try:
            return self._portal.call(work)
        except Exception:
            raise
        except BaseException:
            # Ctrl-C: what has been read meanwhile is lost, so the stream is over.
            with contextlib.suppress(RuntimeError):  # closed meanwhile
                self._portal.start(self._stream.cancel())
            raise


class _Each(Iterator[_T]):
    """What `SyncTokenStream.batches` and `sse` return."""

    def __init__(self, stream: SyncTokenStream, following: AsyncIterator[_T]) -> None:
        self._stream = stream
        self._following: Any = following

    def __next__(self) -> _T:
        following: _T = self._stream._next(self._following.__anext__)
        return following
