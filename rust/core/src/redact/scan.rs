//! What the scanners share: stretches of a text, and where runs of bytes end.

use std::ops::Range;
use std::sync::Arc;

/// A stretch of the text that must not be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) end: usize,
    /// What stands in its place, where that is not the fingerprint of the stretch itself.
    pub(super) shown_as: Option<Arc<str>>,
}

impl Span {
    pub(super) fn new(stretch: Range<usize>) -> Self {
        Self { start: stretch.start, end: stretch.end, shown_as: None }
    }
}

/// The byte at `at`; NUL, which belongs to no run, past the end.
pub(super) fn byte(text: &[u8], at: usize) -> u8 {
    text.get(at).copied().unwrap_or(0)
}

/// The byte before `at`; NUL at the start.
pub(super) fn before(text: &[u8], at: usize) -> u8 {
    at.checked_sub(1).map_or(0, |at| byte(text, at))
}

/// The bytes of a stretch; none where it lies outside.
pub(super) fn stretch(text: &[u8], range: Range<usize>) -> &[u8] {
    text.get(range).unwrap_or_default()
}

/// What follows `at`.
pub(super) fn rest(text: &[u8], at: usize) -> &[u8] {
    text.get(at..).unwrap_or_default()
}

/// Where the run of bytes that `within` accepts ends; it begins at `at`.
pub(super) fn run(text: &[u8], at: usize, within: impl Fn(u8) -> bool) -> usize {
    at + rest(text, at).iter().take_while(|byte| within(**byte)).count()
}

/// As [`run`], but no longer than `most` bytes.
pub(super) fn short_run(text: &[u8], at: usize, most: usize, within: impl Fn(u8) -> bool) -> usize {
    at + rest(text, at).iter().take(most).take_while(|byte| within(**byte)).count()
}

/// A space or a tab.
pub(super) fn blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// What closes a text that was quoted.
pub(super) fn quote(byte: u8) -> bool {
    matches!(byte, b'"' | b'\'' | b'`')
}

/// What ends a value that is not quoted.
pub(super) fn delimiter(byte: u8) -> bool {
    byte <= b' '
        || byte == 0x7f
        || quote(byte)
        || matches!(byte, b',' | b';' | b'&' | b'<' | b'>' | b')' | b']' | b'}' | b'|')
}
