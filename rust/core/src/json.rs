//! A validating reader that takes a few fields out of a JSON document and skips the rest.
//!
//! Engine frames are small documents of which a decoder needs two or three fields, once per token.
//! The reader walks the text once, borrows strings where they stand, checks every byte of what it
//! skips against RFC 8259, and neither recurses nor allocates while doing so. A document that is
//! cut off, glued to another or malformed anywhere is an error wherever the fault lies, so a caller
//! that acts only after [`Reader::end`] never acts on half a frame.
//!
//! Choices where RFC 8259 leaves room: a lone surrogate escape reads as U+FFFD; nesting deeper than
//! [`MAX_DEPTH`] is an error; numbers of any length are valid, and are converted only when read.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

/// How deeply arrays and objects may nest.
pub const MAX_DEPTH: u32 = 128;

/// What is wrong with a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JsonErrorKind {
    /// It is not RFC 8259 JSON.
    Syntax,
    /// It is not UTF-8.
    Utf8,
    /// A field that is read has a value of another type.
    Type,
    /// It nests deeper than [`MAX_DEPTH`].
    Depth,
}

/// A fault in a document, with the byte offset at which it was noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JsonError {
    /// What is wrong.
    pub kind: JsonErrorKind,
    /// Where, in bytes from the start of the document.
    pub offset: usize,
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            JsonErrorKind::Syntax => "malformed JSON",
            JsonErrorKind::Utf8 => "JSON that is not UTF-8",
            JsonErrorKind::Type => "JSON with a field of an unexpected type",
            JsonErrorKind::Depth => "JSON nested too deeply",
        };
        write!(f, "{what} at byte {}", self.offset)
    }
}

impl std::error::Error for JsonError {}

type Result<T> = std::result::Result<T, JsonError>;

/// A string as it stands in the document, checked but not yet unescaped.
#[derive(Clone, Copy)]
pub struct RawStr<'a> {
    raw: &'a str,
    escaped: bool,
}

impl<'a> RawStr<'a> {
    /// The string's value; borrowed unless it holds escapes.
    #[must_use]
    pub fn value(self) -> Cow<'a, str> {
        if self.escaped {
            let mut out = String::with_capacity(self.raw.len());
            unescape(self.raw, &mut out);
            Cow::Owned(out)
        } else {
            Cow::Borrowed(self.raw)
        }
    }

    /// The string's value, using `scratch` where it holds escapes.
    pub fn value_in<'s>(self, scratch: &'s mut String) -> &'s str
    where
        'a: 's,
    {
        if self.escaped {
            scratch.clear();
            unescape(self.raw, scratch);
            scratch
        } else {
            self.raw
        }
    }

    /// The text between the quotes, as sent.
    #[must_use]
    pub fn raw(self) -> &'a str {
        self.raw
    }

    /// Whether the string's value is empty.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.raw.is_empty()
    }
}

// Generated text never reaches a log through `{:?}`.
impl fmt::Debug for RawStr<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawStr").field("bytes", &self.raw.len()).finish_non_exhaustive()
    }
}

/// The type of the value a [`Reader`] stands before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `null`
    Null,
    /// `true` or `false`
    Bool,
    /// A number.
    Number,
    /// A string.
    String,
    /// An array.
    Array,
    /// An object.
    Object,
}

/// A cursor over one document.
///
/// ```
/// use worker_adapters_core::json::Reader;
///
/// let mut text = None;
/// let mut reader = Reader::new(r#"{"index":0,"content":"h\u00e9","tokens":[1,2]}"#);
/// reader.object(|key, reader| match key {
///     "content" => {
///         text = reader.string_or_null()?;
///         Ok(())
///     }
///     _ => reader.skip(),
/// })?;
/// reader.end()?;
/// assert_eq!(text.unwrap().value(), "hé");
/// # Ok::<(), worker_adapters_core::json::JsonError>(())
/// ```
pub struct Reader<'a> {
    text: &'a str,
    pos: usize,
    depth: u32,
}

impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("pos", &self.pos).finish_non_exhaustive()
    }
}

impl<'a> Reader<'a> {
    /// A reader at the start of `text`.
    #[must_use]
    pub fn new(text: &'a str) -> Self {
        Self { text, pos: 0, depth: 0 }
    }

    /// A reader at the start of `bytes`.
    ///
    /// # Errors
    ///
    /// [`JsonErrorKind::Utf8`] when the bytes are not UTF-8.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<Self> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Self::new(text)),
            Err(error) => Err(JsonError { kind: JsonErrorKind::Utf8, offset: error.valid_up_to() }),
        }
    }

    /// A reader in the midst of a document.
    pub(crate) fn at(text: &'a str, pos: usize) -> Self {
        Self { text, pos, depth: 0 }
    }

    /// The byte offset of the cursor.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.pos
    }

    /// Where the inside of `text`, the string just read, stands.
    pub(crate) fn string_span(&self, text: RawStr<'_>) -> Range<usize> {
        let end = self.pos.saturating_sub(1);
        end.saturating_sub(text.raw.len())..end
    }

    /// Where the number just read stands.
    pub(crate) fn number_span(&self) -> Range<usize> {
        let before = self.text.as_bytes().get(..self.pos).unwrap_or_default();
        let is_of_number =
            |byte: &&u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
        self.pos - before.iter().rev().take_while(is_of_number).count()..self.pos
    }

    /// An error of `kind` at the cursor.
    #[must_use]
    pub fn error(&self, kind: JsonErrorKind) -> JsonError {
        JsonError { kind, offset: self.pos }
    }

    /// The type of the next value.
    ///
    /// # Errors
    ///
    /// [`JsonErrorKind::Syntax`] where no value begins.
    pub fn peek(&mut self) -> Result<Kind> {
        match self.peek_byte()? {
            b'"' => Ok(Kind::String),
            b'{' => Ok(Kind::Object),
            b'[' => Ok(Kind::Array),
            b'n' => Ok(Kind::Null),
            b't' | b'f' => Ok(Kind::Bool),
            b'-' | b'0'..=b'9' => Ok(Kind::Number),
            _ => Err(self.error(JsonErrorKind::Syntax)),
        }
    }

    /// Reads an object, calling `field` with each key, unescaped, and the reader before its value.
    /// `field` must consume exactly that value.
    ///
    /// # Errors
    ///
    /// What `field` returns; [`JsonErrorKind::Type`] for a value that is no object; syntax and
    /// depth errors.
    pub fn object(&mut self, mut field: impl FnMut(&str, &mut Self) -> Result<()>) -> Result<()> {
        if self.peek()? != Kind::Object {
            return Err(self.error(JsonErrorKind::Type));
        }
        self.pos += 1;
        self.enter()?;
        if self.peek_byte()? == b'}' {
            self.pos += 1;
        } else {
            loop {
                let key = self.key()?;
                if key.escaped {
                    field(&key.value(), self)?;
                } else {
                    field(key.raw, self)?;
                }
                match self.next_byte()? {
                    b',' => {}
                    b'}' => break,
                    _ => return Err(self.unexpected()),
                }
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Reads an array, calling `item` with each position and the reader before its value. `item`
    /// must consume exactly that value.
    ///
    /// # Errors
    ///
    /// What `item` returns; [`JsonErrorKind::Type`] for a value that is no array; syntax and depth
    /// errors.
    pub fn array(&mut self, mut item: impl FnMut(usize, &mut Self) -> Result<()>) -> Result<()> {
        if self.peek()? != Kind::Array {
            return Err(self.error(JsonErrorKind::Type));
        }
        self.pos += 1;
        self.enter()?;
        if self.peek_byte()? == b']' {
            self.pos += 1;
        } else {
            for at in 0.. {
                item(at, self)?;
                match self.next_byte()? {
                    b',' => {}
                    b']' => break,
                    _ => return Err(self.unexpected()),
                }
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Reads a string.
    ///
    /// # Errors
    ///
    /// [`JsonErrorKind::Type`] for another type; [`JsonErrorKind::Syntax`].
    pub fn string(&mut self) -> Result<RawStr<'a>> {
        if self.peek()? != Kind::String {
            return Err(self.error(JsonErrorKind::Type));
        }
        self.pos += 1;
        self.string_body()
    }

    /// Reads a string, or `null` as None.
    ///
    /// # Errors
    ///
    /// As [`string`](Self::string).
    pub fn string_or_null(&mut self) -> Result<Option<RawStr<'a>>> {
        Ok(if self.take_null()? { None } else { Some(self.string()?) })
    }

    /// Reads a whole number from 0 to 2⁶⁴−1, or `null` as None.
    ///
    /// # Errors
    ///
    /// [`JsonErrorKind::Type`] for any other value; [`JsonErrorKind::Syntax`].
    pub fn u64_or_null(&mut self) -> Result<Option<u64>> {
        if self.take_null()? {
            return Ok(None);
        }
        let start = self.pos;
        let digits = self.number()?;
        match digits.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(JsonError { kind: JsonErrorKind::Type, offset: start }),
        }
    }

    /// Reads `true` or `false`.
    ///
    /// # Errors
    ///
    /// [`JsonErrorKind::Type`] for another type; [`JsonErrorKind::Syntax`].
    pub fn bool(&mut self) -> Result<bool> {
        match self.peek()? {
            Kind::Bool if self.rest().starts_with(b"true") => {
                self.pos += 4;
                Ok(true)
            }
            Kind::Bool => {
                self.literal(b"false")?;
                Ok(false)
            }
            _ => Err(self.error(JsonErrorKind::Type)),
        }
    }

    /// Reads a number; its text as sent.
    ///
    /// # Errors
    ///
    /// [`JsonErrorKind::Type`] for another type; [`JsonErrorKind::Syntax`].
    pub fn number(&mut self) -> Result<&'a str> {
        if self.peek()? != Kind::Number {
            return Err(self.error(JsonErrorKind::Type));
        }
        let start = self.pos;
        self.skip_number()?;
        self.slice(start, self.pos)
    }

    /// Reads a number as the nearest `f64`, or `null` as None.
    ///
    /// # Errors
    ///
    /// [`JsonErrorKind::Type`] for any other value; [`JsonErrorKind::Syntax`].
    pub fn f64_or_null(&mut self) -> Result<Option<f64>> {
        if self.take_null()? {
            return Ok(None);
        }
        let start = self.pos;
        let number = self.number()?;
        match number.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(JsonError { kind: JsonErrorKind::Type, offset: start }),
        }
    }

    /// Consumes `null` if it is next.
    ///
    /// # Errors
    ///
    /// [`JsonErrorKind::Syntax`].
    pub fn take_null(&mut self) -> Result<bool> {
        if self.peek()? == Kind::Null {
            self.literal(b"null")?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Skips one value and returns its text as sent.
    ///
    /// # Errors
    ///
    /// Syntax and depth errors.
    pub fn raw_value(&mut self) -> Result<&'a str> {
        self.peek()?;
        let start = self.pos;
        self.skip()?;
        self.slice(start, self.pos)
    }

    /// Skips one value, checking all of it.
    ///
    /// # Errors
    ///
    /// Syntax and depth errors.
    pub fn skip(&mut self) -> Result<()> {
        match self.peek_byte()? {
            b'"' => {
                self.pos += 1;
                self.string_body().map(|_| ())
            }
            b'{' | b'[' => self.skip_container(),
            _ => self.skip_scalar(),
        }
    }

    /// Skips one value, checking all of it; whether it was anything but `null`.
    ///
    /// # Errors
    ///
    /// Syntax and depth errors.
    pub fn skip_some(&mut self) -> Result<bool> {
        let is_some = self.peek()? != Kind::Null;
        self.skip()?;
        Ok(is_some)
    }

    /// Checks that nothing but white space follows.
    ///
    /// # Errors
    ///
    /// [`JsonErrorKind::Syntax`] when something does.
    pub fn end(&mut self) -> Result<()> {
        self.skip_space();
        if self.pos < self.text.len() {
            return Err(self.error(JsonErrorKind::Syntax));
        }
        Ok(())
    }

    fn skip_scalar(&mut self) -> Result<()> {
        match self.peek()? {
            Kind::String => self.string().map(|_| ()),
            Kind::Number => self.skip_number(),
            Kind::Null => self.literal(b"null"),
            Kind::Bool => self.bool().map(|_| ()),
            Kind::Array | Kind::Object => Err(self.error(JsonErrorKind::Syntax)),
        }
    }

    /// Skips an array or object without recursion: one bit per level says which of the two it is.
    fn skip_container(&mut self) -> Result<()> {
        let base = self.depth;
        let mut objects: u128 = 0;
        loop {
            // At the start of a value.
            match self.peek_byte()? {
                open @ (b'{' | b'[') => {
                    self.pos += 1;
                    self.enter()?;
                    objects = objects << 1 | u128::from(open == b'{');
                    let close = if open == b'{' { b'}' } else { b']' };
                    if self.peek_byte()? == close {
                        self.pos += 1;
                        self.depth -= 1;
                        objects >>= 1;
                    } else {
                        if open == b'{' {
                            self.key()?;
                        }
                        continue;
                    }
                }
                b'"' => {
                    self.pos += 1;
                    self.string_body()?;
                }
                _ => self.skip_scalar()?,
            }
            // After a value: close levels until another value follows.
            loop {
                if self.depth == base {
                    return Ok(());
                }
                let in_object = objects & 1 == 1;
                match (self.next_byte()?, in_object) {
                    (b',', true) => {
                        self.key()?;
                        break;
                    }
                    (b',', false) => break,
                    (b'}', true) | (b']', false) => {
                        self.depth -= 1;
                        objects >>= 1;
                    }
                    _ => return Err(self.unexpected()),
                }
            }
        }
    }

    fn enter(&mut self) -> Result<()> {
        if self.depth >= MAX_DEPTH {
            return Err(self.error(JsonErrorKind::Depth));
        }
        self.depth += 1;
        Ok(())
    }

    /// Reads a key and the colon after it.
    fn key(&mut self) -> Result<RawStr<'a>> {
        if self.next_byte()? != b'"' {
            return Err(self.unexpected());
        }
        let key = self.string_body()?;
        if self.next_byte()? != b':' {
            return Err(self.unexpected());
        }
        Ok(key)
    }

    /// Reads a string from behind its opening quote to behind its closing one.
    pub(crate) fn string_body(&mut self) -> Result<RawStr<'a>> {
        let start = self.pos;
        let mut escaped = false;
        loop {
            self.pos += plain_prefix(self.rest());
            match self.rest().first() {
                Some(b'"') => {
                    let raw = self.slice(start, self.pos)?;
                    self.pos += 1;
                    return Ok(RawStr { raw, escaped });
                }
                Some(b'\\') => {
                    escaped = true;
                    self.pos += 1;
                    self.escape()?;
                }
                _ => return Err(self.error(JsonErrorKind::Syntax)),
            }
        }
    }

    /// Checks an escape from behind its backslash.
    fn escape(&mut self) -> Result<()> {
        match self.rest() {
            [b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => self.pos += 1,
            [b'u', a, b, c, d, ..] if [a, b, c, d].iter().all(|x| x.is_ascii_hexdigit()) => {
                self.pos += 5;
            }
            _ => return Err(self.error(JsonErrorKind::Syntax)),
        }
        Ok(())
    }

    /// RFC 8259, section 6: `[ minus ] int [ frac ] [ exp ]`.
    fn skip_number(&mut self) -> Result<()> {
        if self.rest().first() == Some(&b'-') {
            self.pos += 1;
        }
        if self.rest().first() == Some(&b'0') {
            self.pos += 1;
        } else {
            self.digits()?;
        }
        if self.rest().first() == Some(&b'.') {
            self.pos += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.rest().first() {
            self.pos += 1;
            if let Some(b'+' | b'-') = self.rest().first() {
                self.pos += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<()> {
        let count = self.rest().iter().take_while(|byte| byte.is_ascii_digit()).count();
        if count == 0 {
            return Err(self.error(JsonErrorKind::Syntax));
        }
        self.pos += count;
        Ok(())
    }

    fn literal(&mut self, word: &[u8]) -> Result<()> {
        if !self.rest().starts_with(word) {
            return Err(self.error(JsonErrorKind::Syntax));
        }
        self.pos += word.len();
        Ok(())
    }

    fn rest(&self) -> &'a [u8] {
        self.text.as_bytes().get(self.pos..).unwrap_or_default()
    }

    fn slice(&self, start: usize, end: usize) -> Result<&'a str> {
        self.text.get(start..end).ok_or_else(|| self.error(JsonErrorKind::Syntax))
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.rest().first() {
            self.pos += 1;
        }
    }

    /// The next byte that is no white space, left in place.
    fn peek_byte(&mut self) -> Result<u8> {
        match self.rest().first() {
            Some(byte) if *byte > b' ' => Ok(*byte),
            _ => {
                self.skip_space();
                self.rest().first().copied().ok_or_else(|| self.error(JsonErrorKind::Syntax))
            }
        }
    }

    /// The next byte that is no white space.
    fn next_byte(&mut self) -> Result<u8> {
        let byte = self.peek_byte()?;
        self.pos += 1;
        Ok(byte)
    }

    /// The error for the byte just taken.
    fn unexpected(&self) -> JsonError {
        JsonError { kind: JsonErrorKind::Syntax, offset: self.pos.saturating_sub(1) }
    }
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// How many bytes at the start of `bytes` are neither `"` nor `\` nor a control character, eight at
/// a time.
pub(crate) fn plain_prefix(bytes: &[u8]) -> usize {
    let mut done = 0;
    let (words, tail) = bytes.as_chunks::<8>();
    for word in words {
        let word = u64::from_le_bytes(*word);
        // The lowest bit set marks the first match; a borrow can only disturb bits above it.
        let control = word.wrapping_sub(ONES * 0x20) & !word;
        let quote = word ^ (ONES * u64::from(b'"'));
        let quote = quote.wrapping_sub(ONES) & !quote;
        let backslash = word ^ (ONES * u64::from(b'\\'));
        let backslash = backslash.wrapping_sub(ONES) & !backslash;
        let hit = (control | quote | backslash) & HIGHS;
        if hit != 0 {
            return done + hit.trailing_zeros() as usize / 8;
        }
        done += 8;
    }
    let special = |byte: &u8| *byte < 0x20 || *byte == b'"' || *byte == b'\\';
    done + tail.iter().position(special).unwrap_or(tail.len())
}

/// Appends the value of a checked string body.
pub(crate) fn unescape(raw: &str, out: &mut String) {
    let mut rest = raw;
    while let Some((plain, after)) = rest.split_once('\\') {
        out.push_str(plain);
        let mut chars = after.chars();
        match chars.next() {
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('r') => out.push('\r'),
            Some('b') => out.push('\u{8}'),
            Some('f') => out.push('\u{C}'),
            Some('u') => {
                rest = unescape_unicode(chars.as_str(), out);
                continue;
            }
            Some(other) => out.push(other),
            None => {}
        }
        rest = chars.as_str();
    }
    out.push_str(rest);
}

/// Appends what `\u` means, given the text behind it; returns what is left. A surrogate pair is one
/// character, a lone surrogate U+FFFD.
fn unescape_unicode<'a>(text: &'a str, out: &mut String) -> &'a str {
    let Some((unit, rest)) = hex4(text) else { return text };
    if let Some(character) = char::from_u32(unit) {
        out.push(character);
        return rest;
    }
    if unit < 0xDC00
        && let Some((low, after)) = rest.strip_prefix("\\u").and_then(hex4)
        && (0xDC00..0xE000).contains(&low)
        && let Some(pair) = char::from_u32(0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00))
    {
        out.push(pair);
        return after;
    }
    out.push(char::REPLACEMENT_CHARACTER);
    rest
}

fn hex4(text: &str) -> Option<(u32, &str)> {
    let (digits, rest) = text.split_at_checked(4)?;
    Some((u32::from_str_radix(digits, 16).ok()?, rest))
}

/// Appends `text` as a JSON string, quotes included (RFC 8259, section 7).
pub(crate) fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    loop {
        let plain = plain_prefix(rest);
        let (before, after) = rest.split_at_checked(plain).unwrap_or((rest, &[]));
        out.extend_from_slice(before);
        let Some((byte, tail)) = after.split_first() else { break };
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => {
                out.extend_from_slice(b"\\u00");
                for digit in [control >> 4, control & 15] {
                    out.push(if digit < 10 { b'0' + digit } else { b'a' + digit - 10 });
                }
            }
        }
        rest = tail;
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<()> {
        let mut reader = Reader::new(text);
        reader.skip()?;
        reader.end()
    }

    fn kind(text: &str) -> Option<JsonErrorKind> {
        check(text).err().map(|error| error.kind)
    }

    #[test]
    fn nesting_is_bounded_in_skipped_and_in_read_values() {
        let nest = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(kind(&nest(128)), None);
        assert_eq!(kind(&nest(129)), Some(JsonErrorKind::Depth));
        let mixed = |depth: usize| format!("{}1{}", r#"{"a":["#.repeat(depth), "]}".repeat(depth));
        assert_eq!(kind(&mixed(64)), None);
        assert_eq!(kind(&mixed(65)), Some(JsonErrorKind::Depth));
        let inner = nest(127);
        let mut reader = Reader::new(&inner);
        assert!(reader.array(|_, reader| reader.skip()).is_ok());
        let outer = format!("[{}]", nest(128));
        let mut reader = Reader::new(&outer);
        let error = reader.array(|_, reader| reader.skip()).unwrap_err();
        assert_eq!(error.kind, JsonErrorKind::Depth);
    }

    #[test]
    fn siblings_do_not_add_up_to_depth() {
        let text = format!("[{}[]]", "[],{},".repeat(10_000));
        assert_eq!(kind(&text), None);
        let mut reader = Reader::new(&text);
        let read = reader.array(|_, reader| match reader.peek()? {
            Kind::Array => reader.array(|_, _| Ok(())),
            _ => reader.object(|_, _| Ok(())),
        });
        assert_eq!(read, Ok(()));
    }

    #[test]
    fn a_fault_is_told_with_its_place() {
        let words = |text| check(text).unwrap_err().to_string();
        assert_eq!(words("[1,]"), "malformed JSON at byte 3");
        assert_eq!(words(&"[".repeat(129)), "JSON nested too deeply at byte 129");
        let error = Reader::from_bytes(b"[\"\xff\"]").unwrap_err();
        assert_eq!(error.to_string(), "JSON that is not UTF-8 at byte 2");
        let error = Reader::new("\"1\"").u64_or_null().unwrap_err();
        assert_eq!(error.to_string(), "JSON with a field of an unexpected type at byte 0");
    }

    #[test]
    fn a_number_knows_where_it_stood() {
        let mut reader = Reader::new("[12, -3.5e+7]");
        let mut spans = Vec::new();
        let read = reader.array(|_, reader| {
            reader.skip()?;
            spans.push(reader.number_span());
            Ok(())
        });
        assert_eq!((read, spans), (Ok(()), vec![1..3, 5..12]));
    }

    #[test]
    fn offsets_point_at_the_fault() {
        assert_eq!(check(r#"{"a":1,}"#).unwrap_err().offset, 7);
        assert_eq!(check(r#"{"a":tru}"#).unwrap_err().offset, 5);
        assert_eq!(check("[1] x").unwrap_err().offset, 4);
        assert_eq!(Reader::from_bytes(b"[\"\xff\"]").unwrap_err().offset, 2);
    }

    #[test]
    fn numbers_are_converted_only_when_read() {
        let long = format!("[{}, -1e999, 0.5]", "9".repeat(400));
        assert_eq!(kind(&long), None);
        let read = |text: &str| Reader::new(text).u64_or_null();
        assert_eq!(read("18446744073709551615").unwrap(), Some(u64::MAX));
        assert_eq!(read("null").unwrap(), None);
        for bad in ["18446744073709551616", "-1", "1.0", "1e3", "\"1\"", "true"] {
            assert_eq!(read(bad).unwrap_err().kind, JsonErrorKind::Type, "{bad}");
        }
    }

    #[test]
    fn every_character_survives_writing_and_reading() {
        let mut text: String = (0..0x300).filter_map(char::from_u32).collect();
        text.push_str("\u{2028}\u{FFFD}\u{1F642}中 end");
        let mut json = Vec::new();
        write_string(&text, &mut json);
        let json = String::from_utf8(json).unwrap();
        assert!(!json.contains('\n'));
        let mut reader = Reader::new(&json);
        assert_eq!(reader.string().unwrap().value(), text);
        reader.end().unwrap();
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }

    #[test]
    fn plain_prefix_agrees_with_a_plain_loop_at_every_offset() {
        let slow = |bytes: &[u8]| {
            bytes
                .iter()
                .position(|byte| *byte < 0x20 || *byte == b'"' || *byte == b'\\')
                .unwrap_or(bytes.len())
        };
        for special in 0..=255_u8 {
            for at in 0..20 {
                let mut bytes = [0xC3_u8; 20];
                bytes[at] = special;
                assert_eq!(plain_prefix(&bytes), slow(&bytes), "{special} at {at}");
            }
        }
    }
}
