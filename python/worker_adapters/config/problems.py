"""What is wrong with a configuration, and where."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

__all__ = ["ConfigError", "FieldError", "Problem", "dotted", "parted"]

Field = tuple[str | int, ...]
"""Where a value is: names of tables, and numbers of what is in lists."""

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_PART: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[^.]+')


def dotted(field: Field) -> str:
    """Return a field as TOML writes it: what is no bare key is quoted."""
    return ".".join(
        str(part) if isinstance(part, int) or _BARE.fullmatch(part) else _quoted(part)
        for part in field
    )


def _quoted(key: str) -> str:
    return json.dumps(key).replace("\x7f", "\\u007f")


def parted(text: str) -> tuple[str, ...]:
    """Return the parts of what `dotted` wrote; numbers stay text."""
    return tuple(json.loads(part) if part.startswith('"') else part for part in _PART.findall(text))


class FieldError(ValueError):
    """A check finds one of several fields wrong; ``field`` leads to it from what is checked."""

    def __init__(self, field: Field, what: str) -> None:
        self.field = field
        self.what = what
        super().__init__(f"{dotted(field)}: {what}")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that has to be changed. No value is repeated: it may be a secret."""

    field: str
    """As TOML writes it: ``pools.chat.replicas.a.url``; empty for the file as a whole."""
    message: str
    """What is wrong, and what to write instead."""
    source: str
    """The file, the variable of the environment, or ``argument``."""
    line: int | None = None
    """Where in the file, counted from 1."""

    def __str__(self) -> str:
        where = self.source if self.line is None else f"{self.source}:{self.line}"
        return ": ".join(part for part in (where, self.field, self.message) if part)


class ConfigError(ValueError):
    """A configuration cannot be used; ``problems`` says why, ``str`` has a line for each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))
