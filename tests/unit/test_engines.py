"""The registry of engines, and what importing the package costs."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import worker_adapters
from worker_adapters import WorkerAdapter, _core, engines
from worker_adapters.contract import CONTRACT_ENGINES, EXTENSION_ENGINES
from worker_adapters.engines import ENGINES, adapter_class
from worker_adapters.extensions import FEATURES, Constraint

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", ENGINES)
def test_every_row_is_complete(name: str, repository: Path) -> None:
    row = ENGINES[name]
    cls = adapter_class(name)
    assert row.name == name == cls.engine
    assert name in (*CONTRACT_ENGINES, *EXTENSION_ENGINES)
    assert row.dialect in _core.dialects()
    assert row.dialect == cls.dialect
    assert len(cls.rules) > 0
    assert issubclass(cls, WorkerAdapter)
    assert row.adapter.startswith(f"worker_adapters.engines.{name}:")
    assert any((repository / row.evidence).iterdir())
    assert (repository / row.docs).read_text(encoding="utf-8").startswith("# ")
    assert getattr(engines, cls.__name__) is getattr(worker_adapters, cls.__name__) is cls
    assert cls.__name__ in worker_adapters.__all__


def test_every_engine_s_module_docs_and_captures_are_registered(repository: Path) -> None:
    package = repository / "python" / "worker_adapters" / "engines"
    modules = {path.stem for path in package.glob("*.py") if not path.stem.startswith("_")} - {
        "base"
    }
    pages = {path.stem for path in (repository / "docs" / "engines").glob("*.md")}
    assert modules == pages == set(ENGINES) == {*CONTRACT_ENGINES, *EXTENSION_ENGINES}


@pytest.mark.parametrize("name", ENGINES)
def test_every_adapter_says_what_it_translates_by_the_names_there_are(name: str) -> None:
    cls = adapter_class(name)
    names = {"messages.image", *(f"constraint.{kind}" for kind in Constraint.model_fields)}
    names |= FEATURES - {"constraint"}
    assert cls.translates <= names
    assert cls.translates_unary <= names
    assert set(cls.workloads) <= {"completion", "embedding", "rerank"}


def test_an_unknown_engine() -> None:
    with pytest.raises(ValueError, match="unknown engine 'ollama'; known: llamacpp, vllm"):
        adapter_class("ollama")
    with pytest.raises(AttributeError, match="OllamaAdapter"):
        _ = engines.OllamaAdapter


def test_every_public_name_is_there_and_documented() -> None:
    for name in worker_adapters.__all__:
        if name != "__version__":
            assert getattr(worker_adapters, name).__doc__, name
    with pytest.raises(AttributeError, match="nothing"):
        _ = worker_adapters.nothing


def test_importing_the_package_loads_no_http_library() -> None:
    code = (
        "import sys, worker_adapters; "
        "loaded = {'httpx', 'httpcore', 'anyio', 'prometheus_client', 'typer'} & set(sys.modules); "
        "assert not loaded, loaded; "
        "worker_adapters.TritonAdapter; "
        "assert 'httpx' in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_only_the_transport_imports_httpx(repository: Path) -> None:
    package = repository / "python" / "worker_adapters"
    importing = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if any(
            line.startswith(("import httpx", "from httpx", "import httpcore", "from httpcore"))
            for line in path.read_text(encoding="utf-8").splitlines()
        )
    }
    assert importing == {"transport/_httpx.py"}


def test_the_table_of_extensions_says_what_the_adapters_translate(repository: Path) -> None:
    text = (repository / "docs" / "extensions.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text[text.index("## What becomes of each") :].splitlines()
        if line.startswith("|")
    ]
    head, _, *fields = rows
    names = [link[1 : link.index("]")] for link in head[1:]]
    assert sorted(names) == sorted(ENGINES)
    told = {field.strip("`"): dict(zip(names, cells, strict=True)) for field, *cells in fields}
    constraints = {f"constraint.{kind}" for kind in Constraint.model_fields}
    assert set(told) == (FEATURES - {"constraint"}) | constraints | {"messages.image"}
    for name in ENGINES:
        said = {field for field, cells in told.items() if cells[name] != "–"}
        assert said == adapter_class(name).translates, name
