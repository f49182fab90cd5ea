"""``worker-adapters demo``: the whole way, on a real engine."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker_adapters.cli._console import (
    FAILED,
    USAGE,
    fail,
    fail_with,
    for_people,
    guarded,
    note,
    run,
)
from worker_adapters.cli._options import ApiKeyFile, Transport, check_url, read_api_key

if TYPE_CHECKING:
    from worker_adapters import TokenEvent

__all__ = ["demo"]


def demo(
    url: Annotated[
        str | None,
        typer.Option("--url", "-u", metavar="URL", help="A running llama.cpp server to use."),
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", "-p", metavar="TEXT")] = "Once upon a time",
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, max=2**31 - 1)] = 96,
    transport: Transport = None,
    api_key_file: ApiKeyFile = None,
) -> None:
    """Start a real llama.cpp server, stream a completion from it, and show what it reports.

    The server (extra [demo]) and its 0.3 MB model are local and go away with the command.
    """
    if not prompt:
        fail("the prompt is empty", USAGE)
    if url is not None:
        check_url(url)
    key = None if url is None else read_api_key(api_key_file)
    # Entered outside the event loop, so that the engine outlives a cancelled stream's goodbye.
    with guarded(), ExitStack() as stack:
        base_url = _start_engine(stack) if url is None else url
        status = run(lambda: _demo(base_url, key, transport, prompt, max_tokens))
    if status:
        raise typer.Exit(status)


def _start_engine(stack: ExitStack) -> str:
    from worker_adapters.testing.llamacpp import (
        EngineNotInstalledError,
        EngineStartError,
        LlamaCppServer,
    )

    note("starting a llama.cpp server ...")
    try:
        server = stack.enter_context(LlamaCppServer(["-a", "tiny.gguf"]))
    except EngineNotInstalledError as error:
        fail(str(error), USAGE)
    except EngineStartError as error:
        fail(str(error), FAILED)
    note(f"llama.cpp listens on {server.url} (process {server.pid})")
    return server.url


async def _demo(
    url: str, key: str | None, transport: Transport, prompt: str, max_tokens: int
) -> int:
    from worker_adapters import WorkerError
    from worker_adapters.cli._engines import make_adapter
    from worker_adapters.cli._show import show
    from worker_adapters.cli._task import completion_task
    from worker_adapters.cli.probe import describe

    task = completion_task(
        "llamacpp", prompt, max_tokens=max_tokens, deadline_ms=600_000, determinism="strict"
    )
    async with make_adapter("llamacpp", url, api_key=key, transport=transport) as adapter:
        note(f"prompt: {prompt}")
        try:
            stream = await adapter.submit(task)
        except WorkerError as error:
            fail_with(error, url)
        async with stream:
            status, terminal = await show(stream, end_line=True)
        if terminal is None or terminal.kind != "end":
            return status or FAILED
        found = await describe(adapter)
    _report(found, terminal)
    return 0


def _report(found: dict[str, Any], end: TokenEvent) -> None:
    from rich.table import Table
    from rich.text import Text

    from worker_adapters.cli._show import tokens_per_second
    from worker_adapters.cli.probe import rows

    rate = tokens_per_second(end)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in (
        *rows(found).items(),
        ("tokens", f"{end.tokens_in} in, {end.tokens_out} out ({end.usage_source})"),
        ("first token", f"{end.latency_first_token_ms} ms"),
        ("speed", "too quick to tell" if rate is None else f"{rate:.0f} tokens/s"),
        ("finish", str(end.finish_reason)),
    ):
        table.add_row(name, Text(value))
    for_people().print(table)
