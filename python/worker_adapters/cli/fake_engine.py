"""``worker-adapters fake-engine``: a small server that speaks an engine's dialect."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from worker_adapters.cli._console import FAILED, USAGE, fail, note, print_text, run
from worker_adapters.cli._options import check_engine

if TYPE_CHECKING:
    from worker_adapters.testing.engines import ScriptedEngine

__all__ = ["fake_engine"]


def fake_engine(
    dialect: Annotated[str, typer.Argument(metavar="DIALECT", help="The engine to stand in for.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any.")] = 0,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Stop by itself after so many; unset: at the limit.")
    ] = None,
    delay_ms: Annotated[float, typer.Option(min=0, help="Before each token.")] = 0.0,
    first_delay_ms: Annotated[float, typer.Option(min=0, help="Before the response.")] = 0.0,
    split: Annotated[
        int | None, typer.Option(min=1, metavar="BYTES", help="Send so many bytes at a time.")
    ] = None,
    error: Annotated[
        Literal["status", "first", "stream"] | None,
        typer.Option(help="As a status, as the first frame, or in mid-stream."),
    ] = None,
    status: Annotated[int, typer.Option(min=400, max=599, help="Which status it has.")] = 503,
    hang: Annotated[
        Literal["health", "head", "first", "stream"] | None,
        typer.Option(help="Fall silent: on probes, before the head, the first token, later."),
    ] = None,
    truncate: Annotated[
        Literal["close", "reset", "polite"] | None,
        typer.Option(help="Break off in mid-stream; polite: with the framing whole."),
    ] = None,
    after: Annotated[
        int, typer.Option(min=0, metavar="TOKENS", help="What comes before mid-stream.")
    ] = 3,
    loading: Annotated[bool, typer.Option("--loading", help="Never be ready.")] = False,
) -> None:
    """Serve a scripted engine until Ctrl-C; its URL is the one line on stdout.

    What it sends is framed as the real engine was recorded to, its text is the same every time.
    """
    from worker_adapters.testing.engines import SCRIPTED, scripted_engine

    check_engine(dialect, SCRIPTED)
    options: dict[str, Any] = {
        "tokens": tokens,
        "delay_ms": delay_ms,
        "first_delay_ms": first_delay_ms,
        "split": split,
        "error": error,
        "status": status,
        "hang": hang,
        "truncate": truncate,
        "after": after,
        "ready": not loading,
    }
    try:
        engine = scripted_engine(dialect, host=host, port=port, **options)
    except ValueError as problem:
        fail(str(problem), USAGE)
    run(lambda: _serve(engine))


async def _serve(engine: ScriptedEngine) -> None:
    try:
        await engine.start()
    except OSError as problem:
        fail(f"cannot listen: {problem.strerror or problem}", FAILED)
    print_text(engine.url + "\n")
    note(f"a scripted {engine.dialect} listens on {engine.url}; Ctrl-C ends it")
    try:
        await asyncio.Event().wait()
    finally:
        await engine.stop()
