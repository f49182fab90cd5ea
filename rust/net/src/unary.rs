//! Calls that end in one answer: health, slots, versions.

use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use worker_adapters_core::engine_error::{ERROR_BODY_BYTES, EngineError};
use worker_adapters_core::error::{Detail, Phase, Processed, WorkerError};
use worker_adapters_core::event::{End, TokenEvent};
use worker_adapters_core::http::{ResponseHead, retry_after_ms};
use worker_adapters_core::redact::Redactor;
use worker_adapters_core::rules::RuleTable;
use worker_adapters_core::time::Instant;

use crate::sink::Sink;
use crate::target::{Bounds, Request, Target};

/// How much of an answer is read unless said otherwise.
pub const ANSWER_BYTES: usize = 1 << 20;

/// What a call has to know besides its request.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Call {
    /// The engine's name, for errors.
    pub engine: Arc<str>,
    /// What the engine's errors mean.
    pub rules: Arc<RuleTable>,
    /// Redacts every message.
    pub redactor: Redactor,
    /// How long the whole call may take; 30 s.
    pub timeout: Option<Duration>,
    /// When the time budget of whoever asks ends.
    pub deadline: Option<Instant>,
    /// How long connecting may take.
    pub bounds: Bounds,
    /// How large the answer may be; [`ANSWER_BYTES`].
    pub max_bytes: usize,
}

impl Call {
    /// The defaults for `engine`, without rules.
    #[must_use]
    pub fn new(engine: &str) -> Self {
        Self {
            engine: engine.into(),
            rules: Arc::default(),
            redactor: Redactor::default(),
            timeout: Some(Duration::from_secs(30)),
            deadline: None,
            bounds: Bounds::default(),
            max_bytes: ANSWER_BYTES,
        }
    }

    fn error(&self, detail: Detail, phase: Phase, message: &str) -> WorkerError {
        let error = WorkerError::new(Arc::clone(&self.engine), detail, phase);
        if message.is_empty() { error } else { error.with_message(message, &self.redactor) }
    }
}

impl Target {
    /// Sends a request and returns the body of its 200.
    ///
    /// Nothing is tried twice. Dropping the future closes the connection.
    ///
    /// # Errors
    ///
    /// Any other status, by the call's rules; a failure of the connection; an answer that is too
    /// late, too large or cut off.
    pub async fn ask(&self, request: &Request<'_>, call: Call) -> Result<Vec<u8>, WorkerError> {
        let bounds = call.bounds;
        let refusal = call.error(Detail::InvalidRequest, Phase::Validate, "");
        let redactor = call.redactor.clone();
        let body = Arc::new(Mutex::new(Vec::new()));
        let sink = Answer::new(call, Arc::clone(&body));
        let mut stream = self
            .submit(request, Box::new(sink), bounds)
            .map_err(|error| refusal.with_message(&error.to_string(), &redactor))?;
        let mut events = Vec::new();
        poll_fn(|context| stream.poll_batch(context, &mut events)).await;
        if let Some(TokenEvent::Error(error)) = events.pop() {
            return Err(*error);
        }
        let mut body = body.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::take(&mut *body))
    }
}

/// Collects one answer. Its one event is terminal: an empty `end`, or the error.
struct Answer {
    call: Call,
    due: Option<Instant>,
    status: Option<u16>,
    retry_after_ms: Option<u64>,
    kept: Vec<u8>,
    body: Arc<Mutex<Vec<u8>>>,
    is_over: bool,
}

impl Answer {
    fn new(call: Call, body: Arc<Mutex<Vec<u8>>>) -> Self {
        Self {
            call,
            due: None,
            status: None,
            retry_after_ms: None,
            kept: Vec::new(),
            body,
            is_over: false,
        }
    }

    fn end(&mut self, outcome: Result<(), WorkerError>, out: &mut Vec<TokenEvent>) {
        if self.is_over {
            return;
        }
        self.is_over = true;
        out.push(match outcome {
            Ok(()) => TokenEvent::End(Box::<End>::default()),
            Err(mut error) => {
                error.status = error.status.or(self.status);
                error.retry_after_ms = self.retry_after_ms.or(error.retry_after_ms);
                TokenEvent::Error(Box::new(error))
            }
        });
    }

    fn is_past_deadline(&self, now: Instant) -> bool {
        self.call.deadline.is_some_and(|deadline| deadline <= now)
    }

    fn past_deadline(&self, phase: Phase) -> WorkerError {
        let message = format!("the deadline passed in phase {phase}");
        self.call.error(Detail::Deadline, phase, &message)
    }

    fn refused(&self, status: u16) -> WorkerError {
        let Call { engine, rules, redactor, .. } = &self.call;
        rules.classify(engine, &EngineError::from_body(status, &self.kept), Phase::Head, redactor)
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("status", &self.status).finish_non_exhaustive()
    }
}

impl Sink for Answer {
    fn dispatched(&mut self, now: Instant) {
        self.due = self.call.timeout.map(|timeout| now.saturating_add(timeout));
    }

    fn head(&mut self, head: &ResponseHead<'_>, _: Instant, _: &mut Vec<TokenEvent>) {
        self.status = Some(head.status);
        self.retry_after_ms = retry_after_ms(head, None);
    }

    fn body(&mut self, bytes: &[u8], _: Instant, out: &mut Vec<TokenEvent>) {
        if self.is_over {
            return;
        }
        let is_answer = self.status == Some(200);
        let max = if is_answer { self.call.max_bytes } else { ERROR_BODY_BYTES };
        let room = max.saturating_sub(self.kept.len());
        self.kept.extend(bytes.iter().take(room));
        if is_answer && bytes.len() > room {
            let message = format!("the answer is larger than {max} bytes");
            self.end(Err(self.call.error(Detail::BodyTooLarge, Phase::Head, &message)), out);
        }
    }

    fn finish(&mut self, complete: bool, _: Instant, out: &mut Vec<TokenEvent>) {
        let outcome = match self.status {
            Some(200) if complete => Ok(()),
            Some(status) if status != 200 => Err(self.refused(status)),
            _ => Err(self.call.error(Detail::Truncated, Phase::Head, "the answer was cut off")),
        };
        if outcome.is_ok() && !self.is_over {
            let kept = std::mem::take(&mut self.kept);
            *self.body.lock().unwrap_or_else(PoisonError::into_inner) = kept;
        }
        self.end(outcome, out);
    }

    fn fail(
        &mut self,
        detail: Detail,
        phase: Phase,
        processed: Option<Processed>,
        message: &str,
        now: Instant,
        out: &mut Vec<TokenEvent>,
    ) {
        let mut error = if self.is_past_deadline(now) {
            self.past_deadline(phase)
        } else {
            self.call.error(detail, phase, message)
        };
        error.processed = processed.unwrap_or(error.processed);
        self.end(Err(error), out);
    }

    fn cancel(&mut self, _: Instant, out: &mut Vec<TokenEvent>) {
        self.end(Err(self.call.error(Detail::Aborted, Phase::Cancel, "")), out);
    }

    fn reader(&mut self, _: bool, _: Instant) {}

    fn tick(&mut self, now: Instant, out: &mut Vec<TokenEvent>) {
        if self.is_past_deadline(now) {
            self.end(Err(self.past_deadline(Phase::Head)), out);
        } else if self.due.is_some_and(|due| due <= now) {
            self.end(Err(self.call.error(Detail::UnaryTimeout, Phase::Head, "")), out);
        }
    }

    fn next_wakeup(&self) -> Option<Instant> {
        if self.is_over {
            return None;
        }
        self.due.into_iter().chain(self.call.deadline).min()
    }

    fn deadline(&self) -> Option<Instant> {
        self.call.deadline
    }

    fn phase(&self) -> Phase {
        if self.is_over { Phase::Drain } else { Phase::Head }
    }

    fn is_terminal(&self) -> bool {
        self.is_over
    }

    fn tokens_emitted(&self) -> u64 {
        0
    }

    fn has_surplus(&self) -> bool {
        false
    }
}
