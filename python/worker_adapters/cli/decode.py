"""``worker-adapters decode``: what the decoder makes of recorded bytes."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from worker_adapters.cli._console import (
    FAILED,
    USAGE,
    fail,
    fail_invalid,
    note,
    print_text,
)
from worker_adapters.cli._engines import engine_names, wire_of
from worker_adapters.cli._options import check_engine, stdin

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager
    from typing import BinaryIO

    from worker_adapters import StreamDecoder, TokenEvent

__all__ = ["decode"]

_READ: Final = 1 << 16
_HTTP: Final = b"HTTP/1."
# A recording has no clock. At a standing one every duration is 0 and the output reproducible.
_NOW: Final = 0.0


def decode(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Recorded bytes; '-' for stdin.", show_default="-")
    ] = "-",
    engine: Annotated[
        str,
        typer.Option("--engine", "-e", metavar="NAME", help="The engine or dialect of it."),
    ] = "llamacpp",
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="What an adapter would learn from the engine, such as text=accumulated; "
            "repeatable.",
        ),
    ] = None,
) -> None:
    """Decode a recorded response into events, one JSON object per line.

    FILE holds a stream's body, or a whole HTTP response (it begins with HTTP/1.) whose chunk
    framing is then removed. Every duration is 0. Exit status 1 when the stream ends in an error.
    """
    from worker_adapters import StreamDecoder
    from worker_adapters._core import dialects

    check_engine(engine, {*dialects(), *engine_names()})
    options = _options(option or ())
    try:
        dialect, rules = wire_of(engine)
        started = {} if engine == dialect else {"engine": engine}
        decoder = StreamDecoder(dialect, options=options, rules=rules, started=started)
    except ValueError as error:
        fail_invalid(error)
    decoder.dispatched(_NOW)
    with _open(file) as source:
        failed = False
        for events in _replay(decoder, _reads(source, file)):
            print_text("".join(event.to_json() + "\n" for event in events))
            failed = failed or any(event.kind == "error" for event in events)
    if failed:
        raise typer.Exit(FAILED)


def _options(given: Iterable[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not (key and equals):
            fail(f"--option {text}: expected KEY=VALUE", USAGE)
        if key in options:
            fail(f"--option {key} is given twice", USAGE)
        options[key] = value
    return options


def _open(file: str) -> AbstractContextManager[BinaryIO]:
    if file == "-":
        return nullcontext(stdin())
    try:
        return Path(file).open("rb")
    except OSError as error:
        fail(f"cannot read {file}: {error.strerror}", USAGE)


def _reads(source: BinaryIO, name: str) -> Iterator[bytes]:
    """What the source has, as soon as it has it: a pipe is decoded while it flows."""
    read = getattr(source, "read1", source.read)
    while True:
        try:
            data = read(_READ)
        except OSError as error:
            fail(f"cannot read {name}: {error.strerror or error}", USAGE)
        if not data:
            return
        yield data


def _replay(decoder: StreamDecoder, reads: Iterator[bytes]) -> Iterator[list[TokenEvent]]:
    start = b""
    while len(start) < len(_HTTP) and (data := next(reads, b"")):
        start += data
    if start.startswith(_HTTP):
        yield from _replay_http(decoder, start, reads)
    else:
        yield decoder.head(200, [(b"content-type", b"text/event-stream")], _NOW)
        yield from (decoder.feed(data, _NOW) for data in chain((start,), reads))
        yield decoder.finish(_NOW)


def _replay_http(
    decoder: StreamDecoder, start: bytes, reads: Iterator[bytes]
) -> Iterator[list[TokenEvent]]:
    from worker_adapters.cli._http import Head, HttpResponse, NotHttpError

    response = HttpResponse()
    try:
        for data in chain((start,), reads, (b"",)):
            for part in response.feed(data):
                if isinstance(part, Head):
                    yield decoder.head(part.status, part.headers, _NOW)
                else:
                    yield decoder.feed(part.data, _NOW)
    except NotHttpError as error:
        fail(f"not an HTTP response: {error}")
    yield decoder.finish(_NOW, complete=response.complete)
    if response.trailing:
        note(f"{response.trailing} bytes after the response were not decoded")
