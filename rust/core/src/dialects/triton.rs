//! Triton's `generate_stream` with TensorRT-LLM behind it, as observed on Triton 2.51 and read from
//! the source of both TensorRT-LLM flavours.
//!
//! * A frame holds the model's outputs by name; the text is `text_output`. Depending on the model it
//!   is a delta (`ensemble`, `tensorrt_llm_bls`) or all text so far (BLS with `accumulate_tokens`,
//!   the LLM API). Nothing in a frame says which: the adapter reads it from the model's
//!   configuration and passes `text`.
//! * A model that cannot be asked to leave the prompt out puts it before its answer. With the option
//!   `echo`, the prompt, it is removed where the answer begins with it.
//! * The inflight models leave the stop words they stopped at in the text. With the option `stop`, a
//!   JSON list of them, they are left out.
//! * There is no finish signal, no finish reason (the LLM API gives one on request; "None" until
//!   then) and no usage: the stream ends where the HTTP body ends, whole, after at least one frame.
//!   `sequence_end` is always false and marks nothing.
//! * Errors are `{"error": text}`, with a status that means little.

use super::cumulative::Cumulative;
use super::options::{DialectError, Pairs, WANTED, Wanted, bad_value};
use super::stop_text::StopText;
use crate::dialects::FrameParser;
use crate::engine_error::EngineError;
use crate::event::{FinishReason, Logprob};
use crate::hidden::Hidden;
use crate::json::{JsonError, JsonErrorKind, Kind, RawStr, Reader};
use crate::sse::SseEvent;
use crate::stream::{Count, FrameSink};

/// Parser of `generate_stream` frames.
#[derive(Debug, Default)]
pub struct Triton {
    wanted: Wanted,
    /// All text so far, where frames repeat it.
    cumulative: Option<Cumulative>,
    /// The prompt, where the model may put it before its answer.
    echo: Hidden<String>,
    stop: StopText,
    has_text: bool,
    /// The sum of the frames' `num_output_tokens`.
    tokens_out: u64,
    scratch: Hidden<String>,
}

#[derive(Default)]
struct Frame<'a> {
    text: Option<RawStr<'a>>,
    finish_reason: Option<RawStr<'a>>,
    stop_reason: Option<RawStr<'a>>,
    tokens_in: Option<u64>,
    tokens_out: Option<u64>,
    logprobs: Vec<f64>,
    is_error: bool,
}

const OPTIONS: [&str; 5] = [WANTED[0], WANTED[1], "text", "echo", "stop"];

impl Triton {
    pub(crate) fn new(options: Pairs<'_>) -> Result<Self, DialectError> {
        let mut triton = Self::default();
        for (option, value) in options {
            if option == "text" {
                triton.cumulative = match value {
                    "delta" => None,
                    "accumulated" | "cumulative" => Some(Cumulative::default()),
                    _ => return Err(bad_value("text", "delta or accumulated")),
                };
            } else if option == "stop" {
                triton.stop = StopText::from_option(value)?;
            } else if option == "echo" {
                triton.echo = Hidden(value.to_owned());
            } else if !triton.wanted.take(option, value)? {
                let option = option.to_owned();
                let known = &OPTIONS;
                return Err(DialectError::UnknownOption { dialect: "triton", option, known });
            }
        }
        Ok(triton)
    }

    fn parse<'a>(&self, text: &'a str) -> Result<Frame<'a>, JsonError> {
        let mut frame = Frame::default();
        let mut reader = Reader::new(text);
        reader.object(|key, reader| {
            match key {
                "text_output" => frame.text = reader.string_or_null()?,
                // The LLM API's outputs are strings, also where they are None.
                "finish_reason" => frame.finish_reason = python_string(reader)?,
                "stop_reason" => frame.stop_reason = python_string(reader)?,
                "num_input_tokens" => frame.tokens_in = reader.u64_or_null()?,
                "num_output_tokens" => frame.tokens_out = reader.u64_or_null()?,
                "output_log_probs" if self.wanted.logprobs => {
                    frame.logprobs = numbers(reader)?;
                }
                "error" => frame.is_error = reader.skip_some()?,
                _ => reader.skip()?,
            }
            Ok(())
        })?;
        reader.end()?;
        Ok(frame)
    }
}

/// A string, None where it is Python's word for that.
fn python_string<'a>(reader: &mut Reader<'a>) -> Result<Option<RawStr<'a>>, JsonError> {
    if reader.peek()? == Kind::String {
        let text = reader.string()?;
        return Ok((text.raw() != "None" && !text.is_empty()).then_some(text));
    }
    reader.skip().map(|()| None)
}

/// Triton writes a tensor of one element as that element.
fn numbers(reader: &mut Reader<'_>) -> Result<Vec<f64>, JsonError> {
    let mut numbers = Vec::new();
    if reader.peek()? == Kind::Array {
        reader.array(|_, reader| {
            numbers.extend(reader.f64_or_null()?);
            Ok(())
        })?;
    } else {
        numbers.extend(reader.f64_or_null()?);
    }
    Ok(numbers)
}

impl FrameParser for Triton {
    fn frame(&mut self, event: &SseEvent<'_>, sink: &mut FrameSink<'_>) -> Result<(), JsonError> {
        let frame = self.parse(event.data)?;
        if frame.is_error {
            self.stop.finish(false, sink);
            sink.error(&EngineError::from_error_value(event.data));
            return Ok(());
        }
        if let Some(tokens) = frame.tokens_in {
            sink.tokens_in(tokens);
        }
        sink.accept();
        let mut text = frame.text.map_or("", |text| text.value_in(&mut self.scratch));
        // A delta begins with the prompt only once, all text so far does so every time.
        if !self.has_text || self.cumulative.is_some() {
            self.has_text |= !text.is_empty();
            text = text.strip_prefix(self.echo.as_str()).unwrap_or(text);
        }
        if let Some(cumulative) = &mut self.cumulative {
            let fault = JsonError { kind: JsonErrorKind::Type, offset: 0 };
            text = cumulative.extend(text).ok_or(fault)?;
        }
        match frame.tokens_out {
            // Per frame, not so far.
            Some(tokens) => {
                self.tokens_out = self.tokens_out.saturating_add(tokens);
                sink.tokens(Count::Total(self.tokens_out));
                sink.tokens_out(self.tokens_out);
            }
            None if frame.text.is_some_and(|text| !text.is_empty()) => sink.tokens(Count::More(1)),
            None => {}
        }
        for logprob in frame.logprobs {
            sink.logprob(Logprob::new("", None, Some(logprob)));
        }
        self.stop.pass(text, sink);
        if let Some(stop_reason) = frame.stop_reason {
            sink.stop_reason(&stop_reason.value());
        }
        if let Some(raw) = frame.finish_reason {
            let raw = raw.value();
            if raw == "cancelled" {
                sink.aborted(&EngineError::default());
            } else {
                sink.finish_reason(FinishReason::from_engine(&raw), &raw);
            }
        }
        Ok(())
    }

    fn body_end(&mut self, sink: &mut FrameSink<'_>) {
        if let Some(cumulative) = &mut self.cumulative {
            self.stop.pass(cumulative.rest(), sink);
        }
        // Where the text ends in a stop text, that is why: it is looked for after each token.
        self.stop.finish(true, sink);
        sink.end();
    }
}
