"""A conversation, its tools and its constraints in the JSON that OpenAI's chat route takes.

Every engine with such a route takes the same JSON, so there is one translation of it. What an
engine does not know of it, its own module refuses before asking for any of this.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from worker_adapters.extensions import ChatMessage, ImagePart, TextPart, Tool, ToolCall

__all__ = ["json_schema_format", "message_list", "tool_choice", "tool_list"]


def message_list(messages: Iterable[ChatMessage]) -> list[dict[str, Any]]:
    """Return ``messages`` as the route's ``messages``."""
    return [_message(message) for message in messages]


def tool_list(tools: Iterable[Tool]) -> list[dict[str, Any]]:
    """Return ``tools`` as the route's ``tools``."""
    return [{"type": "function", "function": tool.model_dump()} for tool in tools]


def tool_choice(choice: str) -> str | dict[str, Any]:
    """Return a word of the route's own as it is, a tool's name as the object that names it."""
    if choice in {"auto", "none", "required"}:
        return choice
    return {"type": "function", "function": {"name": choice}}


def json_schema_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``response_format`` that asks for JSON of this schema, strictly."""
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": dict(schema), "strict": True},
    }


def _message(message: ChatMessage) -> dict[str, Any]:
    data: dict[str, Any] = {"role": message.role}
    if isinstance(message.content, tuple):
        data["content"] = [_part(part) for part in message.content]
    else:
        # An assistant's message of nothing but calls has no content, and says so.
        data["content"] = message.content
    if message.name is not None:
        data["name"] = message.name
    if message.tool_call_id is not None:
        data["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        data["tool_calls"] = [_call(call) for call in message.tool_calls]
    return data


def _part(part: TextPart | ImagePart) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    return {"type": "image_url", "image_url": {"url": part.url}}


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}
