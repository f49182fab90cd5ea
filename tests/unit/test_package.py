"""The package's own name space: complete, and empty until it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import worker_adapters


@pytest.mark.parametrize("name", worker_adapters.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(worker_adapters, name) is getattr(worker_adapters, name)
    assert name in dir(worker_adapters)


@pytest.mark.parametrize("name", ["adapter", "capabilities", "contract", "errors", "extensions"])
def test_a_module_is_there_without_being_imported(name: str) -> None:
    program = f"import worker_adapters; print(worker_adapters.{name}.__name__)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert result.stdout == f"worker_adapters.{name}\n"


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nonesuch'"):
        _ = worker_adapters.Nonesuch


def test_importing_it_imports_next_to_nothing() -> None:
    program = (
        "import sys, worker_adapters\n"
        "print([name for name in ('asyncio', 'httpx', 'pydantic') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert result.stdout == "[]\n"
