"""A configuration whose keys are canaries: loaded, held, changed, refused, printed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import pytest

from tests.privacy.shown import KEY, PROMPT, SAID
from tests.unit.tasks import task
from worker_adapters import WorkerError
from worker_adapters.config import ConfigError, load
from worker_adapters.config.build import host_from_config
from worker_adapters.testing.engines import scripted_engine

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Command
    from tests.privacy.shown import Shown
    from worker_adapters.host import HostEvent

GOOD: Final = """\
version = 1
[pools.chat]
engine = "llamacpp"
[pools.chat.replicas.a]
url = "{url}"
api_key = "env:CANARY_OF_A"
[pools.chat.replicas.b]
url = "{url}"
api_key = "file:{folder}/key"
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "adapters.toml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    return file


async def test_a_host_of_a_configuration(
    shown: Shown, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY_OF_A", KEY)
    (tmp_path / "key").write_text(KEY + "\n", "utf-8")
    events: list[HostEvent] = []
    async with scripted_engine("llamacpp", api_key=KEY, pieces=(SAID,)) as server:
        text = GOOD.format(url=server.url, folder=tmp_path)
        file = written(tmp_path, text)
        held = load(file)
        shown.add(held, held.shown(), held.model_dump(), held.pools)
        made = host_from_config(
            held,
            observers=[events.append],
            logs=shown.logs,
            metrics=shown.metrics,
            telemetry=shown.telemetry,
        )
        async with made as configured:
            shown.add(configured, configured.host.registry.snapshot, configured.extensions)
            for _ in range(4):
                stream = await configured.host.submit("chat", task(prompt=PROMPT, max_tokens=2))
                assert SAID in (await stream.collect()).text
            # A key that is gone, or another one, is told of and not shown.
            monkeypatch.delenv("CANARY_OF_A")
            with pytest.raises(ConfigError) as gone:
                configured.reload(load(written(tmp_path, text.replace("[pools.chat]", MODEL))))
            shown.add_error(gone.value)
            monkeypatch.setenv("CANARY_OF_A", f"wrong-{KEY}")
            (tmp_path / "key").write_text(f"wrong-{KEY}", "utf-8")
            shown.add(configured.reload(load(file)))
            for _ in range(2):
                with pytest.raises(WorkerError) as refused:
                    await configured.host.submit("chat", task(prompt=PROMPT))
                shown.add_error(refused.value)
            shown.add(await configured.host.health("chat"), await configured.host.capabilities())
        shown.add(configured)
    shown.add(*events)
    for asked in ("show", "check"):
        for env in ({"CANARY_OF_A": KEY}, {}):
            done = command("config", asked, str(file), env=env)
            shown.add(done.stdout.decode(), done.stderr.decode())
    assert json.loads(command("config", "show", str(file)).stdout)["pools"]["chat"]["replicas"]
    assert shown.errors == 3


MODEL: Final = '[pools.chat]\nmodel = "other"'

IN_THE_FILE: Final = {
    "itself": f'api_key = "{KEY}"',
    "variable": f'api_key = "env:{KEY}"',
    "table": f'api_key = {{ value = "{KEY}" }}',
    "list": f'api_key = ["{KEY}"]',
    "number": f'max_streams = "{KEY}"',
    "unknown": f'token = "{KEY}"',
    "option": f'options = {{ api_key = "{KEY}" }}',
    "header": f'options = {{ headers = {{ Authorization = "Bearer {KEY}" }} }}',
    "engine": f'engine = "{KEY}"',
    "profile": f'sampler_profiles = ["{KEY}"]',
    "transport": f'transport = "{KEY}"',
    "clock": f'timeouts = {{ idle = "{KEY}" }}',
    "egress": f'egress = {{ allow = ["https://user:{KEY}@host"] }}',
    "tls": f'tls = {{ client_key = "{KEY}" }}',
    "open": f'api_key = "{KEY}',
    "bare": f"api_key = {KEY}",
    "twice": f'api_key = "env:CANARY"\napi_key = "{KEY}"',
    "bytes": f'api_key = "{KEY}\udcff"',
    "user": f'[pools.chat.replicas.c]\nurl = "http://user:{KEY}@127.0.0.1"',
    "query": f'[pools.chat.replicas.c]\nurl = "http://127.0.0.1/?key={KEY}"',
    "fragment": f'[pools.chat.replicas.c]\nurl = "http://127.0.0.1/#{KEY}"',
    "top": f'[logs]\ncapacity = "{KEY}"',
}
"""Where somebody in a hurry puts a key."""

IN_THE_ENVIRONMENT: Final = {
    "itself": {"WORKER_ADAPTERS__POOLS__CHAT__API_KEY": KEY},
    "unknown": {"WORKER_ADAPTERS__POOLS__CHAT__TOKEN": KEY},
    "pool": {"WORKER_ADAPTERS__POOLS__CHAT": KEY},
    "pools": {"WORKER_ADAPTERS__POOLS": f'{{"chat": "{KEY}"'},
    "json": {"WORKER_ADAPTERS__DEFAULTS": f'{{"api_key": "{KEY}"}}'},
    "number": {"WORKER_ADAPTERS__POOLS__CHAT__MAX_STREAMS": KEY},
    "version": {"WORKER_ADAPTERS__VERSION": KEY},
    "mode": {"WORKER_ADAPTERS__MODE": KEY},
    "features": {"WORKER_ADAPTERS__FEATURES": f'["{KEY}"]'},
}


def refused(
    shown: Shown,
    command: Command,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    env: dict[str, str],
) -> None:
    """Have it refused by `load` and by the command, showing all that is said."""
    with monkeypatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        with pytest.raises(ConfigError) as caught:
            load(file)
    shown.add_error(caught.value)
    shown.add(*caught.value.problems)
    for asked in ("show", "check"):
        done = command("config", asked, str(file), env=env)
        assert done.returncode == 1
        assert done.stderr
        shown.add(done.stdout.decode(), done.stderr.decode())


URL: Final = "http://127.0.0.1:9"


@pytest.mark.parametrize("where", IN_THE_FILE)
async def test_a_key_in_the_file(
    where: str, shown: Shown, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = GOOD.format(url=URL, folder=tmp_path).replace("api_key", "# ")
    refused(shown, command, written(tmp_path, text + IN_THE_FILE[where]), monkeypatch, {})


@pytest.mark.parametrize("where", IN_THE_ENVIRONMENT)
async def test_a_key_in_the_environment(
    where: str, shown: Shown, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, GOOD.format(url=URL, folder=tmp_path).replace("api_key", "# "))
    refused(shown, command, file, monkeypatch, IN_THE_ENVIRONMENT[where])
