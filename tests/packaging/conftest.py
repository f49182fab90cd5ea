"""What the packaging tests share: one build of the distributions, one clean environment."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.packaging.support import Distributions, Run, create_environment


@pytest.fixture(scope="session")
def run(repository: Path) -> Run:
    """Return a function that runs a command and fails with its output unless it exits 0."""

    def run(
        command: Sequence[str | Path],
        *,
        cwd: Path = repository,
        env: dict[str, str] | None = None,
        expect: int = 0,
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != expect:
            command_line = " ".join(map(str, command))
            pytest.fail(
                f"{command_line}\nexited {done.returncode}\n{done.stdout}\n{done.stderr}",
                pytrace=False,
            )
        return done

    return run


@pytest.fixture(scope="session")
def distributions(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """Build the sdist and, from it, the wheel, as a release does."""
    directory = tmp_path_factory.mktemp("dist")
    run(["make", "dist", f"DIST={directory}"])
    (sdist,) = directory.glob("*.tar.gz")
    (wheel,) = directory.glob("*.whl")
    return Distributions(sdist, wheel)


@pytest.fixture(scope="session")
def clean_python(
    distributions: Distributions, run: Run, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the interpreter of an environment that holds the wheel and its dependencies only."""
    return create_environment(run, tmp_path_factory.mktemp("clean") / "venv", [distributions.wheel])
