//! llama.cpp's native `/completion` stream, as observed on the real server (2026-10 and before).
//!
//! * A partial frame has `content`, `tokens`, `stop: false`, `tokens_predicted`, `tokens_evaluated`.
//!   A frame is not a token: a token that ends inside a character sends nothing, and the frame that
//!   completes it only lists the last token id, while `tokens_predicted` counts all. Builds that do
//!   not send `tokens_predicted` are counted by frames with text.
//! * The last frame has `stop: true`, `stop_type`, and echoes the whole prompt. There is no
//!   `[DONE]`.
//! * `prompt_progress` frames carry no token, whatever their `tokens` says. They come where the
//!   request says `return_progress`; `timings` in every frame, where it says `timings_per_token`.
//!   Both are `metrics` events for whoever wants them.
//! * With several prompts or `n_cmpl` the streams of one body are told apart by `index`. A stream
//!   here has one answer: frames of another index are dropped and counted.
//! * `tokens_evaluated` counts all tokens of the prompt, those from the cache included.

use std::ops::Range;
use std::time::Duration;

use super::options::{DialectError, Pairs, Wanted};
use crate::dialects::FrameParser;
use crate::engine_error::EngineError;
use crate::event::{Channel, FinishReason, Logprob, Metrics};
use crate::hidden::Hidden;
use crate::json::{JsonError, Kind, RawStr, Reader};
use crate::sse::SseEvent;
use crate::stream::{Count, FrameSink};
use crate::template::Template;

/// Parser of `/completion` frames.
#[derive(Debug, Default)]
pub struct LlamaCpp {
    wanted: Wanted,
    scratch: Hidden<String>,
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
    stop_type: Option<&'a str>,
    is_progress: bool,
    is_error: bool,
    stopping_word: Option<RawStr<'a>>,
    timings: Timings,
    progress: Option<Metrics>,
    ids: Vec<u64>,
    logprobs: Vec<Logprob>,
    holes: [Option<Range<usize>>; 3],
}

impl<'a> Frame<'a> {
    fn parse(text: &'a str, wanted: Wanted) -> Result<Self, JsonError> {
        let mut frame = Self::default();
        let mut reader = Reader::new(text);
        reader.object(|key, reader| {
            match key {
                "content" => {
                    frame.content = reader.string_or_null()?;
                    frame.holes[0] = frame.content.map(|text| reader.string_span(text));
                }
                "tokens" => frame.holes[1] = frame.read_ids(reader, wanted)?,
                "completion_probabilities" if wanted.logprobs => {
                    frame.logprobs = super::logprobs::read_entries(reader)?;
                }
                "index" => frame.index = reader.u64_or_null()?.unwrap_or(0),
                "stop" => frame.stop = !reader.take_null()? && reader.bool()?,
                "tokens_predicted" => {
                    frame.tokens_predicted = reader.u64_or_null()?;
                    frame.holes[2] = frame.tokens_predicted.map(|_| reader.number_span());
                }
                "tokens_evaluated" => frame.tokens_evaluated = reader.u64_or_null()?,
                "stop_type" => frame.stop_type = super::finish_word(reader)?,
                "stopping_word" => frame.stopping_word = reader.string_or_null()?,
                "timings" => frame.timings = Timings::read(reader)?,
                "prompt_progress" if wanted.metrics => {
                    frame.progress = read_progress(reader)?;
                    frame.is_progress = frame.progress.is_some();
                }
                "prompt_progress" => frame.is_progress = reader.skip_some()?,
                "error" => frame.is_error = reader.skip_some()?,
                _ => reader.skip()?,
            }
            Ok(())
        })?;
        reader.end()?;
        Ok(frame)
    }

    /// Reads `tokens`; where its one number stands, if it is a list of one.
    fn read_ids(
        &mut self,
        reader: &mut Reader<'a>,
        wanted: Wanted,
    ) -> Result<Option<Range<usize>>, JsonError> {
        if reader.peek()? != Kind::Array {
            return reader.skip().map(|()| None);
        }
        self.ids.clear();
        let mut hole = None;
        reader.array(|at, reader| {
            if reader.peek()? != Kind::Number {
                hole = None;
                return reader.skip();
            }
            let number = reader.number()?;
            if wanted.token_ids {
                self.ids.extend(number.parse::<u64>());
            }
            let is_whole = number.bytes().all(|byte| byte.is_ascii_digit());
            hole = (at == 0 && is_whole).then(|| reader.number_span());
            Ok(())
        })?;
        Ok(hole)
    }
}

impl FrameParser for LlamaCpp {
    fn frame(&mut self, event: &SseEvent<'_>, sink: &mut FrameSink<'_>) -> Result<(), JsonError> {
        if self.repeats(event.data, sink) {
            return Ok(());
        }
        let frame = Frame::parse(event.data, self.wanted)?;
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
        // A progress frame lists an id that is none.
        if !frame.is_progress {
            frame.ids.iter().for_each(|id| sink.token_id(*id));
        }
        let has_logprobs = !frame.logprobs.is_empty();
        frame.logprobs.into_iter().for_each(|logprob| sink.logprob(logprob));
        sink.text(Channel::Content, text);
        if frame.stop {
            if let Some(tokens) = frame.tokens_evaluated {
                sink.tokens_in(tokens);
            }
            if let Some(tokens) = frame.tokens_predicted {
                sink.tokens_out(tokens);
            }
            if let Some(tokens) = frame.timings.cached {
                sink.cached_tokens_in(tokens);
            }
            if let Some(word) = frame.stopping_word.filter(|word| !word.is_empty()) {
                sink.stop_reason(word.value_in(&mut self.scratch));
            }
            if let Some(raw) = frame.stop_type {
                let raw = super::plain_value(raw);
                sink.finish_reason(FinishReason::from_engine(&raw), &raw);
            }
            sink.end();
            return Ok(());
        }
        if self.wanted.metrics
            && let Some(metrics) = frame.progress.or_else(|| frame.timings.metrics())
        {
            sink.metrics(metrics);
        }
        if let ([Some(content), Some(token), Some(predicted)], false) =
            (frame.holes, frame.is_progress || has_logprobs)
        {
            self.template.learn(event.data, [content, token, predicted]);
        }
        Ok(())
    }
}

impl LlamaCpp {
    pub(crate) fn new(options: Pairs<'_>) -> Result<Self, DialectError> {
        Ok(Self { wanted: Wanted::read("llamacpp", options)?, ..Self::default() })
    }

    /// Reads a frame that differs from the last partial one in nothing but content and counts.
    fn repeats(&mut self, data: &str, sink: &mut FrameSink<'_>) -> bool {
        let Some((text, id, predicted)) = self.template.compare(data).and_then(|mut frame| {
            let text = frame.text()?;
            let id = frame.number()?;
            let predicted = frame.number()?;
            frame.is_end().then_some((text, id, predicted))
        }) else {
            return false;
        };
        sink.tokens(Count::Total(predicted));
        if self.wanted.token_ids {
            sink.token_id(id);
        }
        sink.text(Channel::Content, text.value_in(&mut self.scratch));
        true
    }
}

/// What `timings` says: how many tokens, and for how many milliseconds.
#[derive(Default)]
struct Timings {
    /// Prompt tokens taken from the cache.
    cached: Option<u64>,
    /// Prompt tokens read.
    read: Option<u64>,
    read_ms: Option<f64>,
    predicted: Option<u64>,
    predicted_ms: Option<f64>,
}

impl Timings {
    fn read(reader: &mut Reader<'_>) -> Result<Self, JsonError> {
        let mut timings = Self::default();
        if reader.take_null()? {
            return Ok(timings);
        }
        reader.object(|key, reader| {
            match key {
                "cache_n" => timings.cached = reader.u64_or_null()?,
                "prompt_n" => timings.read = reader.u64_or_null()?,
                "prompt_ms" => timings.read_ms = reader.f64_or_null()?,
                "predicted_n" => timings.predicted = reader.u64_or_null()?,
                "predicted_ms" => timings.predicted_ms = reader.f64_or_null()?,
                _ => reader.skip()?,
            }
            Ok(())
        })?;
        Ok(timings)
    }

    /// The metrics of a frame that had any timings.
    fn metrics(&self) -> Option<Metrics> {
        let predicted = self.predicted?;
        let tokens_in = self.read.map(|read| read.saturating_add(self.cached.unwrap_or(0)));
        Some(Metrics {
            tokens_in,
            cached_tokens_in: self.cached,
            tokens_in_read: tokens_in,
            kv_warmth: warmth(self.cached, tokens_in),
            prefill_ms: self.read_ms.and_then(whole),
            tokens_out: Some(predicted),
            latency_decode_ms: self.predicted_ms.and_then(whole),
            ..Metrics::default()
        })
    }
}

/// What `prompt_progress` says, unless it is null.
fn read_progress(reader: &mut Reader<'_>) -> Result<Option<Metrics>, JsonError> {
    let mut metrics = Metrics::default();
    if reader.take_null()? {
        return Ok(None);
    }
    if reader.peek()? != Kind::Object {
        reader.skip()?;
        return Ok(Some(metrics));
    }
    reader.object(|key, reader| {
        match key {
            "total" => metrics.tokens_in = reader.u64_or_null()?,
            "cache" => metrics.cached_tokens_in = reader.u64_or_null()?,
            "processed" => metrics.tokens_in_read = reader.u64_or_null()?,
            "time_ms" => metrics.prefill_ms = reader.f64_or_null()?.and_then(whole),
            _ => reader.skip()?,
        }
        Ok(())
    })?;
    metrics.kv_warmth = warmth(metrics.cached_tokens_in, metrics.tokens_in);
    Ok(Some(metrics))
}

#[expect(clippy::cast_precision_loss, reason = "a share of token counts")]
fn warmth(cached: Option<u64>, tokens: Option<u64>) -> Option<f64> {
    let tokens = tokens.filter(|tokens| *tokens > 0)?;
    Some((cached? as f64 / tokens as f64).min(1.0))
}

/// Whole milliseconds, of a number that is a time.
fn whole(ms: f64) -> Option<u64> {
    let seconds = Duration::try_from_secs_f64(ms / 1000.0).ok()?;
    u64::try_from(seconds.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialects::tests::short_cuts;

    const WITH_LOGPROBS: Wanted = Wanted { token_ids: false, logprobs: true, metrics: false };

    fn taken(wanted: Wanted, frames: &[&str]) -> Vec<bool> {
        short_cuts(LlamaCpp { wanted, ..LlamaCpp::default() }, LlamaCpp::repeats, frames)
    }

    #[test]
    fn token_frames_take_the_short_cut() {
        let frames = [
            r#"{"index":0,"content":" there","tokens":[369],"stop":false,"id_slot":-1,"tokens_predicted":1,"tokens_evaluated":8}"#,
            r#"{"index":0,"content":"","tokens":[7],"stop":false,"id_slot":-1,"tokens_predicted":2,"tokens_evaluated":8}"#,
            r#"{"index":0,"content":"\u00e9","tokens":[12],"stop":false,"id_slot":-1,"tokens_predicted":10,"tokens_evaluated":8}"#,
        ];
        assert_eq!(taken(Wanted::default(), &frames), [false, true, true]);
    }

    #[test]
    fn frames_that_tell_more_do_not() {
        let none = Wanted::default();
        for (wanted, frame) in [
            (none, r#"{"content":"a","tokens":[1,2],"tokens_predicted":2}"#),
            (none, r#"{"content":"a","tokens":[1],"tokens_predicted":1,"prompt_progress":{}}"#),
            (none, r#"{"content":"a","tokens":[1],"index":1,"tokens_predicted":1}"#),
            (
                WITH_LOGPROBS,
                r#"{"content":"a","tokens":[1],"tokens_predicted":1,"completion_probabilities":[{"id":1}]}"#,
            ),
        ] {
            assert_eq!(taken(wanted, &[frame, frame]), [false, false], "{frame}");
        }
    }
}
