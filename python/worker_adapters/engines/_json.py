"""JSON as engines answer it, read so that whatever it holds can be written again."""

import json
import re
from typing import Any, Final, NoReturn

__all__ = ["read_json"]

_SURROGATE: Final = re.compile("[\ud800-\udfff]")

_ESCAPED: Final = re.compile(r"\\u[dD][89a-fA-F]")
"""Half of a pair, or a whole one: what a lone surrogate is written as."""


def read_json(body: bytes) -> Any:
    """Return what the JSON in ``body``, UTF-8, says; U+FFFD where it has lone surrogates.

    They are no characters: nothing that holds one can be sent, logged or written as JSON again.
    Raises ValueError or RecursionError.
    """
    text = body.decode("utf-8-sig")
    told = json.loads(text, parse_constant=_no_constant)
    return _readable(told) if _ESCAPED.search(text) else told


def _readable(told: Any) -> Any:
    if isinstance(told, str):
        return _SURROGATE.sub("\ufffd", told)
    if isinstance(told, list):
        return [_readable(one) for one in told]
    if isinstance(told, dict):
        return {_readable(name): _readable(one) for name, one in told.items()}
    return told


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and Infinity are no JSON, whatever Python thinks
