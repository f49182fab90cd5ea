"""A host made of a configuration, and changed without dropping a stream."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from tests.unit.tasks import PROMPT, task
from tests.unit.wire import eventually
from worker_adapters import Extensions, LlamaCppAdapter, Logs, Metrics, WorkerError
from worker_adapters.config import Changes, ConfigError, Configuration, host_from_config
from worker_adapters.config.build import adapters_of, extensions_of, logs_of
from worker_adapters.testing.engines import scripted_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from worker_adapters.testing.engines import ScriptedEngine

KEY = "the-key-of-chat-0"


def config(**changes: Any) -> Configuration:
    return Configuration.model_validate({"version": 1, **changes})


def chat(**replicas: str) -> dict[str, Any]:
    return {
        "chat": {
            "engine": "llamacpp",
            "replicas": {name: {"url": url} for name, url in replicas.items()},
        }
    }


@pytest.fixture
async def one() -> AsyncIterator[ScriptedEngine]:
    async with scripted_engine("llamacpp", pieces=("one",)) as engine:
        yield engine


@pytest.fixture
async def two() -> AsyncIterator[ScriptedEngine]:
    async with scripted_engine("llamacpp", pieces=("two",)) as engine:
        yield engine


async def test_a_task_goes_through(one: ScriptedEngine) -> None:
    async with host_from_config(config(pools=chat(a=one.url))) as configured:
        stream = await configured.host.submit("chat", task(max_tokens=2))
        assert "one" in (await stream.collect()).text


async def test_the_engines_tell_their_gauges(one: ScriptedEngine, two: ScriptedEngine) -> None:
    async with host_from_config(config(pools=chat(a=one.url, b=two.url))) as configured:

        def have_told() -> bool:
            text = configured.metrics.render()
            return set(re.findall(r'\nslots{[^}]*replica_id="(.)"[^}]*} [1-9]', text)) == {"a", "b"}

        await eventually(have_told, "the slots of both")
        reading = configured._gauges._task
        assert reading is not None
    assert reading.cancelled()


async def test_a_reload_drops_no_stream(one: ScriptedEngine, two: ScriptedEngine) -> None:
    one.behave(pieces=("one",), delay_ms=5)
    async with host_from_config(config(pools=chat(a=one.url))) as configured:
        running = await configured.host.submit("chat", task(max_tokens=20))
        assert (await anext(running)).kind == "started"
        changes = configured.reload(config(pools=chat(a=two.url)))
        assert changes == Changes(rebound=("chat/a",))
        later = await configured.host.submit("chat", task(max_tokens=2))
        assert "two" in (await later.collect()).text
        rest = [event async for event in running]
        assert rest[-1].kind == "end"
        assert rest[-1].tokens_out == 20


async def test_what_a_reload_changes(one: ScriptedEngine, two: ScriptedEngine) -> None:
    async with host_from_config(config(pools=chat(a=one.url, b=one.url))) as configured:
        host = configured.host
        kept = host.registry.pool("chat")
        assert kept is not None
        adapter_of_a = next(row.adapter for row in kept.replicas if row.replica_id == "a")
        after = config(
            policy={"max_in_flight": 7},
            pools=chat(a=one.url, c=two.url) | {"extra": {"engine": "vllm"}},
        )
        assert configured.reload(after) == Changes(
            bound=("chat/c",), unbound=("chat/b",), configured=("chat", "extra")
        )
        pool = host.registry.pool("chat")
        assert pool is not None
        assert {row.replica_id for row in pool.replicas} == {"a", "c"}
        assert next(row.adapter for row in pool.replicas if row.replica_id == "a") is adapter_of_a
        assert pool.policy.max_in_flight == 7
        assert configured.config == after
        assert configured.reload(after) == Changes()
        gone = config(policy={"max_in_flight": 7}, pools={"extra": {"engine": "vllm"}})
        assert configured.reload(gone) == Changes(unbound=("chat/a", "chat/c"), forgotten=("chat",))
        with pytest.raises(WorkerError):
            await host.submit("chat", task())


async def test_a_reload_that_cannot_be_made_changes_nothing(one: ScriptedEngine) -> None:
    before = config(pools=chat(a=one.url))
    async with host_from_config(before) as configured:
        bad = chat(b=one.url)
        bad["chat"]["replicas"]["b"]["api_key"] = "env:NO_SUCH_VARIABLE_HERE"
        with pytest.raises(ConfigError, match=r"pools\.chat\.replicas\.b: the variable"):
            configured.reload(config(pools=bad))
        assert configured.config is before
        assert "one" in (await (await configured.host.submit("chat", task())).collect()).text


async def test_a_reload_over_a_replica_bound_by_hand_changes_nothing(one: ScriptedEngine) -> None:
    before = config(pools=chat(a=one.url))
    async with host_from_config(before) as configured:
        own = LlamaCppAdapter(one.url, pool_id="chat", replica_id="b")
        configured.host.bind(own)
        pools = chat(b=one.url) | {"extra": {"engine": "vllm"}}
        with pytest.raises(ConfigError, match=r"pools\.chat\.replicas\.b: is bound already"):
            configured.reload(config(policy={"max_in_flight": 7}, pools=pools))
        assert configured.config is before
        assert configured.host.registry.pool("extra") is None
        pool = configured.host.registry.pool("chat")
        assert pool is not None
        assert [row.replica_id for row in pool.replicas] == ["a", "b"]
        assert pool.policy.max_in_flight != 7
        configured.host.unbind("chat", "b")
        assert configured.reload(config(pools=pools)).bound == ("chat/b",)


async def test_a_reload_after_replicas_were_unbound_by_hand(
    one: ScriptedEngine, two: ScriptedEngine
) -> None:
    before = config(pools=chat(a=one.url, b=one.url, c=one.url))
    async with host_from_config(before) as configured:
        configured.host.unbind("chat", "a")
        configured.host.unbind("chat", "c")
        changes = configured.reload(config(pools=chat(a=two.url, b=two.url)))
        assert changes == Changes(bound=("chat/a",), rebound=("chat/b",))
        pool = configured.host.registry.pool("chat")
        assert pool is not None
        assert {row.replica_id for row in pool.replicas} == {"a", "b"}
        assert "two" in (await (await configured.host.submit("chat", task())).collect()).text
        configured.host.unbind("chat", "a")
        configured.host.unbind("chat", "b")
        configured.host.forget("chat")
        assert configured.reload(config()) == Changes(forgotten=("chat",))


async def test_a_reload_has_other_probes_at_once(one: ScriptedEngine) -> None:
    pools = chat(a=one.url)
    async with host_from_config(config(pools=pools, probes={"interval": 3600.0})) as configured:
        await configured.host.probe()
        (replica,) = configured.host.registry.replicas()
        before = replica.report
        after = config(pools=pools, probes={"interval": 0.05})
        assert configured.reload(after) == Changes(sections=("probes",))
        await eventually(lambda: replica.report is not before, "the replica is probed anew")
        assert configured.reload(after) == Changes()


TEXT = {"sample_rate": 1.0}


async def test_a_reload_ends_the_telling_of_text(
    one: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "other")
    one.behave(pieces=("said",), delay_ms=5)
    pools = chat(a=one.url)
    told = config(mode="dev", pools=pools, logs={"logger": "other", "text": TEXT})
    async with host_from_config(told) as configured:
        running = await configured.host.submit("chat", task(max_tokens=20))
        assert (await anext(running)).kind == "started"
        assert configured.logs.flush()
        assert [row.prompt for row in caplog.records if hasattr(row, "prompt")] == [PROMPT]
        after = config(pools=pools, logs={"logger": "other", "capacity": 1000})
        assert configured.reload(after) == Changes(sections=("logs",))
        await running.collect()
        await (await configured.host.submit("chat", task(max_tokens=2))).collect()
        assert configured.logs.flush()
    assert [row.__dict__["action"] for row in caplog.records].count("text") == 1
    assert {row.name for row in caplog.records} == {"other"}


async def test_logs_that_were_given_are_not_of_the_configuration() -> None:
    logs = Logs("given")
    async with host_from_config(config(), logs=logs) as configured:
        assert configured.reload(config(logs={"logger": "other"})) == Changes()
    assert logs.logger.name == "given"
    logs.close()


async def test_a_reload_says_what_takes_a_restart(caplog: pytest.LogCaptureFixture) -> None:
    logs = {"logger": "other"}
    other = config(logs=logs, metrics={"max_series": 100})
    async with host_from_config(config(logs=logs)) as configured:
        for _ in range(2):  # for as long as it is so
            assert configured.reload(other) == Changes(needs_restart=("metrics",))
        assert configured.reload(config(logs=logs)) == Changes()
        assert configured.logs.flush()
    assert [(row.name, row.levelname, row.getMessage()) for row in caplog.records] == [
        ("other", "WARNING", "The new configuration has other [metrics], which take a restart.")
    ] * 2
    async with host_from_config(config(), metrics=Metrics()) as configured:
        # The program's own are none of its business.
        assert configured.reload(other).needs_restart == ()


async def test_it_is_closed_in_its_own_loop(one: ScriptedEngine) -> None:
    async with host_from_config(config(pools=chat(a=one.url))) as configured:
        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, configured.aclose())
        # Nothing of it has been stopped.
        assert "one" in (await (await configured.host.submit("chat", task())).collect()).text
        assert configured._gauges._task is not None
        assert not configured._gauges._task.done()
    assert configured.host.is_closed
    await configured.aclose()


async def test_a_reload_of_what_is_closed(one: ScriptedEngine) -> None:
    before = config(pools=chat(a=one.url))
    async with host_from_config(before) as configured:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        configured.reload(config(pools=chat(b=one.url)))
    assert configured.config is before


def test_layers() -> None:
    found = config(
        defaults={
            "engine": "llamacpp",
            "model": "of-all",
            "timeouts": {"idle": 9.0, "unary": 8.0},
            "options": {"stream_metrics": False},
        },
        sampler_profiles=[
            {"name": "a", "version": "a-1"},
            {"name": "b", "version": "b-1"},
        ],
        pools={
            "chat": {
                "timeouts": {"unary": 3.0},
                "options": {"stream_metrics": True},
                "replicas": {
                    "x": {"url": "http://h:1", "timeouts": {"idle": "off"}, "model": "own"},
                    "y": {"url": "http://h:2", "sampler_profiles": ["b-1"]},
                },
            }
        },
    )
    made: dict[Any, Any] = dict(adapters_of(found))
    x, y = made["chat", "x"], made["chat", "y"]
    assert (x._model, y._model) == ("own", "of-all")
    assert (x._timeouts.idle, x._timeouts.unary) == (None, 3.0)
    assert (y._timeouts.idle, y._timeouts.unary) == (9.0, 3.0)
    assert x._timeouts.first_token == type(x).default_timeouts.first_token
    assert x._stream_metrics
    assert set(x._profiles) == {"a-1", "b-1"}
    assert set(y._profiles) == {"b-1"}
    assert (x.pool_id, x.replica_id) == ("chat", "x")


@pytest.mark.parametrize(
    ("replica", "said"),
    [
        ({"options": {"nonsense": 1}}, "a.options.nonsense: the adapter of llamacpp takes no such"),
        ({"api_key": "file:/no/such/file"}, "there is no file /no/such/file"),
        ({"tls": {"ca_file": "/no/such.pem"}}, "replicas.a: "),
        ({"http_client": "x"}, ""),
    ],
)
def test_an_adapter_that_cannot_be_made(replica: dict[str, Any], said: str) -> None:
    pools = chat(a="https://h:1", b="http://h:2")
    pools["chat"]["replicas"]["a"] |= replica
    if not said:
        with pytest.raises(ValueError, match="http_client"):
            config(pools=pools)
        return
    with pytest.raises(ConfigError) as caught:
        adapters_of(config(pools=pools))
    assert said in str(caught.value)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("kind", ["env", "file"])
async def test_a_key_by_reference_is_sent_and_rotates(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    file.write_text(KEY)
    file.chmod(0o600)
    monkeypatch.setenv("CHAT_KEY_OF_TEST", KEY)
    pools = chat()
    reference = "env:CHAT_KEY_OF_TEST" if kind == "env" else f"file:{file}"
    async with scripted_engine("llamacpp", api_key=KEY) as server:
        pools["chat"]["replicas"]["a"] = {"url": server.url, "api_key": reference}
        async with host_from_config(config(pools=pools)) as configured:
            await (await configured.host.submit("chat", task())).collect()
            assert KEY not in repr(configured) + repr(configured.config)
            monkeypatch.setenv("CHAT_KEY_OF_TEST", "another-key-0")
            file.write_text("another-key-0")
            with pytest.raises(WorkerError):
                await configured.host.submit("chat", task())


def test_extensions() -> None:
    found = config(features=["stop"], defaults={"engine": "openai"}, pools=chat(a="http://h:1"))
    assert extensions_of(found) == Extensions(
        engines=frozenset({"openai", "llamacpp"}), features=frozenset({"stop"})
    )


def test_text_in_logs_is_for_development() -> None:
    text = {"text": {"sample_rate": 0.5}}
    with pytest.raises(ValueError, match=r"logs\.text: is for development"):
        config(logs=text)
    dev = logs_of(config(mode="dev", logs=text))
    assert dev.text is not None
    assert dev.text.sample_rate == 0.5
    assert logs_of(config()).text is None


async def test_adapters_share_the_logs_of_the_host(one: ScriptedEngine) -> None:
    async with host_from_config(config(pools=chat(a=one.url, b=one.url))) as configured:
        pool = configured.host.registry.pool("chat")
        assert pool is not None
        adapters: list[Any] = [row.adapter for row in pool.replicas]
        assert {id(row._narrator.logs) for row in adapters} == {id(configured.logs)}


async def test_adapters_and_host_count_in_one_place(one: ScriptedEngine) -> None:
    found = config(
        metrics={"seconds": True, "milliseconds": False, "label_budgets": {"pool_id": 1}},
        pools=chat(a=one.url) | {"extra": chat(b=one.url)["chat"]},
    )
    async with host_from_config(found) as configured:
        await (await configured.host.submit("chat", task(max_tokens=3))).collect()
        await (await configured.host.submit("extra", task(max_tokens=3))).collect()
        told = configured.metrics.render()
        assert 'tokens_out_total{engine="llamacpp"' in told
        assert 'pool_id="other"' in told
        assert 'pool_id="extra"' not in told
        assert "latency_first_token_ms_bucket" not in told


async def test_a_pool_with_a_replica_of_somebody_else_s_stays(one: ScriptedEngine) -> None:
    async with host_from_config(config(pools=chat())) as configured:
        own = LlamaCppAdapter(one.url, pool_id="chat", replica_id=uuid4().hex)
        configured.host.bind(own)
        configured.reload(config())
        assert configured.host.registry.pool("chat") is not None
        await asyncio.sleep(0)
