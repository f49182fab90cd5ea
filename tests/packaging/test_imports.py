"""What importing the package costs: nothing that the caller did not ask for."""

import json
import sys

import pytest

from tests.packaging.support import Run

HEAVY = {"httpx", "httpcore", "anyio", "typer", "click", "rich", "numpy", "gguf", "xllamacpp"}


def imported_by(run: Run, statement: str) -> set[str]:
    """Return the top-level names of the modules that ``statement`` imports."""
    program = f"import sys, json\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = run([sys.executable, "-W", "error", "-c", program])
    return {module.split(".")[0] for module in json.loads(done.stdout)}


def test_the_package_imports_neither_http_client_nor_extras(run: Run) -> None:
    assert not HEAVY & imported_by(run, "import worker_adapters")


def test_decoding_imports_neither_http_client_nor_extras(run: Run) -> None:
    statement = "from worker_adapters import SseDecoder, StreamDecoder, TokenEvent, WorkerError"
    assert not HEAVY & imported_by(run, statement)


def test_an_adapter_imports_the_http_client_and_no_extra(run: Run) -> None:
    modules = imported_by(run, "from worker_adapters import LlamaCppAdapter")
    # Where click and rich are installed, httpx imports them for a command of its own.
    with_it = imported_by(run, "import httpx")
    assert HEAVY & modules <= {"httpx", "httpcore", "anyio"} | with_it


@pytest.mark.parametrize("name", ["SseDecoder", "StreamDecoder", "TokenEvent", "Redactor"])
def test_native_names_are_those_of_the_compiled_module(name: str) -> None:
    import worker_adapters
    from worker_adapters import _core

    assert getattr(worker_adapters, name) is getattr(_core, name)


def test_every_public_name_resolves_and_is_listed_once() -> None:
    import worker_adapters

    assert len(set(worker_adapters.__all__)) == len(worker_adapters.__all__)
    for name in worker_adapters.__all__:
        assert getattr(worker_adapters, name) is not None
