"""``worker-adapters certify``: whether a server keeps to the contract, and what it lacks."""

from __future__ import annotations

import json as jsonlib
from typing import TYPE_CHECKING, Annotated

import typer

from worker_adapters.cli._console import (
    NOT_CONFORMANT,
    UNREACHABLE,
    USAGE,
    fail,
    for_people,
    note,
    print_text,
    run,
)
from worker_adapters.cli._engines import engine_names, make_adapter
from worker_adapters.cli._options import (
    ApiKeyFile,
    Json,
    Model,
    Transport,
    check_engine,
    check_url,
    read_api_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from worker_adapters.testing.conformance import Check, Report, Result, Subject

__all__ = ["certify"]


def certify(
    engine: Annotated[str, typer.Argument(metavar="ENGINE", help="The engine behind the URL.")],
    url: Annotated[str, typer.Argument(metavar="URL", help="The engine's base URL.")],
    model: Model = None,
    prompt: Annotated[
        str,
        typer.Option("--prompt", "-p", metavar="TEXT", help="What to ask, for a long answer."),
    ] = "Once upon a time",
    long_tokens: Annotated[
        int,
        typer.Option(min=16, max=2**31 - 1, help="Tokens of the answers that are cancelled."),
    ] = 1000,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask by conversations, for servers of nothing else.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="An area, or a check of one; repeatable."),
    ] = None,
    transport: Transport = None,
    api_key_file: ApiKeyFile = None,
    json: Json = False,
) -> None:
    """Run the conformance suite on a server and print what came of it.

    It generates a few thousand tokens. Exit status: 0 when the server keeps to the contract,
    whatever it lacks, 4 when a check failed, 3 when nothing answers.
    """
    check_engine(engine, engine_names())
    check_url(url)
    if not prompt:
        fail("the prompt is empty", USAGE)
    from worker_adapters.testing.conformance import CHECKS, Subject, named

    try:
        checks = named(only) if only else CHECKS
    except ValueError as error:
        fail(str(error), USAGE)
    key = read_api_key(api_key_file)
    subject = Subject(
        engine,
        url,
        lambda address: make_adapter(
            engine, address, api_key=key, model=model, transport=transport
        ),
        prompt=prompt,
        long_tokens=long_tokens,
        chat=chat,
    )
    report = run(lambda: _certify(subject, checks))
    card = report.to_dict()
    print_text(jsonlib.dumps(card, ensure_ascii=False) + "\n" if json else "".join(_card(report)))
    if not report.is_conformant:
        raise typer.Exit(NOT_CONFORMANT)


async def _certify(subject: Subject, checks: Sequence[Check]) -> Report:
    from worker_adapters.testing.conformance import run_checks

    async with subject.adapter() as adapter:
        health = await adapter.health()
    if not health.live:
        fail(f"nothing answers at {subject.url} ({health.reason})", UNREACHABLE)
    if not health.ready:
        note(f"worker-adapters: the engine is not ready ({health.reason})")
    with for_people().status("") as status:

        def told(result: Result) -> None:
            status.update(f"{result.area}.{result.check}: {result.status}")

        return await run_checks(subject, checks, told=told)


def _card(report: Report) -> Iterator[str]:
    """The card for people, in pieces."""
    told = report.capabilities
    yield f"engine   {report.engine}"
    yield f" {told.engine_version}" if told is not None and told.engine_version else ""
    yield f" at {report.url}\n"
    if told is not None and told.model is not None:
        yield f"model    {told.model}\n"
    yield "\n"
    for area in dict.fromkeys(result.area for result in report.results):
        yield _line(area, [result for result in report.results if result.area == area])
    for heading, status in (("failed", "failed"), ("not tested", "skipped")):
        found = [result for result in report.results if result.status == status]
        if found:
            yield f"\n{heading}\n"
            yield from (f"  {row.area}.{row.check}: {row.detail}\n" for row in found)
    if report.lacks:
        yield "\nlacking\n"
        for lack in report.lacks:
            yield f"  {lack.feature}: {lack.why}\n"
            if lack.enable is not None:
                yield f"    enable with: {lack.enable}\n"
    verdict = "conformant" if report.is_conformant else "NOT conformant"
    counts = report.to_dict()["summary"]
    yield f"\n{verdict}: " + ", ".join(f"{count} {name}" for name, count in counts.items()) + "\n"


def _line(area: str, results: list[Result]) -> str:
    passed = sum(result.status == "passed" for result in results)
    others = {
        status: sum(result.status == status for result in results)
        for status in ("failed", "lacking", "skipped")
    }
    rest = "".join(f", {count} {status}" for status, count in others.items() if count)
    return f"{area:<13} {passed} of {len(results)} passed{rest}\n"
