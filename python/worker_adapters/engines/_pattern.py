"""Regular expressions for engines that know no choice but take a pattern."""

import re
from collections.abc import Iterable
from typing import Final

__all__ = ["one_of"]

_SPECIAL: Final = re.compile(r"[\\.^$|?*+()\[\]{}]")


def one_of(texts: Iterable[str]) -> str:
    """Return a pattern that matches just these texts.

    `re.escape` also escapes what the grammars of engines do not take escaped, such as spaces.
    """
    literals = (_SPECIAL.sub(r"\\\g<0>", text) for text in texts)
    return f"({'|'.join(literals)})"
