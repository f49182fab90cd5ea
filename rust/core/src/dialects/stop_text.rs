//! Stop texts of engines that leave them in the answer.

use super::options::{DialectError, bad_value};
use crate::event::Channel;
use crate::hidden::Hidden;
use crate::json::{JsonError, Reader};
use crate::stream::FrameSink;

/// Holds back what may become a stop text, so that one that does can be left out. Without stop
/// texts everything is handed on as it comes.
#[derive(Debug, Default)]
pub(crate) struct StopText {
    stops: Hidden<Vec<String>>,
    held: Hidden<String>,
    certain: Hidden<String>,
}

impl StopText {
    /// The stop texts of an option `stop`, a JSON list of strings.
    pub(crate) fn from_option(list: &str) -> Result<Self, DialectError> {
        Self::from_json(list).map_err(|_| bad_value("stop", "a JSON list of strings"))
    }

    /// Hands on what is certain of a text of the answer.
    pub(crate) fn pass(&mut self, text: &str, sink: &mut FrameSink<'_>) {
        if self.stops.is_empty() {
            sink.text(Channel::Content, text);
            return;
        }
        let mut certain = std::mem::take(&mut self.certain);
        self.push(text, &mut certain);
        sink.text(Channel::Content, &certain);
        self.certain = certain;
    }

    /// Hands on what was held back, without the stop text if that is why the stream ends.
    pub(crate) fn finish(&mut self, is_stopped: bool, sink: &mut FrameSink<'_>) {
        sink.text(Channel::Content, &self.rest(is_stopped));
    }

    fn from_json(list: &str) -> Result<Self, JsonError> {
        let mut stops = Vec::new();
        let mut reader = Reader::new(list);
        reader.array(|_, reader| {
            stops.push(reader.string()?.value().into_owned());
            Ok(())
        })?;
        reader.end()?;
        stops.retain(|stop| !stop.is_empty());
        Ok(Self { stops: Hidden(stops), ..Self::default() })
    }

    /// Takes a text and moves what is certain into `out`.
    fn push(&mut self, text: &str, out: &mut String) {
        self.held.push_str(text);
        let begins_a_stop =
            |(at, _): &(usize, char)| self.held.get(*at..).is_some_and(|tail| self.may_stop(tail));
        let certain = self.held.char_indices().find(begins_a_stop);
        let certain = certain.map_or(self.held.len(), |(at, _)| at);
        out.clear();
        out.extend(self.held.drain(..certain));
    }

    /// What was held back, without the stop text if that is why the stream ended.
    fn rest(&mut self, is_stopped: bool) -> String {
        let mut held = std::mem::take(&mut *self.held);
        if is_stopped
            && let Some(stop) = self.stops.iter().find(|stop| held.ends_with(stop.as_str()))
        {
            held.truncate(held.len() - stop.len());
        }
        held
    }

    /// Whether `tail` is the beginning of a stop text.
    fn may_stop(&self, tail: &str) -> bool {
        self.stops.iter().any(|stop| stop.starts_with(tail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(texts: &[&str], is_stopped: bool) -> (String, String) {
        let mut stop = StopText::from_json(r#"["STOP","é."]"#).unwrap();
        let (mut all, mut out) = (String::new(), String::new());
        for text in texts {
            stop.push(text, &mut out);
            all.push_str(&out);
        }
        (all, stop.rest(is_stopped))
    }

    #[test]
    fn a_stop_text_is_left_out_however_it_is_cut() {
        for texts in [&["ab", "STOP"][..], &["abS", "T", "OP"], &["abSTOP"]] {
            assert_eq!(run(texts, true), ("ab".into(), String::new()), "{texts:?}");
        }
        assert_eq!(run(&["é", "é."], true), ("é".into(), String::new()));
    }

    #[test]
    fn what_only_looked_like_one_is_handed_on() {
        assert_eq!(run(&["aST", "x"], false), ("aSTx".into(), String::new()));
        assert_eq!(run(&["aST"], false), ("a".into(), "ST".into()));
        assert_eq!(run(&["SSTOP"], false), ("S".into(), "STOP".into()));
    }
}
