"""A stream on its way to stdout, and its figures for people."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from worker_adapters.cli._console import FAILED, note, print_text, visible

if TYPE_CHECKING:
    from worker_adapters import TokenEvent, TokenStream

__all__ = ["figures", "show", "tokens_per_second"]


async def show(
    stream: TokenStream, *, json: bool = False, end_line: bool = False
) -> tuple[int, TokenEvent | None]:
    """Print a stream as it arrives: its text or, with ``json``, its events as JSON lines.

    Text that does not end its line is given a line end on a terminal, and with ``end_line``
    anywhere. Text of the reasoning and tool channels goes to stderr. Returns the exit status and
    the terminal event. Raises BrokenPipeError when nobody reads stdout any more.
    """
    terminal: TokenEvent | None = None
    last = "\n"
    async for batch in stream.batches():
        terminal = batch[-1] if batch[-1].is_terminal else None
        if json:
            print_text("".join(event.to_json() + "\n" for event in batch))
            continue
        tokens = [event for event in batch if event.kind == "token"]
        aside = "".join(event.t or "" for event in tokens if event.channel != "content")
        text = "".join(event.t or "" for event in tokens if event.channel == "content")
        if aside:
            sys.stderr.write(aside)
            sys.stderr.flush()
        if text:
            print_text(visible(text))
            last = text
    if not json and (end_line or sys.stdout.isatty()) and not last.endswith("\n"):
        print_text("\n")
    if terminal is not None and terminal.kind == "error":
        error = terminal.error
        detail = getattr(error, "detail", None)
        note(f"worker-adapters: the stream ended in {terminal.code} ({detail}): {terminal.message}")
        return FAILED, terminal
    return 0, terminal


def figures(end: TokenEvent) -> str:
    """Tokens, time to first token, rate and finish reason of an ``end`` event, in one line."""
    rate = tokens_per_second(end)
    raw = end.finish_reason_raw
    reason = end.finish_reason or "no finish reason"
    counted = " (counted)" if end.usage_source == "counted" else ""
    parts = (
        None if end.tokens_in is None else f"{end.tokens_in} tokens in",
        f"{end.tokens_out} tokens out{counted}",
        None
        if end.latency_first_token_ms is None
        else f"first token after {end.latency_first_token_ms} ms",
        None if rate is None else f"{rate:.0f} tokens/s",
        f"{reason} ({raw})" if raw is not None and raw != reason else reason,
        None if end.seed is None else f"seed {end.seed}",
    )
    return " · ".join(part for part in parts if part is not None)


def tokens_per_second(end: TokenEvent) -> float | None:
    """Tokens after the first per second of decoding; None where that cannot be told."""
    if not end.decode_ms or end.tokens_out is None or end.tokens_out < 2:
        return None
    return (end.tokens_out - 1) * 1000 / end.decode_ms
