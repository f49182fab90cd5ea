"""Print what the wheel is made of, as a CycloneDX document in JSON.

maturin's own document names the folder that it was made in and the time; this one is the same,
byte for byte, wherever the same lock file is built for the same target. It lists the crates that
are compiled in, with their checksums; those that only take part in the build (scope ``excluded``);
and the Python packages that the metadata asks for, which are installed beside the wheel and have no
version here.

    sbom.py [--target x86_64-unknown-linux-gnu]
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EXTENSION = "worker-adapters-python"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://cyclonedx.org/schema/bom-1.6.schema.json")
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[^]]*\])?\s*(.*)")

Document = dict[str, Any]


def crates(target: str | None) -> tuple[str, dict[str, Document], dict[str, list[str]]]:
    """Return our version, the extension's crates by reference, and who depends on whom."""
    filters = [f"--filter-platform={target}"] if target else []
    metadata = json.loads(cargo("metadata", "--format-version=1", *filters))
    built = built_crates(target)
    packages = {
        package["id"]: package
        for package in metadata["packages"]
        if (package["name"], package["version"]) in built
    }
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    checksums = {
        (package["name"], package["version"]): package.get("checksum")
        for package in tomllib.loads((ROOT / "Cargo.lock").read_text(encoding="utf-8"))["package"]
    }
    (top,) = (key for key, package in packages.items() if package["name"] == EXTENSION)
    linked = reachable(top, nodes, packages, built=False)
    taking_part = reachable(top, nodes, packages, built=True)
    components = {
        purl(packages[key]): component(
            packages[key],
            checksums[packages[key]["name"], packages[key]["version"]],
            is_linked=key in linked,
        )
        for key in taking_part
    }
    edges = {
        purl(packages[key]): sorted(
            purl(packages[other]) for other in steps(nodes[key], packages, built=True)
        )
        for key in taking_part
    }
    return packages[top]["version"], components, edges


def cargo(*arguments: str) -> str:
    """Return what cargo prints."""
    command = [os.environ.get("CARGO", "cargo"), *arguments, "--locked"]
    return subprocess.check_output(command, cwd=ROOT, text=True)


def built_crates(target: str | None) -> set[tuple[str, str]]:
    """Return names and versions of what the extension alone needs, with the features it asks for.

    ``cargo metadata`` gives each crate the features of the whole workspace, its tests included.
    """
    edges = ["--edges=normal,build", f"--target={target or 'all'}"]
    tree = cargo("tree", f"--package={EXTENSION}", *edges, "--prefix=none", "--format={p}")
    words = (line.split() for line in tree.splitlines())
    return {(name, version.removeprefix("v")) for name, version, *_ in words}


def steps(node: Document, packages: dict[str, Document], *, built: bool) -> Iterator[str]:
    """Yield what a crate depends on: to be linked, or also to be ``built``."""
    for dependency in node["deps"]:
        if dependency["pkg"] not in packages:
            continue
        kinds = {kind["kind"] for kind in dependency["dep_kinds"]}
        is_linked = None in kinds and not is_macro(packages[dependency["pkg"]])
        if is_linked or (built and kinds & {None, "build"}):
            yield dependency["pkg"]


def reachable(
    top: str, nodes: dict[str, Document], packages: dict[str, Document], *, built: bool
) -> set[str]:
    """Return the crates that ``top`` needs, itself among them."""
    found, waiting = {top}, [top]
    while waiting:
        for key in steps(nodes[waiting.pop()], packages, built=built):
            if key not in found:
                found.add(key)
                waiting.append(key)
    return found


def is_macro(package: Document) -> bool:
    """Whether a crate runs in the compiler, not in the wheel."""
    return any("proc-macro" in target["kind"] for target in package["targets"])


def purl(package: Document) -> str:
    """Return the package URL of a crate, which is its reference as well."""
    return f"pkg:cargo/{package['name']}@{package['version']}"


def component(package: Document, checksum: str | None, *, is_linked: bool) -> Document:
    """Return a crate as CycloneDX has it."""
    described: Document = {
        "type": "library",
        "bom-ref": purl(package),
        "name": package["name"],
        "version": package["version"],
        "purl": purl(package),
        "scope": "required" if is_linked else "excluded",
    }
    if package["license"]:
        expression = re.sub(r"\s*/\s*", " OR ", package["license"])
        described["licenses"] = [{"expression": expression}]
    if checksum:
        described["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    return described


def python_packages() -> Iterator[Document]:
    """Yield the packages that the wheel's metadata asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [("required", requirement) for requirement in project["dependencies"]]
    for requirements in project["optional-dependencies"].values():
        asked += [("optional", requirement) for requirement in requirements]
    for scope, requirement in asked:
        found = _REQUIREMENT.fullmatch(requirement)
        if found is None or found[1] == project["name"]:
            continue
        yield {
            "type": "library",
            "bom-ref": f"pkg:pypi/{found[1]}",
            "name": found[1],
            "purl": f"pkg:pypi/{found[1]}",
            "scope": scope,
            "properties": [{"name": "python:requirement", "value": found[2]}],
        }


def document(target: str | None) -> Document:
    """Return the whole document."""
    version, found, edges = crates(target)
    (top,) = (purl for purl in found if purl.startswith(f"pkg:cargo/{EXTENSION}@"))
    del found[top]
    wheel = f"pkg:pypi/worker-adapters@{version}"
    packages = list(python_packages())
    needed = [package["bom-ref"] for package in packages if package["scope"] == "required"]
    edges[wheel] = sorted(edges.pop(top) + needed)
    bill: Document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "build"}],
            "component": {
                "type": "library",
                "bom-ref": wheel,
                "name": "worker-adapters",
                "version": version,
                "purl": wheel,
                "licenses": [{"expression": "Apache-2.0"}],
            },
        },
        "components": [found[key] for key in sorted(found)]
        + sorted(packages, key=lambda package: str(package["name"])),
        "dependencies": [{"ref": key, "dependsOn": edges[key]} for key in sorted(edges)],
    }
    content = json.dumps(bill, sort_keys=True)
    return {"serialNumber": uuid.uuid5(_NAMESPACE, content).urn, **bill}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", help="what the wheel is built for; all targets if not given")
    json.dump(document(parser.parse_args().target), sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
