"""The commands, each from its own file; nothing heavy is imported until one runs."""

from __future__ import annotations

from typing import Annotated

import typer

from worker_adapters.cli import certify, decode, demo, fake_engine, generate, probe
from worker_adapters.cli._console import print_text

__all__ = ["app"]

app = typer.Typer(
    help="Stream from an inference engine, look at one, test one, or replay what one has sent.",
    epilog="Exit status: 0 ok, 1 failed, 2 usage, 3 engine unreachable, 4 not conformant, "
    "130 interrupted.",
    add_completion=False,
    # A traceback with values in it would show prompts and keys.
    pretty_exceptions_enable=False,
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


app.command("generate")(generate.generate)
app.command("probe")(probe.probe)
app.command("certify")(certify.certify)
app.command("decode")(decode.decode)
app.command("fake-engine")(fake_engine.fake_engine)
app.command("demo")(demo.demo)
