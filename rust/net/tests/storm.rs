//! Cancels at random moments, from another thread than the one that reads.
//!
//! `STORM=1000000 cargo test -p worker-adapters-net --release --test storm` has more of them.

// Tests may fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::*;
use futures::executor::block_on;
use worker_adapters_core::stream::StreamConfig;
use worker_adapters_core::task::Uuid;
use worker_adapters_net::{Bounds, Stats, Tasks};

const CANCELS: usize = 10_000;
const READERS: usize = 8;
const LATEST: Duration = Duration::from_micros(1500);

/// Pseudo-random numbers (SplitMix64).
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// An engine that tells tokens until nobody listens, and how many connections it has.
fn engine() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let open = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&open);
    thread::spawn(move || {
        while let Ok((socket, _)) = listener.accept() {
            let open = Arc::clone(&counted);
            open.fetch_add(1, Ordering::SeqCst);
            thread::spawn(move || {
                serve(socket);
                open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    (address, open)
}

fn serve(mut socket: TcpStream) {
    socket.set_nodelay(true).unwrap();
    // Not everybody comes as far as a request.
    if !socket.read(&mut [0; 1024]).is_ok_and(|size| size > 0) {
        return;
    }
    let token = chunk(&token("x", 1));
    let mut is_heard = socket.write_all(HEAD.as_bytes()).is_ok();
    while is_heard {
        is_heard = socket.write_all(token.as_bytes()).is_ok();
        thread::sleep(Duration::from_micros(100));
    }
}

/// What one reader has seen.
#[derive(Default)]
struct Seen {
    streams: usize,
    tokens: usize,
    late: usize,
    terminals: Vec<usize>,
}

/// A cancel that is to take place `after` its order, and is then known to have returned.
struct Order {
    task: Uuid,
    after: Duration,
    has_returned: Arc<AtomicBool>,
}

fn read(
    number: usize,
    count: usize,
    tasks: &Tasks,
    target: &worker_adapters_net::Target,
    orders: &mpsc::Sender<Order>,
) -> Seen {
    let mut rng = Rng(number as u64);
    let mut seen = Seen::default();
    for round in 0..count {
        let task = Uuid::from_u128(1 + (number * count + round) as u128);
        let has_returned = Arc::new(AtomicBool::new(false));
        let micros = u64::try_from(LATEST.as_micros()).unwrap();
        let after = Duration::from_micros(rng.below(micros));
        orders.send(Order { task, after, has_returned: Arc::clone(&has_returned) }).unwrap();
        let decoder = decoder(StreamConfig::new("llamacpp"));
        let request = request();
        let submit = tasks.submit(task, target, &request, decoder, Bounds::default());
        let mut stream = block_on(submit).unwrap();
        seen.streams += 1;
        let mut terminals = 0;
        loop {
            let was_over = has_returned.load(Ordering::SeqCst);
            let mut events = Vec::new();
            if block_on(stream.as_mut().next_batch(&mut events)) == 0 {
                break;
            }
            let tokens = texts(&events).len();
            seen.tokens += tokens;
            seen.late += if was_over { tokens } else { 0 };
            terminals += kinds(&events).iter().filter(|kind| **kind == "end").count();
            assert!(!kinds(&events).contains(&"error"));
        }
        seen.terminals.push(terminals);
    }
    seen
}

#[test]
fn cancels_at_random_moments_from_another_thread() {
    let count = std::env::var("STORM").map_or(CANCELS, |count| count.parse().unwrap());
    let (address, open) = engine();
    let reactor = reactor();
    let driver = reactor.spawn().unwrap();
    let target = reactor.target(config(address));
    let tasks = Tasks::new("llamacpp");
    let seen: Vec<Seen> = thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|number| {
                let (orders, received) = mpsc::channel::<Order>();
                let canceller = tasks.clone();
                scope.spawn(move || {
                    for Order { task, after, has_returned } in received {
                        thread::sleep(after);
                        // One that has not been submitted yet is nobody's.
                        while !canceller.cancel(task).sent {
                            thread::sleep(Duration::from_micros(20));
                        }
                        has_returned.store(true, Ordering::SeqCst);
                    }
                });
                let (tasks, target) = (&tasks, &target);
                scope.spawn(move || read(number, count / READERS, tasks, target, &orders))
            })
            .collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    });
    let streams: usize = seen.iter().map(|seen| seen.streams).sum();
    assert_eq!(streams, count / READERS * READERS);
    assert!(seen.iter().all(|seen| seen.terminals.iter().all(|terminals| *terminals == 1)));
    assert_eq!(seen.iter().map(|seen| seen.late).sum::<usize>(), 0, "tokens after a cancel");
    assert!(seen.iter().map(|seen| seen.tokens).sum::<usize>() > 0, "no stream ever began");
    assert!(tasks.is_empty());
    drop((driver, target));
    assert_eq!(reactor.stats(), Stats::default());
    let began = Instant::now();
    while open.load(Ordering::SeqCst) > 0 {
        assert!(began.elapsed() < GUARD, "the engine has not seen the end of every connection");
        thread::yield_now();
    }
}
