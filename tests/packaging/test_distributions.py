"""What is in the sdist and the wheel, and that the wheel works where nothing else is."""

import email
import json
import os
import tarfile
import tempfile
import tomllib
import uuid
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from tests.packaging.support import Distributions, Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SBOM_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://cyclonedx.org/schema/bom-1.6.schema.json")


@pytest.fixture(scope="session")
def sdist_files(distributions: Distributions) -> dict[str, int]:
    """Return the sizes of the sdist's files by their path below its top folder."""
    with tarfile.open(distributions.sdist) as archive:
        return {
            str(PurePosixPath(*PurePosixPath(member.name).parts[1:])): member.size
            for member in archive.getmembers()
            if member.isfile()
        }


@pytest.fixture(scope="session")
def wheel_files(distributions: Distributions) -> dict[str, bytes]:
    """Return the contents of the wheel's files by path."""
    with zipfile.ZipFile(distributions.wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_sdist_holds_what_a_build_needs(sdist_files: dict[str, int]) -> None:
    needed = {
        "Cargo.lock",
        "Cargo.toml",
        "CHANGELOG.md",
        "LICENSE",
        "PKG-INFO",
        "README.md",
        "pyproject.toml",
        "python/worker_adapters/_core.pyi",
        "python/worker_adapters/py.typed",
        "rust/core/Cargo.toml",
        "rust/core/src/lib.rs",
        "rust/python/Cargo.toml",
        "rust/python/src/lib.rs",
    }
    assert needed <= set(sdist_files)


def test_sdist_holds_nothing_else(sdist_files: dict[str, int]) -> None:
    allowed = {"benches", "python", "rust"}
    strangers = {
        name
        for name in sdist_files
        if "/" in name
        and (name.split("/")[0] not in allowed or "/tests/" in name or "__pycache__" in name)
    }
    assert not strangers
    assert not {name for name in sdist_files if name.endswith((".so", ".sse", ".http"))}
    assert sum(sdist_files.values()) < 4_000_000


def test_wheel_holds_the_package_and_its_types(wheel_files: dict[str, bytes]) -> None:
    assert {
        "worker_adapters/__init__.py",
        "worker_adapters/_core.pyi",
        "worker_adapters/py.typed",
    } <= set(wheel_files)
    libraries = [name for name in wheel_files if name.endswith(".so")]
    assert libraries == ["worker_adapters/_core.abi3.so"]
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel_files)


def test_one_wheel_serves_every_python(distributions: Distributions) -> None:
    _, version, python, abi, platform = distributions.wheel.stem.split("-")
    assert version
    assert (python, abi) == ("cp311", "abi3")
    # Plain "linux" would say that it needs libraries that a machine may lack.
    assert platform.startswith(("manylinux", "musllinux", "macosx"))


def test_wheel_runs_nothing_on_its_own(wheel_files: dict[str, bytes]) -> None:
    assert not {name for name in wheel_files if name.endswith(".pth") or ".data/" in name}
    assert "sitecustomize.py" not in {PurePosixPath(name).name for name in wheel_files}


def test_wheel_holds_no_tests(wheel_files: dict[str, bytes]) -> None:
    top = {name.split("/")[0].split("-")[0] for name in wheel_files}
    # The pytest plugin lies outside of the package.
    assert top == {"worker_adapters", "_worker_adapters_pytest"}
    # The suite that users run on their own engines is not a test of ours.
    ours = [name for name in wheel_files if "/testing/conformance/" not in name]
    strangers = {name for name in ours if "/tests/" in name or "/test_" in name}
    strangers |= {name for name in wheel_files if "__pycache__" in name or name.endswith(".rs")}
    assert not strangers


def test_wheel_tells_nothing_of_the_machine_it_was_built_on(
    wheel_files: dict[str, bytes], repository: Path
) -> None:
    cargo_home = os.environ.get("CARGO_HOME") or str(Path.home() / ".cargo")
    places = {str(repository), str(Path.home()), cargo_home, tempfile.gettempdir()}
    found = {
        f"{place} in {name}"
        for place in places
        for name, content in wheel_files.items()
        if f"{place}/".encode() in content
    }
    assert not found


def test_metadata(wheel_files: dict[str, bytes], repository: Path) -> None:
    (name,) = (name for name in wheel_files if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel_files[name])
    assert metadata["Name"] == "worker-adapters"
    assert f'version = "{metadata["Version"]}"' in (repository / "Cargo.toml").read_text()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    unconditional = [
        requirement
        for requirement in metadata.get_all("Requires-Dist") or []
        if "extra ==" not in requirement
    ]
    assert sorted(requirement.split(">=")[0] for requirement in unconditional) == [
        "httpx",
        "prometheus-client",
        "pydantic",
    ]
    assert set(metadata.get_all("Provides-Extra") or []) == {"cli", "config", "demo", "otel"}


@pytest.fixture(scope="session")
def bill(wheel_files: dict[str, bytes]) -> dict[str, Any]:
    """Return the wheel's bill of materials (PEP 770, CycloneDX)."""
    (name,) = (name for name in wheel_files if ".dist-info/sboms/" in name)
    assert name.endswith("/worker_adapters.cdx.json")
    document: dict[str, Any] = json.loads(wheel_files[name])
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    return document


def test_bill_lists_the_crates_inside_as_they_were_locked(
    bill: dict[str, Any], repository: Path
) -> None:
    lock = tomllib.loads((repository / "Cargo.lock").read_text(encoding="utf-8"))
    checksums = {
        (package["name"], package["version"]): package["checksum"]
        for package in lock["package"]
        if "checksum" in package
    }
    listed = {
        (row["name"], row["version"]): row["hashes"][0]["content"]
        for row in bill["components"]
        if row["purl"].startswith("pkg:cargo/") and "hashes" in row
    }
    assert listed.items() <= checksums.items()
    inside = {row["name"] for row in bill["components"] if row["scope"] == "required"}
    assert {"h2", "mio", "pyo3", "ring", "rustls", "worker-adapters-core"} <= inside
    # Features and kinds of dependency are told apart: these build, test or measure.
    assert not {"cc", "criterion", "hyper", "proptest", "pyo3-macros", "rcgen", "serde"} & inside


def test_bill_lists_the_packages_that_the_metadata_asks_for(
    bill: dict[str, Any], wheel_files: dict[str, bytes]
) -> None:
    (name,) = (name for name in wheel_files if name.endswith(".dist-info/METADATA"))
    asked = email.message_from_bytes(wheel_files[name]).get_all("Requires-Dist") or []
    expected = {
        requirement.split(">=")[0]: "optional" if "extra ==" in requirement else "required"
        for requirement in asked
        if not requirement.startswith("worker-adapters")
    }
    listed = {
        row["name"]: row["scope"]
        for row in bill["components"]
        if row["purl"].startswith("pkg:pypi/")
    }
    assert listed == expected


def test_bill_is_one_graph(bill: dict[str, Any]) -> None:
    edges = {row["ref"]: row["dependsOn"] for row in bill["dependencies"]}
    known = {row["bom-ref"] for row in bill["components"]}
    wheel = bill["metadata"]["component"]["bom-ref"]
    reached, waiting = {wheel}, [wheel]
    while waiting:
        further = set(edges.get(waiting.pop(), ())) - reached
        reached |= further
        waiting += further
    optional = {row["bom-ref"] for row in bill["components"] if row["scope"] == "optional"}
    assert reached | optional == known | {wheel}


def test_bill_is_the_same_wherever_it_is_made(bill: dict[str, Any]) -> None:
    assert set(bill["metadata"]) == {"component", "lifecycles"}  # no time, no tool's folder
    text = json.dumps({key: bill[key] for key in bill if key != "serialNumber"}, sort_keys=True)
    again = json.loads(text)
    assert bill["serialNumber"] == uuid.uuid5(SBOM_NAMESPACE, json.dumps(again, sort_keys=True)).urn


def test_wheel_works_in_a_clean_environment(clean_python: Path, run: Run, tmp_path: Path) -> None:
    program = """
import json, worker_adapters
from worker_adapters import LlamaCppAdapter, SseDecoder
(event,) = SseDecoder().feed(b"data: it works\\n\\n")
print(json.dumps([event.data, worker_adapters.__version__, worker_adapters.__file__]))
"""
    done = run([clean_python, "-I", "-W", "error", "-c", program], cwd=tmp_path)
    data, version, file = json.loads(done.stdout)
    assert data == "it works"
    assert version.count(".") == 2
    assert Path(file).is_relative_to(clean_python.parent.parent)


def test_command_without_its_extra_says_how_to_get_it(
    clean_python: Path, run: Run, tmp_path: Path
) -> None:
    command = clean_python.parent / "worker-adapters"
    done = run([command, "--help"], cwd=tmp_path, expect=2)
    assert done.stdout == ""
    assert "worker-adapters[cli]" in done.stderr
    assert "Traceback" not in done.stderr
