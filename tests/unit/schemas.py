"""JSON Schemas as they compare."""

from __future__ import annotations

from typing import Any


def essence(schema: Any) -> Any:
    """Leave out what versions of pydantic differ in: types of constants, lists of one schema."""
    match schema:
        case {"allOf": [only], **rest}:
            return essence({**only, **rest})
        case dict():
            said = {"type"} if "enum" in schema else set()
            if "const" in schema:
                said = {"type", "enum"}
            return {name: essence(inner) for name, inner in schema.items() if name not in said}
        case list():
            return [essence(inner) for inner in schema]
    return schema
