//! What threads meet at, as the crates know it.

use std::sync::{LockResult, PoisonError};
use std::time::Duration;

pub use loom::sync::atomic::{AtomicBool, AtomicU64};
pub use loom::sync::{Mutex, MutexGuard};
pub use loom::thread;

/// A condition variable on which time does not pass: whoever would wait for no time at all is out
/// of it at once, whoever would wait for longer waits until it is told.
#[derive(Debug, Default)]
pub struct Condvar(loom::sync::Condvar);

impl Condvar {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    pub fn notify_all(&self) {
        self.0.notify_all();
    }

    /// Waits while `condition` holds; the time is up where it still does.
    ///
    /// # Errors
    ///
    /// When the lock is poisoned.
    pub fn wait_timeout_while<'a, T>(
        &self,
        mut guard: MutexGuard<'a, T>,
        time: Duration,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> LockResult<(MutexGuard<'a, T>, bool)> {
        while condition(&mut guard) {
            if time.is_zero() {
                return Ok((guard, true));
            }
            guard = self.0.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        Ok((guard, false))
    }
}

/// What makes a waiting thread look: it stays rung until somebody has.
#[derive(Debug, Default)]
pub struct Bell {
    is_rung: Mutex<bool>,
    rung: loom::sync::Condvar,
}

impl Bell {
    pub fn ring(&self) {
        *self.is_rung.lock().unwrap() = true;
        self.rung.notify_one();
    }

    pub fn wait(&self) {
        let mut is_rung = self.is_rung.lock().unwrap();
        while !std::mem::take(&mut *is_rung) {
            is_rung = self.rung.wait(is_rung).unwrap();
        }
    }

    /// Looks without waiting.
    pub fn hush(&self) {
        *self.is_rung.lock().unwrap() = false;
    }
}
