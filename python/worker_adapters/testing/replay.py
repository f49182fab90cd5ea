"""Recorded exchanges with engines, and a server that answers with them byte for byte.

A recording is what this project calls a capture: ``NAME.http`` with the whole response as it was on
the wire (status line, headers, chunk framing and all) and, as far as they are there,
``NAME.request``, ``NAME.json`` (what else was noted, arrival times among it) and
``NAME.events.jsonl`` (the events it has to become). A folder of them is all the server needs::

    with ReplayServer(load_recordings("captures/vllm")) as server:
        ...

Which one answers a request: the one named in the header ``X-Replay``, else by ``routes``, else the
one whose request was the same, else the first of the same method and path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from worker_adapters.testing.wire import Connection, RawServer, Received, response

__all__ = [
    "HEADER",
    "Chunking",
    "Recording",
    "ReplayServer",
    "load_recording",
    "load_recordings",
    "pieces_of",
]

HEADER: Final = "x-replay"
"""The header by which a request names the recording that answers it."""

Chunking: TypeAlias = Literal["recorded", "whole"] | int | Callable[[bytes], Iterable[bytes]]
"""How a response is cut: as it arrived, not at all, every so many bytes, or by a function."""

_FAR: Final = 1 << 60


@dataclass(frozen=True)
class Recording:
    """One recorded exchange."""

    name: str
    """As its files are called."""
    raw: bytes = field(repr=False)
    """The response, first to last byte."""
    method: str = ""
    path: str = ""
    request_body: bytes = field(default=b"", repr=False)
    notes: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What was noted about it at the time."""
    expected: tuple[Mapping[str, Any], ...] | None = field(default=None, repr=False)
    """The events that it has to become, where that is known; without times."""

    @property
    def route(self) -> str:
        """``METHOD /path``, without the query."""
        return f"{self.method} {self.path.partition('?')[0]}"

    @cached_property
    def status(self) -> int:
        """The status of the final response; 0 where none came."""
        for line in re.findall(rb"(?m)^HTTP/1\.[01] (\d{3})", self.raw):
            if not line.startswith(b"1"):
                return int(line)
        return 0

    @cached_property
    def _head_end(self) -> int:
        """Where the body of the final response begins."""
        at = 0
        while self.raw.startswith(b"HTTP/1.1 1", at):
            at = self.raw.index(b"\r\n\r\n", at) + 4
        end = self.raw.find(b"\r\n\r\n", at)
        return len(self.raw) if end < 0 else end + 4

    @cached_property
    def headers(self) -> Mapping[str, str]:
        """The headers of the final response, names in lower case."""
        head = self.raw[: self._head_end].decode("latin-1")
        lines = head[head.rfind("HTTP/1.") :].split("\r\n")[1:]
        pairs = (line.partition(":") for line in lines if line)
        return {name.lower(): value.strip() for name, _, value in pairs}

    @property
    def is_event_stream(self) -> bool:
        """Whether the answer is a 200 that streams events."""
        kind = self.headers.get("content-type", "")
        return self.status == 200 and kind.partition(";")[0] == "text/event-stream"

    @cached_property
    def is_whole(self) -> bool:
        """Whether the framing says that the body is complete."""
        body = self.raw[self._head_end :]
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            return body.endswith((b"\r\n0\r\n\r\n",)) or body == b"0\r\n\r\n"
        length = self.headers.get("content-length")
        return length is not None and len(body) >= int(length)

    @property
    def closes(self) -> bool:
        """Whether the connection cannot be used again after this response."""
        return not self.is_whole or self.headers.get("connection", "").lower() == "close"

    @cached_property
    def arrivals(self) -> tuple[tuple[float, int], ...]:
        """When, in seconds since the request, how many bytes came; empty where it was not noted."""
        notes = self.notes
        if "recv" in notes:
            return tuple((row["t"], row["len"]) for row in notes["recv"])
        rows = notes.get("recv_ms_bytes") or notes.get("arrivals_ms_bytes") or ()
        return tuple((milliseconds / 1000, size) for milliseconds, size in rows)


def load_recording(path: str | Path) -> Recording:
    """Read the recording whose response is at ``path`` (``NAME.http``). Raises OSError."""
    http = Path(path)
    request = _bytes_if_any(http.with_suffix(".request"))
    head, _, body = request.partition(b"\r\n\r\n")
    line = head.split(b"\r\n")[0].decode("latin-1").split(" ")
    method, target = (line[0], line[1]) if len(line) >= 2 else ("", "")
    events = http.with_suffix(".events.jsonl")
    lines = events.read_text("utf-8").split("\n") if events.exists() else None
    return Recording(
        name=http.stem,
        raw=http.read_bytes(),
        method=method,
        path=target,
        request_body=body,
        notes=json.loads(_bytes_if_any(http.with_suffix(".json")) or b"{}"),
        expected=None if lines is None else tuple(json.loads(row) for row in lines if row),
    )


def _bytes_if_any(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def load_recordings(folder: str | Path) -> list[Recording]:
    """Read every recording of a folder in which an answer came, in order of their names.

    Raises FileNotFoundError where there is no such folder.
    """
    home = Path(folder)
    if not home.is_dir():
        raise FileNotFoundError(f"no folder of recordings: {home}")
    recordings = (load_recording(path) for path in sorted(home.glob("*.http")))
    return [recording for recording in recordings if recording.status]


def pieces_of(recording: Recording, chunking: Chunking = "recorded") -> Iterator[bytes]:
    """Cut a recorded response into the pieces in which it is to be sent."""
    raw = recording.raw
    if chunking == "recorded":
        sizes: Iterable[int] = [size for _, size in recording.arrivals]
    elif chunking == "whole":
        sizes = ()
    elif callable(chunking):
        yield from chunking(raw)
        return
    else:
        if chunking < 1:
            raise ValueError("a piece has at least one byte")
        sizes = [chunking] * (len(raw) // chunking)
    at = 0
    for size in (*sizes, _FAR):
        if piece := raw[at : at + size]:
            yield piece
        at += size


Fallback: TypeAlias = Callable[[Connection, Received], Awaitable[bool]]
"""Answers what no recording does; returns whether the connection stays open."""


class ReplayServer(RawServer):
    """Answers requests with recordings.

    Args:
        recordings: What there is to answer with.
        routes: ``METHOD /path``, or ``METHOD *`` for any path, to the recording or its name.
            Looked at before the recorded requests are.
        chunking: How responses are cut.
        speed: How much faster than recorded they are sent; None sends without waiting. Only
            recorded chunking has times.
        fallback: Answers the requests that no recording does; else they get a 404.
        host: Address to listen on.
        port: Port to listen on; 0 for any.

    Raises KeyError for a name that no recording has.
    """

    def __init__(
        self,
        recordings: Iterable[Recording],
        *,
        routes: Mapping[str, Recording | str] | None = None,
        chunking: Chunking = "recorded",
        speed: float | None = None,
        fallback: Fallback | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        super().__init__(host=host, port=port)
        self._by_name = {recording.name: recording for recording in recordings}
        self._routes = {
            route: self._by_name[row] if isinstance(row, str) else row
            for route, row in (routes or {}).items()
        }
        self._chunking = chunking
        self._speed = speed
        self._fallback = fallback
        self.unanswered: list[Received] = []
        """Requests that nothing answered."""

    def choose(self, request: Received) -> Recording | None:
        """Return the recording that answers a request; None where none does."""
        if HEADER in request.headers:
            return self._by_name.get(request.headers[HEADER])
        for route in (request.route, f"{request.method} *"):
            if route in self._routes:
                return self._routes[route]
        there = [row for row in self._by_name.values() if row.route == request.route]
        same = [row for row in there if row.request_body == request.body]
        return next(iter(same or there), None)

    async def play(self, connection: Connection) -> None:
        """Answer request after request."""
        stays = True
        while stays:
            request = await connection.request()
            recording = self.choose(request)
            if recording is not None:
                await self.send(connection, recording)
                stays = not recording.closes
            elif self._fallback is not None:
                stays = await self._fallback(connection, request)
            else:
                self.unanswered.append(request)
                await connection.send(response('{"error":"not recorded"}', "404 Not Found"))

    async def send(self, connection: Connection, recording: Recording) -> None:
        """Send a recorded response in its pieces, at their times if it is to be timed."""
        times: Sequence[float] = ()
        if self._speed is not None and self._chunking == "recorded":
            times = [at / self._speed for at, _ in recording.arrivals]
        now = 0.0
        for number, piece in enumerate(pieces_of(recording, self._chunking)):
            if number < len(times) and times[number] > now:
                await connection.rest(times[number] - now)
                now = times[number]
            await connection.send(piece)
