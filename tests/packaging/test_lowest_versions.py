"""The lower bounds in pyproject.toml are promises: the suite passes with exactly those versions."""

import sys
from pathlib import Path

import pytest

from tests.packaging.support import Distributions, Run, create_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_unit_suite_passes_with_the_lowest_versions(
    distributions: Distributions, run: Run, repository: Path, tmp_path: Path
) -> None:
    def requirements(*what: str) -> list[str]:
        done = run([sys.executable, repository / ".ci" / "requirements.py", *what])
        return done.stdout.split("\n")[:-1]

    lowest = requirements("--lowest", "project")
    python = create_environment(
        run, tmp_path / "venv", [distributions.wheel, *lowest, *requirements("group:test")]
    )
    installed = run([sys.executable, "-m", "pip", "--python", python, "list", "--format=freeze"])
    # "==2.7" installs 2.7.0.
    assert set(lowest) <= {
        line.lower().replace("_", "-").removesuffix(".0") for line in installed.stdout.split()
    }
    # Not the replays: decoding takes nothing from any of them.
    done = run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit"])
    assert " passed" in done.stdout
