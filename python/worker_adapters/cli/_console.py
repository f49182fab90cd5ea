"""Where output goes, and what an exit status means.

stdout carries data and nothing else, always UTF-8, flushed as it comes; everything for people
goes to stderr, in colour only where stderr is a terminal and ``NO_COLOR`` is not set.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, TypeVar

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from rich.console import Console

    from worker_adapters import WorkerError

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "NOT_CONFORMANT",
    "PIPE_CLOSED",
    "UNREACHABLE",
    "USAGE",
    "fail",
    "fail_invalid",
    "fail_with",
    "for_people",
    "guarded",
    "let_go_of_stdout",
    "note",
    "print_text",
    "run",
    "visible",
]

FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
NOT_CONFORMANT: Final = 4
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141
"""What a shell shows for a program that SIGPIPE ended: whoever read stdout has gone."""

_T = TypeVar("_T")

# What a terminal would obey instead of show: a model's text must not move the cursor, rename the
# window or answer in the user's name. Tab and line feed stay; shown are the Unicode pictures.
_CONTROLS: Final = {
    **{code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
}


def print_text(text: str) -> None:
    """Write data to stdout at once. Raises BrokenPipeError when its reader has gone.

    Ends the command where it cannot be written for another reason.
    """
    try:
        sys.stdout.buffer.write(text.encode("utf-8", "replace"))
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        let_go_of_stdout()
        fail(f"cannot write to stdout: {error.strerror or error}", FAILED)


def let_go_of_stdout() -> None:
    """Let what the interpreter flushes on its way out go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def visible(text: str) -> str:
    """The text as it is safe to show: on a terminal its control characters become pictures."""
    return text.translate(_CONTROLS) if sys.stdout.isatty() else text


def for_people() -> Console:
    """A console on stderr; with ``NO_COLOR`` it sends no escape sequence at all."""
    from rich.console import Console

    plain = bool(os.environ.get("NO_COLOR"))
    return Console(
        stderr=True, highlight=False, soft_wrap=True, color_system=None if plain else "auto"
    )


def note(text: str, style: str = "dim") -> None:
    """One line on stderr, taken literally (no markup)."""
    for_people().print(text, style=style, markup=False)


def fail(message: str, status: int = FAILED) -> NoReturn:
    """Say on stderr what went wrong, in one line, and end the command with ``status``."""
    note(f"worker-adapters: {message}", style="red")
    raise typer.Exit(status)


def fail_with(error: WorkerError, where: str) -> NoReturn:
    """End the command for an error of the engine at this URL, or for what it could not be sent."""
    what = f"{error.code} ({error.detail})"
    said = "" if error.message in {"", error.detail} else f": {error.message}"
    if error.phase in {"resolve", "connect", "tls"}:
        fail(f"cannot reach {where}: {what}{said}", UNREACHABLE)
    if error.phase == "validate" and error.code == "INVALID_PARAMS":
        fail(f"{what}{said}", USAGE)
    fail(f"{what} at {where}{said}", FAILED)


def fail_invalid(error: ValueError) -> NoReturn:
    """End the command for a value that the library does not take; the value is not repeated."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        fail(
            "; ".join(
                f"{'.'.join(str(part) for part in row['loc'])}: {row['msg']}"
                for row in error.errors(include_url=False, include_input=False)
            ),
            USAGE,
        )
    fail(str(error), USAGE)


@contextmanager
def guarded() -> Iterator[None]:
    """Turn Ctrl-C and a reader that has gone into their exit statuses, without a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        note("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        let_go_of_stdout()
        raise typer.Exit(PIPE_CLOSED) from None


def run(work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Run a command's coroutine. Ctrl-C cancels it, so that it can close what it has open.

    A second Ctrl-C interrupts wherever the program is.
    """
    with guarded(), _Interruption() as interruption:
        return asyncio.run(interruption.watch(work))


class _Interruption:
    """Ctrl-C as the cancellation of one coroutine.

    asyncio's own handler is in place only once a loop runs; before, Ctrl-C would tear the loop's
    construction apart.
    """

    def __init__(self) -> None:
        self._seen = False
        self._task: asyncio.Task[Any] | None = None
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        if kind is asyncio.CancelledError and self._seen:
            raise KeyboardInterrupt

    async def watch(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Do the work unless, or until, Ctrl-C is pressed."""
        self._task = asyncio.current_task()
        if self._seen:
            raise asyncio.CancelledError
        return await work()

    def _handle(self, *_: object) -> None:
        if self._seen:
            raise KeyboardInterrupt
        self._seen = True
        if self._task is not None:
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)
