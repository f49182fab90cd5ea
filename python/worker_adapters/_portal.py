"""An event loop in a thread of its own, for callers that are in none: plain threads, and trio."""

import asyncio
import concurrent.futures
import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, Final, Generic, NoReturn, TypeVar

__all__ = ["Portal", "in_trio"]

_T = TypeVar("_T")

JOIN_SECONDS: Final = 1.0
"""How long closing waits for the thread, which a name being resolved may hold up."""


def in_trio() -> bool:
    """Whether trio runs the caller."""
    trio: Any = sys.modules.get("trio")
    return trio is not None and trio.lowlevel.in_trio_run()


class Portal:
    """Runs coroutines for other threads, until it is closed or dropped. Thread-safe.

    ``at_end`` makes the last of them, and must not refer to what drops the portal.

    Raises RuntimeError for work after it was closed, in a process forked meanwhile, and for work
    that it has not finished when it is closed.
    """

    def __init__(self, at_end: Callable[[], Coroutine[Any, Any, object]] | None = None) -> None:
        self._process = os.getpid()
        self._open = threading.Lock()
        self._closed = False
        started: concurrent.futures.Future[_Running] = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=_serve, args=(started, at_end), name="worker-adapters", daemon=True
        )
        self._thread.start()
        self._running = started.result()
        # The thread knows nothing of this object, which may therefore just be dropped.
        self._stop = weakref.finalize(self, _stop, self._process, *self._running)
        self._stop.atexit = False

    @property
    def is_closed(self) -> bool:
        """Whether it takes no work any more."""
        return self._closed

    @property
    def is_of_this_process(self) -> bool:
        """Whether its thread is there: a fork leaves threads behind."""
        return self._process == os.getpid()

    def call(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run ``work`` and wait for what comes of it; Ctrl-C ends the waiting and cancels it."""
        job = self.start(work)
        try:
            return job.outcome.result()
        except concurrent.futures.CancelledError:
            raise _closed() from None
        except BaseException:
            if not job.outcome.done():
                job.cancel()
            raise

    async def call_from_trio(self, work: Coroutine[Any, Any, _T], *, shield: bool = False) -> _T:
        """As `call`, for a task of trio, whose cancellation goes on to ``work``.

        The task is cancelled once ``work`` has ended. Shielded work is not cancelled.
        """
        trio: Any = sys.modules["trio"]
        task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()
        raise_cancel: Callable[[], NoReturn] | None = None
        job = self.start(work)

        def wake(_: object) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(trio.lowlevel.reschedule, task)

        def abort(cancel: Callable[[], NoReturn]) -> Any:
            nonlocal raise_cancel
            raise_cancel = cancel
            job.cancel()
            return trio.lowlevel.Abort.FAILED

        job.outcome.add_done_callback(wake)
        with trio.CancelScope(shield=shield):
            await trio.lowlevel.wait_task_rescheduled(abort)
        try:
            return job.outcome.result()
        except concurrent.futures.CancelledError:
            if raise_cancel is not None:
                raise_cancel()
            raise _closed() from None

    def start(self, work: Coroutine[Any, Any, _T]) -> "_Job[_T]":
        """Begin ``work`` in the loop, in the context of the caller."""
        why = ""
        if not self.is_of_this_process:
            why = "it was made before this process was forked; make one in each process"
        elif threading.current_thread() is self._thread:
            why = "it cannot be waited for in its own thread"
        if why:
            work.close()
            raise RuntimeError(why)
        job: _Job[_T] = _Job(self._running[0])
        with self._open:
            if not self._closed:
                # Before the loop is told to stop, which then sees to it that all work ends.
                self._running[0].call_soon_threadsafe(job.begin, work)
                return job
        work.close()
        raise _closed()

    def close(self) -> None:
        """Cancel all work and wait a little for the thread to end. Idempotent."""
        if not self.is_of_this_process:
            return
        with self._open:
            self._closed = True
            self._stop()
        if threading.current_thread() is not self._thread:
            self._thread.join(JOIN_SECONDS)


class _Job(Generic[_T]):
    """Work under way in the loop of a portal."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.outcome: concurrent.futures.Future[_T] = concurrent.futures.Future()
        self._loop = loop
        self._task: asyncio.Task[_T] | None = None

    def begin(self, work: Coroutine[Any, Any, _T]) -> None:
        """Begin; in the loop."""
        self._task = self._loop.create_task(work)
        self._task.add_done_callback(self._over)

    def cancel(self) -> None:
        """Cancel the work, not before its first step; in whatever thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None:
            self._loop.call_soon(self._task.cancel)

    def _over(self, task: asyncio.Task[_T]) -> None:
        if task.cancelled():
            self.outcome.cancel()
        elif (error := task.exception()) is not None:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(task.result())


_Running = tuple[asyncio.AbstractEventLoop, asyncio.Event]
"""The loop of a portal, and what ends it."""


def _serve(
    started: "concurrent.futures.Future[_Running]",
    at_end: Callable[[], Coroutine[Any, Any, object]] | None,
) -> None:
    async def until_stopped() -> None:
        stopped = asyncio.Event()
        started.set_result((asyncio.get_running_loop(), stopped))
        await stopped.wait()
        if at_end is not None:
            await at_end()

    asyncio.run(until_stopped())


def _stop(process: int, loop: asyncio.AbstractEventLoop, stopped: asyncio.Event) -> None:
    if process == os.getpid():
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(stopped.set)


def _closed() -> RuntimeError:
    return RuntimeError("the adapter's thread has been closed")
