"""``worker-adapters config``: what is wrong, what holds, what may be said."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from worker_adapters.config import schema

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Command

GOOD = """\
version = 1
[pools.chat]
engine = "llamacpp"
[pools.chat.replicas.a]
url = "http://127.0.0.1:8080"
"""


def written(folder: Path, text: str) -> str:
    file = folder / "adapters.toml"
    file.write_text(text, "utf-8")
    return str(file)


def test_a_good_one(command: Command, tmp_path: Path) -> None:
    done = command("config", "check", written(tmp_path, GOOD))
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"1 pools, 1 replicas" in done.stderr


def test_everything_that_is_wrong_with_its_line(command: Command, tmp_path: Path) -> None:
    file = written(tmp_path, GOOD + 'api_key = "hunter2-hunter2"\nmax_stream = 1\n')
    done = command("config", "check", file)
    assert done.returncode == 1
    first, second = done.stderr.decode().splitlines()
    assert first.startswith(f"{file}:6: pools.chat.replicas.a.api_key: write env:NAME")
    assert second.startswith(f"{file}:7: pools.chat.replicas.a.max_stream: there is no such field")
    assert b"hunter2" not in done.stderr


def test_what_keeps_an_adapter_from_being_made(command: Command, tmp_path: Path) -> None:
    text = GOOD + 'api_key = "env:NO_SUCH_KEY_HERE"\n[pools.chat.replicas.b]\nurl = "http://h"\n'
    file = written(tmp_path, text + "options = { nonsense = 1 }\n")
    done = command("config", "check", file)
    assert done.returncode == 1
    first, second = done.stderr.decode().splitlines()
    assert first == f"{file}:4: pools.chat.replicas.a: the variable NO_SUCH_KEY_HERE is not set"
    assert second.startswith(f"{file}:9: pools.chat.replicas.b.options.nonsense: ")


def test_a_field_of_a_quoted_pool_is_found_again(command: Command, tmp_path: Path) -> None:
    text = GOOD.replace("pools.chat", 'pools."a: b.c"') + "options = { nonsense = 1 }\n"
    file = written(tmp_path, text)
    done = command("config", "check", file)
    (told,) = done.stderr.decode().splitlines()
    assert told.startswith(f'{file}:6: pools."a: b.c".replicas.a.options.nonsense: ')


def test_a_file_that_is_too_deep(command: Command, tmp_path: Path) -> None:
    file = written(tmp_path, GOOD + "x = " + "[" * 5000)
    done = command("config", "check", file)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [f"{file}:6: is nested too deeply"]


def test_a_variable_goes_before_the_file(command: Command, tmp_path: Path) -> None:
    env = {
        "WORKER_ADAPTERS__POOLS__CHAT__MODEL": "sk-proj-0123456789abcdefghijABCDEFGHIJ",
        "WORKER_ADAPTERS__POOLS__CHAT__API_KEY": "file:/run/key",
    }
    done = command("config", "show", written(tmp_path, GOOD), env=env)
    assert done.returncode == 0
    shown = json.loads(done.stdout)
    assert shown["pools"]["chat"]["model"].startswith("****")
    assert shown["pools"]["chat"]["api_key"] == "file:/run/key"
    assert shown["pools"]["chat"]["replicas"]["a"]["url"] == "http://127.0.0.1:8080"
    assert shown["version"] == 1


def test_the_schema(command: Command) -> None:
    done = command("config", "schema")
    assert done.returncode == 0
    assert json.loads(done.stdout) == schema()


def test_no_file(command: Command, tmp_path: Path) -> None:
    done = command("config", "show", str(tmp_path / "none.toml"))
    assert done.returncode == 2
    assert b"cannot read" in done.stderr
