"""The event stream rules of the WHATWG, written down line by line. Slow, whole input, obvious.

<https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream>
"""

import re
from dataclasses import dataclass, field

UNKNOWN_LINES_BYTES = 8192


@dataclass
class Parsed:
    """What an event stream means, with the leftovers that the standard throws away."""

    events: list[tuple[str, str, str, int | None]] = field(default_factory=list)
    last_event_id: str = ""
    retry: int | None = None
    unknown_lines: list[str] = field(default_factory=list)
    eof_pending: str | None = None
    eof_partial: str | None = None


def parse(stream: bytes) -> Parsed:
    """Interpret a whole event stream."""
    # "Streams must be decoded using the UTF-8 decode algorithm", which "strips one leading UTF-8
    # Byte Order Mark, if any" and replaces each malformed sequence by U+FFFD.
    text = stream.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    # "Lines must be separated by either a CRLF pair, a single LF, or a single CR."
    *lines, partial = re.split("\r\n|\n|\r", text)
    parsed = Parsed()
    data, event_type, id_buffer, retry = "", "", "", None
    for line in lines:
        if line == "":  # "If the line is empty (a blank line): Dispatch the event"
            # "Set the last event ID string of the event source to the value of the last event ID
            # buffer. The buffer does not get reset".
            parsed.last_event_id = id_buffer
            # "If the data buffer is an empty string, set the data buffer and the event type
            # buffer to the empty string and return." Else "if the data buffer's last character is
            # a U+000A LINE FEED (LF) character, then remove the last character".
            if data:
                name = event_type or "message"
                parsed.events.append((name, data[:-1], parsed.last_event_id, retry))
            data, event_type, retry = "", "", None
            continue
        if line.startswith(":"):
            continue  # "If the line starts with a U+003A COLON character (:): Ignore the line."
        # "Collect the characters on the line before the first U+003A COLON character (:), and let
        # field be that string." After it, "if value starts with a U+0020 SPACE character, remove
        # it from value"; without a colon, "using the whole line as the field name, and the empty
        # string as the field value".
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            event_type = value
        elif name == "data":
            data += value + "\n"
        elif name == "id":
            if "\0" not in value:
                id_buffer = value
        elif name == "retry":
            if re.fullmatch("[0-9]+", value):  # "consists of only ASCII digits"
                retry = parsed.retry = int(value)
        else:
            parsed.unknown_lines.append(line)  # "Otherwise: The field is ignored."
    # "Once the end of the file is reached, any pending data must be discarded." We look at it.
    parsed.eof_pending = data[:-1] if data else None
    parsed.eof_partial = partial if partial and not partial.startswith(":") else None
    return parsed
