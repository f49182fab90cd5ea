"""The engines' own gauges: what each engine calls them, and reading them in the background."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.metrics import POOL, REPLICA, value
from tests.unit.tasks import adapter
from tests.unit.wire import PROPS, WITHIN, Connection, answer, playing
from worker_adapters import LlamaCppAdapter, Metrics, Timeouts
from worker_adapters.engines import ENGINES
from worker_adapters.engines._load import ALIASES, EngineLoad
from worker_adapters.observe.gauges import GaugeRefresher

CAPTURES = Path(__file__).parents[1] / "captures"
ALL = {**POOL, "priority": "all"}


def captured(engine: str, name: str) -> str:
    """Return the body of a recorded exposition."""
    raw = (CAPTURES / engine / f"{name}.http").read_bytes()
    return raw.partition(b"\r\n\r\n")[2].decode()


def test_every_engine_has_its_names() -> None:
    assert set(ALIASES) == set(ENGINES)


@pytest.mark.parametrize(
    ("engine", "name", "load"),
    [
        ("llamacpp", "metrics_fresh", EngineLoad(0, 0, None, 1)),
        ("llamacpp", "metrics_busy_deferred", EngineLoad(4, 3, None, 1)),
    ],
)
def test_a_recorded_exposition(engine: str, name: str, load: EngineLoad) -> None:
    assert EngineLoad.from_metrics(captured(engine, name), engine) == load


def test_a_label_picks_the_series() -> None:
    said = """
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 3
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="scheduled",version="1"} 2
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 64
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="tensorrt_llm"} 0.25
"""
    assert EngineLoad.from_metrics(said, "triton") == EngineLoad(2, 3, 0.25, 1)


@pytest.mark.parametrize("engine", sorted(ALIASES))
@pytest.mark.parametrize(
    "said", ["", "<html>", "vllm:num_requests_running NaN", "tgi_queue_size 1e"]
)
def test_what_is_not_said_is_not_known(engine: str, said: str) -> None:
    assert EngineLoad.from_metrics(said, engine) == EngineLoad()


@pytest.mark.parametrize("said", ["1e400", "-1e400", "-5", "1e300", "9007199254740994"])
def test_what_is_no_count_is_not_known(said: str) -> None:
    lines = f"llamacpp:requests_processing {said}\nllamacpp:requests_deferred 2\n"
    lines += f"llamacpp:kv_cache_usage_ratio {said}\n"
    assert EngineLoad.from_metrics(lines, "llamacpp") == EngineLoad(waiting=2)


@given(st.lists(st.from_regex(r"-?[0-9.]{1,5}(e[+-]?[0-9]{1,4})?", fullmatch=True), max_size=4))
def test_any_samples_can_be_read(values: list[str]) -> None:
    said = "".join(f'vllm:num_requests_running{{engine="{i}"}} {v}\n' for i, v in enumerate(values))
    load = EngineLoad.from_metrics(said)
    assert load.running is None or load.running >= 0


class Engine:
    """A llama.cpp that tells what it is told to, and hangs when told so."""

    def __init__(self) -> None:
        self.metrics: str | None = "llamacpp:requests_processing 3\nllamacpp:requests_deferred 2\n"
        self.hangs = False
        self.asked = asyncio.Event()

    async def play(self, connection: Connection) -> None:
        while True:
            request = await connection.request()
            if request.path == "/props":
                await connection.send(answer(PROPS))
            elif request.path == "/metrics" and self.hangs:
                self.asked.set()
                await connection.until_closed()
            elif request.path == "/metrics" and self.metrics is not None:
                await connection.send(answer(self.metrics, kind="text/plain"))
            else:
                await connection.send(answer('{"error":{"code":404,"message":"x"}}', "404 No"))


async def test_gauges_are_read_and_forgotten() -> None:
    now = [100.0]
    metrics = Metrics(clock=lambda: now[0])
    engine = Engine()
    async with (
        playing(engine.play) as server,
        adapter(server.url, metrics=metrics) as worker,
    ):
        gauges = GaugeRefresher(lambda: [worker], interval=5, timeout=30)
        await gauges.refresh()
        assert value(metrics, "queue_depth", ALL) == 2
        assert value(metrics, "requests_running", REPLICA) == 3
        assert value(metrics, "kv_cache_usage_ratio", REPLICA) is None
        assert value(metrics, "slots", REPLICA) == 4
        assert value(metrics, "slots_free", REPLICA) == 1
        assert worker.metrics is not None
        assert worker.metrics.gauges()["slots_free"] == (1, "props+metrics", 0)

        engine.metrics = None
        await gauges.refresh()
        assert value(metrics, "queue_depth", ALL) is None
        assert value(metrics, "slots_free", REPLICA) is None
        assert value(metrics, "slots", REPLICA) == 4


async def test_what_cannot_be_read_again_grows_old_and_is_dropped() -> None:
    now = [100.0]
    metrics = Metrics(clock=lambda: now[0])
    engine = Engine()
    async with (
        playing(engine.play) as server,
        adapter(server.url, metrics=metrics) as worker,
    ):
        gauges = GaugeRefresher(lambda: [worker], interval=5, timeout=30, stale_after=20)
        await gauges.refresh()
        await server.stop()
        now[0] += 15
        await gauges.refresh()
        age = {**REPLICA, "gauge": "slots", "source": "props+metrics"}
        assert value(metrics, "engine_gauge_age_seconds", age) == 15
        assert value(metrics, "slots", REPLICA) == 4
        now[0] += 15
        await gauges.refresh()
        assert value(metrics, "slots", REPLICA) is None
        assert value(metrics, "engine_gauge_age_seconds", age) is None


async def test_an_answer_that_cannot_be_taken_keeps_no_gauge_from_growing_old() -> None:
    class Broken(LlamaCppAdapter):
        async def load(self, *, timeouts: Timeouts | None = None) -> EngineLoad:  # noqa: ARG002
            raise OverflowError("from an adapter of somebody else's")

    now = [100.0]
    metrics = Metrics(clock=lambda: now[0])
    engine = Engine()
    async with playing(engine.play) as server, Broken(server.url, metrics=metrics) as worker:
        assert worker.metrics is not None
        worker.metrics.set_gauge("queue_depth", 3, source="metrics")
        now[0] += 31
        await GaugeRefresher(lambda: [worker], interval=5, timeout=30).refresh()
        assert value(metrics, "slots", REPLICA) == 4
        assert value(metrics, "queue_depth", ALL) is None


async def test_a_list_that_cannot_be_had_ends_nothing() -> None:
    now = [100.0]
    metrics = Metrics(clock=lambda: now[0])
    engine = Engine()
    fails = asyncio.Event()
    asked_again = asyncio.Event()

    def adapters() -> list[LlamaCppAdapter]:
        if not fails.is_set():
            return [worker]
        fails.clear()
        asked_again.set()
        raise KeyError("the registry of somebody else's")

    async with playing(engine.play) as server, adapter(server.url, metrics=metrics) as worker:
        gauges = GaugeRefresher(adapters, interval=0.01, timeout=30, stale_after=20)
        await gauges.refresh()
        await server.stop()
        now[0] += 21
        fails.set()
        await gauges.refresh()
        assert value(metrics, "slots", REPLICA) is None
        asked_again.clear()
        async with gauges:
            for _ in range(2):
                fails.set()
                await asyncio.wait_for(asked_again.wait(), WITHIN)
                asked_again.clear()


async def test_gauges_of_one_priority_grow_old_too() -> None:
    now = [100.0]
    metrics = Metrics(clock=lambda: now[0])
    engine = Engine()
    async with playing(engine.play) as server, adapter(server.url, metrics=metrics) as worker:
        assert worker.metrics is not None
        gauges = GaugeRefresher(lambda: [worker], interval=5, timeout=30)
        await gauges.refresh()
        worker.metrics.set_gauge("queue_depth", 3, source="metrics", priority="batch")
        assert value(metrics, "queue_depth", {**POOL, "priority": "batch"}) == 3
        now[0] += 31
        await gauges.refresh()
        assert value(metrics, "queue_depth", {**POOL, "priority": "batch"}) is None
        assert set(worker.metrics.gauges()) == {
            "queue_depth",
            "requests_running",
            "slots",
            "slots_free",
        }


async def test_a_scrape_does_not_wait_for_an_engine() -> None:
    metrics = Metrics()
    engine = Engine()
    engine.hangs = True
    async with (
        playing(engine.play) as server,
        adapter(server.url, metrics=metrics) as worker,
        GaugeRefresher(lambda: [worker], interval=0.01, timeout=60),
    ):
        await engine.asked.wait()
        assert "requests_running{" not in metrics.render()
    assert len(server.requests("/metrics")) == 1


async def test_an_adapter_without_metrics_is_left_alone() -> None:
    engine = Engine()
    async with playing(engine.play) as server, adapter(server.url) as worker:
        await GaugeRefresher(lambda: [worker]).refresh()
    assert server.requests("/metrics") == []


@pytest.mark.parametrize("times", [{"interval": 0}, {"timeout": 0}, {"timeout": 61}])
def test_times_that_are_none_are_refused(times: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        GaugeRefresher(list, **times)


@pytest.mark.parametrize("stale_after", [float("nan"), float("inf"), -1, 0])
def test_an_age_that_is_none_is_refused(stale_after: float) -> None:
    with pytest.raises(ValueError, match="stale_after must be positive and finite"):
        GaugeRefresher(list, stale_after=stale_after)
