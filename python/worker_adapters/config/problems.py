"""What is wrong with a configuration, and where."""

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["ConfigError", "Problem"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that has to be changed. No value is repeated: it may be a secret."""

    field: str
    """The field, as in ``pools.chat.replicas.a.url``; empty for the file as a whole."""
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
