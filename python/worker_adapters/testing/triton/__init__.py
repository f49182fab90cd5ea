"""A real Triton Inference Server for tests, on a CPU, with stand-ins for TensorRT-LLM's models.

The server is the one inside the nvidia-pytriton wheel, installed on first use into a directory of
its own. What it puts on the wire is Triton's; the text of the answers is the stand-ins'. See
docs/testing.md.
"""

from worker_adapters.testing.triton.install import (
    EngineNotInstalledError,
    Installation,
    install,
    why_unavailable,
)
from worker_adapters.testing.triton.process import EngineStartError, TritonServer
from worker_adapters.testing.triton.stand_ins import STAND_INS, write_repository

__all__ = [
    "STAND_INS",
    "EngineNotInstalledError",
    "EngineStartError",
    "Installation",
    "TritonServer",
    "install",
    "why_unavailable",
    "write_repository",
]
