"""``worker-adapters config``: check, show and describe a configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from worker_adapters.cli._console import FAILED, USAGE, fail, guarded, note, print_text

if TYPE_CHECKING:
    from worker_adapters.config import ConfigError, Configuration

__all__ = ["config"]

config = typer.Typer(help="Check, show or describe a configuration.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(metavar="FILE", help="The TOML file.")]


@config.command("check")
@guarded()
def check(file: File) -> None:
    """Say what is wrong with a configuration, by file, line and field.

    Keys are looked for, adapters made; nothing is connected to. Exit status: 0 when it can be used,
    1 when it cannot.
    """
    found = _loaded(file)
    from worker_adapters.config import ConfigError
    from worker_adapters.config.build import problems_of
    from worker_adapters.config.load import placed

    if problems := [placed(problem, file) for problem in problems_of(found)]:
        _refuse(ConfigError(problems))
    replicas = sum(len(pool.replicas) for pool in found.pools.values())
    note(f"{file}: {len(found.pools)} pools, {replicas} replicas")


@config.command("show")
@guarded()
def show(file: File) -> None:
    """Print a configuration as it holds, the environment included, as JSON, redacted."""
    shown = _loaded(file).shown()
    print_text(json.dumps(shown, ensure_ascii=False, indent=2) + "\n")


@config.command("schema")
@guarded()
def schema() -> None:
    """Print the JSON Schema of a configuration."""
    from worker_adapters.config import schema as described

    print_text(json.dumps(described(), indent=2) + "\n")


def _loaded(file: Path) -> Configuration:
    from worker_adapters.config import ConfigError, load

    try:
        return load(file)
    except ConfigError as error:
        _refuse(error)
    except OSError as error:
        fail(f"cannot read {file}: {error.strerror or error}", USAGE)


def _refuse(error: ConfigError) -> NoReturn:
    for problem in error.problems:
        note(str(problem), style="red")
    raise typer.Exit(FAILED)
