"""The checks, by area. Each takes a `Subject` and opens its own adapter."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any, Final, NoReturn
from uuid import uuid4

from worker_adapters._core import TokenEvent
from worker_adapters.adapter import TokenStream, WorkerAdapter
from worker_adapters.contract import SubmitContext
from worker_adapters.errors import (
    AdapterError,
    DeadlineUnmet,
    PoolUnavailable,
    WorkerError,
)
from worker_adapters.extensions import FEATURES
from worker_adapters.testing.conformance._laws import check_error, check_events, check_rendering
from worker_adapters.testing.conformance._subject import (
    Area,
    Check,
    CheckFailed,
    CheckFunction,
    Subject,
    describe,
    expect,
    lacking,
    skip,
)

__all__ = ["CHECKS"]

CHECKS: Final[list[Check]] = []
"""Every check, in the order in which they are run."""

_SOUND = 'é 🙂 中文 \u2028 " \\ \t naïve'
_CANARY = "canary-7f3a91"
_OVERFLOW_LIMIT: Final = 1 << 14
"""Contexts that are larger are not overflowed: the prompt alone would be megabytes."""
_FREED_SECONDS: Final = 10.0
_PROBE_SECONDS: Final = 35.0
_SCHEMA: Final = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


def check(area: Area) -> Callable[[CheckFunction], CheckFunction]:
    """Register a function as a check of this area, under its own name."""

    def register(function: CheckFunction) -> CheckFunction:
        CHECKS.append(Check(getattr(function, "__name__", ""), area, function))
        return function

    return register


async def _events(stream: TokenStream) -> list[TokenEvent]:
    async with stream:
        return [event async for event in stream]


async def _answer(adapter: WorkerAdapter, subject: Subject, **fields: Any) -> list[TokenEvent]:
    """Return the events of a task that has to end well."""
    events = await _events(await subject.run(adapter, **fields))
    check_events(events, subject.engine)
    last = events[-1]
    if isinstance(last.error, WorkerError):
        raise last.error
    return events


def _text(events: list[TokenEvent]) -> str:
    return "".join(event.t or "" for event in events if event.channel == "content")


async def _refused(adapter: WorkerAdapter, subject: Subject, **fields: Any) -> WorkerError:
    """Return the error of a task that has to fail, whether raised or in the stream."""
    try:
        stream = await subject.run(adapter, **fields)
    except WorkerError as error:
        check_error(error.fields(), subject.engine)
        return error
    events = await _events(stream)
    check_events(events, subject.engine)
    failure = events[-1].error
    if not isinstance(failure, WorkerError):
        raise CheckFailed("the task was answered")
    return failure


async def _feature(adapter: WorkerAdapter, name: str) -> Any:
    feature = (await adapter.capabilities()).features.get(name)
    return None if feature is None else feature.value


# Trait


@check("trait")
async def health_is_ready(subject: Subject) -> None:
    """A server that is up and has its model is live and ready, within a bounded time."""
    async with subject.adapter() as adapter:
        async with asyncio.timeout(_PROBE_SECONDS):
            health = await adapter.health()
    expect(health.live, f"not live: {health.reason}")
    expect(health.ready, f"not ready: {health.reason}")


@check("trait")
async def health_of_nothing_is_no_error(subject: Subject) -> None:
    """Where nothing listens health says so instead of raising."""
    async with subject.nowhere() as adapter:
        async with asyncio.timeout(_PROBE_SECONDS):
            health = await adapter.health()
    expect(not health.live and not health.ready, "live where nothing listens")
    expect(health.reason, "no reason given")


@check("trait")
async def version_is_stable(subject: Subject) -> None:
    """The engine's version is the same each time, and the same that streams report."""
    async with subject.adapter() as adapter:
        version = await adapter.engine_version()
        again = await adapter.engine_version()
        events = await _answer(adapter, subject)
    expect(version and version == again, "two answers differ")
    told = events[0].engine_version
    expect(told == version, f"the stream says {told!r}, the engine {version!r}")
    if version == "unknown":
        lacking("version", "the server does not tell its version")


@check("trait")
async def slots_are_consistent(subject: Subject) -> None:
    """Slots are figures the engine gave, or None; never more free than there are."""
    async with subject.adapter() as adapter:
        props = await adapter.props()
    total, free = props.slots_total, props.slots_free
    if total is not None:
        expect(total >= 1, f"{total} slots")
        expect(free is None or 0 <= free <= total, f"{free} of {total} slots free")
    expect(props.source is not None or total is None, "slots without a source")
    if total is None or free is None:
        lacking("slots", "the server does not tell how many slots it has, or how many are free")


@check("trait")
async def identity_names_the_model(subject: Subject) -> None:
    """The engine says which model it has."""
    async with subject.adapter() as adapter:
        identity = await adapter.identity()
    expect(identity.engine_version, "no version")
    if identity.model is None:
        lacking("model", "the server does not name one model")
    if identity.ctx_max is None:
        lacking("context", "the server does not tell its context length")


@check("trait")
async def closing_is_final_and_idempotent(subject: Subject) -> None:
    """A closed adapter refuses, can be closed again, and never raises from it."""
    adapter = subject.connect(subject.url)
    stream = await subject.run(adapter, max_tokens=subject.long_tokens)
    await adapter.aclose()
    events = await _events(stream)
    check_rendering(events)
    expect(events[-1:] and events[-1].is_terminal, "a stream was left without its end")
    await adapter.aclose()
    error = await _refused(adapter, subject)
    expect(error.detail == "closed", f"a closed adapter gives {describe(error)}")


# Ordering


@check("ordering")
async def started_then_tokens_then_end(subject: Subject) -> None:
    """The events of an answer come in the contract's order, with what the caller gave."""
    context = SubmitContext(
        correlation_id=f"conformance-{uuid4()}", queue_position=3, predicted_start_ms=40
    )
    async with subject.adapter() as adapter:
        events = await _events(await subject.run(adapter, context))
    check_events(events, subject.engine)
    expect(events[-1].kind == "end", f"it ended in {events[-1].data.get('code')}")
    expect(any(event.kind == "token" for event in events), "no token")
    started = events[0].data
    for name in ("correlation_id", "queue_position", "predicted_start_ms"):
        expect(started.get(name) == getattr(context, name), f"started does not repeat {name}")


@check("ordering")
async def batches_are_the_same_events(subject: Subject) -> None:
    """Read in batches a stream keeps to the same order; no batch is empty."""
    async with subject.adapter() as adapter:
        batches = [batch async for batch in (await subject.run(adapter)).batches()]
    expect(all(batches), "an empty batch")
    check_events([event for batch in batches for event in batch], subject.engine)


@check("ordering")
async def streams_do_not_mix(subject: Subject) -> None:
    """Streams that run side by side keep to their order, each by itself."""
    async with subject.adapter() as adapter:
        runs = (_answer(adapter, subject, determinism="strict") for _ in range(4))
        answers = await asyncio.gather(*runs)
    ids = {events[0].correlation_id for events in answers}
    expect(len(ids) == len(answers), "two streams share a correlation id")


# Terminal law


@check("terminal")
async def one_terminal_and_nothing_after(subject: Subject) -> None:
    """One terminal event ends the iteration, and it stays ended."""
    async with subject.adapter() as adapter:
        stream = await subject.run(adapter)
        events = [event async for event in stream]
        check_events(events, subject.engine)
        for _ in range(2):
            with contextlib.suppress(StopAsyncIteration):
                late = await anext(stream)
                expect(False, f"{late.kind} after the end")
        await stream.aclose()
        await stream.aclose()


@check("terminal")
async def shortest_answer(subject: Subject) -> None:
    """An answer of one token has its start and its end."""
    async with subject.adapter() as adapter:
        events = await _answer(adapter, subject, max_tokens=1)
    tokens_out = events[-1].tokens_out
    expect(tokens_out is not None and tokens_out <= 1, f"{tokens_out} tokens for max_tokens=1")


@check("terminal")
async def collect_gives_the_whole(subject: Subject) -> None:
    """A collected answer is what its events say."""
    async with subject.adapter() as adapter:
        collected = await (await subject.run(adapter)).collect()
    events = list(collected.events)
    check_events(events, subject.engine)
    expect(collected.text == _text(events), "its text is not that of its tokens")
    expect(collected.tokens_out == events[-1].tokens_out, "its count is not that of its end")


# Error mapping


@check("errors")
async def nothing_listens(subject: Subject) -> None:
    """A task for an address where nothing listens is POOL_UNAVAILABLE, safe to retry."""
    async with subject.nowhere() as adapter:
        error = await _refused(adapter, subject)
    expect(isinstance(error, PoolUnavailable), f"it is {describe(error)}")
    expect(error.code == "POOL_UNAVAILABLE", f"its code is {error.code}")
    expect(error.retriable and error.processed == "no", "not safe to retry")
    expect(error.phase in {"resolve", "connect"}, f"its phase is {error.phase}")


@check("errors")
async def wrong_requests_are_refused_unsent(subject: Subject) -> None:
    """What can be seen to be wrong is INVALID_PARAMS before anything is sent."""
    async with subject.adapter() as adapter:
        wrong: dict[str, dict[str, Any]] = {
            "an unknown sampler profile": {"sampler_profile_version": "conformance-none"},
            "a negative seed": {"seed": -1},
            "another engine": {"engine": "triton" if subject.engine != "triton" else "vllm"},
        }
        ctx_max = (await adapter.capabilities()).ctx_max
        if ctx_max is not None:
            wrong["more context than there is"] = {"ctx": ctx_max + 1}
        for what, fields in wrong.items():
            error = await _refused(adapter, subject, **fields)
            expect(isinstance(error, AdapterError), f"{what} is {describe(error)}")
            expect(error.code == "INVALID_PARAMS", f"{what} is {error.code}")
            expect(not error.retriable, f"{what} is called retriable")
            expect(error.phase == "validate", f"{what} is found in phase {error.phase}")


@check("errors")
async def unsupported_fields_are_refused_by_name(subject: Subject) -> None:
    """A field that the engine cannot do is refused with its name, never dropped."""
    samples: dict[str, dict[str, Any]] = {
        "token_ids": {"token_ids": True},
        "logprobs": {"logprobs": 1},
        "lora": {"lora": "conformance"},
        "priority": {"priority": 1},
        "data_parallel_rank": {"data_parallel_rank": 0},
        "affinity_key": {"affinity_key": "conformance"},
        "constraint.regex": {"constraint": {"regex": "[0-9]{3}"}},
        "constraint.grammar": {"constraint": {"grammar": 'root ::= "a"'}},
    }
    async with subject.adapter() as adapter:
        features = (await adapter.capabilities()).features
        refused = [name for name in samples if name in features and features[name].value is False]
        if not refused:
            skip("the engine does everything that was tried")
        for name in refused:
            error = await _refused(adapter, subject, extensions=samples[name])
            expect(isinstance(error, AdapterError), f"{name} is {describe(error)}")
            expect(error.code == "INVALID_PARAMS", f"{name} is {error.code}")
            expect(name in error.message, f"the message does not name {name}")


@check("errors")
async def overlong_prompt(subject: Subject) -> None:
    """A prompt longer than the context is INVALID_PARAMS, and is not quoted."""
    async with subject.adapter() as adapter:
        ctx_max = (await adapter.capabilities()).ctx_max
        if ctx_max is None:
            skip("the context length is not known")
        if ctx_max > _OVERFLOW_LIMIT:
            skip(f"a context of {ctx_max} tokens is not overflowed for a test")
        error = await _refused(adapter, subject, prompt=f"{_CANARY} " * (ctx_max + 64))
    expect(isinstance(error, AdapterError), f"it is {describe(error)}")
    expect(error.code == "INVALID_PARAMS", f"its code is {error.code}")
    expect(not error.retriable, "it is called retriable")
    expect(_CANARY not in f"{error!r} {error}", "the error quotes the prompt")


@check("errors")
async def deadline_passes(subject: Subject) -> None:
    """A deadline that cannot be met ends the task as DEADLINE_UNMET, at once."""
    async with subject.adapter() as adapter:
        await adapter.identity()
        loop = asyncio.get_running_loop()
        began = loop.time()
        error = await _refused(adapter, subject, deadline_ms=1, max_tokens=subject.long_tokens)
        took = loop.time() - began
    expect(isinstance(error, DeadlineUnmet), f"it is {describe(error)}")
    expect(took < 2, f"it took {took:.1f} s")


@check("errors")
async def duplicate_task_is_refused(subject: Subject) -> None:
    """A task id that is in flight cannot be submitted a second time."""
    async with subject.adapter() as adapter:
        task = subject.task(max_tokens=subject.long_tokens)
        async with await adapter.submit(task) as stream:
            await anext(stream)
            if stream.is_terminal:
                skip("the answer was over before it could be repeated")
            try:
                await adapter.submit(task)
            except AdapterError as error:
                expect(error.detail == "duplicate_id", f"it is {describe(error)}")
                return
    raise CheckFailed("it was taken twice")


# Cancelling


async def _first_tokens(stream: TokenStream, count: int) -> None:
    for _ in range(count + 1):
        event = await anext(stream)
        if event.is_terminal:
            skip("the answer was over before it could be cancelled")


@check("cancel")
async def cancel_in_mid_stream(subject: Subject) -> None:
    """After cancel returns no token comes; the stream ends as cancelled, once."""
    async with subject.adapter() as adapter:
        task = subject.task(max_tokens=subject.long_tokens)
        stream = await adapter.submit(task)
        await _first_tokens(stream, 2)
        receipt = await adapter.cancel(task.task_id)
        late = [event async for event in stream]
        again = await adapter.cancel(task.task_id)
    if not receipt.sent:
        skip("the answer was over before it could be cancelled")
    expect([event.kind for event in late] == ["end"], f"after it: {[e.kind for e in late]}")
    expect(late[0].finish_reason == "cancelled", f"it ended as {late[0].finish_reason}")
    expect(stream.cancelled, "the stream does not say that it was cancelled")
    expect(receipt.method != "none", "the receipt says that nothing was done")
    expect(not again.sent, "cancelling again did something")
    expect(receipt.elapsed_ms < 5000, f"it took {receipt.elapsed_ms:.0f} ms")


@check("cancel")
async def cancel_before_the_first_token(subject: Subject) -> None:
    """A task that is cancelled while it is being submitted ends as cancelled."""
    async with subject.adapter() as adapter:
        await adapter.identity()
        task = subject.task(max_tokens=subject.long_tokens)
        submitting = asyncio.ensure_future(adapter.submit(task))
        await asyncio.sleep(0)
        receipt = await adapter.cancel(task.task_id)
        events = await _events(await submitting)
    if not receipt.sent:
        skip("it could not be caught in time")
    expect(events[-1].finish_reason == "cancelled", f"it ended as {events[-1].finish_reason}")
    expect(not any(event.kind == "token" for event in events), "a token came")


@check("cancel")
async def cancel_of_what_is_not_there(subject: Subject) -> None:
    """Cancelling an unknown task, or one that is over, does nothing and is no error."""
    async with subject.adapter() as adapter:
        unknown = await adapter.cancel(uuid4())
        task = subject.task(max_tokens=2)
        await _events(await adapter.submit(task))
        over = await adapter.cancel(task.task_id)
    for receipt in (unknown, over):
        expect(receipt.method == "none" and not receipt.sent, "it says that something was done")


@check("cancel")
async def leaving_ends_the_stream(subject: Subject) -> None:
    """A stream that is left early delivers nothing more, and the next task is not disturbed."""
    async with subject.adapter() as adapter:
        async with await subject.run(adapter, max_tokens=subject.long_tokens) as stream:
            await anext(stream)
        with contextlib.suppress(StopAsyncIteration):
            late = await anext(stream)
            expect(False, f"{late.kind} after it was left")
        await _answer(adapter, subject)


@check("cancel")
async def slots_are_freed(subject: Subject) -> None:
    """The engine's slot is free soon after a task was cancelled, as the engine tells it."""
    async with subject.adapter() as adapter:
        kind = await _feature(adapter, "cancel")
        if kind == "none":
            lacking("cancel", "what the server runs cannot be stopped")
        before = await adapter.props()
        if before.slots_free is None:
            lacking("slots", "the server does not tell how many slots are free")
        task = subject.task(max_tokens=subject.long_tokens)
        stream = await adapter.submit(task)
        await _first_tokens(stream, 2)
        await adapter.cancel(task.task_id)
        loop = asyncio.get_running_loop()
        until = loop.time() + _FREED_SECONDS
        while ((await adapter.props()).slots_free or 0) < before.slots_free:
            expect(loop.time() < until, f"still taken after {_FREED_SECONDS:.0f} s")
            await asyncio.sleep(0.02)


# Counting


@check("counting")
async def counts_agree(subject: Subject) -> None:
    """Tokens in the events, in the end and in the request go together."""
    async with subject.adapter() as adapter:
        events = await _answer(adapter, subject)
    end = events[-1]
    emitted = sum(event.n or 0 for event in events if event.kind == "token")
    total = end.tokens_out or 0
    expect(total <= subject.max_tokens, f"{total} tokens for max_tokens={subject.max_tokens}")
    expect(end.tokens_in is None or end.tokens_in >= 1, f"tokens_in is {end.tokens_in}")
    if end.usage_source == "counted":
        expect(total == emitted, f"counted {total}, emitted {emitted}")
        lacking("usage", "the server does not count tokens; they are counted by frames")
    if end.finish_reason == "length":
        full = subject.max_tokens
        expect(total == full, f"ended at the limit of {full} with {total}")
    if end.finish_reason is None:
        lacking("finish_reason", "the server does not tell why an answer ends")


@check("counting")
async def limit_is_kept(subject: Subject) -> None:
    """No more tokens come than were asked for, whatever the number."""
    async with subject.adapter() as adapter:
        for limit in (1, 2, 5):
            end = (await _answer(adapter, subject, max_tokens=limit))[-1]
            expect((end.tokens_out or 0) <= limit, f"{end.tokens_out} tokens for {limit}")


@check("counting")
async def seed_is_reported(subject: Subject) -> None:
    """The seed that was sent is reported; a generated one is a number."""
    async with subject.adapter() as adapter:
        seeded = await _feature(adapter, "seed")
        given = (await _answer(adapter, subject, seed=7))[0].seed
        drawn = (await _answer(adapter, subject))[0].seed
    if given is None:
        expect(not seeded, "the engine takes a seed that is not reported")
        lacking("seed", "the server takes no seed")
    expect(given == 7, f"7 was reported as {given}")
    expect(drawn is not None and drawn >= 0, f"a generated seed is {drawn}")


@check("counting")
async def strict_tasks_repeat(subject: Subject) -> None:
    """Equal strict tasks have equal text where the engine promises it."""
    async with subject.adapter() as adapter:
        level = await _feature(adapter, "determinism")
        texts = {
            _text(await _answer(adapter, subject, determinism="strict", seed=11)) for _ in range(2)
        }
    if len(texts) > 1:
        expect(level != "strict", "the engine promises what it does not keep")
        lacking("determinism", "equal strict tasks had different text; the engine promises nothing")


@check("counting")
async def cached_prompt_tokens_are_told(subject: Subject) -> None:
    """How much of a prompt came from the engine's cache is told, or absent; never guessed."""
    async with subject.adapter() as adapter:
        end = (await _answer(adapter, subject))[-1]
    cached = end.cached_tokens_in
    if cached is None:
        lacking("cached_tokens", "the server does not tell how much of a prompt was cached")
    bound = end.tokens_in
    expect(bound is None or 0 <= cached <= bound, f"{cached} of {bound} prompt tokens cached")


# UTF-8


@check("utf8")
async def text_is_sound(subject: Subject) -> None:
    """Every token is whole characters, and every event renders as one frame."""
    async with subject.adapter() as adapter:
        events = await _answer(adapter, subject, max_tokens=4 * subject.max_tokens)
    check_rendering(events)


@check("utf8")
async def text_cut_anywhere_is_sound(subject: Subject) -> None:
    """An answer that is cut inside a character has no half of it."""
    async with subject.adapter() as adapter:
        for limit in range(1, 2 + subject.max_tokens, 3):
            check_rendering(await _answer(adapter, subject, max_tokens=limit))


@check("utf8")
async def any_prompt_goes_through(subject: Subject) -> None:
    """A prompt of several scripts, controls and quotes is answered like any other."""
    async with subject.adapter() as adapter:
        check_rendering(await _answer(adapter, subject, prompt=_SOUND))


# Capabilities


@check("capabilities")
async def document_is_complete(subject: Subject) -> None:
    """The document has what every adapter knows, and agrees with identity and slots."""
    async with subject.adapter() as adapter:
        document = await adapter.capabilities()
        props, version = await adapter.props(), await adapter.engine_version()
    wanted = {"streaming", "cancel", "cancel_in_prefill", "determinism"}
    expect(wanted <= document.features.keys(), f"no {sorted(wanted - document.features.keys())}")
    expect(document.engine == subject.engine, f"it is about {document.engine}")
    told = document.engine_version
    expect(told is None or told == version, f"version {told!r} and {version!r}")
    expect(document.slots_total == props.slots_total, "slots differ from props")
    unsourced = [
        name
        for name in ("ctx_max", "max_tokens_out", "slots_total")
        if getattr(document, name) is not None and name not in document.sources
    ]
    expect(not unsourced, f"no source of {unsourced}")
    expect(json.loads(document.model_dump_json())["engine"] == subject.engine, "it is no JSON")


async def _unary(subject: Subject, workload: str, **fields: Any) -> tuple[Any, list[TokenEvent]]:
    """Return the end of a workload without tokens, and all its events."""
    async with subject.adapter() as adapter:
        offered = (await adapter.capabilities()).supported_workloads
        try:
            stream = await subject.run(adapter, workload=workload, **fields)
        except AdapterError as error:
            expect(error.code == "INVALID_PARAMS", f"it is {describe(error)}")
            if workload not in offered:
                lacking(workload, f"the adapter says that there is no {workload}")
            lacking(workload, f"the server refused it: {error.detail}")
        except WorkerError as error:
            # Some engines have no other words for it.
            expect(error.status is not None, f"it is {describe(error)}")
            lacking(workload, f"the server refused it: {error.detail}")
        expect(workload in offered, f"{workload} works and is not among the workloads")
        events = await _events(stream)
    kinds = [event.kind for event in events]
    expect(kinds == ["started", "end"], f"its events are {kinds}")
    check_events(events, subject.engine)
    return events[-1], events


@check("capabilities")
async def embedding(subject: Subject) -> None:
    """Embeddings are one vector per input, all of one length, the same each time."""
    texts = ("one", "two words", "é 🙂")
    end, _ = await _unary(subject, "embedding", inputs=texts, prompt=..., max_tokens=0)
    vectors = end.embeddings or []
    expect(len(vectors) == len(texts), f"{len(vectors)} vectors for {len(texts)} inputs")
    expect(len({len(vector) for vector in vectors}) == 1, "vectors of different lengths")


@check("capabilities")
async def rerank(subject: Subject) -> None:
    """A rerank is one score per document, in the order of the documents."""
    documents = ("the sea", "hello there", "a dog")
    end, _ = await _unary(subject, "rerank", inputs=documents, prompt="hello", max_tokens=0)
    rows = end.scores or []
    expect([row["index"] for row in rows] == [0, 1, 2], "not in the order of the documents")


async def _extended(
    subject: Subject, feature: str, extensions: dict[str, Any], **fields: Any
) -> list[TokenEvent]:
    """Return the events of a task with extensions, unless the engine says that it cannot."""
    async with subject.adapter() as adapter:
        told = await _feature(adapter, feature)
        if told is False:
            lacking(feature, f"the capabilities say that there is no {feature}")
        try:
            return await _answer(adapter, subject, extensions=extensions, **fields)
        except WorkerError as error:
            if told is not None:
                if not isinstance(error, AdapterError):
                    raise
                expect(error.code == "INVALID_PARAMS", f"it is {describe(error)}")
            lacking(feature, f"the server refused it: {describe(error)}")


async def _unheeded(subject: Subject, feature: str, what: str) -> NoReturn:
    """End the check: the server did something else. No fault where nobody said that it would."""
    async with subject.adapter() as adapter:
        if await _feature(adapter, feature) is None:
            lacking(feature, what)
    raise CheckFailed(what)


_HELLO: Final = {"role": "user", "content": "hello"}


@check("capabilities")
async def chat(subject: Subject) -> None:
    """A conversation is answered like a prompt."""
    events = await _extended(subject, "chat", {"messages": [_HELLO]})
    check_rendering(events)
    expect(any(event.kind == "token" for event in events), "no token")


@check("capabilities")
async def tools(subject: Subject) -> None:
    """A tool that is demanded is called in its own channel."""
    tool = {"name": "conformance", "parameters": {"type": "object", "properties": {}}}
    events = await _extended(
        subject,
        "tools",
        {"messages": [_HELLO], "tools": [tool], "tool_choice": "required"},
        max_tokens=4 * subject.max_tokens,
    )
    calls = [event for event in events if event.channel == "tool"]
    if not calls:
        lacking("tools", "the model did not call the tool that was demanded")
    for event in calls:
        expect(isinstance(json.loads(event.t or ""), list), "a delta of tool calls is no list")


@check("capabilities")
async def stop(subject: Subject) -> None:
    """A text to stop at ends the answer, and is not part of it."""
    async with subject.adapter() as adapter:
        events = await _answer(adapter, subject, determinism="strict")
    answer, word, before = _text(events), "", ""
    for event in events:
        piece = (event.t or "").strip()
        if event.channel == "content" and len(piece) > 1 and before and piece not in before:
            word = piece
            break
        before += (event.t or "") if event.channel == "content" else ""
    if not word:
        skip("the model says nothing that it could be stopped at")
    events = await _extended(subject, "stop", {"stop": [word]}, determinism="strict")
    text, end = _text(events), events[-1]
    if not answer.startswith(text):
        skip("the model said something else the second time")
    if text.endswith(word):
        lacking("stop", "the server leaves the text that it stopped at in the answer")
    if word in text:
        await _unheeded(subject, "stop", "the answer goes on after it")
    expect(text == answer[: answer.index(word)], "the answer ends somewhere else")
    expect(end.finish_reason in {"stop", None}, f"it ended as {end.finish_reason}")


@check("capabilities")
async def token_ids(subject: Subject) -> None:
    """Token ids are as many as tokens."""
    events = await _extended(subject, "token_ids", {"token_ids": True})
    tokens = [event for event in events if event.kind == "token"]
    expect(any(event.token_ids for event in tokens), "none came")
    ids = sum(len(event.token_ids or ()) for event in tokens)
    counted = events[-1].tokens_out or 0
    expect(ids <= counted, f"{ids} ids for {counted} tokens")


@check("capabilities")
async def logprobs(subject: Subject) -> None:
    """Log probabilities are of the tokens, and none is positive."""
    events = await _extended(subject, "logprobs", {"logprobs": 0})
    rows = [row for event in events for row in event.logprobs or () if event.kind == "token"]
    if not rows:
        await _unheeded(subject, "logprobs", "none came")
    values = [row["logprob"] for row in rows if row.get("logprob") is not None]
    expect(all(value <= 1e-6 for value in values), "a probability above 1")


@check("capabilities")
async def constrained_to_a_choice(subject: Subject) -> None:
    """Held to a choice the answer is one of the texts."""
    extensions: dict[str, Any] = {"constraint": {"choice": ["yes", "no"]}}
    events = await _extended(subject, "constraint.choice", extensions)
    expect(_text(events).strip() in {"yes", "no"}, "the answer is neither")


@check("capabilities")
async def constrained_to_a_schema(subject: Subject) -> None:
    """Held to a JSON schema the answer is JSON of that shape."""
    extensions: dict[str, Any] = {"constraint": {"json_schema": _SCHEMA}}
    limit = 4 * subject.max_tokens
    feature = "constraint.json_schema"
    async with subject.adapter() as adapter:
        if await _feature(adapter, feature) is False:
            lacking(feature, f"the capabilities say that there is no {feature}")
        try:
            events = await _answer(adapter, subject, extensions=extensions, max_tokens=limit)
        except AdapterError as error:
            if error.detail != "unsupported":
                raise
            if await _feature(adapter, "chat") is False:
                lacking(feature, f"the server refused it: {describe(error)}")
            # Some routes take a schema for conversations only.
            extensions["messages"] = [_HELLO]
            try:
                events = await _answer(adapter, subject, extensions=extensions, max_tokens=limit)
            except AdapterError as refusal:
                lacking(feature, f"the server refused it: {describe(refusal)}")
    if events[-1].finish_reason == "length":
        skip("the answer was cut before its JSON was whole")
    try:
        value = json.loads(_text(events))
    except ValueError:
        value = None
    if not isinstance(value, dict) or not isinstance(value.get("ok"), bool):
        await _unheeded(subject, feature, "the answer is not JSON, or of another shape")


@check("capabilities")
async def every_feature_is_a_known_one(subject: Subject) -> None:
    """Of an extension the document says yes or no, or nothing where nobody can tell."""
    async with subject.adapter() as adapter:
        features = (await adapter.capabilities()).features
    said = {name: features[name].value for name in FEATURES if name in features}
    neither = sorted(name for name, value in said.items() if not isinstance(value, bool))
    expect(not neither, f"{', '.join(neither)}: neither yes nor no")
