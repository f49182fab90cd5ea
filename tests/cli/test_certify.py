"""``certify``: a card of what a server does, and its exit statuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.transports import both_transports
from worker_adapters.testing.conformance import CHECKS
from worker_adapters.testing.engines import SCRIPTED

if TYPE_CHECKING:
    from tests.cli.conftest import Command, FakeEngine

pytestmark = both_transports


@pytest.mark.parametrize("engine", SCRIPTED)
def test_every_engine(command: Command, fake_engine: FakeEngine, engine: str) -> None:
    scripted = fake_engine(engine, delay_ms=0.2)
    result = command("certify", engine, scripted.url, "--json")
    assert result.returncode == 0, result.stdout
    card = json.loads(result.stdout)
    assert (card["engine"], card["url"], card["conformant"]) == (engine, scripted.url, True)
    assert sum(card["summary"].values()) == len(card["checks"]) == len(CHECKS)
    assert card["summary"]["failed"] == 0
    assert card["capabilities"]["features"]["streaming"]["value"] is True
    assert all(row["feature"] and row["why"] for row in card["lacks"])


def test_the_card_for_people(command: Command, fake_engine: FakeEngine) -> None:
    result = command("certify", "triton", fake_engine("triton", delay_ms=0.2).url)
    assert result.returncode == 0
    card = result.stdout.decode()
    assert card.startswith("engine   triton 2.51.0 at http://127.0.0.1:")
    assert "model    tensorrt_llm_bls\n" in card
    for area in ("trait", "ordering", "terminal", "errors", "cancel", "counting", "utf8"):
        assert f"\n{area} " in card
    assert "\nlacking\n" in card
    assert "enable with: slots= of the adapter" in card
    assert card.splitlines()[-1].startswith("conformant: ")


def test_a_server_that_breaks_the_contract(command: Command, fake_engine: FakeEngine) -> None:
    engine = fake_engine("vllm", truncate="close", after=2)
    result = command("certify", "vllm", engine.url, "--only", "terminal", "--json")
    assert result.returncode == 4
    card = json.loads(result.stdout)
    assert not card["conformant"]
    failed = [row for row in card["checks"] if row["status"] == "failed"]
    assert {row["area"] for row in failed} == {"terminal"}
    assert any("WORKER_RESET" in row["detail"] for row in failed)
    people = command("certify", "vllm", engine.url, "--only", "terminal").stdout.decode()
    assert "\nfailed\n" in people
    assert "NOT conformant" in people


def test_a_server_that_loads_is_not_conformant(command: Command, fake_engine: FakeEngine) -> None:
    engine = fake_engine("llamacpp", ready=False)
    result = command("certify", "llamacpp", engine.url, "--only", "health_is_ready")
    assert result.returncode == 4
    assert b"not ready: loading" in result.stdout
    assert b"the engine is not ready (loading)" in result.stderr


def test_nothing_there(command: Command, unused_tcp_port: int) -> None:
    result = command("certify", "vllm", f"http://127.0.0.1:{unused_tcp_port}")
    assert result.returncode == 3
    assert result.stdout == b""
    assert b"nothing answers" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing", "http://127.0.0.1:1"), "unknown engine"),
        (("vllm", "nowhere"), "no base URL"),
        (("vllm", "http://127.0.0.1:1", "--only", "luck"), "no check or area is called luck"),
        (("vllm", "http://127.0.0.1:1", "-p", ""), "the prompt is empty"),
    ],
)
def test_wrong_usage(command: Command, arguments: tuple[str, ...], message: str) -> None:
    result = command("certify", *arguments)
    assert result.returncode == 2
    assert message.encode() in result.stderr


def test_a_key_and_a_prompt_are_never_shown(
    command: Command, fake_engine: FakeEngine, tmp_path: Any
) -> None:
    key = "sk-certified-0123456789"
    (tmp_path / "key").write_text(key)
    engine = fake_engine("openai", api_key=key, delay_ms=0.2)
    result = command(
        *("certify", "openai", engine.url, "-p", "a private prompt", "--json"),
        *("--api-key-file", str(tmp_path / "key")),
    )
    assert result.returncode == 0
    shown = result.stdout + result.stderr
    assert key.encode() not in shown
    assert b"private" not in shown
