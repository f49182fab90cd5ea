"""What docs/redaction.md says of recorded errors: none quotes what its engine generated."""

import json
from pathlib import Path

PRIVATE_STRETCH = 12
"""From how many characters on a stretch of a text is taken for a quote."""


def test_no_recorded_error_quotes_what_was_generated(captures: Path) -> None:
    looked_at = 0
    for file in captures.glob("*/*.events.jsonl"):
        events = [json.loads(line) for line in file.read_bytes().splitlines()]
        texts = "".join(event["data"]["t"] for event in events if event["kind"] == "token")
        messages = [
            event["data"].get("message", "") for event in events if event["kind"] == "error"
        ]
        for message in filter(None, messages):
            looked_at += 1
            quotes = [
                message[at : at + PRIVATE_STRETCH]
                for at in range(len(message) - PRIVATE_STRETCH + 1)
                if message[at : at + PRIVATE_STRETCH] in texts
            ]
            assert not quotes, file.name
    assert looked_at > 200
