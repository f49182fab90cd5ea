"""Engines by name: their adapters and their error rules."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from worker_adapters import ErrorRules, WorkerAdapter

__all__ = ["ADAPTERS", "error_rules", "make_adapter"]

ADAPTERS: Final = {"llamacpp": "LlamaCppAdapter"}
"""Adapter class per engine, each in ``worker_adapters.engines.NAME``."""


def make_adapter(engine: str, url: str, **options: Any) -> WorkerAdapter:
    """The engine's adapter for this base URL; options as its constructor takes them."""
    module = import_module(f"worker_adapters.engines.{engine}")
    adapter: WorkerAdapter = getattr(module, ADAPTERS[engine])(url, **options)
    return adapter


def error_rules(engine: str) -> ErrorRules | None:
    """The engine's rule table; None for a dialect that no engine of ours declares rules for."""
    if engine not in ADAPTERS:
        return None
    rules: ErrorRules = import_module(f"worker_adapters.engines.{engine}").ERROR_RULES
    return rules
