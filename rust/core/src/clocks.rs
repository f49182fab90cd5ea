//! The clocks of one stream. None of them reads the time: they are told it.

use std::time::Duration;

use crate::error::Detail;
use crate::time::Instant;

/// How long each part of a stream may take. None switches a clock off.
///
/// The contract's defaults belong to the adapters; here every clock is off unless set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Clocks {
    /// From dispatch to the first token; it covers the response head.
    pub first_token: Option<Duration>,
    /// Between two frames that stand for generated tokens or report progress.
    pub token_gap: Option<Duration>,
    /// Between two reads of any bytes, from the response head on.
    pub idle: Option<Duration>,
    /// When the task's time budget ends.
    pub deadline: Option<Instant>,
}

/// Clocks in motion: when each of them runs out.
#[derive(Debug)]
pub(crate) struct Running {
    clocks: Clocks,
    first_token_due: Option<Instant>,
    gap_due: Option<Instant>,
    idle_due: Option<Instant>,
    /// Since when our own reader has been the slow side.
    paused: Option<Instant>,
    dispatched: Option<Instant>,
    first_token: Option<Instant>,
}

impl Running {
    pub(crate) fn new(clocks: Clocks) -> Self {
        Self {
            clocks,
            first_token_due: None,
            gap_due: None,
            idle_due: None,
            paused: None,
            dispatched: None,
            first_token: None,
        }
    }

    pub(crate) fn dispatch(&mut self, now: Instant) {
        self.dispatched = Some(now);
        self.first_token_due = self.due(self.clocks.first_token, now);
    }

    pub(crate) fn is_dispatched(&self) -> bool {
        self.dispatched.is_some()
    }

    /// Bytes have come.
    pub(crate) fn bytes(&mut self, now: Instant) {
        self.idle_due = self.due(self.clocks.idle, now);
    }

    /// A frame that stands for tokens has come.
    pub(crate) fn token(&mut self, now: Instant) {
        self.first_token.get_or_insert(now);
        self.first_token_due = None;
        self.gap_due = self.due(self.clocks.token_gap, now);
    }

    /// The engine reports that it is at work, without a token.
    pub(crate) fn progress(&mut self, now: Instant) {
        if self.first_token.is_some() {
            self.gap_due = self.due(self.clocks.token_gap, now);
        }
    }

    /// Stops every clock but the deadline while our own reader is the slow side.
    pub(crate) fn pause(&mut self, paused: bool, now: Instant) {
        if paused {
            self.paused.get_or_insert(now);
        } else if let Some(since) = self.paused.take() {
            let pause = now.saturating_since(since);
            for due in [&mut self.first_token_due, &mut self.gap_due, &mut self.idle_due] {
                *due = due.map(|due| due.saturating_add(pause));
            }
        }
    }

    /// When to look again, if ever.
    pub(crate) fn next_wakeup(&self) -> Option<Instant> {
        let deadline = self.clocks.deadline;
        if self.paused.is_some() {
            return deadline;
        }
        sooner(deadline, sooner(self.first_token_due, sooner(self.gap_due, self.idle_due)))
    }

    /// The clock that has run out, the deadline before all others.
    pub(crate) fn expired(&self, now: Instant) -> Option<Detail> {
        if self.past_deadline(now) {
            return Some(Detail::Deadline);
        }
        self.earliest().filter(|(due, _)| *due <= now).map(|(_, detail)| detail)
    }

    pub(crate) fn past_deadline(&self, now: Instant) -> bool {
        self.clocks.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// What is left of the task's time, in milliseconds; without a deadline, all the time there is.
    ///
    /// Rounded up: a pause that is cut to it never ends before the deadline.
    pub(crate) fn until_deadline_ms(&self, now: Instant) -> u64 {
        self.clocks.deadline.map_or(u64::MAX, |deadline| {
            let left = deadline.saturating_since(now).as_nanos().div_ceil(1_000_000);
            u64::try_from(left).unwrap_or(u64::MAX)
        })
    }

    pub(crate) fn has_first_token(&self) -> bool {
        self.first_token.is_some()
    }

    /// From dispatch to the first token.
    pub(crate) fn latency_first_token(&self) -> Option<Duration> {
        Some(self.first_token?.saturating_since(self.dispatched?))
    }

    /// From dispatch to the first token, in milliseconds.
    pub(crate) fn latency_first_token_ms(&self) -> Option<u64> {
        self.latency_first_token().map(millis)
    }

    /// From the first token to `now`.
    pub(crate) fn decode_time(&self, now: Instant) -> Option<Duration> {
        Some(now.saturating_since(self.first_token?))
    }

    /// From the first token to `now`, in milliseconds.
    pub(crate) fn decode_ms(&self, now: Instant) -> u64 {
        self.decode_time(now).map_or(0, millis)
    }

    fn earliest(&self) -> Option<(Instant, Detail)> {
        if self.paused.is_some() {
            return None;
        }
        [
            (self.first_token_due, Detail::FirstToken),
            (self.gap_due, Detail::TokenGap),
            (self.idle_due, Detail::Idle),
        ]
        .into_iter()
        .filter_map(|(due, detail)| Some((due?, detail)))
        .min_by_key(|(due, _)| *due)
    }

    /// A clock that starts in a pause starts when the pause ends, which moves it by its length.
    fn due(&self, clock: Option<Duration>, now: Instant) -> Option<Instant> {
        Some(self.paused.unwrap_or(now).saturating_add(clock?))
    }
}

/// Asked for each read: written out, it takes a tenth of what an iterator over all of them does.
fn sooner(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from((duration.as_nanos() + 500_000) / 1_000_000).unwrap_or(u64::MAX)
}
