"""Small servers that speak the engines' dialects and misbehave on request, for tests.

Each is made after recordings of the real engine (TGI's after its source): response heads, framing,
frames, finish signals, errors, the routes for health, version, models and slots. What it says is a
script, and `Behaviour` says what goes wrong with it. They use the standard library only::

    with scripted_engine("vllm", error="stream", after=2) as engine:
        VllmAdapter(engine.url) ...
        engine.behave(delay_ms=20)

As a pytest fixture: ``fake_engine``. On the command line: ``worker-adapters fake-engine``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from worker_adapters.testing.engines._base import (
    CONTEXT,
    PIECES,
    Behaviour,
    Generation,
    ScriptedEngine,
)
from worker_adapters.testing.engines._llamacpp import LlamaCppEngine
from worker_adapters.testing.engines._openai import OpenAiEngine, VllmEngine
from worker_adapters.testing.engines._sglang import SglangEngine
from worker_adapters.testing.engines._tgi import TgiEngine
from worker_adapters.testing.engines._triton import TritonEngine

__all__ = [
    "CONTEXT",
    "PIECES",
    "SCRIPTED",
    "Behaviour",
    "Generation",
    "LlamaCppEngine",
    "OpenAiEngine",
    "ScriptedEngine",
    "SglangEngine",
    "TgiEngine",
    "TritonEngine",
    "VllmEngine",
    "scripted_engine",
]

SCRIPTED: Final[Mapping[str, type[ScriptedEngine]]] = MappingProxyType(
    {
        kind.dialect: kind
        for kind in (
            LlamaCppEngine,
            OpenAiEngine,
            SglangEngine,
            TgiEngine,
            TritonEngine,
            VllmEngine,
        )
    }
)
"""Every scripted engine by the name of the engine it stands for."""


def scripted_engine(dialect: str, **options: Any) -> ScriptedEngine:
    """Make, without starting it, the scripted engine of this name.

    ``options`` are fields of `Behaviour`, ``host``, ``port``, and what the engine itself takes.
    Raises ValueError for an unknown name.
    """
    if dialect not in SCRIPTED:
        raise ValueError(f"unknown dialect {dialect!r}; known: {', '.join(SCRIPTED)}")
    return SCRIPTED[dialect](**options)
