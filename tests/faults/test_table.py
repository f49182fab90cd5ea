"""docs/faults.md says what is tested, and what is tested says so there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import pytest

HERE: Final = Path(__file__).parent
REPOSITORY: Final = HERE.parents[1]
TABLE: Final = REPOSITORY / "docs" / "faults.md"
RUST_TESTS: Final = REPOSITORY / "rust" / "net" / "tests"

SIZES: Final = dict(zip("ABCDEFGHIJK", (11, 5, 5, 13, 13, 12, 7, 3, 5, 7, 4), strict=True))


class Row(NamedTuple):
    name: str
    outcome: str
    flag: str
    tests: tuple[str, ...]


def rows_of(text: str) -> list[Row]:
    """Return the rows of all tables."""
    rows = []
    for line in text.splitlines():
        if not re.match(r"\| [A-K]\d+ \|", line):
            continue
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        assert len(cells) == 6, line
        name, _, outcome, flag, shown_by, _ = cells
        rows.append(Row(name, outcome, flag, tuple(re.findall(r"`([^`]+)`", shown_by))))
    return rows


@cache
def python_tests() -> dict[str, str]:
    """Return the tests of this folder that are about a row, and that row."""
    found: dict[str, str] = {}
    for file in sorted(HERE.glob("test_?_*.py")):
        letter = file.name.split("_")[1]
        for node in ast.parse(file.read_text("utf-8")).body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if not node.name.startswith("test_"):
                continue
            named = re.match(rf"test_({letter}\d+)_\w", node.name)
            assert named, f"{file.name}: {node.name} names no row of its file's"
            assert node.name not in found, f"{node.name} is there twice"
            found[node.name] = named[1].upper()
    return found


@cache
def is_rust_test(reference: str) -> bool:
    """Whether `file::test` is a test of rust/net/tests."""
    file, _, name = reference.partition("::")
    source = RUST_TESTS / f"{file}.rs"
    pattern = rf"#\[test\]\n(?:#\[[^\n]*\]\n|//[^\n]*\n)*fn {re.escape(name)}\("
    return source.is_file() and re.search(pattern, source.read_text("utf-8")) is not None


ROWS: Final = rows_of(TABLE.read_text("utf-8"))


def test_every_row_is_there_once_and_in_order() -> None:
    wanted = [f"{letter}{n}" for letter, size in SIZES.items() for n in range(1, size + 1)]
    assert [row.name for row in ROWS] == wanted


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_says_what_comes_of_it_and_has_its_tests(row: Row) -> None:
    assert row.outcome
    assert row.flag
    assert row.tests, f"no test shows {row.name}"
    for test in row.tests:
        if "::" in test:
            assert is_rust_test(test), f"{test} is no test of rust/net/tests"
        else:
            assert python_tests().get(test) == row.name, f"{test} is no test of {row.name}"


def test_every_test_has_its_row() -> None:
    listed = {test for row in ROWS for test in row.tests if "::" not in test}
    assert set(python_tests()) == listed
