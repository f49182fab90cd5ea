//! Frames that differ from the one before only in a token's text and numbers.
//!
//! An engine writes its token frames with one template: the same keys, ids and nulls around a text
//! and a count. Once a frame has been parsed and checked in full, the next one is checked by
//! comparing the bytes around those *holes* and reading only what is in them. That is a complete
//! check: a document that equals a valid one but for valid strings in place of strings and numbers
//! in place of numbers is valid and means the same but for these. Anything else falls back to
//! parsing, so a template can make decoding faster but never different.

use std::ops::Range;

use crate::hidden::Hidden;
use crate::json::{RawStr, Reader};

/// Longer frames are rare and not worth remembering.
const MAX_FRAME_BYTES: usize = 2 << 10;

/// The last frame that was parsed, with the places of its holes.
#[derive(Debug, Default)]
pub(crate) struct Template<const HOLES: usize> {
    frame: Hidden<Vec<u8>>,
    holes: Option<[Range<usize>; HOLES]>,
}

impl<const HOLES: usize> Template<HOLES> {
    /// Remembers a frame that has been parsed in full. A hole is the inside of a string's quotes or
    /// all of a number; the holes must stand in the order in which they will be read.
    pub(crate) fn learn(&mut self, frame: &str, holes: [Range<usize>; HOLES]) {
        let is_ordered = holes.is_sorted_by(|a, b| a.end <= b.start);
        self.holes = (is_ordered && frame.len() <= MAX_FRAME_BYTES).then_some(holes);
        if self.holes.is_some() {
            self.frame.clear();
            self.frame.extend_from_slice(frame.as_bytes());
        }
    }

    /// Begins comparing `frame`, if a frame has been learnt.
    #[inline]
    pub(crate) fn compare<'t, 'f>(&'t self, frame: &'f str) -> Option<Comparison<'t, 'f>> {
        let holes = self.holes.as_ref()?.iter();
        Some(Comparison { template: &self.frame, holes, template_at: 0, frame, at: 0 })
    }
}

/// A frame being read along a template. Every step gives None where the two part.
pub(crate) struct Comparison<'t, 'f> {
    template: &'t [u8],
    holes: std::slice::Iter<'t, Range<usize>>,
    template_at: usize,
    frame: &'f str,
    at: usize,
}

impl<'f> Comparison<'_, 'f> {
    /// The next hole, read as the inside of a string.
    #[inline]
    pub(crate) fn text(&mut self) -> Option<RawStr<'f>> {
        self.skip_to_hole()?;
        let mut reader = Reader::at(self.frame, self.at);
        let text = reader.string_body().ok()?;
        // The closing quote is part of what follows the hole.
        self.at = reader.offset() - 1;
        Some(text)
    }

    /// The next hole, read as a whole number.
    #[inline]
    pub(crate) fn number(&mut self) -> Option<u64> {
        self.skip_to_hole()?;
        let rest = self.frame.as_bytes().get(self.at..)?;
        let mut value: u64 = 0;
        let mut digits = 0;
        for digit in rest.iter().map_while(|byte| byte.is_ascii_digit().then(|| byte - b'0')) {
            value = value.checked_mul(10)?.checked_add(u64::from(digit))?;
            digits += 1;
        }
        // RFC 8259, section 6: leading zeros are not allowed.
        if digits == 0 || digits > 1 && rest.first() == Some(&b'0') {
            return None;
        }
        self.at += digits;
        Some(value)
    }

    /// The next hole, a number of any kind, or nothing where the template has nothing.
    #[inline]
    pub(crate) fn skip_number(&mut self) -> Option<()> {
        if self.skip_to_hole()? == 0 {
            return Some(());
        }
        let mut reader = Reader::at(self.frame, self.at);
        reader.number().ok()?;
        self.at = reader.offset();
        Some(())
    }

    /// Whether the frame equals the template to its end.
    #[inline]
    pub(crate) fn is_end(&self) -> bool {
        self.template.get(self.template_at..) == self.frame.as_bytes().get(self.at..)
    }

    /// Compares what is before the next hole; how long that hole is in the template.
    #[inline]
    fn skip_to_hole(&mut self) -> Option<usize> {
        let hole = self.holes.next()?;
        let before = self.template.get(self.template_at..hole.start)?;
        if !self.frame.as_bytes().get(self.at..)?.starts_with(before) {
            return None;
        }
        self.at += before.len();
        self.template_at = hole.end;
        Some(hole.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEARNT: &str = r#"{"a":"one","n":12,"z":null}"#;

    fn template() -> Template<2> {
        let mut template = Template::default();
        let text = LEARNT.find("one").unwrap();
        let number = LEARNT.find("12").unwrap();
        template.learn(LEARNT, [text..text + 3, number..number + 2]);
        template
    }

    fn read(template: &Template<2>, frame: &str) -> Option<(String, u64)> {
        let mut comparison = template.compare(frame)?;
        let text = comparison.text()?.value().into_owned();
        let number = comparison.number()?;
        comparison.is_end().then_some((text, number))
    }

    #[test]
    fn frames_that_differ_in_the_holes_are_read() {
        let template = template();
        for (frame, expected) in [
            (LEARNT, ("one", 12)),
            (r#"{"a":"","n":0,"z":null}"#, ("", 0)),
            (r#"{"a":"é\n\"}","n":18446744073709551615,"z":null}"#, ("é\n\"}", u64::MAX)),
        ] {
            let (text, number) = expected;
            assert_eq!(read(&template, frame), Some((text.to_owned(), number)), "{frame}");
        }
    }

    #[test]
    fn anything_else_is_not() {
        let template = template();
        for frame in [
            r#"{"a":"one","n":12,"z":true}"#,
            r#"{"a":"one","n":12,"z":null} "#,
            r#"{"a":"one","n":12,"z":nul"#,
            r#"{"a":"one","n":012,"z":null}"#,
            r#"{"a":"one","n":1.5,"z":null}"#,
            r#"{"a":"one","n":-1,"z":null}"#,
            r#"{"a":"one","n":,"z":null}"#,
            r#"{"a":"one","n":18446744073709551616,"z":null}"#,
            r#"{"a":"o\ne\x","n":12,"z":null}"#,
            "{\"a\":\"o\u{1}e\",\"n\":12,\"z\":null}",
            r#"{"a":"one","b":1,"n":12,"z":null}"#,
            r#"{"b":"one","n":12,"z":null}"#,
            r#"{"a":"one"#,
            "",
        ] {
            assert_eq!(read(&template, frame), None, "{frame}");
        }
    }

    #[test]
    fn numbers_that_do_not_matter_are_checked() {
        const LEARNT: &str = r#"{"n":1,"x":-0.5}"#;
        let mut template: Template<3> = Template::default();
        // There may be nothing to skip.
        template.learn(LEARNT, [0..0, 5..6, 11..15]);
        let is_alike = |frame: &str| {
            let mut comparison = template.compare(frame).unwrap();
            (0..3).all(|_| comparison.skip_number().is_some()) && comparison.is_end()
        };
        for frame in [LEARNT, r#"{"n":-2.5e3,"x":0}"#, r#"{"n":0,"x":1E+9}"#] {
            assert!(is_alike(frame), "{frame}");
        }
        for frame in [
            r#"{"n":01,"x":-0.5}"#,
            r#"{"n":1.,"x":-0.5}"#,
            r#"{"n":1e,"x":-0.5}"#,
            r#"{"n":-,"x":-0.5}"#,
            r#"{"n":,"x":-0.5}"#,
            r#"{"n":null,"x":-0.5}"#,
            r#"{"n":1,"x":-0.5}}"#,
            r#"1{"n":1,"x":-0.5}"#,
        ] {
            assert!(!is_alike(frame), "{frame}");
        }
    }

    #[test]
    fn holes_out_of_order_and_long_frames_are_not_learnt() {
        let mut template: Template<2> = Template::default();
        template.learn(LEARNT, [10..11, 3..4]);
        assert!(template.compare(LEARNT).is_none());
        let long = format!("\"{}\"", "x".repeat(MAX_FRAME_BYTES));
        template.learn(&long, [1..1, 2..2]);
        assert!(template.compare(&long).is_none());
    }
}
