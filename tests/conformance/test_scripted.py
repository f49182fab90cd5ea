"""The whole suite on every scripted engine, in every way it can be set up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.transports import both_transports
from tests.unit.wire import eventually
from worker_adapters.engines import ENGINES, adapter_class
from worker_adapters.testing.conformance import CHECKS, Check, Report, Subject, named, run_checks
from worker_adapters.testing.engines import CONTEXT, SCRIPTED, ScriptedEngine, scripted_engine

if TYPE_CHECKING:
    from worker_adapters.adapter import WorkerAdapter

pytestmark = both_transports

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{engine: (engine, {}) for engine in SCRIPTED},
    **{f"{engine}-bytewise": (engine, {"split": 1}) for engine in SCRIPTED},
    "sglang-incremental": ("sglang", {"incremental": True}),
    "triton-accumulated": ("triton", {"models": ["tensorrt_llm_bls_accum"]}),
    "triton-llmapi": ("triton", {"models": ["tensorrt_llm"]}),
    "openai-without-usage": ("openai", {"usage": False}),
    "vllm-short": ("vllm", {"tokens": 3}),
}

LACKING: dict[str, set[str]] = {
    "llamacpp": set(),
    "openai": {"version", "slots", "token_ids", "constraint.choice"},
    "sglang": {"embedding", "rerank"},
    "tgi": {"embedding", "rerank", "tools", "cached_tokens"},
    "triton": {
        *("slots", "context", "cancel", "usage", "cached_tokens", "embedding", "rerank", "chat"),
        *("tools", "token_ids", "constraint.choice", "constraint.json_schema"),
    },
    "vllm": set(),
}
"""What each engine cannot do in its first variant; nothing else may be missing."""


def subject(engine: ScriptedEngine) -> Subject:
    return Subject(engine.dialect, engine.url, adapter_class(engine.dialect), long_tokens=4000)


async def test_suite_by_conversations() -> None:
    async with scripted_engine("openai", delay_ms=0.2) as engine:
        made = subject(engine)
        made.chat = True
        report = await run_checks(made)
        assert report.failed == []
        asked = {generation.request.path for generation in engine.generations}
    assert asked == {"/v1/chat/completions"}


async def test_long_tasks_fit_into_the_context() -> None:
    async with scripted_engine("vllm") as engine:
        made = subject(engine)
        made.long_tokens = 1_000_000
        await made.settle()
    assert made.long_tokens == CONTEXT // 2


def test_every_engine_has_a_scripted_one() -> None:
    assert SCRIPTED.keys() == ENGINES.keys()


@pytest.mark.parametrize("name", VARIANTS)
async def test_suite(name: str) -> None:
    dialect, options = VARIANTS[name]
    # Cancelling needs something that lasts.
    async with scripted_engine(dialect, delay_ms=0.2, **options) as engine:
        report = await run_checks(subject(engine))
        wrong = [f"{row.area}.{row.check}: {row.detail}" for row in report.failed]
        assert wrong == []
        assert engine.busy == 0
    if name in LACKING:
        found = {row.feature for row in report.results if row.feature}
        assert found - {"cached_tokens"} == LACKING[name] - {"cached_tokens"}


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_every_check_says_what_it_is_for(check: Check) -> None:
    assert check.purpose.endswith(".")
    assert len(check.purpose) < 110


def test_names_are_unique() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)


async def test_what_happens_in_the_engine_when_a_stream_is_left() -> None:
    for dialect in SCRIPTED:
        async with scripted_engine(dialect, delay_ms=1) as engine:
            made = subject(engine)
            async with made.adapter() as adapter:
                async with await made.run(adapter, max_tokens=4000) as stream:
                    await anext(stream)
                    await anext(stream)
                [generation] = engine.generations
                await eventually(lambda: engine.busy == 0, "the engine is done with it")
                assert generation.outcome in {"left", "aborted"}, dialect
                assert generation.sent < 4000


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
async def test_the_abort_route_names_the_task(dialect: str) -> None:
    async with scripted_engine(dialect, delay_ms=1) as engine:
        made = subject(engine)
        async with made.adapter() as adapter:
            first = await made.run(adapter, max_tokens=4000)
            second = await made.run(adapter, max_tokens=30)
            await anext(first)
            receipt = await first.cancel()
            collected = await second.collect()
    assert receipt.method == "close+abort"
    # vLLM is asked first whether it has the route, by an id that there cannot be.
    aborts = [name for name in engine.aborts if "probe" not in name]
    assert aborts == [engine.generations[0].id]
    # Nobody else's was touched.
    assert collected.finish_reason == "length"
    assert collected.tokens_out == 30


def mute(adapter: type[WorkerAdapter], **methods: Any) -> type[WorkerAdapter]:
    """An adapter that does something else here."""
    return type(f"Broken{adapter.__name__}", (adapter,), methods)


async def report_of(area: str, **methods: Any) -> Report:
    broken = mute(adapter_class("llamacpp"), **methods)
    async with scripted_engine("llamacpp", delay_ms=0.2) as engine:
        return await run_checks(
            Subject("llamacpp", engine.url, broken, long_tokens=400), named([area])
        )


def failed(report: Report) -> set[str]:
    return {row.check for row in report.failed}


async def test_an_adapter_that_raises_from_health_is_found() -> None:
    async def health(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret prompt")

    report = await report_of("trait", health=health)
    assert {"health_is_ready", "health_of_nothing_is_no_error"} <= failed(report)
    assert "secret prompt" not in str(report.to_dict())


async def test_an_adapter_that_cancels_nothing_is_found() -> None:
    from worker_adapters import CancelReceipt

    async def cancel(*_: Any, **__: Any) -> CancelReceipt:
        return CancelReceipt(method="close", sent=True, elapsed_ms=0.0)

    assert {
        "cancel_in_mid_stream",
        "cancel_of_what_is_not_there",
    } <= failed(await report_of("cancel", cancel=cancel))


async def test_an_adapter_that_guesses_slots_is_found() -> None:
    from worker_adapters import WorkerProps

    async def props(*_: Any, **__: Any) -> WorkerProps:
        return WorkerProps(slots_total=2, slots_free=3, source="guess")

    assert "slots_are_consistent" in failed(await report_of("trait", props=props))


async def test_an_adapter_that_drops_what_it_cannot_do_is_found() -> None:
    adapter: Any = adapter_class("triton")
    honest = adapter.submit

    async def submit(self: Any, task: Any, **options: Any) -> Any:
        return await honest(self, task.model_copy(update={"extensions": None}), **options)

    broken = mute(adapter, submit=submit)
    async with scripted_engine("triton") as engine:
        made = Subject("triton", engine.url, broken)
        report = await run_checks(made, named(["errors"]))
    assert "unsupported_fields_are_refused_by_name" in failed(report)


async def test_an_adapter_whose_version_changes_is_found() -> None:
    count = iter(range(100_000))

    async def engine_version(*_: Any, **__: Any) -> str:
        return f"b{next(count)}"

    assert "version_is_stable" in failed(await report_of("trait", engine_version=engine_version))
