"""The engines this library speaks to, one row each.

A row is complete when its adapter imports, its dialect is in the compiled core, and its evidence
and docs page exist; a test checks that. Nothing of an engine is imported before it is asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from worker_adapters.adapter import WorkerAdapter
    from worker_adapters.engines.llamacpp import LlamaCppAdapter
    from worker_adapters.engines.openai import OpenAiAdapter
    from worker_adapters.engines.vllm import VllmAdapter

__all__ = [
    "ENGINES",
    "EngineRow",
    "LlamaCppAdapter",
    "OpenAiAdapter",
    "VllmAdapter",
    "adapter_class",
]


@dataclass(frozen=True, slots=True)
class EngineRow:
    """Where everything about one engine is."""

    name: str
    """Of the module, the captures, the docs page and the metric label alike."""
    dialect: str
    """The wire dialect that `worker_adapters.StreamDecoder` decodes it with."""
    adapter: str
    """``module:Class`` of the adapter."""
    evidence: str
    """Folder of captures or documented frames, relative to the repository."""
    docs: str
    """Docs page, relative to the repository."""


_ROWS: Final = (
    EngineRow(
        name="llamacpp",
        dialect="llamacpp",
        adapter="worker_adapters.engines.llamacpp:LlamaCppAdapter",
        evidence="tests/captures/llamacpp",
        docs="docs/engines/llamacpp.md",
    ),
    EngineRow(
        name="vllm",
        dialect="openai",
        adapter="worker_adapters.engines.vllm:VllmAdapter",
        evidence="tests/captures/vllm",
        docs="docs/engines/vllm.md",
    ),
    EngineRow(
        name="openai",
        dialect="openai",
        adapter="worker_adapters.engines.openai:OpenAiAdapter",
        # Every server whose answers on OpenAI's routes are recorded has its own; the most are here.
        evidence="tests/captures/vllm",
        docs="docs/engines/openai.md",
    ),
)

ENGINES: Final[Mapping[str, EngineRow]] = MappingProxyType({row.name: row for row in _ROWS})
"""Every engine by name."""


def adapter_class(name: str) -> "type[WorkerAdapter]":
    """Import and return the adapter class of the engine called ``name``.

    Raises ValueError, listing the engines there are, for an unknown one.
    """
    row = ENGINES.get(name)
    if row is None:
        raise ValueError(f"unknown engine {name!r}; known: {', '.join(ENGINES)}")
    module, _, attribute = row.adapter.partition(":")
    cls: type[WorkerAdapter] = getattr(import_module(module), attribute)
    return cls


def __getattr__(name: str) -> Any:
    for row in _ROWS:
        if row.adapter.endswith(f":{name}"):
            return adapter_class(row.name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
