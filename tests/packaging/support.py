"""Types and helpers of the packaging tests."""

import sys
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

Run = Callable[..., CompletedProcess[str]]


@dataclass(frozen=True)
class Distributions:
    """The files that would be published."""

    sdist: Path
    wheel: Path


def create_environment(run: Run, directory: Path, packages: Sequence[str | Path]) -> Path:
    """Create an environment with ``packages`` in it and return its interpreter."""
    venv.create(directory, symlinks=True)
    python = directory / "bin" / "python"
    # The pip of the environment the tests run in: newer than the one an interpreter bundles.
    pip = [sys.executable, "-m", "pip", "--python", python]
    run([*pip, "install", "--quiet", *packages])
    return python
