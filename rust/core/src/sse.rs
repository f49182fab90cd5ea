//! Incremental decoding of `text/event-stream`, by the WHATWG rules, at memory speed.
//!
//! The decoder is fed network reads in any chunking and hands out each event as soon as the blank
//! line that completes it has come. It is shaped by three facts about LLM engines:
//!
//! * Nearly every event is one `data:` line that lies whole inside one read. Such an event is
//!   handed out borrowed from the read; nothing is copied. Only what a read leaves unfinished is
//!   kept.
//! * A hostile or broken peer decides how bytes are cut and whether a line ever ends. Each byte is
//!   scanned once, whatever the chunking, and what an unfinished event may hold is bounded.
//! * Engines report faults in places the standard tells a reader to ignore: lines with unknown
//!   field names, a block without its blank line, a last line without its line end. These stay
//!   visible.
//!
//! Standard: <https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream>.

use std::fmt;

use memchr::memchr2;

/// Default bound on the bytes of one event's lines.
pub const DEFAULT_MAX_EVENT_BYTES: usize = 1 << 20;

/// How many bytes of lines with unknown field names are kept for inspection.
pub const UNKNOWN_LINES_BYTES: usize = 8 << 10;

/// Buffers that grew past this for one large event are given back after it.
const BUFFER_KEEP_BYTES: usize = 64 << 10;

const BOM: [u8; 3] = [0xEF, 0xBB, 0xBF];

/// A dispatched event, borrowed from the read or from the decoder.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SseEvent<'a> {
    /// Event type; `"message"` unless the block named one.
    pub event: &'a str,
    /// The block's data lines joined by LF.
    pub data: &'a str,
    /// The last event id in force at dispatch; empty when none was set.
    pub id: &'a str,
    /// The block's valid `retry` field, in milliseconds.
    pub retry: Option<u64>,
}

// Generated text never reaches a log through `{:?}`.
impl fmt::Debug for SseEvent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SseEvent").field("data_bytes", &self.data.len()).finish_non_exhaustive()
    }
}

/// What one line or block of the stream amounted to.
#[derive(Clone, Copy)]
pub enum SseItem<'a> {
    /// A block with data was completed by a blank line.
    Event(SseEvent<'a>),
    /// A line whose field name the standard ignores, cut to [`UNKNOWN_LINES_BYTES`].
    UnknownLine(&'a str),
}

/// Why the decoder gave up. It stays failed: the rest of such a stream has no meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SseError {
    /// The lines of one event came to more than `limit` bytes.
    EventTooLarge {
        /// The configured bound, in bytes.
        limit: usize,
    },
    /// Bytes were fed after [`SseDecoder::finish`].
    Finished,
}

impl fmt::Display for SseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EventTooLarge { limit } => {
                write!(f, "a server-sent event is larger than the limit of {limit} bytes")
            }
            Self::Finished => f.write_str("bytes were fed after the end of the event stream"),
        }
    }
}

impl std::error::Error for SseError {}

/// An incremental `text/event-stream` decoder.
///
/// ```
/// use worker_adapters_core::sse::{SseDecoder, SseItem};
///
/// let mut decoder = SseDecoder::new();
/// let mut seen = Vec::new();
/// for read in [&b"data: hel"[..], b"lo\n", b"\ndata: [DONE]\n\n"] {
///     decoder.feed(read, |item| {
///         if let SseItem::Event(event) = item {
///             seen.push(event.data.to_owned());
///         }
///     })?;
/// }
/// assert_eq!(seen, ["hello", "[DONE]"]);
/// # Ok::<(), worker_adapters_core::sse::SseError>(())
/// ```
pub struct SseDecoder {
    max_event_bytes: usize,
    failed: Option<SseError>,
    /// Bytes of a leading byte order mark seen so far; 3 once the question is settled.
    bom_seen: usize,
    /// The last line ended in CR: a LF that follows belongs to it.
    skip_lf: bool,
    /// The unfinished line, or as much of it as is kept.
    line: Vec<u8>,
    line_kind: LineKind,
    /// Bytes of the field lines of the open block.
    block_bytes: usize,
    data: String,
    has_data: bool,
    event: String,
    /// The value of the block's `id` field; takes effect at the end of the block.
    next_id: String,
    has_next_id: bool,
    id: String,
    block_retry: Option<u64>,
    retry: Option<u64>,
    unknown: Vec<String>,
    unknown_bytes: usize,
    eof_pending: Option<String>,
    eof_partial: Option<String>,
    utf8_replaced: u64,
}

/// What the unfinished line is known to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LineKind {
    /// Too short to tell.
    Undecided,
    Field,
    Unknown,
    Comment,
}

enum Line<'a> {
    Blank,
    Comment,
    Data(&'a [u8]),
    Event(&'a [u8]),
    Id(&'a [u8]),
    Retry(&'a [u8]),
    Unknown,
}

impl Default for SseDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SseDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SseDecoder")
            .field("max_event_bytes", &self.max_event_bytes)
            .field("failed", &self.failed)
            .field("buffered_bytes", &(self.line.len() + self.data.len()))
            .field("utf8_replaced", &self.utf8_replaced)
            .finish_non_exhaustive()
    }
}

impl SseDecoder {
    /// A decoder with the default bound of [`DEFAULT_MAX_EVENT_BYTES`].
    #[must_use]
    pub fn new() -> Self {
        Self::with_max_event_bytes(DEFAULT_MAX_EVENT_BYTES)
    }

    /// A decoder that fails with [`SseError::EventTooLarge`] once the field lines of one event,
    /// their line ends aside, come to more than `limit` bytes. Comments and unknown lines do not
    /// count and are not buffered.
    #[must_use]
    pub fn with_max_event_bytes(limit: usize) -> Self {
        Self {
            max_event_bytes: limit,
            failed: None,
            bom_seen: 0,
            skip_lf: false,
            line: Vec::new(),
            line_kind: LineKind::Undecided,
            block_bytes: 0,
            data: String::new(),
            has_data: false,
            event: String::new(),
            next_id: String::new(),
            has_next_id: false,
            id: String::new(),
            block_retry: None,
            retry: None,
            unknown: Vec::new(),
            unknown_bytes: 0,
            eof_pending: None,
            eof_partial: None,
            utf8_replaced: 0,
        }
    }

    /// Decodes one read, calling `on` for everything it completed, in order.
    ///
    /// # Errors
    ///
    /// [`SseError::EventTooLarge`] once an event passes the bound; what came before it in the read
    /// has been handed out. [`SseError::Finished`] after [`finish`](Self::finish).
    pub fn feed(&mut self, read: &[u8], mut on: impl FnMut(SseItem<'_>)) -> Result<(), SseError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let outcome = self.feed_lines(read, &mut on);
        self.failed = outcome.err();
        outcome
    }

    fn feed_lines<'r>(
        &mut self,
        read: &'r [u8],
        on: &mut impl FnMut(SseItem<'_>),
    ) -> Result<(), SseError> {
        let mut rest = self.strip_bom(read);
        // The first data line of the open block, as long as it can stay where it was read.
        let mut held: Option<&'r str> = None;
        loop {
            if self.skip_lf && !rest.is_empty() {
                self.skip_lf = false;
                if let Some(tail) = rest.strip_prefix(b"\n") {
                    rest = tail;
                }
            }
            let Some((line, end, tail)) =
                memchr2(b'\r', b'\n', rest).and_then(|at| split_around(rest, at))
            else {
                break;
            };
            rest = tail;
            // "Lines must be separated by either a CRLF pair, a single LF, or a single CR": a lone
            // CR ends its line at once, without waiting to see whether a LF follows.
            self.skip_lf = end == b'\r';
            if self.line.is_empty() && self.line_kind == LineKind::Undecided {
                self.take_line(line, Some(&mut held), on)?;
            } else {
                self.extend_line(line)?;
                let mut whole = std::mem::take(&mut self.line);
                match std::mem::replace(&mut self.line_kind, LineKind::Undecided) {
                    LineKind::Comment => {}
                    LineKind::Unknown => self.unknown_line(&whole, on),
                    LineKind::Field | LineKind::Undecided => self.take_line(&whole, None, on)?,
                }
                if whole.capacity() <= BUFFER_KEEP_BYTES {
                    whole.clear();
                    self.line = whole;
                }
            }
        }
        self.extend_line(rest)?;
        if let Some(text) = held {
            self.data.push_str(text);
        }
        Ok(())
    }

    /// Tells the decoder that the input has ended. An unfinished block is not dispatched ("once the
    /// end of the file is reached, any pending data must be discarded"), but stays visible.
    pub fn finish(&mut self) {
        if self.failed.is_some() {
            return;
        }
        self.failed = Some(SseError::Finished);
        if self.bom_seen < BOM.len() {
            self.line.extend(BOM.iter().take(self.bom_seen));
        }
        if self.has_data {
            self.eof_pending = Some(std::mem::take(&mut self.data));
        }
        if !self.line.is_empty() {
            self.eof_partial = Some(String::from_utf8_lossy(&self.line).into_owned());
        }
    }

    /// The id that a reconnecting client would send: that of the last completed block that set one.
    #[must_use]
    pub fn last_event_id(&self) -> &str {
        &self.id
    }

    /// The reconnection time last set by the server, in milliseconds.
    #[must_use]
    pub fn retry(&self) -> Option<u64> {
        self.retry
    }

    /// Lines whose field name the standard ignores, the first [`UNKNOWN_LINES_BYTES`] of them.
    #[must_use]
    pub fn unknown_lines(&self) -> &[String] {
        &self.unknown
    }

    /// After [`finish`](Self::finish): the data of a block that no blank line completed.
    #[must_use]
    pub fn eof_pending(&self) -> Option<&str> {
        self.eof_pending.as_deref()
    }

    /// After [`finish`](Self::finish): a last line that no line end completed. A comment is not
    /// kept; a line with an unknown field name is cut to [`UNKNOWN_LINES_BYTES`].
    #[must_use]
    pub fn eof_partial(&self) -> Option<&str> {
        self.eof_partial.as_deref()
    }

    /// How many malformed UTF-8 sequences of fields became U+FFFD, one per maximal subpart (Unicode
    /// 15, section 3.9, "U+FFFD Substitution of Maximal Subparts").
    #[must_use]
    pub fn utf8_replaced(&self) -> u64 {
        self.utf8_replaced
    }

    /// "The UTF-8 decode algorithm strips one leading UTF-8 Byte Order Mark, if any."
    fn strip_bom<'r>(&mut self, read: &'r [u8]) -> &'r [u8] {
        let mut rest = read;
        while let Some(expected) = BOM.get(self.bom_seen) {
            match rest.split_first() {
                None => return rest,
                Some((byte, tail)) if byte == expected => {
                    self.bom_seen += 1;
                    rest = tail;
                }
                Some(_) => {
                    self.line.extend(BOM.iter().take(self.bom_seen));
                    self.line_kind = line_kind(&self.line);
                    self.bom_seen = BOM.len();
                }
            }
        }
        rest
    }

    /// Adds to the unfinished line what of it needs keeping.
    fn extend_line(&mut self, part: &[u8]) -> Result<(), SseError> {
        if part.is_empty() {
            return Ok(());
        }
        let mut part = part;
        // Whatever the kind, at most a field name and its colon are taken before it is known.
        while self.line_kind == LineKind::Undecided {
            let Some((byte, tail)) = part.split_first() else { return Ok(()) };
            self.line.push(*byte);
            part = tail;
            self.line_kind = line_kind(&self.line);
        }
        match self.line_kind {
            LineKind::Field => {
                if self.block_bytes + self.line.len() + part.len() > self.max_event_bytes {
                    return Err(SseError::EventTooLarge { limit: self.max_event_bytes });
                }
                self.line.extend_from_slice(part);
            }
            LineKind::Unknown => {
                let room = UNKNOWN_LINES_BYTES.saturating_sub(self.line.len());
                self.line.extend(part.iter().take(room));
            }
            LineKind::Comment => self.line.clear(),
            LineKind::Undecided => {}
        }
        Ok(())
    }

    /// Processes a whole line. `held` is given for a line that lies in the current read.
    fn take_line<'l>(
        &mut self,
        line: &'l [u8],
        held: Option<&mut Option<&'l str>>,
        on: &mut impl FnMut(SseItem<'_>),
    ) -> Result<(), SseError> {
        let kind = classify(line);
        if !matches!(kind, Line::Blank | Line::Comment | Line::Unknown) {
            self.block_bytes += line.len();
            if self.block_bytes > self.max_event_bytes {
                return Err(SseError::EventTooLarge { limit: self.max_event_bytes });
            }
        }
        match kind {
            Line::Data(value) => self.take_data(value, held),
            Line::Blank => self.dispatch(held.and_then(Option::take), on),
            Line::Comment => {}
            Line::Event(value) => {
                self.event.clear();
                self.utf8_replaced += push_lossy(&mut self.event, value);
            }
            Line::Id(value) => {
                // "If the field value does not contain U+0000 NULL, then set the last event ID
                // buffer to the field value. Otherwise, ignore the field."
                if !value.contains(&0) {
                    self.has_next_id = true;
                    self.next_id.clear();
                    self.utf8_replaced += push_lossy(&mut self.next_id, value);
                }
            }
            Line::Retry(value) => {
                // "If the field value consists of only ASCII digits, then interpret the field value
                // as an integer in base ten".
                if let Some(millis) = parse_digits(value) {
                    self.retry = Some(millis);
                    self.block_retry = Some(millis);
                }
            }
            Line::Unknown => self.unknown_line(line, on),
        }
        Ok(())
    }

    fn take_data<'l>(&mut self, value: &'l [u8], held: Option<&mut Option<&'l str>>) {
        if let Some(held) = held {
            if !self.has_data
                && let Ok(text) = std::str::from_utf8(value)
            {
                self.has_data = true;
                *held = Some(text);
                return;
            }
            if let Some(first) = held.take() {
                self.data.push_str(first);
            }
        }
        if self.has_data {
            self.data.push('\n');
        }
        self.has_data = true;
        self.utf8_replaced += push_lossy(&mut self.data, value);
    }

    fn dispatch(&mut self, held: Option<&str>, on: &mut impl FnMut(SseItem<'_>)) {
        if std::mem::take(&mut self.has_next_id) {
            std::mem::swap(&mut self.id, &mut self.next_id);
        }
        if self.has_data {
            on(SseItem::Event(SseEvent {
                event: if self.event.is_empty() { "message" } else { &self.event },
                data: held.unwrap_or(&self.data),
                id: &self.id,
                retry: self.block_retry,
            }));
            self.has_data = false;
            if self.data.capacity() > BUFFER_KEEP_BYTES {
                self.data = String::new();
            } else {
                self.data.clear();
            }
        }
        self.event.clear();
        self.block_retry = None;
        self.block_bytes = 0;
    }

    fn unknown_line(&mut self, line: &[u8], on: &mut impl FnMut(SseItem<'_>)) {
        let kept = line.get(..UNKNOWN_LINES_BYTES).unwrap_or(line);
        let text = String::from_utf8_lossy(kept);
        on(SseItem::UnknownLine(&text));
        // An empty text counts, too: there could be any number of them.
        if self.unknown_bytes + kept.len() <= UNKNOWN_LINES_BYTES {
            self.unknown_bytes += kept.len().max(1);
            self.unknown.push(text.into_owned());
        }
    }
}

fn split_around(bytes: &[u8], at: usize) -> Option<(&[u8], u8, &[u8])> {
    let (before, rest) = bytes.split_at_checked(at)?;
    let (byte, after) = rest.split_first()?;
    Some((before, *byte, after))
}

fn classify(line: &[u8]) -> Line<'_> {
    if let Some(value) = line.strip_prefix(b"data:") {
        return Line::Data(strip_space(value));
    }
    if line.is_empty() {
        return Line::Blank;
    }
    let (name, value) = match line.iter().take(MAX_NAME + 1).position(|byte| *byte == b':') {
        Some(0) => return Line::Comment,
        Some(at) => (line.get(..at).unwrap_or(line), line.get(at + 1..).unwrap_or_default()),
        None => (line, &[][..]),
    };
    let value = strip_space(value);
    match name {
        b"data" => Line::Data(value),
        b"event" => Line::Event(value),
        b"id" => Line::Id(value),
        b"retry" => Line::Retry(value),
        _ => Line::Unknown,
    }
}

const FIELD_NAMES: [&[u8]; 4] = [b"data", b"event", b"id", b"retry"];
/// Length of the longest field name.
const MAX_NAME: usize = 5;

/// What a line that begins with `start` is, as far as that can be told.
fn line_kind(start: &[u8]) -> LineKind {
    match start.iter().take(MAX_NAME + 1).position(|byte| *byte == b':') {
        Some(0) => LineKind::Comment,
        Some(at) if start.get(..at).is_some_and(|name| FIELD_NAMES.contains(&name)) => {
            LineKind::Field
        }
        None if FIELD_NAMES.iter().any(|name| name.starts_with(start)) => LineKind::Undecided,
        _ => LineKind::Unknown,
    }
}

/// "If value starts with a U+0020 SPACE character, remove it from value."
fn strip_space(value: &[u8]) -> &[u8] {
    value.strip_prefix(b" ").unwrap_or(value)
}

fn parse_digits(value: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(value).ok()?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// Appends `bytes` as UTF-8, each malformed sequence as U+FFFD; returns how many there were.
fn push_lossy(out: &mut String, bytes: &[u8]) -> u64 {
    let mut replaced = 0;
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        if !chunk.invalid().is_empty() {
            out.push(char::REPLACEMENT_CHARACTER);
            replaced += 1;
        }
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(decoder: &mut SseDecoder, reads: &[&[u8]]) -> Result<Vec<String>, SseError> {
        let mut out = Vec::new();
        for read in reads {
            decoder.feed(read, |item| match item {
                SseItem::Event(event) => out.push(format!("{}|{}", event.event, event.data)),
                SseItem::UnknownLine(line) => out.push(format!("?{line}")),
            })?;
        }
        Ok(out)
    }

    #[test]
    fn a_lone_cr_dispatches_at_once() {
        let mut decoder = SseDecoder::new();
        assert_eq!(events(&mut decoder, &[b"data: a\r\r"]).unwrap(), ["message|a"]);
        assert_eq!(events(&mut decoder, &[b"\n", b"data: b\n\n"]).unwrap(), ["message|b"]);
    }

    #[test]
    fn an_event_of_exactly_the_limit_passes_and_one_byte_more_fails() {
        for cut in 0..12 {
            let line = b"data: 123456";
            let (head, tail) = line.split_at(cut);
            let mut at = SseDecoder::with_max_event_bytes(line.len());
            assert_eq!(events(&mut at, &[head, tail, b"\n\n"]).unwrap(), ["message|123456"]);
            let mut past = SseDecoder::with_max_event_bytes(line.len() - 1);
            let limit = line.len() - 1;
            let error = SseError::EventTooLarge { limit };
            assert_eq!(events(&mut past, &[head, tail, b"\n\n"]), Err(error));
            assert_eq!(events(&mut past, &[b"data: x\n\n"]), Err(error), "stays failed");
        }
    }

    #[test]
    fn a_line_past_the_limit_is_refused_before_it_ends() {
        let error = SseError::EventTooLarge { limit: 11 };
        for reads in [
            &[&b"data: 123456789"[..]][..],
            &[b"data: 1", b"2345", b"6"],
            &[b"id: 1\n", b"data: 12"],
            &[b"id: 1\nda", b"ta: 1", b"2"],
        ] {
            let mut decoder = SseDecoder::with_max_event_bytes(11);
            assert_eq!(events(&mut decoder, reads), Err(error), "{reads:?}");
        }
    }

    #[test]
    fn the_limit_counts_all_field_lines_of_a_block() {
        let mut decoder = SseDecoder::with_max_event_bytes(20);
        let lines: &[u8] = b"event: abcdef\ndata: 12";
        assert!(events(&mut decoder, &[lines]).is_err());
        let mut decoder = SseDecoder::with_max_event_bytes(20);
        assert_eq!(
            events(&mut decoder, &[b"event: abcdef\n\ndata: 12\n\n"]).unwrap(),
            ["message|12"]
        );
    }

    #[test]
    fn comments_and_unknown_lines_are_not_buffered_and_do_not_count() {
        let mut decoder = SseDecoder::with_max_event_bytes(16);
        for start in [&b": "[..], b"junk ", b"dat: "] {
            events(&mut decoder, &[start]).unwrap();
            for _ in 0..100 {
                events(&mut decoder, &[&[b'x'; 1000]]).unwrap();
                assert!(decoder.line.len() <= UNKNOWN_LINES_BYTES);
            }
            events(&mut decoder, &[b"\n"]).unwrap();
        }
        assert_eq!(decoder.unknown_lines().len(), 1, "the first has used up what is kept");
        assert_eq!(events(&mut decoder, &[b"data: x\n\n"]).unwrap(), ["message|x"]);
    }

    #[test]
    fn unknown_lines_kept_are_bounded() {
        let mut decoder = SseDecoder::new();
        for _ in 0..10_000 {
            events(&mut decoder, &[b"junk: line\n"]).unwrap();
        }
        assert_eq!(decoder.unknown_lines().len(), UNKNOWN_LINES_BYTES / b"junk: line".len());
    }

    #[test]
    fn an_event_may_have_a_mebibyte_unless_told_otherwise() {
        for (bytes, outcome) in
            [(1 << 20, Ok(1)), ((1 << 20) + 1, Err(SseError::EventTooLarge { limit: 1_048_576 }))]
        {
            let line = [b"data:".to_vec(), vec![b'x'; bytes - 5]].concat();
            let seen = events(&mut SseDecoder::new(), &[&line, b"\n\n"]);
            assert_eq!(seen.map(|seen| seen.len()), outcome);
        }
    }

    #[test]
    fn malformed_utf8_is_counted_by_its_maximal_subparts() {
        let mut decoder = SseDecoder::new();
        events(&mut decoder, &[b"data: \xff", b"\xe2\x82 \xf0\x9f\n"]).unwrap();
        assert_eq!(decoder.utf8_replaced(), 3);
        events(&mut decoder, &[b"id: \x80\nevent: \x80\ndata: ok\n\n"]).unwrap();
        assert_eq!(decoder.utf8_replaced(), 5);
    }

    #[test]
    fn errors_say_what_happened() {
        let too_large = SseError::EventTooLarge { limit: 7 }.to_string();
        assert!(too_large.contains("larger") && too_large.contains("7 bytes"), "{too_large}");
        assert!(SseError::Finished.to_string().contains("after the end"));
    }

    #[test]
    fn feeding_after_the_end_is_an_error() {
        let mut decoder = SseDecoder::new();
        decoder.finish();
        assert_eq!(events(&mut decoder, &[b"data: x\n\n"]), Err(SseError::Finished));
    }

    #[test]
    fn an_ordinary_event_leaves_its_buffers_to_the_next() {
        let mut decoder = SseDecoder::new();
        let part = [b'x'; 5_000];
        events(&mut decoder, &[b"data: ", &part, b"\n", b"\n"]).unwrap();
        assert!(decoder.line.capacity() >= 5_000 && decoder.data.capacity() >= 5_000);
    }

    #[test]
    fn a_large_event_does_not_keep_its_buffers() {
        let mut decoder = SseDecoder::new();
        let big = vec![b'x'; 500_000];
        let reads: [&[u8]; 4] = [b"data: ", &big, b"\ndata: y", b"\n\n"];
        assert_eq!(events(&mut decoder, &reads).unwrap().len(), 1);
        assert!(decoder.line.capacity() + decoder.data.capacity() <= 2 * BUFFER_KEEP_BYTES);
    }
}
