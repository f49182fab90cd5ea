"""Where a field stands in a TOML file; the parser does not tell, so it is asked for less.

A statement begins behind the longest beginning of the file that can be parsed and lacks the field.
What parses is therefore all that decides, whatever a string or a comment looks like.
"""

import io
import tomllib
from collections.abc import Sequence
from typing import Any, Final

__all__ = ["line_of", "line_of_refusal"]

_ABSENT: Final = object()
_UNPARSED: Final = (tomllib.TOMLDecodeError, RecursionError)


def line_of(text: str, field: Sequence[str | int]) -> int | None:
    """Return the line of the statement that brings a field, or what is nearest above it.

    Counted from 1; None where not even the first part of the field is there. ``text`` is valid.
    """
    lines = lines_of(text)
    whole = _parsed(lines)
    if whole is None:  # parsed with less of the stack left than before
        return None
    known = list(field)
    while known and _at(whole, known) is _ABSENT:
        known.pop()
    return _first_with(lines, known) if known else None


def lines_of(text: str) -> list[str]:
    """Return the lines with their ends, as TOML counts them: only a line feed ends one."""
    return list(io.StringIO(text, newline="\n"))


def line_of_refusal(text: str) -> int:
    """Return the line at which the parser gives up on a text for its size, not for its syntax.

    Counted from 1. No beginning without that line makes it give up, and every longer one does.
    """
    lines = lines_of(text)
    fine, refused = 0, len(lines)
    while refused - fine > 1:
        middle = (fine + refused) // 2
        try:
            _parsed(lines[:middle], but=tomllib.TOMLDecodeError)
        except (ValueError, RecursionError):
            refused = middle
        else:
            fine = middle
    return refused


def _first_with(lines: list[str], field: Sequence[str | int]) -> int:
    """Return the first line of the statement after which the field is there."""
    lacks, has = 0, len(lines)
    while True:
        middle = (lacks + has) // 2
        # The parseable beginning that is nearest: a cut may go through a statement.
        cut, document = middle, _parsed(lines[:middle])
        while document is None and cut > lacks:
            cut -= 1
            document = _parsed(lines[:cut])
        if cut > lacks and document is not None:
            if _at(document, field) is _ABSENT:
                lacks = cut
            else:
                has = cut
            continue
        # Nothing between them below the middle; above it, statement by statement.
        cut = middle + 1
        while cut < has and (document := _parsed(lines[:cut])) is None:
            cut += 1
        if cut >= has:
            break
        if document is not None and _at(document, field) is _ABSENT:
            lacks = cut
        else:
            has = cut
    while _says_nothing(lines[lacks]):
        lacks += 1
    return lacks + 1


def _says_nothing(line: str) -> bool:
    return not (line := line.strip()) or line.startswith("#")


def _parsed(
    lines: list[str], but: type[Exception] | tuple[type[Exception], ...] = _UNPARSED
) -> dict[str, Any] | None:
    try:
        return tomllib.loads("".join(lines))
    except but:
        return None


def _at(document: Any, field: Sequence[str | int]) -> Any:
    value = document
    for part in field:
        match value, part:
            case dict(), str() if part in value:
                value = value[part]
            case list(), int() if 0 <= part < len(value):
                value = value[part]
            case _:
                return _ABSENT
    return value
