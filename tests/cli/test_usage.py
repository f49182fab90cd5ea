"""The command line itself: help, wrong usage, a missing extra, what gets imported."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from worker_adapters import __version__
from worker_adapters.cli._app import app

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Command

COMMANDS = ("generate", "probe", "certify", "decode", "fake-engine", "demo")


def test_help_names_every_command_and_the_exit_statuses() -> None:
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "100", "NO_COLOR": "1"})
    assert result.exit_code == 0
    for word in (*COMMANDS, "unreachable", "interrupted"):
        assert word in result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "100", "NO_COLOR": "1"})
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_no_command_is_wrong_usage() -> None:
    assert CliRunner().invoke(app, []).exit_code == 2


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"worker-adapters {__version__}\n")


def test_help_imports_neither_http_nor_engine() -> None:
    heavy = ("httpx", "h11", "numpy", "gguf", "xllamacpp", "prometheus_client")
    program = (
        "import sys\n"
        "from worker_adapters.cli import main\n"
        "sys.argv = ['worker-adapters', '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        f"    print(*(name for name in {heavy} if name in sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert result.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_it_tells_how_to_install_it(missing: str) -> None:
    program = (
        f"import sys\nsys.modules[{missing!r}] = None\n"
        "from worker_adapters.cli import main\nsys.exit(main())"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert "pip install 'worker-adapters[cli]'" in result.stderr
    assert missing in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "-p", "x", "--engine", "nonesuch"),
        ("probe", "http://127.0.0.1:1", "--engine", "nonesuch"),
        ("decode", "--engine", "nonesuch", "-"),
    ],
)
def test_an_unknown_engine_is_answered_with_the_known_ones(
    command: Command, arguments: tuple[str, ...]
) -> None:
    result = command(*arguments)
    assert result.returncode == 2
    assert result.stdout == b""
    assert b"unknown engine 'nonesuch'" in result.stderr
    assert b"llamacpp" in result.stderr


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8080",
        "ftp://host/",
        "http://",
        "http://host:port",
        "http://host:99999",
        "http://host:0",
        "http://[::1",
        "",
        "http://host/?a=b",
        "http://host/#f",
        "http://user:hunter2@host",
    ],
)
@pytest.mark.parametrize(
    "before", [("probe",), ("generate", "-p", "x", "--url"), ("demo", "--url")]
)
def test_a_wrong_url_is_wrong_usage(url: str, before: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*before, url])
    assert result.exit_code == 2
    assert "hunter2" not in result.output
    assert "Traceback" not in result.output
    assert result.output.strip()


@pytest.mark.parametrize("prompt", ["", "\n", "\r\n"])
def test_an_empty_prompt_is_wrong_usage(command: Command, prompt: str) -> None:
    result = command("generate", stdin=prompt.encode())
    assert result.returncode == 2
    assert b"prompt is empty" in result.stderr
    assert command("generate", "-p", "").returncode == 2


def test_a_prompt_that_is_no_text_is_wrong_usage(command: Command) -> None:
    result = command("generate", stdin=b"\xff\xfe")
    assert result.returncode == 2
    assert b"UTF-8" in result.stderr


@pytest.mark.parametrize("content", [None, b"", b"\n\n", b"\xff"])
def test_an_unusable_key_file_is_wrong_usage(
    command: Command, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    result = command("generate", "-p", "x", "--api-key-file", str(path))
    assert result.returncode == 2
    assert b"API key" in result.stderr
    assert b"Traceback" not in result.stderr


@pytest.mark.parametrize(
    "option",
    [
        ("--max-tokens", "0"),
        ("--max-tokens", "3000000000"),
        ("--seed", "-1"),
        ("--deadline-ms", "0"),
        ("--top-p", "2"),
        ("--temperature", "-1"),
        ("--temperature", "nan"),
    ],
)
def test_a_value_outside_the_contract_is_wrong_usage(option: tuple[str, str]) -> None:
    assert CliRunner().invoke(app, ["generate", "-p", "x", *option]).exit_code == 2


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (("--top-p", "0"), b"top_p"),
        (("--temperature", "1000"), b"temperature"),
        (("--stop", ""), b"stop"),
        (("--seed", "9999999999"), b"seed"),
        (("--prompt", b"\xff".decode("utf-8", "surrogateescape")), b"prompt"),
    ],
)
def test_a_value_that_the_contract_refuses_is_named_in_one_line(
    command: Command, option: tuple[str, str], says: bytes
) -> None:
    result = command("generate", "-p", "a secret prompt", "--url", "http://127.0.0.1:1", *option)
    assert result.returncode == 2
    assert says in result.stderr
    assert result.stderr.count(b"\n") == 1
    assert b"secret" not in result.stderr


@pytest.mark.parametrize("key", ["short", "clé-secrète", "with space inside", "two\nlines"])
def test_a_key_that_cannot_be_sent_is_refused_unseen(command: Command, key: str) -> None:
    result = command(
        "generate", "-p", "x", "--url", "http://127.0.0.1:1", env={"WORKER_ADAPTERS_API_KEY": key}
    )
    assert result.returncode in {2, 3}
    assert b"Traceback" not in result.stderr
    assert key.encode() not in result.stderr
