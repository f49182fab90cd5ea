"""What is told of a task and of a replica: the lines of the log contract.

A line is one of `ACTIONS` and says it twice: in fields, for machines, and in ``human``, a short
sentence without an id in it. A task has ``submit``, ``start`` once the engine has, any ``retry``,
and one of ``end``, ``cancel`` and ``error`` in the end. There is never one per token.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final, Protocol
from uuid import UUID

from worker_adapters._core import Redactor, TokenEvent
from worker_adapters.contract import SubmitContext, TaskRequest
from worker_adapters.errors import WorkerError
from worker_adapters.observe.logs import Logs
from worker_adapters.observe.watching import TaskWatcher

__all__ = ["ACTIONS", "Narration", "Narrator", "narrated"]

ACTOR: Final = "adapter-host"

ACTIONS: Final = MappingProxyType(
    {
        "submit": logging.INFO,
        "start": logging.INFO,
        "retry": logging.WARNING,
        "end": logging.INFO,
        "cancel": logging.INFO,
        "error": logging.ERROR,
        "breaker": logging.WARNING,
        "text": logging.DEBUG,
    }
)
"""What a line may be of, and its level."""

_ENGINES: Final = {
    "llamacpp": "llama.cpp",
    "vllm": "vLLM",
    "tgi": "TGI",
    "triton": "Triton",
    "openai": "the OpenAI-compatible server",
    "sglang": "SGLang",
}
_WORKLOADS: Final = {
    "completion": "a completion",
    "embedding": "an embedding",
    "rerank": "a rerank",
}
_PHASES: Final = {
    "validate": "before it was sent",
    "queue": "before it was sent",
    "resolve": "while its host was looked up",
    "connect": "while connecting",
    "tls": "during the TLS handshake",
    "write": "while it was being sent",
    "head": "while waiting for the answer",
    "first_token": "while waiting for the first token",
    "stream": "in mid-stream",
    "cancel": "while it was cancelled",
    "drain": "while its replica was leaving",
}
_BREAKER: Final = {
    "open": "No more tasks go to {engine}{pool} for now, because it kept failing.",
    "half_open": "One task will show whether {engine}{pool} is well again.",
    "closed": "{engine}{pool} is well again and takes tasks.",
}

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z._ -]{0,39}[0-9]{0,3}")
_HEX: Final = re.compile(r"[0-9A-Fa-f]{6,}|[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}")


class Keys(Protocol):
    """Keys of a replica, which may change."""

    redactor: Redactor
    """Keeps those of now, and of lately, out of text."""


class Narrator:
    """Tells of one replica, whose ``keys`` get into no text.

    Costs next to nothing while nobody listens.
    """

    def __init__(
        self,
        logs: Logs,
        *,
        engine: str,
        pool_id: str,
        replica_id: str,
        clock: Callable[[], float],
        keys: Keys | None = None,
        uniform: Callable[[float, float], float] | None = None,
    ) -> None:
        self.logs = logs
        self.clock = clock
        self._keys = keys
        self._uniform = uniform
        self.engine = _ENGINES.get(engine) or _readable(engine) or "the engine"
        self.pool = f" in pool {name}" if (name := _readable(pool_id)) else ""
        self._fields = {
            "engine": engine,
            "pool_id": pool_id,
            "replica_id": replica_id,
            "actor": ACTOR,
            "target": f"{pool_id}/{replica_id}",
        }

    def task(
        self,
        task: TaskRequest,
        context: SubmitContext,
        correlation_id: str,
        engine_version: str | None = None,
    ) -> "Narration | None":
        """Return who tells of this task; None while nobody would listen."""
        if not self.logs.is_enabled():
            return None
        fields: dict[str, Any] = {
            **self._fields,
            "job_id": context.job_id,
            "session_id": str(task.session_id),
            "task_id": str(task.task_id),
            "correlation_id": correlation_id,
            "engine_version": engine_version,
            "queue_position": context.queue_position,
            "predicted_start_ms": context.predicted_start_ms,
        }
        return Narration(self, fields, task, has_text=self._is_sampled())

    def breaker(self, state: str, detail: str | None = None) -> None:
        """Tell that the replica's circuit breaker is now ``open``, ``half_open`` or ``closed``.

        ``detail`` is the stable word of the failure that opened it.
        """
        human = _sentence(_BREAKER[state].format(engine=self.engine, pool=self.pool))
        self.tell("breaker", human, {"state": state, "detail": detail})

    def retry(self, error: WorkerError, attempt: int, pause: float) -> None:
        """Tell that a call that belongs to no task is made once more."""
        if self.logs.is_enabled(ACTIONS["retry"]):
            human = f"Asking {self.engine}{self.pool} again {_after(pause)} ({_cause(error)})."
            fields = _of_error(error) | {"correlation_id": error.correlation_id}
            self.tell("retry", human, fields | {"attempt": attempt, "pause_ms": _ms(pause)})

    def tell(self, action: str, human: str, fields: dict[str, Any]) -> None:
        """Tell that, in a sentence and in fields; those that are None are left out."""
        told = {name: value for name, value in fields.items() if value is not None}
        self.logs._narrate(ACTIONS[action], human, {**self._fields, **told, "action": action})

    def redacted(self, text: str) -> str:
        """The text without keys, and whatever looks like one."""
        redactor = Redactor() if self._keys is None else self._keys.redactor
        return redactor.redact(text)

    def _is_sampled(self) -> bool:
        policy = self.logs.text
        if policy is None or not self.logs.is_enabled(ACTIONS["text"]):
            return False
        return self._uniform is not None and self._uniform(0.0, 1.0) < policy.sample_rate


class Narration:
    """Tells of one task, from its submit to its end, of which there is one."""

    __slots__ = (
        "_began",
        "_fields",
        "_heard",
        "_is_over",
        "_narrator",
        "_task",
        "_was_submitted",
        "has_text",
    )

    def __init__(
        self, narrator: Narrator, fields: dict[str, Any], task: TaskRequest, *, has_text: bool
    ) -> None:
        self._narrator = narrator
        self._fields = fields
        self._task: TaskRequest | None = task
        self._began = narrator.clock()
        self._was_submitted = False
        self._is_over = False
        self._heard: list[str] = []
        self.has_text = has_text
        """Whether the task's texts are to be told, too: in development, for some tasks."""

    def __repr__(self) -> str:
        return f"<Narration over={self._is_over}>"

    def served_by(self, engine_version: str | None) -> None:
        """Keep what the engine says it is."""
        if engine_version is not None:
            self._fields["engine_version"] = engine_version

    def submitted(self, request_id: str | None = None) -> None:
        """Tell that the task is on its way."""
        if self._was_submitted:
            return
        self._was_submitted = True
        task, self._task = self._task, None
        self._fields["request_id"] = request_id
        narrator = self._narrator
        what = "a task" if task is None else _WORKLOADS[task.workload]
        self._tell("submit", f"Sending {what} to {narrator.engine}{narrator.pool}.")
        if self.has_text and task is not None:
            texts = (task.prompt, *(task.inputs or ()))
            self._tell_text("prompt", "\n".join(text for text in texts if text is not None))

    def retried(self, error: WorkerError, attempt: int, pause: float) -> None:
        """Tell that it is sent once more after that pause, in seconds."""
        human = f"Sending the task again {_after(pause)} ({_cause(error)})."
        self._tell("retry", human, {**_of_error(error), "attempt": attempt, "pause_ms": _ms(pause)})

    def started(self) -> None:
        """Tell that the engine has begun to answer."""
        human = f"{_sentence(self._narrator.engine)} began to answer after {self._elapsed()}."
        self._tell("start", human)

    def ended(self, terminal: TokenEvent) -> None:
        """Tell of the stream's terminal event."""
        if isinstance(error := terminal.error, WorkerError):
            self.failed(error)
            return
        cancelled = terminal.finish_reason == "cancelled"
        tokens = terminal.tokens_out or 0
        fields = {
            "tokens_in": terminal.tokens_in,
            "tokens_out": tokens,
            "decode_time_ms": terminal.decode_ms,
            "latency_first_token_ms": terminal.latency_first_token_ms,
            "finish_reason": terminal.finish_reason,
        }
        self.served_by(terminal.engine_version)
        if cancelled:
            self._finish("cancel", f"The task was cancelled after {_count(tokens)}.", fields)
        else:
            who, took = _sentence(self._narrator.engine), self._elapsed()
            self._finish("end", f"{who} finished with {_count(tokens)} after {took}.", fields)

    def failed(self, error: WorkerError) -> None:
        """Tell that the task failed, before its stream or in it."""
        phase = _PHASES.get(error.phase, "on its way")
        human = f"The task failed {phase} ({_cause(error)})."
        fields = {**_of_error(error), "tokens_out": error.tokens_emitted}
        self._finish("error", human, fields)

    def broke(self) -> None:
        """Tell of an exception that is none of the contract's."""
        fields = {"code": "INTERNAL", "detail": "internal", "retriable": False}
        self._finish("error", "The task failed because of a fault in the adapter.", fields)

    def dropped(self, tokens: int = 0) -> None:
        """Tell that nobody waits for the task any more."""
        human = f"The task was given up after {_count(tokens)}."
        fields = {"tokens_out": tokens, "finish_reason": "cancelled"}
        self._finish("cancel", human, fields)

    def heard(self, events: Iterable[TokenEvent]) -> None:
        """Keep the text of these events until the last of them has come, and tell it then."""
        for event in events:
            if event.kind == "token" and event.channel == "content":
                self._hear(event.t or "")
            elif event.is_terminal:
                self._tell_text("text", "".join(self._heard))
                self._heard.clear()

    def _hear(self, text: str) -> None:
        policy = self._narrator.logs.text
        if policy is not None and sum(map(len, self._heard)) < policy.max_chars:
            self._heard.append(text)

    def _tell_text(self, name: str, text: str) -> None:
        """Tell a text of the task, under the policy that asked for it."""
        narrator = self._narrator
        policy = narrator.logs.text
        if policy is not None and self.has_text:
            shown = narrator.redacted(text[: policy.max_chars])
            human = "This is what was asked." if name == "prompt" else "This is what was answered."
            self._tell("text", human, {name: shown})

    def _elapsed(self) -> str:
        return _seconds(self._narrator.clock() - self._began)

    def _finish(self, action: str, human: str, fields: dict[str, Any]) -> None:
        if not self._is_over:
            self.submitted()
            self._is_over = True
            self._tell(action, human, fields)

    def _tell(self, action: str, human: str, fields: dict[str, Any] | None = None) -> None:
        self._narrator.tell(action, human, self._fields | (fields or {}))


@contextmanager
def narrated(narration: TaskWatcher | None) -> Iterator[None]:
    """Tell of what comes out of a submit that returns no stream."""
    try:
        yield
    except WorkerError as error:
        if narration is not None:
            narration.failed(error)
        raise
    except Exception:
        if narration is not None:
            narration.broke()
        raise
    except BaseException:
        if narration is not None:
            narration.dropped()
        raise


def _of_error(error: WorkerError) -> dict[str, Any]:
    return {
        "code": error.code,
        "detail": error.detail,
        "phase": error.phase,
        "retriable": error.retriable,
        "error": error.message or None,
    }


def _cause(error: WorkerError) -> str:
    return _readable(error.detail.replace("_", " ")) or "an error of the engine"


def _sentence(text: str) -> str:
    """The text as a sentence begins; the name of an engine is spelled as it is."""
    return "T" + text[1:] if text.startswith("the ") else text


def _count(tokens: int) -> str:
    # With separators: a long number looks like an id.
    return "one token" if tokens == 1 else f"{tokens:,} tokens"


def _seconds(seconds: float) -> str:
    return f"{max(0.0, seconds):,.2f} s"


def _after(pause: float) -> str:
    return f"in {_seconds(pause)}"


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _readable(name: str) -> str | None:
    """The name of something where it reads as a word; an id would tell people nothing."""
    if _NAME.fullmatch(name) is None or _HEX.search(name) is not None or _is_uuid(name):
        return None
    return name


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
