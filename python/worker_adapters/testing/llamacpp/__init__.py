"""A real llama.cpp server for tests and demonstrations, on a CPU, in a tenth of a second.

Needs the extra ``[demo]`` (``xllamacpp`` holds the server, ``gguf`` and ``numpy`` write the
model). See docs/testing.md.
"""

from worker_adapters.testing.llamacpp.process import (
    EngineNotInstalledError,
    EngineStartError,
    LlamaCppServer,
)
from worker_adapters.testing.llamacpp.tiny_gguf import ModelKind, tiny_model

__all__ = [
    "EngineNotInstalledError",
    "EngineStartError",
    "LlamaCppServer",
    "ModelKind",
    "tiny_model",
]
