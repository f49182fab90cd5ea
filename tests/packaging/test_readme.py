"""What the README shows works: its example on a real engine, its commands, its links."""

import re
import sys
from pathlib import Path

import pytest

from tests.packaging.support import Run
from worker_adapters.engines import ENGINES
from worker_adapters.testing.llamacpp import LlamaCppServer

ADDRESS = "http://127.0.0.1:8080"


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    """Return the README's text."""
    return (repository / "README.md").read_text(encoding="utf-8")


@pytest.mark.real
def test_the_example_streams_from_a_real_engine(readme: str, run: Run) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert ADDRESS in example
    with LlamaCppServer() as server:
        program = example.replace(ADDRESS, server.url)
        printed = run([sys.executable, "-W", "error", "-c", program]).stdout
    assert printed.startswith("[started] there was a tiny model, its name is café")
    assert printed.endswith("[end]")


def test_its_commands_exist(readme: str, repository: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (repository / "Makefile").read_text(), re.MULTILINE))
    shown = set(re.findall(r"(?:^|`)make ([a-z-]+)", readme, re.MULTILINE))
    assert {"demo", "test"} <= shown <= targets


def test_every_page_is_in_the_index(repository: Path) -> None:
    docs = repository / "docs"
    index = (docs / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in docs.glob("*.md")} - {"README.md"}
    assert not {page for page in pages if f"]({page})" not in index}


def test_every_engine_is_in_the_table(readme: str) -> None:
    assert not {
        row.name for row in ENGINES.values() if f"| [`{row.name}`]({row.docs}) |" not in readme
    }


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "docs/README.md", "docs/architecture.md"]
)
def test_links_lead_somewhere(page: str, repository: Path) -> None:
    file = repository / page
    links = re.findall(r"\]\(([^)#:]+)\)", file.read_text(encoding="utf-8"))
    missing = [link for link in links if not (file.parent / link).exists()]
    assert not missing
