//! The event stream rules of the WHATWG, written down line by line. Slow, whole input, obvious.
//!
//! <https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream>

/// An event: type, data, last event id, and the `retry` field of its block.
pub(crate) type Event = (String, String, String, Option<u64>);

/// What an event stream means, with the leftovers that the standard throws away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parsed {
    pub(crate) events: Vec<Event>,
    pub(crate) last_event_id: String,
    pub(crate) retry: Option<u64>,
    pub(crate) unknown_lines: Vec<String>,
    pub(crate) eof_pending: Option<String>,
    pub(crate) eof_partial: Option<String>,
}

/// "Lines must be separated by either a CRLF pair, a single LF, or a single CR."
fn lines(text: &str) -> Vec<String> {
    text.replace("\r\n", "\n").replace('\r', "\n").split('\n').map(str::to_owned).collect()
}

/// Interprets a whole event stream.
pub(crate) fn parse(stream: &[u8]) -> Parsed {
    // "Streams must be decoded using the UTF-8 decode algorithm", which "strips one leading UTF-8
    // Byte Order Mark, if any" and replaces each malformed sequence by U+FFFD.
    let stream = stream.strip_prefix(b"\xef\xbb\xbf").unwrap_or(stream);
    let mut lines = lines(&String::from_utf8_lossy(stream));
    let partial = lines.pop().unwrap();
    let mut parsed = Parsed::default();
    let (mut data, mut event_type, mut id_buffer) = (String::new(), String::new(), String::new());
    let mut retry = None;
    for line in lines {
        if line.is_empty() {
            // "Set the last event ID string of the event source to the value of the last event ID
            // buffer. The buffer does not get reset".
            parsed.last_event_id.clone_from(&id_buffer);
            // "If the data buffer is an empty string, set the data buffer and the event type
            // buffer to the empty string and return." Else "if the data buffer's last character is
            // a U+000A LINE FEED (LF) character, then remove the last character".
            if !data.is_empty() {
                data.pop();
                let name = if event_type.is_empty() { "message".into() } else { event_type };
                parsed.events.push((name, data, id_buffer.clone(), retry));
            }
            (data, event_type, retry) = (String::new(), String::new(), None);
            continue;
        }
        // "If the line starts with a U+003A COLON character (:): Ignore the line."
        if line.starts_with(':') {
            continue;
        }
        // "Collect the characters on the line before the first U+003A COLON character (:), and let
        // field be that string." After it, "if value starts with a U+0020 SPACE character, remove
        // it from value"; without a colon, "using the whole line as the field name, and the empty
        // string as the field value".
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "event" => value.clone_into(&mut event_type),
            "data" => {
                data.push_str(value);
                data.push('\n');
            }
            "id" if value.contains('\0') => {}
            "id" => value.clone_into(&mut id_buffer),
            // "If the field value consists of only ASCII digits". What 64 bits do not hold is no time
            // that anybody waits for.
            "retry" => {
                let digits = !value.is_empty() && value.chars().all(|c| c.is_ascii_digit());
                if let (true, Ok(millis)) = (digits, value.parse()) {
                    retry = Some(millis);
                    parsed.retry = retry;
                }
            }
            // "Otherwise: The field is ignored."
            _ => parsed.unknown_lines.push(line),
        }
    }
    // "Once the end of the file is reached, any pending data must be discarded." We look at it.
    if data.pop().is_some() {
        parsed.eof_pending = Some(data);
    }
    if !partial.is_empty() && !partial.starts_with(':') {
        parsed.eof_partial = Some(partial);
    }
    parsed
}
