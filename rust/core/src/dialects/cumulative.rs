//! Streams whose every frame repeats all text so far, turned into deltas.

use crate::hidden::Hidden;

/// What has been handed on of a growing text.
///
/// An engine that detokenises again and again shows a character whose bytes are incomplete as
/// U+FFFD, and replaces it later. A U+FFFD at the end of the text is therefore held back until
/// something follows it or the stream ends.
#[derive(Debug, Default)]
pub(crate) struct Cumulative {
    whole: Hidden<String>,
    handed_on: usize,
}

impl Cumulative {
    /// Takes the text so far and returns what is new and certain.
    ///
    /// None when the text contradicts what has been handed on.
    pub(crate) fn extend(&mut self, whole: &str) -> Option<&str> {
        let handed_on = self.whole.get(..self.handed_on)?;
        let certain = whole.trim_end_matches(char::REPLACEMENT_CHARACTER);
        if let Some(new) = whole.strip_prefix(handed_on) {
            // Only the tail can have changed, and only that is copied.
            self.whole.truncate(self.handed_on);
            self.whole.push_str(new);
            let from = self.handed_on;
            self.handed_on = certain.len().max(from);
            return self.whole.get(from..self.handed_on);
        }
        // A frame may show less than the one before while a character is incomplete.
        let is_less = handed_on.starts_with(certain);
        self.whole.truncate(self.handed_on);
        is_less.then_some("")
    }

    /// As [`extend`](Self::extend), with the last text there is: nothing is held back.
    pub(crate) fn complete(&mut self, whole: &str) -> Option<&str> {
        let from = self.handed_on;
        self.extend(whole)?;
        self.handed_on = self.whole.len();
        self.whole.get(from..)
    }

    /// What was held back, now that nothing follows.
    pub(crate) fn rest(&mut self) -> &str {
        let from = std::mem::replace(&mut self.handed_on, self.whole.len());
        self.whole.get(from..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deltas(texts: &[&str]) -> Vec<Option<String>> {
        let mut cumulative = Cumulative::default();
        let mut out: Vec<_> =
            texts.iter().map(|text| cumulative.extend(text).map(str::to_owned)).collect();
        out.push(Some(cumulative.rest().to_owned()));
        out
    }

    fn some(texts: &[&str]) -> Vec<Option<String>> {
        texts.iter().map(|text| Some((*text).to_owned())).collect()
    }

    #[test]
    fn growing_text_becomes_deltas() {
        assert_eq!(deltas(&["a", "a b", "a b", "a bé"]), some(&["a", " b", "", "é", ""]));
    }

    #[test]
    fn an_incomplete_character_is_held_back() {
        let texts = ["a", "a\u{FFFD}", "a\u{FFFD}\u{FFFD}", "a🙂", "a🙂!"];
        assert_eq!(deltas(&texts), some(&["a", "", "", "🙂", "!", ""]));
        assert_eq!(deltas(&["a", "a\u{FFFD}"]), some(&["a", "", "\u{FFFD}"]));
        assert_eq!(deltas(&["a\u{FFFD}", "a", "a\u{FFFD}b"]), some(&["a", "", "\u{FFFD}b", ""]));
    }

    #[test]
    fn the_last_text_is_handed_on_whole() {
        let mut cumulative = Cumulative::default();
        assert_eq!(cumulative.extend("a\u{FFFD}"), Some("a"));
        assert_eq!(cumulative.complete("a b\u{FFFD}"), Some(" b\u{FFFD}"));
        assert_eq!(cumulative.rest(), "");
        assert_eq!(cumulative.complete("c"), None);
        let mut cumulative = Cumulative::default();
        assert_eq!(cumulative.extend("ab\u{FFFD}"), Some("ab"));
        assert_eq!(cumulative.complete("a"), Some(""));
    }

    #[test]
    fn a_text_that_changes_its_past_is_told() {
        assert_eq!(deltas(&["ab", "ac"])[1], None);
    }
}
