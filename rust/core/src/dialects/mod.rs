//! Wire dialects: how engines write their frames, one file per dialect, not per engine.

mod llamacpp;
mod openai;

use std::fmt;

pub use llamacpp::LlamaCpp;
pub use openai::OpenAi;

use crate::json::JsonError;
use crate::sse::SseEvent;
use crate::stream::FrameSink;

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

    /// Data that ends the stream even where the body ends before its blank line.
    fn end_marker(&self) -> Option<&'static str> {
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
}

/// Why a dialect cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DialectError {
    /// No dialect or engine has this name.
    UnknownName(String),
    /// The dialect has no such option.
    UnknownOption {
        /// The dialect.
        dialect: &'static str,
        /// The option.
        option: String,
    },
}

impl fmt::Display for DialectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownName(name) => {
                write!(f, "unknown engine {name:?}; known are {}", Dialect::NAMES.join(", "))
            }
            Self::UnknownOption { dialect, option } => {
                write!(f, "the dialect {dialect} has no option {option:?}")
            }
        }
    }
}

impl std::error::Error for DialectError {}

impl Dialect {
    /// The names of all dialects, sorted.
    pub const NAMES: &'static [&'static str] = &["llamacpp", "openai"];

    /// The dialect of that name, fresh for one stream.
    ///
    /// # Errors
    ///
    /// [`DialectError`] for an unknown name or option.
    pub fn new<'o>(
        name: &str,
        options: impl IntoIterator<Item = (&'o str, &'o str)>,
    ) -> Result<Self, DialectError> {
        let dialect = match name {
            "llamacpp" => Self::LlamaCpp(LlamaCpp::default()),
            "openai" => Self::OpenAi(OpenAi::default()),
            _ => return Err(DialectError::UnknownName(name.to_owned())),
        };
        match options.into_iter().next() {
            None => Ok(dialect),
            Some((option, _)) => Err(DialectError::UnknownOption {
                dialect: dialect.name(),
                option: option.to_owned(),
            }),
        }
    }

    /// The dialect's name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::LlamaCpp(_) => "llamacpp",
            Self::OpenAi(_) => "openai",
        }
    }
}

impl FrameParser for Dialect {
    fn frame(&mut self, frame: &SseEvent<'_>, sink: &mut FrameSink<'_>) -> Result<(), JsonError> {
        match self {
            Self::LlamaCpp(parser) => parser.frame(frame, sink),
            Self::OpenAi(parser) => parser.frame(frame, sink),
        }
    }

    fn end_marker(&self) -> Option<&'static str> {
        match self {
            Self::LlamaCpp(parser) => parser.end_marker(),
            Self::OpenAi(parser) => parser.end_marker(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_dialect_of_that_name() {
        for name in Dialect::NAMES {
            assert_eq!(Dialect::new(name, []).unwrap().name(), *name);
        }
        assert!(Dialect::NAMES.is_sorted());
    }

    #[test]
    fn unknown_names_and_options_are_refused() {
        let error = Dialect::new("gpt", []).unwrap_err();
        assert!(error.to_string().contains("llamacpp, openai"), "{error}");
        assert!(Dialect::new("openai", [("text", "delta")]).is_err());
    }
}
