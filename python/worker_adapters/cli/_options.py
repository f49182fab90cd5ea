"""Options that several commands share, and what makes their values valid."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Final, TextIO, TypeAlias
from urllib.parse import urlsplit

import typer

from worker_adapters.cli._console import USAGE, fail

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "KEY_VARIABLE",
    "ApiKeyFile",
    "Engine",
    "Json",
    "Model",
    "Prompt",
    "Transport",
    "Url",
    "check_engine",
    "check_url",
    "read_api_key",
    "read_prompt",
    "stdin",
]

KEY_VARIABLE: Final = "WORKER_ADAPTERS_API_KEY"

Engine: TypeAlias = Annotated[
    str, typer.Option("--engine", "-e", metavar="NAME", help="The engine behind the URL.")
]
Url: TypeAlias = Annotated[
    str,
    typer.Option(
        "--url", "-u", metavar="URL", envvar="WORKER_ADAPTERS_URL", help="The engine's base URL."
    ),
]
ApiKeyFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help=f"A file whose first line is the API key; else the variable {KEY_VARIABLE} holds it.",
    ),
]
Model: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="NAME", help="The model to ask, where the engine serves several."
    ),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Prompt: TypeAlias = Annotated[
    str | None,
    typer.Option("--prompt", "-p", metavar="TEXT", help="The prompt; without it, stdin."),
]


class _Transport(StrEnum):
    NATIVE = "native"
    HTTPX = "httpx"


Transport: TypeAlias = Annotated[
    _Transport | None,
    typer.Option(
        "--transport", help="What streams come over: native sockets, the default, or httpx."
    ),
]


def check_engine(name: str, known: Iterable[str]) -> None:
    """End the command unless the engine is one of those known."""
    names = sorted(known)
    if name not in names:
        fail(f"unknown engine {name!r}; known are: {', '.join(names)}", USAGE)


def check_url(url: str) -> str:
    """The URL if an adapter can use it; else end the command, without repeating a password."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
        parts = urlsplit("")
    if parts.scheme not in {"http", "https"} or not host or port == 0:
        shown = "the given URL" if "@" in url else repr(url)
        fail(f"{shown} is no base URL; expected something like http://127.0.0.1:8080", USAGE)
    if parts.username is not None or parts.password is not None:
        fail(f"no credentials in a URL, please; an API key goes into {KEY_VARIABLE}", USAGE)
    if parts.query or parts.fragment:
        fail("a base URL has no query and no fragment", USAGE)
    return url


def read_api_key(file: Path | None) -> str | None:
    """The API key from the file, else from the environment, else None."""
    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        fail(f"cannot read the API key from {file}: {reason}", USAGE)
    key = text.partition("\n")[0].strip()
    if not key:
        fail(f"the first line of {file} holds no API key", USAGE)
    return key


def stdin() -> BinaryIO:
    """Standard input as bytes; one that is closed ends the command."""
    source: TextIO | None = sys.stdin
    if source is None:
        fail("cannot read stdin: it is closed", USAGE)
    return source.buffer


def read_prompt(prompt: str | None) -> str:
    """The prompt as given, else stdin without its final line end; an empty one ends the command."""
    if prompt is None:
        source = stdin()
        if source.isatty():
            sys.stderr.write("Type the prompt, then Ctrl-D:\n")
        try:
            prompt = source.read().decode("utf-8")
        except OSError as error:
            fail(f"cannot read the prompt from stdin: {error.strerror or error}", USAGE)
        except UnicodeDecodeError:
            fail("the prompt on stdin is not UTF-8", USAGE)
        prompt = prompt.removesuffix("\n").removesuffix("\r")
    if not prompt:
        fail("the prompt is empty; give --prompt TEXT or pipe it into stdin", USAGE)
    return prompt
