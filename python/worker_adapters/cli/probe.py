"""``worker-adapters probe``: what an engine says about itself."""

from __future__ import annotations

import json as jsonlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker_adapters.cli._console import FAILED, UNREACHABLE, note, print_text, run
from worker_adapters.cli._engines import engine_names, make_adapter
from worker_adapters.cli._options import (
    ApiKeyFile,
    Engine,
    Json,
    Model,
    check_engine,
    check_url,
    read_api_key,
)

if TYPE_CHECKING:
    from worker_adapters import WorkerAdapter

__all__ = ["describe", "probe", "rows"]


def probe(
    url: Annotated[str, typer.Argument(metavar="URL", help="The engine's base URL.")],
    engine: Engine = "llamacpp",
    model: Model = None,
    api_key_file: ApiKeyFile = None,
    json: Json = False,
) -> None:
    """Show an engine's version, health, slots and model.

    Exit status: 0 when it is ready, 1 when it lives and is not ready or refuses to tell, 3 when
    nothing answers.
    """
    check_engine(engine, engine_names())
    check_url(url)
    key = read_api_key(api_key_file)
    found = run(lambda: _probe(engine, url, key, model))
    print_text(jsonlib.dumps(found, ensure_ascii=False) + "\n" if json else _aligned(found))
    errors = found.get("errors", {})
    for what, error in errors.items():
        note(f"worker-adapters: no {what}: {error}")
    if not found["health"]["live"]:
        note(f"worker-adapters: nothing answers at {url}", style="red")
        raise typer.Exit(UNREACHABLE)
    if errors or not found["health"]["ready"]:
        raise typer.Exit(FAILED)


async def _probe(engine: str, url: str, key: str | None, model: str | None) -> dict[str, Any]:
    async with make_adapter(engine, url, api_key=key, model=model) as adapter:
        return {"url": url, "engine": engine, **await describe(adapter)}


async def describe(adapter: WorkerAdapter) -> dict[str, Any]:
    """Health and, if it lives, version, slots and model; per item the error that it met."""
    from worker_adapters import WorkerError

    health = await adapter.health()
    found: dict[str, Any] = {"health": health.model_dump(exclude_none=True)}
    if not health.live:
        return found
    errors: dict[str, str] = {}
    try:
        identity = (await adapter.identity()).model_dump(exclude={"model_meta"}, exclude_none=True)
        found["engine_version"] = identity.pop("engine_version")
        if details := identity.pop("details", None):
            found["details"] = details
        found["model"] = identity
    except WorkerError as error:
        errors["identity"] = str(error)
    try:
        props = await adapter.props()
        found["slots"] = {"total": props.slots_total, "free": props.slots_free}
    except WorkerError as error:
        errors["slots"] = str(error)
    if errors:
        found["errors"] = errors
    return found


def rows(found: dict[str, Any]) -> dict[str, str]:
    """What `describe` found, for people: a name and a value per line, unknown ones left out."""
    health = found["health"]
    state = "ready" if health["ready"] else "live, not ready" if health["live"] else "unreachable"
    if reason := health.get("reason"):
        state += f" ({reason})"
    slots = found.get("slots", {})
    every = {
        "url": found.get("url"),
        "engine": found.get("engine"),
        "version": found.get("engine_version"),
        "health": state,
        "slots": _slots(slots.get("free"), slots.get("total")),
        "model": _model(**found.get("model", {})),
    }
    return {name: str(value) for name, value in every.items() if value is not None}


def _slots(free: int | None, total: int | None) -> str | None:
    if total is None:
        return None if free is None else f"{free} free"
    return f"{total}" if free is None else f"{free} of {total} free"


def _model(
    model: str | None = None,
    model_path: str | None = None,
    ctx_max: int | None = None,
    **_: object,
) -> str | None:
    name = model or model_path
    return name if name is None or ctx_max is None else f"{name}, {ctx_max} tokens of context"


def _aligned(found: dict[str, Any]) -> str:
    return "".join(f"{name:<8} {value}\n" for name, value in rows(found).items())
