//! Whoever is to be woken.

use std::task::Waker;

#[derive(Default)]
#[must_use]
pub struct Leftovers(pub Option<Waker>);

impl Leftovers {
    pub fn settle(self) {
        if let Some(waker) = self.0 {
            waker.wake();
        }
    }
}
