"""What this project adds to the contract's tasks, and the gate in front of it.

The contract is stable: an orchestrator that has not opted in can neither send nor be sent anything
beyond it. `Extensions` says what it has opted in to, `TaskExtensions` what a task may then carry.
An adapter translates each field for the engine and version at hand, or refuses the task naming
engine, version and field; it never drops one silently.
"""

import re
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, TypeAlias, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from worker_adapters._model import Contract, Count32, HeaderText, LineText, Text

if TYPE_CHECKING:
    from worker_adapters.contract import TaskRequest

__all__ = [
    "ChatMessage",
    "Constraint",
    "Extensions",
    "ImagePart",
    "Sampling",
    "TaskExtensions",
    "TextPart",
    "Tool",
    "ToolCall",
]

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_StopWord = Annotated[Text, StringConstraints(min_length=1)]
_Priority = Annotated[int, Field(strict=True, gt=-(2**31), lt=2**31)]

_IMAGE_URL: Final = re.compile(r"(https://|data:)[!-~]+")

_CHOICES: Final = frozenset(("auto", "none", "required"))
"""Words of ``tool_choice``; no tool may be called like one."""


def _image_url(value: str) -> str:
    if _IMAGE_URL.fullmatch(value) is None:
        raise ValueError("must be an https:// or a data: URL")
    return value


class Sampling(Contract):
    """Sampling parameters; one left unset is the engine's own default."""

    temperature: Annotated[_Finite, Field(ge=0, le=100)] | None = None
    """0 is greedy decoding."""
    top_k: Annotated[int, Field(strict=True, ge=0, lt=2**31)] | None = None
    """0 considers every token."""
    top_p: Annotated[_Finite, Field(gt=0, le=1)] | None = None
    min_p: Annotated[_Finite, Field(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[_Finite, Field(gt=0, le=100)] | None = None
    """1 penalises nothing."""
    presence_penalty: Annotated[_Finite, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[_Finite, Field(ge=-2, le=2)] | None = None

    def parameters(self) -> dict[str, Any]:
        """Return the parameters that are set, by the names they have here."""
        values = {name: getattr(self, name) for name in Sampling.model_fields}
        return {name: value for name, value in values.items() if value is not None}


class TextPart(Contract):
    """A piece of text in a message."""

    type: Literal["text"] = "text"
    text: Text = Field(repr=False)


class ImagePart(Contract):
    """An image in a message.

    By an ``https://`` URL that the engine fetches, or by a ``data:`` URL that holds it.
    """

    type: Literal["image"] = "image"
    url: Annotated[Text, AfterValidator(_image_url)] = Field(repr=False)


_Part: TypeAlias = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ToolCall(Contract):
    """A call that the assistant made earlier in the conversation."""

    id: LineText
    name: LineText
    arguments: Text = Field(repr=False)
    """The arguments as JSON text, as the model wrote them."""


class ChatMessage(Contract):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Text | Annotated[tuple[_Part, ...], Field(min_length=1)] | None = Field(
        default=None, repr=False
    )
    name: LineText | None = None
    tool_call_id: LineText | None = None
    """``tool``: the call that this is the result of."""
    tool_calls: tuple[ToolCall, ...] | None = None
    """``assistant``: the calls it made."""

    @model_validator(mode="after")
    def _says_what_its_role_says(self) -> Self:
        if self.content is None and not self.tool_calls:
            raise ValueError("a message needs content or tool_calls")
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError("only an assistant's message has tool_calls")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("a tool's message, and no other, has a tool_call_id")
        return self

    @property
    def has_image(self) -> bool:
        """Whether an image is part of it."""
        return isinstance(self.content, tuple) and any(
            part.type == "image" for part in self.content
        )


class Tool(Contract):
    """A function that the model may call."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: Text | None = Field(default=None, repr=False)
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object"}, repr=False)
    """JSON Schema of the arguments."""


class Constraint(Contract):
    """What the answer has to look like; exactly one of the kinds."""

    json_schema: dict[str, Any] | None = None
    """The answer is JSON that this schema describes."""
    regex: Annotated[Text, StringConstraints(min_length=1)] | None = None
    grammar: Annotated[Text, StringConstraints(min_length=1)] | None = None
    """In the engine's own grammar language (GBNF for llama.cpp, EBNF elsewhere)."""
    choice: tuple[_StopWord, ...] | None = Field(default=None, min_length=1)
    """The answer is one of these texts."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(kinds) != 1:
            raise ValueError("exactly one of json_schema, regex, grammar and choice")
        return self

    @property
    def kind(self) -> str:
        """Which of the kinds it is."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)


class TaskExtensions(Contract):
    """What a task may carry beyond the contract; every field is optional."""

    messages: tuple[ChatMessage, ...] | None = Field(default=None, repr=False, min_length=1)
    """A conversation instead of a prompt; the engine applies its chat template."""
    tools: tuple[Tool, ...] | None = Field(default=None, min_length=1)
    """Functions the model may call; needs ``messages``."""
    tool_choice: LineText | None = None
    """``auto``, ``none``, ``required``, or the name of a tool; needs ``tools``."""
    constraint: Constraint | None = Field(default=None, repr=False)
    stop: tuple[_StopWord, ...] | None = Field(default=None, min_length=1, repr=False)
    """Texts that end the generation and are not part of it."""
    sampling: Sampling | None = None
    """Overrides the sampler profile, parameter by parameter."""
    logprobs: Annotated[int, Field(strict=True, ge=0, le=20)] | None = None
    """Report each token's log probability, and those of so many alternatives."""
    token_ids: Annotated[bool, Field(strict=True)] | None = None
    """Report token ids."""
    lora: LineText | None = None
    """The LoRA adapter to apply, by the name the engine knows it under."""
    priority: _Priority | None = None
    """Higher is sooner, whatever the engine's own sign."""
    data_parallel_rank: Count32 | None = None
    affinity_key: HeaderText | None = None
    """Tasks with one key profit from running on the same replica."""

    @model_validator(mode="after")
    def _tools_have_their_context(self) -> Self:
        if self.tools is not None and self.messages is None:
            raise ValueError("tools need messages")
        names = [tool.name for tool in self.tools or ()]
        if len(set(names)) < len(names) or _CHOICES.intersection(names):
            raise ValueError("each tool needs a name of its own, and not auto, none or required")
        if self.tool_choice is not None:
            if self.tools is None:
                raise ValueError("tool_choice needs tools")
            if self.tool_choice not in _CHOICES.union(names):
                raise ValueError("tool_choice must be auto, none, required or one of the tools")
        return self

    def used(self) -> frozenset[str]:
        """Return what is set, as an adapter declares what it can translate.

        Field names; ``constraint`` as ``constraint.KIND``, and ``messages.image`` where a message
        holds an image.
        """
        names = {name for name in type(self).model_fields if getattr(self, name) is not None}
        if self.constraint is not None:
            names.discard("constraint")
            names.add(f"constraint.{self.constraint.kind}")
        if any(message.has_image for message in self.messages or ()):
            names.add("messages.image")
        return frozenset(names)


Feature: TypeAlias = Literal[
    "messages",
    "tools",
    "tool_choice",
    "constraint",
    "stop",
    "sampling",
    "logprobs",
    "token_ids",
    "lora",
    "priority",
    "data_parallel_rank",
    "affinity_key",
]

FEATURES: Final[frozenset[Feature]] = frozenset(get_args(Feature))
"""Every field of `TaskExtensions`."""


class Extensions(BaseModel):
    """Which additions to the contract an orchestrator has opted in to; none by default.

    A task that uses one is refused unless it is validated under it::

        allowed = Extensions(engines=("openai",), features=("messages",))
        allowed.task_request(engine="openai", ...)
        TaskRequest.model_validate(data, context=allowed)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engines: frozenset[str] = frozenset()
    """Engine names beyond those of the contract: ``openai``, ``sglang``, third parties' own."""
    features: frozenset[Feature] = frozenset()
    """Fields of `TaskExtensions` that a task may set."""

    @classmethod
    def all(cls, *engines: str) -> Self:
        """Allow everything, and these third-party engines."""
        return cls(engines=frozenset(("openai", "sglang", *engines)), features=FEATURES)

    def task_request(self, **fields: Any) -> "TaskRequest":
        """Build a `TaskRequest` with these extensions allowed.

        Raises pydantic's ValidationError as the constructor does.
        """
        from worker_adapters.contract import TaskRequest

        return TaskRequest.model_validate(fields, context=self)
