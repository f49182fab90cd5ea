"""Recorded answers as an adapter or a decoder gets them: status, headers, body without framing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from tests.conftest import CAPTURES

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Recorded:
    """One recorded answer."""

    name: str
    """``engine/capture``."""
    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    complete: bool
    """Whether the body's framing was whole."""
    request: bytes

    @property
    def path(self) -> str:
        """What was asked for."""
        return self.request.split(b" ", 2)[1].decode()

    @property
    def asked(self) -> Any:
        """The JSON of the request; None where it was none."""
        try:
            return json.loads(self.request.partition(b"\r\n\r\n")[2])
        except ValueError:
            return None

    @property
    def is_stream(self) -> bool:
        return any(
            name.lower() == b"content-type" and value.startswith(b"text/event-stream")
            for name, value in self.headers
        )


@cache
def recorded(engine: str) -> dict[str, Recorded]:
    """Return every recorded answer of an engine that has a status, by ``engine/capture``."""
    found = {}
    for path in sorted((CAPTURES / engine).glob("*.http")):
        answer = _read(engine, path)
        if answer is not None:
            found[answer.name] = answer
    return found


def _read(engine: str, path: Path) -> Recorded | None:
    head, _, body = path.read_bytes().partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/"):
        return None
    first, *lines = head.split(b"\r\n")
    pairs = [line.partition(b":") for line in lines]
    headers = tuple((name, value.strip()) for name, _, value in pairs)
    chunked = any(name.lower() == b"transfer-encoding" for name, _ in headers)
    body, complete = _joined(body) if chunked else (body, True)
    request = path.with_suffix(".request").read_bytes()
    return Recorded(
        f"{engine}/{path.stem}", int(first.split()[1]), headers, body, complete, request
    )


def _joined(body: bytes) -> tuple[bytes, bool]:
    """Join HTTP chunks; whether the last one came."""
    data = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            return data, True
        data += rest[:length]
        body = rest[length + 2 :]
    return data, False
