"""What is logged of a task: the contract's lines, and no more."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.observe.lines import CONTRACT, Heard, check, check_human, heard
from tests.unit.tasks import PROMPT, adapter, task
from tests.unit.wire import eventually
from worker_adapters import RetryPolicy, SubmitContext, Timeouts, WorkerError
from worker_adapters.errors import InternalError, PoolUnavailable
from worker_adapters.observe import narration
from worker_adapters.observe.formatter import FIELDS
from worker_adapters.observe.logs import Logs
from worker_adapters.observe.narration import Narrator
from worker_adapters.observe.text import TextPolicy
from worker_adapters.testing.engines import scripted_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from worker_adapters.testing.engines import ScriptedEngine

pytestmark = pytest.mark.usefixtures("transport")


@pytest.fixture
def ears() -> Iterator[Heard]:
    with heard() as listening:
        yield listening


@pytest.fixture
async def server() -> AsyncIterator[ScriptedEngine]:
    async with scripted_engine("llamacpp", pieces=("said",)) as engine:
        yield engine


def test_the_contract_is_the_code_s() -> None:
    actions = {name: logging.getLevelName(level) for name, level in narration.ACTIONS.items()}
    assert actions == {name: row["level"] for name, row in CONTRACT["actions"].items()}
    named: set[str] = {*CONTRACT["always"], *CONTRACT["of_a_task"], *CONTRACT["where_known"]}
    for row in CONTRACT["actions"].values():
        named |= {*row["fields"], *row["optional"]}
    assert named == {*FIELDS, "ts", "level", "logger", "human"}
    assert CONTRACT["actor"] == narration.ACTOR


async def test_a_task_from_submit_to_end(server: ScriptedEngine, ears: Heard) -> None:
    request = task(max_tokens=3)
    context = SubmitContext(
        job_id="job-7", correlation_id="corr-1", queue_position=2, predicted_start_ms=150
    )
    async with adapter(server.url, pool_id="chat", replica_id="a", logs=ears.logs) as engine:
        async for _ in await engine.submit(request, context=context):
            pass
    submit, start, end = ears.lines()
    assert [line["action"] for line in (submit, start, end)] == ["submit", "start", "end"]
    for line in (submit, start, end):
        assert line["job_id"] == "job-7"
        assert line["session_id"] == str(request.session_id)
        assert line["task_id"] == str(request.task_id)
        assert line["correlation_id"] == "corr-1"
        assert (line["queue_position"], line["predicted_start_ms"]) == (2, 150)
        assert (line["engine"], line["pool_id"], line["replica_id"]) == ("llamacpp", "chat", "a")
    assert start["engine_version"] == end["engine_version"]
    assert end["tokens_out"] == 3
    assert end["tokens_in"] > 0
    assert end["finish_reason"] == "length"
    assert submit["human"] == "Sending a completion to llama.cpp in pool chat."
    assert end["human"].startswith("llama.cpp finished with 3 tokens after ")


async def test_the_engine_is_told_both_ids(server: ScriptedEngine, ears: Heard) -> None:
    async with adapter(server.url, logs=ears.logs) as engine:
        passed_on = SubmitContext(correlation_id="corr-1")
        await (await engine.submit(task(), context=passed_on)).collect()
        await (await engine.submit(task())).collect()
    sent = [row.headers for row in server.received("/completion")]
    ids = [(row["x-correlation-id"], row["x-request-id"]) for row in sent]
    logged = [
        (line["correlation_id"], line["request_id"])
        for line in ears.lines()
        if line["action"] == "submit"
    ]
    assert ids == logged
    assert ids[0][0] == "corr-1"
    assert UUID(ids[1][0]).version == 4
    assert len({request for _, request in ids}) == 2


async def test_never_per_token(server: ScriptedEngine, ears: Heard) -> None:
    async with adapter(server.url, logs=ears.logs) as engine:
        for tokens in (1, 500):
            await (await engine.submit(task(max_tokens=tokens))).collect()
    assert ears.actions() == ["submit", "start", "end"] * 2


async def test_the_start_is_told_when_the_engine_begins(
    server: ScriptedEngine, ears: Heard
) -> None:
    server.behave(pieces=("said",), hang="stream", after=1)
    async with adapter(server.url, logs=ears.logs) as engine:
        stream = await engine.submit(task())
        async for event in stream:
            if event.kind == "token":
                break
        assert ears.actions() == ["submit", "start"]
        await stream.cancel()
    assert ears.actions() == ["submit", "start", "cancel"]
    assert ears.lines()[-1]["tokens_out"] == 1


async def test_cancelled_before_the_head(server: ScriptedEngine, ears: Heard) -> None:
    server.behave(hang="head")
    request = task()
    async with adapter(server.url, logs=ears.logs) as engine:
        submitting = asyncio.create_task(engine.submit(request))
        await eventually(lambda: bool(server.received("/completion")), "the request")
        await engine.cancel(request.task_id)
        stream = await submitting
        assert [event.kind async for event in stream] == ["end"]
        # A second cancel finds nothing to do, and says nothing.
        await engine.cancel(request.task_id)
    assert ears.actions() == ["submit", "cancel"]


async def test_a_submit_nobody_waits_for(server: ScriptedEngine, ears: Heard) -> None:
    server.behave(hang="head")
    async with adapter(server.url, logs=ears.logs) as engine:
        submitting = asyncio.create_task(engine.submit(task()))
        await eventually(lambda: bool(server.received("/completion")), "the request")
        submitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submitting
    assert ears.actions() == ["submit", "cancel"]


async def test_a_stream_that_is_dropped(server: ScriptedEngine, ears: Heard) -> None:
    server.behave(pieces=("said",), hang="stream", after=2)
    async with adapter(server.url, logs=ears.logs) as engine:
        stream = await engine.submit(task())
        await anext(stream)
        del stream
        gc.collect()
        assert ears.actions() == ["submit", "start", "cancel"]
    assert ears.actions() == ["submit", "start", "cancel"]


async def test_an_error_before_the_stream(server: ScriptedEngine, ears: Heard) -> None:
    async with adapter(server.url, logs=ears.logs) as engine:
        await engine.engine_version()
        server.behave(error="status", status=400)
        with pytest.raises(WorkerError):
            await engine.submit(task())
    lines = ears.lines()
    assert [line["action"] for line in lines] == ["submit", "error"]
    assert lines[-1]["code"] == "INVALID_PARAMS"
    assert lines[-1]["tokens_out"] == 0


async def test_an_error_in_mid_stream(server: ScriptedEngine, ears: Heard) -> None:
    server.behave(pieces=("said",), truncate="reset", after=3)
    async with adapter(server.url, logs=ears.logs) as engine:
        events = [event async for event in await engine.submit(task())]
    assert events[-1].kind == "error"
    lines = ears.lines()
    assert [line["action"] for line in lines] == ["submit", "start", "error"]
    assert (lines[-1]["code"], lines[-1]["tokens_out"]) == ("WORKER_RESET", 3)
    assert lines[-1]["human"] == "The task failed in mid-stream (reset)."


async def test_an_error_inside_a_200_is_no_start(server: ScriptedEngine, ears: Heard) -> None:
    server.behave(error="first")
    async with adapter(server.url, logs=ears.logs) as engine:
        events = [event async for event in await engine.submit(task())]
    assert [event.kind for event in events] == ["error"]
    assert ears.actions() == ["submit", "error"]


async def test_a_refusal_of_our_own(server: ScriptedEngine, ears: Heard) -> None:
    async with adapter(server.url, logs=ears.logs) as engine:
        with pytest.raises(WorkerError):
            await engine.submit(task(deadline_ms=0))
    assert ears.actions() == ["submit", "error"]


async def test_a_retry(ears: Heard) -> None:
    retries = RetryPolicy(attempts=3, base=0.001)
    # Nothing listens there.
    async with adapter(
        "http://127.0.0.1:9", retries=retries, logs=ears.logs, rng=random.Random(1)
    ) as engine:
        with pytest.raises(PoolUnavailable):
            await engine.submit(task())
        assert not (await engine.health()).live
        with pytest.raises(PoolUnavailable):
            await engine.props()
    lines = ears.lines()
    own = [line for line in lines if line["action"] == "retry"]
    assert [line["attempt"] for line in own] == [1, 2] * 2
    assert {line["detail"] for line in own} == {"connect"}
    assert all("task_id" not in line for line in own[2:])


async def test_a_unary_workload(server: ScriptedEngine, ears: Heard) -> None:
    async with adapter(server.url, logs=ears.logs) as engine:
        request = task(workload="embedding", inputs=("one",), prompt=...)
        assert await engine.embed(request)
    assert ears.actions() == ["submit", "start", "end"]
    assert ears.lines()[0]["human"].startswith("Sending an embedding to llama.cpp")


async def test_nobody_listens(server: ScriptedEngine) -> None:
    """Then there is no narration, no thread and no line."""
    silent = logging.getLogger(f"worker_adapters.test.{uuid4().hex}")
    silent.propagate = False
    silent.addHandler(logging.NullHandler())
    logs = Logs(silent)
    narrator = Narrator(logs, engine="llamacpp", pool_id="chat", replica_id="a", clock=lambda: 0.0)
    assert narrator.task(task(), SubmitContext(), "corr") is None
    async with adapter(server.url, logs=logs) as engine:
        await (await engine.submit(task())).collect()
    assert logs._pump._thread is None
    assert logs.dropped == 0


async def test_a_level_leaves_lines_out(server: ScriptedEngine) -> None:
    with heard(logging.WARNING) as ears:
        async with adapter(server.url, logs=ears.logs) as engine:
            await (await engine.submit(task())).collect()
            with pytest.raises(WorkerError):
                await engine.submit(task(deadline_ms=0))
        assert ears.actions() == ["error"]


@pytest.mark.parametrize("state", ["open", "half_open", "closed"])
@pytest.mark.parametrize("engine", ["llamacpp", "openai", "somebody-else-s", str(uuid4())])
def test_a_breaker(state: str, engine: str, ears: Heard) -> None:
    narrator = Narrator(
        ears.logs, engine=engine, pool_id="chat", replica_id=str(uuid4()), clock=lambda: 0.0
    )
    narrator.breaker(state, "connect" if state == "open" else None)
    (line,) = ears.lines()
    assert line["state"] == state
    check(line)


def test_an_exception_of_no_contract(ears: Heard) -> None:
    narrator = Narrator(
        ears.logs, engine="llamacpp", pool_id="chat", replica_id="a", clock=lambda: 0.0
    )
    telling = narrator.task(task(), SubmitContext(), "corr")
    with pytest.raises(ZeroDivisionError), narration.narrated(telling):
        1 / 0  # noqa: B018
    assert ears.actions() == ["submit", "error"]
    assert ears.lines()[-1]["code"] == "INTERNAL"


def test_one_last_line_whatever_is_told(ears: Heard) -> None:
    narrator = Narrator(
        ears.logs, engine="llamacpp", pool_id="chat", replica_id="a", clock=lambda: 0.0
    )
    telling = narrator.task(task(), SubmitContext(), "corr")
    assert telling is not None
    telling.dropped()
    telling.failed(InternalError(message="late", detail="internal"))
    telling.broke()
    assert ears.actions() == ["submit", "cancel"]


names = st.one_of(
    st.text(max_size=60),
    st.uuids().map(str),
    st.uuids().map(lambda value: f"pool-{value.hex}"),
    st.from_regex(r"[a-z]{1,8}-[0-9a-f]{1,16}", fullmatch=True),
    st.sampled_from(["chat", "gpu-a100", "eu-west.large 2"]),
)


@given(engine=names, pool=names, detail=names, tokens=st.integers(0, 2**31 - 1))
def test_no_id_gets_into_a_sentence(engine: str, pool: str, detail: str, tokens: int) -> None:
    told: list[str] = []

    class Told(Logs):
        def is_enabled(self, level: int = logging.ERROR) -> bool:
            return level > 0

        def _narrate(self, level: int, human: str, fields: Any) -> None:
            del level, fields
            told.append(human)

    def clock() -> float:
        return tokens / 7

    narrator = Narrator(
        Told(f"worker_adapters.test.{uuid4().hex}"),
        engine=engine,
        pool_id=pool,
        replica_id="0",
        clock=clock,
    )
    error = PoolUnavailable(message=detail, detail=detail, phase=detail, tokens_emitted=tokens)
    telling = narrator.task(task(), SubmitContext(), "corr")
    assert telling is not None
    telling.submitted(uuid4().hex)
    telling.retried(error, 1, tokens / 3)
    telling.started()
    telling.failed(error)
    narrator.retry(error, 1, 0.1)
    narrator.breaker("closed")
    other = narrator.task(task(), SubmitContext(), "corr")
    assert other is not None
    other.dropped(tokens)
    for human in told:
        check_human(human)
    assert len(told) == 8


class TestText:
    """Prompts and answers: in development, redacted, of some tasks."""

    SECRET = "sk-proj-0123456789abcdefghijABCDEFGHIJ0123456789abcd"

    async def test_production_never(self, server: ScriptedEngine, ears: Heard) -> None:
        """At the most verbose level there is, without a policy."""
        server.behave(pieces=("Quixotania",))
        async with adapter(server.url, logs=ears.logs) as engine:
            await (await engine.submit(task())).collect()
        told = json.dumps(ears.lines())
        assert PROMPT not in told
        assert "Quixotania" not in told
        assert "text" not in ears.actions()

    @pytest.mark.parametrize("mode", ["prod", "production", "", "DEV", None, True])
    def test_no_policy_but_for_development(self, mode: Any) -> None:
        with pytest.raises(ValueError, match="development only"):
            TextPolicy(mode=mode, sample_rate=1.0)
        with pytest.raises(TypeError):
            TextPolicy(sample_rate=1.0)  # type: ignore[call-arg]

    @pytest.mark.parametrize("rate", [0, -1, 1.1, float("nan")])
    def test_a_rate_that_is_none(self, rate: float) -> None:
        with pytest.raises(ValueError, match="sample_rate"):
            TextPolicy(mode="dev", sample_rate=rate)

    @pytest.mark.parametrize("chars", [0, 16_385, 1.5])
    def test_a_length_that_is_none(self, chars: Any) -> None:
        with pytest.raises((ValueError, TypeError), match="max_chars"):
            TextPolicy(mode="dev", sample_rate=1.0, max_chars=chars)

    @pytest.mark.parametrize("way", ["events", "batches", "sse", "collect"])
    async def test_in_development(self, server: ScriptedEngine, way: str) -> None:
        server.behave(pieces=("Quixotania",), api_key="the-key-of-this")
        with heard(text=TextPolicy(mode="dev", sample_rate=1.0)) as ears:
            async with adapter(server.url, api_key="the-key-of-this", logs=ears.logs) as engine:
                prompt = f"why {self.SECRET} and the-key-of-this"
                stream = await engine.submit(task(prompt=prompt, max_tokens=2))
                match way:
                    case "events":
                        kinds = [event.kind async for event in stream]
                        assert kinds[-1] == "end"
                    case "batches":
                        assert [batch async for batch in stream.batches()][-1][-1].kind == "end"
                    case "sse":
                        assert b"Quixotania" in b"".join([piece async for piece in stream.sse()])
                    case "collect":
                        assert "Quixotania" in (await stream.collect()).text
            asked, answered = (line for line in ears.lines() if line["action"] == "text")
            assert asked["prompt"].startswith("why ****")
            assert self.SECRET not in json.dumps(ears.lines())
            assert "the-key-of-this" not in json.dumps(ears.lines())
            assert answered["text"].count("Quixotania") == 2

    async def test_of_some_tasks_only(self, server: ScriptedEngine) -> None:
        with heard(text=TextPolicy(mode="dev", sample_rate=0.5)) as ears:
            async with adapter(server.url, logs=ears.logs, rng=random.Random(3)) as engine:
                for _ in range(20):
                    await (await engine.submit(task(max_tokens=1))).collect()
            prompts = [line for line in ears.lines() if "prompt" in line]
            assert 3 <= len(prompts) <= 17

    async def test_a_long_one_is_cut(self, server: ScriptedEngine) -> None:
        with heard(text=TextPolicy(mode="dev", sample_rate=1.0, max_chars=10)) as ears:
            async with adapter(server.url, logs=ears.logs) as engine:
                await (await engine.submit(task(prompt="z" * 1000, max_tokens=50))).collect()
            texts = [line for line in ears.lines() if line["action"] == "text"]
            assert texts[0]["prompt"] == "z" * 10
            assert len(texts[1]["text"]) == 10

    async def test_below_its_level_nothing(self, server: ScriptedEngine) -> None:
        policy = TextPolicy(mode="dev", sample_rate=1.0)
        with heard(logging.INFO, text=policy) as ears:
            async with adapter(server.url, logs=ears.logs) as engine:
                await (await engine.submit(task())).collect()
            assert ears.actions() == ["submit", "start", "end"]

    async def test_what_a_cancel_takes_back_is_not_told_as_read(
        self, server: ScriptedEngine
    ) -> None:
        server.behave(pieces=("Quixotania",), hang="stream", after=2)
        with heard(text=TextPolicy(mode="dev", sample_rate=1.0)) as ears:
            async with adapter(server.url, logs=ears.logs) as engine:
                stream = await engine.submit(task())
                await anext(stream)
                await stream.cancel()
                assert [event.kind async for event in stream] == ["end"]
            assert "cancel" in ears.actions()


async def test_a_clock_that_runs_out(server: ScriptedEngine, ears: Heard) -> None:
    server.behave(hang="first")
    timeouts = Timeouts(first_token=0.05)
    async with adapter(server.url, timeouts=timeouts, logs=ears.logs) as engine:
        events = [event async for event in await engine.submit(task())]
    assert events[-1].kind == "error"
    assert ears.lines()[-1]["code"] == "DECODE_TIMEOUT"
    assert ears.lines()[-1]["human"] == (
        "The task failed while waiting for the first token (first token)."
    )
