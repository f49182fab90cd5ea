"""What all scripted engines share: how they misbehave on request, and what they remember."""

from __future__ import annotations

import asyncio
import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, Literal, TypeAlias

from worker_adapters.testing.wire import LAST_CHUNK, Connection, RawServer, Received, chunk

__all__ = ["PIECES", "Behaviour", "Generation", "Refusal", "ScriptedEngine"]

PIECES: Final = (
    *("Once", " upon", " a", " time", ",", " there", " was", " a", " caf\u00e9", " \U0001f642"),
    *("\n", '"quoted"', " back\\slash", " \u4e2d\u6587", "\n\n", "data: x", "\u2028", "."),
)
"""What the engines say, one token each and round again: text that framing must not harm."""

CONTEXT: Final = 4096
"""Their context length in tokens."""

Error: TypeAlias = Literal["status", "first", "stream"]
Hang: TypeAlias = Literal["health", "head", "first", "stream"]
Cut: TypeAlias = Literal["close", "reset", "polite"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How an engine answers; by default at once, without end and without fault."""

    pieces: tuple[str, ...] = PIECES
    """The text of each token; begins again after the last."""
    tokens: int | None = None
    """How many tokens it has to say before it stops by itself; None is endless."""
    delay_ms: float = 0.0
    """Time before each token."""
    first_delay_ms: float = 0.0
    """Time before the response head: a queue, or a long prompt."""
    health_delay_ms: float = 0.0
    split: int | None = None
    """How many bytes are sent at a time; None is a frame at a time."""
    error: Error | None = None
    """An error: as a ``status`` of its own, as the ``first`` frame of a 200, or in mid-``stream``.
    Engines that know only one of the first two send that one."""
    status: int = 503
    """The status that ``error="status"`` gives, and the class of the other errors."""
    hang: Hang | None = None
    """Where it falls silent with the connection open: before the ``head``, before the ``first``
    token, in mid-``stream``, or on every ``health`` probe."""
    truncate: Cut | None = None
    """How it ends in mid-stream: the connection is closed or reset, or the body ends as if it were
    whole (``polite``)."""
    after: int = 3
    """How many tokens come before what happens in mid-stream."""
    ready: bool = True
    """Whether the model is loaded."""
    usage: bool = True
    """Whether it counts tokens where it is asked to."""
    api_key: str | None = None
    """Required of every request but health probes."""

    def __post_init__(self) -> None:
        if not self.pieces:
            raise ValueError("pieces must hold at least one")
        if self.split is not None and self.split < 1:
            raise ValueError("split must be at least 1")


@dataclass(slots=True, eq=False)
class Generation:
    """One stream that an engine was asked for, and how it went."""

    request: Received = field(repr=False)
    asked: Mapping[str, Any] = field(repr=False)
    """The request's body."""
    limit: int
    """The most tokens to generate."""
    prompt_tokens: int
    id: str = ""
    """By which it can be aborted."""
    stop: tuple[str, ...] = ()
    """Texts that end it."""
    pieces: tuple[str, ...] | None = None
    """What it says instead of the engine's usual text, once."""
    text: str = field(default="", repr=False)
    """What was sent."""
    ends: Literal["stop", "length"] | None = None
    """Why the token at hand is the last, as far as that can be known before the next."""
    stopped_by: str | None = None
    """Which of the texts it ended at."""
    stopped_at: str = field(default="", repr=False)
    """What of that text was in the last token, for engines that leave it in their answer."""
    sent: int = 0
    """How many tokens were sent."""
    outcome: Literal["running", "done", "error", "cut", "left", "aborted"] = "running"
    """``left``: the client has gone; ``aborted``: by the engine's own route."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event, repr=False)


class Refusal(Exception):  # noqa: N818 - it says what, not that
    """The request gets this status and message."""

    def __init__(self, status: int, message: str, kind: str = "invalid") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind


class ScriptedEngine(RawServer):
    """A small server that speaks one engine's dialect as that engine was recorded to.

    A context manager as `RawServer` is. ``behaviour`` may be changed at any time, with `behave`;
    it holds for requests that come afterwards.

    Args:
        behaviour: How it answers.
        host: Address to listen on.
        port: Port to listen on; 0 for any.
        changes: Fields of `Behaviour` that differ from ``behaviour``.
    """

    dialect: ClassVar[str]
    """The dialect, by the name of the engine that has it."""
    stream_headers: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Response head of a stream, after the status line."""
    keeps_after_stream: ClassVar[bool] = True
    slots: ClassVar[int] = 4

    def __init__(
        self,
        behaviour: Behaviour | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        **changes: Any,
    ) -> None:
        super().__init__(host=host, port=port)
        self.behaviour = replace(behaviour or Behaviour(), **changes)
        self.generations: list[Generation] = []
        """Every stream it was asked for, in order."""
        self.aborts: list[str] = []
        """What the abort route was given, in order."""

    def behave(self, **changes: Any) -> None:
        """Change how it answers; what is not named goes back to how it was made by default."""
        self.behaviour = Behaviour(**changes)

    @property
    def busy(self) -> int:
        """How many streams are running."""
        return sum(row.outcome == "running" for row in self.generations)

    # What a dialect says.

    @abstractmethod
    async def answer(self, connection: Connection, request: Received) -> bool:
        """Answer one request; whether the connection stays open. Raises Refusal."""

    @abstractmethod
    def refusal(self, refusal: Refusal) -> bytes:
        """Return the whole response that refuses a request."""

    @abstractmethod
    def frame(self, generation: Generation, number: int, text: str) -> bytes:
        """Return the frame of one token, without its chunk."""

    @abstractmethod
    def ending(self, generation: Generation, reason: str) -> Iterable[bytes]:
        """Return what follows the last token: ``stop``, ``length`` or ``abort``."""

    @abstractmethod
    def failure(self, refusal: Refusal) -> Iterable[bytes]:
        """Return what a stream has in the place of what fails."""

    def opening(self, generation: Generation) -> Iterable[bytes]:
        """Return what comes before the first token."""
        del generation
        return ()

    # What happens then.

    async def play(self, connection: Connection) -> None:
        """Answer request after request."""
        stays = True
        while stays:
            request = await connection.request()
            try:
                stays = await self.handle(connection, request)
            except Refusal as refusal:
                await connection.send(self.refusal(refusal))

    async def handle(self, connection: Connection, request: Received) -> bool:
        """Answer one request as `answer` does, after what holds for all. Raises Refusal."""
        key = self.behaviour.api_key
        if key is not None and not self.is_open(request.path):
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if given != key:
                raise Refusal(401, "Unauthorized", "key")
        return await self.answer(connection, request)

    def is_open(self, path: str) -> bool:
        """Whether a path needs no key."""
        return path.startswith(("/health", "/v2/health", "/ready"))

    async def health(self, connection: Connection, ready: bytes, loading: bytes) -> bool:
        """Answer a health probe."""
        behaviour = self.behaviour
        if behaviour.hang == "health":
            await connection.until_closed()
            return False
        await connection.rest(behaviour.health_delay_ms / 1000)
        await connection.send(ready if behaviour.ready else loading)
        return True

    def new_generation(
        self, request: Received, asked: Mapping[str, Any], limit: int, prompt: str, **more: Any
    ) -> Generation:
        """Return a generation, checked against the context length. Raises Refusal."""
        made = Generation(request, asked, limit, prompt_tokens=count_tokens(prompt), **more)
        if made.prompt_tokens >= CONTEXT:
            raise Refusal(400, self.too_long(made.prompt_tokens), "too_long")
        self.generations.append(made)
        return made

    def too_long(self, tokens: int) -> str:
        """Return what the engine says to a prompt of so many tokens."""
        return f"The input ({tokens} tokens) is longer than the model's context ({CONTEXT} tokens)."

    async def stream(self, connection: Connection, generation: Generation) -> bool:
        """Send a whole stream as the behaviour says; whether the connection stays open."""
        behaviour = self.behaviour
        try:
            return await self._stream(connection, generation, behaviour)
        except (ConnectionError, asyncio.CancelledError):
            generation.outcome = "left"
            raise
        except Refusal:
            generation.outcome = "error"
            raise

    async def _stream(
        self, connection: Connection, generation: Generation, behaviour: Behaviour
    ) -> bool:
        await connection.rest(behaviour.first_delay_ms / 1000)
        if behaviour.hang == "head":
            await self._hang(connection)
        failure = Refusal(behaviour.status, MESSAGES.get(behaviour.status, "It broke."), "engine")
        if behaviour.error == "status" and self.has_status_errors:
            raise failure
        await connection.send(self.stream_head())
        if behaviour.error in {"first", "status"}:
            return await self._fail(connection, generation, behaviour, failure)
        await self._send(connection, behaviour, self.opening(generation))
        if behaviour.hang == "first":
            await self._hang(connection)
        for number, piece in enumerate(texts_of(generation, behaviour)):
            if generation.ends is not None or generation.stopping.is_set():
                break
            if number == behaviour.after:
                if behaviour.hang == "stream":
                    await self._hang(connection)
                if behaviour.error == "stream":
                    return await self._fail(connection, generation, behaviour, failure)
                if behaviour.truncate is not None:
                    return await self._cut(connection, generation, behaviour.truncate)
            if behaviour.delay_ms:
                await connection.rest(behaviour.delay_ms / 1000)
            text = _before_stop(generation, piece)
            generation.sent = number + 1
            generation.text += text
            is_full = generation.sent >= generation.limit
            stopped = generation.stopped_by is not None
            generation.ends = "stop" if stopped else "length" if is_full else None
            frame = self.frame(generation, number, text)
            await self._send(connection, behaviour, [frame] if frame else [])
            if number % 64 == 63:
                # Sending to a reader that keeps up never waits; others have to be served, too.
                await asyncio.sleep(0)
            if connection.is_left:
                raise ConnectionResetError
        reason = "abort" if generation.stopping.is_set() else generation.ends or "stop"
        await self._send(connection, behaviour, self.ending(generation, reason))
        await connection.send(LAST_CHUNK)
        generation.outcome = "aborted" if reason == "abort" else "done"
        return self.keeps_after_stream

    has_status_errors: ClassVar[bool] = True
    """Whether a stream may be refused by a status, before it begins."""

    def stream_head(self) -> bytes:
        """Return the response head of a stream."""
        lines = ["HTTP/1.1 200 OK", *(f"{name}: {value}" for name, value in self.stream_headers)]
        return "\r\n".join([*lines, "", ""]).encode()

    async def _hang(self, connection: Connection) -> None:
        await connection.until_closed()
        raise ConnectionResetError

    async def _fail(
        self,
        connection: Connection,
        generation: Generation,
        behaviour: Behaviour,
        failure: Refusal,
    ) -> bool:
        generation.outcome = "error"
        await self._send(connection, behaviour, self.failure(failure))
        await connection.send(LAST_CHUNK)
        return False

    async def _cut(self, connection: Connection, generation: Generation, how: Cut) -> bool:
        generation.outcome = "cut"
        if how == "polite":
            await connection.send(LAST_CHUNK)
        elif how == "reset":
            connection.reset()
        return False

    async def _send(
        self, connection: Connection, behaviour: Behaviour, frames: Iterable[bytes]
    ) -> None:
        for frame in frames:
            framed = chunk(frame)
            size = behaviour.split or len(framed)
            await connection.send(*(framed[at : at + size] for at in range(0, len(framed), size)))

    def abort(self, wanted: str) -> bool:
        """End the streams of this id by the engine's own route; whether there were any."""
        self.aborts.append(wanted)
        found = [row for row in self.generations if row.id == wanted and row.outcome == "running"]
        for generation in found:
            generation.stopping.set()
        return bool(found)


def texts_of(generation: Generation, behaviour: Behaviour) -> Iterator[str]:
    """Return the text of each token that there is to say."""
    if generation.pieces is not None:
        yield from generation.pieces
        return
    number = 0
    while behaviour.tokens is None or number < behaviour.tokens:
        yield behaviour.pieces[number % len(behaviour.pieces)]
        number += 1


def _before_stop(generation: Generation, piece: str) -> str:
    """Return what of a piece comes before a text that ends the generation, and note which."""
    sent = generation.text
    for word in generation.stop:
        at = (sent + piece).find(word, max(0, len(sent) - len(word)))
        if at >= 0:
            generation.stopped_by = word
            begin = max(0, at - len(sent))
            generation.stopped_at = piece[begin : at + len(word) - len(sent)]
            return piece[:begin]
    return piece


MESSAGES: Final[Mapping[int, str]] = {
    429: "Too many requests.",
    500: "The engine encountered an issue.",
    503: "The engine is currently busy and cannot accept new requests.",
}
"""What goes wrong, where no engine has words of its own."""


def count_tokens(text: str) -> int:
    """Return how many tokens a text is: here, one for its beginning and one per word."""
    return 1 + len(text.split())


def token_id(text: str) -> int:
    """Return the id of a token."""
    return 256 + PIECES.index(text) if text in PIECES else sum(text.encode()) % 256


def vector(text: str) -> list[float]:
    """Return what stands for an embedding: four numbers that depend on every byte."""
    sums = [0, 0, 0, 0]
    for at, byte in enumerate(text.encode()):
        sums[at % 4] = (sums[at % 4] * 31 + byte) % 1000
    return [value / 1000 for value in sums]


def score(query: str, document: str) -> float:
    """Return what stands for a relevance: how many words the two share."""
    words = set(query.lower().split())
    return len(words & set(document.lower().split())) / (len(words) or 1)


def sse(data: Any, space: str = " ") -> bytes:
    """Return one server-sent event; ``data`` as JSON unless it is text already."""
    shown = data if isinstance(data, str) else compact(data)
    return f"data:{space}{shown}\n\n".encode()


def compact(data: Any) -> str:
    """Return JSON as most engines write it."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def body_of(request: Received) -> dict[str, Any]:
    """Return the request's body. Raises Refusal for one that is no JSON object."""
    try:
        asked = request.json
    except ValueError:
        raise Refusal(400, "The body is not JSON.", "json") from None
    if not isinstance(asked, dict):
        raise Refusal(400, "The body is not an object.", "json")
    return asked


def stops_of(asked: Mapping[str, Any], name: str = "stop") -> tuple[str, ...]:
    """Return the texts that a request wants to end at."""
    given = asked.get(name) or ()
    return (given,) if isinstance(given, str) else tuple(given)


def example_of(schema: Mapping[str, Any]) -> Any:
    """Return the plainest value that a JSON schema of the simple kind describes."""
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            properties = schema.get("properties", {})
            return {name: example_of(properties[name]) for name in schema.get("required", ())}
        case "array":
            return []
        case "boolean":
            return True
        case "integer" | "number":
            return 1
        case "string":
            return "text"
    return None


def conversation(asked: Mapping[str, Any]) -> str:
    """Return the text of the messages of a chat request. Raises Refusal."""
    messages = asked.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refusal(400, "messages is required", "missing")
    texts: list[str] = []
    for message in messages:
        content = message.get("content") or ""
        if isinstance(content, list):
            content = " ".join(part.get("text", "") for part in content)
        texts.append(content)
    return " ".join(texts)
