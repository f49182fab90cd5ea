"""Prompts and generated text in logs: only in development, only of some tasks."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["TextPolicy"]

MAX_CHARS = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPolicy:
    """Have the text of some tasks logged, redacted and cut, at DEBUG.

    There is no way to ask for it but this object, and none to make one without saying that this is
    development.

    Args:
        mode: ``"dev"``, and nothing else.
        sample_rate: Which share of the tasks, above 0 and up to 1.
        max_chars: How much of each text, 2,000 characters unless set, 16,384 at most.

    Raises ValueError for anything else, TypeError for a length that is no whole number.
    """

    mode: Literal["dev"]
    sample_rate: float
    max_chars: int = 2000

    def __post_init__(self) -> None:
        # Whoever has no type checker learns it here.
        if str(self.mode) != "dev":
            raise ValueError("prompts and text are logged in development only: mode must be 'dev'")
        if not 0 < self.sample_rate <= 1:
            raise ValueError(f"sample_rate must be above 0 and up to 1, not {self.sample_rate}")
        if not isinstance(self.max_chars, int):
            raise TypeError("max_chars must be a whole number")
        if not 1 <= self.max_chars <= MAX_CHARS:
            raise ValueError(f"max_chars must be from 1 to {MAX_CHARS}, not {self.max_chars}")
