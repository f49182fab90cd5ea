"""Where the lines of adapters go: a standard logger, behind a bounded queue and a thread.

A handler may block, fail or be slow; whoever logs a line has done so within microseconds.
"""

import atexit
import contextlib
import contextvars
import logging
import os
import threading
import weakref
from collections.abc import Mapping
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeAlias

from worker_adapters.observe.text import TextPolicy

__all__ = ["LOGGER", "Logs", "is_narration"]

LOGGER: Final = "worker_adapters"
"""The logger above all of this library's; it has a `logging.NullHandler` and no level."""

CAPACITY: Final = 8192
"""How many lines may wait for their handlers, unless told otherwise."""

EXIT_SECONDS: Final = 1.0
"""How long an interpreter that ends waits for lines that are still on their way."""

logging.getLogger(LOGGER).addHandler(logging.NullHandler())


class _Origin(str):
    """Where a record says it was made, if it was made here; plain text once it is pickled."""

    __slots__ = ()

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


UNKNOWN: Final = "(worker_adapters)"
NARRATION: Final = _Origin(UNKNOWN)

_Item: TypeAlias = tuple[logging.Logger, logging.LogRecord, contextvars.Context] | threading.Event


class Logs:
    """Hands lines to a logger without ever waiting for its handlers.

    Adapters and hosts that are given the same one share its thread, which starts with the first
    line that somebody listens to and ends with this object, or the process. A forked process
    starts its own. Close it, or flush it, to be sure that the last lines are out.

    Args:
        logger: The logger, or its name. Levels, filters and handlers are its own; nothing here
            configures it.
        capacity: How many lines may wait; those beyond are dropped and counted.
        text: Prompts and generated text, too, of some tasks. Never outside of development.

    Raises ValueError for a capacity below 1, TypeError for what is none and for a text policy that
    is none.
    """

    def __init__(
        self,
        logger: logging.Logger | str = f"{LOGGER}.adapter",
        *,
        capacity: int = CAPACITY,
        text: TextPolicy | None = None,
    ) -> None:
        _check(capacity, text)
        self.logger = logging.getLogger(logger) if isinstance(logger, str) else logger
        self.text = text
        self._capacity = capacity
        self._pump = _Pump(capacity)
        self._finalizer = weakref.finalize(self, _Pump.stop, self._pump)
        self._finalizer.atexit = False  # the pump waits for its lines there by itself

    def __repr__(self) -> str:
        return f"Logs({self.logger.name!r}, dropped={self.dropped})"

    @property
    def dropped(self) -> int:
        """How many lines nobody got.

        The queue was full or closed, a handler raised, or their fields made no record.
        """
        return self._of_this_process().dropped

    def change(
        self,
        logger: logging.Logger | str,
        *,
        capacity: int = CAPACITY,
        text: TextPolicy | None = None,
    ) -> None:
        """Have it as one that is made with these from now on; lines on their way stay on it.

        A task whose text is told is told no more of once ``text`` is None.
        """
        _check(capacity, text)
        self.logger = logging.getLogger(logger) if isinstance(logger, str) else logger
        self.text = text
        self._capacity = self._of_this_process().capacity = capacity

    def is_enabled(self, level: int = logging.ERROR) -> bool:
        """Whether a line of that level would reach a handler."""
        return self.logger.isEnabledFor(level) and _is_heard(self.logger)

    def emit(self, level: int, human: str, fields: Mapping[str, Any]) -> None:
        """Log a line: ``human`` is its message, ``fields`` are attributes of its record.

        Never waits, never raises: a line that cannot be made, because a field is named as an
        attribute that every record has, is counted with those dropped.
        """
        self._emit(level, human, fields, UNKNOWN)

    def _narrate(self, level: int, human: str, fields: Mapping[str, Any]) -> None:
        """Log a line of this library's own, all of whose text is known to be fit for it."""
        self._emit(level, human, fields, NARRATION)

    def _emit(self, level: int, human: str, fields: Mapping[str, Any], origin: str) -> None:
        logger = self.logger
        if not logger.isEnabledFor(level):
            return
        try:
            record = logger.makeRecord(
                logger.name, level, origin, 0, human, (), None, extra=dict(fields)
            )
        except Exception:  # noqa: BLE001 - a program's record factory may raise anything
            self._of_this_process().drop()
            return
        self._of_this_process().put((logger, record, contextvars.copy_context()))

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until every line so far has been handled; whether that was so within ``timeout``.

        In seconds. It blocks: not for the thread of an event loop.
        """
        return self._of_this_process().flush(timeout)

    def close(self, timeout: float = EXIT_SECONDS) -> None:
        """Let the thread end once it has handled what waits, for which this waits a while.

        Lines that come later are dropped. Idempotent.
        """
        self._of_this_process().close(timeout)

    def _of_this_process(self) -> "_Pump":
        pump = self._pump
        if pump.process != os.getpid():
            # What waits in there is the parent's to handle, and its thread does not exist here.
            self._finalizer.detach()
            pump = self._pump = _Pump(self._capacity, is_closed=pump.is_closed)
            self._finalizer = weakref.finalize(self, _Pump.stop, pump)
            self._finalizer.atexit = False
        return pump


class _Pump:
    """The queue and the thread. It knows nothing of the `Logs` that feeds it, which may go."""

    def __init__(self, capacity: int, *, is_closed: bool = False) -> None:
        self.process = os.getpid()
        self.is_closed = is_closed
        self.dropped = 0
        self.capacity = capacity
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        # Reentrant: a signal handler, or a finalizer, may log while its own thread is in here.
        self._lock = threading.RLock()

    def put(self, item: _Item) -> None:
        if self.is_closed or self._queue.qsize() >= self.capacity or not self._started():
            self.drop()
        else:
            self._queue.put(item)

    def drop(self) -> None:
        with self._lock:
            self.dropped += 1

    def flush(self, timeout: float) -> bool:
        thread = self._thread
        if thread is None or not thread.is_alive():
            return self._queue.empty()
        handled = threading.Event()
        self._queue.put(handled)
        return handled.wait(timeout)

    def stop(self) -> None:
        """Have the thread end after what waits. Never blocks."""
        was_closed, self.is_closed = self.is_closed, True
        if self._thread is not None and not was_closed and self.process == os.getpid():
            self._queue.put(None)

    def close(self, timeout: float = EXIT_SECONDS) -> None:
        self.stop()
        thread = self._thread
        if (
            thread is not None
            and self.process == os.getpid()
            and thread is not threading.current_thread()
        ):
            thread.join(timeout)

    def _started(self) -> bool:
        """Start the thread where there is none; whether there is one."""
        if self._thread is not None:
            return True
        with self._lock:
            if self._thread is None:
                # A daemon: a handler that blocks for good must not keep the process.
                thread = threading.Thread(
                    target=self._run, name="worker-adapters-logs", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError:  # no more threads, or the interpreter is ending
                    return False
                self._thread = thread
                atexit.register(self.close)
        return True

    def _run(self) -> None:
        try:
            while (item := self._queue.get()) is not None:
                if isinstance(item, threading.Event):
                    item.set()
                    continue
                logger, record, context = item
                try:
                    # As the one who logged it: what a handler reads of spans and the like fits.
                    context.run(logger.handle, record)
                except BaseException:  # noqa: BLE001 - handlers and filters may raise anything
                    # Also what ends a process: in this thread it would end the lines alone.
                    self.drop()
                del item, logger, record, context
        finally:
            atexit.unregister(self.close)
            self._let_go()

    def _let_go(self) -> None:
        """Count what came while the thread was told to end."""
        with contextlib.suppress(Empty):
            while True:
                item = self._queue.get_nowait()
                if isinstance(item, threading.Event):
                    item.set()
                elif item is not None:
                    self.drop()


def _check(capacity: int, text: TextPolicy | None) -> None:
    # Whoever has no type checker learns it here.
    if not isinstance(capacity, int):
        raise TypeError("capacity must be a whole number")
    if capacity < 1:
        raise ValueError(f"capacity must be 1 or more, not {capacity}")
    if text is not None and not isinstance(text, TextPolicy):
        raise TypeError("text must be a TextPolicy")


def is_narration(record: logging.LogRecord) -> bool:
    """Whether a line is this library's own; what it says, and its attributes, anyone can say."""
    return record.pathname is NARRATION


def _is_heard(logger: logging.Logger) -> bool:
    """Whether a handler of this logger, or of one above it, does anything at all."""
    above: logging.Logger | None = logger
    while above is not None:
        for handler in above.handlers:
            if not isinstance(handler, logging.NullHandler):
                return True
        above = above.parent if above.propagate else None
    return False
