"""Keys by reference: a file says where one is, never what it is."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

__all__ = ["SecretRef", "resolved"]


def _checked(reference: str) -> str:
    scheme, _, place = reference.partition(":")
    if scheme == "env" and place.isascii() and place.isidentifier():
        return reference
    if scheme == "file" and place.startswith("/"):
        return reference
    raise ValueError(
        "write env:NAME for a variable or file:/path for a file that holds the key; "
        "the key itself does not belong here"
    )


SecretRef = Annotated[
    str,
    AfterValidator(_checked),
    Field(
        pattern=r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:/.*)$",
        description="env:NAME or file:/path; never the key itself",
    ),
]
"""Where a key is: ``env:NAME`` or ``file:/path``."""


def resolved(reference: str) -> Path | Callable[[], str]:
    """Return the key as adapters take it: a file that is read again when it changes, or a variable.

    Raises ValueError where there is no such file or variable now.
    """
    scheme, _, place = reference.partition(":")
    if scheme == "file":
        path = Path(place)
        if not path.is_file():
            raise ValueError(f"there is no file {place}")
        return path
    if not os.environ.get(place):
        raise ValueError(f"the variable {place} is not set")
    return _Variable(place)


class _Variable:
    """A variable of the environment, read at each request. Equal to one of the same name."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self) -> str:
        return os.environ[self._name]
