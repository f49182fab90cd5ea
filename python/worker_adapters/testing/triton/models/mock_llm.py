"""A deterministic stand-in for a language model, shared by the models of this folder.

A fixed list of tokens is emitted, with delays. A block of directives at the start of the prompt
says how, such as ``[[error_at=3 delay_ms=50]] Hello``:

``delay_ms=N``       pause before every token (default 20)
``first_ms=N``       further pause before the first token
``error_at=N``       fail instead of emitting token N (0: before any token)
``hang_at=N``        say nothing more instead of emitting token N, until cancelled
``error_code=NAME``  code of that error (INTERNAL, UNAVAILABLE, NOT_FOUND, ...)
``split=1``          emit one character of four bytes byte by byte
``empty=1``          emit an empty text as one of the tokens
``loop=1``           repeat the reply until max_tokens is reached
``raise=1``          raise out of execute() instead of sending an error
``deaf=1``           never look whether the request has been cancelled

Runs inside Triton, next to ``model.py``: on a Python and a numpy of Triton's own.
"""

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator

# Pieces as a detokenizer hands them out: spaces attached to words, UTF-8 of 2, 3 and 4 bytes,
# JSON's and HTML's specials, line ends (a hazard in server-sent events), controls, U+2028.
PIECES = [
    *(b"Hello", b",", " wörld".encode(), b"!", b"\n", b'"quoted"', b" back\\slash", b"\n\n"),
    *(b"data: x", "你好".encode(), " 🚀".encode(), b"\t</s>&<b>", "\u2028".encode()),
    *(b"\x01", b"\r\n", b" end", b"."),
]
ROCKET = list("🚀".encode())
"""One character as four tokens of one byte."""
BASE = 256
"""Token ids below are bytes, those from here on are pieces."""

_DIRECTIVES = re.compile(r"^\[\[([^\]]*)\]\]\s*")
_log_lock = threading.Lock()

Options = dict[str, str]


class EngineError(Exception):
    """The failure that ``error_at`` asks for."""


def parse(prompt: str) -> tuple[Options, str]:
    """Return the directives and the prompt without them."""
    found = _DIRECTIVES.match(prompt)
    if found is None:
        return {}, prompt
    items = (item.partition("=") for item in found[1].split())
    return {key: value for key, _, value in items}, prompt[found.end() :]


def encode(text: str) -> list[int]:
    """Return one token id per byte."""
    return list(text.encode())


def decode(ids: list[int]) -> str:
    """Return the text of ``ids`` alone, as the stock postprocessing model makes it.

    A character whose bytes are not all there comes out as U+FFFD.
    """
    raw = b"".join(bytes([i]) if i < BASE else PIECES[i - BASE] for i in ids if i >= 0)
    return raw.decode(errors="replace")


def reply(options: Options, max_tokens: int) -> list[int]:
    """Return the ids of the whole reply."""
    ids = [BASE + i for i in range(len(PIECES))]
    if options.get("split"):
        ids[3:3] = ROCKET
    if options.get("loop"):
        ids = [BASE + i % len(PIECES) for i in range(max_tokens)]
    return ids[:max_tokens]


def generate(
    options: Options, max_tokens: int, is_cancelled: Callable[[], bool]
) -> Iterator[tuple[int, str | None]]:
    """Yield ids, the last with its finish reason; end without one when cancelled.

    Raises EngineError where the directives ask for it.
    """
    delay = float(options.get("delay_ms", 20)) / 1000
    error_at = int(options.get("error_at", -1))
    hang_at = int(options.get("hang_at", -1))
    time.sleep(float(options.get("first_ms", 0)) / 1000)
    ids = reply(options, max_tokens)
    for n, token in enumerate(ids):
        if not options.get("deaf") and is_cancelled():
            return
        time.sleep(delay)
        while n == hang_at:
            if is_cancelled():
                return
            time.sleep(0.01)
        if n == error_at:
            raise EngineError(f'mock engine failure at token {n}: "CUDA out of memory"\nrank 0')
        last = n == len(ids) - 1
        yield token, ("length" if len(ids) == max_tokens else "stop") if last else None


def note(**fields: object) -> None:
    """Append a line of JSON to the file that the environment names as ``STAND_IN_LOG``."""
    path = os.environ.get("STAND_IN_LOG")
    if path:
        line = json.dumps(fields) + "\n"
        with _log_lock, open(path, "a", encoding="utf-8") as log:  # noqa: PTH123 - quickest
            log.write(line)
