"""The engines this library speaks to, one row each.

A row is complete when its adapter imports, its dialect is in the compiled core, and its evidence
and docs page exist; a test checks that. Nothing of an engine is imported before it is asked for.

Other packages bring engines by an entry point of the group ``worker_adapters.engines``, whose name
is the engine's and whose object is its adapter class; see `worker_adapters.engines.base`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from worker_adapters.adapter import WorkerAdapter
    from worker_adapters.engines.llamacpp import LlamaCppAdapter
    from worker_adapters.engines.openai import OpenAiAdapter
    from worker_adapters.engines.sglang import SglangAdapter
    from worker_adapters.engines.tgi import TgiAdapter
    from worker_adapters.engines.triton import TritonAdapter
    from worker_adapters.engines.vllm import VllmAdapter

__all__ = [
    "ENGINES",
    "ENTRY_POINTS",
    "EngineRow",
    "LlamaCppAdapter",
    "OpenAiAdapter",
    "SglangAdapter",
    "TgiAdapter",
    "TritonAdapter",
    "VllmAdapter",
    "adapter_class",
    "engine_names",
]

ENTRY_POINTS: Final = "worker_adapters.engines"
"""Group of the entry points by which other packages bring engines."""


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
    EngineRow(
        name="sglang",
        dialect="sglang",
        adapter="worker_adapters.engines.sglang:SglangAdapter",
        evidence="tests/captures/sglang",
        docs="docs/engines/sglang.md",
    ),
    EngineRow(
        name="tgi",
        dialect="tgi",
        adapter="worker_adapters.engines.tgi:TgiAdapter",
        evidence="tests/captures/tgi",
        docs="docs/engines/tgi.md",
    ),
    EngineRow(
        name="triton",
        dialect="triton",
        adapter="worker_adapters.engines.triton:TritonAdapter",
        evidence="tests/captures/triton",
        docs="docs/engines/triton.md",
    ),
)

ENGINES: Final[Mapping[str, EngineRow]] = MappingProxyType({row.name: row for row in _ROWS})
"""Every engine of this library by name."""


def engine_names() -> tuple[str, ...]:
    """Return the names of all engines there are: this library's, then other packages', sorted."""
    return (*ENGINES, *sorted(_third_parties().keys() - ENGINES.keys()))


def adapter_class(name: str) -> "type[WorkerAdapter]":
    """Import and return the adapter class of the engine called ``name``.

    Raises ValueError, listing the engines there are, for an unknown one, and saying why for one of
    another package that cannot be used. No package can take the place of this library's engines.
    """
    row = ENGINES.get(name)
    if row is not None:
        module, _, attribute = row.adapter.partition(":")
        cls: type[WorkerAdapter] = getattr(import_module(module), attribute)
        return cls
    brought = _third_parties().get(name)
    if brought is None:
        raise ValueError(f"unknown engine {name!r}; known: {', '.join(engine_names())}")
    return _loaded(name, brought)


def _third_parties() -> "dict[str, list[EntryPoint]]":
    """Return what other packages bring, by the engine's name. Nothing is imported by it."""
    from importlib.metadata import entry_points

    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        found.setdefault(entry.name, []).append(entry)
    return found


def _loaded(name: str, entries: "list[EntryPoint]") -> "type[WorkerAdapter]":
    """Import the one class that is brought as ``name``. Raises ValueError, saying why it cannot."""
    from worker_adapters.adapter import WorkerAdapter

    # One distribution may be found twice on the path, and says the same then.
    if len({entry.value for entry in entries}) > 1:
        values = ", ".join(sorted(entry.value for entry in entries))
        raise ValueError(f"several packages bring an engine {name!r}: {values}")
    entry = entries[0]
    try:
        cls = entry.load()
    except Exception as error:
        raise ValueError(f"engine {name!r}: {entry.value} cannot be imported: {error}") from error
    adapter = cls if isinstance(cls, type) and issubclass(cls, WorkerAdapter) else None
    if adapter is None:
        raise ValueError(f"engine {name!r}: {entry.value} is no subclass of WorkerAdapter")
    told = getattr(adapter, "engine", None)
    if told != name:
        raise ValueError(f"engine {name!r}: {entry.value} calls itself {told!r}")
    return adapter


def __getattr__(name: str) -> Any:
    for row in _ROWS:
        if row.adapter.endswith(f":{name}"):
            return adapter_class(row.name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
