//! A text with its escapes undone, and where each byte of it came from.
//!
//! A URL inside a URL, a document inside a document: `%3Ftoken%3D…`, `\"api_key\":`, `\u0073k-…`.
//! Undoing the escapes lets the same scanners read them.

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
                Some((meant, length)) => {
                    view.copy(text, copied..next);
                    view.text.extend_from_slice(meant.as_bytes());
                    view.starts.resize(view.text.len(), next);
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

/// What an escape stands for.
enum Meant {
    Byte([u8; 1]),
    Character([u8; 4], usize),
}

impl Meant {
    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Byte(byte) => byte,
            Self::Character(bytes, length) => bytes.get(..*length).unwrap_or_default(),
        }
    }
}

impl From<char> for Meant {
    fn from(character: char) -> Self {
        let mut bytes = [0; 4];
        let length = character.encode_utf8(&mut bytes).len();
        Self::Character(bytes, length)
    }
}

/// What the escape at the start of `text` stands for, and its length.
fn unescape(text: &[u8]) -> Option<(Meant, usize)> {
    let hex = |range: Range<usize>| {
        text.get(range)?.iter().try_fold(0u32, |value, byte| {
            char::from(*byte).to_digit(16).map(|digit| value << 4 | digit)
        })
    };
    let byte = |value: u32| u8::try_from(value).ok().map(|byte| Meant::Byte([byte]));
    let character = |value: u32| char::from_u32(value).map(Meant::from);
    Some(match (text.first()?, text.get(1)?) {
        (b'%', _) => (byte(hex(1..3)?)?, 3),
        (b'\\', b'u') => match (hex(2..6)?, text.get(6..8), hex(8..12)) {
            // A character beyond the first plane is two, in UTF-16.
            (high @ 0xD800..0xDC00, Some(br"\u"), Some(low @ 0xDC00..0xE000)) => {
                (character(0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00))?, 12)
            }
            (unit, ..) => (character(unit)?, 6),
        },
        (b'\\', b'U') => (character(hex(2..10)?)?, 10),
        (b'\\', b'x') => (byte(hex(2..4)?)?, 4),
        (b'\\', b'n') => ('\n'.into(), 2),
        (b'\\', b'r') => ('\r'.into(), 2),
        (b'\\', b't') => ('\t'.into(), 2),
        (b'\\', same @ (b'\\' | b'/' | b'"' | b'\'')) => (Meant::Byte([*same]), 2),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_undone_and_found_again() {
        let source = br"caf\u00e9 %3Fa%3d\u0062\/\\n%zz%";
        let view = View::of(source).unwrap();
        assert_eq!(view.text, "café ?a=b/\\n%zz%".as_bytes());
        let at = view.text.windows(4).position(|part| part == b"?a=b").unwrap();
        assert_eq!(source.get(view.source(at..at + 4)).unwrap(), br"%3Fa%3d\u0062");
        let all = 0..view.text.len();
        assert_eq!(view.source(all), 0..source.len());
        assert_eq!(View::of(&view.text).unwrap().text, "café ?a=b/\n%zz%".as_bytes());
    }

    #[test]
    fn every_escape_of_an_ascii_character_is_undone() {
        let view = View::of(br#"\u003d\x3D%3d \t\r\n \/\\\"\'"#).unwrap();
        assert_eq!(view.text, b"=== \t\r\n /\\\"'");
    }

    #[test]
    fn what_is_not_ascii_is_undone_too() {
        for escaped in [r"\u041d\ud83d\ude00", r"\u041d\U0001f600", r"\xd0\x9d%f0%9F%98%80"] {
            let view = View::of(escaped.as_bytes()).unwrap();
            assert_eq!(view.text, "Н😀".as_bytes(), "{escaped}");
            assert_eq!(view.source(0..view.text.len()), 0..escaped.len());
        }
        assert!(View::of(br"\ud83d\u0041").is_some_and(|view| view.text == br"\ud83dA"));
    }

    #[test]
    fn a_text_without_escapes_has_no_view() {
        for text in ["", "plain", "100%", "%", "\\", "C:\\dir", "\\u00", "%f", "\\ud83d"] {
            assert!(View::of(text.as_bytes()).is_none(), "{text}");
        }
    }
}
