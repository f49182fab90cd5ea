"""The crates as others get them."""

import json
import os
import tarfile
from pathlib import Path

import pytest

from tests.packaging.support import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CARGO = os.environ.get("CARGO", "cargo")


def test_the_core_crate_can_be_packaged_and_built_from_its_package(run: Run) -> None:
    run([CARGO, "package", "--package", "worker-adapters-core", "--locked", "--allow-dirty"])
    metadata = json.loads(
        run([CARGO, "metadata", "--no-deps", "--format-version=1", "--locked"]).stdout
    )
    (version,) = {package["version"] for package in metadata["packages"]}
    packages = Path(metadata["target_directory"]) / "package"
    with tarfile.open(packages / f"worker-adapters-core-{version}.crate") as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    assert {"Cargo.toml", "LICENSE", "README.md", "src/lib.rs"} <= names
    assert not {name for name in names if name.startswith("tests/")}


def test_the_core_crate_knows_neither_python_nor_sockets(run: Run) -> None:
    command = [CARGO, "tree", "--package=worker-adapters-core", "--locked"]
    tree = run([*command, "--edges=normal", "--prefix=none", "--format={lib}"]).stdout
    assert not {"pyo3", "tokio", "hyper", "mio", "socket2", "rustls"} & set(tree.split())


def test_what_would_be_published_of_the_sockets_crate(run: Run) -> None:
    command = [CARGO, "package", "--package=worker-adapters-net", "--locked", "--allow-dirty"]
    names = set(run([*command, "--list"]).stdout.splitlines())
    assert {"Cargo.toml", "LICENSE", "README.md", "src/lib.rs"} <= names
    assert not {name for name in names if name.startswith("tests/")}
