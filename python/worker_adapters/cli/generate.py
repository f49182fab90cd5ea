"""``worker-adapters generate``: one completion, streamed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker_adapters.cli._console import fail_invalid, fail_with, note, run
from worker_adapters.cli._engines import engine_names, make_adapter
from worker_adapters.cli._options import (
    ApiKeyFile,
    Engine,
    Json,
    Model,
    Prompt,
    Transport,
    Url,
    check_engine,
    check_url,
    read_api_key,
    read_prompt,
)

if TYPE_CHECKING:
    from worker_adapters import SamplerProfile, TaskRequest

__all__ = ["generate"]

_INT32 = 2**31 - 1
_INT64 = 2**63 - 1


def generate(
    url: Url = "http://127.0.0.1:8080",
    engine: Engine = "llamacpp",
    model: Model = None,
    prompt: Prompt = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", min=1, max=_INT32, help="Tokens at most.")
    ] = 256,
    seed: Annotated[
        int | None, typer.Option(min=0, max=_INT64, help="Seed; unset: a random one, reported.")
    ] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The engine's deterministic settings.")
    ] = False,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0 is greedy.")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="0 switches it off.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0)] = None,
    min_p: Annotated[float | None, typer.Option(min=0.0, max=1.0)] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End before this text; repeatable.")
    ] = None,
    deadline_ms: Annotated[
        int, typer.Option(min=1, max=_INT64, help="Time budget for the whole of it.")
    ] = 600_000,
    transport: Transport = None,
    api_key_file: ApiKeyFile = None,
    json: Json = False,
) -> None:
    """Stream one completion: the text to stdout, the figures to stderr.

    With --json stdout gets the events instead, one JSON object per line.
    """
    check_engine(engine, engine_names())
    check_url(url)
    key = read_api_key(api_key_file)
    text = read_prompt(prompt)
    from worker_adapters.cli._task import completion_task

    profile = _profile(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, stop=stop or None
    )
    task = completion_task(
        engine,
        text,
        max_tokens=max_tokens,
        seed=seed,
        deadline_ms=deadline_ms,
        determinism="strict" if deterministic else None,
        sampler_profile_version=None if profile is None else profile.version,
    )
    options = {
        "api_key": key,
        "model": model,
        "sampler_profiles": None if profile is None else (profile,),
        "transport": transport,
    }
    status = run(lambda: _generate(engine, url, task, options, json=json))
    if status:
        raise typer.Exit(status)


def _profile(**settings: Any) -> SamplerProfile | None:
    """A sampler profile of the settings given; None when there are none."""
    given = {name: value for name, value in settings.items() if value is not None}
    if not given:
        return None
    from worker_adapters import SamplerProfile

    try:
        return SamplerProfile(name="command-line", version="command-line", **given)
    except ValueError as error:
        fail_invalid(error)


async def _generate(
    engine: str, url: str, task: TaskRequest, options: dict[str, Any], *, json: bool
) -> int:
    from worker_adapters import WorkerError
    from worker_adapters.cli._show import figures, show

    async with make_adapter(engine, url, **options) as adapter:
        try:
            stream = await adapter.submit(task)
        except WorkerError as error:
            fail_with(error, url)
        async with stream:
            status, terminal = await show(stream, json=json)
    if terminal is not None and terminal.kind == "end":
        note(figures(terminal))
    return status
