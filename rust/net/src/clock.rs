//! Where the reactor's time comes from.

use std::fmt;

use rustix::time::{ClockId, clock_gettime};
use worker_adapters_core::time::Instant;

/// Tells the time on one monotonic axis.
///
/// ```
/// use worker_adapters_net::{Clock, Monotonic};
/// assert!(Monotonic.now() <= Monotonic.now());
/// ```
pub trait Clock: Send + Sync + fmt::Debug {
    /// The present instant; never before one told earlier.
    fn now(&self) -> Instant;
}

/// `CLOCK_MONOTONIC`, the axis of Python's `time.monotonic`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Monotonic;

impl Clock for Monotonic {
    fn now(&self) -> Instant {
        let time = clock_gettime(ClockId::Monotonic);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
        Instant::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
    }
}
