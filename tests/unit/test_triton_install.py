"""What installing the Triton server needs, and what is said where it is missing."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from worker_adapters.testing.triton import (
    STAND_INS,
    EngineNotInstalledError,
    why_unavailable,
    write_repository,
)
from worker_adapters.testing.triton import install as _install_function
from worker_adapters.testing.triton.stand_ins import StandIn

if TYPE_CHECKING:
    from pathlib import Path

installing = sys.modules[_install_function.__module__]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A machine that has everything, as far as it is asked."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "uname", lambda: type("Uname", (), {"machine": "x86_64"}))
    monkeypatch.setattr(installing, "_find_python", lambda: sys.executable)
    monkeypatch.setattr(installing, "_has_library", lambda: True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return monkeypatch


def test_a_machine_that_has_everything(machine: pytest.MonkeyPatch) -> None:
    assert why_unavailable() is None
    del machine


def test_another_system(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(sys, "platform", "darwin")
    assert "Linux on x86-64" in (why_unavailable() or "")


def test_no_python_of_that_version(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(installing, "_find_python", lambda: None)
    assert "python3.11 on the PATH" in (why_unavailable(system_packages=True) or "")


@pytest.mark.parametrize(
    ("user", "apt", "allowed", "said"),
    [
        (0, "/usr/bin/apt-get", True, None),
        (0, "/usr/bin/apt-get", False, "apt-get install libpython3.11"),
        (1000, "/usr/bin/apt-get", True, "apt-get install libpython3.11"),
        (0, None, True, "which this system does not have"),
    ],
)
def test_no_library(
    machine: pytest.MonkeyPatch, user: int, apt: str | None, allowed: bool, said: str | None
) -> None:
    machine.setattr(installing, "_has_library", lambda: False)
    machine.setattr(os, "geteuid", lambda: user)
    machine.setattr(shutil, "which", lambda _: apt)
    reason = why_unavailable(system_packages=allowed)
    assert (reason is None) == (said is None)
    if said is not None:
        assert said in (reason or "")
        with pytest.raises(EngineNotInstalledError, match=r"libpython3\.11"):
            _install_function(system_packages=allowed)


def test_the_library_is_installed_first_and_looked_for_again(machine: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    machine.setattr(installing, "_has_library", lambda: False)
    machine.setattr(installing, "_run", lambda *command: ran.append(" ".join(command)))
    machine.setattr(os, "geteuid", lambda: 0)
    machine.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(EngineNotInstalledError, match="still not found"):
        _install_function(system_packages=True)
    assert ran == [
        "apt-get -qq update",
        "apt-get -qq install --yes --no-install-recommends libpython3.11",
    ]


def test_a_failed_installation_leaves_nothing(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.setattr(installing, "REQUIREMENTS", ("no-such==0",))
    machine.setattr(installing, "_python", lambda: "/bin/false")
    with pytest.raises(EngineNotInstalledError, match="/bin/false -m venv"):
        _install_function()
    assert not [path for path in tmp_path.rglob("*") if path.is_dir() and path.name == "venv"]
    assert not list(tmp_path.rglob("complete"))


def test_a_repository_has_the_steps_of_its_ensembles(tmp_path: Path) -> None:
    write_repository(tmp_path, ["ensemble"])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["ensemble", "postprocessing", "preprocessing", "tensorrt_llm"]
    assert not (tmp_path / "ensemble" / "1" / "model.py").exists()
    assert (tmp_path / "tensorrt_llm" / "1" / "mock_llm.py").exists()


def test_a_stand_in_under_another_name(tmp_path: Path) -> None:
    write_repository(tmp_path, {"tensorrt_llm": "llmapi"})
    assert 'name: "tensorrt_llm"\n' in (tmp_path / "tensorrt_llm" / "config.pbtxt").read_text()
    write_repository(tmp_path, {"other": "ensemble_limited"})
    assert (tmp_path / "other" / "config.pbtxt").read_text().startswith('name: "other"\n')
    with pytest.raises(KeyError):
        write_repository(tmp_path, ["gpt-5"])


@pytest.mark.parametrize("name", STAND_INS)
def test_no_mark_is_left_in_a_configuration(name: str) -> None:
    stand_in: StandIn = STAND_INS[name]
    config = stand_in.config(name)
    assert "@" not in config
    assert f'name: "{name}"' in config
