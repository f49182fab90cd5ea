//! Texts of a task in the words of an engine.

use std::borrow::Cow;

/// From how many bytes on a stretch of a private text is hidden.
pub const PRIVATE_STRETCH_BYTES: usize = 12;

/// `message` with every stretch of a private text in it replaced by `[…]`. A stretch counts from
/// [`PRIVATE_STRETCH_BYTES`] on, or when it is the whole of a shorter text.
pub(super) fn hide<'m>(message: &'m str, private: &[Box<str>]) -> Cow<'m, str> {
    let mut out = String::new();
    let mut copied = 0;
    let mut at = 0;
    while at < message.len() {
        let end = private.iter().filter_map(|text| stretch_end(message, at, text)).max();
        if let Some(end) = end {
            out.push_str(message.get(copied..at).unwrap_or_default());
            out.push_str("[…]");
            (at, copied) = (end, end);
        } else {
            at = next_boundary(message, at);
        }
    }
    if copied == 0 {
        return Cow::Borrowed(message);
    }
    out.push_str(message.get(copied..).unwrap_or_default());
    Cow::Owned(out)
}

/// Where the stretch of `text` that begins at `at` in `message` ends, if it is long enough.
fn stretch_end(message: &str, at: usize, text: &str) -> Option<usize> {
    let least = PRIVATE_STRETCH_BYTES.min(text.len());
    let mut end = (at + least..=message.len()).find(|end| message.is_char_boundary(*end))?;
    let contains = |end| message.get(at..end).is_some_and(|part: &str| text.contains(part));
    if !contains(end) {
        return None;
    }
    while end < message.len() && contains(next_boundary(message, end)) {
        end = next_boundary(message, end);
    }
    Some(end)
}

fn next_boundary(text: &str, at: usize) -> usize {
    (at + 1..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len())
}
