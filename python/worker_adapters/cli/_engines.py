"""Engines by name, as the command line takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worker_adapters.cli._console import fail_invalid
from worker_adapters.engines import ENGINES, adapter_class

if TYPE_CHECKING:
    from worker_adapters import ErrorRules, WorkerAdapter

__all__ = ["ENGINES", "error_rules", "make_adapter"]


def make_adapter(engine: str, url: str, **options: Any) -> WorkerAdapter:
    """The engine's adapter for this base URL; options as its constructor takes them.

    An option that it does not take ends the command.
    """
    make: Any = adapter_class(engine)
    try:
        adapter: WorkerAdapter = make(url, **options)
    except ValueError as error:
        fail_invalid(error)
    return adapter


def error_rules(dialect: str) -> ErrorRules | None:
    """The rule table of the engine with this dialect's name; None where there is no such engine."""
    if dialect not in ENGINES:
        return None
    adapter: Any = adapter_class(dialect)
    rules: ErrorRules = adapter.rules
    return rules
