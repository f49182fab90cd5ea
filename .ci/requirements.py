"""Print requirement lines out of pyproject.toml, one per line.

The Makefile installs what a command needs before the extension is built, so it cannot ask pip for
``.[extra]``: that would build the wheel. Arguments name what to print, in order::

    requirements.py project          # [project] dependencies
    requirements.py extra:demo       # an extra, with the extras it refers to
    requirements.py group:test       # a dependency group
    requirements.py --lowest project # each at its lower bound, as name==version
    requirements.py --hash ...       # a digest of the lines instead: the name of a stamp
"""

import argparse
import hashlib
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
_SELF_REFERENCE = re.compile(r"worker-adapters\[([\w,-]+)\]")
_LOWER_BOUND = re.compile(r"\s*([\w.-]+)[^>]*>=\s*([\w.]+)")


def select(pyproject: dict[str, Any], what: str) -> Iterator[str]:
    """Yield what ``project``, ``extra:NAME`` or ``group:NAME`` requires; KeyError if unknown."""
    kind, _, name = what.partition(":")
    lines: list[str] = {
        "project": lambda: pyproject["project"]["dependencies"],
        "extra": lambda: pyproject["project"]["optional-dependencies"][name],
        "group": lambda: pyproject["dependency-groups"][name],
    }[kind]()
    for line in lines:
        if reference := _SELF_REFERENCE.fullmatch(line):
            for extra in reference[1].split(","):
                yield from select(pyproject, f"extra:{extra}")
        else:
            yield line


def at_lower_bound(requirement: str) -> str:
    """Pin a requirement to its lower bound; ValueError where it has none."""
    found = _LOWER_BOUND.match(requirement)
    if found is None:
        raise ValueError(f"{requirement!r} has no lower bound")
    return f"{found[1]}=={found[2]}"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="+", metavar="project|extra:NAME|group:NAME")
    parser.add_argument("--lowest", action="store_true", help="pin each to its lower bound")
    parser.add_argument("--hash", action="store_true", help="print a digest of the lines")
    arguments = parser.parse_args()
    pyproject = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
    try:
        lines = [line for what in arguments.what for line in select(pyproject, what)]
    except KeyError as unknown:
        sys.exit(f"requirements.py: pyproject.toml has no {unknown}")
    if arguments.lowest:
        lines = [at_lower_bound(line) for line in lines]
    text = "\n".join(lines)
    print(hashlib.sha256(text.encode()).hexdigest()[:12] if arguments.hash else text)


if __name__ == "__main__":
    main()
