//! What one task tells: that it started, what came of it, and how it ended – once.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::histogram::TraceId;
use super::names::{Family, Label, Outcome};
use super::replica::StreamSeries;
use super::series::Part;
use crate::error::{Phase, WorkerError, WorkerErrorKind};
use crate::event::{FinishReason, TokenEvent};
use crate::time::Instant;

/// One task's way to the series of its replica. A clone is another handle on the same task.
///
/// Give it to the task's decoder ([`StreamConfig::metrics`](crate::StreamConfig)), to each one where
/// the task is sent several times. A decoder tells how the task ended once the engine has answered
/// 200; what fails before is told by whoever submits: [`refused`](Self::refused) or
/// [`cancelled`](Self::cancelled).
#[derive(Clone)]
pub struct TaskMetrics(Arc<Task>);

struct Task {
    series: Arc<StreamSeries>,
    in_flight: Arc<Part>,
    trace_id: Option<TraceId>,
    state: AtomicU8,
    reason: Mutex<Option<Box<str>>>,
}

const NEW: u8 = 0;
const STARTED: u8 = 1;
const OVER: u8 = 2;

/// Why a task was cancelled, where nobody says.
const REQUESTED: &str = "requested";
/// Why it was cancelled, where its stream was let go before its end.
const DROPPED: &str = "dropped";

impl TaskMetrics {
    pub(super) fn new(
        series: Arc<StreamSeries>,
        in_flight: Arc<Part>,
        trace_id: Option<TraceId>,
    ) -> Self {
        let state = AtomicU8::new(NEW);
        Self(Arc::new(Task { series, in_flight, trace_id, state, reason: Mutex::default() }))
    }

    /// The task has been handed to the engine. However often, it counts once.
    pub fn started(&self) {
        let state = &self.0.state;
        if state.compare_exchange(NEW, STARTED, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.0.series.started.add(1);
            self.0.in_flight.add(1.0);
        }
    }

    /// Says why the task will be cancelled, if it is; the first to say so is believed.
    pub fn give_reason(&self, reason: &str) {
        let mut given = self.0.reason.lock().unwrap_or_else(PoisonError::into_inner);
        given.get_or_insert_with(|| reason.into());
    }

    /// Submit raised this error.
    pub fn refused(&self, error: &WorkerError) {
        self.refused_by(error.kind, error.phase, error.code.as_str());
    }

    /// As [`refused`](Self::refused), by what is counted of the error.
    pub fn refused_by(&self, kind: WorkerErrorKind, phase: Phase, code: &str) {
        if self.over(Outcome::Rejected) {
            let version = &self.0.series.version;
            version.count(
                Family::TaskErrors,
                &[(Label::Kind, kind.as_str()), (Label::Phase, phase.as_str())],
            );
            version.rejected(code);
        }
    }

    /// The task was cancelled, for the reason given before or else this one.
    pub fn cancelled(&self, reason: &str) {
        if self.over(Outcome::Cancelled) {
            let given = self.0.reason.lock().unwrap_or_else(PoisonError::into_inner).take();
            let reason = given.as_deref().unwrap_or(reason);
            self.0.series.version.count(Family::TasksCanceled, &[(Label::Reason, reason)]);
        }
    }

    /// A cancel ended it: what the engine said to that, if anything, and how long the cancel took.
    pub fn stopped(&self, confirmed: Option<bool>, took: Duration) {
        self.0.series.version.stopped(confirmed, took);
    }

    /// Whether this is the first that is told of its end.
    fn over(&self, outcome: Outcome) -> bool {
        let before = self.0.state.swap(OVER, Ordering::Relaxed);
        if before == STARTED {
            self.0.in_flight.add(-1.0);
        }
        if before != OVER {
            self.0.series.version.ended(outcome);
        }
        before != OVER
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if *self.state.get_mut() == STARTED {
            self.in_flight.add(-1.0);
        }
    }
}

impl fmt::Debug for TaskMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskMetrics").finish_non_exhaustive()
    }
}

/// How a stream ended, in what is counted of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Completed,
    Cancelled,
    Failed(WorkerErrorKind, Phase),
}

impl Ending {
    /// What a terminal event tells.
    pub(crate) fn of(event: &TokenEvent) -> Option<Self> {
        match event {
            TokenEvent::End(end) if end.finish_reason == Some(FinishReason::Cancelled) => {
                Some(Self::Cancelled)
            }
            TokenEvent::End(_) => Some(Self::Completed),
            TokenEvent::Error(error) => Some(Self::Failed(error.kind, error.phase)),
            _ => None,
        }
    }
}

/// What a decoder knows at one moment, of which the growth is counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tallies {
    pub(crate) tokens_in: u64,
    pub(crate) tokens_out: u64,
    pub(crate) utf8_replaced: u64,
    pub(crate) after_end: u64,
    pub(crate) metrics_dropped: u64,
    pub(crate) first_token: Option<Duration>,
}

/// One decoder's part in a task.
pub(crate) struct Tally {
    task: TaskMetrics,
    /// Whether the engine has answered 200, so that the ending is this decoder's to tell.
    pub(crate) is_answered: bool,
    is_over: bool,
    counted: Tallies,
    /// Tokens so far, and when the last of them came.
    last_token: Option<(u64, Instant)>,
}

impl Tally {
    pub(crate) fn new(task: TaskMetrics) -> Self {
        Self {
            task,
            is_answered: false,
            is_over: false,
            counted: Tallies::default(),
            last_token: None,
        }
    }

    pub(crate) fn started(&self) {
        self.task.started();
    }

    /// Bytes have been decoded; so far the stream has so many tokens.
    pub(crate) fn fed(&mut self, bytes: usize, tokens: u64, now: Instant) {
        let Task { series, trace_id, .. } = &*self.task.0;
        series.version.bytes.add(bytes as u64);
        let (before, at) = self.last_token.unwrap_or((0, now));
        if tokens > before {
            let more = u32::try_from(tokens - before).unwrap_or(u32::MAX);
            if before > 0
                && let Some(each) = now.saturating_since(at).checked_div(more)
            {
                series.inter_token.observe(each, more.into(), *trace_id);
            }
            self.last_token = Some((tokens, now));
        }
    }

    /// Adds what is new.
    pub(crate) fn fold(&mut self, now: &Tallies) {
        let Task { series, trace_id, .. } = &*self.task.0;
        let version = &series.version;
        let counted = &mut self.counted;
        for (seen, counted, series) in [
            (now.tokens_in, &mut counted.tokens_in, &version.tokens_in),
            (now.tokens_out, &mut counted.tokens_out, &version.tokens_out),
            (now.utf8_replaced, &mut counted.utf8_replaced, &version.replacements),
            (now.after_end, &mut counted.after_end, &version.after_end),
            (now.metrics_dropped, &mut counted.metrics_dropped, &version.frames_dropped),
        ] {
            if seen > *counted {
                series.add(seen - *counted);
                *counted = seen;
            }
        }
        if let (Some(latency), None) = (now.first_token, counted.first_token) {
            counted.first_token = Some(latency);
            series.first_token.observe(latency, 1, *trace_id);
        }
    }

    /// Tells the ending, if it is this decoder's to tell.
    pub(crate) fn end(&mut self, ending: Ending, decode: Option<Duration>) {
        if self.is_over || !self.is_answered {
            return;
        }
        self.is_over = true;
        let Task { series, trace_id, .. } = &*self.task.0;
        match ending {
            Ending::Completed => {
                if self.task.over(Outcome::Completed)
                    && let Some(decode) = decode
                {
                    series.decode.observe(decode, 1, *trace_id);
                }
            }
            Ending::Cancelled => self.task.cancelled(REQUESTED),
            Ending::Failed(kind, phase) => {
                if self.task.over(Outcome::Failed) {
                    series.version.count(
                        Family::TaskErrors,
                        &[(Label::Kind, kind.as_str()), (Label::Phase, phase.as_str())],
                    );
                }
            }
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        if self.is_answered && !self.is_over {
            self.task.cancelled(DROPPED);
        }
    }
}
