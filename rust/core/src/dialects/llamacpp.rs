//! llama.cpp's native `/completion` stream, as observed on the real server (2026-10 and before).
//!
//! * A partial frame has `content`, `tokens`, `stop: false`, `tokens_predicted`, `tokens_evaluated`.
//!   A frame is not a token: a token that ends inside a character sends nothing, and the frame that
//!   completes it only lists the last token id, while `tokens_predicted` counts all. Builds that do
//!   not send `tokens_predicted` are counted by frames with text.
//! * The last frame has `stop: true`, `stop_type`, and echoes the whole prompt. There is no
//!   `[DONE]`.
//! * `prompt_progress` frames carry no token, whatever their `tokens` says.
//! * With several prompts or `n_cmpl` the streams of one body are told apart by `index`. A stream
//!   here has one answer: frames of another index are dropped and counted.
//! * `tokens_evaluated` counts all tokens of the prompt, those from the cache included.

use std::ops::Range;

use crate::dialects::FrameParser;
use crate::engine_error::EngineError;
use crate::event::{Channel, FinishReason};
use crate::json::{JsonError, Kind, RawStr, Reader};
use crate::sse::SseEvent;
use crate::stream::{Count, FrameSink};
use crate::template::Template;

/// Parser of `/completion` frames.
#[derive(Debug, Default)]
pub struct LlamaCpp {
    scratch: String,
    /// A partial frame's content, its one token id and `tokens_predicted`.
    template: Template<3>,
}

#[derive(Default)]
struct Frame<'a> {
    content: Option<RawStr<'a>>,
    index: u64,
    stop: bool,
    tokens_predicted: Option<u64>,
    tokens_evaluated: Option<u64>,
    stop_type: Option<RawStr<'a>>,
    is_progress: bool,
    is_error: bool,
    holes: [Option<Range<usize>>; 3],
}

impl<'a> Frame<'a> {
    fn parse(text: &'a str) -> Result<Self, JsonError> {
        let mut frame = Self::default();
        let mut reader = Reader::new(text);
        reader.object(|key, reader| {
            match key {
                "content" => {
                    frame.content = reader.string_or_null()?;
                    frame.holes[0] = frame.content.map(|text| reader.string_span(text));
                }
                "tokens" => frame.holes[1] = single_number(reader)?,
                "index" => frame.index = reader.u64_or_null()?.unwrap_or(0),
                "stop" => frame.stop = !reader.take_null()? && reader.bool()?,
                "tokens_predicted" => {
                    frame.tokens_predicted = reader.u64_or_null()?;
                    frame.holes[2] = frame.tokens_predicted.map(|_| reader.number_span());
                }
                "tokens_evaluated" => frame.tokens_evaluated = reader.u64_or_null()?,
                "stop_type" => frame.stop_type = reader.string_or_null()?,
                "prompt_progress" => {
                    frame.is_progress = !reader.take_null()?;
                    if frame.is_progress {
                        reader.skip()?;
                    }
                }
                "error" => {
                    frame.is_error = !reader.take_null()?;
                    if frame.is_error {
                        reader.skip()?;
                    }
                }
                _ => reader.skip()?,
            }
            Ok(())
        })?;
        reader.end()?;
        Ok(frame)
    }
}

impl FrameParser for LlamaCpp {
    fn frame(&mut self, event: &SseEvent<'_>, sink: &mut FrameSink<'_>) -> Result<(), JsonError> {
        if self.repeats(event.data, sink) {
            return Ok(());
        }
        let frame = Frame::parse(event.data)?;
        if frame.is_error {
            sink.error(&EngineError::from_error_value(event.data));
            return Ok(());
        }
        if frame.index != 0 {
            sink.drop_choice();
            return Ok(());
        }
        if let Some(tokens) = frame.tokens_evaluated
            && !sink.is_started()
        {
            sink.tokens_in(tokens);
        }
        sink.accept();
        let text = frame.content.map_or("", |text| text.value_in(&mut self.scratch));
        match frame.tokens_predicted {
            _ if frame.is_progress => sink.progress(),
            Some(total) => sink.tokens(Count::Total(total)),
            None if !text.is_empty() => sink.tokens(Count::More(1)),
            None => {}
        }
        sink.text(Channel::Content, text);
        if frame.stop {
            if let Some(tokens) = frame.tokens_evaluated {
                sink.tokens_in(tokens);
            }
            if let Some(tokens) = frame.tokens_predicted {
                sink.tokens_out(tokens);
            }
            if let Some(raw) = frame.stop_type {
                let raw = raw.value_in(&mut self.scratch);
                sink.finish_reason(finish_reason(raw), raw);
            }
            sink.end();
        } else if let ([Some(content), Some(token), Some(predicted)], false) =
            (frame.holes, frame.is_progress)
        {
            self.template.learn(event.data, [content, token, predicted]);
        }
        Ok(())
    }
}

impl LlamaCpp {
    /// Reads a frame that differs from the last partial one in nothing but content and counts.
    fn repeats(&mut self, data: &str, sink: &mut FrameSink<'_>) -> bool {
        let Some((text, predicted)) = self.template.compare(data).and_then(|mut frame| {
            let text = frame.text()?;
            frame.number()?;
            let predicted = frame.number()?;
            frame.is_end().then_some((text, predicted))
        }) else {
            return false;
        };
        sink.tokens(Count::Total(predicted));
        sink.text(Channel::Content, text.value_in(&mut self.scratch));
        true
    }
}

/// Skips the value of `tokens`; where its one number stands, if it is a list of one.
fn single_number(reader: &mut Reader<'_>) -> Result<Option<Range<usize>>, JsonError> {
    if reader.peek()? != Kind::Array {
        return reader.skip().map(|()| None);
    }
    let mut number = None;
    reader.array(|at, reader| {
        let is_number = reader.peek()? == Kind::Number;
        reader.skip()?;
        number = (at == 0 && is_number).then(|| reader.number_span());
        Ok(())
    })?;
    Ok(number)
}

fn finish_reason(stop_type: &str) -> FinishReason {
    match stop_type {
        "eos" | "word" => FinishReason::Stop,
        "limit" => FinishReason::Length,
        _ => FinishReason::Unknown,
    }
}
