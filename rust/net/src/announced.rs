//! When whoever turns a reactor will come by on its own.

use std::sync::atomic::Ordering;

use worker_adapters_core::time::Instant;

use crate::sync::AtomicU64;

/// Nanoseconds, `u64::MAX` for never. It is asked without a lock, by whoever has changed what there
/// is to do: only what is due earlier is worth waking for.
pub(crate) struct Announced(AtomicU64);

impl Announced {
    /// Whoever turns comes by when it is woken, and not before.
    pub(crate) fn never() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }

    /// Whoever turns will come by at `next`, which is what the state says that it still has locked.
    pub(crate) fn announce(&self, next: Option<Instant>) {
        self.0.store(next.map_or(u64::MAX, nanos), Ordering::Release);
    }

    /// Whether nobody comes by in time for `next`, which is what the state said a moment ago.
    pub(crate) fn is_later_than(&self, next: Option<Instant>) -> bool {
        next.is_some_and(|next| nanos(next) < self.0.load(Ordering::Acquire))
    }
}

fn nanos(instant: Instant) -> u64 {
    u64::try_from(instant.saturating_since(Instant::default()).as_nanos()).unwrap_or(u64::MAX)
}
