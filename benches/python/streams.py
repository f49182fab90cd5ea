"""The streams that the benchmarks decode, made from a fixed seed.

``vllm_chat`` is what vLLM's chat endpoint sends (about 260 bytes an event), ``llamacpp`` what
llama.cpp's ``/completion`` sends. ``vllm_chat_unlike`` is the former with the keys of every other
event turned round, so that no event looks like the one before, which no engine does. ``tgi`` is
what TGI's ``/generate_stream`` sends. The texts look like English tokens, one in twenty with JSON
escapes, one in fifty outside ASCII. As a program it writes the streams to files for others::

    streams.py DIRECTORY [EVENTS]
"""

import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

EVENTS = 20_000
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
CREATED = 1_760_000_000
PROMPT_TOKENS = 57

_WORDS = """
    the of and to in a is that for it as was with be by on not he his but at are this have from or
    had an they which one you were all her she there would their we him been has when who will no
    more if out so up said what its about than into them can only other time new some could these
    two may first then do any like my now over such our man me even most made after also did many
    off before must well back through years where much your way down should because long each just
    state those people too mr how little good world make very year still see own work men day get
    here between both life being under three never know same last another while us might great old
    tokenization streaming inference throughput scheduler attention parameter distribution
""".split()  # noqa: SIM905
_MARKS = [",", ".", ":", ";", "?", "!", ")", " ("]
_ENDINGS = ["ing", "ed", "s", "ly", "tion", "er", "able", "ment"]
_ESCAPED = ["\n", "\n\n", '"', "\\", ' "', "\t"]
_OTHER_SCRIPTS = [" é", "ü", " naïve", "…", "—", " 你好", "🙂"]


@dataclass(frozen=True)
class Stream:
    """A response body in pieces: ``events`` holds every event, each with its blank line."""

    name: str
    dialect: str
    texts: tuple[str, ...]
    events: tuple[bytes, ...]
    before: int = 0
    """How many events come before the first token's."""

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(self.events)

    @property
    def bytes_per_event(self) -> float:
        """The mean size of an event."""
        return len(self.body) / len(self.events)

    def parts(self) -> dict[str, bytes]:
        """Return what comes before the tokens, the tokens, and what comes after them."""
        first, last = self.before, self.before + len(self.texts)
        return {
            "head": b"".join(self.events[:first]),
            "body": b"".join(self.events[first:last]),
            "tail": b"".join(self.events[last:]),
        }

    def reads(self, size: int | None) -> tuple[bytes, ...]:
        """Cut the body into network reads of ``size`` bytes, or one per event for None."""
        if size is None:
            return self.events
        body = self.body
        return tuple(body[at : at + size] for at in range(0, len(body), size))


def texts(count: int = EVENTS) -> tuple[str, ...]:
    """Return the ``count`` token texts, the same ones in every run."""
    rng = random.Random(7)

    def text() -> str:
        where = rng.random()
        if where < 0.70:
            return " " + rng.choice(_WORDS)
        for bound, choices in (
            (0.80, _MARKS),
            (0.90, _ENDINGS),
            (0.95, _ESCAPED),
            (0.97, _OTHER_SCRIPTS),
        ):
            if where < bound:
                return rng.choice(choices)
        return f" {rng.randrange(1000)}"

    return tuple(text() for _ in range(count))


def _event(payload: object) -> bytes:
    body = (
        payload
        if isinstance(payload, str)
        else json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
    )
    return f"data: {body}\n\n".encode()


def _turned_round(payload: object) -> Any:
    if isinstance(payload, dict):
        return {key: _turned_round(payload[key]) for key in reversed(payload)}
    if isinstance(payload, list):
        return [_turned_round(item) for item in payload]
    return payload


def vllm_chat(count: int = EVENTS, *, unlike: bool = False) -> Stream:
    """Return a chat as vLLM streams it: role, ``count`` deltas, finish, usage, [DONE].

    ``unlike`` turns the keys of every other delta's chunk and choice round.
    """
    common = {
        "id": "chatcmpl-8f4f2f7b9a5d4b0f9c1d2e3f4a5b6c7d",
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": MODEL,
    }

    def chunk(
        delta: dict[str, str], finish: str | None = None, **more: object
    ) -> dict[str, object]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, **more}
        return {**common, "choices": [choice]}

    def deltas() -> Iterator[dict[str, object]]:
        for number, text in enumerate(tokens):
            made = chunk({"content": text}, token_ids=None)
            yield _turned_round(made) if unlike and number % 2 else made

    tokens = texts(count)
    usage = {
        "prompt_tokens": PROMPT_TOKENS,
        "total_tokens": PROMPT_TOKENS + count,
        "completion_tokens": count,
    }
    return Stream(
        "vllm_chat_unlike" if unlike else "vllm_chat",
        "openai",
        tokens,
        (
            _event(chunk({"role": "assistant", "content": ""})),
            *map(_event, deltas()),
            _event(chunk({"content": ""}, "stop", stop_reason=None)),
            _event({**common, "choices": [], "usage": usage}),
            _event("[DONE]"),
        ),
        before=1,
    )


def llamacpp(count: int = EVENTS) -> Stream:
    """Return a completion as llama.cpp streams it: ``count`` partial frames and the final one."""
    rng = random.Random(11)
    tokens = texts(count)
    partial = (
        {
            "index": 0,
            "content": text,
            "tokens": [rng.randrange(128_256)],
            "stop": False,
            "id_slot": -1,
            "tokens_predicted": number,
            "tokens_evaluated": PROMPT_TOKENS,
        }
        for number, text in enumerate(tokens, 1)
    )
    final = {
        "index": 0,
        "content": "",
        "tokens": [],
        "id_slot": 0,
        "stop": True,
        "model": MODEL,
        "tokens_predicted": count,
        "tokens_evaluated": PROMPT_TOKENS,
        "generation_settings": {"n_predict": count, "temperature": 0.8, "top_k": 40, "top_p": 0.95},
        "prompt": "x",
        "has_new_line": True,
        "truncated": False,
        "stop_type": "limit",
        "stopping_word": "",
        "tokens_cached": PROMPT_TOKENS + count,
        "timings": {
            "prompt_n": PROMPT_TOKENS,
            "prompt_ms": 33.1,
            "predicted_n": count,
            "predicted_ms": 9e4,
        },
    }
    return Stream("llamacpp", "llamacpp", tokens, (*map(_event, partial), _event(final)))


def tgi(count: int = EVENTS) -> Stream:
    """Return a generation as TGI streams it; the last token's event holds the whole text, too."""
    rng = random.Random(13)
    tokens = texts(count)

    def frame(number: int, text: str) -> dict[str, object]:
        is_last = number == count
        return {
            "index": number,
            "token": {
                "id": rng.randrange(128_256),
                "text": text,
                "logprob": -round(rng.expovariate(2), 7),
                "special": False,
            },
            "generated_text": "".join(tokens) if is_last else None,
            "details": {"finish_reason": "length", "generated_tokens": count, "seed": None}
            if is_last
            else None,
        }

    return Stream(
        "tgi",
        "tgi",
        tokens,
        tuple(
            _event(frame(number, text)).replace(b"data: ", b"data:", 1)
            for number, text in enumerate(tokens, 1)
        ),
    )


def stamped() -> Stream:
    """Return a chat of one token with room for a time, which the replay server writes there."""
    chat = vllm_chat(1)
    (text,) = chat.texts
    room = _event("0" * 18)[6:-2]
    events = tuple(
        event.replace(json.dumps(text, ensure_ascii=False).encode(), b'"%s"' % room)
        for event in chat.events
    )
    return Stream("stamped", chat.dialect, ("0" * 18,), events, before=chat.before)


STREAMS: dict[str, Callable[[int], Stream]] = {
    "vllm_chat": vllm_chat,
    "vllm_chat_unlike": partial(vllm_chat, unlike=True),
    "llamacpp": llamacpp,
    "tgi": tgi,
}


def main() -> None:
    """Write every stream to ``DIRECTORY/NAME.sse``."""
    directory = Path(sys.argv[1])
    count = int(sys.argv[2]) if len(sys.argv) > 2 else EVENTS
    directory.mkdir(parents=True, exist_ok=True)
    for name, make in STREAMS.items():
        stream = make(count)
        (directory / f"{name}.sse").write_bytes(stream.body)
        print(f"{name}: {len(stream.events)} events, {stream.bytes_per_event:.1f} bytes each")


if __name__ == "__main__":
    main()
