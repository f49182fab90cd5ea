"""Recorded exchanges as a test: the adapter has to make of each what the contract says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from worker_adapters._core import TokenEvent
from worker_adapters.adapter import WorkerAdapter
from worker_adapters.errors import WorkerError
from worker_adapters.testing.conformance._laws import (
    check_error,
    check_events,
    check_rendering,
    comparable,
)
from worker_adapters.testing.conformance._subject import CheckFailed, Subject, expect, skip
from worker_adapters.testing.engines import SCRIPTED, ScriptedEngine, SglangEngine, TritonEngine
from worker_adapters.testing.replay import Chunking, Recording, ReplayServer, load_recordings
from worker_adapters.testing.wire import Connection, Received

__all__ = ["check_recording", "find_recordings"]

_NATIVE: Final[Mapping[str, tuple[str, ...]]] = {
    "llamacpp": ("/completion",),
    "sglang": ("/generate",),
    "tgi": ("/generate_stream",),
    "vllm": ("/v1/completions",),
    "openai": ("/v1/completions",),
}
_OPENAI: Final = ("/v1/completions", "/v1/chat/completions")


def find_recordings(folder: str | Path, engine: str) -> list[Recording]:
    """Return the recordings of a folder that an adapter of this engine can be tested with.

    Those are the ones with expected events (``NAME.events.jsonl``) of a route that has tasks. The
    folder may hold the recordings, or a folder of them by the engine's name. Raises
    FileNotFoundError where there is none.
    """
    home = Path(folder)
    if (home / engine).is_dir():
        home = home / engine
    return [
        recording
        for recording in load_recordings(home)
        if recording.expected is not None and _task_route(recording, engine) is not None
    ]


def _task_route(recording: Recording, engine: str) -> str | None:
    """Return how the adapter has to be asked so that it reads this: ``prompt`` or ``messages``."""
    path = recording.path.partition("?")[0]
    if engine == "triton":
        return "prompt" if path.endswith("/generate_stream") else None
    if path in _NATIVE.get(engine, ()):
        return "prompt"
    return "messages" if path in _OPENAI else None


async def check_recording(
    recording: Recording,
    engine: str,
    connect: Callable[[str], WorkerAdapter],
    *,
    others: Iterable[Recording] = (),
    chunking: Chunking = "recorded",
    speed: float | None = None,
) -> list[TokenEvent]:
    """Give an adapter a recording for the answer to its task, and check what it makes of it.

    Args:
        recording: One of `find_recordings`.
        engine: Whose it is.
        connect: Makes the adapter for a base URL.
        others: Recordings of the same run that answer what the adapter asks besides; the rest is
            answered by the engine's scripted server.
        chunking: How the bytes are cut.
        speed: How much faster than recorded they come; None without waiting.

    Returns the events; none where the task was refused. Raises CheckFailed, and CheckSkipped for a
    recording without expected events.
    """
    if recording.expected is None:
        skip("it has no expected events")
    way = _task_route(recording, engine)
    if way is None:
        skip("its route has no tasks")
    scripted = _stand_in(recording, engine)
    # Whatever way the adapter asks in, this is the answer.
    paths = [*_NATIVE.get(engine, ()), *_OPENAI]
    if engine == "triton":
        paths.append(f"/v2/models/{_model(recording)}/generate_stream")
    routes = {f"POST {path}": recording for path in paths}
    server = ReplayServer(
        others, routes=routes, chunking=chunking, speed=speed, fallback=_fallback(scripted)
    )
    async with server:
        subject = Subject(engine, server.url, connect, max_tokens=64)
        fields: dict[str, Any] = {}
        if way == "messages":
            fields["extensions"] = {"messages": [_HELLO]}
        async with subject.adapter() as adapter:
            try:
                stream = await subject.run(adapter, **fields)
            except WorkerError as error:
                check_error(error.fields(), engine)
                _compare_refusal(error, recording)
                return []
            async with stream:
                events = [event async for event in stream]
    check_events(events, engine)
    check_rendering(events)
    _compare(events, recording.expected)
    return events


_HELLO: Final = {"role": "user", "content": "hello"}


def _model(recording: Recording) -> str:
    """Return the name of the model that a path of Triton's is about."""
    return recording.path.split("/")[3]


def _stand_in(recording: Recording, engine: str) -> ScriptedEngine:
    """Return what answers the questions that are not recorded, as the server would have."""
    match SCRIPTED.get(engine):
        case kind if kind is TritonEngine:
            return TritonEngine(models=[_model(recording)])
        case kind if kind is SglangEngine:
            flags = recording.notes.get("flags", "")
            return SglangEngine(incremental="--incremental-streaming-output" in flags)
        case None:
            raise CheckFailed(f"no scripted engine stands in for {engine}")
        case kind:
            return kind()


def _fallback(scripted: ScriptedEngine) -> Callable[[Connection, Received], Any]:
    from worker_adapters.testing.engines._base import Refusal

    async def answer(connection: Connection, request: Received) -> bool:
        try:
            return await scripted.handle(connection, request)
        except Refusal as refusal:
            await connection.send(scripted.refusal(refusal))
            return True

    return answer


def _compare_refusal(error: WorkerError, recording: Recording) -> None:
    expected = recording.expected or ()
    kinds = [event["kind"] for event in expected]
    expect(kinds == ["error"], f"refused as {error.code}; expected were {kinds}")
    wanted = expected[0]["data"].get("status")
    expect(error.status == wanted, f"refused with status {error.status}, not {wanted}")
    expect(error.tokens_emitted == 0, "a refusal counts tokens")


def _compare(events: Sequence[TokenEvent], expected: Sequence[Mapping[str, Any]]) -> None:
    got = [comparable({"kind": event.kind, "data": event.data}) for event in events]
    want = [comparable(event) for event in expected]
    for at, (have, should) in enumerate(zip(got, want, strict=False)):
        if have != should:
            names = sorted(
                name
                for name in have["data"].keys() | should["data"].keys()
                if have["data"].get(name) != should["data"].get(name)
            )
            what = f"{have['kind']} for {should['kind']}, differing in {', '.join(names)}"
            raise CheckFailed(f"event {at} is {what}")
    expect(len(got) == len(want), f"{len(got)} events, expected were {len(want)}")
