//! A thread turns a reactor; others give it something to do.

use std::sync::Arc;

use worker_adapters_core::time::Instant;

use crate::announced::Announced;
use crate::sync::{Bell, Mutex, thread};

struct Reactor {
    /// What is to be done, and by when.
    due: Mutex<Vec<Instant>>,
    announced: Announced,
    bell: Bell,
}

impl Reactor {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            due: Mutex::new(Vec::new()),
            announced: Announced::never(),
            bell: Bell::default(),
        })
    }

    /// As `Shared::change` does.
    fn give(&self, nanos: u64) {
        let next = {
            let mut due = self.due.lock().unwrap();
            due.push(Instant::from_nanos(nanos));
            due.iter().min().copied()
        };
        if self.announced.is_later_than(next) {
            self.bell.ring();
        }
    }

    /// As `Reactor::turn` does, of everything that is due before `now`; when to turn again.
    fn turn(&self, now: Instant) -> (usize, Option<Instant>) {
        self.bell.hush();
        let mut due = self.due.lock().unwrap();
        let before = due.len();
        due.retain(|due| *due > now);
        let next = due.iter().min().copied();
        self.announced.announce(next);
        (before - due.len(), next)
    }

    /// Turns until so much has been done. Time comes to what has been announced, and no further.
    fn drive(&self, wanted: usize) {
        let mut done = 0;
        let mut now = Instant::default();
        loop {
            let (more, next) = self.turn(now);
            done += more;
            if done == wanted {
                return;
            }
            match next {
                Some(next) => now = next,
                None => self.bell.wait(),
            }
        }
    }
}

/// Two others give something, the later one due earlier or not.
pub fn what_is_due_is_done() {
    let reactor = Reactor::new();
    let givers: Vec<_> = [7, 3]
        .into_iter()
        .map(|nanos| {
            let reactor = Arc::clone(&reactor);
            thread::spawn(move || reactor.give(nanos))
        })
        .collect();
    reactor.drive(2);
    for giver in givers {
        giver.join().unwrap();
    }
}

/// Whoever gives something for an earlier time is heard by a thread that waits for a later one: it
/// would else come by only then.
pub fn what_is_earlier_is_heard_by_whoever_waits_for_later() {
    let reactor = Reactor::new();
    reactor.give(9);
    assert_eq!(reactor.turn(Instant::default()), (0, Some(Instant::from_nanos(9))));
    let giver = {
        let reactor = Arc::clone(&reactor);
        thread::spawn(move || reactor.give(3))
    };
    reactor.bell.wait();
    assert_eq!(reactor.turn(Instant::from_nanos(3)).0, 1);
    giver.join().unwrap();
}
