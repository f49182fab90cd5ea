"""What every dialect shares: the terminal law, the numbering, the counting."""

from dataclasses import dataclass, field
from typing import Any

from tests.captures.derive_events.errors import EngineWords, by_status, without_status

Event = dict[str, Any]

FINISH_REASONS = {
    "stop": "stop",
    "eos": "stop",
    "word": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "limit": "length",
    "content_filter": "content_filter",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}


@dataclass
class Stream:
    """The terminal law and the numbering, said in the plainest way."""

    dialect: str
    with_details: bool = False
    events: list[Event] = field(default_factory=list)
    started: bool = False
    terminal: bool = False
    token_events: int = 0
    tokens_seen: int = 0  # tokens that the frames so far stand for
    tokens_emitted: int = 0  # tokens that the events so far stand for
    dropped_choices: int = 0
    dropped_after_end: int = 0
    counted_by_engine: bool = False
    waiting_ids: list[int] = field(default_factory=list)
    waiting_logprobs: list[dict[str, Any]] = field(default_factory=list)
    ending: dict[str, Any] = field(default_factory=dict)

    def emit(self, kind: str, /, **data: object) -> None:
        """Add an event."""
        assert not self.terminal, "nothing after the terminal"
        self.events.append({"kind": kind, "data": data})

    def start(self, **data: object) -> None:
        """Note the engine's first frame that is no error."""
        if not self.started:
            self.started = True
            self.emit("started", engine=self.dialect, **data)

    def count(self, more: int) -> None:
        """Note that a frame stands for so many tokens, by our count."""
        self.tokens_seen += more

    def count_to(self, total: int) -> None:
        """Note how many tokens there have been so far, by the engine's count."""
        self.counted_by_engine = True
        self.tokens_seen = max(self.tokens_seen, total)

    def detail(self, ids: list[int] | None, logprobs: list[dict[str, Any]] | None = None) -> None:
        """Note what is told of a frame's tokens; it goes with the next text."""
        if self.with_details:
            self.waiting_ids += ids or []
            self.waiting_logprobs += logprobs or []

    def text(self, text: str, channel: str = "content") -> None:
        """Make a token event of all tokens since the last one. Without text there is none."""
        if not text:
            return
        n = self.tokens_seen - self.tokens_emitted
        data: dict[str, object] = {"t": text, "i": self.token_events}
        if n != 1:
            data["n"] = n
        if channel != "content":
            data["channel"] = channel
        if self.waiting_ids:
            data["token_ids"] = self.waiting_ids
        if self.waiting_logprobs:
            data["logprobs"] = self.waiting_logprobs
        self.waiting_ids, self.waiting_logprobs = [], []
        self.emit("token", **data)
        self.token_events += 1
        self.tokens_emitted = self.tokens_seen

    def finish_reason(self, raw: str) -> None:
        """Note why the engine ended."""
        self.ending["finish_reason"] = FINISH_REASONS.get(raw, "unknown")
        self.ending["finish_reason_raw"] = raw

    def usage(
        self, tokens_in: int | None, tokens_out: int | None, cached: int | None = None
    ) -> None:
        """Note the engine's counts; None where it gives none."""
        for key, value in (
            ("tokens_in", tokens_in), ("tokens_out", tokens_out), ("cached_tokens_in", cached)
        ):  # fmt: skip
            if value is not None:
                self.ending[key] = value

    def end(self) -> None:
        """Note the engine's finish signal."""
        data: dict[str, Any] = {"finish_reason": None, "tokens_out": self.tokens_seen}
        by_engine = self.counted_by_engine or "tokens_out" in self.ending
        data["usage_source"] = "engine" if by_engine else "counted"
        self.emit("end", **data | self.ending)
        self.terminal = True

    def error(self, what: dict[str, Any]) -> None:
        """End in an error of this class."""
        processed = "yes" if self.started else what["processed"]
        data = what | {
            "engine": self.dialect,
            "phase": "stream" if self.tokens_seen else "first_token",
            "processed": processed,
            "tokens_emitted": self.tokens_emitted,
        }
        self.emit("error", **data)
        self.terminal = True

    def engine_error(self, words: EngineWords) -> None:
        """End in an error that the engine reports."""
        self.error(by_status(words) if words.status else without_status(words, "engine_rejected"))

    def aborted(self, words: EngineWords) -> None:
        """End because the engine gave the request up."""
        self.error(by_status(words) if words.status else without_status(words, "aborted"))

    def body_ended(self) -> None:
        """Note the end of the body, which is no finish signal, however polite it is."""
        if not self.terminal:
            self.error(without_status(EngineWords(), "truncated"))


class GrowingText:
    """Text that every frame repeats from its beginning, taken apart into what is new.

    A U+FFFD at the end may still become a character: it waits until something follows it, or
    nothing will.
    """

    def __init__(self) -> None:
        self.whole = ""
        self.shown = ""

    def extend(self, whole: str, *, is_last: bool = False) -> str:
        """What `whole` adds that is certain; all of it in the last frame."""
        certain = whole if is_last else whole.rstrip("\ufffd")
        assert whole.startswith(self.shown) or self.shown.startswith(certain), "the past changed"
        self.whole = whole
        new = certain.removeprefix(self.shown) if certain.startswith(self.shown) else ""
        self.shown += new
        return new

    def rest(self) -> str:
        """What has waited, now that nothing follows."""
        return self.extend(self.whole, is_last=True)
