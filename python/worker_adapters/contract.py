"""What crosses the boundary between an orchestrator and an adapter, besides events and errors.

Everything here is immutable and belongs to the control plane: one of each per task or call, never
one per token. Text of a task (`TaskRequest.prompt`, `TaskRequest.inputs`) and generated text
(`Collected.text`) never show in a repr, nor in the text of a validation error.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, TypeAlias
from uuid import UUID

from pydantic import (
    AfterValidator,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from worker_adapters._model import (
    Contract,
    Count32,
    HeaderText,
    Int64,
    LineText,
    Name,
    Text,
    one_line,
)
from worker_adapters.extensions import Extensions, Sampling, TaskExtensions

if TYPE_CHECKING:
    from worker_adapters._core import TokenEvent

__all__ = [
    "CancelReceipt",
    "Collected",
    "ExpectedModel",
    "Placement",
    "RerankScore",
    "SamplerProfile",
    "SubmitContext",
    "TaskRequest",
    "Timeouts",
    "WorkerHealth",
    "WorkerIdentity",
    "WorkerProps",
    "Workload",
]

Workload: TypeAlias = Literal["completion", "embedding", "rerank"]
FinishReason: TypeAlias = Literal[
    "stop", "length", "cancelled", "content_filter", "tool_calls", "unknown"
]

CONTRACT_ENGINES: Final = ("llamacpp", "vllm", "tgi", "triton")
"""The engines every orchestrator knows."""

EXTENSION_ENGINES: Final = ("openai", "sglang")
"""Engines this project adds; a task may name one only where `Extensions` says so."""

MAX_MODEL_REF_CHARS: Final = 4096
"""How long a model reference may be."""

# One row per scheme: what follows it, and how to say so when it does not.
_MODEL_REFS: Final[Mapping[str, tuple[re.Pattern[str], str]]] = {
    "hf": (re.compile(r"[^/\s]+(/[^/\s]+)+"), "hf:org/repo or hf:org/repo/path/file.gguf"),
    "file": (re.compile(r"/.*"), "file:/absolute/path (a relative path has no scheme)"),
    "https": (re.compile(r"//[^/@?#\s]+(/\S*)?"), "https://host/path, without credentials"),
    "s3": (re.compile(r"//[^/\s]+/\S+"), "s3://bucket/key"),
    "oci": (re.compile(r"//[^/\s]+/\S+[:@][^/\s]+"), "oci://registry/repo:tag"),
}
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")


def _model_ref(value: str) -> str:
    """Check the form of a model reference; a message never repeats it, it may hold a token."""
    one_line(value)
    scheme = _SCHEME.match(value)
    if scheme is None:
        if value.startswith("/"):
            raise ValueError("an absolute path is written file:/absolute/path")
        return value
    row = _MODEL_REFS.get(scheme[1])
    if row is None:
        known = ", ".join(form for _, form in _MODEL_REFS.values())
        raise ValueError(f"unknown scheme {scheme[1]!r}; expected {known} or a relative path")
    pattern, form = row
    if pattern.fullmatch(value, scheme.end()) is None:
        raise ValueError(f"a {scheme[1]} reference is written {form}")
    return value


class Placement(Contract):
    """Where the orchestrator wants a task to run; the adapter host acts on it, an adapter does not.

    ``mode="pin"`` needs ``pin_pool_id``.
    """

    mode: Literal["pin", "prefer", "auto"]
    pin_pool_id: Name | None = None
    prefer_pools: tuple[Name, ...] | None = None
    avoid_pools: tuple[Name, ...] | None = None
    require_device_mask: Name | None = None
    allow_fallback: Annotated[bool, Field(strict=True)] = True

    @model_validator(mode="after")
    def _pin_names_a_pool(self) -> Self:
        if self.mode == "pin" and self.pin_pool_id is None:
            raise ValueError("mode 'pin' needs pin_pool_id")
        return self


class TaskRequest(Contract):
    """One task, exactly as the orchestrator's contract has it.

    What a workload needs: ``completion`` a ``prompt`` and ``max_tokens`` of at least 1,
    ``embedding`` ``inputs`` or a ``prompt``, ``rerank`` a ``prompt`` (the query) and ``inputs``
    (the documents).

    Raises pydantic's ValidationError, whose text names the field and the rule and never repeats
    a value.
    """

    task_id: UUID
    session_id: UUID
    workload: Workload
    model_ref: Annotated[
        str,
        StringConstraints(min_length=1, max_length=MAX_MODEL_REF_CHARS),
        AfterValidator(_model_ref),
    ]
    """Which model: ``hf:``, ``file:/``, ``https://``, ``s3://``, ``oci://`` or a relative path."""
    engine: str
    ctx: Count32
    """Context length the task needs, in tokens; more than the engine has is refused."""
    priority: Literal["interactive", "batch"]
    max_tokens: Count32
    """The most tokens to generate."""
    deadline_ms: Int64
    """Time budget in milliseconds, counted from `WorkerAdapter.submit`."""

    seed: Int64 | None = None
    """Sampling seed; generated, sent and reported when unset."""
    determinism: Literal["strict", "best_effort"] | None = None
    sampler_profile_version: Name | None = None
    """Names one of the adapter's `SamplerProfile`."""
    prompt: Text | None = Field(default=None, repr=False)
    inputs: tuple[Text, ...] | None = Field(default=None, repr=False)
    expected_tokens: Annotated[int, Field(strict=True, ge=0, lt=2**31)] | None = None
    kv_hint: Literal["reuse", "cold"] | None = None
    """Whether the engine may reuse its prompt cache."""
    placement: Placement | None = None
    extensions: TaskExtensions | None = None
    """What goes beyond the contract; see `Extensions`."""

    @field_validator("engine")
    @classmethod
    def _known_engine(cls, value: str, info: ValidationInfo) -> str:
        if value in CONTRACT_ENGINES:
            return value
        allowed = info.context.engines if isinstance(info.context, Extensions) else frozenset()
        if value in allowed:
            return value
        if value in EXTENSION_ENGINES:
            raise ValueError(
                f"{value!r} is an extension of the contract; validate the task with "
                f"Extensions(engines=[{value!r}])"
            )
        raise ValueError(f"must be one of {', '.join(CONTRACT_ENGINES)}")

    @field_validator("extensions")
    @classmethod
    def _allowed_extensions(
        cls, value: TaskExtensions | None, info: ValidationInfo
    ) -> TaskExtensions | None:
        if value is None:
            return None
        allowed = info.context.features if isinstance(info.context, Extensions) else frozenset()
        used = {name.partition(".")[0] for name in value.used()}
        if refused := sorted(used - allowed):
            raise ValueError(
                f"{', '.join(refused)} is an extension of the contract; validate the task with "
                f"Extensions(features={refused!r})"
            )
        return value

    @model_validator(mode="after")
    def _workload_has_its_text(self) -> Self:
        match self.workload:
            case "completion":
                has_messages = self.extensions is not None and self.extensions.messages is not None
                if self.prompt is None and not has_messages:
                    raise ValueError("workload 'completion' needs a prompt")
                if self.prompt is not None and has_messages:
                    raise ValueError("a completion has a prompt or messages, not both")
                if self.max_tokens < 1:
                    raise ValueError("workload 'completion' needs max_tokens of at least 1")
            case "embedding":
                if not self.inputs and self.prompt is None:
                    raise ValueError("workload 'embedding' needs inputs or a prompt")
            case "rerank":
                if self.prompt is None or not self.inputs:
                    raise ValueError(
                        "workload 'rerank' needs a prompt (the query) and inputs (the documents)"
                    )
        return self


class SubmitContext(Contract):
    """What the orchestrator knows about a task beyond its `TaskRequest`."""

    job_id: LineText | None = None
    correlation_id: HeaderText | None = None
    """Sent as ``X-Correlation-Id`` and reported in every event and error; generated when unset."""
    queue_position: Count32 | None = None
    predicted_start_ms: Int64 | None = None
    traceparent: HeaderText | None = None
    """W3C trace context, forwarded as it is."""
    tracestate: HeaderText | None = None
    """What tracing systems add to it (W3C Trace Context, section 3.3), forwarded as it is."""


class WorkerHealth(Contract):
    """What `WorkerAdapter.health` found."""

    live: bool
    """Whether the engine answers at all."""
    ready: bool
    """Whether a task would be dispatched now: the model is loaded and nothing drains."""
    reason: str | None = None
    """Why it is not ready: a stable word such as ``connect``, ``loading`` or ``wrong_model``."""

    @property
    def state(self) -> Literal["ready", "loading", "draining", "failed", "unreachable"]:
        """The engine's state in one word."""
        match (self.ready, self.live, self.reason):
            case (True, _, _):
                return "ready"
            case (_, False, _):
                return "unreachable"
            case (_, _, "loading"):
                return "loading"
            case (_, _, "draining"):
                return "draining"
        return "failed"


class ExpectedModel(Contract):
    """Which model a pool expects its engine to have loaded; what is unset is not compared."""

    name: LineText | None = None
    """The name the engine serves it under."""
    path: LineText | None = None
    """Where it was staged: ``ResolvedModel.local_path``. Compared by file name where the engine
    tells no more than that."""
    digest: LineText | None = None

    def differs_from(self, identity: "WorkerIdentity") -> bool:
        """Whether the engine says that it has another model. What it does not tell, fits."""
        if self.name is not None and identity.model not in {None, self.name}:
            return True
        if (
            self.digest is not None
            and identity.model_digest is not None
            and _digest(identity.model_digest) != _digest(self.digest)
        ):
            return True
        if self.path is None or identity.model_path is None:
            return False
        told, expected = _path(identity.model_path), _path(self.path)
        if told.is_absolute() and expected.is_absolute():
            return told != expected
        return told.name != expected.name


def _path(text: str) -> PurePath:
    return PureWindowsPath(text) if "\\" in text else PurePosixPath(text)


def _digest(text: str) -> str:
    """Return a digest as it compares: hex of either case, with or without its algorithm."""
    return text.rpartition(":")[2].casefold()


class WorkerProps(Contract):
    """How many tasks the engine can run at once, as far as it tells; None where it does not."""

    slots_total: Count32 | None = None
    slots_free: Count32 | None = None
    source: str | None = None
    """Which of the engine's answers the figures come from."""


class WorkerIdentity(Contract):
    """What an engine says it is and which model it has loaded; None where it does not say."""

    engine_version: str
    """A stable version from the engine itself."""
    model: str | None = None
    """The name the engine gives its model."""
    model_path: str | None = None
    """Where the engine loaded it from, as the engine was told."""
    model_digest: str | None = None
    ctx_max: Count32 | None = None
    """Context length of one task, in tokens."""
    max_tokens_out: Count32 | None = None
    """The most tokens one task may generate, where that is less than the context."""
    model_meta: dict[str, int | float | str] | None = None
    """What else identifies the model: size, parameters, quantisation."""
    details: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """What else the engine told that its adapter acts on."""


class CancelReceipt(Contract):
    """What `WorkerAdapter.cancel` did."""

    method: Literal["none", "close", "close+abort"]
    """``close``: the connection was closed. ``close+abort``: and the engine's own abort was called.
    ``none``: the task was unknown or had ended."""
    sent: bool
    """Whether anything was done about the engine."""
    confirmed: bool | None = None
    """Whether the engine has confirmed it within the time there was; None where that was not waited
    for, or the engine has no way to."""
    elapsed_ms: float
    """How long the call took, in milliseconds."""


def _duration(value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise ValueError("must be a positive number of seconds, or None to switch the clock off")
    return value


Seconds = Annotated[float | None, AfterValidator(_duration)]


class Timeouts(Contract):
    """The clocks of an adapter or of one call, in seconds; None switches a clock off.

    A task's own deadline ends it whatever these say.
    """

    connect: Seconds = 5.0
    """From the start of name resolution to the TCP connection."""
    tls: Seconds = 5.0
    """The TLS handshake."""
    unary: Seconds = 30.0
    """A whole call that is not a stream: health, props, version, embeddings, rerank."""
    first_token: Seconds = 120.0
    """From dispatch to the first generated token; covers the wait for the response head."""
    token_gap: Seconds = 30.0
    """Between two frames that stand for generated tokens; stops while the reader is away."""
    idle: Seconds = None
    """No byte at all, keep-alive comments included."""

    @model_serializer(mode="plain")
    def _with_none(self) -> dict[str, float | None]:
        # Here None is a value, not an absence.
        return {name: getattr(self, name) for name in type(self).model_fields}


class SamplerProfile(Sampling):
    """A named, versioned, immutable set of sampling parameters, part of an adapter's configuration.

    A task asks for one by ``version``, which is therefore unique within an adapter.
    """

    name: LineText
    version: LineText
    stop: tuple[Annotated[Text, StringConstraints(min_length=1)], ...] = ()
    """Texts that end the generation and are not part of it."""

    def parameters(self) -> dict[str, Any]:
        """Return the parameters that are set, by name; ``stop`` as a list."""
        parameters = super().parameters()
        return {**parameters, "stop": list(self.stop)} if self.stop else parameters


class RerankScore(Contract):
    """How relevant one document is to the query."""

    index: Count32
    """Position of the document in ``TaskRequest.inputs``."""
    score: float


@dataclass(frozen=True, slots=True)
class Collected:
    """A whole answer, as `TokenStream.collect` returns it. Text is kept out of the repr."""

    text: str = field(repr=False)
    """The deltas of the content channel, joined."""
    reasoning: str = field(repr=False)
    """The deltas of the reasoning channel, joined."""
    finish_reason: FinishReason | None
    tokens_in: int | None
    tokens_out: int
    usage_source: Literal["engine", "counted"] | None
    """Who counted the tokens: the engine, or this library from the frames."""
    decode_ms: int
    latency_first_token_ms: int | None
    seed: int | None
    model: str | None
    engine_version: str | None
    embeddings: list[list[float]] | None = field(repr=False)
    scores: list[RerankScore] | None
    events: "tuple[TokenEvent, ...]" = field(repr=False)
    """Every event of the stream, in order."""
