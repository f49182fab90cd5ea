//! One response, from bytes to events: [`StreamDecoder`].
//!
//! It is told everything that happens to a response – dispatched, head, bytes, end of body, failure,
//! cancellation, a paused reader, a tick – each with the time, and answers with events and with the
//! moment at which it wants to be told the time again. It owns the law of a stream:
//!
//! ```text
//! dispatched → started → token* → end | error
//! ```
//!
//! `metrics` events may stand anywhere between `started` and the terminal event.
//!
//! Exactly one terminal event; a body that ends without the engine's own finish signal is an error,
//! never an `end`; nothing follows the terminal event.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use crate::clocks::{Clocks, Running};
use crate::dialects::{Dialect, FrameParser};
use crate::engine_error::{ERROR_BODY_BYTES, EngineError};
use crate::error::{Detail, Phase, Processed, WorkerError};
use crate::event::{
    Channel, End, FinishReason, Logprob, Metrics, Score, Started, Token, TokenDetail, TokenEvent,
    UsageSource,
};
use crate::http::{ResponseHead, retry_after_ms};
use crate::json::JsonError;
use crate::metrics::{Ending, Tallies, Tally, TaskMetrics};
use crate::redact::Redactor;
use crate::rules::RuleTable;
use crate::sse::{DEFAULT_MAX_EVENT_BYTES, SseDecoder, SseError, SseEvent, SseItem};
use crate::time::Instant;

/// What a [`StreamDecoder`] is told about its stream beforehand.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StreamConfig {
    /// What the `started` event reports beside what the engine says; its `engine` names the engine
    /// in errors, too.
    pub started: Started,
    /// The engine's error rules.
    pub rules: Arc<RuleTable>,
    /// Redacts every message.
    pub redactor: Redactor,
    /// Bound on the bytes of one event.
    pub max_event_bytes: usize,
    /// The stream's clocks.
    pub clocks: Clocks,
    /// What the wall clock said at some instant; only a `Retry-After` that is a date asks for it.
    pub wall: Option<(Instant, SystemTime)>,
    /// Where this task is counted, if it is.
    pub metrics: Option<TaskMetrics>,
}

impl StreamConfig {
    /// A configuration for `engine` with no rules, no secrets and no clocks.
    #[must_use]
    pub fn new(engine: &str) -> Self {
        Self {
            started: Started { engine: engine.into(), ..Started::default() },
            rules: Arc::default(),
            redactor: Redactor::default(),
            max_event_bytes: DEFAULT_MAX_EVENT_BYTES,
            clocks: Clocks::default(),
            wall: None,
            metrics: None,
        }
    }

    /// What the wall clock says now.
    fn wall_at(&self, now: Instant) -> Option<SystemTime> {
        let (at, said) = self.wall?;
        said.checked_add(now.saturating_since(at))
    }
}

/// How many tokens a frame stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// The engine's own running total, this frame included.
    Total(u64),
    /// So many more, counted by us.
    More(u64),
}

/// Decodes one response into [`TokenEvent`]s.
///
/// Events are appended to a vector of the caller's, which it empties and reuses. In steady state
/// nothing is allocated per token. Of the `metrics` events in it only the last is kept: however
/// slow the reader, there is one at most beside the tokens, none of which is ever dropped.
///
/// ```
/// use worker_adapters_core::dialects::Dialect;
/// use worker_adapters_core::event::TokenEvent;
/// use worker_adapters_core::stream::{StreamConfig, StreamDecoder};
/// use worker_adapters_core::time::Instant;
///
/// let dialect = Dialect::new("llamacpp", [])?;
/// let mut decoder = StreamDecoder::new(dialect, StreamConfig::new("llamacpp"));
/// let now = Instant::from_secs_f64(0.0);
/// let mut events = Vec::new();
/// decoder.feed(b"data: {\"content\":\" hi\",\"stop\":false,\"tokens_predicted\":1}\n\n", now, &mut events);
/// decoder.finish(true, now, &mut events); // the connection closed: no `stop: true` was seen
/// let kinds: Vec<_> = events.iter().map(TokenEvent::kind).collect();
/// assert_eq!(kinds, ["started", "token", "error"]);
/// # Ok::<(), worker_adapters_core::dialects::DialectError>(())
/// ```
pub struct StreamDecoder<P = Dialect> {
    sse: SseDecoder,
    parser: P,
    law: Law,
    body: Body,
    tally: Option<Box<Tally>>,
}

/// What the bytes of the body are.
enum Body {
    Events,
    /// The body of an answer with an error status, as much of it as is kept.
    Error {
        status: u16,
        kept: Vec<u8>,
        retry_after_ms: Option<u64>,
    },
}

impl<P: FrameParser> StreamDecoder<P> {
    /// A decoder for a stream that has not been dispatched.
    #[must_use]
    pub fn new(parser: P, mut config: StreamConfig) -> Self {
        let tally = config.metrics.take().map(|task| Box::new(Tally::new(task)));
        Self {
            sse: SseDecoder::with_max_event_bytes(config.max_event_bytes),
            parser,
            law: Law::new(config),
            body: Body::Events,
            tally,
        }
    }

    /// The request has been handed to the transport: the first-token clock starts.
    pub fn dispatched(&mut self, now: Instant) {
        self.law.clocks.dispatch(now);
        if let Some(tally) = &self.tally {
            tally.started();
        }
    }

    /// The response head has come. A status other than 200 makes the body an error body; a 200 that
    /// is no event stream is an error at once.
    pub fn head(&mut self, head: &ResponseHead<'_>, now: Instant, out: &mut Vec<TokenEvent>) {
        self.take_head(head, now, out);
        if head.status == 200 {
            self.answered();
        }
        self.account(now);
    }

    fn take_head(&mut self, head: &ResponseHead<'_>, now: Instant, out: &mut Vec<TokenEvent>) {
        if self.is_over(now, out) {
            return;
        }
        self.law.has_head = true;
        self.law.clocks.bytes(now);
        if head.status == 200 {
            if let Some((detail, message)) = head.event_stream_fault() {
                self.law.fail(detail, None, message, out);
            }
        } else {
            // A pause that does not end before the deadline is worth nothing.
            let left = self.law.clocks.until_deadline_ms(now);
            let received = self.law.config.wall_at(now);
            let retry_after_ms = retry_after_ms(head, received).map(|pause| pause.min(left));
            self.body = Body::Error { status: head.status, kept: Vec::new(), retry_after_ms };
        }
    }

    /// One network read of the body.
    pub fn feed(&mut self, read: &[u8], now: Instant, out: &mut Vec<TokenEvent>) {
        self.take(read, now, out);
        if let Some(tally) = &mut self.tally
            && (tally.fed(read.len(), self.law.tokens_seen, now) || self.law.is_terminal())
        {
            self.account(now);
        }
    }

    fn take(&mut self, read: &[u8], now: Instant, out: &mut Vec<TokenEvent>) {
        if self.expire_deadline(now, out) {
            return;
        }
        if let Body::Error { kept, .. } = &mut self.body {
            let room = ERROR_BODY_BYTES.saturating_sub(kept.len());
            kept.extend(read.iter().take(room));
            return;
        }
        self.law.has_head = true;
        self.law.clocks.bytes(now);
        let Self { sse, parser, law, .. } = self;
        let fed = sse.feed(read, |item| law.item(item, parser, now, out));
        if let Err(error @ SseError::EventTooLarge { .. }) = fed {
            self.law.fail(Detail::FrameTooLarge, None, &error.to_string(), out);
        }
    }

    /// The body has ended; `complete` says whether its HTTP framing was whole.
    pub fn finish(&mut self, complete: bool, now: Instant, out: &mut Vec<TokenEvent>) {
        self.take_end(complete, now, out);
        self.account(now);
    }

    fn take_end(&mut self, complete: bool, now: Instant, out: &mut Vec<TokenEvent>) {
        if self.is_over(now, out) {
            return;
        }
        if let Body::Error { status, kept, retry_after_ms } = &self.body {
            let mut error = EngineError::from_body(*status, kept);
            let retry_after_ms = *retry_after_ms;
            let left = self.law.clocks.until_deadline_ms(now);
            error.retry_after_ms = error.retry_after_ms.map(|pause| pause.min(left));
            self.law.engine_error(
                Detail::EngineRejected,
                &error,
                Some(Phase::Head),
                retry_after_ms,
                out,
            );
            return;
        }
        self.sse.finish();
        self.finish_events(complete, now, out);
    }

    fn finish_events(&mut self, complete: bool, now: Instant, out: &mut Vec<TokenEvent>) {
        let Self { sse, parser, law, .. } = self;
        let partial = sse.eof_partial();
        let partial_value = partial
            .and_then(|line| line.strip_prefix("data:"))
            .map(|value| value.strip_prefix(' ').unwrap_or(value));
        // The marker is whole though its blank line, or even its line end, is missing.
        let data = match (sse.eof_pending(), partial_value) {
            (None, value) | (value, None) => value,
            (Some(_), Some(_)) => None,
        };
        if let Some(data) = data
            && parser.end_marker() == Some(data)
        {
            let event = SseEvent { event: "message", data, id: "", retry: None };
            law.frame(&event, parser, now, out);
            return;
        }
        let is_clean = complete && partial.is_none() && sse.eof_pending().is_none();
        if is_clean && law.is_started() {
            parser.body_end(&mut FrameSink { law, out, now });
            if law.is_terminal() {
                return;
            }
        }
        if let Some(error) = stray_error(sse) {
            law.engine_error(Detail::EngineRejected, &error, None, None, out);
            return;
        }
        let tokens = law.tokens_emitted;
        let what = if complete { "ended" } else { "was cut off" };
        let message =
            format!("the stream {what} without the engine's finish signal (tokens: {tokens})");
        law.fail(Detail::Truncated, None, &message, out);
    }

    /// The transport failed. `processed` says what is known of it beyond what `detail` implies.
    pub fn fail(
        &mut self,
        detail: Detail,
        phase: Phase,
        processed: Option<Processed>,
        message: &str,
        now: Instant,
        out: &mut Vec<TokenEvent>,
    ) {
        if self.law.is_terminal() {
            return;
        }
        // A transport that fails at the deadline fails because of it, wherever it is.
        let mut error = if self.law.clocks.past_deadline(now) {
            let message = format!("the task's deadline passed in phase {phase}");
            self.law.error(Detail::Deadline, Some(phase), &message)
        } else {
            self.law.error(detail, Some(phase), message)
        };
        if let (Some(processed), false) = (processed, self.law.is_started()) {
            error.processed = processed;
        }
        self.law.terminate(TokenEvent::Error(Box::new(error)), out);
        self.account(now);
    }

    /// The caller cancelled: the stream ends with `finish_reason: cancelled`, unless it has ended.
    pub fn cancel(&mut self, now: Instant, out: &mut Vec<TokenEvent>) {
        self.law.finish_reason = Some((FinishReason::Cancelled, None));
        self.law.end(now, out);
        self.account(now);
    }

    /// Whether our own reader is the slow side. Meanwhile only the deadline runs.
    pub fn reader(&mut self, paused: bool, now: Instant) {
        self.law.clocks.pause(paused, now);
    }

    /// Lets a clock that has run out end the stream.
    pub fn tick(&mut self, now: Instant, out: &mut Vec<TokenEvent>) {
        if let Some(detail) = self.law.clocks.expired(now) {
            self.law.expire(detail, out);
            self.account(now);
        }
    }

    /// When the next clock runs out; None when none is running or the stream is over.
    #[must_use]
    pub fn next_wakeup(&self) -> Option<Instant> {
        if self.law.is_terminal() { None } else { self.law.clocks.next_wakeup() }
    }

    /// When the task's time budget ends, if it has one.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.law.config.clocks.deadline
    }

    /// A unary answer (embedding, rerank) has come: `started` and `end` at once.
    pub fn complete(&mut self, answer: UnaryAnswer, now: Instant, out: &mut Vec<TokenEvent>) {
        self.answered();
        self.take_answer(answer, now, out);
        self.account(now);
    }

    fn take_answer(&mut self, answer: UnaryAnswer, now: Instant, out: &mut Vec<TokenEvent>) {
        if self.is_over(now, out) {
            return;
        }
        let UnaryAnswer { tokens_in, embeddings, scores } = answer;
        self.law.tokens_in = tokens_in;
        self.law.engine_tokens_out = Some(0);
        self.law.start(out);
        let mut end = self.law.end_event(now);
        end.embeddings = embeddings;
        end.scores = scores;
        self.law.terminate(TokenEvent::End(Box::new(end)), out);
    }

    /// Where the stream is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.law.phase()
    }

    /// Whether the terminal event has been produced.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        self.law.is_terminal()
    }

    /// How many tokens the events so far stand for.
    #[must_use]
    pub fn tokens_emitted(&self) -> u64 {
        self.law.tokens_emitted
    }

    /// Frames that came after the terminal event and were dropped.
    #[must_use]
    pub fn dropped_after_end(&self) -> u64 {
        self.law.dropped_after_end
    }

    /// Frames of a choice other than the first, dropped: one stream has one answer.
    #[must_use]
    pub fn dropped_choices(&self) -> u64 {
        self.law.dropped_choices
    }

    /// `metrics` events that gave way to a later one before anybody had taken them.
    #[must_use]
    pub fn metrics_dropped(&self) -> u64 {
        self.law.metrics_dropped
    }

    /// Malformed UTF-8 sequences of the body that became U+FFFD.
    #[must_use]
    pub fn utf8_replaced(&self) -> u64 {
        self.sse.utf8_replaced()
    }

    /// The engine has taken the task up: how it ends is for this decoder to tell.
    fn answered(&mut self) {
        if let Some(tally) = &mut self.tally {
            tally.is_answered = true;
        }
    }

    /// Adds what is new to the metrics, if the task is counted.
    fn account(&mut self, now: Instant) {
        let Some(tally) = &mut self.tally else { return };
        let law = &self.law;
        tally.is_answered |= law.has_head && matches!(self.body, Body::Events);
        let tallies = Tallies {
            tokens_in: law.tokens_in.unwrap_or(0),
            tokens_out: law.tokens_seen.max(law.engine_tokens_out.unwrap_or(0)),
            utf8_replaced: self.sse.utf8_replaced(),
            after_end: law.dropped_after_end,
            metrics_dropped: law.metrics_dropped,
            first_token: law.clocks.latency_first_token(),
        };
        tally.fold(&tallies, now);
        if let Some(ending) = law.ending {
            tally.end(ending, law.clocks.decode_time(now));
        }
    }

    /// Whether the stream has ended; it does now if its deadline has passed.
    fn is_over(&mut self, now: Instant, out: &mut Vec<TokenEvent>) -> bool {
        self.expire_deadline(now, out) || self.law.is_terminal()
    }

    fn expire_deadline(&mut self, now: Instant, out: &mut Vec<TokenEvent>) -> bool {
        let expired = !self.law.is_terminal() && self.law.clocks.past_deadline(now);
        if expired {
            self.law.expire(Detail::Deadline, out);
        }
        expired
    }
}

impl<P> fmt::Debug for StreamDecoder<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamDecoder")
            .field("engine", &self.law.config.started.engine)
            .field("phase", &self.law.phase())
            .field("tokens_emitted", &self.law.tokens_emitted)
            .finish_non_exhaustive()
    }
}

/// What a unary call answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UnaryAnswer {
    /// Tokens of the input.
    pub tokens_in: Option<u64>,
    /// For `embedding`: one vector per input, in input order.
    pub embeddings: Option<Vec<Vec<f64>>>,
    /// For `rerank`: one score per document, in input order.
    pub scores: Option<Vec<Score>>,
}

/// An error that the engine wrote where a reader of events does not look: lines without framing, a
/// block without its blank line.
fn stray_error(sse: &SseDecoder) -> Option<EngineError> {
    if let Some(error) = sse.eof_pending().and_then(EngineError::from_json) {
        return Some(error);
    }
    if let Some(error) = sse.eof_partial().and_then(EngineError::from_field_line) {
        return Some(error);
    }
    let mut text = sse.unknown_lines().join("\n");
    if let Some(partial) = sse.eof_partial() {
        text.push('\n');
        text.push_str(partial);
    }
    EngineError::from_json(&text)
}

/// What a [`FrameParser`] tells of a frame, in this order: start, counts, text, finish.
pub struct FrameSink<'s> {
    law: &'s mut Law,
    out: &'s mut Vec<TokenEvent>,
    now: Instant,
}

impl fmt::Debug for FrameSink<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameSink").finish_non_exhaustive()
    }
}

impl FrameSink<'_> {
    /// The frame is the engine's and no error: the stream has started.
    pub fn accept(&mut self) {
        self.law.start(self.out);
    }

    /// Whether a frame has been accepted before.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.law.is_started()
    }

    /// The model, as the engine names it. Reported by `started` unless the caller named one.
    pub fn model(&mut self, model: &str) {
        self.law.config.started.model.get_or_insert_with(|| model.into());
    }

    /// How many tokens the frame stands for, whether or not it has text.
    pub fn tokens(&mut self, count: Count) {
        let seen = match count {
            Count::Total(total) => {
                self.law.tokens_source = UsageSource::Engine;
                total.max(self.law.tokens_seen)
            }
            Count::More(more) => self.law.tokens_seen.saturating_add(more),
        };
        if seen > self.law.tokens_seen {
            self.law.tokens_pending += seen - self.law.tokens_seen;
            self.law.tokens_seen = seen;
            self.law.clocks.token(self.now);
        }
    }

    /// The engine reports that it is at work, without a token.
    pub fn progress(&mut self) {
        self.law.clocks.progress(self.now);
    }

    /// A text delta. An empty one is no event; its tokens add to the next.
    pub fn text(&mut self, channel: Channel, text: &str) {
        if text.is_empty() || self.law.is_terminal() {
            return;
        }
        let law = &mut *self.law;
        let pending = std::mem::take(&mut law.tokens_pending);
        let n = u32::try_from(pending).unwrap_or(u32::MAX);
        let detail = law.pending_detail.take();
        let token = Token { t: text.into(), i: law.events_emitted, n, channel, detail };
        self.out.push(TokenEvent::Token(token));
        law.events_emitted += 1;
        law.tokens_emitted += pending;
    }

    /// How the engine's work goes. Told after the text of its frame.
    pub fn metrics(&mut self, mut metrics: Metrics) {
        if !self.law.is_started() {
            return;
        }
        metrics.latency_first_token_ms = self.law.clocks.latency_first_token_ms();
        let is_metrics = |event: &TokenEvent| matches!(event, TokenEvent::Metrics(_));
        if let Some(at) = self.out.iter().rposition(is_metrics) {
            self.out.remove(at);
            self.law.metrics_dropped += 1;
        }
        self.out.push(TokenEvent::Metrics(Box::new(metrics)));
    }

    /// The engine's count of the prompt's tokens.
    pub fn tokens_in(&mut self, tokens: u64) {
        self.law.tokens_in = Some(tokens);
    }

    /// The engine's count of generated tokens, final or so far.
    pub fn tokens_out(&mut self, tokens: u64) {
        self.law.engine_tokens_out = Some(tokens);
    }

    /// Why generation stopped, as a word of ours and of the engine's.
    pub fn finish_reason(&mut self, reason: FinishReason, raw: &str) {
        if !self.law.is_terminal() {
            self.law.finish_reason = Some((reason, Some(raw.into())));
        }
    }

    /// The engine's finish signal. An error where no frame of this stream's answer came before it: a
    /// signal alone is no empty answer, nor is one behind answers other than this one.
    pub fn end(&mut self) {
        if self.law.is_unanswered() {
            let message = "the stream ended, and nothing of it was of the answer with index 0";
            self.law.fail(Detail::Protocol, None, message, self.out);
            return;
        }
        self.law.end(self.now, self.out);
    }

    /// The engine reports an error.
    pub fn error(&mut self, error: &EngineError) {
        self.law.engine_error(Detail::EngineRejected, error, None, None, self.out);
    }

    /// The engine gave the request up without being asked to by this stream.
    pub fn aborted(&mut self, error: &EngineError) {
        self.law.engine_error(Detail::Aborted, error, None, None, self.out);
    }

    /// An id of the tokens the frame stands for. It goes with the next text.
    pub fn token_id(&mut self, id: u64) {
        self.law.pending_detail().ids.push(id);
    }

    /// What the engine says of a token's probability. It goes with the next text.
    pub fn logprob(&mut self, logprob: Logprob) {
        self.law.pending_detail().logprobs.push(logprob);
    }

    /// How many of the prompt's tokens the engine took from its cache.
    pub fn cached_tokens_in(&mut self, tokens: u64) {
        self.law.cached_tokens_in = Some(tokens);
    }

    /// The stop word or token id that was matched.
    pub fn stop_reason(&mut self, matched: &str) {
        self.law.stop_reason = Some(matched.into());
    }

    /// The frame belongs to an answer other than the first.
    pub fn drop_choice(&mut self) {
        self.law.dropped_choices += 1;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// No frame has come.
    Waiting,
    Started,
    /// The terminal event has been produced.
    Over,
}

/// The state machine of a stream: what has happened, and what may still come.
struct Law {
    config: StreamConfig,
    clocks: Running,
    state: State,
    has_head: bool,
    events_emitted: u64,
    tokens_emitted: u64,
    /// Tokens that frames so far stand for, by the engine's count or ours.
    tokens_seen: u64,
    /// Those of them that no event stands for yet.
    tokens_pending: u64,
    tokens_source: UsageSource,
    /// What the engine has said of tokens that no event stands for yet.
    pending_detail: Option<Box<TokenDetail>>,
    tokens_in: Option<u64>,
    cached_tokens_in: Option<u64>,
    engine_tokens_out: Option<u64>,
    finish_reason: Option<(FinishReason, Option<Box<str>>)>,
    stop_reason: Option<Box<str>>,
    dropped_after_end: u64,
    dropped_choices: u64,
    metrics_dropped: u64,
    ending: Option<Ending>,
}

impl Law {
    fn new(config: StreamConfig) -> Self {
        Self {
            clocks: Running::new(config.clocks),
            config,
            state: State::Waiting,
            has_head: false,
            events_emitted: 0,
            tokens_emitted: 0,
            tokens_seen: 0,
            tokens_pending: 0,
            tokens_source: UsageSource::Counted,
            pending_detail: None,
            tokens_in: None,
            cached_tokens_in: None,
            engine_tokens_out: None,
            finish_reason: None,
            stop_reason: None,
            dropped_after_end: 0,
            dropped_choices: 0,
            metrics_dropped: 0,
            ending: None,
        }
    }

    fn is_started(&self) -> bool {
        self.state == State::Started
    }

    fn pending_detail(&mut self) -> &mut TokenDetail {
        self.pending_detail.get_or_insert_default()
    }

    fn is_terminal(&self) -> bool {
        self.state == State::Over
    }

    /// Whether nothing that came told anything of this stream's own answer.
    fn is_unanswered(&self) -> bool {
        let told_nothing = self.dropped_choices > 0
            && self.events_emitted == 0
            && self.tokens_seen == 0
            && self.finish_reason.is_none();
        !self.is_started() || told_nothing
    }

    fn item<P: FrameParser>(
        &mut self,
        item: SseItem<'_>,
        parser: &mut P,
        now: Instant,
        out: &mut Vec<TokenEvent>,
    ) {
        match item {
            SseItem::Event(event) => self.frame(&event, parser, now, out),
            // llama.cpp before PR 16109 reports errors under a field name of their own, and some
            // servers without any.
            SseItem::UnknownLine(line) => {
                if let Some(error) = EngineError::from_field_line(line) {
                    self.engine_error(Detail::EngineRejected, &error, None, None, out);
                }
            }
        }
    }

    fn frame<P: FrameParser>(
        &mut self,
        event: &SseEvent<'_>,
        parser: &mut P,
        now: Instant,
        out: &mut Vec<TokenEvent>,
    ) {
        // Engines send these as keep-alives; they say nothing.
        if event.data.is_empty() || event.data == "null" {
            return;
        }
        if self.is_terminal() {
            self.dropped_after_end += 1;
            return;
        }
        if event.event == "error" {
            let error = EngineError::from_error_value(event.data);
            self.engine_error(Detail::EngineRejected, &error, None, None, out);
            return;
        }
        let mut sink = FrameSink { law: self, out, now };
        if let Err(error) = parser.frame(event, &mut sink) {
            self.bad_frame(error, out);
        }
    }

    fn bad_frame(&mut self, error: JsonError, out: &mut Vec<TokenEvent>) {
        self.fail(Detail::BadJson, None, &format!("a frame of the stream is {error}"), out);
    }

    fn start(&mut self, out: &mut Vec<TokenEvent>) {
        if self.state != State::Waiting {
            return;
        }
        self.state = State::Started;
        let mut started = self.config.started.clone();
        started.tokens_in = started.tokens_in.or(self.tokens_in);
        out.push(TokenEvent::Started(Box::new(started)));
    }

    fn end(&mut self, now: Instant, out: &mut Vec<TokenEvent>) {
        if self.is_terminal() {
            return;
        }
        let end = self.end_event(now);
        self.terminate(TokenEvent::End(Box::new(end)), out);
    }

    fn end_event(&mut self, now: Instant) -> End {
        let usage_source =
            self.engine_tokens_out.map_or(self.tokens_source, |_| UsageSource::Engine);
        let (finish_reason, finish_reason_raw) =
            self.finish_reason.take().map_or((None, None), |(reason, raw)| (Some(reason), raw));
        End {
            tokens_out: self.engine_tokens_out.unwrap_or(self.tokens_seen),
            decode_ms: self.clocks.decode_ms(now),
            tokens_in: self.tokens_in,
            cached_tokens_in: self.cached_tokens_in,
            finish_reason,
            finish_reason_raw,
            stop_reason: self.stop_reason.take(),
            latency_first_token_ms: self.clocks.latency_first_token_ms(),
            usage_source: Some(usage_source),
            seed: self.config.started.seed,
            engine_version: self.config.started.engine_version.clone(),
            embeddings: None,
            scores: None,
        }
    }

    fn engine_error(
        &mut self,
        fallback: Detail,
        error: &EngineError,
        phase: Option<Phase>,
        retry_after_ms: Option<u64>,
        out: &mut Vec<TokenEvent>,
    ) {
        let StreamConfig { started, rules, redactor, .. } = &self.config;
        let phase = phase.unwrap_or_else(|| self.phase());
        let mut error = rules.classify_or(fallback, &started.engine, error, phase, redactor);
        error.retry_after_ms = retry_after_ms.or(error.retry_after_ms);
        self.complete_error(&mut error);
        self.terminate(TokenEvent::Error(Box::new(error)), out);
    }

    fn expire(&mut self, detail: Detail, out: &mut Vec<TokenEvent>) {
        let clock = match detail {
            Detail::Deadline => "the task's deadline passed",
            Detail::FirstToken => "the first-token clock ran out",
            Detail::TokenGap => "the token-gap clock ran out",
            _ => "the idle clock ran out",
        };
        let message = format!("{clock} in phase {}", self.phase());
        self.fail(detail, None, &message, out);
    }

    fn fail(
        &mut self,
        detail: Detail,
        phase: Option<Phase>,
        message: &str,
        out: &mut Vec<TokenEvent>,
    ) {
        let error = self.error(detail, phase, message);
        self.terminate(TokenEvent::Error(Box::new(error)), out);
    }

    fn error(&self, detail: Detail, phase: Option<Phase>, message: &str) -> WorkerError {
        let engine = Arc::clone(&self.config.started.engine);
        let phase = phase.unwrap_or_else(|| self.phase());
        let mut error = WorkerError::new(engine, detail, phase);
        if !message.is_empty() {
            error = error.with_message(message, &self.config.redactor);
        }
        self.complete_error(&mut error);
        error
    }

    /// Adds what the stream knows.
    fn complete_error(&self, error: &mut WorkerError) {
        error.tokens_emitted = self.tokens_emitted;
        error.correlation_id.clone_from(&self.config.started.correlation_id);
        if self.is_started() {
            error.processed = Processed::Yes;
        } else if !self.clocks.is_dispatched() && !self.has_head {
            error.processed = Processed::No;
        }
    }

    fn terminate(&mut self, event: TokenEvent, out: &mut Vec<TokenEvent>) {
        if !self.is_terminal() {
            self.state = State::Over;
            self.ending = Ending::of(&event);
            out.push(event);
        }
    }

    fn phase(&self) -> Phase {
        if self.is_terminal() {
            Phase::Drain
        } else if self.clocks.has_first_token() {
            Phase::Stream
        } else if self.has_head {
            Phase::FirstToken
        } else if self.clocks.is_dispatched() {
            Phase::Head
        } else {
            Phase::Queue
        }
    }
}
