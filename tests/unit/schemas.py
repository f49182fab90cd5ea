"""JSON Schemas as they compare."""

from __future__ import annotations

from typing import Any


def essence(schema: Any) -> Any:
    """Leave out what versions of pydantic differ in: types of constants, names of keys."""
    match schema:
        case {"allOf": [only], **rest}:
            return essence({**only, **rest})
        case dict():
            said = {"propertyNames"}
            if "const" in schema or "enum" in schema:
                said |= {"type"} if "const" not in schema else {"type", "enum"}
            return {name: essence(inner) for name, inner in schema.items() if name not in said}
        case list():
            return [essence(inner) for inner in schema]
    return schema
