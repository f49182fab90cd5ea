"""Engines by name, as the command line takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worker_adapters.cli._console import USAGE, fail, fail_invalid
from worker_adapters.engines import ENGINES, adapter_class, engine_names

if TYPE_CHECKING:
    from worker_adapters import ErrorRules, WorkerAdapter

__all__ = ["engine_names", "make_adapter", "wire_of"]


def make_adapter(engine: str, url: str, **options: Any) -> WorkerAdapter:
    """The engine's adapter for this base URL; options as its constructor takes them, less None.

    A value that it does not take ends the command.
    """
    given = {name: value for name, value in options.items() if value is not None}
    try:
        make: Any = adapter_class(engine)
        adapter: WorkerAdapter = make(url, **given)
    except ValueError as error:
        fail_invalid(error)
    except TypeError:
        # Another package's adapter need not have what the command line offers.
        fail(f"the adapter of {engine} does not take {', '.join(sorted(given))}", USAGE)
    return adapter


def wire_of(name: str) -> tuple[str, ErrorRules | None]:
    """The dialect that an engine of this name streams in, and its error rules.

    A name of no engine is a dialect's own, without rules.
    """
    if name not in engine_names():
        return name, None
    adapter: Any = adapter_class(name)
    row = ENGINES.get(name)
    return adapter.dialect if row is None else row.dialect, adapter.rules
