//! Text Generation Inference's `/generate_stream`, from its source (0.9 to 3.3).
//!
//! * One frame per token: `token {id, text, logprob, special}`. Special tokens are counted, their
//!   text is no part of the answer.
//! * The last frame is the one whose `generated_text` is not null. Its `details` say why it ended
//!   and how many tokens there were, if the request asked for them. There is no `[DONE]`.
//! * A stop text that was matched is streamed like any other token. With the option `stop`, a JSON
//!   list of the stop texts, it is left out, as other engines leave it out.
//! * Every error comes inside a 200, as `{"error", "error_type"}`.

use std::ops::Range;

use super::options::{DialectError, Pairs, WANTED, Wanted};
use super::stop_text::StopText;
use crate::dialects::FrameParser;
use crate::engine_error::EngineError;
use crate::event::{FinishReason, Logprob};
use crate::hidden::Hidden;
use crate::json::{JsonError, Kind, RawStr, Reader};
use crate::sse::SseEvent;
use crate::stream::{Count, FrameSink};
use crate::template::Template;

/// Parser of `StreamResponse` frames.
#[derive(Debug, Default)]
pub struct Tgi {
    wanted: Wanted,
    stop: StopText,
    scratch: Hidden<String>,
    /// A token's frame: its index, where it has one, the token's id, text and log probability.
    template: Template<4>,
}

#[derive(Default)]
struct Frame<'a> {
    index: Range<usize>,
    token: Option<Token<'a>>,
    top: Vec<Logprob>,
    is_last: bool,
    details: Details<'a>,
    is_error: bool,
}

#[derive(Default)]
struct Token<'a> {
    id: Option<u64>,
    text: Option<RawStr<'a>>,
    logprob: Option<f64>,
    special: bool,
    holes: [Option<Range<usize>>; 3],
}

#[derive(Default)]
struct Details<'a> {
    finish_reason: Option<&'a str>,
    generated_tokens: Option<u64>,
    input_length: Option<u64>,
}

const OPTIONS: [&str; 3] = [WANTED[0], WANTED[1], "stop"];

impl Tgi {
    pub(crate) fn new(options: Pairs<'_>) -> Result<Self, DialectError> {
        let mut tgi = Self::default();
        for (option, value) in options {
            if option == "stop" {
                tgi.stop = StopText::from_option(value)?;
            } else if !tgi.wanted.take(option, value)? {
                let option = option.to_owned();
                let known = &OPTIONS;
                return Err(DialectError::UnknownOption { dialect: "tgi", option, known });
            }
        }
        Ok(tgi)
    }

    /// Reads a frame that differs from one of a token before in nothing but text and numbers.
    fn repeats(&mut self, data: &str, sink: &mut FrameSink<'_>) -> bool {
        let Some((id, text)) = self.template.compare(data).and_then(|mut frame| {
            frame.skip_number()?;
            let id = frame.number()?;
            let text = frame.text()?;
            frame.skip_number()?;
            frame.is_end().then_some((id, text))
        }) else {
            return false;
        };
        sink.tokens(Count::More(1));
        if self.wanted.token_ids {
            sink.token_id(id);
        }
        self.stop.pass(text.value_in(&mut self.scratch), sink);
        true
    }

    fn parse<'a>(&self, text: &'a str) -> Result<Frame<'a>, JsonError> {
        let mut frame = Frame::default();
        let mut reader = Reader::new(text);
        reader.object(|key, reader| {
            match key {
                "index" => {
                    let is_number = reader.peek()? == Kind::Number;
                    reader.skip()?;
                    frame.index = if is_number { reader.number_span() } else { 0..0 };
                }
                "token" => frame.token = Token::read(reader)?,
                "top_tokens" if self.wanted.logprobs && reader.peek()? == Kind::Array => {
                    frame.top = super::logprobs::read_entries(reader)?;
                }
                "generated_text" => frame.is_last = reader.string_or_null()?.is_some(),
                "details" => frame.details = Details::read(reader)?,
                "error" => frame.is_error = reader.skip_some()?,
                _ => reader.skip()?,
            }
            Ok(())
        })?;
        reader.end()?;
        Ok(frame)
    }
}

impl<'a> Token<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Option<Self>, JsonError> {
        if reader.take_null()? {
            return Ok(None);
        }
        let mut token = Self::default();
        reader.object(|key, reader| {
            match key {
                "id" => {
                    token.id = reader.u64_or_null()?;
                    token.holes[0] = token.id.map(|_| reader.number_span());
                }
                "text" => {
                    token.text = reader.string_or_null()?;
                    token.holes[1] = token.text.map(|text| reader.string_span(text));
                }
                "logprob" => {
                    token.logprob = reader.f64_or_null()?;
                    token.holes[2] = token.logprob.map(|_| reader.number_span());
                }
                "special" => token.special = !reader.take_null()? && reader.bool()?,
                _ => reader.skip()?,
            }
            Ok(())
        })?;
        Ok(Some(token))
    }
}

impl<'a> Details<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, JsonError> {
        let mut details = Self::default();
        if reader.take_null()? {
            return Ok(details);
        }
        reader.object(|key, reader| {
            match key {
                "finish_reason" => details.finish_reason = super::finish_word(reader)?,
                "generated_tokens" => details.generated_tokens = reader.u64_or_null()?,
                "input_length" => details.input_length = reader.u64_or_null()?,
                _ => reader.skip()?,
            }
            Ok(())
        })?;
        Ok(details)
    }
}

impl FrameParser for Tgi {
    fn frame(&mut self, event: &SseEvent<'_>, sink: &mut FrameSink<'_>) -> Result<(), JsonError> {
        if self.repeats(event.data, sink) {
            return Ok(());
        }
        let frame = self.parse(event.data)?;
        if frame.is_error {
            self.stop.finish(false, sink);
            sink.error(&EngineError::from_error_value(event.data));
            return Ok(());
        }
        sink.accept();
        if let Some(token) = frame.token {
            sink.tokens(Count::More(1));
            if let (Some(id), true) = (token.id, self.wanted.token_ids) {
                sink.token_id(id);
            }
            let text = token.text.map_or("", |text| text.value_in(&mut self.scratch));
            if self.wanted.logprobs {
                let mut logprob = Logprob::new(text, token.id, token.logprob);
                logprob.top = frame.top;
                sink.logprob(logprob);
            }
            if !token.special {
                self.stop.pass(text, sink);
            }
            if let ([Some(id), Some(text), Some(logprob)], false) =
                (token.holes, token.special || frame.is_last || self.wanted.logprobs)
            {
                self.template.learn(event.data, [frame.index, id, text, logprob]);
            }
        }
        if frame.is_last {
            let details = frame.details;
            self.stop.finish(details.finish_reason == Some("\"stop_sequence\""), sink);
            if let Some(tokens) = details.input_length {
                sink.tokens_in(tokens);
            }
            if let Some(tokens) = details.generated_tokens {
                sink.tokens_out(tokens);
            }
            if let Some(raw) = details.finish_reason {
                let raw = super::plain_value(raw);
                sink.finish_reason(FinishReason::from_engine(&raw), &raw);
            }
            sink.end();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialects::tests::short_cuts;

    fn taken(options: Pairs<'_>, frames: &[&str]) -> Vec<bool> {
        short_cuts(Tgi::new(options).unwrap(), Tgi::repeats, frames)
    }

    #[test]
    fn token_frames_take_the_short_cut() {
        for frames in [
            [
                r#"{"index":1,"token":{"id":13,"text":" a","logprob":-0.5,"special":false},"generated_text":null}"#,
                r#"{"index":10,"token":{"id":2,"text":"\u00e9","logprob":-1.5e-7,"special":false},"generated_text":null}"#,
            ],
            [
                r#"{"token":{"id":13,"text":" a","logprob":-0.5,"special":false},"details":null}"#,
                r#"{"token":{"id":2,"text":"","logprob":0,"special":false},"details":null}"#,
            ],
        ] {
            assert_eq!(taken(vec![], &frames), [false, true], "{}", frames[0]);
            assert_eq!(taken(vec![("logprobs", "true")], &frames), [false, false]);
        }
    }

    #[test]
    fn frames_that_tell_more_do_not() {
        for frame in [
            r#"{"index":"1","token":{"id":1,"text":"</s>","logprob":-0.5,"special":true}}"#,
            r#"{"token":{"id":null,"text":"a","logprob":-0.5}}"#,
            r#"{"token":{"id":1,"text":null,"logprob":-0.5}}"#,
            r#"{"token":{"id":1,"text":"a","logprob":null}}"#,
        ] {
            assert_eq!(taken(vec![], &[frame, frame]), [false, false], "{frame}");
        }
    }
}
