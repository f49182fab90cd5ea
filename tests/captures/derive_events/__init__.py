"""Expected events of every capture, derived without the decoder.

This package is the second opinion that the replay tests hold the decoder against. It shares no
code with the library, sees each response whole, and follows the contract by the letter: de-chunk
the body, split it at blank lines, `json.loads` each frame, apply the rules. It is slow, it
supports only what the captures contain, and it stops with an assertion at anything else.

    python -m tests.captures.derive_events            # write the files beside the captures
    python -m tests.captures.derive_events --check    # compare with the committed files, and the
                                                      # captures with one another

`NAME.events.jsonl` holds the events of a stream, or the one error of an answer that is none;
`NAME.details.jsonl` the same with the token ids and log probabilities that the body carries.

Left out is what the response does not decide: the times (`decode_ms`, `decode_time_ms`,
`latency_first_token_ms`) and the message of an error that the library words. Why a capture is
expected to end as it does is told in docs/captures.md.

One module per dialect (`llamacpp`, `openai`, `sglang`, `tgi`, `triton`), `wire` for HTTP and
server-sent events, `law` for what all streams share, `errors` for what engines say of errors, and
`witnesses` for the cross-checks.
"""

from tests.captures.derive_events.expected import (
    check,
    derive,
    details_path,
    events_path,
    render,
    write,
)
from tests.captures.derive_events.law import Event, Stream
from tests.captures.derive_events.wire import CAPTURES, ENGINES, Capture, load, names

# Data keys that depend on the clock, and so are in no expectation.
TIMED = ("decode_ms", "decode_time_ms", "latency_first_token_ms")

__all__ = [
    "CAPTURES",
    "ENGINES",
    "TIMED",
    "Capture",
    "Event",
    "Stream",
    "check",
    "derive",
    "details_path",
    "events_path",
    "load",
    "names",
    "render",
    "write",
]
