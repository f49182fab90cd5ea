//! A text with its escapes undone, and where each byte of it came from.
//!
//! A URL inside a URL, a document inside a document: `%3Ftoken%3D…`, `\"api_key\":`, `\u0073k-…`.
//! Undoing ASCII escapes alone lets the same scanners read them.

use std::ops::Range;

/// How many layers of escapes are undone.
pub(super) const LAYERS: usize = 3;

/// A text, one layer of escapes fewer than its source.
pub(super) struct View {
    pub(super) text: Vec<u8>,
    /// Where in the source each byte begins, and, at the end, where the last one ends.
    starts: Vec<usize>,
}

impl View {
    /// `text` with its escapes undone; none where there are none.
    pub(super) fn of(text: &[u8]) -> Option<Self> {
        let mut next = memchr::memchr2(b'%', b'\\', text)?;
        let mut view = Self { text: Vec::new(), starts: Vec::new() };
        let mut copied = 0;
        loop {
            match unescape(text.get(next..).unwrap_or_default()) {
                Some((byte, length)) => {
                    view.copy(text, copied..next);
                    view.text.push(byte);
                    view.starts.push(next);
                    next += length;
                    copied = next;
                }
                None => next += 1,
            }
            match memchr::memchr2(b'%', b'\\', text.get(next..).unwrap_or_default()) {
                Some(ahead) => next += ahead,
                None => break,
            }
        }
        if copied == 0 {
            return None;
        }
        view.copy(text, copied..text.len());
        view.starts.push(text.len());
        Some(view)
    }

    fn copy(&mut self, text: &[u8], range: Range<usize>) {
        self.text.extend_from_slice(text.get(range.clone()).unwrap_or_default());
        self.starts.extend(range);
    }

    /// Where the bytes at `range` of this text stand in its source.
    pub(super) fn source(&self, range: Range<usize>) -> Range<usize> {
        let start = |at| self.starts.get(at).or(self.starts.last()).copied().unwrap_or(0);
        start(range.start)..start(range.end)
    }
}

/// The ASCII character that an escape at the start of `text` stands for, and its length.
fn unescape(text: &[u8]) -> Option<(u8, usize)> {
    let hex = |range: Range<usize>| {
        text.get(range)?.iter().try_fold(0u32, |value, byte| {
            char::from(*byte).to_digit(16).map(|digit| value << 4 | digit)
        })
    };
    let ascii = |value: u32| u8::try_from(value).ok().filter(u8::is_ascii);
    let (byte, length) = match (text.first()?, text.get(1)?) {
        (b'%', _) => (ascii(hex(1..3)?)?, 3),
        (b'\\', b'u') => (ascii(hex(2..6)?)?, 6),
        (b'\\', b'x') => (ascii(hex(2..4)?)?, 4),
        (b'\\', b'n') => (b'\n', 2),
        (b'\\', b'r') => (b'\r', 2),
        (b'\\', b't') => (b'\t', 2),
        (b'\\', same @ (b'\\' | b'/' | b'"' | b'\'')) => (*same, 2),
        _ => return None,
    };
    Some((byte, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_undone_and_found_again() {
        let source = br"caf\u00e9 %3Fa%3d\u0062\/\\n%zz%";
        let view = View::of(source).unwrap();
        assert_eq!(view.text, br"caf\u00e9 ?a=b/\n%zz%");
        let at = view.text.windows(4).position(|part| part == b"?a=b").unwrap();
        assert_eq!(source.get(view.source(at..at + 4)).unwrap(), br"%3Fa%3d\u0062");
        let all = 0..view.text.len();
        assert_eq!(view.source(all), 0..source.len());
        assert_eq!(View::of(&view.text).unwrap().text, b"caf\\u00e9 ?a=b/\n%zz%");
    }

    #[test]
    fn every_escape_of_an_ascii_character_is_undone() {
        let view = View::of(br#"\u003d\x3D%3d \t\r\n \/\\\"\'"#).unwrap();
        assert_eq!(view.text, b"=== \t\r\n /\\\"'");
    }

    #[test]
    fn a_text_without_escapes_has_no_view() {
        for text in ["", "plain", "100%", "%", "\\", "C:\\dir", "\\u00", "%fe", "\\ud83d"] {
            assert!(View::of(text.as_bytes()).is_none(), "{text}");
        }
    }
}
