//! Wire dialects: how engines write their frames, one file per dialect, not per engine.

mod cumulative;
mod field_map;
mod llamacpp;
mod logprobs;
mod openai;
mod options;
mod sglang;
mod stop_text;
mod tgi;
mod triton;

use std::borrow::Cow;

pub use field_map::FieldMap;
pub use llamacpp::LlamaCpp;
pub use openai::OpenAi;
pub use options::{DialectError, TextMode};
pub use sglang::SgLang;
pub use tgi::Tgi;
pub use triton::Triton;

use crate::json::{JsonError, RawStr, Reader};
use crate::sse::SseEvent;
use crate::stream::FrameSink;
use options::Pairs;

/// Turns an engine's frames into what they mean.
///
/// A parser is synchronous and sees each event of the stream once, whole. It parses all of a frame
/// before it tells the sink anything, so that a malformed frame yields no token.
///
/// ```
/// use worker_adapters_core::dialects::FrameParser;
/// use worker_adapters_core::event::{Channel, FinishReason};
/// use worker_adapters_core::json::{JsonError, Reader};
/// use worker_adapters_core::sse::SseEvent;
/// use worker_adapters_core::stream::{Count, FrameSink};
///
/// /// `{"text": "…"}` per token and `{"done": true}` at the end.
/// struct MyEngine;
///
/// impl FrameParser for MyEngine {
///     fn frame(&mut self, frame: &SseEvent<'_>, sink: &mut FrameSink<'_>) -> Result<(), JsonError> {
///         let (mut text, mut done) = (None, false);
///         let mut reader = Reader::new(frame.data);
///         reader.object(|key, reader| {
///             match key {
///                 "text" => text = reader.string_or_null()?,
///                 "done" => done = reader.bool()?,
///                 _ => reader.skip()?,
///             }
///             Ok(())
///         })?;
///         reader.end()?;
///         sink.accept();
///         if let Some(text) = text {
///             sink.tokens(Count::More(1));
///             sink.text(Channel::Content, &text.value());
///         }
///         if done {
///             sink.finish_reason(FinishReason::Stop, "done");
///             sink.end();
///         }
///         Ok(())
///     }
/// }
/// ```
pub trait FrameParser {
    /// Reads one frame. Events without data and `data: null` do not get here.
    ///
    /// # Errors
    ///
    /// [`JsonError`] when the frame is not what this dialect speaks; the stream then ends in an
    /// error. An error that the engine reports is no such fault: it goes to [`FrameSink::error`].
    fn frame(&mut self, frame: &SseEvent<'_>, sink: &mut FrameSink<'_>) -> Result<(), JsonError>;

    /// The body has ended, its HTTP framing whole, after at least one frame was accepted. A dialect
    /// without a finish signal of its own calls [`FrameSink::end`] here.
    fn body_end(&mut self, _sink: &mut FrameSink<'_>) {}

    /// Data that ends the stream even where the body ends before its blank line.
    fn end_marker(&self) -> Option<&str> {
        None
    }
}

/// The dialects this crate brings, by name.
#[derive(Debug)]
#[non_exhaustive]
pub enum Dialect {
    /// llama.cpp's native `/completion`.
    LlamaCpp(LlamaCpp),
    /// OpenAI's completions and chat completions, as spoken by most servers.
    OpenAi(OpenAi),
    /// SGLang's native `/generate`.
    SgLang(SgLang),
    /// Text Generation Inference's `/generate_stream`.
    Tgi(Tgi),
    /// Triton's `generate_stream` with TensorRT-LLM.
    Triton(Triton),
    /// Any other, by a map of its fields.
    FieldMap(FieldMap),
}

impl Dialect {
    /// The names of all dialects, sorted.
    pub const NAMES: &'static [&'static str] =
        &["field_map", "llamacpp", "openai", "sglang", "tgi", "triton"];

    /// The dialect of that name, fresh for one stream. Options are pairs of name and value; every
    /// dialect takes `token_ids`, `logprobs` and `metrics` (`true` or `false`), some take more.
    ///
    /// # Errors
    ///
    /// [`DialectError`] for an unknown name or option, or a value the option does not take.
    pub fn new<'o>(
        name: &str,
        options: impl IntoIterator<Item = (&'o str, &'o str)>,
    ) -> Result<Self, DialectError> {
        let options: Pairs<'_> = options.into_iter().collect();
        Ok(match name {
            "llamacpp" => Self::LlamaCpp(LlamaCpp::new(options)?),
            "openai" => Self::OpenAi(OpenAi::new(options)?),
            "sglang" => Self::SgLang(SgLang::new(options)?),
            "tgi" => Self::Tgi(Tgi::new(options)?),
            "triton" => Self::Triton(Triton::new(options)?),
            "field_map" => Self::FieldMap(FieldMap::new(options)?),
            _ => return Err(DialectError::UnknownName(name.to_owned())),
        })
    }

    /// The dialect's name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::LlamaCpp(_) => "llamacpp",
            Self::OpenAi(_) => "openai",
            Self::SgLang(_) => "sglang",
            Self::Tgi(_) => "tgi",
            Self::Triton(_) => "triton",
            Self::FieldMap(_) => "field_map",
        }
    }
}

/// Calls a method of whichever dialect it is.
macro_rules! each {
    ($dialect:expr, $parser:ident => $call:expr) => {
        match $dialect {
            Dialect::LlamaCpp($parser) => $call,
            Dialect::OpenAi($parser) => $call,
            Dialect::SgLang($parser) => $call,
            Dialect::Tgi($parser) => $call,
            Dialect::Triton($parser) => $call,
            Dialect::FieldMap($parser) => $call,
        }
    };
}

impl FrameParser for Dialect {
    #[inline]
    fn frame(&mut self, frame: &SseEvent<'_>, sink: &mut FrameSink<'_>) -> Result<(), JsonError> {
        each!(self, parser => parser.frame(frame, sink))
    }

    fn body_end(&mut self, sink: &mut FrameSink<'_>) {
        each!(self, parser => parser.body_end(sink));
    }

    fn end_marker(&self) -> Option<&str> {
        each!(self, parser => parser.end_marker())
    }
}

/// A finish reason as sent, whatever type it has: one that nobody knows must not fail a stream. None
/// for null and for "", which TGI and Ollama say until there is one.
fn finish_word<'a>(reader: &mut Reader<'a>) -> Result<Option<&'a str>, JsonError> {
    let raw = reader.raw_value()?;
    Ok((raw != "null" && raw != "\"\"").then_some(raw))
}

/// A JSON value as text: a string's value, anything else as sent.
fn plain_value(raw: &str) -> Cow<'_, str> {
    Reader::new(raw).string().map_or(Cow::Borrowed(raw), RawStr::value)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;
    use crate::stream::{StreamConfig, StreamDecoder};
    use crate::time::Instant;

    /// A dialect's short cut for frames that repeat the one before.
    type ShortCut<P> = fn(&mut P, &str, &mut FrameSink<'_>) -> bool;

    /// A parser that keeps which frames took the short cut.
    struct Watched<P> {
        parser: P,
        short_cut: ShortCut<P>,
        taken: Rc<RefCell<Vec<bool>>>,
    }

    impl<P: FrameParser> FrameParser for Watched<P> {
        fn frame(
            &mut self,
            frame: &SseEvent<'_>,
            sink: &mut FrameSink<'_>,
        ) -> Result<(), JsonError> {
            let is_taken = (self.short_cut)(&mut self.parser, frame.data, sink);
            self.taken.borrow_mut().push(is_taken);
            if is_taken { Ok(()) } else { self.parser.frame(frame, sink) }
        }
    }

    /// Which frames of a stream are read along the one before, without being parsed.
    pub(super) fn short_cuts<P: FrameParser>(
        parser: P,
        short_cut: ShortCut<P>,
        frames: &[&str],
    ) -> Vec<bool> {
        let taken = Rc::new(RefCell::new(Vec::new()));
        let watched = Watched { parser, short_cut, taken: Rc::clone(&taken) };
        let mut decoder = StreamDecoder::new(watched, StreamConfig::new("watched"));
        let mut events = Vec::new();
        for frame in frames {
            let event = format!("data: {frame}\n\n");
            decoder.feed(event.as_bytes(), Instant::from_nanos(0), &mut events);
        }
        assert!(!decoder.is_terminal(), "{events:?}");
        taken.take()
    }

    #[test]
    fn every_name_is_a_dialect_of_that_name() {
        for name in Dialect::NAMES {
            let needed = (*name == "field_map").then_some(("text_pointer", "/text"));
            assert_eq!(Dialect::new(name, needed).unwrap().name(), *name);
        }
        assert!(Dialect::NAMES.is_sorted());
    }

    #[test]
    fn only_openai_s_marker_ends_a_stream_without_its_blank_line() {
        for (name, marker) in [
            ("llamacpp", None),
            ("openai", Some("[DONE]")),
            ("sglang", Some("[DONE]")),
            ("tgi", None),
            ("triton", None),
        ] {
            assert_eq!(Dialect::new(name, []).unwrap().end_marker(), marker, "{name}");
        }
    }

    #[test]
    fn unknown_names_and_options_are_refused() {
        let error = Dialect::new("gpt", []).unwrap_err();
        assert!(error.to_string().contains("llamacpp, openai, sglang"), "{error}");
        assert!(Dialect::new("openai", [("text", "delta")]).is_err());
    }
}
