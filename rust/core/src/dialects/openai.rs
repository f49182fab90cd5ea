//! OpenAI's completions and chat completions streams, with what servers have made of them.
//!
//! * `data: [DONE]` is the finish signal; it also follows an error, and is no success then.
//! * Text comes as `choices[0].text` or `choices[0].delta.content`; thinking as `reasoning`
//!   (vLLM ≥ 0.11.1) or `reasoning_content`; tool calls as `delta.tool_calls`, handed on as the
//!   JSON text the engine sent.
//! * A chunk without text stands for a token that ended inside a character or a possible stop word,
//!   unless it announces the role or the finish reason.
//! * `usage` comes on the last chunk, on one of its own with no choice, on every chunk (then it
//!   counts the tokens of each), or not at all.
//! * A stop text that was matched is no part of the text, but for TGI. With the option `stop`, a JSON
//!   list of the stop texts, it is left out of the content there as well.
//! * With `n > 1` choices are told apart by `index`. A stream here has one answer: chunks of another
//!   index are dropped and counted.

use std::ops::Range;

use super::options::{DialectError, Pairs, WANTED, Wanted};
use super::stop_text::StopText;
use crate::dialects::FrameParser;
use crate::engine_error::EngineError;
use crate::event::{Channel, FinishReason, Logprob};
use crate::hidden::Hidden;
use crate::json::{JsonError, Kind, RawStr, Reader};
use crate::sse::SseEvent;
use crate::stream::{Count, FrameSink};
use crate::template::Template;

pub(crate) const DONE: &str = "[DONE]";

/// Parser of `text_completion` and `chat.completion.chunk` objects.
#[derive(Debug)]
pub struct OpenAi {
    wanted: Wanted,
    stop: StopText,
    scratch: Hidden<String>,
    /// A token's chunk: its text, in the channel beside.
    template: Template<1>,
    template_channel: Channel,
}

impl Default for OpenAi {
    fn default() -> Self {
        Self {
            wanted: Wanted::default(),
            stop: StopText::default(),
            scratch: Hidden::default(),
            template: Template::default(),
            template_channel: Channel::Content,
        }
    }
}

#[derive(Default)]
struct Chunk<'a> {
    choice: Option<Choice<'a>>,
    other_choices: u64,
    usage: Option<Usage>,
    model: Option<RawStr<'a>>,
    is_error: bool,
}

/// A text and where it stands in the chunk.
type Placed<'a> = (RawStr<'a>, Range<usize>);

fn placed<'a>(reader: &mut Reader<'a>) -> Result<Option<Placed<'a>>, JsonError> {
    Ok(reader.string_or_null()?.map(|text| (text, reader.string_span(text))))
}

#[derive(Default)]
struct Choice<'a> {
    index: Option<u64>,
    text: Option<Placed<'a>>,
    delta: Delta<'a>,
    finish_reason: Option<&'a str>,
    /// The stop word or token id that was matched, as sent.
    matched: Option<&'a str>,
    /// How many ids the chunk lists.
    id_count: Option<u64>,
    /// How many tokens the chunk gives log probabilities of.
    logprob_count: Option<u64>,
    ids: Vec<u64>,
    logprobs: Vec<Logprob>,
}

#[derive(Default)]
struct Delta<'a> {
    content: Option<Placed<'a>>,
    reasoning: Option<Placed<'a>>,
    tool_calls: Option<&'a str>,
    has_role: bool,
}

#[derive(Clone, Copy, Default)]
struct Usage {
    tokens_in: Option<u64>,
    cached_tokens_in: Option<u64>,
    tokens_out: Option<u64>,
}

impl<'a> Chunk<'a> {
    fn parse(text: &'a str, wanted: Wanted) -> Result<Self, JsonError> {
        let mut chunk = Self::default();
        let (mut has_choices, mut has_detail) = (false, false);
        let mut reader = Reader::new(text);
        reader.object(|key, reader| {
            match key {
                "choices" => {
                    has_choices = true;
                    chunk.read_choices(reader, wanted)?;
                }
                "usage" => chunk.usage = Usage::read(reader)?,
                "model" if reader.peek()? == Kind::String => chunk.model = Some(reader.string()?),
                // FastAPI reports what it refuses itself as `detail`.
                "detail" => has_detail |= reader.skip_some()?,
                "error" => chunk.is_error |= reader.skip_some()?,
                "object" if reader.peek()? == Kind::String => {
                    chunk.is_error |= reader.string()?.raw() == "error";
                }
                _ => reader.skip()?,
            }
            Ok(())
        })?;
        reader.end()?;
        chunk.is_error |= has_detail && !has_choices;
        Ok(chunk)
    }

    fn read_choices(&mut self, reader: &mut Reader<'a>, wanted: Wanted) -> Result<(), JsonError> {
        self.choice = None;
        self.other_choices = 0;
        if reader.take_null()? {
            return Ok(());
        }
        reader.array(|at, reader| {
            let choice = Choice::read(reader, wanted)?;
            if choice.index.unwrap_or(at as u64) == 0 {
                self.choice = Some(choice);
            } else {
                self.other_choices += 1;
            }
            Ok(())
        })
    }
}

impl<'a> Choice<'a> {
    fn read(reader: &mut Reader<'a>, wanted: Wanted) -> Result<Self, JsonError> {
        let mut choice = Self::default();
        reader.object(|key, reader| {
            match key {
                "index" => choice.index = reader.u64_or_null()?,
                "text" => choice.text = placed(reader)?,
                "delta" => choice.delta = Delta::read(reader)?,
                "finish_reason" => choice.finish_reason = super::finish_word(reader)?,
                "stop_reason" | "matched_stop" => {
                    choice.matched = Some(reader.raw_value()?).filter(|value| *value != "null");
                }
                "token_ids" => choice.read_ids(reader, wanted)?,
                "logprobs" if reader.peek()? == Kind::Object => {
                    choice.logprob_count = Some(if wanted.logprobs {
                        choice.logprobs = super::logprobs::read_openai(reader)?;
                        choice.logprobs.len() as u64
                    } else {
                        super::logprobs::count_openai(reader)?
                    });
                }
                _ => reader.skip()?,
            }
            Ok(())
        })?;
        Ok(choice)
    }

    fn read_ids(&mut self, reader: &mut Reader<'a>, wanted: Wanted) -> Result<(), JsonError> {
        self.id_count = None;
        self.ids.clear();
        if reader.take_null()? {
            return Ok(());
        }
        let mut count = 0;
        reader.array(|_, reader| {
            count += 1;
            let id = reader.u64_or_null()?;
            if wanted.token_ids {
                self.ids.extend(id);
            }
            Ok(())
        })?;
        self.id_count = Some(count);
        Ok(())
    }
}

impl<'a> Delta<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, JsonError> {
        let mut delta = Self::default();
        if reader.take_null()? {
            return Ok(delta);
        }
        reader.object(|key, reader| {
            match key {
                "content" => delta.content = placed(reader)?,
                "reasoning" | "reasoning_content" => {
                    // Servers of the time between the two names send both, one of them null.
                    delta.reasoning = placed(reader)?.or(delta.reasoning.take());
                }
                "tool_calls" => {
                    if !reader.take_null()? {
                        let calls = reader.raw_value()?;
                        let is_empty =
                            calls.trim_matches(['[', ']', ' ', '\t', '\n', '\r']).is_empty();
                        delta.tool_calls = (!is_empty).then_some(calls);
                    }
                }
                "role" => {
                    delta.has_role = !reader.take_null()?;
                    if delta.has_role {
                        reader.skip()?;
                    }
                }
                _ => reader.skip()?,
            }
            Ok(())
        })?;
        Ok(delta)
    }
}

impl Usage {
    fn read(reader: &mut Reader<'_>) -> Result<Option<Self>, JsonError> {
        if reader.take_null()? {
            return Ok(None);
        }
        let mut usage = Self::default();
        reader.object(|key, reader| {
            match key {
                "prompt_tokens" => usage.tokens_in = reader.u64_or_null()?,
                "completion_tokens" => usage.tokens_out = reader.u64_or_null()?,
                "prompt_tokens_details" if !reader.take_null()? => {
                    reader.object(|key, reader| {
                        match key {
                            "cached_tokens" => usage.cached_tokens_in = reader.u64_or_null()?,
                            _ => reader.skip()?,
                        }
                        Ok(())
                    })?;
                }
                "prompt_tokens_details" => {}
                _ => reader.skip()?,
            }
            Ok(())
        })?;
        Ok(Some(usage))
    }
}

impl FrameParser for OpenAi {
    fn frame(&mut self, event: &SseEvent<'_>, sink: &mut FrameSink<'_>) -> Result<(), JsonError> {
        if event.data == DONE {
            self.stop.finish(false, sink);
            sink.end();
            return Ok(());
        }
        if self.repeats(event.data, sink) {
            return Ok(());
        }
        let chunk = Chunk::parse(event.data, self.wanted)?;
        if chunk.is_error {
            self.stop.finish(false, sink);
            sink.error(&EngineError::from_error_value(event.data));
            return Ok(());
        }
        for _ in 0..chunk.other_choices {
            sink.drop_choice();
        }
        if chunk.choice.is_none() && chunk.other_choices > 0 {
            return Ok(());
        }
        if let Some(model) = chunk.model
            && !sink.is_started()
        {
            sink.model(&model.value());
        }
        sink.accept();
        if let Some(usage) = chunk.usage {
            if let Some(tokens) = usage.tokens_in {
                sink.tokens_in(tokens);
            }
            if let Some(tokens) = usage.cached_tokens_in {
                sink.cached_tokens_in(tokens);
            }
            if let Some(tokens) = usage.tokens_out {
                sink.tokens_out(tokens);
            }
        }
        let Some(choice) = chunk.choice else { return Ok(()) };
        let Delta { content, reasoning, tool_calls, has_role } = choice.delta;
        let content = choice.text.or(content);
        let has =
            |text: &Option<Placed<'_>>| text.as_ref().is_some_and(|(text, _)| !text.is_empty());
        let has_text = has(&content) || has(&reasoning) || tool_calls.is_some();
        let is_held = !has_text && !has_role && choice.finish_reason.is_none();
        // The best witness there is of how many tokens the chunk stands for. A chunk without text,
        // even the last one, may list some.
        let listed = choice.id_count.or(choice.logprob_count.filter(|count| *count > 0));
        match (chunk.usage.and_then(|usage| usage.tokens_out), listed) {
            (Some(total), _) => sink.tokens(Count::Total(total)),
            (None, Some(count)) => sink.tokens(Count::More(count)),
            (None, None) if has_text || is_held => sink.tokens(Count::More(1)),
            (None, None) => {}
        }
        choice.ids.iter().for_each(|id| sink.token_id(*id));
        choice.logprobs.into_iter().for_each(|logprob| sink.logprob(logprob));
        if let Some((text, _)) = &reasoning {
            sink.text(Channel::Reasoning, text.value_in(&mut self.scratch));
        }
        if let Some((text, _)) = &content {
            self.stop.pass(text.value_in(&mut self.scratch), sink);
        }
        if let Some(calls) = tool_calls {
            sink.text(Channel::Tool, calls);
        }
        if let Some(matched) = choice.matched {
            sink.stop_reason(&super::plain_value(matched));
        }
        if let Some(raw) = choice.finish_reason {
            let raw = super::plain_value(raw);
            self.stop.finish(matches!(&*raw, "stop" | "stop_sequence"), sink);
            match &*raw {
                // The engine was stopped, or failed; it is not the model that ended.
                "abort" | "error" => sink.aborted(&EngineError::default()),
                raw => sink.finish_reason(FinishReason::from_engine(raw), raw),
            }
        } else if !has_role
            && tool_calls.is_none()
            && chunk.usage.is_none()
            && chunk.other_choices == 0
            && choice.id_count.is_none()
            && choice.logprob_count.is_none()
        {
            let (channel, hole) = match (content, reasoning) {
                (Some((_, hole)), None) => (Channel::Content, hole),
                (None, Some((_, hole))) => (Channel::Reasoning, hole),
                _ => return Ok(()),
            };
            self.template.learn(event.data, [hole]);
            self.template_channel = channel;
        }
        Ok(())
    }

    fn end_marker(&self) -> Option<&str> {
        Some(DONE)
    }
}

const OPTIONS: [&str; 3] = [WANTED[0], WANTED[1], "stop"];

impl OpenAi {
    pub(crate) fn new(options: Pairs<'_>) -> Result<Self, DialectError> {
        let mut openai = Self::default();
        for (option, value) in options {
            if option == "stop" {
                openai.stop = StopText::from_option(value)?;
            } else if !openai.wanted.take(option, value)? {
                let option = option.to_owned();
                let known = &OPTIONS;
                return Err(DialectError::UnknownOption { dialect: "openai", option, known });
            }
        }
        Ok(openai)
    }

    /// Reads a chunk that differs from the last token's in nothing but its text.
    fn repeats(&mut self, data: &str, sink: &mut FrameSink<'_>) -> bool {
        let Some(text) = self.template.compare(data).and_then(|mut chunk| {
            let text = chunk.text()?;
            chunk.is_end().then_some(text)
        }) else {
            return false;
        };
        sink.tokens(Count::More(1));
        let text = text.value_in(&mut self.scratch);
        match self.template_channel {
            Channel::Content => self.stop.pass(text, sink),
            channel => sink.text(channel, text),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialects::tests::short_cuts;

    fn taken(frames: &[&str]) -> Vec<bool> {
        short_cuts(OpenAi::default(), OpenAi::repeats, frames)
    }

    #[test]
    fn token_chunks_take_the_short_cut() {
        for frames in [
            [
                r#"{"choices":[{"text":" there","index":0,"logprobs":null,"finish_reason":null}],"usage":null}"#,
                r#"{"choices":[{"text":"\ud83d\ude42","index":0,"logprobs":null,"finish_reason":null}],"usage":null}"#,
            ],
            [
                r#"{"choices":[{"index":0,"delta":{"content":"a"}}]}"#,
                r#"{"choices":[{"index":0,"delta":{"content":""}}]}"#,
            ],
            [
                r#"{"choices":[{"index":0,"delta":{"reasoning_content":"a"}}]}"#,
                r#"{"choices":[{"index":0,"delta":{"reasoning_content":"b"}}]}"#,
            ],
        ] {
            assert_eq!(taken(&frames), [false, true], "{}", frames[0]);
        }
    }

    #[test]
    fn chunks_that_tell_more_do_not() {
        for frame in [
            r#"{"choices":[{"delta":{"role":"assistant","content":"a"}}]}"#,
            r#"{"choices":[{"delta":{"content":"a","reasoning":"b"}}]}"#,
            r#"{"choices":[{"delta":{"content":"a","tool_calls":[{"index":0}]}}]}"#,
            r#"{"choices":[{"text":"a"},{"text":"b"}]}"#,
            r#"{"choices":[{"text":"a","token_ids":[1]}]}"#,
            r#"{"choices":[{"text":"a","logprobs":{"tokens":["a"]}}]}"#,
            r#"{"choices":[{"text":"a","finish_reason":"stop"}]}"#,
            r#"{"choices":[{"text":"a"}],"usage":{"completion_tokens":1}}"#,
        ] {
            assert_eq!(taken(&[frame, frame]), [false, false], "{frame}");
        }
    }
}
