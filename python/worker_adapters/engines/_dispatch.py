"""A task on its way to an engine, and what comes back from one that does not stream."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from worker_adapters.contract import SamplerProfile, TaskRequest, WorkerIdentity
from worker_adapters.extensions import ChatMessage, Sampling, TaskExtensions

__all__ = ["Answer", "Dispatch", "Unsupported", "private_texts"]

_NONE = TaskExtensions()


class Unsupported(Exception):  # noqa: N818 - it says what, not that
    """The engine, or this version of it, cannot do what a field of the task asks for.

    Raised while a request is built; the caller sees an AdapterError that names engine, version
    and field.
    """

    def __init__(self, field: str, why: str = "") -> None:
        super().__init__(field)
        self.field = field
        self.why = why


@dataclass(frozen=True, slots=True)
class Answer:
    """What a unary workload produced: vectors or scores in input order, and the tokens it read."""

    tokens_in: int | None = None
    embeddings: list[list[float]] | None = field(default=None, repr=False)
    scores: list[tuple[int, float]] | None = None


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A task as it is about to be sent: what the request says beyond the task itself."""

    task: TaskRequest
    seed: int | None
    profile: SamplerProfile | None
    identity: WorkerIdentity | None = None
    """What the engine says it is; None where it would not tell."""
    model: str | None = None
    """The name to ask for, where the engine serves models by name."""
    request_id: str = ""
    """Ours, unique, and safe in a header or a URL: what an abort names."""

    @property
    def extensions(self) -> TaskExtensions:
        """What the task carries beyond the contract; all unset where it carries nothing."""
        return self.task.extensions or _NONE

    def sampling(self) -> dict[str, Any]:
        """Return the sampling parameters that are set, by their names in `Sampling`.

        The task's own win over the profile's; ``determinism="strict"`` is greedy unless one of
        them sets a temperature. Stop words are not among them: see `stop`.
        """
        parameters: dict[str, Any] = {}
        if self.task.determinism == "strict":
            parameters["temperature"] = 0.0
        if self.profile is not None:
            parameters |= Sampling.parameters(self.profile)
        if self.extensions.sampling is not None:
            parameters |= self.extensions.sampling.parameters()
        return parameters

    def stop(self) -> list[str]:
        """Return the texts that end the generation: the profile's, then the task's own."""
        words = [] if self.profile is None else list(self.profile.stop)
        return words + [word for word in self.extensions.stop or () if word not in words]


def private_texts(task: TaskRequest) -> tuple[str, ...]:
    """Return what of a task no error may repeat: all that it says in words."""
    texts = [text for text in (task.prompt, *(task.inputs or ())) if text]
    extensions = task.extensions
    if extensions is not None:
        for message in extensions.messages or ():
            texts += _said(message)
        for tool in extensions.tools or ():
            texts += _described(tool.model_dump())
        if (constraint := extensions.constraint) is not None:
            texts += (text for text in (constraint.regex, constraint.grammar) if text)
            texts += constraint.choice or ()
            texts += _described(constraint.json_schema)
        texts += extensions.stop or ()
    return tuple(texts)


def _described(schema: object) -> Iterator[str]:
    """Yield the descriptions in a JSON Schema; its other words are of the language."""
    left = [schema]
    while left:
        value = left.pop()
        if isinstance(value, list | tuple):
            left += value
        elif isinstance(value, dict):
            if isinstance(text := value.get("description"), str):
                yield text
            left += value.values()


def _said(message: ChatMessage) -> Iterator[str]:
    if isinstance(message.content, str):
        yield message.content
    else:
        for part in message.content or ():
            yield part.text if part.type == "text" else part.url
    for call in message.tool_calls or ():
        yield call.arguments
