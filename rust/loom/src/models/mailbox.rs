//! Wakers put something into a mailbox; an event loop takes it out when a bell rings.

use std::sync::Arc;

use crate::mailbox::Mailbox;
use crate::sync::{Bell, thread};

struct Loop {
    mailbox: Mailbox<u8>,
    bell: Bell,
}

impl Loop {
    fn new() -> Arc<Self> {
        Arc::new(Self { mailbox: Mailbox::new(), bell: Bell::default() })
    }

    /// As `Wakes::push` does.
    fn put(&self, letter: u8) {
        if self.mailbox.put(letter) {
            self.bell.ring();
        }
    }

    fn putters(self: &Arc<Self>, letters: impl IntoIterator<Item = u8>) -> Vec<Thread> {
        let putter = |letter| {
            let this = Arc::clone(self);
            thread::spawn(move || this.put(letter))
        };
        letters.into_iter().map(putter).collect()
    }
}

type Thread = thread::JoinHandle<()>;

fn check(mut seen: Vec<u8>, threads: Vec<Thread>, wanted: &[u8]) {
    for thread in threads {
        thread.join().unwrap();
    }
    seen.sort_unstable();
    assert_eq!(seen, wanted);
}

/// A thread turns the reactor; the loop only empties the mailbox.
pub fn everything_put_is_taken() {
    let this = Loop::new();
    let threads = this.putters([1, 2]);
    let mut seen = Vec::new();
    while seen.len() < 2 {
        this.bell.wait();
        seen.extend(this.mailbox.empty());
    }
    check(seen, threads, &[1, 2]);
}

/// The loop turns the reactor itself, which puts something, too. The bell is the reactor's own: a
/// turn hushes it, as it begins.
pub fn everything_put_during_a_turn_is_taken() {
    let this = Loop::new();
    let threads = this.putters([1, 2]);
    let mut seen = Vec::new();
    let turn = |letter: Option<u8>| {
        this.mailbox.during(|| {
            this.bell.hush();
            if let Some(letter) = letter {
                this.put(letter);
            }
        });
        this.mailbox.empty()
    };
    seen.extend(turn(Some(0)));
    while seen.len() < 3 {
        this.bell.wait();
        seen.extend(turn(None));
    }
    check(seen, threads, &[0, 1, 2]);
}
