//! The one vocabulary of a stream: [`TokenEvent`] and its parts.

use std::fmt;
use std::sync::Arc;

use compact_str::CompactString;

use crate::error::WorkerError;
use crate::json::write_string;
use crate::words::words;

words! {
    /// Which part of an answer a token belongs to.
    Channel {
        /// The answer itself.
        Content = "content",
        /// Thinking that precedes it.
        Reasoning = "reasoning",
        /// Calls of tools, as JSON text.
        Tool = "tool",
    }
}

words! {
    /// Why a stream ended.
    FinishReason {
        /// The model ended its answer, or a stop word did.
        Stop = "stop",
        /// The token limit or the context is used up.
        Length = "length",
        /// The caller cancelled.
        Cancelled = "cancelled",
        /// The engine's filter stopped it.
        ContentFilter = "content_filter",
        /// The model calls tools.
        ToolCalls = "tool_calls",
        /// A reason this library has no word for; the engine's own is kept beside it.
        Unknown = "unknown",
    }
}

impl FinishReason {
    /// The reason that an engine's own word stands for.
    #[must_use]
    pub fn from_engine(raw: &str) -> Self {
        match raw {
            "stop" | "eos" | "eos_token" | "word" | "stop_sequence" => Self::Stop,
            "length" | "limit" => Self::Length,
            "content_filter" => Self::ContentFilter,
            "tool_calls" | "function_call" => Self::ToolCalls,
            _ => Self::Unknown,
        }
    }
}

words! {
    /// Who counted the tokens.
    UsageSource {
        /// The engine reported the number.
        Engine = "engine",
        /// The library counted frames, because the engine reported none.
        Counted = "counted",
    }
}

/// One event of a stream: `started → token* → end | error`, with `metrics` anywhere in between.
///
/// `Debug` shows no text.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum TokenEvent {
    /// The engine's first frame that is not an error has come.
    Started(Box<Started>),
    /// A text delta.
    Token(Token),
    /// How the engine's work goes. One that nobody has taken gives way to the next.
    Metrics(Box<Metrics>),
    /// The stream is complete. Terminal.
    End(Box<End>),
    /// The stream failed. Terminal.
    Error(Box<WorkerError>),
}

/// What is known when a stream starts. Absent fields are unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Started {
    /// The engine's name.
    pub engine: Arc<str>,
    /// The engine's version.
    pub engine_version: Option<Arc<str>>,
    /// The model the engine runs.
    pub model: Option<Arc<str>>,
    /// Its digest.
    pub model_digest: Option<Arc<str>>,
    /// The seed sent with the request.
    pub seed: Option<i64>,
    /// The sampler profile that was used.
    pub sampler_profile_version: Option<Arc<str>>,
    /// Tokens of the prompt.
    pub tokens_in: Option<u64>,
    /// The caller's correlation id.
    pub correlation_id: Option<Arc<str>>,
    /// The task's place in the orchestrator's queue at submission.
    pub queue_position: Option<i64>,
    /// When the orchestrator expected it to start, in milliseconds.
    pub predicted_start_ms: Option<i64>,
}

/// A text delta.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct Token {
    /// The text, never holding a broken UTF-8 sequence. Up to 24 bytes need no allocation.
    pub t: CompactString,
    /// The event's number, from 0 without gaps.
    pub i: u64,
    /// How many tokens it stands for.
    pub n: u32,
    /// Which part of the answer it belongs to.
    pub channel: Channel,
    /// What else the engine says of the tokens, where it was asked to.
    pub detail: Option<Box<TokenDetail>>,
}

/// Ids and probabilities of the tokens an event stands for.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct TokenDetail {
    /// Token ids; fewer than the event's `n` where the engine does not tell all.
    pub ids: Vec<u64>,
    /// One entry per token that the engine reports on.
    pub logprobs: Vec<Logprob>,
}

/// A token's natural logarithm of its probability, and those of its rivals.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct Logprob {
    /// The token's text, as the engine renders it alone.
    pub token: Box<str>,
    /// Its id, where the engine tells.
    pub id: Option<u64>,
    /// ln of its probability; None where the engine has none (the first token of a prompt).
    pub logprob: Option<f64>,
    /// The most likely tokens in its place, without rivals of their own.
    pub top: Vec<Logprob>,
}

impl Logprob {
    /// An entry without rivals.
    #[must_use]
    pub fn new(token: &str, id: Option<u64>, logprob: Option<f64>) -> Self {
        Self { token: token.into(), id, logprob, top: Vec::new() }
    }
}

// Generated text never reaches a log through `{:?}`.
impl fmt::Debug for Logprob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logprob")
            .field("logprob", &self.logprob)
            .field("top", &self.top.len())
            .finish_non_exhaustive()
    }
}

// Generated text never reaches a log through `{:?}`.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("i", &self.i)
            .field("n", &self.n)
            .field("channel", &self.channel)
            .field("bytes", &self.t.len())
            .finish_non_exhaustive()
    }
}

/// How an engine's work on a stream goes, as far as it tells. Absent fields are unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Metrics {
    /// Tokens of the prompt, those the engine took from its cache included.
    pub tokens_in: Option<u64>,
    /// Those of `tokens_in` that the engine took from its cache.
    pub cached_tokens_in: Option<u64>,
    /// Those of `tokens_in` that the engine has read so far, cached ones included.
    pub tokens_in_read: Option<u64>,
    /// How much of the prompt the engine took from its cache, from 0 to 1.
    pub kv_warmth: Option<f64>,
    /// How long the engine has read the prompt, in milliseconds.
    pub prefill_ms: Option<u64>,
    /// Tokens generated so far.
    pub tokens_out: Option<u64>,
    /// How long the engine has generated, in milliseconds.
    pub latency_decode_ms: Option<u64>,
    /// From dispatch to the first token, in milliseconds.
    pub latency_first_token_ms: Option<u64>,
}

/// How a stream ended.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct End {
    /// Tokens generated, those without text included.
    pub tokens_out: u64,
    /// From the first token to the end, in milliseconds.
    pub decode_ms: u64,
    /// Tokens of the prompt, those the engine took from its cache included.
    pub tokens_in: Option<u64>,
    /// Those of `tokens_in` that the engine took from its cache; None where it does not tell.
    pub cached_tokens_in: Option<u64>,
    /// Why it ended; None where the engine gives no reason.
    pub finish_reason: Option<FinishReason>,
    /// The engine's own word for it.
    pub finish_reason_raw: Option<Box<str>>,
    /// The stop word or token id that was matched, where the engine tells.
    pub stop_reason: Option<Box<str>>,
    /// From dispatch to the first token, in milliseconds.
    pub latency_first_token_ms: Option<u64>,
    /// Who counted `tokens_out`.
    pub usage_source: Option<UsageSource>,
    /// The seed sent with the request.
    pub seed: Option<i64>,
    /// The engine's version.
    pub engine_version: Option<Arc<str>>,
    /// For `embedding`: one vector per input, in input order.
    pub embeddings: Option<Vec<Vec<f64>>>,
    /// For `rerank`: one score per document, in input order.
    pub scores: Option<Vec<Score>>,
}

/// A document's score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// The document's position in the request.
    pub index: u64,
    /// How well it answers the query; the scale is the engine's.
    pub score: f64,
}

/// The value of a data field, as [`TokenEvent::fields`] hands it out. `Debug` shows no text.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub enum Value<'a> {
    /// JSON `null`.
    Null,
    /// A truth value.
    Bool(bool),
    /// A number without sign.
    UInt(u64),
    /// A number with sign.
    Int(i64),
    /// A number with a fraction.
    Float(f64),
    /// A text.
    Str(&'a str),
    /// Vectors.
    Embeddings(&'a [Vec<f64>]),
    /// Scores.
    Scores(&'a [Score]),
    /// Token ids.
    Ids(&'a [u64]),
    /// Log probabilities.
    Logprobs(&'a [Logprob]),
}

// Generated text never reaches a log through `{:?}`.
impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("Null"),
            Self::Bool(value) => f.debug_tuple("Bool").field(value).finish(),
            Self::UInt(value) => f.debug_tuple("UInt").field(value).finish(),
            Self::Int(value) => f.debug_tuple("Int").field(value).finish(),
            Self::Float(value) => f.debug_tuple("Float").field(value).finish(),
            Self::Str(text) => write!(f, "Str({} bytes)", text.len()),
            Self::Embeddings(rows) => write!(f, "Embeddings({})", rows.len()),
            Self::Scores(scores) => f.debug_tuple("Scores").field(scores).finish(),
            Self::Ids(ids) => write!(f, "Ids({})", ids.len()),
            Self::Logprobs(tokens) => write!(f, "Logprobs({})", tokens.len()),
        }
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(value: &'a str) -> Self {
        Self::Str(value)
    }
}

impl From<u64> for Value<'_> {
    fn from(value: u64) -> Self {
        Self::UInt(value)
    }
}

impl From<f64> for Value<'_> {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<i64> for Value<'_> {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl TokenEvent {
    /// The kind of event: `started`, `token`, `metrics`, `end` or `error`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Started(_) => "started",
            Self::Token(_) => "token",
            Self::Metrics(_) => "metrics",
            Self::End(_) => "end",
            Self::Error(_) => "error",
        }
    }

    /// Whether nothing follows it.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::End(_) | Self::Error(_))
    }

    /// Calls `field` with every field of the event's data, in a fixed order, absent ones left out.
    pub fn fields<'e>(&'e self, field: &mut dyn FnMut(&'static str, Value<'e>)) {
        match self {
            Self::Started(started) => started.fields(field),
            Self::Token(token) => token.fields(field),
            Self::Metrics(metrics) => metrics.fields(field),
            Self::End(end) => end.fields(field),
            Self::Error(error) => error_fields(error, field),
        }
    }

    /// Appends the event's data as a JSON object on one line.
    pub fn write_data_json(&self, out: &mut Vec<u8>) {
        out.push(b'{');
        let mut first = true;
        self.fields(&mut |name, value| {
            if !std::mem::replace(&mut first, false) {
                out.push(b',');
            }
            write_string(name, out);
            out.push(b':');
            write_value(value, out);
        });
        out.push(b'}');
    }

    /// Appends `{"kind":…,"data":{…}}` on one line.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"kind\":\"");
        out.extend_from_slice(self.kind().as_bytes());
        out.extend_from_slice(b"\",\"data\":");
        self.write_data_json(out);
        out.push(b'}');
    }

    /// Appends the event as a server-sent event: `event: KIND\ndata: JSON\n\n`.
    pub fn write_sse(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(self.kind().as_bytes());
        out.extend_from_slice(b"\ndata: ");
        self.write_data_json(out);
        out.extend_from_slice(b"\n\n");
    }
}

/// Calls `field` when there is a value.
fn optional<'e, T: Into<Value<'e>>>(
    field: &mut dyn FnMut(&'static str, Value<'e>),
    name: &'static str,
    value: Option<T>,
) {
    if let Some(value) = value {
        field(name, value.into());
    }
}

impl Started {
    fn fields<'e>(&'e self, field: &mut dyn FnMut(&'static str, Value<'e>)) {
        field("engine", Value::Str(&self.engine));
        optional(field, "engine_version", self.engine_version.as_deref());
        optional(field, "model", self.model.as_deref());
        optional(field, "model_digest", self.model_digest.as_deref());
        optional(field, "seed", self.seed);
        optional(field, "sampler_profile_version", self.sampler_profile_version.as_deref());
        optional(field, "tokens_in", self.tokens_in);
        optional(field, "correlation_id", self.correlation_id.as_deref());
        optional(field, "queue_position", self.queue_position);
        optional(field, "predicted_start_ms", self.predicted_start_ms);
    }
}

impl Token {
    fn fields<'e>(&'e self, field: &mut dyn FnMut(&'static str, Value<'e>)) {
        field("t", Value::Str(&self.t));
        field("i", Value::UInt(self.i));
        if self.n != 1 {
            field("n", Value::UInt(u64::from(self.n)));
        }
        if self.channel != Channel::Content {
            field("channel", Value::Str(self.channel.as_str()));
        }
        if let Some(detail) = &self.detail {
            if !detail.ids.is_empty() {
                field("token_ids", Value::Ids(&detail.ids));
            }
            if !detail.logprobs.is_empty() {
                field("logprobs", Value::Logprobs(&detail.logprobs));
            }
        }
    }
}

impl Metrics {
    fn fields<'e>(&'e self, field: &mut dyn FnMut(&'static str, Value<'e>)) {
        optional(field, "tokens_in", self.tokens_in);
        optional(field, "cached_tokens_in", self.cached_tokens_in);
        optional(field, "tokens_in_read", self.tokens_in_read);
        optional(field, "kv_warmth", self.kv_warmth);
        optional(field, "prefill_ms", self.prefill_ms);
        optional(field, "tokens_out", self.tokens_out);
        optional(field, "latency_decode_ms", self.latency_decode_ms);
        optional(field, "latency_first_token_ms", self.latency_first_token_ms);
    }
}

impl End {
    fn fields<'e>(&'e self, field: &mut dyn FnMut(&'static str, Value<'e>)) {
        field("tokens_out", Value::UInt(self.tokens_out));
        field("decode_ms", Value::UInt(self.decode_ms));
        field("decode_time_ms", Value::UInt(self.decode_ms));
        optional(field, "tokens_in", self.tokens_in);
        optional(field, "cached_tokens_in", self.cached_tokens_in);
        let reason = self.finish_reason.map_or(Value::Null, |reason| reason.as_str().into());
        field("finish_reason", reason);
        optional(field, "finish_reason_raw", self.finish_reason_raw.as_deref());
        optional(field, "stop_reason", self.stop_reason.as_deref());
        optional(field, "latency_first_token_ms", self.latency_first_token_ms);
        optional(field, "usage_source", self.usage_source.map(UsageSource::as_str));
        optional(field, "seed", self.seed);
        optional(field, "engine_version", self.engine_version.as_deref());
        if let Some(embeddings) = &self.embeddings {
            field("embeddings", Value::Embeddings(embeddings));
        }
        if let Some(scores) = &self.scores {
            field("scores", Value::Scores(scores));
        }
    }
}

fn error_fields<'e>(error: &'e WorkerError, field: &mut dyn FnMut(&'static str, Value<'e>)) {
    field("code", Value::Str(error.code.as_str()));
    field("message", Value::Str(&error.message));
    field("engine", Value::Str(&error.engine));
    field("retriable", Value::Bool(error.retriable));
    optional(field, "retry_after_ms", error.retry_after_ms);
    field("kind", Value::Str(error.kind.as_str()));
    field("detail", Value::Str(error.detail.as_str()));
    field("phase", Value::Str(error.phase.as_str()));
    optional(field, "status", error.status.map(u64::from));
    field("processed", Value::Str(error.processed.as_str()));
    field("tokens_emitted", Value::UInt(error.tokens_emitted));
    optional(field, "correlation_id", error.correlation_id.as_deref());
}

fn write_value(value: Value<'_>, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::UInt(number) => write_display(number, out),
        Value::Int(number) => write_display(number, out),
        Value::Float(number) => write_float(number, out),
        Value::Str(text) => write_string(text, out),
        Value::Embeddings(vectors) => write_list(vectors, out, |vector, out| {
            write_list(vector, out, |number, out| write_float(*number, out));
        }),
        Value::Scores(scores) => write_list(scores, out, |score, out| {
            out.extend_from_slice(b"{\"index\":");
            write_display(score.index, out);
            out.extend_from_slice(b",\"score\":");
            write_float(score.score, out);
            out.push(b'}');
        }),
        Value::Ids(ids) => write_list(ids, out, |id, out| write_display(id, out)),
        Value::Logprobs(logprobs) => write_list(logprobs, out, write_logprob),
    }
}

fn write_logprob(logprob: &Logprob, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"token\":");
    write_string(&logprob.token, out);
    if let Some(id) = logprob.id {
        out.extend_from_slice(b",\"id\":");
        write_display(id, out);
    }
    out.extend_from_slice(b",\"logprob\":");
    write_float(logprob.logprob.unwrap_or(f64::NAN), out);
    if !logprob.top.is_empty() {
        out.extend_from_slice(b",\"top\":");
        write_list(&logprob.top, out, write_logprob);
    }
    out.push(b'}');
}

fn write_list<T>(items: &[T], out: &mut Vec<u8>, write: impl Fn(&T, &mut Vec<u8>)) {
    out.push(b'[');
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write(item, out);
    }
    out.push(b']');
}

/// JSON has no infinities: they become `null`.
fn write_float(number: f64, out: &mut Vec<u8>) {
    if number.is_finite() {
        // The shortest text that reads back as the same number.
        write_display(format_args!("{number:?}"), out);
    } else {
        out.extend_from_slice(b"null");
    }
}

fn write_display(value: impl fmt::Display, out: &mut Vec<u8>) {
    use std::io::Write;

    // Writing to a Vec does not fail.
    let _ = write!(out, "{value}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Detail, Phase};

    fn json(event: &TokenEvent) -> serde_json::Value {
        let mut out = Vec::new();
        event.write_json(&mut out);
        assert!(!out.contains(&b'\n'));
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn a_token_is_small() {
        assert!(size_of::<TokenEvent>() <= 48, "{}", size_of::<TokenEvent>());
    }

    #[test]
    fn defaults_are_left_out_of_a_token() {
        let token = |n, channel| {
            TokenEvent::Token(Token { t: "é\n".into(), i: 3, n, channel, detail: None })
        };
        let data = |event| json(&event)["data"].clone();
        assert_eq!(data(token(1, Channel::Content)), serde_json::json!({"t": "é\n", "i": 3}));
        assert_eq!(
            data(token(2, Channel::Tool)),
            serde_json::json!({"t": "é\n", "i": 3, "n": 2, "channel": "tool"})
        );
    }

    #[test]
    fn an_end_without_a_reason_says_null() {
        let end = End {
            embeddings: Some(vec![vec![0.5, -1e-9, f64::NAN]]),
            scores: Some(vec![Score { index: 1, score: 2.0 }]),
            ..End::default()
        };
        let data = json(&TokenEvent::End(Box::new(end)))["data"].clone();
        assert_eq!(data["finish_reason"], serde_json::Value::Null);
        assert_eq!(data["embeddings"], serde_json::json!([[0.5, -1e-9, null]]));
        assert_eq!(data["scores"], serde_json::json!([{"index": 1, "score": 2.0}]));
        assert!(data.get("tokens_in").is_none());
    }

    #[test]
    fn an_error_carries_its_fields() {
        let error = WorkerError::new("llamacpp", Detail::Truncated, Phase::Stream);
        let data = json(&TokenEvent::Error(Box::new(error)))["data"].clone();
        for name in [
            "code",
            "message",
            "engine",
            "retriable",
            "kind",
            "detail",
            "phase",
            "processed",
            "tokens_emitted",
        ] {
            assert!(data.get(name).is_some(), "{name}");
        }
    }

    #[test]
    fn sse_is_one_block() {
        let token =
            Token { t: "a\n\nb".into(), i: 0, n: 1, channel: Channel::Content, detail: None };
        let mut out = Vec::new();
        TokenEvent::Token(token).write_sse(&mut out);
        assert_eq!(out, b"event: token\ndata: {\"t\":\"a\\n\\nb\",\"i\":0}\n\n");
    }

    #[test]
    fn debug_shows_no_text() {
        let token =
            Token { t: "a prompt".into(), i: 0, n: 1, channel: Channel::Content, detail: None };
        assert!(!format!("{:?}", TokenEvent::Token(token)).contains("prompt"));
    }
}
