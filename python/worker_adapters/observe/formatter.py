"""Lines as JSON, one object per line."""

import json
import logging
import math
from datetime import UTC, datetime
from typing import IO, Any, Final

from worker_adapters._core import Redactor
from worker_adapters.observe.logs import is_narration

__all__ = ["FIELDS", "JsonFormatter", "JsonHandler"]

FIELDS: Final = (
    "job_id",
    "session_id",
    "task_id",
    "request_id",
    "correlation_id",
    "engine",
    "engine_version",
    "pool_id",
    "replica_id",
    "queue_position",
    "predicted_start_ms",
    "tokens_in",
    "tokens_out",
    "decode_time_ms",
    "latency_first_token_ms",
    "finish_reason",
    "code",
    "detail",
    "phase",
    "retriable",
    "error",
    "attempt",
    "pause_ms",
    "state",
    "prompt",
    "text",
    "actor",
    "action",
    "target",
)
"""The attributes of a record that a line has, in order, where the record has them."""


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object in one line: ``ts, level, logger``, `FIELDS`, ``human``.

    ``ts`` is UTC with milliseconds. Only ASCII, so that nothing can be taken for the end of a line.
    A number that is not finite is left out; what JSON has no scalar for is text. Records of others
    are formatted, too: their message is ``human``, what was raised ``exception``, and all of their
    text is redacted, whatever attributes they have. So is that of a line that `Logs.emit` was
    given, and of one that came here pickled.
    """

    def __init__(self) -> None:
        super().__init__()
        self._redactor = Redactor()

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        told = record.__dict__
        line: dict[str, Any] = {"level": record.levelname, "logger": record.name}
        line |= {name: value for name in FIELDS if (value := _scalar(told.get(name))) is not None}
        line["human"] = record.getMessage()
        if not is_narration(record):
            line = {name: self._redacted(value) for name, value in line.items()}
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = self._redactor.redact(self.formatException(record.exc_info))
        at = datetime.fromtimestamp(record.created, UTC)
        ts = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return json.dumps({"ts": ts, **line}, separators=(",", ":"))

    def _redacted(self, value: Any) -> Any:
        return self._redactor.redact(str(value)) if isinstance(value, str) else value


def _scalar(value: object) -> str | int | float | None:
    """Return what JSON can say in one word, or nothing."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


class JsonHandler(logging.StreamHandler[Any]):
    """Writes JSON lines to a stream, stderr unless given; behind `Logs` what cannot be is counted.

    The standard library's handlers swallow what befalls them and print it to stderr; this one
    raises it.
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        super().__init__(stream)
        self.setFormatter(JsonFormatter())

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """Raise what is being handled."""
        del record
        raise  # noqa: PLE0704 - called while it is
