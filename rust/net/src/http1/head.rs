//! Status line and headers, and what they say of body and connection.

use std::fmt;

use httparse::{EMPTY_HEADER, Header, Response, Status};
use memchr::memchr;

use super::body::Body;
use super::{Fault, Limits};

/// How every head begins that is not of HTTP/0.9, HTTP/2 or another protocol.
const START: &[u8] = b"HTTP/1.";

/// How a record of TLS begins that holds an alert (RFC 8446, section 5.1).
const TLS_ALERT: u8 = 21;

/// The shortest header line, `a:` with its line end.
const SHORTEST_LINE: usize = 4;

/// The length of CR LF.
const LINE_END: usize = 2;

/// The status and the headers of a response.
#[derive(Clone, Copy)]
pub struct Head<'r> {
    /// The status code, three digits from 200 on.
    pub status: u16,
    /// The header lines, each with its line end.
    lines: &'r [u8],
}

impl<'r> Head<'r> {
    /// The head that `bytes` hold, which [`Facts::parse`] has accepted.
    pub(super) fn new(status: u16, bytes: &'r [u8]) -> Self {
        let lines = memchr(b'\n', bytes).and_then(|end| bytes.get(end + 1..)).unwrap_or_default();
        Self { status, lines }
    }

    /// The headers in order, values without the whitespace around them.
    pub fn headers(&self) -> impl Iterator<Item = (&'r [u8], &'r [u8])> + use<'r> {
        self.lines.split(|byte| *byte == b'\n').filter_map(|line| {
            let (name, value) = line.split_at_checked(memchr(b':', line)?)?;
            Some((name, value.get(1..)?.trim_ascii()))
        })
    }

    /// The value of the first header of this name, in any case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'r [u8]> {
        let (_, value) = self.headers().find(|(n, _)| n.eq_ignore_ascii_case(name.as_bytes()))?;
        Some(value)
    }
}

// A header can hold a secret: none reaches a log through `{:?}`.
impl fmt::Debug for Head<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Head")
            .field("status", &self.status)
            .field("headers", &self.headers().count())
            .finish()
    }
}

/// Where a whole head lies.
#[derive(Clone, Copy)]
pub(super) enum Place<'b> {
    Input(&'b [u8]),
    Kept,
}

/// Reads up to the final head of a response. What is split is kept until it is whole.
#[derive(Default)]
pub(super) struct HeadReader {
    kept: Vec<u8>,
    lines: Lines,
    interim_responses: usize,
}

impl HeadReader {
    /// The final head, once it has come; interim ones are skipped.
    pub(super) fn read<'b>(
        &mut self,
        input: &mut &'b [u8],
        limits: &Limits,
    ) -> Result<Option<(Facts, Place<'b>)>, Fault> {
        while let Some(place) = self.next(input, limits)? {
            let facts = Facts::parse(self.bytes(place), limits.headers)?;
            if facts.status >= 200 {
                return Ok(Some((facts, place)));
            }
            self.interim_responses += 1;
            // 101 switches to a protocol that no request of ours asks for.
            if facts.status == 101 || self.interim_responses > limits.interim_responses {
                return Err(Fault::Protocol);
            }
            self.kept.clear();
        }
        Ok(None)
    }

    /// The next head, interim or final, once it is whole.
    fn next<'b>(
        &mut self,
        input: &mut &'b [u8],
        limits: &Limits,
    ) -> Result<Option<Place<'b>>, Fault> {
        if self.kept.is_empty() && input.first() == Some(&TLS_ALERT) {
            return Err(Fault::Tls);
        }
        let room = limits.head_bytes.saturating_sub(self.kept.len());
        let (window, _) = input.split_at(room.min(input.len()));
        let Some(end) = self.lines.end_of_head(window)? else {
            self.kept.extend_from_slice(window);
            *input = &[];
            if self.kept.len() >= limits.head_bytes {
                return Err(Fault::Protocol);
            }
            self.check(limits.headers)?;
            return Ok(None);
        };
        self.lines = Lines::default();
        let (piece, rest) = input.split_at(end);
        *input = rest;
        if self.kept.is_empty() {
            return Ok(Some(Place::Input(piece)));
        }
        self.kept.extend_from_slice(piece);
        Ok(Some(Place::Kept))
    }

    /// Looks for faults in a head whose end has not come: they need not wait for it.
    fn check(&mut self, max_headers: usize) -> Result<(), Fault> {
        if self.kept.iter().zip(START).any(|(byte, expected)| byte != expected) {
            return Err(Fault::Protocol);
        }
        // Every time is one more line, and `max_headers` bounds the lines.
        if std::mem::take(&mut self.lines.unchecked) {
            let (finished, _) = self.kept.split_at(self.kept.len() - self.lines.unfinished);
            let mut headers = room(finished, max_headers);
            Response::new(&mut headers).parse(finished).map_err(|_| Fault::Protocol)?;
        }
        Ok(())
    }

    /// The bytes at a place that [`Self::read`] gave last.
    pub(super) fn bytes<'r, 'b: 'r>(&'r self, place: Place<'b>) -> &'r [u8] {
        match place {
            Place::Input(bytes) => bytes,
            Place::Kept => &self.kept,
        }
    }

    pub(super) fn is_partial(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Gives back the memory of a head that the caller is done with.
    pub(super) fn forget(&mut self) {
        self.kept = Vec::new();
    }
}

/// Finds the blank line that ends a head, looking at each byte once.
#[derive(Default)]
struct Lines {
    /// Bytes of the line that is not finished yet.
    unfinished: usize,
    last: u8,
    /// Whether a line was finished that [`HeadReader::check`] has not seen.
    unchecked: bool,
}

impl Lines {
    /// How many of the next bytes belong to the head, if it ends among them.
    fn end_of_head(&mut self, bytes: &[u8]) -> Result<Option<usize>, Fault> {
        let mut rest = bytes;
        while let Some(lf) = memchr(b'\n', rest) {
            let (line, after) = rest.split_at(lf + 1);
            let before = match line {
                [.., before, _] => *before,
                _ => self.last,
            };
            // RFC 9112, section 2.2, would let a bare LF end a line.
            if before != b'\r' {
                return Err(Fault::Protocol);
            }
            if self.unfinished + line.len() == LINE_END {
                return Ok(Some(bytes.len() - after.len()));
            }
            *self = Self { unchecked: true, ..Self::default() };
            rest = after;
        }
        self.unfinished += rest.len();
        self.last = rest.last().copied().unwrap_or(self.last);
        Ok(None)
    }
}

/// As many headers as fit the bytes or the limit.
fn room(bytes: &[u8], max_headers: usize) -> Vec<Header<'_>> {
    vec![EMPTY_HEADER; max_headers.min(bytes.len() / SHORTEST_LINE)]
}

/// What a head says beyond its headers' values.
pub(super) struct Facts {
    pub(super) status: u16,
    /// Whether the peer keeps the connection after this response (RFC 9112, section 9.3).
    pub(super) persistent: bool,
    declared: Option<Body>,
}

impl Facts {
    /// Parses a whole head.
    ///
    /// httparse refuses folded lines, whitespace before a colon, bare CR and control characters.
    pub(super) fn parse(head: &[u8], max_headers: usize) -> Result<Self, Fault> {
        let mut headers = room(head, max_headers);
        let mut response = Response::new(&mut headers);
        let whole = response.parse(head) == Ok(Status::Complete(head.len()));
        let (Some(version), Some(status)) = (response.version, response.code) else {
            return Err(Fault::Protocol);
        };
        if !whole || status < 100 {
            return Err(Fault::Protocol);
        }
        let mut said = Said::default();
        for header in response.headers.iter() {
            said.add(header)?;
        }
        let old = version == 0;
        let declared = said.body(old)?;
        // A peer that declares a body where none can be may well send it.
        let misleading = status == 204 && declared.is_some_and(|body| body != Body::EMPTY);
        let persistent = !said.close && (!old || said.keep_alive) && !misleading;
        Ok(Self { status, persistent, declared })
    }

    /// The body that follows (RFC 9112, section 6.3).
    pub(super) fn body(&self, head_request: bool) -> Body {
        if head_request || matches!(self.status, 204 | 304) {
            Body::EMPTY
        } else {
            self.declared.unwrap_or(Body::UntilClose)
        }
    }
}

/// The headers that concern the connection rather than the response.
#[derive(Default)]
struct Said {
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
}

impl Said {
    fn add(&mut self, header: &Header<'_>) -> Result<(), Fault> {
        let is = |name| header.name.eq_ignore_ascii_case(name);
        if is("content-length") {
            // RFC 9112, section 6.3, rule 5: repeated values are valid if all are the same.
            for value in list(header.value) {
                let length = length(value).ok_or(Fault::Framing)?;
                if *self.length.get_or_insert(length) != length {
                    return Err(Fault::Framing);
                }
            }
        } else if is("transfer-encoding") {
            if self.chunked || !header.value.eq_ignore_ascii_case(b"chunked") {
                return Err(Fault::Framing);
            }
            self.chunked = true;
        } else if is("connection") {
            for option in list(header.value) {
                self.close |= option.eq_ignore_ascii_case(b"close");
                self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            }
        }
        Ok(())
    }

    /// The body as declared; `old` is HTTP/1.0, which knows no chunks (RFC 9112, section 6.1).
    fn body(&self, old: bool) -> Result<Option<Body>, Fault> {
        match (self.chunked, self.length) {
            (true, None) if !old => Ok(Some(Body::CHUNKED)),
            (true, _) => Err(Fault::Framing),
            (false, length) => Ok(length.map(Body::Length)),
        }
    }
}

/// The members of a comma-separated list.
fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// Digits alone: no sign, no other base, no more than 64 bits.
fn length(value: &[u8]) -> Option<u64> {
    let digits = str::from_utf8(value).ok()?;
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    if plain { digits.parse().ok() } else { None }
}
