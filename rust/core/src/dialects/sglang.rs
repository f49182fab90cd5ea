//! SGLang's native `/generate` stream, as observed on 0.5.20 and read from 0.3.6 to 0.5.23.
//!
//! * Every frame holds `text`, `output_ids` and `meta_info`. By default text and ids are all so far;
//!   with the server's `--incremental-streaming-output` they are deltas. No field says which, but
//!   `meta_info.completion_tokens` always counts all: a frame that lists fewer ids than that is a
//!   delta. The adapter may also pass `text`, read from `/server_info`.
//! * `finish_reason` is an object: `{"type": "stop", "matched": …}`, `{"type": "length"}`, or
//!   `{"type": "abort", "message", "status_code"}`, which is an error, whatever text comes with it.
//! * The stream ends with `[DONE]`, after an error, too.

use super::cumulative::Cumulative;
use super::openai::DONE;
use super::options::{DialectError, Pairs, TextMode, WANTED, Wanted, bad_value};
use crate::dialects::FrameParser;
use crate::engine_error::EngineError;
use crate::event::{Channel, FinishReason, Logprob};
use crate::hidden::Hidden;
use crate::json::{JsonError, JsonErrorKind, Kind, RawStr, Reader};
use crate::sse::SseEvent;
use crate::stream::{Count, FrameSink};

/// Parser of `/generate` frames.
#[derive(Debug)]
pub struct SgLang {
    wanted: Wanted,
    mode: TextMode,
    cumulative: Cumulative,
    /// The most that a frame has listed.
    ids_seen: usize,
    logprobs_seen: usize,
    scratch: Hidden<String>,
}

#[derive(Default)]
struct Frame<'a> {
    text: Option<RawStr<'a>>,
    output_ids: Option<Vec<u64>>,
    index: u64,
    meta: Meta<'a>,
    is_error: bool,
}

#[derive(Default)]
struct Meta<'a> {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    cached_tokens: Option<u64>,
    finish: Option<Finish<'a>>,
    logprobs: Vec<Logprob>,
    tops: Vec<Vec<Logprob>>,
}

#[derive(Default)]
struct Finish<'a> {
    r#type: Option<RawStr<'a>>,
    matched: Option<&'a str>,
    message: Option<RawStr<'a>>,
    status: Option<u64>,
}

const OPTIONS: [&str; 3] = [WANTED[0], WANTED[1], "text"];

impl SgLang {
    pub(crate) fn new(options: Pairs<'_>) -> Result<Self, DialectError> {
        let mut wanted = Wanted::default();
        let mut mode = TextMode::Auto;
        for (option, value) in options {
            if option == "text" {
                mode = TextMode::from_word(value)
                    .ok_or_else(|| bad_value("text", "auto, delta or cumulative"))?;
            } else if !wanted.take(option, value)? {
                let option = option.to_owned();
                let known = &OPTIONS;
                return Err(DialectError::UnknownOption { dialect: "sglang", option, known });
            }
        }
        Ok(Self {
            wanted,
            mode,
            cumulative: Cumulative::default(),
            ids_seen: 0,
            logprobs_seen: 0,
            scratch: Hidden::default(),
        })
    }

    fn parse<'a>(&self, text: &'a str) -> Result<Frame<'a>, JsonError> {
        let mut frame = Frame::default();
        let mut reader = Reader::new(text);
        reader.object(|key, reader| {
            match key {
                "text" => frame.text = reader.string_or_null()?,
                "output_ids" => frame.output_ids = ids(reader)?,
                "index" => frame.index = reader.u64_or_null()?.unwrap_or(0),
                "meta_info" => frame.meta = Meta::read(reader, self.wanted)?,
                "error" => frame.is_error = reader.skip_some()?,
                "object" if reader.peek()? == Kind::String => {
                    frame.is_error |= reader.string()?.raw() == "error";
                }
                _ => reader.skip()?,
            }
            Ok(())
        })?;
        reader.end()?;
        Ok(frame)
    }

    /// Finds out from a frame whether frames are deltas, where it can be told.
    fn settle_mode(&mut self, ids: usize, completion_tokens: u64) {
        // The first frame is both.
        if self.mode == TextMode::Auto && self.ids_seen > 0 {
            let is_all = u64::try_from(ids).is_ok_and(|ids| ids >= completion_tokens);
            self.mode = if is_all { TextMode::Cumulative } else { TextMode::Delta };
        }
    }

    fn report_details(&mut self, frame: &mut Frame<'_>, sink: &mut FrameSink<'_>) {
        let is_delta = self.mode == TextMode::Delta;
        let ids = frame.output_ids.as_deref().unwrap_or_default();
        let known = if is_delta { 0 } else { self.ids_seen };
        if self.wanted.token_ids {
            for id in ids.iter().skip(known) {
                sink.token_id(*id);
            }
        }
        self.ids_seen = self.ids_seen.max(ids.len());
        let mut tops = std::mem::take(&mut frame.meta.tops).into_iter();
        let logprobs = std::mem::take(&mut frame.meta.logprobs);
        let known = if is_delta { 0 } else { self.logprobs_seen };
        self.logprobs_seen = self.logprobs_seen.max(logprobs.len());
        for (at, mut logprob) in logprobs.into_iter().enumerate() {
            logprob.top = tops.next().unwrap_or_default();
            if at >= known {
                sink.logprob(logprob);
            }
        }
    }
}

fn ids(reader: &mut Reader<'_>) -> Result<Option<Vec<u64>>, JsonError> {
    if reader.take_null()? {
        return Ok(None);
    }
    let mut ids = Vec::new();
    reader.array(|_, reader| {
        ids.extend(reader.u64_or_null()?);
        Ok(())
    })?;
    Ok(Some(ids))
}

impl<'a> Meta<'a> {
    fn read(reader: &mut Reader<'a>, wanted: Wanted) -> Result<Self, JsonError> {
        let mut meta = Self::default();
        if reader.take_null()? {
            return Ok(meta);
        }
        reader.object(|key, reader| {
            match key {
                "prompt_tokens" => meta.prompt_tokens = reader.u64_or_null()?,
                "completion_tokens" => meta.completion_tokens = reader.u64_or_null()?,
                "cached_tokens" => meta.cached_tokens = reader.u64_or_null()?,
                "finish_reason" => meta.finish = Finish::read(reader)?,
                "output_token_logprobs" if wanted.logprobs => {
                    meta.logprobs = super::logprobs::read_tuples(reader)?;
                }
                "output_top_logprobs" if wanted.logprobs => {
                    meta.tops = super::logprobs::read_tuple_lists(reader)?;
                }
                _ => reader.skip()?,
            }
            Ok(())
        })?;
        Ok(meta)
    }
}

impl<'a> Finish<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Option<Self>, JsonError> {
        let mut finish = Self::default();
        match reader.peek()? {
            Kind::Null => return reader.skip().map(|()| None),
            // Versions before the object.
            Kind::String => finish.r#type = Some(reader.string()?),
            Kind::Object => reader.object(|key, reader| {
                match key {
                    "type" => finish.r#type = reader.string_or_null()?,
                    "matched" => finish.matched = Some(reader.raw_value()?),
                    "message" => finish.message = reader.string_or_null()?,
                    "status_code" => finish.status = reader.u64_or_null()?,
                    _ => reader.skip()?,
                }
                Ok(())
            })?,
            // It has finished, for a reason nobody knows.
            _ => reader.skip()?,
        }
        Ok(Some(finish))
    }

    fn as_error(&self) -> EngineError {
        EngineError {
            status: self.status.and_then(|status| u16::try_from(status).ok()),
            r#type: Some("abort".into()),
            message: self.message.map(|message| message.value().into_owned()),
            ..EngineError::default()
        }
    }
}

impl FrameParser for SgLang {
    fn frame(&mut self, event: &SseEvent<'_>, sink: &mut FrameSink<'_>) -> Result<(), JsonError> {
        if event.data == DONE {
            sink.text(Channel::Content, self.cumulative.rest());
            sink.end();
            return Ok(());
        }
        let mut frame = self.parse(event.data)?;
        if frame.is_error {
            sink.error(&EngineError::from_error_value(event.data));
            return Ok(());
        }
        if frame.index != 0 {
            sink.drop_choice();
            return Ok(());
        }
        let finish = frame.meta.finish.take();
        if let Some(finish) = &finish
            && finish.r#type.is_some_and(|kind| kind.raw() == "abort")
        {
            sink.aborted(&finish.as_error());
            return Ok(());
        }
        if let Some(tokens) = frame.meta.prompt_tokens {
            sink.tokens_in(tokens);
        }
        sink.accept();
        if let Some(tokens) = frame.meta.cached_tokens {
            sink.cached_tokens_in(tokens);
        }
        let ids = frame.output_ids.as_ref().map_or(0, Vec::len);
        if let Some(total) = frame.meta.completion_tokens {
            self.settle_mode(ids, total);
            sink.tokens(Count::Total(total));
            sink.tokens_out(total);
        } else if frame.text.is_some_and(|text| !text.is_empty()) {
            sink.tokens(Count::More(1));
        }
        self.report_details(&mut frame, sink);
        let text = frame.text.map_or("", |text| text.value_in(&mut self.scratch));
        let fault = JsonError { kind: JsonErrorKind::Type, offset: 0 };
        if self.mode == TextMode::Delta {
            // What the first frame held back before it was known to be a delta.
            match self.cumulative.rest() {
                "" => sink.text(Channel::Content, text),
                held => sink.text(Channel::Content, &format!("{held}{text}")),
            }
        } else if finish.is_some() {
            sink.text(Channel::Content, self.cumulative.complete(text).ok_or(fault)?);
        } else {
            sink.text(Channel::Content, self.cumulative.extend(text).ok_or(fault)?);
        }
        if let Some(finish) = finish {
            if let Some(matched) = finish.matched {
                sink.stop_reason(&super::plain_value(matched));
            }
            if let Some(raw) = finish.r#type {
                let raw = raw.value();
                sink.finish_reason(FinishReason::from_engine(&raw), &raw);
            }
        }
        Ok(())
    }

    fn end_marker(&self) -> Option<&str> {
        Some(DONE)
    }
}

#[cfg(test)]
mod tests {
    use crate::dialects::Dialect;
    use crate::error::Detail;
    use crate::event::TokenEvent;
    use crate::rules::{Rule, RuleTable};
    use crate::stream::{StreamConfig, StreamDecoder};
    use crate::time::Instant;

    #[test]
    fn an_abort_is_of_that_type_for_the_rules() {
        let mut rule = Rule::new(Detail::InvalidRequest);
        rule.r#type = Some("abort".into());
        let mut config = StreamConfig::new("sglang");
        config.rules = RuleTable::new(vec![rule]).into();
        let mut decoder = StreamDecoder::new(Dialect::new("sglang", []).unwrap(), config);
        let mut events = Vec::new();
        let frame = r#"{"text":"","meta_info":{"finish_reason":{"type":"abort","message":"no"}}}"#;
        let event = format!("data: {frame}\n\n");
        decoder.feed(event.as_bytes(), Instant::from_nanos(0), &mut events);
        let [TokenEvent::Error(error)] = &events[..] else { panic!("{events:?}") };
        assert_eq!(error.detail, Detail::InvalidRequest);
    }
}
