"""What the crates and the package are made of: few, each with a reason, locked, and known."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

REGISTRY = "registry+https://github.com/rust-lang/crates.io-index"
MANIFESTS = ("rust/core", "rust/net", "rust/python")
COMMAND = re.compile(
    r"\t.*(\$\((CARGO|MATURIN)\)|maturin) (build|check|clippy|deny|develop|doc|test) "
)
MOST_DIRECT = 12
"""How many crates of others each crate of ours may name."""


def manifest(path: Path) -> dict[str, Any]:
    """Return what a TOML file holds."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("crate", MANIFESTS)
def test_a_crate_depends_on_few_others(crate: str, repository: Path) -> None:
    direct = {
        name
        for name in manifest(repository / crate / "Cargo.toml")["dependencies"]
        if not name.startswith("worker-adapters-")
    }
    assert 0 < len(direct) <= MOST_DIRECT


@pytest.mark.parametrize("crate", MANIFESTS)
def test_each_dependency_has_a_line_of_reason(crate: str, repository: Path) -> None:
    lines = (repository / crate / "Cargo.toml").read_text(encoding="utf-8").splitlines()
    at = lines.index("[dependencies]") + 1
    section = lines[at : next(i for i in range(at, len(lines)) if lines[i].startswith("["))]
    named = [i for i, line in enumerate(section) if re.match(r"[\w-]+(\.workspace)? *=", line)]
    assert len(named) == len(manifest(repository / crate / "Cargo.toml")["dependencies"])
    assert not [section[i] for i in named if i == 0 or not section[i - 1].startswith("# ")]


def test_everything_is_locked_and_from_the_crates_registry(repository: Path) -> None:
    packages = manifest(repository / "Cargo.lock")["package"]
    strangers = {
        package["name"]
        for package in packages
        if not package["name"].startswith("worker-adapters-")
        and (package["source"] != REGISTRY or len(package["checksum"]) != 64)
    }
    assert len(packages) > 50
    assert not strangers


def test_no_command_may_change_the_lock_file(repository: Path) -> None:
    text = re.sub(r"\\\n\s*", "", (repository / "Makefile").read_text(encoding="utf-8"))
    commands = [line.strip() for line in text.splitlines() if COMMAND.match(line)]
    assert len(commands) >= 6
    assert not [command for command in commands if "--locked" not in command]


def test_no_crate_brings_a_weaker_hash(repository: Path) -> None:
    """What a server chooses the keys of is hashed with a key of ours, or ordered."""
    weak = {"ahash", "fxhash", "fnv", "foldhash", "nohash-hasher", "rustc-hash"}
    for crate in MANIFESTS:
        assert not weak & set(manifest(repository / crate / "Cargo.toml")["dependencies"])


def test_unsafe_code_is_one_call(repository: Path) -> None:
    found = [
        (file.relative_to(repository).as_posix(), line.strip())
        for crate in MANIFESTS
        for file in sorted((repository / crate / "src").rglob("*.rs"))
        for line in file.read_text(encoding="utf-8").splitlines()
        if re.search(r"\bunsafe\b", line.split("//")[0])
    ]
    ((file, line),) = found
    assert (file, line.startswith("unsafe { pyo3::ffi::PyInterpreterState_GetID(")) == (
        "rust/python/src/interpreter.rs",
        True,
    )
    for crate in MANIFESTS[:2]:
        text = (repository / crate / "src" / "lib.rs").read_text(encoding="utf-8")
        assert "#![forbid(unsafe_code)]" in text


def test_a_panic_unwinds(repository: Path) -> None:
    """It would take the orchestrator down otherwise."""
    profiles = manifest(repository / "Cargo.toml")["profile"]
    assert profiles["release"]["panic"] == "unwind"
    assert "abort" not in {profile.get("panic") for profile in profiles.values()}
