"""The workflows: what they run is fixed, and who may publish can do nothing else."""

import re
import tomllib
from pathlib import Path

import pytest

WORKFLOWS = ("audit.yml", "ci.yml", "release.yml")
PINNED = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")


@pytest.fixture
def texts(repository: Path) -> dict[str, str]:
    """Return the workflows by name."""
    folder = repository / ".github" / "workflows"
    assert sorted(file.name for file in folder.iterdir()) == sorted(WORKFLOWS)
    return {name: (folder / name).read_text(encoding="utf-8") for name in WORKFLOWS}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_an_action_is_a_commit_not_a_tag(name: str, texts: dict[str, str]) -> None:
    used = re.findall(r"uses: (.+)", texts[name])
    assert used
    assert not [use for use in used if not use.startswith("./") and not PINNED.fullmatch(use)]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_nothing_keeps_a_token_that_it_does_not_need(name: str, texts: dict[str, str]) -> None:
    text = texts[name]
    assert re.search(r"^permissions:( \{\}|\n  contents: read)$", text, re.MULTILINE)
    assert text.count("actions/checkout@") == text.count("persist-credentials: false")
    assert "pull_request_target" not in text
    assert "secrets." not in text


def test_only_publishing_proves_who_we_are(texts: dict[str, str]) -> None:
    jobs = dict(re.findall(r"^  ([\w-]+):\n((?:    .*\n|\n)+)", texts["release.yml"], re.MULTILINE))
    trusted = {name for name, job in jobs.items() if "id-token: write" in job}
    assert trusted == {"publish-python", "publish-crates"}
    for name in trusted:
        assert "if: github.event_name == 'push'" in jobs[name]
        assert re.search(r"needs: \[.*\binspect\b", jobs[name])
        assert "environment:" in jobs[name]
    core, net = (
        jobs["publish-crates"].index(f"--package worker-adapters-{crate}")
        for crate in ("core", "net")
    )
    assert core < net


def test_the_compiler_is_one_that_the_crates_take(texts: dict[str, str], repository: Path) -> None:
    manifest = tomllib.loads((repository / "Cargo.toml").read_text(encoding="utf-8"))
    least = manifest["workspace"]["package"]["rust-version"]
    versions = {
        found for text in texts.values() for found in re.findall(r'RUST_VERSION: "(.+)"', text)
    }
    (version,) = versions
    assert [int(part) for part in version.split(".")] >= [int(part) for part in least.split(".")]


def test_what_builds_a_release_is_fixed_by_its_hashes(repository: Path) -> None:
    text = (repository / ".ci" / "release-requirements.txt").read_text(encoding="utf-8")
    joined = re.sub(r"\\\n\s*", "", text)
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    assert {line.split("==")[0] for line in lines} == {"maturin", "ziglang"}
    assert not [line for line in lines if not re.search(r"--hash=sha256:[0-9a-f]{64}", line)]
