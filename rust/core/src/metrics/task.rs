//! What one task tells: that it started, what came of it, and how it ended – once.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::histogram::TraceId;
use super::names::{Family, INTER_TOKEN_BOUNDS, Label, Outcome};
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

/// How long what a decoder counts may wait until it is added to the metrics.
const FOLD: Duration = Duration::from_millis(250);

/// One decoder's part in a task: plain integers, added to the series a few times a second.
pub(crate) struct Tally {
    task: TaskMetrics,
    /// Whether the engine has answered 200, so that the ending is this decoder's to tell.
    pub(crate) is_answered: bool,
    is_over: bool,
    counted: Tallies,
    bytes: u64,
    /// Tokens so far, and when the last of them came.
    tokens: u64,
    token_at: Instant,
    gaps: [u64; INTER_TOKEN_BOUNDS.len() + 1],
    gaps_micros: u64,
    fold_due: Instant,
}

impl Tally {
    pub(crate) fn new(task: TaskMetrics) -> Self {
        Self {
            task,
            is_answered: false,
            is_over: false,
            counted: Tallies::default(),
            bytes: 0,
            tokens: 0,
            token_at: Instant::default(),
            gaps: [0; INTER_TOKEN_BOUNDS.len() + 1],
            gaps_micros: 0,
            fold_due: Instant::default(),
        }
    }

    pub(crate) fn started(&self) {
        self.task.started();
    }

    /// Bytes have been decoded; so far the stream has so many tokens. Whether what is counted is to
    /// be added now.
    pub(crate) fn fed(&mut self, bytes: usize, tokens: u64, now: Instant) -> bool {
        self.bytes += bytes as u64;
        if tokens > self.tokens {
            let more = tokens - self.tokens;
            if self.tokens > 0 {
                let gap = now.saturating_since(self.token_at).as_nanos();
                let micros = u64::try_from(gap / 1_000).unwrap_or(u64::MAX) / more;
                let at = INTER_TOKEN_BOUNDS.partition_point(|bound| *bound < micros);
                if let Some(count) = self.gaps.get_mut(at) {
                    *count += more;
                }
                self.gaps_micros = self.gaps_micros.saturating_add(micros.saturating_mul(more));
            }
            self.tokens = tokens;
            self.token_at = now;
        }
        now >= self.fold_due
    }

    /// Adds what `fed` has counted.
    fn fold_fed(&mut self) {
        let series = &self.task.0.series;
        if self.bytes > 0 {
            series.version.bytes.add(std::mem::take(&mut self.bytes));
        }
        if self.gaps.iter().any(|count| *count > 0) {
            series.inter_token.merge(&self.gaps, std::mem::take(&mut self.gaps_micros));
            self.gaps = [0; INTER_TOKEN_BOUNDS.len() + 1];
        }
    }

    /// Adds what is new.
    pub(crate) fn fold(&mut self, now: &Tallies, at: Instant) {
        self.fold_due = at.saturating_add(FOLD);
        self.fold_fed();
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
            series.first_token.observe(latency, *trace_id);
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
                    series.decode.observe(decode, *trace_id);
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
        self.fold_fed();
        let uncounted = self.tokens.saturating_sub(self.counted.tokens_out);
        self.task.0.series.version.tokens_out.add(uncounted);
        if self.is_answered && !self.is_over {
            self.task.cancelled(DROPPED);
        }
    }
}
