"""The pages on security name tests that exist, and leave nothing out."""

import re
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

FOLDERS = {"core": "rust/core", "net": "rust/net", "loom": "rust/loom", "": "tests"}
NAME = re.compile(r"`(?:(core|loom|net)::)?((?<=::)\w+|test_\w+)`")
THREAT = re.compile(r"^\| (?!it (?:may|looks)|---|asset).+ \|.+\|(.+)\|$", re.MULTILINE)
PAGES = ("threat-model.md", "security-checklist.md")


@cache
def sources(folder: str) -> str:
    """Return what the tests of a folder are written in, as one text."""
    files = sorted(
        file for file in (REPOSITORY / folder).rglob("*.*") if file.suffix in {".py", ".rs"}
    )
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def page(name: str) -> str:
    """Return a page of the documentation."""
    return (REPOSITORY / "docs" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_the_tests_that_it_names_exist(name: str) -> None:
    named = {(found[1] or "", found[2]) for found in NAME.finditer(page(name))}
    assert len(named) > 40
    missing = {
        test
        for crate, test in named
        if not re.search(rf"\b(?:def|fn) {test}\(", sources(FOLDERS[crate]))
    }
    assert not missing


def test_every_row_of_the_threat_model_has_a_test() -> None:
    rows = THREAT.findall(page(PAGES[0]))
    assert len(rows) > 35
    assert not [row for row in rows if not NAME.search(row)]


def test_the_checklist_is_whole() -> None:
    rows = re.findall(r"^\| S(\d+) \| .+ \| (.+) \|$", page(PAGES[1]), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 45))
    # No test named: then it says why.
    assert not [row for _, row in rows if not NAME.search(row) and len(row.split()) < 5]


def test_security_page_says_what_it_must(repository: Path) -> None:
    text = (repository / "SECURITY.md").read_text(encoding="utf-8")
    for said in ("privately", "Supported versions", "3 working days", "90 days", "threat-model.md"):
        assert said in text
    # It does not say where the repository is: that may change.
    assert not re.search(r"https?://|@", text)


@pytest.mark.parametrize("name", [*PAGES, "releasing.md", "../SECURITY.md"])
def test_links_lead_somewhere(name: str) -> None:
    file = (REPOSITORY / "docs" / name).resolve()
    for path, heading in re.findall(r"\]\(([^)#:]*)(?:#([\w-]+))?\)", file.read_text("utf-8")):
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), path
        if heading and target.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}
            assert heading in slugs, f"{path}#{heading}"
