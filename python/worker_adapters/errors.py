"""Every exception this library raises about an engine or a task.

    * WorkerError
      - DeadlineUnmet     the task's deadline passed, in whatever phase
      - PoolUnavailable   unreachable, refused, loading, draining, overloaded
      - DecodeTimeout     the head, the first token, the next token or any byte stayed out
      - WorkerReset       the connection or the engine broke after the request was sent
      - AdapterError      the request or the configuration is wrong, or the engine speaks nonsense
      - InternalError     a fault of this library

Decide by attributes, never by the text of a message: `kind` and `detail` are stable words,
`retriable`, `processed`, `phase` and `tokens_emitted` say what a retry would risk. Misuse of the
library itself (a malformed argument, two readers of one stream) is a ValueError or a
RuntimeError, as everywhere in Python.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

__all__ = [
    "AdapterError",
    "DeadlineUnmet",
    "DecodeTimeout",
    "InternalError",
    "PoolUnavailable",
    "WorkerError",
    "WorkerReset",
    "from_fields",
]


class WorkerError(Exception):
    """A task or a call to an engine failed. Catch this to catch them all.

    Attributes:
        kind: Which WorkerError this is; fixed per subclass.
        code: The ErrorKind the orchestrator reports, such as ``"DECODE_TIMEOUT"``.
        detail: A stable word for the cause, such as ``"connect"`` or ``"truncated"``.
        message: What happened, in English, with secrets redacted; also ``str(error)``.
        retriable: Whether the same task may succeed elsewhere or later.
        retry_after_ms: How long the engine asked to wait, in milliseconds.
        phase: Where it happened: ``validate``, ``queue``, ``resolve``, ``connect``, ``tls``,
            ``write``, ``head``, ``first_token``, ``stream``, ``cancel`` or ``drain``.
        status: The HTTP status, where there was one.
        processed: Whether the engine took the task up: ``"no"``, ``"unknown"`` or ``"yes"``.
        tokens_emitted: How many tokens had been delivered before.
        engine: Which engine, by the name its adapter has.
        correlation_id: The ``X-Correlation-Id`` of the request.
    """

    kind: ClassVar[str] = "Worker"
    _default_code: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        *,
        message: str,
        detail: str,
        code: str | None = None,
        retriable: bool = False,
        retry_after_ms: int | None = None,
        phase: str = "validate",
        status: int | None = None,
        processed: str = "unknown",
        tokens_emitted: int = 0,
        engine: str | None = None,
        correlation_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = self._default_code if code is None else code
        self.detail = detail
        self.retriable = retriable
        self.retry_after_ms = retry_after_ms
        self.phase = phase
        self.status = status
        self.processed = processed
        self.tokens_emitted = tokens_emitted
        self.engine = engine
        self.correlation_id = correlation_id

    def fields(self) -> dict[str, Any]:
        """Return every attribute, ``kind`` included: what `from_fields` takes."""
        return {"kind": self.kind, **{name: getattr(self, name) for name in _FIELDS}}

    def __reduce__(self) -> tuple[Any, ...]:
        fields = self.fields()
        del fields["kind"]
        # BaseException pickles its positional arguments; these are keywords only.
        return _rebuild, (type(self), fields), self.__dict__

    def __repr__(self) -> str:
        shown = ("code", "detail", "phase", "status", "message")
        inner = ", ".join(
            f"{name}={value!r}" for name in shown if (value := getattr(self, name)) is not None
        )
        return f"{type(self).__name__}({inner})"


_FIELDS = (
    "code",
    "detail",
    "message",
    "retriable",
    "retry_after_ms",
    "phase",
    "status",
    "processed",
    "tokens_emitted",
    "engine",
    "correlation_id",
)


class DeadlineUnmet(WorkerError):
    """The task's deadline passed before its end; ``phase`` says how far it had come."""

    kind = "DeadlineUnmet"
    _default_code = "DEADLINE_UNMET"


class PoolUnavailable(WorkerError):
    """The engine cannot take the task now: unreachable, loading, draining or overloaded."""

    kind = "PoolUnavailable"
    _default_code = "POOL_UNAVAILABLE"


class DecodeTimeout(WorkerError):
    """A clock ran out while the engine owed an answer; ``detail`` names the clock."""

    kind = "DecodeTimeout"
    _default_code = "DECODE_TIMEOUT"


class WorkerReset(WorkerError):
    """The connection or the engine broke after the request had been sent."""

    kind = "WorkerReset"
    _default_code = "WORKER_RESET"


class AdapterError(WorkerError):
    """The engine refuses the request, or answers what is not its protocol."""

    kind = "Adapter"
    _default_code = "INVALID_PARAMS"


class InternalError(WorkerError):
    """A fault of this library. Please report it."""

    kind = "Internal"
    _default_code = "INTERNAL"


_BY_KIND: dict[str, type[WorkerError]] = {
    cls.kind: cls
    for cls in (
        DeadlineUnmet,
        PoolUnavailable,
        DecodeTimeout,
        WorkerReset,
        AdapterError,
        InternalError,
    )
}


def from_fields(fields: Mapping[str, Any]) -> WorkerError:
    """Build the error that ``fields`` describe, of the class that ``fields["kind"]`` names.

    The compiled core builds its errors here. Raises ValueError for an unknown kind and TypeError
    for an unknown field.
    """
    arguments = dict(fields)
    kind = arguments.pop("kind", None)
    cls = _BY_KIND.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ValueError(f"unknown error kind {kind!r}; one of {', '.join(_BY_KIND)}")
    return cls(**arguments)


def _rebuild(cls: type[WorkerError], fields: dict[str, Any]) -> WorkerError:
    return cls(**fields)
