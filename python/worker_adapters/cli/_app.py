"""The commands, each from its own file; nothing heavy is imported until one runs."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from worker_adapters.cli import certify, config, decode, demo, fake_engine, generate, probe
from worker_adapters.cli._console import guarded, print_text

__all__ = ["app"]

# What rich makes of help and wrong usage has bold and dim parts even where it leaves out colours.
_PLAIN: dict[str, Any] = {"rich_markup_mode": None} if os.environ.get("NO_COLOR") else {}

app = typer.Typer(
    help="Stream from an inference engine, look at one, test one, or replay what one has sent.",
    epilog="Exit status: 0 ok, 1 failed, 2 usage, 3 engine unreachable, 4 not conformant, "
    "130 interrupted.",
    add_completion=False,
    # A traceback with values in it would show prompts and keys.
    pretty_exceptions_enable=False,
    **_PLAIN,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from worker_adapters import __version__

        print_text(f"worker-adapters {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


for _name, _command in (
    ("generate", generate.generate),
    ("probe", probe.probe),
    ("certify", certify.certify),
    ("decode", decode.decode),
    ("fake-engine", fake_engine.fake_engine),
    ("demo", demo.demo),
):
    app.command(_name)(guarded()(_command))

app.add_typer(config.config, name="config")
