//! What has come for somebody who looks when a bell rings, and need not be rung for each thing.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use crate::sync::{AtomicBool, Mutex, MutexGuard};

pub(crate) struct Mailbox<T> {
    letters: Mutex<Vec<T>>,
    /// Whether its owner will look anyway.
    is_expected: AtomicBool,
}

/// Until it is dropped, also by a panic.
struct Expected<'m>(&'m AtomicBool);

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl<T> Mailbox<T> {
    pub(crate) fn new() -> Self {
        Self { letters: Mutex::new(Vec::new()), is_expected: AtomicBool::new(false) }
    }

    /// Does something after which the owner empties the mailbox, whatever comes of it.
    pub(crate) fn during<R>(&self, what: impl FnOnce() -> R) -> R {
        self.is_expected.store(true, Ordering::Relaxed);
        let _expected = Expected(&self.is_expected);
        what()
    }

    /// Puts something in, from any thread; whether the bell has to be rung for it.
    #[must_use]
    pub(crate) fn put(&self, letter: T) -> bool {
        let is_first = {
            let mut letters = self.lock();
            letters.push(letter);
            letters.len() == 1
        };
        // Who has not seen the owner look has been seen by it: both took the lock in between.
        is_first && !self.is_expected.load(Ordering::Relaxed)
    }

    /// Takes out all there is.
    pub(crate) fn empty(&self) -> Vec<T> {
        std::mem::take(&mut *self.lock())
    }

    /// A panic elsewhere cannot leave behind anything that is unsafe to look at.
    fn lock(&self) -> MutexGuard<'_, Vec<T>> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
