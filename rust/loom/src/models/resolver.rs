//! Callers, and the threads that resolve for them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::resolver::{Resolve, Resolver};
use crate::sync::{Bell, Mutex, thread};

struct Instantly;

impl Resolve for Instantly {
    fn resolve(&self, _: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))])
    }
}

/// The tickets that were answered, and a bell for each answer.
#[derive(Default)]
struct Answers {
    tickets: Mutex<Vec<u64>>,
    bell: Bell,
}

impl Answers {
    fn wait_for(&self, wanted: &[u64]) {
        loop {
            let mut tickets = self.tickets.lock().unwrap().clone();
            tickets.sort_unstable();
            if tickets.len() >= wanted.len() {
                assert_eq!(tickets, wanted);
                return;
            }
            self.bell.wait();
        }
    }
}

fn resolver(idle: Duration) -> (Arc<Resolver>, Arc<Answers>) {
    let answers = Arc::new(Answers::default());
    let told = Arc::clone(&answers);
    let resolver = Resolver::with_idle(
        Arc::new(Instantly),
        move |ticket, answer| {
            assert!(answer.is_ok());
            told.tickets.lock().unwrap().push(ticket);
            told.bell.ring();
        },
        idle,
    );
    (Arc::new(resolver), answers)
}

fn two_callers(idle: Duration, hosts: [&'static str; 2]) {
    let (resolver, answers) = resolver(idle);
    let caller = {
        let resolver = Arc::clone(&resolver);
        thread::spawn(move || resolver.resolve(1, hosts[1], 80).unwrap())
    };
    resolver.resolve(0, hosts[0], 80).unwrap();
    caller.join().unwrap();
    answers.wait_for(&[0, 1]);
    // Threads that wait for work end, or this model does not.
    drop(resolver);
}

/// Threads stay when they have nothing to do.
pub fn two_names_are_answered_by_threads_that_stay() {
    two_callers(Duration::MAX, ["a", "b"]);
}

/// Threads go as soon as they have nothing to do.
pub fn two_names_are_answered_by_threads_that_go() {
    two_callers(Duration::ZERO, ["a", "b"]);
}

/// Both wait for one lookup, or the second comes too late for it.
pub fn one_name_is_answered_to_both() {
    two_callers(Duration::ZERO, ["a", "a"]);
}

/// One name after the other: the thread of the first may be about to wait, or to go.
pub fn a_name_is_answered_by_a_thread_that_is_about_to_wait() {
    for idle in [Duration::ZERO, Duration::MAX] {
        let (resolver, answers) = resolver(idle);
        resolver.resolve(0, "a", 80).unwrap();
        answers.wait_for(&[0]);
        resolver.resolve(1, "b", 80).unwrap();
        answers.wait_for(&[0, 1]);
    }
}

/// A ticket that is forgotten may be answered all the same, once, and keeps nobody else from it.
pub fn a_forgotten_ticket_takes_no_other_with_it() {
    let (resolver, answers) = resolver(Duration::ZERO);
    let forgetter = {
        let resolver = Arc::clone(&resolver);
        thread::spawn(move || {
            resolver.resolve(1, "a", 80).unwrap();
            resolver.forget(1);
        })
    };
    resolver.resolve(0, "a", 80).unwrap();
    forgetter.join().unwrap();
    loop {
        let tickets = answers.tickets.lock().unwrap().clone();
        assert!(tickets.iter().filter(|ticket| **ticket == 1).count() <= 1);
        assert!(tickets.iter().filter(|ticket| **ticket == 0).count() <= 1);
        if tickets.contains(&0) {
            return;
        }
        answers.bell.wait();
    }
}

/// A resolver may be dropped at any moment of its threads.
pub fn nobody_is_left_behind_by_a_dropped_resolver() {
    let (resolver, answers) = resolver(Duration::MAX);
    resolver.resolve(0, "a", 80).unwrap();
    drop(resolver);
    assert!(answers.tickets.lock().unwrap().len() <= 1);
}
