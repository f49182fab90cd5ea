//! Any engine that streams JSON objects, by saying where in them things are.
//!
//! A field map names JSON pointers (RFC 6901): of the text, of token ids, of the finish reason, of
//! an error and of the engine's counts, and how the stream ends. Most engines need no code of their
//! own with it.

use super::cumulative::Cumulative;
use super::openai::DONE;
use super::options::{DialectError, Pairs, WANTED, Wanted, bad_value};
use super::plain_value;
use crate::dialects::FrameParser;
use crate::engine_error::EngineError;
use crate::event::{Channel, FinishReason};
use crate::hidden::Hidden;
use crate::json::{JsonError, JsonErrorKind, Kind, Reader};
use crate::sse::SseEvent;
use crate::stream::{Count, FrameSink};

/// Parser by a map of fields.
///
/// | option | meaning |
/// |---|---|
/// | `text_pointer` | the text; needed |
/// | `text` | `delta` (as it is unless given) or `cumulative` |
/// | `token_ids_pointer` | an id or a list of ids |
/// | `finish_reason_pointer` | the finish reason, null until there is one |
/// | `error_pointer` | an error, null where there is none |
/// | `tokens_in_pointer`, `tokens_out_pointer` | the engine's counts so far |
/// | `end` | the finish signal: `marker:DATA` (an event of exactly that data; `marker:[DONE]` unless given), `pointer:POINTER` (a value that is neither null nor false), `finish_reason` (needs its pointer), or `body` (the whole HTTP body) |
///
/// Without `tokens_out_pointer` and `token_ids_pointer` a frame with text counts as one token.
#[derive(Debug)]
pub struct FieldMap {
    wanted: Wanted,
    text: Pointer,
    token_ids: Option<Pointer>,
    finish_reason: Option<Pointer>,
    error: Option<Pointer>,
    tokens_in: Option<Pointer>,
    tokens_out: Option<Pointer>,
    end: Ending,
    cumulative: Option<Cumulative>,
    scratch: Hidden<String>,
}

#[derive(Debug)]
enum Ending {
    Marker(String),
    Pointer(Pointer),
    FinishReason,
    Body,
}

/// A JSON pointer, split and unescaped.
#[derive(Debug)]
struct Pointer(Vec<String>);

const OPTIONS: [&str; 10] = [
    WANTED[0],
    WANTED[1],
    "text",
    "text_pointer",
    "token_ids_pointer",
    "finish_reason_pointer",
    "error_pointer",
    "tokens_in_pointer",
    "tokens_out_pointer",
    "end",
];

impl FieldMap {
    pub(crate) fn new(options: Pairs<'_>) -> Result<Self, DialectError> {
        let mut wanted = Wanted::default();
        let mut text = None;
        let (mut token_ids, mut finish_reason, mut error) = (None, None, None);
        let (mut tokens_in, mut tokens_out) = (None, None);
        let mut end = Ending::Marker(DONE.to_owned());
        let mut cumulative = None;
        for (option, value) in options {
            let field = match option {
                "text_pointer" => &mut text,
                "token_ids_pointer" => &mut token_ids,
                "finish_reason_pointer" => &mut finish_reason,
                "error_pointer" => &mut error,
                "tokens_in_pointer" => &mut tokens_in,
                "tokens_out_pointer" => &mut tokens_out,
                "text" => {
                    cumulative = match value {
                        "delta" => None,
                        "cumulative" => Some(Cumulative::default()),
                        _ => return Err(bad_value("text", "delta or cumulative")),
                    };
                    continue;
                }
                "end" => {
                    end = Ending::parse(value)?;
                    continue;
                }
                _ if wanted.take(option, value)? => continue,
                _ => {
                    let option = option.to_owned();
                    let known = &OPTIONS;
                    return Err(DialectError::UnknownOption {
                        dialect: "field_map",
                        option,
                        known,
                    });
                }
            };
            *field = Some(Pointer::parse(option, value)?);
        }
        let missing = DialectError::Missing { dialect: "field_map", option: "text_pointer" };
        let text = text.ok_or(missing)?;
        if matches!(end, Ending::FinishReason) && finish_reason.is_none() {
            let (dialect, option) = ("field_map", "finish_reason_pointer");
            return Err(DialectError::Missing { dialect, option });
        }
        let scratch = Hidden::default();
        Ok(Self {
            wanted,
            text,
            token_ids,
            finish_reason,
            error,
            tokens_in,
            tokens_out,
            end,
            cumulative,
            scratch,
        })
    }
}

const ENDINGS: &str = "marker:DATA, pointer:POINTER, finish_reason or body";

impl Ending {
    fn parse(value: &str) -> Result<Self, DialectError> {
        match value {
            "finish_reason" => Ok(Self::FinishReason),
            "body" => Ok(Self::Body),
            _ => match value.split_once(':') {
                Some(("marker", data)) if !data.is_empty() && !data.contains(['\n', '\r']) => {
                    Ok(Self::Marker(data.to_owned()))
                }
                Some(("pointer", pointer)) => Pointer::parse("end", pointer).map(Self::Pointer),
                _ => Err(bad_value("end", ENDINGS)),
            },
        }
    }
}

impl Pointer {
    /// RFC 6901, section 4: `~1` is `/`, `~0` is `~`.
    fn parse(option: &str, text: &str) -> Result<Self, DialectError> {
        let Some(path) = text.strip_prefix('/') else {
            return Err(bad_value(option, "a JSON pointer, like /choices/0/text"));
        };
        let steps = path.split('/').map(|step| step.replace("~1", "/").replace("~0", "~"));
        Ok(Self(steps.collect()))
    }

    /// The value it points at, as sent; None where there is none or it is null.
    fn find<'a>(&self, document: &'a str) -> Result<Option<&'a str>, JsonError> {
        let mut found = None;
        Self::walk(&mut Reader::new(document), &self.0, &mut found)?;
        Ok(found.filter(|value| *value != "null"))
    }

    fn walk<'a>(
        reader: &mut Reader<'a>,
        steps: &[String],
        found: &mut Option<&'a str>,
    ) -> Result<(), JsonError> {
        let Some((step, rest)) = steps.split_first() else {
            *found = Some(reader.raw_value()?);
            return Ok(());
        };
        match reader.peek()? {
            Kind::Object => reader.object(|key, reader| {
                if key == step {
                    // The last of equal keys wins, with whatever it holds.
                    *found = None;
                    return Self::walk(reader, rest, found);
                }
                reader.skip()
            }),
            Kind::Array => reader.array(|at, reader| {
                if step.parse() == Ok(at) {
                    return Self::walk(reader, rest, found);
                }
                reader.skip()
            }),
            _ => reader.skip(),
        }
    }

    /// A whole number there.
    fn number(&self, document: &str) -> Result<Option<u64>, JsonError> {
        self.find(document)?.map_or(Ok(None), |value| Reader::new(value).u64_or_null())
    }
}

impl FrameParser for FieldMap {
    fn frame(&mut self, event: &SseEvent<'_>, sink: &mut FrameSink<'_>) -> Result<(), JsonError> {
        let document = event.data;
        if let Ending::Marker(marker) = &self.end
            && document == marker
        {
            self.finish(sink);
            return Ok(());
        }
        let mut reader = Reader::new(document);
        if reader.peek()? != Kind::Object {
            return Err(reader.error(JsonErrorKind::Type));
        }
        reader.skip()?;
        reader.end()?;
        let find = |pointer: &Option<Pointer>| {
            pointer.as_ref().map_or(Ok(None), |pointer| pointer.find(document))
        };
        let number = |pointer: &Option<Pointer>| {
            pointer.as_ref().map_or(Ok(None), |pointer| pointer.number(document))
        };
        if let Some(error) = find(&self.error)? {
            sink.error(&EngineError::from_error_value(&plain_value(error)));
            return Ok(());
        }
        let text = self.text.find(document)?;
        let text = text.map_or(Ok(None), |text| Reader::new(text).string_or_null())?;
        let reason = find(&self.finish_reason)?;
        let (tokens_in, tokens_out) = (number(&self.tokens_in)?, number(&self.tokens_out)?);
        let ids = find(&self.token_ids)?.map_or(Ok(Vec::new()), read_ids)?;
        let is_end = match &self.end {
            Ending::Pointer(pointer) => {
                pointer.find(document)?.is_some_and(|value| value != "false")
            }
            Ending::FinishReason => reason.is_some(),
            Ending::Marker(_) | Ending::Body => false,
        };
        let mut text = text.map_or("", |text| text.value_in(&mut self.scratch));
        let has_text = !text.is_empty();
        if let Some(cumulative) = &mut self.cumulative {
            let fault = JsonError { kind: JsonErrorKind::Type, offset: 0 };
            text = cumulative.extend(text).ok_or(fault)?;
        }
        if let Some(tokens) = tokens_in {
            sink.tokens_in(tokens);
        }
        sink.accept();
        match (tokens_out, ids.len()) {
            (Some(total), _) => {
                sink.tokens_out(total);
                sink.tokens(Count::Total(total));
            }
            // A cumulative text may hold back what is new in it.
            (None, 0) if has_text => sink.tokens(Count::More(1)),
            (None, 0) => {}
            (None, count) => sink.tokens(Count::More(count as u64)),
        }
        if self.wanted.token_ids {
            for id in ids {
                sink.token_id(id);
            }
        }
        sink.text(Channel::Content, text);
        if let Some(reason) = reason {
            let raw = plain_value(reason);
            sink.finish_reason(FinishReason::from_engine(&raw), &raw);
        }
        if is_end {
            self.finish(sink);
        }
        Ok(())
    }

    fn body_end(&mut self, sink: &mut FrameSink<'_>) {
        if matches!(self.end, Ending::Body) {
            self.finish(sink);
        }
    }

    fn end_marker(&self) -> Option<&str> {
        if let Ending::Marker(marker) = &self.end { Some(marker) } else { None }
    }
}

impl FieldMap {
    fn finish(&mut self, sink: &mut FrameSink<'_>) {
        if let Some(cumulative) = &mut self.cumulative {
            sink.text(Channel::Content, cumulative.rest());
        }
        sink.end();
    }
}

/// One id or a list of them.
fn read_ids(value: &str) -> Result<Vec<u64>, JsonError> {
    let mut ids = Vec::new();
    let mut reader = Reader::new(value);
    if reader.peek()? == Kind::Array {
        reader.array(|_, reader| {
            ids.extend(reader.u64_or_null()?);
            Ok(())
        })?;
    } else {
        ids.extend(reader.u64_or_null()?);
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_data_that_an_event_can_have_on_one_line() {
        let new = |end| FieldMap::new(vec![("text_pointer", "/t"), ("end", end)]);
        assert_eq!(new("marker:<end>").unwrap().end_marker(), Some("<end>"));
        for end in ["marker:", "marker:a\nb", "marker:a\rb", "marker"] {
            assert_eq!(new(end).unwrap_err(), bad_value("end", ENDINGS), "{end:?}");
        }
    }
}
