"""How bytes get to an engine and back, as seen by an adapter.

The types here are all an adapter knows of HTTP; what library speaks it is decided in one module
behind them (`_httpx`). A transport never retries, follows a redirect, reads a proxy from the
environment or keeps a cookie, and it reports every failure as a `TransportError` whose words are
the library's own: what a peer sent never gets into an exception by this way.

A `Transport` answers requests; a `StreamTransport` turns a `Submission` into a stream of events.
"""

import re
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

if TYPE_CHECKING:
    from worker_adapters._abort import Abort
    from worker_adapters._core import StreamDecoder, TokenEvent
    from worker_adapters.contract import Timeouts
    from worker_adapters.observe.watching import TaskWatcher
    from worker_adapters.stream import TokenStream

__all__ = [
    "MAX_ANSWER_BYTES",
    "MAX_ERROR_BYTES",
    "ByteStream",
    "CancelledInFlightError",
    "Headers",
    "Progress",
    "Request",
    "Response",
    "StreamTransport",
    "Submission",
    "Transport",
    "TransportError",
    "Waiting",
    "flaw_of",
    "read_body",
    "validate_base_url",
]

_T = TypeVar("_T")

Headers = Sequence[tuple[bytes, bytes]]

MAX_ANSWER_BYTES: Final = 16 << 20
"""How large the body of a unary answer may be."""

MAX_ERROR_BYTES: Final = 8 << 10
"""How much of the body of an error answer is kept."""


class TransportError(Exception):
    """A request or a response body failed on the wire.

    Attributes:
        detail: One of `worker_adapters._core.error_details()`.
        phase: One of `worker_adapters._core.error_phases()`.
        processed: Whether the engine can have taken the request up: no, unknown or yes.
        message: A sentence of the library's own for people, where the detail does not say it all.
    """

    def __init__(
        self,
        detail: str,
        phase: str,
        processed: Literal["no", "unknown", "yes"] = "unknown",
        *,
        message: str = "",
    ) -> None:
        super().__init__(f"{detail} ({phase})")
        self.detail = detail
        self.phase = phase
        self.processed = processed
        self.message = message


@dataclass(frozen=True, slots=True)
class Request:
    """One request, path relative to the base URL. Headers and body stay out of the repr."""

    method: Literal["GET", "POST"]
    path: str
    headers: Headers = field(default=(), repr=False)
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer to a unary call, whatever its status."""

    status: int
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(slots=True)
class Progress:
    """How far a request has come; the transport writes it, whoever gives up waiting reads it."""

    phase: Literal["queue", "connect", "tls", "write", "head"] = "queue"
    status: int | None = None
    partial_head: bool = False
    """Whether some of the response's head has come, but not all of it."""

    @property
    def processed(self) -> Literal["no", "unknown"]:
        """Whether the engine can have seen anything of the request yet."""
        return "unknown" if self.phase in {"write", "head"} else "no"


class ByteStream(Protocol):
    """The head of a response and its body as it arrives; belongs to one event loop.

    Whoever holds one ends it by `read` to the end, `aclose` or `abort`; an abandoned one keeps a
    connection.
    """

    status: int
    headers: Headers

    async def read(self) -> bytes:
        """Return the next bytes as they came, ``b""`` at the end of the body.

        Raises TransportError when the body breaks off or `abort` is called meanwhile.
        """

    def read_nowait(self) -> bytes:
        """Return what has arrived and needs no waiting, ``b""`` where nothing has; never raises."""

    def abort(self) -> None:
        """Close the socket at once, wake a pending `read`, and have the loop tidy up.

        Never blocks and never raises. Safe while the loop is closed or in another thread.
        """

    async def aclose(self) -> None:
        """Give the connection back if the body was read to its end, else close it; idempotent."""


class Transport(Protocol):
    """Sends requests to one base URL."""

    async def open(
        self,
        request: Request,
        progress: Progress,
        *,
        connect: float | None,
        tls: float | None,
    ) -> ByteStream:
        """Send ``request`` and return when the response head is there.

        ``connect`` and ``tls`` bound those steps in seconds; everything else is the caller's to
        bound, by cancelling. Raises TransportError.
        """

    async def aclose(self) -> None:
        """Close every connection this transport opened in the running loop; idempotent."""


class CancelledInFlightError(Exception):
    """The task was cancelled while its submit was waiting."""


class Waiting(Protocol):
    """Whoever waits for a submit, as a data plane sees it."""

    timeouts: "Timeouts"
    progress: Progress
    """How far the request is; the data plane keeps it, from a fresh one on."""
    abort: "Abort | None"

    @property
    def cancelled(self) -> bool:
        """Whether the task has been cancelled; it can be while nothing is being waited for."""

    @property
    def deadline_passed(self) -> bool:
        """Whether the task's time is up."""

    async def wait(self, work: Coroutine[Any, Any, _T], until: float | None) -> _T:
        """Await ``work`` until that instant of the submission's clock.

        ``work`` is cancelled, as tasks are, when the waiting ends before it does. Raises
        TimeoutError, or CancelledInFlightError once the task is cancelled, from whatever thread.
        """


@dataclass(frozen=True, slots=True, eq=False)
class Submission:
    """One task on its way to the engine: what it takes to send it and to make its stream."""

    task_id: UUID
    request: Request
    decoder: "StreamDecoder"
    """Fresh: it has been told nothing yet, and belongs to the stream from now on."""
    call: Waiting
    clock: Callable[[], float]
    """Monotonic seconds, the axis of every instant here and in the decoder."""
    on_terminal: "Callable[[TokenEvent], None]"
    """Called with the terminal event of the stream, in the loop that submits."""
    abort: "Abort | None" = None
    """The engine's own abort of the task, not started."""
    narration: "TaskWatcher | None" = None
    """Who tells how the stream fares."""

    def given_up(self) -> None:
        """Have the task aborted, now that nobody waits for its head any more."""
        if self.abort is not None and self.call.progress.processed != "no":
            self.abort.start()
            self.call.abort = self.abort


class StreamTransport(Protocol):
    """The data plane of one base URL: sends tasks and makes their streams."""

    async def submit(self, submission: Submission) -> "TokenStream":
        """Send the request, once, and return its stream as soon as the engine has answered 200.

        The first-token clock and the deadline of the decoder run from here on, and the bounds on
        connecting are the call's. Raises the WorkerError that the decoder makes of everything that
        fails before, an answer of another status included, and CancelledInFlightError where the
        task is cancelled meanwhile. Whoever leaves without an answer, but for the engine being
        gone, says so by `Submission.given_up`.
        """

    async def aclose(self) -> None:
        """Close every connection of its own in the running loop; idempotent."""


def validate_base_url(url: str) -> str:
    """Return ``url`` without a trailing slash, ready for a path to be appended.

    Raises ValueError, saying what to write instead, for anything but
    ``http[s]://host[:port][/prefix]``.
    """
    if not url or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("base_url must be printable ASCII without spaces, like http://host:8080")
    if "\\" in url:
        raise ValueError("base_url must not contain a backslash")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # What it says quotes the URL, which may hold a password where a port is expected.
        raise ValueError("base_url is malformed; write http://host:8080") from None
    if parts.scheme not in {"http", "https"}:
        raise ValueError("base_url must start with http:// or https://")
    if parts.username is not None or parts.password is not None:
        raise ValueError("base_url must not contain credentials; pass them as api_key")
    if not parts.hostname or port == 0:
        raise ValueError("base_url must name a host and, if any, a port from 1 to 65535")
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise ValueError("base_url must not have a query or a fragment")
    return url.rstrip("/")


_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(rb"[\t -~]*")
_TARGET: Final = re.compile(r"[!-~]+")


def flaw_of(request: Request) -> str:
    """Say what of a request must not be sent; nothing for one that may be.

    CR, LF, NUL or the like would let a value end its line and begin another.
    """
    if _TARGET.fullmatch(request.path) is None:
        return "the path of the request is not printable ASCII without spaces"
    for name, value in request.headers:
        if _TOKEN.fullmatch(name) is None:
            return "the name of a header is no token"
        if _VALUE.fullmatch(value) is None:
            return f"the header {name.decode('ascii')} is not printable ASCII"
    return ""


async def read_body(body: ByteStream, limit: int) -> tuple[bytes, bool]:
    """Read a body to its end, at most ``limit`` bytes of it; whether that was all comes second.

    The stream is left open when it was longer. Raises TransportError.
    """
    pieces: list[bytes] = []
    size = 0
    while data := await body.read():
        pieces.append(data)
        size += len(data)
        if size > limit:
            return b"".join(pieces)[:limit], False
    return b"".join(pieces), True
